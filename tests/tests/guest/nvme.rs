//! The NVMe driver on QEMU's controller, which was written by others: what is read is what the
//! host put into the image, and what is written is compared in the image from the host.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vfio_dma::backend::IrqKind;
use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::nvme::{
    Config, Consent, DataMethod, Finished, IoQueue, Namespace, Nvme, NvmeError, QueueConfig,
    Refused, Shutdown, Signature, Token, TransferError, WhenFull, Writable,
};
use vfio_dma::dma::{Buffer, Direction, Pattern, Placement, Request, SgTable};
use vfio_dma::pci::Address;
use vfio_dma::queue::{SharedQueue, WaitMode};
use vfio_dma_tests::{Dice, Machine, address};
use vfio_dma_tools::vm::{Image, Iommu, Kernel, NvmeDrive, VmConfig};

use crate::support::{bind, open, open_without_iommu};

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
    let mut config = VmConfig { kernel, iommu, kernel_args, ..VmConfig::default() };
    for (n, image) in (0u8..).zip(&images) {
        let drive = NvmeDrive::new(image.path());
        let mut drive = match n {
            LARGE => drive.with(&[
                "mdts=5",
                "logical_block_size=4096",
                "physical_block_size=4096",
                "use-intel-id=on",
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
    let log_path = log.path().as_os_str().to_owned();
    config.qemu_args.extend(["-d".into(), "trace:pci_nvme_ub_*".into(), "-D".into(), log_path]);
    let before = images[usize::from(USED)].bytes().unwrap();
    let verify = move || {
        let _rules = rules;
        for drive in [SMALL, LARGE] {
            check_image(drive, &images[usize::from(drive)].bytes().map_err(|e| e.to_string())?)?;
        }
        if images[usize::from(USED)].bytes().map_err(|e| e.to_string())? != before {
            return Err("a drive that was refused has changed".into());
        }
        let log = std::fs::read_to_string(log.path()).map_err(|e| e.to_string())?;
        match log.lines().find(|line| line.contains("pci_nvme_ub_")) {
            Some(line) => Err(format!("QEMU found undefined behaviour: {line}")),
            None => Ok(()),
        }
    };
    Machine { vm: config, verify: Box::new(verify) }
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

/// Reads blocks of the part that nobody writes, in every shape and by every method.
fn read_everything(nvme: &Nvme, drive: u8, rounds: u64) {
    let mut dice = Dice::seeded();
    let namespace = only(nvme);
    let block = u64::from(namespace.block_size());
    let mut queue = nvme.queue(QueueConfig { size: 64, ..QueueConfig::default() }).unwrap();
    let largest = queue.max_transfer(&namespace);
    let mut lens: Vec<u64> = vec![1, 2, 8, 9, largest / block, largest / block + 1];
    lens.extend((0..rounds).map(|_| 1 + dice.roll(400_000 / block)));
    for blocks in lens {
        for kind in [Kind::Contiguous, Kind::Pages, Kind::Odd] {
            let len = blocks * block;
            let lba = dice.roll((WRITTEN - len) / block);
            for method in [DataMethod::Auto, DataMethod::Prp, DataMethod::Sgl, DataMethod::Bounce] {
                queue.set_method(method);
                let way = Direction::FromDevice;
                let shape = Shape::new(nvme, &mut dice, kind, len as usize, way);
                let token = queue.read(&namespace, lba, shape.table(), WhenFull::Return);
                if (kind, method) == (Kind::Odd, DataMethod::Prp) && shape.pieces.len() > 1 {
                    let refused = token.unwrap_err();
                    let is_told = matches!(refused.error, NvmeError::Undescribable { .. });
                    assert!(is_told && refused.table.is_some(), "{refused:?}");
                    continue;
                }
                let finished = ended(&mut queue, token);
                println!("{len} bytes at {lba}: {kind:?} {method:?}: {finished:?}");
                let commands = len.div_ceil(largest);
                assert!(u64::from(finished.commands) >= commands, "{finished:?}");
                match method {
                    DataMethod::Auto => assert_ne!(finished.method, DataMethod::Auto),
                    method => assert_eq!(finished.method, method),
                }
                drop(finished.into_table().expect("it went well"));
                shape.check(initial(drive), lba * block);
            }
        }
    }
    assert_eq!(queue.in_flight(), 0);
    let stats = queue.stats();
    assert_eq!((stats.timeouts, stats.recoveries), (0, 0), "{stats:?}");
}

pub(crate) fn reads_what_the_host_put_there() {
    for drive in [SMALL, LARGE] {
        let nvme = nvme(drive);
        let space = Arc::clone(nvme.space());
        read_everything(&nvme, drive, 3);
        drop(nvme);
        assert_eq!(space.usage().mappings, 0, "all is unmapped");
    }
}

pub(crate) fn identifies_itself_and_tells_its_health() {
    let nvme = nvme(SMALL);
    let info = nvme.info();
    assert_eq!((&*info.serial, &*info.model), ("vfio-dma-d0", "QEMU NVMe Ctrl"), "{info:?}");
    assert_eq!((nvme.version(), info.version), ((1, 4, 0), (1, 4, 0)));
    assert_eq!((info.max_transfer, info.takes_sgl(), nvme.queues()), (Some(512 << 10), true, 16));
    assert_eq!((nvme.max_queue_size(), nvme.page_size()), (2048, 4096));
    assert_eq!(nvme.irq(), Some(IrqKind::MsiX));
    let namespace = only(&nvme);
    let shape = (namespace.id(), namespace.block_size(), namespace.bytes());
    assert_eq!(shape, (1, 512, SIZE));
    let before = nvme.smart_log().unwrap();
    let mut queue = nvme.queue(QueueConfig::default()).unwrap();
    let buffer = nvme.allocate(&Request::new(512, Direction::FromDevice)).unwrap();
    let token = queue.read(&namespace, 0, buffer.into(), WhenFull::Return);
    ended(&mut queue, token).into_result().unwrap();
    let after = nvme.smart_log().unwrap();
    assert_eq!((after.host_reads - before.host_reads, after.media_errors), (1, 0), "{after:?}");
    assert_eq!(nvme.error_log().unwrap(), []);
    assert!(nvme.write_cache().unwrap());
    nvme.set_write_cache(false).unwrap();
    assert!(!nvme.write_cache().unwrap());
    nvme.set_write_cache(true).unwrap();
    nvme.enable_events(0xff).unwrap();
    assert_eq!(nvme.take_events().unwrap(), []);
    let refused = nvme.feature(0xc0).unwrap_err();
    let NvmeError::Command { status, .. } = refused else { panic!("{refused:?}") };
    assert_eq!((status.code_type(), status.code(), status.do_not_retry()), (0, 2, true));
    assert_eq!(status.name(), Some("invalid field in command"));
}

/// 1 to 64 in flight, on 1 to 4 queues, each with a thread of its own.
pub(crate) fn many_in_flight_on_several_queues() {
    let nvme = nvme(SMALL);
    let namespace = only(&nvme);
    for (queues, depth) in [(1, 1), (1, 64), (2, 7), (4, 16), (4, 64)] {
        std::thread::scope(|scope| {
            for n in 0..queues {
                let nvme = &nvme;
                scope.spawn(move || {
                    let mut dice = Dice::new(n + 1);
                    let size = depth + 1;
                    let mut queue = nvme.queue(QueueConfig { size, ..QueueConfig::default() });
                    let queue = queue.as_mut().unwrap();
                    let read = |queue: &mut IoQueue, dice: &mut Dice| {
                        let lba = dice.roll(WRITTEN / 512 - 8);
                        let way = Direction::FromDevice;
                        let buffer = Arc::new(nvme.allocate(&Request::new(4096, way)).unwrap());
                        let table = Arc::clone(&buffer).into();
                        (queue.read(&namespace, lba, table, WhenFull::Return), lba, buffer)
                    };
                    let mut waiting: Vec<(Token, u64, Arc<Buffer>)> = Vec::new();
                    for _ in 0..depth {
                        let (token, lba, buffer) = read(queue, &mut dice);
                        waiting.push((token.unwrap(), lba, buffer));
                    }
                    // Filled to the brim.
                    assert_eq!(queue.free(), 0);
                    let (refused, ..) = read(queue, &mut dice);
                    let refused = refused.unwrap_err();
                    assert!(
                        refused.error.to_string().contains("1 entries are needed"),
                        "{refused}"
                    );
                    let before = queue.stats();
                    queue.wait_all(LIMIT).unwrap();
                    let after = queue.stats();
                    assert_eq!(after.doorbells - before.doorbells, 1, "one for all of them");
                    for (token, lba, buffer) in waiting {
                        let finished = queue.take(token).unwrap().unwrap();
                        drop(finished.into_table().unwrap());
                        let again = queue.take(token).unwrap_err();
                        assert!(matches!(again, NvmeError::NoSuchTransfer));
                        let buffer = Arc::into_inner(buffer).unwrap();
                        initial(SMALL).check(&buffer, 0, 4096, lba * 512).unwrap().unwrap();
                    }
                });
            }
        });
    }
}

pub(crate) fn every_way_of_waiting_ends() {
    for wait in [
        WaitMode::Poll,
        WaitMode::Interrupt(IrqKind::MsiX),
        WaitMode::Interrupt(IrqKind::Intx),
        WaitMode::Adaptive { irq: IrqKind::MsiX, spin: Duration::from_micros(50) },
    ] {
        let nvme = nvme_at(open(address(SMALL)), wait);
        let namespace = only(&nvme);
        let mut queue = nvme.queue(QueueConfig::default()).unwrap();
        for lba in 0..20 {
            let buffer = nvme.allocate(&Request::new(8192, Direction::FromDevice)).unwrap();
            let token = queue.read(&namespace, lba, buffer.into(), WhenFull::Return);
            let table = ended(&mut queue, token).into_table().unwrap();
            initial(SMALL)
                .check(&table.into_buffer().unwrap(), 0, 8192, lba * 512)
                .unwrap()
                .unwrap();
        }
        let interrupts = queue.stats().interrupts;
        match wait {
            WaitMode::Poll => assert_eq!(interrupts, 0),
            WaitMode::Interrupt(_) => assert!(interrupts > 0, "{wait:?}"),
            _ => {}
        }
        // With INTx only the first queue has the line.
        let second = nvme.queue(QueueConfig { wait: Some(wait), ..QueueConfig::default() });
        match (wait, second) {
            (WaitMode::Interrupt(IrqKind::Intx), second) => {
                assert!(matches!(second, Err(NvmeError::NoVector { queue: 2, .. })), "{second:?}");
            }
            (_, second) => drop(second.unwrap()),
        }
        // As futures.
        let shared = SharedQueue::new(queue, "nvme").unwrap();
        let reads: Vec<_> = (0..8)
            .map(|lba| {
                let buffer = nvme.allocate(&Request::new(512, Direction::FromDevice)).unwrap();
                shared.submit(|q| q.read(&namespace, lba, buffer.into(), WhenFull::Return)).unwrap()
            })
            .collect();
        for (lba, read) in (0..).zip(reads) {
            let table = read.wait(LIMIT).unwrap().into_table().unwrap();
            initial(SMALL)
                .check(&table.into_buffer().unwrap(), 0, 512, lba * 512)
                .unwrap()
                .unwrap();
        }
    }
}

fn writable(nvme: &Nvme, queue: &mut IoQueue) -> Writable {
    let namespace = only(nvme);
    let block = u64::from(namespace.block_size());
    let consent = Consent::new(&*nvme.info().serial, namespace.bytes());
    let consent = consent.blocks(WRITTEN / block..SIZE / block);
    queue.writable(&namespace, &consent, LIMIT).expect("the right to write")
}

/// Writes 1 MiB in every shape and by every method, reads it back, compares it by command, and
/// tells the host.
fn write_everything(nvme: &Nvme, drive: u8) {
    let mut dice = Dice::seeded();
    let namespace = only(nvme);
    let block = u64::from(namespace.block_size());
    let mut queue = nvme.queue(QueueConfig::default()).unwrap();
    let right = writable(nvme, &mut queue);
    let (first, end) = (WRITTEN + 8 * block, WRITTEN + (1 << 20));
    let mut at = first;
    let kinds = [Kind::Contiguous, Kind::Pages, Kind::Odd];
    let methods = [DataMethod::Auto, DataMethod::Sgl, DataMethod::Prp, DataMethod::Bounce];
    let mut combinations = kinds.into_iter().flat_map(|k| methods.map(|m| (k, m))).cycle();
    while at < end {
        let Some((kind, method)) = combinations.next() else { break };
        if (kind, method) == (Kind::Odd, DataMethod::Prp) {
            continue;
        }
        queue.set_method(method);
        let len = (block * (1 + dice.roll(200_000 / block))).min(end - at);
        let way = Direction::Bidirectional;
        let mut shape = Shape::new(nvme, &mut dice, kind, len as usize, way);
        shape.fill(written(drive), at);
        println!("{len} bytes to {at}: {kind:?} {method:?}");
        let token = queue.write(&right, at / block, shape.table(), WhenFull::Return);
        ended(&mut queue, token).into_result().unwrap();
        let token = queue.compare(&namespace, at / block, shape.table(), WhenFull::Return);
        ended(&mut queue, token).into_result().unwrap();
        let back = Shape::new(nvme, &mut dice, kind, len as usize, way);
        let token = queue.read(&namespace, at / block, back.table(), WhenFull::Return);
        ended(&mut queue, token).into_result().unwrap();
        back.check(written(drive), at);
        at += len;
    }
    let token = queue.flush(&namespace, WhenFull::Return);
    ended(&mut queue, token).into_result().unwrap();
    // A comparison that fails says so.
    queue.set_method(DataMethod::Auto);
    let shape = Shape::new(nvme, &mut dice, Kind::Contiguous, block as usize, Direction::ToDevice);
    let token = queue.compare(&namespace, first / block, shape.table(), WhenFull::Return);
    let error = ended(&mut queue, token).into_result().unwrap_err();
    let TransferError::Status { status, .. } = error else { panic!("{error:?}") };
    assert!(status.is_compare_failure(), "{status}");
    // Zeroes, and deallocation.
    let zeroes = (WRITTEN + (2 << 20)) / block;
    let token = queue.write_zeroes(&right, zeroes, (2 << 20) / block, WhenFull::Return);
    ended(&mut queue, token).into_result().unwrap();
    let buffer = nvme.allocate(&Request::new(2 << 20, Direction::FromDevice)).unwrap();
    let token = queue.read(&namespace, zeroes, buffer.into(), WhenFull::Return);
    let buffer = ended(&mut queue, token).into_table().unwrap().into_buffer().unwrap();
    let mut bytes = vec![1; 2 << 20];
    buffer.read(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|&byte| byte == 0), "zeroes were written");
    let token = queue.deallocate(&right, zeroes, 100, WhenFull::Return);
    ended(&mut queue, token).into_result().unwrap();
    // The host is told.
    let mut mark = nvme.allocate(&Request::new(4096, Direction::ToDevice)).unwrap();
    mark.write(0, MARK).unwrap();
    mark.write(8, &first.to_le_bytes()).unwrap();
    mark.write(16, &end.to_le_bytes()).unwrap();
    let token = queue.write(&right, MARK_AT / block, mark.into(), WhenFull::Return);
    ended(&mut queue, token).into_result().unwrap();
    let token = queue.flush(&namespace, WhenFull::Return);
    ended(&mut queue, token).into_result().unwrap();
    nvme.shut_down(Shutdown::Normal).unwrap();
    let late = queue.flush(&namespace, WhenFull::Return).unwrap_err();
    assert!(late.error.to_string().contains("shut down"), "{late}");
}

pub(crate) fn writes_what_the_host_finds() {
    for drive in [SMALL, LARGE] {
        write_everything(&nvme(drive), drive);
    }
}

pub(crate) fn writing_takes_the_name_of_the_drive() {
    let nvme = nvme(SMALL);
    let namespace = only(&nvme);
    let mut queue = nvme.queue(QueueConfig::default()).unwrap();
    let mut refuse = |consent: Consent| queue.writable(&namespace, &consent, LIMIT).unwrap_err();
    let other = refuse(Consent::new("vfio-dma-d1", SIZE));
    assert!(matches!(other, NvmeError::OtherSerial { .. }), "{other}");
    assert!(matches!(refuse(Consent::new("", SIZE)), NvmeError::OtherSerial { .. }));
    let other = refuse(Consent::new("vfio-dma-d0", SIZE - 512));
    assert!(matches!(other, NvmeError::OtherSize { bytes: SIZE, .. }), "{other}");
    let beyond = Consent::new("vfio-dma-d0", SIZE).blocks(0..SIZE / 512 + 1);
    assert!(matches!(refuse(beyond), NvmeError::OutOfRange { .. }));
    // What may be written is no more than what was named.
    let right = writable(&nvme, &mut queue);
    for (lba, len) in [(WRITTEN / 512 - 1, 1024), (0, 512), (SIZE / 512 - 1, 1024)] {
        let buffer = nvme.allocate(&Request::new(len, Direction::ToDevice)).unwrap();
        let refused = queue.write(&right, lba, buffer.into(), WhenFull::Return).unwrap_err();
        assert!(matches!(refused.error, NvmeError::NotWritable { .. }), "{refused}");
    }
    let zeroes = queue.write_zeroes(&right, 0, 8, WhenFull::Return).unwrap_err();
    assert!(matches!(zeroes.error, NvmeError::NotWritable { .. }), "{zeroes}");
    let refused = queue.deallocate(&right, 0, 8, WhenFull::Return).unwrap_err();
    assert!(matches!(refused.error, NvmeError::NotWritable { .. }), "{refused}");
}

pub(crate) fn a_drive_with_data_is_not_written() {
    let nvme = nvme(USED);
    let namespace = only(&nvme);
    let mut queue = nvme.queue(QueueConfig::default()).unwrap();
    let consent = Consent::new("vfio-dma-d3", namespace.bytes());
    let refused = queue.writable(&namespace, &consent, LIMIT).unwrap_err();
    let NvmeError::HasData { found, .. } = &refused else { panic!("{refused}") };
    assert_eq!((found[0].kind, found[0].offset), (Signature::PartitionTable, 512));
    assert!(refused.to_string().contains("a GUID partition table (at byte 512)"), "{refused}");
    // Who insists is stopped by the drive itself, which takes no writes.
    let insists = consent.destroying_signatures();
    let right = queue.writable(&namespace, &insists, LIMIT);
    let right = match right {
        Ok(right) => right,
        Err(NvmeError::WriteProtected { .. }) => return,
        Err(other) => panic!("{other}"),
    };
    let buffer = nvme.allocate(&Request::new(512, Direction::ToDevice)).unwrap();
    let token = queue.write(&right, 0, buffer.into(), WhenFull::Return);
    let error = ended(&mut queue, token).into_result().unwrap_err();
    assert!(matches!(error, TransferError::Status { .. }), "{error}");
}

pub(crate) fn what_cannot_be_is_refused_before_the_controller_sees_it() {
    let (nvme, other) = (nvme(SMALL), nvme(LARGE));
    let namespace = only(&nvme);
    let mut queue = nvme.queue(QueueConfig::default()).unwrap();
    let allocate = |nvme: &Nvme, len, way| nvme.allocate(&Request::new(len, way)).unwrap();
    let mut refuse = |namespace: &Namespace, lba, buffer: Buffer| {
        let refused = queue.read(namespace, lba, buffer.into(), WhenFull::Return).unwrap_err();
        assert!(refused.table.is_some());
        refused.error
    };
    let from = Direction::FromDevice;
    let blocks = SIZE / 512;
    for lba in [blocks, blocks - 1, u64::MAX] {
        let error = refuse(&namespace, lba, allocate(&nvme, 1024, from));
        assert!(matches!(error, NvmeError::OutOfRange { .. }), "{error}");
    }
    let error = refuse(&namespace, 0, allocate(&nvme, 511, from));
    assert!(matches!(error, NvmeError::PartOfBlock { len: 511, .. }), "{error}");
    let error = refuse(&namespace, 0, allocate(&nvme, 512, Direction::ToDevice));
    assert!(matches!(error, NvmeError::WrongDirection { .. }), "{error}");
    let error = refuse(&namespace, 0, allocate(&other, 512, from));
    assert!(matches!(error, NvmeError::ForeignBuffer { .. }), "{error}");
    let error = refuse(&only(&other), 0, allocate(&nvme, 512, from));
    assert!(matches!(error, NvmeError::NoNamespace { .. }), "{error}");
    let shared = Arc::new(allocate(&nvme, 1024, from));
    let twice = [(Arc::clone(&shared), 0, 512), (shared, 256, 512)];
    let table = SgTable::gather(twice).unwrap();
    let refused = queue.read(&namespace, 0, table, WhenFull::Return).unwrap_err();
    assert!(matches!(refused.error, NvmeError::Sg(_)), "{refused}");
    let verify = queue.verify(&namespace, 0, 8, WhenFull::Return).unwrap_err();
    assert!(matches!(verify.error, NvmeError::NotOffered { .. }), "{verify}");
    for size in [1, 4097] {
        let error = nvme.queue(QueueConfig { size, ..QueueConfig::default() }).unwrap_err();
        assert!(matches!(error, NvmeError::Queue(_)), "{error}");
    }
    assert_eq!(queue.stats().commands, 0);
}

pub(crate) fn a_bad_medium_is_told_by_name() {
    let nvme = nvme(BROKEN);
    let namespace = only(&nvme);
    let mut queue = nvme.queue(QueueConfig::default()).unwrap();
    let mut read = |lba, len| {
        let buffer = nvme.allocate(&Request::new(len, Direction::FromDevice)).unwrap();
        let token = queue.read(&namespace, lba, buffer.into(), WhenFull::Return);
        let finished = ended(&mut queue, token);
        assert!(finished.table.is_some(), "the buffer comes back");
        finished.result
    };
    read(0, 4096).unwrap();
    let error = read(8, 512).unwrap_err();
    let TransferError::Status { lba: 8, blocks: 1, status, .. } = error else { panic!("{error}") };
    assert_eq!(status.name(), Some("unrecovered read error"));
    read(16, 4096).unwrap();
    // One command of a long transfer fails, the transfer ends once.
    let error = read(0, 1 << 20).unwrap_err();
    assert!(matches!(error, TransferError::Status { .. }), "{error}");
    read(16, 4096).unwrap();
    assert!(!nvme.error_log().unwrap().is_empty() || nvme.smart_log().is_ok());
}

/// Starts reads that take 2 seconds.
fn slow_reads(nvme: &Nvme, queue: &mut IoQueue) -> Vec<Token> {
    let namespace = only(nvme);
    let read = |n: u64| {
        let buffer = nvme.allocate(&Request::new(128 << 10, Direction::FromDevice)).unwrap();
        queue.read(&namespace, n * 256, buffer.into(), WhenFull::Return).unwrap()
    };
    let tokens = (0..8).map(read).collect();
    queue.issue().unwrap();
    tokens
}

fn check_read(nvme: &Nvme, queue: &mut IoQueue, drive: u8) {
    let namespace = only(nvme);
    let block = namespace.block_size() as usize;
    let buffer = nvme.allocate(&Request::new(block, Direction::FromDevice)).unwrap();
    let token = queue.read(&namespace, 3, buffer.into(), WhenFull::Return);
    let table = ended(queue, token).into_table().expect("it works again");
    let buffer = table.into_buffer().unwrap();
    initial(drive).check(&buffer, 0, block, 3 * block as u64).unwrap().unwrap();
}

pub(crate) fn a_reset_ends_every_transfer_once() {
    let nvme = nvme(SLOW);
    let mut queues = [0, 1].map(|_| nvme.queue(QueueConfig::default()).unwrap());
    let tokens = queues.each_mut().map(|queue| slow_reads(&nvme, queue));
    nvme.reset().unwrap();
    // QEMU lets what it has begun run to its end before it stops.
    let mut resets = 0;
    for (queue, tokens) in queues.iter_mut().zip(tokens) {
        for token in tokens {
            let finished = queue.wait(token, LIMIT).unwrap();
            assert!(finished.table.is_some());
            match finished.result {
                Ok(()) => {}
                Err(TransferError::Reset(why)) => {
                    assert!(why.contains("asked for"), "{why}");
                    resets += 1;
                }
                Err(other) => panic!("{other}"),
            }
            assert!(matches!(queue.take(token), Err(NvmeError::NoSuchTransfer)));
        }
        assert_eq!((queue.in_flight(), queue.stats().recoveries), (0, 1));
        check_read(&nvme, queue, SLOW);
    }
    println!("{resets} of 16 were reset");
    assert!(resets > 0);
}

pub(crate) fn a_command_that_is_late_is_given_up() {
    let nvme = nvme(SLOW);
    let config = QueueConfig {
        timeout: Duration::from_millis(300),
        abort_grace: Duration::from_secs(1),
        ..QueueConfig::default()
    };
    let mut queue = nvme.queue(config).unwrap();
    let begin = Instant::now();
    let tokens = slow_reads(&nvme, &mut queue);
    let mut late = 0;
    for token in tokens {
        match queue.wait(token, LIMIT).unwrap().result {
            Ok(()) => {}
            Err(TransferError::TimedOut { .. } | TransferError::Reset(_)) => late += 1,
            Err(other) => panic!("{other}"),
        }
    }
    println!("{late} late after {:?}: {:?}", begin.elapsed(), queue.stats());
    assert!(late > 0 && queue.stats().timeouts > 0);
    assert!(begin.elapsed() < LIMIT);
    let mut queue = nvme.queue(QueueConfig::default()).unwrap();
    check_read(&nvme, &mut queue, SLOW);
}

pub(crate) fn a_drop_and_a_panic_in_mid_transfer_stop_the_queue() {
    let nvme = nvme(SLOW);
    let space = Arc::clone(nvme.space());
    let before = space.usage().mappings;
    for round in 0..2 {
        let mut queue = nvme.queue(QueueConfig::default()).unwrap();
        slow_reads(&nvme, &mut queue);
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _queue = queue;
            if round == 1 {
                std::panic::resume_unwind(Box::new("in mid-transfer"));
            }
        }));
        assert_eq!(ended.is_err(), round == 1);
        assert_eq!(space.usage().mappings, before, "all of the queue is unmapped");
    }
    let mut queue = nvme.queue(QueueConfig::default()).unwrap();
    check_read(&nvme, &mut queue, SLOW);
    drop(queue);
    drop(nvme);
    assert_eq!(space.usage().mappings, 0, "all is unmapped");
}

/// What the other ways to a device have to show: everything is read and written as ever.
pub(crate) fn reads_and_writes_through_iommufd() {
    let open = |drive| {
        let address: Address = address(drive);
        crate::support::open_through(vfio_dma::backend::vfio::Access::Iommufd, address)
    };
    let nvme = nvme_at(open(SMALL), WaitMode::Interrupt(IrqKind::MsiX));
    assert_eq!(nvme.space().iommu().name(), "iommufd");
    read_everything(&nvme, SMALL, 1);
    write_everything(&nvme, SMALL);
}

pub(crate) fn reads_and_writes_without_an_iommu() {
    bind(address(LARGE));
    let nvme = nvme_at(open_without_iommu(address(LARGE)), WaitMode::Poll);
    read_everything(&nvme, LARGE, 1);
    write_everything(&nvme, LARGE);
}
