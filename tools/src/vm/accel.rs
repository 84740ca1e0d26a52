//! How the guest's processor runs: by KVM when that works, else translated by QEMU (TCG).

use std::fs::OpenOptions;
use std::str::FromStr;
use std::time::Duration;

use super::cache::Cache;
use super::config::{Iommu, VmConfig};
use super::error::{Context, VmError};
use super::guest::Guest;
use super::kernel::{Image, Kernel};
use super::modules::Modules;
use super::qemu::Qemu;
use crate::progress::Step;

const KVM: &str = "/dev/kvm";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Longest time for the probe guest; under a working KVM it takes one second.
const PROBE_LIMIT: Duration = Duration::from_secs(5);
/// What the cache is asked, and the answer when KVM works.
const QUESTION: &str = "kvm";
const WORKS: &str = "kvm";

/// The choice of how the guest's processor runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Accel {
    /// `VFIO_DMA_ACCEL` decides; without it KVM when a probe guest boots under it, else TCG.
    #[default]
    Auto,
    /// KVM, without a probe.
    Kvm,
    /// TCG.
    Tcg,
}

impl FromStr for Accel {
    type Err = VmError;

    /// Reads `auto`, `kvm` or `tcg`.
    fn from_str(text: &str) -> Result<Self, VmError> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            _ => Err(VmError::BadConfig {
                what: "accelerator",
                value: text.into(),
                why: "it is auto, kvm or tcg".into(),
            }),
        }
    }
}

impl Accel {
    /// QEMU's arguments for it.
    pub(super) const fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Auto | Self::Tcg => ["-accel", "tcg", "-cpu", "max"],
        }
    }

    /// Settles `Auto` for a guest: never returns it, and says why it is not KVM.
    pub(super) fn settle(self, guest: &Guest) -> Result<(Self, Option<String>), VmError> {
        let asked = match (self, std::env::var("VFIO_DMA_ACCEL")) {
            (Self::Auto, Ok(word)) => word.parse()?,
            _ => self,
        };
        match asked {
            Self::Tcg => Ok((Self::Tcg, None)),
            Self::Kvm => match openable() {
                Ok(()) => Ok((Self::Kvm, None)),
                Err(why) => Err(VmError::NoKvm { why }),
            },
            Self::Auto => Ok(match probe(guest)? {
                Ok(()) => (Self::Kvm, None),
                Err(why) => (Self::Tcg, Some(why)),
            }),
        }
    }
}

/// What is known of KVM on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kvm {
    /// It cannot be opened.
    Absent {
        /// Why.
        why: String,
    },
    /// It can be opened; whether a guest boots under it was not tried since this machine booted.
    Untried,
    /// A guest boots under it.
    Usable,
    /// It can be opened, but no guest boots under it.
    Unusable,
}

/// What is known of KVM here, for the QEMU and the kernel that guests get; nothing is fetched,
/// booted or written to learn it.
#[must_use]
pub fn kvm() -> Kvm {
    if let Err(why) = openable() {
        return Kvm::Absent { why };
    }
    let verdict = || {
        let cache = Cache::open()?.read_only();
        let image = Kernel::Stock.resolve(&cache)?;
        let subject = subject(&Qemu::find(&cache)?, &image)?;
        cache.remember(QUESTION, &subject, || Err(VmError::Cancelled))
    };
    match verdict() {
        Ok(verdict) if verdict == WORKS => Kvm::Usable,
        Ok(_) => Kvm::Unusable,
        Err(_) => Kvm::Untried,
    }
}

fn openable() -> Result<(), String> {
    let opened = OpenOptions::new().read(true).write(true).open(KVM);
    opened.map(drop).map_err(|error| format!("{KVM}: {error}"))
}

/// What a verdict on KVM depends on: QEMU, kernel, and the host until it boots again.
fn subject(qemu: &Qemu, image: &Image) -> Result<String, VmError> {
    let boot = std::fs::read_to_string(BOOT_ID).during(format!("read {BOOT_ID}"))?;
    Ok(format!("{} {} {}", qemu.identity(), image.identity, boot.trim()))
}

/// Whether a guest really boots under KVM: on some machines `/dev/kvm` opens and then
/// fails at the kernel's first uncommon instruction.
fn probe(guest: &Guest) -> Result<Result<(), String>, VmError> {
    if let Err(why) = openable() {
        return Ok(Err(why));
    }
    let subject = subject(&guest.qemu, &guest.image)?;
    let verdict = guest.cache.remember(QUESTION, &subject, || {
        let _step = Step::new("trying KVM");
        let config = VmConfig {
            accel: Accel::Kvm,
            iommu: Iommu::None,
            modules: Modules::none(),
            program: None,
            memory: 256 << 20,
            boot_timeout: PROBE_LIMIT,
            timeout: Some(PROBE_LIMIT),
            ..VmConfig::default()
        };
        match guest.with(config).run(&["true"]) {
            Ok(output) if output.status == 0 => Ok(WORKS.into()),
            Ok(output) => Ok(format!("exit status {}", output.status)),
            Err(
                e @ (VmError::BootTimeout { .. }
                | VmError::CommandTimeout { .. }
                | VmError::GuestDied { .. }
                | VmError::GuestSetup { .. }),
            ) => Ok(e.to_string()),
            // It says nothing about KVM.
            Err(e) => Err(e),
        }
    })?;
    if verdict == WORKS {
        return Ok(Ok(()));
    }
    log::debug!("KVM probe: {verdict}");
    Ok(Err(format!("{KVM} opens, but a guest does not boot under it")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_choose_an_accelerator() {
        assert_eq!("kvm".parse::<Accel>().unwrap(), Accel::Kvm);
        assert_eq!("auto".parse::<Accel>().unwrap(), Accel::Auto);
        let error = "xen".parse::<Accel>().unwrap_err().to_string();
        assert!(error.contains("\"xen\"") && error.contains("kvm or tcg"), "{error}");
    }
}
