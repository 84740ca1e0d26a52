//! What the queues of a controller share: its registers, admin queue and state.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use super::admin::Admin;
use super::identify::{ControllerInfo, Namespace};
use super::memory_buffer::MemoryBuffer;
use super::quirks::Quirks;
use super::regs::{self, Cap};
use super::shadow::{Doorbells, Pages};
use super::{Config, NvmeError, Shutdown};
use crate::device::{Device, DeviceError};
use crate::dma::Allocator;
use crate::events::{Event, Events};
use crate::irq::Vector;
use crate::mmio::{Bar, SplitOrder, poll_until};

/// The shortest time that a shutdown is given (Linux gives 5 s too).
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);
/// The longest, whatever the controller says of itself.
const SHUTDOWN_MOST: Duration = Duration::from_secs(60);

/// Whether the controller can be used.
#[derive(Debug, Clone)]
pub(super) struct Condition {
    /// Counts how often the controller was reset: queues of a former time are gone.
    pub(super) epoch: u64,
    /// Why it was reset last.
    pub(super) why: String,
    /// The event of the function that it was given up for.
    pub(super) event: Option<Event>,
    pub(super) state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Alive,
    /// It was given up.
    Dead {
        /// It is known not to reach memory any more.
        is_quiet: bool,
    },
}

/// A controller, as its queues know it.
#[derive(Debug)]
pub(super) struct Controller {
    /// The admin queue's first, then one for each I/O queue; or one for all; or none.
    pub(super) vectors: Vec<Vector>,
    pub(super) bar: Bar,
    /// Taken before `condition`.
    admin: Mutex<Admin>,
    /// Read while a doorbell is written, so that none is written during a reset.
    condition: RwLock<Condition>,
    /// A copy of the condition's, for a look without the lock.
    epoch: AtomicU64,
    device: Mutex<Device>,
    pub(super) events: Events,
    pub(super) allocator: Allocator,
    pub(super) location: String,
    pub(super) config: Config,
    pub(super) cap: Cap,
    pub(super) version: u32,
    /// Bytes of a page of the controller.
    pub(super) page: u64,
    pub(super) quirks: Quirks,
    /// Different for every controller that was opened in this process.
    pub(super) instance: u64,
    pub(super) info: ControllerInfo,
    pub(super) namespaces: Vec<Namespace>,
    /// I/O queues that the controller has granted.
    pub(super) queues: u16,
    /// Those that are open.
    open: Mutex<Vec<bool>>,
    /// Doorbells in memory, where the controller takes them and they are wanted.
    pub(super) shadow: Option<Arc<Pages>>,
    /// The controller memory buffer, where it is asked for.
    pub(super) buffer: Option<Arc<MemoryBuffer>>,
    /// The controller was told of the shadow doorbells.
    pub(super) is_shadowed: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change under these locks is whole before anything that can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a controller is made of, before it is brought up.
pub(super) struct Parts {
    pub(super) device: Device,
    pub(super) bar: Bar,
    pub(super) cap: Cap,
    pub(super) version: u32,
    pub(super) page: u64,
    pub(super) quirks: Quirks,
    pub(super) config: Config,
    pub(super) admin: Admin,
}

impl Controller {
    pub(super) fn new(parts: Parts) -> Controller {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let Parts { device, bar, cap, version, page, quirks, config, admin } = parts;
        let condition =
            Condition { epoch: 0, why: String::new(), event: None, state: State::Alive };
        Controller {
            vectors: Vec::new(),
            bar,
            admin: Mutex::new(admin),
            condition: RwLock::new(condition),
            epoch: AtomicU64::new(0),
            events: device.events().clone(),
            allocator: device.allocator().clone(),
            location: device.location().to_string(),
            device: Mutex::new(device),
            config,
            cap,
            version,
            page,
            quirks,
            instance: NEXT.fetch_add(1, Ordering::Relaxed),
            info: ControllerInfo::default(),
            namespaces: Vec::new(),
            queues: 0,
            open: Mutex::default(),
            shadow: None,
            buffer: None,
            is_shadowed: AtomicBool::new(false),
        }
    }

    /// Gives the device back, stopped and without bus mastering.
    pub(super) fn into_device(mut self) -> Device {
        self.vectors.clear();
        let stopped = self.stop();
        if stopped.is_ok() {
            lock(&self.admin).release();
        }
        let mut device = self.device.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = device.quiesce() {
            log::warn!("{error}");
        }
        device
    }

    pub(super) fn admin(&self) -> MutexGuard<'_, Admin> {
        lock(&self.admin)
    }

    pub(super) fn device(&self) -> MutexGuard<'_, Device> {
        lock(&self.device)
    }

    /// The condition, which stays what it is as long as this is held.
    #[inline]
    pub(super) fn condition(&self) -> RwLockReadGuard<'_, Condition> {
        self.condition.read().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The doorbells, which are written while the condition is held, or the admin queue.
    #[inline]
    pub(super) fn doorbells(&self) -> Doorbells<'_> {
        let is_shadowed = self.is_shadowed.load(Ordering::Acquire);
        Doorbells { bar: &self.bar, pages: self.shadow.as_ref().filter(|_| is_shadowed) }
    }

    pub(super) fn gone(&self) -> NvmeError {
        NvmeError::Gone { location: self.location.clone() }
    }

    pub(super) fn lost(&self, why: &str) -> NvmeError {
        NvmeError::Lost { location: self.location.clone(), why: why.to_string() }
    }

    pub(super) fn timeout(&self, what: &'static str, waited: Duration) -> NvmeError {
        NvmeError::Timeout { location: self.location.clone(), what, waited }
    }

    /// CSTS, unless the device is gone.
    pub(super) fn status(&self) -> Result<u32, NvmeError> {
        match self.bar.read(regs::CSTS)? {
            u32::MAX => Err(self.gone()),
            status => Ok(status),
        }
    }

    /// Refuses a controller that is gone, has failed or was disabled behind our back.
    pub(super) fn check_status(&self) -> Result<(), NvmeError> {
        let csts = self.status()?;
        if csts & regs::CSTS_FATAL != 0 || csts & regs::CSTS_READY == 0 {
            return Err(NvmeError::Fatal { location: self.location.clone(), csts });
        }
        Ok(())
    }

    fn wait_ready(&self, is_ready: bool) -> Result<(), NvmeError> {
        let limit = self.cap.timeout() + self.quirks.ready_delay;
        if !self.quirks.ready_delay.is_zero() {
            std::thread::sleep(self.quirks.ready_delay);
        }
        let done = poll_until(limit, || {
            let csts = self.status()?;
            if is_ready && csts & regs::CSTS_FATAL != 0 {
                return Err(NvmeError::Fatal { location: self.location.clone(), csts });
            }
            Ok(((csts & regs::CSTS_READY != 0) == is_ready).then_some(()))
        })?;
        let what =
            if is_ready { "CSTS.RDY after CC.EN" } else { "CSTS.RDY after CC.EN was cleared" };
        done.ok_or_else(|| self.timeout(what, limit))
    }

    /// Clears CC.EN and waits until the controller has stopped: it reaches memory no more.
    fn disable(&self) -> Result<(), NvmeError> {
        let csts = self.status()?;
        let cc = self.bar.get(regs::CC)?;
        if cc & regs::CC_ENABLE == 0 && csts & regs::CSTS_READY == 0 {
            return Ok(());
        }
        // One that is on its way up must be waited for first (3.1.5, EN).
        if cc & regs::CC_ENABLE != 0 && csts & (regs::CSTS_READY | regs::CSTS_FATAL) == 0 {
            let _ = self.wait_ready(true);
        }
        self.bar.set(regs::CC, cc & !(regs::CC_ENABLE | regs::CC_SHUTDOWN_MASK))?;
        self.wait_ready(false)
    }

    /// Stops the controller so that it reaches no memory any more: by CC.EN, else by a reset
    /// of the function, else by taking bus mastering away.
    pub(super) fn stop(&self) -> Result<(), NvmeError> {
        self.stop_queues()?;
        if self.buffer.is_some()
            // Its addresses mean memory again. A controller that cannot be told is gone.
            && let Err(error) = self.bar.write::<u32>(regs::CMBMSC, 0)
        {
            log::debug!("{error}");
        }
        Ok(())
    }

    fn stop_queues(&self) -> Result<(), NvmeError> {
        let Err(error) = self.disable() else { return Ok(()) };
        log::warn!("{error}; resetting the function");
        let mut device = self.device();
        match device.reset() {
            Ok(()) => return Ok(()),
            Err(error) => log::warn!("{}: {error}; taking bus mastering away", self.location),
        }
        Ok(device.quiesce()?)
    }

    /// Sets up the admin queue and enables a controller that was stopped.
    pub(super) fn start(&self, admin: &mut Admin) -> Result<(), NvmeError> {
        self.disable()?;
        let (size, submission, completion) = admin.prepare();
        let low_first = SplitOrder::LowFirst;
        self.bar.set(regs::AQA, (size - 1) << 16 | (size - 1))?;
        self.bar.write64_split(regs::ASQ, submission.0, low_first)?;
        self.bar.write64_split(regs::ACQ, completion.0, low_first)?;
        if let Some(buffer) = &self.buffer {
            buffer.enable(&self.bar, &self.location)?;
        }
        self.device().set_bus_master(true)?;
        self.bar.set(regs::CC, regs::enable(self.page))?;
        self.wait_ready(true)
    }

    /// Resets the controller: everything in flight on any queue is over then, and queues have to
    /// be made anew. It is given up when it does not come back, or there is an event of the
    /// function.
    pub(super) fn reset(&self, admin: &mut Admin, why: &str) {
        let mut condition = self.condition.write().unwrap_or_else(PoisonError::into_inner);
        if self.events.pending().is_some() {
            return self.end_by_event(admin, &mut condition);
        }
        log::warn!("{}: resetting the controller: {why}", self.location);
        condition.epoch += 1;
        condition.why = why.to_string();
        condition.state = match self.stop() {
            Ok(()) => match self.start(admin).and_then(|()| self.configure(admin)) {
                Ok(_) => State::Alive,
                Err(error) => {
                    log::error!("{error}: it is given up");
                    condition.why = format!("{why}; {error}");
                    State::Dead { is_quiet: self.stop().is_ok() }
                }
            },
            Err(error) => {
                log::error!("{error}: what it may reach stays mapped and allocated");
                condition.why = format!("{why}; {error}");
                State::Dead { is_quiet: false }
            }
        };
        if let State::Dead { is_quiet: true } = condition.state {
            admin.release();
        }
        self.epoch.store(condition.epoch, Ordering::Release);
    }

    /// Gives the controller up for an event of the function.
    fn end_by_event(&self, admin: &mut Admin, condition: &mut Condition) {
        let (Some(event), State::Alive) = (self.events.pending(), condition.state) else { return };
        let error = self.events.error_of(event);
        log::warn!("{error}");
        // A drive that is only unbound is to write what its caches hold.
        if event == Event::Removal
            && let Err(error) = self.shut_down(Shutdown::Normal)
        {
            log::warn!("{error}");
        }
        let stopped = self.stop();
        match &stopped {
            Ok(()) => admin.release(),
            Err(error) => log::error!("{error}: what it may reach stays mapped and allocated"),
        }
        condition.epoch += 1;
        condition.why = error.to_string();
        condition.event = Some(event);
        condition.state = State::Dead { is_quiet: stopped.is_ok() };
        self.epoch.store(condition.epoch, Ordering::Release);
    }

    /// Fails when there is an event of the function.
    #[inline]
    pub(super) fn check_events(&self) -> Result<(), NvmeError> {
        Ok(self.events.check().map_err(DeviceError::from)?)
    }

    /// Refuses when the controller was given up.
    pub(super) fn check_alive(&self) -> Result<(), NvmeError> {
        let condition = self.condition();
        match condition.state {
            State::Alive => Ok(()),
            State::Dead { .. } => Err(self.given_up(&condition)),
        }
    }

    /// Says why the controller was given up.
    pub(super) fn given_up(&self, condition: &Condition) -> NvmeError {
        match condition.event {
            Some(event) => DeviceError::from(self.events.error_of(event)).into(),
            None => self.lost(&condition.why),
        }
    }

    /// Tells the controller that its power will go, and stops it.
    fn shut_down(&self, how: Shutdown) -> Result<(), NvmeError> {
        let cc = self.bar.get(regs::CC)? & !regs::CC_SHUTDOWN_MASK;
        if cc & regs::CC_ENABLE == 0 {
            return Ok(());
        }
        let kind = match how {
            Shutdown::Normal => regs::CC_SHUTDOWN_NORMAL,
            Shutdown::Abrupt => regs::CC_SHUTDOWN_ABRUPT,
        };
        self.bar.set(regs::CC, cc | kind)?;
        if self.quirks.shutdown_is_silent {
            return Ok(());
        }
        let told = Duration::from_micros(self.info.shutdown_latency.into());
        let limit = told.clamp(SHUTDOWN_LIMIT, SHUTDOWN_MOST);
        let done = poll_until(limit, || {
            let csts = self.status()?;
            let is_done = csts & regs::CSTS_SHUTDOWN_MASK == regs::CSTS_SHUTDOWN_DONE;
            Ok::<_, NvmeError>(is_done.then_some(()))
        })?;
        done.ok_or_else(|| self.timeout("the shutdown", limit))
    }

    /// Shuts the controller down and stops it; nothing more can be done with it.
    pub(super) fn close(&self, how: Shutdown) -> Result<(), NvmeError> {
        let mut admin = self.admin();
        let mut condition = self.condition.write().unwrap_or_else(PoisonError::into_inner);
        if let State::Dead { .. } = condition.state {
            return Ok(());
        }
        let shut = self.shut_down(how);
        let stopped = self.stop();
        if stopped.is_ok() {
            admin.release();
        }
        condition.epoch += 1;
        condition.why = "it was shut down".to_string();
        condition.state = State::Dead { is_quiet: stopped.is_ok() };
        self.epoch.store(condition.epoch, Ordering::Release);
        shut.and(stopped)
    }

    /// The interrupt vector of a queue.
    pub(super) fn vector(&self, queue: u16) -> Option<&Vector> {
        match self.vectors.len() {
            // One for all: of the I/O queues the first has it.
            1 => self.vectors.first().filter(|_| queue <= 1),
            _ => self.vectors.get(usize::from(queue)),
        }
    }

    /// The index of a queue's vector, as the controller counts them.
    pub(super) fn vector_index(&self, queue: u16) -> u16 {
        if self.vectors.len() == 1 { 0 } else { queue }
    }

    pub(super) fn set_queues(&mut self, queues: u16) {
        self.queues = queues;
        *lock(&self.open) = vec![false; usize::from(queues)];
    }

    /// Takes the number of an I/O queue that is not open.
    pub(super) fn claim(&self) -> Result<u16, NvmeError> {
        let mut open = lock(&self.open);
        let free = open.iter().position(|is_open| !is_open).ok_or_else(|| NvmeError::NoQueue {
            location: self.location.clone(),
            queues: self.queues,
        })?;
        open[free] = true;
        Ok(free as u16 + 1)
    }

    /// Gives the number of an I/O queue back.
    pub(super) fn release(&self, queue: u16) {
        lock(&self.open)[usize::from(queue) - 1] = false;
    }
}

/// A controller that is shut down when the last who uses it is gone.
#[derive(Debug)]
pub(super) struct Shared(pub(super) Controller);

impl Deref for Shared {
    type Target = Controller;

    #[inline]
    fn deref(&self) -> &Controller {
        &self.0
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // A drive whose power goes without a word counts an unsafe shutdown.
        if let Err(error) = self.0.close(Shutdown::Normal) {
            log::warn!("{error}");
        }
    }
}
