//! The skeleton of a driver for a card of one's own: `cargo run --example skeleton`, with a
//! PCI address or for the first card that is found. Replace the ids, the registers and what
//! starts a transfer. It runs as it stands: the card is QEMU's edu, of which nothing is used
//! but its data sheet (QEMU, docs/specs/edu.rst).

use std::sync::Arc;
use std::time::{Duration, Instant};

use vfio_dma::backend::IrqKind;
use vfio_dma::device::Device;
use vfio_dma::dma::{Buffer, Constraints, Direction, Pattern, Request};
use vfio_dma::host::Sysfs;
use vfio_dma::irq::Interrupts;
use vfio_dma::mmio::{Bar, ReadOnly, ReadWrite, Reg, WriteOnly};
use vfio_dma::session::Session;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

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
const PATIENCE: Duration = Duration::from_secs(5);

struct Card {
    // Fields are dropped in this order: interrupts are off before the device is let go.
    interrupts: Interrupts,
    bar: Bar,
    device: Arc<Device>,
    /// What the card may be working on: nobody else touches it, and no panic frees it.
    busy: Option<Buffer>,
}

impl Card {
    fn open(device: Arc<Device>) -> Result<Card> {
        let bar = device.bar(0)?;
        // All ones would mean that the card is gone.
        if bar.get(ID)? & 0xffff != 0x00ed {
            return Err(format!("this is no such card: ID reads {:#010x}", bar.get(ID)?).into());
        }
        // Whatever a former user left behind. Not every function can be reset alone.
        device.reset().unwrap_or_else(|error| eprintln!("without a reset: {error}"));
        let deadline = Instant::now() + PATIENCE;
        while bar.get(COMMAND)? & RUN != 0 {
            if Instant::now() > deadline {
                return Err("the card does not become idle".into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        bar.set(ACKNOWLEDGE, u32::MAX)?;
        let interrupts = device.interrupts(IrqKind::Msi, 1)?;
        // From here on the card can reach what is mapped for it, and send its interrupt.
        device.set_bus_master(true)?;
        Ok(Card { interrupts, bar, device, busy: None })
    }

    /// Contiguous where that can be had; `Request::placement` and `order` ask for other ways.
    fn buffer(&self, direction: Direction) -> Result<Buffer> {
        let reach = Constraints { address_mask: REACH, ..Constraints::default() };
        Ok(self.device.allocate(&Request::new(LEN, direction).constraints(reach))?)
    }

    /// Moves a buffer to the card or back, and returns it when the card is done with it.
    fn transfer(&mut self, buffer: Buffer, way: u64) -> Result<Buffer> {
        self.busy = Some(buffer);
        let done = self.run(way);
        if done.is_err() {
            self.stop();
        }
        let buffer = self.busy.take().ok_or("the card cannot be stopped");
        done.and(Ok(buffer?))
    }

    /// One segment at a time: for a card that takes lists, see `dma::SgList` and `ring::Ring`.
    fn run(&self, way: u64) -> Result<()> {
        let mut inside = INSIDE;
        for segment in self.busy.iter().flat_map(Buffer::segments) {
            let memory = segment.iova.0;
            let ends = if way == TO_MEMORY { (inside, memory) } else { (memory, inside) };
            self.bar.set(SOURCE, ends.0)?;
            self.bar.set(TARGET, ends.1)?;
            self.bar.set(COUNT, segment.len as u64)?;
            // The write that starts the card comes after every store to the buffer.
            self.bar.set(COMMAND, RUN | INTERRUPT | way)?;
            let deadline = Instant::now() + PATIENCE;
            let mut causes = 0;
            while causes & CAUSE_DONE == 0 {
                // An interrupt that does not come in time is an error.
                self.interrupts.wait(0, deadline.saturating_duration_since(Instant::now()))?;
                causes = self.bar.get(CAUSES)?;
                self.bar.set(ACKNOWLEDGE, causes)?;
            }
            inside += segment.len as u64;
        }
        Ok(())
    }

    /// Keeps the card from memory, so that the buffer can be freed; if that fails, it is not.
    fn stop(&mut self) {
        if self.device.quiesce().is_err() {
            std::mem::forget(self.busy.take());
        }
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        self.stop();
    }
}

fn main() -> Result<()> {
    let mut cards = Sysfs::new().enumerate()?.into_iter();
    let address = match std::env::args().nth(1) {
        Some(address) => address.parse()?,
        None => cards.find(|card| (card.vendor, card.device) == IDS).ok_or("no card")?.address,
    };
    let mut card = Card::open(Session::new().open(address)?)?;
    let mut source = card.buffer(Direction::ToDevice)?;
    let target = card.buffer(Direction::FromDevice)?;
    Pattern::new(1).fill(&mut source, 0, LEN, 0)?;
    card.transfer(source, 0)?;
    let target = card.transfer(target, TO_MEMORY)?;
    Pattern::new(1).check(&target, 0, LEN, 0)??;
    println!("{address}: {LEN} bytes to the card and back, every byte is right");
    println!("{}", target.report());
    Ok(())
}
