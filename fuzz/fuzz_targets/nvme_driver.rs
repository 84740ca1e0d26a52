//! Registers, identify data, completion entries and interrupts of a hostile controller to the NVMe
//! driver: every command ends once, within a bound, and nothing is given back that is in use.
#![no_main]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use vfio_dma::backend::IrqKind;
use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::nvme::{
    Config, Consent, DataMethod, Nvme, NvmeError, QueueConfig, WhenFull,
};
use vfio_dma::dma::{Direction, Request, SgTable};
use vfio_dma::queue::WaitMode;
use vfio_dma_fuzz::{Bytes, Hostile, Plausible};
use vfio_dma_model::embedded::{Embedded, IommuOptions};
use vfio_dma_model::memory::DmaMap;

/// How long a command may take.
const PATIENCE: Duration = Duration::from_millis(2);
/// CAP: 2048 entries, the shortest timeout, pages of 4 to 64 KiB.
const CAP: u64 = 0x0040_0020_0001_07ff;
/// Bytes of its blocks.
const BLOCK: usize = 512;

/// What it offers, by bits of a byte: a memory buffer, which may be for completions too, and in
/// which queues are wished for.
const BUFFER: u8 = 1;
const BUFFER_COMPLETIONS: u8 = 1 << 1;
const QUEUES_IN_BUFFER: u8 = 1 << 2;
/// Shadow doorbells, and that it looks at them by itself, seldom.
const SHADOW: u8 = 1 << 3;
const SHADOW_ALONE: u8 = 1 << 4;
/// Every optional command, copies among them.
const COMMANDS: u8 = 1 << 5;
/// SGLs, and those in doublewords only.
const SGL: u8 = 1 << 6;
const SGL_WORDS: u8 = 1 << 7;

/// Where the memory buffer lies in BAR0, and its bytes.
const BUFFER_OFFSET: u64 = 0x1_0000;
const BUFFER_LEN: u64 = 0x1_0000;
/// How many accesses to registers pass between two looks at shadow doorbells.
const SELDOM: u32 = 16;

#[derive(Default)]
struct Queue {
    submission: u64,
    size: u32,
    head: u32,
    completion: u64,
    tail: u32,
    phase: bool,
}

/// A controller that does at once what it is told; its identify data is as its bytes change it.
#[derive(Default)]
struct Controller {
    offers: u8,
    /// CMBMSC.
    buffer_at: u64,
    buffer: Vec<u64>,
    /// The shadow doorbells and EventIdx, and accesses since the last look at them.
    shadow: Option<[u64; 2]>,
    passed: u32,
    cap: u64,
    cc: u32,
    csts: u32,
    aqa: u32,
    asq: u64,
    acq: u64,
    queues: BTreeMap<u16, Queue>,
    /// What is written over identify data: which word, and its value.
    changes: Vec<(u64, u64)>,
    /// What completions have besides what they should: which one, and the bits.
    flips: Vec<(u8, u64)>,
    completed: u8,
    addresses: Vec<u64>,
}

impl Controller {
    fn new(bytes: &mut Bytes<'_>) -> Controller {
        let (offers, strange) = (bytes.u8(), bytes.u8());
        // The timeout stays as it is: it is the driver's patience.
        let cap = if strange & 1 == 0 { CAP } else { bytes.u64() & !(0xff << 24) | 1 << 37 };
        let cap = if offers & BUFFER == 0 { cap } else { cap | 1 << 57 };
        let buffer = if offers & BUFFER == 0 { 0 } else { BUFFER_LEN as usize / 8 };
        let buffer = vec![0; buffer];
        let changes = (0..strange >> 1 & 7).map(|_| (u64::from(bytes.u16()) % 512, bytes.u64()));
        let changes = changes.collect();
        let flips = (0..strange >> 4 & 7).map(|_| (bytes.u8(), bytes.u64())).collect();
        Controller { offers, buffer, cap, changes, flips, ..Controller::default() }
    }

    fn offers(&self, what: u8) -> bool {
        self.offers & what != 0
    }

    /// Which word of the memory buffer an address is.
    fn in_buffer(&self, at: u64) -> Option<usize> {
        let inside = at.checked_sub(self.buffer_at & !0xfff)?;
        let word = usize::try_from(inside / 8).ok()?;
        (self.buffer_at & 2 != 0 && word < self.buffer.len()).then_some(word)
    }

    // What is not mapped is refused, as by an IOMMU.

    fn load(&self, memory: &DmaMap, at: u64) -> u64 {
        match self.in_buffer(at) {
            Some(word) => self.buffer[word],
            None => memory.load_u64(at).unwrap_or(0),
        }
    }

    fn store(&mut self, memory: &DmaMap, at: u64, value: u64) {
        match self.in_buffer(at) {
            Some(word) => self.buffer[word] = value,
            None => drop(memory.store_u64(at, value)),
        }
    }

    fn stride(&self) -> u64 {
        4 << (self.cap >> 32 & 0xf)
    }

    /// Does what a queue has up to a tail. A tail beyond the queue, or more than it has, is
    /// ignored.
    fn run(&mut self, memory: &DmaMap, id: u16, tail: u64) {
        for _ in 0..4096 {
            let Some(queue) = self.queues.get_mut(&id) else { break };
            if u64::from(queue.head) == tail || tail >= u64::from(queue.size) {
                break;
            }
            let at = queue.submission + 64 * u64::from(queue.head);
            queue.head = (queue.head + 1) % queue.size;
            let words = std::array::from_fn(|i| self.load(memory, at + 8 * i as u64));
            self.command(memory, id, words);
        }
    }

    /// Looks at the shadow doorbells, and says at which it wants to be told the next time: at
    /// any, or only well ahead.
    fn look(&mut self, memory: &DmaMap) {
        let ids: Vec<u16> = self.queues.keys().copied().collect();
        for id in ids {
            let Some([shadow, event]) = self.shadow else { return };
            let place = 2 * u64::from(id) * self.stride();
            let mut tail = [0; 4];
            if memory.read(shadow + place, &mut tail).is_ok() {
                self.run(memory, id, u32::from_le_bytes(tail).into());
            }
            let Some(queue) = self.queues.get(&id) else { continue };
            let ahead = (queue.head + queue.size / 2) % queue.size.max(1);
            let wanted = if self.offers(SHADOW_ALONE) { ahead } else { u32::MAX };
            let _ = memory.write(event + place, &wanted.to_le_bytes());
        }
    }

    /// A register was accessed: now and then it looks at memory by itself.
    fn pass(&mut self, memory: &DmaMap) {
        self.passed += 1;
        if self.passed.is_multiple_of(SELDOM) {
            self.look(memory);
        }
    }

    fn complete(&mut self, memory: &DmaMap, id: u16, tag: u16, status: u16, result: u32) {
        let Some(queue) = self.queues.get_mut(&id) else { return };
        let mut word = u64::from(queue.head)
            | u64::from(id) << 16
            | u64::from(tag) << 32
            | u64::from(queue.phase) << 48
            | u64::from(status) << 49;
        self.completed = self.completed.wrapping_add(1);
        for &(which, bits) in &self.flips {
            if which == self.completed {
                word ^= bits;
            }
        }
        let at = queue.completion + 16 * u64::from(queue.tail);
        queue.tail += 1;
        if queue.tail == queue.size {
            (queue.tail, queue.phase) = (0, !queue.phase);
        }
        self.store(memory, at, result.into());
        self.store(memory, at + 8, word);
    }

    fn identify(&self, memory: &DmaMap, cns: u32, at: u64) {
        let mut words = [0u64; 512];
        match cns {
            1 => {
                words[0] = u64::from_le_bytes(*b"\0\0\0\0disk");
                // OACS: shadow doorbells.
                words[32] = if self.offers(SHADOW) { 1 << 8 } else { 0 };
                // Sizes of entries, and two namespaces.
                words[64] = 0x2_0000_4466;
                if self.offers(COMMANDS) {
                    // ONCS: every optional command; OCFS: source ranges of format 0.
                    (words[65], words[66]) = (0x1ff, 1 << 48);
                }
                words[67] = match (self.offers(SGL), self.offers(SGL_WORDS)) {
                    (false, _) => 0,
                    (true, false) => 1,
                    (true, true) => 2,
                };
            }
            2 => (words[0], words[1]) = (0x2_0000_0001, 0),
            _ => {
                (words[0], words[16]) = (1 << 10, 9 << 16);
                // MSSRL, MCL and MSRC: ranges of 8 blocks, 40 blocks and 7 ranges of a command.
                (words[9], words[10]) = (40 << 32 | 8 << 16, 6);
            }
        }
        for &(word, value) in &self.changes {
            words[word as usize] = value;
        }
        for (n, word) in (0..).zip(words) {
            let _ = memory.store_u64(at + 8 * n, word);
        }
    }

    fn command(&mut self, memory: &DmaMap, id: u16, words: [u64; 8]) {
        let (opcode, tag) = (words[0] as u8, (words[0] >> 16) as u16);
        let w10 = words[5] as u32;
        self.addresses.truncate(24);
        self.addresses.extend([words[3], words[4]]);
        match (id, opcode) {
            (0, 0x05 | 0x01) => {
                let queue = self.queues.entry(w10 as u16).or_default();
                queue.size = (w10 >> 16) + 1;
                if opcode == 5 {
                    (queue.completion, queue.phase) = (words[3], true);
                } else {
                    queue.submission = words[3];
                }
                let at = words[3];
                self.addresses.insert(0, at);
                self.complete(memory, 0, tag, 0, 0);
            }
            (0, 0x00 | 0x04) => {
                if opcode == 4 {
                    self.queues.remove(&(w10 as u16));
                }
                self.complete(memory, 0, tag, 0, 0);
            }
            (0, 0x06) => {
                self.identify(memory, w10 & 0xff, words[3]);
                self.complete(memory, 0, tag, 0, 0);
            }
            // An event is reported when there is one: never.
            (0, 0x0c) => {}
            (0, 0x08) => self.complete(memory, 0, tag, 0, 1),
            (0, 0x7c) => {
                self.shadow = Some([words[3], words[4]]);
                // The admin queue's begins where its register is.
                let head = self.queues.get(&0).map_or(0, |queue| queue.head);
                let _ = memory.write(words[3], &head.to_le_bytes());
                self.complete(memory, 0, tag, 0, 0);
                self.look(memory);
            }
            (0, 0x09 | 0x0a) => self.complete(memory, 0, tag, 0, 3 << 16 | 3),
            (0, 0x02) => {
                let _ = memory.write(words[3], &[0x5a; 64]);
                self.complete(memory, 0, tag, 0, 0);
            }
            (0, _) => self.complete(memory, 0, tag, 0x4001, 0),
            (_, 0x02) => {
                let _ = memory.write(words[3], &[7; BLOCK]);
                self.complete(memory, id, tag, 0, 0);
            }
            _ => self.complete(memory, id, tag, 0, 0),
        }
    }

    fn stop(&mut self) {
        (self.csts, self.cc) = (0, 0);
        self.shadow = None;
        self.queues.clear();
    }
}

impl Plausible for Controller {
    const BAR0: u64 = BUFFER_OFFSET + BUFFER_LEN;

    fn read(&mut self, offset: u64, _len: usize, memory: &DmaMap) -> u64 {
        self.pass(memory);
        match offset {
            0x00 => self.cap & 0xffff_ffff,
            0x04 => self.cap >> 32,
            0x08 => 0x0001_0400,
            0x14 => self.cc.into(),
            0x1c => self.csts.into(),
            // CMBLOC: BAR0, in units of 4 KiB; CMBSZ: what for.
            0x38 if self.buffer_at & 1 != 0 => BUFFER_OFFSET,
            0x3c if self.buffer_at & 1 != 0 => {
                BUFFER_LEN | if self.offers(BUFFER_COMPLETIONS) { 3 } else { 1 }
            }
            BUFFER_OFFSET.. => {
                let word = (offset - BUFFER_OFFSET) as usize / 8;
                self.buffer.get(word).copied().unwrap_or(u64::MAX)
            }
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, value: u64, memory: &DmaMap) {
        let low = |old: u64| old & !0xffff_ffff | value & 0xffff_ffff;
        let high = |old: u64| old & 0xffff_ffff | value << 32;
        self.pass(memory);
        match offset {
            0x14 => {
                let value = value as u32;
                if value & 1 == 0 {
                    self.stop();
                } else if self.cc & 1 == 0 {
                    self.csts = 1;
                    let size = (self.aqa & 0xfff) + 1;
                    let (submission, completion) = (self.asq, self.acq);
                    let queue =
                        Queue { submission, completion, size, phase: true, ..Queue::default() };
                    self.queues.insert(0, queue);
                }
                if value & 0xc000 != 0 {
                    self.csts |= 8;
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
            BUFFER_OFFSET.. => {
                let word = (offset - BUFFER_OFFSET) as usize / 8;
                if let Some(known) = self.buffer.get_mut(word) {
                    *known = value;
                }
            }
            0x1000.. => {
                let number = (offset - 0x1000) / self.stride();
                if number.is_multiple_of(2) {
                    self.run(memory, (number / 2) as u16, value);
                }
            }
            _ => {}
        }
    }

    fn config(&self, offset: u64) -> u8 {
        match offset {
            0..=3 => [0x34, 0x12, 0x78, 0x56][offset as usize],
            0x9 => 0x02,
            0xa => 0x08,
            0xb => 0x01,
            _ => 0,
        }
    }

    fn addresses(&self) -> Vec<u64> {
        self.addresses.clone()
    }

    fn is_honest(&self, offset: u64) -> bool {
        offset < 8
    }
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes::new(data);
    let wait = match bytes.u8() % 3 {
        0 => WaitMode::Interrupt(IrqKind::MsiX),
        1 => WaitMode::Adaptive { irq: IrqKind::Msi, spin: Duration::from_micros(20) },
        _ => WaitMode::Poll,
    };
    let method = [DataMethod::Auto, DataMethod::Prp, DataMethod::Sgl][usize::from(bytes.u8() % 3)];
    let queue = QueueConfig {
        size: 2 + u32::from(bytes.u8() % 40),
        timeout: PATIENCE,
        abort_grace: PATIENCE,
        method,
        list_pages: 1,
        ..QueueConfig::default()
    };
    let plan = bytes.u16();
    let controller = Controller::new(&mut bytes);
    let (buffer, inside) = (controller.offers(BUFFER), controller.offers(QUEUES_IN_BUFFER));
    let queue = QueueConfig { memory_buffer: buffer && inside, ..queue };
    let function = Hostile::new(controller, bytes.rest());
    let model = Embedded::with_function(function, IommuOptions::default());
    let start = Instant::now();
    let device = Device::open(model.attach().expect("the only one")).expect("a device");
    let config = Config {
        wait: Some(wait),
        queues: 2,
        admin_timeout: PATIENCE,
        memory_buffer: buffer,
        ..Config::default()
    };
    if let Ok(nvme) = Nvme::probe(device, config) {
        use_it(&nvme, queue, plan);
    }
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
});

fn use_it(nvme: &Nvme, config: QueueConfig, plan: u16) {
    let _ = (nvme.smart_log(), nvme.error_log(), nvme.take_events());
    let Some(namespace) = nvme.namespaces().first().copied() else { return };
    let Ok(mut queue) = nvme.queue(config) else { return };
    let Ok(block) = usize::try_from(namespace.block_size()) else { return };
    if block == 0 || block > 1 << 16 {
        return;
    }
    let (submissions, completions) = queue.in_memory_buffer();
    assert!(config.memory_buffer || !submissions && !completions);
    // The drive has no data on it, as far as it says so.
    let consent = Consent::new(nvme.info().serial.clone(), namespace.bytes());
    let writable = match nvme.info().can_copy() {
        true => queue.writable(&namespace, &consent, 4 * PATIENCE).ok(),
        false => None,
    };
    let mut tokens = Vec::new();
    for round in 0..12u16 {
        let pieces = usize::from(plan >> (round % 11) & 7) + 1;
        let place = |direction| {
            let buffer = nvme.allocate(&Request::new(block * pieces, direction)).ok()?;
            let buffer = std::sync::Arc::new(buffer);
            let ranges = (0..pieces).rev().map(|n| (buffer.clone(), n * block, block));
            Some(SgTable::gather(ranges).expect("ranges of the buffer"))
        };
        let (lba, blocks) = (u64::from(round) * 64, pieces as u64);
        let submitted = match (plan.rotate_right(round.into()) & 7, &writable) {
            (0, _) => queue.flush(&namespace, WhenFull::Return),
            (1, _) => queue.verify(&namespace, lba, blocks, WhenFull::Return),
            (2 | 3, Some(writable)) => {
                // More ranges than a command has, and longer ones.
                let sources: Vec<_> = (0..blocks).map(|n| 16 * n..16 * n + 1 + 2 * n).collect();
                queue.copy(writable, &sources, 512 + lba / 4, WhenFull::Return)
            }
            (4, Some(writable)) => {
                let Some(source) = place(Direction::ToDevice) else { break };
                queue.write(writable, lba, source, WhenFull::Return)
            }
            (5, Some(writable)) => queue.write_zeroes(writable, lba, blocks, WhenFull::Return),
            (6, Some(writable)) => queue.deallocate(writable, lba, blocks, WhenFull::Return),
            (6, None) => {
                let Some(source) = place(Direction::ToDevice) else { break };
                queue.compare(&namespace, lba, source, WhenFull::Return)
            }
            _ => {
                let Some(target) = place(Direction::FromDevice) else { break };
                queue.read(&namespace, lba, target, WhenFull::Return)
            }
        };
        match submitted {
            Ok(token) => tokens.push(token),
            Err(refused) => drop(refused),
        }
        if plan >> (round % 16) & 1 == 1 {
            let _ = queue.issue();
            let _ = queue.poll();
        }
    }
    let _ = queue.issue();
    for token in tokens {
        if queue.wait(token, PATIENCE).is_ok() {
            let again = queue.take(token);
            assert!(matches!(again, Err(NvmeError::NoSuchTransfer)), "it ended twice: {again:?}");
        }
    }
}
