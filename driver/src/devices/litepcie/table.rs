//! One direction of a channel: its table of descriptors.

use super::csr::CsrMap;
use super::error::LitePcieError;
use crate::dma::{Iova, Segment};
use crate::mmio::{Bar, MmioError, ReadOnly, ReadWrite, Reg, WriteOnly};
use crate::queue::{CompletionCount, Producer};

/// Entries of a table (litepcie/frontend/dma.py: `table_depth`).
pub(super) const DEPTH: u32 = 256;
/// Where requests are cut: the card cuts a descriptor into requests of the maximum payload, or
/// read request, from its address on, whether or not one of them crosses 4 KiB, which none may
/// (PCI Express Base Specification 3.0, 2.2.7). Its buffers bound both to this size
/// (litepcie/tlp/common.py: `max_request_size`), so that from a multiple of it on none does.
const REQUEST: u64 = 512;
/// The longest descriptor: its length has 24 bits.
const LONGEST: u64 = 8 << 20;

/// Bits of the high word of a descriptor.
const IRQ_DISABLE: u32 = 1 << 24;
/// Packets of the stream do not end a descriptor early.
const LAST_DISABLE: u32 = 1 << 25;
/// `enable`, bit 1: no request is being made.
const IDLE: u32 = 1 << 1;

/// What a direction's registers are.
#[derive(Debug, Clone, Copy)]
struct Regs {
    enable: Reg<u32, ReadWrite>,
    value_high: Reg<u32, WriteOnly>,
    value_low: Reg<u32, WriteOnly>,
    we: Reg<u32, WriteOnly>,
    loop_mode: Reg<u32, ReadWrite>,
    status: Reg<u32, ReadOnly>,
    reset: Reg<u32, WriteOnly>,
}

/// Cuts segments into descriptors.
#[derive(Debug)]
pub(super) struct Descriptors<'a> {
    segments: &'a [Segment],
    /// Bytes of the first segment that are used up.
    at: usize,
}

impl<'a> Descriptors<'a> {
    pub(super) fn new(segments: &'a [Segment]) -> Descriptors<'a> {
        Descriptors { segments, at: 0 }
    }

    pub(super) fn is_done(&self) -> bool {
        self.segments.is_empty()
    }
}

impl Iterator for Descriptors<'_> {
    type Item = (Iova, u32);

    fn next(&mut self) -> Option<(Iova, u32)> {
        let (first, rest) = self.segments.split_first()?;
        // Inside of the segment, which does not leave the address space.
        let iova = first.iova.0 + self.at as u64;
        let left = (first.len - self.at) as u64;
        let to_boundary = REQUEST - iova % REQUEST;
        let most = if to_boundary == REQUEST { LONGEST } else { to_boundary };
        let len = left.min(most);
        self.at += len as usize;
        if len == left {
            (self.segments, self.at) = (rest, 0);
        }
        Some((Iova(iova), len as u32))
    }
}

/// A table, and what of it the card has done.
#[derive(Debug)]
pub(super) struct Table {
    regs: Regs,
    producer: Producer,
    count: CompletionCount,
    /// The high word that the card has: descriptors of one length need it once.
    high: Option<u32>,
    /// Descriptors that it was given in all.
    pushed: u64,
}

impl Table {
    /// The table of `direction` ("writer", "reader") of a channel.
    pub(super) fn new(map: &CsrMap, channel: u8, direction: &str) -> Result<Table, LitePcieError> {
        let offset = |name| map.offset(&format!("pcie_dma{channel}_{direction}_{name}"));
        let value = offset("table_value")?;
        let regs = Regs {
            enable: Reg::at(offset("enable")?),
            value_high: Reg::at(value),
            value_low: Reg::at(value + 4),
            we: Reg::at(offset("table_we")?),
            loop_mode: Reg::at(offset("table_loop_prog_n")?),
            status: Reg::at(offset("table_loop_status")?),
            reset: Reg::at(offset("table_reset")?),
        };
        // One more than the table has: a producer keeps one slot free, and the table none.
        let producer = Producer::new(DEPTH + 1)?;
        let count = CompletionCount::new(16, &producer)?;
        Ok(Table { regs, producer, count, high: None, pushed: 0 })
    }

    /// Stops the direction and empties its table. What it asked memory for may still come.
    pub(super) fn stop(&mut self, bar: &Bar) -> Result<(), LitePcieError> {
        bar.set(self.regs.enable, 0)?;
        bar.set(self.regs.reset, 1)?;
        bar.set(self.regs.loop_mode, 0)?;
        self.producer = Producer::new(DEPTH + 1)?;
        self.count = CompletionCount::new(16, &self.producer)?;
        self.high = None;
        Ok(())
    }

    pub(super) fn start(&self, bar: &Bar) -> Result<(), MmioError> {
        bar.set(self.regs.enable, 1)
    }

    /// From now on the card puts descriptors that are done back into the table.
    pub(super) fn start_looping(&self, bar: &Bar) -> Result<(), MmioError> {
        bar.set(self.regs.loop_mode, 1)?;
        self.start(bar)
    }

    /// Whether the card makes no request in this direction.
    pub(super) fn is_idle(&self, bar: &Bar) -> Result<bool, MmioError> {
        Ok(bar.get(self.regs.enable)? & IDLE != 0)
    }

    /// How many descriptors it takes now.
    pub(super) fn free(&self) -> u32 {
        self.producer.free()
    }

    /// One past the last descriptor that it was given.
    pub(super) fn given(&self) -> u64 {
        self.producer.filled()
    }

    /// Descriptors that it was given since it was made.
    pub(super) fn pushed(&self) -> u64 {
        self.pushed
    }

    /// One past the last descriptor that is known to be done.
    pub(super) fn done(&self) -> u64 {
        self.producer.done()
    }

    /// Gives the card a descriptor; there must be room for it.
    pub(super) fn push(
        &mut self,
        bar: &Bar,
        (iova, len): (Iova, u32),
        interrupts: bool,
    ) -> Result<(), LitePcieError> {
        self.producer.require(1)?;
        let high = len | LAST_DISABLE | if interrupts { 0 } else { IRQ_DISABLE };
        if self.high != Some(high) {
            bar.set(self.regs.value_high, high)?;
            self.high = Some(high);
        }
        bar.set(self.regs.value_low, iova.0 as u32)?;
        // This write is what puts the descriptor into the table.
        bar.set(self.regs.we, (iova.0 >> 32) as u32)?;
        self.producer.advance(1);
        self.producer.publish();
        self.pushed += 1;
        Ok(())
    }

    /// Asks the card how far it is. The answer pushes ahead of it what the card has written to
    /// memory before (PCI Express Base Specification 3.0, 2.4.1).
    pub(super) fn update(
        &mut self,
        bar: &Bar,
        gone: impl Fn() -> LitePcieError,
    ) -> Result<(), LitePcieError> {
        let status = bar.get(self.regs.status)?;
        if status == u32::MAX {
            return Err(gone());
        }
        let position = self.count.position(&self.producer, (status & 0xffff).into())?;
        self.producer.complete_to(position)?;
        Ok(())
    }

    /// In loop mode: the descriptor that the card has done last, by its place in the table, and
    /// the laps before it, modulo 65536.
    pub(super) fn lap(&self, bar: &Bar) -> Result<(u16, u16), MmioError> {
        let status = bar.get(self.regs.status)?;
        Ok((status as u16, (status >> 16) as u16))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(segments: &[(u64, usize)]) -> Vec<(u64, u32)> {
        let segments: Vec<_> =
            segments.iter().map(|&(iova, len)| Segment { iova: Iova(iova), len }).collect();
        Descriptors::new(&segments).map(|(iova, len)| (iova.0, len)).collect()
    }

    #[test]
    fn what_is_not_aligned_to_a_request_is_cut_there() {
        assert_eq!(cut(&[(0x1000, 4096)]), [(0x1000, 4096)]);
        assert_eq!(cut(&[(0x1010, 4096)]), [(0x1010, 0x1f0), (0x1200, 0xe10)]);
        assert_eq!(cut(&[(0x1010, 64), (0x9000, 16)]), [(0x1010, 64), (0x9000, 16)]);
        let long = cut(&[(0, (8 << 20) + 512)]);
        assert_eq!(long, [(0, 8 << 20), (8 << 20, 512)]);
    }

    proptest! {
        #[test]
        fn no_request_crosses_4k(
            segments in prop::collection::vec((0u64..1 << 40, 1usize..1 << 21), 1..20),
            request in 7u32..=9,
        ) {
            let segments: Vec<_> =
                segments.into_iter().map(|(iova, len)| (iova & !15, len.next_multiple_of(16))).collect();
            let bytes: u64 = segments.iter().map(|&(_, len)| len as u64).sum();
            let descriptors = cut(&segments);
            prop_assert_eq!(descriptors.iter().map(|&(_, len)| u64::from(len)).sum::<u64>(), bytes);
            let request = 1u64 << request;
            for (iova, len) in descriptors {
                let mut at = iova;
                while at < iova + u64::from(len) {
                    let piece = request.min(iova + u64::from(len) - at);
                    prop_assert!(at / 4096 == (at + piece - 1) / 4096);
                    at += piece;
                }
            }
        }
    }
}
