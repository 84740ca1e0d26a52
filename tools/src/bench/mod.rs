//! The benchmark of contiguous against scatter/gather transfers, and what is made of its
//! results.
//!
//! [`plan()`] makes the variants; [`run`] measures them, every one in each round. How: the
//! tables are made beforehand and used again, several transfers are in flight, a doorbell is
//! rung for each batch, and one thread looks for the completion words of all channels.

mod allocation;
mod clock;
pub mod compare;
mod count;
pub mod csv;
mod drive;
mod edu;
mod error;
#[cfg(test)]
mod fixture;
mod ioat;
pub mod link;
mod litepcie;
mod measure;
mod memcpy;
mod nvme;
mod outputs;
pub mod plan;
pub mod profile;
pub mod report;
pub mod results;
mod segments;
mod setup;
mod slot_lane;
mod small;
pub mod spread;
mod subject;
mod table;
mod test_memory;
pub mod units;
pub mod verdict;

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use vfio_dma::device::Device;
use vfio_dma::devices::edu::{Completion, Config, Edu};
use vfio_dma::devices::ioat::Ioat;
use vfio_dma::devices::litepcie::{self as litepcie_driver, LitePcie};
use vfio_dma::devices::nvme::Nvme;
use vfio_dma::devices::{Driver, Identity, PciDriver};
use vfio_dma::dma::Allocator;
use vfio_dma_model::link::LinkConfig;

use allocation::Allocations;
use measure::{Measured, RunConfig, measure};
use plan::{PlanOptions, plan, plan_edu};
use results::{Cell, DeviceInfo, Machine, Results, SCHEMA, Series, Setup};
use subject::Subject;

pub use clock::Clock;
pub use error::BenchError;
pub use outputs::{Kind, Output, Outputs};
pub use table::table;

/// The transfer that a link is calculated for.
const LINK_TRANSFER: u64 = 1 << 20;
/// Its segments.
const LINK_SEGMENTS: [u64; 7] = [64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10];

/// The share of the processor's own copy above which that is no limit of the device.
const FAR_BEYOND: f64 = 1.5;

/// How a benchmark is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// What is measured.
    pub plan: PlanOptions,
    /// Rounds.
    pub rounds: u32,
    /// Time for each variant in a round.
    pub slice: Duration,
    /// Seed of the data, of the order of segments and of variants.
    pub seed: u64,
    /// How long a transfer may take.
    pub timeout: Duration,
    /// The link that is calculated for.
    pub link: LinkConfig,
}

/// Measures a device; the cycles of one that is simulated are counted by its `clock`. What was measured before a failure of the device, or before the flag
/// was set, is kept, and [`Results::ended_early`] says why.
///
/// # Errors
///
/// Fails when the device cannot be opened, or what is asked for makes no sense.
pub fn run(
    options: &Options,
    driver: &Driver,
    device: Device,
    interrupted: &AtomicBool,
    clock: Option<&Clock>,
) -> Result<Results, BenchError> {
    let taken = jiff::Timestamp::now();
    let (begin, before) = (Instant::now(), setup::Before::now());
    let location = device.location().to_string();
    let Identity { vendor, device: id, .. } = Identity::of(&device)?;
    let ids = format!("{vendor:04x}:{id:04x}");
    let info = DeviceInfo {
        iommu: match (device.space().iommu().name(), location.as_str()) {
            ("model", _) => "embedded".into(),
            (name, _) => name.into(),
        },
        location,
        driver: driver.to_string(),
        version: None,
        ids,
        channels: 1,
        completion: String::new(),
    };
    let session = Session { options, interrupted, begin, clock };
    let (device_info, measured) = match driver.name {
        Ioat::NAME => session.ioat(device, info)?,
        Edu::NAME => session.edu(device, info)?,
        LitePcie::NAME => session.litepcie(device, info)?,
        Nvme::NAME => session.nvme(device, info)?,
        other => return Err(BenchError::NoBenchmark { driver: other.into() }),
    };
    let machine = setup::machine();
    let mut measured = measured;
    measured.notes.extend(beyond_memcpy(&measured.cells, &machine));
    let small_copies = small::small_copies(&measured.cells, &measured.memcpy, &options.link);
    let setup = Setup {
        version: env!("CARGO_PKG_VERSION").into(),
        command: std::env::args_os()
            .skip(1)
            .map(|arg| arg.to_string_lossy().into_owned())
            .collect(),
        taken: taken.to_string(),
        elapsed: u64::try_from(begin.elapsed().as_nanos())?,
        machine,
        device: device_info,
        profile: options.plan.profile.to_string(),
        rounds: options.rounds,
        seed: options.seed,
        peak_memory: setup::peak_memory(),
        conditions: Some(before.conditions()),
    };
    Ok(Results {
        schema: SCHEMA,
        setup,
        ended_early: measured.ended_early,
        memcpy: measured.memcpy,
        cells: measured.cells,
        allocations: measured.allocations,
        // What descriptors cost on a link says nothing of a device without any.
        link: [Ioat::NAME, LitePcie::NAME]
            .contains(&driver.name)
            .then(|| link::view(&options.link, LINK_TRANSFER, &LINK_SEGMENTS)),
        small_copies,
        clock: clock.map(|clock| clock.info),
        noise: measured.noise,
        notes: measured.notes,
    })
}

/// Why a device copies much faster than the processor, where one channel does with as many
/// places in turn.
fn beyond_memcpy(cells: &[Cell], machine: &Machine) -> Option<String> {
    let alike = cells.iter().filter(|cell| cell.series == Series::Segments);
    let shares = alike.filter_map(|cell| cell.of_memcpy);
    let most = shares.map(|share| share.median).fold(0.0, f64::max);
    if most < FAR_BEYOND {
        return None;
    }
    let emulated = machine.processor.as_ref().is_some_and(|name| name.contains("TCG"));
    let why = if emulated {
        "this machine's processor is emulated (QEMU's TCG), and so is its copy; the device's \
         engine is not"
    } else {
        "the device has a quicker way to memory than one thread of this processor, or the \
         processor is emulated and the device is not"
    };
    Some(format!(
        "a channel reaches {:.0}% of the processor's own copy, which is no limit here: {why}",
        most * 100.0
    ))
}

struct Session<'a> {
    options: &'a Options,
    interrupted: &'a AtomicBool,
    begin: Instant,
    clock: Option<&'a Clock>,
}

impl Session<'_> {
    fn ioat(&self, device: Device, info: DeviceInfo) -> Result<(DeviceInfo, Measured), BenchError> {
        let Options { seed, timeout, link, .. } = *self.options;
        let engine = ioat::open(device)?;
        let (major, minor) = engine.version();
        let info = DeviceInfo {
            version: Some(format!("{major}.{minor}")),
            channels: engine.channels().into(),
            completion: format!(
                "polled in memory by one thread, ring of {} descriptors",
                ioat::RING
            ),
            ..info
        };
        let embedded = info.iommu == "embedded";
        let ring = u64::from(ioat::RING) - 1;
        let (specs, mut notes) = plan(&self.options.plan, engine.channels().into(), ring)?;
        if embedded {
            notes.push(
                "the model's IOMMU pins nothing: memory that was never touched costs less to map \
                 than on a machine, where its pages are filled in then"
                    .into(),
            );
        }
        let mut subject = ioat::IoatSubject::new(&engine, &specs, seed, timeout)?;
        let mut measured = self.measure(&mut subject, &specs, engine.allocator());
        // The model that counts takes as much memory again.
        drop(subject);
        let mut left = self.budget().saturating_sub(self.begin.elapsed());
        if measured.ended_early.is_some() {
            // Nobody waits for it after Ctrl-C.
            left = left.min(Duration::from_secs(1));
        }
        count::count(&mut measured, &link, seed, left);
        notes.append(&mut measured.notes);
        Ok((info, Measured { notes, ..measured }))
    }

    fn edu(&self, device: Device, info: DeviceInfo) -> Result<(DeviceInfo, Measured), BenchError> {
        let Options { seed, timeout, .. } = *self.options;
        let config = Config { completion: Completion::Msi, timeout, ..Config::default() };
        let edu = Edu::probe(device, config)?;
        let (major, minor) = edu.version()?;
        let version = Some(format!("{major}.{minor}"));
        let info = DeviceInfo { version, completion: "by MSI".into(), ..info };
        let (specs, mut notes) = plan_edu(&self.options.plan);
        let allocator = edu.device().allocator().clone();
        let mut subject = edu::EduSubject::new(edu, &specs, seed)?;
        let mut measured = self.measure(&mut subject, &specs, &allocator);
        notes.append(&mut measured.notes);
        Ok((info, Measured { notes, ..measured }))
    }

    fn litepcie(
        &self,
        device: Device,
        info: DeviceInfo,
    ) -> Result<(DeviceInfo, Measured), BenchError> {
        let Options { seed, timeout, .. } = *self.options;
        let card = LitePcie::probe(device, litepcie_driver::Config::default())?;
        let info = DeviceInfo {
            channels: card.channel_count().into(),
            completion: "by MSI".into(),
            ..info
        };
        let word = card.device().dma_limits().granularity;
        let (specs, mut notes) = litepcie::plan_litepcie(&self.options.plan, word)?;
        let allocator = card.device().allocator().clone();
        let clock = self.clock;
        let mut subject = litepcie::LitePcieSubject::new(card, &specs, seed, timeout, clock)?;
        let mut measured = self.measure(&mut subject, &specs, &allocator);
        notes.append(&mut measured.notes);
        Ok((info, Measured { notes, ..measured }))
    }

    fn nvme(&self, device: Device, info: DeviceInfo) -> Result<(DeviceInfo, Measured), BenchError> {
        let Options { seed, timeout, .. } = *self.options;
        let (drive, namespace) = nvme::open(device)?;
        let (major, minor, tertiary) = drive.version();
        let info = DeviceInfo {
            version: Some(format!("{major}.{minor}.{tertiary}")),
            channels: drive.queues().into(),
            completion: format!(
                "polled in memory by one thread, queues of {} entries",
                nvme::ENTRIES.min(drive.max_queue_size())
            ),
            ..info
        };
        let (specs, mut notes) = nvme::plan_nvme(&self.options.plan, &drive, &namespace)?;
        let mut subject = nvme::NvmeSubject::new(&drive, namespace, &specs, seed, timeout)?;
        let mut measured = self.measure(&mut subject, &specs, drive.allocator());
        notes.extend(nvme::medium(&measured.cells));
        notes.append(&mut measured.notes);
        Ok((info, Measured { notes, ..measured }))
    }

    fn measure(
        &self,
        subject: &mut dyn Subject,
        specs: &[plan::Spec],
        allocator: &Allocator,
    ) -> Measured {
        let Options { rounds, slice, .. } = *self.options;
        let budget = self.budget();
        let allocations = Allocations::new(allocator, budget / 10);
        let config = RunConfig {
            rounds,
            slice,
            budget: budget.saturating_sub(self.begin.elapsed()),
            seed: self.options.seed,
            interrupted: self.interrupted,
        };
        measure(subject, specs, allocations, &config)
    }

    /// Who asks for more rounds, or longer ones, has the time for them.
    fn budget(&self) -> Duration {
        let Options { rounds, slice, ref plan, .. } = *self.options;
        let more = f64::from(rounds) / f64::from(plan.profile.rounds());
        let longer = slice.as_secs_f64() / plan::SLICE.as_secs_f64();
        plan.profile.budget().mul_f64(more.max(1.0) * longer.max(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_far_beyond_memcpy_is_explained() {
        let Results { mut cells, setup, .. } = fixture::results();
        let mut machine = setup.machine;
        let share = cells[0].of_memcpy.unwrap();
        let at = |median| Some(results::Spread { median, ..share });
        cells.iter_mut().for_each(|cell| cell.of_memcpy = at(1.2));
        assert_eq!(beyond_memcpy(&cells, &machine), None);
        // Several channels together exceed one thread by right, and a transfer that is alone
        // has its bytes in a cache.
        let others = cells.iter_mut().filter(|cell| cell.series != Series::Segments);
        others.for_each(|cell| cell.of_memcpy = at(3.0));
        assert_eq!(beyond_memcpy(&cells, &machine), None);
        cells[0].of_memcpy = at(2.5);
        let note = beyond_memcpy(&cells, &machine).unwrap();
        assert!(note.contains("250%") && note.contains("quicker way"), "{note}");
        machine.processor = Some("QEMU TCG CPU version 2.5+".into());
        let note = beyond_memcpy(&cells, &machine).unwrap();
        assert!(note.contains("is emulated (QEMU's TCG)"), "{note}");
    }
}
