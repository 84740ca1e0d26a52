//! QEMU's educational device (1234:11e8), `docs/specs/edu.rst`.
//!
//! It has one DMA engine that moves up to 4 KiB at a time between memory and a 4 KiB
//! buffer of its own, takes 100 ms for each transfer, and tells completion by MSI, by
//! INTx, or by a bit that can be polled. It reports no errors: an access that the IOMMU
//! refuses is dropped in silence, and an address above its mask is cut down to the mask.
//! This driver refuses such an address before the device sees it.
//!
//! ```no_run
//! use vfio_dma::devices::edu::{Config, Edu};
//! use vfio_dma::dma::Direction;
//! use vfio_dma::session::Session;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Session::new().open("0000:00:05.0".parse()?)?;
//! let mut edu = Edu::open(device, Config::default())?;
//! let mut source = edu.allocate(100_000, Direction::ToDevice)?;
//! let target = edu.allocate(100_000, Direction::FromDevice)?;
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

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::IrqKind;
use crate::device::{Device, DeviceError};
use crate::dma::{Buffer, Direction, DmaError, Iova, Request, SgError};
use crate::irq::{Interrupts, IrqError};
use crate::mmio::{Bar, MmioError};

use transfer::Job;
pub use transfer::{Failed, Started, Transfer};

/// How the driver learns that the device is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
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
    #[error(transparent)]
    Mmio(#[from] MmioError),
    /// An interrupt operation failed.
    #[error(transparent)]
    Irq(#[from] IrqError),
    /// A generic operation of the device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A range is not inside its buffer.
    #[error(transparent)]
    Dma(#[from] DmaError),
    /// The lists make no transfer.
    #[error(transparent)]
    Sg(#[from] SgError),
}

/// The driver of one edu device.
#[derive(Debug)]
pub struct Edu {
    /// Declared first: dropped, and so disabled, before the device is let go.
    interrupts: Option<Interrupts>,
    bar: Bar,
    device: Arc<Device>,
    config: Config,
    mask: u64,
    /// What the device may be working on: owns the buffers until it is quiet.
    job: Option<Job>,
    /// Bus mastering was taken away, and not given back.
    silenced: bool,
}

impl Edu {
    /// Identifies the device, enables what tells completion, and switches bus mastering on.
    ///
    /// # Errors
    ///
    /// Fails when this is not an edu device, or something cannot be enabled.
    pub fn open(device: Arc<Device>, config: Config) -> Result<Edu, EduError> {
        let location = || device.backend().location();
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
            u32::MAX => {
                return Err(EduError::Gone { location: location() });
            }
            id if id & 0xffff == regs::ID_LOW => {}
            id => {
                return Err(EduError::NotEdu { location: location(), id });
            }
        }
        let mut edu =
            Edu { interrupts: None, bar, device, config, mask, job: None, silenced: false };
        edu.settle()?;
        edu.interrupts = match config.completion {
            Completion::Msi => Some(edu.device.interrupts(IrqKind::Msi, 1)?),
            Completion::Intx => Some(edu.device.interrupts(IrqKind::Intx, 1)?),
            Completion::Polled => None,
        };
        edu.device.set_bus_master(true)?;
        Ok(edu)
    }

    /// The opened device.
    #[must_use]
    pub fn device(&self) -> &Arc<Device> {
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
        let deadline = Instant::now() + self.config.timeout;
        self.wait_for("the former factorial", deadline, |edu| edu.computing().map(|busy| !busy))?;
        let flag = if self.interrupts.is_some() { regs::STATUS_IRQ_FACTORIAL } else { 0 };
        self.bar.set(regs::STATUS, flag)?;
        self.bar.set(regs::FACTORIAL, n)?;
        if self.interrupts.is_some() {
            self.wait_for_cause("the factorial", regs::IRQ_FACTORIAL, deadline)?;
        }
        self.wait_for("the factorial", deadline, |edu| edu.computing().map(|busy| !busy))?;
        Ok(self.bar.get(regs::FACTORIAL)?)
    }

    /// Lets the device raise an interrupt with these causes, and waits until it arrives.
    ///
    /// # Errors
    ///
    /// [`EduError::Timeout`] when it does not arrive, or interrupts are not in use.
    pub fn interrupt(&mut self, causes: u32) -> Result<(), EduError> {
        let deadline = Instant::now() + self.config.timeout;
        self.bar.set(regs::IRQ_RAISE, causes)?;
        self.wait_for_cause("the interrupt", causes, deadline)
    }

    /// Places a buffer under the device's address mask.
    ///
    /// # Errors
    ///
    /// Says what was tried and why it failed.
    pub fn allocate(&self, len: usize, direction: Direction) -> Result<Buffer, EduError> {
        self.place(Request::new(len, direction))
    }

    /// Places a buffer as requested, under the device's address mask.
    ///
    /// # Errors
    ///
    /// Says what was tried and why it failed.
    pub fn place(&self, mut request: Request) -> Result<Buffer, EduError> {
        request.constraints.address_mask &= self.mask;
        Ok(self.device.allocate(&request)?)
    }

    /// Resets the function and sets it up again as it was opened.
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
        self.silenced = false;
        Ok(())
    }

    fn location(&self) -> String {
        self.device.backend().location()
    }

    /// Waits until the engine is idle and clears what is left of former interrupts.
    ///
    /// A reset does not stop edu's engine: what was started goes on for its 100 ms, without
    /// reaching memory while bus mastering is off.
    fn settle(&mut self) -> Result<(), EduError> {
        let deadline = Instant::now() + self.config.timeout;
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

    /// Polls a condition every millisecond until it holds.
    fn wait_for(
        &self,
        what: &'static str,
        deadline: Instant,
        done: impl Fn(&Edu) -> Result<bool, EduError>,
    ) -> Result<(), EduError> {
        while !done(self)? {
            if Instant::now() >= deadline {
                return Err(self.timeout(what));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Waits for an interrupt with these causes, acknowledges them and lets the line fire
    /// again. Interrupts with other causes (a shared line) are passed over.
    fn wait_for_cause(
        &self,
        what: &'static str,
        causes: u32,
        deadline: Instant,
    ) -> Result<(), EduError> {
        let Some(interrupts) = &self.interrupts else {
            return Err(self.timeout(what));
        };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match interrupts.wait(0, left) {
                Ok(_) => {}
                Err(IrqError::Timeout { .. }) => return Err(self.timeout(what)),
                Err(error) => return Err(error.into()),
            }
            let status = self.bar.get(regs::IRQ_STATUS)?;
            if status == u32::MAX {
                return Err(self.gone());
            }
            self.bar.set(regs::IRQ_ACK, status & causes)?;
            interrupts.unmask()?;
            if status & causes == causes {
                return Ok(());
            }
        }
    }
}

impl Drop for Edu {
    fn drop(&mut self) {
        if let Some(job) = self.job.take() {
            self.abandon(job);
        }
    }
}
