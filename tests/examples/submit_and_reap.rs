//! Submits and reaps batches on the embedded model, for `tools/instructions.sh` to count.
//!
//! The argument is the shape of a batch of 32 descriptors of 64 bytes and less:
//!
//! - `scattered`: one transfer between 32 segments and 32 of the same lengths;
//! - `gather`: one transfer from 32 segments to a contiguous target;
//! - `uneven`: one transfer between 16 and 17 segments that never end together;
//! - `single`: 32 transfers of one segment;
//! - `pairs`: 32 copies from slot to slot, told at once;
//! - `slots`: 32 copies from slot to slot, told one by one in a batch;
//! - `parts`: one copy from parts of 32 slots to one slot.
//!
//! With `--guest` it boots a guest, runs all of them there over VFIO, and counts by the time stamp
//! counter, for `tools/instructions-guest.sh`.
//!
//! What is counted is in the functions whose names begin with `counted_`. What the model
//! does is not the driver's: in threads of its own, and in `region_write` for the doorbell.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::ioat::{Channel, Config, Ioat, SlotPart, Token, WaitMode, WhenFull};
use vfio_dma::dma::{Direction, Request, SgTable, Slot, SlotPool};
use vfio_dma::host::Sysfs;
use vfio_dma::queue::SlotPair;
use vfio_dma::session::Session;
use vfio_dma_model::embedded::Embedded;
use vfio_dma_model::ioat::IoatConfig;
use vfio_dma_tools::serve::Served;
use vfio_dma_tools::vm::{Accel, VmConfig};

const BATCH: usize = 32;
/// How often a batch is looked for.
const TRIES: u32 = 100;
/// One more is the marker of the doorbell.
const DESCRIPTORS: u64 = BATCH as u64 + 1;
/// Bytes of a slot.
const SLOT: usize = 2048;
const USAGE: &str =
    "usage: submit_and_reap scattered|gather|uneven|single|pairs|slots|parts|--guest";

/// All shapes, and the most instructions for each descriptor over VFIO.
const SHAPES: [(&str, Option<f64>); 7] = [
    ("pairs", Some(30.0)),
    ("slots", Some(30.0)),
    ("parts", None),
    ("scattered", Some(35.0)),
    ("gather", Some(35.0)),
    ("uneven", None),
    ("single", None),
];

type Error = Box<dyn std::error::Error>;
type Pair = (SgTable, SgTable);

#[inline(never)]
fn counted_submit(
    channel: &mut Channel,
    pairs: &mut Vec<Pair>,
    tokens: &mut Vec<Token>,
) -> Result<(), Error> {
    for (source, target) in pairs.drain(..) {
        tokens.push(channel.copy(source, target, WhenFull::Return)?);
    }
    Ok(channel.issue()?)
}

#[inline(never)]
fn counted_reap(
    channel: &mut Channel,
    pairs: &mut Vec<Pair>,
    tokens: &mut Vec<Token>,
) -> Result<(), Error> {
    if channel.poll()? == 0 {
        return Ok(());
    }
    for token in tokens.drain(..) {
        let tables = channel.take(token)?.ok_or("not done")?.into_result()?;
        pairs.extend(tables.source.map(|source| (source, tables.target)));
    }
    Ok(())
}

#[inline(never)]
fn counted_submit_slots(
    channel: &mut Channel,
    (from, to): &(Arc<SlotPool>, Arc<SlotPool>),
    pairs: &mut Vec<SlotPair>,
) -> Result<(), Error> {
    channel.batch(from, to, |batch| {
        pairs.drain(..).rev().try_for_each(|slots| batch.copy_pair(slots, 64))
    })??;
    Ok(())
}

#[inline(never)]
fn counted_submit_parts(
    channel: &mut Channel,
    (from, to): &(Arc<SlotPool>, Arc<SlotPool>),
    parts: &mut Vec<SlotPart>,
    target: Slot,
) -> Result<(), Error> {
    Ok(channel.batch(from, to, |batch| batch.gather(parts, target, 0))??)
}

#[inline(never)]
fn counted_reap_slots(channel: &mut Channel, pairs: &mut Vec<SlotPair>) -> Result<(), Error> {
    if channel.reap(pairs)?.failed > 0 {
        return Err("a copy failed".into());
    }
    Ok(())
}

#[inline(never)]
fn counted_submit_pairs(
    channel: &mut Channel,
    (from, to): &(Arc<SlotPool>, Arc<SlotPool>),
    pairs: &mut Vec<SlotPair>,
) -> Result<(), Error> {
    channel.copy_pairs(from, to, pairs, 64)?;
    Ok(())
}

/// How many transfers a batch is, and the lengths of the segments of either side of each.
type Shape = (usize, Vec<usize>, Vec<usize>);

fn shape(name: &str) -> Option<Shape> {
    let scattered = vec![64; BATCH];
    match name {
        "scattered" => Some((1, scattered.clone(), scattered)),
        "gather" => Some((1, scattered, vec![64 * BATCH])),
        "uneven" => {
            let shifted = [vec![32], vec![64; BATCH / 2 - 1], vec![32]].concat();
            Some((1, vec![64; BATCH / 2], shifted))
        }
        "single" => Some((BATCH, vec![64], vec![64])),
        _ => None,
    }
}

fn table(ioat: &Ioat, lens: &[usize], direction: Direction) -> Result<SgTable, Error> {
    // A gap after each, so that no two become one.
    let buffer =
        Arc::new(ioat.allocate(&Request::new(lens.iter().map(|len| len + 64).sum(), direction))?);
    let mut at = 0;
    let table = SgTable::gather(lens.iter().map(|&len| {
        let range = (Arc::clone(&buffer), at, len);
        at += len + 64;
        range
    }))?;
    assert_eq!(table.list().segments().len(), lens.len());
    Ok(table)
}

fn pairs(ioat: &Ioat, (transfers, sources, targets): &Shape) -> Result<Vec<Pair>, Error> {
    let source = || table(ioat, sources, Direction::ToDevice);
    let target = || table(ioat, targets, Direction::FromDevice);
    (0..*transfers).map(|_| Ok((source()?, target()?))).collect()
}

/// Submits and reaps batches of a shape; `finish` lets the device do the descriptors of so many.
/// Returns the fewest ticks that a submission and a reaping took.
fn rounds(
    ioat: &Ioat,
    name: &str,
    batches: u64,
    mut finish: impl FnMut(u64),
) -> Result<[u64; 2], Error> {
    let mut channel = ioat.channel(0)?;
    let (mut least_submit, mut least_reap) = (u64::MAX, u64::MAX);
    let mut submit = |counted: &mut dyn FnMut() -> Result<(), Error>| {
        let begin = ticks();
        counted()?;
        least_submit = least_submit.min(ticks() - begin);
        Ok::<_, Error>(())
    };
    // A device that is slow to finish has its batch looked for once more: all of it is done then.
    let mut reap = |batch: u64, counted: &mut dyn FnMut() -> Result<bool, Error>| {
        for _ in 0..TRIES {
            finish(batch);
            let begin = ticks();
            let is_done = counted()?;
            let taken = ticks() - begin;
            if is_done {
                least_reap = least_reap.min(taken);
                return Ok::<_, Error>(());
            }
        }
        Err("the device is not done".into())
    };
    if matches!(name, "pairs" | "slots" | "parts") {
        let pool = |direction| -> Result<_, Error> {
            let buffer = ioat.allocate(&Request::new(BATCH * SLOT, direction))?;
            Ok(SlotPool::new(buffer, SLOT)?)
        };
        let ((from, sources), (to, targets)) =
            (pool(Direction::ToDevice)?, pool(Direction::FromDevice)?);
        let pools = (from, to);
        let (mut pairs, mut parts) = (Vec::with_capacity(BATCH), Vec::with_capacity(BATCH));
        let slots = sources.into_iter().zip(targets);
        pairs.extend(slots.map(|(s, t)| SlotPair { source: Some(s), target: Some(t) }));
        for batch in 1..=batches {
            match name {
                "pairs" => submit(&mut || counted_submit_pairs(&mut channel, &pools, &mut pairs))?,
                "slots" => submit(&mut || counted_submit_slots(&mut channel, &pools, &mut pairs))?,
                _ => {
                    let mut target = pairs.iter_mut().find_map(|pair| pair.target.take());
                    let slots = pairs.drain(..).filter_map(|pair| pair.source);
                    parts.extend(slots.map(|slot| SlotPart { slot, offset: 0, len: 64 }));
                    submit(&mut || {
                        let target = target.take().ok_or("no slot is left")?;
                        counted_submit_parts(&mut channel, &pools, &mut parts, target)
                    })?;
                }
            }
            reap(batch, &mut || {
                counted_reap_slots(&mut channel, &mut pairs)?;
                Ok(pairs.len() == BATCH)
            })?;
        }
    } else {
        let mut pairs = pairs(ioat, &shape(name).ok_or(USAGE)?)?;
        let mut tokens = Vec::with_capacity(BATCH);
        for batch in 1..=batches {
            submit(&mut || counted_submit(&mut channel, &mut pairs, &mut tokens))?;
            reap(batch, &mut || {
                counted_reap(&mut channel, &mut pairs, &mut tokens)?;
                Ok(tokens.is_empty())
            })?;
        }
    }
    assert_eq!(channel.stats().descriptors, batches * DESCRIPTORS);
    assert_eq!(channel.stats().doorbells, batches);
    Ok([least_submit, least_reap])
}

/// The time stamp counter: with QEMU's `-icount shift=0` the instructions that ran.
fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has it.
    return unsafe { std::arch::x86_64::_rdtsc() };
    #[cfg(not(target_arch = "x86_64"))]
    0
}

/// On the embedded model, for callgrind to count.
fn on_the_model(name: &str) -> Result<(), Error> {
    let model = Embedded::new(IoatConfig::default())?;
    let device = Device::open(model.attach()?)?;
    let ioat = Ioat::probe(device, Config { wait: WaitMode::Poll, ..Config::default() })?;
    // Not counted: how long the model takes.
    rounds(&ioat, name, 200, |batch| {
        while model.function().stats().descriptors < batch * DESCRIPTORS {
            std::thread::yield_now();
        }
    })?;
    println!("{}", 200 * BATCH);
    Ok(())
}

/// Boots a guest whose time stamp counter counts instructions, and runs this program in it.
fn with_a_guest() -> Result<ExitCode, Error> {
    let served = Served::start(IoatConfig::default())?;
    let output = VmConfig {
        devices: vec![served.device()],
        accel: Accel::Tcg,
        qemu_args: vec!["-icount".into(), "shift=0".into()],
        boot_timeout: Duration::from_secs(600),
        ..VmConfig::default()
    }
    .run(&["/bin/vfio-dma", "--in-guest"])?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    Ok(ExitCode::from(output.status))
}

/// Over VFIO, in that guest; fails when a shape is over its budget.
fn in_the_guest() -> Result<ExitCode, Error> {
    let address = VmConfig::address(0).parse()?;
    Sysfs::new().bind(address)?;
    let device = Session::new().open(address)?;
    let ioat = Ioat::probe(device, Config { wait: WaitMode::Poll, ..Config::default() })?;
    // What reading the counter takes itself.
    let nothing = (0..100).map(|_| {
        let begin = ticks();
        ticks() - begin
    });
    let nothing = nothing.min().unwrap_or(0);
    let mut over = false;
    for (name, budget) in SHAPES {
        // The device is another process, on a machine that may be busy.
        let pause = Duration::from_millis(50);
        let least = rounds(&ioat, name, 40, |_| std::thread::sleep(pause))?;
        let [submit, reap] = least.map(|ticks| ticks - nothing);
        let each = (submit + reap) as f64 / BATCH as f64;
        let limit = budget.map(|budget| format!(", at most {budget}")).unwrap_or_default();
        let verdict = if budget.is_some_and(|budget| each > budget) { ": TOO MANY" } else { "" };
        over |= !verdict.is_empty();
        println!(
            "{name:9} {each:6.1} instructions for each of {BATCH} descriptors{limit}{verdict} \
             (submission {submit}, reaping {reap})"
        );
    }
    Ok(ExitCode::from(u8::from(over)))
}

fn main() -> ExitCode {
    let argument = std::env::args().nth(1).unwrap_or_default();
    let done = match argument.as_str() {
        "--guest" => with_a_guest(),
        "--in-guest" => in_the_guest(),
        name => on_the_model(name).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::from(2)
    })
}
