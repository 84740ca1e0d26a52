//! Retry when something was freed, and promotion.

use std::time::{Duration, Instant};

use super::*;
use crate::deadline::Deadline;
use crate::dma::Pattern;

#[test]
fn a_free_lets_a_deferred_request_win() {
    let lab = Lab::fragmented(&[32]);
    let held = lab.place(&Request::new(20 * 4096, BOTH)).unwrap();
    let request = Request {
        patience: Duration::from_secs(60),
        ..Request::new(30 * 4096, BOTH).placement(Placement::Contiguous)
    };
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| lab.place(&request).unwrap());
        // Freed once the other has begun to wait or not: both have to work.
        std::thread::sleep(Duration::from_millis(50));
        drop(held);
        let mut buffer = waiting.join().unwrap();
        lab.verify(&mut buffer);
        let report = buffer.report();
        assert_eq!(winner(report), Some(Strategy::Deferred), "{report}");
        let outcome = &report.attempts.last().unwrap().outcome;
        assert!(matches!(outcome, Outcome::Placed { through: Some(CONTIGUOUS), segments: 1, .. }));
        assert!(report.to_string().contains("freed, then IOMMU-contiguous"), "{report}");
    });
    assert!(begin.elapsed() < Duration::from_secs(30), "woken, not timed out");
}

#[test]
fn patience_ends_and_the_next_strategy_follows() {
    let lab = Lab::fragmented(&[32, 32]);
    let order = [CONTIGUOUS, Strategy::Deferred, Strategy::ScatterGather];
    let request = Request {
        patience: Duration::from_millis(30),
        ..Request::new(50 * 4096, BOTH).order(order)
    };
    let mut buffer = lab.place(&request).unwrap();
    lab.verify(&mut buffer);
    assert_eq!(winner(buffer.report()), Some(Strategy::ScatterGather));
    let waited = cause(buffer.report(), Strategy::Deferred);
    assert!(matches!(waited, Cause::Waited { milliseconds: 30.., frees: 0 }), "{waited:?}");
}

#[test]
fn a_caller_can_tell_whether_trying_again_is_worth_it() {
    let lab = Lab::fragmented(&[32]);
    let held = lab.place(&Request::new(20 * 4096, BOTH)).unwrap();
    let seen = lab.space.frees();
    let request = Request::new(32 * 4096, BOTH);
    assert!(lab.place(&request).is_err());
    assert!(!lab.space.wait_for_free(seen, Deadline::after(Duration::ZERO)));
    drop(held);
    assert!(lab.space.wait_for_free(seen, Deadline::after(Duration::ZERO)));
    assert!(lab.place(&request).is_ok());
}

#[test]
fn promotion_remaps_when_a_run_is_free() {
    let lab = Lab::fragmented(&[64, 32]);
    let held = lab.place(&Request::new(40 * 4096, BOTH)).unwrap();
    let len = 40 * 4096 - 9;
    let request = Request { least_block: 4096, ..Request::new(len, BOTH) };
    let mut buffer = lab.place(&request).unwrap();
    assert_eq!(buffer.segments().len(), 2);
    Pattern::new(3).fill(&mut buffer, 0, len, 0).unwrap();
    // Not yet: the buffer stays as it is, and says why.
    let before = segments(&buffer);
    let Err(DmaError::NoPlacement(report)) = buffer.promote() else { panic!("no room") };
    assert!(matches!(cause(&report, Strategy::Remap), Cause::IovaRun { .. }), "{report}");
    assert_eq!(segments(&buffer), before);
    Pattern::new(3).check(&buffer, 0, len, 0).unwrap().unwrap();
    drop(held);
    let address = buffer.address();
    buffer.promote().unwrap();
    assert_eq!(buffer.report().placed(), Some((Strategy::Remap, 1, 1)));
    assert_eq!(buffer.address(), address, "no copy");
    Pattern::new(3).check(&buffer, 0, len, 0).unwrap().unwrap();
    lab.verify(&mut buffer);
    assert_eq!((lab.space.usage().mappings, lab.space.usage().bytes), (1, 40 * 4096));
    buffer.promote().unwrap();
    drop(buffer);
    assert!(lab.is_empty());
}

#[test]
fn promotion_copies_when_it_cannot_remap() {
    let lab = Lab::fragmented(&[3, 3, 3, 3]);
    let len = 4 * 4096 + 1;
    let mut buffer = lab.place(&Request::new(len, BOTH)).unwrap();
    Pattern::new(4).fill(&mut buffer, 0, len, 0).unwrap();
    assert!(buffer.promote().is_err());
    // A pool that has room is as good as an address range.
    let other = Lab::wide();
    let blocks = [Reservation { len: 0x8000, page_size: PageSize::Base }];
    let pool = other.allocator().reserve(&blocks).unwrap();
    let mut scattered = other
        .place(&Request::new(len, BOTH).placement(Placement::ScatterGather).pool(&pool))
        .unwrap();
    Pattern::new(4).fill(&mut scattered, 0, len, 0).unwrap();
    other.table.refuse_after(0, libc::ENOSPC);
    scattered.promote().unwrap();
    other.table.accept();
    assert_eq!(winner(scattered.report()), Some(Strategy::Pool));
    assert_eq!(
        *cause(scattered.report(), Strategy::Remap),
        Cause::Mappings { needed: 1, available: 0 }
    );
    Pattern::new(4).check(&scattered, 0, len, 0).unwrap().unwrap();
    other.verify(&mut scattered);
    assert_eq!(other.space.usage().mappings, 1, "only the pool's");
}

#[test]
fn a_former_range_that_stays_mapped_keeps_the_memory() {
    let lab = Lab::wide();
    let scattered = Request::new(3 * 4096, BOTH).placement(Placement::ScatterGather);
    let mut buffer = lab.place(&scattered).unwrap();
    lab.table.stick(buffer.segments()[2].iova.0);
    buffer.promote().unwrap();
    lab.verify(&mut buffer);
    let address = buffer.address();
    drop(buffer);
    assert_eq!(lab.table.mappings(), 1, "the one that is stuck");
    assert!(super::limits::is_mapped(address), "its memory is never freed");
}
