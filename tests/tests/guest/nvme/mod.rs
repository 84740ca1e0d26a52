//! The NVMe driver on QEMU's controller, which was written by others: what is read is what the
//! host put into the image, and what is written is compared in the image from the host.

mod command;
mod failing;
mod judges;
mod offered;
mod reading;
mod steady;
mod taken;
mod writing;

use std::sync::Arc;
use std::time::Duration;

use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::nvme::{
    Config, Finished, IoQueue, Namespace, Nvme, Refused, Signature, Token,
};
use vfio_dma::dma::{Buffer, Direction, Pattern, Placement, Request, SgTable};
use vfio_dma::queue::WaitMode;
use vfio_dma_tests::{Dice, Machine, address};
use vfio_dma_tools::vm::{Image, Iommu, Kernel, NvmeDrive, VmConfig};

use crate::support::open;

pub(crate) use command::*;
pub(crate) use failing::*;
pub(crate) use judges::*;
pub(crate) use offered::*;
pub(crate) use reading::*;
pub(crate) use steady::*;
pub(crate) use taken::*;
pub(crate) use writing::*;

/// Blocks of 512 bytes.
const SMALL: u8 = 0;

/// Blocks of 4 KiB, and commands of at most 128 KiB.
const LARGE: u8 = 1;

/// A medium that fails at byte 4096.
const BROKEN: u8 = 2;

/// A partition table, and no writes.
const USED: u8 = 3;

/// 512 KiB a second.
const SLOW: u8 = 4;

/// A controller with a namespace for each of [`MANY`], and one with metadata.
const SEVERAL: u8 = 5;

/// What lies where on the namespaces of a controller, and what it is taken for; an offset below
/// 0 counts from the end.
const MANY: [(&[u8], i64, Option<Signature>); 8] = [
    (b"", 0, None),
    (b"EFI PART", -512, Some(Signature::PartitionTable)),
    (&[0x53, 0xef], 1080, Some(Signature::FileSystem)),
    (b"LABELONE", 512, Some(Signature::Volume)),
    (&[0xfc, 0x4e, 0x2b, 0xa9], -8192, Some(Signature::Raid)),
    (b"LUKS\xba\xbe", 0, Some(Signature::Encrypted)),
    (b"SWAPSPACE2", 4086, Some(Signature::Swap)),
    (&[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0], 131_072, Some(Signature::Volume)),
];

const SIZE: u64 = 16 << 20;

/// What the cases write lies behind this.
const WRITTEN: u64 = 8 << 20;

const LIMIT: Duration = Duration::from_secs(60);

/// What the host puts into an image.
fn initial(drive: u8) -> Pattern {
    Pattern::new(100 + u64::from(drive))
}

/// What the cases write, each byte by its place on the drive.
fn written(drive: u8) -> Pattern {
    Pattern::new(200 + u64::from(drive))
}

/// What QEMU traces: what the specification leaves undefined, and that a controller was enabled,
/// which shows that it traces.
const TRACES: &str = "trace:pci_nvme_ub_*,trace:pci_nvme_mmio_start_success";
const STARTED: &str = "pci_nvme_mmio_start_success";

/// The last 4 KiB of a drive tell the host from where to where it was written, by a case that
/// ended well: as two numbers behind this.
const MARK: &[u8; 8] = b"written!";

const MARK_AT: u64 = SIZE - 4096;

fn machine(iommu: Iommu, kernel: Kernel, kernel_args: Vec<String>) -> Machine {
    let image = |drive: u8, size| Image::new(size, initial(drive)).unwrap();
    let images = [SIZE, SIZE, 1 << 20, 4 << 20, 4 << 20];
    let images: Vec<Image> = (0..).zip(images).map(|(n, size)| image(n, size)).collect();
    images[usize::from(USED)].write(512, b"EFI PART").unwrap();
    let rules = tempfile::NamedTempFile::new().unwrap();
    let rule =
        "[inject-error]\nevent = \"read_aio\"\nerrno = \"5\"\nsector = \"8\"\nonce = \"off\"\n";
    std::fs::write(rules.path(), rule).unwrap();
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut config = VmConfig {
        kernel,
        iommu,
        kernel_args,
        files: crate::examples::files(),
        ..VmConfig::default()
    };
    for (n, image) in (0u8..).zip(&images) {
        let drive = NvmeDrive::new(image.path());
        let mut drive = match n {
            LARGE => drive.with(&[
                "mdts=5",
                "logical_block_size=4096",
                "physical_block_size=4096",
                "use-intel-id=on",
                "cmb_size_mb=1",
            ]),
            USED => NvmeDrive { read_only: true, ..drive },
            SLOW => drive.drive(&["throttling.bps-total=524288"]),
            _ => drive,
        };
        if n == BROKEN {
            let path = image.path().display();
            let rules = rules.path().display();
            drive.image = format!("blkdebug:{rules}:{path}").into();
        }
        let (device, arguments) = drive.describe(&format!("d{n}"));
        config.devices.push(device);
        config.qemu_args.extend(arguments);
    }
    let several = several(&mut config);
    let log_path = log.path().as_os_str().to_owned();
    config.qemu_args.extend(["-d".into(), TRACES.into(), "-D".into(), log_path]);
    let before = images[usize::from(USED)].bytes().unwrap();
    let verify = move || {
        let _rules = rules;
        for drive in [SMALL, LARGE] {
            check_image(drive, &images[usize::from(drive)].bytes().map_err(|e| e.to_string())?)?;
        }
        if images[usize::from(USED)].bytes().map_err(|e| e.to_string())? != before {
            return Err("a drive that was refused has changed".into());
        }
        for (n, (image, before)) in several.iter().enumerate() {
            if image.bytes().map_err(|e| e.to_string())? != *before {
                return Err(format!("namespace {} has changed", n + 1));
            }
        }
        let log = std::fs::read_to_string(log.path()).map_err(|e| e.to_string())?;
        if !log.contains(STARTED) {
            return Err(format!("QEMU traced nothing: {log}"));
        }
        match log.lines().find(|line| line.contains("pci_nvme_ub_")) {
            Some(line) => Err(format!("QEMU found undefined behaviour: {line}")),
            None => Ok(()),
        }
    };
    Machine { vm: config, verify: Box::new(verify) }
}

/// Adds the controller with several namespaces; their images, and what is in them.
fn several(config: &mut VmConfig) -> Vec<(Image, Vec<u8>)> {
    config.devices.push("nvme,id=several,serial=vfio-dma-several".into());
    let mut images = Vec::new();
    let with_metadata = (&b""[..], 0, None);
    for (n, (magic, at, _)) in (1..).zip(MANY.into_iter().chain([with_metadata])) {
        let image = Image::new(4 << 20, initial(SEVERAL)).unwrap();
        let at = if at < 0 { (4 << 20) + at } else { at };
        image.write(at.unsigned_abs(), magic).unwrap();
        let path = image.path().display();
        let metadata = if n > MANY.len() { ",ms=8" } else { "" };
        config.qemu_args.extend([
            "-drive".into(),
            format!("if=none,id=several{n},format=raw,file={path}").into(),
            "-device".into(),
            format!("nvme-ns,drive=several{n},bus=several,nsid={n}{metadata}").into(),
        ]);
        let before = image.bytes().unwrap();
        images.push((image, before));
    }
    images
}

pub(crate) fn type1() -> Machine {
    machine(Iommu::default(), Kernel::default(), Vec::new())
}

pub(crate) fn iommufd() -> Machine {
    machine(Iommu::default(), Kernel::Full, Vec::new())
}

pub(crate) fn noiommu() -> Machine {
    machine(Iommu::None, Kernel::Full, vec!["vfio.enable_unsafe_noiommu_mode=1".into()])
}

/// On the host: the image has what was written where a case says so, and what it had elsewhere.
fn check_image(drive: u8, image: &[u8]) -> Result<(), String> {
    let mark = &image[MARK_AT as usize..][..24];
    let number = |at: usize| u64::from_le_bytes(mark[at..at + 8].try_into().unwrap_or_default());
    let (first, end) = if mark.starts_with(MARK) { (number(8), number(16)) } else { (0, 0) };
    let mut expected = vec![0; image.len()];
    initial(drive).bytes(0, &mut expected);
    let differs = |range: std::ops::Range<usize>, expected: &[u8]| {
        range.clone().find(|&at| image[at] != expected[at - range.start])
    };
    let mut new = vec![0; (end - first) as usize];
    written(drive).bytes(first, &mut new);
    if let Some(at) = differs(first as usize..end as usize, &new) {
        return Err(format!("drive {drive}: byte {at} of the image is not what was written"));
    }
    if end > first {
        eprintln!("drive {drive}: bytes {first} to {end} of the image are as they were written");
    }
    // Whatever lies before the part that is for writing, nobody may have touched.
    if let Some(at) = differs(0..WRITTEN as usize, &expected[..WRITTEN as usize]) {
        return Err(format!("drive {drive}: byte {at} of the image was changed"));
    }
    Ok(())
}

fn nvme_at(device: Device, wait: WaitMode) -> Nvme {
    Nvme::probe(device, Config { wait: Some(wait), ..Config::default() }).expect("opening NVMe")
}

fn nvme(drive: u8) -> Nvme {
    Nvme::probe(open(address(drive)), Config::default()).expect("opening NVMe")
}

fn only(nvme: &Nvme) -> Namespace {
    let [namespace] = nvme.namespaces() else { panic!("{:?}", nvme.namespaces()) };
    *namespace
}

/// A list of bytes and where they lie, so that they can be looked at in order.
struct Shape {
    pieces: Vec<(Arc<Buffer>, usize, usize)>,
}

/// How a list is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Contiguous,
    /// Pages as they come, the first and last in part.
    Pages,
    /// Pieces of any length at any byte.
    Odd,
}

impl Shape {
    fn new(nvme: &Nvme, dice: &mut Dice, kind: Kind, len: usize, way: Direction) -> Shape {
        let allocate = |size, placement| {
            Arc::new(nvme.allocate(&Request::new(size, way).placement(placement)).unwrap())
        };
        // The first of a list of PRPs begins at a multiple of 4 bytes.
        let offset = 4 * dice.roll(1024) as usize;
        let pieces = match kind {
            Kind::Contiguous => {
                vec![(allocate(len + offset, Placement::Auto), offset, len)]
            }
            Kind::Pages => vec![(allocate(len + offset, Placement::ScatterGather), offset, len)],
            Kind::Odd => {
                let buffers = [Placement::Auto, Placement::ScatterGather].map(|placement| {
                    // Room for every piece, and a gap behind it.
                    allocate(2 * len + 4096, placement)
                });
                let (mut left, mut pieces, mut at) = (len, Vec::new(), [0; 2]);
                while left > 0 {
                    let which = dice.roll(2) as usize;
                    let most = (len / 8).max(64) as u64;
                    let part = (1 + dice.roll(most) as usize).min(left);
                    let gap = 1 + dice.roll(7) as usize;
                    if at[which] + part + gap > 2 * len + 4096 {
                        continue;
                    }
                    pieces.push((Arc::clone(&buffers[which]), at[which] + gap, part));
                    at[which] += part + gap;
                    left -= part;
                }
                pieces
            }
        };
        Shape { pieces }
    }

    fn table(&self) -> SgTable {
        let pieces = self.pieces.iter();
        SgTable::gather(pieces.map(|(buffer, at, len)| (Arc::clone(buffer), *at, *len))).unwrap()
    }

    /// Compares with the pattern from a place on the drive on.
    fn check(&self, pattern: Pattern, mut position: u64) {
        for (buffer, at, len) in &self.pieces {
            pattern.check(buffer, *at, *len, position).unwrap().unwrap();
            position += *len as u64;
        }
    }

    /// Writes the pattern from a place on the drive on; nothing else has the buffers.
    fn fill(&mut self, pattern: Pattern, mut position: u64) {
        // Each buffer is taken for itself once, however many pieces are in it.
        let pieces = std::mem::take(&mut self.pieces);
        let mut owned: Vec<(*const Buffer, Buffer)> = Vec::new();
        let places: Vec<_> =
            pieces.iter().map(|(buffer, at, len)| (Arc::as_ptr(buffer), *at, *len)).collect();
        for (buffer, ..) in pieces {
            let id = Arc::as_ptr(&buffer);
            if let Some(buffer) = Arc::into_inner(buffer) {
                owned.push((id, buffer));
            }
        }
        for (id, at, len) in &places {
            let (_, buffer) = owned.iter_mut().find(|(known, _)| known == id).unwrap();
            pattern.fill(buffer, *at, *len, position).unwrap();
            position += *len as u64;
        }
        let shared: Vec<_> = owned.into_iter().map(|(id, buffer)| (id, Arc::new(buffer))).collect();
        let find = |id| Arc::clone(&shared.iter().find(|(known, _)| *known == id).unwrap().1);
        self.pieces = places.into_iter().map(|(id, at, len)| (find(id), at, len)).collect();
    }
}

fn ended(queue: &mut IoQueue, token: Result<Token, Refused>) -> Finished {
    queue.wait(token.expect("submitted"), LIMIT).expect("it ends")
}
