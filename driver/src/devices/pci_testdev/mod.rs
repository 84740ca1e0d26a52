//! QEMU's PCI test device (1b36:0005), `docs/specs/pci-testdev.rst`.
//!
//! Each of its first two BARs, memory or I/O ports, starts with a header that selects a
//! test and tells where to write what. A test counts the writes that reach the device's
//! own handler. In a test named `...-eventfd` QEMU signals an eventfd for the matching
//! write instead of calling the handler, so the count there stays at 0, and writes that
//! do not match the eventfd's data are not counted either. BAR2, with the property
//! `membar`, is address space without storage.
//!
//! | offset | bits | name | meaning |
//! |---|---|---|---|
//! | 0x00 | 8 | test | write: selects and restarts a test |
//! | 0x01 | 8 | width | width of the test's writes in bytes: 1, 2 or 4; else there is no such test |
//! | 0x04 | 32 | offset | where in the BAR to write |
//! | 0x08 | 32 | data | what to write |
//! | 0x0c | 32 | count | writes that were counted since the test was selected |
//! | 0x10 | | name | zero-terminated ASCII |

use std::fmt;

use super::{Match, PciDriver, ProbeFailed};
use crate::backend::{BackendError, Region};
use crate::device::{Device, DeviceError};
use crate::mmio::{Bar, MmioError, ReadOnly, Reg, WriteOnly};

const TEST: Reg<u8, WriteOnly> = Reg::at(0x00);
const WIDTH: Reg<u8, ReadOnly> = Reg::at(0x01);
const OFFSET: u64 = 0x04;
const DATA: u64 = 0x08;
const COUNT: u64 = 0x0c;
const NAME: u64 = 0x10;
/// Longest name that is read; QEMU's have up to 24 characters.
const NAME_LIMIT: u64 = 64;
/// More tests than this on one BAR are not believed.
const TEST_LIMIT: u8 = 64;

/// A test that could not be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TestdevError {
    /// The header points outside of its BAR.
    #[error(
        "{region}: test {test} wants {width}-byte writes at {offset:#x}, outside of its {size:#x} bytes"
    )]
    OutsideBar {
        /// The BAR.
        region: Region,
        /// Number of the test.
        test: u8,
        /// Offset of the writes.
        offset: u32,
        /// Width of the writes in bytes.
        width: u8,
        /// Size of the BAR in bytes.
        size: u64,
    },
    /// The BAR has no test 0: this is not a pci-testdev.
    #[error("{region} has no test: the device is not a pci-testdev")]
    NoTest {
        /// The BAR.
        region: Region,
    },
    /// A register access failed.
    #[error("{0}")]
    Mmio(#[from] MmioError),
    /// A generic operation of the device failed.
    #[error("{0}")]
    Device(#[from] DeviceError),
}

/// How a BAR is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Access {
    /// By load and store.
    Mapped,
    /// By positioned reads and writes, as for I/O ports.
    Trapped,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Access::Mapped => "mapped",
            Access::Trapped => "trapped",
        })
    }
}

/// What came of one test.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct TestResult {
    /// The BAR's number.
    pub bar: u8,
    /// Number of the test on its BAR.
    pub test: u8,
    /// Its name, such as `mmio-no-eventfd`.
    pub name: String,
    /// Width of its writes in bytes.
    pub width: u8,
    /// How the BAR was reached.
    pub access: Access,
    /// Writes made.
    pub writes: u32,
    /// Writes that the device counted.
    pub hits: u32,
    /// Writes that it had to count.
    pub expected: u32,
    /// Further writes, with other data or beside the offset, that the device counted
    /// although it must not.
    pub stray_hits: u32,
}

impl TestResult {
    /// Whether the device counted exactly what it had to.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.hits == self.expected && self.stray_hits == 0
    }
}

/// What came of the optional BAR2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Membar {
    /// Size in bytes.
    pub size: u64,
    /// Bytes of it that are mapped.
    pub mapped: u64,
}

/// The driver of one pci-testdev.
#[derive(Debug)]
pub struct PciTestdev {
    bars: Vec<(u8, Bar)>,
    device: Device,
}

impl PciDriver for PciTestdev {
    const NAME: &'static str = "pci-testdev";
    /// The ids of QEMU's `docs/specs/pci-testdev.rst`.
    const MATCHES: &'static [Match] = &[Match::id(0x1b36, 0x0005, "QEMU PCI test device")];
    type Config = ();
    type Error = TestdevError;

    /// Opens the device's test BARs.
    ///
    /// # Errors
    ///
    /// Fails when it has none.
    fn probe(device: Device, (): ()) -> Result<PciTestdev, ProbeFailed<TestdevError>> {
        match open_bars(&device) {
            Ok(bars) => Ok(PciTestdev { bars, device }),
            Err(error) => Err(ProbeFailed::new(error, device)),
        }
    }
}

fn open_bars(device: &Device) -> Result<Vec<(u8, Bar)>, TestdevError> {
    let mut bars = Vec::new();
    for index in 0..2 {
        match device.bar(index) {
            Ok(bar) => bars.push((index, bar)),
            Err(DeviceError::Mmio(MmioError::Backend(BackendError::NoRegion { .. }))) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if bars.is_empty() {
        return Err(TestdevError::NoTest { region: Region::Bar(0) });
    }
    Ok(bars)
}

impl PciTestdev {
    /// Runs every test of every BAR with `writes` matching writes each.
    ///
    /// # Errors
    ///
    /// Fails when a BAR has no test, a header makes no sense, or the function is to be removed.
    /// A test that fails is not
    /// an error: see [`TestResult::passed`].
    pub fn run(&self, writes: u32) -> Result<Vec<TestResult>, TestdevError> {
        let mut results = Vec::new();
        for (index, bar) in &self.bars {
            let before = results.len();
            for test in 0..TEST_LIMIT {
                self.device.check_events()?;
                match run_test(*index, bar, test, writes)? {
                    Some(result) => results.push(result),
                    None => break,
                }
            }
            if results.len() == before {
                return Err(TestdevError::NoTest { region: bar.region() });
            }
        }
        Ok(results)
    }

    /// Opens the optional BAR2 and touches its first, middle and last word.
    ///
    /// Returns `None` when the device was started without `membar`.
    ///
    /// # Errors
    ///
    /// Fails when the BAR cannot be mapped or reached.
    pub fn membar(&self) -> Result<Option<Membar>, TestdevError> {
        let info = self.device.region(Region::Bar(2))?;
        if info.size == 0 {
            return Ok(None);
        }
        let bar = self.device.bar(2)?;
        let size = bar.size();
        // A BAR without room for a word has none to touch.
        let last = size.checked_sub(4);
        for offset in last.map_or([None; 3], |last| [Some(0), Some(size / 2), Some(last)]) {
            let Some(offset) = offset else { break };
            let offset = offset & !3;
            bar.write(offset, 0x5a5a_5a5a_u32)?;
            bar.read::<u32>(offset)?;
        }
        let mapped = bar.mapped().map(|range| range.end - range.start).sum();
        Ok(Some(Membar { size, mapped }))
    }
}

/// Runs one test; `None` when the BAR has no test of this number.
fn run_test(
    index: u8,
    bar: &Bar,
    test: u8,
    writes: u32,
) -> Result<Option<TestResult>, TestdevError> {
    bar.set(TEST, test)?;
    let width = bar.get(WIDTH)?;
    if !matches!(width, 1 | 2 | 4) {
        return Ok(None);
    }
    // The device answers byte by byte, whatever the width of the read.
    let (offset, data) = (read_u32(bar, OFFSET)?, read_u32(bar, DATA)?);
    let name = read_name(bar)?;
    let size = bar.size();
    if u64::from(offset) + u64::from(width) > size {
        return Err(TestdevError::OutsideBar { region: bar.region(), test, offset, width, size });
    }
    for _ in 0..writes {
        write_width(bar, offset.into(), width, data)?;
    }
    let hits = read_u32(bar, COUNT)?;
    // An eventfd takes the matching writes away before the device's handler sees them.
    let expected = if name.ends_with("no-eventfd") { writes } else { 0 };
    bar.set(TEST, test)?;
    let beside = u64::from(offset) + u64::from(width);
    if beside + u64::from(width) <= size {
        write_width(bar, beside, width, data)?;
    }
    if !name.ends_with("wildcard-eventfd") {
        write_width(bar, offset.into(), width, !data)?;
    }
    let stray_hits = read_u32(bar, COUNT)?;
    let mapped = bar.mapped().any(|range| range.contains(&u64::from(offset)));
    let access = if mapped { Access::Mapped } else { Access::Trapped };
    Ok(Some(TestResult {
        bar: index,
        test,
        name,
        width,
        access,
        writes,
        hits,
        expected,
        stray_hits,
    }))
}

fn write_width(bar: &Bar, offset: u64, width: u8, data: u32) -> Result<(), MmioError> {
    match width {
        1 => bar.write(offset, data as u8),
        2 => bar.write(offset, data as u16),
        _ => bar.write(offset, data),
    }
}

fn read_u32(bar: &Bar, offset: u64) -> Result<u32, MmioError> {
    let mut bytes = [0; 4];
    for (at, byte) in (offset..).zip(&mut bytes) {
        *byte = bar.read(at)?;
    }
    Ok(u32::from_le_bytes(bytes))
}

fn read_name(bar: &Bar) -> Result<String, MmioError> {
    let mut name = String::new();
    for at in NAME..NAME + NAME_LIMIT {
        match bar.read::<u8>(at)? {
            0 => break,
            byte => name.push(if byte.is_ascii_graphic() { byte.into() } else { '?' }),
        }
    }
    Ok(name)
}
