//! LitePCIe's gateware, driven by the crate's driver.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vfio_dma::backend::vfio_user::VfioUser;
use vfio_dma::device::Device;
use vfio_dma::devices::litepcie::{Config, CsrMap, Failed, Limit, LitePcie, LitePcieError};
use vfio_dma::devices::{CopyEngine, DRIVERS, PciDriver};
use vfio_dma::dma::{Direction, Pattern, Placement, Request, SgTable};
use vfio_dma_model::embedded::{Embedded, IommuOptions};
use vfio_dma_model::fault::FaultPlan;
use vfio_dma_model::link::LinkConfig;
use vfio_dma_model::tlp::{Order, RootConfig, Stats};
use vfio_dma_tests::same_program::{Extent, run_in_units};
use vfio_dma_tests::{Dice, rtl_size};
use vfio_dma_tools::bench::plan::PlanOptions;
use vfio_dma_tools::bench::profile::Profile;
use vfio_dma_tools::bench::results::ClockInfo;
use vfio_dma_tools::bench::{self, Clock};
use vfio_dma_tools::rtl::litepcie::{Options, card, csr};
use vfio_dma_tools::rtl::{RtlConfig, RtlFunction};
use vfio_dma_tools::serve::Served;
use vfio_dma_tools::vm;

use crate::segments::{LONG, copy, mixed, shuffled, whole};
use crate::streams;

pub(crate) type Model = Arc<Embedded<RtlFunction>>;

/// The word of its bus, in bytes.
const WORD: usize = 16;

pub(crate) fn model(config: &RtlConfig) -> Model {
    Embedded::with_function(config.start().unwrap(), IommuOptions::default())
}

fn plain() -> RtlConfig {
    RtlConfig::litepcie(Options::default())
}

pub(crate) fn driven(model: &Model) -> LitePcie {
    let device = Device::open(model.attach().unwrap()).unwrap();
    LitePcie::probe(device, Config::default()).unwrap()
}

/// The card sent nothing that it should not, and reached what it was to reach.
pub(crate) fn check(stats: &Stats) {
    assert_eq!((stats.all_malformed(), stats.faults, stats.unsupported), (0, 0, 0), "{stats:#?}");
    assert_eq!((stats.host_timeouts, stats.host_refused), (0, 0), "{stats:#?}");
    assert!(stats.bytes_read > 0 && stats.bytes_written > 0, "{stats:#?}");
}

pub(crate) fn the_map_of_registers_is_the_drivers() {
    let options = Options { channels: 2, ..Options::default() };
    let map: CsrMap = csr(&card(&options).unwrap().csr).unwrap().parse().unwrap();
    assert_eq!(map.channels(), 2);
    let default = CsrMap::default();
    for (name, offset) in map.registers() {
        assert_eq!(default.offset(name), Ok(offset), "{name}");
    }
    let model = model(&RtlConfig::litepcie(options));
    let mut card = driven(&model);
    assert_eq!(card.channel_count(), 2);
    assert_eq!(card.csr("ctrl_scratch").unwrap(), 0x1234_5678);
    card.set_csr("ctrl_scratch", 7).unwrap();
    assert_eq!(card.csr("ctrl_scratch").unwrap(), 7);
    assert!(card.set_csr("pcie_dma0_writer_enable", 1).is_err());
}

pub(crate) fn the_width_of_its_bus_is_what_the_card_says() {
    let options = streams::wide();
    let built = card(&options).unwrap();
    // The same map, in both forms of it.
    let json: CsrMap = csr(&built.csr.with_extension("json")).unwrap().parse().unwrap();
    assert_eq!(json, csr(&built.csr).unwrap().parse().unwrap());
    let model = model(&RtlConfig::litepcie(options));
    let card = driven(&model);
    assert_eq!(card.device().dma_limits().granularity, 64);
    assert_eq!(card.csr("card_data_width").unwrap(), 512);
}

pub(crate) fn a_copy_that_is_given_up_ends_soon_and_the_card_goes_on() {
    let len = 64 << 20;
    let mut config = plain();
    // A read every 5000 cycles: minutes for all of it.
    config.function.root.latency = 20_000;
    let model = model(&config);
    let mut card = driven(&model);
    let place = |direction| SgTable::from(card.allocate(&Request::new(len, direction)).unwrap());
    let (source, target) = (place(Direction::ToDevice), place(Direction::FromDevice));
    let stop = AtomicBool::new(false);
    let limit = Limit { time: LONG, stop: Some(&stop) };
    let (failed, after) = std::thread::scope(|scope| {
        let begun = scope.spawn(|| {
            let failed = card.copy(0, source, target, limit).unwrap_err();
            (failed, Instant::now())
        });
        std::thread::sleep(Duration::from_millis(300));
        stop.store(true, Ordering::Relaxed);
        let asked = Instant::now();
        let (failed, ended) = begun.join().unwrap();
        (failed, ended - asked)
    });
    let LitePcieError::Stopped { wanted, written, .. } = failed.error else { panic!("{failed}") };
    assert!(written < wanted && failed.tables.is_some(), "{written} of {wanted}");
    assert!(after < Duration::from_secs(5), "{after:?}");
    assert_eq!(copy(&mut card, 4096, &whole(4096), &whole(4096), 1), 0);
}

const EXTENT: Extent = Extent { longest: 2 << 20, limit: LONG };

pub(crate) fn the_same_program_runs_embedded() {
    let model = model(&plain());
    run_in_units(Device::open(model.attach().unwrap()).unwrap(), &EXTENT, WORD);
    check(&model.function().stats());
}

pub(crate) fn the_same_program_runs_over_a_socket() {
    let served = Served::of(plain().start().unwrap()).unwrap();
    let vm::Device::VfioUser { socket } = served.device() else { panic!("it is on a socket") };
    run_in_units(Device::open(VfioUser::connect(&socket).unwrap()).unwrap(), &EXTENT, WORD);
    check(&served.function().stats());
}

pub(crate) fn segments_of_any_size_arrive_over_a_socket() {
    let len = rtl_size();
    let served = Served::of(plain().start().unwrap()).unwrap();
    let vm::Device::VfioUser { socket } = served.device() else { panic!("it is on a socket") };
    let device = Device::open(VfioUser::connect(&socket).unwrap()).unwrap();
    let mut card = LitePcie::probe(device, Config::default()).unwrap();
    let mut dice = Dice::seeded();
    let begin = Instant::now();
    assert_eq!(copy(&mut card, len, &whole(len), &whole(len), 1), 0);
    let (from, to) = (mixed(len, &mut dice), mixed(len, &mut dice));
    assert_eq!(copy(&mut card, len, &from, &to, 2), 0);
    println!("{len} bytes, twice, in {:?}", begin.elapsed());
    check(&served.function().stats());
}

pub(crate) fn sixty_four_mebibytes_arrive_contiguous_and_scattered() {
    let len = 64 << 20;
    let model = model(&plain());
    let mut card = driven(&model);
    let mut dice = Dice::seeded();
    let begin = Instant::now();
    assert_eq!(copy(&mut card, len, &whole(len), &whole(len), 1), 0);
    let (from, to) = (mixed(len, &mut dice), mixed(len, &mut dice));
    println!("{} segments to {}", from.len(), to.len());
    assert_eq!(copy(&mut card, len, &from, &to, 2), 0);
    let stats = model.function().stats();
    check(&stats);
    let rate = stats.cycles as f64 / begin.elapsed().as_secs_f64() / 1e6;
    println!("{} cycles, {rate:.2} million a second with filling and checking", stats.cycles);
}

/// Segment sizes, and bytes per cycle that a test bench on the bare gateware measured for them
/// (host latency 0, 256 bytes of payload, descriptors by register writes).
const BENCH: [(usize, f64); 8] = [
    (128, 3.07),
    (256, 5.15),
    (512, 7.42),
    (1 << 10, 9.48),
    (4 << 10, 11.98),
    (16 << 10, 12.82),
    (64 << 10, 13.04),
    (1 << 20, 13.11),
];

pub(crate) fn cycles_for_each_segment_size() {
    let len = 8 << 20;
    let model = model(&plain());
    let mut card = driven(&model);
    let mut dice = Dice::seeded();
    println!("segment | bytes per cycle | of the test bench | cycles per segment");
    for (segment, bench) in BENCH {
        let (from, to) = (shuffled(len, segment, &mut dice), shuffled(len, segment, &mut dice));
        let before = model.function().stats();
        assert_eq!(copy(&mut card, len, &from, &to, segment as u64), 0);
        let stats = model.function().stats();
        let cycles = (stats.written_until - before.cycles) as f64;
        let rate = len as f64 / cycles;
        println!(
            "{segment:>8} | {rate:>6.2} | {:>4.0}% | {:>9.1}",
            100.0 * rate / bench,
            cycles * segment as f64 / len as f64
        );
        // Never slower than the bare bench by a tenth: a stall of the bridge would show.
        assert!(rate > 0.9 * bench, "{segment}: {rate:.2} bytes per cycle, {bench} were expected");
    }
    check(&model.function().stats());
}

/// The benchmark of all devices, shorter: it counts cycles too.
pub(crate) fn it_is_measured_in_time_and_in_cycles() {
    let model = model(&plain());
    let device = Device::open(model.attach().unwrap()).unwrap();
    let driver = DRIVERS.iter().find(|driver| driver.name == LitePcie::NAME).unwrap();
    let plan = PlanOptions {
        // For its time: a machine that does much else needs more than the quick one has.
        profile: Profile::Full,
        sizes: Some(vec![64 << 10]),
        segments: Some([128, 4096].map(Some).into()),
        batches: None,
        channels: None,
    };
    let options = bench::Options {
        plan,
        rounds: 10,
        slice: Duration::from_millis(1),
        seed: 1,
        timeout: LONG,
        link: LinkConfig::default(),
    };
    let info = ClockInfo { bus_width: 128, host_latency: 0 };
    let stats = Box::new({
        let model = Arc::clone(&model);
        move || model.function().stats()
    });
    let clock = Clock { info, stats };
    let stop = AtomicBool::new(false);
    let results = bench::run(&options, driver, device, &stop, Some(&clock)).unwrap();
    assert_eq!(results.ended_early, None);
    let text = bench::table(&results);
    println!("{text}");
    let title = "Cycles of the RTL at the bus width 128 bits; host latency 0 cycles";
    let flat = text.replace('\n', " ");
    assert!(flat.contains(title) && flat.contains("by the arithmetic of a link"), "{text}");
    let cycles = |segment| {
        let found = results.cells.iter().find(|cell| cell.segment == segment).unwrap();
        // Each segment is a descriptor on each side.
        let pieces = (64 << 10) / segment.unwrap_or(64 << 10);
        assert_eq!(found.descriptors, 2.0 * pieces as f64, "{found:?}");
        found.cycles.unwrap()
    };
    // As fast as a single copy, whatever the clock on the wall says.
    let whole = cycles(None);
    assert!((65_536.0 / 16.0..65_536.0 / 8.0).contains(&whole), "{whole}");
    assert!(cycles(Some(128)) > 1.5 * cycles(Some(4096)), "{text}");
    check(&model.function().stats());
}

pub(crate) fn latency_and_order_of_completions_change_no_byte() {
    let len = 1 << 20;
    let mut dice = Dice::seeded();
    for (latency, rate, boundary, longest, cycles) in
        [(500, 0, 64, 4096, 0), (100, 8, 128, 128, 200), (20, 3, 64, 64, 50)]
    {
        let mut config = plain();
        config.function.root = RootConfig {
            latency,
            bytes_per_cycle: rate,
            read_completion_boundary: boundary,
            longest_completion: longest,
            order: Order::Shuffled { cycles, seed: 7 },
            ..RootConfig::default()
        };
        config.function.root.credits.reads = 3;
        config.function.root.credits.posted_bytes = 1024;
        let model = model(&config);
        let mut card = driven(&model);
        let (from, to) = (mixed(len, &mut dice), mixed(len, &mut dice));
        assert_eq!(copy(&mut card, len, &from, &to, 3), 0, "latency {latency}");
        check(&model.function().stats());
    }
}

pub(crate) fn faults_are_found_and_the_card_goes_on() {
    let len = 64 << 10;
    let model = model(&plain());
    let mut card = driven(&model);
    let table = |card: &LitePcie, direction| -> SgTable {
        card.allocate(&Request::new(len, direction)).unwrap().into()
    };
    let limit = Duration::from_millis(300);
    let reads = |fault: &str, card: &mut LitePcie| {
        let next = model.function().stats().reads + 3;
        let plan = if fault.is_empty() { String::new() } else { format!("{fault}@{next}") };
        model.function().inject(plan.parse().unwrap());
        let (source, target) =
            (table(card, Direction::ToDevice), table(card, Direction::FromDevice));
        let result = card.copy(0, source, target, limit);
        model.function().inject(FaultPlan::default());
        result
    };
    for fault in ["lost", "ur"] {
        let Failed { error, tables } = reads(fault, &mut card).unwrap_err();
        let LitePcieError::Timeout { wanted, written, .. } = error else { panic!("{error}") };
        assert!(written < wanted && tables.is_some(), "{fault}: {written} of {wanted}");
        // It was reset, and works.
        assert_eq!(copy(&mut card, len, &whole(len), &whole(len), 5), 0, "after {fault}");
    }
    for fault in ["late=3000", "reorder"] {
        reads(fault, &mut card).unwrap_or_else(|failed| panic!("{fault}: {failed}"));
    }
    // LitePCIe does not look at the mark of poisoned data: it is found by who verifies.
    let next = model.function().stats().reads + 3;
    model.function().inject(format!("poison@{next}").parse().unwrap());
    assert_eq!(copy(&mut card, len, &whole(len), &whole(len), 6), 512);

    reads("", &mut card).unwrap();
    let Failed { error, .. } = reads("linkdown", &mut card).unwrap_err();
    assert!(matches!(error, LitePcieError::Gone { .. }), "{error}");
    assert!(model.function().is_gone());
}

pub(crate) fn two_channels_loop_by_themselves() {
    let model = model(&RtlConfig::litepcie(Options { channels: 2, ..Options::default() }));
    let mut card = driven(&model);
    let len = 32 << 10;
    let request = |direction| Request::new(len, direction).placement(Placement::ScatterGather);
    for channel in 0..2 {
        let mut source = card.allocate(&request(Direction::ToDevice)).unwrap();
        let target = card.allocate(&request(Direction::FromDevice)).unwrap();
        let pattern = Pattern::new(u64::from(channel) + 1);
        pattern.fill(&mut source, 0, len, 0).unwrap();
        let looping = card.start_loop(channel, Some(source.into()), Some(target.into())).unwrap();
        let begin = Instant::now();
        while looping.written().unwrap().count < 3 {
            assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", looping.written());
        }
        let written = looping.written().unwrap();
        assert!(looping.read().unwrap() >= written, "data is written after it is read");
        let (_, target) = looping.stop().unwrap();
        let target = target.unwrap().into_buffer().unwrap();
        pattern.check(&target, 0, len, 0).unwrap().unwrap();
        // Nothing is left of it that a copy would meet.
        assert_eq!(copy(&mut card, len, &whole(len), &whole(len), 9), 0);
    }
    // One that is dropped is stopped, and its buffers are freed.
    let space = Arc::clone(card.device().space());
    let before = space.usage().mappings;
    let target = card.allocate(&request(Direction::FromDevice)).unwrap();
    drop(card.start_loop(0, None, Some(target.into())).unwrap());
    assert_eq!(space.usage().mappings, before);
    let error = card.start_loop(2, None, None).unwrap_err();
    assert!(matches!(error, LitePcieError::NoChannel { channel: 2, channels: 2 }), "{error}");
    check(&model.function().stats());
}

/// Processor time of this process and of the children that it has waited for, and of the
/// simulation, which runs in a process of its own.
fn processor_time() -> Duration {
    let own = std::process::id().to_string();
    let mut ticks = 0;
    for entry in fs::read_dir("/proc").unwrap() {
        let Ok(text) = fs::read_to_string(entry.unwrap().path().join("stat")) else { continue };
        // PID (NAME) STATE PARENT ..., and 14 and 15 are user and system time in ticks.
        let Some((head, tail)) = text.rsplit_once(") ") else { continue };
        let fields: Vec<&str> = tail.split(' ').collect();
        if fields[1] == own || head.split(' ').next() == Some(&own) {
            ticks += fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        }
    }
    // USER_HZ is 100 on every architecture that matters here.
    Duration::from_millis(10 * ticks)
}

pub(crate) fn an_idle_card_takes_no_cycles_and_no_time() {
    let model = model(&plain());
    let mut card = driven(&model);
    let len = 8 << 20;
    let (before, begin) = (processor_time(), Instant::now());
    assert_eq!(copy(&mut card, len, &whole(len), &whole(len), 1), 0);
    let (busy, elapsed) = (processor_time() - before, begin.elapsed());
    let cycles = model.function().stats().cycles;
    let rate = |time: Duration| cycles as f64 / time.as_secs_f64() / 1e6;
    println!(
        "{cycles} cycles: {:.2} million a second of processor time, {:.2} of the clock's, with \
         filling and checking",
        rate(busy),
        rate(elapsed)
    );
    std::thread::sleep(Duration::from_millis(100));
    let (before, cycles) = (processor_time(), model.function().stats().cycles);
    std::thread::sleep(Duration::from_secs(2));
    let taken = processor_time() - before;
    assert_eq!(model.function().stats().cycles, cycles);
    // Two ticks, in which the kernel counts: 1% of the time.
    assert!(taken <= Duration::from_millis(20), "{taken:?} in 2 s");
    let card: &dyn CopyEngine = &card;
    assert_eq!(card.location(), "model");
}
