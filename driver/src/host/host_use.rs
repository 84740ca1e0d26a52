//! What the host uses a function for.
//!
//! Taking a driver away from a function that is in use loses data: the kernel does not ask.

use std::fmt;
use std::path::PathBuf;

use crate::pci::sysfs::join;
use crate::pci::{Address, ClassCode};

/// One thing that the host uses a function for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostUse {
    /// It is a part of the machine: a bridge or an IOMMU.
    Platform {
        /// What it is.
        class: ClassCode,
    },
    /// Its virtual functions exist, and vanish with its driver.
    VirtualFunctions {
        /// The function that they belong to.
        physical: Address,
        /// Their addresses.
        functions: Vec<String>,
    },
    /// A file system on it is mounted.
    Mount {
        /// The block device, such as `nvme0n1p1`.
        device: String,
        /// Where it is mounted.
        at: String,
    },
    /// The machine swaps to it.
    Swap {
        /// The block device.
        device: String,
    },
    /// Another block device is made of it: device mapper, RAID, a cache.
    Holder {
        /// The block device.
        device: String,
        /// What is made of it, such as `dm-0 (vg-root)`.
        holder: String,
    },
    /// Something has the block device for itself that does not show otherwise.
    Claimed {
        /// The block device.
        device: String,
    },
    /// A process has one of its device nodes open, or a BAR through sysfs.
    Open {
        /// The node, such as `/dev/nvme0n1`.
        node: PathBuf,
        /// The process.
        pid: u32,
        /// Its command name.
        command: String,
    },
    /// A network interface of it is up, has addresses, or is a part of another one.
    Interface {
        /// Its name.
        name: String,
        /// Whether it is up.
        up: bool,
        /// Its addresses.
        addresses: Vec<String>,
        /// The bridge or bond that it belongs to.
        master: Option<String>,
    },
    /// Its network interface is in another network namespace, such as a container's.
    InterfaceElsewhere,
    /// The kernel's messages go to it.
    Console {
        /// The terminal, such as `ttyS4`.
        name: String,
    },
}

impl fmt::Display for HostUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostUse::Platform { class } => {
                write!(f, "it is a part of the machine: {} (class {class})", class.name())
            }
            HostUse::VirtualFunctions { functions, .. } => {
                write!(f, "its virtual functions exist: {}", join(functions))
            }
            HostUse::Mount { device, at } => write!(f, "{device} is mounted at {at}"),
            HostUse::Swap { device } => write!(f, "the machine swaps to {device}"),
            HostUse::Holder { device, holder } => write!(f, "{holder} is made of {device}"),
            HostUse::Claimed { device } => {
                write!(f, "the kernel or a program has {device} for itself")
            }
            HostUse::Open { node, pid, command } => {
                write!(f, "process {pid} ({command}) has {} open", node.display())
            }
            HostUse::Interface { name, up, addresses, master } => {
                let mut states = Vec::new();
                states.extend(up.then(|| "is up".to_owned()));
                states.extend((!addresses.is_empty()).then(|| format!("has {}", join(addresses))));
                states.extend(master.as_ref().map(|master| format!("is a part of {master}")));
                write!(f, "network interface {name} {}", states.join(", "))
            }
            HostUse::InterfaceElsewhere => {
                f.write_str("its network interface is in another network namespace")
            }
            HostUse::Console { name } => write!(f, "{name} is a console of the kernel"),
        }
    }
}

impl HostUse {
    /// What ends the use, where one command does.
    #[must_use]
    pub fn command(&self) -> Option<String> {
        match self {
            HostUse::Mount { at, .. } => Some(format!("umount {at}")),
            HostUse::Swap { device } => Some(format!("swapoff /dev/{device}")),
            HostUse::VirtualFunctions { physical, .. } => {
                Some(format!("echo 0 > /sys/bus/pci/devices/{physical}/sriov_numvfs"))
            }
            // Not its own end, for whoever asks.
            HostUse::Open { pid, .. } if *pid == std::process::id() => None,
            HostUse::Open { pid, .. } => Some(format!("kill {pid}")),
            HostUse::Interface { name, up, addresses, master } => {
                let mut commands = Vec::new();
                commands.extend(master.as_ref().map(|_| format!("ip link set {name} nomaster")));
                let flush = !addresses.is_empty();
                commands.extend(flush.then(|| format!("ip address flush dev {name}")));
                commands.extend(up.then(|| format!("ip link set {name} down")));
                Some(commands.join(" && "))
            }
            HostUse::Platform { .. }
            | HostUse::Holder { .. }
            | HostUse::Claimed { .. }
            | HostUse::InterfaceElsewhere
            | HostUse::Console { .. } => None,
        }
    }
}
