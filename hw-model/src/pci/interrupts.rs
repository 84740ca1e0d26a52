//! Interrupts of a function: INTx, MSI and MSI-X over eventfds.
//!
//! A transport connects eventfds and masks vectors; the device raises edges
//! ([`Interrupts::signal`]) and sets the level of INTx ([`Interrupts::set_level`]). What is
//! raised while masked is remembered and delivered on unmasking. INTx masks itself each time
//! it fires, as VFIO's contract says, and fires again on unmasking while its level is high.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use vfio_dma::backend::IrqKind;

use crate::function::Event;
use crate::sync::{AtomicBool, AtomicU64, Mutex, MutexGuard};

#[derive(Debug, Default, Clone)]
struct Vector {
    event: Option<Event>,
    masked: bool,
    pending: bool,
}

#[derive(Debug)]
struct State {
    kinds: [Vec<Vector>; 3],
    /// The function mask of MSI-X.
    msix_masked: bool,
    /// The level of INTx.
    level: bool,
}

/// The vectors of a function, and where they lead.
#[derive(Debug)]
pub struct Interrupts {
    state: Mutex<State>,
    connected: [AtomicBool; 3],
    delivered: AtomicU64,
    dropped: AtomicU64,
}

impl Interrupts {
    /// Vectors by kind: INTx (0 or 1), MSI, MSI-X (up to 64).
    #[must_use]
    pub fn new(intx: u32, msi: u32, msix: u32) -> Self {
        let vectors = |n: u32| vec![Vector::default(); n as usize];
        Interrupts {
            state: Mutex::new(State {
                kinds: [vectors(intx), vectors(msi), vectors(msix)],
                msix_masked: false,
                level: false,
            }),
            connected: Default::default(),
            delivered: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is made in one step: the state is whole even after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of vectors of a kind.
    #[must_use]
    pub fn count(&self, kind: IrqKind) -> u32 {
        self.lock().kinds[kind.index() as usize].len() as u32
    }

    /// Whether a transport has connected a vector of this kind.
    #[must_use]
    pub fn connected(&self, kind: IrqKind) -> bool {
        self.connected[kind.index() as usize].load(Ordering::Acquire)
    }

    /// Interrupts that were signalled to a transport, and those that found no listener.
    #[must_use]
    pub fn counts(&self) -> [u64; 2] {
        [&self.delivered, &self.dropped].map(|n| n.load(Ordering::Relaxed))
    }

    /// Connects vectors from `start` on; those beyond the last are ignored.
    pub fn connect(&self, kind: IrqKind, start: u32, events: &[Option<Event>]) {
        let mut state = self.lock();
        let vectors = &mut state.kinds[kind.index() as usize];
        for (vector, event) in vectors.iter_mut().skip(start as usize).zip(events) {
            vector.event.clone_from(event);
        }
        let any = vectors.iter().any(|vector| vector.event.is_some());
        self.connected[kind.index() as usize].store(any, Ordering::Release);
        if kind == IrqKind::Intx {
            self.fire_level(&mut state);
        }
    }

    /// Disconnects and unmasks every vector of a kind. When this returns, none of their
    /// eventfds is written any more.
    pub fn disconnect(&self, kind: IrqKind) {
        let mut state = self.lock();
        state.kinds[kind.index() as usize].fill(Vector::default());
        self.connected[kind.index() as usize].store(false, Ordering::Release);
    }

    /// Masks or unmasks one vector.
    pub fn set_masked(&self, kind: IrqKind, vector: u32, masked: bool) {
        let mut state = self.lock();
        let state = &mut *state;
        let Some(entry) = state.kinds[kind.index() as usize].get_mut(vector as usize) else {
            return;
        };
        entry.masked = masked;
        match kind {
            IrqKind::Intx => self.fire_level(state),
            _ => self.flush(kind, state),
        }
    }

    /// Follows the MSI-X function mask in configuration space.
    pub fn mask_all_msix(&self, masked: bool) {
        let mut state = self.lock();
        state.msix_masked = masked;
        self.flush(IrqKind::MsiX, &mut state);
    }

    /// Raises an edge: MSI or MSI-X.
    pub fn signal(&self, kind: IrqKind, vector: u32) {
        let mut state = self.lock();
        if let Some(entry) = state.kinds[kind.index() as usize].get_mut(vector as usize) {
            entry.pending = true;
        }
        self.flush(kind, &mut state);
    }

    /// Sets the level of INTx.
    pub fn set_level(&self, high: bool) {
        let mut state = self.lock();
        state.level = high;
        self.fire_level(&mut state);
    }

    /// Writes a vector's eventfd, whatever its state.
    pub fn trigger(&self, kind: IrqKind, vector: u32) {
        let state = self.lock();
        if let Some(entry) = state.kinds[kind.index() as usize].get(vector as usize) {
            self.write(entry.event.as_ref());
        }
    }

    /// The vectors of a kind that were raised while masked, by bit.
    #[must_use]
    pub fn pending(&self, kind: IrqKind) -> u64 {
        let state = self.lock();
        let vectors = state.kinds[kind.index() as usize].iter().take(64).enumerate();
        vectors.fold(0, |bits, (n, vector)| bits | u64::from(vector.pending) << n)
    }

    /// Forgets what is pending and lowers INTx, as a reset does.
    pub fn reset(&self) {
        let mut state = self.lock();
        for vector in state.kinds.iter_mut().flatten() {
            vector.pending = false;
        }
        state.level = false;
        state.msix_masked = false;
    }

    fn flush(&self, kind: IrqKind, state: &mut State) {
        let all_masked = kind == IrqKind::MsiX && state.msix_masked;
        for vector in &mut state.kinds[kind.index() as usize] {
            if vector.pending && !vector.masked && !all_masked {
                vector.pending = false;
                self.write(vector.event.as_ref());
            }
        }
    }

    fn fire_level(&self, state: &mut State) {
        let level = state.level;
        for vector in &mut state.kinds[IrqKind::Intx.index() as usize] {
            if level && !vector.masked && vector.event.is_some() {
                vector.masked = true;
                self.write(vector.event.as_ref());
            }
        }
    }

    fn write(&self, event: Option<&Event>) {
        let sent = event.is_some_and(|event| event.signal().is_ok());
        let counter = if sent { &self.delivered } else { &self.dropped };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(all(test, shuttle))]
mod schedules;

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::eventfd::{EfdFlags, EventFd};

    use super::*;

    fn event() -> Event {
        Event::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap().into()).unwrap()
    }

    /// The eventfd's counter, which is zero afterwards.
    fn take(event: &Event) -> u64 {
        let mut bytes = [0; 8];
        nix::unistd::read(event.as_fd(), &mut bytes).map_or(0, |_| u64::from_ne_bytes(bytes))
    }

    #[test]
    fn an_edge_raised_while_masked_is_delivered_on_unmask() {
        let irq = Interrupts::new(1, 1, 4);
        let event = event();
        irq.connect(IrqKind::MsiX, 2, &[Some(event.clone())]);
        irq.signal(IrqKind::MsiX, 2);
        assert_eq!(take(&event), 1);
        irq.set_masked(IrqKind::MsiX, 2, true);
        irq.signal(IrqKind::MsiX, 2);
        irq.signal(IrqKind::MsiX, 2);
        assert_eq!((take(&event), irq.pending(IrqKind::MsiX)), (0, 0b100));
        irq.set_masked(IrqKind::MsiX, 2, false);
        assert_eq!((take(&event), irq.pending(IrqKind::MsiX)), (1, 0));
        irq.mask_all_msix(true);
        irq.signal(IrqKind::MsiX, 2);
        assert_eq!(take(&event), 0);
        irq.mask_all_msix(false);
        assert_eq!(take(&event), 1);
    }

    #[test]
    fn intx_masks_itself_and_fires_again_while_high() {
        let irq = Interrupts::new(1, 0, 0);
        let event = event();
        irq.connect(IrqKind::Intx, 0, &[Some(event.clone())]);
        irq.set_level(true);
        irq.set_level(true);
        assert_eq!(take(&event), 1);
        irq.set_masked(IrqKind::Intx, 0, false);
        assert_eq!(take(&event), 1);
        irq.set_level(false);
        irq.set_masked(IrqKind::Intx, 0, false);
        assert_eq!(take(&event), 0);
    }

    #[test]
    fn nothing_is_written_after_a_disconnect() {
        let irq = Interrupts::new(1, 1, 1);
        let event = event();
        irq.connect(IrqKind::Msi, 0, &[Some(event.clone())]);
        assert!(irq.connected(IrqKind::Msi));
        irq.disconnect(IrqKind::Msi);
        irq.signal(IrqKind::Msi, 0);
        irq.trigger(IrqKind::Msi, 0);
        irq.trigger(IrqKind::Msi, 7);
        assert_eq!((take(&event), irq.connected(IrqKind::Msi)), (0, false));
        assert_eq!(irq.counts(), [0, 2]);
    }

    #[test]
    fn a_full_eventfd_does_not_block() {
        let irq = Interrupts::new(0, 1, 0);
        let event = EventFd::from_flags(EfdFlags::empty()).unwrap();
        let event = Event::new(event.into()).unwrap();
        nix::unistd::write(event.as_fd(), &(u64::MAX - 1).to_ne_bytes()).unwrap();
        irq.connect(IrqKind::Msi, 0, &[Some(event)]);
        irq.signal(IrqKind::Msi, 0);
        assert_eq!(irq.counts(), [1, 0]);
    }
}
