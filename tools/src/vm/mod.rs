//! Virtual machines with PCI devices to drive: what `vfio-dma vm` and the tests run.
//!
//! [`VmConfig`] describes a guest. [`VmConfig::run`] finds or fetches QEMU, kernel and
//! busybox, boots them with an initramfs that holds a static program of ours, runs a command
//! and gives back its output and exit status:
//!
//! ```text
//! config ─ qemu, kernel, full (cache, apt) ─ guest (initramfs, modules) ─ machine, session
//! ```
//!
//! Everything fetched or built is kept in `${XDG_CACHE_HOME:-~/.cache}/vfio-dma`. With what
//! it needs in there a run uses no network; removing the directory makes the next one fetch
//! anew. The environment can name other parts: `VFIO_DMA_QEMU`, `VFIO_DMA_KERNEL`,
//! `VFIO_DMA_BUSYBOX` (paths) and `VFIO_DMA_ACCEL` (`kvm` or `tcg`).

mod accel;
pub(crate) mod apt;
pub(crate) mod cache;
mod config;
mod drive;
mod drive_tools;
pub(crate) mod error;
pub(crate) mod full;
mod guest;
mod initramfs;
mod kernel;
mod machine;
mod modules;
mod package;
mod pciutils;
mod qemu;
mod session;
mod survey;
mod udev;

use std::ffi::OsStr;
use std::time::Duration;

pub use accel::{Accel, Kvm, kvm};
pub use config::{CPUS, Device, FIRST_SLOT, GuestFile, Iommu, MEMORY, NODES, SHARE, VmConfig};
pub use drive::{Image, NvmeDrive};
pub use drive_tools::{FIO, NVME_CLI, fio, nvme_cli};
pub use error::VmError;
pub use guest::Guest;
pub use kernel::Kernel;
pub use modules::Modules;
pub use pciutils::{LSPCI, pciutils};
pub use session::{Finished, Input, Streams};
pub use survey::Survey;
pub use udev::{UDEVADM, UDEVD, udev};

/// What a command in a guest did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit status; 128 + N when signal N ended it.
    pub status: u8,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
    /// The end of what the guest's kernel wrote to its console.
    pub console: Vec<u8>,
    /// Time from the start of QEMU to the start of the command.
    pub boot: Duration,
}

impl VmConfig {
    /// Prepares the guest, boots it, runs `command` in it and collects its output.
    pub fn run<S: AsRef<OsStr>>(&self, command: &[S]) -> Result<Output, VmError> {
        Guest::prepare(self.clone())?.run(command)
    }

    /// As [`VmConfig::run`], with the output passed on as it comes.
    pub fn run_streaming<S: AsRef<OsStr>>(
        &self,
        command: &[S],
        streams: &mut Streams<'_>,
    ) -> Result<Finished, VmError> {
        Guest::prepare(self.clone())?.run_streaming(command, streams)
    }
}
