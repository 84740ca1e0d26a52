//! What can go wrong on the way to a guest and inside it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a guest did not boot, or did not finish its command.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmError {
    /// An operating-system call on a file or process failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// The action and its object.
        what: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A host program that the runner called did not succeed.
    #[error("`{command}` failed ({status}):\n{output}")]
    Tool {
        /// The command line.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The last lines of what it printed.
        output: String,
    },
    /// What this machine lacks to fetch a QEMU and a kernel from a Debian archive.
    #[error(
        "cannot fetch from a Debian archive: {missing}; without it, put a QEMU of version 10.1 or \
         later (`qemu-system-x86_64 -device help` lists vfio-user-pci) into PATH or name it in \
         VFIO_DMA_QEMU, give a kernel with `--kernel PATH` or VFIO_DMA_KERNEL, and a static \
         busybox in VFIO_DMA_BUSYBOX"
    )]
    CannotFetch {
        /// The program or file that is missing.
        missing: String,
    },
    /// A QEMU was named by the caller but does not know `vfio-user-pci`.
    #[error("{path} does not list vfio-user-pci in `-device help`: QEMU 10.1 or later is needed")]
    OldQemu {
        /// The program that was asked.
        path: PathBuf,
    },
    /// A package that was just asked for is not in what was downloaded.
    #[error("the archive has no package that matches {pattern}")]
    NoPackage {
        /// Name or pattern that was looked for.
        pattern: String,
    },
    /// Another process holds the lock of a cache entry for too long.
    #[error("waited {} s for another process that fills {path}; remove the file if none runs", waited.as_secs())]
    CacheBusy {
        /// The lock file.
        path: PathBuf,
        /// How long the wait was.
        waited: Duration,
    },
    /// Something is not in the cache, and nothing is to be added to it.
    #[error("{what} is not in the cache")]
    NotCached {
        /// What was looked for.
        what: String,
    },
    /// A kernel image is not one that x86 boot loaders accept.
    #[error("{path} is not a Linux bzImage: {why}")]
    NotAKernel {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A kernel module was asked for that the kernel neither has nor contains.
    #[error("kernel {release} has no module {name}")]
    NoModule {
        /// Module name as it was asked for.
        name: String,
        /// Release of the kernel.
        release: String,
    },
    /// A module file could not be understood.
    #[error("module {path}: {why}")]
    BadModule {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A program for the guest needs libraries, which the guest does not have.
    #[error(
        "{path} is not a static executable ({why}); build it with `-C target-feature=+crt-static` \
         and an explicit `--target`"
    )]
    NotStatic {
        /// The program.
        path: PathBuf,
        /// What shows it.
        why: String,
    },
    /// The guest's configuration does not make sense.
    #[error("{what} {value:?}: {why}")]
    BadConfig {
        /// Which setting.
        what: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        why: String,
    },
    /// KVM was demanded and does not work.
    #[error("KVM does not boot a guest here: {why}; use `--accel tcg`")]
    NoKvm {
        /// What the probe guest ran into.
        why: String,
    },
    /// The build of a kernel needs programs or headers that are not there.
    #[error("building a kernel needs {missing}; on Debian: `apt-get install {packages}`")]
    NoBuildTools {
        /// What was not found.
        missing: String,
        /// Packages that have it.
        packages: String,
    },
    /// The build of a kernel failed.
    #[error("building the guest's kernel failed; all that it printed is in {log}: {source}")]
    KernelBuild {
        /// Log of the build.
        log: PathBuf,
        /// What failed.
        source: Box<VmError>,
    },
    /// The guest did not come up in time.
    #[error("the guest did not boot within {} s{}", limit.as_secs_f32(), section("console", console))]
    BootTimeout {
        /// The limit.
        limit: Duration,
        /// The end of the guest kernel's console.
        console: String,
    },
    /// The command did not end in time.
    #[error("the command in the guest did not end within {} s{}", limit.as_secs_f32(), section("console", console))]
    CommandTimeout {
        /// The limit.
        limit: Duration,
        /// The end of the guest kernel's console.
        console: String,
    },
    /// QEMU ended before the guest reported its command's exit status.
    #[error("the guest died ({status}){}{}", section("QEMU", qemu), section("console", console))]
    GuestDied {
        /// How QEMU ended.
        status: String,
        /// The end of QEMU's standard error.
        qemu: String,
        /// The end of the guest kernel's console.
        console: String,
    },
    /// The guest booted but could not be prepared for the command.
    #[error("the guest could not be prepared: {why}")]
    GuestSetup {
        /// What the guest's init reported.
        why: String,
    },
    /// The run was ended by the caller's request.
    #[error("interrupted")]
    Cancelled,
}

fn section(title: &str, text: &str) -> String {
    if text.trim().is_empty() {
        String::new()
    } else {
        format!("\n--- {title}:\n{}", text.trim_end())
    }
}

/// Adds what was attempted to an input or output error.
pub(crate) trait Context<T> {
    /// Names the action and its object.
    fn during(self, what: impl Into<String>) -> Result<T, VmError>;
    /// Names the action and the file.
    fn at(self, action: &str, path: &Path) -> Result<T, VmError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn during(self, what: impl Into<String>) -> Result<T, VmError> {
        self.map_err(|e| VmError::Io { what: what.into(), source: e.into() })
    }

    fn at(self, action: &str, path: &Path) -> Result<T, VmError> {
        self.map_err(|e| VmError::Io {
            what: format!("{action} {}", path.display()),
            source: e.into(),
        })
    }
}

/// The last `lines` lines of `text`.
pub(crate) fn tail(text: &[u8], lines: usize) -> String {
    let text = String::from_utf8_lossy(text);
    let all: Vec<&str> = text.trim_end().lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_keeps_the_last_lines() {
        assert_eq!(tail(b"a\nb\nc\n\n", 2), "b\nc");
        assert_eq!(tail(b"a", 2), "a");
        assert_eq!(tail(b"", 2), "");
    }

    #[test]
    fn empty_sections_are_left_out() {
        let error = VmError::GuestDied {
            status: "exit status: 1".into(),
            qemu: "bad option\n".into(),
            console: " \n".into(),
        };
        assert_eq!(error.to_string(), "the guest died (exit status: 1)\n--- QEMU:\nbad option");
    }
}
