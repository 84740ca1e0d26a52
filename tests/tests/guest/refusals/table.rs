//! The kernel's error table: each request to VFIO and iommufd that the driver makes, each errno
//! that the kernel has for it, and what the driver makes of that.
//!
//! The errnos are those that `include/uapi/linux/vfio.h` and `iommufd.h` name, and those that the
//! request's implementation can return in Linux 7.3 (`drivers/vfio/{container,group,device_cdev,
//! vfio_main,vfio_iommu_type1}.c`, `drivers/vfio/pci/`, `drivers/iommu/iommufd/`). EFAULT, E2BIG and
//! what else only a mistake of the driver brings about has no remedy; its message has the values.

use nix::errno::Errno::{self, *};

use super::kernel::Node::{self, Container, Device, Group, Iommufd};
use super::provoke as make;
use super::provoke::Outcome;

/// What the driver makes of an errno: the variant of its error, and a part of the remedy, empty
/// where there is none.
pub(crate) type Refusal = (Errno, &'static str, &'static str);

/// A request, as one operation of the driver makes it.
pub(crate) struct Row {
    pub(crate) node: Node,
    /// Its number (`VFIO_BASE` is 100).
    pub(crate) number: u32,
    pub(crate) name: &'static str,
    /// The operation that ends with it.
    pub(crate) operation: fn() -> Outcome,
    /// What each message has in it.
    pub(crate) values: &'static [&'static str],
    pub(crate) refusals: &'static [Refusal],
    pub(crate) above_zero: Above,
}

impl Row {
    /// Whether the kernel of this guest lets the operation succeed: none of its functions has
    /// virtual ones, so that none takes a token.
    pub(crate) fn succeeds(&self) -> bool {
        !self.values.contains(&TOKEN)
    }
}

/// What a number above 0 is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Above {
    /// No success: an error of this variant.
    Error(&'static str),
    /// A yes.
    Yes,
    /// A new descriptor.
    Descriptor,
}

use Above::{Descriptor, Error, Yes};

const BUG: &str = "";
const LEFT: &str = "bind it again";
const MEMORY: &str = "cgroup";
const AGAIN: &str = "try again";
const DEAD: &str = "rescan";
const OLD: &str = "later kernel";
const HOLDERS: &str = "fuser -v /dev/vfio";
const UNSAFE: &str = "allow_unsafe_interrupts=1";
const CAPABILITY: &str = "setcap cap_sys_rawio";
const IOAS: &str = "no address space of this id";

macro_rules! row {
    ($node:ident $number:literal $name:ident, $operation:path, $values:expr, $above:expr,
     [$($errno:ident $variant:ident $remedy:expr),* $(,)?]) => {
        Row {
            node: $node,
            number: $number,
            name: stringify!($name),
            operation: $operation,
            values: &$values,
            refusals: &[$(($errno, stringify!($variant), $remedy)),*],
            above_zero: $above,
        }
    };
}

const TOKEN: &str = "token";
const EDU: &str = "0000:00:05.0";
const DRIVE: &str = "0000:01:00.0";
const NODE: &str = "/dev/vfio/vfio";
const OS: Above = Error("Os");

/// What containers and groups are asked for.
pub(crate) const TYPE1: &[Row] = &[
    row!(Container 100 VFIO_GET_API_VERSION, make::container, [NODE, "version"],
        Error("Unsupported"), [ENOTTY Os "has VFIO", EINVAL Os "has VFIO"]),
    row!(Container 100 VFIO_GET_API_VERSION, make::container_from_fd, [NODE, "version"],
        Error("Unsupported"), [ENOTTY Os "has VFIO", EINVAL Os "has VFIO"]),
    // "1 (or some other positive integer) if supported".
    row!(Container 101 VFIO_CHECK_EXTENSION, make::container, [NODE, "a kind of IOMMU"],
        Yes, [ENOTTY Os "has VFIO", EINVAL Os "has VFIO"]),
    row!(Container 101 VFIO_CHECK_EXTENSION, make::container_from_fd, [NODE, "a kind of IOMMU"],
        Yes, [ENOTTY Os "has VFIO", EINVAL Os "has VFIO"]),
    row!(Group 103 VFIO_GROUP_GET_STATUS, make::open_type1, [EDU, "its group's state"], OS,
        [EFAULT Os BUG, EINVAL Os BUG, ENODEV Os LEFT]),
    row!(Group 104 VFIO_GROUP_SET_CONTAINER, make::open_type1, [EDU], OS, [
        EFAULT Os BUG, EBADF Os BUG, EBADFD Os BUG, EPERM Os BUG, ENODEV Os LEFT, ENOMEM Os MEMORY,
        EINVAL Precondition "pass the container", EBUSY Precondition HOLDERS]),
    row!(Group 104 VFIO_GROUP_SET_CONTAINER, make::join_second, ["0000:00:06.0"],
        Error("NotShareable"), [
        EINVAL NotShareable BUG, EPERM NotShareable BUG, ENOMEM NotShareable BUG,
        EBUSY Precondition HOLDERS]),
    row!(Container 102 VFIO_SET_IOMMU, make::open_type1, [], OS, [
        EINVAL Os BUG, EBUSY Os BUG, ENOMEM Os MEMORY, EPERM Precondition UNSAFE,
        ENODEV Precondition "CONFIG_VFIO_IOMMU_TYPE1"]),
    row!(Group 106 VFIO_GROUP_GET_DEVICE_FD, make::open_type1, [EDU], Descriptor, [
        EFAULT Os BUG, EINVAL Os "has no IOMMU", EPERM Os CAPABILITY, ENODEV Os LEFT,
        ENOMEM Os MEMORY, EMFILE Os "ulimit -n", ENFILE Os "fs.file-max", EAGAIN Os AGAIN,
        EIO Os DEAD, EACCES Precondition "with a token", EBUSY Precondition HOLDERS]),
    row!(Group 106 VFIO_GROUP_GET_DEVICE_FD, make::open_type1_with_token, [EDU, TOKEN], Descriptor,
        [EINVAL Os "sriov_numvfs", EACCES Precondition "with a token"]),
    row!(Device 107 VFIO_DEVICE_GET_INFO, make::open_passed, [EDU, "what it is"], OS,
        [EFAULT Os BUG, EINVAL Os BUG, ENOMEM Os MEMORY, EIO Os DEAD]),
    row!(Container 112 VFIO_IOMMU_GET_INFO, make::type1_info, ["IOVA ranges"], OS,
        [EFAULT Os BUG, EINVAL Os BUG, ENOMEM Os MEMORY]),
    row!(Container 113 VFIO_IOMMU_MAP_DMA, make::type1_map, ["8192 bytes", "0x100000", "writes"],
        OS, [
        EFAULT Os "memfd", EOVERFLOW Os BUG, EINVAL Os "reserved_regions",
        EEXIST Os "mapped already", ENOSPC Os "dma_entry_limit", ENOMEM Os "smaller buffer"]),
    row!(Container 114 VFIO_IOMMU_UNMAP_DMA, make::type1_unmap, ["8192 bytes", "0x100000"], OS,
        [EFAULT Os BUG, EINVAL Os BUG, EOVERFLOW Os BUG]),
];

/// What a device is asked for, whichever way it was opened.
pub(crate) const DEVICE: &[Row] = &[
    row!(Device 108 VFIO_DEVICE_GET_REGION_INFO, make::open, [EDU], OS, [
        EFAULT Os BUG, ENOMEM Os MEMORY, EIO Os DEAD,
        // Of a region that is not there; without configuration space nothing goes.
        EINVAL Unsupported BUG]),
    row!(Device 109 VFIO_DEVICE_GET_IRQ_INFO, make::open, [EDU], OS,
        [EFAULT Os BUG, EIO Os DEAD]),
    row!(Device 110 VFIO_DEVICE_SET_IRQS, make::enable_messages, ["2", "MSI-X vectors"],
        Error("FewerVectors"), [
        EFAULT Os BUG, EBADF Os BUG, ENOTTY Os OLD, ENODEV Os LEFT, ENOMEM Os MEMORY, EIO Os DEAD,
        EBUSY Os BUG, EINVAL Os "disable it first", ENOSPC Os "no interrupt vector left"]),
    row!(Device 110 VFIO_DEVICE_SET_IRQS, make::enable_intx, [DRIVE, "INTx"],
        Error("FewerVectors"), [ENODEV Os "use MSI", EBUSY Os "use MSI"]),
    row!(Device 110 VFIO_DEVICE_SET_IRQS, make::trigger, [DRIVE, "MSI-X vector 1"], OS,
        [EINVAL Os "enable it first", ENOTTY Os OLD, EIO Os DEAD]),
    row!(Device 110 VFIO_DEVICE_SET_IRQS, make::mask, [DRIVE, "masking INTx"], OS,
        [EINVAL Os "enable it first", ENOTTY Os OLD, EIO Os DEAD]),
    row!(Device 110 VFIO_DEVICE_SET_IRQS, make::disable, [DRIVE, "MSI-X"], OS,
        [ENOTTY Os OLD, EIO Os DEAD]),
    row!(Device 110 VFIO_DEVICE_SET_IRQS, make::notify, [DRIVE, "Removal"], OS,
        [EBADF Os BUG, ENOMEM Os MEMORY, EIO Os DEAD]),
    row!(Device 111 VFIO_DEVICE_RESET, make::reset, [DRIVE, "resetting the function"], OS, [
        EINVAL Os "reset_method", ENOTTY Os "reset_method", EAGAIN Os AGAIN, EIO Os DEAD]),
    // ENOSPC and ENODEV are the header's.
    row!(Device 112 VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, make::bus_reset_scope, [DRIVE], OS, [
        ENOSPC Os BUG, ENODEV Os "root bus", EFAULT Os BUG, EINVAL Os BUG, ERANGE Os BUG,
        EPERM Os BUG, ENOMEM Os MEMORY, EAGAIN Os AGAIN, EIO Os DEAD]),
    row!(Device 113 VFIO_DEVICE_PCI_HOT_RESET, make::reset_bus, [DRIVE, "resetting its bus"], OS, [
        EFAULT Os BUG, EBADF Os BUG, EINVAL Os "bound to vfio-pci", ENODEV Os "bound to vfio-pci",
        EBUSY Os AGAIN, EAGAIN Os AGAIN, ENOTTY Os "dmesg", ENOMEM Os MEMORY, EIO Os DEAD]),
    row!(Device 117 VFIO_DEVICE_FEATURE, make::dma_buf, ["0000:00:06.0", "BAR2"], Descriptor, [
        ENOTTY Os "type1", EOPNOTSUPP Os "type1", EFAULT Os BUG, EINVAL Os BUG, ENODEV Os LEFT,
        ENOMEM Os MEMORY, EMFILE Os "ulimit -n", EIO Os DEAD]),
];

/// What iommufd, and a device of its own node, are asked for.
pub(crate) const IOMMUFD: &[Row] = &[
    row!(Device 118 VFIO_DEVICE_BIND_IOMMUFD, make::open_iommufd, [EDU], OS, [
        EFAULT Os BUG, E2BIG Os BUG, EBADF Os BUG, EBADFD Os BUG, ENODEV Os LEFT,
        ENOMEM Os MEMORY, EAGAIN Os AGAIN, EIO Os DEAD,
        EINVAL Precondition HOLDERS, EBUSY Precondition HOLDERS,
        EACCES Precondition "with a token", EPERM Precondition UNSAFE]),
    row!(Device 118 VFIO_DEVICE_BIND_IOMMUFD, make::open_iommufd_with_token, [EDU, TOKEN],
        OS, [EINVAL Os "6.17"]),
    row!(Device 119 VFIO_DEVICE_ATTACH_IOMMUFD_PT, make::open_iommufd, [EDU], OS, [
        EFAULT Os BUG, ENOENT Os IOAS, EBUSY Os AGAIN, EOPNOTSUPP Os OLD, ENODEV Os LEFT,
        ENOMEM Os MEMORY, EIO Os DEAD, EPERM Precondition UNSAFE,
        EINVAL NotShareable BUG, EADDRINUSE NotShareable BUG, EMEDIUMTYPE NotShareable BUG]),
    row!(Iommufd 129 IOMMU_IOAS_ALLOC, make::ioas, ["I/O address space"], OS, [
        ENOTTY Os OLD, EOPNOTSUPP Os OLD, EFAULT Os BUG, EINVAL Os BUG, E2BIG Os BUG,
        ENOMEM Os MEMORY]),
    row!(Iommufd 132 IOMMU_IOAS_IOVA_RANGES, make::ioas, ["I/O address space"], OS, [
        ENOENT Os IOAS, EMSGSIZE Os BUG, EOPNOTSUPP Os OLD, EFAULT Os BUG, EINVAL Os BUG,
        E2BIG Os BUG]),
    row!(Iommufd 132 IOMMU_IOAS_IOVA_RANGES, make::ioas_info, ["IOVA ranges"], OS,
        [ENOENT Os IOAS, EMSGSIZE Os BUG]),
    row!(Iommufd 133 IOMMU_IOAS_MAP, make::ioas_map, ["8192 bytes", "0x100000", "writes"], OS, [
        EFAULT Os "memfd", EINVAL Os "reserved_regions", EEXIST Os "mapped already",
        ENOMEM Os "smaller buffer", ENOENT Os IOAS, EOVERFLOW Os BUG, EPERM Os BUG,
        EOPNOTSUPP Os OLD, E2BIG Os BUG]),
    row!(Iommufd 143 IOMMU_IOAS_MAP_FILE, make::ioas_map_file, ["4096 bytes", "BAR", "0x200000"],
        OS, [
        ENOTTY Os "type1", EINVAL Os "type1", EOPNOTSUPP Os "type1", EEXIST Os "mapped already",
        ENOENT Os IOAS, EBADF Os BUG, EFAULT Os BUG, EOVERFLOW Os BUG, EPERM Os BUG,
        ENODEV Os LEFT, ENOMEM Os MEMORY, E2BIG Os BUG]),
    row!(Iommufd 134 IOMMU_IOAS_UNMAP, make::ioas_unmap, ["8192 bytes", "0x100000"], OS, [
        ENOENT Os BUG, EBUSY Os BUG, EDEADLK Os BUG, EINVAL Os BUG, EOVERFLOW Os BUG, EFAULT Os BUG,
        E2BIG Os BUG, ENOMEM Os MEMORY]),
];

/// What no-IOMMU mode asks of containers and groups.
pub(crate) const NO_IOMMU: &[Row] = &[
    row!(Group 104 VFIO_GROUP_SET_CONTAINER, make::open_without_iommu, [EDU], OS, [
        EFAULT Os BUG, EINVAL Os BUG, ENODEV Os LEFT, EPERM Precondition CAPABILITY,
        EBUSY Precondition HOLDERS]),
    row!(Container 102 VFIO_SET_IOMMU, make::open_without_iommu, [EDU], OS, [
        EINVAL Os BUG, ENODEV Os LEFT, ENOMEM Os MEMORY, EPERM Precondition CAPABILITY]),
    row!(Group 106 VFIO_GROUP_GET_DEVICE_FD, make::open_without_iommu, [EDU], Descriptor, [
        EPERM Os CAPABILITY, EINVAL Os "has no IOMMU", EBUSY Precondition HOLDERS]),
];

/// What is asked when something is given back, where there is nobody to tell but the log.
pub(crate) const LOGGED: &[Row] = &[
    row!(Device 120 VFIO_DEVICE_DETACH_IOMMUFD_PT, make::close_iommufd, [EDU, "detaching"], OS,
        [EFAULT Os BUG, EINVAL Os BUG, EOPNOTSUPP Os BUG, EIO Os BUG]),
    row!(Iommufd 128 IOMMU_DESTROY, make::destroy_ioas, ["I/O address space", "stays"], OS,
        [ENOENT Os BUG, EBUSY Os BUG, EINVAL Os BUG, EFAULT Os BUG, E2BIG Os BUG]),
];
