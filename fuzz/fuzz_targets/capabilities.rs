//! Configuration space of any bytes to capabilities: no panic, no endless list.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vfio_dma::pci::{Capabilities, ConfigSpace};

fuzz_target!(|data: &[u8]| {
    let config = ConfigSpace::new(data);
    // Every accessor, for a header of any length.
    let _ = (config.check_present(), config.class(), config.command(), config.status());
    let _ = (config.size(), config.header_layout(), config.revision_id());
    if let Ok(capabilities) = Capabilities::read(&config) {
        assert!(capabilities.standard.len() <= 64, "{capabilities:?}");
        assert!(capabilities.extended.len() <= 1024, "{capabilities:?}");
        let _ = (capabilities.msi(), capabilities.msi_x(), capabilities.pci_express());
        let _ = format!("{capabilities:?}");
    }
});
