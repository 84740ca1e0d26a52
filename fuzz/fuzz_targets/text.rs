//! Grammars without a target of their own: PCI addresses and sizes. What is accepted comes back
//! the same after it was printed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vfio_dma::pci::Address;
use vfio_dma_tools::cli::size::parse_size;

fuzz_target!(|text: &str| {
    if let Ok(address) = text.parse::<Address>() {
        assert_eq!(address.to_string().parse(), Ok(address), "{text:?}");
        assert!(address.device() < 32 && address.function() < 8, "{text:?}");
    }
    if let Ok(size) = parse_size(text) {
        let printed = parse_size(&size.to_string()).ok();
        assert_eq!(printed, Some(size), "{text:?}");
    }
});
