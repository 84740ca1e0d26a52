//! Memory on the NUMA node of the device, in a guest with two.

use vfio_dma::device::{Device, DeviceError};
use vfio_dma::dma::{
    Buffer, Cause, Direction, DmaError, Node, PageSize, Placement, Request, Strategy,
};
use vfio_dma::host::Sysfs;
use vfio_dma::pci::Address;
use vfio_dma_tests::{address, vfio_dma};
use vfio_dma_tools::vm::VmConfig;

use crate::support::{bind, open};

pub(crate) fn machine() -> VmConfig {
    VmConfig { nodes: 2, devices: vec!["edu,dma_mask=0xffffffff".into()], ..VmConfig::default() }
}

/// Says which node a function is attached to, as the firmware of a real machine does.
fn attach(function: Address, node: i32) {
    let path = format!("/sys/bus/pci/devices/{function}/numa_node");
    std::fs::write(path, node.to_string()).unwrap();
    assert_eq!(Sysfs::new().device(function).unwrap().numa_node, u32::try_from(node).ok());
}

/// Bytes of this process on each node, as the kernel counts them (numa_maps).
fn resident() -> [i64; 2] {
    let maps = std::fs::read_to_string("/proc/self/numa_maps").unwrap();
    let mut found = [0; 2];
    for line in maps.lines() {
        let value = |name: &str| {
            let word = line.split_whitespace().find_map(|word| word.strip_prefix(name));
            word.map_or(0, |text| text.parse::<i64>().unwrap())
        };
        for (node, name) in ["N0=", "N1="].into_iter().enumerate() {
            found[node] += value(name) * (value("kernelpagesize_kB=") << 10);
        }
    }
    found
}

/// Places a buffer, all of which is on one node.
fn place_on(device: &Device, request: &Request, node: usize) -> Buffer {
    let before = resident();
    let buffer = device.allocate(request).unwrap();
    let after = resident();
    let more = [after[0] - before[0], after[1] - before[1]];
    let len = request.len as i64;
    // What the library and the harness allocate by the way is less.
    assert!(more[node] >= len && more[1 - node] < len / 2, "{node}: {more:?} of {len}");
    buffer
}

/// Memory comes from the device's node by every strategy, and the report says so.
pub(crate) fn memory_comes_from_the_node_of_the_device() {
    let function = address(0);
    for wanted in [0, 1] {
        attach(function, wanted);
        let device = open(function);
        let request = Request::new(1 << 20, Direction::Bidirectional);
        for placement in [Placement::Auto, Placement::Contiguous, Placement::ScatterGather] {
            let request = request.clone().placement(placement);
            let buffer = place_on(&device, &request, wanted as usize);
            let report = buffer.report();
            let node = report.node.as_ref().unwrap();
            assert_eq!((node.wanted, node.found.len()), (wanted as u32, 1), "{report}");
            assert_eq!(node.found[0], (wanted as u32, 1 << 20));
            assert!(report.to_string().contains(&format!("on NUMA node {wanted}")), "{report}");
        }
        for order in [Strategy::SmallerBlocks, Strategy::IommuContiguous(PageSize::Transparent)] {
            let request = Request::new(4 << 20, Direction::FromDevice).order([order]);
            drop(place_on(&device, &request, wanted as usize));
        }
        let array = device.coherent::<u64>(1024, 4096).unwrap();
        drop(array);
    }
    // The thread's own policy is as it was: the processor is on node 0.
    attach(function, 1);
    let device = open(function);
    let request = Request::new(1 << 20, Direction::FromDevice);
    drop(place_on(&device, &request, 1));
    let any = place_on(&device, &request.clone().node(Node::Any), 0);
    assert_eq!(any.report().node, None);
    drop((any, device));
    // Where the firmware does not say.
    attach(function, -1);
    let device = open(function);
    let buffer = place_on(&device, &request, 0);
    assert_eq!(buffer.report().node, None);
}

/// A node by name is the only one, and what it has not got is an error with the reason; of a
/// device's node, other memory does.
pub(crate) fn a_node_that_is_exhausted_is_a_reason() {
    let function = address(0);
    attach(function, 1);
    let device = open(function);
    let request = |len| Request::new(len, Direction::FromDevice);
    let only = |node| request(1 << 20).node(Node::Only(node));
    drop(place_on(&device, &only(0), 0));
    drop(place_on(&device, &only(1), 1));
    // Half of the guest's memory is there.
    let path = "/sys/devices/system/node/node1/meminfo";
    let text = std::fs::read_to_string(path).unwrap();
    let free = text.lines().find(|line| line.contains("MemFree")).unwrap();
    let free: usize = free.split_whitespace().rev().nth(1).unwrap().parse().unwrap();
    let more = (free << 10) + (16 << 20);
    let pages = Strategy::IommuContiguous(PageSize::Base);
    let error = device.allocate(&request(more).node(Node::Only(1)).order([pages])).unwrap_err();
    let DeviceError::Dma(DmaError::NoPlacement(report)) = &error else { panic!("{error}") };
    let reason = report.reason(pages).unwrap();
    assert!(matches!(reason.cause, Cause::OtherNode { wanted: 1, .. }), "{error}");
    assert!(error.to_string().contains("NUMA node 1 has too little memory left"), "{error}");
    let buffer = device.allocate(&request(more).order([pages])).unwrap();
    let node = buffer.report().node.clone().unwrap();
    assert_eq!((node.wanted, node.found.len()), (1, 2), "{}", buffer.report());
    assert_eq!(node.found.iter().map(|(_, bytes)| bytes).sum::<u64>(), buffer.len() as u64);
    assert!(buffer.report().to_string().contains("on NUMA nodes 0 ("), "{}", buffer.report());
}

pub(crate) fn the_command_line_says_where_memory_is() {
    let function = address(0);
    attach(function, 1);
    bind(function);
    let bdf = function.to_string();
    let said = vfio_dma(&["run", &bdf, "--size", "8K"]);
    assert_eq!(said.status, 0, "{said:#?}");
    assert!(said.out.contains("on NUMA node 1"), "{said:#?}");
    let said = vfio_dma(&["run", &bdf, "--size", "8K", "--json"]);
    assert!(said.out.contains("\"wanted\": 1") || said.out.contains("\"wanted\":1"), "{said:#?}");
}
