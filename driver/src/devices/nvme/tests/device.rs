//! A scripted controller, for what QEMU's does not do: it goes wrong when it is told to.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::device::Device;
use crate::devices::nvme::{Config, Nvme, NvmeError};
use crate::devices::{PciDriver, ProbeFailed};
use crate::queue::WaitMode;
use crate::testing::{HostIommu, Registers, Scripted};

/// What the controller does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Fault {
    #[default]
    None,
    /// CSTS.RDY never follows CC.EN.
    NeverReady,
    /// I/O commands get no answer; an abort ends them, when `ends` says so.
    Silent { ends: bool },
    /// The next I/O command makes CSTS.CFS 1.
    Fatal,
    /// The next I/O command makes every register read all ones.
    Gone,
    /// The next I/O command is completed under another's tag.
    OtherTag,
    /// The next I/O command is completed with a head that is none.
    BadHead,
    /// The next admin command but one gets no answer.
    SilentAdmin,
    /// Each read ends with this status field.
    Status(u16),
}

#[derive(Debug, Default)]
struct Queue {
    submission: u64,
    size: u32,
    head: u32,
    completion: u64,
    tail: u32,
    phase: bool,
}

/// Entries of its only namespace, of 512 bytes.
pub(super) const BLOCKS: u64 = 1 << 20;

/// The registers of the controller.
#[derive(Debug)]
pub(super) struct Controller {
    host: Arc<HostIommu>,
    pub(super) fault: Fault,
    cc: u32,
    csts: u32,
    aqa: u32,
    asq: u64,
    acq: u64,
    queues: BTreeMap<u16, Queue>,
    /// Commands without an answer: queue, tag.
    held: Vec<(u16, u16)>,
    is_gone: bool,
    pub(super) starts: u32,
    pub(super) shutdowns: u32,
    /// It says that it takes shadow doorbells.
    pub(super) offers_shadow: bool,
    /// The shadow doorbell and EventIdx pages that it was told of since it was enabled.
    pub(super) shadow: Option<[u64; 2]>,
    /// Its memory buffer, in BAR0, if it has one: [`BUFFER`] bytes, and what CMBSZ says they are
    /// for.
    pub(super) buffer: Vec<u64>,
    pub(super) buffer_uses: u32,
    /// CMBMSC.
    pub(super) buffer_at: u64,
}

/// Where the memory buffer lies in BAR0, and its bytes.
const BUFFER_OFFSET: u64 = 0x8_0000;
pub(super) const BUFFER: u64 = 64 << 10;

/// CAP: 2048 entries, 500 ms, pages of 4 to 64 KiB.
const CAP: u64 = 0x0040_0820_0101_07ff;

impl Controller {
    /// Which word of the memory buffer an address is.
    fn in_buffer(&self, at: u64) -> Option<usize> {
        let base = self.buffer_at & !0xfff;
        let inside = at.checked_sub(base).filter(|&inside| inside < BUFFER)?;
        (self.buffer_at & 2 != 0).then_some(inside as usize / 8)
    }

    fn load(&self, at: u64) -> u64 {
        match self.in_buffer(at) {
            Some(word) => self.buffer[word],
            None => self.host.load(at).unwrap(),
        }
    }

    fn store(&mut self, at: u64, value: u64) {
        match self.in_buffer(at) {
            Some(word) => self.buffer[word] = value,
            None => self.host.store(at, value).unwrap(),
        }
    }

    fn complete(&mut self, id: u16, tag: u16, status: u16, result: u32) {
        let Some(queue) = self.queues.get_mut(&id) else { return };
        let mut head = queue.head;
        let mut tag = tag;
        match self.fault {
            Fault::OtherTag if id > 0 => {
                (tag, self.fault) = (tag ^ 0x0800, Fault::None);
            }
            Fault::BadHead if id > 0 => {
                (head, self.fault) = (queue.size + 1, Fault::None);
            }
            _ => {}
        }
        let word = u64::from(head)
            | u64::from(id) << 16
            | u64::from(tag) << 32
            | u64::from(queue.phase) << 48
            | u64::from(status) << 49;
        let at = queue.completion + 16 * u64::from(queue.tail);
        queue.tail += 1;
        if queue.tail == queue.size {
            (queue.tail, queue.phase) = (0, !queue.phase);
        }
        self.store(at, result.into());
        self.store(at + 8, word);
    }

    fn command(&mut self, id: u16, words: [u64; 8]) {
        let (opcode, tag) = (words[0] as u8, (words[0] >> 16) as u16);
        let (w10, w11) = (words[5] as u32, (words[5] >> 32) as u32);
        if id > 0 {
            match self.fault {
                Fault::Silent { .. } => return self.held.push((id, tag)),
                Fault::Fatal => return self.csts |= 2,
                Fault::Gone => return,
                Fault::Status(status) => return self.complete(id, tag, status, 0),
                _ => {}
            }
            if opcode == 2 {
                // The first word of what is read is the number of the block.
                self.host.store(words[3], u64::from(w11) << 32 | u64::from(w10)).unwrap();
            }
            return self.complete(id, tag, 0, 0);
        }
        match opcode {
            _ if self.fault == Fault::SilentAdmin => {}
            // Queues: completion first, then submission.
            0x05 | 0x01 => {
                let queue = self.queues.entry(w10 as u16).or_default();
                queue.size = (w10 >> 16) + 1;
                if opcode == 5 {
                    (queue.completion, queue.phase) = (words[3], true);
                } else {
                    queue.submission = words[3];
                }
                self.complete(0, tag, 0, 0);
            }
            0x00 => self.complete(0, tag, 0, 0),
            0x04 => {
                self.queues.remove(&(w10 as u16));
                self.complete(0, tag, 0, 0);
            }
            0x06 => {
                self.identify(w10, words[3]);
                self.complete(0, tag, 0, 0);
            }
            0x08 => {
                let of = (w10 as u16, (w10 >> 16) as u16);
                let ends = self.fault == Fault::Silent { ends: true };
                if ends && let Some(at) = self.held.iter().position(|&held| held == of) {
                    self.held.remove(at);
                    self.complete(of.0, of.1, 7, 0);
                }
                self.complete(0, tag, 0, u32::from(!ends));
            }
            0x09 => self.complete(0, tag, 0, 3 << 16 | 3),
            0x7c if self.offers_shadow => {
                self.shadow = Some([words[3], words[4]]);
                self.complete(0, tag, 0, 0);
            }
            _ => self.complete(0, tag, 0x4001, 0),
        }
    }

    fn identify(&self, cns: u32, at: u64) {
        for word in 0..512 {
            self.host.store(at + 8 * word, 0).unwrap();
        }
        match cns {
            // The serial number, and entries of 64 and 16 bytes.
            1 => {
                self.host.store(at, u64::from_le_bytes(*b"\0\0\0\0disk")).unwrap();
                self.host.store(at + 256, u64::from(self.offers_shadow) << 8).unwrap();
            }
            2 => self.host.store(at, 1).unwrap(),
            _ => {
                self.host.store(at, BLOCKS).unwrap();
                self.host.store(at + 128, 9 << 16).unwrap();
            }
        }
    }

    /// CC.EN.
    pub(super) fn is_enabled(&self) -> bool {
        self.cc & 1 != 0
    }

    fn stop(&mut self) {
        (self.csts, self.cc, self.shadow) = (0, 0, None);
        self.queues.clear();
        self.held.clear();
    }
}

impl Registers for Controller {
    fn read(&mut self, offset: u64, width: usize) -> u64 {
        if self.is_gone {
            return u64::MAX;
        }
        if !self.buffer.is_empty() && (BUFFER_OFFSET..BUFFER_OFFSET + BUFFER).contains(&offset) {
            assert_eq!(width, 8);
            return self.buffer[(offset - BUFFER_OFFSET) as usize / 8];
        }
        assert_eq!(width, 4, "registers are read 32 bits at a time");
        match offset {
            0x00 => CAP & 0xffff_ffff,
            0x04 => CAP >> 32 | u64::from(!self.buffer.is_empty()) << 25,
            // In BAR0, in units of 4 KiB; nothing as long as they are not switched on.
            0x38 if self.buffer_at & 1 != 0 => BUFFER_OFFSET,
            0x3c if self.buffer_at & 1 != 0 => BUFFER | u64::from(self.buffer_uses),
            0x08 => 0x0001_0400,
            0x14 => self.cc.into(),
            0x1c => self.csts.into(),
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, width: usize, value: u64) {
        if !self.buffer.is_empty() && (BUFFER_OFFSET..BUFFER_OFFSET + BUFFER).contains(&offset) {
            assert_eq!(width, 8);
            self.buffer[(offset - BUFFER_OFFSET) as usize / 8] = value;
            return;
        }
        assert_eq!(width, 4, "registers are written 32 bits at a time");
        let low = |old: u64| old & !0xffff_ffff | value;
        let high = |old: u64| old & 0xffff_ffff | value << 32;
        match offset {
            0x14 => {
                let value = value as u32;
                if value & 1 == 0 {
                    self.stop();
                } else if self.cc & 1 == 0 && self.fault != Fault::NeverReady {
                    (self.csts, self.starts) = (1, self.starts + 1);
                    let size = (self.aqa & 0xfff) + 1;
                    let queue =
                        Queue { submission: self.asq, size, phase: true, ..Queue::default() };
                    self.queues.insert(0, Queue { completion: self.acq, ..queue });
                }
                if value & 0xc000 != 0 {
                    (self.csts, self.shutdowns) = (self.csts | 8, self.shutdowns + 1);
                }
                self.cc = value;
            }
            0x24 => self.aqa = value as u32,
            0x28 => self.asq = low(self.asq),
            0x2c => self.asq = high(self.asq),
            0x30 => self.acq = low(self.acq),
            0x34 => self.acq = high(self.acq),
            0x50 => self.buffer_at = low(self.buffer_at),
            0x54 => self.buffer_at = high(self.buffer_at),
            0x1000.. => {
                let number = (offset - 0x1000) / 4;
                let id = (number / 2) as u16;
                if number % 2 == 1 {
                    return;
                }
                if id > 0 && self.fault == Fault::Gone {
                    self.is_gone = true;
                }
                while let Some(queue) = self.queues.get_mut(&id)
                    && u64::from(queue.head) != value
                {
                    let at = queue.submission + 64 * u64::from(queue.head);
                    queue.head = (queue.head + 1) % queue.size;
                    let words = std::array::from_fn(|i| self.load(at + 8 * i as u64));
                    self.command(id, words);
                }
            }
            _ => {}
        }
    }

    fn reset(&mut self) {
        self.stop();
        self.buffer_at = 0;
    }
}

/// A function with the controller.
pub(super) fn scripted() -> Arc<Scripted<Controller>> {
    let scripted = Scripted::new((0x1234, 0x5678), |host| Controller {
        host,
        fault: Fault::None,
        cc: 0,
        csts: 0,
        aqa: 0,
        asq: 0,
        acq: 0,
        queues: BTreeMap::new(),
        held: Vec::new(),
        is_gone: false,
        starts: 0,
        shutdowns: 0,
        offers_shadow: false,
        shadow: None,
        buffer: Vec::new(),
        buffer_uses: 0,
        buffer_at: 0,
    });
    scripted.config()[9..12].copy_from_slice(&[2, 8, 1]);
    scripted
}

pub(super) fn probe(scripted: &Arc<Scripted<Controller>>) -> Result<Nvme, ProbeFailed<NvmeError>> {
    probe_with(scripted, Config::default())
}

pub(super) fn probe_with(
    scripted: &Arc<Scripted<Controller>>,
    config: Config,
) -> Result<Nvme, ProbeFailed<NvmeError>> {
    let device = Device::open(scripted.attach()).unwrap();
    let admin_timeout = std::time::Duration::from_millis(200);
    Nvme::probe(device, Config { wait: Some(WaitMode::Poll), admin_timeout, ..config })
}
