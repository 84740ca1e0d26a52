//! What the driver costs in the steady state: no allocation, no system call, one doorbell for a
//! batch, and how many instructions.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr::from_ref;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use vfio_dma::devices::nvme::{
    DataMethod, IoQueue, Namespace, Nvme, QueueConfig, Stats, Token, WhenFull,
};
use vfio_dma::dma::{Direction, Placement, Request, SgTable};
use vfio_dma::queue::WaitMode;
use vfio_dma_tests::{Machine, address};
use vfio_dma_tools::vm::{Accel, Image, NvmeDrive, VmConfig};

use super::{initial, nvme_at, only};
use crate::support::open;

/// Reads of a batch.
const BATCH: usize = 32;
/// Where the guest tells the host its figures: the last block.
const FIGURES: u64 = (4 << 20) - 4096;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, with a count of a thread's allocations.
pub(crate) struct Counting;

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that is ending has no count any more.
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the allocator's contract.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// `linux/prctl.h`, `PR_SET_SYSCALL_USER_DISPATCH`; its filter's values are `ALLOW` and `BLOCK`.
const SET_DISPATCH: i32 = 59;
const ALLOW: u8 = 0;
const BLOCK: u8 = 1;
static SELECTOR: AtomicU8 = AtomicU8::new(ALLOW);
static CAUGHT: AtomicU64 = AtomicU64::new(0);

/// Notes a system call, and lets it and those that follow pass.
extern "C" fn caught(_: i32) {
    SELECTOR.store(ALLOW, Ordering::Relaxed);
    CAUGHT.fetch_add(1, Ordering::Relaxed);
}

/// Runs `body`; how many allocations and system calls it made in this thread, of the latter
/// up to one.
fn watch(body: impl FnOnce()) -> (u64, u64) {
    let dispatch = |on: u64| {
        let selector = if on == 1 { from_ref(&SELECTOR) } else { std::ptr::null() };
        // SAFETY: the selector is a static, which the kernel only reads; no range is exempt.
        let result = unsafe { libc::prctl(SET_DISPATCH, on, 0u64, 0u64, selector) };
        assert_eq!(result, 0, "syscall user dispatch (Linux 5.11)");
    };
    let action = SigAction::new(SigHandler::Handler(caught), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler only stores to atomics.
    unsafe { sigaction(Signal::SIGSYS, &action) }.unwrap();
    CAUGHT.store(0, Ordering::Relaxed);
    let before = ALLOCATIONS.get();
    dispatch(1);
    SELECTOR.store(BLOCK, Ordering::Relaxed);
    body();
    SELECTOR.store(ALLOW, Ordering::Relaxed);
    dispatch(0);
    (ALLOCATIONS.get() - before, CAUGHT.load(Ordering::Relaxed))
}

/// Lists that are read into again and again.
struct Batch {
    tables: Vec<SgTable>,
    tokens: Vec<Token>,
    len: u64,
}

impl Batch {
    fn new(nvme: &Nvme, len: usize, placement: Placement) -> Batch {
        let table = |_| {
            let request = Request::new(len, Direction::FromDevice).placement(placement);
            SgTable::from(nvme.allocate(&request).unwrap())
        };
        let tables = (0..BATCH).map(table).collect();
        Batch { tables, tokens: Vec::with_capacity(BATCH), len: len as u64 }
    }

    fn submit(&mut self, queue: &mut IoQueue, namespace: &Namespace) {
        for (n, table) in (0..).zip(self.tables.drain(..)) {
            let lba = n * self.len / 512;
            self.tokens.push(queue.read(namespace, lba, table, WhenFull::Return).unwrap());
        }
        queue.issue().unwrap();
    }

    fn reap(&mut self, queue: &mut IoQueue) {
        while queue.in_flight() > 0 {
            queue.poll().unwrap();
        }
        for token in self.tokens.drain(..) {
            let finished = queue.take(token).unwrap().unwrap();
            self.tables.push(finished.into_table().unwrap());
        }
    }
}

fn queue(nvme: &Nvme, method: DataMethod) -> IoQueue {
    nvme.queue(QueueConfig { size: 64, method, ..QueueConfig::default() }).unwrap()
}

/// The kinds of reads: a name, bytes, placement and method.
const READS: [(&str, usize, Placement, DataMethod); 4] = [
    ("4 KiB, one PRP", 4096, Placement::Contiguous, DataMethod::Prp),
    ("4 KiB, one SGL descriptor", 4096, Placement::Contiguous, DataMethod::Sgl),
    ("64 KiB, a PRP list of 15 pages", 65_536, Placement::ScatterGather, DataMethod::Prp),
    ("64 KiB, an SGL of 16 segments", 65_536, Placement::ScatterGather, DataMethod::Sgl),
];

pub(crate) fn a_read_allocates_nothing_and_calls_no_kernel() {
    let nvme = nvme_at(open(address(super::SMALL)), WaitMode::Poll);
    let namespace = only(&nvme);
    for (name, len, placement, method) in READS {
        let mut queue = queue(&nvme, method);
        let mut batch = Batch::new(&nvme, len, placement);
        batch.submit(&mut queue, &namespace);
        batch.reap(&mut queue);
        let (before, mapped) = (queue.stats(), nvme.space().usage());
        let made = watch(|| {
            for _ in 0..20 {
                batch.submit(&mut queue, &namespace);
                batch.reap(&mut queue);
            }
        });
        assert_eq!(made, (0, 0), "{name}: allocations and system calls");
        assert_eq!(nvme.space().usage(), mapped);
        let Stats { doorbells, commands, .. } = queue.stats();
        assert_eq!((doorbells - before.doorbells, commands - before.commands), (20, 640));
    }
    let (_, calls) = watch(std::thread::yield_now);
    assert_eq!(calls, 1, "system calls are seen");
    let (allocations, _) = watch(|| drop(std::hint::black_box(vec![1u8])));
    assert_eq!(allocations, 1, "and so are allocations");
}

/// A guest whose clock counts instructions: one each nanosecond.
pub(crate) fn counting() -> Machine {
    let image = Image::new(4 << 20, initial(super::SMALL)).unwrap();
    let (device, arguments) = NvmeDrive::new(image.path()).describe("d0");
    let mut qemu_args: Vec<std::ffi::OsString> = arguments.into();
    qemu_args.extend(["-icount".into(), "shift=0".into()]);
    let vm =
        VmConfig { devices: vec![device], accel: Accel::Tcg, qemu_args, ..VmConfig::default() };
    let verify = move || {
        let bytes = image.bytes().map_err(|error| error.to_string())?;
        // Where the case ended well, its figures stand in place of the pattern.
        let figures = bytes[FIGURES as usize..].split(|&byte| byte == 0).next();
        if let Some(text) = figures.and_then(|figures| std::str::from_utf8(figures).ok()) {
            eprint!("{text}");
        }
        Ok(())
    };
    Machine { vm, verify: Box::new(verify) }
}

/// Instructions for each read of a batch of 32: to submit it with its share of the doorbell,
/// and to take its completion and its result.
pub(crate) fn instructions_of_a_read_are_few() {
    let nvme = nvme_at(open(address(0)), WaitMode::Poll);
    let namespace = only(&nvme);
    let mut text = String::new();
    for (name, len, placement, method) in READS {
        let mut queue = queue(&nvme, method);
        let mut batch = Batch::new(&nvme, len, placement);
        let mut best = (u128::MAX, u128::MAX);
        for _ in 0..50 {
            let begin = Instant::now();
            batch.submit(&mut queue, &namespace);
            let submitted = begin.elapsed().as_nanos();
            // The device has time for all of them.
            std::thread::sleep(Duration::from_millis(5));
            let begin = Instant::now();
            batch.reap(&mut queue);
            let reaped = begin.elapsed().as_nanos();
            best = (best.0.min(submitted), best.1.min(reaped));
        }
        let [submission, completion] = [best.0, best.1].map(|all| all / BATCH as u128);
        text += &format!("{name}: {submission} to submit, {completion} to complete\n");
        // What an optimized build takes, and half as much again; others are not about cost.
        let pieces = len as u128 / 4096 - 1;
        let budget = if cfg!(debug_assertions) { 40_000 } else { 1900 + 240 * pieces };
        assert!(submission + completion < budget, "{text}");
    }
    let consent = vfio_dma::devices::nvme::Consent::new(&*nvme.info().serial, namespace.bytes());
    let mut queue = queue(&nvme, DataMethod::Auto);
    let right = queue.writable(&namespace, &consent, super::LIMIT).unwrap();
    let mut figures = nvme.allocate(&Request::new(4096, Direction::ToDevice)).unwrap();
    figures.write(0, text.as_bytes()).unwrap();
    let token = queue.write(&right, FIGURES / 512, figures.into(), WhenFull::Return);
    super::ended(&mut queue, token).into_result().unwrap();
}
