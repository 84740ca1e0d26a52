//! Handing a function to vfio-pci, and back.

use super::unused::occupied;
use super::{Aftermath, Former, HostError, PciDeviceInfo, Result, Sysfs};
use crate::pci::sysfs::{IommuGroup, SysfsError, VFIO_PCI};
use crate::pci::{Address, Remedy};

/// How [`Sysfs::bind`] left a function; [`Sysfs::restore`] takes it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The function, now bound to vfio-pci.
    pub address: Address,
    /// What it had before; none when it was bound to vfio-pci already.
    pub former: Option<Former>,
    /// Its IOMMU group; none without an IOMMU, where the kernel let vfio-pci bind all the
    /// same: opening the function will fail.
    pub group: Option<IommuGroup>,
}

impl Binding {
    /// Whether the function was bound to vfio-pci before.
    #[must_use]
    pub fn already_bound(&self) -> bool {
        self.former.is_none()
    }
}

/// How a function was left that was taken from vfio-pci.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unbound {
    /// The function.
    pub address: Address,
    /// The driver that it has now, if any.
    pub driver: Option<String>,
    /// What decided on that driver.
    pub choice: Choice,
}

/// What decided on the driver of a function that is not bound to vfio-pci any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Choice {
    /// What was recorded when the function was bound.
    Record,
    /// The kernel: there was no record.
    Kernel,
    /// Nothing was done: the function was not bound to vfio-pci.
    Untouched,
}

impl Sysfs {
    /// Binds a function to vfio-pci through `driver_override`, unless the host uses it: what
    /// [`Sysfs::uses`] finds, such as a mounted file system.
    ///
    /// Loads vfio-pci when it is absent. What the function had before is recorded in
    /// `/run/vfio-dma`, for [`Sysfs::unbind`] in a later process. A function that is bound
    /// to vfio-pci already is left as it is.
    ///
    /// # Errors
    ///
    /// [`HostError::Occupied`] when the host uses the function; nothing is changed then.
    ///
    /// Without an IOMMU, vfio-pci refuses the function unless VFIO's no-IOMMU mode is on; the
    /// cause is [`SysfsError::NoGroup`] then.
    ///
    /// When a step fails half-way, everything is put back as it was, and
    /// [`HostError::Bind`] tells the reason and whether that worked.
    pub fn bind(&self, address: Address) -> Result<Binding> {
        self.check_not_in_use(address)?;
        self.bind_in_use(address)
    }

    /// Binds a function to vfio-pci as [`Sysfs::bind`] does, also when the host uses it. What
    /// the host does with it fails then: file systems lose what was not written yet, network
    /// connections break.
    ///
    /// # Errors
    ///
    /// As [`Sysfs::bind`], without [`HostError::Occupied`].
    pub fn bind_in_use(&self, address: Address) -> Result<Binding> {
        let device = self.device(address)?;
        if device.with_vfio {
            return Ok(Binding { address, former: None, group: device.group });
        }
        if device.class.is_pci_bridge() {
            return Err(HostError::NotAnEndpoint { address, class: device.class });
        }
        self.check_permission(address)?;
        self.ensure_vfio_pci()?;
        let driver_override = self.driver_override(address)?;
        let former = Former { driver: device.driver, driver_override };
        if let Err(error) = self.remember(address, &former) {
            log::warn!("{address}: its driver is not recorded for a later unbind: {error}");
        }
        // First of all the override: from then on no other driver can take the function.
        if let Err(error) = self.set_override(address, Some(VFIO_PCI)) {
            self.forget(address);
            return Err(error);
        }
        match self.take_over(address, former.driver.as_deref()) {
            Ok(()) => {
                // Without an IOMMU, VFIO's no-IOMMU mode makes a group up now.
                let group = self.device(address)?.group;
                Ok(Binding { address, former: Some(former), group })
            }
            Err(cause) => {
                let aftermath = self.roll_back(address, &former, &cause);
                let cause = match cause {
                    HostError::WrongDriver { .. } if device.group.is_none() => {
                        SysfsError::NoGroup { address }.into()
                    }
                    cause => cause,
                };
                Err(HostError::Bind { address, cause: Box::new(cause), aftermath })
            }
        }
    }

    /// Takes a function from vfio-pci and gives it the driver that it had before
    /// [`Sysfs::bind`], in this process or another one; without a record of that, the one
    /// that the kernel chooses.
    ///
    /// # Errors
    ///
    /// Fails when a process has the function open, when it has virtual functions, and when it does not get the recorded
    /// driver.
    pub fn unbind(&self, address: Address) -> Result<Unbound> {
        let device = self.device(address)?;
        let bound = device.with_vfio;
        if !bound && self.driver_override(address)?.as_deref() != Some(VFIO_PCI) {
            self.forget(address);
            let driver = device.driver;
            return Ok(Unbound { address, driver, choice: Choice::Untouched });
        }
        let former = self.recall(address);
        self.give_back(&device, former.as_ref())
    }

    /// Undoes one [`Sysfs::bind`]: nothing when the function was bound already.
    ///
    /// # Errors
    ///
    /// As [`Sysfs::unbind`].
    pub fn restore(&self, binding: &Binding) -> Result<Unbound> {
        let device = self.device(binding.address)?;
        match &binding.former {
            Some(former) => self.give_back(&device, Some(former)),
            None => Ok(Unbound {
                address: binding.address,
                driver: device.driver,
                choice: Choice::Untouched,
            }),
        }
    }

    fn give_back(&self, device: &PciDeviceInfo, former: Option<&Former>) -> Result<Unbound> {
        let address = device.address;
        self.check_not_open(device)?;
        // They vanish with vfio-pci as with any other driver.
        if let Some(used) = self.virtual_functions(address)? {
            return Err(occupied(address, vec![used]));
        }
        let driver = match former {
            Some(former) => {
                self.put_back(address, former)?;
                former.driver.clone()
            }
            None => {
                self.set_override(address, None)?;
                self.detach(address)?;
                self.probe(address)?;
                self.tree.driver(address)?
            }
        };
        self.forget(address);
        let choice = if former.is_some() { Choice::Record } else { Choice::Kernel };
        Ok(Unbound { address, driver, choice })
    }

    /// Exchanges the driver of a function whose override names vfio-pci.
    fn take_over(&self, address: Address, former: Option<&str>) -> Result<()> {
        if former.is_some() {
            self.detach(address)?;
        }
        self.probe(address)?;
        self.expect_driver(address, Some(VFIO_PCI))
    }

    fn roll_back(&self, address: Address, former: &Former, cause: &HostError) -> Aftermath {
        if matches!(cause, HostError::Stuck { .. }) {
            // Another write would wait for the same lock of the kernel.
            return Aftermath::Pending { remedy: Remedy::Unbind { address } };
        }
        match self.put_back(address, former) {
            Ok(()) => {
                self.forget(address);
                Aftermath::Restored(former.driver.clone())
            }
            Err(error) => Aftermath::NotRestored(Box::new(error)),
        }
    }

    /// Gives the function the driver and the override that it had, whatever it has now.
    fn put_back(&self, address: Address, former: &Former) -> Result<()> {
        if self.tree.driver(address)? != former.driver {
            // While the driver is attached, an override may name no other one.
            let during = former.driver_override.as_ref().and(former.driver.as_deref());
            self.set_override(address, during)?;
            self.detach(address)?;
            if let Some(driver) = &former.driver {
                self.attach(address, driver)?;
            }
        }
        if self.driver_override(address)? != former.driver_override {
            self.set_override(address, former.driver_override.as_deref())?;
        }
        self.expect_driver(address, former.driver.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::super::fake::Fake;
    use super::*;

    const BDF: &str = "0000:00:05.0";

    fn edu(driver: Option<&str>) -> (Fake, Address) {
        let fake = Fake::new();
        fake.register("vfio-pci", &[]);
        let address = fake.device(BDF, 0x1234, 0x11e8, driver, Some(3));
        (fake, address)
    }

    #[test]
    fn bind_and_unbind_exchange_the_drivers_in_order() {
        let (fake, address) = edu(Some("edu"));
        let sysfs = fake.sysfs();
        let binding = sysfs.bind(address).unwrap();
        assert_eq!(binding.former.as_ref().unwrap().driver.as_deref(), Some("edu"));
        assert_eq!(binding.group.unwrap().number, 3);
        assert_eq!(sysfs.tree().driver(address).unwrap().as_deref(), Some("vfio-pci"));
        assert_eq!(
            fake.writes(),
            ["driver_override=vfio-pci", "edu/unbind=0000:00:05.0", "drivers_probe=0000:00:05.0"]
        );
        // As from another process: nothing but the record connects the two.
        let unbound = fake.sysfs().unbind(address).unwrap();
        assert_eq!(unbound.driver.as_deref(), Some("edu"));
        assert_eq!(unbound.choice, Choice::Record);
        assert_eq!(
            fake.writes(),
            ["driver_override=", "vfio-pci/unbind=0000:00:05.0", "edu/bind=0000:00:05.0"]
        );
        assert_eq!(sysfs.driver_override(address).unwrap(), None);
        assert_eq!(sysfs.recall(address), None);
    }

    #[test]
    fn a_binding_is_restored_without_the_record() {
        let (fake, address) = edu(Some("edu"));
        let sysfs = fake.sysfs();
        let binding = sysfs.bind(address).unwrap();
        sysfs.forget(address);
        // The kernel would choose this one.
        fake.register("another", &[(0x1234, 0x11e8)]);
        assert_eq!(sysfs.restore(&binding).unwrap().driver.as_deref(), Some("edu"));
    }

    #[test]
    fn a_function_without_a_driver_is_left_without_one() {
        let (fake, address) = edu(None);
        fake.register("edu", &[(0x1234, 0x11e8)]);
        let sysfs = fake.sysfs();
        sysfs.bind(address).unwrap();
        assert_eq!(sysfs.unbind(address).unwrap().driver, None);
    }

    #[test]
    fn without_a_record_the_kernel_chooses() {
        let (fake, address) = edu(Some("edu"));
        let sysfs = fake.sysfs();
        sysfs.bind(address).unwrap();
        sysfs.forget(address);
        let unbound = sysfs.unbind(address).unwrap();
        assert_eq!((unbound.driver.as_deref(), unbound.choice), (Some("edu"), Choice::Kernel));
    }

    #[test]
    fn bound_already_is_a_success_that_changes_nothing() {
        let (fake, address) = edu(Some("edu"));
        let sysfs = fake.sysfs();
        sysfs.bind(address).unwrap();
        fake.writes();
        let again = sysfs.bind(address).unwrap();
        assert!(again.already_bound());
        assert_eq!(sysfs.restore(&again).unwrap().choice, Choice::Untouched);
        assert_eq!(fake.writes(), [""; 0]);
        // The record of the first bind still holds.
        assert_eq!(sysfs.unbind(address).unwrap().driver.as_deref(), Some("edu"));
    }

    #[test]
    fn unbinding_what_is_not_bound_changes_nothing() {
        let (fake, address) = edu(Some("edu"));
        let unbound = fake.sysfs().unbind(address).unwrap();
        assert_eq!((unbound.driver.as_deref(), unbound.choice), (Some("edu"), Choice::Untouched));
        assert_eq!(fake.writes(), [""; 0]);
    }

    #[test]
    fn a_former_override_comes_back() {
        let (fake, address) = edu(Some("pci-stub"));
        fake.set_override(BDF, "pci-stub");
        let sysfs = fake.sysfs();
        sysfs.bind(address).unwrap();
        assert_eq!(sysfs.unbind(address).unwrap().driver.as_deref(), Some("pci-stub"));
        assert_eq!(sysfs.driver_override(address).unwrap().as_deref(), Some("pci-stub"));
        // An override that names another driver than the one bound.
        let (fake, address) = edu(Some("edu"));
        fake.set_override(BDF, "vfio-pci");
        let sysfs = fake.sysfs();
        sysfs.bind(address).unwrap();
        assert_eq!(sysfs.unbind(address).unwrap().driver.as_deref(), Some("edu"));
        assert_eq!(sysfs.driver_override(address).unwrap().as_deref(), Some("vfio-pci"));
    }

    #[test]
    fn a_refusal_of_vfio_pci_is_rolled_back_in_order() {
        let (fake, address) = edu(Some("edu"));
        fake.refuse("vfio-pci");
        let sysfs = fake.sysfs();
        let error = sysfs.bind(address).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("has no driver instead of vfio-pci"), "{text}");
        assert!(text.contains("as before, with the driver edu"), "{text}");
        assert_eq!(
            fake.writes(),
            [
                "driver_override=vfio-pci",
                "edu/unbind=0000:00:05.0",
                "drivers_probe=0000:00:05.0",
                "driver_override=",
                "edu/bind=0000:00:05.0",
            ]
        );
        assert_eq!(sysfs.tree().driver(address).unwrap().as_deref(), Some("edu"));
        assert_eq!(sysfs.driver_override(address).unwrap(), None);
        assert_eq!(sysfs.recall(address), None);
    }

    #[test]
    fn a_driver_that_cannot_be_taken_away_stays() {
        let (fake, address) = edu(Some("edu"));
        fake.fail("edu/unbind", libc::EBUSY);
        let error = fake.sysfs().bind(address).unwrap_err();
        assert!(matches!(
            &error,
            HostError::Bind { aftermath: Aftermath::Restored(Some(driver)), .. } if driver == "edu"
        ));
        assert_eq!(
            fake.writes(),
            ["driver_override=vfio-pci", "edu/unbind=0000:00:05.0", "driver_override="]
        );
    }

    #[test]
    fn a_rollback_that_fails_tells_both_reasons_and_keeps_the_record() {
        let (fake, address) = edu(Some("edu"));
        fake.refuse("vfio-pci");
        fake.refuse("edu");
        let sysfs = fake.sysfs();
        let text = sysfs.bind(address).unwrap_err().to_string();
        assert!(text.contains("instead of vfio-pci"), "{text}");
        assert!(text.contains("putting it back failed too"), "{text}");
        assert!(text.contains("instead of edu"), "{text}");
        assert!(sysfs.recall(address).is_some());
    }

    #[test]
    fn without_permission_the_file_and_the_remedy_are_named() {
        let (fake, address) = edu(Some("edu"));
        fake.fail("driver_override", libc::EACCES);
        let text = fake.sysfs().bind(address).unwrap_err().to_string();
        assert!(text.contains("0000:00:05.0/driver_override"), "{text}");
        assert!(text.contains("run as root"), "{text}");
        assert!(fake.sysfs().recall(address).is_none());
        assert_eq!(fake.sysfs().tree().driver(address).unwrap().as_deref(), Some("edu"));
    }

    #[test]
    fn a_kernel_that_does_not_come_back_is_not_asked_again() {
        let (fake, address) = edu(Some("edu"));
        fake.stall("edu/unbind");
        let sysfs = Sysfs { timeout: Duration::from_millis(200), ..fake.sysfs() };
        let error = sysfs.bind(address).unwrap_err();
        assert!(matches!(error, HostError::Bind { aftermath: Aftermath::Pending { .. }, .. }));
        assert_eq!(error.remedy(), Some(&Remedy::Unbind { address }));
        assert_eq!(fake.writes(), ["driver_override=vfio-pci", "edu/unbind=0000:00:05.0"]);
        // Later, the record brings everything back.
        fake.resume();
        assert_eq!(fake.sysfs().unbind(address).unwrap().driver.as_deref(), Some("edu"));
        assert_eq!(sysfs.driver_override(address).unwrap(), None);
    }

    #[test]
    fn a_function_in_use_is_not_taken_away() {
        let (fake, address) = edu(Some("edu"));
        let sysfs = fake.sysfs();
        sysfs.bind(address).unwrap();
        fake.writes();
        let process = fake.path("proc/4711");
        fs::create_dir_all(process.join("fd")).unwrap();
        std::os::unix::fs::symlink("/dev/vfio/3", process.join("fd/5")).unwrap();
        let error = sysfs.unbind(address).unwrap_err();
        assert!(error.to_string().contains("process 4711"), "{error}");
        assert_eq!(error.remedy(), Some(&Remedy::EndHolders { node: None }));
        assert_eq!(fake.writes(), [""; 0]);
        fs::remove_dir_all(process).unwrap();
        sysfs.unbind(address).unwrap();
    }

    #[test]
    fn a_process_that_has_the_function_open_itself_is_not_told_to_end() {
        let (fake, address) = edu(Some("edu"));
        let sysfs = fake.sysfs();
        sysfs.bind(address).unwrap();
        let hold = |pid: u32| {
            let process = fake.path("proc").join(pid.to_string());
            fs::create_dir_all(process.join("fd")).unwrap();
            std::os::unix::fs::symlink("/dev/vfio/3", process.join("fd/5")).unwrap();
        };
        hold(std::process::id());
        let error = sysfs.unbind(address).unwrap_err();
        assert_eq!(error.remedy(), Some(&Remedy::UseOpenDevice));
        let text = error.to_string();
        assert!(text.contains("this process") && !text.contains("end it"), "{text}");
        hold(std::process::id() + 1);
        let text = sysfs.unbind(address).unwrap_err().to_string();
        assert!(text.contains("drop the device") && text.contains("end the others"), "{text}");
    }

    #[test]
    fn without_an_iommu_the_result_or_the_refusal_says_so() {
        let fake = Fake::new();
        fake.register("vfio-pci", &[]);
        let address = fake.device(BDF, 0x1234, 0x11e8, Some("edu"), None);
        assert_eq!(fake.sysfs().bind(address).unwrap().group, None);
        fake.sysfs().unbind(address).unwrap();
        fake.refuse("vfio-pci");
        let text = fake.sysfs().bind(address).unwrap_err().to_string();
        assert!(text.contains("no IOMMU group") && text.contains("intel_iommu=on"), "{text}");
        assert!(text.contains("as before, with the driver edu"), "{text}");
    }

    #[test]
    fn a_bridge_is_refused_untouched() {
        let (fake, address) = edu(Some("pcieport"));
        let class = fake.path("bus/pci/devices").join(BDF).join("class");
        fs::write(class, "0x060400\n").unwrap();
        let error = fake.sysfs().bind_in_use(address).unwrap_err();
        assert!(matches!(error, HostError::NotAnEndpoint { .. }), "{error}");
        assert_eq!(fake.writes(), [""; 0]);
    }
}
