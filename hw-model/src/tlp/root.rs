//! A root complex: answers an endpoint's requests from memory, and asks it for registers.

use std::sync::Arc;

use super::endpoint::{Credits, Inbound};
use super::error::Malformed;
use super::fault::TlpFault;
use super::packet::{Completion, Request, Span, Status, Tlp};
use super::stats::Stats;
use crate::fault::FaultPlan;
use crate::link::{LinkMeter, TlpKind};
use crate::memory::DmaMap;
use crate::regs::rate::RateLimit;

/// Bus, device and function of the root complex itself.
pub(super) const ROOT_ID: u16 = 0x0000;

/// Addresses whose writes are interrupts on x86 (Intel SDM volume 3, 11.11.1).
pub(super) const MSI_WINDOW: std::ops::RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;

/// In which order reads are answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Order {
    /// As they come.
    #[default]
    AsAsked,
    /// Each completion up to so many cycles later, by chance; those of one read stay in order.
    /// What comes is the same for the same seed.
    Shuffled {
        /// The most cycles.
        cycles: u32,
        /// Where the chances begin.
        seed: u64,
    },
}

/// How a root complex answers.
#[derive(Debug, Clone)]
pub struct RootConfig {
    /// Read completion boundary in bytes, 64 or 128: where completions may be cut.
    pub read_completion_boundary: u16,
    /// Longest completion in bytes, a multiple of the boundary; Max_Payload_Size holds besides.
    pub longest_completion: u16,
    /// Cycles from a read request to its first completion.
    pub latency: u32,
    /// Bytes of completions in each cycle; 0: as many as the endpoint takes.
    pub bytes_per_cycle: u32,
    /// In which order.
    pub order: Order,
    /// What it has room for.
    pub credits: Credits,
    /// Counts the packets on the link, when given.
    pub meter: Option<Arc<LinkMeter>>,
    /// What is to go wrong.
    pub faults: FaultPlan<TlpFault>,
}

impl Default for RootConfig {
    /// Answers at once, in order, in packets as long as they may be, with endless credits.
    fn default() -> Self {
        RootConfig {
            read_completion_boundary: 64,
            longest_completion: 4096,
            latency: 0,
            bytes_per_cycle: 0,
            order: Order::AsAsked,
            credits: Credits { reads: 0, posted_bytes: 0, posted_bytes_per_cycle: 16 },
            meter: None,
            faults: FaultPlan::default(),
        }
    }
}

/// What of the function's state a request depends on, and what it acts on.
pub(super) struct Bus<'a> {
    pub(super) memory: &'a DmaMap,
    pub(super) is_master: bool,
    pub(super) max_payload: usize,
    pub(super) max_read_request: usize,
    pub(super) log: &'a RateLimit,
    /// Raises a vector of MSI.
    pub(super) interrupt: &'a dyn Fn(u32),
}

/// A read of the host that the endpoint has not answered.
#[derive(Debug, Clone)]
struct HostRead {
    tag: u8,
    request: Request,
    data: Option<Vec<u8>>,
}

#[derive(Debug)]
pub(super) struct RootComplex {
    pub(super) config: RootConfig,
    pub(super) stats: Stats,
    /// Answers for the endpoint.
    pub(super) answers: Vec<Inbound>,
    held: Option<Vec<Inbound>>,
    /// No completion is sent before this cycle: the former ones take their time.
    line_free: u64,
    next_tag: u8,
    host_read: Option<HostRead>,
    chances: u64,
    /// How often each rule of the fault plan took effect.
    fired: Vec<u64>,
    /// The link went down.
    pub(super) is_down: bool,
}

impl RootComplex {
    pub(super) fn new(config: RootConfig) -> RootComplex {
        let chances = match config.order {
            Order::AsAsked => 1,
            Order::Shuffled { seed, .. } => seed | 1,
        };
        RootComplex {
            config,
            stats: Stats::default(),
            answers: Vec::new(),
            held: None,
            line_free: 0,
            next_tag: 0,
            host_read: None,
            chances,
            fired: Vec::new(),
            is_down: false,
        }
    }

    /// Forgets what is on its way.
    pub(super) fn reset(&mut self) {
        self.answers.clear();
        (self.held, self.host_read, self.line_free) = (None, None, 0);
    }

    /// Puts a fault plan in force in place of the former one.
    pub(super) fn inject(&mut self, plan: FaultPlan<TlpFault>) {
        self.fired.clear();
        self.config.faults = plan;
    }

    /// How often each rule of the fault plan took effect.
    pub(super) fn faults_fired(&self) -> Vec<u64> {
        let mut fired = self.fired.clone();
        fired.resize(self.config.faults.rules().len(), 0);
        fired
    }

    // The host asks.

    /// A read of a register; its answer is [`RootComplex::take_host_read`]'s.
    pub(super) fn host_read(&mut self, address: u64, len: usize) -> Vec<u32> {
        self.stats.host_reads += 1;
        if let Some(meter) = &self.config.meter {
            meter.host_read(len as u64);
        }
        let tag = self.next_tag;
        // LitePCIe's own cores and others use few tag bits; a root has more than enough.
        self.next_tag = (tag + 1) % 32;
        let request = Request::of_bytes(ROOT_ID, tag, address, len);
        self.host_read = Some(HostRead { tag, request, data: None });
        Tlp::Read(request).encode()
    }

    /// The bytes that were read, once they are there.
    pub(super) fn take_host_read(&mut self) -> Option<Vec<u8>> {
        self.host_read.as_ref()?.data.as_ref()?;
        self.host_read.take()?.data
    }

    /// A read that took too long.
    pub(super) fn give_up_host_read(&mut self) {
        self.stats.host_timeouts += 1;
        self.host_read = None;
    }

    // The endpoint asks and answers.

    /// A packet that the endpoint sent in a cycle.
    pub(super) fn receive(&mut self, cycle: u64, words: &[u32], bus: &Bus<'_>) {
        if self.is_down {
            return;
        }
        self.stats.received += 1;
        let result = match Tlp::decode(words) {
            Ok(Tlp::Read(request)) => self.read(cycle, &request, bus),
            Ok(Tlp::Write(request, data)) => self.write(cycle, &request, &data, bus),
            Ok(Tlp::Completion(completion, data)) => self.completion(&completion, data),
            Err(malformed) => Err(malformed),
        };
        if let Err(malformed) = result {
            self.malformed(malformed, bus.log);
            // Section 2.3.1: what is no memory request but wants an answer gets one.
            if let (Malformed::Type { format, kind }, [_, second, ..]) = (malformed, words)
                && wants_answer(format, kind)
            {
                self.stats.unsupported += 1;
                let (requester, tag) = ((second >> 16) as u16, (second >> 8) as u8);
                let refusal = refusal(requester, tag, 4, 0, Status::UnsupportedRequest);
                self.answer(cycle, 0, vec![refusal]);
            }
        }
    }

    pub(super) fn malformed(&mut self, malformed: Malformed, log: &RateLimit) {
        self.stats.malformed[malformed.kind()] += 1;
        log.warn(format_args!("a malformed packet from the endpoint: {malformed}"));
    }

    fn write(
        &mut self,
        cycle: u64,
        request: &Request,
        data: &[u8],
        bus: &Bus<'_>,
    ) -> Result<(), Malformed> {
        if data.len() > bus.max_payload {
            return Err(Malformed::Payload { len: data.len(), limit: bus.max_payload });
        }
        self.stats.writes += 1;
        if !bus.is_master {
            self.stats.not_bus_master += 1;
            return Ok(());
        }
        if MSI_WINDOW.contains(&request.address) {
            let vector = u32::from(data[0]) | u32::from(data[1]) << 8;
            self.message(vector, bus);
            return Ok(());
        }
        if request.poisoned {
            self.stats.poisoned += 1;
            bus.log.warn(format_args!("a poisoned write to {:#x} is dropped", request.address));
            return Ok(());
        }
        let Span { start, end } = request.span();
        if let Some(meter) = &self.config.meter {
            meter.packet(TlpKind::DataWrite, data.len() as u64);
            meter.translate(request.address, data.len() as u64);
        }
        let whole = (start..end).all(|offset| request.enables(offset));
        let written = if whole {
            bus.memory.write(request.address + start as u64, &data[start..end])
        } else {
            let enabled = (start..end).filter(|&offset| request.enables(offset));
            let mut each = enabled.map(|offset| (request.address + offset as u64, data[offset]));
            each.try_for_each(|(address, byte)| bus.memory.write(address, &[byte]))
        };
        match written {
            Ok(()) => {
                self.stats.bytes_written += (end - start) as u64;
                self.stats.written_until = cycle;
            }
            Err(fault) => {
                self.stats.faults += 1;
                bus.log.warn(format_args!("a write of the endpoint is dropped: {fault}"));
            }
        }
        Ok(())
    }

    /// An interrupt message.
    pub(super) fn message(&mut self, vector: u32, bus: &Bus<'_>) {
        self.stats.interrupts += 1;
        if let Some(meter) = &self.config.meter {
            meter.packet(TlpKind::Interrupt, 4);
        }
        (bus.interrupt)(vector);
    }

    /// What goes wrong with the read that was counted last.
    fn due_faults(&mut self) -> Vec<TlpFault> {
        let due: Vec<_> = self.config.faults.due(0, self.stats.reads).collect();
        self.fired.resize(self.config.faults.rules().len(), 0);
        due.iter().for_each(|&(rule, _)| self.fired[rule] += 1);
        due.into_iter().map(|(_, fault)| fault).collect()
    }

    fn read(&mut self, cycle: u64, request: &Request, bus: &Bus<'_>) -> Result<(), Malformed> {
        let len = request.len();
        if len > bus.max_read_request {
            return Err(Malformed::ReadRequest { len, limit: bus.max_read_request });
        }
        self.stats.reads += 1;
        let faults = self.due_faults();
        if faults.contains(&TlpFault::LinkDown) {
            self.is_down = true;
            return Ok(());
        }
        let Span { start, end } = request.span();
        if let Some(meter) = &self.config.meter {
            meter.packet(TlpKind::DataReadRequest, 0);
            meter.translate(request.address, len as u64);
        }
        let mut data = vec![0; end - start];
        let first = request.address + start as u64;
        let status = if !bus.is_master {
            self.stats.not_bus_master += 1;
            Status::UnsupportedRequest
        } else if faults.contains(&TlpFault::Unsupported) {
            Status::UnsupportedRequest
        } else {
            match bus.memory.read(first, &mut data) {
                Ok(()) => Status::Success,
                Err(fault) => {
                    self.stats.faults += 1;
                    bus.log.warn(format_args!("a read of the endpoint is refused: {fault}"));
                    Status::UnsupportedRequest
                }
            }
        };
        let mut answers = match status {
            Status::Success => {
                self.stats.bytes_read += data.len() as u64;
                self.split(request, first, &data, bus.max_payload)
            }
            _ => {
                self.stats.unsupported += 1;
                let count = (end - start).max(1) as u16;
                vec![refusal(request.requester, request.tag, count, first as u8 & 0x7f, status)]
            }
        };
        let mut late = 0;
        for fault in faults {
            match fault {
                TlpFault::Late(cycles) => late += cycles,
                TlpFault::Lost => answers.clear(),
                TlpFault::Poisoned => answers.iter_mut().for_each(poison),
                TlpFault::Reordered => {
                    let before = std::mem::take(&mut self.answers);
                    self.answer(cycle, late, answers);
                    self.held = Some(std::mem::replace(&mut self.answers, before));
                    return Ok(());
                }
                TlpFault::Unsupported | TlpFault::LinkDown => {}
            }
        }
        self.answer(cycle, late, answers);
        if let Some(mut held) = self.held.take() {
            // In the order of their cycles, and of being handed over where those are equal.
            let last = self.answers.last().map_or(0, |answer| answer.due);
            held.iter_mut().for_each(|answer| answer.due = answer.due.max(last));
            self.answers.append(&mut held);
        }
        Ok(())
    }

    /// Lets go an answer that waits for another read, when none comes.
    pub(super) fn release_held(&mut self) -> bool {
        let held = self.held.take();
        let any = held.is_some();
        self.answers.extend(held.into_iter().flatten());
        any
    }

    /// Cuts an answer at the read completion boundary (section 2.3.1.1).
    fn split(&self, request: &Request, first: u64, data: &[u8], max_payload: usize) -> Vec<Tlp> {
        let boundary = u64::from(self.config.read_completion_boundary.max(64));
        let longest = usize::from(self.config.longest_completion).min(max_payload) as u64;
        let longest = longest.max(boundary);
        let whole = data.len() as u64;
        let mut answers = Vec::new();
        let mut done = 0;
        loop {
            let at = first + done;
            // Up to the longest packet's end, and from there back to a boundary.
            let limit = ((at & !3) + longest) & !(boundary - 1);
            let len = (whole - done).min(limit - at);
            let (head, piece) = ((at & 3) as usize, &data[done as usize..(done + len) as usize]);
            let mut dwords = vec![0; (head + piece.len()).div_ceil(4).max(1) * 4];
            dwords[head..head + piece.len()].copy_from_slice(piece);
            let completion = Completion {
                completer: ROOT_ID,
                requester: request.requester,
                tag: request.tag,
                status: Status::Success,
                byte_count: (whole - done).max(1) as u16,
                lower_address: at as u8 & 0x7f,
                poisoned: false,
            };
            answers.push(Tlp::Completion(completion, dwords));
            done += len;
            if done >= whole {
                return answers;
            }
        }
    }

    /// Sends an answer, `late` cycles later than it is due.
    fn answer(&mut self, cycle: u64, late: u64, packets: Vec<Tlp>) {
        let mut at = (cycle + u64::from(self.config.latency)).max(self.line_free);
        let count = packets.len();
        if count == 0 {
            let (is_completion, ends_read, words) = (true, true, Vec::new());
            self.answers.push(Inbound { due: at + late, is_completion, ends_read, words });
        }
        let mut earliest = 0;
        for (n, packet) in packets.into_iter().enumerate() {
            let mut due = at + late;
            if let Order::Shuffled { cycles, .. } = self.config.order {
                due = (due + self.chance(cycles)).max(earliest);
                earliest = due;
            }
            if let Some(meter) = &self.config.meter {
                meter.packet(TlpKind::DataReadCompletion, packet.data().len() as u64);
            }
            self.stats.completions += 1;
            let bytes = packet.data().len() as u64;
            let (is_completion, ends_read) = (true, n + 1 == count);
            self.answers.push(Inbound { due, is_completion, ends_read, words: packet.encode() });
            if self.config.bytes_per_cycle != 0 {
                at += bytes.div_ceil(u64::from(self.config.bytes_per_cycle));
            }
        }
        self.line_free = at;
    }

    /// A number up to `most`, by the generator of G. Marsaglia, "Xorshift RNGs", 2003.
    fn chance(&mut self, most: u32) -> u64 {
        self.chances ^= self.chances << 13;
        self.chances ^= self.chances >> 7;
        self.chances ^= self.chances << 17;
        self.chances % (u64::from(most) + 1)
    }

    fn completion(&mut self, completion: &Completion, data: Vec<u8>) -> Result<(), Malformed> {
        let tag = completion.tag;
        let waiting = self.host_read.as_mut().filter(|read| read.tag == tag && read.data.is_none());
        let Some(read) = waiting else { return Err(Malformed::Unexpected { tag }) };
        let wants = read.request.len();
        let Span { start, end } = read.request.span();
        if completion.status != Status::Success || completion.poisoned {
            self.stats.host_refused += 1;
            read.data = Some(vec![0xff; end - start]);
            return Ok(());
        }
        if data.len() != wants {
            read.data = Some(vec![0xff; end - start]);
            return Err(Malformed::CompletionLength { tag, has: data.len(), wants });
        }
        read.data = Some(data[start..end].to_vec());
        Ok(())
    }
}

/// The host's write of a register.
pub(super) fn host_write(address: u64, data: &[u8]) -> Vec<u32> {
    let request = Request::of_bytes(ROOT_ID, 0, address, data.len());
    let mut dwords = vec![0; request.len()];
    let at = (address & 3) as usize;
    dwords[at..at + data.len()].copy_from_slice(data);
    Tlp::Write(request, dwords).encode()
}

/// Whether a request of this format and type is answered: all but messages and writes to
/// memory (tables 2-3 and 2-13).
fn wants_answer(format: u8, kind: u8) -> bool {
    let is_message = kind & 0b1_1000 == 0b1_0000;
    let is_completion = matches!(kind, 0b0_1010 | 0b0_1011);
    let is_memory_write = kind == 0 && format & 0b10 != 0;
    format & 0b100 == 0 && !is_message && !is_completion && !is_memory_write
}

fn refusal(requester: u16, tag: u8, byte_count: u16, lower_address: u8, status: Status) -> Tlp {
    let completer = ROOT_ID;
    let poisoned = false;
    let header =
        Completion { completer, requester, tag, status, byte_count, lower_address, poisoned };
    Tlp::Completion(header, Vec::new())
}

/// Data that is known to be bad.
fn poison(packet: &mut Tlp) {
    if let Tlp::Completion(completion, data) = packet {
        completion.poisoned = true;
        data.iter_mut().for_each(|byte| *byte = !*byte);
    }
}
