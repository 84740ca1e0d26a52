//! What guests (`vfio-dma vm`) need; nothing else does.

use super::Check;
use crate::vm::{Kvm, Survey};

/// The checks of what guests need.
pub(super) fn checks() -> Vec<Check> {
    match Survey::of_this_machine() {
        Ok(survey) => describe(&survey),
        Err(error) => vec![Check::note("guest", error.to_string())],
    }
}

fn describe(survey: &Survey) -> Vec<Check> {
    let name = "guest-kvm";
    let kvm = match &survey.kvm {
        Kvm::Usable => Check::ok(name, "present, and a guest boots"),
        Kvm::Unusable => Check::note(
            name,
            "present and not usable: no guest boots under it; QEMU translates (TCG), which is slower",
        ),
        Kvm::Untried => Check::note(name, "present; the first guest finds out whether it works"),
        Kvm::Absent { why } => {
            Check::note(name, format!("{why}; QEMU translates (TCG), which is slower")).mend(
                "enable virtualisation in the firmware, modprobe kvm_intel or kvm_amd, and add the \
                 user to the group kvm: sudo usermod -aG kvm $USER",
            )
        }
    };
    let can_fetch = survey.archive.is_ok();
    let fetch = |what: &str, bytes: &str| match can_fetch {
        true => format!("not here: the first guest fetches {what} ({bytes})"),
        false => format!("not here, and {what} cannot be fetched"),
    };
    let name = "guest-qemu";
    let qemu = match &survey.qemu {
        Some(path) => Check::ok(name, path.display().to_string()),
        None if can_fetch => Check::note(name, fetch("it", "about 150 MB")),
        None => Check::note(name, fetch("it", ""))
            .mend("install QEMU 10.1 or later (qemu-system-x86), or name one in VFIO_DMA_QEMU"),
    };
    let name = "guest-kernel";
    let kernel = match survey.parts {
        true => Check::ok(name, "kernel and busybox are here"),
        false if can_fetch => Check::note(name, fetch("a kernel and busybox", "about 100 MB")),
        false => Check::note(name, fetch("a kernel and busybox", ""))
            .mend("name them in VFIO_DMA_KERNEL and VFIO_DMA_BUSYBOX"),
    };
    let name = "guest-apt";
    let apt = match &survey.archive {
        Ok(site) => Check::ok(name, site),
        Err(why) => Check::note(name, why.lines().next().unwrap_or_default()),
    };
    let finding = format!("{} ({} MB)", survey.cache.display(), survey.cached / 1_000_000);
    vec![kvm, qemu, kernel, apt, Check::ok("guest-cache", finding)]
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn survey(kvm: Kvm) -> Survey {
        Survey {
            kvm,
            qemu: None,
            parts: false,
            archive: Err("no apt-get\n  remedy: use Debian".into()),
            cache: "/c".into(),
            cached: 3_000_000,
        }
    }

    #[test]
    fn what_is_present_is_told_from_what_is_usable() {
        let of = |kvm| describe(&survey(kvm)).remove(0);
        assert_eq!(of(Kvm::Usable).status, Status::Ok);
        let broken = of(Kvm::Unusable);
        assert!(broken.finding.starts_with("present and not usable"), "{broken:?}");
        assert_eq!(broken.status, Status::Note);
        assert!(
            of(Kvm::Absent { why: "/dev/kvm: Permission denied".into() })
                .remedy
                .unwrap()
                .contains("usermod")
        );
    }

    #[test]
    fn what_can_be_fetched_has_no_remedy_and_nothing_fails() {
        let mut survey = survey(Kvm::Absent { why: "/dev/kvm: none".into() });
        let checks = describe(&survey);
        assert!(checks[1].remedy.as_ref().unwrap().contains("VFIO_DMA_QEMU"));
        assert_eq!(checks[3].finding, "no apt-get");
        assert_eq!(checks[4].finding, "/c (3 MB)");
        survey.archive = Ok("http://archive".into());
        let checks = describe(&survey);
        assert_eq!(checks[1].remedy, None);
        assert!(checks.iter().all(|check| check.status != Status::Failed));
    }
}
