//! How the guest's processor runs: by KVM when that works, else translated by QEMU (TCG).

use std::fs::OpenOptions;
use std::str::FromStr;
use std::time::Duration;

use super::config::{Iommu, VmConfig};
use super::error::{Context, VmError};
use super::guest::Guest;
use super::modules::Modules;
use super::progress::Step;

const KVM: &str = "/dev/kvm";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Longest time for the probe guest; under a working KVM it takes one second.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

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

    /// Settles `Auto` for a guest; never returns it.
    pub(super) fn settle(self, guest: &Guest) -> Result<Self, VmError> {
        let asked = match (self, std::env::var("VFIO_DMA_ACCEL")) {
            (Self::Auto, Ok(word)) => word.parse()?,
            _ => self,
        };
        match asked {
            Self::Tcg => Ok(Self::Tcg),
            Self::Kvm => match OpenOptions::new().read(true).write(true).open(KVM) {
                Ok(_) => Ok(Self::Kvm),
                Err(e) => Err(VmError::NoKvm { why: format!("{KVM}: {e}") }),
            },
            Self::Auto => probe(guest),
        }
    }
}

/// Whether a guest really boots under KVM: on some machines `/dev/kvm` opens and then
/// fails at the kernel's first uncommon instruction.
///
/// The verdict holds for this QEMU and kernel until the host boots again.
fn probe(guest: &Guest) -> Result<Accel, VmError> {
    if OpenOptions::new().read(true).write(true).open(KVM).is_err() {
        return Ok(Accel::Tcg);
    }
    let boot = std::fs::read_to_string(BOOT_ID).during(format!("read {BOOT_ID}"))?;
    let subject = format!("{} {} {}", guest.qemu.identity(), guest.image.identity, boot.trim());
    let verdict = guest.cache.remember("kvm", &subject, || {
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
            Ok(output) if output.status == 0 => Ok("kvm".into()),
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
    if verdict == "kvm" {
        return Ok(Accel::Kvm);
    }
    log::info!("KVM does not boot a guest here, TCG takes its place");
    log::debug!("KVM probe: {verdict}");
    Ok(Accel::Tcg)
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
