//! Several functions at once.

use std::collections::BTreeMap;

use super::{Binding, HostError, PciDeviceInfo, Result, Selector, Sysfs};
use crate::pci::Address;

impl Sysfs {
    /// The functions that are meant, each once, in the order of addresses.
    ///
    /// # Errors
    ///
    /// Fails when one of the selectors means none, and when sysfs cannot be read.
    pub fn select(&self, selectors: &[Selector]) -> Result<Vec<PciDeviceInfo>> {
        let all = if selectors.iter().all(|one| matches!(one, Selector::Function(_))) {
            Vec::new()
        } else {
            self.enumerate()?
        };
        let mut found = BTreeMap::new();
        for selector in selectors {
            let mut matching: Vec<PciDeviceInfo> = match selector {
                Selector::Function(address) => vec![self.device(*address)?],
                Selector::Id { vendor, device } => all
                    .iter()
                    .filter(|info| (info.vendor, info.device) == (*vendor, *device))
                    .cloned()
                    .collect(),
                Selector::Group(number) => all
                    .iter()
                    .filter(|info| info.group.as_ref().is_some_and(|g| g.number == *number))
                    .filter(|info| !info.class.is_pci_bridge())
                    .cloned()
                    .collect(),
            };
            if matching.is_empty() {
                return Err(HostError::NoMatch { selector: *selector });
            }
            found.extend(matching.drain(..).map(|info| (info.address, info)));
        }
        Ok(found.into_values().collect())
    }

    /// Binds several functions to vfio-pci, all or none: nothing is changed when the host uses
    /// one of them, and when binding one fails, those before it are given back.
    ///
    /// With `in_use`, also those that the host uses, as [`Sysfs::bind_in_use`] does.
    ///
    /// # Errors
    ///
    /// As [`Sysfs::bind`].
    pub fn bind_all(&self, addresses: &[Address], in_use: bool) -> Result<Vec<Binding>> {
        if !in_use {
            for address in addresses {
                self.check_not_in_use(*address)?;
            }
        }
        let mut bindings: Vec<Binding> = Vec::new();
        for address in addresses {
            match self.bind_in_use(*address) {
                Ok(binding) => bindings.push(binding),
                Err(error) => {
                    for binding in bindings.iter().rev() {
                        if let Err(error) = self.restore(binding) {
                            log::warn!("{error}");
                        }
                    }
                    return Err(error);
                }
            }
        }
        Ok(bindings)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;

    fn machine() -> (Fake, [Address; 3]) {
        let fake = Fake::new();
        fake.register("vfio-pci", &[]);
        let first = fake.device("0000:00:05.0", 0x1234, 0x11e8, Some("edu"), Some(3));
        let second = fake.device("0000:00:06.0", 0x1234, 0x11e8, None, Some(4));
        let third = fake.device("0000:00:07.0", 0x1b36, 0x0005, Some("stub"), Some(3));
        (fake, [first, second, third])
    }

    #[test]
    fn each_is_selected_once_in_order() {
        let (fake, [first, second, third]) = machine();
        let select = |texts: &[&str]| {
            let selectors: Vec<_> = texts.iter().map(|text| text.parse().unwrap()).collect();
            let found = fake.sysfs().select(&selectors)?;
            Ok::<Vec<Address>, HostError>(found.iter().map(|info| info.address).collect())
        };
        assert_eq!(select(&["1234:11e8"]).unwrap(), [first, second]);
        assert_eq!(select(&["group:3", "0000:00:05.0"]).unwrap(), [first, third]);
        let error = select(&["0000:00:05.0", "dead:beef"]).unwrap_err().to_string();
        assert!(error.contains("dead:beef"), "{error}");
    }

    #[test]
    fn several_are_bound_or_none() {
        let (fake, [first, second, third]) = machine();
        let sysfs = fake.sysfs();
        assert_eq!(sysfs.bind_all(&[first, second], false).unwrap().len(), 2);
        for address in [first, second] {
            sysfs.unbind(address).unwrap();
        }
        // Nothing can be loaded or written for the last one.
        fake.fail("stub/unbind", libc::EIO);
        assert!(sysfs.bind_all(&[first, third], false).is_err());
        assert_eq!(sysfs.tree().driver(first).unwrap().as_deref(), Some("edu"));
        assert_eq!(sysfs.tree().driver(third).unwrap().as_deref(), Some("stub"));
    }
}
