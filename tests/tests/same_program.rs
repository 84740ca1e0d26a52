//! The program of `vfio_dma_tests::same_program` on the I/OAT model in this process, and on
//! the model behind a socket. The guest suite has it on I/OAT and edu through VFIO.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, and so do its helpers")]

use std::time::{Duration, Instant};

use vfio_dma::backend::vfio_user::VfioUser;
use vfio_dma::device::Device;
use vfio_dma::devices::ioat::{ChannelErrors, IoatError, TransferError};
use vfio_dma::devices::{CopyEngine, CopyFailed, open_copy_engine};
use vfio_dma::dma::{Direction, Placement, Request, SgTable};
use vfio_dma_model::embedded::Embedded;
use vfio_dma_model::ioat::{FaultPlan, IoatConfig, Stats};
use vfio_dma_tests::same_program::{Extent, run};
use vfio_dma_tools::serve::Served;
use vfio_dma_tools::vm;

/// 64 MiB of scattered pages are 16,384 mappings on each side: half of type1's limit.
const EXTENT: Extent = Extent { longest: 64 << 20, limit: Duration::from_secs(30) };

/// The device reached all that it was to reach, and nothing else.
fn check(stats: &Stats) {
    let memory = stats.memory;
    assert!(stats.descriptors > 0, "{stats:#?}");
    let refused = [memory.refused_not_mapped, memory.refused_denied, memory.refused_unbacked];
    assert_eq!(refused, [0; 3], "{stats:#?}");
    assert_eq!((stats.errors, stats.illegal_accesses), (0, 0), "{stats:#?}");
}

#[test]
fn on_the_embedded_model() {
    let model = Embedded::new(IoatConfig::default()).unwrap();
    run(Device::open(model.attach().unwrap()).unwrap(), &EXTENT);
    check(&model.function().stats());
}

#[test]
fn on_the_model_over_a_socket() {
    let served = Served::start(IoatConfig::default()).unwrap();
    let vm::Device::VfioUser { socket } = served.device() else { panic!("it is on a socket") };
    run(Device::open(VfioUser::connect(&socket).unwrap()).unwrap(), &EXTENT);
    check(&served.ioat().stats());
}

fn table(engine: &dyn CopyEngine, len: usize, direction: Direction) -> SgTable {
    let request = Request::new(len, direction).placement(Placement::ScatterGather);
    engine.allocate(&request).unwrap().into()
}

/// What fails gives its buffers back with a typed error, and the engine goes on.
#[test]
fn a_copy_that_fails_gives_its_buffers_back() {
    let model = Embedded::new(IoatConfig::default()).unwrap();
    let device = Device::open(model.attach().unwrap()).unwrap();
    let mut engine = open_copy_engine(device).unwrap();
    // 512 descriptors: the 256th is the first that tells how far the engine is.
    let len = 2 << 20;
    let mut fail = |fault: &str, limit| {
        let source = table(&*engine, len, Direction::ToDevice);
        let target = table(&*engine, len, Direction::FromDevice);
        model.function().inject(fault.parse().unwrap());
        let CopyFailed { error, tables } = engine.copy(source, target, limit).unwrap_err();
        model.function().inject(FaultPlan::default());
        let (source, target) = tables.expect("the device was stopped");
        engine.copy(source, target, EXTENT.limit).unwrap();
        *error
    };
    let begin = Instant::now();
    let error = fail("late-completion=60s@256", Duration::from_millis(100));
    assert!(matches!(error.of_engine(), Some(IoatError::Timeout { .. })), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    let error = fail("chanerr=9@7", EXTENT.limit);
    let Some(TransferError::Halted { errors, piece: 6, .. }) = error.of_engine() else {
        panic!("{error}")
    };
    assert_eq!(*errors, ChannelErrors::WRITE_DATA);

    let source = table(&*engine, len, Direction::ToDevice);
    let target = table(&*engine, len + 1, Direction::FromDevice);
    let CopyFailed { error, tables } = engine.copy(source, target, EXTENT.limit).unwrap_err();
    assert!(tables.is_some() && error.to_string().contains("2097153"), "{error}");
}
