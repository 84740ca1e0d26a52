//! The functions that this process has open.
//!
//! The kernel lets a process open a function twice where it shares a container with itself;
//! two owners of one function would then undo each other's bus mastering and interrupts.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::backend::{BackendError, Result};
use crate::pci::Address;

/// The functions that are open, and the IOMMU group of each.
static OPEN: Mutex<BTreeMap<Address, u32>> = Mutex::new(BTreeMap::new());

fn open() -> MutexGuard<'static, BTreeMap<Address, u32>> {
    // The map changes in single steps.
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The one opening of a function in this process; dropping it lets the next one in.
#[derive(Debug)]
pub(super) struct Claim(Address);

impl Claim {
    /// Claims a function of an IOMMU group.
    ///
    /// # Errors
    ///
    /// [`BackendError::AlreadyOpen`] while another claim of the function lives.
    pub(super) fn new(address: Address, group: u32) -> Result<Claim> {
        let mut open = open();
        if open.contains_key(&address) {
            return Err(BackendError::AlreadyOpen { location: address.to_string() });
        }
        open.insert(address, group);
        Ok(Claim(address))
    }

    /// The function.
    pub(super) fn address(&self) -> Address {
        self.0
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        open().remove(&self.0);
    }
}

/// Whether this process has the function open.
pub(super) fn is_open(address: Address) -> bool {
    open().contains_key(&address)
}

/// Another function of the group that this process has open.
pub(super) fn other_of_group(address: Address, group: u32) -> Option<Address> {
    let found =
        |(&other, &of): (&Address, &u32)| (of == group && other != address).then_some(other);
    open().iter().find_map(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_claimed_once_until_it_is_dropped() {
        // Addresses of no other test: the claims are the process's.
        let first: Address = "fff1:00:00.0".parse().unwrap();
        let second: Address = "fff1:00:00.1".parse().unwrap();
        let group = 0xfff1_0000;
        let claim = Claim::new(first, group).unwrap();
        assert_eq!(claim.address(), first);
        assert!(is_open(first) && !is_open(second));
        let error = Claim::new(first, group).unwrap_err();
        assert!(
            matches!(&error, BackendError::AlreadyOpen { location } if *location == "fff1:00:00.0")
        );
        let text = error.to_string();
        assert!(text.contains("this process") && !text.contains("end the process"), "{text}");
        assert_eq!(other_of_group(first, group), None);
        assert_eq!(other_of_group(second, group), Some(first));
        assert_eq!(other_of_group(second, group + 1), None);
        drop(claim);
        assert_eq!(other_of_group(second, group), None);
        drop(Claim::new(first, group).unwrap());
    }
}
