//! The PCI function in front of an endpoint: configuration space, interrupts, and its clock.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vfio_dma::backend::{IrqKind, Region};

use super::config::{EXPRESS, TlpConfig, TlpError};
use super::endpoint::{Endpoint, Event, Inbound, Limits, Outcome, Settings};
use super::error::Malformed;
use super::fault::TlpFault;
use super::packet::MAX_DATA;
use super::root::{Bus, MSI_WINDOW, RootComplex, host_write};
use super::stats::Stats;
use crate::fault::FaultPlan;
use crate::function::{Event as IrqEvent, PciFunction};
use crate::memory::DmaMap;
use crate::pci::{ConfigSpace, Interrupts, PowerState};
use crate::regs::rate::RateLimit;
use crate::regs::{LayoutError, RegisterId};
use crate::worker::Worker;

/// Cycles of one run: a register access waits for its end at most.
const RUN: u32 = 256;
/// Requests that the endpoint is handed at a time; the others wait here. Completions stay
/// behind requests that came before them, so that more would be latency.
const REQUESTS: u32 = 8;
/// Requests that wait until whoever writes registers waits too (posted credits of a host).
const BACKLOG: usize = 64;
/// Cycles without a sign of life while something waits: then the clock stops.
const STALLED: u64 = 1 << 20;
/// Bus 1, device 0, function 0.
const ENDPOINT_ID: u16 = 0x0100;

/// The endpoint, and who talks to it: one thread at a time.
struct Core<E> {
    endpoint: E,
    root: RootComplex,
    outcome: Outcome,
    /// What the endpoint is handed next.
    handed: Vec<Inbound>,
}

/// What register writes leave for the clock's thread.
#[derive(Debug, Default)]
struct Queue {
    requests: VecDeque<Vec<u32>>,
    awake: bool,
}

struct Shared<E> {
    config: TlpConfig,
    pci: ConfigSpace,
    device_control: RegisterId,
    bar0: RegisterId,
    interrupts: Interrupts,
    /// Vectors of MSI that a transport has connected.
    connected: AtomicU32,
    memory: DmaMap,
    core: Mutex<Core<E>>,
    /// Threads that wait for the core: the clock lets them go first.
    waiting: AtomicU32,
    clock: Worker<Queue>,
    gone: AtomicBool,
    host_writes: AtomicU64,
    log: RateLimit,
}

impl<E: Endpoint> Shared<E> {
    fn core(&self) -> MutexGuard<'_, Core<E>> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // The state is whole after each step; one that panicked is like one that hung.
        let core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        core
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    fn settings(&self) -> Settings {
        let control = self.pci.get(self.device_control);
        // Bits 7:5 and 14:12: 128 bytes, doubled; more than 4096 is reserved.
        let size = |shift: u32| 128u16 << (control >> shift & 7).min(5);
        Settings {
            id: ENDPOINT_ID,
            bus_master: self.pci.may_issue_requests(),
            max_payload: size(5).min(self.config.max_payload),
            max_read_request: size(12),
            msi_enabled: self.interrupts.connected(IrqKind::Msi) || self.pci.msi_enabled(),
            msi_address: *MSI_WINDOW.start(),
            msi_data: 0,
        }
    }

    /// Runs the endpoint once and carries out what it did. Returns whether it is idle.
    fn advance(&self, core: &mut Core<E>, cycles: u32) -> bool {
        if self.is_gone() {
            return true;
        }
        let waiting = core.outcome.requests;
        let more = {
            let mut queue = self.clock.lock();
            let room = REQUESTS.saturating_sub(waiting) as usize;
            let take = room.min(queue.requests.len());
            core.handed.extend(queue.requests.drain(..take).map(request));
            !queue.requests.is_empty()
        };
        core.handed.append(&mut core.root.answers);
        let limits = Limits {
            cycles,
            after_read: self.config.root.latency,
            requests_below: if more { REQUESTS / 2 } else { 0 },
            quiet: self.config.quiet,
            credits: self.config.root.credits,
        };
        let settings = self.settings();
        let Core { endpoint, root, outcome, handed, .. } = &mut *core;
        outcome.events.clear();
        if let Err(error) = endpoint.run(&settings, handed, &limits, outcome) {
            log::error!("the endpoint is gone: {error}");
            self.gone.store(true, Ordering::Release);
            return true;
        }
        root.stats.cycles = outcome.now;
        root.stats.active_until = outcome.now.saturating_sub(outcome.quiet.into());
        let bus = Bus {
            memory: &self.memory,
            is_master: settings.bus_master,
            max_payload: settings.max_payload.into(),
            max_read_request: settings.max_read_request.into(),
            log: &self.log,
            interrupt: &|vector| self.interrupt(vector),
        };
        for (cycle, event) in outcome.events.drain(..) {
            match event {
                Event::Tlp(words) => root.receive(cycle, &words, &bus),
                Event::Endless => {
                    root.malformed(Malformed::Endless { limit: MAX_DATA / 4 + 5 }, bus.log);
                }
                Event::Interrupt(vector) if bus.is_master => root.message(vector.into(), &bus),
                Event::Interrupt(_) => root.stats.not_bus_master += 1,
            }
        }
        if root.is_down {
            log::warn!("the link of the endpoint is down");
            self.gone.store(true, Ordering::Release);
            return true;
        }
        let still = outcome.requests == 0 && outcome.completions == 0 && !outcome.busy;
        if still && outcome.quiet >= self.config.quiet && root.answers.is_empty() && !more {
            return !root.release_held();
        }
        if u64::from(outcome.quiet) >= STALLED {
            self.log.warn(format_args!(
                "the endpoint takes nothing for {STALLED} cycles: {} requests and {} completions \
                 wait; its clock stops",
                outcome.requests, outcome.completions
            ));
            return true;
        }
        false
    }

    /// A message for a vector: those that nobody connected go to those that somebody did, as a
    /// core does that was given fewer vectors than it is capable of.
    fn interrupt(&self, vector: u32) {
        let connected = self.connected.load(Ordering::Acquire).max(1);
        self.interrupts.signal(IrqKind::Msi, vector % connected);
    }

    fn wake(&self) {
        let mut queue = self.clock.lock();
        queue.awake = true;
        self.clock.poke(&queue);
    }

    fn base(&self) -> u64 {
        self.pci.get(self.bar0) & !0xf
    }

    fn register_write(&self, offset: u64, data: &[u8]) {
        self.host_writes.fetch_add(1, Ordering::Relaxed);
        if let Some(meter) = &self.config.root.meter {
            meter.host_write(data.len() as u64);
        }
        let words = host_write(self.base() + offset, data);
        let mut queue = self.clock.lock();
        queue.requests.push_back(words);
        queue.awake = true;
        self.clock.poke(&queue);
        let full = queue.requests.len() >= BACKLOG;
        drop(queue);
        if full {
            let mut core = self.core();
            while self.clock.lock().requests.len() >= BACKLOG / 2 {
                if self.advance(&mut core, RUN) {
                    break;
                }
            }
            // An endpoint that takes nothing any more: a host's writes would wait for ever.
            let mut queue = self.clock.lock();
            if queue.requests.len() > 2 * BACKLOG {
                queue.requests.pop_back();
                drop(queue);
                self.log.warn(format_args!("the endpoint takes nothing: a register write is lost"));
            }
        }
    }

    fn register_read(&self, offset: u64, data: &mut [u8]) {
        let mut core = self.core();
        let words = core.root.host_read(self.base() + offset, data.len());
        self.clock.lock().requests.push_back(words);
        let end = core.outcome.now + u64::from(self.config.register_timeout);
        let answer = loop {
            self.advance(&mut core, RUN);
            if let Some(answer) = core.root.take_host_read() {
                break Some(answer);
            }
            if self.is_gone() || core.outcome.now >= end {
                core.root.give_up_host_read();
                break None;
            }
        };
        drop(core);
        match answer {
            Some(answer) => data.copy_from_slice(&answer),
            None => data.fill(0xff),
        }
        self.wake();
    }

    fn reset(&self) {
        let mut core = self.core();
        self.clock.lock().requests.clear();
        core.root.reset();
        core.handed.clear();
        (core.outcome.requests, core.outcome.completions) = (0, 0);
        core.root.stats.resets += 1;
        if let Err(error) = core.endpoint.reset() {
            log::error!("the endpoint is gone: {error}");
            self.gone.store(true, Ordering::Release);
        }
        self.pci.reset();
        self.interrupts.reset();
    }

    /// The clock's thread.
    fn run(&self) {
        let mut queue = self.clock.lock();
        while !queue.stop {
            if !queue.awake {
                queue = self.clock.sleep(queue, None);
                continue;
            }
            queue.awake = false;
            queue.busy = true;
            drop(queue);
            while self.waiting.load(Ordering::Relaxed) != 0 {
                std::thread::yield_now();
            }
            let idle = {
                let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
                self.advance(&mut core, RUN)
            };
            queue = self.clock.lock();
            self.clock.release(&mut queue);
            queue.awake |= !idle || (!queue.requests.is_empty() && !self.is_gone());
        }
    }
}

fn request(words: Vec<u32>) -> Inbound {
    Inbound { due: 0, is_completion: false, ends_read: false, words }
}

/// A PCI function whose transaction layer is an [`Endpoint`].
///
/// Dropping it stops its clock; it touches no memory and raises no interrupt after that.
pub struct TlpFunction<E: Endpoint + 'static> {
    shared: Arc<Shared<E>>,
    clock: Option<JoinHandle<()>>,
}

impl<E: Endpoint + 'static> TlpFunction<E> {
    /// A function in its power-on state; the endpoint is reset.
    ///
    /// # Errors
    ///
    /// Fails when the configuration is out of range, the endpoint fails, or a thread cannot be
    /// started.
    pub fn new(mut endpoint: E, config: TlpConfig) -> Result<Self, TlpError> {
        config.check()?;
        let pci = config.config_space()?;
        let find = |name, offset| pci.find(offset).ok_or(LayoutError::Place { name, offset });
        let device_control = find("Device Control", EXPRESS + 8)?;
        let bar0 = find("BAR", 0x10)?;
        endpoint.reset()?;
        let shared = Arc::new(Shared {
            device_control,
            bar0,
            interrupts: Interrupts::new(0, config.vectors.into(), 0),
            connected: AtomicU32::new(0),
            memory: DmaMap::new(),
            core: Mutex::new(Core {
                endpoint,
                root: RootComplex::new(config.root.clone()),
                outcome: Outcome::default(),
                handed: Vec::new(),
            }),
            waiting: AtomicU32::new(0),
            clock: Worker::new(Queue::default()),
            gone: AtomicBool::new(false),
            host_writes: AtomicU64::new(0),
            log: RateLimit::default(),
            pci,
            config,
        });
        let clock = std::thread::Builder::new()
            .name("tlp-clock".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.run()
            })
            .map_err(TlpError::Thread)?;
        Ok(TlpFunction { shared, clock: Some(clock) })
    }

    /// How it is set up.
    #[must_use]
    pub fn config(&self) -> &TlpConfig {
        &self.shared.config
    }

    /// What it saw and did so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let host_writes = self.shared.host_writes.load(Ordering::Relaxed);
        Stats { host_writes, ..self.shared.core().root.stats }
    }

    /// Whether its link is down, or what simulates it has failed.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.shared.is_gone()
    }

    /// Puts a fault plan in force in place of the former one. Reads are counted since the
    /// function was made.
    pub fn inject(&self, plan: FaultPlan<TlpFault>) {
        self.shared.core().root.inject(plan);
    }

    /// How often each rule of the fault plan in force took effect, in the order of the rules.
    #[must_use]
    pub fn faults_fired(&self) -> Vec<u64> {
        self.shared.core().root.faults_fired()
    }
}

impl<E: Endpoint + 'static> fmt::Debug for TlpFunction<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlpFunction").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

impl<E: Endpoint + 'static> Drop for TlpFunction<E> {
    fn drop(&mut self) {
        {
            let mut queue = self.shared.clock.lock();
            queue.stop = true;
            self.shared.clock.poke(&queue);
        }
        if self.clock.take().is_some_and(|clock| clock.join().is_err()) {
            log::error!("the thread of an endpoint's clock panicked");
        }
    }
}

impl<E: Endpoint + 'static> PciFunction for TlpFunction<E> {
    fn region_size(&self, region: Region) -> u64 {
        match region {
            Region::Bar(0) => self.shared.config.bar0.into(),
            Region::Config => 4096,
            _ => 0,
        }
    }

    fn read(&self, region: Region, offset: u64, data: &mut [u8]) {
        let shared = &*self.shared;
        data.fill(0xff);
        if shared.is_gone() {
            return;
        }
        match region {
            Region::Bar(0) if shared.pci.power_state() == PowerState::On => {
                shared.register_read(offset, data);
            }
            Region::Config => {
                let core = shared.core();
                let pending = core.outcome.completions != 0 || !core.root.answers.is_empty();
                shared.pci.show_pending(pending);
                shared.pci.read(offset, data);
            }
            _ => {}
        }
    }

    fn write(&self, region: Region, offset: u64, data: &[u8]) {
        let shared = &*self.shared;
        if shared.is_gone() {
            return;
        }
        match region {
            Region::Bar(0) if shared.pci.power_state() == PowerState::On => {
                shared.register_write(offset, data);
            }
            Region::Config => {
                // With the core's lock: when this returns, requests see what was written.
                let core = shared.core();
                let reset = shared.pci.write(offset, data).function_level_reset;
                drop(core);
                if reset {
                    shared.reset();
                }
                shared.wake();
            }
            _ => {}
        }
    }

    fn irq_count(&self, kind: IrqKind) -> u32 {
        self.shared.interrupts.count(kind)
    }

    fn irq_connect(&self, kind: IrqKind, start: u32, events: &[Option<IrqEvent>]) {
        self.shared.interrupts.connect(kind, start, events);
        if kind == IrqKind::Msi {
            let vectors = start.saturating_add(events.len() as u32);
            let vectors = vectors.min(self.shared.config.vectors.into());
            self.shared.connected.fetch_max(vectors, Ordering::AcqRel);
        }
    }

    fn irq_disconnect(&self, kind: IrqKind) {
        self.shared.interrupts.disconnect(kind);
        if kind == IrqKind::Msi {
            self.shared.connected.store(0, Ordering::Release);
        }
    }

    fn irq_set_masked(&self, kind: IrqKind, vector: u32, masked: bool) {
        self.shared.interrupts.set_masked(kind, vector, masked);
    }

    fn irq_trigger(&self, kind: IrqKind, vector: u32) {
        self.shared.interrupts.trigger(kind, vector);
    }

    fn reset(&self) {
        if !self.shared.is_gone() {
            self.shared.reset();
        }
    }

    fn memory(&self) -> &DmaMap {
        &self.shared.memory
    }
}
