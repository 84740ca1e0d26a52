//! What a controller uses is taken away: the pages of its lists, or itself.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vfio_dma::devices::PciDriver;
use vfio_dma::devices::nvme::{
    Config, DataMethod, IoQueue, Nvme, NvmeError, QueueConfig, TransferError, WhenFull,
};
use vfio_dma::dma::{AddressSpace, Direction, Placement, Request};
use vfio_dma_tests::Machine;
use vfio_dma_tools::vm::{Image, NvmeDrive};

use super::failing::{check_read, slow_reads};
use super::{LIMIT, SLOW, SMALL, ended, initial, nvme, only};
use crate::removal;
use crate::support::{edu_behind_port, open};

const PAGE: u64 = 4096;

/// Addresses that are free.
fn free(space: &AddressSpace) -> Vec<RangeInclusive<u64>> {
    space.iovas().free_runs().collect()
}

/// Takes the mapping of a queue's list pages away, behind the driver's back.
fn unmap_lists(space: &AddressSpace, before: &[RangeInclusive<u64>], pages: u64) {
    let after = free(space);
    // What is not free any more begins where a run that was free does, or ends where one does.
    let is_new = |at: &u64| !after.iter().any(|run| run.contains(at));
    let places: Vec<u64> = before
        .iter()
        .flat_map(|run| {
            let cut = after.iter().filter(|left| run.contains(left.start()));
            let low = cut.clone().map(|left| *left.start()).min().unwrap_or(*run.start());
            let high = cut.map(|left| *left.end() + 1).max().unwrap_or(low);
            let pages = |range: std::ops::Range<u64>| range.step_by(PAGE as usize);
            pages(*run.start()..low).chain(pages(high..*run.end()))
        })
        .filter(is_new)
        .collect();
    // A container unmaps whole mappings only. The rings are a page each; the lists are one
    // mapping, of so many pages or of a huge one.
    for len in [pages * PAGE, 2 << 20] {
        for at in &places {
            if space.iommu().unmap(*at, len as usize).is_ok() {
                println!("the list pages at {at:#x} are gone, {len:#x} bytes");
                return;
            }
        }
    }
    panic!("no mapping of {pages} pages was found: free {after:x?}, before {before:x?}");
}

pub(crate) fn a_list_page_that_is_not_mapped_is_an_error_and_no_more() {
    let nvme = nvme(SMALL);
    let namespace = only(&nvme);
    let before = free(nvme.space());
    let size = 40;
    let config = QueueConfig { size, method: DataMethod::Prp, ..QueueConfig::default() };
    let mut queue = nvme.queue(config).unwrap();
    unmap_lists(nvme.space(), &before, u64::from(size) - 1);
    let read = |queue: &mut IoQueue, len: usize, method| {
        queue.set_method(method);
        let request = Request::new(len, Direction::FromDevice);
        let buffer = nvme.allocate(&request.placement(Placement::ScatterGather)).unwrap();
        let token = queue.read(&namespace, 8, buffer.into(), WhenFull::Return);
        let begin = Instant::now();
        let finished = ended(queue, token);
        assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
        assert!(finished.table.is_some(), "the buffers come back");
        finished
    };
    for method in [DataMethod::Prp, DataMethod::Sgl] {
        // A list is needed: the controller cannot fetch it, and says so, command by command.
        for _ in 0..3 {
            let failed = read(&mut queue, 64 << 10, method).into_result().unwrap_err();
            let TransferError::Status { lba: 8, blocks: 128, status, .. } = failed else {
                panic!("{method:?}: {failed}");
            };
            println!("{method:?}: {status}");
            assert!(!status.is_success());
        }
        // None is needed.
        let table = read(&mut queue, 4096, method).into_table().unwrap();
        initial(SMALL).check(&table.into_buffer().unwrap(), 0, 4096, 4096).unwrap().unwrap();
    }
    assert_eq!((queue.in_flight(), queue.stats().recoveries), (0, 0));
    // Another queue has pages of its own.
    let mut other = nvme.queue(config).unwrap();
    let table = read(&mut other, 64 << 10, DataMethod::Prp).into_table().unwrap();
    initial(SMALL).check(&table.into_buffer().unwrap(), 0, 64 << 10, 4096).unwrap().unwrap();
}

/// A slow drive behind a root port, in a guest whose QEMU takes commands from it.
pub(crate) fn unpluggable() -> Machine {
    let image = Image::new(4 << 20, initial(SLOW)).unwrap();
    let slow = NvmeDrive::new(image.path()).drive(&["throttling.bps-total=524288"]);
    let (_, drive) = slow.describe("blocks");
    let mut vm = removal::behind_port("nvme,drive=blocks,serial=vfio-dma-unpluggable");
    vm.qemu_args.extend(drive);
    let before = image.bytes().unwrap();
    let verify = move || {
        let is_same = image.bytes().map_err(|error| error.to_string())? == before;
        is_same.then_some(()).ok_or_else(|| "the image has changed".into())
    };
    Machine { vm, verify: Box::new(verify) }
}

/// The drive tells of its health by itself, once for each time that its log was read.
pub(crate) fn an_event_of_the_drive_is_told() {
    let function = edu_behind_port();
    let nvme = Nvme::probe(open(function), Config::default()).expect("opening NVMe");
    nvme.enable_events(0xff).unwrap();
    let wait = || {
        let begin = Instant::now();
        while begin.elapsed() < LIMIT {
            if let [event] = nvme.take_events().unwrap()[..] {
                return event;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("no event came: {:?}", nvme.smart_log());
    };
    // Its temperature, and after a reset of the controller, which the request outlives, its
    // reliability.
    for (warnings, info, reset) in [(2, 1, true), (6, 0, false)] {
        removal::monitor(&format!(
            "qom-set /machine/peripheral/victim smart_critical_warning {warnings}"
        ));
        let event = wait();
        assert_eq!((event.kind, event.info, event.log_page), (1, info, 2), "{event:?}");
        assert_eq!(nvme.smart_log().unwrap().critical_warning, warnings);
        assert_eq!(nvme.take_events().unwrap(), []);
        if reset {
            nvme.reset().unwrap();
        }
    }
}

pub(crate) fn an_unplugged_drive_ends_every_read_once() {
    let function = edu_behind_port();
    let nvme = Nvme::probe(open(function), Config::default()).expect("opening NVMe");
    let space = Arc::clone(nvme.space());
    let mut queues = [0, 1].map(|_| nvme.queue(QueueConfig::default()).unwrap());
    check_read(&nvme, &mut queues[0], SLOW);
    let tokens = queues.each_mut().map(|queue| slow_reads(&nvme, queue, 64));
    removal::monitor("device_del victim");
    let begin = Instant::now();
    let mut removed = 0;
    for (queue, tokens) in queues.iter_mut().zip(tokens) {
        for token in tokens {
            let finished = queue.wait(token, LIMIT).unwrap();
            assert!(finished.table.is_some(), "the buffers come back");
            match finished.result {
                Ok(()) => {}
                Err(TransferError::Removed) => removed += 1,
                Err(other) => panic!("{other}"),
            }
            assert!(matches!(queue.take(token), Err(NvmeError::NoSuchTransfer)), "once");
        }
        assert_eq!(queue.in_flight(), 0);
    }
    println!("{removed} of 128 removed, {:?} after it was asked for", begin.elapsed());
    assert!(removed > 0);
    let asked = Instant::now();
    drop((queues, nvme));
    assert_eq!(space.usage().mappings, 0, "all is unmapped");
    while PathBuf::from(format!("/sys/bus/pci/devices/{function}")).exists() {
        assert!(asked.elapsed() < 5 * removal::LIMIT, "it is still there");
        std::thread::sleep(Duration::from_millis(5));
    }
}
