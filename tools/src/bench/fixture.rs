//! Results as a benchmark gives them, from seeded numbers in place of a device.

use vfio_dma_model::link::{LinkConfig, LinkMeter};

use super::link;
use super::results::*;
use super::small::small_copies;

const ROUNDS: u32 = 12;

/// The results that tests look at.
pub(super) fn results() -> Results {
    Generator { random: fastrand::Rng::with_seed(7), speed: 1.0, noise: 0.03 }.results()
}

/// The same benchmark on another day: `speed` is the machine's, `noise` the half width of
/// the rounds, relative to the median.
pub(super) fn others(seed: u64, speed: f64, noise: f64) -> Results {
    Generator { random: fastrand::Rng::with_seed(seed), speed, noise }.results()
}

/// A figure of which all rounds lie within `noise` around the median.
pub(super) fn spread(median: f64, noise: f64) -> Spread {
    Spread {
        median,
        p25: median * (1.0 - noise / 2.0),
        p75: median * (1.0 + noise / 2.0),
        min: median * (1.0 - noise),
        max: median * (1.0 + noise),
        rounds: ROUNDS,
    }
}

struct Generator {
    random: fastrand::Rng,
    speed: f64,
    noise: f64,
}

impl Generator {
    /// About so much, differently in each round.
    fn around(&mut self, median: f64) -> Spread {
        let mut rounds: Vec<f64> = (0..ROUNDS)
            .map(|_| median * (1.0 + self.noise * (2.0 * self.random.f64() - 1.0)))
            .collect();
        rounds.sort_by(f64::total_cmp);
        let at = |share: f64| rounds[(share * f64::from(ROUNDS - 1)).round() as usize];
        Spread {
            median: at(0.5),
            p25: at(0.25),
            p75: at(0.75),
            min: at(0.0),
            max: at(1.0),
            rounds: ROUNDS,
        }
    }

    /// The machine's own copy: a cost for each call, caches that end at 1 MiB.
    fn memcpy(&self, transfer: u64) -> f64 {
        let peak = if transfer > 1 << 20 { 7.1e9 } else { 11.8e9 };
        self.speed * transfer as f64 / (transfer as f64 / peak + 12e-9)
    }

    /// An engine that takes 55 ns for a descriptor and copies as the machine does.
    fn engine(&self, transfer: u64, segment: u64, doorbells: f64, channels: u32) -> f64 {
        let segments = transfer.div_ceil(segment) as f64;
        let own = (segments * 55e-9 + doorbells * 400e-9) / self.speed;
        let seconds = transfer as f64 / self.memcpy(transfer.max(4096)) + own;
        transfer as f64 / seconds * f64::from(channels).powf(0.8)
    }

    fn cell(&mut self, series: Series, transfer: u64, segment: Option<u64>) -> Cell {
        self.varied(series, transfer, segment, 1, 1)
    }

    fn varied(
        &mut self,
        series: Series,
        transfer: u64,
        segment: Option<u64>,
        batch: u32,
        channels: u32,
    ) -> Cell {
        let doorbells = 1.0 / f64::from(batch);
        let piece = segment.unwrap_or(transfer);
        let rate = self.engine(transfer, piece, doorbells, channels);
        let whole = self.engine(transfer, transfer, doorbells, channels);
        let memcpy = self.memcpy(transfer);
        let bytes_per_second = self.around(rate);
        let operations = rate / transfer as f64;
        Cell {
            series,
            transfer,
            segment,
            batch,
            channels,
            method: super::results::Method::Auto,
            bytes_per_second,
            operations_per_second: self.around(operations),
            of_memcpy: Some(self.around(rate / memcpy)),
            of_contiguous: segment.map(|_| self.around(rate / whole)),
            latency: (batch == 1 && channels == 1).then(|| self.latency(1e9 / operations)),
            transfers: 20_000,
            descriptors: transfer.div_ceil(piece) as f64,
            doorbells,
            map_calls: 2,
            cycles: None,
            link: Some(share(transfer, piece, batch, bytes_per_second.median)),
        }
    }

    /// A long tail above a least time.
    fn latency(&mut self, typical: f64) -> Latency {
        let shares = [0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999, 1.0];
        let worst = 1.0 + self.random.f64();
        let time = |share: f64| {
            let tail = -(1.0 - share + 5e-5).ln() / 9.9;
            (typical * (0.92 + 0.12 * share + worst * 8.0 * tail.powi(4))) as u64
        };
        Latency {
            samples: 20_000,
            p50: time(0.5),
            p99: time(0.99),
            p999: time(0.999),
            max: time(1.0),
            quantiles: shares.map(|share| (time(share), share)).to_vec(),
        }
    }

    fn allocations(&mut self) -> Vec<Allocation> {
        let ways = [
            ("reserved pool", None, Some(0.9e3), 1, 0),
            ("IOMMU-contiguous in pages of 1 GiB", Some(1 << 30), None, 0, 0),
            ("IOMMU-contiguous in pages of 2 MiB", Some(2 << 20), Some(21e3), 1, 1),
            ("IOMMU-contiguous in pages of 4 KiB", Some(4096), Some(310e3), 1, 1),
            ("smaller blocks", None, Some(390e3), 32, 32),
            ("scatter/gather", None, Some(880e3), 512, 512),
        ];
        let mut one =
            |(strategy, page_size, ns, segments, map_calls): (&str, _, Option<f64>, _, _)| {
                Allocation {
                    strategy: strategy.to_owned(),
                    page_size,
                    len: 2 << 20,
                    failed: ns
                        .is_none()
                        .then(|| "no page of 1 GiB is free: nr_hugepages is 0".into()),
                    allocate: ns.map(|ns| self.around(ns)),
                    map: ns.map(|ns| self.around(ns * 0.4)),
                    release: ns.map(|ns| self.around(ns * 0.3)),
                    segments,
                    map_calls,
                }
            };
        ways.map(&mut one).to_vec()
    }

    fn results(mut self) -> Results {
        let sizes: Vec<u64> = (3..=13).map(|n| 1 << (2 * n)).collect();
        let segments = [64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 2 << 20];
        let memcpy: Vec<Memcpy> = sizes
            .iter()
            .map(|&transfer| {
                let rate = self.memcpy(transfer);
                Memcpy { transfer, bytes_per_second: self.around(rate) }
            })
            .collect();
        let mut cells = Vec::new();
        for &transfer in &sizes {
            cells.push(self.cell(Series::Segments, transfer, None));
            for segment in segments.into_iter().filter(|&segment| segment < transfer) {
                if transfer / segment <= 65_536 {
                    cells.push(self.cell(Series::Segments, transfer, Some(segment)));
                }
            }
        }
        for batch in (0..=10).map(|n| 1 << n) {
            cells.push(self.varied(Series::Batch, 64, None, batch, 1));
        }
        for channels in [1, 2, 4] {
            cells.push(self.varied(Series::Channels, 64 << 10, None, 1, channels));
        }
        for transfer in [64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10] {
            cells.push(self.cell(Series::Latency, transfer, None));
        }
        for transfer in [64, 1 << 10, 4 << 10, 16 << 10] {
            for channels in [1, 2] {
                cells.push(self.varied(Series::Slots, transfer, None, 32, channels));
            }
        }
        let allocations = self.allocations();
        let small_copies = small_copies(&cells, &memcpy, &LinkConfig::default());
        Results {
            schema: SCHEMA,
            setup: setup(),
            ended_early: None,
            memcpy,
            cells,
            allocations,
            small_copies,
            clock: None,
            link: Some(link::view(&LinkConfig::default(), 1 << 20, &segments[..6])),
            noise: Noise {
                undecided: vec!["4 MiB in 2 MiB segments".into()],
                wide: Vec::new(),
                of: 90,
            },
            notes: vec![
                "left out, with more than 65536 segments in a transfer: 16 MiB in 64 B segments"
                    .into(),
            ],
        }
    }
}

fn share(transfer: u64, segment: u64, batch: u32, rate: f64) -> LinkShare {
    let meter = LinkMeter::default();
    meter.host_write(2);
    for _ in 0..batch {
        for _ in 0..transfer.div_ceil(segment) {
            meter.descriptor_fetch(1, 64);
            meter.data_read(segment);
            meter.data_write(segment);
        }
        meter.completion_write(8);
    }
    link::share(meter.link(), &meter.snapshot(), batch.into(), rate, transfer)
}

fn setup() -> Setup {
    let command = ["bench", "model", "--profile", "full", "--report", "bench.html"];
    Setup {
        version: "0.1.0".into(),
        command: command.map(Into::into).to_vec(),
        taken: "2026-03-04T05:06:07Z".into(),
        elapsed: 412_345_678_901,
        machine: Machine {
            kernel: "6.12.9-amd64".into(),
            architecture: "x86_64".into(),
            processor: Some("AMD EPYC 7B13 64-Core Processor".into()),
            processors: 2,
            memory: 8 << 30,
            hypervisor: Some("KVM, QEMU 9.2.1".into()),
            transparent_huge_pages: Some("madvise".into()),
        },
        device: DeviceInfo {
            location: "model".into(),
            driver: "ioat".into(),
            version: Some("3.3".into()),
            ids: "8086:2f20".into(),
            channels: 4,
            iommu: "embedded".into(),
            completion: "polled in memory by one thread, ring of 65536 descriptors".into(),
        },
        profile: "full".into(),
        rounds: ROUNDS,
        seed: 1,
        peak_memory: Some(412 << 20),
        conditions: Some(Conditions {
            load: [Some(0.4), Some(1.2)],
            steal: Some(0.003),
            governors: vec!["performance".into()],
            allowed: Some("0-1".into()),
            pinned: false,
        }),
    }
}

/// Every name of a field in the serialised results.
fn names(value: &serde_json::Value, found: &mut std::collections::BTreeSet<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                found.insert(name.clone());
                names(value, found);
            }
        }
        serde_json::Value::Array(list) => list.iter().for_each(|value| names(value, found)),
        _ => {}
    }
}

#[test]
fn the_documentation_has_every_field() {
    let text = include_str!("../../../docs/bench.md");
    let (_, text) = text.split_once("\n## JSON").unwrap();
    let (text, _) = text.split_once("\n## CSV").unwrap();
    let mut found = std::collections::BTreeSet::new();
    names(&serde_json::to_value(results()).unwrap(), &mut found);
    assert!(found.len() > 50, "{found:?}");
    for name in found {
        assert!(text.contains(&format!("`{name}`")), "docs/bench.md lacks {name}");
    }
    assert!(text.contains(&format!("version of this schema: {SCHEMA} |")));
}
