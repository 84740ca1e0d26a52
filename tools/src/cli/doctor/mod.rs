//! `vfio-dma doctor`: what a device needs to be driven, and what mends the rest.

mod attach;
mod device;
mod guest;
mod host;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::unistd::{AccessFlags, eaccess};
use serde::Serialize;
use vfio_dma::backend::vfio::VfToken;
use vfio_dma::host::Sysfs;
use vfio_dma::pci::Address;

use super::{Failure, output};

/// Check what is needed to drive a device, and say what mends what is missing
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address of a device to check as well, such as 0000:00:05.0
    #[arg(value_name = "BDF")]
    pub address: Option<String>,
    /// The token of the physical function, a UUID, for a virtual function whose physical one is
    /// on vfio-pci
    #[arg(long, value_name = "UUID", requires = "address")]
    pub vf_token: Option<VfToken>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What `vfio-dma doctor --json` prints. Fields are added, never renamed or removed.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Nothing that is needed is missing.
    pub ready: bool,
    /// The checks, in the order in which they are best mended.
    pub checks: Vec<Check>,
}

impl Report {
    /// Decides whether anything needed is missing.
    fn settle(&mut self) {
        self.ready = self.checks.iter().all(|check| check.status != Status::Failed);
    }
}

/// One precondition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// A stable name, such as `iommu`.
    pub name: &'static str,
    /// How it stands.
    pub status: Status,
    /// What was found.
    pub finding: String,
    /// The command or setting that mends or improves it, where there is one.
    pub remedy: Option<String>,
}

/// How a precondition stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It holds.
    Ok,
    /// It is not needed, or limits what can be done.
    Note,
    /// It is needed and does not hold.
    Failed,
}

impl Check {
    fn ok(name: &'static str, finding: impl Into<String>) -> Check {
        Check { name, status: Status::Ok, finding: finding.into(), remedy: None }
    }

    fn note(name: &'static str, finding: impl Into<String>) -> Check {
        Check { status: Status::Note, ..Check::ok(name, finding) }
    }

    fn failed(name: &'static str, finding: impl Into<String>) -> Check {
        Check { status: Status::Failed, ..Check::ok(name, finding) }
    }

    fn mend(self, remedy: impl Into<String>) -> Check {
        Check { remedy: Some(remedy.into()), ..self }
    }

    /// Something that is needed only when nothing else takes its place.
    fn needed(self, needed: bool) -> Check {
        match self.status {
            Status::Failed if !needed => Check { status: Status::Note, ..self },
            _ => self,
        }
    }
}

/// Where the facts are read: this machine, or the trees of a test.
struct Host {
    sysfs: Sysfs,
    dev: PathBuf,
    proc: PathBuf,
    /// The modules of the running kernel.
    modules: PathBuf,
}

impl Host {
    fn this_machine() -> Host {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Host {
            sysfs: Sysfs::new(),
            dev: "/dev".into(),
            proc: "/proc".into(),
            modules: Path::new("/lib/modules").join(release.trim()),
        }
    }

    fn sys(&self, path: &str) -> PathBuf {
        self.sysfs.tree().root().join(path)
    }

    /// A file's text without surrounding blanks; `None` when it cannot be read.
    fn text(&self, path: &Path) -> Option<String> {
        fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
    }

    /// The path of a device node whose place on a machine is `/dev/...`.
    fn node(&self, node: &Path) -> PathBuf {
        self.dev.join(node.strip_prefix("/dev").unwrap_or(node))
    }
}

/// Whether this process may open the file for reading and writing; tried without opening
/// it, which would load modules and take devices.
fn writable(path: &Path) -> nix::Result<()> {
    eaccess(path, AccessFlags::R_OK | AccessFlags::W_OK)
}

/// Prints the checks; the exit status is 1 when something needed is missing.
///
/// # Errors
///
/// Fails for a malformed address.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let address = args.address.as_deref().map(str::parse).transpose()?;
    let host = Host::this_machine();
    let mut report = examine(&host, address);
    if let Some(address) = address {
        report.checks.extend(attach::check(&host, address, args.vf_token.as_ref()));
    }
    report.checks.extend(guest::checks());
    report.settle();
    output::print(&compose(&report, args.json)?)?;
    Ok(if report.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn examine(host: &Host, address: Option<Address>) -> Report {
    let mut checks = host::checks(host);
    if let Some(address) = address {
        checks.extend(device::checks(host, address));
    }
    let mut report = Report { ready: false, checks };
    report.settle();
    report
}

fn compose(report: &Report, json: bool) -> Result<String, Failure> {
    if json {
        return Ok(serde_json::to_string_pretty(report)? + "\n");
    }
    let mut text = String::new();
    for check in &report.checks {
        let status = match check.status {
            Status::Ok => "ok",
            Status::Note => "note",
            Status::Failed => "FAILED",
        };
        writeln!(text, "{status:6}  {:22}  {}", check.name, check.finding)?;
        if let Some(remedy) = &check.remedy {
            writeln!(text, "{:32}-> {remedy}", "")?;
        }
    }
    let failed = report.checks.iter().filter(|check| check.status == Status::Failed).count();
    match failed {
        0 => writeln!(text, "everything needed is there")?,
        1 => writeln!(text, "one precondition does not hold")?,
        _ => writeln!(text, "{failed} preconditions do not hold")?,
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Machine;
    use super::*;

    /// A machine on which everything needed is there, with edu bound to vfio-pci.
    pub(super) fn sound() -> (Machine, Host) {
        let machine = Machine::new();
        machine.device("0000:00:05.0", 0x1234, 0x11e8, Some("vfio-pci"), Some(3));
        machine.file("sys/class/iommu/dmar0/x", "");
        machine.file("sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "N\n");
        machine.file("sys/module/vfio_iommu_type1/x", "");
        machine.file("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "64\n");
        machine.file("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "60\n");
        machine.file("sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "0\n");
        machine.file("sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages", "0\n");
        machine.file("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
        machine.file("dev/vfio/vfio", "");
        machine.file("dev/vfio/3", "");
        machine.file("proc/cpuinfo", "vendor_id\t: GenuineIntel\n");
        machine.file("proc/self/status", "CapEff:\t0000000000000000\n");
        let host = Host {
            sysfs: machine.sysfs(),
            dev: machine.path("dev"),
            proc: machine.path("proc"),
            modules: machine.path("modules"),
        };
        (machine, host)
    }

    pub(super) fn check(host: &Host, name: &str) -> Check {
        let report = examine(host, Some("0000:00:05.0".parse().unwrap()));
        let found: Vec<_> = report.checks.into_iter().filter(|check| check.name == name).collect();
        let [check] = found.try_into().unwrap_or_else(|found| panic!("{name}: {found:?}"));
        check
    }

    #[test]
    fn a_sound_machine_is_ready() {
        let (_machine, host) = sound();
        let report = examine(&host, Some("0000:00:05.0".parse().unwrap()));
        let text = compose(&report, false).unwrap();
        assert!(report.ready, "{text}");
        assert!(text.ends_with("everything needed is there\n"), "{text}");
    }

    #[test]
    fn a_failed_check_shows_with_its_remedy_and_in_json() {
        let (machine, host) = sound();
        std::fs::remove_dir(machine.path("sys/bus/pci/drivers/vfio-pci")).unwrap();
        machine.file("modules/modules.dep", "kernel/drivers/vfio/pci/vfio-pci.ko.xz: a\n");
        let report = examine(&host, None);
        assert!(!report.ready);
        let text = compose(&report, false).unwrap();
        assert!(text.contains("FAILED  vfio-pci"), "{text}");
        assert!(text.contains("-> modprobe vfio-pci"), "{text}");
        assert!(text.ends_with("one precondition does not hold\n"), "{text}");
        let json: serde_json::Value =
            serde_json::from_str(&compose(&report, true).unwrap()).unwrap();
        assert_eq!(json["ready"], false);
        let failed: Vec<_> = json["checks"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|check| check["status"] == "failed")
            .collect();
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0]["name"], "vfio-pci");
        assert_eq!(failed[0]["remedy"], "modprobe vfio-pci");
    }
}
