//! The root complex against a plain model of memory, and the function around an endpoint.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use proptest::prelude::*;
use vfio_dma::backend::{IrqKind, Region};

use super::root::{Bus, RootComplex};
use super::*;
use crate::function::{Event as IrqEvent, PciFunction};
use crate::memory::{Access, DmaMap};
use crate::pci::Header;
use crate::regs::rate::RateLimit;

const LEN: usize = 64 << 10;
/// One range below 4 GiB, one above.
const BASES: [u64; 2] = [0x10_0000, 0x12_3450_0000];

/// Memory that a map reaches, and a plain copy of what should be in it.
struct Memory {
    map: DmaMap,
    pages: NonNull<u8>,
    model: Vec<u8>,
}

impl Memory {
    fn new() -> Memory {
        let model: Vec<u8> = (0..2 * LEN).map(|n| (n * 7 + n / 256) as u8).collect();
        let pages = NonNull::new(Box::into_raw(model.clone().into_boxed_slice()).cast()).unwrap();
        let map = DmaMap::new();
        for (n, base) in BASES.into_iter().enumerate() {
            // SAFETY: the memory is leaked, and nothing else refers to it.
            let host = unsafe { pages.add(n * LEN) };
            // SAFETY: as above.
            unsafe { map.map_host(base, LEN as u64, host, Access::ReadWrite) }.unwrap();
        }
        Memory { map, pages, model }
    }

    fn content(&self) -> Vec<u8> {
        let mut bytes = vec![0; 2 * LEN];
        let (low, high) = bytes.split_at_mut(LEN);
        self.map.read(BASES[0], low).unwrap();
        self.map.read(BASES[1], high).unwrap();
        bytes
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.map.unmap_all();
        let slice = std::ptr::slice_from_raw_parts_mut(self.pages.as_ptr(), 2 * LEN);
        // SAFETY: it is what was leaked, and nothing reaches it any more.
        drop(unsafe { Box::from_raw(slice) });
    }
}

/// Whether a read's completions are legal and have the right bytes.
fn check_answer(request: &Request, answers: &[Vec<u32>], config: &RootConfig, expected: &[u8]) {
    let (boundary, longest) = (config.read_completion_boundary, config.longest_completion);
    let Span { start, end } = request.span();
    let mut at = request.address + start as u64;
    let mut left = end - start;
    let mut got = Vec::new();
    for words in answers {
        let Ok(Tlp::Completion(completion, data)) = Tlp::decode(words) else {
            panic!("{words:x?} is no completion");
        };
        assert_eq!((completion.tag, completion.requester), (request.tag, request.requester));
        assert_eq!(completion.status, Status::Success);
        assert_eq!(usize::from(completion.byte_count), left.max(1));
        assert_eq!(u64::from(completion.lower_address), at & 0x7f);
        assert!(data.len() <= usize::from(longest.max(boundary)).min(256));
        let head = (at & 3) as usize;
        let len = (data.len() - head).min(left);
        if len < left {
            assert_eq!((at + len as u64) % u64::from(boundary), 0, "cut off a boundary");
        }
        got.extend_from_slice(&data[head..head + len]);
        at += len as u64;
        left -= len;
    }
    assert_eq!((left, got.as_slice()), (0, expected));
}

/// Many requests of any kind; checks every answer and, at the end, the memory.
fn exercise(config: RootConfig, mut random: impl FnMut() -> u64, packets: u32) {
    let mut memory = Memory::new();
    let mut root = RootComplex::new(config.clone());
    let log = RateLimit::default();
    let mut reads: HashMap<u8, (Request, Vec<u8>)> = HashMap::new();
    for n in 0..packets {
        let which = (random() % 2) as usize;
        let page = (random() % (LEN as u64 / 4096)) * 4096;
        let offset = random() % 4096;
        // Mostly short: the long ones are slow to check.
        let most = if random().is_multiple_of(8) { 256 } else { 24 };
        let len = (random() % (most + 1)).min(4096 - offset).min(256 - (offset & 3)) as usize;
        let request = Request::of_bytes(0x100, n as u8, BASES[which] + page + offset, len);
        let place = which * LEN + (page + offset) as usize;
        let tlp = if random().is_multiple_of(2) {
            let mut data: Vec<u8> = Vec::new();
            while data.len() < request.len() {
                data.extend_from_slice(&random().to_le_bytes());
            }
            data.truncate(request.len());
            let from = (offset & 3) as usize;
            memory.model[place..place + len].copy_from_slice(&data[from..from + len]);
            Tlp::Write(request, data)
        } else {
            reads.insert(request.tag, (request, memory.model[place..place + len].to_vec()));
            Tlp::Read(request)
        };
        let bus = Bus {
            memory: &memory.map,
            is_master: true,
            max_payload: 256,
            max_read_request: 512,
            log: &log,
            interrupt: &|_| panic!("an interrupt that nobody sent"),
        };
        root.receive(u64::from(n), &tlp.encode(), &bus);
        if reads.len() == 16 || n + 1 == packets {
            let mut answers = std::mem::take(&mut root.answers);
            answers.sort_by_key(|answer| answer.due);
            let mut by_tag: HashMap<u8, Vec<Vec<u32>>> = HashMap::new();
            for answer in answers {
                by_tag.entry((answer.words[2] >> 8) as u8).or_default().push(answer.words);
            }
            for (tag, (request, expected)) in reads.drain() {
                check_answer(&request, &by_tag[&tag], &config, &expected);
            }
        }
    }
    assert_eq!(memory.content(), memory.model);
    assert_eq!((root.stats.all_malformed(), root.stats.faults), (0, 0));
    assert_eq!(root.stats.received, u64::from(packets));
}

fn xorshift(mut state: u64) -> impl FnMut() -> u64 {
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

#[test]
fn a_million_packets_leave_memory_as_a_plain_model() {
    let order = Order::Shuffled { cycles: 40, seed: 5 };
    exercise(RootConfig { order, ..RootConfig::default() }, xorshift(0x1234_5678_9abc), 1_000_000);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_legal_way_to_answer_gives_the_same_bytes(
        wide: bool, cut in 1u16..=8, latency in 0u32..50, rate in 0u32..40, spread in 0u32..100,
        seed in 1u64..,
    ) {
        let boundary = if wide { 128 } else { 64 };
        let config = RootConfig {
            read_completion_boundary: boundary,
            longest_completion: boundary * cut,
            latency,
            bytes_per_cycle: rate,
            order: Order::Shuffled { cycles: spread, seed },
            ..RootConfig::default()
        };
        exercise(config, xorshift(seed), 400);
    }

    #[test]
    fn no_packet_whatsoever_disturbs_the_root(
        packets in prop::collection::vec(prop::collection::vec(any::<u32>(), 0..12), 1..50)
    ) {
        let memory = Memory::new();
        let mut root = RootComplex::new(RootConfig::default());
        let log = RateLimit::default();
        let bus = Bus {
            memory: &memory.map,
            is_master: true,
            max_payload: 256,
            max_read_request: 512,
            log: &log,
            interrupt: &|_| (),
        };
        for words in &packets {
            root.receive(0, words, &bus);
        }
        prop_assert_eq!(root.stats.received, packets.len() as u64);
    }
}

#[test]
fn what_is_not_allowed_is_counted_and_answered_as_a_root_port_does() {
    let memory = Memory::new();
    let mut root = RootComplex::new(RootConfig::default());
    let log = RateLimit::default();
    let interrupts = Mutex::new(Vec::new());
    let interrupt = |vector| interrupts.lock().unwrap().push(vector);
    let bus = |is_master| Bus {
        memory: &memory.map,
        is_master,
        max_payload: 256,
        max_read_request: 512,
        log: &log,
        interrupt: &interrupt,
    };
    let read = |address, len| Tlp::Read(Request::of_bytes(0x100, 9, address, len)).encode();
    let write = |address, len: usize| {
        Tlp::Write(Request::of_bytes(0x100, 9, address, len), vec![0; len]).encode()
    };
    let mut io = read(0x1000, 4);
    io[0] |= 0x0200_0000;
    // What is sent, whether it is answered as unsupported, and what counts.
    let unanswered = [
        (write(BASES[0], 512), "payload"),
        (read(BASES[0], 1024), "read-request"),
        (vec![0x4a00_0001, 0x0000_0004, 0x0100_0300, 7], "unexpected"),
        (vec![0x3000_0000, 0x0100_0000, 0, 0], "type"),
        (vec![0x0000_0001], "short"),
    ];
    for (words, name) in unanswered {
        root.receive(0, &words, &bus(true));
        let index = Malformed::NAMES.iter().position(|have| *have == name).unwrap();
        assert_eq!(root.stats.malformed[index], 1, "{name}");
        assert!(root.answers.is_empty(), "{name}");
    }
    root.receive(0, &io, &bus(true));
    root.receive(0, &read(0x9999_0000, 64), &bus(true));
    root.receive(0, &read(BASES[0], 64), &bus(false));
    root.receive(0, &write(BASES[0], 64), &bus(false));
    let statuses: Vec<_> = root
        .answers
        .drain(..)
        .map(|answer| match Tlp::decode(&answer.words).unwrap() {
            Tlp::Completion(completion, data) => (completion.status, completion.tag, data.len()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(statuses, [(Status::UnsupportedRequest, 9, 0); 3]);
    assert_eq!((root.stats.faults, root.stats.not_bus_master), (1, 2));
    let message = Tlp::Write(Request::of_bytes(0x100, 0, 0xfee0_0000, 4), vec![3, 0, 0, 0]);
    root.receive(0, &message.encode(), &bus(true));
    assert_eq!(*interrupts.lock().unwrap(), [3]);
    assert_eq!(memory.content(), memory.model);
}

#[test]
fn answers_go_wrong_on_request() {
    let memory = Memory::new();
    let log = RateLimit::default();
    let answers = |faults: &str| {
        let plan = faults.parse().unwrap();
        let mut root = RootComplex::new(RootConfig { faults: plan, ..RootConfig::default() });
        let bus = Bus {
            memory: &memory.map,
            is_master: true,
            max_payload: 256,
            max_read_request: 512,
            log: &log,
            interrupt: &|_| (),
        };
        for tag in 0..3 {
            let read = Tlp::Read(Request::of_bytes(0x100, tag, BASES[0], 64));
            root.receive(tag.into(), &read.encode(), &bus);
        }
        root.release_held();
        let fired = root.faults_fired();
        assert_eq!(fired, vec![1; root.config.faults.rules().len()], "{faults}");
        let mut answers = root.answers;
        answers.sort_by_key(|answer| answer.due);
        let tags = answers.iter().map(|a| a.words.get(2).map_or(0xff, |word| word >> 8 & 0xff));
        (tags.collect::<Vec<_>>(), answers, root.is_down)
    };
    assert_eq!(answers("").0, [0, 1, 2]);
    assert_eq!(answers("lost@2").0, [0, 0xff, 2]);
    assert_eq!(answers("late=100@1").0, [1, 2, 0]);
    assert_eq!(answers("reorder@2").0, [0, 2, 1]);
    assert_eq!(answers("reorder@3").0, [0, 1, 2]);
    let poisoned = Tlp::decode(&answers("poison@1").1[0].words).unwrap();
    let Tlp::Completion(header, data) = poisoned else { panic!() };
    assert!(header.poisoned && data[0] == !memory.model[0]);
    let refused = Tlp::decode(&answers("ur@1").1[0].words).unwrap();
    let Tlp::Completion(header, _) = refused else { panic!() };
    assert_eq!((header.status, header.byte_count), (Status::UnsupportedRequest, 64));
    let (tags, _, is_down) = answers("linkdown@2");
    assert_eq!((tags, is_down), (vec![0], true));
}

/// An endpoint of a few registers: a write to 0x10 reads 16 bytes from that address and
/// writes them behind, then sends a message; 0x20 is never answered.
#[derive(Default)]
struct Toy {
    now: u64,
    registers: HashMap<u64, u32>,
    deaf: bool,
    runs: Arc<Mutex<u64>>,
}

impl Endpoint for Toy {
    fn reset(&mut self) -> Result<(), EndpointError> {
        self.registers.clear();
        Ok(())
    }

    fn run(
        &mut self,
        settings: &Settings,
        inbound: &mut Vec<Inbound>,
        limits: &Limits,
        outcome: &mut Outcome,
    ) -> Result<(), EndpointError> {
        *self.runs.lock().unwrap() += 1;
        let mut quiet = limits.quiet;
        for packet in inbound.drain(..) {
            quiet = 0;
            self.now += 1;
            match Tlp::decode(&packet.words).unwrap() {
                Tlp::Write(request, data) => {
                    let value = u32::from_le_bytes(data.try_into().unwrap());
                    let at = request.address & 0xfff;
                    self.registers.insert(at, value);
                    if at == 0x10 {
                        let read = Request::of_bytes(settings.id, 1, value.into(), 16);
                        outcome.events.push((self.now, Event::Tlp(Tlp::Read(read).encode())));
                    }
                }
                Tlp::Read(request) if request.address & 0xfff != 0x20 && !self.deaf => {
                    let at = request.address & 0xfff;
                    let value = self.registers.get(&at).copied().unwrap_or(0);
                    let completion = Completion {
                        completer: settings.id,
                        requester: request.requester,
                        tag: request.tag,
                        status: Status::Success,
                        byte_count: 4,
                        lower_address: at as u8 & 0x7f,
                        poisoned: false,
                    };
                    let answer = Tlp::Completion(completion, value.to_le_bytes().to_vec());
                    outcome.events.push((self.now, Event::Tlp(answer.encode())));
                }
                Tlp::Completion(_, data) => {
                    let address = u64::from(self.registers[&0x10]) + 16;
                    let write = Tlp::Write(Request::of_bytes(settings.id, 0, address, 16), data);
                    outcome.events.push((self.now, Event::Tlp(write.encode())));
                    outcome.events.push((self.now, Event::Interrupt(0)));
                }
                Tlp::Read(_) => {}
            }
        }
        self.now += u64::from(limits.cycles);
        (outcome.now, outcome.quiet) = (self.now, quiet.max(outcome.quiet + limits.cycles));
        Ok(())
    }
}

fn toy() -> (TlpFunction<Toy>, Arc<Mutex<u64>>) {
    let header = Header {
        vendor: 0x1234,
        device: 1,
        revision: 0,
        class: 0x058000,
        subsystem_vendor: 0,
        subsystem: 0,
        interrupt_pin: 0,
    };
    let toy = Toy::default();
    let runs = Arc::clone(&toy.runs);
    (TlpFunction::new(toy, TlpConfig::new(header)).unwrap(), runs)
}

#[test]
fn a_function_reads_writes_moves_and_interrupts() {
    let (function, runs) = toy();
    let mut memory = [0u8; 4096].map(|_| 0x5a);
    let host = NonNull::new(memory.as_mut_ptr()).unwrap();
    // SAFETY: the array lives longer than the mapping, and is not touched meanwhile.
    unsafe { function.memory().map_host(0x4000, 4096, host, Access::ReadWrite) }.unwrap();
    function.memory().write(0x4000, b"sixteen letters.").unwrap();
    function.write(Region::Config, 4, &6u16.to_le_bytes());
    let ours = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    let event = IrqEvent::new(ours.as_fd().try_clone_to_owned().unwrap()).unwrap();
    function.irq_connect(IrqKind::Msi, 0, &[Some(event)]);

    function.write(Region::Bar(0), 0x8, &0x1122_3344u32.to_le_bytes());
    let mut word = [0; 4];
    function.read(Region::Bar(0), 0x8, &mut word);
    assert_eq!(u32::from_le_bytes(word), 0x1122_3344);
    function.write(Region::Bar(0), 0x10, &0x4000u32.to_le_bytes());
    let begin = Instant::now();
    while ours.read().is_err() {
        assert!(begin.elapsed() < Duration::from_secs(10), "no interrupt");
        std::thread::yield_now();
    }
    let mut moved = [0; 16];
    function.memory().read(0x4010, &mut moved).unwrap();
    assert_eq!(&moved, b"sixteen letters.");

    // A register that never answers reads all ones, and what comes after is answered.
    function.read(Region::Bar(0), 0x20, &mut word);
    assert_eq!(word, [0xff; 4]);
    function.read(Region::Bar(0), 0x8, &mut word);
    assert_eq!(u32::from_le_bytes(word), 0x1122_3344);
    let stats = function.stats();
    assert_eq!((stats.host_writes, stats.host_reads, stats.host_timeouts), (2, 3, 1));
    assert_eq!((stats.bytes_read, stats.bytes_written, stats.interrupts), (16, 16, 1));

    // Nothing to do: the clock stands still.
    std::thread::sleep(Duration::from_millis(20));
    let before = *runs.lock().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(*runs.lock().unwrap(), before);

    function.reset();
    function.read(Region::Bar(0), 0x8, &mut word);
    assert_eq!(word, [0; 4]);
    function.memory().unmap_all();
}

#[test]
fn configuration_space_is_that_of_a_cores() {
    let (function, _) = toy();
    let read = |offset, len: usize| {
        let mut data = [0; 4];
        function.read(Region::Config, offset, &mut data[..len]);
        u32::from_le_bytes(data)
    };
    assert_eq!((read(0, 4), read(0x34, 1)), (0x0001_1234, 0x40));
    function.write(Region::Config, 0x10, &[0xff; 4]);
    assert_eq!(read(0x10, 4), 0xffff_0000);
    assert_eq!(read(0x68, 2) >> 5 & 7, 1, "256 bytes of payload");
    for (what, config) in [
        ("vectors", TlpConfig { vectors: 3, ..function.config().clone() }),
        ("payload", TlpConfig { max_payload: 300, ..function.config().clone() }),
        ("BAR0", TlpConfig { bar0: 0, ..function.config().clone() }),
    ] {
        let error = TlpFunction::new(Toy::default(), config).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn an_endpoint_that_takes_nothing_does_not_hold_the_host_up() {
    /// It never takes a packet.
    struct Deaf(u64);
    impl Endpoint for Deaf {
        fn reset(&mut self) -> Result<(), EndpointError> {
            Ok(())
        }
        fn run(
            &mut self,
            _: &Settings,
            inbound: &mut Vec<Inbound>,
            limits: &Limits,
            outcome: &mut Outcome,
        ) -> Result<(), EndpointError> {
            outcome.requests += inbound.drain(..).count() as u32;
            // As if hours passed.
            self.0 += u64::from(limits.cycles) << 12;
            (outcome.now, outcome.quiet) = (self.0, u32::MAX);
            Ok(())
        }
    }
    let config = toy().0.config().clone();
    let function = TlpFunction::new(Deaf(0), config).unwrap();
    let begin = Instant::now();
    for n in 0..2000u32 {
        function.write(Region::Bar(0), 0x10, &n.to_le_bytes());
    }
    let mut word = [0; 4];
    function.read(Region::Bar(0), 0x10, &mut word);
    assert_eq!(word, [0xff; 4]);
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
}
