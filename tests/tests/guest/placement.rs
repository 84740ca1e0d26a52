//! The placement policy on a real IOMMU: every strategy moves the same bytes, and each
//! reason for falling through is made by the kernel or the device.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use vfio_dma::backend::{
    Backend, BackendError, Iommu, IommuInfo, IrqKind, MapRequest, MappedRegion, Region, RegionInfo,
    Translation,
};
use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::edu::{Completion, Config, Edu};
use vfio_dma::dma::{
    Buffer, Cause, Direction, DmaError, Memory, PageSize, Pattern, Placement, Report, Request,
    Reservation, Strategy,
};
use vfio_dma_tests::{address, vfio_dma};

use crate::errors::group_node;
use crate::support::{bind, edu, edu_at};

const CONTIGUOUS: Strategy = Strategy::IommuContiguous(PageSize::Base);

/// What a device of 28 address bits reaches.
const MASK: u64 = (1 << 28) - 1;

fn winner(report: &Report) -> Strategy {
    report.placed().unwrap_or_else(|| panic!("{report}")).0
}

fn cause(report: &Report, strategy: Strategy) -> &Cause {
    &report.reason(strategy).unwrap_or_else(|| panic!("{strategy} has no reason: {report}")).cause
}

/// Sends a pattern through the device and checks what comes back, and the source.
fn copy(edu: &mut Edu, mut source: Buffer, mut target: Buffer) -> (Buffer, Buffer) {
    let len = source.len();
    let (sent, old) = (Pattern::new(len as u64), Pattern::new(!(len as u64)));
    sent.fill(&mut source, 0, len, 0).unwrap();
    old.fill(&mut target, 0, len, 0).unwrap();
    let (source, target) = edu.copy(source, 0, target, 0, len).unwrap().wait().unwrap();
    sent.check(&source, 0, len, 0).unwrap().unwrap();
    sent.check(&target, 0, len, 0).unwrap().unwrap();
    (source, target)
}

fn copy_placed(edu: &mut Edu, request: &Request) -> (Buffer, Buffer) {
    let both = [Direction::ToDevice, Direction::FromDevice];
    let [source, target] =
        both.map(|direction| edu.allocate(&Request { direction, ..request.clone() }).unwrap());
    copy(edu, source, target)
}

fn request(len: usize) -> Request {
    Request::new(len, Direction::Bidirectional)
}

pub(crate) fn the_command_line_forces_a_placement() {
    let device = address(0).to_string();
    bind(address(0));
    for (placement, segments) in [("auto", 1), ("contiguous", 1), ("sg", 3)] {
        let args = ["run", "--size", "9000", "--json", "--placement", placement, &device];
        let said = vfio_dma(&args);
        assert_eq!(said.status, 0, "{said:#?}");
        let json: serde_json::Value = serde_json::from_str(&said.out).unwrap();
        assert_eq!(json["verified"], true);
        for side in ["source", "target"] {
            let attempts = json[side]["attempts"].as_array().unwrap();
            let placed = &attempts.last().unwrap()["outcome"]["placed"];
            assert_eq!(placed["segments"], segments, "{json}");
        }
    }
    let said = vfio_dma(&["run", "--size", "9000", "--placement", "sg", &device]);
    assert!(said.out.contains("placed in 3 segments and 3 segments"), "{said:#?}");
    assert!(said.out.contains("3 map calls: scatter/gather"), "{said:#?}");
}

/// Takes every IOVA under the device's mask but for `runs` runs of `pages` pages each.
fn fragment(edu: &Edu, pages: usize, runs: usize) -> Vec<Buffer> {
    let piece = request(pages * 4096).order([CONTIGUOUS]);
    let mut taken: Vec<Buffer> = (0..2 * runs).map(|_| edu.allocate(&piece).unwrap()).collect();
    // The kernel pins what is mapped, so the rest is the same memory many times over.
    let memory = Memory::allocate(64 << 20, PageSize::Base, true).unwrap();
    loop {
        let longest = edu.device().space().iovas().longest_run(4096, MASK);
        let len = usize::try_from(longest).unwrap().min(memory.len());
        if len == 0 {
            break;
        }
        let whole = request(len).placement(Placement::Contiguous);
        taken.push(edu.device().allocator().adopt_file(memory.file().unwrap(), 0, &whole).unwrap());
    }
    // Every other piece is a hole.
    let mut index = 0;
    taken.retain(|_| {
        index += 1;
        index > 2 * runs || index % 2 == 0
    });
    taken
}

pub(crate) fn a_fragmented_iova_space_falls_through() {
    let mut edu = edu(Completion::Polled);
    let held = fragment(&edu, 3, 8);
    let longest = edu.device().space().iovas().longest_run(4096, MASK);
    assert_eq!(longest, 3 * 4096, "free space but no free run");
    let len = 4 * 4096;
    // Blocks, where short ones are allowed, and scatter/gather where they are not.
    for (least_block, strategy) in
        [(4096, Strategy::SmallerBlocks), (64 << 10, Strategy::ScatterGather)]
    {
        let (source, target) = copy_placed(&mut edu, &Request { least_block, ..request(len) });
        for buffer in [&source, &target] {
            let report = buffer.report();
            assert_eq!(winner(report), strategy, "{report}");
            assert_eq!(buffer.segments().len(), 2, "{report}");
            let Cause::IovaRun { needed, longest, free, mask, .. } = cause(report, CONTIGUOUS)
            else {
                panic!("{report}");
            };
            assert_eq!((*needed, *mask), (len as u64, MASK));
            assert!(*longest <= 3 * 4096 && *free >= len as u64, "{report}");
        }
    }
    let error =
        edu.allocate(&request(len).placement(Placement::Contiguous)).unwrap_err().to_string();
    assert!(error.contains("no buffer of 16 KiB"), "{error}");
    drop(held);
    let (source, _) = copy_placed(&mut edu, &request(len));
    assert_eq!(winner(source.report()), CONTIGUOUS);
}

pub(crate) fn a_device_mask_falls_through() {
    // Of 28 bits 0x1000 to 0x1000_0000 can be mapped: 256 MiB never fit, whatever is
    // free above; an IOMMU with 39 bits and a device with 32 have it.
    let len = 256 << 20;
    let narrow = edu(Completion::Polled);
    let order = [CONTIGUOUS, Strategy::SmallerBlocks, Strategy::ScatterGather];
    let error = narrow.allocate(&request(len).order(order)).unwrap_err().to_string();
    assert!(error.contains("under 0xfffffff"), "{error}");
    assert_eq!(error.matches("no free IOVA run").count(), 3, "{error}");
    assert_eq!(narrow.device().space().usage().map_calls, 0, "known before any call");
    drop(narrow);
    // The pool lies above the mask of a narrower request: the next strategy wins.
    let mut wide = edu_at(address(1), Completion::Polled, 32);
    let block = Reservation { len: 1 << 20, page_size: PageSize::Base };
    let pool = wide.device().reserve(&[block]).unwrap();
    let low = request(5000).address_mask(MASK).pool(&pool);
    let (source, target) = copy_placed(&mut wide, &low);
    for buffer in [&source, &target] {
        assert_eq!(winner(buffer.report()), CONTIGUOUS);
        let Cause::AddressMask { mask, lowest: Some(lowest) } =
            *cause(buffer.report(), Strategy::Pool)
        else {
            panic!("{}", buffer.report());
        };
        assert!(mask == MASK && lowest > mask, "{}", buffer.report());
        assert!(buffer.segments()[0].iova.0 <= MASK);
    }
    let (source, _) = copy_placed(&mut wide, &request(5000).pool(&pool));
    assert_eq!(winner(source.report()), Strategy::Pool);
    assert_eq!((pool.usage().taken, pool.usage().refused), (2, 2));
}

/// First argument of the case below when it is started again as a user.
const AS_USER: &str = "VFIO_DMA_TEST_AS_USER";

pub(crate) fn a_memory_lock_limit_falls_through_to_the_pool() {
    const LIMIT: u64 = 128 << 10;
    if std::env::var_os(AS_USER).is_none() {
        bind(address(0));
        let node = group_node(0);
        std::os::unix::fs::chown(&node, Some(1000), None).unwrap();
        let mut command = Command::new("/bin/vfio-dma");
        command.args(std::env::args().skip(1)).env(AS_USER, "1").uid(1000).gid(1000);
        // SAFETY: setrlimit is one system call, which a child may make between fork and exec.
        unsafe {
            command.pre_exec(|| Ok(setrlimit(Resource::RLIMIT_MEMLOCK, LIMIT, LIMIT)?));
        }
        assert!(command.status().unwrap().success(), "the case as user 1000");
        std::os::unix::fs::chown(&node, Some(0), None).unwrap();
        return;
    }
    assert_eq!(getrlimit(Resource::RLIMIT_MEMLOCK).unwrap().0, LIMIT);
    let device = vfio_dma::session::Session::new().open(address(0)).unwrap();
    let config = Config { completion: Completion::Polled, ..Config::default() };
    let mut edu = Edu::probe(device, config).unwrap();
    let block = Reservation { len: 96 << 10, page_size: PageSize::Base };
    let pool = edu.device().reserve(&[block]).unwrap();
    // 32 KiB are left of the limit: 40 KiB come from the pool, which was early enough.
    let order = [CONTIGUOUS, Strategy::ScatterGather, Strategy::Pool];
    let (source, target) = copy_placed(&mut edu, &request(40 << 10).order(order).pool(&pool));
    for buffer in [&source, &target] {
        let report = buffer.report();
        assert_eq!(winner(report), Strategy::Pool, "{report}");
        let reason = report.reason(CONTIGUOUS).unwrap();
        assert_eq!(reason.cause, Cause::MemoryLock { limit: LIMIT, locked: 96 << 10 });
        assert_eq!((reason.asked, reason.limit()), (40 << 10, Some(LIMIT)));
        assert!(reason.set_by().unwrap().contains("RLIMIT_MEMLOCK"));
        assert!(report.reason(Strategy::ScatterGather).is_some());
    }
}

pub(crate) fn the_limit_of_mappings_is_a_reason() {
    // A device that reaches all of the IOMMU's ranges.
    let mut edu = edu_at(address(2), Completion::Polled, 40);
    let space = edu.device().space().clone();
    let available = space.iommu().info().unwrap().available_mappings.unwrap();
    assert_eq!(available, 65_535, "type1's limit");
    // The same memory mapped again and again uses the mappings up for real.
    let file = Memory::allocate(64 << 20, PageSize::Base, true).unwrap();
    let scattered = request(64 << 20).placement(Placement::ScatterGather);
    let mut held = Vec::new();
    let report = loop {
        match edu.device().allocator().adopt_file(file.file().unwrap(), 0, &scattered) {
            Ok(buffer) => held.push(buffer),
            Err(DmaError::NoPlacement(report)) => break report,
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(held.len(), 3, "3 * 16384 of 65535 mappings");
    let expected = Cause::Mappings { needed: 16_384, available: 65_535 - 3 * 16_384 };
    assert_eq!(*cause(&report, Strategy::InPlace), expected, "{report}");
    // Fewer and larger pieces are placed all the same.
    let (source, _) = copy_placed(&mut edu, &request(10_000));
    assert_eq!(winner(source.report()), CONTIGUOUS);
    drop(held);
    assert_eq!(space.iommu().info().unwrap().available_mappings, Some(65_535 - 1));
}

fn huge_pages(count: u32) {
    let pool = PageSize::Huge2M.pool().unwrap();
    std::fs::write(format!("{pool}/nr_hugepages"), count.to_string()).unwrap();
    let now = std::fs::read_to_string(format!("{pool}/nr_hugepages")).unwrap();
    assert_eq!(now.trim(), count.to_string());
}

pub(crate) fn huge_pages_make_one_map_call() {
    let mut edu = edu_at(address(1), Completion::Polled, 32);
    let huge = Strategy::IommuContiguous(PageSize::Huge2M);
    huge_pages(0);
    let buffer = edu.allocate(&request(4 << 20)).unwrap();
    assert_eq!(
        *cause(buffer.report(), huge),
        Cause::HugePages { page: PageSize::Huge2M, free: Some(0) }
    );
    drop(buffer);
    huge_pages(8);
    let before = edu.device().space().usage().map_calls;
    let buffer = edu.allocate(&request(16 << 20)).unwrap();
    assert_eq!(winner(buffer.report()), huge, "{}", buffer.report());
    assert_eq!(edu.device().space().usage().map_calls - before, 1);
    assert_eq!(buffer.segments().len(), 1);
    // The pool is spent: the next page size wins.
    let other = edu.allocate(&request(4 << 20)).unwrap();
    assert!(matches!(cause(other.report(), huge), Cause::HugePages { free: Some(0), .. }));
    drop((buffer, other));
    // The device moves 40 KiB a second: the last bytes of a huge page stand for the rest.
    let mut source = edu.allocate(&request(2 << 20).order([huge])).unwrap();
    let target = edu.allocate(&request(2 << 20).order([huge])).unwrap();
    let sent = Pattern::new(5);
    sent.fill(&mut source, 0, 2 << 20, 0).unwrap();
    let (at, len) = ((2 << 20) - 9001, 9001);
    let (source, target) = edu.copy(source, at, target, at, len).unwrap().wait().unwrap();
    sent.check(&target, at, len, at as u64).unwrap().unwrap();
    drop((source, target));
    huge_pages(0);
}

pub(crate) fn a_huge_page_of_1_gib_is_one_map_call() {
    assert_eq!(PageSize::Huge1G.free(), Some(1), "reserved at boot");
    let mut edu = edu_at(address(0), Completion::Polled, 40);
    let len = 1 << 30;
    let place = |direction| edu.allocate(&Request::new(len, direction)).unwrap();
    let mut buffer = place(Direction::Bidirectional);
    let report = buffer.report();
    assert_eq!(report.placed(), Some((Strategy::IommuContiguous(PageSize::Huge1G), 1, 1)));
    assert_eq!(edu.device().space().usage().map_calls, 1);
    assert_eq!(buffer.segments()[0].iova.0 % (1 << 30), 0, "so that the IOMMU can map it at once");
    // The first bytes go to the device and come back as the last ones.
    let (pattern, part) = (Pattern::new(12), 8192);
    pattern.fill(&mut buffer, 0, part, 0).unwrap();
    for start in (0..part).step_by(4096) {
        buffer = edu.write(buffer, start, 0, 4096).unwrap().wait().unwrap();
        buffer = edu.read(buffer, len - part + start, 0, 4096).unwrap().wait().unwrap();
    }
    pattern.check(&buffer, len - part, part, 0).unwrap().unwrap();
}

pub(crate) fn a_file_is_moved_in_place() {
    let mut edu = edu(Completion::Msi);
    let memory = Memory::allocate(5 * 4096, PageSize::Base, true).unwrap();
    let file = memory.file().unwrap();
    let pattern = Pattern::new(11);
    let mut bytes = vec![0; 9000];
    pattern.bytes(0, &mut bytes);
    memory.write(100, &bytes).unwrap();
    let placed = |offset, direction| {
        let request = Request::new(9000, direction).placement(Placement::ScatterGather);
        edu.device().allocator().adopt_file(file, offset, &request).unwrap()
    };
    let source = placed(100, Direction::ToDevice);
    let target = placed(10_000, Direction::FromDevice);
    assert_eq!((source.segments().len(), target.segments().len()), (3, 3));
    let (source, target) = edu.copy(source, 0, target, 0, 9000).unwrap().wait().unwrap();
    source.release().unwrap();
    target.release().unwrap();
    let mut found = vec![0; 9000];
    memory.read(10_000, &mut found).unwrap();
    assert!(found == bytes, "the device wrote to the file itself");
}

pub(crate) fn a_buffer_is_promoted_between_transfers() {
    let mut edu = edu(Completion::Polled);
    let scattered = request(10_000).placement(Placement::ScatterGather);
    let (mut source, mut target) = copy_placed(&mut edu, &scattered);
    assert_eq!(source.segments().len(), 3);
    let sent = Pattern::new(10_000);
    for buffer in [&mut source, &mut target] {
        buffer.promote().unwrap();
        assert_eq!(winner(buffer.report()), Strategy::Remap);
        assert_eq!(buffer.segments().len(), 1);
        sent.check(buffer, 0, 10_000, 0).unwrap().expect("contents are kept");
    }
    let old = Pattern::new(1);
    old.fill(&mut target, 0, 10_000, 0).unwrap();
    let (_, target) = edu.copy(source, 0, target, 0, 10_000).unwrap().wait().unwrap();
    sent.check(&target, 0, 10_000, 0).unwrap().unwrap();
    drop(target);
    assert_eq!(edu.device().space().usage().mappings, 0);
}

/// An address space without an IOMMU; nothing is ever mapped in it.
#[derive(Debug)]
struct NoIommu;

impl Iommu for NoIommu {
    fn name(&self) -> &str {
        "none"
    }
    fn info(&self) -> vfio_dma::backend::Result<IommuInfo> {
        Ok(IommuInfo {
            translation: Translation::Physical,
            ranges: Vec::new(),
            page_sizes: 4096,
            available_mappings: None,
            needs_fd: false,
        })
    }
    unsafe fn map(&self, _: &MapRequest<'_>) -> vfio_dma::backend::Result<()> {
        panic!("there is nothing to map through")
    }
    fn unmap(&self, _: u64, _: usize) -> vfio_dma::backend::Result<()> {
        panic!("nothing was mapped")
    }
}

/// A function that has nothing but configuration space, all of it 0.
#[derive(Debug)]
struct Blank(Arc<dyn Iommu>);

impl Backend for Blank {
    fn location(&self) -> String {
        "blank".into()
    }
    fn region_info(&self, region: Region) -> vfio_dma::backend::Result<RegionInfo> {
        let size = if region == Region::Config { 256 } else { 0 };
        Ok(RegionInfo { size, readable: true, writable: true, mappable: Vec::new() })
    }
    fn region_read(&self, _: Region, _: u64, data: &mut [u8]) -> vfio_dma::backend::Result<()> {
        data.fill(0);
        Ok(())
    }
    fn region_write(&self, _: Region, _: u64, _: &[u8]) -> vfio_dma::backend::Result<()> {
        Ok(())
    }
    fn map_region(
        &self,
        region: Region,
        _: Range<u64>,
    ) -> vfio_dma::backend::Result<Box<dyn MappedRegion>> {
        Err(BackendError::NoRegion { region })
    }
    fn irq_count(&self, _: IrqKind) -> vfio_dma::backend::Result<u32> {
        Ok(0)
    }
    fn irq_enable(&self, _: IrqKind, _: &[BorrowedFd<'_>]) -> vfio_dma::backend::Result<()> {
        Ok(())
    }
    fn irq_disable(&self, _: IrqKind) -> vfio_dma::backend::Result<()> {
        Ok(())
    }
    fn intx_set_masked(&self, _: bool) -> vfio_dma::backend::Result<()> {
        Ok(())
    }
    fn reset(&self) -> vfio_dma::backend::Result<()> {
        Ok(())
    }
    fn iommu(&self) -> &Arc<dyn Iommu> {
        &self.0
    }
}

pub(crate) fn physical_memory_is_found_in_every_way() {
    let device = Device::open(Blank(Arc::new(NoIommu))).unwrap();
    let place = |request: &Request| device.allocate(request).unwrap();
    let check = |buffer: &mut Buffer| {
        // Both ends are enough: which pages they are is what matters here.
        let (len, part) = (buffer.len(), buffer.len().min(100_000));
        for start in [0, len - part] {
            Pattern::new(1).fill(buffer, start, part, start as u64).unwrap();
        }
        for start in [0, len - part] {
            Pattern::new(1).check(buffer, start, part, start as u64).unwrap().unwrap();
        }
        assert!(!buffer.has_moved().unwrap());
        println!("{}", buffer.report());
    };
    // A huge page is contiguous and aligned by its nature: frames and addresses agree.
    huge_pages(4);
    let huge = Strategy::PhysicalContiguous(PageSize::Huge2M);
    let mut buffer = place(&request(2 << 20));
    assert_eq!(winner(buffer.report()), huge, "{}", buffer.report());
    assert_eq!(buffer.segments()[0].iova.0 % (2 << 20), 0);
    check(&mut buffer);
    // Blocks of huge pages, and small ones for the rest: single pages if need be, for how
    // fragmented the guest's memory is depends on what ran before.
    let request_blocks = request((6 << 20) + 70_000).order([Strategy::SmallerBlocks]);
    let mut blocks = place(&Request { least_block: 4096, ..request_blocks });
    assert!(blocks.segments()[0].len >= 2 << 20, "{}", blocks.report());
    check(&mut blocks);
    drop((buffer, blocks));
    huge_pages(0);
    let hold = Strategy::PhysicalContiguous(PageSize::Base);
    let mut page = place(&request(4096).order([hold]));
    check(&mut page);
    for tries in [2, 16] {
        let order = [hold, Strategy::SmallerBlocks, Strategy::ScatterGather];
        let mut buffer = place(&Request { tries, ..request(64 << 10).order(order) });
        check(&mut buffer);
        if winner(buffer.report()) != hold {
            let why = cause(buffer.report(), hold);
            assert!(matches!(why, Cause::NotContiguous { needed: 0x1_0000, .. }), "{why:?}");
        }
    }
    let mut scattered = place(&request(64 << 20).placement(Placement::ScatterGather));
    check(&mut scattered);
    assert!(scattered.segments().len() < (64 << 20) / 4096, "neighbours are merged");
}
