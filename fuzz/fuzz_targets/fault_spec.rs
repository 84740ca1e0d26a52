//! Faults of the I/OAT model, as text: no panic, and rules that can be asked for what is due.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vfio_dma_model::ioat::FaultPlan;

fuzz_target!(|text: &str| {
    let Ok(plan) = text.parse::<FaultPlan>() else { return };
    assert_eq!(plan.is_empty(), plan.rules().is_empty());
    for number in [1, 2, 3, 100, u64::MAX] {
        let due = plan.due(0, number).count();
        assert!(due <= plan.rules().len(), "{text:?}");
    }
});
