//! NVMe drives and controllers (NVM Express Base 1.4, class 01 08 02).
//!
//! A controller has an admin queue, which the driver keeps to itself, and I/O queues
//! ([`IoQueue`]), one for each thread. A queue has many commands in flight, which end in any
//! order. Where the data of a command lies is said by PRP entries or an SGL, whichever suits
//! the list ([`DataMethod`]): a buffer may be scattered as it likes.
//!
//! ```no_run
//! use std::time::Duration;
//! use vfio_dma::devices::PciDriver;
//! use vfio_dma::devices::nvme::{Config, Nvme, QueueConfig, WhenFull};
//! use vfio_dma::dma::{Direction, Request};
//! use vfio_dma::session::Session;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Session::new().open("0000:00:05.0".parse()?)?;
//! let nvme = Nvme::probe(device, Config::default())?;
//! let namespace = *nvme.namespaces().first().ok_or("no namespace")?;
//! let mut queue = nvme.queue(QueueConfig::default())?;
//! let len = namespace.block_size() as usize;
//! let buffer = nvme.allocate(&Request::new(len, Direction::FromDevice))?;
//! let read = queue.read(&namespace, 0, buffer.into(), WhenFull::Return)?;
//! let table = queue.wait(read, Duration::from_secs(30))?.into_table()?;
//! # drop(table);
//! # Ok(())
//! # }
//! ```
//!
//! # A user's data
//!
//! Nothing here writes to a drive without a [`Writable`], which [`IoQueue::writable`] gives to
//! who names the drive's serial number and size, and which is refused for a drive that has
//! a partition table or a file system on it, unless the caller says that too. Formatting,
//! sanitizing, firmware and namespace management are not offered.
//!
//! # What the controller is trusted with
//!
//! Nothing that can be checked: a completion must name a command in flight of its queue, every
//! wait has a bound, and all ones mean that the device is gone. A command that does not end in
//! time is aborted, and when that does not help the controller is reset: every command in
//! flight on any queue ends then, once, with a [`TransferError`]. The queues are made again.

mod admin;
mod bounce;
mod command;
mod controller;
mod copy;
mod data;
mod error;
mod identify;
mod io;
mod memory_buffer;
mod pair;
mod quirks;
mod recovery;
mod regs;
mod rings;
mod shadow;
mod signature;
mod status;
mod submit;
#[cfg(test)]
mod tests;
mod transfer;
mod wait;
mod writable;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use super::{Identity, Match, PciDriver, ProbeFailed};
use crate::backend::IrqKind;
use crate::device::Device;
use crate::dma::{AddressSpace, Allocator, Buffer, DmaLimits, PageSize, Request};
use crate::events::Events;
use crate::mmio::{Bar, SplitOrder};
use crate::queue::WaitMode;

pub use admin::Event;
pub use copy::CopyLimits;
pub use data::DataMethod;
pub use error::{Finished, NvmeError, Refused, TransferError};
pub use identify::{ControllerInfo, ErrorLogEntry, Namespace, SmartLog};
pub use io::{IoQueue, QueueConfig, Stats};
pub use signature::{Found, Signature};
pub use status::Status;
pub use transfer::{Token, WhenFull};
pub use writable::{Consent, Writable};

use admin::Admin;
use controller::{Controller, Parts, Shared};
use memory_buffer::MemoryBuffer;
use quirks::Quirks;
use regs::Cap;
use shadow::Pages;

/// The class of NVMe controllers: mass storage, non-volatile memory, NVM Express.
const CLASS: u32 = 0x01_0802;

/// How a controller is told that it will not be used any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// It may take the time to write what its caches hold.
    Normal,
    /// Its power is about to go.
    Abrupt,
}

/// How a controller is to be driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// How waits learn of completion; `None` for MSI-X, MSI or INTx, whichever there is, after
    /// looking for 50 us.
    pub wait: Option<WaitMode>,
    /// I/O queues to ask for, from 1 on.
    pub queues: u16,
    /// How long an admin command may take.
    pub admin_timeout: Duration,
    /// Whether doorbells are in memory where the controller takes that
    /// ([`ControllerInfo::has_shadow_doorbells`]: emulated ones do, for which a register write
    /// is dear): their registers are written when the controller asks for it.
    pub shadow_doorbells: bool,
    /// Whether the controller memory buffer is switched on, for queues that ask for it
    /// ([`QueueConfig::memory_buffer`]). Opening fails where there is none.
    pub memory_buffer: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            wait: None,
            queues: 16,
            admin_timeout: Duration::from_secs(60),
            shadow_doorbells: true,
            memory_buffer: false,
        }
    }
}

/// An opened NVMe controller.
///
/// When the last of its clones and queues is dropped, it is shut down.
#[derive(Debug, Clone)]
pub struct Nvme {
    controller: Arc<Shared>,
}

impl PciDriver for Nvme {
    const NAME: &'static str = "nvme";
    const MATCHES: &'static [Match] = &[Match::class(CLASS, "NVMe controller")];
    type Config = Config;
    type Error = NvmeError;

    /// Resets the controller, brings it up and identifies it and its namespaces.
    ///
    /// # Errors
    ///
    /// Fails when this is no NVMe controller, it does not come up, or something cannot be
    /// enabled.
    fn probe(mut device: Device, config: Config) -> Result<Nvme, ProbeFailed<NvmeError>> {
        let (bar, cap, version, page, admin) = match prepare(&mut device) {
            Ok(prepared) => prepared,
            Err(error) => return Err(ProbeFailed::new(error, device)),
        };
        let quirks = Identity::of(&device).map(|identity| Quirks::of(&identity));
        let quirks = match quirks {
            Ok(quirks) => quirks,
            Err(error) => return Err(ProbeFailed::new(error.into(), device)),
        };
        let parts = Parts { device, bar, cap, version, page, quirks, config, admin };
        let mut controller = Controller::new(parts);
        match controller.set_up() {
            Ok(()) => Ok(Nvme { controller: Arc::new(Shared(controller)) }),
            Err(error) => Err(ProbeFailed::new(error, controller.into_device())),
        }
    }
}

/// What can be known before the controller is told anything.
fn prepare(device: &mut Device) -> Result<(Bar, Cap, u32, u64, Admin), NvmeError> {
    let location = device.location().to_string();
    let identity = Identity::of(device)?;
    if !Nvme::MATCHES.iter().any(|m| m.covers(&identity)) {
        return Err(NvmeError::NotNvme { location, identity });
    }
    let bar = device.bar(0)?;
    let cap = Cap(bar.read64_split(regs::CAP, SplitOrder::LowFirst)?);
    if cap.0 == u64::MAX {
        return Err(NvmeError::Gone { location });
    }
    cap.check(&location)?;
    let version = bar.read(regs::VS)?;
    let page = cap.page(PageSize::Base.bytes() as u64);
    // Lists are cut so that PRPs can describe them.
    device.set_dma_limits(DmaLimits { virt_boundary: Some(page), ..DmaLimits::default() })?;
    let admin = Admin::new(device, page, cap.doorbell_stride(), cap.max_entries())?;
    Ok((bar, cap, version, page, admin))
}

impl Controller {
    fn set_up(&mut self) -> Result<(), NvmeError> {
        // What a former user left running would go on once bus mastering is back.
        self.stop()?;
        if self.config.memory_buffer {
            self.find_memory_buffer()?;
        }
        let mut admin = self.admin();
        self.start(&mut admin)?;
        let (info, namespaces) = self.identify_all(&mut admin)?;
        let shadow = if info.has_shadow_doorbells && self.config.shadow_doorbells {
            let pages = Arc::new(Pages::new(&self.allocator, self.page)?);
            admin.keep_shadow(&pages);
            Some(pages)
        } else {
            None
        };
        drop(admin);
        self.shadow = shadow;
        let granted = self.configure(&mut self.admin())?;
        (self.info, self.namespaces) = (info, namespaces);
        let (_, end) = regs::doorbells(granted, self.cap.doorbell_stride());
        if end + 4 > self.bar.size() {
            let (location, size) = (self.location.clone(), self.bar.size());
            return Err(NvmeError::SmallBar { location, size, queues: granted, needed: end + 4 });
        }
        self.set_queues(granted);
        self.enable_vectors()
    }

    fn find_memory_buffer(&mut self) -> Result<(), NvmeError> {
        if !self.cap.has_memory_buffer() {
            let (location, what) = (self.location.clone(), "a controller memory buffer (CAP.CMBS)");
            return Err(NvmeError::NotOffered { location, what });
        }
        let found = MemoryBuffer::find(&self.device(), &self.bar, self.page);
        let buffer = Arc::new(found?);
        self.admin().keep_buffer(&buffer);
        self.buffer = Some(buffer);
        Ok(())
    }

    fn enable_vectors(&mut self) -> Result<(), NvmeError> {
        let device = self.device();
        let count = |kind| device.vector_count(kind);
        let kind = match self.config.wait {
            Some(wait) => wait.irq(),
            None if count(IrqKind::MsiX)? > 0 => Some(IrqKind::MsiX),
            None if count(IrqKind::Msi)? > 0 => Some(IrqKind::Msi),
            None if count(IrqKind::Intx)? > 0 => Some(IrqKind::Intx),
            None => None,
        };
        let spin = Duration::from_micros(50);
        let wait = self
            .config
            .wait
            .unwrap_or_else(|| kind.map_or(WaitMode::Poll, |irq| WaitMode::Adaptive { irq, spin }));
        let vectors = match kind {
            // One for the admin queue, and one for each I/O queue as far as they go.
            Some(kind @ IrqKind::MsiX) => {
                device.vectors(kind, count(kind)?.min(u32::from(self.queues) + 1))?
            }
            Some(kind) => device.vectors(kind, 1)?,
            None => Vec::new(),
        };
        drop(device);
        (self.vectors, self.config.wait) = (vectors, Some(wait));
        Ok(())
    }
}

impl Nvme {
    /// Opens an I/O queue.
    ///
    /// # Errors
    ///
    /// Fails when all are open, or it cannot be made.
    pub fn queue(&self, config: QueueConfig) -> Result<IoQueue, NvmeError> {
        IoQueue::open(&self.controller, config)
    }

    /// How many I/O queues can be open.
    #[must_use]
    pub fn queues(&self) -> u16 {
        self.controller.queues
    }

    /// The most entries of a queue that the controller takes: CAP.MQES, plus 1.
    #[must_use]
    pub fn max_queue_size(&self) -> u32 {
        self.controller.cap.max_entries()
    }

    /// What the controller can do.
    #[must_use]
    pub fn info(&self) -> &ControllerInfo {
        &self.controller.info
    }

    /// Version of the specification that the controller keeps to: major, minor, tertiary.
    #[must_use]
    pub fn version(&self) -> (u16, u8, u8) {
        let version = self.controller.version;
        ((version >> 16) as u16, (version >> 8) as u8, version as u8)
    }

    /// Bytes of a page, as the controller was set to: what a PRP entry points to.
    #[must_use]
    pub fn page_size(&self) -> u64 {
        self.controller.page
    }

    /// Whether the controller has a memory buffer of its own: CAP.CMBS.
    #[must_use]
    pub fn has_memory_buffer(&self) -> bool {
        self.controller.cap.has_memory_buffer()
    }

    /// Bytes of the controller memory buffer that queues can lie in; `None` where
    /// [`Config::memory_buffer`] did not switch it on.
    #[must_use]
    pub fn memory_buffer(&self) -> Option<u64> {
        self.controller.buffer.as_ref().map(|buffer| buffer.len())
    }

    /// Whether doorbells are in memory: [`Config::shadow_doorbells`], as far as the controller
    /// takes it.
    #[must_use]
    pub fn has_shadow_doorbells(&self) -> bool {
        self.controller.doorbells().pages.is_some()
    }

    /// The active namespaces, in the order of their numbers, as of when the controller was
    /// opened.
    #[must_use]
    pub fn namespaces(&self) -> &[Namespace] {
        &self.controller.namespaces
    }

    /// The kind of interrupt that is enabled, if any.
    #[must_use]
    pub fn irq(&self) -> Option<IrqKind> {
        self.controller.vectors.first().map(crate::irq::Vector::kind)
    }

    /// The events of the function, see [`Device::events`]. A queue looks at them with every
    /// doorbell, and whenever nothing is new: what it has in flight ends then, and the controller
    /// is shut down.
    #[must_use]
    pub fn device_events(&self) -> &Events {
        &self.controller.events
    }

    /// How a user names the device: an address such as `0000:00:05.0`, a socket's path, `model`.
    #[must_use]
    pub fn location(&self) -> &str {
        &self.controller.location
    }

    /// The address space that its buffers are mapped in.
    #[must_use]
    pub fn space(&self) -> &Arc<AddressSpace> {
        self.controller.allocator.space()
    }

    /// What places memory for the controller.
    #[must_use]
    pub fn allocator(&self) -> &Allocator {
        &self.controller.allocator
    }

    /// Places a buffer as requested.
    ///
    /// # Errors
    ///
    /// Says what was tried and why it failed.
    pub fn allocate(&self, request: &Request) -> Result<Buffer, NvmeError> {
        Ok(self.controller.allocator.allocate(request)?)
    }

    /// Health and use of the drive.
    ///
    /// # Errors
    ///
    /// Fails when the controller does not answer, or has no such log page.
    pub fn smart_log(&self) -> Result<SmartLog, NvmeError> {
        self.controller.smart_log()
    }

    /// The error log, the newest entry first; at most 64.
    ///
    /// # Errors
    ///
    /// As [`Nvme::smart_log`].
    pub fn error_log(&self) -> Result<Vec<ErrorLogEntry>, NvmeError> {
        self.controller.error_log()
    }

    /// The value of a feature (NVM Express Base 1.4, 5.21.1) that has one in doubleword 0.
    ///
    /// # Errors
    ///
    /// Fails when the controller does not answer, or has no such feature.
    pub fn feature(&self, feature: u8) -> Result<u32, NvmeError> {
        self.controller.get_feature(feature)
    }

    /// Whether the volatile write cache is on: feature 06h.
    ///
    /// # Errors
    ///
    /// As [`Nvme::feature`]; also for a drive without one.
    pub fn write_cache(&self) -> Result<bool, NvmeError> {
        Ok(self.feature(FEATURE_WRITE_CACHE)? & 1 != 0)
    }

    /// Switches the volatile write cache on or off, until the controller is reset.
    ///
    /// # Errors
    ///
    /// As [`Nvme::feature`]; also for a drive without one.
    pub fn set_write_cache(&self, on: bool) -> Result<(), NvmeError> {
        self.controller.set_feature(FEATURE_WRITE_CACHE, on.into()).map(drop)
    }

    /// Asks for events (5.21.1.11: a bit each), which [`Nvme::take_events`] gives; errors are
    /// among them whatever is asked for. It lasts over a reset.
    ///
    /// # Errors
    ///
    /// As [`Nvme::feature`].
    pub fn enable_events(&self, events: u32) -> Result<(), NvmeError> {
        self.controller.enable_events(events)
    }

    /// The events that came since the last call.
    ///
    /// # Errors
    ///
    /// Fails when the controller was given up, or told nonsense and was reset.
    pub fn take_events(&self) -> Result<Vec<Event>, NvmeError> {
        self.controller.take_events()
    }

    /// The eventfd that is signalled when an event came, for a caller's own event loop; `None`
    /// without interrupts. With one vector for all, I/O signals it too.
    #[must_use]
    pub fn event(&self) -> Option<BorrowedFd<'_>> {
        self.controller.vectors.first().map(AsFd::as_fd)
    }

    /// Resets the controller. Every command in flight, on any queue, ends with
    /// [`TransferError::Reset`]; the queues go on afterwards.
    ///
    /// # Errors
    ///
    /// Fails when the controller does not come back: it is given up then.
    pub fn reset(&self) -> Result<(), NvmeError> {
        let mut admin = self.controller.admin();
        self.controller.check_alive()?;
        self.controller.reset(&mut admin, "the caller asked for it");
        self.controller.check_alive()
    }

    /// Shuts the controller down: every command in flight ends with
    /// [`TransferError::Lost`], and nothing can be done with it afterwards. Dropping the
    /// last of its clones and queues shuts it down normally by itself.
    ///
    /// # Errors
    ///
    /// Fails when the controller does not say in time that it has shut down; it is stopped all
    /// the same.
    pub fn shut_down(&self, how: Shutdown) -> Result<(), NvmeError> {
        self.controller.close(how)
    }
}

/// The volatile write cache's feature (5.21.1.6).
const FEATURE_WRITE_CACHE: u8 = 0x06;
