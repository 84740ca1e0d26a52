//! Register files and recipes that make no sense, on a card: errors, never a panic.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, and so do its helpers")]

use std::cell::Cell;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use vfio_dma::device::Device;
use vfio_dma::devices::recipe::{LoopbackOptions, Recipe};
use vfio_dma::registers::{RegisterFile, Target};
use vfio_dma_model::embedded::Embedded;
use vfio_dma_model::ioat::IoatConfig;

/// Numbers near the edges, and others.
fn number() -> impl Strategy<Value = i64> {
    prop_oneof![
        20 => 0..0x200_i64,
        1 => Just(i64::MAX),
        1 => Just(-1),
        2 => Just(0xffff_ffff),
        2 => 0x3ff0..0x4010_i64,
        1 => any::<i64>(),
    ]
}

fn expression() -> impl Strategy<Value = String> {
    let names = prop::sample::select(&["source", "target", "length"][..]);
    let first = prop_oneof![
        3 => names.prop_map(str::to_owned),
        2 => number().prop_map(|n| n.to_string()),
    ];
    let signs = prop::sample::select(&["+", "-", "*", "/", "&", "|", "<<", ">>"][..]);
    let rest = proptest::collection::vec((signs, number()), 0..3);
    (first, rest).prop_map(|(first, rest)| {
        rest.into_iter().fold(first, |text, (sign, number)| format!("{text} {sign} {number}"))
    })
}

/// A register, most of them aligned and in BAR 0, which the model has.
fn register() -> impl Strategy<Value = (String, u8)> {
    let width = prop::sample::select(&[1_i64, 2, 4, 4, 8, 8, 3][..]);
    let bar = prop_oneof![20 => Just(0_u8), 1 => 0..8_u8];
    (number(), width, 0..20_u8, bar).prop_map(|(number, width, askew, bar)| {
        let offset = number.saturating_mul(width).saturating_add((askew == 0).into());
        (format!("\"{offset}:{width}\""), bar)
    })
}

fn write() -> impl Strategy<Value = String> {
    (register(), expression()).prop_map(|((register, bar), value)| {
        format!("register = {register}\nbar = {bar}\nvalue = \"{value}\"\n")
    })
}

fn recipe() -> impl Strategy<Value = String> {
    let writes = proptest::collection::vec(write(), 1..6);
    let kinds = prop::sample::select(&["intx", "msi", "msix"][..]);
    let wait = prop_oneof![
        (register(), number()).prop_map(|((register, bar), value)| {
            format!("register = {register}\nbar = {bar}\nequals = {value}\n")
        }),
        (kinds, number())
            .prop_map(|(kind, vector)| format!("irq = \"{kind}\"\nvector = {vector}\n")),
        Just("irq = \"msix\"\n".to_owned()),
        Just("register = \"0:1\"\nequals = 1\n".to_owned()),
    ];
    let bits = prop::option::of(prop_oneof![9 => 12..65_i64, 1 => number()]);
    let most = prop::option::of(prop_oneof![9 => 64..9000_i64, 1 => number()]);
    let alignment = prop::option::of(prop_oneof![
        9 => (0..8_u32).prop_map(|bit| 1_i64 << bit),
        1 => number(),
    ]);
    (writes, wait, (bits, most, alignment)).prop_map(|(writes, wait, (bits, most, alignment))| {
        let mut text = "[limits]\n".to_owned();
        let limits = [("address-bits", bits), ("max-length", most), ("alignment", alignment)];
        for (name, value) in limits {
            text += &value.map_or_else(String::new, |value| format!("{name} = {value}\n"));
        }
        text += "[[step]]\ntimeout-ms = 1\n";
        for write in writes {
            text += &format!("[[step.write]]\n{write}");
        }
        text + "[step.wait]\n" + &wait
    })
}

fn register_file() -> impl Strategy<Value = String> {
    let value = prop::option::of(prop_oneof![4 => 0..2_i64, 1 => number()]);
    let field = ("[a-z]{1,3}", 0..40_u8, 0..40_u8, value);
    let fields = proptest::collection::vec(field, 0..3);
    let width = prop::sample::select(&[1_i64, 2, 4, 4, 8, 3][..]);
    let register = ("[A-Z]{1,4}", number(), width, 0..7_u8, fields);
    proptest::collection::vec(register, 0..4).prop_map(|registers| {
        let mut text = String::new();
        for (name, number, width, bar, fields) in registers {
            let offset = number.saturating_mul(width);
            text += &format!("[[register]]\nname = \"{name}\"\noffset = {offset}\n");
            text += &format!("width = {width}\nbar = {}\n", if bar < 6 { 0 } else { bar });
            for (name, high, low, value) in fields {
                text += &format!("[[register.field]]\nname = \"{name}\"\n");
                text += &format!("bits = \"{high}:{low}\"\n");
                let value = value.map(|n| format!("values = {{ \"{n}\" = \"x\" }}\n"));
                text += &value.unwrap_or_default();
            }
        }
        text
    })
}

fn device() -> Device {
    Device::open(Embedded::new(IoatConfig::default()).unwrap().attach().unwrap()).unwrap()
}

#[test]
fn register_files_are_refused_or_name_what_can_be_accessed_or_not() {
    let config =
        ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() };
    let device = device();
    let bar = device.bar(0).unwrap();
    let (understood, read, outside) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let count = |counter: &Cell<u32>| counter.set(counter.get() + 1);
    let outcome = TestRunner::new(config).run(&(register_file(), any::<u64>()), |(text, value)| {
        let Ok(file) = RegisterFile::parse(&text) else { return Ok(()) };
        count(&understood);
        for register in file.of_bar(0) {
            count(if bar.read_register(register).is_ok() { &read } else { &outside });
            let _ = register.decode(value);
            let fields: Vec<(String, String)> =
                register.fields.iter().map(|f| (f.name.clone(), value.to_string())).collect();
            let _ = register.assign(value, fields.iter().map(|(a, b)| (&**a, &**b)));
            let _ = register.whole(&value.to_string());
        }
        Ok(())
    });
    outcome.unwrap();
    let counts = [understood, read, outside].map(|counter| counter.get());
    assert!(counts.iter().all(|count| *count > 100), "{counts:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn places_are_refused_or_understood(text in "[0-9a-zA-Z:._@-]{0,12}") {
        let _ = text.parse::<Target>();
    }
}

/// Recipes that are understood run on the model; there are some of every kind.
#[test]
fn recipes_end_in_an_error_or_a_verdict() {
    let config =
        ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() };
    let (understood, ended, failed) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let count = |counter: &Cell<u32>| counter.set(counter.get() + 1);
    let outcome = TestRunner::new(config).run(&recipe(), |text| {
        let Ok(recipe) = Recipe::parse(&text) else { return Ok(()) };
        count(&understood);
        // The model is new each time: a recipe may leave it halted.
        let mut device = device();
        let options = LoopbackOptions::new(8192);
        match recipe.run(&mut device, &options, &AtomicBool::new(false)) {
            Ok(_) => count(&ended),
            Err(_) => count(&failed),
        }
        Ok(())
    });
    outcome.unwrap();
    let counts = [understood, ended, failed].map(|counter| counter.get());
    assert!(counts[0] > 100 && counts[1] > 0 && counts[2] > 50, "{counts:?}");
}
