//! What a reader of an error can do about it.

use std::fmt;
use std::path::PathBuf;

use crate::pci::Address;

/// What mends an error.
///
/// The text names files, limits and programs of the operating system. A program with
/// commands or options of its own for one of these tells them where it shows the error.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Remedy {
    /// Look up which PCI functions there are.
    ListFunctions,
    /// Bind the function to vfio-pci.
    BindToVfioPci {
        /// The function.
        address: Address,
    },
    /// Take the function from vfio-pci and bind it again.
    Rebind {
        /// The function.
        address: Address,
    },
    /// Give the function its former driver back, once the kernel is done with it.
    Unbind {
        /// The function.
        address: Address,
    },
    /// Bind the other members of an IOMMU group to vfio-pci, or to no driver.
    FreeGroup {
        /// The members in the way: PCI addresses, or names of devices on other buses.
        members: Vec<String>,
    },
    /// Have the machine and its kernel use the IOMMU.
    EnableIommu,
    /// Ask for VFIO's no-IOMMU mode by name, which takes protection away, or enable the IOMMU.
    AskForNoIommu,
    /// Switch VFIO's no-IOMMU mode on.
    EnableNoIommu {
        /// The kernel's switch; none when the module with the mode is not loaded.
        parameter: Option<PathBuf>,
    },
    /// Open the function through its IOMMU.
    UseIommu,
    /// Open the function through its IOMMU group: the kernel has no other way.
    UseType1,
    /// Load a module of the kernel.
    LoadModule {
        /// The module.
        module: &'static str,
        /// The kernel options that build it, and since when there is one.
        kernel: &'static str,
    },
    /// Install the modules of the running kernel.
    InstallModules {
        /// The kernel option that builds the module which is missing.
        option: &'static str,
    },
    /// Have the IOMMU remap interrupts, or accept that it does not.
    AllowUnsafeInterrupts {
        /// The module whose parameter accepts it.
        module: &'static str,
    },
    /// Run a kernel with these options.
    KernelOptions {
        /// The options, and since when there are any.
        options: &'static str,
    },
    /// Raise the limit on locked memory.
    RaiseMemlock {
        /// The limit in bytes.
        limit: u64,
        /// Bytes to be locked.
        needed: u64,
    },
    /// Raise the limit on memory that the processes of a user pin together.
    RaiseUserMemlock {
        /// The limit in bytes.
        limit: u64,
        /// Bytes to be pinned.
        needed: u64,
    },
    /// Raise the limit on open files.
    RaiseOpenFiles,
    /// Open the physical function with a VF token, and its virtual functions with the same.
    GiveVfToken {
        /// The physical function.
        physical: Address,
    },
    /// Run as root.
    RunAsRoot,
    /// Give a user access to a device node.
    GrantAccess {
        /// The user's id.
        user: u32,
        /// The node.
        node: PathBuf,
    },
    /// Give the program a capability, as `setcap` names it.
    GrantCapability {
        /// The capability.
        capability: &'static str,
    },
    /// End another process, which uses the device.
    EndHolders {
        /// What they have open, where they are not known by name.
        node: Option<PathBuf>,
    },
    /// End what the host uses a function for.
    EndUses {
        /// Commands of the operating system that do, as far as there are any.
        commands: Vec<String>,
    },
    /// Use the device that this process has open, or drop it first.
    UseOpenDevice,
    /// Reset the function: it may have lost or damaged what it was doing.
    ResetFunction,
    /// Bind functions to vfio-pci, and open them in this process as well.
    OwnFunctions {
        /// Which.
        functions: Vec<Address>,
    },
    /// Give a device memory of another through type1: the kernel has no dma-bufs of BARs.
    LendThroughType1,
    /// Open the device through the session that has its IOMMU group open.
    UseSameSession,
    /// Start a vfio-user server.
    StartServer {
        /// The socket that it is to listen on.
        socket: PathBuf,
        /// What to do first, or instead.
        first: &'static str,
    },
    /// Rescan the bus, or switch the machine's power off and on.
    BringBack,
    /// Let the function answer accesses to its memory or its I/O ports.
    EnableDecoding {
        /// The function.
        address: Address,
        /// The ports, not the memory.
        ports: bool,
    },
    /// Keep the kernel from suspending the function.
    KeepAwake {
        /// The function.
        address: Address,
    },
    /// Read what the kernel logged.
    ReadKernelLog,
    /// Check what VFIO needs of this machine.
    CheckSetup,
    /// Something else, in words.
    Text(String),
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remedy::ListFunctions => f.write_str("/sys/bus/pci/devices shows what is there"),
            Remedy::BindToVfioPci { address } => write!(f, "bind {address} to vfio-pci"),
            Remedy::Rebind { address } => {
                write!(f, "unbind {address} from vfio-pci and bind the device again")
            }
            Remedy::Unbind { address } => {
                write!(f, "give {address} its former driver back once the kernel is done")
            }
            Remedy::FreeGroup { members } => {
                let members =
                    if members.is_empty() { "the members".into() } else { members.join(", ") };
                write!(f, "bind {members} to vfio-pci as well, or to no driver")
            }
            Remedy::EnableIommu => f.write_str(
                "enable the IOMMU in the firmware and on the kernel command line (intel_iommu=on)",
            ),
            Remedy::AskForNoIommu => write!(
                f,
                "{}; or, accepting that the device reaches all memory, ask for no-IOMMU mode by \
                 name",
                Remedy::EnableIommu
            ),
            Remedy::EnableNoIommu { parameter: None } => f.write_str(
                "modprobe vfio enable_unsafe_noiommu_mode=1, on a kernel with \
                 CONFIG_VFIO_NOIOMMU",
            ),
            Remedy::EnableNoIommu { parameter: Some(path) } => write!(
                f,
                "accepting that the device reaches all memory: echo Y > {}, and bind the device \
                 again",
                path.display()
            ),
            Remedy::OwnFunctions { functions } => {
                let functions: Vec<String> = functions.iter().map(Address::to_string).collect();
                let functions = functions.join(", ");
                write!(f, "bind {functions} to vfio-pci and open them in this process as well")
            }
            Remedy::LendThroughType1 => f.write_str(
                "this takes a kernel whose VFIO makes dma-bufs of BARs (CONFIG_PCI_P2PDMA) and \
                 whose iommufd maps them, such as Linux 7.3; on others open both devices through \
                 their groups: type1",
            ),
            Remedy::UseIommu => f.write_str("open it through the IOMMU: type1 or iommufd"),
            Remedy::UseType1 => f.write_str(
                "this takes a kernel with CONFIG_VFIO_DEVICE_CDEV (Linux 6.6); on others open it \
                 through its group: type1",
            ),
            Remedy::LoadModule { module, kernel } => {
                write!(f, "modprobe {module} (kernel option {kernel})")
            }
            Remedy::InstallModules { option } => write!(
                f,
                "install the package with the modules of the running kernel (`uname -r` names \
                 it; Debian: linux-image, Ubuntu: linux-modules, Fedora: kernel-modules), or \
                 build the kernel with {option}=m"
            ),
            Remedy::AllowUnsafeInterrupts { module } => write!(
                f,
                "enable interrupt remapping in the firmware, or, accepting that the device can \
                 forge interrupts, set allow_unsafe_interrupts=1 of the module {module}"
            ),
            Remedy::KernelOptions { options } => write!(f, "this takes a kernel with {options}"),
            Remedy::RaiseMemlock { limit, needed } => write!(
                f,
                "the limit on locked memory is {limit} bytes and the buffer has {needed}: raise \
                 RLIMIT_MEMLOCK (`ulimit -l`, or `memlock` in /etc/security/limits.conf), or ask \
                 for a smaller buffer"
            ),
            Remedy::RaiseUserMemlock { limit, needed } => write!(
                f,
                "the buffer has {needed} bytes, and all processes of this user may pin {limit} \
                 bytes together through iommufd: raise RLIMIT_MEMLOCK (`ulimit -l`, or `memlock` \
                 in /etc/security/limits.conf), end what else pins memory, or open the device \
                 through type1, which counts for each process by itself"
            ),
            Remedy::RaiseOpenFiles => f.write_str(
                "raise the limit on open files (`ulimit -n`, or `nofile` in \
                 /etc/security/limits.conf)",
            ),
            Remedy::GiveVfToken { physical } => write!(
                f,
                "open {physical} with a token of your choice, a UUID, and its virtual functions \
                 with the same"
            ),
            Remedy::RunAsRoot => f.write_str("run as root (sudo)"),
            Remedy::GrantAccess { user, node } => {
                let node = node.display();
                write!(f, "run as root, or give the user access: chown {user} {node}")
            }
            Remedy::GrantCapability { capability } => write!(
                f,
                "run as root, or give the program the capability: setcap {capability}+ep PROGRAM"
            ),
            Remedy::EndHolders { node: None } => f.write_str("end it first"),
            Remedy::EndHolders { node: Some(node) } => {
                let node = node.display();
                write!(f, "end the process that has it open; `fuser -v {node}` names it")
            }
            Remedy::EndUses { commands } if commands.is_empty() => {
                f.write_str("take another function, or end that first")
            }
            Remedy::EndUses { commands } => {
                write!(f, "take another function, or end that first: {}", commands.join("; "))
            }
            Remedy::UseOpenDevice => {
                f.write_str("use the device that this process has open, or drop it first")
            }
            Remedy::ResetFunction => {
                f.write_str("reset the function and begin anew; `dmesg` names the error")
            }
            Remedy::UseSameSession => f.write_str("open it through the same session"),
            Remedy::StartServer { first, .. } => f.write_str(first),
            Remedy::BringBack => f.write_str(
                "it was removed, lost power or hangs; a rescan (echo 1 > /sys/bus/pci/rescan) or \
                 a power cycle may bring it back",
            ),
            Remedy::EnableDecoding { address, ports } => {
                let (bit, what) = if *ports { (1, "I/O") } else { (2, "memory") };
                write!(
                    f,
                    "set the {what} space bit of the command register: setpci -s {address} \
                     COMMAND={bit}:{bit}"
                )
            }
            Remedy::KeepAwake { address } => {
                write!(f, "echo on > /sys/bus/pci/devices/{address}/power/control")
            }
            Remedy::ReadKernelLog => f.write_str("the end of `dmesg` says why"),
            Remedy::CheckSetup => f.write_str(
                "check that the kernel has VFIO, that the device is bound to vfio-pci, and that \
                 this user may open its nodes below /dev/vfio",
            ),
            Remedy::Text(text) => f.write_str(text),
        }
    }
}

impl From<String> for Remedy {
    fn from(text: String) -> Remedy {
        Remedy::Text(text)
    }
}

impl From<&str> for Remedy {
    fn from(text: &str) -> Remedy {
        Remedy::Text(text.to_owned())
    }
}

/// A remedy as the last line of an error's text; nothing without one.
pub(crate) fn suffix(remedy: Option<&Remedy>) -> String {
    remedy.map(|remedy| format!("\n  remedy: {remedy}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_of_the_operating_system_and_of_no_program_of_ours() {
        let address: Address = "0000:00:05.0".parse().unwrap();
        for remedy in [
            Remedy::ListFunctions,
            Remedy::BindToVfioPci { address },
            Remedy::Rebind { address },
            Remedy::Unbind { address },
            Remedy::FreeGroup { members: vec!["0000:00:05.1".into()] },
            Remedy::AskForNoIommu,
            Remedy::EnableNoIommu { parameter: Some("/sys/x".into()) },
            Remedy::UseIommu,
            Remedy::UseType1,
            Remedy::StartServer { socket: "/tmp/x".into(), first: "start a server there" },
            Remedy::CheckSetup,
            Remedy::EndUses { commands: vec!["umount /mnt".into()] },
            Remedy::EndUses { commands: vec![] },
            Remedy::GiveVfToken { physical: address },
            Remedy::RaiseUserMemlock { limit: 65_536, needed: 262_144 },
            Remedy::RaiseOpenFiles,
        ] {
            let text = remedy.to_string();
            assert!(!text.is_empty() && !text.contains('\n'), "{text}");
            assert!(!text.contains("vfio-dma") && !text.contains("--"), "{text}");
        }
        let remedy = Remedy::RaiseMemlock { limit: 65_536, needed: 262_144 };
        let text = remedy.to_string();
        assert!(text.contains("65536") && text.contains("262144"), "{text}");
        assert_eq!(suffix(Some(&"x".into())), "\n  remedy: x");
        assert_eq!(suffix(None), "");
    }
}
