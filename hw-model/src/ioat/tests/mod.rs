//! The model driven by hand: registers by their literal offsets, descriptors by their bytes.

mod chains;
mod errors;
mod faults;
mod interrupts;
mod layout;
mod random;
#[cfg(shuttle)]
mod schedules;
mod states;

use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use vfio_dma::backend::{Backend, DmaAccess, IrqKind, MapRequest, Region};

use super::{Fault, FaultPlan, IoatConfig, Stats};
use crate::embedded::{Attached, Embedded};

/// Where the rig's memory is in the device's view.
const BASE: u64 = 0x100_0000;
/// How much of it there is.
const SIZE: usize = 8 << 20;
/// The completion word of channel 0; each further channel's is 64 bytes on.
const WORD: u64 = BASE;
/// The first descriptors.
const RING: u64 = BASE + 0x1_0000;
/// Data to copy from, and to.
const SOURCE: u64 = BASE + 0x10_0000;
const TARGET: u64 = BASE + 0x40_0000;

// Control bits.
const INT: u32 = 1 << 0;
const DONE: u32 = 1 << 3;
const FENCE: u32 = 1 << 4;
const NULL: u32 = 1 << 5;
const FILL: u32 = 1 << 24;

// States in bits 2:0.
const ACTIVE: u64 = 0;
const IDLE: u64 = 1;
const SUSPENDED: u64 = 2;
const HALTED: u64 = 3;
const ARMED: u64 = 4;

/// Memory that is mapped for the device, reached by volatile accesses only.
struct TestMemory(NonNull<u8>);

// SAFETY: the memory belongs to the memory until it is dropped, and is only reached by volatile
// or atomic accesses.
unsafe impl Send for TestMemory {}
// SAFETY: as above.
unsafe impl Sync for TestMemory {}

impl TestMemory {
    fn new() -> TestMemory {
        let size = NonZeroUsize::new(SIZE).unwrap();
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new private mapping at an address of the kernel's choice.
        let memory = unsafe { mmap_anonymous(None, size, protection, MapFlags::MAP_PRIVATE) };
        TestMemory(memory.unwrap().cast())
    }

    fn at(&self, iova: u64, len: usize) -> *mut u8 {
        let offset = (iova - BASE) as usize;
        assert!(offset + len <= SIZE);
        // SAFETY: inside of the mapping, as was checked.
        unsafe { self.0.as_ptr().add(offset) }
    }
}

impl Drop for TestMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping is the memory's, and the device no longer has it: the rig drops
        // the model first.
        unsafe { munmap(self.0.cast(), SIZE) }.unwrap();
    }
}

/// A model, memory for it, and as much of a driver as a test needs.
struct Rig {
    device: Attached,
    model: Arc<Embedded>,
    memory: TestMemory,
}

impl Rig {
    /// A bus master with memory mapped, every channel's completion address set.
    fn new(config: IoatConfig) -> Rig {
        let _ = env_logger::builder().is_test(true).try_init();
        let channels = config.channels;
        let model = Embedded::new(config).unwrap();
        let rig = Rig { device: model.attach().unwrap(), model, memory: TestMemory::new() };
        let request = MapRequest {
            iova: BASE,
            host: rig.memory.0,
            len: SIZE,
            access: DmaAccess::ReadWrite,
            file: None,
        };
        // SAFETY: the memory outlives the model's use of it: fields are dropped in order, and
        // the model's last references are the rig's.
        unsafe { rig.model.iommu().map(&request) }.unwrap();
        rig.bus_master(true);
        for channel in 0..channels {
            rig.set_up(channel);
        }
        rig
    }

    fn one() -> Rig {
        Rig::new(IoatConfig::default())
    }

    fn with_faults(text: &str) -> Rig {
        Rig::new(IoatConfig { faults: text.parse().unwrap(), ..IoatConfig::default() })
    }

    fn set_up(&self, channel: u8) {
        let word = WORD + 64 * u64::from(channel);
        self.write(Self::reg(channel, 0x18), 4, word & 0xffff_ffff);
        self.write(Self::reg(channel, 0x1c), 4, word >> 32);
        self.write(Self::reg(channel, 0x00), 2, 0x1d);
    }

    fn bus_master(&self, on: bool) {
        let command: u16 = if on { 0x0006 } else { 0x0002 };
        self.device.region_write(Region::Config, 0x04, &command.to_le_bytes()).unwrap();
    }

    fn reg(channel: u8, offset: u64) -> u64 {
        0x80 * (u64::from(channel) + 1) + offset
    }

    fn read(&self, offset: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.device.region_read(Region::Bar(0), offset, &mut data[..len]).unwrap();
        u64::from_le_bytes(data)
    }

    fn write(&self, offset: u64, len: usize, value: u64) {
        self.device.region_write(Region::Bar(0), offset, &value.to_le_bytes()[..len]).unwrap();
    }

    fn config(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.device.region_read(Region::Config, offset, &mut data).unwrap();
        u32::from_le_bytes(data)
    }

    fn set_config(&self, offset: u64, value: u32) {
        self.device.region_write(Region::Config, offset, &value.to_le_bytes()).unwrap();
    }

    fn stats(&self) -> Stats {
        self.model.function().stats()
    }

    fn inject(&self, plan: FaultPlan) {
        self.model.function().inject(plan);
    }

    // Memory.

    fn put(&self, iova: u64, bytes: &[u8]) {
        for (n, &byte) in bytes.iter().enumerate() {
            let at = self.memory.at(iova + n as u64, 1);
            // SAFETY: inside of the mapping, and the memory is only accessed volatilely.
            unsafe { at.write_volatile(byte) };
        }
    }

    fn get(&self, iova: u64, len: usize) -> Vec<u8> {
        let byte = |n| {
            let at = self.memory.at(iova + n as u64, 1);
            // SAFETY: inside of the mapping, and the memory is only accessed volatilely.
            unsafe { at.read_volatile() }
        };
        (0..len).map(byte).collect()
    }

    fn word(&self, iova: u64) -> &AtomicU64 {
        assert!(iova.is_multiple_of(8));
        // SAFETY: aligned, inside of the mapping, and the device stores such words at once.
        unsafe { AtomicU64::from_ptr(self.memory.at(iova, 8).cast()) }
    }

    /// The completion word of channel 0.
    fn completion(&self) -> u64 {
        self.word(WORD).load(Ordering::Acquire)
    }

    fn clear_completion(&self) {
        self.word(WORD).store(0, Ordering::Release);
    }

    /// Fills `len` bytes from SOURCE on with a pattern that depends on the address.
    fn pattern(&self, len: usize) -> Vec<u8> {
        let bytes: Vec<u8> = (0..len).map(|n| (n ^ n >> 8 ^ n >> 16) as u8).collect();
        self.put(SOURCE, &bytes);
        bytes
    }

    #[allow(clippy::too_many_arguments)]
    fn descriptor(&self, at: u64, size: u32, control: u32, source: u64, target: u64, next: u64) {
        let mut bytes = [0; 64];
        bytes[0..4].copy_from_slice(&size.to_le_bytes());
        bytes[4..8].copy_from_slice(&control.to_le_bytes());
        bytes[8..16].copy_from_slice(&source.to_le_bytes());
        bytes[16..24].copy_from_slice(&target.to_le_bytes());
        bytes[24..32].copy_from_slice(&next.to_le_bytes());
        self.put(at, &bytes);
    }

    /// A closed ring of null descriptors that each write the completion word.
    fn null_ring(&self, at: u64, count: u64) {
        for n in 0..count {
            self.descriptor(at + 64 * n, 1, NULL | DONE, 0, 0, at + 64 * ((n + 1) % count));
        }
    }

    // Channel 0.

    fn status(&self) -> u64 {
        self.read(0x88, 8)
    }

    fn state(&self) -> u64 {
        self.status() & 7
    }

    fn errors(&self) -> u64 {
        self.read(0xa8, 4)
    }

    fn arm(&self, chain: u64) {
        self.write(0x90, 4, chain & 0xffff_ffff);
        self.write(0x94, 4, chain >> 32);
    }

    fn ring(&self, count: u16) {
        self.write(0x86, 2, count.into());
    }

    fn suspend(&self) {
        self.write(0x84, 1, 0x04);
    }

    fn reset(&self) {
        self.write(0x84, 1, 0x20);
        wait("the reset ends", || self.read(0x84, 1) & 0x20 == 0);
        assert_eq!(self.state(), HALTED);
    }

    /// What a driver does after an error.
    fn recover(&self) {
        self.write(0xa8, 4, self.errors());
        self.set_config(0x180, self.config(0x180));
        self.reset();
        self.clear_completion();
    }

    /// Runs `count` descriptors from `chain` on, until the last has written its word.
    fn run(&self, chain: u64, count: u16, last: u64) {
        self.arm(chain);
        self.ring(count);
        wait("the chain is done", || self.completion() == last | IDLE);
    }

    /// Runs one null descriptor, which shows that the channel works.
    fn works(&self) {
        self.null_ring(RING + 0x8000, 1);
        self.run(RING + 0x8000, 1, RING + 0x8000);
        assert_eq!(self.errors(), 0);
    }

    /// Runs descriptors until the channel has halted with exactly these errors; the
    /// completion word then says so with the address of the last good one.
    fn halts(&self, count: u16, errors: u64, last: u64) {
        self.ring(count);
        wait("the channel halts", || self.state() == HALTED);
        assert_eq!(self.errors(), errors);
        assert_eq!(self.config(0x180), errors as u32);
        assert_eq!(self.status() & !0x3f, last);
        assert_eq!(self.completion() & !0x18, last | HALTED);
    }

    fn connect(&self, kind: IrqKind, count: usize) -> Vec<EventFd> {
        let event = || EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        let events: Vec<_> = (0..count).map(|_| event()).collect();
        let fds: Vec<_> = events.iter().map(AsFd::as_fd).collect();
        self.device.irq_enable(kind, &fds).unwrap();
        events
    }
}

/// Waits until something holds, for half a minute at most: sanitizers are slow.
#[track_caller]
fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < until, "timed out waiting until {what}");
        std::thread::yield_now();
    }
}

/// Lets some time pass in which nothing should happen.
fn settle() {
    std::thread::sleep(Duration::from_millis(20));
}
