//! The requests to VFIO and iommufd.
//!
//! Numbers and structures are those of `include/uapi/linux/vfio.h` and `iommufd.h`; the
//! structures come from `vfio-bindings` and `iommufd-bindings`.

#[cfg(feature = "iommufd")]
use iommufd_bindings::iommufd;
use nix::errno::Errno;
#[cfg(feature = "iommufd")]
use vfio_bindings::bindings::vfio::{
    vfio_device_attach_iommufd_pt, vfio_device_bind_iommufd, vfio_device_detach_iommufd_pt,
};
use vfio_bindings::bindings::vfio::{
    vfio_device_feature, vfio_device_info, vfio_group_status, vfio_iommu_type1_dma_map,
    vfio_iommu_type1_dma_unmap, vfio_iommu_type1_info, vfio_irq_info, vfio_irq_set,
    vfio_pci_hot_reset, vfio_pci_hot_reset_info, vfio_region_info,
};

/// The outcome of a request that the header promises 0 for: another number is not success.
pub(super) fn done(status: nix::Result<libc::c_int>) -> nix::Result<()> {
    match status? {
        0 => Ok(()),
        _ => Err(Errno::EPROTO),
    }
}

const TYPE: u8 = b';';
const BASE: u8 = 100;

nix::ioctl_write_ptr_bad!(
    /// VFIO_DEVICE_SET_IRQS: connects, masks, unmasks or triggers vectors. A number above 0
    /// says how many vectors could be had of those asked for, and none is connected.
    device_set_irqs,
    nix::request_code_none!(TYPE, BASE + 10),
    vfio_irq_set
);
nix::ioctl_none_bad!(
    /// VFIO_DEVICE_RESET: resets the function.
    device_reset,
    nix::request_code_none!(TYPE, BASE + 11)
);
nix::ioctl_readwrite_bad!(
    /// VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: the functions that a reset of slot or bus hits.
    device_get_pci_hot_reset_info,
    nix::request_code_none!(TYPE, BASE + 12),
    vfio_pci_hot_reset_info
);
nix::ioctl_write_ptr_bad!(
    /// VFIO_DEVICE_PCI_HOT_RESET: resets slot or bus, with the groups of all that is hit, or
    /// without for a device that is bound to an iommufd.
    device_pci_hot_reset,
    nix::request_code_none!(TYPE, BASE + 13),
    vfio_pci_hot_reset
);
nix::ioctl_readwrite_bad!(
    /// VFIO_IOMMU_GET_INFO: page sizes, and a chain of capabilities when `argsz` has room.
    iommu_get_info,
    nix::request_code_none!(TYPE, BASE + 12),
    vfio_iommu_type1_info
);
nix::ioctl_write_ptr_bad!(
    /// VFIO_IOMMU_MAP_DMA: maps process memory at an IOVA.
    iommu_map_dma,
    nix::request_code_none!(TYPE, BASE + 13),
    vfio_iommu_type1_dma_map
);
nix::ioctl_readwrite_bad!(
    /// VFIO_IOMMU_UNMAP_DMA: unmaps a range and reports how many bytes were unmapped.
    iommu_unmap_dma,
    nix::request_code_none!(TYPE, BASE + 14),
    vfio_iommu_type1_dma_unmap
);

nix::ioctl_none_bad!(
    /// VFIO_GET_API_VERSION: the container's version, 0 for all of today's kernels.
    get_api_version,
    nix::request_code_none!(TYPE, BASE)
);
nix::ioctl_write_int_bad!(
    /// VFIO_CHECK_EXTENSION: whether the container has a kind of IOMMU, 1 or 0.
    check_extension,
    nix::request_code_none!(TYPE, BASE + 1)
);
nix::ioctl_write_int_bad!(
    /// VFIO_SET_IOMMU: sets the kind of IOMMU of a container that has a group.
    set_iommu,
    nix::request_code_none!(TYPE, BASE + 2)
);
nix::ioctl_readwrite_bad!(
    /// VFIO_GROUP_GET_STATUS: whether the group can be used, and is in a container.
    group_get_status,
    nix::request_code_none!(TYPE, BASE + 3),
    vfio_group_status
);
nix::ioctl_write_ptr_bad!(
    /// VFIO_GROUP_SET_CONTAINER: puts the group into the container with this descriptor.
    group_set_container,
    nix::request_code_none!(TYPE, BASE + 4),
    libc::c_int
);
nix::ioctl_write_ptr_bad!(
    /// VFIO_GROUP_GET_DEVICE_FD: opens the group's device of this name.
    group_get_device_fd,
    nix::request_code_none!(TYPE, BASE + 6),
    libc::c_char
);
nix::ioctl_readwrite_bad!(
    /// VFIO_DEVICE_GET_INFO: the kind of device, and how many regions and interrupts it has.
    device_get_info,
    nix::request_code_none!(TYPE, BASE + 7),
    vfio_device_info
);
nix::ioctl_readwrite_bad!(
    /// VFIO_DEVICE_GET_REGION_INFO: a region, and a chain of capabilities.
    device_get_region_info,
    nix::request_code_none!(TYPE, BASE + 8),
    vfio_region_info
);
nix::ioctl_readwrite_bad!(
    /// VFIO_DEVICE_GET_IRQ_INFO: how many vectors there are of a kind.
    device_get_irq_info,
    nix::request_code_none!(TYPE, BASE + 9),
    vfio_irq_info
);
#[cfg(feature = "iommufd")]
nix::ioctl_readwrite_bad!(
    /// VFIO_DEVICE_BIND_IOMMUFD: gives a device to an iommufd, with the VF token if it takes one.
    device_bind_iommufd,
    nix::request_code_none!(TYPE, BASE + 18),
    vfio_device_bind_iommufd
);
nix::ioctl_write_ptr_bad!(
    /// VFIO_DEVICE_FEATURE: gets, sets or probes a feature; a dma-buf is returned as a descriptor.
    device_feature,
    nix::request_code_none!(TYPE, BASE + 17),
    vfio_device_feature
);
#[cfg(feature = "iommufd")]
nix::ioctl_readwrite_bad!(
    /// VFIO_DEVICE_ATTACH_IOMMUFD_PT: puts a device into an IOAS.
    device_attach_iommufd_pt,
    nix::request_code_none!(TYPE, BASE + 19),
    vfio_device_attach_iommufd_pt
);
#[cfg(feature = "iommufd")]
nix::ioctl_write_ptr_bad!(
    /// VFIO_DEVICE_DETACH_IOMMUFD_PT: takes a device out of its IOAS.
    device_detach_iommufd_pt,
    nix::request_code_none!(TYPE, BASE + 20),
    vfio_device_detach_iommufd_pt
);
#[cfg(feature = "iommufd")]
nix::ioctl_readwrite_bad!(
    /// IOMMU_IOAS_IOVA_RANGES: the ranges that an IOAS maps in, and their alignment.
    ioas_iova_ranges,
    nix::request_code_none!(iommufd::IOMMUFD_TYPE, iommufd::IOMMUFD_CMD_IOAS_IOVA_RANGES),
    iommufd::iommu_ioas_iova_ranges
);
#[cfg(feature = "iommufd")]
nix::ioctl_write_ptr_bad!(
    /// IOMMU_DESTROY: takes an object of an iommufd away.
    iommufd_destroy,
    nix::request_code_none!(iommufd::IOMMUFD_TYPE, iommufd::IOMMUFD_CMD_DESTROY),
    iommufd::iommu_destroy
);
#[cfg(feature = "iommufd")]
nix::ioctl_readwrite_bad!(
    /// IOMMU_IOAS_ALLOC: makes an empty IOAS and tells its id.
    ioas_alloc,
    nix::request_code_none!(iommufd::IOMMUFD_TYPE, iommufd::IOMMUFD_CMD_IOAS_ALLOC),
    iommufd::iommu_ioas_alloc
);
#[cfg(feature = "iommufd")]
nix::ioctl_readwrite_bad!(
    /// IOMMU_IOAS_MAP: maps process memory, and tells at which IOVA.
    ioas_map,
    nix::request_code_none!(iommufd::IOMMUFD_TYPE, iommufd::IOMMUFD_CMD_IOAS_MAP),
    iommufd::iommu_ioas_map
);
#[cfg(feature = "iommufd")]
nix::ioctl_readwrite_bad!(
    /// IOMMU_IOAS_MAP_FILE: maps a memfd or a dma-buf, and tells at which IOVA.
    ioas_map_file,
    nix::request_code_none!(iommufd::IOMMUFD_TYPE, iommufd::IOMMUFD_CMD_IOAS_MAP_FILE),
    iommufd::iommu_ioas_map_file
);
#[cfg(feature = "iommufd")]
nix::ioctl_readwrite_bad!(
    /// IOMMU_IOAS_UNMAP: unmaps a range and tells how many bytes were mapped.
    ioas_unmap,
    nix::request_code_none!(iommufd::IOMMUFD_TYPE, iommufd::IOMMUFD_CMD_IOAS_UNMAP),
    iommufd::iommu_ioas_unmap
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_zero_is_success() {
        assert_eq!(done(Ok(0)), Ok(()));
        assert_eq!(done(Ok(3)), Err(Errno::EPROTO));
        assert_eq!(done(Err(Errno::EBUSY)), Err(Errno::EBUSY));
    }
}
