//! `vfio-dma irq`: whether interrupts arrive.

use serde_json::Value;
use vfio_dma_tests::{Said, address, vfio_dma};

use crate::support::{bind, refused};

/// The network card of the guest: 5 vectors of MSI-X.
const CARD: u8 = 4;

fn works(args: &[&str]) -> Said {
    let said = vfio_dma(args);
    assert_eq!(said.status, 0, "{args:?}: {said:#?}");
    said
}

pub(crate) fn the_kernel_triggers_each_vector_of_each_kind() {
    let (edu, card) = (address(0).to_string(), address(CARD).to_string());
    bind(address(0));
    bind(address(CARD));
    let said = works(&["irq", &edu]);
    assert!(said.out.contains("MSI    1 vector     loopback: 1 of 1 arrived"), "{said:#?}");
    assert!(said.out.contains("INTx   1 vector     loopback: 1 of 1 arrived"), "{said:#?}");
    assert!(said.out.contains("MSI-X  no vectors"), "{said:#?}");
    let said = works(&["irq", &card, "--json"]);
    let json: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(json["kinds"][0]["kind"], "MSI-X");
    assert_eq!(json["kinds"][0]["vectors"], 5);
    assert_eq!(json["kinds"][0]["loopback"]["arrived"], 5, "{json:#}");
    assert!(json["kinds"][0]["loopback"]["median_ns"].as_u64().unwrap() > 0);
    let said = works(&["irq", &card, "--kind", "msix", "--vectors", "2"]);
    assert!(said.out.contains("loopback: 2 of 2 arrived"), "{said:#?}");
    assert!(!said.out.contains("MSI    1 vector     loopback"), "{said:#?}");
}

pub(crate) fn an_interrupt_of_the_card_is_waited_for() {
    let edu = address(0).to_string();
    bind(address(0));
    for (kind, name) in [("msi", "MSI"), ("intx", "INTx")] {
        let said = works(&["irq", &edu, "--kind", kind, "--wait", "20", "--raise", "0:0x60=1"]);
        assert!(said.out.contains(&format!("{name} vector 0 fired once")), "{said:#?}");
    }
    let said = works(&["irq", &edu, "--wait", "20", "--raise", "0:0x60=1", "--json"]);
    let json: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(json["waited"]["kind"], "MSI", "the best that there is");
    assert_eq!(json["waited"]["fired"][0][0], 0);
    // Nothing comes: whose fault it is.
    refused(
        &["irq", &edu, "--wait", "1"],
        &["no interrupt on 1 MSI vectors", "kernel's part works"],
    );
}

pub(crate) fn rates_are_shown_live() {
    let edu = address(0).to_string();
    bind(address(0));
    let said = works(&["irq", &edu, "--watch", "--for", "3", "--raise", "0:0x60=1"]);
    let lines: Vec<&str> = said.out.lines().collect();
    assert!(lines[0].ends_with("1 MSI vectors") && lines.len() >= 3, "{said:#?}");
    assert!(lines[1..].iter().any(|line| line.contains("  0: 1/s")), "{said:#?}");
}
