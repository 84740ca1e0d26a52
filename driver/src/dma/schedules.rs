//! Memory that several threads place and give back, under many schedules.

use std::sync::Arc;
use std::time::Duration;

use super::testing::Lab;
use super::*;
use crate::deadline::Deadline;
use crate::sync::{Mutex, explore, thread};

const PAGE: usize = 4096;
const BOTH: Direction = Direction::Bidirectional;

/// Far longer than a schedule takes: who is not woken waits for ever.
const HOURS: Duration = Duration::from_secs(36_000);

fn contiguous(pages: usize) -> Request {
    Request::new(pages * PAGE, BOTH).placement(Placement::Contiguous)
}

#[test]
fn whoever_waits_for_room_is_woken_by_whoever_frees_it() {
    explore(|| {
        let lab = Arc::new(Lab::fragmented(&[4]));
        let held = [lab.place(&contiguous(2)).unwrap(), lab.place(&contiguous(2)).unwrap()];
        let waiting = {
            let lab = Arc::clone(&lab);
            thread::spawn(move || {
                // All of the room: both have to go.
                let request = Request { patience: HOURS, ..contiguous(4) };
                drop(lab.place(&request).unwrap());
            })
        };
        held.into_iter().for_each(drop);
        waiting.join().unwrap();
        assert!(lab.is_empty());
    });
}

#[test]
fn a_pool_has_each_piece_once_and_wakes_who_waits_for_one() {
    explore(|| {
        let lab = Arc::new(Lab::wide());
        let block = Reservation { len: 2 * PAGE, page_size: PageSize::Base };
        let pool = lab.allocator().reserve(&[block]).unwrap();
        let in_use = Arc::new(Mutex::new(Vec::new()));
        // Three threads for two pieces.
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (lab, pool, in_use) = (Arc::clone(&lab), Arc::clone(&pool), in_use.clone());
                thread::spawn(move || {
                    let order = [Strategy::Pool, Strategy::Deferred];
                    let request = Request { patience: HOURS, ..Request::new(PAGE, BOTH) };
                    let buffer = lab.place(&request.pool(&pool).order(order)).unwrap();
                    let iova = buffer.segments()[0].iova;
                    let mut addresses = in_use.lock().unwrap();
                    assert!(!addresses.contains(&iova), "{iova:?} belongs to another");
                    addresses.push(iova);
                    drop(addresses);
                    in_use.lock().unwrap().retain(|other| *other != iova);
                    drop(buffer);
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let usage = pool.usage();
        assert_eq!((usage.used, usage.buffers, usage.taken), (0, 0, 3));
        assert!(usage.high_water <= usage.capacity);
        drop(pool);
        assert!(lab.is_empty());
    });
}

#[test]
fn an_address_is_free_again_only_when_nothing_is_mapped_there() {
    explore(|| {
        // Room for one at a time: a map call finds what it left out if another is there.
        let lab = Arc::new(Lab::fragmented(&[2]));
        let place = || {
            let lab = Arc::clone(&lab);
            thread::spawn(move || {
                let request = Request { patience: HOURS, ..contiguous(2) };
                let buffer = lab.place(&request).unwrap();
                assert_eq!(lab.table.mappings(), 1);
                drop(buffer);
            })
        };
        let threads = [place(), place()];
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let usage = lab.space.usage();
        assert_eq!((usage.map_calls, usage.unmap_calls), (2, 2), "none was refused");
        assert!(lab.is_empty());
    });
}

/// Whether an address of this process has memory.
fn is_mapped(address: usize) -> bool {
    let page = std::ptr::without_provenance_mut(address & !(PAGE - 1));
    let mut resident = [0];
    // SAFETY: the kernel looks at one page and writes one byte.
    unsafe { libc::mincore(page, PAGE, resident.as_mut_ptr()) == 0 }
}

#[test]
fn who_is_told_that_memory_came_back_finds_it_free() {
    explore(|| {
        let lab = Arc::new(Lab::wide());
        let seen = lab.space.frees();
        // Large enough for a mapping of the process of its own.
        let buffer = lab.place(&contiguous(512)).unwrap();
        let address = buffer.address();
        let waiting = {
            let lab = Arc::clone(&lab);
            thread::spawn(move || {
                assert!(lab.space.wait_for_free(seen, Deadline::after(HOURS)));
                assert!(!is_mapped(address), "told before the kernel had it back");
            })
        };
        drop(buffer);
        waiting.join().unwrap();
    });
}
