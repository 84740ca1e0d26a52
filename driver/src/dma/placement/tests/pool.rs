//! Memory that was put aside.

use super::*;
use crate::dma::{Allocator, Pool};

fn reserve(lab: &Lab, lens: &[usize]) -> Arc<Pool> {
    let block = |&len: &usize| Reservation { len, page_size: PageSize::Base };
    let blocks: Vec<_> = lens.iter().map(block).collect();
    lab.allocator().reserve(&blocks).unwrap()
}

#[test]
fn a_pool_wins_without_a_map_call_until_it_is_spent() {
    let lab = Lab::wide();
    let pool = reserve(&lab, &[0x1_0000, 0x8000]);
    assert_eq!(lab.space.usage().map_calls, 2);
    let request = Request::new(0x5001, BOTH).pool(&pool);
    let mut buffers: Vec<Buffer> = (0..3).map(|_| lab.place(&request).unwrap()).collect();
    for buffer in &mut buffers {
        lab.verify(buffer);
        assert_eq!(buffer.report().placed(), Some((Strategy::Pool, 1, 0)));
    }
    assert_eq!(lab.space.usage().map_calls, 2, "taking made none");
    let usage = pool.usage();
    assert_eq!((usage.capacity, usage.used, usage.high_water), (0x1_8000, 0x1_2000, 0x1_2000));
    // Spent: the next strategy wins, and says why.
    let mut fourth = lab.place(&request).unwrap();
    lab.verify(&mut fourth);
    assert_eq!(winner(fourth.report()), Some(CONTIGUOUS));
    let spent = Cause::PoolSpent { capacity: 0x1_8000, free: 0x6000, longest: 0x4000 };
    assert_eq!(*cause(fourth.report(), Strategy::Pool), spent);
    buffers.clear();
    let usage = pool.usage();
    assert_eq!((usage.used, usage.high_water, usage.buffers), (0, 0x1_2000, 0));
    assert_eq!((usage.taken, usage.refused), (3, 1));
    drop((fourth, pool, request));
    assert!(lab.is_empty());
    let after = lab.place(&Request::new(0x5001, BOTH)).unwrap();
    assert_eq!(*cause(after.report(), Strategy::Pool), Cause::NoPool);
}

#[test]
fn what_is_taken_again_is_zeroed_and_apart_from_others() {
    let lab = Lab::wide();
    let pool = reserve(&lab, &[0x4000]);
    let request = Request::new(0x1fff, BOTH).pool(&pool).order([Strategy::Pool]);
    let mut first = lab.place(&request).unwrap();
    lab.verify(&mut first);
    let used = segments(&first);
    drop(first);
    let mut second = lab.place(&request).unwrap();
    assert_eq!(segments(&second), used, "the same bytes");
    assert!(lab.table.read(second.segments()).iter().all(|&byte| byte == 0));
    let mut third = lab.place(&request).unwrap();
    Pattern::new(7).fill(&mut second, 0, 0x1fff, 0).unwrap();
    lab.verify(&mut third);
    Pattern::new(7).check(&second, 0, 0x1fff, 0).unwrap().unwrap();
}

#[test]
fn a_pool_outlives_its_owner_while_buffers_are_in_it() {
    let lab = Lab::wide();
    let pool = reserve(&lab, &[0x4000]);
    let mut buffer = lab.place(&Request::new(100, BOTH).pool(&pool)).unwrap();
    drop(pool);
    lab.verify(&mut buffer);
    assert_eq!(lab.table.mappings(), 1);
    drop(buffer);
    assert!(lab.is_empty());
}

#[test]
fn a_pool_above_the_mask_is_no_help() {
    let lab = Lab::wide();
    let pool = reserve(&lab, &[0x4000]);
    let buffer = lab.place(&Request::new(100, BOTH).pool(&pool).address_mask(0x0fff_ffff)).unwrap();
    assert_eq!(winner(buffer.report()), Some(CONTIGUOUS));
    assert!(matches!(
        cause(buffer.report(), Strategy::Pool),
        Cause::AddressMask { mask: 0x0fff_ffff, lowest: Some(lowest) } if *lowest > 0x0fff_ffff
    ));
}

#[test]
fn all_blocks_are_reserved_or_none() {
    let lab = Lab::fragmented(&[10, 10]);
    let block = Reservation { len: 10 * 4096, page_size: PageSize::Base };
    let none = lab.allocator().reserve(&[block; 3]);
    assert!(matches!(none, Err(DmaError::NoPlacement(_))));
    assert!(lab.is_empty());
}

#[test]
fn a_pool_or_a_device_of_another_address_space_is_refused() {
    let (lab, other) = (Lab::wide(), Lab::wide());
    let pool = reserve(&other, &[0x4000]);
    let refused = lab.place(&Request::new(100, BOTH).pool(&pool));
    assert!(matches!(refused, Err(DmaError::ForeignPool { .. })), "{refused:?}");
    // A device would be told addresses that mean something else to it.
    let foreign = Allocator::new(&lab.device, &other.space);
    let request = Request::new(100, BOTH);
    assert!(matches!(foreign.allocate(&request), Err(DmaError::ForeignSpace { .. })));
    let blocks = [Reservation { len: 0x4000, page_size: PageSize::Base }];
    assert!(matches!(foreign.reserve(&blocks), Err(DmaError::ForeignSpace { .. })));
    let file = Memory::allocate(4096, PageSize::Base, true).unwrap();
    let refused = foreign.adopt_file(file.file().unwrap(), 0, &request);
    assert!(matches!(refused, Err(DmaError::ForeignSpace { .. })), "{refused:?}");
    // SAFETY: the memory lives until the end, and nothing refers into it.
    let refused = unsafe { foreign.adopt(file.base(), &request) };
    assert!(matches!(refused, Err(DmaError::ForeignSpace { .. })), "{refused:?}");
}

use crate::dma::Pattern;
