//! Where memory lies physically, from `/proc/self/pagemap`.
//!
//! The format is that of `Documentation/admin-guide/mm/pagemap.rst`: 8 bytes for each
//! page, the frame number in bits 0 to 54, bit 63 for a page that is present. Since Linux
//! 4.2 the frame number reads 0 without CAP_SYS_ADMIN.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use super::PageSize;

/// Bytes of a frame: of a base page of the kernel.
pub(in crate::dma) fn frame_bytes() -> usize {
    PageSize::Base.bytes()
}

const PAGEMAP: &str = "/proc/self/pagemap";
const FRAME_BITS: u64 = (1 << 55) - 1;
const PRESENT: u64 = 1 << 63;

/// Why frame numbers could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The kernel shows the entries without their frame numbers.
    #[error(
        "{PAGEMAP} shows no frame numbers: they need CAP_SYS_ADMIN in the first user \
         namespace (run as root)"
    )]
    Hidden,
    /// A page is not in memory.
    #[error("the page at {address:#x} is not present")]
    Absent {
        /// Its address in this process.
        address: usize,
    },
    /// The file cannot be read.
    #[error("{PAGEMAP}: {kind}")]
    Io {
        /// The kernel's reason.
        kind: io::ErrorKind,
    },
}

/// The frame number of each page of `[base, base + len)`; both are multiples of a
/// base page.
///
/// Pages have to be present (touched, or locked) and stay where they are only while
/// nothing migrates them.
pub(in crate::dma) fn frames(base: NonNull<u8>, len: usize) -> Result<Vec<u64>, FrameError> {
    let io = |error: io::Error| FrameError::Io { kind: error.kind() };
    let frame_bytes = frame_bytes();
    let mut bytes = vec![0; len / frame_bytes * 8];
    let first = base.addr().get() / frame_bytes;
    File::open(PAGEMAP)
        .and_then(|file| file.read_exact_at(&mut bytes, first as u64 * 8))
        .map_err(io)?;
    let (entries, _) = bytes.as_chunks::<8>();
    let frames = entries.iter().enumerate().map(|(i, entry)| {
        let entry = u64::from_ne_bytes(*entry);
        match entry & FRAME_BITS {
            _ if entry & PRESENT == 0 => {
                Err(FrameError::Absent { address: (first + i) * frame_bytes })
            }
            // Frame 0 is never handed out: it holds the BIOS's data.
            0 => Err(FrameError::Hidden),
            frame => Ok(frame),
        }
    });
    frames.collect()
}

/// The runs of ascending neighbours, as ranges of indices, in order.
pub(in crate::dma) fn runs(frames: &[u64]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (i, &frame) in frames.iter().enumerate() {
        match runs.last_mut() {
            Some(run) if frames[i - 1].checked_add(1) == Some(frame) => run.end = i + 1,
            _ => runs.push(i..i + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::Memory;

    #[test]
    fn neighbours_make_one_run_and_only_ascending_ones() {
        assert!(runs(&[]).is_empty());
        assert_eq!(runs(&[5, 6, 7, 9, 8, 7, 1, 2]), [0..3, 3..4, 4..5, 5..6, 6..8]);
        assert_eq!(runs(&[u64::MAX, 0]), [0..1, 1..2]);
    }

    #[test]
    fn pages_that_were_never_touched_are_absent() {
        let memory = Memory::absent(frame_bytes(), PageSize::Base, None).unwrap();
        let address = memory.base().addr().get();
        assert_eq!(frames(memory.base(), frame_bytes()), Err(FrameError::Absent { address }));
    }
}
