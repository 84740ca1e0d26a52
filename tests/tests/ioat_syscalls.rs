//! The I/OAT driver makes no system call for a transfer in the steady state.
//!
//! The kernel itself says so: with syscall user dispatch (Linux 5.11, the kernel's
//! Documentation/admin-guide/syscall-user-dispatch.rst) it gives every system call of a
//! thread to a signal handler, for as long as a byte in memory says "block".
//!
//! The byte says "allow" while the driver is inside of the device: the embedded model's
//! doorbell is a function call, in which the model takes a lock and, when its engine sleeps,
//! wakes it with a futex. That is the hardware's part; a real device's doorbell is a store to
//! a mapped BAR. Everything else that the submitting thread does is the driver's.

#![cfg(target_arch = "x86_64")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, and so do its helpers")]

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr::from_ref;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use vfio_dma::backend::{
    Backend, Iommu, IrqKind, MappedRegion, Region, RegionInfo, Result as BackendResult,
};
use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::ioat::{Batch, Channel, Config, Ioat, WaitMode, WhenFull};
use vfio_dma::dma::{Buffer, Direction, Pattern, Placement, Request, SgTable, SlotPool};
use vfio_dma::queue::SlotPair;
use vfio_dma_model::embedded::{Attached, Embedded};
use vfio_dma_model::ioat::IoatConfig;

/// `linux/prctl.h`, `PR_SET_SYSCALL_USER_DISPATCH`.
const SET_DISPATCH: i32 = 59;
const DISPATCH_OFF: u64 = 0;
const DISPATCH_ON: u64 = 1;
/// `SYSCALL_DISPATCH_FILTER_ALLOW` and `_BLOCK`, in the same file.
const ALLOW: u8 = 0;
const BLOCK: u8 = 1;

/// What the kernel reads at each system call of the watched thread.
static SELECTOR: AtomicU8 = AtomicU8::new(ALLOW);
/// System calls that were caught, and the number of the first one.
static CAUGHT: AtomicU64 = AtomicU64::new(0);
static FIRST: AtomicI32 = AtomicI32::new(-1);
/// Calls into the device.
static DEVICE: AtomicU64 = AtomicU64::new(0);

/// Notes a system call, and lets this and those that follow pass: the handler's own return
/// is one.
extern "C" fn caught(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    /// The start of `siginfo_t` for SIGSYS (`asm-generic/siginfo.h`, `_sigsys`).
    #[repr(C)]
    struct Sigsys {
        signo_errno_code: [i32; 3],
        call_address: u64,
        number: i32,
    }
    SELECTOR.store(ALLOW, Ordering::Relaxed);
    // SAFETY: the kernel gives a SIGSYS handler a valid siginfo_t of this layout.
    let number = unsafe { (*info.cast::<Sigsys>()).number };
    if CAUGHT.fetch_add(1, Ordering::Relaxed) == 0 {
        FIRST.store(number, Ordering::Relaxed);
    }
}

fn dispatch(how: u64) {
    let selector = if how == DISPATCH_ON { from_ref(&SELECTOR) } else { std::ptr::null() };
    // SAFETY: the selector is a static, which the kernel only reads; no range is exempt.
    let result = unsafe { libc::prctl(SET_DISPATCH, how, 0u64, 0u64, selector) };
    let error = std::io::Error::last_os_error();
    assert_eq!(result, 0, "syscall user dispatch (Linux 5.11): {error}");
}

/// Runs `body` in this thread without system calls; returns how many it made all the same,
/// up to one, and which.
fn watch(body: impl FnOnce()) -> (u64, i32) {
    CAUGHT.store(0, Ordering::Relaxed);
    FIRST.store(-1, Ordering::Relaxed);
    dispatch(DISPATCH_ON);
    SELECTOR.store(BLOCK, Ordering::Relaxed);
    body();
    SELECTOR.store(ALLOW, Ordering::Relaxed);
    dispatch(DISPATCH_OFF);
    (CAUGHT.load(Ordering::Relaxed), FIRST.load(Ordering::Relaxed))
}

/// The embedded model, with what happens inside of it left out of the watch.
#[derive(Debug)]
struct Unwatched(Attached);

impl Unwatched {
    fn inside<T>(&self, body: impl FnOnce(&Attached) -> T) -> T {
        DEVICE.fetch_add(1, Ordering::Relaxed);
        let before = SELECTOR.swap(ALLOW, Ordering::Relaxed);
        let result = body(&self.0);
        SELECTOR.store(before, Ordering::Relaxed);
        result
    }
}

impl Backend for Unwatched {
    fn location(&self) -> String {
        self.0.location()
    }
    fn region_info(&self, region: Region) -> BackendResult<RegionInfo> {
        self.0.region_info(region)
    }
    fn region_read(&self, region: Region, offset: u64, data: &mut [u8]) -> BackendResult<()> {
        self.inside(|model| model.region_read(region, offset, data))
    }
    fn region_write(&self, region: Region, offset: u64, data: &[u8]) -> BackendResult<()> {
        self.inside(|model| model.region_write(region, offset, data))
    }
    fn map_region(&self, region: Region, area: Range<u64>) -> BackendResult<Box<dyn MappedRegion>> {
        self.0.map_region(region, area)
    }
    fn irq_count(&self, kind: IrqKind) -> BackendResult<u32> {
        self.0.irq_count(kind)
    }
    fn irq_enable(&self, kind: IrqKind, events: &[BorrowedFd<'_>]) -> BackendResult<()> {
        self.0.irq_enable(kind, events)
    }
    fn irq_disable(&self, kind: IrqKind) -> BackendResult<()> {
        self.0.irq_disable(kind)
    }
    fn intx_set_masked(&self, masked: bool) -> BackendResult<()> {
        self.0.intx_set_masked(masked)
    }
    fn reset(&self) -> BackendResult<()> {
        self.0.reset()
    }
    fn iommu(&self) -> &Arc<dyn Iommu> {
        self.0.iommu()
    }
}

/// Bytes of each transfer: 16 pages.
const LEN: usize = 16 << 12;

/// How long one round may take.
const LIMIT: Duration = Duration::from_secs(20);

fn place(ioat: &Ioat, placement: Placement, direction: Direction) -> Buffer {
    let buffer = ioat.allocate(&Request::new(LEN, direction).placement(placement)).unwrap();
    let segments = if placement == Placement::ScatterGather { LEN >> 12 } else { 1 };
    assert_eq!(buffer.segments().len(), segments);
    buffer
}

/// What one round works with; nothing of it is made anew while it runs.
struct Rounds {
    channel: Channel,
    pairs: Vec<(SgTable, SgTable)>,
    tokens: Vec<vfio_dma::devices::ioat::Token>,
}

impl Rounds {
    /// Submits every pair, rings once, polls until all ended, and takes them back.
    fn round(&mut self) {
        let Rounds { channel, pairs, tokens } = self;
        for (source, target) in pairs.drain(..) {
            tokens.push(channel.copy(source, target, WhenFull::Return).unwrap());
        }
        channel.issue().unwrap();
        // The clock is read through the vDSO, which is not a system call.
        let begin = Instant::now();
        while channel.in_flight() > 0 {
            channel.poll().unwrap();
            assert!(begin.elapsed() < LIMIT);
        }
        for token in tokens.drain(..) {
            let done = channel.take(token).unwrap().unwrap().into_result().unwrap();
            pairs.push((done.source.unwrap(), done.target));
        }
    }
}

/// 200 batches of 32 copies between slots.
fn slots_make_none() {
    const SLOT: usize = 256;
    let model = Embedded::new(IoatConfig::default()).unwrap();
    let device = Device::open(Unwatched(model.attach().unwrap())).unwrap();
    let config = Config { wait: WaitMode::Poll, ..Config::default() };
    let ioat = Ioat::probe(device, config).unwrap();
    let mut channel = ioat.channel(0).unwrap();
    let pool = |direction| {
        SlotPool::new(ioat.allocate(&Request::new(32 * SLOT, direction)).unwrap(), SLOT).unwrap()
    };
    let ((from, sources), (to, targets)) = (pool(Direction::ToDevice), pool(Direction::FromDevice));
    let pair = |(source, target)| SlotPair { source: Some(source), target: Some(target) };
    let mut pairs: Vec<_> = sources.into_iter().zip(targets).map(pair).collect();
    let mut round = |one_by_one: bool| {
        if one_by_one {
            let all = |batch: &mut Batch<'_>| {
                pairs.drain(..).for_each(|slots| batch.copy_pair(slots, SLOT).unwrap());
            };
            channel.batch(&from, &to, all).unwrap();
        } else {
            channel.copy_pairs(&from, &to, &mut pairs, SLOT).unwrap();
        }
        let begin = Instant::now();
        while pairs.len() < 32 {
            assert_eq!(channel.reap(&mut pairs).unwrap().failed, 0);
            assert!(begin.elapsed() < LIMIT);
        }
    };
    (0..20).for_each(|n| round(n % 2 == 0));
    let doorbells = DEVICE.load(Ordering::Relaxed);
    let caught = watch(|| (0..200).for_each(|n| round(n % 2 == 0)));
    assert_eq!(caught, (0, -1), "slots: a system call, and its number");
    assert_eq!(DEVICE.load(Ordering::Relaxed) - doorbells, 200);
}

#[test]
fn a_transfer_makes_no_system_call() {
    let flags = SaFlags::SA_SIGINFO;
    let handler = SigHandler::SigAction(caught);
    let action = SigAction::new(handler, flags, SigSet::empty());
    // SAFETY: the handler only touches atomics and what the kernel hands it.
    unsafe { sigaction(Signal::SIGSYS, &action) }.unwrap();

    // The watch sees: a deliberate system call, and one of the standard library's own.
    // SAFETY: getppid has no arguments and cannot fail.
    let raw = watch(|| unsafe {
        libc::getppid();
    });
    assert_eq!(raw, (1, libc::SYS_getppid as i32));
    let yields = watch(std::thread::yield_now);
    assert_eq!(yields, (1, libc::SYS_sched_yield as i32));
    let clock = watch(|| {
        std::hint::black_box(Instant::now());
    });
    assert_eq!(clock, (0, -1), "reading the clock is a system call on this machine");

    slots_make_none();

    for placement in [Placement::Contiguous, Placement::ScatterGather] {
        for batch in [1, 32] {
            let context = format!("{placement:?}, {batch} to a batch");
            let model = Embedded::new(IoatConfig::default()).unwrap();
            let device = Device::open(Unwatched(model.attach().unwrap())).unwrap();
            let config = Config { wait: WaitMode::Poll, ..Config::default() };
            let ioat = Ioat::probe(device, config).unwrap();
            let pattern = Pattern::new(batch);
            let pairs = (0..batch).map(|n| {
                let mut source = place(&ioat, placement, Direction::ToDevice);
                let target = place(&ioat, placement, Direction::FromDevice);
                pattern.fill(&mut source, 0, LEN, n << 32).unwrap();
                (source.into(), target.into())
            });
            let mut rounds = Rounds {
                channel: ioat.channel(0).unwrap(),
                pairs: pairs.collect(),
                tokens: Vec::with_capacity(batch as usize),
            };
            (0..10).for_each(|_| rounds.round());
            let doorbells = DEVICE.load(Ordering::Relaxed);
            let before = model.function().stats();

            let caught = watch(|| (0..200).for_each(|_| rounds.round()));

            assert_eq!(caught, (0, -1), "{context}: a system call, and its number");
            let after = model.function().stats();
            // One call into the device for each batch: its doorbell.
            assert_eq!(DEVICE.load(Ordering::Relaxed) - doorbells, 200, "{context}");
            assert_eq!(after.doorbells - before.doorbells, 200, "{context}");
            let wakeups = after.wakeups - before.wakeups;
            println!("{context}: {wakeups} of 200 doorbells found the model's engine asleep");
            let segments = if placement == Placement::ScatterGather { LEN as u64 >> 12 } else { 1 };
            // A marker for each doorbell, and behind each quarter of a ring of 1024.
            let all = batch * segments + (batch * segments).div_ceil(255);
            assert_eq!(after.descriptors - before.descriptors, 200 * all, "{context}");
            for (n, (_, target)) in rounds.pairs.iter().enumerate() {
                let target = &target.buffers()[0];
                pattern.check(target, 0, LEN, (n as u64) << 32).unwrap().unwrap();
            }
        }
    }
}
