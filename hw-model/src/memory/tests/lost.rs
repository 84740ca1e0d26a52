//! Files of which a page cannot be had any more: the transfers that meet it fail, and the process
//! lives.

use super::*;

const LEN: u64 = 4 * PAGE;
const LOST: u64 = 0x10_0000;
const OTHER: u64 = 0x20_0000;

/// A memfd whose size anybody who has it may change.
fn unsealable(len: u64) -> File {
    let file = File::from(memfd_create("cut", MFdFlags::empty()).unwrap());
    file.set_len(len).unwrap();
    file
}

type Operation = fn(&DmaMap) -> Result<(), DmaFault>;

/// Every way to the memory, at its third page.
const OPERATIONS: [(Direction, Operation); 8] = [
    (Direction::Read, |map| map.read(LOST + 2 * PAGE, &mut [0; 16])),
    (Direction::Write, |map| map.write(LOST + 2 * PAGE, &[1; 16])),
    (Direction::Write, |map| map.fill(LOST + 2 * PAGE, 7, 16)),
    (Direction::Read, |map| map.copy(OTHER, LOST + 2 * PAGE, 16)),
    (Direction::Write, |map| map.copy(LOST + 2 * PAGE, OTHER, 16)),
    (Direction::Read, |map| map.copy(OTHER, LOST + 2 * PAGE, PAGE)),
    (Direction::Write, |map| map.store_u64(LOST + 2 * PAGE, 7)),
    (Direction::Read, |map| map.load_u64(LOST + 2 * PAGE).map(drop)),
];

#[test]
fn a_file_that_is_cut_short_fails_the_transfers_that_reach_it() {
    for (direction, operation) in OPERATIONS {
        let (file, good) = (unsealable(LEN), memfd(LEN));
        let map = DmaMap::new();
        map.map_fd(LOST, LEN, &file, 0, Access::ReadWrite).unwrap();
        map.map_fd(OTHER, LEN, &good, 0, Access::ReadWrite).unwrap();
        operation(&map).unwrap();
        file.set_len(PAGE).unwrap();
        for _ in 0..2 {
            let fault = operation(&map).unwrap_err();
            let expected = (direction, LOST + 2 * PAGE, FaultReason::Unbacked);
            assert_eq!((fault.direction, fault.iova, fault.reason), expected, "{fault}");
        }
        assert_eq!(map.stats().refused_unbacked, 2);
        // All of the file is lost, and nothing else is.
        map.read(LOST, &mut [0; 16]).unwrap_err();
        map.copy(OTHER, OTHER + PAGE, PAGE).unwrap();
        // Nor is it mapped again as long as ranges of it are there.
        file.set_len(LEN).unwrap();
        let again = map.map_fd(0, PAGE, &file, 0, Access::Read);
        assert_eq!(again, Err(MemoryError::Lost));
        map.unmap(LOST, LEN).unwrap();
        map.map_fd(LOST, LEN, &file, 0, Access::ReadWrite).unwrap();
        operation(&map).unwrap();
    }
}

#[test]
fn a_lasting_port_of_another_thread_does_not_take_what_was_put_in_the_place() {
    let file = unsealable(LEN);
    let map = DmaMap::new();
    map.map_fd(LOST, LEN, &file, 0, Access::ReadWrite).unwrap();
    file.set_len(0).unwrap();
    // All at once, so that most find the page that the first one had put there.
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut port = map.lasting_port();
                    (0..100).all(|_| port.read(Use::Source, LOST, &mut [0; 64]).is_err())
                })
            })
            .collect();
        assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
    });
}

/// A count of the kernel for huge pages of 2 MiB; 0 where it has none.
fn huge_pages(name: &str) -> u64 {
    let path = format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}");
    std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

#[test]
fn huge_pages_that_cannot_be_had_fail_the_transfers_that_reach_them() {
    const HUGE: u64 = 2 << 20;
    let flags = MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
    let file = File::from(memfd_create("huge", flags).expect("a kernel with huge pages of 2 MiB"));
    // One more than there can be.
    let pages = huge_pages("nr_hugepages") + huge_pages("nr_overcommit_hugepages") + 1;
    file.set_len(pages * HUGE).unwrap();
    let map = DmaMap::new();
    map.map_fd(0, pages * HUGE, &file, 0, Access::ReadWrite).unwrap();
    let stores: Vec<_> = (0..pages).map(|page| map.store_u64(page * HUGE + 8, 7)).collect();
    let fault = stores.into_iter().find_map(Result::err).expect("there are not so many");
    assert_eq!(fault.reason, FaultReason::Unbacked);
    assert_eq!(map.load_u64(8).unwrap_err().reason, FaultReason::Unbacked);
}
