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
        0..0x200_i64,
        Just(i64::MAX),
        Just(-1),
        Just(0xffff_ffff),
        0x3ff0..0x4010_i64,
        any::<i64>()
    ]
}

fn expression() -> impl Strategy<Value = String> {
    let first = prop_oneof![
        Just("source".to_owned()),
        Just("target".to_owned()),
        Just("length".to_owned()),
        number().prop_map(|n| n.to_string())
    ];
    let rest = proptest::collection::vec(
        (prop::sample::select(&["+", "-", "*", "/", "&", "|", "<<", ">>", "?"][..]), number()),
        0..3,
    );
    (first, rest).prop_map(|(first, rest)| {
        rest.into_iter().fold(first, |text, (sign, number)| format!("{text} {sign} {number}"))
    })
}

fn write() -> impl Strategy<Value = String> {
    (number(), 0..10_u8, expression(), 0..7_u8).prop_map(|(offset, width, value, bar)| {
        // Most are in BAR 0, which the model has.
        let bar = if bar < 5 { 0 } else { bar };
        format!("register = \"{offset}:{width}\"\nbar = {bar}\nvalue = \"{value}\"\n")
    })
}

fn recipe() -> impl Strategy<Value = String> {
    let writes = proptest::collection::vec(write(), 1..6);
    let wait = prop_oneof![
        (number(), number())
            .prop_map(|(at, value)| format!("register = \"{at}:1\"\nequals = {value}\n")),
        (prop::sample::select(&["intx", "msi", "msix"][..]), number())
            .prop_map(|(kind, vector)| format!("irq = \"{kind}\"\nvector = {vector}\n")),
        Just("irq = \"msix\"\n".to_owned()),
        Just("register = \"0\"\nequals = 0\n".to_owned()),
    ];
    let limits =
        (prop::option::of(number()), prop::option::of(number()), prop::option::of(number()));
    (writes, wait, limits).prop_map(|(writes, wait, (bits, most, alignment))| {
        let mut text = "[limits]\n".to_owned();
        for (name, value) in
            [("address-bits", bits), ("max-length", most), ("alignment", alignment)]
        {
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
    let field = ("[a-z]{1,3}", 0..70_u8, 0..70_u8, prop::option::of(number()));
    let register =
        ("[A-Z]{1,4}", number(), 0..10_u8, 0..8_u8, proptest::collection::vec(field, 0..4));
    proptest::collection::vec(register, 0..5).prop_map(|registers| {
        let mut text = String::new();
        for (name, offset, width, bar, fields) in registers {
            text += &format!(
                "[[register]]\nname = \"{name}\"\noffset = {offset}\nwidth = {width}\nbar = {bar}\n"
            );
            for (name, high, low, value) in fields {
                text +=
                    &format!("[[register.field]]\nname = \"{name}\"\nbits = \"{high}:{low}\"\n");
                text += &value
                    .map_or_else(String::new, |n| format!("values = {{ \"{n}\" = \"x\" }}\n"));
            }
        }
        text
    })
}

fn device() -> Device {
    Device::open(Embedded::new(IoatConfig::default()).unwrap().attach().unwrap()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn register_files_are_refused_or_name_what_can_be_read_or_not(text in register_file(), value: u64) {
        thread_local! {
            static DEVICE: Device = device();
        }
        let Ok(file) = RegisterFile::parse(&text) else { return Ok(()) };
        for register in file.of_bar(0) {
            let _ = DEVICE.with(|device| device.bar(0).unwrap().read_register(register));
            let _ = register.decode(value);
            let fields: Vec<(String, String)> =
                register.fields.iter().map(|f| (f.name.clone(), value.to_string())).collect();
            let _ = register.assign(value, fields.iter().map(|(a, b)| (&**a, &**b)));
            let _ = register.whole(&value.to_string());
        }
    }

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
