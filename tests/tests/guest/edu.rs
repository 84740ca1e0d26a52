//! Transfers of edu.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use vfio_dma::devices::PciDriver;
use vfio_dma::devices::edu::{Completion, Config, Edu, EduError};
use vfio_dma::devices::{CopyEngine, CopyError, open_copy_engine};
use vfio_dma::dma::{Direction, Pattern, Request, SgTable};
use vfio_dma::session::Session;
use vfio_dma_tests::same_program::{Extent, run};
use vfio_dma_tests::{Case, address, cases};

use crate::support::{
    bind, copy_and_verify, edu, edu_at, edu_behind_port, machine_state, open, refused,
};

macro_rules! transfers {
    ($($name:ident: $len:literal, $completion:ident;)*) => {
        $(pub(crate) fn $name() {
            copy_and_verify(&mut edu(Completion::$completion), $len, $len);
        })*

        /// Every size with every way to learn completion.
        pub(crate) fn transfers() -> Vec<Case> {
            cases![$($name),*]
        }
    };
}

transfers! {
    moves_4_kib_by_msi: 4096, Msi;
    moves_4_kib_by_intx: 4096, Intx;
    moves_4_kib_polled: 4096, Polled;
    moves_64_kib_by_msi: 65536, Msi;
    moves_64_kib_by_intx: 65536, Intx;
    moves_64_kib_polled: 65536, Polled;
    moves_100000_bytes_by_msi: 100_000, Msi;
    moves_100000_bytes_by_intx: 100_000, Intx;
    moves_100000_bytes_polled: 100_000, Polled;
}

/// edu takes 100 ms of the guest's clock for 4 KiB, and goes there and back: 64 MiB would
/// take 55 minutes.
const EXTENT: Extent = Extent { longest: 9001, limit: Duration::from_secs(60) };

pub(crate) fn the_same_program_moves_the_same_bytes() {
    run(open(address(0)), &EXTENT);
}

pub(crate) fn identifies_and_computes() {
    for completion in [Completion::Polled, Completion::Msi, Completion::Intx] {
        let mut edu = edu(completion);
        assert_eq!(edu.version().unwrap(), (1, 0));
        assert!(edu.is_alive(0x1234_5678).unwrap());
        assert!(edu.is_alive(0).unwrap());
        for n in [0u32, 1, 5, 12, 20] {
            let expected = (1..=n).fold(1u32, |product, i| product.wrapping_mul(i));
            assert_eq!(edu.factorial(n).unwrap(), expected, "{n}! {completion:?}");
        }
        if completion != Completion::Polled {
            edu.interrupt(0x2).unwrap();
        }
    }
}

pub(crate) fn moves_twice_with_a_reset_between() {
    let mut edu = edu_at(edu_behind_port(), Completion::Msi, 28);
    copy_and_verify(&mut edu, 5000, 1);
    edu.reset().unwrap();
    copy_and_verify(&mut edu, 5000, 2);
}

pub(crate) fn says_so_when_the_bus_cannot_reset_it() {
    let mut edu = edu(Completion::Msi);
    let error = edu.reset().unwrap_err().to_string();
    assert!(error.contains("0000:00:05.0") && error.contains("reset_method"), "{error}");
    copy_and_verify(&mut edu, 100, 3);
}

pub(crate) fn reaches_32_bits() {
    let mut edu = edu_at(address(1), Completion::Msi, 32);
    let high = edu.allocate(&Request::new(1, Direction::ToDevice)).unwrap().segments()[0].iova;
    assert!(high.0 > u64::from(u32::MAX >> 1) && high.0 <= u64::from(u32::MAX), "{high}");
    copy_and_verify(&mut edu, 9000, 4);
}

fn reaches_40_bits_from(lowest: u64) {
    let mut edu = edu_at(address(2), Completion::Msi, 40);
    let high = edu.allocate(&Request::new(1, Direction::ToDevice)).unwrap().segments()[0].iova;
    assert!(high.0 >= lowest && high.0 < 1 << 40, "{high}");
    copy_and_verify(&mut edu, 9000, 5);
}

pub(crate) fn reaches_40_bits_as_far_as_the_iommu_goes() {
    // The IOMMU has 39 bits: no buffer lies above, however far the device reaches.
    reaches_40_bits_from((1 << 39) - (1 << 30));
    let edu = edu_at(address(2), Completion::Polled, 40);
    let all = edu.device().space().iovas();
    assert!(all.free_runs().all(|run| *run.end() < 1 << 39));
}

pub(crate) fn reaches_all_of_40_bits() {
    reaches_40_bits_from((1 << 40) - (1 << 30));
}

pub(crate) fn refuses_an_address_over_its_mask() {
    bind(address(0));
    bind(address(1));
    let mut session = Session::new();
    let narrow = session.open(address(0)).unwrap();
    let wide = session.open(address(1)).unwrap();
    let wide = Edu::probe(wide, Config { address_bits: 32, ..Config::default() }).unwrap();
    let mut narrow = Edu::probe(narrow, Config::default()).unwrap();
    let mut far = wide.allocate(&Request::new(64, Direction::Bidirectional)).unwrap();
    Pattern::new(1).fill(&mut far, 0, 64, 0).unwrap();
    let failed = narrow.read(far, 0, 0, 64).unwrap_err();
    assert!(
        matches!(failed.error, EduError::AddressOverMask { mask: 0x0fff_ffff, .. }),
        "{failed}"
    );
    let far = failed.buffers.expect("the buffer comes back");
    Pattern::new(1).check(&far, 0, 64, 0).unwrap().expect("the device did not touch it");
    copy_and_verify(&mut narrow, 100, 6);
}

pub(crate) fn can_be_dropped_in_the_middle_of_a_transfer() {
    let mut edu = edu(Completion::Msi);
    let space = edu.device().space().clone();
    let target = edu.allocate(&Request::new(4096, Direction::FromDevice)).unwrap();
    drop(edu.read(target, 0, 0, 4096).unwrap());
    assert_eq!(space.usage().mappings, 0, "unmapped once the device was stopped");
    copy_and_verify(&mut edu, 4096, 7);
    // Forgotten: the driver still has the buffer and refuses others.
    let target = edu.allocate(&Request::new(4096, Direction::FromDevice)).unwrap();
    std::mem::forget(edu.read(target, 0, 0, 4096).unwrap());
    let other = edu.allocate(&Request::new(4096, Direction::FromDevice)).unwrap();
    let failed = edu.read(other, 0, 0, 4096).unwrap_err();
    assert!(matches!(failed.error, EduError::Busy { .. }), "{failed}");
    drop(failed);
    assert_eq!(space.usage().mappings, 1);
    drop(edu);
    assert_eq!(space.usage().mappings, 0, "stopped and unmapped with the driver");
}

pub(crate) fn a_panic_in_the_middle_of_a_transfer_stops_the_device() {
    let edu = edu(Completion::Msi);
    let space = edu.device().space().clone();
    let target = edu.allocate(&Request::new(4096, Direction::FromDevice)).unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let mut edu = edu;
        let _transfer = edu.read(target, 0, 0, 4096).unwrap();
        panic!("on purpose");
    }));
    assert!(panicked.is_err());
    assert_eq!(space.usage().mappings, 0, "unmapped");
    drop(space);
    copy_and_verify(&mut edu_at(address(0), Completion::Msi, 28), 4096, 9);
}

pub(crate) fn refuses_what_does_not_fit() {
    let mut edu = edu(Completion::Polled);
    let buffer = edu.allocate(&Request::new(8192, Direction::FromDevice)).unwrap();
    let failed = edu.read(buffer, 0, 1, 4096).unwrap_err();
    assert!(matches!(failed.error, EduError::OutsideDeviceBuffer { offset: 1, len: 4096 }));
    let failed = edu.read(*failed.buffers.unwrap(), 8000, 0, 200).unwrap_err();
    assert!(matches!(failed.error, EduError::Dma(_)), "{failed}");
    let failed = edu.write(*failed.buffers.unwrap(), 0, 0, 16).unwrap_err();
    assert!(matches!(failed.error, EduError::WrongDirection { .. }), "{failed}");
    let foreign = edu_at(address(1), Completion::Polled, 28);
    let foreign = foreign.allocate(&Request::new(16, Direction::FromDevice)).unwrap();
    let failed = edu.read(foreign, 0, 0, 16).unwrap_err();
    assert!(matches!(failed.error, EduError::ForeignBuffer { .. }), "{failed}");
    assert!(edu.allocate(&Request::new(0, Direction::ToDevice)).is_err());
    let empty = edu.allocate(&Request::new(1, Direction::ToDevice)).unwrap();
    edu.write(empty, 0, 0, 0).unwrap().wait().expect("no bytes are moved at once");
}

/// The command ends soon after Ctrl-C, says how far it came, and leaves the device as it was.
pub(crate) fn ctrl_c_stops_a_run_in_the_middle() {
    bind(address(0));
    let before = machine_state();
    let mut child = Command::new("/bin/vfio-dma")
        .args(["run", "--size", "1M", &address(0).to_string()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A megabyte takes 50 s.
    std::thread::sleep(Duration::from_secs(1));
    let sent = Instant::now();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said}");
    // It looks at Ctrl-C every 16 KiB, which are 0.8 s.
    assert!(sent.elapsed() < Duration::from_secs(3), "{:?}: {said}", sent.elapsed());
    assert!(said.contains("interrupted after ") && said.contains(" of 1048576 bytes"), "{said}");
    assert_eq!(machine_state(), before, "bus mastering is off");
    copy_and_verify(&mut edu(Completion::Msi), 5000, 10);
}

/// As a copy engine it refuses and stops as others do, and gives the buffers back.
pub(crate) fn a_copy_that_is_refused_or_late_gives_its_buffers_back() {
    let mut engine = open_copy_engine(open(address(0))).unwrap();
    let table = |engine: &dyn CopyEngine, len, direction| {
        SgTable::from(engine.allocate(&Request::new(len, direction)).unwrap())
    };
    let limit = Duration::from_secs(20);
    let source = table(&*engine, 9000, Direction::ToDevice);
    let long = table(&*engine, 9001, Direction::FromDevice);
    let failed = engine.copy(source, long, limit).unwrap_err();
    assert!(matches!(failed.error.of_engine(), Some(EduError::Sg(_))), "{failed}");
    let (source, _) = failed.tables.expect("nothing began");
    let failed = engine.copy(table(&*engine, 9000, Direction::FromDevice), source, limit);
    let failed = failed.unwrap_err();
    let of_edu = failed.error.of_engine();
    assert!(matches!(of_edu, Some(EduError::WrongDirection { .. })), "{failed}");
    let (target, source) = failed.tables.expect("nothing began");
    // 6 pieces of 100 ms.
    let failed = engine.copy(source, target, Duration::from_millis(250)).unwrap_err();
    let Some(EduError::Timeout { waited, .. }) = failed.error.of_engine() else {
        panic!("{failed}")
    };
    assert_eq!(*waited, Duration::from_millis(250));
    let (source, target) = failed.tables.expect("the device was stopped");
    engine.copy(source, target, limit).unwrap();
    let (other, device) = open_copy_engine(open(address(3))).unwrap_err().into_parts();
    let CopyError::NoEngine { identity, .. } = other else { panic!("{other}") };
    assert_eq!((identity.device, device.location()), (5, address(3).to_string().as_str()));
}

pub(crate) fn writes_and_reads_its_own_buffer() {
    let mut edu = edu(Completion::Msi);
    let pattern = Pattern::new(8);
    let mut buffer = edu.allocate(&Request::new(3000, Direction::Bidirectional)).unwrap();
    pattern.fill(&mut buffer, 1, 1001, 0).unwrap();
    // 1001 bytes to offset 77 of the device, and the last 900 of them back to 2000.
    let buffer = edu.write(buffer, 1, 77, 1001).unwrap().wait().unwrap();
    let buffer = edu.read(buffer, 2000, 178, 900).unwrap().wait().unwrap();
    pattern.check(&buffer, 2000, 900, 101).unwrap().unwrap();
}

pub(crate) fn a_mask_that_the_driver_does_not_know_is_named() {
    let device = address(0).to_string();
    bind(address(0));
    let args = ["run", &device, "--address-bits", "32", "--size", "4K"];
    refused(&args, &[&device, "fewer address bits than 32", "option: --address-bits"]);
}
