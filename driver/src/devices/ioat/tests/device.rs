//! Registers that behave like a device with two channels, of which the first works.
//!
//! It does what it is told at once, within the doorbell's write, unless it is held.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::testing::{HostIommu, Registers};

#[derive(Debug)]
pub(super) struct Fake {
    host: Arc<HostIommu>,
    pub(super) version: u8,
    pub(super) channels: u8,
    pub(super) xfercap: u8,
    /// All registers read all ones.
    pub(super) gone: bool,
    /// RESET and SUSPEND never end.
    pub(super) deaf: bool,
    /// RESET of the second channel never ends.
    pub(super) deaf_second: bool,
    /// Halts as soon as it is armed: so many times, with these bits.
    pub(super) refuses_chain: (u32, u32),
    /// SUSPEND never ends.
    pub(super) no_suspend: bool,
    /// Descriptors wait for [`Fake::release`].
    pub(super) hold: bool,
    /// The descriptor with this number, counted as `executed` is, halts with these bits.
    pub(super) fail_at: Option<(u64, u32)>,
    /// The next descriptor that tells halts.
    pub(super) fail_marker: bool,
    /// Function resets since the start.
    pub(super) resets: u32,
    /// Completion words are not written.
    pub(super) no_words: bool,
    pub(super) lose_interrupts: bool,
    /// Descriptors that carry data done since the start.
    pub(super) executed: u64,
    /// Register reads since the start.
    pub(super) reads: u64,
    /// At the last SUSPEND with work ahead, all addresses of that work were mapped.
    pub(super) stopped_with_all_mapped: bool,
    events: Vec<OwnedFd>,
    armed_interrupt: bool,
    state: u64,
    last: u64,
    errors: u32,
    command: u8,
    completion: u64,
    chain: u64,
    next: u64,
    doorbell: u16,
    count: u16,
}

impl Fake {
    pub(super) fn new(host: Arc<HostIommu>) -> Fake {
        Fake {
            host,
            version: 0x32,
            channels: 2,
            xfercap: 20,
            gone: false,
            deaf: false,
            deaf_second: false,
            fail_marker: false,
            refuses_chain: (0, 0),
            resets: 0,
            no_suspend: false,
            hold: false,
            fail_at: None,
            no_words: false,
            lose_interrupts: false,
            executed: 0,
            reads: 0,
            stopped_with_all_mapped: false,
            events: Vec::new(),
            armed_interrupt: false,
            state: 3,
            last: 0,
            errors: 0,
            command: 0,
            completion: 0,
            chain: 0,
            next: 0,
            doorbell: 0,
            count: 0,
        }
    }

    pub(super) fn word(&self) -> u64 {
        self.completion
    }

    /// Does what was held back.
    pub(super) fn release(&mut self) {
        self.hold = false;
        self.work();
    }

    fn work(&mut self) {
        while !self.hold && self.count != self.doorbell && self.state != 3 {
            let at = self.next;
            let word = |i: u64| self.host.load(at + 8 * i);
            let (Some(head), Some(source), Some(target), Some(next)) =
                (word(0), word(1), word(2), word(3))
            else {
                return self.halt(0x100);
            };
            let (len, control) = (head as u32 as usize, (head >> 32) as u32);
            let tells = control & 8 != 0;
            if tells && std::mem::take(&mut self.fail_marker) {
                return self.halt(0x200);
            }
            let executed = self.executed;
            if let Some((_, bits)) = self.fail_at.take_if(|(at, _)| !tells && *at == executed) {
                return self.halt(bits);
            }
            let moved = match control >> 24 {
                0 => self.host.copy(source, target, len),
                1 => self.fill(source, target, len),
                _ => return self.halt(0x400),
            };
            if moved.is_none() {
                return self.halt(0x200);
            }
            self.executed += u64::from(!tells);
            self.count = self.count.wrapping_add(1);
            self.last = at;
            self.next = next;
            self.state = u64::from(self.count == self.doorbell);
            if tells && !self.no_words {
                self.host.store(self.completion, at | self.state).unwrap();
            }
            if control & 1 != 0 {
                self.interrupt();
            }
        }
    }

    fn fill(&self, pattern: u64, target: u64, len: usize) -> Option<()> {
        let at = self.host.host(target, len)?;
        for (i, byte) in pattern.to_le_bytes().into_iter().cycle().take(len).enumerate() {
            // SAFETY: `host` has found that many bytes there.
            let byte_at = unsafe { at.add(i) };
            // SAFETY: as above.
            unsafe { byte_at.write_volatile(byte) };
        }
        Some(())
    }

    fn halt(&mut self, bits: u32) {
        (self.state, self.errors) = (3, bits);
        self.host.store(self.completion, self.last | 3).unwrap();
        self.interrupt();
    }

    fn interrupt(&mut self) {
        if std::mem::take(&mut self.armed_interrupt) && !self.lose_interrupts {
            for event in &self.events[..1.min(self.events.len())] {
                nix::unistd::write(event, &1u64.to_ne_bytes()).unwrap();
            }
        }
    }

    fn command(&mut self, command: u8) {
        if self.deaf {
            self.command = command;
        } else if command & 0x20 != 0 {
            (self.state, self.last, self.doorbell, self.count) = (3, 0, 0, 0);
        } else if command & 4 != 0 && self.state != 3 && !self.no_suspend {
            if self.count != self.doorbell {
                let fields = [1, 2].map(|i: u64| self.host.load(self.next + 8 * i));
                let mapped = |at: Option<u64>| at.is_some_and(|at| self.host.load(at).is_some());
                self.stopped_with_all_mapped = fields.into_iter().all(mapped);
            }
            self.state = 2;
        }
    }
}

fn half(old: u64, high: bool, value: u64) -> u64 {
    if high { old & 0xffff_ffff | value << 32 } else { old & !0xffff_ffff | value }
}

impl Registers for Fake {
    fn read(&mut self, offset: u64, width: usize) -> u64 {
        self.reads += 1;
        if self.gone {
            return u64::MAX;
        }
        match (offset, width) {
            (0x00, 1) => self.channels.into(),
            (0x01, 1) => self.xfercap.into(),
            (0x08, 1) => self.version.into(),
            (0x10, 4) => 1 << 6,
            (0x84, 1) => self.command.into(),
            (0x104, 1) if self.deaf || self.deaf_second => 0x20,
            (0x88, 8) => match self.deaf && self.state == 1 {
                // A deaf device stays active.
                true => self.last,
                false => self.last | self.state,
            },
            (0xa8, 4) => self.errors.into(),
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, width: usize, value: u64) {
        match (offset, width) {
            (0x80, 2) => self.armed_interrupt = value & 1 != 0,
            (0x84, 1) => self.command(value as u8),
            (0x86, 2) => {
                self.doorbell = value as u16;
                if self.state != 3 {
                    self.state = 0;
                }
                self.work();
            }
            (0x90 | 0x94, 4) => {
                self.chain = half(self.chain, offset == 0x94, value);
                if offset == 0x94 {
                    (self.state, self.last, self.next) = (4, 0, self.chain);
                    (self.doorbell, self.count) = (0, 0);
                    if let (left @ 1.., bits) = self.refuses_chain {
                        self.refuses_chain.0 = left - 1;
                        (self.state, self.errors) = (3, bits);
                    }
                }
            }
            (0x98 | 0x9c, 4) => self.completion = half(self.completion, offset == 0x9c, value),
            (0xa8, 4) => self.errors &= !(value as u32),
            _ => {}
        }
    }

    fn reset(&mut self) {
        self.resets += 1;
        self.deaf_second = false;
    }

    fn connect(&mut self, events: Vec<OwnedFd>) {
        self.events = events;
    }
}
