use super::*;
use proptest::prelude::*;

const PAGE: u64 = 0x1000;

#[test]
fn high_addresses_go_first_and_masks_and_alignments_hold() {
    let mut a = IovaAllocator::new(PAGE, &[0x1000..=0xfedf_ffff, 0xfef0_0000..=0xffff_ffff]);
    assert_eq!(a.allocate(1, 1, u64::MAX), Ok(Iova(0xffff_f000)));
    assert_eq!(a.allocate(0x2000, 1, 0x0fff_ffff), Ok(Iova(0x0fff_e000)));
    assert_eq!(a.allocate(0x20_0000, 0x20_0000, 0x0fff_ffff), Ok(Iova(0x0fc0_0000)));
    assert_eq!(a.allocated(), 3);
}

#[test]
fn the_last_address_of_all_can_be_used() {
    let mut a = IovaAllocator::new(PAGE, &[u64::MAX - 0x1fff..=u64::MAX]);
    assert_eq!(a.allocate(0x2000, 1, u64::MAX), Ok(Iova(u64::MAX - 0x1fff)));
    a.free(Iova(u64::MAX - 0x1fff), 0x2000).unwrap();
    assert_eq!(a.free_bytes(u64::MAX), 0x2000);
}

#[test]
fn windows_are_merged_and_shrunk_to_whole_granules() {
    let a = IovaAllocator::new(PAGE, &[0x5001..=0x7ffe, 0x3000..=0x3fff, 0x4000..=0x4fff]);
    assert_eq!(a.free_runs().collect::<Vec<_>>(), vec![0x3000..=0x4fff, 0x6000..=0x6fff]);
}

#[test]
fn reserved_regions_are_cut_out() {
    let mut a = IovaAllocator::new(PAGE, &[0..=0xffff]);
    a.reserve(0x4010..=0x5000);
    a.reserve(0xf000..=u64::MAX);
    a.reserve(0..=0xfff);
    assert_eq!(a.free_runs().collect::<Vec<_>>(), vec![0x1000..=0x3fff, 0x6000..=0xefff]);
}

#[test]
fn windows_can_shrink_around_what_is_allocated() {
    let mut a = IovaAllocator::new(PAGE, &[0x1000..=0xffff]);
    let kept = a.allocate(0x2000, 1, 0x7fff).unwrap();
    a.set_windows(&[0x4000..=0x9fff]);
    assert_eq!(a.free_runs().collect::<Vec<_>>(), vec![0x4000..=0x5fff, 0x8000..=0x9fff]);
    a.free(kept, 0x2000).unwrap();
    assert_eq!(a.free_runs().collect::<Vec<_>>(), vec![0x4000..=0x9fff]);
}

#[test]
fn what_a_window_has_lost_is_not_handed_out_again_when_it_is_freed() {
    let mut a = IovaAllocator::new(PAGE, &[0x1000..=0xffff]);
    let kept = a.allocate(0x6000, 1, 0x9fff).unwrap();
    assert_eq!(kept, Iova(0x4000));
    // Another device has joined, which reserves the middle of it.
    a.set_windows(&[0x1000..=0x5fff, 0x8000..=0xffff]);
    a.free(kept, 0x6000).unwrap();
    assert_eq!(a.free_runs().collect::<Vec<_>>(), vec![0x1000..=0x5fff, 0x8000..=0xffff]);
    let kept = a.allocate(PAGE, 1, 0x1fff).unwrap();
    a.reserve(0..=0x2fff);
    a.free(kept, PAGE).unwrap();
    assert_eq!(a.free_runs().next(), Some(0x3000..=0x5fff));
    assert!(a.free(kept, PAGE).is_err(), "freed all the same");
}

#[test]
fn errors_carry_the_figures() {
    let mut a = IovaAllocator::new(PAGE, &[0x100_0000..=0x1ff_ffff]);
    assert_eq!(
        a.allocate(PAGE, 1, 0xff_ffff),
        Err(IovaError::MaskTooSmall { mask: 0xff_ffff, lowest: Some(0x100_0000) })
    );
    let kept = a.allocate(PAGE, 0x80_0000, 0x1ff_ffff).unwrap();
    assert_eq!(kept, Iova(0x180_0000));
    assert_eq!(
        a.allocate(0x100_0000, 1, u64::MAX),
        Err(IovaError::NoRun {
            len: 0x100_0000,
            align: PAGE,
            mask: u64::MAX,
            free: 0xff_f000,
            longest: 0x80_0000,
        })
    );
    assert!(matches!(a.allocate(0, 1, 1), Err(IovaError::BadRequest { .. })));
    assert!(matches!(a.allocate(1, 3, 1), Err(IovaError::BadRequest { .. })));
    assert!(matches!(a.allocate(u64::MAX, 1, 1), Err(IovaError::BadRequest { .. })));
    assert!(a.free(Iova(0x100_0000), PAGE).is_err());
    assert!(a.free(kept, 2 * PAGE).is_err());
    assert!(a.free(kept, 0).is_err());
    a.free(kept, 1).unwrap();
    assert!(a.free(kept, 1).is_err(), "twice");
}

#[test]
fn several_runs_are_the_longest_ones_and_all_or_none() {
    let windows = [0x1000..=0x2fff, 0x1_0000..=0x1_3fff, 0x2_0000..=0x2_0fff];
    let mut a = IovaAllocator::new(PAGE, &windows);
    let free: Vec<_> = a.free_runs().collect();
    let runs = a.allocate_runs(0x6000, u64::MAX, PAGE, u64::MAX).unwrap();
    assert_eq!(runs, [(Iova(0x1_0000), 0x4000), (Iova(0x1000), 0x2000)]);
    assert!(a.allocate_runs(0x2000, u64::MAX, PAGE, u64::MAX).is_err());
    for (start, len) in runs {
        a.free(start, len).unwrap();
    }
    assert_eq!(a.free_runs().collect::<Vec<_>>(), free, "the refusal took nothing");
    // At most a page each: from the top down, so that no two are neighbours in order.
    let runs = a.allocate_runs(0x3000, PAGE, PAGE, 0x1_1fff).unwrap();
    let starts: Vec<u64> = runs.iter().map(|(start, _)| start.0).collect();
    assert_eq!(starts, [0x1_1000, 0x1_0000, 0x2000]);
    // Runs below the least do not count, the last range may be shorter.
    assert!(matches!(
        a.allocate_runs(0x4000, u64::MAX, 0x2000, u64::MAX),
        Err(IovaError::NoRun { len: 0x2000, free: 0x4000, longest: 0x2000, .. })
    ));
    let runs = a.allocate_runs(0x3000, u64::MAX, 0x2000, u64::MAX).unwrap();
    assert_eq!(runs, [(Iova(0x1_2000), 0x2000), (Iova(0x2_0000), 0x1000)]);
    assert!(a.allocate_runs(PAGE, PAGE - 1, 1, u64::MAX).is_err());
    assert!(a.allocate_runs(0, PAGE, 1, u64::MAX).is_err());
}

#[derive(Debug, Clone)]
enum Step {
    Allocate { pages: u64, align_log2: u32, mask_log2: u32 },
    Free(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1u64..20, 0u32..18, 13u32..64)
            .prop_map(|(pages, align_log2, mask_log2)| Step::Allocate { pages, align_log2, mask_log2 }),
        2 => any::<usize>().prop_map(Step::Free),
    ]
}

proptest! {
    /// Against one bit for each page: never overlapping, always inside a window and
    /// the mask, refused only when no run exists, all free in the end.
    #[test]
    fn agrees_with_a_bitmap(steps in proptest::collection::vec(step(), 1..200)) {
        const PAGES: usize = 256;
        let windows = [0x2000..=0x5_ffff, 0x7_0000..=(PAGES as u64 * PAGE - 1)];
        let usable = |page: usize| {
            let address = page as u64 * PAGE;
            windows.iter().any(|w| w.contains(&address))
        };
        let mut allocator = IovaAllocator::new(PAGE, &windows);
        let start = allocator.free_runs().collect::<Vec<_>>();
        let mut taken = [false; PAGES];
        let mut live: Vec<(Iova, u64)> = Vec::new();
        for step in steps {
            match step {
                Step::Allocate { pages, align_log2, mask_log2 } => {
                    let (len, align) = (pages * PAGE - 7, 1u64 << align_log2);
                    let mask = (1u64 << mask_log2) - 1;
                    let fits = |first: usize| {
                        let last = first + pages as usize - 1;
                        (first as u64 * PAGE).is_multiple_of(align)
                            && last < PAGES
                            && (last as u64 + 1) * PAGE - 1 <= mask
                            && (first..=last).all(|p| usable(p) && !taken[p])
                    };
                    let expected = (0..PAGES).rev().find(|&first| fits(first));
                    let got = allocator.allocate(len, align, mask);
                    match expected {
                        Some(first) => {
                            let iova = Iova(first as u64 * PAGE);
                            prop_assert_eq!(got, Ok(iova));
                            taken[first..first + pages as usize].fill(true);
                            live.push((iova, len));
                        }
                        None => prop_assert!(got.is_err(), "{got:?}"),
                    }
                }
                Step::Free(which) if !live.is_empty() => {
                    let (iova, len) = live.swap_remove(which % live.len());
                    prop_assert_eq!(allocator.free(iova, len), Ok(()));
                    let first = (iova.0 / PAGE) as usize;
                    taken[first..first + len.div_ceil(PAGE) as usize].fill(false);
                }
                Step::Free(_) => {}
            }
            let free = (0..PAGES).filter(|&p| usable(p) && !taken[p]).count() as u64;
            prop_assert_eq!(allocator.free_bytes(u64::MAX), free * PAGE);
            prop_assert_eq!(allocator.allocated(), live.len());
        }
        for (iova, len) in live {
            prop_assert_eq!(allocator.free(iova, len), Ok(()));
        }
        prop_assert_eq!(allocator.free_runs().collect::<Vec<_>>(), start);
    }
}
