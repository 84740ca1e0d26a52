//! Files that describe hardware, of any text: register files, recipes of engines, register maps
//! of LitePCIe, simulated devices and their faults. What is accepted decodes and encodes any value.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vfio_dma::devices::litepcie::CsrMap;
use vfio_dma::devices::recipe::{Expression, Recipe};
use vfio_dma::registers::RegisterFile;
use vfio_dma_model::fault::FaultPlan;
use vfio_dma_model::tlp::TlpFault;
use vfio_dma_tools::rtl::describe;

fuzz_target!(|text: &str| {
    if let Ok(file) = RegisterFile::parse(text) {
        for register in (0..6).flat_map(|bar| file.of_bar(bar)) {
            for value in [0, 1, u64::MAX, 0x8000_0000_0000_0001, register.all_ones()] {
                for field in register.decode(value) {
                    let known = register.field(&field.name).expect("its own field");
                    let back = known.insert(value, field.value).expect("what it had fits");
                    assert_eq!(back, value, "{}.{}", register.name, field.name);
                }
            }
            let named = register.fields.iter().map(|field| (field.name.as_str(), "1"));
            let _ = (register.assign(0, named), register.whole(text));
        }
    }
    if let Ok(recipe) = Recipe::parse(text) {
        let _ = (recipe.limits(), recipe.has_source(), recipe.has_target());
    }
    let _ = (text.parse::<Expression>(), text.parse::<FaultPlan<TlpFault>>(), describe(text));
    if let Ok(map) = text.parse::<CsrMap>() {
        for (name, offset) in map.registers() {
            assert_eq!(map.offset(name).ok(), Some(offset), "{name}");
        }
        assert!(map.channels() <= 8);
    }
});
