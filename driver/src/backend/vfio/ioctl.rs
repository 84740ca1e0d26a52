//! The VFIO requests that `vfio-ioctls` does not expose, or whose errors it swallows.
//!
//! Numbers and structures are those of `include/uapi/linux/vfio.h`; the structures come
//! from `vfio-bindings`.

use vfio_bindings::bindings::vfio::{
    vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap, vfio_iommu_type1_info, vfio_irq_set,
};

const TYPE: u8 = b';';
const BASE: u8 = 100;

nix::ioctl_write_ptr_bad!(
    /// VFIO_DEVICE_SET_IRQS: connects, masks, unmasks or triggers vectors.
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
