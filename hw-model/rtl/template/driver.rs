//! The driver of `dma_engine.sv`: a list of descriptors in memory, one interrupt at its end.
//!
//! A driver for an engine of one's own starts as a copy of this file, or of
//! `driver/examples/skeleton.rs`.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vfio_dma::backend::IrqKind;
use vfio_dma::device::{Device, DeviceError};
use vfio_dma::devices::{CopyEngine, CopyError, CopyFailed, Match, PciDriver, ProbeFailed};
use vfio_dma::dma::{
    AddressSpace, Buffer, Coherent, Direction, DmaLimits, Request, SgError, SgTable, Walk,
};
use vfio_dma::irq::{IrqError, Vector};
use vfio_dma::mmio::{Bar, MmioError, ReadOnly, ReadWrite, Reg, WriteOnly};
use vfio_dma::queue::InFlight;

/// Vendor and device id: those of a design that does not say another (`id=VVVV:DDDD`).
pub(crate) const IDS: (u16, u16) = (0x1234, 0x0d3a);

// Registers in BAR0: offset, width and access.
const ID: Reg<u32, ReadOnly> = Reg::at(0x00);
const CONTROL: Reg<u32, ReadWrite> = Reg::at(0x04);
const LIST_LOW: Reg<u32, WriteOnly> = Reg::at(0x08);
const LIST_HIGH: Reg<u32, WriteOnly> = Reg::at(0x0c);
const COUNT: Reg<u32, WriteOnly> = Reg::at(0x10);
const DONE: Reg<u32, ReadOnly> = Reg::at(0x14);
const STATUS: Reg<u32, ReadWrite> = Reg::at(0x18);

const ID_VALUE: u32 = 0x444d_4131;
const START: u32 = 1;
const FINISHED: u32 = 1 << 0;
const REFUSED: u32 = 1 << 1;
/// Descriptors of one list.
const LIST: usize = 1024;
/// Bytes of a word of the engine's bus.
const WORD: u64 = 16;
/// The longest piece of one descriptor, in bytes: a multiple of the word below 2^32.
const LONGEST: u64 = 1 << 30;

/// Why the engine cannot be driven.
#[derive(Debug)]
pub(crate) enum Error {
    /// It identifies itself as something else.
    NotThis(u32),
    /// It did not end in time: descriptors that are done, and those of the list.
    Timeout(u32, u32),
    /// It says that a read was refused: descriptors that are done.
    Refused(u32),
    /// It says that it is done with fewer or more descriptors than it was given.
    Count(u32, u32),
    /// The lists make no copy.
    Sg(SgError),
    /// The device failed.
    Device(DeviceError),
    /// A register cannot be reached.
    Mmio(MmioError),
    /// An interrupt cannot be waited for.
    Irq(IrqError),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotThis(id) => write!(f, "its ID reads {id:#010x}, not {ID_VALUE:#010x}"),
            Error::Timeout(done, count) => {
                write!(f, "not finished in time: {done} of {count} descriptors are done")
            }
            Error::Refused(done) => write!(f, "a read was refused after {done} descriptors"),
            Error::Count(done, count) => {
                write!(f, "finished with {done} descriptors done, of {count}")
            }
            Error::Sg(error) => error.fmt(f),
            Error::Device(error) => error.fmt(f),
            Error::Mmio(error) => error.fmt(f),
            Error::Irq(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

macro_rules! from {
    ($($error:ty => $variant:ident),*) => {$(
        impl From<$error> for Error {
            fn from(error: $error) -> Error {
                Error::$variant(error)
            }
        }
    )*};
}
from!(SgError => Sg, DeviceError => Device, MmioError => Mmio, IrqError => Irq);

/// The engine.
#[derive(Debug)]
pub(crate) struct Engine {
    /// What it may be working on. Dropped first: it stops the device if there is any.
    in_flight: InFlight<(SgTable, SgTable)>,
    list: Coherent<[u64; 4]>,
    vector: Vector,
    bar: Bar,
    device: Device,
}

impl PciDriver for Engine {
    const NAME: &'static str = "dma-engine";
    const MATCHES: &'static [Match] = &[Match::id(IDS.0, IDS.1, "an engine of my own")];
    type Config = ();
    type Error = Error;

    fn probe(mut device: Device, (): ()) -> Result<Engine, ProbeFailed<Error>> {
        match Engine::set_up(&mut device) {
            Ok((bar, list, vector)) => {
                Ok(Engine { in_flight: InFlight::new(&device), list, vector, bar, device })
            }
            Err(error) => Err(ProbeFailed::new(error, device)),
        }
    }
}

impl Engine {
    fn set_up(device: &mut Device) -> Result<(Bar, Coherent<[u64; 4]>, Vector), Error> {
        let bar = device.bar(0)?;
        let id = bar.get(ID)?;
        if id != ID_VALUE {
            return Err(Error::NotThis(id));
        }
        device.set_dma_limits(DmaLimits {
            alignment: WORD,
            granularity: WORD,
            max_segment: LONGEST,
            ..DmaLimits::default()
        })?;
        device.reset()?;
        let list = device.coherent(LIST, 4096)?;
        let vector = device.vectors(IrqKind::Msi, 1)?.remove(0);
        // From here on the engine can reach what is mapped for it, and send its message.
        device.set_bus_master(true)?;
        Ok((bar, list, vector))
    }

    /// Copies one list to another.
    fn copy(&mut self, source: &SgTable, target: &SgTable, limit: Duration) -> Result<(), Error> {
        let limits = *self.device.dma_limits();
        let (from, to) = (source.list(), target.list());
        let end = Instant::now() + limit;
        let mut walk = Walk::default();
        loop {
            let mut count = 0;
            while count < LIST
                && let Some(piece) = walk.next(from.segments(), to.segments(), &limits)
            {
                self.list.write(count, &[piece.source.0, piece.target.0, piece.len, 0]);
                count += 1;
            }
            if count == 0 {
                return Ok(());
            }
            self.run(count as u32, end)?;
        }
    }

    /// Has the engine work on the first `count` descriptors of the list.
    fn run(&self, count: u32, end: Instant) -> Result<(), Error> {
        let list = self.list.iova(0).0;
        self.bar.set(LIST_LOW, list as u32)?;
        self.bar.set(LIST_HIGH, (list >> 32) as u32)?;
        self.bar.set(COUNT, count)?;
        // The write that starts the engine comes after every store to the list.
        self.bar.set(CONTROL, START)?;
        loop {
            // A message that comes late, or for ever without its cause, is an error.
            let is_last = Instant::now() >= end;
            match self.vector.wait(end.saturating_duration_since(Instant::now())) {
                Ok(_) | Err(IrqError::Timeout { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            // Reading the register comes before every load from the target.
            let (status, done) = (self.bar.get(STATUS)?, self.bar.get(DONE)?);
            self.bar.set(STATUS, status)?;
            if status & REFUSED != 0 {
                return Err(Error::Refused(done));
            }
            if status & FINISHED != 0 && done != count {
                return Err(Error::Count(done, count));
            }
            if status & FINISHED != 0 {
                return Ok(());
            }
            if is_last {
                return Err(Error::Timeout(done, count));
            }
        }
    }

    /// Refuses what the engine cannot copy, before it is told anything.
    fn check(&self, source: &SgTable, target: &SgTable) -> Result<(), CopyError> {
        let check = || -> Result<(), Error> {
            let limits = self.device.dma_limits();
            let (from, to) = (source.list(), target.list());
            if from.len() != to.len() {
                let (source_len, target_len) = (from.len(), to.len());
                return Err(SgError::Lengths { source_len, target_len }.into());
            }
            from.cut(limits)?;
            to.cut(limits)?;
            to.check_disjoint()?;
            Ok(from.check_apart(to)?)
        };
        let space = self.device.space();
        if !source.is_in(space) || !target.is_in(space) {
            return Err(CopyError::engine("a buffer is mapped in another address space"));
        }
        for (table, need) in [(source, Direction::ToDevice), (target, Direction::FromDevice)] {
            if let Some(have) = table.wrong_direction(need) {
                let text = format!("a buffer mapped for data {have} is used for data {need}");
                return Err(CopyError::engine(text));
            }
        }
        check().map_err(CopyError::engine)
    }

    /// Makes the engine usable again after a failure; returns whether it reaches memory no
    /// more.
    fn recover(&mut self) -> bool {
        let quiet = self.device.quiesce().is_ok();
        let again = self.device.reset().and_then(|()| self.device.set_bus_master(true));
        quiet || again.is_ok()
    }
}

impl CopyEngine for Engine {
    fn location(&self) -> &str {
        self.device.location()
    }

    fn space(&self) -> &Arc<AddressSpace> {
        self.device.space()
    }

    fn allocate(&self, request: &Request) -> Result<Buffer, CopyError> {
        Ok(self.device.allocate(request)?)
    }

    fn copy_tables(
        &mut self,
        source: SgTable,
        target: SgTable,
        limit: Duration,
    ) -> Result<(SgTable, SgTable), CopyFailed> {
        if let Err(error) = self.check(&source, &target) {
            return Err(CopyFailed { error: Box::new(error), tables: Some((source, target)) });
        }
        // In flight while the engine may use them, whatever happens here.
        let slot = self.in_flight.insert((source, target));
        let mut in_flight = std::mem::replace(&mut self.in_flight, InFlight::new(&self.device));
        let result = match in_flight.get(slot) {
            Some((source, target)) => self.copy(source, target, limit),
            None => Ok(()),
        };
        std::mem::swap(&mut in_flight, &mut self.in_flight);
        match result {
            Ok(()) => Ok(self.in_flight.complete(slot).expect("nobody else completes it")),
            Err(error) => {
                if !self.recover() {
                    self.in_flight.park();
                }
                let tables = self.in_flight.complete(slot);
                Err(CopyFailed { error: Box::new(CopyError::engine(error)), tables })
            }
        }
    }
}
