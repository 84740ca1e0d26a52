//! The token that guards the virtual functions of a physical one.
//!
//! A physical function on vfio-pci may change what its virtual functions do, so the kernel
//! asks whoever opens one of them for a secret that the physical function was opened with
//! (`vfio_pci_validate_vf_token` in `drivers/vfio/pci/vfio_pci_core.c`).

use std::ffi::CString;
use std::fmt;
use std::str::FromStr;

use nix::errno::Errno;
use uuid::Uuid;

use super::{os_error, precondition};
use crate::backend::BackendError;
use crate::pci::sysfs::Tree;
use crate::pci::{Address, Remedy};

/// The secret, a UUID, that a physical function and its virtual functions are opened with when
/// both are on vfio-pci.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VfToken(Uuid);

impl VfToken {
    /// The token of these bytes, in the order that a UUID is written in.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> VfToken {
        VfToken(Uuid::from_bytes(bytes))
    }

    #[cfg(feature = "iommufd")]
    pub(super) fn bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

/// A secret is not logged.
impl fmt::Debug for VfToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VfToken(..)")
    }
}

/// A text that is not a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a UUID such as 14d63f20-8445-11ea-8900-1f9ce7d5650d")]
#[non_exhaustive]
pub struct VfTokenError {
    /// The text.
    pub text: String,
}

impl FromStr for VfToken {
    type Err = VfTokenError;

    fn from_str(text: &str) -> Result<VfToken, VfTokenError> {
        Uuid::try_parse(text).map(VfToken).map_err(|_| VfTokenError { text: text.to_owned() })
    }
}

/// How a device of a group is named when it is opened, with the token behind its address.
pub(super) fn name(address: Address, token: Option<&VfToken>) -> CString {
    let name = match token {
        Some(VfToken(uuid)) => format!("{address} vf_token={}", uuid.hyphenated()),
        None => address.to_string(),
    };
    CString::new(name).expect("neither an address nor a UUID has a NUL in it")
}

/// What a refused opening means that has to do with tokens: EACCES for one that is missing or
/// wrong, EINVAL for one that nobody asked for. The kernel says both before anything else.
pub(super) fn refusal(
    sysfs: &Tree,
    address: Address,
    token: Option<&VfToken>,
    errno: Errno,
) -> Option<BackendError> {
    let given = if token.is_some() { "another one was given" } else { "none was given" };
    match errno {
        Errno::EACCES => Some(match physical(sysfs, address) {
            Some(physical) => precondition(
                format!(
                    "{address} is a virtual function of {physical}, which is on vfio-pci too: the \
                     kernel asks for the token that {physical} was opened with; {given}"
                ),
                Remedy::GiveVfToken { physical },
            ),
            None => precondition(
                format!(
                    "{address} has virtual functions that are open: the kernel asks for the token \
                     that they were opened with; {given}"
                ),
                Remedy::GiveVfToken { physical: address },
            ),
        }),
        Errno::EINVAL if token.is_some() && physical(sysfs, address).is_none() => {
            let text = format!("opening {address} with a VF token");
            let why = "a token is for a physical function on vfio-pci that has virtual functions \
                       (sriov_numvfs), and for these; iommufd takes one since Linux 6.17";
            Some(os_error(text, errno, Some(why.into())))
        }
        _ => None,
    }
}

/// The physical function of a virtual one, if that is on vfio-pci.
fn physical(sysfs: &Tree, address: Address) -> Option<Address> {
    let physical = sysfs.physical_function(address)?;
    sysfs.is_with_vfio(physical).unwrap_or(false).then_some(physical)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_named_and_not_shown() {
        let text = "14d63f20-8445-11ea-8900-1f9ce7d5650d";
        let token: VfToken = text.parse().unwrap();
        assert_eq!(token, VfToken::from_bytes(*token.0.as_bytes()));
        let address = "0000:04:10.0".parse().unwrap();
        let expected = format!("0000:04:10.0 vf_token={text}");
        assert_eq!(name(address, Some(&token)).to_str().unwrap(), expected);
        assert_eq!(name(address, None).to_str().unwrap(), "0000:04:10.0");
        assert_eq!(format!("{token:?}"), "VfToken(..)");
        for bad in ["", "14d63f20", "14d63f20-8445-11ea-8900-1f9ce7d5650g"] {
            let error = bad.parse::<VfToken>().unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn refusals_are_told_by_the_physical_function() {
        let root = tempfile::tempdir().unwrap();
        let (tree, devices) = (Tree::at(root.path()), root.path().join("bus/pci/devices"));
        let (vf, pf): (Address, Address) =
            ("0000:00:15.0".parse().unwrap(), "0000:00:05.0".parse().unwrap());
        for address in [vf, pf] {
            std::fs::create_dir_all(devices.join(address.to_string())).unwrap();
        }
        let link = |to: &str, from: &str| {
            std::os::unix::fs::symlink(to, devices.join(from)).unwrap();
        };
        link("../0000:00:05.0", "0000:00:15.0/physfn");
        link("/drivers/vfio-pci", "0000:00:05.0/driver");
        let token = VfToken::from_bytes([1; 16]);
        let refusal = |address, token, errno| refusal(&tree, address, token, errno);
        let error = refusal(vf, None, Errno::EACCES).unwrap();
        assert_eq!(error.remedy(), Some(&Remedy::GiveVfToken { physical: pf }));
        assert!(error.to_string().contains("none was given"), "{error}");
        let error = refusal(pf, Some(&token), Errno::EACCES).unwrap().to_string();
        assert!(error.contains("virtual functions that are open"), "{error}");
        let error = refusal(pf, Some(&token), Errno::EINVAL).unwrap().to_string();
        assert!(error.contains("6.17"), "{error}");
        assert!(refusal(pf, None, Errno::EINVAL).is_none());
        assert!(refusal(vf, Some(&token), Errno::EBUSY).is_none());
    }
}
