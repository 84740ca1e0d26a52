//! QEMU's educational device (1234:11e8), `docs/specs/edu.rst`.
//!
//! It has one DMA engine that moves up to 4 KiB at a time between memory and a 4 KiB
//! buffer of its own, takes 100 ms for each transfer, and tells completion by MSI, by
//! INTx, or by a bit that can be polled. It reports no errors: an access that the IOMMU
//! refuses is dropped in silence, and an address above its mask is cut down to the mask.
//! This driver refuses such an address before the device sees it.
//!
//! ```no_run
//! use vfio_dma::devices::PciDriver;
//! use vfio_dma::devices::edu::{Config, Edu};
//! use vfio_dma::dma::{Direction, Request};
//! use vfio_dma::session::Session;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Session::new().open("0000:00:05.0".parse()?)?;
//! let mut edu = Edu::probe(device, Config::default())?;
//! let mut source = edu.allocate(&Request::new(100_000, Direction::ToDevice))?;
//! let target = edu.allocate(&Request::new(100_000, Direction::FromDevice))?;
//! source.write(0, b"hello")?;
//! let (source, target) = edu.copy(source, 0, target, 0, 100_000)?.wait()?;
//! # Ok(())
//! # }
//! ```

mod copy_engine;
mod regs;
#[cfg(test)]
mod tests;
mod transfer;

use std::any::Any;
use std::time::Duration;

use super::{Match, PciDriver, ProbeFailed};
use crate::backend::IrqKind;
use crate::deadline::Deadline;
use crate::device::{Device, DeviceError};
use crate::dma::{Buffer, Direction, DmaError, DmaLimits, Iova, Request, SgError};
use crate::irq::{IrqError, Vector};
use crate::mmio::{Bar, MmioError, poll_until};
use crate::queue::InFlight;

use transfer::Job;
pub use transfer::{Failed, Started, Transfer};

/// How the driver learns that the device is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Completion {
    /// By a message-signalled interrupt.
    Msi,
    /// By the legacy interrupt line.
    Intx,
    /// By reading a register until a bit clears.
    Polled,
}

/// How the device is to be driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// How completion is learnt.
    pub completion: Completion,
    /// Address bits that the device drives: its property `dma_mask`, 28 by default. The
    /// device has no register that tells.
    pub address_bits: u32,
    /// How long one transfer of up to 4 KiB, or one factorial, may take.
    pub timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config { completion: Completion::Msi, address_bits: 28, timeout: Duration::from_secs(5) }
    }
}

/// An operation on the device that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EduError {
    /// The identification register does not hold edu's value.
    #[error("{location} identifies itself as {id:#010x}, edu reads 0x????00ed")]
    NotEdu {
        /// The device.
        location: String,
        /// What its identification register reads.
        id: u32,
    },
    /// BAR0 is smaller than the registers need.
    #[error("{location}: BAR0 has {size:#x} bytes, edu's has {:#x}", regs::BAR_SIZE)]
    SmallBar {
        /// The device.
        location: String,
        /// Size of its BAR0 in bytes.
        size: u64,
    },
    /// The configuration makes no sense.
    #[error("{bits} address bits: a device drives from 12 to 64")]
    AddressBits {
        /// What was asked for.
        bits: u32,
    },
    /// Every register reads all ones: the device is gone.
    #[error("{location} reads all ones: the device is gone, or its memory space is disabled")]
    Gone {
        /// The device.
        location: String,
    },
    /// The device did not finish in time.
    #[error("{location}: {what} not done within {} ms", .waited.as_millis())]
    Timeout {
        /// The device.
        location: String,
        /// What was waited for.
        what: &'static str,
        /// The time allowed.
        waited: Duration,
    },
    /// An interrupt was to be raised and none is in use.
    #[error("{location} is driven without interrupts: {what} cannot be waited for")]
    NoInterrupts {
        /// The device.
        location: String,
        /// What was to be waited for.
        what: &'static str,
    },
    /// A transfer still runs; the device has one engine.
    #[error("{location} still runs a transfer")]
    Busy {
        /// The device.
        location: String,
    },
    /// A transfer to or from the device's own buffer does not lie inside of it.
    #[error(
        "{len} bytes at offset {offset} are outside of the device's buffer of {} bytes",
        regs::DEVICE_BUFFER_LEN
    )]
    OutsideDeviceBuffer {
        /// Offset in the device's buffer, in bytes.
        offset: usize,
        /// Length in bytes.
        len: usize,
    },
    /// The device would cut the address down to its mask and go on elsewhere.
    #[error("the device reaches addresses up to {mask:#x}, {len} bytes at IOVA {iova} go beyond")]
    AddressOverMask {
        /// First address.
        iova: Iova,
        /// Length in bytes.
        len: usize,
        /// Highest address of the device.
        mask: u64,
    },
    /// The buffer is mapped in another address space than the device's.
    #[error("the buffer is mapped in another address space than that of {location}")]
    ForeignBuffer {
        /// The device.
        location: String,
    },
    /// The buffer was not mapped for this direction.
    #[error("a buffer mapped for data {have} is used for data {need}")]
    WrongDirection {
        /// What the buffer allows.
        have: Direction,
        /// What the transfer needs.
        need: Direction,
    },
    /// A register access failed.
    #[error("{0}")]
    Mmio(#[from] MmioError),
    /// An interrupt operation failed.
    #[error("{0}")]
    Irq(#[from] IrqError),
    /// A generic operation of the device failed.
    #[error("{0}")]
    Device(#[from] DeviceError),
    /// A range is not inside its buffer.
    #[error("{0}")]
    Dma(#[from] DmaError),
    /// The lists make no transfer.
    #[error("{0}")]
    Sg(#[from] SgError),
}

/// The driver of one edu device.
#[derive(Debug)]
pub struct Edu {
    /// What the device may be working on: the buffers, until it is quiet. Dropped first.
    in_flight: InFlight<Box<dyn Any + Send>>,
    /// What of it is left to do.
    job: Option<Job>,
    vector: Option<Vector>,
    bar: Bar,
    device: Device,
    config: Config,
    mask: u64,
    /// Bus mastering was taken away, and not given back.
    is_quiesced: bool,
}

impl PciDriver for Edu {
    const NAME: &'static str = "edu";
    /// The ids of QEMU's `docs/specs/edu.rst`.
    const MATCHES: &'static [Match] = &[Match::id(0x1234, 0x11e8, "QEMU educational device")];
    type Config = Config;
    type Error = EduError;

    /// Identifies the device, enables what tells completion, and switches bus mastering on.
    ///
    /// # Errors
    ///
    /// Fails when this is not an edu device, or something cannot be enabled.
    fn probe(device: Device, config: Config) -> Result<Edu, ProbeFailed<EduError>> {
        let (bar, mask) = match identify(&device, config) {
            Ok(identified) => identified,
            Err(error) => return Err(ProbeFailed::new(error, device)),
        };
        let in_flight = InFlight::new(&device);
        let (job, vector, is_quiesced) = (None, None, true);
        let mut edu = Edu { in_flight, job, vector, bar, device, config, mask, is_quiesced };
        match edu.set_up() {
            Ok(()) => Ok(edu),
            Err(error) => Err(ProbeFailed::new(error, edu.device)),
        }
    }
}

/// Looks whether this is edu; returns its registers and its address mask.
fn identify(device: &Device, config: Config) -> Result<(Bar, u64), EduError> {
    let location = || device.location().to_string();
    let mask = match config.address_bits {
        64 => u64::MAX,
        bits @ 12..64 => (1 << bits) - 1,
        bits => return Err(EduError::AddressBits { bits }),
    };
    let bar = device.bar(0)?;
    if bar.size() < regs::BAR_SIZE {
        return Err(EduError::SmallBar { location: location(), size: bar.size() });
    }
    match bar.get(regs::ID)? {
        u32::MAX => Err(EduError::Gone { location: location() }),
        id if id & 0xffff == regs::ID_LOW => Ok((bar, mask)),
        id => Err(EduError::NotEdu { location: location(), id }),
    }
}

impl Edu {
    fn set_up(&mut self) -> Result<(), EduError> {
        let limits = DmaLimits { address_mask: self.mask, ..DmaLimits::default() };
        self.device.set_dma_limits(limits)?;
        self.settle()?;
        let kind = match self.config.completion {
            Completion::Msi => Some(IrqKind::Msi),
            Completion::Intx => Some(IrqKind::Intx),
            Completion::Polled => None,
        };
        if let Some(kind) = kind {
            self.vector = self.device.vectors(kind, 1)?.pop();
        }
        self.device.set_bus_master(true)?;
        self.is_quiesced = false;
        Ok(())
    }

    /// The opened device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Version of the device: major, minor.
    ///
    /// # Errors
    ///
    /// Fails when the register cannot be read.
    pub fn version(&self) -> Result<(u8, u8), EduError> {
        let [_, _, minor, major] = self.bar.get(regs::ID)?.to_le_bytes();
        Ok((major, minor))
    }

    /// Writes a value to the liveness register and says whether its complement came back.
    ///
    /// # Errors
    ///
    /// Fails when the register cannot be reached.
    pub fn is_alive(&self, probe: u32) -> Result<bool, EduError> {
        self.bar.set(regs::LIVENESS, probe)?;
        Ok(self.bar.get(regs::LIVENESS)? == !probe)
    }

    /// Lets the device compute `n`! modulo 2^32; completion is told as configured.
    ///
    /// # Errors
    ///
    /// [`EduError::Timeout`] when the device does not finish in time.
    pub fn factorial(&mut self, n: u32) -> Result<u32, EduError> {
        let deadline = Deadline::after(self.config.timeout);
        self.wait_for("the former factorial", deadline, |edu| edu.computing().map(|busy| !busy))?;
        let flag = if self.vector.is_some() { regs::STATUS_IRQ_FACTORIAL } else { 0 };
        self.bar.set(regs::STATUS, flag)?;
        self.bar.set(regs::FACTORIAL, n)?;
        if self.vector.is_some() {
            self.wait_for_cause("the factorial", regs::IRQ_FACTORIAL, deadline)?;
        }
        self.wait_for("the factorial", deadline, |edu| edu.computing().map(|busy| !busy))?;
        Ok(self.bar.get(regs::FACTORIAL)?)
    }

    /// Lets the device raise an interrupt with these causes, and waits until it arrives.
    ///
    /// # Errors
    ///
    /// [`EduError::Timeout`] when it does not arrive, [`EduError::NoInterrupts`] when
    /// completion is polled.
    pub fn interrupt(&mut self, causes: u32) -> Result<(), EduError> {
        let deadline = Deadline::after(self.config.timeout);
        self.bar.set(regs::IRQ_RAISE, causes)?;
        self.wait_for_cause("the interrupt", causes, deadline)
    }

    /// Places a buffer as requested, under the device's address mask.
    ///
    /// # Errors
    ///
    /// Says what was tried and why it failed.
    pub fn allocate(&self, request: &Request) -> Result<Buffer, EduError> {
        Ok(self.device.allocate(request)?)
    }

    /// Resets the function and sets it up again as it was opened, also after an error of its
    /// link ([`Event::Error`](crate::events::Event)).
    ///
    /// # Errors
    ///
    /// [`EduError::Busy`] while a transfer runs; fails when the kernel has no way to reset
    /// the function, which depends on the bus that it sits on.
    pub fn reset(&mut self) -> Result<(), EduError> {
        self.refuse_when_busy()?;
        self.device.reset()?;
        self.settle()?;
        self.device.set_bus_master(true)?;
        self.is_quiesced = false;
        Ok(())
    }

    fn location(&self) -> String {
        self.device.location().to_string()
    }

    /// Waits until the engine is idle and clears what is left of former interrupts.
    ///
    /// A reset does not stop edu's engine: what was started goes on for its 100 ms, without
    /// reaching memory while bus mastering is off.
    fn settle(&mut self) -> Result<(), EduError> {
        let deadline = Deadline::after(self.config.timeout);
        self.wait_for("a former transfer", deadline, |edu| edu.running().map(|busy| !busy))?;
        self.bar.set(regs::STATUS, 0)?;
        self.bar.set(regs::IRQ_ACK, u32::MAX)?;
        Ok(())
    }

    fn gone(&self) -> EduError {
        EduError::Gone { location: self.location() }
    }

    fn timeout(&self, what: &'static str) -> EduError {
        EduError::Timeout { location: self.location(), what, waited: self.config.timeout }
    }

    fn running(&self) -> Result<bool, EduError> {
        match self.bar.get(regs::DMA_COMMAND)? {
            u64::MAX => Err(self.gone()),
            command => Ok(command & regs::COMMAND_RUN != 0),
        }
    }

    fn computing(&self) -> Result<bool, EduError> {
        match self.bar.get(regs::STATUS)? {
            u32::MAX => Err(self.gone()),
            status => Ok(status & regs::STATUS_COMPUTING != 0),
        }
    }

    fn wait_for(
        &self,
        what: &'static str,
        deadline: Deadline,
        is_done: impl Fn(&Edu) -> Result<bool, EduError>,
    ) -> Result<(), EduError> {
        let done = poll_until(deadline.left(), || {
            self.device.check_events()?;
            Ok::<_, EduError>(is_done(self)?.then_some(()))
        })?;
        done.ok_or_else(|| self.timeout(what))
    }

    /// Waits for an interrupt with these causes, acknowledges them and lets the line fire
    /// again. Interrupts with other causes (a shared line) are passed over, as long as the
    /// deadline has not passed.
    fn wait_for_cause(
        &self,
        what: &'static str,
        causes: u32,
        deadline: Deadline,
    ) -> Result<(), EduError> {
        let Some(vector) = &self.vector else {
            return Err(EduError::NoInterrupts { location: self.location(), what });
        };
        loop {
            // Read before the interrupt is looked for: a line that is stuck, or a device
            // that repeats itself, is there every time.
            let is_last = deadline.has_passed();
            match vector.wait(deadline.left()) {
                Ok(_) => {}
                Err(IrqError::Timeout { .. }) => return Err(self.timeout(what)),
                Err(error) => return Err(error.into()),
            }
            let status = self.bar.get(regs::IRQ_STATUS)?;
            if status == u32::MAX {
                return Err(self.gone());
            }
            self.bar.set(regs::IRQ_ACK, status & causes)?;
            vector.unmask()?;
            if status & causes == causes {
                return Ok(());
            }
            if is_last {
                return Err(self.timeout(what));
            }
        }
    }
}
