//! Memory that is promised and cannot be had.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use vfio_dma::backend::DmaAccess;
use vfio_dma::dma::{Direction, Memory, MemoryAccessError, PageSize, Request};
use vfio_dma_model::memory::{DmaMap, FaultReason};
use vfio_dma_tests::address;

use crate::in_use::{EDU, sh};
use crate::support::open;

const GROUP: &str = "/tmp/cgroup/without-huge-pages";

/// A group of processes for which every huge page of 2 MiB is one too many, on a machine that
/// has some.
fn group_without_huge_pages() {
    fs::write("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "8").unwrap();
    if !Path::new(GROUP).exists() {
        sh("mkdir -p /tmp/cgroup && mount -t cgroup2 none /tmp/cgroup");
        fs::write("/tmp/cgroup/cgroup.subtree_control", "+hugetlb").unwrap();
        fs::create_dir(GROUP).unwrap();
        fs::write(format!("{GROUP}/hugetlb.2MB.max"), "0").unwrap();
    }
}

/// Runs the command line in the group.
fn in_group(args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new("/bin/vfio-dma");
    command.args(args);
    // SAFETY: one open, one write and one close, which a child may make between fork and exec.
    unsafe { command.pre_exec(|| fs::write("/tmp/cgroup/without-huge-pages/cgroup.procs", "0")) };
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

pub(crate) fn a_limit_of_the_cgroup_is_the_reason_and_smaller_pages_follow() {
    group_without_huge_pages();
    let (status, text) = in_group(&["run", "model", "--size", "4M", "--json"]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("not-populated") && text.contains("hugetlb.2MB.max"), "{text}");
    // This process, which is the case's own, with type1: edu takes minutes for as much.
    fs::write(format!("{GROUP}/cgroup.procs"), "0").unwrap();
    let device = open(address(EDU));
    let mut buffer = device.allocate(&Request::new(4 << 20, Direction::Bidirectional)).unwrap();
    let report = buffer.report().to_string();
    assert!(report.contains("hugetlb.2MB.max"), "{report}");
    buffer.write((4 << 20) - 1, &[1]).unwrap();
    fs::write("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "0").unwrap();
}

pub(crate) fn a_vfio_user_socket_falls_back_too() {
    group_without_huge_pages();
    let mut server = Command::new("/bin/vfio-dma")
        .args(["model", "--socket", "/tmp/model.sock"])
        .spawn()
        .unwrap();
    for _ in 0..200 {
        if Path::new("/tmp/model.sock").exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let (status, text) = in_group(&["run", "/tmp/model.sock", "--size", "4M", "--json"]);
    let _ = server.kill();
    server.wait().unwrap();
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("not-populated"), "{text}");
    fs::write("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "0").unwrap();
}

/// Seals do not keep whoever has the file, as the process that serves a device does, from taking
/// pages out of it, and nobody else's page takes their place here.
pub(crate) fn huge_pages_that_another_takes_out_are_an_error_and_no_signal() {
    const HUGE: usize = 2 << 20;
    let pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
    fs::write(pool, "2").unwrap();
    let memory = Memory::allocate(2 * HUGE, PageSize::Huge2M, true).unwrap();
    memory.write(HUGE, &[7; 64]).unwrap();
    let theirs = memory.file().unwrap().try_clone_to_owned().unwrap();
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&theirs, punch, HUGE as i64, HUGE as i64).unwrap();
    fs::write(pool, "0").unwrap();
    let gone = Err(MemoryAccessError::Gone { offset: HUGE, len: 64, errno: Errno::EFAULT });
    let mut found = [0; 64];
    assert_eq!(memory.read(HUGE, &mut found), gone);
    assert_eq!(memory.write(HUGE, &found), gone);
    drop((memory, theirs));
    // What is allocated next is whole.
    fs::write(pool, "2").unwrap();
    let memory = Memory::allocate(2 * HUGE, PageSize::Huge2M, true).unwrap();
    memory.write(0, &[7; 64]).unwrap();
    memory.read(HUGE, &mut found).unwrap();
    assert_eq!(found, [0; 64]);
    drop(memory);
    fs::write(pool, "0").unwrap();
}

pub(crate) fn a_file_without_room_for_its_blocks_is_an_error() {
    sh("mkdir -p /tmp/small && mount -t tmpfs -o size=64k none /tmp/small");
    let path = "/tmp/small/sparse";
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    file.set_len(1 << 20).unwrap();
    let device = open(address(EDU));
    let request = Request::new(1 << 20, Direction::Bidirectional);
    let error = device.allocator().adopt_file(&file, 0, &request).unwrap_err().to_string();
    assert!(error.contains("POPULATE") && error.contains("room of the file system"), "{error}");
    let request = Request::new(8192, Direction::Bidirectional);
    let mut buffer = device.allocator().adopt_file(&file, 0, &request).unwrap();
    buffer.write(0, &[7; 8192]).unwrap();
    // The model has it mapped, sparse as it is, when a transfer meets what is not there.
    let map = DmaMap::new();
    map.map_fd(0, 1 << 20, &file, 0, DmaAccess::ReadWrite).unwrap();
    let filled = map.fill(0, 7, 1 << 20).unwrap_err();
    assert_eq!(filled.reason, FaultReason::Unbacked, "{filled}");
    assert!(map.store_u64(0, 7).is_err(), "none of the file is reached any more");
    map.unmap_all();
    file.set_len(0).unwrap();
    assert!(buffer.write(0, &[8]).is_err());
    drop((buffer, file));
    sh("rm /tmp/small/sparse && umount /tmp/small");
}
