//! The suites of vfio-dma that need a guest or a model.
