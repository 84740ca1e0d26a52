//! The processor's own copy: the limit of what a copy can be.

use std::time::{Duration, Instant};

use super::plan::Spec;
use super::subject::Sample;
use super::test_memory::TestMemory;

/// Copies in one thread for this long, between the places that the variant's transfers take
/// turns with.
pub(super) fn copy(memory: &mut TestMemory, spec: &Spec, time: Duration) -> Sample {
    let (slots, stride) = (spec.slots(), spec.stride() as usize);
    let begin = Instant::now();
    let mut transfers = 0;
    loop {
        for slot in 0..slots as usize {
            memory.copy(slot * stride, spec.transfer as usize);
        }
        transfers += slots;
        let elapsed = begin.elapsed();
        if elapsed >= time {
            return Sample { transfers, elapsed, ..Sample::default() };
        }
    }
}
