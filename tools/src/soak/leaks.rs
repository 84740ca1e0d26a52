//! What a process holds, and what it holds more than before.

use std::fmt;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use serde::Serialize;

/// What this process holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Held {
    /// Open descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
    /// Ranges of its address space, the lines of `/proc/self/maps`.
    pub maps: u64,
    /// Bytes of resident memory.
    pub resident: u64,
}

/// How long what ends by itself, such as a thread that was joined, may take to be gone.
const SETTLE: Duration = Duration::from_secs(2);

/// More ranges than before, which are no leak: the allocator's, which come and go with what its
/// threads do.
const MAPS_TOLERANCE: u64 = 48;

/// More resident memory than before, in bytes, which is no leak: what the allocator keeps for
/// each thread, and code that had not run.
const RESIDENT_TOLERANCE: u64 = 8 << 20;

/// Makes the allocator keep little of what is free, from now on. By itself it learns from large
/// blocks to keep such ones, up to 64 MiB of them for each of its arenas, and would hide a leak
/// (mallopt(3), `M_MMAP_THRESHOLD`).
pub(super) fn keep_little() {
    #[cfg(target_env = "gnu")]
    for parameter in [nix::libc::M_MMAP_THRESHOLD, nix::libc::M_TRIM_THRESHOLD] {
        // SAFETY: mallopt takes the allocator's lock; the value is the default, which it then keeps.
        unsafe { nix::libc::mallopt(parameter, 128 << 10) };
    }
}

/// Makes the allocator give back the pages that are free amid what is not.
fn give_back() {
    // SAFETY: malloc_trim takes the allocator's locks, and leaves alone what is in use.
    #[cfg(target_env = "gnu")]
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

impl Held {
    /// What it holds now.
    ///
    /// # Errors
    ///
    /// Fails when procfs cannot be read.
    pub fn now() -> io::Result<Held> {
        let entries = |path| Ok::<_, io::Error>(fs::read_dir(path)?.count() as u64);
        let status = fs::read_to_string("/proc/self/status")?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = resident.and_then(|text| text.split_whitespace().next()?.parse().ok());
        let kilobytes: u64 = kilobytes.ok_or_else(|| io::Error::other("no VmRSS in status"))?;
        Ok(Held {
            descriptors: entries("/proc/self/fd")?,
            threads: entries("/proc/self/task")?,
            maps: fs::read_to_string("/proc/self/maps")?.lines().count() as u64,
            resident: kilobytes << 10,
        })
    }

    /// What it holds once no more descriptors and threads than these are there, at the latest
    /// after 2 s.
    ///
    /// # Errors
    ///
    /// As [`Held::now`].
    pub(super) fn settled(expected: &Held) -> io::Result<Held> {
        let until = Instant::now() + SETTLE;
        loop {
            give_back();
            let held = Held::now()?;
            let is_down =
                held.descriptors <= expected.descriptors && held.threads <= expected.threads;
            if is_down || Instant::now() >= until {
                return Ok(held);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn each(self, after: Held, with: impl Fn(u64, u64) -> u64) -> Held {
        Held {
            descriptors: with(self.descriptors, after.descriptors),
            threads: with(self.threads, after.threads),
            maps: with(self.maps, after.maps),
            resident: with(self.resident, after.resident),
        }
    }

    pub(super) fn plus(self, other: Held) -> Held {
        self.each(other, |one, other| one + other)
    }

    /// What this has more than another.
    pub(super) fn beyond(self, other: Held) -> Held {
        self.each(other, u64::saturating_sub)
    }
}

/// What a process held before and after, and what of it is a leak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Leaks {
    /// After the warm-up, with every device closed.
    pub before: Held,
    /// At the end, with every device closed.
    pub after: Held,
    /// Kept on purpose: what a device that could not be stopped may still reach, and what that
    /// hangs on.
    pub kept: Held,
    /// More than before that is no leak.
    pub tolerance: Held,
    /// What is left.
    pub leaked: Held,
    /// Ranges that stayed mapped for a device that was stopped and closed.
    pub dma_mappings: u64,
}

impl Leaks {
    pub(super) fn of(before: Held, after: Held, kept: Held, dma_mappings: u64) -> Leaks {
        let tolerance =
            Held { descriptors: 0, threads: 0, maps: MAPS_TOLERANCE, resident: RESIDENT_TOLERANCE };
        let leaked = after.beyond(before.plus(kept).plus(tolerance));
        Leaks { before, after, kept, tolerance, leaked, dma_mappings }
    }

    /// Whether anything leaked.
    #[must_use]
    pub fn any(&self) -> bool {
        self.leaked != Held::default() || self.dma_mappings > 0
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

impl fmt::Display for Leaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Leaks { before, after, kept, leaked, dma_mappings, .. } = self;
        if self.any() {
            write!(
                f,
                "leaked: {} descriptors, {} threads, {} ranges, {}; {dma_mappings} DMA mappings; ",
                leaked.descriptors,
                leaked.threads,
                leaked.maps,
                mebibytes(leaked.resident)
            )?;
        } else {
            f.write_str("no leaks: ")?;
        }
        write!(
            f,
            "descriptors {} -> {}, threads {} -> {}, ranges {} -> {}, resident {} -> {}",
            before.descriptors,
            after.descriptors,
            before.threads,
            after.threads,
            before.maps,
            after.maps,
            mebibytes(before.resident),
            mebibytes(after.resident)
        )?;
        if *kept != Held::default() {
            write!(
                f,
                "; kept for devices that could not be stopped: {} descriptors, {} threads, {} \
                 ranges, {}",
                kept.descriptors,
                kept.threads,
                kept.maps,
                mebibytes(kept.resident)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(descriptors: u64, threads: u64, maps: u64, resident: u64) -> Held {
        Held { descriptors, threads, maps, resident }
    }

    #[test]
    fn each_thing_that_stays_is_a_leak_beyond_its_tolerance() {
        let (before, none) = (held(10, 3, 50, 8 << 20), Held::default());
        let of = |after, kept, mappings| Leaks::of(before, after, kept, mappings);
        assert!(!of(before, none, 0).any());
        assert!(!of(held(4, 2, 20, 1 << 20), none, 0).any(), "less is no leak");
        assert!(!of(held(10, 3, 50 + MAPS_TOLERANCE, 16 << 20), none, 0).any());
        assert!(of(before, none, 1).any());
        for (after, leaked) in [
            (held(11, 3, 50, 8 << 20), held(1, 0, 0, 0)),
            (held(10, 5, 50, 8 << 20), held(0, 2, 0, 0)),
            (held(10, 3, 51 + MAPS_TOLERANCE, 8 << 20), held(0, 0, 1, 0)),
            (held(10, 3, 50, (16 << 20) + 5), held(0, 0, 0, 5)),
        ] {
            let leaks = of(after, none, 0);
            assert_eq!((leaks.leaked, leaks.any()), (leaked, true));
            assert!(leaks.to_string().starts_with("leaked: "), "{leaks}");
        }
        let leaks = of(held(11, 7, 50, 8 << 20), held(1, 4, 0, 0), 0);
        assert!(!leaks.any() && leaks.to_string().contains("kept for devices"), "{leaks}");
    }

    #[test]
    fn what_this_process_holds_is_counted() {
        let before = Held::now().unwrap();
        assert!(before.descriptors > 2 && before.threads > 0 && before.maps > 5);
        assert!(before.resident > 1 << 20);
        let files: Vec<_> = (0..50).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let more = Held::now().unwrap().descriptors;
        drop(files);
        // Other tests of this process open and close files too.
        assert!(more + 20 > before.descriptors + 50, "{more} after {before:?}");
    }
}
