//! The DMA map on real files.

mod lost;
mod model;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::*;

const PAGE: u64 = 4096;

/// A memfd of `len` bytes in which byte n is a function of n.
fn memfd(len: u64) -> File {
    let file = File::from(memfd_create("test", MFdFlags::MFD_ALLOW_SEALING).unwrap());
    file.set_len(len).unwrap();
    let bytes: Vec<u8> = (0..len).map(byte_at).collect();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
    file
}

fn byte_at(n: u64) -> u8 {
    (n ^ (n >> 8) ^ (n >> 16)) as u8
}

fn contents(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, 0).unwrap();
    bytes
}

fn reopened(file: &File, write: bool) -> OwnedFd {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    File::options().read(true).write(write).open(path).unwrap().into()
}

#[test]
fn a_transfer_spans_ranges_in_the_order_of_their_addresses() {
    let file = memfd(4 * PAGE);
    let map = DmaMap::new();
    // Pages 3, 1, 2 of the file at successive addresses.
    for (n, page) in [3, 1, 2].into_iter().enumerate() {
        map.map_fd(0x10_0000 + n as u64 * PAGE, PAGE, &file, page * PAGE, Access::ReadWrite)
            .unwrap();
    }
    let mut data = vec![0; 3 * PAGE as usize - 200];
    map.read(0x10_0000 + 100, &mut data).unwrap();
    let expected: Vec<u8> = (3 * PAGE..4 * PAGE)
        .chain(PAGE..3 * PAGE)
        .map(byte_at)
        .skip(100)
        .take(data.len())
        .collect();
    assert_eq!(data, expected);

    map.write(0x10_0000 + PAGE - 2, &[1, 2, 3, 4]).unwrap();
    let bytes = contents(&file);
    assert_eq!(bytes[4 * PAGE as usize - 2..], [1, 2]);
    assert_eq!(bytes[PAGE as usize..][..2], [3, 4]);
    assert_eq!((map.ranges(), map.files()), (3, 1));
}

#[test]
fn a_fault_says_where_and_how_much_was_done() {
    let file = memfd(2 * PAGE);
    let map = DmaMap::new();
    map.map_fd(0x1000, PAGE, &file, 0, Access::Read).unwrap();
    map.map_fd(0x8000, PAGE, &file, PAGE, Access::Write).unwrap();
    map.map_unbacked(0x9000, PAGE, Access::ReadWrite).unwrap();
    let fault = |direction, iova, done, reason| DmaFault { direction, iova, done, reason };

    let mut data = [0; 64];
    assert_eq!(
        map.read(0x1ff0, &mut data),
        Err(fault(Direction::Read, 0x2000, 16, FaultReason::NotMapped))
    );
    assert_eq!(
        map.write(0x1000, &data),
        Err(fault(Direction::Write, 0x1000, 0, FaultReason::Denied))
    );
    assert_eq!(
        map.read(0x8000, &mut data),
        Err(fault(Direction::Read, 0x8000, 0, FaultReason::Denied))
    );
    assert_eq!(
        map.copy(0x8f00, 0x1000, 0x200),
        Err(fault(Direction::Write, 0x9000, 0x100, FaultReason::Unbacked))
    );
    assert_eq!(
        map.copy(0x8000, 0x1f00, 0x200),
        Err(fault(Direction::Read, 0x2000, 0x100, FaultReason::NotMapped))
    );
    assert_eq!(
        map.fill(0x8ffe, 0, 4),
        Err(fault(Direction::Write, 0x9000, 2, FaultReason::Unbacked))
    );
    assert_eq!(
        map.copy(0x8000, u64::MAX - 3, 8),
        Err(fault(Direction::Read, u64::MAX - 3, 0, FaultReason::Wraps))
    );
    assert_eq!(
        map.stats(),
        AccessStats {
            bytes_read: 16 + 0x100 + 0x100,
            bytes_written: 0x100 + 0x100 + 2,
            refused_not_mapped: 3,
            refused_unbacked: 2,
            refused_denied: 2,
        }
    );
}

#[test]
fn the_last_page_of_the_address_space_is_usable() {
    let file = memfd(PAGE);
    let map = DmaMap::new();
    let top = u64::MAX - PAGE + 1;
    map.map_fd(top, PAGE, &file, 0, Access::ReadWrite).unwrap();
    let mut data = [0; 16];
    map.read(u64::MAX - 15, &mut data).unwrap();
    assert_eq!(data.to_vec(), (PAGE - 16..PAGE).map(byte_at).collect::<Vec<_>>());
    assert_eq!(map.unmap(top, PAGE), Ok(PAGE));
}

#[test]
fn a_file_that_is_too_short_or_closed_to_the_access_is_refused() {
    let file = memfd(PAGE);
    let map = DmaMap::new();
    assert_eq!(
        map.map_fd(0, 2 * PAGE, &file, 0, Access::Read),
        Err(MemoryError::FileTooShort { offset: 0, len: 2 * PAGE, size: PAGE })
    );
    assert_eq!(
        map.map_fd(0, PAGE, &file, u64::MAX - 10, Access::Read),
        Err(MemoryError::FileTooShort { offset: u64::MAX - 10, len: PAGE, size: PAGE })
    );
    let (reader, _writer) = nix::unistd::pipe().unwrap();
    assert!(matches!(map.map_fd(0, PAGE, &reader, 0, Access::Read), Err(MemoryError::NotMemory)));
    let read_only = reopened(&file, false);
    assert_eq!(
        map.map_fd(0, PAGE, &read_only, 0, Access::ReadWrite),
        Err(MemoryError::DescriptorMode { access: Access::ReadWrite })
    );
    assert_eq!(map.ranges(), 0);
    map.map_fd(0, PAGE, &read_only, 0, Access::Read).unwrap();
    let mut data = [0; 4];
    map.read(8, &mut data).unwrap();
    assert_eq!(data, [8, 9, 10, 11]);
}

#[test]
fn a_sealable_file_cannot_shrink_once_mapped() {
    let file = memfd(PAGE);
    DmaMap::new().map_fd(0, PAGE, &file, 0, Access::Read).unwrap();
    let seals = SealFlag::from_bits_truncate(fcntl(&file, FcntlArg::F_GET_SEALS).unwrap());
    assert!(seals.contains(SealFlag::F_SEAL_SHRINK));
    assert!(file.set_len(0).is_err());
}

#[test]
fn the_mapping_of_a_file_grows_with_its_ranges() {
    let file = memfd(64 * PAGE);
    let map = DmaMap::new();
    map.map_fd(0, PAGE, &file, 0, Access::ReadWrite).unwrap();
    map.map_fd(0x100_0000, PAGE, reopened(&file, true), 63 * PAGE, Access::ReadWrite).unwrap();
    file.set_len(100 * PAGE).unwrap();
    map.map_fd(0x200_0000, PAGE, &file, 99 * PAGE, Access::ReadWrite).unwrap();
    assert_eq!((map.ranges(), map.files()), (3, 1));
    map.copy(0x200_0000, 0x100_0000, PAGE).unwrap();
    map.copy(0, 0x200_0000, 16).unwrap();
    let bytes = contents(&file);
    assert_eq!(bytes[99 * PAGE as usize..], bytes[63 * PAGE as usize..64 * PAGE as usize]);
    assert_eq!(bytes[..16], bytes[63 * PAGE as usize..][..16]);
    map.unmap(0, 0x200_0000).unwrap();
    assert_eq!((map.ranges(), map.files()), (1, 1));
    map.unmap_all();
    assert_eq!((map.ranges(), map.files()), (0, 0));
}

#[test]
fn what_a_client_can_make_the_process_map_is_limited() {
    let map = DmaMap::new();
    for n in 0..backing::MAX_FILES as u64 {
        let file = File::from(memfd_create("many", MFdFlags::empty()).unwrap());
        file.set_len(PAGE).unwrap();
        map.map_fd(n * PAGE, PAGE, file, 0, Access::Read).unwrap();
    }
    assert_eq!(map.files(), backing::MAX_FILES);
    let file = memfd(PAGE);
    let error = map.map_fd(1 << 40, PAGE, &file, 0, Access::Read).unwrap_err();
    assert!(matches!(error, MemoryError::Full { what: "files", .. }), "{error}");
    map.unmap(0, PAGE).unwrap();
    map.map_fd(1 << 40, PAGE, &file, 0, Access::Read).unwrap();
    map.unmap_all();

    // Sparse files take address space, not memory.
    let sparse = || {
        let file = File::from(memfd_create("sparse", MFdFlags::empty()).unwrap());
        file.set_len(1 << 45).unwrap();
        file
    };
    let (first, second, third) = (sparse(), sparse(), sparse());
    map.map_fd(0, 1 << 45, &first, 0, Access::Read).unwrap();
    map.map_fd(1 << 45, 1 << 45, &second, 0, Access::Read).unwrap();
    let error = map.map_fd(1 << 46, 1 << 45, &third, 0, Access::Read).unwrap_err();
    assert!(matches!(error, MemoryError::Full { .. }), "{error}");
    map.unmap(0, 1 << 45).unwrap();
    map.map_fd(1 << 46, 1 << 45, &third, 0, Access::Read).unwrap();
}

#[test]
fn unmapping_takes_whole_mappings_only() {
    let map = DmaMap::new();
    for iova in [0x1000, 0x2000, 0x5000] {
        map.map_unbacked(iova, PAGE, Access::Read).unwrap();
    }
    assert_eq!(map.unmap(0x10_0000, PAGE), Ok(0), "never mapped");
    let cut = |iova, len, other| Err(MemoryError::Cut { iova, len, other, other_len: PAGE });
    assert_eq!(map.unmap(0x1800, 0x1800), cut(0x1800, 0x1800, 0x1000));
    assert_eq!(map.unmap(0x1000, 0x1800), cut(0x1000, 0x1800, 0x2000));
    assert_eq!(map.unmap(0x5100, 0x100), cut(0x5100, 0x100, 0x5000));
    assert_eq!(map.ranges(), 3);
    assert_eq!(map.unmap(0, 0x5000), Ok(2 * PAGE));
    assert_eq!(map.unmap(0, u64::MAX), Ok(PAGE));
}

#[test]
fn bad_ranges_are_refused() {
    let map = DmaMap::new();
    assert_eq!(map.map_unbacked(0, 0, Access::Read), Err(MemoryError::Empty { iova: 0 }));
    let high = u64::MAX - 10;
    assert_eq!(
        map.map_unbacked(high, PAGE, Access::Read),
        Err(MemoryError::Wraps { iova: high, len: PAGE })
    );
    map.map_unbacked(0x2000, PAGE, Access::Read).unwrap();
    for (iova, len) in [(0x2000, PAGE), (0x1fff, 2), (0x2fff, 1), (0, u64::MAX), (0x2800, 1)] {
        let error = map.map_unbacked(iova, len, Access::Read).unwrap_err();
        let overlap = MemoryError::Overlap { iova, len, other: 0x2000, other_len: PAGE };
        assert_eq!(error, overlap);
    }
    map.map_unbacked(0x1000, PAGE, Access::Read).unwrap();
    map.map_unbacked(0x3000, PAGE, Access::Read).unwrap();
}

#[test]
fn a_fill_keeps_its_phase_across_ranges_and_pieces() {
    let len = PIECE + 3 * PAGE;
    let file = memfd(len);
    let map = DmaMap::new();
    // The ranges meet at an odd address.
    map.map_fd(0x5, 0x1003, &file, 0x5, Access::ReadWrite).unwrap();
    map.map_fd(0x1008, len - 0x1008, &file, 0x1008, Access::ReadWrite).unwrap();
    map.fill(0x7, 0x0807_0605_0403_0201, len - 7).unwrap();
    let bytes = contents(&file);
    assert_eq!(bytes[..7], (0..7).map(byte_at).collect::<Vec<_>>());
    assert!(bytes[7..].iter().zip((1..=8).cycle()).all(|(&byte, n)| byte == n));
}

#[test]
fn overlapping_memory_within_a_piece_moves_as_memmove_does() {
    let file = memfd(4 * PAGE);
    let before = contents(&file);
    let map = DmaMap::new();
    map.map_fd(0, 4 * PAGE, &file, 0, Access::ReadWrite).unwrap();
    // The same memory under a second address: no comparison of addresses tells.
    map.map_fd(0x10_0000, 4 * PAGE, &file, 0, Access::ReadWrite).unwrap();
    map.copy(0x10_0000 + 100, 0, 3 * PAGE).unwrap();
    assert_eq!(contents(&file)[100..][..3 * PAGE as usize], before[..3 * PAGE as usize]);
    let before = contents(&file);
    map.copy(0, 0x10_0000 + 100, 3 * PAGE).unwrap();
    assert_eq!(contents(&file)[..3 * PAGE as usize], before[100..][..3 * PAGE as usize]);
}

#[test]
fn a_completion_word_may_be_odd_or_span_ranges() {
    let file = memfd(3 * PAGE);
    let map = DmaMap::new();
    map.map_fd(0, PAGE, &file, 0, Access::ReadWrite).unwrap();
    map.map_fd(PAGE, PAGE, &file, 2 * PAGE, Access::ReadWrite).unwrap();
    let value = 0x1122_3344_5566_7788;
    for iova in [64, 65, PAGE - 4] {
        map.store_u64(iova, value).unwrap();
        assert_eq!(map.load_u64(iova), Ok(value));
        let mut bytes = [0; 8];
        map.read(iova, &mut bytes).unwrap();
        assert_eq!(bytes, value.to_le_bytes());
    }
    assert_eq!(contents(&file)[2 * PAGE as usize..][..4], [0x44, 0x33, 0x22, 0x11]);
    assert_eq!(map.store_u64(2 * PAGE - 4, 1).unwrap_err().iova, 2 * PAGE);
}

#[test]
fn memory_of_this_process_is_reached_by_address() {
    let words: Vec<AtomicU64> = (0..1024).map(AtomicU64::new).collect();
    let host = NonNull::new(words.as_ptr().cast_mut().cast::<u8>()).unwrap();
    let map = DmaMap::new();
    // SAFETY: the words outlive the map and are only accessed as atomics.
    unsafe { map.map_host(0x4000, 8192, host, Access::ReadWrite) }.unwrap();
    assert_eq!(map.load_u64(0x4008), Ok(1));
    map.copy(0x5000, 0x4008, 16).unwrap();
    assert_eq!(words[512].load(Ordering::Relaxed), 1);
    assert_eq!(words[513].load(Ordering::Relaxed), 2);
}

#[test]
fn nothing_is_touched_after_unmap_returned_and_transfers_do_not_hold_it_up() {
    let (source, target) = (memfd(4 << 20), memfd(4 << 20));
    let map = Arc::new(DmaMap::new());
    map.map_fd(0, 4 << 20, &source, 0, Access::Read).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let engines: Vec<_> = (0..2)
        .map(|_| {
            let (map, stop) = (map.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut faults = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    faults += u64::from(map.copy(0x1000_0000, 0, 4 << 20).is_err());
                }
                faults
            })
        })
        .collect();
    let mut longest = Duration::ZERO;
    for _ in 0..50 {
        map.map_fd(0x1000_0000, 4 << 20, target.as_fd(), 0, Access::Write).unwrap();
        std::thread::sleep(Duration::from_millis(1));
        let start = Instant::now();
        map.unmap(0x1000_0000, 4 << 20).unwrap();
        longest = longest.max(start.elapsed());
        // Whatever is written now must stay.
        let marks = vec![0xaa; 4 << 20];
        std::os::unix::fs::FileExt::write_all_at(&target, &marks, 0).unwrap();
        assert!(contents(&target) == marks, "memory was written after unmap returned");
    }
    stop.store(true, Ordering::Relaxed);
    let faults: u64 = engines.into_iter().map(|e| e.join().unwrap()).sum();
    assert!(faults > 0 && map.stats().refused_not_mapped == faults);
    assert!(longest < Duration::from_secs(2), "an unmap took {longest:?}");
}

#[test]
fn a_port_keeps_the_map_until_somebody_wants_to_change_it() {
    let file = memfd(4 * PAGE);
    let map = DmaMap::new();
    map.map_fd(0, 2 * PAGE, &file, 0, Access::ReadWrite).unwrap();
    let mut expected = 0;
    for n in 0..200 {
        map.map_fd(8 * PAGE, PAGE, &file, (2 + n % 2) * PAGE, Access::ReadWrite).unwrap();
        let (mut port, begin) = (map.lasting_port(), Instant::now());
        // Nothing gives the lock up but the next access.
        port.copy(8 * PAGE, 0, 64).unwrap();
        expected += 64;
        let fault = std::thread::scope(|scope| {
            let unmapping = scope.spawn(|| map.unmap(8 * PAGE, PAGE));
            let fault = loop {
                match port.copy(8 * PAGE, 0, 64) {
                    Ok(()) => expected += 64,
                    Err(fault) => break Some(fault),
                }
                if begin.elapsed() > Duration::from_secs(20) {
                    break None;
                }
            };
            drop(port);
            assert_eq!(unmapping.join().unwrap(), Ok(PAGE));
            fault
        });
        assert_eq!(fault.map(|f| f.reason), Some(FaultReason::NotMapped), "it had no chance");
    }
    let stats = map.stats();
    assert_eq!(stats.refused_not_mapped, 200);
    assert_eq!((stats.bytes_read, stats.bytes_written), (expected, expected));
}

#[test]
fn a_port_that_met_a_fault_holds_nobody_up() {
    type Attempt = fn(&mut Port<'_>) -> Result<(), DmaFault>;
    let map = DmaMap::new();
    map.map_unbacked(0x1000, PAGE, Access::ReadWrite).unwrap();
    let attempts: [Attempt; 4] = [
        |port| port.copy(0x1000, 0x8000, 64),
        |port| port.read(Use::Chain, 0x1000, &mut [0; 64]),
        |port| port.store_u64(0x1000, 1),
        |port| port.load_u64(Use::Chain, 0x8000).map(drop),
    ];
    for (n, attempt) in attempts.into_iter().enumerate() {
        let mut port = map.lasting_port();
        attempt(&mut port).unwrap_err();
        // What is done about a fault, such as logging it, may take long or need others.
        std::thread::scope(|scope| {
            let begin = Instant::now();
            let change = scope.spawn(|| map.unmap(0x10_0000, PAGE));
            while !change.is_finished() && begin.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_millis(1));
            }
            let finished = change.is_finished();
            drop(port);
            assert!(finished, "attempt {n} kept the map");
        });
    }
}
