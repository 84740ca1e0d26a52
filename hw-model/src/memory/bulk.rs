//! Copies between two pieces of memory, the way that the processor is best at.
//!
//! A segment is often as long as a page. From 2 KiB on, a processor that says so (CPUID leaf
//! 7, EBX bit 9, "enhanced rep movsb"; Intel SDM volume 1, 7.3.9.3) copies best with its
//! string instruction, while a C library may take it only for longer copies. Not where the target
//! lies less than a cache line ahead of the source within a page: there AMD's processors (family
//! 19h) move a byte at a time or so, 20 times slower (`cargo bench --bench memory -- ahead`).

use vm_memory::VolatileSlice;

/// The shortest copy that is left to the string instruction, in bytes.
#[cfg(target_arch = "x86_64")]
const LEAST: usize = 2048;

/// A page, within which addresses are compared, and the bytes by which a target must not be ahead.
#[cfg(target_arch = "x86_64")]
const ALIAS: (usize, std::ops::Range<usize>) = (4096, 1..64);

/// The most bytes for which a C library takes no string instruction.
#[cfg(target_arch = "x86_64")]
const SHORT: usize = 1024;

/// Whether the processor has a fast string instruction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bulk(bool);

impl Default for Bulk {
    /// Asks the processor.
    fn default() -> Bulk {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{__cpuid, __cpuid_count};
            Bulk(__cpuid(0).eax >= 7 && __cpuid_count(7, 0).ebx & 1 << 9 != 0)
        }
        #[cfg(not(target_arch = "x86_64"))]
        Bulk(false)
    }
}

impl Bulk {
    /// Copies all of `to` from the beginning of `from`, which is at least as long; where they
    /// overlap, as if through a buffer.
    #[inline]
    pub(super) fn copy(self, from: &VolatileSlice<'_>, to: VolatileSlice<'_>) {
        #[cfg(target_arch = "x86_64")]
        if self.0 && to.len() >= LEAST && from.len() >= to.len() {
            let (source, target) = (from.ptr_guard(), to.ptr_guard_mut());
            let [source_at, target_at] = [source.as_ptr().addr(), target.as_ptr().addr()];
            if source_at.abs_diff(target_at) >= to.len() {
                if ALIAS.1.contains(&(target_at.wrapping_sub(source_at) % ALIAS.0)) {
                    return copy_short(from, &to);
                }
                // SAFETY: both slices are mapped and so long, they do not overlap, and the
                // direction flag is clear, as the ABI has it. Whoever else writes to them
                // meanwhile changes what bytes are copied, and nothing else.
                unsafe {
                    std::arch::asm!(
                        "rep movsb",
                        inout("rcx") to.len() => _,
                        inout("rsi") source.as_ptr() => _,
                        inout("rdi") target.as_ptr() => _,
                        options(nostack, preserves_flags)
                    );
                }
                return;
            }
        }
        from.copy_to_volatile_slice(to);
    }
}

/// Copies all of `to`, which does not overlap with `from`, in pieces that no string instruction is
/// taken for.
#[cfg(target_arch = "x86_64")]
fn copy_short(from: &VolatileSlice<'_>, to: &VolatileSlice<'_>) {
    for at in (0..to.len()).step_by(SHORT) {
        let len = SHORT.min(to.len() - at);
        if let (Ok(from), Ok(to)) = (from.subslice(at, len), to.subslice(at, len)) {
            from.copy_to_volatile_slice(to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_exact_however_they_are_made_and_overlap() {
        const LEN: usize = 3 * 4096;
        let before: Vec<u8> = (0..LEN).map(|i| (i * 7 + i / 256) as u8).collect();
        for bulk in [Bulk::default(), Bulk(true), Bulk(false)] {
            for (from, to, len) in [
                (0, 6000, 5000),
                (6000, 1, 2048),
                (0, 100, 4096),
                (100, 0, 4096),
                (5, 5, 3000),
                (9, 7000, 2047),
                (0, 4096, 4096),
                (0, 4097, 4096),
                (3, 8255, 4000),
            ] {
                let mut memory = before.clone();
                let all = VolatileSlice::from(&mut memory[..]);
                let source = all.subslice(from, len).unwrap();
                bulk.copy(&source, all.subslice(to, len).unwrap());
                let mut expected = before.clone();
                expected.copy_within(from..from + len, to);
                assert_eq!(memory, expected, "{bulk:?}: {len} bytes from {from} to {to}");
            }
        }
    }
}
