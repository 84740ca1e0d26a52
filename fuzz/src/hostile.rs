//! A PCI function that does to its driver what its bytes say.

use std::sync::{Mutex, PoisonError};

use vfio_dma::backend::{IrqKind, Region};
use vfio_dma_model::function::{Event, PciFunction};
use vfio_dma_model::memory::DmaMap;

use crate::Bytes;

/// What a well-behaved device of some kind would do, so that a driver gets far enough to be
/// harmed.
pub trait Plausible: Send + 'static {
    /// Bytes of BAR0.
    const BAR0: u64;

    /// What the `len` bytes at `offset` of BAR0 hold; the device may reach memory.
    fn read(&mut self, offset: u64, len: usize, memory: &DmaMap) -> u64;

    /// A value was written to BAR0; the device may reach memory.
    fn write(&mut self, offset: u64, value: u64, memory: &DmaMap);

    /// The byte at `offset` of configuration space, beyond the command register.
    fn config(&self, offset: u64) -> u8;

    /// Addresses that the driver has told the device, which it may write to.
    fn addresses(&self) -> Vec<u64>;

    /// Whether a register always reads as `read` says: what bounds the driver's own patience.
    fn is_honest(&self, _offset: u64) -> bool {
        false
    }
}

/// Bytes of configuration space.
const CONFIG: usize = 4096;

struct State<P> {
    device: P,
    /// What the device does that it should not.
    script: Vec<u8>,
    position: usize,
    events: Vec<Option<Event>>,
    command: u16,
}

/// A device that mostly behaves as `P`, and now and then as its script says: reads give any
/// value, memory that it was told of is written to, interrupts come unasked.
pub struct Hostile<P> {
    state: Mutex<State<P>>,
    memory: DmaMap,
}

impl<P: Plausible> Hostile<P> {
    /// A device that misbehaves by `script`; it behaves well once the script is at its end.
    #[must_use]
    pub fn new(device: P, script: &[u8]) -> Hostile<P> {
        let state =
            State { device, script: script.to_vec(), position: 0, events: Vec::new(), command: 0 };
        Hostile { state: Mutex::new(state), memory: DmaMap::new() }
    }

    /// What it should do next that it should not; `None` to behave.
    fn misbehave(state: &mut State<P>) -> Option<(u8, u64)> {
        let mut script = Bytes::new(state.script.get(state.position..)?);
        if script.is_empty() {
            return None;
        }
        let what = script.u8();
        state.position += 1;
        // Most bytes are good behaviour, or a driver is never far.
        if what < 160 {
            return None;
        }
        let value = if what & 1 == 0 { script.u64() } else { u64::MAX };
        state.position += if what & 1 == 0 { 8 } else { 0 };
        Some((what, value))
    }

    /// Does damage besides the access in hand.
    fn harm(&self, state: &mut State<P>, what: u8, value: u64) {
        let addresses = state.device.addresses();
        let chosen = addresses.get(usize::from(what >> 1) % addresses.len().max(1)).copied();
        match what % 5 {
            // A refused access is the IOMMU's business, and no harm.
            0 => drop(chosen.map(|at| self.memory.store_u64(at & !7, value))),
            1 => drop(chosen.map(|at| self.memory.store_u64(at & !7, at ^ (value & 0xfff)))),
            2 => drop(self.memory.write(value, &[what; 64])),
            3 => {
                for event in state.events.iter().flatten() {
                    let _ = event.signal();
                }
            }
            _ => {}
        }
    }
}

impl<P: Plausible> PciFunction for Hostile<P> {
    fn region_size(&self, region: Region) -> u64 {
        match region {
            Region::Bar(0) => P::BAR0,
            Region::Config => CONFIG as u64,
            _ => 0,
        }
    }

    fn read(&self, region: Region, offset: u64, data: &mut [u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        data.fill(0xff);
        match region {
            Region::Config => {
                let command = state.command.to_le_bytes();
                for (at, byte) in (offset..).zip(data.iter_mut()) {
                    *byte = match at {
                        4 | 5 => command[at as usize - 4],
                        _ => state.device.config(at),
                    };
                }
            }
            Region::Bar(0) if data.len() <= 8 => {
                let mut value = state.device.read(offset, data.len(), &self.memory);
                if !state.device.is_honest(offset)
                    && let Some((what, other)) = Self::misbehave(&mut state)
                {
                    value = other;
                    self.harm(&mut state, what, other);
                }
                data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
            }
            _ => {}
        }
    }

    fn write(&self, region: Region, offset: u64, data: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match region {
            Region::Config if offset == 4 && data.len() >= 2 => {
                state.command = u16::from_le_bytes([data[0], data[1]]);
            }
            Region::Bar(0) if data.len() <= 8 => {
                let mut value = [0; 8];
                value[..data.len()].copy_from_slice(data);
                // Instead of what it should do, or besides.
                if let Some((what, other)) = Self::misbehave(&mut state) {
                    self.harm(&mut state, what, other);
                    if what % 3 == 0 {
                        return;
                    }
                }
                state.device.write(offset, u64::from_le_bytes(value), &self.memory);
            }
            _ => {}
        }
    }

    fn irq_count(&self, kind: IrqKind) -> u32 {
        match kind {
            IrqKind::Intx | IrqKind::Msi => 1,
            _ => 2,
        }
    }

    fn irq_connect(&self, _kind: IrqKind, start: u32, events: &[Option<Event>]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let end = start as usize + events.len();
        if state.events.len() < end {
            state.events.resize(end, None);
        }
        state.events[start as usize..end].clone_from_slice(events);
    }

    fn irq_disconnect(&self, _kind: IrqKind) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).events.clear();
    }

    fn irq_set_masked(&self, _kind: IrqKind, _vector: u32, _masked: bool) {}

    fn irq_trigger(&self, _kind: IrqKind, _vector: u32) {}

    fn reset(&self) {}

    fn memory(&self) -> &DmaMap {
        &self.memory
    }
}
