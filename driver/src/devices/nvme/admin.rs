//! The admin queue and its commands (NVM Express Base 1.4, 5).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::command::{Command, Completed, DataPointer, admin};
use super::controller::Controller;
use super::identify::{self, ControllerInfo, ErrorLogEntry, Namespace, SmartLog};
use super::memory_buffer::MemoryBuffer;
use super::pair::Pair;
use super::shadow::Pages;
use super::{NvmeError, Status};
use crate::device::Device;
use crate::dma::{Coherent, Iova};
use crate::mmio::poll_until;
use crate::queue::{Held, QueueSetupError};

/// Entries of the admin queues.
const ENTRIES: u32 = 32;
/// The most asynchronous event requests that are kept outstanding.
const EVENT_REQUESTS: u32 = 4;
/// Events that are kept until somebody asks; more are counted as lost.
const EVENTS_KEPT: usize = 64;
/// Lists of namespaces that are asked for; each has up to 1024.
const NAMESPACE_LISTS: usize = 4;
/// How many times an admin command is looked for between two looks at CSTS.
const LOOKS: u32 = 32;

/// Features (5.21.1).
const FEATURE_NUMBER_OF_QUEUES: u8 = 0x07;
const FEATURE_EVENTS: u8 = 0x0b;
/// Log pages (5.14.1).
const LOG_ERROR: u8 = 0x01;
const LOG_SMART: u8 = 0x02;

/// Something that the controller tells by itself (5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// Its type: 0 error, 1 SMART and health, 2 notice, 6 of the I/O commands, 7 of the vendor.
    pub kind: u8,
    /// What it is, within its type.
    pub info: u8,
    /// The log page that says more; reading it lets the next such event through.
    pub log_page: u8,
}

/// What an admin command in flight is waited for by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    /// The thread that has the admin queue.
    Caller,
    /// Nobody: it ends when something happens.
    Event,
}

#[derive(Debug)]
struct Memory {
    pair: Pair<Waiting>,
    /// What commands give; one command at a time has data.
    data: Coherent<u64>,
    /// Shadow doorbells, once it is known that the controller takes them.
    shadow: Option<Arc<Pages>>,
    /// The controller memory buffer, whose addresses nobody else may have.
    buffer: Option<Arc<MemoryBuffer>>,
}

/// The admin queue.
#[derive(Debug)]
pub(super) struct Admin {
    memory: Held<Memory>,
    events: VecDeque<Event>,
    events_lost: u64,
    /// The events that were asked for, and how many requests are kept outstanding for them.
    wanted: Option<(u32, u32)>,
}

impl Admin {
    pub(super) fn new(
        device: &Device,
        page: u64,
        stride: u64,
        max_entries: u32,
    ) -> Result<Admin, QueueSetupError> {
        let allocator = device.allocator();
        let pair = Pair::new(allocator, (0, ENTRIES.min(max_entries)), page, stride, None)?;
        let data = allocator.coherent(identify::LEN / 8, page)?;
        let mut memory = Held::new(device, Memory { pair, data, shadow: None, buffer: None });
        // Nobody was told of it.
        memory.release();
        Ok(Admin { memory, events: VecDeque::new(), events_lost: 0, wanted: None })
    }

    /// Empties the queues, for a controller that is about to be told of them: the number of
    /// their entries, and where they lie.
    pub(super) fn prepare(&mut self) -> (u32, Iova, Iova) {
        self.memory.hold();
        let pair = &mut self.memory.pair;
        pair.tags.complete_all(drop);
        pair.clear();
        (pair.size(), pair.submission.iova(), pair.completion.iova())
    }

    /// The controller reaches the queues no more.
    pub(super) fn release(&mut self) {
        self.memory.release();
    }

    /// Keeps the shadow doorbells as long as the controller may reach them.
    pub(super) fn keep_shadow(&mut self, pages: &Arc<Pages>) {
        self.memory.shadow = Some(Arc::clone(pages));
    }

    /// Keeps the addresses of the controller memory buffer as long as it may be there.
    pub(super) fn keep_buffer(&mut self, buffer: &Arc<MemoryBuffer>) {
        self.memory.buffer = Some(Arc::clone(buffer));
    }

    fn page(&self) -> DataPointer {
        DataPointer::page(self.memory.data.iova(0).0)
    }

    fn bytes(&self) -> Result<[u8; identify::LEN], NvmeError> {
        let mut bytes = [0; identify::LEN];
        self.memory.data.buffer().read(0, &mut bytes)?;
        Ok(bytes)
    }

    fn event(&mut self, completed: Completed) {
        if !completed.status.is_success() {
            log::debug!("an asynchronous event request ended: {}", completed.status);
            return;
        }
        let [kind, info, log_page, _] = completed.result.to_le_bytes();
        if self.events.len() == EVENTS_KEPT {
            self.events.pop_front();
            self.events_lost += 1;
        }
        self.events.push_back(Event { kind: kind & 7, info, log_page });
    }
}

impl Controller {
    /// Takes what has ended; the completion of the caller's command, if it is among it.
    fn reap_admin(&self, queue: &mut Admin) -> Result<Option<Completed>, NvmeError> {
        let (mut ours, mut events) = (None, 0);
        while let Some((completed, waiting)) = queue.memory.pair.reap()? {
            match waiting {
                Waiting::Caller => ours = Some(completed),
                Waiting::Event => {
                    queue.event(completed);
                    events += u32::from(completed.status.is_success());
                }
            }
        }
        queue.memory.pair.acknowledge(self.doorbells())?;
        self.request_events(queue, events)?;
        Ok(ours)
    }

    fn request_events(&self, queue: &mut Admin, count: u32) -> Result<(), NvmeError> {
        let pair = &mut queue.memory.pair;
        for _ in 0..count {
            pair.push(&Command::new(admin::ASYNC_EVENT_REQUEST, 0), Waiting::Event)?;
        }
        pair.ring(self.doorbells())?;
        Ok(())
    }

    /// Runs an admin command, which is not tried again, and gives its status too.
    fn execute(
        &self,
        queue: &mut Admin,
        command: &Command,
        what: &'static str,
        limit: Duration,
    ) -> Result<Completed, NvmeError> {
        self.check_events()?;
        queue.memory.pair.push(command, Waiting::Caller)?;
        queue.memory.pair.ring(self.doorbells())?;
        let mut looks = 0;
        let done = poll_until(limit, || {
            let ours = self.reap_admin(queue)?;
            looks += 1;
            if ours.is_none() && looks % LOOKS == 0 {
                self.check_events()?;
                self.check_status()?;
            }
            Ok::<_, NvmeError>(ours)
        })?;
        done.ok_or_else(|| self.timeout(what, limit))
    }

    /// Runs an admin command of the bring-up, and gives its result.
    fn bring_up(
        &self,
        queue: &mut Admin,
        command: &Command,
        what: &'static str,
    ) -> Result<u32, NvmeError> {
        let completed = self.execute(queue, command, what, self.config.admin_timeout)?;
        self.succeeded(completed, what)
    }

    fn succeeded(&self, completed: Completed, what: &'static str) -> Result<u32, NvmeError> {
        let Completed { status, result, .. } = completed;
        if status.is_success() {
            return Ok(result);
        }
        Err(NvmeError::Command { location: self.location.clone(), what, status })
    }

    /// Runs an admin command; when the controller does not answer it, or answers nonsense, it
    /// is reset.
    pub(super) fn admin_command(
        &self,
        queue: &mut Admin,
        command: &Command,
        what: &'static str,
        limit: Duration,
    ) -> Result<Completed, NvmeError> {
        self.check_alive()?;
        let completed = self.execute(queue, command, what, limit);
        if let Err(error) = &completed {
            self.reset(queue, &error.to_string());
        }
        completed
    }

    fn run(
        &self,
        queue: &mut Admin,
        command: Command,
        what: &'static str,
    ) -> Result<u32, NvmeError> {
        let completed = self.admin_command(queue, &command, what, self.config.admin_timeout)?;
        self.succeeded(completed, what)
    }

    /// What every start needs: the number of queues, and the events that were asked for.
    /// Returns how many I/O queues the controller grants.
    pub(super) fn configure(&self, queue: &mut Admin) -> Result<u16, NvmeError> {
        let asked = self.config.queues.clamp(1, 0xfffe);
        let mut command = Command::new(admin::SET_FEATURES, 0);
        let count = u32::from(asked - 1);
        command.words[0] = FEATURE_NUMBER_OF_QUEUES.into();
        command.words[1] = count << 16 | count;
        let granted = self.bring_up(queue, &command, "setting the number of queues")?;
        let granted = (granted & 0xffff).min(granted >> 16) as u16;
        self.configure_shadow(queue)?;
        if let Some((events, requests)) = queue.wanted {
            self.ask_for_events(queue, events, requests)?;
        }
        Ok(granted.saturating_add(1).min(asked))
    }

    /// Tells the controller of the shadow doorbells, which a reset has it forget. One that does
    /// not take them after all is told by its registers.
    fn configure_shadow(&self, queue: &mut Admin) -> Result<(), NvmeError> {
        self.is_shadowed.store(false, Ordering::Release);
        let Some(pages) = &self.shadow else { return Ok(()) };
        pages.clear();
        let mut command = Command::new(admin::DOORBELL_BUFFER_CONFIG, 0);
        command.data.words = pages.addresses();
        match self.bring_up(queue, &command, "configuring shadow doorbells") {
            Ok(_) => self.is_shadowed.store(true, Ordering::Release),
            Err(error @ NvmeError::Command { .. }) => log::warn!("{error}"),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn ask_for_events(&self, queue: &mut Admin, events: u32, count: u32) -> Result<(), NvmeError> {
        let mut command = Command::new(admin::SET_FEATURES, 0);
        command.words[0] = FEATURE_EVENTS.into();
        command.words[1] = events;
        self.bring_up(queue, &command, "configuring asynchronous events")?;
        self.request_events(queue, count)
    }

    fn identify(
        &self,
        queue: &mut Admin,
        cns: u32,
        namespace: u32,
    ) -> Result<[u8; identify::LEN], NvmeError> {
        let mut command = Command::new(admin::IDENTIFY, namespace);
        command.data = queue.page();
        command.words[0] = cns;
        self.bring_up(queue, &command, "identify")?;
        queue.bytes()
    }

    /// What the controller can do, and its active namespaces.
    pub(super) fn identify_all(
        &self,
        queue: &mut Admin,
    ) -> Result<(ControllerInfo, Vec<Namespace>), NvmeError> {
        let info = ControllerInfo::parse(&self.identify(queue, 1, 0)?, self.cap.min_page());
        let mut ids = Vec::new();
        for _ in 0..NAMESPACE_LISTS {
            let last = ids.last().copied().unwrap_or(0);
            if last == u32::MAX {
                break;
            }
            let list = identify::namespace_list(&self.identify(queue, 2, last)?);
            let is_full = list.len() == identify::LEN / 4;
            // Whatever does not come after the last is the device's mistake.
            ids.extend(list.into_iter().filter(|&id| id > last));
            if !is_full {
                break;
            }
        }
        let mut namespaces = Vec::new();
        for id in ids {
            let bytes = self.identify(queue, 0, id)?;
            namespaces.extend(Namespace::parse(id, self.instance, &bytes));
        }
        Ok((info, namespaces))
    }

    /// Makes a queue pair. The memory of both queues was cleared.
    pub(super) fn create_pair<T>(
        &self,
        queue: &mut Admin,
        pair: &Pair<T>,
        interrupts: bool,
    ) -> Result<(), NvmeError> {
        if let Some(pages) = &self.shadow {
            pages.clear_of(pair.doorbells());
        }
        let shape = (pair.size() - 1) << 16 | u32::from(pair.id);
        let mut command = Command::new(admin::CREATE_COMPLETION_QUEUE, 0);
        command.data = DataPointer::page(pair.completion.iova().0);
        command.words[0] = shape;
        // Physically contiguous, and its interrupt.
        let vector = u32::from(self.vector_index(pair.id)) << 16 | 1 << 1;
        command.words[1] = 1 | if interrupts { vector } else { 0 };
        self.run(queue, command, "creating a completion queue")?;
        let mut command = Command::new(admin::CREATE_SUBMISSION_QUEUE, 0);
        command.data = DataPointer::page(pair.submission.iova().0);
        command.words[0] = shape;
        command.words[1] = u32::from(pair.id) << 16 | 1;
        let created = self.run(queue, command, "creating a submission queue").map(drop);
        if created.is_err() {
            let mut command = Command::new(admin::DELETE_COMPLETION_QUEUE, 0);
            command.words[0] = pair.id.into();
            self.run(queue, command, "deleting a completion queue")?;
        }
        created
    }

    /// Deletes a queue pair; what was in flight is over, and the controller reaches neither
    /// queue any more.
    pub(super) fn delete_pair(&self, queue: &mut Admin, id: u16) -> Result<(), NvmeError> {
        for (opcode, what) in [
            (admin::DELETE_SUBMISSION_QUEUE, "deleting a submission queue"),
            (admin::DELETE_COMPLETION_QUEUE, "deleting a completion queue"),
        ] {
            let mut command = Command::new(opcode, 0);
            command.words[0] = id.into();
            self.run(queue, command, what)?;
        }
        Ok(())
    }

    /// Asks the controller to give a command up. It may have ended, and need not be given up.
    pub(super) fn abort(&self, id: u16, tag: u16, limit: Duration) -> Result<Status, NvmeError> {
        let mut command = Command::new(admin::ABORT, 0);
        command.words[0] = u32::from(tag) << 16 | u32::from(id);
        let completed = self.admin_command(&mut self.admin(), &command, "an abort", limit)?;
        Ok(completed.status)
    }

    pub(super) fn get_feature(&self, feature: u8) -> Result<u32, NvmeError> {
        let mut command = Command::new(admin::GET_FEATURES, 0);
        command.words[0] = feature.into();
        self.run(&mut self.admin(), command, "getting a feature")
    }

    pub(super) fn set_feature(&self, feature: u8, value: u32) -> Result<u32, NvmeError> {
        let mut command = Command::new(admin::SET_FEATURES, 0);
        (command.words[0], command.words[1]) = (feature.into(), value);
        self.run(&mut self.admin(), command, "setting a feature")
    }

    fn log_page(&self, page: u8, len: usize) -> Result<[u8; identify::LEN], NvmeError> {
        let mut queue = self.admin();
        let mut command = Command::new(admin::GET_LOG_PAGE, u32::MAX);
        command.data = queue.page();
        // The number of doublewords less 1; events of the page are let through again.
        command.words[0] = (len as u32 / 4 - 1) << 16 | u32::from(page);
        self.run(&mut queue, command, "reading a log page")?;
        queue.bytes()
    }

    pub(super) fn smart_log(&self) -> Result<SmartLog, NvmeError> {
        Ok(SmartLog::parse(&self.log_page(LOG_SMART, SmartLog::LEN)?))
    }

    pub(super) fn error_log(&self) -> Result<Vec<ErrorLogEntry>, NvmeError> {
        let most = identify::LEN / ErrorLogEntry::LEN;
        let len = (self.info.error_log_entries as usize).min(most) * ErrorLogEntry::LEN;
        let page = self.log_page(LOG_ERROR, len)?;
        Ok(page[..len].chunks(ErrorLogEntry::LEN).filter_map(ErrorLogEntry::parse).collect())
    }

    pub(super) fn enable_events(&self, events: u32) -> Result<(), NvmeError> {
        let mut queue = self.admin();
        self.check_alive()?;
        if let Some((_, requests)) = queue.wanted {
            queue.wanted = Some((events, requests));
            drop(queue);
            return self.set_feature(FEATURE_EVENTS, events).map(drop);
        }
        let requests = self.info.event_limit.min(EVENT_REQUESTS);
        queue.wanted = Some((events, requests));
        let asked = self.ask_for_events(&mut queue, events, requests);
        if let Err(error) = &asked
            && !matches!(error, NvmeError::Command { .. })
        {
            self.reset(&mut queue, &error.to_string());
        }
        asked
    }

    pub(super) fn take_events(&self) -> Result<Vec<Event>, NvmeError> {
        let mut queue = self.admin();
        self.check_alive()?;
        if let Err(error) = self.check_events().and_then(|()| self.reap_admin(&mut queue)) {
            self.reset(&mut queue, &error.to_string());
            return Err(error);
        }
        if let lost @ 1.. = std::mem::take(&mut queue.events_lost) {
            log::warn!("{}: {lost} events were not kept", self.location);
        }
        Ok(queue.events.drain(..).collect())
    }
}
