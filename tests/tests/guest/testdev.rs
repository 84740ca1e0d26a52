//! pci-testdev.

use vfio_dma::devices::PciDriver;
use vfio_dma::devices::pci_testdev::{Access, PciTestdev};
use vfio_dma_tests::{address, vfio_dma};

use crate::support::{bind, open};

pub(crate) fn memory_and_port_bars_pass() {
    let testdev = PciTestdev::probe(open(address(3)), ()).unwrap();
    let results = testdev.run(500).unwrap();
    assert!(results.iter().all(|test| test.passed()), "{results:#?}");
    let find = |name: &str| results.iter().find(|test| test.name == name).expect(name);
    let memory = find("mmio-no-eventfd");
    assert_eq!((memory.bar, memory.access, memory.hits), (0, Access::Mapped, 500));
    let ports = find("portio-no-eventfd");
    assert_eq!((ports.bar, ports.access, ports.hits), (1, Access::Trapped, 500));
    for name in ["mmio-datamatch-eventfd", "portio-wildcard-eventfd"] {
        assert_eq!(find(name).hits, 0, "{name}");
    }
    let membar = testdev.membar().unwrap().expect("started with membar=16M");
    assert_eq!((membar.size, membar.mapped), (16 << 20, 16 << 20));
}

pub(crate) fn the_command_line_reports_them() {
    bind(address(3));
    let device = address(3).to_string();
    let said = vfio_dma(&["run", &device, "--writes", "10"]);
    assert_eq!(said.status, 0, "{said:#?}");
    assert!(said.out.contains("portio-no-eventfd") && said.out.contains("0 failed"), "{said:#?}");
    let said = vfio_dma(&["run", &device, "--json"]);
    assert!(said.out.contains("\"passed\": true"), "{said:#?}");
}
