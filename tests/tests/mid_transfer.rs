//! A drop and a panic in the middle of a transfer, on the embedded model and over a socket:
//! the engine stands still before any memory is unmapped, by the model's own record.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, and so do its helpers")]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread::sleep;
use std::time::Duration;

use vfio_dma::backend::vfio_user::VfioUser;
use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::ioat::{Channel, Config, Ioat, TransferError, WhenFull};
use vfio_dma::dma::{Direction, Request};
use vfio_dma_model::embedded::Embedded;
use vfio_dma_model::function::PciFunction;
use vfio_dma_model::ioat::{Ioat as Model, IoatConfig};
use vfio_dma_tools::serve::Served;
use vfio_dma_tools::vm;

/// Bytes of a transfer, and descriptors that it becomes: XFERCAP is 1 MiB.
const LEN: usize = 64 << 20;
const DESCRIPTORS: u64 = 64;

/// Starts a copy, lets the caller go on, and gives the channel that works on it.
fn start(ioat: &Ioat) -> Channel {
    let source = ioat.allocate(&Request::new(LEN, Direction::ToDevice)).unwrap();
    let target = ioat.allocate(&Request::new(LEN, Direction::FromDevice)).unwrap();
    let mut channel = ioat.channel(0).unwrap();
    channel.copy(source.into(), target.into(), WhenFull::Return).unwrap();
    channel.issue().unwrap();
    channel
}

/// Stops transfers at many places, each second one by a panic.
fn stop_in_the_middle(device: Device, model: &Model) {
    let ioat = Ioat::probe(device, Config::default()).unwrap();
    let mut cut_short = 0;
    for round in 0..20 {
        let before = model.stats().descriptors;
        let channel = start(&ioat);
        sleep(Duration::from_micros(50 * round));
        let panicked = catch_unwind(AssertUnwindSafe(move || {
            let _channel = channel;
            if round % 2 == 1 {
                // A panic without its message.
                resume_unwind(Box::new("in mid-transfer"));
            }
        }));
        assert_eq!(panicked.is_err(), round % 2 == 1);
        assert_eq!(ioat.space().usage().mappings, 0);
        assert_eq!(PciFunction::memory(model).ranges(), 0, "all is unmapped");
        let done = model.stats().descriptors;
        sleep(Duration::from_millis(5));
        let stats = model.stats();
        assert_eq!(stats.descriptors, done, "the engine stands");
        let refused = (stats.memory.refused_not_mapped, stats.memory.refused_unbacked);
        assert_eq!((refused, stats.errors), ((0, 0), 0), "no late access: {stats:#?}");
        if done - before < DESCRIPTORS {
            cut_short += 1;
        }
    }
    assert!(cut_short > 0, "no transfer was stopped in the middle");
}

#[test]
fn on_the_embedded_model() {
    let model = Embedded::new(IoatConfig::default()).unwrap();
    let device = Device::open(model.attach().unwrap()).unwrap();
    stop_in_the_middle(device, model.function());
}

#[test]
fn over_a_socket() {
    let served = Served::start(IoatConfig::default()).unwrap();
    let vm::Device::VfioUser { socket } = served.device() else { panic!("it is on a socket") };
    stop_in_the_middle(Device::open(VfioUser::connect(&socket).unwrap()).unwrap(), served.ioat());
}

/// What the record would say if a driver unmapped too early: the test takes the memory away
/// behind the driver's back.
#[test]
fn a_late_access_is_counted() {
    let model = Embedded::new(IoatConfig::default()).unwrap();
    let device = Device::open(model.attach().unwrap()).unwrap();
    let ioat = Ioat::probe(device, Config::default()).unwrap();
    let source = ioat.allocate(&Request::new(LEN, Direction::ToDevice)).unwrap();
    let target = ioat.allocate(&Request::new(LEN, Direction::FromDevice)).unwrap();
    let taken = target.segments()[0];
    let mut channel = ioat.channel(0).unwrap();
    let token = channel.copy(source.into(), target.into(), WhenFull::Return).unwrap();
    // Before the device begins, so that it is late at its first byte, whoever runs first.
    ioat.space().iommu().unmap(taken.iova.0, taken.len).unwrap();
    let finished = channel.wait(token, Duration::from_secs(10)).unwrap();
    assert!(matches!(finished.result, Err(TransferError::Halted { .. })), "{finished:?}");
    assert_eq!(model.function().stats().memory.refused_not_mapped, 1);
}
