//! Whether a device can really be opened: nodes that can be opened do not say so.

use vfio_dma::backend::BackendError;
use vfio_dma::backend::vfio::{Access, VfToken};
use vfio_dma::device::DeviceError;
use vfio_dma::pci::Address;
use vfio_dma::session::Session;

use super::{Check, Host};
use crate::cli::remedy::hint;

/// Opens the device and closes it again, if it is bound to vfio-pci; it stays bound. None when
/// another check says what is to be done first.
pub(super) fn check(host: &Host, address: Address, token: Option<&VfToken>) -> Option<Check> {
    let name = "attach";
    let info = host.sysfs.device(address).ok()?;
    if !info.with_vfio {
        return None;
    }
    let group = info.group?;
    let mut session = match group.noiommu {
        // SAFETY: the device is given no address, and closed before this ends.
        true => unsafe { Session::without_iommu() },
        false => Session::through(Access::Auto),
    };
    Some(match session.open_with(address, token) {
        Ok(device) => {
            let by = device.space().iommu().name().to_owned();
            Check::ok(name, format!("opened through {by}, and closed"))
        }
        Err(DeviceError::Backend(error)) => failed(name, &error),
        Err(error) => Check::failed(name, error.to_string()),
    })
}

/// Why it cannot be opened, by each method that was tried, and what mends that.
fn failed(name: &'static str, error: &BackendError) -> Check {
    let plain = |error: &BackendError| {
        let text = error.to_string();
        text.split("\n  remedy: ").next().unwrap_or(&text).replace('\n', " ")
    };
    let mend = |error: &BackendError| {
        let remedy = error.remedy()?;
        let hint = hint(remedy).map(|hint| format!(" ({hint})")).unwrap_or_default();
        Some(format!("{remedy}{hint}"))
    };
    let (finding, mut remedies): (String, Vec<String>) = match error {
        BackendError::NoAccess { refusals, .. } => {
            let by = |(method, error): &(&str, BackendError)| format!("{method}: {}", plain(error));
            let findings: Vec<String> = refusals.iter().map(by).collect();
            let remedies = refusals.iter().filter_map(|(_, error)| mend(error)).collect();
            (findings.join("; "), remedies)
        }
        error => (plain(error), mend(error).into_iter().collect()),
    };
    remedies.dedup();
    let check = Check::failed(name, finding);
    if remedies.is_empty() { check } else { check.mend(remedies.join("; or ")) }
}

#[cfg(test)]
mod tests {
    use vfio_dma::Remedy;

    use super::*;

    #[test]
    fn each_method_that_failed_is_told_with_its_remedy() {
        let refused =
            |problem: &str, remedy| BackendError::Precondition { problem: problem.into(), remedy };
        let address: Address = "0000:00:05.0".parse().unwrap();
        let token = Remedy::GiveVfToken { physical: address };
        let one = failed("attach", &refused("no token", token));
        assert_eq!(one.finding, "no token");
        assert!(one.remedy.unwrap().ends_with("(option: --vf-token UUID)"));
        let refusals = vec![
            ("type1", refused("no remapping", Remedy::RunAsRoot)),
            ("iommufd", refused("no node", Remedy::UseType1)),
        ];
        let all = failed("attach", &BackendError::NoAccess { location: "x".into(), refusals });
        assert_eq!(all.finding, "type1: no remapping; iommufd: no node");
        assert!(all.remedy.unwrap().contains("run as root (sudo); or "));
    }
}
