//! The program of `vfio_dma_tests::same_program` on the I/OAT model in this process, and on
//! the model behind a socket. The guest suite has it on I/OAT and edu through VFIO.

use std::sync::Arc;
use std::time::Duration;

use vfio_dma::backend::Backend;
use vfio_dma::backend::vfio_user::VfioUser;
use vfio_dma::device::Device;
use vfio_dma_model::embedded::Embedded;
use vfio_dma_model::ioat::{IoatConfig, Record};
use vfio_dma_tests::same_program::{Extent, run};
use vfio_dma_tools::serve::Served;
use vfio_dma_tools::vm;

/// 64 MiB of scattered pages are 16,384 mappings on each side: half of type1's limit.
const EXTENT: Extent = Extent { longest: 64 << 20, limit: Duration::from_secs(30) };

/// The device reached all that it was to reach, and nothing else.
fn check(record: &Record) {
    let memory = record.memory;
    assert!(record.descriptors > 0, "{record:#?}");
    let refused = [memory.refused_not_mapped, memory.refused_denied, memory.refused_unbacked];
    assert_eq!(refused, [0; 3], "{record:#?}");
    assert_eq!((record.errors, record.illegal_accesses), (0, 0), "{record:#?}");
}

#[test]
fn on_the_embedded_model() {
    let model = Embedded::new(IoatConfig::default()).unwrap();
    run(Device::open(Arc::clone(&model) as Arc<dyn Backend>).unwrap(), &EXTENT);
    check(&model.function().record());
}

#[test]
fn on_the_model_over_a_socket() {
    let served = Served::start(IoatConfig::default()).unwrap();
    let vm::Device::VfioUser { socket } = served.device() else { panic!("it is on a socket") };
    run(Device::open(VfioUser::connect(&socket).unwrap()).unwrap(), &EXTENT);
    check(&served.ioat().record());
}
