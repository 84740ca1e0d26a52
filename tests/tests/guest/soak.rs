//! The soak, inside a guest, through the kernel's VFIO.

use serde_json::Value;
use vfio_dma_tests::{address, vfio_dma};

use crate::support::bind;

/// Soaks the guest's first device, and asserts that nothing is wrong.
fn soak(args: &[&str]) -> Value {
    bind(address(0));
    let device = address(0).to_string();
    let said = vfio_dma(&[&["soak", &device, "--seed", "4", "--json"], args].concat());
    println!("{}{}", said.out, said.err);
    assert_eq!(said.status, 0, "{said:#?}");
    let json: Value = serde_json::from_str(&said.out).unwrap();
    for field in ["wrong_bytes", "wrong_operations", "unexplained_failures"] {
        assert_eq!(json[field], 0, "{field}: {json:#}");
    }
    assert_eq!(json["passed"], true, "{json:#}");
    assert_eq!(json["leaks"]["dma_mappings"], 0, "{json:#}");
    assert!(json["bytes_verified"].as_u64().unwrap() > 0, "{json:#}");
    assert!(json["rounds"].as_u64().unwrap() > 1, "{json:#}");
    json
}

fn some(json: &Value, fields: &[&str]) {
    for field in fields {
        assert!(json[field].as_u64().unwrap() > 0, "{field}: {json:#}");
    }
}

pub(crate) fn ioat_is_soaked() {
    let json = soak(&["--for", "12s", "--max-size", "64K"]);
    some(&json, &["copies", "fills", "slot_operations", "placed_contiguous", "placed_scattered"]);
    assert_eq!((&json["driver"], &json["channels"]), (&"ioat".into(), &2.into()));
}

pub(crate) fn edu_is_soaked() {
    // 100 ms for each piece, one way.
    let json = soak(&["--for", "16s"]);
    some(&json, &["copies", "succeeded"]);
    assert_eq!(json["driver"], "edu");
    let device = address(0).to_string();
    let refused = vfio_dma(&["soak", &device, "--ring", "16"]);
    assert_eq!(refused.status, 2, "{refused:#?}");
    assert!(refused.err.contains("--ring is for ioat and nvme"), "{refused:#?}");
}

/// The drive's image is compared on the host when the guest has ended: nothing is written.
pub(crate) fn nvme_is_soaked() {
    let json = soak(&["--for", "12s"]);
    some(&json, &["reads", "succeeded", "placed_contiguous", "placed_scattered"]);
    assert_eq!((&json["driver"], &json["channels"]), (&"nvme".into(), &4.into()));
}
