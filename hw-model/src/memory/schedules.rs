//! An engine's accesses while others change the map, under many schedules.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::*;
use crate::sync::{AtomicBool, explore, thread};

/// Bytes of each range.
const LEN: usize = 4096;

/// Memory that is reached by volatile accesses only.
struct Host(NonNull<[u64; 2 * LEN / 8]>);

// SAFETY: the memory is this value's own, and every access to it is volatile or atomic.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

impl Host {
    fn new() -> Arc<Host> {
        Arc::new(Host(NonNull::from(Box::leak(Box::new([0; 2 * LEN / 8])))))
    }

    /// Where range 0 or 1 begins.
    fn range(&self, index: usize) -> NonNull<u8> {
        // SAFETY: there are two ranges.
        unsafe { self.0.cast::<u8>().add(index * LEN) }
    }

    fn word(&self, index: usize) -> *mut u64 {
        self.range(index).cast().as_ptr()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: it was leaked by `new`, and is not used any more.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// A map with both ranges, at one and two pages.
fn map(host: &Host) -> Arc<DmaMap> {
    let map = Arc::new(DmaMap::new());
    for index in 0..2 {
        map_range(&map, host, index).unwrap();
    }
    map
}

fn map_range(map: &DmaMap, host: &Host, index: usize) -> Result<(), MemoryError> {
    let iova = ((index + 1) * LEN) as u64;
    // SAFETY: each test keeps the memory until the threads that use the map have ended, and no
    // reference points into it.
    unsafe { map.map_host(iova, LEN as u64, host.range(index), Access::ReadWrite) }
}

#[test]
fn nothing_reaches_memory_once_it_is_unmapped() {
    explore(|| {
        let host = Host::new();
        let map = map(&host);
        let stop = Arc::new(AtomicBool::new(false));
        let engine = {
            let (map, stop) = (Arc::clone(&map), Arc::clone(&stop));
            thread::spawn(move || {
                let mut port = map.lasting_port();
                while !stop.load(Ordering::Relaxed) {
                    // Several accesses under one lock, as an engine makes them.
                    let copied = port.copy(LEN as u64 * 2, LEN as u64, 64);
                    let stored = port.store_u64(LEN as u64 * 2, 7);
                    if copied.is_err() || stored.is_err() {
                        assert!(port.fill(LEN as u64 * 2, 7, 8).is_err(), "gone is gone");
                        break;
                    }
                    // For a scheduler that has priorities.
                    thread::yield_now();
                }
                port.release();
            })
        };
        assert_eq!(map.unmap(LEN as u64 * 2, LEN as u64), Ok(LEN as u64));
        // It could be anybody's from here on.
        let word = host.word(1);
        // SAFETY: the memory is this test's, whatever the map does.
        unsafe { word.write_volatile(u64::MAX) };
        thread::yield_now();
        stop.store(true, Ordering::Relaxed);
        engine.join().unwrap();
        // SAFETY: as above.
        assert_eq!(unsafe { word.read_volatile() }, u64::MAX, "written after it was unmapped");
    });
}

#[test]
fn whoever_changes_the_map_gets_past_an_engine_that_does_not_pause() {
    explore(|| {
        let host = Host::new();
        let map = map(&host);
        let stop = Arc::new(AtomicBool::new(false));
        let engines = [0, 1].map(|_| {
            let (map, stop) = (Arc::clone(&map), Arc::clone(&stop));
            thread::spawn(move || {
                let mut port = map.lasting_port();
                // Never released by itself: only an access lets others pass.
                while !stop.load(Ordering::Relaxed) {
                    port.copy(LEN as u64, LEN as u64 + 64, 64).unwrap();
                    thread::yield_now();
                }
            })
        });
        let changers = {
            let (map, host) = (Arc::clone(&map), Arc::clone(&host));
            thread::spawn(move || {
                map.unmap(2 * LEN as u64, LEN as u64).unwrap();
                map_range(&map, &host, 1).unwrap();
            })
        };
        assert!(map.ranges() <= 2);
        changers.join().unwrap();
        assert_eq!(map.ranges(), 2);
        stop.store(true, Ordering::Relaxed);
        engines.into_iter().for_each(|engine| engine.join().unwrap());
        assert!(!map.is_changing());
    });
}
