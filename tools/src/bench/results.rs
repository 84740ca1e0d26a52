//! What a benchmark found: the data behind every table, file and page.
//!
//! This is the schema of `vfio-dma bench --json`. Lengths are bytes, times nanoseconds,
//! rates bytes or operations for each second. A field that does not apply is `null`.

use serde::{Deserialize, Serialize};

/// Version of the schema: it rises when a field changes its meaning or goes away.
pub const SCHEMA: u32 = 1;

/// Everything that one benchmark found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// [`SCHEMA`] at the time of writing.
    pub schema: u32,
    /// What it was taken on, and how.
    pub setup: Setup,
    /// Why the measurement ended before its last round; `null` when it did not.
    pub ended_early: Option<String>,
    /// The processor's own copy of each size, in the same rounds.
    pub memcpy: Vec<Memcpy>,
    /// The transfers, every variant in each round.
    pub cells: Vec<Cell>,
    /// What it costs to get memory for the device, by strategy and page size.
    pub allocations: Vec<Allocation>,
    /// What a PCI Express link would make of it, by calculation.
    pub link: Option<LinkView>,
    /// Copies between slots against the processor's own; `null` where there are none.
    #[serde(default)]
    pub small_copies: Option<SmallCopies>,
    /// The clock that cycles are of; `null` for a device that is not simulated here.
    #[serde(default)]
    pub clock: Option<ClockInfo>,
    /// Figures that the rounds leave open.
    #[serde(default)]
    pub noise: Noise,
    /// What a reader has to know: what was left out and why, differences without meaning.
    pub notes: Vec<String>,
}

/// Figures that the rounds leave open, by the names of their variants.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noise {
    /// The ratio to contiguous has 1 in its middle half (`~`).
    pub undecided: Vec<String>,
    /// The middle half of the rate, or of the ratio to contiguous, spans more than a quarter of
    /// the median (`!`).
    pub wide: Vec<String>,
    /// Variants that were measured.
    pub of: usize,
}

/// What a benchmark was taken on, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// Version of vfio-dma.
    pub version: String,
    /// The arguments, without the name of the program.
    pub command: Vec<String>,
    /// Begin of the measurement, UTC, as in RFC 3339.
    pub taken: String,
    /// How long it took, in ns.
    pub elapsed: u64,
    /// The machine.
    pub machine: Machine,
    /// The device.
    pub device: DeviceInfo,
    /// `quick` or `full`.
    pub profile: String,
    /// Rounds that were asked for.
    pub rounds: u32,
    /// Seed of the order of segments and of the data.
    pub seed: u64,
    /// Highest resident memory of the process, in bytes.
    pub peak_memory: Option<u64>,
    /// What else the machine did meanwhile; `null` in files of earlier versions.
    #[serde(default)]
    pub conditions: Option<Conditions>,
}

/// The machine, as it describes itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Release of the kernel (uname -r).
    pub kernel: String,
    /// Architecture (uname -m).
    pub architecture: String,
    /// Name of the processor.
    pub processor: Option<String>,
    /// Processors that this process may use.
    pub processors: usize,
    /// Memory in bytes.
    pub memory: u64,
    /// The hypervisor, with QEMU's version where it is known; `null` when there is none.
    pub hypervisor: Option<String>,
    /// State of transparent huge pages.
    pub transparent_huge_pages: Option<String>,
}

/// What else the machine did while it was measured on, and how its processors were set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// Load of the last minute before and after the measurement (/proc/loadavg).
    pub load: [Option<f64>; 2],
    /// Share of the processors' time that the hypervisor gave to others meanwhile, 0 to 1.
    pub steal: Option<f64>,
    /// Frequency governors of the processors, each once; empty where there are none.
    pub governors: Vec<String>,
    /// The processors that the process may use, as in `0-3,8`.
    pub allowed: Option<String>,
    /// Whether these are fewer than the machine has.
    pub pinned: bool,
}

/// The device, as it was opened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// PCI address, socket, or `model`.
    pub location: String,
    /// `ioat` or `edu`.
    pub driver: String,
    /// Its version, as far as it tells one.
    pub version: Option<String>,
    /// Vendor and device id, in hexadecimal.
    pub ids: String,
    /// Channels that it has.
    pub channels: u32,
    /// How the IOMMU is reached: type1, iommufd, noiommu, vfio-user, embedded.
    pub iommu: String,
    /// How completion is learnt.
    pub completion: String,
}

/// A figure over all rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The median of the rounds.
    pub median: f64,
    /// A quarter of the rounds was lower.
    pub p25: f64,
    /// A quarter of the rounds was higher.
    pub p75: f64,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
    /// Rounds behind the figure.
    pub rounds: u32,
}

/// The processor's own copy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Memcpy {
    /// Bytes of one copy.
    pub transfer: u64,
    /// Bytes for each second.
    pub bytes_per_second: Spread,
}

/// One variant of a transfer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Which table the cell belongs to.
    pub series: Series,
    /// Bytes of one transfer.
    pub transfer: u64,
    /// Bytes of a segment; `null` for a contiguous buffer.
    pub segment: Option<u64>,
    /// Transfers submitted for each doorbell.
    pub batch: u32,
    /// Channels that worked at once.
    pub channels: u32,
    /// How the device is told where the data is.
    #[serde(default)]
    pub method: Method,
    /// Payload bytes for each second, over all channels.
    pub bytes_per_second: Spread,
    /// Transfers for each second, over all channels.
    pub operations_per_second: Spread,
    /// Rate as a share of the processor's copy in the same round.
    pub of_memcpy: Option<Spread>,
    /// Rate as a share of the contiguous transfer in the same round, of that by PRP in the table
    /// of methods; `null` for that itself.
    pub of_contiguous: Option<Spread>,
    /// From the submission of a transfer until its completion was seen.
    pub latency: Option<Latency>,
    /// Transfers that were measured.
    pub transfers: u64,
    /// Descriptors for one transfer.
    pub descriptors: f64,
    /// Doorbells for one transfer.
    pub doorbells: f64,
    /// Map calls that the buffers took, once.
    pub map_calls: u64,
    /// Cycles of a simulated device's clock for one transfer, from the first register write to
    /// the last data in memory; `null` for a device that is not simulated here.
    #[serde(default)]
    pub cycles: Option<f64>,
    /// What the transfer would put on a link, by the model's count.
    pub link: Option<LinkShare>,
}

/// The clock of a simulated device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockInfo {
    /// Width of the device's bus, in bits.
    pub bus_width: u32,
    /// Cycles from a read of the device to its first completion.
    pub host_latency: u32,
}

/// What a cell is varied by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Series {
    /// Sizes of transfers and of segments.
    Segments,
    /// Transfers for each doorbell.
    Batch,
    /// Channels.
    Channels,
    /// One transfer at a time.
    Latency,
    /// Small copies between slots, by size and channels.
    Slots,
    /// The ways to tell a device where data is, and what a transfer takes without its data.
    Methods,
}

/// How a device is told where data is, or what of a transfer it does without it.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// As the driver chooses.
    #[default]
    Auto,
    /// By PRP entries and lists.
    Prp,
    /// By SGLs.
    Sgl,
    /// Nothing is moved: the blocks are verified, which is what the medium takes.
    Verify,
    /// The first block alone is moved: what a command takes besides its data.
    OneBlock,
}

impl Method {
    /// What is said behind the size of a transfer; nothing for the driver's own choice.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Method::Auto => "",
            Method::Prp => ", by PRP",
            Method::Sgl => ", by SGL",
            Method::Verify => ", verified only",
            Method::OneBlock => ", one block of it",
        }
    }
}

/// From which size on an engine is quicker than the processor at small copies: the device by
/// measurement, a card by calculation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SmallCopies {
    /// Copies for a doorbell.
    pub batch: u32,
    /// What a doorbell is taken to cost on a card, in ns.
    pub doorbell: f64,
    /// By size.
    pub rows: Vec<SmallCopy>,
    /// The size from which, of those measured, one channel of the device is quicker.
    pub device_from: Option<u64>,
    /// The same of a card on the link, by calculation.
    pub card_from: Option<u64>,
}

/// The time of one copy of a size, in ns.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SmallCopy {
    /// Bytes of a copy.
    pub transfer: u64,
    /// Of the processor.
    pub memcpy: f64,
    /// Of one channel of the device.
    pub device: f64,
    /// Of a card on the link, by calculation: its packets, and its share of a doorbell.
    pub card: f64,
}

/// Times of single transfers, in ns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Transfers behind it.
    pub samples: u64,
    /// Half of them were not slower.
    pub p50: u64,
    /// 99%.
    pub p99: u64,
    /// 99.9%.
    pub p999: u64,
    /// The slowest.
    pub max: u64,
    /// The distribution: (time in ns, share of samples not slower), both rising.
    pub quantiles: Vec<(u64, f64)>,
}

/// What getting memory for the device costs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Allocation {
    /// The strategy, as [`Strategy`](vfio_dma::dma::Strategy) prints itself.
    pub strategy: String,
    /// Bytes of a page, where the strategy is bound to one.
    pub page_size: Option<u64>,
    /// Bytes of the buffer.
    pub len: u64,
    /// Why there was no memory; the figures are `null` then.
    pub failed: Option<String>,
    /// From the request until the buffer is mapped, in ns.
    pub allocate: Option<Spread>,
    /// The share of map calls in it, in ns; `null` when there were none.
    pub map: Option<Spread>,
    /// From the drop until it is unmapped and freed, in ns.
    pub release: Option<Spread>,
    /// Segments that the device sees.
    pub segments: u64,
    /// Map calls.
    pub map_calls: u64,
}

/// What one transfer puts on a link, by calculation from the model's count of packets.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LinkShare {
    /// Packets of one transfer, both directions.
    pub tlps: f64,
    /// Bytes on the wire from the device to the host, for one transfer.
    pub upstream: f64,
    /// Bytes on the wire from the host to the device, for one transfer.
    pub downstream: f64,
    /// Share of the link's bandwidth that the measured rate would take, 1 for all of it.
    pub share: f64,
    /// Payload in Gb/s of such transfers that the link has room for.
    #[serde(default)]
    pub gbps: f64,
    /// The latter as a share of the contiguous transfer's; `null` for that itself.
    pub ratio: Option<f64>,
}

/// What a link would make of the transfers, by calculation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinkView {
    /// The link, such as `gen3x8,mps=256,mrrs=512,addr=64,ecrc=0`.
    pub link: String,
    /// Bandwidth for packets in Gb/s, each way.
    pub tlp_gbps: f64,
    /// Bytes of the transfer that is calculated.
    pub transfer: u64,
    /// A row for each segment size.
    pub rows: Vec<LinkRow>,
    /// The smallest segment from which scatter/gather costs less than 5%: device reads,
    /// device writes, memory to memory. `null` when no segment of the transfer does.
    pub less_than_5_percent: [Option<u64>; 3],
}

/// Scatter/gather of one segment size on a link.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LinkRow {
    /// Bytes of a segment.
    pub segment: u64,
    /// Payload in Gb/s of a contiguous transfer: device reads, writes, memory to memory.
    pub contiguous_gbps: [f64; 3],
    /// The same in segments.
    pub segmented_gbps: [f64; 3],
    /// The latter as a share of the former.
    pub ratio: [f64; 3],
}
