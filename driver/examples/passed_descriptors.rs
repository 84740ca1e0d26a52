//! A process without any right drives a card: another one opens it and passes the descriptors.
//! `cargo run --example passed_descriptors -- 0000:00:05.0 type1` as root, or with `iommufd`; the
//! card is QEMU's edu, bound to vfio-pci.
//!
//! The first process stands for a helper with the rights, such as a system service: it opens the
//! nodes, and knows nothing of the card. The second, which drives it, is user 65534.

use std::env;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use vfio_dma::backend::vfio::{Container, Ioas, IoasOptions, Passed};
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::edu::{Config, Edu};
use vfio_dma::dma::{Direction, Request};
use vfio_dma::pci::Address;
use vfio_dma::pci::sysfs::Tree;
use vfio_dma::session::Session;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const NOBODY: u32 = 65534;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        [address, method @ ("type1" | "iommufd")] => help(address, method),
        [address, method, "drive"] => drive(address, method),
        _ => Err("usage: passed_descriptors BDF type1|iommufd, as root".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("passed_descriptors: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Opens the nodes, and starts the driver with a socket that they come through.
fn help(address: &str, method: &str) -> Result<()> {
    let sysfs = Tree::new();
    let function: Address = address.parse()?;
    let nodes = if method == "type1" {
        let group = sysfs.group(function)?.ok_or("it has no IOMMU group")?;
        ["/dev/vfio/vfio".into(), group.node()]
    } else {
        let node = sysfs.vfio_nodes(function).pop().ok_or("it has no character device")?;
        ["/dev/iommu".into(), node]
    };
    let open = |node| File::options().read(true).write(true).open(node);
    let files = nodes.map(open).into_iter().collect::<io::Result<Vec<File>>>()?;

    let (ours, theirs) = UnixStream::pair()?;
    let mut driver = Command::new(env::current_exe()?)
        .args([address, method, "drive"])
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .uid(NOBODY)
        .gid(NOBODY)
        .spawn()?;
    let descriptors: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(ours.as_raw_fd(), &[IoSlice::new(b"!")], &rights, MsgFlags::empty(), None)?;
    // The kernel opens a group once: the driver's is the only one.
    drop(files);
    let status = driver.wait()?;
    if status.success() { Ok(()) } else { Err(format!("the driver: {status}").into()) }
}

/// Receives two descriptors from standard input.
fn receive() -> Result<[OwnedFd; 2]> {
    let mut space = nix::cmsg_space!([RawFd; 2]);
    let mut byte = [0];
    let mut bytes = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(io::stdin().as_raw_fd(), &mut bytes, Some(&mut space), flags)?;
    let mut received = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control {
            // SAFETY: the kernel has just made them, for this process to own.
            received.extend(descriptors.iter().map(|&fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    received.try_into().map_err(|_| "two descriptors were to come".into())
}

fn drive(address: &str, method: &str) -> Result<()> {
    let [shared, own] = receive()?;
    let function: Address = address.parse()?;
    let (mut session, passed) = if method == "type1" {
        (Session::in_container(Container::from_fd(shared)?), Passed::Group(own))
    } else {
        let options = IoasOptions { iommufd: Some(shared), ..IoasOptions::default() };
        (Session::in_ioas(Ioas::with(options)?), Passed::CharacterDevice(own))
    };
    let mut edu = Edu::probe(session.open_passed(function, passed, None)?, Config::default())?;

    let text = b"without any right";
    let mut source = edu.allocate(&Request::new(text.len(), Direction::ToDevice))?;
    let target = edu.allocate(&Request::new(text.len(), Direction::FromDevice))?;
    source.write(0, text)?;
    let (_, target) = edu.copy(source, 0, target, 0, text.len())?.wait()?;
    let mut arrived = [0; 17];
    target.read(0, &mut arrived)?;
    let (user, iommu) = (nix::unistd::geteuid(), edu.device().space().iommu().name());
    println!("user {user} through {iommu}: {}", String::from_utf8_lossy(&arrived));
    Ok(())
}
