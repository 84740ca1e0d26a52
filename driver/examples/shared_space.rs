//! Two processes, each with a card of its own, in one address space: one card reads what the
//! other process placed. `cargo run --example shared_space -- 0000:00:05.0 0000:00:06.0` as root;
//! both are QEMU's edu, bound to vfio-pci.
//!
//! The first process makes the address space and passes its iommufd. Each maps in a range of
//! IOVAs of its own, which they have agreed upon.

use std::env;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use vfio_dma::backend::vfio::{Ioas, IoasOptions};
use vfio_dma::device::Device;
use vfio_dma::dma::{Direction, DmaLimits, Request};
use vfio_dma::mmio::{Bar, ReadWrite, Reg};
use vfio_dma::session::Session;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const SOURCE: Reg<u64, ReadWrite> = Reg::at(0x80);
const TARGET: Reg<u64, ReadWrite> = Reg::at(0x88);
const COUNT: Reg<u64, ReadWrite> = Reg::at(0x90);
const COMMAND: Reg<u64, ReadWrite> = Reg::at(0x98);
const START: u64 = 1;
const TO_MEMORY: u64 = 2;
/// The card's own memory.
const CARD: u64 = 0x4_0000;

/// Within the 28 address bits of the card.
const FIRST: RangeInclusive<u64> = 0x100_0000..=0x7ff_ffff;
const SECOND: RangeInclusive<u64> = 0x800_0000..=0xfff_ffff;

const TEXT: &[u8; 24] = b"from one to another card";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        [own, other] => first(own, other),
        [own, "second", ioas] => ioas.parse().map_err(Into::into).and_then(|id| second(own, id)),
        _ => Err("usage: shared_space BDF BDF, as root".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shared_space: {error}");
            ExitCode::FAILURE
        }
    }
}

fn open(ioas: std::sync::Arc<Ioas>, card: &str) -> Result<(Device, Bar)> {
    let mut device = Session::in_ioas(ioas).open(card.parse()?)?;
    device.set_dma_limits(DmaLimits { address_mask: (1 << 28) - 1, ..DmaLimits::default() })?;
    let bar = device.bar(0)?;
    device.set_bus_master(true)?;
    Ok((device, bar))
}

/// Has the card move bytes between an address and its own memory.
fn move_bytes(bar: &Bar, source: u64, target: u64, command: u64) -> Result<()> {
    bar.set(SOURCE, source)?;
    bar.set(TARGET, target)?;
    bar.set(COUNT, TEXT.len() as u64)?;
    bar.set(COMMAND, command | START)?;
    let begin = Instant::now();
    while bar.get(COMMAND)? & START != 0 {
        if begin.elapsed() > Duration::from_secs(5) {
            return Err("the card does not end its transfer".into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Makes the address space; reads through its card what the other process placed, and writes it
/// back behind that.
fn first(own: &str, other: &str) -> Result<()> {
    let ioas = Ioas::with(IoasOptions { iovas: FIRST, ..IoasOptions::default() })?;
    let (mut ours, theirs) = UnixStream::pair()?;
    let mut second = Command::new(env::current_exe()?)
        .args([other, "second", &ioas.id().to_string()])
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()?;
    let iommufd = ioas.descriptor()?;
    let rights = [iommufd.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&rights)];
    sendmsg::<()>(ours.as_raw_fd(), &[IoSlice::new(b"!")], &rights, MsgFlags::empty(), None)?;

    let (device, bar) = open(ioas, own)?;
    let buffer = device.allocate(&Request::new(4096, Direction::FromDevice))?;
    let mut iova = [0; 8];
    ours.read_exact(&mut iova)?;
    let (here, there) = (buffer.segments()[0].iova.0, u64::from_le_bytes(iova));
    move_bytes(&bar, there, CARD, 0)?;
    move_bytes(&bar, CARD, here, TO_MEMORY)?;
    move_bytes(&bar, CARD, there + 2048, TO_MEMORY)?;
    let mut arrived = [0; TEXT.len()];
    buffer.read(0, &mut arrived)?;
    println!("{:#x} to {here:#x}: {}", there, String::from_utf8_lossy(&arrived));
    ours.write_all(b"!")?;
    let status = second.wait()?;
    if status.success() { Ok(()) } else { Err(format!("the second process: {status}").into()) }
}

/// Joins the address space, places a text and waits until the other process's card wrote it back.
fn second(own: &str, id: u32) -> Result<()> {
    let socket = io::stdin();
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut byte = [0];
    let mut bytes = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut bytes, Some(&mut space), flags)?;
    let iommufd = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmRights(descriptors) => {
            // SAFETY: the kernel has just made it, for this process to own.
            descriptors.first().map(|&fd| unsafe { OwnedFd::from_raw_fd(fd) })
        }
        _ => None,
    });
    let ioas = Ioas::with(IoasOptions { iommufd, id: Some(id), iovas: SECOND })?;
    let (device, _bar) = open(ioas, own)?;
    let mut buffer = device.allocate(&Request::new(4096, Direction::Bidirectional))?;
    buffer.write(0, TEXT)?;
    let mut socket = UnixStream::from(socket.as_fd().try_clone_to_owned()?);
    socket.write_all(&buffer.segments()[0].iova.0.to_le_bytes())?;
    socket.read_exact(&mut byte)?;
    let mut arrived = [0; TEXT.len()];
    buffer.read(2048, &mut arrived)?;
    if arrived == *TEXT { Ok(()) } else { Err("other bytes came back".into()) }
}
