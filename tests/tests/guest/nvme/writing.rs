//! Writes that the host finds in the image, and who may write.

use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vfio_dma::backend::IrqKind;
use vfio_dma::backend::vfio::Access;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::nvme::{
    Config, Consent, DataMethod, IoQueue, Namespace, Nvme, NvmeError, QueueConfig, Shutdown,
    Signature, TransferError, WhenFull, Writable,
};
use vfio_dma::dma::{Direction, Request};
use vfio_dma::pci::Address;
use vfio_dma::queue::WaitMode;
use vfio_dma_tests::{Dice, address, vfio_dma};

use super::failing::check_read;
use super::reading::read_everything;
use super::{
    Kind, LARGE, LIMIT, MANY, MARK, MARK_AT, SEVERAL, SIZE, SMALL, Shape, USED, WRITTEN, ended,
    nvme, nvme_at, only, written,
};
use crate::support::{bind, open_through, open_without_iommu};

pub(super) fn writable(nvme: &Nvme, queue: &mut IoQueue) -> Writable {
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

pub(crate) fn every_kind_of_data_is_seen_and_no_format_is_guessed() {
    let nvme = nvme(SEVERAL);
    let mut queue = nvme.queue(QueueConfig::default()).unwrap();
    let ids: Vec<u32> = nvme.namespaces().iter().map(Namespace::id).collect();
    assert_eq!(ids, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    for (namespace, (.., kind)) in nvme.namespaces().iter().zip(MANY) {
        let consent = Consent::new("vfio-dma-several", 4 << 20);
        match (queue.writable(namespace, &consent, LIMIT), kind) {
            (Ok(right), None) => assert_eq!(right.blocks(), 0..8192),
            (Err(NvmeError::HasData { found, .. }), Some(kind)) => {
                assert!(found.iter().all(|found| found.kind == kind), "{found:?}");
            }
            (other, _) => panic!("namespace {}: {other:?}", namespace.id()),
        }
        let insists = consent.destroying_signatures();
        assert!(queue.writable(namespace, &insists, LIMIT).is_ok());
    }
    let metadata = nvme.namespaces().last().unwrap();
    assert_eq!(metadata.metadata(), 8);
    let buffer = nvme.allocate(&Request::new(512, Direction::FromDevice)).unwrap();
    let refused = queue.read(metadata, 0, buffer.into(), WhenFull::Return).unwrap_err();
    assert!(matches!(refused.error, NvmeError::Format { metadata: 8, .. }), "{refused}");
}

/// What the other ways to a device have to show: everything is read and written as ever.
pub(crate) fn reads_and_writes_through_iommufd() {
    let open = |drive| {
        let address: Address = address(drive);
        open_through(Access::Iommufd, address)
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
    drop(nvme);
    // The controller knows its memory by where its BAR lies on the bus.
    let config = Config { wait: Some(WaitMode::Poll), memory_buffer: true, ..Config::default() };
    let nvme = Nvme::probe(open_without_iommu(address(LARGE)), config).expect("opening NVMe");
    let inside = QueueConfig { memory_buffer: true, ..QueueConfig::default() };
    let mut queue = nvme.queue(inside).unwrap();
    assert_eq!(queue.in_memory_buffer(), (true, false));
    check_read(&nvme, &mut queue, LARGE);
}

/// The same bytes through Linux's own driver: what this one wrote, and the reverse.
pub(crate) fn linux_reads_what_was_written_and_the_reverse() {
    let device = address(LARGE);
    let (ours, theirs, len) = (WRITTEN + (4 << 20), WRITTEN + (5 << 20), 300 << 10);
    let open = || open_through(Access::Iommufd, device);
    {
        let nvme = nvme_at(open(), WaitMode::Poll);
        let mut queue = nvme.queue(QueueConfig::default()).unwrap();
        let right = writable(&nvme, &mut queue);
        let mut buffer = nvme.allocate(&Request::new(len, Direction::ToDevice)).unwrap();
        written(LARGE).fill(&mut buffer, 0, len, ours).unwrap();
        let token = queue.write(&right, ours / 4096, buffer.into(), WhenFull::Return);
        ended(&mut queue, token).into_result().unwrap();
    }
    let said = vfio_dma(&["unbind", &device.to_string()]);
    assert_eq!(said.status, 0, "{said:#?}");
    std::fs::write("/sys/bus/pci/drivers_probe", device.to_string()).unwrap();
    let disk = disk(device);
    let disk = std::fs::File::options().read(true).write(true).open(disk).unwrap();
    let (mut found, mut expected) = (vec![0; len], vec![0; len]);
    disk.read_exact_at(&mut found, ours).unwrap();
    written(LARGE).bytes(ours, &mut expected);
    assert!(found == expected, "Linux reads what was written");
    written(LARGE).bytes(theirs, &mut expected);
    disk.write_all_at(&expected, theirs).unwrap();
    disk.sync_all().unwrap();
    drop(disk);
    let nvme = nvme_at(open(), WaitMode::Poll);
    let mut queue = nvme.queue(QueueConfig::default()).unwrap();
    let buffer = nvme.allocate(&Request::new(len, Direction::FromDevice)).unwrap();
    let token = queue.read(&only(&nvme), theirs / 4096, buffer.into(), WhenFull::Return);
    let buffer = ended(&mut queue, token).into_table().unwrap().into_buffer().unwrap();
    written(LARGE).check(&buffer, 0, len, theirs).unwrap().unwrap();
}

/// The block device of a controller that Linux drives.
pub(super) fn disk(device: Address) -> PathBuf {
    let begin = Instant::now();
    while begin.elapsed() < LIMIT {
        let dir = format!("/sys/bus/pci/devices/{device}/nvme");
        let controllers = std::fs::read_dir(dir).into_iter().flatten().flatten();
        for controller in controllers {
            let name = controller.file_name().into_string().unwrap();
            let path = PathBuf::from(format!("/dev/{name}n1"));
            if path.exists() {
                return path;
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("Linux does not drive {device}");
}
