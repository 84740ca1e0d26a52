//! What sysfs says of a function besides its identity: link, path, errors, power, resets,
//! virtual functions.

use std::path::{Path, PathBuf};

use super::{ConfigFile, PciDeviceInfo, Result, Sysfs};
use crate::pci::layout::Layout;
use crate::pci::sysfs::{link_name, read_text};
use crate::pci::{Address, ConfigAccess as _, ConfigSpace};

/// Everything that can be read of a function without opening it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Inspection {
    /// Identity, driver, group and BARs.
    pub info: PciDeviceInfo,
    /// Its configuration space.
    pub config: ConfigSpace<ConfigFile>,
    /// What configuration space is made of, as far as it is visible.
    pub layout: Layout,
    /// Whether all of configuration space is visible: without `CAP_SYS_ADMIN` only the header is.
    pub is_whole: bool,
    /// Its PCI Express link; none where it has no link.
    pub link: Option<Link>,
    /// The function and the bridges above it, up to the root.
    pub path: Vec<Hop>,
    /// Errors that the kernel counted (AER); none where it counts none.
    pub errors: Option<Errors>,
    /// Its power state.
    pub power: Power,
    /// Ways to reset it alone, in the order in which the kernel tries them; none where the
    /// kernel knows no way, or does not tell (before Linux 5.15).
    pub reset_methods: Option<Vec<String>>,
    /// Its virtual functions; none where it can have none.
    pub virtual_functions: Option<VirtualFunctions>,
    /// The physical function that it is a virtual function of.
    pub physical_function: Option<Address>,
}

/// A PCI Express link.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Link {
    /// As it is; none while the link is down.
    pub current: Option<LinkRate>,
    /// What the function can.
    pub card: Option<LinkRate>,
    /// The port above it.
    pub slot: Option<Address>,
    /// What that port can.
    pub slot_rate: Option<LinkRate>,
}

/// Speed and width of a link.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct LinkRate {
    /// Transfers per second and lane, in units of 10^9.
    pub gigatransfers: f64,
    /// Lanes.
    pub lanes: u32,
}

impl Link {
    /// What both ends of the link can: the lower speed and the lower width.
    #[must_use]
    pub fn possible(&self) -> Option<LinkRate> {
        let card = self.card?;
        let slot = self.slot_rate.unwrap_or(card);
        Some(LinkRate {
            gigatransfers: card.gigatransfers.min(slot.gigatransfers),
            lanes: card.lanes.min(slot.lanes),
        })
    }

    /// Whether the link is slower or narrower than both ends can.
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        match (self.possible(), self.current) {
            (Some(can), Some(is)) => is.gigatransfers < can.gigatransfers || is.lanes < can.lanes,
            (Some(_), None) => true,
            (None, _) => false,
        }
    }
}

/// A function on the way from a card to the root.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Hop {
    /// The function.
    pub address: Address,
    /// Largest payload that it can, in bytes; none where it has no PCI Express capability, or
    /// that is not visible.
    pub max_payload_supported: Option<u32>,
    /// Largest payload that it is set to, in bytes.
    pub max_payload: Option<u32>,
    /// Largest read request that it is set to, in bytes.
    pub max_read_request: Option<u32>,
}

/// Errors that the kernel counted since the function was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Errors {
    /// Those that hardware corrected: name and count, those that occurred.
    pub correctable: Vec<(String, u64)>,
    /// Those that lost a transaction.
    pub non_fatal: Vec<(String, u64)>,
    /// Those that lost the link.
    pub fatal: Vec<(String, u64)>,
}

/// A function's power.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Power {
    /// The state as the kernel knows it: `D0`, `D3hot`, `D3cold`, `unknown`.
    pub state: Option<String>,
    /// Its runtime state: `active`, `suspended`.
    pub runtime: Option<String>,
    /// `on`: it is kept in D0; `auto`: the kernel may suspend it.
    pub control: Option<String>,
    /// Whether the kernel may take its power.
    pub d3cold_allowed: Option<bool>,
}

/// SR-IOV of a physical function.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct VirtualFunctions {
    /// How many it can have.
    pub total: u32,
    /// How many it has.
    pub enabled: u32,
    /// Those that there are.
    pub functions: Vec<Address>,
}

impl Sysfs {
    /// Reads everything that can be read of a function without opening it.
    ///
    /// # Errors
    ///
    /// Fails when there is no such function, when it does not answer, and when an attribute
    /// that every function has cannot be read.
    pub fn inspect(&self, address: Address) -> Result<Inspection> {
        let info = self.device(address)?;
        let dir = self.tree().device_dir(address)?;
        let config = self.config(address)?;
        let layout = Layout::read(&config)?;
        let is_whole = config.access().size().is_ok_and(|size| size == config.access().whole());
        let path = self.path(address, &dir);
        let attribute = |name: &str| read_text(&dir.join(name)).ok();
        let methods = attribute("reset_method");
        let physical = link_name(&dir.join("physfn"))?;
        Ok(Inspection {
            link: self.link(&dir, path.get(1).map(|hop| hop.address)),
            errors: errors(&dir),
            power: Power {
                state: attribute("power_state"),
                runtime: attribute("power/runtime_status"),
                control: attribute("power/control"),
                d3cold_allowed: attribute("d3cold_allowed").map(|text| text == "1"),
            },
            reset_methods: methods
                .map(|text| text.split_ascii_whitespace().map(str::to_owned).collect()),
            virtual_functions: virtual_functions(&dir)?,
            physical_function: physical.and_then(|name| name.parse().ok()),
            info,
            config,
            layout,
            is_whole,
            path,
        })
    }

    fn link(&self, dir: &Path, above: Option<Address>) -> Option<Link> {
        let rate = |dir: &Path, which: &str| {
            let speed = read_text(&dir.join(format!("{which}_link_speed"))).ok()?;
            let width = read_text(&dir.join(format!("{which}_link_width"))).ok()?;
            link_rate(&speed, &width)
        };
        let card = rate(dir, "max");
        let current = rate(dir, "current");
        // The files are there for every PCI Express function, also for those without a link.
        card?;
        let slot = above?;
        let above = self.tree().device_dir(slot).ok()?;
        Some(Link { current, card, slot: Some(slot), slot_rate: rate(&above, "max") })
    }

    /// The function and the bridges above it: in sysfs a function's directory is in that of
    /// the bridge above.
    fn path(&self, address: Address, dir: &Path) -> Vec<Hop> {
        let mut addresses = vec![address];
        let real: PathBuf = dir.canonicalize().unwrap_or_default();
        let names = real.ancestors().skip(1).map_while(|dir| dir.file_name()?.to_str());
        addresses.extend(names.map_while(|name| name.parse::<Address>().ok()));
        addresses.into_iter().map(|address| self.hop(address)).collect()
    }

    fn hop(&self, address: Address) -> Hop {
        let sizes = || {
            let config = self.config(address).ok()?;
            let layout = Layout::read(&config).ok()?;
            let size = |register, field| {
                let number = layout.value(&config, register, field).ok().flatten()?;
                // 128 bytes as powers of two; above 5 the number is reserved.
                (number <= 5).then(|| 128_u32 << number)
            };
            Some((
                size("EXP_DEVCAP", "max-payload"),
                size("EXP_DEVCTL", "max-payload"),
                size("EXP_DEVCTL", "max-read-request"),
            ))
        };
        let (max_payload_supported, max_payload, max_read_request) = sizes().unwrap_or_default();
        Hop { address, max_payload_supported, max_payload, max_read_request }
    }
}

/// `8.0 GT/s PCIe` and `4`; none for `Unknown`, 0 and 255, which stand for no link.
fn link_rate(speed: &str, width: &str) -> Option<LinkRate> {
    let gigatransfers = speed.split_ascii_whitespace().next()?.parse().ok()?;
    let lanes = width.parse().ok().filter(|lanes| (1..=32).contains(lanes))?;
    Some(LinkRate { gigatransfers, lanes })
}

fn errors(dir: &Path) -> Option<Errors> {
    let counts = |kind: &str| {
        let text = read_text(&dir.join(format!("aer_dev_{kind}"))).ok()?;
        let counted = text.lines().filter_map(|line| {
            let (name, count) = line.rsplit_once(' ')?;
            let count: u64 = count.parse().ok()?;
            (count > 0 && !name.starts_with("TOTAL_")).then(|| (name.to_owned(), count))
        });
        Some(counted.collect())
    };
    Some(Errors {
        correctable: counts("correctable")?,
        non_fatal: counts("nonfatal")?,
        fatal: counts("fatal")?,
    })
}

fn virtual_functions(dir: &Path) -> Result<Option<VirtualFunctions>> {
    let number = |name: &str| read_text(&dir.join(name)).ok()?.parse().ok();
    let Some(total) = number("sriov_totalvfs") else { return Ok(None) };
    let enabled: u32 = number("sriov_numvfs").unwrap_or(0);
    let mut functions = Vec::new();
    for index in 0..enabled {
        let name = link_name(&dir.join(format!("virtfn{index}")))?;
        functions.extend(name.and_then(|name| name.parse::<Address>().ok()));
    }
    Ok(Some(VirtualFunctions { total, enabled, functions }))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::fake::Fake;
    use super::*;

    #[test]
    fn what_is_there_is_told_and_what_is_not_is_none() {
        let fake = Fake::new();
        let address = fake.device("0000:01:00.0", 0x1234, 0x11e8, None, None);
        let dir = fake.path("bus/pci/devices/0000:01:00.0");
        let found = fake.sysfs().inspect(address).unwrap();
        assert!(found.link.is_none() && found.errors.is_none() && found.reset_methods.is_none());
        assert_eq!((found.path.len(), found.virtual_functions), (1, None));
        assert_eq!(found.layout.structures.len(), 1);
        for (name, text) in [
            ("reset_method", "flr bus\n"),
            ("power_state", "D0\n"),
            ("d3cold_allowed", "1\n"),
            ("sriov_totalvfs", "7\n"),
            ("sriov_numvfs", "0\n"),
            ("aer_dev_correctable", "RxErr 0\nBadTLP 3\nTOTAL_ERR_COR 3\n"),
            ("aer_dev_fatal", "DLP 0\nTOTAL_ERR_FATAL 0\n"),
            ("aer_dev_nonfatal", "Undefined x\n"),
        ] {
            fs::write(dir.join(name), text).unwrap();
        }
        let found = fake.sysfs().inspect(address).unwrap();
        assert_eq!(found.reset_methods.unwrap(), ["flr", "bus"]);
        assert_eq!(found.errors.unwrap().correctable, [("BadTLP".to_owned(), 3)]);
        assert_eq!(found.power.d3cold_allowed, Some(true));
        assert_eq!(found.virtual_functions.unwrap().total, 7);
    }

    #[test]
    fn a_link_below_what_both_ends_can_is_degraded() {
        let rate = |text: &str, lanes: &str| link_rate(text, lanes);
        let link = |current| Link {
            current,
            card: rate("16.0 GT/s PCIe", "16"),
            slot: None,
            slot_rate: rate("8.0 GT/s PCIe", "16"),
        };
        assert!(!link(rate("8.0 GT/s PCIe", "16")).is_degraded());
        assert!(link(rate("8.0 GT/s PCIe", "8")).is_degraded());
        assert!(link(rate("2.5 GT/s PCIe", "16")).is_degraded());
        assert!(link(rate("Unknown", "0")).is_degraded(), "the link is down");
        assert_eq!(rate("Unknown", "255"), None);
        assert_eq!(rate("8.0 GT/s PCIe", "255"), None);
    }
}
