//! Links and translation caches, as text: no panic, and figures that make sense.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vfio_dma_model::link::{IoTlbConfig, LinkConfig};

fuzz_target!(|text: &str| {
    if let Ok(link) = text.parse::<LinkConfig>() {
        assert!(link.raw_gbps().is_finite() && link.raw_gbps() > 0.0, "{text:?}");
        assert!(link.tlp_gbps() > 0.0 && link.tlp_gbps() <= link.raw_gbps(), "{text:?}");
        assert_eq!(link.to_string().parse::<LinkConfig>().ok(), Some(link), "{text:?}");
    }
    let _ = text.parse::<IoTlbConfig>();
});
