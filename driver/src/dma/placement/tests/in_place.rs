//! Memory that exists before the buffer.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::*;
use crate::dma::{Coherent, Memory, MemoryAccessError, Pattern};

fn memfd(bytes: &[u8]) -> File {
    let file: OwnedFd = memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap();
    let mut file = File::from(file);
    file.write_all(bytes).unwrap();
    file
}

fn pattern(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Pattern::new(9).bytes(0, &mut bytes);
    bytes
}

#[test]
fn a_file_is_reached_where_it_is() {
    let lab = Lab::fragmented(&[2; 20]);
    let bytes = pattern(100_000);
    let file = memfd(&bytes);
    let (offset, len) = (5000, 70_001);
    let request = Request::new(len, BOTH);
    let mut buffer = lab.allocator().adopt_file(&file, offset as u64, &request).unwrap();
    assert_eq!(winner(buffer.report()), Some(Strategy::InPlace));
    assert!(buffer.segments().len() > 8, "runs of two pages: {}", buffer.report());
    assert_eq!(buffer.segments()[0].iova.0 % 4096, 5000 % 4096);
    assert!(lab.table.read(buffer.segments()) == bytes[offset..offset + len]);
    lab.verify(&mut buffer);
    buffer.release().unwrap();
    // What the device wrote is in the file, and nothing else changed.
    let mut after = vec![0; bytes.len()];
    file.read_exact_at(&mut after, 0).unwrap();
    let mut written = vec![0; len];
    Pattern::new(2).bytes(0, &mut written);
    assert!(after[offset..offset + len] == written);
    assert!(after[..offset] == bytes[..offset] && after[offset + len..] == bytes[offset + len..]);
    assert!(lab.is_empty());
}

#[test]
fn a_file_keeps_its_descriptor_and_offset() {
    let lab = Lab::with(vec![0x1000..=0xffff_ffff], |info| info.needs_fd = true, None);
    let file = memfd(&pattern(50_000));
    let inode = nix::sys::stat::fstat(&file).unwrap().st_ino;
    let request = Request::new(9000, BOTH).placement(Placement::Contiguous);
    let mut buffer = lab.allocator().adopt_file(&file, 8192, &request).unwrap();
    lab.verify(&mut buffer);
    assert_eq!(lab.table.files(), [Some((inode, 8192))]);
}

#[test]
fn a_file_that_is_too_short_is_refused() {
    let lab = Lab::wide();
    let file = memfd(&pattern(5000));
    for (offset, len) in [(0, 5001), (5000, 1), (u64::MAX, 1), (0, usize::MAX)] {
        let request = Request::new(len, BOTH);
        let refused = lab.allocator().adopt_file(&file, offset, &request);
        assert!(refused.is_err(), "{len} bytes at {offset}");
    }
    let read_only = File::open("/proc/self/exe").unwrap();
    assert!(lab.allocator().adopt_file(&read_only, 0, &Request::new(1, BOTH)).is_err());
    assert!(lab.is_empty());
}

#[test]
fn an_address_range_is_reached_where_it_is() {
    let lab = Lab::wide();
    let memory = Memory::allocate(64 << 10, PageSize::Base, false).unwrap();
    let bytes = pattern(64 << 10);
    memory.write(0, &bytes).unwrap();
    let (offset, len) = (777, 33_333);
    // SAFETY: inside of the memory.
    let base = unsafe { memory.base().byte_add(offset) };
    for (placement, segments) in
        [(Placement::Auto, 1), (Placement::Contiguous, 1), (Placement::ScatterGather, 9)]
    {
        memory.write(0, &bytes).unwrap();
        let request = Request::new(len, BOTH).placement(placement);
        // SAFETY: `memory` outlives the buffer and nothing refers into it.
        let buffer = unsafe { lab.allocator().adopt(base, &request) };
        let mut buffer = buffer.unwrap();
        assert_eq!(buffer.segments().len(), segments, "{placement:?}");
        assert!(lab.table.read(buffer.segments()) == bytes[offset..offset + len]);
        lab.verify(&mut buffer);
        if segments > 1 {
            buffer.promote().unwrap();
            assert_eq!(winner(buffer.report()), Some(Strategy::Remap), "in place, too");
            lab.verify(&mut buffer);
        }
        buffer.release().unwrap();
        // Still the caller's, with what the device wrote and nothing around it.
        let mut after = vec![0; 64 << 10];
        memory.read(0, &mut after).unwrap();
        assert!(
            after[..offset] == bytes[..offset] && after[offset + len..] == bytes[offset + len..]
        );
        assert!(after[offset..offset + len] != bytes[offset..offset + len]);
    }
    assert!(lab.is_empty());
}

#[test]
fn lent_memory_cannot_be_copied_elsewhere() {
    let lab = Lab::fragmented(&[2, 2]);
    let memory = Memory::allocate(3 * 4096, PageSize::Base, false).unwrap();
    let request = Request::new(3 * 4096, BOTH);
    // SAFETY: `memory` outlives the buffer and nothing refers into it.
    let buffer = unsafe { lab.allocator().adopt(memory.base(), &request) };
    let mut buffer = buffer.unwrap();
    let Err(DmaError::NoPlacement(report)) = buffer.promote() else { panic!("no run is free") };
    assert_eq!(*cause(&report, CONTIGUOUS), Cause::Lent);
    assert!(matches!(cause(&report, Strategy::Remap), Cause::IovaRun { .. }));
    lab.verify(&mut buffer);
}

#[test]
fn what_needs_a_file_refuses_memory_without_one() {
    let lab = Lab::with(vec![0x1000..=0xffff_ffff], |info| info.needs_fd = true, None);
    let memory = Memory::allocate(4096, PageSize::Base, false).unwrap();
    let base: NonNull<u8> = memory.base();
    // SAFETY: `memory` outlives the buffer and nothing refers into it.
    let refused = unsafe { lab.allocator().adopt(base, &Request::new(4096, BOTH)) };
    let Err(DmaError::NoPlacement(report)) = refused else { panic!("it has no file") };
    assert!(report.to_string().contains("memfd"), "{report}");
    assert!(lab.is_empty());
}

#[test]
fn alignment_of_a_byte_in_a_page_is_checked() {
    let lab = Lab::wide();
    let file = memfd(&pattern(9000));
    let request = Request::new(100, BOTH).alignment(64);
    assert!(lab.allocator().adopt_file(&file, 4096 + 128, &request).is_ok());
    assert!(lab.allocator().adopt_file(&file, 4096 + 100, &request).is_err());
    assert!(lab.is_empty());
}

#[test]
fn a_file_that_is_cut_short_is_an_error_and_no_signal() {
    let lab = Lab::wide();
    let bytes = pattern(5 * 4096);
    let file = memfd(&bytes);
    let mut buffer = lab.allocator().adopt_file(&file, 0, &Request::new(5 * 4096, BOTH)).unwrap();
    file.set_len(4096).unwrap();
    let mut found = [0; 4096];
    buffer.read(0, &mut found).unwrap();
    assert!(found[..] == bytes[..4096]);
    for offset in [4096, 4 * 4096] {
        let read = buffer.read(offset, &mut found).unwrap_err();
        let gone = |error: &DmaError| {
            matches!(error, DmaError::Access(MemoryAccessError::Gone { errno: Errno::EFAULT, .. }))
        };
        assert!(gone(&read), "{read}");
        let write = buffer.write(offset, &found).unwrap_err();
        assert!(gone(&write) && write.to_string().contains("F_SEAL_SHRINK"), "{write}");
    }
    buffer.write(100, &[1, 2, 3]).unwrap();
    let coherent = Coherent::<u32>::new(buffer, 4);
    assert!(matches!(coherent, Err(DmaError::OnlyCopies { .. })), "{coherent:?}");
}

#[test]
fn a_sealed_file_is_shared_word_by_word() {
    let lab = Lab::wide();
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create(c"test", flags).unwrap());
    file.set_len(8192).unwrap();
    nix::fcntl::fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
    let buffer = lab.allocator().adopt_file(&file, 0, &Request::new(8192, BOTH)).unwrap();
    let mut array = Coherent::<u32>::new(buffer, 4).unwrap();
    array.write(3, &7);
    let mut word = [0; 4];
    file.read_exact_at(&mut word, 12).unwrap();
    assert_eq!(word, [7, 0, 0, 0]);
}

#[test]
fn reading_is_enough_for_a_device_that_reads() {
    let lab = Lab::wide();
    let bytes = pattern(9000);
    let file = memfd(&bytes);
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let read_only = File::open(path).unwrap();
    let request = Request::new(9000, Direction::ToDevice);
    let mut buffer = lab.allocator().adopt_file(&read_only, 0, &request).unwrap();
    assert!(lab.table.read(buffer.segments()) == bytes);
    let mut found = vec![0; 9000];
    buffer.read(0, &mut found).unwrap();
    assert!(found == bytes);
    let refused = buffer.write(0, &[0]).unwrap_err();
    assert!(refused.to_string().contains("reading only"), "{refused}");
    let refused = lab.allocator().adopt_file(&read_only, 0, &Request::new(9000, BOTH)).unwrap_err();
    assert!(refused.to_string().contains("reading only"), "{refused}");
}

#[test]
fn a_character_device_has_no_end() {
    let lab = Lab::wide();
    // What is mapped of it, shared, is memory.
    let zero = File::options().read(true).write(true).open("/dev/zero").unwrap();
    let mut buffer = lab.allocator().adopt_file(&zero, 0, &Request::new(10_000, BOTH)).unwrap();
    lab.verify(&mut buffer);
}
