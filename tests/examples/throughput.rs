//! Measures copies on the embedded model against `memcpy` of the same memory.
//!
//! `throughput [ROUNDS [KIB[xDEPTH]]...]` makes every variant in every round: a plain
//! `memcpy`, the same in pieces of 4 KiB, and copies by one channel with DEPTH transfers in flight,
//! contiguous and over segments of 64 KiB and 4 KiB. All of them use the same bytes of
//! memory: only the addresses that the device is given differ. Two runs on a busy machine
//! cannot be compared, nor can two moments of one, so what counts is the median of the
//! rounds' ratios. A measurement in which either thread had to wait for a processor is
//! repeated; how many were is told. Beside the elapsed time there is the processor time of
//! the thread that moves the bytes: an engine's includes what it spends waiting for work.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};
use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::ioat::{Channel, Config, Ioat, Token, WaitMode, WhenFull};
use vfio_dma::dma::{Direction, Placement, Request, SgTable};
use vfio_dma_model::embedded::Embedded;
use vfio_dma_model::ioat::IoatConfig;

/// Lengths and transfers in flight, unless asked for otherwise.
const SHAPES: [Shape; 3] =
    [Shape { kib: 64, depth: 8 }, Shape { kib: 64, depth: 32 }, Shape { kib: 1024, depth: 8 }];
/// What each variant moves in a round, after twice as much as is in flight to warm up.
const ROUND_BYTES: usize = 16 << 20;
/// How often a measurement is made at most in a round.
const ATTEMPTS: usize = 20;

type Error = Box<dyn std::error::Error>;

/// What is measured.
#[derive(Debug, Clone, Copy)]
struct Shape {
    /// Length of a transfer in KiB.
    kib: usize,
    /// Transfers in flight, half of which are submitted with one doorbell.
    depth: usize,
}

impl Shape {
    fn parse(text: &str) -> Option<Shape> {
        let (kib, depth) = text.split_once('x').unwrap_or((text, "8"));
        let shape = Shape { kib: kib.parse().ok()?, depth: depth.parse().ok()? };
        let good = (64..=1024).contains(&shape.kib) && shape.kib.is_multiple_of(64);
        (good && (2..=64).contains(&shape.depth)).then_some(shape)
    }
}

/// Memory for all transfers in flight, on one side.
#[derive(Clone, Copy)]
struct Memory(NonNull<u8>);

impl Memory {
    /// Takes memory of base pages, or of huge pages where the kernel has some, for good.
    fn take(len: usize, huge: bool) -> Result<Memory, Error> {
        const HUGE: usize = 2 << 20;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let room = NonZeroUsize::new(len + HUGE).ok_or("no bytes")?;
        // SAFETY: a new mapping at an address of the kernel's choice; it is never unmapped.
        let start = unsafe { mmap_anonymous(None, room, protection, MapFlags::MAP_PRIVATE) }?;
        let advice = if huge { MmapAdvise::MADV_HUGEPAGE } else { MmapAdvise::MADV_NOHUGEPAGE };
        // SAFETY: the advice changes no byte of the mapping, which is this function's own.
        unsafe { madvise(start, room.get(), advice) }?;
        let start = start.cast::<u8>();
        // The rest of `room` is enough from the first huge page's start on.
        let skip = start.addr().get().wrapping_neg() % HUGE;
        // SAFETY: less than HUGE bytes into a mapping that is longer than that.
        let start = unsafe { start.add(skip) };
        // SAFETY: `len` bytes of the mapping, which nothing else uses.
        unsafe { start.write_bytes(0x5a, len) };
        Ok(Memory(start))
    }

    fn at(self, offset: usize) -> NonNull<u8> {
        // SAFETY: every caller stays inside of the memory it has taken.
        unsafe { self.0.add(offset) }
    }
}

/// One way of moving the same bytes.
struct Variant {
    name: &'static str,
    method: Method,
    /// Seconds, and seconds of the processor that moves the bytes, of each round.
    rounds: Vec<(f64, f64)>,
    /// Measurements that were disturbed, and repeated unless it was the last attempt.
    disturbed: usize,
}

enum Method {
    Memcpy { memory: [Memory; 2], piece: usize },
    Device { idle: Vec<(SgTable, SgTable)> },
}

impl Variant {
    fn new(name: &'static str, method: Method) -> Variant {
        Variant { name, method, rounds: Vec::new(), disturbed: 0 }
    }
}

/// The processor time of a thread.
fn processor_time(clock: libc::clockid_t) -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for the call.
    if unsafe { libc::clock_gettime(clock, &mut time) } != 0 {
        return f64::NAN;
    }
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// The thread that a model's only channel works in.
fn engine_thread() -> Result<i32, Error> {
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        for task in std::fs::read_dir("/proc/self/task")? {
            let task = task?;
            if std::fs::read_to_string(task.path().join("comm"))?.trim() == "ioat-channel0" {
                return Ok(task.file_name().to_string_lossy().parse()?);
            }
        }
        // A thread gives itself its name once it runs.
        std::thread::yield_now();
    }
    Err("the model has no thread".into())
}

/// How long a thread was ready to run and had no processor, in seconds.
fn waited(thread: i32) -> Result<f64, Error> {
    // Time on a processor, time waiting for one, times that it got one.
    let text = std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat"))?;
    let waited = text.split_whitespace().nth(1).ok_or("no schedstat")?;
    Ok(waited.parse::<f64>()? * 1e-9)
}

struct Rig {
    ioat: Ioat,
    channel: Channel,
    engine: i32,
    tokens: VecDeque<Token>,
    depth: usize,
}

impl Rig {
    fn new(depth: usize) -> Result<Rig, Error> {
        let model = Embedded::new(IoatConfig::default())?;
        let device = Device::open(model.attach()?)?;
        let config = Config { wait: WaitMode::Poll, ring_size: 4096, ..Config::default() };
        let ioat = Ioat::probe(device, config)?;
        let channel = ioat.channel(0)?;
        let tokens = VecDeque::with_capacity(depth);
        Ok(Rig { engine: engine_thread()?, channel, ioat, tokens, depth })
    }

    /// Tables over memory, in segments of this length; one segment without it.
    fn tables(
        &self,
        memory: [Memory; 2],
        len: usize,
        segment: Option<usize>,
    ) -> Result<Vec<(SgTable, SgTable)>, Error> {
        let adopt = |memory: Memory, offset, direction| -> Result<SgTable, Error> {
            let mut request = Request::new(len, direction);
            if let Some(segment) = segment {
                request = request.placement(Placement::ScatterGather);
                request.longest_run = Some(segment);
            }
            // SAFETY: the memory is never unmapped, and reached through raw pointers only.
            let buffer = unsafe { self.ioat.allocator().adopt(memory.at(offset), &request) }?;
            let count = segment.map_or(1, |segment| len / segment);
            assert_eq!(buffer.segments().len(), count, "as many segments as are measured");
            Ok(buffer.into())
        };
        let pair = |n| {
            let offset = n * len;
            Ok((
                adopt(memory[0], offset, Direction::ToDevice)?,
                adopt(memory[1], offset, Direction::FromDevice)?,
            ))
        };
        (0..self.depth).map(pair).collect()
    }

    /// Takes finished transfers' tables back.
    fn reap(&mut self, idle: &mut Vec<(SgTable, SgTable)>) -> Result<usize, Error> {
        let ended = self.channel.poll()?;
        for _ in 0..ended {
            let token = self.tokens.pop_front().ok_or("more ended than were begun")?;
            let tables = self.channel.take(token)?.ok_or("not ended")?.into_result()?;
            idle.extend(tables.source.map(|source| (source, tables.target)));
        }
        Ok(ended)
    }

    /// Keeps the channel busy until `count` transfers ended.
    fn copy(&mut self, idle: &mut Vec<(SgTable, SgTable)>, count: usize) -> Result<(), Error> {
        let (mut begun, mut ended) = (0, 0);
        while ended < count {
            if begun < count && idle.len() >= self.depth / 2 {
                for _ in 0..(self.depth / 2).min(count - begun) {
                    // The one that was idle longest: all of the memory is used in turn.
                    let (source, target) = idle.remove(0);
                    self.tokens.push_back(self.channel.copy(source, target, WhenFull::Return)?);
                    begun += 1;
                }
                self.channel.issue()?;
            }
            ended += self.reap(idle)?;
            std::hint::spin_loop();
        }
        Ok(())
    }

    fn move_bytes(&mut self, method: &mut Method, len: usize, count: usize) -> Result<(), Error> {
        match method {
            Method::Device { idle } => self.copy(idle, count),
            Method::Memcpy { memory: [source, target], piece } => {
                for n in 0..count {
                    let offset = n % self.depth * len;
                    for at in (offset..offset + len).step_by(*piece) {
                        // SAFETY: inside of both, which do not overlap; the device is idle.
                        unsafe {
                            std::ptr::copy_nonoverlapping(
                                source.at(at).as_ptr(),
                                std::hint::black_box(target.at(at).as_ptr()),
                                *piece,
                            );
                        }
                    }
                }
                Ok(())
            }
        }
    }

    fn round(&mut self, variant: &mut Variant, len: usize) -> Result<(), Error> {
        let this = nix::unistd::gettid().as_raw();
        let clock = match variant.method {
            // MAKE_THREAD_CPUCLOCK of the kernel's posix-timers.
            Method::Device { .. } => !self.engine << 3 | 6,
            Method::Memcpy { .. } => libc::CLOCK_THREAD_CPUTIME_ID,
        };
        for attempt in 1..=ATTEMPTS {
            self.move_bytes(&mut variant.method, len, 2 * self.depth)?;
            let before = waited(this)? + waited(self.engine)?;
            let (begin, processor) = (Instant::now(), processor_time(clock));
            self.move_bytes(&mut variant.method, len, ROUND_BYTES / len)?;
            let processor = processor_time(clock) - processor;
            let elapsed = begin.elapsed().as_secs_f64();
            let disturbed = waited(this)? + waited(self.engine)? - before > elapsed / 100.0;
            variant.disturbed += usize::from(disturbed);
            if !disturbed || attempt == ATTEMPTS {
                variant.rounds.push((elapsed, processor));
                break;
            }
        }
        Ok(())
    }
}

/// Median, and the quarters beside it.
fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[(values.len() - 1) * quarter / 4])
}

fn compare(variants: &[Variant], this: usize, with: usize) -> String {
    let ratio = |of: fn(&(f64, f64)) -> f64| {
        let rounds = variants[with].rounds.iter().zip(&variants[this].rounds);
        let ratios = rounds.map(|(with, this)| 100.0 * of(with) / of(this)).collect();
        let [low, median, high] = quartiles(ratios);
        format!("{median:5.1}% ({low:.1} to {high:.1})")
    };
    format!("{}  {}", ratio(|round| round.0), ratio(|round| round.1))
}

fn throughput(rig: &mut Rig, len: usize, rounds: usize) -> Result<(), Error> {
    let depth = rig.depth;
    let take = |huge| -> Result<_, Error> {
        Ok([Memory::take(depth * len, huge)?, Memory::take(depth * len, huge)?])
    };
    let (base, huge) = (take(false)?, take(true)?);
    let device = |rig: &Rig, memory, segment| -> Result<Method, Error> {
        Ok(Method::Device { idle: rig.tables(memory, len, segment)? })
    };
    let mut variants = [
        Variant::new("memcpy", Method::Memcpy { memory: base, piece: len }),
        Variant::new("memcpy by 4 KiB", Method::Memcpy { memory: base, piece: 4096 }),
        Variant::new("contiguous", device(rig, base, None)?),
        Variant::new("scattered by 64 KiB", device(rig, base, Some(64 << 10))?),
        Variant::new("scattered by 4 KiB", device(rig, base, Some(4096))?),
        Variant::new("memcpy, huge pages", Method::Memcpy { memory: huge, piece: len }),
        Variant::new("contiguous, huge pages", device(rig, huge, None)?),
    ];
    for _ in 0..rounds {
        for variant in &mut variants {
            rig.round(variant, len)?;
        }
    }
    println!("{} KiB, {depth} in flight, {rounds} rounds, median (quartiles)", len >> 10);
    for Variant { name, rounds, disturbed, .. } in &variants {
        let rate = |of: fn(&(f64, f64)) -> f64| {
            let rates = rounds.iter().map(|round| ROUND_BYTES as f64 / of(round) / 1e9);
            let [low, median, high] = quartiles(rates.collect());
            format!("{median:6.2} GB/s ({low:.2} to {high:.2})")
        };
        println!(
            "  {name:24} {}  processor {}  {disturbed} disturbed",
            rate(|r| r.0),
            rate(|r| r.1)
        );
    }
    println!("  of                                      elapsed  processor");
    for (this, with) in [(2, 0), (3, 2), (4, 2), (1, 0), (6, 5)] {
        let names = format!("{} / {}", variants[this].name, variants[with].name);
        println!("  {names:40} {}", compare(&variants, this, with));
    }
    Ok(())
}

fn latency(rig: &mut Rig) -> Result<(), Error> {
    let memory = [Memory::take(64, false)?, Memory::take(64, false)?];
    let mut pair = rig.tables(memory, 64, None)?.pop();
    let mut times = Vec::with_capacity(100_000);
    for _ in 0..times.capacity() {
        let (source, target) = pair.take().ok_or("the tables are away")?;
        let begin = Instant::now();
        let token = rig.channel.copy(source, target, WhenFull::Return)?;
        rig.channel.issue()?;
        while rig.channel.poll()? == 0 {
            std::hint::spin_loop();
        }
        times.push(begin.elapsed());
        let tables = rig.channel.take(token)?.ok_or("not ended")?.into_result()?;
        pair = tables.source.map(|source| (source, tables.target));
    }
    times.sort();
    let at = |share: f64| -> Duration { times[(times.len() as f64 * share) as usize] };
    println!("64 bytes, one at a time: p50 {:?}, p90 {:?}, p99 {:?}", at(0.5), at(0.9), at(0.99));
    Ok(())
}

fn run(rounds: usize, shapes: &[Shape]) -> Result<(), Error> {
    for shape in shapes {
        throughput(&mut Rig::new(shape.depth)?, shape.kib << 10, rounds)?;
    }
    latency(&mut Rig::new(1)?)
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let rounds = arguments.next().map_or(Some(100), |text| text.parse().ok());
    let shapes: Option<Vec<Shape>> = arguments.map(|text| Shape::parse(&text)).collect();
    let (Some(rounds @ 1..), Some(shapes)) = (rounds, shapes) else {
        eprintln!(
            "usage: throughput [ROUNDS [KIB[xDEPTH]]...], KIB in multiples of 64 up to 1024, \
             DEPTH 2 to 64"
        );
        return ExitCode::from(2);
    };
    match run(rounds, if shapes.is_empty() { &SHAPES } else { &shapes }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
