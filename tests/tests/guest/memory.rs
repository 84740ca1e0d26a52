//! Mappings and the memory behind them.

use vfio_dma::devices::edu::{Completion, Edu};
use vfio_dma::dma::{Direction, Pattern, Request};

use crate::support::edu;

/// Anonymous pages and mapped areas of this process.
fn process() -> (u64, usize) {
    // Exact, where statm's counters lag behind, and without the pages of the program itself.
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = rollup.lines().find(|line| line.starts_with("Anonymous:")).expect("a total");
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    let pages = kib / 4;
    (pages, std::fs::read_to_string("/proc/self/maps").unwrap().lines().count())
}

pub(crate) fn ten_thousand_cycles_leave_nothing_behind() {
    let edu = edu(Completion::Polled);
    let space = edu.device().space().clone();
    let sizes = [1, 4096, 100_000, 1 << 21];
    let cycle = |i: usize| {
        let mut buffer =
            edu.allocate(&Request::new(sizes[i % sizes.len()], Direction::Bidirectional)).unwrap();
        buffer.write(0, &[1]).unwrap();
    };
    (0..100).for_each(cycle);
    let iovas: Vec<_> = space.iovas().free_runs().collect();
    let available = space.iommu().info().unwrap().available_mappings;
    let before = process();
    (0..10_000).for_each(cycle);
    let after = process();
    assert_eq!(space.iovas().free_runs().collect::<Vec<_>>(), iovas, "the allocator");
    assert_eq!(space.usage().mappings, 0);
    assert_eq!(space.usage().bytes, 0);
    assert_eq!(space.usage().map_calls, 10_100);
    assert_eq!(space.usage().unmap_calls, 10_100);
    // The kernel's own count; 65,535 when nothing is mapped.
    assert_eq!(space.iommu().info().unwrap().available_mappings, available);
    assert!(available.is_some(), "type1 tells since Linux 5.10");
    assert!(after.1 <= before.1, "mapped areas: {} before, {} after", before.1, after.1);
    assert!(after.0 <= before.0 + 8, "anonymous pages: {} before, {} after", before.0, after.0);
}

pub(crate) fn directions_are_enforced() {
    check_directions(&edu(Completion::Polled));
}

pub(crate) fn check_directions(edu: &Edu) {
    // The driver refuses the wrong direction; this shows that the IOMMU would too: the
    // mapping of a source is read-only, so what edu writes there is dropped.
    use vfio_dma::backend::{DmaAccess, MapRequest};
    use vfio_dma::dma::{Memory, PageSize};
    use vfio_dma::mmio::{ReadWrite, Reg};
    const SOURCE: Reg<u64, ReadWrite> = Reg::at(0x80);
    const TARGET: Reg<u64, ReadWrite> = Reg::at(0x88);
    const COUNT: Reg<u64, ReadWrite> = Reg::at(0x90);
    const COMMAND: Reg<u64, ReadWrite> = Reg::at(0x98);
    let bar = edu.device().bar(0).unwrap();
    let iommu = edu.device().space().iommu().clone();
    for (access, written) in [(DmaAccess::Read, false), (DmaAccess::ReadWrite, true)] {
        let memory = Memory::allocate(4096, PageSize::Base, false).unwrap();
        let mut bytes = [0u8; 4096];
        Pattern::new(1).bytes(0, &mut bytes);
        memory.write(0, &bytes).unwrap();
        let iova = 0x20_0000;
        let request = MapRequest { iova, host: memory.base(), len: 4096, access, file: None };
        // SAFETY: the memory lives until it is unmapped below, and nothing refers into it.
        unsafe { iommu.map(&request) }.unwrap();
        bar.set(SOURCE, 0x4_0000).unwrap();
        bar.set(TARGET, iova).unwrap();
        bar.set(COUNT, 4096).unwrap();
        bar.set(COMMAND, 3).unwrap();
        let begin = std::time::Instant::now();
        while bar.get(COMMAND).unwrap() & 1 != 0 {
            assert!(begin.elapsed().as_secs() < 10, "edu is done");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        iommu.unmap(iova, 4096).unwrap();
        let mut found = [0u8; 4096];
        memory.read(0, &mut found).unwrap();
        assert_eq!(found != bytes, written, "{access}");
    }
}
