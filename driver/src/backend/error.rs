//! Why an operation of a backend failed.

use std::io;

use super::{IrqKind, Region};
use crate::pci::Address;
use crate::pci::remedy::{Remedy, suffix};
use crate::pci::sysfs::{SysfsError, join};

/// An operation of a backend that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// A system call failed.
    #[error("{action}: {source}{}", suffix(.remedy.as_ref()))]
    Os {
        /// What was being done, with the values it was done with.
        action: String,
        /// The operating system's reason.
        source: io::Error,
        /// What the reader can do about it, where that is known.
        remedy: Option<Remedy>,
    },
    /// The device does not implement the region.
    #[error("the device has no {region}")]
    NoRegion {
        /// The region asked for.
        region: Region,
    },
    /// The access does not lie inside the region.
    #[error("{region}: access of {len} bytes at {offset:#x} is outside of its {size:#x} bytes")]
    OutOfBounds {
        /// The region accessed.
        region: Region,
        /// Byte offset of the access.
        offset: u64,
        /// Length of the access in bytes.
        len: usize,
        /// Size of the region in bytes.
        size: u64,
    },
    /// The device has fewer vectors of this kind than were asked for.
    #[error("the device has {available} {kind} vectors, {requested} were asked for")]
    NoVectors {
        /// Kind of interrupt.
        kind: IrqKind,
        /// Vectors asked for.
        requested: u32,
        /// Vectors that exist.
        available: u32,
    },
    /// The machine can give the device fewer vectors than it has and were asked for; none is
    /// enabled.
    #[error(
        "the machine can give the device {available} of the {requested} {kind} vectors asked \
         for\n  remedy: {remedy}"
    )]
    FewerVectors {
        /// Kind of interrupt.
        kind: IrqKind,
        /// Vectors asked for.
        requested: u32,
        /// Vectors that can be had.
        available: u32,
        /// What helps.
        remedy: Remedy,
    },
    /// The backend or the device cannot do this at all.
    #[error("{what} is not supported by {by}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// Who cannot do it.
        by: String,
    },
    /// A precondition outside of this process does not hold.
    #[error("{problem}\n  remedy: {remedy}")]
    Precondition {
        /// What is wrong, with the value found.
        problem: String,
        /// What mends it.
        remedy: Remedy,
    },
    /// What sysfs tells of the device keeps it from being opened.
    #[error(transparent)]
    Sysfs(Box<SysfsError>),
    /// This process has the function open already.
    #[error("{location} is open in this process already\n  remedy: {}", Remedy::UseOpenDevice)]
    AlreadyOpen {
        /// Which device.
        location: String,
    },
    /// This process has another function of the IOMMU group open, in another address space.
    #[error(
        "{location} is in IOMMU group {group}, which this process has open for {holder}\n  \
         remedy: {}",
        Remedy::UseSameSession
    )]
    GroupAlreadyOpen {
        /// Which device.
        location: String,
        /// Its IOMMU group.
        group: u32,
        /// The device that is open.
        holder: String,
    },
    /// The device cannot join an address space that others use already.
    #[error("{location} cannot share the address space: {reason}")]
    NotShareable {
        /// Which device.
        location: String,
        /// Why the kernel refused.
        reason: String,
    },
    /// A reset of the bus would hit functions that this process does not own.
    #[error(
        "a reset of the bus of {location} hits {} too, which this process does not own\n  remedy: \
         {remedy}",
        join(.functions)
    )]
    NotOwned {
        /// Which device's bus.
        location: String,
        /// The functions that are not this process's.
        functions: Vec<Address>,
        /// What helps.
        remedy: Remedy,
    },
    /// A descriptor that another process passed is not what it was passed as.
    #[error("the descriptor passed as {expected} is {found}")]
    WrongDescriptor {
        /// What it was passed as.
        expected: String,
        /// What it is.
        found: String,
    },
    /// None of the methods that were allowed opens the device.
    #[error("{location} cannot be opened in any way{}", list_refusals(.refusals))]
    NoAccess {
        /// Which device.
        location: String,
        /// The methods tried, in order, and why each failed.
        refusals: Vec<(&'static str, BackendError)>,
    },
    /// The kernel wants the function back ([`Event::Removal`](super::Event::Removal)): nothing is begun any more, and
    /// what keeps it open is to be dropped.
    #[error("{location} is to be removed: the kernel asks for it back")]
    ToBeRemoved {
        /// Which device.
        location: String,
    },
    /// PCI Express reported an error ([`Event::Error`](super::Event::Error)).
    #[error(
        "{location}: PCI Express reported an error that the link did not mend\n  remedy: {}",
        Remedy::ResetFunction
    )]
    BusError {
        /// Which device.
        location: String,
    },
    /// The device, or the process that serves it, is gone.
    #[error("{location} is gone: {reason}")]
    Gone {
        /// Which device.
        location: String,
        /// How that was noticed.
        reason: String,
    },
}

impl BackendError {
    /// What the reader can do about it, where that is known.
    ///
    /// Of [`BackendError::NoAccess`], each refusal has a remedy of its own.
    #[must_use]
    pub fn remedy(&self) -> Option<&Remedy> {
        match self {
            BackendError::Os { remedy, .. } => remedy.as_ref(),
            BackendError::Precondition { remedy, .. }
            | BackendError::FewerVectors { remedy, .. }
            | BackendError::NotOwned { remedy, .. } => Some(remedy),
            BackendError::Sysfs(error) => error.remedy(),
            BackendError::AlreadyOpen { .. } => Some(&Remedy::UseOpenDevice),
            BackendError::GroupAlreadyOpen { .. } => Some(&Remedy::UseSameSession),
            BackendError::BusError { .. } => Some(&Remedy::ResetFunction),
            BackendError::NoRegion { .. }
            | BackendError::ToBeRemoved { .. }
            | BackendError::OutOfBounds { .. }
            | BackendError::NoVectors { .. }
            | BackendError::Unsupported { .. }
            | BackendError::NotShareable { .. }
            | BackendError::WrongDescriptor { .. }
            | BackendError::NoAccess { .. }
            | BackendError::Gone { .. } => None,
        }
    }
}

impl BackendError {
    /// A reset that would hit functions which are not this process's.
    pub(crate) fn not_owned(location: String, functions: Vec<Address>) -> BackendError {
        let remedy = Remedy::OwnFunctions { functions: functions.clone() };
        BackendError::NotOwned { location, functions, remedy }
    }
}

impl From<SysfsError> for BackendError {
    fn from(error: SysfsError) -> BackendError {
        BackendError::Sysfs(Box::new(error))
    }
}

fn list_refusals(refusals: &[(&'static str, BackendError)]) -> String {
    let item = |(method, error): &(&str, BackendError)| {
        format!("\n{method}: {error}").replace('\n', "\n  ")
    };
    refusals.iter().map(item).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_value_and_the_remedy() {
        let error = BackendError::Os {
            action: "mapping 4096 bytes at IOVA 0x1000".into(),
            source: io::Error::from_raw_os_error(12),
            remedy: Some(Remedy::RaiseMemlock { limit: 1024, needed: 4096 }),
        };
        let text = error.to_string();
        assert!(text.contains("0x1000") && text.contains("ulimit -l"), "{text}");
    }

    #[test]
    fn every_method_that_failed_is_listed_with_its_remedy() {
        let refusal = |node: &str| BackendError::Precondition {
            problem: format!("{node} is missing"),
            remedy: "modprobe it".into(),
        };
        let error = BackendError::NoAccess {
            location: "0000:00:05.0".into(),
            refusals: vec![
                ("type1", refusal("/dev/vfio/vfio")),
                ("iommufd", refusal("/dev/iommu")),
            ],
        };
        assert_eq!(
            error.to_string(),
            "0000:00:05.0 cannot be opened in any way\n  \
             type1: /dev/vfio/vfio is missing\n    remedy: modprobe it\n  \
             iommufd: /dev/iommu is missing\n    remedy: modprobe it"
        );
    }
}
