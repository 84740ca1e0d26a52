//! The device's mask, mappings, the limit on locked memory, and refusals half-way.

use super::*;
use crate::dma::Iova;
use crate::dma::LimitExceeded;

#[test]
fn a_mask_is_kept_to_and_is_a_reason() {
    let lab = Lab::with(vec![0x1000..=0xffff, 0x100_0000..=0x1fff_ffff], |_| {}, None);

    let request = Request::new(0x1_4000, BOTH);
    // Below the first address that can be mapped.
    let none = report(lab.place(&request.clone().address_mask(0xfff)));
    for attempt in none.attempts.iter().filter(|attempt| attempt.tries > 0) {
        let reason = none.reason(attempt.strategy).unwrap();
        assert_eq!(
            reason.cause,
            Cause::AddressMask { mask: 0xfff, lowest: Some(0x1000) },
            "{reason}"
        );
        assert_eq!(reason.set_by().as_deref(), Some("the device's address bits"));
    }
    assert!(none.attempts.len() > 4);
    // The mask is why contiguous memory falls through: a run of this length lies above it.
    let low = Request { least_block: 4096, ..request.clone().address_mask(0x100_8fff) };
    let mut buffer = lab.place(&low).unwrap();
    lab.verify(&mut buffer);
    let expected = Cause::IovaRun {
        needed: 0x1_4000,
        align: 4096,
        mask: 0x100_8fff,
        free: 0x1_8000,
        longest: 0xf000,
    };
    assert_eq!(*cause(buffer.report(), CONTIGUOUS), expected);
    assert_eq!(winner(buffer.report()), Some(Strategy::SmallerBlocks));
    assert!(buffer.segments().iter().all(|s| s.iova.0 + s.len as u64 <= 0x100_9000));
    let wide = lab.place(&request).unwrap();
    assert_eq!(winner(wide.report()), Some(CONTIGUOUS));
}

#[test]
fn alignment_holds_for_the_first_byte_or_is_the_reason() {
    let lab = Lab::with(vec![0x11_0000..=0x1f_ffff, 0x31_0000..=0x31_3fff], |_| {}, None);

    let request = Request::new(0x2000, BOTH).alignment(0x4_0000);
    let buffer = lab.place(&request).unwrap();
    assert_eq!(buffer.segments()[0].iova, Iova(0x1c_0000));
    drop(buffer);
    let order = [CONTIGUOUS, Strategy::SmallerBlocks, Strategy::ScatterGather];
    let request = Request::new(0x2000, BOTH).alignment(0x40_0000).order(order);
    let report = report(lab.place(&request));
    assert!(matches!(cause(&report, CONTIGUOUS), Cause::IovaRun { align: 0x40_0000, .. }));
    assert!(cause(&report, Strategy::ScatterGather) != &Cause::NoPool, "{report}");
    assert_eq!(winner(&report), None);
    assert!(lab.is_empty());
}

#[test]
fn the_number_of_mappings_is_a_reason_of_its_own() {
    let lab = Lab::with(vec![0x1000..=0xffff_ffff], |_| {}, Some(5));
    let scattered =
        |pages: usize| Request::new(pages * 4096, BOTH).placement(Placement::ScatterGather);
    let held = lab.place(&scattered(3)).unwrap();
    // Known before the first call is made.
    let calls = lab.space.usage().map_calls;
    let report = report(lab.place(&scattered(3)));
    let reason = report.reason(Strategy::ScatterGather).unwrap();
    assert_eq!(reason.cause, Cause::Mappings { needed: 3, available: 2 });
    assert_eq!((reason.name(), reason.limit()), ("mappings", Some(2)));
    assert!(reason.set_by().unwrap().ends_with("dma_entry_limit"));
    assert_eq!(lab.space.usage().map_calls, calls);
    // Told by the refusal of a single call.
    let more = lab.place(&scattered(2)).unwrap();
    let none = super::report(lab.place(&Request::new(1, BOTH)));
    assert_eq!(*cause(&none, CONTIGUOUS), Cause::Mappings { needed: 1, available: 0 });
    // Contiguous memory is one mapping, however many pages: Auto gets it.
    drop(more);
    let mut one = lab.place(&Request::new(300 * 4096, BOTH)).unwrap();
    lab.verify(&mut one);
    drop((held, one));
    assert!(lab.is_empty());
}

#[test]
fn a_refusal_half_way_leaves_nothing_mapped() {
    let lab = Lab::wide();
    for succeed in 0..4 {
        lab.table.refuse_after(succeed, libc::EFAULT);
        let request = Request::new(5 * 4096, BOTH).placement(Placement::ScatterGather);
        let report = report(lab.place(&request));
        let Cause::Other(text) = cause(&report, Strategy::ScatterGather) else {
            panic!("{report}");
        };
        assert!(text.contains("4096 bytes at IOVA"), "{text}");
        assert!(lab.is_empty(), "after {succeed} calls that succeeded");
    }
    lab.table.accept();
    assert_eq!(lab.space.usage().map_calls, 1 + 2 + 3 + 4);
    lab.verify(&mut lab.place(&Request::new(5, BOTH)).unwrap());
}

/// Whether this process has something mapped at the address.
pub(super) fn is_mapped(address: usize) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().any(|line| {
        let (start, rest) = line.split_once('-').unwrap();
        let end = rest.split(' ').next().unwrap();
        let hex = |text| usize::from_str_radix(text, 16).unwrap();
        (hex(start)..hex(end)).contains(&address)
    })
}

#[test]
fn memory_that_cannot_be_unmapped_is_never_freed() {
    let lab = Lab::wide();
    let request = Request::new(3 * 4096, BOTH).placement(Placement::ScatterGather);
    let buffer = lab.place(&request).unwrap();
    let (iova, address) = (buffer.segments()[1].iova, buffer.address());
    lab.table.stick(iova.0);
    assert!(buffer.release().is_err());
    assert!(is_mapped(address), "the device may still write there");
    assert_eq!(lab.table.mappings(), 1, "the other pieces are unmapped");
    assert_eq!(lab.space.usage().mappings, 1);
    assert_eq!(lab.space.iovas().allocated(), 1, "its address is never handed out again");
    // The same when the refusal comes while a map that failed half-way is undone.
    let buffer = lab.place(&request).unwrap();
    let next = buffer.segments()[0].iova;
    buffer.release().unwrap();
    lab.table.stick(next.0);
    lab.table.refuse_after(1, libc::ENOMEM);
    assert!(lab.place(&request).is_err());
    assert_eq!(lab.space.iovas().allocated(), 2);
    lab.table.accept();
    let mut buffer = lab.place(&request).unwrap();
    lab.verify(&mut buffer);
    assert!(buffer.segments().iter().all(|segment| segment.iova != next && segment.iova != iova));
}

/// Runs one test of this program again, in a child without privileges and with this limit
/// on locked memory, and returns what it printed.
fn as_nobody(test: &str, memlock: u64) -> (bool, String) {
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new("/proc/self/exe");
    command.args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"]);
    if nix::unistd::geteuid().is_root() {
        command.uid(65_534).gid(65_534);
    }
    // SAFETY: setrlimit is one system call, which a child may make between fork and exec.
    unsafe {
        command.pre_exec(move || {
            use nix::sys::resource::{Resource, setrlimit};
            Ok(setrlimit(Resource::RLIMIT_MEMLOCK, memlock, memlock)?)
        });
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success(), text + &String::from_utf8_lossy(&output.stderr))
}

#[test]
fn the_lock_limit_and_hidden_frames_are_reasons() {
    const CHILD: &str = "dma::placement::tests::limits::child_without_privileges";
    for (memlock, expected) in [(65_536, "memory-lock"), (1 << 20, "frames")] {
        let (passed, text) = as_nobody(CHILD, memlock);
        assert!(passed, "{text}");
        assert!(text.contains(&format!("reason: {expected}")), "{memlock}: {text}");
    }
}

#[test]
#[ignore = "a part of the_lock_limit_and_hidden_frames_are_reasons, run in a child"]
fn child_without_privileges() {
    let lab = Lab::physical();
    let order = [
        Strategy::PhysicalContiguous(PageSize::Base),
        Strategy::SmallerBlocks,
        Strategy::ScatterGather,
    ];
    let report = report(lab.place(&Request::new(256 << 10, BOTH).order(order)));
    assert_eq!(winner(&report), None);
    let (limit, _) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_MEMLOCK).unwrap();
    for strategy in order {
        let reason = report.reason(strategy).unwrap();
        match &reason.cause {
            Cause::MemoryLock { limit: found, .. } => {
                assert_eq!(*found, limit);
                assert!(reason.to_string().contains("ulimit -l"), "{reason}");
            }
            Cause::Frames(error) => assert!(error.to_string().contains("CAP_SYS_ADMIN"), "{error}"),
            other => panic!("{other:?}"),
        }
        println!("reason: {}", reason.name());
    }
}

#[test]
fn what_the_device_cannot_be_given_is_not_placed() {
    let lab = Lab::fragmented(&[2, 2, 2, 2]);
    let limits = |max_segments| DmaLimits { max_segments, ..DmaLimits::default() };
    let place = |limits: &DmaLimits, len| {
        let request = Request { least_block: 4096, ..Request::new(len, BOTH) };
        super::super::place(&lab.device, &lab.space, limits, &request)
    };
    assert_eq!(place(&limits(4), 8 * 4096).unwrap().segments().len(), 4);
    let none = report(place(&limits(3), 8 * 4096));
    let too_many = LimitExceeded::TooManySegments { needed: 4, limit: 3, len: 8 * 4096 };
    assert_eq!(*cause(&none, Strategy::ScatterGather), Cause::Limit(too_many));
    assert!(none.to_string().contains("the device takes 3"), "{none}");
    // Cut as the device demands, a contiguous buffer has several.
    let short = DmaLimits { max_segment: 4096, ..limits(1) };
    assert!(place(&short, 2 * 4096).is_err());
    assert!(place(&short, 4096).is_ok());
    let gaps = DmaLimits { virt_boundary: Some(1 << 20), ..DmaLimits::default() };
    assert!(place(&gaps, 8 * 4096).is_err());
    assert!(lab.is_empty());
}
