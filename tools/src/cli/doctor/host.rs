//! What the machine must offer, whatever the device.

use std::fs;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::{Check, Host, writable};

/// `CAP_IPC_LOCK` (`include/uapi/linux/capability.h`): VFIO does not hold its owner to the
/// memory lock limit.
const CAP_IPC_LOCK: u32 = 14;

/// The checks of the machine.
pub(super) fn checks(host: &Host) -> Vec<Check> {
    let noiommu = noiommu_enabled(host);
    let iommufd = writable(&host.dev.join("iommu")).is_ok();
    vec![
        iommu(host).needed(!noiommu),
        vfio(host),
        vfio_pci(host),
        type1(host).needed(!noiommu && !iommufd),
        container(host).needed(!iommufd),
        iommu_node(host),
        memory_lock(host),
        huge_pages(host, "huge-pages-2m", "hugepages-2048kB", 64),
        huge_pages(host, "huge-pages-1g", "hugepages-1048576kB", 1),
        transparent_huge_pages(host),
        noiommu_mode(host, noiommu),
    ]
}

fn iommu(host: &Host) -> Check {
    let units = entries(&host.sys("class/iommu"));
    let groups = entries(&host.sys("kernel/iommu_groups"));
    // VFIO makes groups of this name up for devices without an IOMMU.
    let real = groups.iter().filter(|group| {
        let name = host.sys("kernel/iommu_groups").join(group).join("name");
        host.text(&name).as_deref() != Some("vfio-noiommu")
    });
    let real = real.count();
    if real > 0 {
        let by = if units.is_empty() { String::new() } else { format!(" ({})", units.join(", ")) };
        return Check::ok("iommu", format!("groups: {real}{by}"));
    }
    let finding = match units.as_slice() {
        [] => "no IOMMU is in use".to_owned(),
        units => format!("{} translates for no device", units.join(", ")),
    };
    let cpu = host.text(&host.proc.join("cpuinfo")).unwrap_or_default();
    let asked = host.text(&host.proc.join("cmdline")).unwrap_or_default();
    let asked = asked.split_whitespace().any(|word| word.starts_with("intel_iommu=on"));
    let remedy = if asked {
        "the kernel command line asks for it, and the firmware shows none: enable VT-d there, or \
         give the virtual machine an IOMMU (QEMU: -device intel-iommu)"
    } else if cpu.contains("GenuineIntel") {
        "enable VT-d in the firmware, add intel_iommu=on to the kernel command line, reboot"
    } else if cpu.contains("AuthenticAMD") {
        "enable AMD-Vi (IOMMU) in the firmware, remove amd_iommu=off from the kernel command \
         line, reboot"
    } else {
        "enable the IOMMU in the firmware and on the kernel command line (intel_iommu=on or \
         amd_iommu=on), reboot"
    };
    Check::failed("iommu", finding).mend(remedy)
}

/// The classes are there also when vfio is built in and has no parameters.
const VFIO_SIGNS: [&str; 3] = ["module/vfio", "class/vfio", "class/vfio-dev"];

fn vfio(host: &Host) -> Check {
    module(host, "vfio", &VFIO_SIGNS, "vfio", "CONFIG_VFIO")
}

fn is_loaded(host: &Host) -> bool {
    VFIO_SIGNS.iter().any(|sign| host.sys(sign).exists())
}

fn vfio_pci(host: &Host) -> Check {
    module(host, "vfio-pci", &["bus/pci/drivers/vfio-pci"], "vfio-pci", "CONFIG_VFIO_PCI")
}

fn type1(host: &Host) -> Check {
    let signs = ["module/vfio_iommu_type1"];
    module(host, "vfio_iommu_type1", &signs, "vfio_iommu_type1", "CONFIG_VFIO_IOMMU_TYPE1")
}

/// A part of the kernel that one of `signs` in sysfs shows to be there.
fn module(host: &Host, name: &'static str, signs: &[&str], module: &str, config: &str) -> Check {
    if signs.iter().any(|sign| host.sys(sign).exists()) {
        return Check::ok(name, "loaded");
    }
    let listed = |list| {
        host.text(&host.modules.join(list))
            .is_some_and(|text| text.lines().any(|line| is_module(line, module)))
    };
    if listed("modules.builtin") {
        return Check::ok(name, "built into the kernel");
    }
    if listed("modules.dep") {
        return Check::failed(name, "not loaded").mend(format!("modprobe {module}"));
    }
    Check::failed(name, "not loaded, and not among the modules of the running kernel").mend(
        format!(
            "install the package with the kernel's modules (Debian: linux-image, Ubuntu: \
             linux-modules, Fedora: kernel-modules), or a kernel with {config}=m"
        ),
    )
}

/// Whether a line of `modules.dep` or `modules.builtin` is about the module: a path, perhaps
/// of a compressed file, and after a colon what it depends on.
fn is_module(line: &str, module: &str) -> bool {
    let path = line.split(':').next().unwrap_or_default();
    let file = path.rsplit('/').next().unwrap_or_default();
    file.strip_prefix(module).is_some_and(|rest| rest == ".ko" || rest.starts_with(".ko."))
}

fn container(host: &Host) -> Check {
    let path = host.dev.join("vfio/vfio");
    let name = "/dev/vfio/vfio";
    match writable(&path) {
        Ok(()) => Check::ok(name, "can be opened"),
        // The module makes it, unless the kernel was built without containers.
        Err(Errno::ENOENT) if is_loaded(host) => Check::failed(name, "absent").mend(
            "a kernel with CONFIG_VFIO_CONTAINER; in a container, pass the node in (--device)",
        ),
        Err(Errno::ENOENT) => Check::failed(name, "absent").mend("load vfio first, see above"),
        Err(errno) => Check::failed(name, errno.desc())
            .mend("run as root, or: sudo chmod 0666 /dev/vfio/vfio"),
    }
}

fn iommu_node(host: &Host) -> Check {
    let name = "/dev/iommu";
    match writable(&host.dev.join("iommu")) {
        Ok(()) => Check::ok(name, "can be opened"),
        Err(Errno::ENOENT) if host.dev.join("vfio/vfio").exists() => {
            Check::note(name, "absent (no CONFIG_IOMMUFD): groups and containers are used instead")
        }
        Err(Errno::ENOENT) => Check::note(name, "absent (no CONFIG_IOMMUFD, or not loaded)"),
        Err(errno) => Check::note(name, errno.desc())
            .mend("run as root; groups and containers can be used instead"),
    }
}

fn memory_lock(host: &Host) -> Check {
    let name = "memory-lock";
    let unlimit = "ulimit -l unlimited (as root), or memlock in /etc/security/limits.conf, or \
                   LimitMEMLOCK= of a systemd unit";
    if has_capability(host, CAP_IPC_LOCK) {
        return Check::ok(name, "does not apply: the process has CAP_IPC_LOCK");
    }
    match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((RLIM_INFINITY, _)) => Check::ok(name, "unlimited"),
        Ok((limit, _)) => {
            let finding = format!("{limit} bytes: no more can be mapped for DMA at a time");
            Check::note(name, finding).mend(unlimit)
        }
        Err(errno) => Check::note(name, format!("unknown: {errno}")),
    }
}

fn has_capability(host: &Host, capability: u32) -> bool {
    let status = host.text(&host.proc.join("self/status")).unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> capability & 1 == 1)
}

fn huge_pages(host: &Host, name: &'static str, dir: &str, suggestion: u32) -> Check {
    let dir = host.sys("kernel/mm/hugepages").join(dir);
    let count = |file| host.text(&dir.join(file)).and_then(|text| text.parse::<u64>().ok());
    let (Some(total), Some(free)) = (count("nr_hugepages"), count("free_hugepages")) else {
        return Check::note(name, "not offered by this kernel");
    };
    if free > 0 {
        return Check::ok(name, format!("{free} of {total} are free"));
    }
    Check::note(name, format!("none of {total} is free")).mend(format!(
        "echo {} > {}",
        total + u64::from(suggestion),
        dir.join("nr_hugepages").display()
    ))
}

fn transparent_huge_pages(host: &Host) -> Check {
    let name = "transparent-huge-pages";
    let path = host.sys("kernel/mm/transparent_hugepage/enabled");
    // The setting in force stands in brackets: `always [madvise] never`.
    let setting = host.text(&path).and_then(|text| {
        let (_, rest) = text.split_once('[')?;
        Some(rest.split_once(']')?.0.to_owned())
    });
    match setting.as_deref() {
        Some("never") => {
            Check::note(name, "never").mend(format!("echo madvise > {}", path.display()))
        }
        Some(setting) => Check::ok(name, setting),
        None => Check::note(name, "not offered by this kernel"),
    }
}

pub(super) fn noiommu_enabled(host: &Host) -> bool {
    let parameter = host.sys("module/vfio/parameters/enable_unsafe_noiommu_mode");
    matches!(host.text(&parameter).as_deref(), Some("Y" | "1"))
}

fn noiommu_mode(host: &Host, enabled: bool) -> Check {
    let name = "noiommu-mode";
    let parameter = host.sys("module/vfio/parameters/enable_unsafe_noiommu_mode");
    if enabled {
        Check::note(name, "on: a device without an IOMMU can be opened and can reach all memory")
    } else if parameter.exists() {
        Check::ok(name, "off")
    } else {
        Check::ok(name, "not offered by this kernel (CONFIG_VFIO_NOIOMMU)")
    }
}

/// The names in a directory, sorted; none when it cannot be read.
fn entries(path: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::tests::{check, sound};
    use super::*;

    #[test]
    fn a_machine_without_an_iommu_gets_the_remedy_of_its_processor() {
        let (machine, host) = sound();
        assert_eq!(check(&host, "iommu").finding, "groups: 1 (dmar0)");
        fs::remove_dir_all(machine.path("sys/kernel/iommu_groups")).unwrap();
        fs::remove_dir_all(machine.path("sys/class/iommu")).unwrap();
        let failed = check(&host, "iommu");
        assert_eq!(failed.status, Status::Failed);
        assert!(failed.remedy.unwrap().contains("intel_iommu=on"));
        machine.file("proc/cpuinfo", "vendor_id\t: AuthenticAMD\n");
        assert!(check(&host, "iommu").remedy.unwrap().contains("AMD-Vi"));
    }

    #[test]
    fn groups_that_vfio_made_up_are_no_iommu() {
        let (machine, host) = sound();
        machine.file("sys/kernel/iommu_groups/3/name", "vfio-noiommu\n");
        assert_eq!(check(&host, "iommu").status, Status::Failed);
        machine.file("sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "Y\n");
        assert_eq!(check(&host, "iommu").status, Status::Note);
        assert_eq!(check(&host, "noiommu-mode").status, Status::Note);
    }

    #[test]
    fn a_module_is_loaded_built_in_loadable_or_absent() {
        let (machine, host) = sound();
        let type1 = || check(&host, "vfio_iommu_type1");
        assert_eq!(type1().finding, "loaded");
        fs::remove_dir_all(machine.path("sys/module/vfio_iommu_type1")).unwrap();
        assert_eq!(type1().status, Status::Failed);
        assert!(type1().remedy.unwrap().contains("CONFIG_VFIO_IOMMU_TYPE1=m"));
        // Being another module's dependency is not being a module.
        machine.file("modules/modules.dep", "kernel/a.ko: kernel/b/vfio_iommu_type1.ko\n");
        assert!(type1().remedy.unwrap().contains("install"));
        machine.file("modules/modules.dep", "kernel/b/vfio_iommu_type1.ko.zst: kernel/vfio.ko\n");
        assert_eq!(type1().remedy.as_deref(), Some("modprobe vfio_iommu_type1"));
        machine.file("modules/modules.dep", "vfio_iommu_type1.ko:\n");
        assert_eq!(type1().remedy.as_deref(), Some("modprobe vfio_iommu_type1"));
        machine.file("modules/modules.builtin", "kernel/b/vfio_iommu_type1.ko\n");
        assert_eq!(type1().status, Status::Ok);
    }

    #[test]
    fn iommufd_takes_the_place_of_type1_and_its_node() {
        let (machine, host) = sound();
        machine.remove("dev/vfio/vfio");
        fs::remove_dir_all(machine.path("sys/module/vfio_iommu_type1")).unwrap();
        let names = ["vfio_iommu_type1", "/dev/vfio/vfio"];
        assert_eq!(names.map(|name| check(&host, name).status), [Status::Failed; 2]);
        assert_eq!(check(&host, "/dev/iommu").status, Status::Note);
        machine.file("dev/iommu", "");
        assert_eq!(names.map(|name| check(&host, name).status), [Status::Note; 2]);
        assert_eq!(check(&host, "/dev/iommu").status, Status::Ok);
    }

    #[test]
    fn memory_limits_and_pages_are_told_with_what_raises_them() {
        let (machine, host) = sound();
        let (limit, _) = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap();
        let lock = check(&host, "memory-lock");
        if limit == RLIM_INFINITY {
            assert_eq!(lock.finding, "unlimited");
        } else {
            assert!(lock.finding.contains(&limit.to_string()), "{lock:?}");
        }
        machine.file("proc/self/status", "CapEff:\t0000000000004000\n");
        assert!(check(&host, "memory-lock").finding.contains("CAP_IPC_LOCK"));
        assert_eq!(check(&host, "huge-pages-2m").finding, "60 of 64 are free");
        let gigabyte = check(&host, "huge-pages-1g");
        assert_eq!(gigabyte.status, Status::Note);
        assert!(gigabyte.remedy.unwrap().starts_with("echo 1 > "));
        assert_eq!(check(&host, "transparent-huge-pages").finding, "madvise");
        machine.file("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n");
        assert!(
            check(&host, "transparent-huge-pages").remedy.unwrap().starts_with("echo madvise > ")
        );
    }
}
