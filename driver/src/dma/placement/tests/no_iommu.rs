//! No IOMMU: physical addresses, real ones where this process may see them.

use std::collections::BTreeSet;

use super::*;
use crate::dma::memory::frames::{self, frame_bytes};
use crate::dma::{FrameError, Memory, Pattern};

const HOLD: Strategy = Strategy::PhysicalContiguous(PageSize::Base);

/// Whether this process sees frame numbers; where it does not, that is the reason given.
fn sees_frames() -> bool {
    let memory = Memory::allocate(frame_bytes(), PageSize::Base, false).unwrap();
    memory.write(0, &[1u8]).unwrap();
    match memory.frames() {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error, FrameError::Hidden);
            let report = report(Lab::physical().place(&Request::new(1, BOTH)));
            assert_eq!(*cause(&report, HOLD), Cause::Frames(FrameError::Hidden));
            assert!(report.to_string().contains("CAP_SYS_ADMIN"), "{report}");
            false
        }
    }
}

/// Each segment is where the kernel says that its pages are, and contents are kept.
fn verify(buffer: &mut Buffer) {
    let len = buffer.len();
    Pattern::new(5).fill(buffer, 0, len, 0).unwrap();
    Pattern::new(5).check(buffer, 0, len, 0).unwrap().unwrap();
    let base = std::ptr::NonNull::new(buffer.address() as *mut u8).unwrap();
    let found = frames::frames(base, len.next_multiple_of(frame_bytes())).unwrap();
    for (page, frame) in found.into_iter().enumerate() {
        let part = frame_bytes().min(len - page * frame_bytes());
        let at: Vec<Segment> = buffer.segments_of(page * frame_bytes(), part).unwrap().collect();
        assert_eq!(at.len(), 1, "a page is one piece");
        assert_eq!(at[0].iova.0, frame * frame_bytes() as u64, "page {page}");
    }
    assert!(!buffer.has_moved().unwrap());
}

/// Runs hold-and-retry with frames that a script gives, one vector for each try.
fn scripted(request: &Request, script: &[&[u64]]) -> (Attempted, Vec<usize>) {
    let lab = Lab::physical();
    let context = lab.context(request);
    let mut bases = Vec::new();
    let mut frames = |memory: &Memory| {
        let frames = script[bases.len()].to_vec();
        bases.push(memory.base().addr().get());
        Ok(frames)
    };
    let attempted = physical::contiguous(&context, PageSize::Base, &mut frames);
    (attempted, bases)
}

#[test]
fn failed_blocks_are_held_while_trying_again() {
    let request = Request::new(3 * frame_bytes() - 1, BOTH);
    let one = |frame: u64| {
        [Segment {
            iova: crate::dma::Iova(frame * frame_bytes() as u64),
            len: 3 * frame_bytes() - 1,
        }]
    };
    let (attempted, bases) = scripted(&request, &[&[9, 8, 7], &[20, 21, 22]]);
    let placed = attempted.unwrap();
    assert_eq!((placed.tries, segments(&placed.buffer)), (2, one(20).to_vec()));
    assert_ne!(bases[0], bases[1], "the first was there while the second was allocated");
    // The third try is for twice as much; a run among it is moved and looked at again.
    let script: [&[u64]; 4] = [&[9, 8, 7], &[1, 2, 4], &[3, 20, 21, 22, 23, 9], &[20, 21, 22]];
    let (attempted, bases) = scripted(&request, &script);
    let placed = attempted.unwrap();
    assert_eq!((placed.tries, segments(&placed.buffer)), (3, one(20).to_vec()));
    let distinct: BTreeSet<usize> = bases.iter().copied().collect();
    assert_eq!(distinct.len(), 4, "all of them were there at once");
    // Pages that the kernel migrated meanwhile are not taken for contiguous.
    let script: [&[u64]; 6] =
        [&[9, 8, 7], &[1, 2, 4], &[3, 20, 21, 22, 23, 9], &[20, 40, 22], &[1, 3, 5, 7, 9, 11], &[]];
    let (attempted, bases) = scripted(&request, &script);
    assert_eq!((attempted.unwrap_err().tries, bases.len()), (4, 5));
}

#[test]
fn tries_are_bounded_and_reported() {
    // With two it is the original method: one block held, one more tried.
    let request = Request { tries: 2, ..Request::new(2 * frame_bytes(), BOTH) };
    let (attempted, bases) = scripted(&request, &[&[5, 7], &[9, 8], &[1, 2]]);
    let failed = attempted.unwrap_err();
    assert_eq!((failed.tries, bases.len()), (2, 2));
    let expected =
        Cause::NotContiguous { needed: 8192, longest: 4096, held: 4 * frame_bytes() as u64 };
    assert_eq!(failed.reason.cause, expected);
    let request = Request { tries: 0, ..request };
    assert_eq!(scripted(&request, &[&[5, 7], &[1, 2]]).1.len(), 1, "at least once");
}

#[test]
fn memory_above_the_mask_is_held_too_and_is_the_reason() {
    let request =
        Request { tries: 3, ..Request::new(2 * frame_bytes(), BOTH) }.address_mask(0xffff);
    let script: [&[u64]; 4] = [&[0xf, 0x10], &[3, 5], &[0x30, 0x31, 0x20, 0x21], &[0x20, 0x21]];
    let (attempted, _) = scripted(&request, &script);
    let failed = attempted.unwrap_err();
    let expected = Cause::AddressMask { mask: 0xffff, lowest: Some(0x2_0000) };
    assert_eq!(failed.reason.cause, expected);
    let (attempted, _) = scripted(&request, &[&[0xf, 0x10], &[0xe, 0xf], &[0x20, 0x21]]);
    assert_eq!(attempted.unwrap().tries, 2, "the last page that is reached");
}

#[test]
fn pages_that_are_held_do_not_return() {
    if !sees_frames() {
        return;
    }
    let lab = Lab::physical();
    let request = Request { tries: 6, ..Request::new(64 * frame_bytes(), BOTH) };
    let context = lab.context(&request);
    let mut seen = BTreeSet::new();
    let mut count = 0;
    let attempted = physical::contiguous(&context, PageSize::Base, &mut |memory: &Memory| {
        let real = memory.frames()?;
        count += real.len();
        seen.extend(real.iter().copied());
        // Never taken for contiguous, so that every try is made.
        Ok((0..real.len() as u64).map(|i| 2 * i).collect())
    });
    assert_eq!(attempted.unwrap_err().tries, 6);
    assert_eq!(seen.len(), count, "no frame came twice");
    assert_eq!(count, (2 + 2 * 4) * 64, "twice as many from the third try on");
}

#[test]
fn one_page_is_contiguous_and_large_memory_is_found_or_explained() {
    if !sees_frames() {
        return;
    }
    let lab = Lab::physical();
    let mut buffer = lab.place(&Request::new(100, BOTH)).unwrap();
    assert_eq!(winner(buffer.report()), Some(HOLD), "{}", buffer.report());
    verify(&mut buffer);
    // Whatever the state of the machine's memory: contiguous, or in pieces with reasons.
    let mut buffer = lab.place(&Request::new(5 << 20, BOTH)).unwrap();
    verify(&mut buffer);
    let (strategy, found, map_calls) = buffer.report().placed().unwrap();
    assert_eq!((found, map_calls), (buffer.segments().len(), 0));
    assert_eq!(found == 1, buffer.segments()[0].len == 5 << 20);
    if strategy == Strategy::SmallerBlocks {
        assert!(matches!(cause(buffer.report(), HOLD), Cause::NotContiguous { .. }));
    }
    assert_eq!(lab.space.usage().map_calls, 0);
}

#[test]
fn transparent_huge_pages_are_physically_contiguous() {
    if !sees_frames() {
        return;
    }
    let lab = Lab::physical();
    let strategy = Strategy::PhysicalContiguous(PageSize::Transparent);
    match lab.place(&Request::new(2 << 20, BOTH).order([strategy])) {
        Ok(mut buffer) => {
            assert_eq!(buffer.segments().len(), 1);
            verify(&mut buffer);
        }
        // The machine has none to give, or does not make them.
        Err(DmaError::NoPlacement(report)) => {
            assert!(matches!(cause(&report, strategy), Cause::NotContiguous { .. }), "{report}");
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn blocks_are_the_longest_runs_put_next_to_each_other() {
    let lab = Lab::physical();
    let request =
        Request { least_block: 2 * frame_bytes(), ..Request::new(9 * frame_bytes(), BOTH) };
    let context = lab.context(&request);
    // First round: runs of 2, 4, 1 and 2. The second has a run for the rest, and then the
    // whole is looked at again.
    let script: [&[u64]; 3] = [
        &[50, 51, 60, 61, 62, 63, 70, 80, 82],
        &[90, 95, 96],
        &[60, 61, 62, 63, 50, 51, 95, 96, 99],
    ];
    let mut calls = 0;
    let mut lens = Vec::new();
    let attempted = blocks::place(&context, &mut |memory: &Memory| {
        lens.push(memory.len() / frame_bytes());
        calls += 1;
        Ok(script[calls - 1].to_vec())
    });
    // 9 - 4 - 2 = 3 pages were missing for the second round, which had a run of 2; the
    // last page may be a block of its own.
    let failed = match attempted {
        Ok(placed) => {
            assert_eq!(placed.tries, 2);
            assert_eq!(lens, [9, 3, 9]);
            let lens: Vec<usize> =
                placed.buffer.segments().iter().map(|s| s.len / frame_bytes()).collect();
            assert_eq!(lens, [4, 2, 2, 1]);
            return;
        }
        Err(failed) => failed,
    };
    panic!("{failed:?}");
}

#[test]
fn blocks_that_cannot_be_had_leave_it_to_scatter_gather() {
    let lab = Lab::physical();
    let request = Request { tries: 3, ..Request::new(32 * frame_bytes(), BOTH) };
    let context = lab.context(&request);
    let attempted = blocks::place(&context, &mut |memory: &Memory| {
        Ok((0..memory.len() / frame_bytes()).map(|page| 3 * page as u64 + 1).collect())
    });
    let failed = attempted.unwrap_err();
    assert_eq!(failed.tries, 3);
    let held = 3 * 32 * frame_bytes() as u64;
    let expected = Cause::NotContiguous { needed: 64 << 10, longest: 4096, held };
    assert_eq!(failed.reason.cause, expected);
    if sees_frames() {
        let mut buffer = lab.place(&request.clone().order([Strategy::ScatterGather])).unwrap();
        verify(&mut buffer);
    }
}

#[test]
fn real_blocks_keep_their_physical_addresses_when_they_move() {
    if !sees_frames() {
        return;
    }
    let lab = Lab::physical();
    let request = Request { least_block: frame_bytes(), ..Request::new(3 << 20, BOTH) };
    let mut buffer = lab.place(&request.order([Strategy::SmallerBlocks])).unwrap();
    verify(&mut buffer);
}

/// Pages whose frame does not follow that of the page before, and the first.
fn breaks(buffer: &Buffer) -> usize {
    let base = std::ptr::NonNull::new(buffer.address() as *mut u8).unwrap();
    let found = frames::frames(base, buffer.len()).unwrap();
    1 + found.windows(2).filter(|pair| pair[0] + 1 != pair[1]).count()
}

#[test]
fn neighbours_make_one_segment_for_each_run() {
    if !sees_frames() {
        return;
    }
    let lab = Lab::physical();
    let request = Request::new(64 << 20, BOTH).placement(Placement::ScatterGather);
    let mut buffer = lab.place(&request).unwrap();
    verify(&mut buffer);
    assert_eq!(buffer.segments().len(), breaks(&buffer));
    println!("64 MiB of base pages: {}", buffer.report());
    // Pages of 4 KiB that are known to be neighbours: those of transparent huge pages.
    let memory = Memory::allocate(64 << 20, PageSize::Transparent, false).unwrap();
    // SAFETY: `memory` outlives the buffer and nothing refers into it.
    let buffer = unsafe { lab.allocator().adopt(memory.base(), &request) };
    let mut buffer = buffer.unwrap();
    verify(&mut buffer);
    assert_eq!(buffer.segments().len(), breaks(&buffer));
    println!("64 MiB of transparent huge pages: {}", buffer.report());
}

#[test]
fn scatter_gather_looks_for_neighbours_in_the_other_direction() {
    let lab = Lab::physical();
    let request = Request::new(4 * frame_bytes(), BOTH);
    let context = lab.context(&request);
    let placed = |script: [&[u64]; 2]| {
        let mut script = script.into_iter();
        let attempted =
            scatter::place(&context, &mut |_: &Memory| Ok(script.next().unwrap().to_vec()));
        let placed = attempted.unwrap();
        (placed.tries, placed.buffer.segments().len())
    };
    assert_eq!(placed([&[4, 3, 2, 1], &[5, 6, 7, 8]]), (2, 1));
    assert_eq!(placed([&[4, 3, 2, 1], &[9, 7, 5, 3]]), (2, 4), "no better");
    assert_eq!(placed([&[1, 2, 9, 5], &[9, 7, 5, 3]]), (2, 3), "worse");
    assert_eq!(placed([&[1, 2, 8, 9], &[]]), (1, 2), "good enough");
    let once = Request { tries: 1, ..request.clone() };
    let attempted = scatter::place(&lab.context(&once), &mut |_: &Memory| Ok(vec![4, 3, 2, 1]));
    assert_eq!(attempted.unwrap().tries, 1);
}

#[test]
fn files_and_ranges_are_reached_physically() {
    if !sees_frames() {
        return;
    }
    let lab = Lab::physical();
    let memory = Memory::allocate(20 * frame_bytes(), PageSize::Base, true).unwrap();
    let request = Request::new(20 * frame_bytes(), BOTH);
    let mut buffer = lab.allocator().adopt_file(memory.file().unwrap(), 0, &request).unwrap();
    verify(&mut buffer);
    let mut bytes = vec![0; 20 * frame_bytes()];
    memory.read(0, &mut bytes).unwrap();
    let mut expected = vec![0; 20 * frame_bytes()];
    Pattern::new(5).bytes(0, &mut expected);
    assert!(bytes == expected, "the same pages");
    let low = request.address_mask(0xfff);
    let refused = lab.allocator().adopt_file(memory.file().unwrap(), 0, &low);
    let Err(DmaError::NoPlacement(report)) = refused else { panic!("below the first page") };
    assert!(matches!(cause(&report, Strategy::InPlace), Cause::AddressMask { mask: 0xfff, .. }));
}

#[test]
fn pools_and_promotion_work_without_an_iommu() {
    if !sees_frames() {
        return;
    }
    let lab = Lab::physical();
    let scattered = Request::new(3 * frame_bytes(), BOTH).placement(Placement::ScatterGather);
    // Pages may happen to be neighbours; then there is nothing to promote.
    let mut buffers: Vec<Buffer> = (0..64).map(|_| lab.place(&scattered).unwrap()).collect();
    let blocks = [Reservation { len: frame_bytes(), page_size: PageSize::Base }; 4];
    let pool = lab.allocator().reserve(&blocks).unwrap();
    let mut one = lab.place(&Request::new(1, BOTH).pool(&pool)).unwrap();
    assert_eq!(winner(one.report()), Some(Strategy::Pool));
    verify(&mut one);
    drop((one, pool));
    for buffer in buffers.iter_mut().filter(|buffer| buffer.segments().len() > 1) {
        Pattern::new(6).fill(buffer, 0, 3 * frame_bytes(), 0).unwrap();
        if let Err(error) = buffer.promote() {
            let DmaError::NoPlacement(report) = error else { panic!("{error}") };
            assert!(matches!(cause(&report, HOLD), Cause::NotContiguous { .. }), "{report}");
        }
        Pattern::new(6).check(buffer, 0, 3 * frame_bytes(), 0).unwrap().unwrap();
        verify(buffer);
    }
}
