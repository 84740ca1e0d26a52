//! The DMA map against a table of pages that does the same byte by byte.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::{PAGE, contents, memfd};
use crate::memory::{Access, DmaMap};

/// What the map is held against: every mapped page by number, with its file page.
type Pages = BTreeMap<u64, (u64, Access)>;

#[derive(Debug, Clone)]
enum Step {
    Map { page: u64, pages: u64, file_page: u64, access: Access },
    Unmap { page: u64, pages: u64 },
    Copy { from: u64, to: u64, len: u64 },
    Fill { at: u64, pattern: u64, len: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let access = prop_oneof![
        4 => Just(Access::ReadWrite),
        1 => Just(Access::Read),
        1 => Just(Access::Write)
    ];
    let byte = 0..20 * PAGE;
    prop_oneof![
        3 => (0..16u64, 1..4u64, 0..14u64, access).prop_map(|(page, pages, file_page, access)| {
            Step::Map { page, pages, file_page, access }
        }),
        1 => (0..16u64, 1..6u64).prop_map(|(page, pages)| Step::Unmap { page, pages }),
        3 => (byte.clone(), byte.clone(), 0..3 * PAGE)
            .prop_map(|(from, to, len)| Step::Copy { from, to, len }),
        2 => (byte, any::<u64>(), 0..3 * PAGE)
            .prop_map(|(at, pattern, len)| Step::Fill { at, pattern, len }),
    ]
}

/// How many bytes from `at` on the pages allow, and where the first of them is in the file.
fn reach(pages: &Pages, at: u64, allowed: impl Fn(Access) -> bool) -> Option<u64> {
    let (page, access) = pages.get(&(at / PAGE))?;
    allowed(*access).then_some(page * PAGE + at % PAGE)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_map_agrees_with_a_table_of_pages(steps in prop::collection::vec(step(), 1..40)) {
        let file = memfd(16 * PAGE);
        let mut expected = contents(&file);
        let map = DmaMap::new();
        // What it remembers of one step's map is wrong in the next.
        let mut port = map.lasting_port();
        let mut pages = Pages::new();
        // Each mapping as (first page, number of pages).
        let mut whole: Vec<(u64, u64)> = Vec::new();
        for step in steps {
            match step {
                Step::Map { page, pages: count, file_page, access } => {
                    let vacant = (page..page + count).all(|p| !pages.contains_key(&p));
                    let fits = file_page + count <= 16;
                    let result =
                        map.map_fd(page * PAGE, count * PAGE, &file, file_page * PAGE, access);
                    prop_assert_eq!(result.is_ok(), vacant && fits);
                    if result.is_ok() {
                        whole.push((page, count));
                        for n in 0..count {
                            pages.insert(page + n, (file_page + n, access));
                        }
                    }
                }
                Step::Unmap { page, pages: count } => {
                    let end = page + count;
                    let touched = |&(first, n): &(u64, u64)| first < end && first + n > page;
                    let inside = |&(first, n): &(u64, u64)| first >= page && first + n <= end;
                    let cuts = whole.iter().any(|m| touched(m) && !inside(m));
                    let result = map.unmap(page * PAGE, count * PAGE);
                    prop_assert_eq!(result.is_err(), cuts);
                    if !cuts {
                        let gone = (page..end).filter(|p| pages.remove(p).is_some()).count();
                        prop_assert_eq!(result, Ok(gone as u64 * PAGE));
                        whole.retain(|m| !touched(m));
                    }
                }
                Step::Copy { from, to, len } => {
                    let mut done = 0;
                    let mut moved = Vec::new();
                    while done < len
                        && let Some(source) = reach(&pages, from + done, Access::reads)
                        && let Some(target) = reach(&pages, to + done, Access::writes)
                    {
                        moved.push((source as usize, target as usize));
                        done += 1;
                    }
                    // Overlap across pieces depends on where they end: leave it out here.
                    let sources: HashSet<_> =
                        moved.iter().map(|m| m.0).collect();
                    if moved.iter().any(|m| sources.contains(&m.1)) {
                        continue;
                    }
                    for (source, target) in moved {
                        expected[target] = expected[source];
                    }
                    let result = port.copy(to, from, len);
                    port.release();
                    prop_assert_eq!(result.map_or_else(|f| f.done, |()| len), done);
                }
                Step::Fill { at, pattern, len } => {
                    let mut done = 0;
                    while done < len && let Some(target) = reach(&pages, at + done, Access::writes)
                    {
                        expected[target as usize] = pattern.to_le_bytes()[(done % 8) as usize];
                        done += 1;
                    }
                    let result = port.fill(at, pattern, len);
                    port.release();
                    prop_assert_eq!(result.map_or_else(|f| f.done, |()| len), done);
                }
            }
            prop_assert_eq!(map.ranges(), whole.len());
        }
        prop_assert!(contents(&file) == expected);
    }
}
