//! A BAR of a function that nobody opens.

use std::sync::Arc;

use super::{Bar, Result};
use crate::backend::{Region, Resource};
use crate::events::Events;
use crate::host::Sysfs;
use crate::pci::Address;

impl Bar {
    /// Opens BAR `index` (0 to 5) of a function through sysfs, whatever its driver is: the
    /// function is neither taken from its driver nor reset, as opening it through VFIO does.
    ///
    /// Memory is mapped; I/O ports are accessed through the kernel, by 1, 2 or 4 bytes. The
    /// function's driver accesses the same registers: a write, and a read that has side effects,
    /// can disturb it. Without `writable` the mapping cannot be written, and [`Bar::write`]
    /// fails.
    ///
    /// The kernel does not take the mapping away when the function is removed: it leads to where
    /// the BAR was, and something else may come to be there.
    ///
    /// # Errors
    ///
    /// Fails when there is no such function or BAR, and when this process may not open or map
    /// it: that takes root, no lockdown of the kernel, and a driver that does not have the BAR
    /// for itself.
    pub fn through_sysfs(
        sysfs: &Sysfs,
        address: Address,
        index: u8,
        writable: bool,
    ) -> Result<Bar> {
        let resource = Resource::open(sysfs, address, index, writable)?;
        let events = Events::new(address.to_string())?;
        Bar::of(Arc::new(resource), Region::Bar(index), events, &Arc::default(), writable)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::mmio::MmioError;

    const BDF: &str = "0000:00:05.0";

    /// A function with a memory BAR that begins in the middle of a page, and one of ports.
    fn tree(root: &Path) -> (Sysfs, Address) {
        let dir = root.join("bus/pci/devices").join(BDF);
        fs::create_dir_all(&dir).unwrap();
        for name in ["vendor", "device", "subsystem_vendor", "subsystem_device"] {
            fs::write(dir.join(name), "0x1234\n").unwrap();
        }
        fs::write(dir.join("class"), "0x00ff00\n").unwrap();
        fs::write(dir.join("revision"), "0x10\n").unwrap();
        let text = "0xfea00400 0xfea005ff 0x40200\n0xc000 0xc01f 0x40101\n";
        fs::write(dir.join("resource"), text).unwrap();
        fs::write(dir.join("resource0"), (0..=255).cycle().take(4096).collect::<Vec<u8>>())
            .unwrap();
        fs::write(dir.join("resource1"), [7; 32]).unwrap();
        (Sysfs::at(root), BDF.parse().unwrap())
    }

    #[test]
    fn a_bar_of_less_than_a_page_is_the_part_of_its_page() {
        let root = tempfile::tempdir().unwrap();
        let (sysfs, address) = tree(root.path());
        let bar = Bar::through_sysfs(&sysfs, address, 0, true).unwrap();
        assert_eq!((bar.size(), bar.read::<u8>(3).unwrap()), (512, 3));
        bar.write(0x10, 0x1122_3344_u32).unwrap();
        let file = root.path().join("bus/pci/devices").join(BDF).join("resource0");
        assert_eq!(fs::read(file).unwrap()[0x410..0x414], [0x44, 0x33, 0x22, 0x11]);
        for offset in [509, 512, u64::MAX] {
            assert!(bar.read::<u32>(offset).is_err(), "{offset}");
        }
    }

    #[test]
    fn ports_are_read_and_written_by_their_widths() {
        let root = tempfile::tempdir().unwrap();
        let (sysfs, address) = tree(root.path());
        let bar = Bar::through_sysfs(&sysfs, address, 1, true).unwrap();
        assert_eq!(bar.mapped().count(), 0);
        assert_eq!(bar.read::<u16>(2).unwrap(), 0x0707);
        bar.write(4, 0xff_u8).unwrap();
        assert_eq!(bar.read::<u32>(4).unwrap(), 0x0707_07ff);
        let error = bar.read::<u64>(0).unwrap_err().to_string();
        assert!(error.contains("1, 2 or 4 bytes"), "{error}");
    }

    #[test]
    fn what_was_opened_to_be_read_is_not_written() {
        let root = tempfile::tempdir().unwrap();
        let (sysfs, address) = tree(root.path());
        for index in [0, 1] {
            let bar = Bar::through_sysfs(&sysfs, address, index, false).unwrap();
            assert!(bar.read::<u32>(0).is_ok());
            let error = bar.write(0, 1_u32).unwrap_err();
            assert!(matches!(error, MmioError::ReadOnly { .. }), "{error}");
        }
        let error = Bar::through_sysfs(&sysfs, address, 2, false).unwrap_err().to_string();
        assert_eq!(error, "the device has no BAR2");
    }
}
