//! The driver's socket backend on the I/OAT model, served in this process or another one.
//!
//! Registers and descriptors are written by their literal offsets here, so that what is
//! tested is the way to the device and not a driver of it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, and so do its helpers")]

mod hostile;
mod killed;
mod lost;
mod slots;

use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vfio_dma::backend::vfio_user::VfioUser;
use vfio_dma::backend::{Backend, BackendError, DmaAccess, IrqKind, MapRequest, Region};
use vfio_dma::device::{Device, DeviceError};
use vfio_dma::dma::{Buffer, Direction, Memory, PageSize, Pattern, Request};
use vfio_dma::mmio::{Bar, MmioError};
use vfio_dma_model::function::PciFunction;
use vfio_dma_model::ioat::IoatConfig;
use vfio_dma_tools::serve::Served;
use vfio_dma_tools::vm;

/// How long anything may take that is not meant to fail.
const LIMIT: Duration = Duration::from_secs(10);

fn serve(faults: &str) -> (Served, PathBuf) {
    let config = IoatConfig { faults: faults.parse().unwrap(), ..IoatConfig::default() };
    let served = Served::start(config).unwrap();
    let vm::Device::VfioUser { socket } = served.device() else { panic!("it is on a socket") };
    (served, socket)
}

fn open(socket: &Path) -> Device {
    let mut device = Device::open(VfioUser::connect_within(socket, LIMIT).unwrap()).unwrap();
    device.set_bus_master(true).unwrap();
    device
}

fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < until, "timed out waiting until {what}");
        std::thread::yield_now();
    }
}

fn buffer(device: &Device, len: usize, direction: Direction) -> Buffer {
    device.allocate(&Request::new(len, direction)).unwrap()
}

fn iova(buffer: &Buffer) -> u64 {
    buffer.segments()[0].iova.0
}

/// Channel 0 with room for a descriptor, and a completion word behind it.
struct Channel {
    bar: Bar,
    ring: Buffer,
}

/// Where the completion word is in the ring's buffer.
const WORD: usize = 2048;

impl Channel {
    fn new(device: &Device) -> Channel {
        let bar = device.bar(0).unwrap();
        let ring = buffer(device, 4096, Direction::Bidirectional);
        bar.write::<u8>(0x84, 0x20).unwrap();
        wait("the channel is reset", || bar.read::<u8>(0x84).unwrap() & 0x20 == 0);
        bar.write::<u64>(0x98, iova(&ring) + WORD as u64).unwrap();
        // Completion on error, abort on error, error interrupt; interrupts armed.
        bar.write::<u16>(0x80, 0x1d).unwrap();
        Channel { bar, ring }
    }

    /// Starts one copy that writes the completion word and interrupts.
    fn start(&mut self, source: u64, target: u64, len: u32) {
        let first = iova(&self.ring);
        let mut descriptor = [0; 64];
        descriptor[0..4].copy_from_slice(&len.to_le_bytes());
        descriptor[4..8].copy_from_slice(&0x9u32.to_le_bytes());
        descriptor[8..16].copy_from_slice(&source.to_le_bytes());
        descriptor[16..24].copy_from_slice(&target.to_le_bytes());
        descriptor[24..32].copy_from_slice(&first.to_le_bytes());
        self.ring.write(0, &descriptor).unwrap();
        self.ring.write(WORD, &[0; 8]).unwrap();
        self.bar.write::<u64>(0x90, first).unwrap();
        self.bar.write::<u16>(0x86, 1).unwrap();
    }

    fn word(&self) -> u64 {
        let mut word = [0; 8];
        self.ring.read(WORD, &mut word).unwrap();
        u64::from_le_bytes(word)
    }

    /// The word that tells of the one descriptor's end.
    fn done(&self) -> u64 {
        iova(&self.ring) | 1
    }

    /// Ends what is there and makes ready for another start.
    fn reset(&self) {
        self.bar.write::<u8>(0x84, 0x20).unwrap();
        wait("the channel is reset", || self.bar.read::<u8>(0x84).unwrap() & 0x20 == 0);
    }
}

fn is_gone(error: &DeviceError) -> bool {
    matches!(error, DeviceError::Backend(BackendError::Gone { .. }))
        || error.to_string().contains(" is gone: ")
}

#[test]
fn the_device_is_what_the_model_is() {
    let (served, socket) = serve("");
    let device = open(&socket);
    assert_eq!(device.location(), socket.display().to_string());
    let config = device.config();
    assert_eq!((config.vendor_id().unwrap(), config.device_id().unwrap()), (0x8086, 0x2021));
    assert!(device.capabilities().unwrap().pci_express().is_some());
    let sizes: Vec<u64> = (0..8)
        .map(|n| Region::from_index(n).unwrap())
        .map(|region| device.region(region).unwrap().size)
        .collect();
    assert_eq!(sizes, [0x4000, 0, 0, 0, 0, 0, 0, 4096]);
    let counts = [IrqKind::Intx, IrqKind::Msi, IrqKind::MsiX];
    assert_eq!(counts.map(|kind| device.vector_count(kind).unwrap()), [1, 1, 1]);

    let bar = device.bar(0).unwrap();
    assert_eq!(bar.mapped().count(), 0, "every access is the model's to see");
    let before = served.ioat().stats();
    assert_eq!(bar.read::<u8>(0x00).unwrap(), 1);
    assert_eq!(bar.read::<u8>(0x08).unwrap(), 0x32);
    bar.write::<u64>(0x90, 0x1234_5678_9abc_de00).unwrap();
    assert_eq!(bar.read::<u64>(0x90).unwrap(), 0x1234_5678_9abc_de00);
    let after = served.ioat().stats();
    assert_eq!(after.register_reads - before.register_reads, 3);
    assert_eq!(after.register_writes - before.register_writes, 1);
    assert_eq!(after.illegal_accesses, 0);

    let outside = bar.read::<u32>(0x4000).unwrap_err();
    assert!(matches!(outside, MmioError::OutOfBounds { .. }), "{outside}");
    drop((bar, device));
    let backend = VfioUser::connect_within(&socket, LIMIT).unwrap();
    for (region, offset, len) in [(0, 0x3ffd, 4), (0, u64::MAX, 4), (7, 4095, 2)] {
        let region = Region::from_index(region).unwrap();
        let read = backend.region_read(region, offset, &mut vec![0; len]).unwrap_err();
        assert!(matches!(read, BackendError::OutOfBounds { .. }), "{read}");
        let written = backend.region_write(region, offset, &vec![0; len]).unwrap_err();
        assert!(matches!(written, BackendError::OutOfBounds { .. }), "{written}");
    }
    for absent in [Region::Bar(2), Region::Bar(7), Region::Bar(255), Region::Rom] {
        let error = backend.region_read(absent, 0, &mut [0]).unwrap_err();
        assert!(matches!(error, BackendError::NoRegion { .. }), "{error}");
    }
    assert!(backend.map_region(Region::Bar(0), 0..4096).is_err());
}

#[test]
fn a_reset_keeps_the_header_that_the_host_owns() {
    let (served, socket) = serve("");
    let mut device = open(&socket);
    device.config_mut().write_u8(0x3c, 11).unwrap();
    device.bar(0).unwrap().write::<u32>(0xac, 0x1ff).unwrap();
    let resets = served.ioat().stats().resets;
    device.reset().unwrap();
    assert_eq!(served.ioat().stats().resets, resets + 1);
    assert_eq!(device.bar(0).unwrap().read::<u32>(0xac).unwrap(), 0, "CHANERRMSK");
    assert_eq!(device.config().read_u8(0x3c).unwrap(), 11);
    assert!(!device.config().bus_master().unwrap());
}

#[test]
fn buffers_are_copied_with_every_kind_of_interrupt_and_without() {
    let (served, socket) = serve("");
    let device = open(&socket);
    let mut channel = Channel::new(&device);
    let kinds = [None, Some(IrqKind::MsiX), Some(IrqKind::Msi), Some(IrqKind::Intx)];
    for (round, (kind, len)) in
        kinds.into_iter().zip([1, 4097, 100_000, 1 << 20]).cycle().take(12).enumerate()
    {
        let pattern = Pattern::new(round as u64);
        let mut source = buffer(&device, len, Direction::ToDevice);
        let target = buffer(&device, len, Direction::FromDevice);
        pattern.fill(&mut source, 0, len, 0).unwrap();
        let vector = kind.map(|kind| device.vectors(kind, 1).unwrap().remove(0));
        // INTRCTRL: MSI-X vector control, or the master enable.
        let intrctrl = if kind == Some(IrqKind::MsiX) { 8 } else { 1 };
        channel.bar.write::<u8>(0x03, intrctrl).unwrap();
        channel.bar.write::<u16>(0x80, 0x1d).unwrap();
        channel.start(iova(&source), iova(&target), len as u32);
        match &vector {
            Some(vector) => {
                assert_eq!(vector.wait(LIMIT).unwrap(), 1, "{kind:?}");
                assert_eq!(channel.word(), channel.done(), "written before the interrupt");
                assert_eq!(channel.bar.read::<u32>(0x04).unwrap(), 1, "ATTNSTATUS");
                vector.unmask().unwrap();
            }
            None => {
                let done = channel.done();
                wait("the copy is done", || channel.word() == done);
                channel.bar.read::<u32>(0x04).unwrap();
            }
        }
        pattern.check(&target, 0, len, 0).unwrap().unwrap();
        pattern.check(&source, 0, len, 0).unwrap().unwrap();
        channel.reset();
    }
    let stats = served.ioat().stats();
    assert_eq!((stats.descriptors, stats.errors, stats.doorbells), (12, 0, 12));
    assert_eq!(stats.memory.refused_not_mapped + stats.memory.refused_denied, 0);
}

#[test]
fn the_device_may_do_what_the_direction_says_and_no_more() {
    let (served, socket) = serve("");
    let mut device = open(&socket);
    let mut channel = Channel::new(&device);
    let mut read_only = buffer(&device, 4096, Direction::ToDevice);
    let write_only = buffer(&device, 4096, Direction::FromDevice);
    let pattern = Pattern::new(3);
    pattern.fill(&mut read_only, 0, 4096, 0).unwrap();
    // CHANERR: read data is bit 8, write data bit 9.
    for (source, target, error) in [
        (iova(&write_only), iova(&channel.ring), 1 << 8),
        (iova(&read_only), iova(&read_only), 1 << 9),
    ] {
        channel.start(source, target, 64);
        wait("the channel halts", || channel.bar.read::<u64>(0x88).unwrap() & 7 == 3);
        assert_eq!(channel.bar.read::<u32>(0xa8).unwrap(), error);
        channel.bar.write::<u32>(0xa8, error).unwrap();
        device.config_mut().write_u32(0x180, error).unwrap();
        channel.reset();
    }
    pattern.check(&read_only, 0, 4096, 0).unwrap().unwrap();
    assert_eq!(served.ioat().stats().memory.refused_denied, 2);
}

#[test]
fn what_cannot_be_mapped_is_refused_with_the_reason() {
    let (served, socket) = serve("");
    let backend = VfioUser::connect_within(&socket, LIMIT).unwrap();
    let iommu = backend.iommu();
    let memory = Memory::allocate(0x4000, PageSize::Base, true).unwrap();
    let good = MapRequest {
        iova: 0x10_0000,
        host: memory.base(),
        len: 0x4000,
        access: DmaAccess::ReadWrite,
        file: memory.file().map(|file| (file, 0)),
    };
    // SAFETY: the memory outlives the connection, and is only reached by volatile copies.
    let map = |request: &MapRequest<'_>| unsafe { iommu.map(request) };
    let (file, _) = good.file.unwrap();
    let refused = [
        ("no file", MapRequest { file: None, ..good }),
        ("ends before 0x1000 + 16384", MapRequest { file: Some((file, 0x1000)), ..good }),
        ("ends before", MapRequest { file: Some((file, !0xfff)), ..good }),
        ("no multiple of 4096", MapRequest { iova: 0x10_0800, ..good }),
        ("no multiple of 4096", MapRequest { len: 0x3800, ..good }),
        ("no multiple of 4096", MapRequest { len: 0, ..good }),
        ("none of the address ranges", MapRequest { iova: 0, ..good }),
        ("none of the address ranges", MapRequest { iova: 0xfedf_e000, ..good }),
        ("none of the address ranges", MapRequest { iova: (1 << 48) - 0x2000, ..good }),
        ("none of the address ranges", MapRequest { iova: u64::MAX - 0xfff, ..good }),
    ];
    for (reason, request) in &refused {
        let error = map(request).unwrap_err();
        assert!(matches!(error, BackendError::Precondition { .. }), "{error}");
        assert!(error.to_string().contains(reason), "{reason}: {error}");
    }
    assert_eq!(served.ioat().memory().ranges(), 0);
    let free = iommu.info().unwrap().available_mappings.unwrap();
    map(&good).unwrap();
    assert_eq!(iommu.info().unwrap().available_mappings, Some(free - 1));
    for (iova, len) in [(0x10_0000, 0x4000), (0xf_f000, 0x2000), (0x10_3000, 0x1000)] {
        let error = map(&MapRequest { iova, len, ..good }).unwrap_err();
        assert!(error.to_string().contains("0x100000 + 16384 is mapped already"), "{error}");
    }
    map(&MapRequest { iova: 0xf_e000, len: 0x2000, ..good }).unwrap();
    map(&MapRequest { iova: 0x10_4000, ..good }).unwrap();
    assert_eq!(served.ioat().memory().ranges(), 3);

    // A file that is only open for reading: the server's map fails.
    let mut read_only = tempfile::NamedTempFile::new().unwrap();
    read_only.write_all(&[0; 0x4000]).unwrap();
    let read_only = std::fs::File::open(read_only.path()).unwrap();
    let file = Some((read_only.as_fd(), 0));
    let error = map(&MapRequest { iova: 0x20_0000, file, ..good }).unwrap_err();
    assert!(matches!(error, BackendError::Os { .. }), "{error}");
    assert!(error.to_string().contains("16384 bytes at IOVA 0x200000"), "{error}");

    for (iova, len) in [(0x10_0000, 0x2000), (0x10_1000, 0x3000), (0x20_0000, 0x4000)] {
        let error = iommu.unmap(iova, len).unwrap_err();
        assert!(error.to_string().contains("not one mapping"), "{error}");
    }
    for (iova, len) in [(0x10_0000, 0x4000), (0xf_e000, 0x2000), (0x10_4000, 0x4000)] {
        iommu.unmap(iova, len).unwrap();
    }
    assert_eq!(served.ioat().memory().ranges(), 0);
    assert_eq!(iommu.info().unwrap().available_mappings, Some(free));
}

#[test]
fn buffers_come_and_go_without_a_trace() {
    let (served, socket) = serve("");
    let device = open(&socket);
    for round in 0..500 {
        let len = 1 + round * 997;
        let held = [Direction::ToDevice, Direction::Bidirectional].map(|d| buffer(&device, len, d));
        assert_eq!(served.ioat().memory().ranges(), 2);
        drop(held);
    }
    assert_eq!((served.ioat().memory().ranges(), device.space().usage().mappings), (0, 0));
    assert_eq!(served.ioat().memory().files(), 0);
}

#[test]
fn many_buffers_share_their_descriptors() {
    let (_served, socket) = serve("");
    let device = open(&socket);
    let open_files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let make = |n: usize| {
        let mut buffer = buffer(&device, 4096 + n, Direction::Bidirectional);
        buffer.write(n, &[n as u8]).unwrap();
        buffer
    };
    let first = make(0);
    let before = open_files();
    let buffers: Vec<Buffer> = (1..300).map(make).collect();
    // Other tests of this process open files too, but not a descriptor for each buffer.
    assert!(open_files() < before + 100, "{} files, {before} before", open_files());
    for (n, buffer) in (1..).zip(&buffers) {
        let mut byte = [0];
        buffer.read(n, &mut byte).unwrap();
        assert_eq!(byte, [n as u8]);
    }
    drop((first, buffers));
    let again = buffer(&device, 300 * 4096, Direction::Bidirectional);
    let mut bytes = vec![1; 300 * 4096];
    again.read(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0), "freed pages come back as zeros");
}

#[test]
fn clients_are_served_one_after_the_other() {
    let (served, socket) = serve("");
    let first = open(&socket);
    let kept = buffer(&first, 4096, Direction::ToDevice);
    let start = Instant::now();
    let error = VfioUser::connect_within(&socket, Duration::from_millis(200)).unwrap_err();
    assert!(matches!(&error, BackendError::Gone { .. }), "{error}");
    assert!(error.to_string().contains("one client at a time"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(first.config().vendor_id().unwrap(), 0x8086);
    // Buffers hold the connection.
    drop(first);
    assert_eq!(served.ioat().memory().ranges(), 1);
    drop(kept);
    let second = Device::open(VfioUser::connect_within(&socket, Duration::MAX).unwrap()).unwrap();
    assert_eq!(served.ioat().memory().ranges(), 0);
    assert_eq!(second.config().vendor_id().unwrap(), 0x8086);
}

#[test]
fn threads_share_a_connection() {
    let (_served, socket) = serve("");
    let device = open(&socket);
    let bar = device.bar(0).unwrap();
    std::thread::scope(|scope| {
        for n in 0..4u8 {
            let (device, bar) = (&device, &bar);
            scope.spawn(move || {
                for _ in 0..100 {
                    assert_eq!(device.config().device_id().unwrap(), 0x2021);
                    assert_eq!(bar.read::<u8>(0x08).unwrap(), 0x32);
                    bar.write::<u32>(0xac, n.into()).unwrap();
                    let held = buffer(device, 8192, Direction::Bidirectional);
                    assert!(bar.read::<u32>(0xac).unwrap() < 4);
                    drop(held);
                }
            });
        }
    });
}
