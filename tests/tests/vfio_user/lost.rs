//! A client whose file is cut short: its transfers there fail, and the server lives.

use std::fs::File;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::killed::Process;
use super::*;

const LEN: usize = 64 << 10;

/// A copy of a page that ends well, or halts the channel with this error.
fn ends(device: &mut Device, channel: &mut Channel, (source, target): (u64, u64), error: u32) {
    channel.start(source, target, 4096);
    if error == 0 {
        wait("the copy is done", || channel.word() == channel.done());
    } else {
        wait("the channel halts", || channel.bar.read::<u64>(0x88).unwrap() & 7 == 3);
        assert_eq!(channel.bar.read::<u32>(0xa8).unwrap(), error);
        channel.bar.write::<u32>(0xa8, error).unwrap();
        device.config_mut().write_u32(0x180, error).unwrap();
    }
    channel.reset();
}

#[test]
fn a_client_that_cuts_its_file_short_ends_its_own_transfers_alone() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("ioat");
    let _server = Process::start_with(&socket, "");
    let mut device = open(&socket);
    let mut channel = Channel::new(&device);
    let (from, to) =
        (buffer(&device, LEN, Direction::ToDevice), buffer(&device, LEN, Direction::FromDevice));
    // CHANERR: read data is bit 8, write data bit 9.
    for error in [1 << 8, 1 << 9] {
        // Nothing seals it.
        let file = File::from(memfd_create("cut", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(LEN as u64).unwrap();
        let request = Request::new(LEN, Direction::Bidirectional);
        let lent = device.allocator().adopt_file(&file, 0, &request).unwrap();
        let pair =
            if error == 1 << 8 { (iova(&lent), iova(&to)) } else { (iova(&from), iova(&lent)) };
        ends(&mut device, &mut channel, pair, 0);
        file.set_len(0).unwrap();
        for _ in 0..2 {
            ends(&mut device, &mut channel, pair, error);
        }
        // What is there is served on.
        ends(&mut device, &mut channel, (iova(&from), iova(&to)), 0);
    }
    drop((channel, from, to, device));
    assert_eq!(open(&socket).config().vendor_id().unwrap(), 0x8086);
}
