//! The skeleton of a driver for a card of one's own: `cargo run --example skeleton`, with a
//! PCI address or for the first card that is found. Replace the ids, the registers and what
//! starts a transfer. It runs as it stands: the card is QEMU's edu, of which nothing is used
//! but its data sheet (QEMU, docs/specs/edu.rst).

use std::process::ExitCode;
use std::time::{Duration, Instant};

use vfio_dma::backend::IrqKind;
use vfio_dma::device::Device;
use vfio_dma::devices::{Match, PciDriver, ProbeFailed};
use vfio_dma::dma::{Buffer, Direction, DmaLimits, Pattern, Request};
use vfio_dma::host::Sysfs;
use vfio_dma::irq::Vector;
use vfio_dma::mmio::{Bar, ReadOnly, ReadWrite, Reg, WriteOnly, poll_until};
use vfio_dma::queue::InFlight;

use common::{Error, Result};

mod common;

/// Vendor and device id.
const IDS: (u16, u16) = (0x1234, 0x11e8);

// Registers in BAR0: offset, width and access. Writing to a read-only one does not compile.
const ID: Reg<u32, ReadOnly> = Reg::at(0x00);
const CAUSES: Reg<u32, ReadOnly> = Reg::at(0x24);
const ACKNOWLEDGE: Reg<u32, WriteOnly> = Reg::at(0x64);
const SOURCE: Reg<u64, ReadWrite> = Reg::at(0x80);
const TARGET: Reg<u64, ReadWrite> = Reg::at(0x88);
const COUNT: Reg<u64, ReadWrite> = Reg::at(0x90);
const COMMAND: Reg<u64, ReadWrite> = Reg::at(0x98);
const RUN: u64 = 1;
const TO_MEMORY: u64 = 2;
const INTERRUPT: u64 = 4;
const CAUSE_DONE: u32 = 0x100;

/// The card's own memory: its address for the card, and its length.
const INSIDE: u64 = 0x4_0000;
const LEN: usize = 4096;
/// The highest address that the card can put on the bus.
const REACH: u64 = (1 << 28) - 1;
/// The longest that the card may take for anything.
const LIMIT: Duration = Duration::from_secs(5);

struct Card {
    /// What the card may be working on. Dropped first: it stops the card if there is any.
    in_flight: InFlight<Buffer>,
    vector: Vector,
    bar: Bar,
    device: Device,
}

impl PciDriver for Card {
    const NAME: &'static str = "card";
    const MATCHES: &'static [Match] = &[Match::id(IDS.0, IDS.1, "a card of my own")];
    type Config = ();
    type Error = Error;

    fn probe(mut device: Device, (): ()) -> std::result::Result<Card, ProbeFailed<Error>> {
        match Card::set_up(&mut device) {
            Ok((bar, vector)) => {
                Ok(Card { in_flight: InFlight::new(&device), vector, bar, device })
            }
            Err(error) => Err(ProbeFailed::new(error, device)),
        }
    }
}

impl Card {
    fn set_up(device: &mut Device) -> Result<(Bar, Vector)> {
        let bar = device.bar(0)?;
        // All ones would mean that the card is gone.
        if bar.get(ID)? & 0xffff != 0x00ed {
            return Err(format!("this is no such card: ID reads {:#010x}", bar.get(ID)?).into());
        }
        device.set_dma_limits(DmaLimits { address_mask: REACH, ..DmaLimits::default() })?;
        // Whatever a former user left behind. Not every function can be reset alone.
        device.reset().unwrap_or_else(|error| eprintln!("without a reset: {error}"));
        let idle = || Ok::<_, Error>((bar.get(COMMAND)? & RUN == 0).then_some(()));
        poll_until(LIMIT, idle)?.ok_or("the card does not become idle")?;
        bar.set(ACKNOWLEDGE, u32::MAX)?;
        let vector = device.vectors(IrqKind::Msi, 1)?.remove(0);
        // From here on the card can reach what is mapped for it, and send its interrupt.
        device.set_bus_master(true)?;
        Ok((bar, vector))
    }

    /// Contiguous where that can be had; `Request::placement` and `order` ask for other ways.
    fn allocate(&self, direction: Direction) -> Result<Buffer> {
        Ok(self.device.allocate(&Request::new(LEN, direction))?)
    }

    /// Moves a buffer to the card or back, and returns it when the card is done with it: one
    /// segment at a time. For a card that takes lists, see `dma::SgList` and `queue`.
    fn transfer(&mut self, buffer: Buffer, way: u64) -> Result<Buffer> {
        let segments = buffer.segments().to_vec();
        let slot = self.in_flight.insert(buffer);
        let mut inside = INSIDE;
        for segment in segments {
            let memory = segment.iova.0;
            let ends = if way == TO_MEMORY { (inside, memory) } else { (memory, inside) };
            self.bar.set(SOURCE, ends.0)?;
            self.bar.set(TARGET, ends.1)?;
            self.bar.set(COUNT, segment.len as u64)?;
            // The write that starts the card comes after every store to the buffer.
            self.bar.set(COMMAND, RUN | INTERRUPT | way)?;
            self.wait_for_interrupt()?;
            inside += segment.len as u64;
        }
        Ok(self.in_flight.complete(slot).ok_or("the card completed it twice")?)
    }

    fn wait_for_interrupt(&self) -> Result<()> {
        let begin = Instant::now();
        loop {
            // An interrupt that does not come in time is an error, and so is one that comes
            // for ever without its cause.
            self.vector.wait(LIMIT.saturating_sub(begin.elapsed()))?;
            let causes = self.bar.get(CAUSES)?;
            self.bar.set(ACKNOWLEDGE, causes)?;
            if causes & CAUSE_DONE != 0 {
                return Ok(());
            }
            if begin.elapsed() > LIMIT {
                return Err("interrupts without a cause".into());
            }
        }
    }
}

fn main() -> ExitCode {
    let about = "Drives a card: 4 KiB to it and back. Without DEVICE: the first that is found.";
    common::run_or(about, Some(find), drive)
}

/// The first card of this machine.
fn find() -> Result<String> {
    let mut cards = Sysfs::new().enumerate()?.into_iter();
    let card = cards.find(|card| IDS == (card.vendor, card.device)).ok_or("there is no card")?;
    Ok(card.address.to_string())
}

fn drive(device: Device) -> Result<()> {
    let location = device.location().to_string();
    // What fails gives the device back, for another driver.
    let mut card = Card::probe(device, ()).map_err(|failed| failed.into_parts().0)?;
    let mut source = card.allocate(Direction::ToDevice)?;
    let target = card.allocate(Direction::FromDevice)?;
    Pattern::new(1).fill(&mut source, 0, LEN, 0)?;
    card.transfer(source, 0)?;
    let target = card.transfer(target, TO_MEMORY)?;
    Pattern::new(1).check(&target, 0, LEN, 0)??;
    println!("{location}: {LEN} bytes to the card and back, every byte is right");
    println!("{}", target.report());
    Ok(())
}
