use proptest::prelude::*;

use super::*;

fn set() -> RegisterSet<char> {
    RegisterSet::new(
        "test",
        0x100,
        8,
        Holes::Illegal,
        vec![
            Register::new('a', "A", 0x00, 1, 0x11),
            Register::new('b', "B", 0x01, 1, 0x22).writable(0x0f),
            Register::new('c', "C", 0x04, 4, 0xffff_0000).clear_on_read(0xffff_ffff),
            Register::new('d', "D", 0x08, 8, 0).writable(!0x3f),
            Register::new('e', "E", 0x10, 4, 0x7).write_one_to_clear(0x3).writable(0xf0),
            Register::new('f', "F", 0x14, 1, 0).command(),
        ],
    )
    .unwrap()
}

fn read(set: &RegisterSet<char>, offset: u64, len: usize) -> u64 {
    let mut data = [0; 8];
    set.read(offset, &mut data[..len], |_| {}, |_, _| {});
    u64::from_le_bytes(data)
}

fn write(set: &RegisterSet<char>, offset: u64, len: usize, value: u64) -> Vec<(char, Write)> {
    let mut seen = Vec::new();
    set.write(offset, &value.to_le_bytes()[..len], |key, write| seen.push((key, write)));
    seen
}

#[test]
fn one_access_covers_several_registers_and_reserved_bytes_read_zero() {
    let set = set();
    assert_eq!(read(&set, 0, 4), 0x2211);
    assert_eq!(read(&set, 0, 8), 0xffff_0000_0000_2211);
    write(&set, 0, 2, 0xffff);
    assert_eq!(read(&set, 0, 2), 0x2f11);
}

#[test]
fn a_wide_register_is_written_in_halves_and_in_bytes() {
    let set = set();
    write(&set, 0x08, 4, 0x1111_1140);
    write(&set, 0x0c, 4, 0x2222_2222);
    assert_eq!(read(&set, 0x08, 8), 0x2222_2222_1111_1140);
    let seen = write(&set, 0x0d, 1, 0xee);
    assert_eq!(read(&set, 0x08, 8), 0x2222_ee22_1111_1140);
    assert_eq!(
        seen,
        [(
            'd',
            Write {
                old: 0x2222_2222_1111_1140,
                new: 0x2222_ee22_1111_1140,
                written: 0x0000_ee00_0000_0000,
                lanes: 0x0000_ff00_0000_0000,
            }
        )]
    );
    write(&set, 0x08, 8, u64::MAX);
    assert_eq!(read(&set, 0x08, 8), !0x3f);
}

#[test]
fn reading_clears_only_what_was_read() {
    let set = set();
    assert_eq!(read(&set, 0x06, 1), 0xff);
    assert_eq!(read(&set, 0x04, 4), 0xff00_0000);
    assert_eq!(read(&set, 0x04, 4), 0);
}

#[test]
fn ones_clear_and_commands_are_not_stored() {
    let set = set();
    write(&set, 0x10, 4, 0xffff_fff5);
    assert_eq!(read(&set, 0x10, 4), 0xf6);
    let seen = write(&set, 0x14, 1, 0x20);
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].0, seen[0].1.written, seen[0].1.new), ('f', 0x20, 0));
    assert_eq!(read(&set, 0x14, 1), 0);
    assert!(write(&set, 0x00, 1, 0xff).is_empty());
    set.reset();
    assert_eq!((read(&set, 0x10, 4), read(&set, 0x04, 4)), (0x7, 0xffff_0000));
}

#[test]
fn illegal_accesses_read_all_ones_and_are_counted() {
    let set = set();
    let illegal = [(0x09, 2), (0x01, 4), (0x20, 4), (0xfe, 4), (0x100, 1), (u64::MAX, 8), (0, 3)];
    for (n, (offset, len)) in illegal.into_iter().enumerate() {
        assert_eq!(read(&set, offset, len), u64::MAX >> (64 - 8 * len), "{offset:#x}");
        assert_eq!(set.illegal_accesses(), n as u64 + 1);
    }
    let mut none: [u8; 0] = [];
    set.read(0, &mut none, |_| {}, |_, _| {});
    assert!(write(&set, 0x20, 4, 1).is_empty());
}

#[test]
fn a_table_that_contradicts_itself_is_refused() {
    let new = |registers| RegisterSet::new("test", 16, 8, Holes::Zero, registers).unwrap_err();
    let width = new(vec![Register::new(0, "R", 0, 3, 0)]);
    assert_eq!(width, LayoutError::Width { name: "R", offset: 0, bytes: 3 });
    let place = LayoutError::Place { name: "S", offset: 4 };
    let overlap = vec![Register::new(0, "R", 0, 8, 0), Register::new(1, "S", 4, 4, 0)];
    assert_eq!(new(overlap), place);
    assert!(new(vec![Register::new(0, "R", 12, 8, 0)]).to_string().contains("0xc"));
    let bits = new(vec![Register::new(0, "R", 0, 1, 0).writable(0x100)]);
    assert_eq!(bits, LayoutError::Bits { name: "R", offset: 0 });
}

proptest! {
    /// Whatever is written, in whatever pieces, a read-only bit keeps its value.
    #[test]
    fn read_only_bits_never_change(
        writes in prop::collection::vec((0u64..0x20, 0usize..10, any::<u64>()), 0..50)
    ) {
        let set = set();
        for (offset, len, value) in writes {
            let data = [value.to_le_bytes(), value.to_le_bytes()].concat();
            set.write(offset, &data[..len], |_, _| {});
        }
        prop_assert_eq!(read(&set, 0, 1), 0x11);
        prop_assert_eq!(read(&set, 1, 1) & 0xf0, 0x20);
        prop_assert_eq!(read(&set, 8, 8) & 0x3f, 0);
        prop_assert_eq!(read(&set, 0x10, 4) & !0xf3, 4);
    }
}
