//! The `vfio-dma` command, and the runner of virtual machines that it shares with the tests.

pub mod bench;
pub mod cli;
mod progress;
pub mod rtl;
pub mod serve;
pub mod soak;
pub mod vm;
