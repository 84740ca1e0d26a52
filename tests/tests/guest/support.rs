//! What the cases share.

use vfio_dma::backend::vfio::Access;
use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::edu::{Completion, Config, Edu};
use vfio_dma::dma::{Buffer, Direction, Pattern, Request};
use vfio_dma::host::Sysfs;
use vfio_dma::pci::Address;
use vfio_dma::session::Session;
use vfio_dma_tests::{Said, address, vfio_dma};

/// The edu device behind the root port: the root port has bus 1.
pub(crate) fn edu_behind_port() -> Address {
    "0000:01:00.0".parse().expect("a well-formed address")
}

/// Binds a device to vfio-pci; it stays bound for the cases that follow.
pub(crate) fn bind(address: Address) {
    Sysfs::new().bind(address).expect("binding to vfio-pci");
}

pub(crate) fn open(address: Address) -> Device {
    open_through(Access::Auto, address)
}

pub(crate) fn open_through(access: Access, address: Address) -> Device {
    bind(address);
    Session::through(access).open(address).expect("opening through VFIO")
}

/// A session for devices without an IOMMU.
pub(crate) fn without_iommu() -> Session {
    // SAFETY: the case asks for the mode by name, in a guest of its own, and gives its devices
    // no addresses but those of buffers that were placed for them.
    unsafe { Session::without_iommu() }
}

pub(crate) fn open_without_iommu(address: Address) -> Device {
    bind(address);
    without_iommu().open(address).expect("opening through VFIO")
}

pub(crate) fn edu_at(address: Address, completion: Completion, address_bits: u32) -> Edu {
    let config = Config { completion, address_bits, ..Config::default() };
    Edu::probe(open(address), config).expect("opening edu")
}

/// The guest's first edu device, of 28 address bits.
pub(crate) fn edu(completion: Completion) -> Edu {
    edu_at(address(0), completion, 28)
}

/// Copies through edu at odd offsets and checks every byte of both buffers, also those
/// around what was moved.
pub(crate) fn copy_and_verify(edu: &mut Edu, len: usize, seed: u64) {
    let (before, behind) = (13, 29);
    let (from, to) = (before, before + 1022);
    let size = to + len + behind;
    let mut source = edu.allocate(&Request::new(size, Direction::ToDevice)).expect("a source");
    let mut target = edu.allocate(&Request::new(size, Direction::FromDevice)).expect("a target");
    assert_eq!(source.segments().len(), 1, "contiguous");
    let (sent, old) = (Pattern::new(seed), Pattern::new(!seed));
    sent.fill(&mut source, 0, size, 0).expect("in range");
    old.fill(&mut target, 0, size, 0).expect("in range");
    let (source, target) = edu
        .copy(source, from, target, to, len)
        .expect("the copy starts")
        .wait()
        .expect("the copy ends");
    let ok = |checked: Result<Result<(), vfio_dma::dma::Mismatch>, _>| {
        let checked: Result<_, vfio_dma::dma::DmaError> = checked;
        checked.expect("in range").expect("right bytes");
    };
    ok(sent.check(&source, 0, size, 0));
    ok(old.check(&target, 0, to, 0));
    ok(sent.check(&target, to, len, from as u64));
    ok(old.check(&target, to + len, behind, (to + len) as u64));
}

/// Hands a buffer from one device to another in the same address space: what one wrote, the
/// other reads.
pub(crate) fn share_a_buffer(first: &mut Edu, second: &mut Edu) -> Buffer {
    let pattern = Pattern::new(3);
    let mut shared = first.allocate(&Request::new(2048, Direction::Bidirectional)).unwrap();
    pattern.fill(&mut shared, 0, 1024, 0).unwrap();
    let shared = first.write(shared, 0, 0, 1024).unwrap().wait().unwrap();
    let shared = first.read(shared, 1024, 0, 1024).unwrap().wait().unwrap();
    let shared = second.write(shared, 1024, 0, 1024).unwrap().wait().unwrap();
    let shared = second.read(shared, 0, 0, 1024).unwrap().wait().unwrap();
    pattern.check(&shared, 0, 1024, 0).unwrap().unwrap();
    shared
}

/// Runs the command line, which must fail with one message that has all of these parts.
pub(crate) fn refused(args: &[&str], parts: &[&str]) {
    let said = vfio_dma(args);
    check_refusal(&said, parts);
}

/// As [`refused`], for what is no way to call the command: exit status 2.
pub(crate) fn misused(args: &[&str], parts: &[&str]) {
    check_message(&vfio_dma(args), 2, parts);
}

pub(crate) fn check_refusal(said: &Said, parts: &[&str]) {
    check_message(said, 1, parts);
}

fn check_message(said: &Said, status: i32, parts: &[&str]) {
    assert_eq!(said.status, status, "{said:#?}");
    assert_eq!(said.out, "", "nothing on standard output: {said:#?}");
    // "error: " begins what the parser of the command line says.
    let begins = |line: &&str| line.starts_with("vfio-dma: ") || line.starts_with("error: ");
    let messages = said.err.lines().filter(begins).count();
    assert_eq!(messages, 1, "one message: {said:#?}");
    for part in parts {
        assert!(said.err.contains(part), "{part:?} is missing: {said:#?}");
    }
}

/// The state of the machine that a refused command must not change.
pub(crate) fn machine_state() -> String {
    let mut state = String::new();
    for device in Sysfs::new().enumerate().expect("sysfs") {
        let path = Sysfs::new().tree().device_dir(device.address).expect("it was just there");
        let overriding = std::fs::read_to_string(path.join("driver_override")).unwrap_or_default();
        let command = std::fs::read(path.join("config")).expect("config")[4..6].to_vec();
        state += &format!("{} {:?} {overriding} {command:?}\n", device.address, device.driver);
    }
    state
}

/// Asserts that the closure leaves bindings and command registers as they were.
pub(crate) fn leaves_machine_alone(body: impl FnOnce()) {
    let before = machine_state();
    body();
    assert_eq!(before, machine_state());
}
