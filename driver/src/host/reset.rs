//! Resets from the host's side: of a function, of a slot, of all that is on a bus.
//!
//! The attributes are described in the kernel's `Documentation/ABI/testing/sysfs-bus-pci`.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use super::comeback::{Comeback, Returned};
use super::{FunctionStatus, HostError, ResetScope, Result, Sysfs};
use crate::pci::sysfs::{names, read_text};
use crate::pci::{Address, layout};

/// How long the reset of a bus is asserted: at least 1 ms (PCI-to-PCI Bridge 1.2, 11.1.5).
const RESET_TIME: Duration = Duration::from_millis(2);
/// What a link is given before anything is asked of the card (PCIe Base 4.0, 6.6.1).
const RECOVERY: Duration = Duration::from_millis(100);
/// How long a slot is without power.
const POWER_OFF_TIME: Duration = Duration::from_secs(1);

/// How a reset is made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResetWay {
    /// The kernel resets the function, by the first of these methods that works.
    Kernel {
        /// `flr`, `af_flr`, `pm`, `bus`, `device_specific`, `acpi`.
        methods: Vec<String>,
    },
    /// The kernel resets all that is below a bridge, and restores it.
    Subordinate {
        /// The bridge.
        port: Address,
    },
    /// The functions are removed, the bridge resets its bus, and they are found again.
    Pulse {
        /// The bridge.
        port: Address,
    },
    /// The kernel switches the power of the slot off and on.
    Power {
        /// The slot's directory in sysfs.
        slot: PathBuf,
    },
}

/// A reset that was not made yet: what it would hit.
#[derive(Debug)]
#[non_exhaustive]
pub struct ResetPlan {
    /// The function.
    pub address: Address,
    /// How much is reset.
    pub scope: ResetScope,
    /// How.
    pub way: ResetWay,
    /// Every function that is reset, with who uses it.
    pub hits: Vec<FunctionStatus>,
}

impl ResetPlan {
    /// The functions that are hit besides the one that is meant.
    pub fn others(&self) -> impl Iterator<Item = &FunctionStatus> {
        self.hits.iter().filter(|hit| hit.info.address != self.address)
    }
}

impl Sysfs {
    /// Finds out how a reset would be made and what it would hit; nothing is changed.
    ///
    /// # Errors
    ///
    /// Fails when there is no such function, and [`HostError::NoReset`] when there is no way to
    /// reset this much of it.
    pub fn plan_reset(&self, address: Address, scope: ResetScope) -> Result<ResetPlan> {
        let dir = self.tree().device_dir(address)?;
        let none = |reason: String| HostError::NoReset { address, scope, reason };
        let methods: Vec<String> = read_text(&dir.join("reset_method"))
            .map(|text| text.split_ascii_whitespace().map(str::to_owned).collect())
            .unwrap_or_default();
        let (way, hits) = match scope {
            ResetScope::Function => {
                if !dir.join("reset").exists() {
                    return Err(none("the kernel knows no method that resets it alone".into()));
                }
                (ResetWay::Kernel { methods }, vec![address])
            }
            ResetScope::Slot => {
                let slot = self.slot_with_power(address).ok_or_else(|| {
                    none("it is in no slot whose power the kernel can switch".into())
                })?;
                let same = |other: &Address| {
                    (other.domain(), other.bus(), other.device())
                        == (address.domain(), address.bus(), address.device())
                };
                let all = self.enumerate()?.into_iter().map(|info| info.address);
                (ResetWay::Power { slot }, all.filter(same).collect())
            }
            ResetScope::Bus => {
                let port = self
                    .port_above(&dir)
                    .ok_or_else(|| none("it is on a root bus, which no bridge resets".into()))?;
                let hits = self.below(port)?;
                let alone = hits == [address] && methods.iter().any(|method| method == "bus");
                let subordinate = self.tree().device_dir(port)?.join("reset_subordinate");
                let way = if alone {
                    ResetWay::Kernel { methods: vec!["bus".into()] }
                } else if subordinate.exists() {
                    ResetWay::Subordinate { port }
                } else {
                    ResetWay::Pulse { port }
                };
                (way, hits)
            }
        };
        let hits = hits.into_iter().map(|hit| self.status_of(hit)).collect::<Result<_>>()?;
        Ok(ResetPlan { address, scope, way, hits })
    }

    /// Makes a reset; with `in_use` also when the host uses what it hits, or a process has it
    /// open. Returns what came back of the functions that had to be removed for it, which takes
    /// until `limit` at most.
    ///
    /// # Errors
    ///
    /// [`HostError::Occupied`] or [`HostError::InUse`] before anything is changed; then what the
    /// kernel refuses.
    pub fn reset(&self, plan: &ResetPlan, in_use: bool, limit: Duration) -> Result<Vec<Returned>> {
        if !in_use {
            for hit in &plan.hits {
                // A bridge that is hit is not taken from those behind it: they are hit too.
                if !hit.info.class.is_pci_bridge() {
                    self.check_unused(hit.info.address)?;
                }
            }
        }
        match &plan.way {
            ResetWay::Kernel { methods } => {
                self.reset_function(plan.address, methods)?;
                Ok(Vec::new())
            }
            ResetWay::Subordinate { port } => {
                let path = self.tree().device_dir(*port)?.join("reset_subordinate");
                self.write(&path, "1")?;
                Ok(Vec::new())
            }
            ResetWay::Pulse { port } => {
                let gone = self.take_out(plan)?;
                self.pulse(*port)?;
                self.bring_back(gone, limit)
            }
            ResetWay::Power { slot } => {
                let gone = self.take_out(plan)?;
                self.write(&slot.join("power"), "0")?;
                thread::sleep(POWER_OFF_TIME);
                self.write(&slot.join("power"), "1")?;
                thread::sleep(RECOVERY);
                self.bring_back(gone, limit)
            }
        }
    }

    /// Has the kernel reset a function by these methods only; its own order is put back.
    fn reset_function(&self, address: Address, methods: &[String]) -> Result<()> {
        let dir = self.tree().device_dir(address)?;
        let method = dir.join("reset_method");
        let before = read_text(&method).ok();
        let wanted = methods.join(" ");
        let changed = before.filter(|before| !wanted.is_empty() && *before != wanted);
        if changed.is_some() {
            self.write(&method, &wanted)?;
        }
        let outcome = self.write(&dir.join("reset"), "1");
        if let Some(before) = changed {
            self.write(&method, &before)?;
        }
        outcome
    }

    /// Removes the functions that a reset hits; those behind a bridge go with it.
    fn take_out(&self, plan: &ResetPlan) -> Result<Vec<Comeback>> {
        let hits: Vec<Address> = plan.hits.iter().map(|hit| hit.info.address).collect();
        self.take_out_all(&hits)
    }

    /// Resets the bus below a bridge by the bridge's own register.
    fn pulse(&self, port: Address) -> Result<()> {
        let config = self.config_mut(port)?;
        let found = crate::pci::Layout::read(&config)?;
        let Some(control) = found.find("BRIDGE_CONTROL") else {
            return Err(HostError::NoReset {
                address: port,
                scope: ResetScope::Bus,
                reason: "it is no bridge with a bus behind it".into(),
            });
        };
        let set = |on: &str| {
            let now = layout::read(&config, control)?;
            // The names are those of the table, and the numbers fit.
            let value = control.assign(now, [("bus-reset", on)]).unwrap_or(now);
            layout::write(&config, control, value)
        };
        set("1")?;
        thread::sleep(RESET_TIME);
        set("0")?;
        thread::sleep(RECOVERY);
        Ok(())
    }

    /// The directory of the slot that a function is in, where its power can be switched.
    fn slot_with_power(&self, address: Address) -> Option<PathBuf> {
        let slots = self.tree().root().join("bus/pci/slots");
        let own = address.to_string();
        let (device, _) = own.rsplit_once('.')?;
        names(&slots).ok()?.into_iter().map(|name| slots.join(name)).find(|slot| {
            slot.join("power").exists()
                && read_text(&slot.join("address")).is_ok_and(|text| text == device)
        })
    }

    /// Every function below a bridge, those behind other bridges too, in the order of addresses.
    pub(super) fn below(&self, port: Address) -> Result<Vec<Address>> {
        let above = self.tree().device_dir(port)?.canonicalize().ok();
        let all = self.enumerate()?.into_iter().map(|info| info.address);
        let is_below = |address: &Address| {
            let dir = self.tree().device_dir(*address).ok().and_then(|dir| dir.canonicalize().ok());
            dir.zip(above.as_ref())
                .is_some_and(|(dir, above)| dir != *above && dir.starts_with(above))
        };
        Ok(all.filter(is_below).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::fake::Fake;
    use super::*;

    const BDF: &str = "0000:01:00.0";

    #[test]
    fn the_methods_that_are_asked_for_are_used_and_the_order_is_put_back() {
        let fake = Fake::new();
        let address = fake.device(BDF, 0x1234, 0x11e8, None, None);
        let dir = fake.path("bus/pci/devices").join(BDF);
        let sysfs = fake.sysfs();
        let error = sysfs.plan_reset(address, ResetScope::Function).unwrap_err();
        assert!(matches!(error, HostError::NoReset { .. }), "{error}");
        for scope in [ResetScope::Bus, ResetScope::Slot] {
            assert!(sysfs.plan_reset(address, scope).is_err(), "{scope}");
        }
        fs::write(dir.join("reset"), "").unwrap();
        fs::write(dir.join("reset_method"), "flr pm\n").unwrap();
        let mut plan = sysfs.plan_reset(address, ResetScope::Function).unwrap();
        assert_eq!((plan.hits.len(), plan.others().count()), (1, 0));
        sysfs.reset(&plan, false, Duration::ZERO).unwrap();
        assert_eq!(fake.writes(), ["reset=1"]);
        plan.way = ResetWay::Kernel { methods: vec!["pm".into()] };
        fake.fail("reset", libc::ENOTTY);
        assert!(sysfs.reset(&plan, false, Duration::ZERO).is_err());
        assert_eq!(fake.writes(), ["reset_method=pm", "reset=1", "reset_method=flr pm"]);
    }

    #[test]
    fn what_the_host_uses_is_not_reset_unless_forced() {
        let fake = Fake::new();
        let address = fake.device(BDF, 0x1b36, 0x0010, Some("nvme"), None);
        fs::write(fake.path("bus/pci/devices").join(BDF).join("reset"), "").unwrap();
        fake.node(BDF, "nvme/nvme0/nvme0n1", "block", "259:1", "nvme0n1");
        let process = fake.path("proc/10");
        fs::create_dir_all(process.join("fd")).unwrap();
        std::os::unix::fs::symlink("/dev/nvme0n1", process.join("fd/3")).unwrap();
        let sysfs = fake.sysfs();
        let plan = sysfs.plan_reset(address, ResetScope::Function).unwrap();
        assert_eq!(plan.hits[0].uses.len(), 1);
        let error = sysfs.reset(&plan, false, Duration::ZERO).unwrap_err();
        assert!(matches!(error, HostError::Occupied { .. }), "{error}");
        assert_eq!(fake.writes(), [""; 0]);
        sysfs.reset(&plan, true, Duration::ZERO).unwrap();
        assert_eq!(fake.writes(), ["reset=1"]);
    }
}
