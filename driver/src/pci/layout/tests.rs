use std::cell::Cell;

use proptest::prelude::*;

use super::*;

fn space() -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
    put(0, &[0x86, 0x80, 0x21, 0x20, 0x06, 0x01, 0x10, 0x00]);
    put(0x34, &[0x40]);
    // Power management in D3hot, MSI with 64 bits and masks, MSI-X, an endpoint at gen3 x8.
    put(0x40, &[0x01, 0x50, 0x03, 0x00, 0x0b, 0x00]);
    put(0x50, &[0x05, 0x70, 0x8a, 0x01]);
    put(0x70, &[0x11, 0x90, 0x07, 0x80, 0x02, 0x20, 0, 0, 0x03, 0x30, 0, 0]);
    put(0x90, &[0x10, 0x00, 0x02, 0x00, 0x01, 0x80, 0x00, 0x10, 0x20, 0x28, 0x00, 0x00]);
    put(0x9c, &[0x83, 0x08, 0, 0, 0x40, 0, 0x83, 0x10]);
    // Every extended capability that has an id, 56 bytes each.
    for id in 0..=0x31_u32 {
        let next = if id == 0x31 { 0 } else { 0x100 + (id + 1) * 56 };
        let header = (next << 20) | 1 << 16 | if id == 0 { 0x33 } else { id };
        put(0x100 + id as usize * 56, &header.to_le_bytes());
    }
    bytes
}

fn layout(bytes: &mut [u8]) -> Layout {
    Layout::read(&ConfigSpace::new(Cell::from_mut(bytes).as_slice_of_cells())).unwrap()
}

/// Reads every register by its name, as `show` does.
fn read_all(bytes: &mut [u8]) -> usize {
    let config = ConfigSpace::new(Cell::from_mut(bytes).as_slice_of_cells());
    let Ok(layout) = Layout::read(&config) else { return 0 };
    let mut fields = 0;
    for register in layout.structures.iter().flat_map(|structure| &structure.registers) {
        let value = read(&config, register).unwrap();
        fields += register.decode(value).len();
        assert!(layout.find(&register.name).is_some());
    }
    fields
}

#[test]
fn registers_are_found_by_name_and_decoded() {
    let mut bytes = space();
    let layout = layout(&mut bytes);
    assert_eq!(layout.defects, []);
    let config = ConfigSpace::new(&bytes[..]);
    let value = |register, field| layout.value(&config, register, field).unwrap();
    assert_eq!(value("COMMAND", "bus-master"), Some(1));
    assert_eq!(value("command", "IO-SPACE"), Some(0));
    assert_eq!(value("PM_CTRL", "state"), Some(3));
    assert_eq!(value("MSI_FLAGS", "64-bit"), Some(1));
    assert_eq!(value("EXP_LNKSTA", "speed"), Some(3));
    assert_eq!(value("EXP_LNKCAP", "width"), Some(8));
    assert_eq!(value("EXP_SLTCAP", "slot"), None, "an endpoint has no slot");
    assert_eq!(value("AER_ROOT_STATUS", "fatal"), None, "nor takes it error messages");
    let devctl = layout.find("EXP_DEVCTL").unwrap();
    assert_eq!((devctl.offset, devctl.width), (0x98, 2));
    let decoded = devctl.decode(read(&config, devctl).unwrap());
    let request = decoded.iter().find(|field| field.name == "max-read-request").unwrap();
    assert_eq!(request.meaning.as_deref(), Some("512 bytes"));
    assert_eq!(layout.find("MSI_MASK").unwrap().offset, 0x60);
    assert!(layout.find("MSI_MASK@50").is_some() && layout.find("MSI_MASK@0x51").is_none());
}

#[test]
fn every_capability_has_a_name() {
    let mut bytes = space();
    let layout = layout(&mut bytes);
    assert_eq!(layout.structures.len(), 1 + 4 + 50);
    for structure in &layout.structures {
        let unnamed = matches!(structure.kind, StructureKind::Extended { id: 0x33, .. });
        assert_eq!(structure.name == "unknown", unnamed, "{structure:?}");
    }
}

#[test]
fn tables_are_in_order_and_their_fields_inside_their_registers() {
    for kind in [0x00, 0x01, 0x41, 0x91, 0x92, 0xa2, 0x42, 0x62] {
        let mut bytes = space();
        bytes[0x0e] = u8::from(kind == 0x41);
        (bytes[0x92], bytes[0x93]) = (kind, 1);
        for structure in layout(&mut bytes).structures {
            let mut end = 0;
            for register in &structure.registers {
                assert!(register.offset >= end, "{register:?}");
                assert_eq!(register.offset % u64::from(register.width), 0, "{register:?}");
                end = register.offset + u64::from(register.width);
                let mut used = 0_u64;
                for field in register.fields.iter() {
                    assert!(field.lsb + field.bits <= register.width * 8, "{register:?}");
                    assert_eq!(used & field.mask(), 0, "{register:?}: {field:?}");
                    used |= field.mask();
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn mutated_configuration_spaces_are_decoded_without_a_panic(
        changes in proptest::collection::vec((0_usize..4096, any::<u8>()), 0..64),
        header in proptest::collection::vec((0_usize..0x100, any::<u8>()), 0..16),
        len in prop_oneof![4 => Just(4096_usize), 1 => Just(256), 1 => Just(64), 1 => 64_usize..4096],
    ) {
        let mut bytes = space();
        for (at, byte) in changes.into_iter().chain(header) {
            bytes[at] = byte;
        }
        bytes.truncate(len);
        read_all(&mut bytes);
    }
}

#[test]
fn all_of_a_plain_space_is_decoded() {
    assert!(read_all(&mut space()) > 300);
}
