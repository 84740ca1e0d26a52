//! Registers, identify data, completion entries and interrupts of a hostile controller to the NVMe
//! driver: every command ends once, within a bound, and nothing is given back that is in use.
#![no_main]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use vfio_dma::backend::IrqKind;
use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::nvme::{Config, DataMethod, Nvme, NvmeError, QueueConfig, WhenFull};
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
        let strange = bytes.u8();
        // The timeout stays as it is: it is the driver's patience.
        let cap = if strange & 1 == 0 { CAP } else { bytes.u64() & !(0xff << 24) | 1 << 37 };
        let changes = (0..strange >> 1 & 7).map(|_| (u64::from(bytes.u16()) % 512, bytes.u64()));
        let changes = changes.collect();
        let flips = (0..strange >> 4 & 7).map(|_| (bytes.u8(), bytes.u64())).collect();
        Controller { cap, changes, flips, ..Controller::default() }
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
        // What is not mapped is refused, as by an IOMMU.
        let _ = memory.store_u64(at, result.into());
        let _ = memory.store_u64(at + 8, word);
        queue.tail += 1;
        if queue.tail == queue.size {
            (queue.tail, queue.phase) = (0, !queue.phase);
        }
    }

    fn identify(&self, memory: &DmaMap, cns: u32, at: u64) {
        let mut words = [0u64; 512];
        match cns {
            1 => {
                words[0] = u64::from_le_bytes(*b"\0\0\0\0disk");
                // Two namespaces, and every optional command.
                (words[64], words[65]) = (0x6604_0000, 0x00fe_0000_0002);
            }
            2 => (words[0], words[1]) = (0x2_0000_0001, 0),
            _ => (words[0], words[16]) = (1 << 20, 9 << 16),
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
        self.queues.clear();
    }
}

impl Plausible for Controller {
    const BAR0: u64 = 0x4000;

    fn read(&mut self, offset: u64, _len: usize) -> u64 {
        match offset {
            0x00 => self.cap & 0xffff_ffff,
            0x04 => self.cap >> 32,
            0x08 => 0x0001_0400,
            0x14 => self.cc.into(),
            0x1c => self.csts.into(),
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, value: u64, memory: &DmaMap) {
        let low = |old: u64| old & !0xffff_ffff | value & 0xffff_ffff;
        let high = |old: u64| old & 0xffff_ffff | value << 32;
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
            0x1000.. => {
                let stride = 4 << (self.cap >> 32 & 0xf);
                let number = (offset - 0x1000) / stride;
                let id = (number / 2) as u16;
                if number % 2 == 1 {
                    return;
                }
                // A doorbell beyond the queue, or more than it has, is ignored.
                for _ in 0..4096 {
                    let Some(queue) = self.queues.get_mut(&id) else { break };
                    if u64::from(queue.head) == value || value >= u64::from(queue.size) {
                        break;
                    }
                    let at = queue.submission + 64 * u64::from(queue.head);
                    queue.head = (queue.head + 1) % queue.size;
                    let words =
                        std::array::from_fn(|i| memory.load_u64(at + 8 * i as u64).unwrap_or(0));
                    self.command(memory, id, words);
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
    let function = Hostile::new(controller, bytes.rest());
    let model = Embedded::with_function(function, IommuOptions::default());
    let start = Instant::now();
    let device = Device::open(model.attach().expect("the only one")).expect("a device");
    let config =
        Config { wait: Some(wait), queues: 2, admin_timeout: PATIENCE, ..Config::default() };
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
    let mut tokens = Vec::new();
    for round in 0..12u16 {
        let pieces = usize::from(plan >> (round % 11) & 7) + 1;
        let request = Request::new(block * pieces, Direction::FromDevice);
        let Ok(target) = nvme.allocate(&request) else { break };
        let target = std::sync::Arc::new(target);
        let ranges = (0..pieces).rev().map(|n| (target.clone(), n * block, block));
        let target = SgTable::gather(ranges).expect("ranges of the buffer");
        let lba = u64::from(round) * 64;
        let submitted = match plan >> (round % 7) & 3 {
            0 => queue.flush(&namespace, WhenFull::Return),
            1 => queue.verify(&namespace, lba, pieces as u64, WhenFull::Return),
            _ => queue.read(&namespace, lba, target, WhenFull::Return),
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
