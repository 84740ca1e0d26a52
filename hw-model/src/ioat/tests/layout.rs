//! Literal offsets, widths, reset values and masks of every register.

use super::super::Personality;
use super::super::registers::{bar0, config_space};
use super::*;

#[test]
fn device_registers_lie_where_the_datasheet_says() {
    let rig = Rig::one();
    assert_eq!(rig.read(0x00, 1), 1, "CHANCNT");
    assert_eq!(rig.read(0x01, 1), 20, "XFERCAP");
    assert_eq!(rig.read(0x03, 1), 0, "INTRCTRL");
    assert_eq!(rig.read(0x04, 4), 0, "ATTNSTATUS");
    assert_eq!(rig.read(0x08, 1), 0x32, "CBVER");
    assert_eq!(rig.read(0x0c, 2), 0x8000, "INTRDELAY");
    assert_eq!(rig.read(0x0e, 2), 0, "CS_STATUS");
    assert_eq!(rig.read(0x10, 4), 1 << 6, "DMACAPABILITY");
    assert_eq!(rig.read(0x00, 4), 0x0000_1401);
    rig.write(0x03, 1, 0xff);
    assert_eq!(rig.read(0x03, 1), 0x09);
    rig.write(0x0c, 2, 0xffff);
    assert_eq!(rig.read(0x0c, 2), 0xbfff);
}

#[test]
fn ice_lake_is_another_device_and_version() {
    let personality = Personality::IceLake;
    let rig = Rig::new(IoatConfig { personality, ..IoatConfig::default() });
    assert_eq!(rig.config(0x00), 0x0b00_8086);
    assert_eq!(rig.read(0x08, 1), 0x34);
    assert_eq!(rig.read(0x10, 4), 1 << 6 | 1 << 23);
    // Registers that drivers of version 3.4 write: 0x80 + 0xb6, 0xbc, 0xc0, 0xc4, and 0x4c.
    for (offset, len) in [(0x136, 2), (0x13c, 1), (0x140, 4), (0x144, 4), (0x4c, 1)] {
        rig.write(offset, len, 0x51);
        assert_eq!(rig.read(offset, len), 0x51);
    }
    assert_eq!(rig.stats().illegal_accesses, 0);
    rig.works();
}

/// Name, offset in the channel, width in bytes, bits that a write can set, reset value.
const CHANNEL: [(&str, u32, u8, u64, u64); 10] = [
    ("CHANCTRL", 0x00, 2, 0xf33c, 0),
    ("DMA_COMP", 0x02, 2, 0, 0x6),
    ("CHANCMD", 0x04, 1, 0, 0),
    ("DMACOUNT", 0x06, 2, 0xffff, 0),
    ("CHANSTS", 0x08, 8, 0, 3),
    ("CHAINADDR", 0x10, 8, u64::MAX, 0),
    ("CHANCMP", 0x18, 8, u64::MAX, 0),
    ("CHANERR", 0x28, 4, 0, 0),
    ("CHANERRMSK", 0x2c, 4, 0x7_ffff, 0),
    ("DCACTRL", 0x30, 4, 0xffff_ffff, 0),
];

#[test]
fn channel_registers_lie_where_the_datasheet_says() {
    let config = IoatConfig { channels: 8, ..IoatConfig::default() };
    let bar = bar0(&config).unwrap();
    assert_eq!(bar.size(), 0x4000);
    for channel in 0..8 {
        let base = 0x80 * (channel + 1);
        let block: Vec<_> = bar
            .registers()
            .iter()
            .filter(|r| (base..base + 0x80).contains(&r.offset()))
            .map(|r| (r.name(), r.offset() - base, r.bytes(), r.writable_bits(), r.reset()))
            .collect();
        assert_eq!(block, CHANNEL);
    }
}

#[test]
fn the_msix_table_and_pending_bits_are_in_the_bar() {
    let rig = Rig::new(IoatConfig { channels: 4, ..IoatConfig::default() });
    assert_eq!(rig.config(0x80), 0x0003_9011, "four vectors, and the next capability");
    assert_eq!((rig.config(0x84), rig.config(0x88)), (0x2000, 0x3000));
    for vector in 0..4 {
        let entry = 0x2000 + 16 * vector;
        assert_eq!(rig.read(entry + 12, 4), 1, "masked at reset");
        rig.write(entry, 4, 0xfee0_1003);
        rig.write(entry + 4, 4, 0x12);
        rig.write(entry + 8, 8, 0xffff_ffff_0000_4021);
        assert_eq!(rig.read(entry, 8), 0x12_fee0_1000);
        assert_eq!(rig.read(entry + 8, 8), 0x1_0000_4021);
    }
    assert_eq!(rig.read(0x3000, 8), 0);
    assert_eq!(rig.read(0x2040, 4), 0xffff_ffff);
}

#[test]
fn configuration_space_is_that_of_an_integrated_endpoint() {
    let rig = Rig::one();
    assert_eq!(rig.config(0x00), 0x2021_8086);
    assert_eq!(rig.config(0x08) >> 8, 0x08_8000, "class");
    assert_eq!(rig.config(0x0c) >> 16 & 0xff, 0, "header type");
    assert_eq!(rig.config(0x10) & 0xf, 0x4, "a 64-bit memory BAR");
    assert_eq!(rig.config(0x3c) >> 8 & 0xff, 1, "INTA");
    assert_eq!(rig.config(0x90), 0x0092_d010, "PCI Express, integrated endpoint, version 2");
    assert_eq!(rig.config(0x94), 0x1000_8001, "reset by function, 256 bytes of payload");
    assert_eq!(rig.config(0x98), 0x0000_2810);
    assert_eq!(rig.config(0xd0), 0x0080_e005, "MSI, 64 bits");
    assert_eq!(rig.config(0xe0), 0x0003_0001, "power management");
    assert_eq!(rig.config(0xe4), 0x8);
    assert_eq!(rig.config(0x100), 0x0001_0001, "advanced error reporting, the last");
    rig.set_config(0x184, 0xffff_ffff);
    assert_eq!(rig.config(0x184), 0x7_ffff);
    assert_eq!((rig.config(0x148), rig.config(0x180)), (0, 0));
}

#[test]
fn error_registers_in_configuration_space_are_cleared_by_ones() {
    let space = config_space(&IoatConfig::default()).unwrap();
    for (offset, bits) in [(0x148u32, 0x149cu64), (0x180, 0x7_ffff)] {
        let id = space.find(offset).unwrap();
        space.set_bits(id, bits);
        space.write(offset.into(), &0x14u32.to_le_bytes());
        assert_eq!(space.get(id), bits & !0x14, "{offset:#x}");
        space.write(offset.into(), &[0xff; 4]);
        assert_eq!(space.get(id), 0);
    }
}

#[test]
fn registers_take_accesses_of_every_width_and_in_halves() {
    let rig = Rig::one();
    rig.write(0x98, 8, 0x1234_5678_9abc_def0);
    assert_eq!(rig.read(0x98, 4), 0x9abc_def0);
    assert_eq!(rig.read(0x9c, 4), 0x1234_5678);
    assert_eq!(rig.read(0x9e, 2), 0x1234);
    assert_eq!(rig.read(0x99, 1), 0xde);
    rig.write(0x9c, 4, 0);
    assert_eq!(rig.read(0x98, 8), 0x9abc_def0);
    assert_eq!(rig.read(0x88, 4), HALTED);
    assert_eq!(rig.read(0x8c, 4), 0);
    // CHANCTRL, DMA_COMP, CHANCMD and DMACOUNT in one access.
    assert_eq!(rig.read(0x80, 8), 0x6_001c);
    assert_eq!(rig.stats().illegal_accesses, 0);
}

#[test]
fn illegal_accesses_read_all_ones_and_do_nothing() {
    let rig = Rig::one();
    for (offset, len) in [(0x40, 4), (0x100, 8), (0x1000, 4), (0x3ff8, 8), (0x3fff, 1)] {
        assert_eq!(rig.read(offset, len), u64::MAX >> (64 - 8 * len));
        rig.write(offset, len, 0);
    }
    assert_eq!(rig.stats().illegal_accesses, 10);
    // The register is read-only: the write is dropped.
    rig.write(0x88, 8, 0);
    assert_eq!(rig.state(), HALTED);
    rig.works();
}
