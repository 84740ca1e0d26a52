//! What a benchmark is taken on.

use std::collections::BTreeSet;
use std::fs;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::utsname::uname;

use super::results::{Conditions, Machine};

/// The machine, as it describes itself.
#[must_use]
pub(super) fn machine() -> Machine {
    let (kernel, architecture) = uname().map_or_else(
        |error| (format!("unknown ({error})"), std::env::consts::ARCH.to_owned()),
        |names| (text(names.release()), text(names.machine())),
    );
    let read = |path: &str| fs::read_to_string(path).ok();
    let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
    let meminfo = read("/proc/meminfo").unwrap_or_default();
    let vendor = read("/sys/class/dmi/id/sys_vendor").map(|text| text.trim().to_owned());
    let product = read("/sys/class/dmi/id/product_name").map(|text| text.trim().to_owned());
    let version = read("/sys/class/dmi/id/product_version").map(|text| text.trim().to_owned());
    let kind = read("/sys/hypervisor/type").map(|text| text.trim().to_owned());
    Machine {
        kernel,
        architecture,
        processor: field(&cpuinfo, "model name"),
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        memory: kilobytes(&meminfo, "MemTotal").unwrap_or(0),
        hypervisor: hypervisor([vendor, product, version], kind, &cpuinfo),
        transparent_huge_pages: read("/sys/kernel/mm/transparent_hugepage/enabled")
            .and_then(|text| chosen(&text)),
    }
}

/// The processors' time and the load when a measurement begins.
pub(super) struct Before {
    load: Option<f64>,
    ticks: Option<Ticks>,
}

/// Time of all processors since the machine booted, in ticks: all of it, and what was stolen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ticks {
    all: u64,
    stolen: u64,
}

impl Before {
    pub(super) fn now() -> Before {
        Before { load: load(), ticks: ticks() }
    }

    /// What the machine did since then.
    pub(super) fn conditions(&self) -> Conditions {
        let steal = self.ticks.zip(ticks()).and_then(|(before, after)| stolen(before, after));
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let allowed = field(&status, "Cpus_allowed_list");
        let online = fs::read_to_string("/sys/devices/system/cpu/online");
        let pinned = match (&allowed, &online) {
            (Some(allowed), Ok(online)) => allowed.trim() != online.trim(),
            _ => false,
        };
        Conditions { load: [self.load, load()], steal, governors: governors(), allowed, pinned }
    }
}

fn load() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

fn ticks() -> Option<Ticks> {
    parse_ticks(&fs::read_to_string("/proc/stat").ok()?)
}

/// The line `cpu` of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal; what
/// follows, time of guests, is in the first two already (proc_stat(5)).
fn parse_ticks(stat: &str) -> Option<Ticks> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().take(8).flat_map(str::parse).collect();
    Some(Ticks { all: ticks.iter().sum(), stolen: *ticks.get(7)? })
}

fn stolen(before: Ticks, after: Ticks) -> Option<f64> {
    let all = after.all.checked_sub(before.all).filter(|&all| all > 0)?;
    Some(after.stolen.checked_sub(before.stolen)? as f64 / all as f64)
}

fn governors() -> Vec<String> {
    let cpus = fs::read_dir("/sys/devices/system/cpu").into_iter().flatten().flatten();
    let governor =
        |cpu: fs::DirEntry| fs::read_to_string(cpu.path().join("cpufreq/scaling_governor")).ok();
    let found: BTreeSet<String> =
        cpus.filter_map(governor).map(|text| text.trim().to_owned()).collect();
    found.into_iter().collect()
}

/// The most resident memory that this process ever had, in bytes.
#[must_use]
pub(super) fn peak_memory() -> Option<u64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    // In KiB on Linux (getrusage(2)).
    u64::try_from(usage.max_rss()).ok().map(|kib| kib * 1024)
}

fn text(name: &std::ffi::OsStr) -> String {
    name.to_string_lossy().into_owned()
}

/// The value of a line `name : value`.
fn field(text: &str, name: &str) -> Option<String> {
    let value = |line: &str| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    };
    text.lines().find_map(value)
}

fn kilobytes(meminfo: &str, name: &str) -> Option<u64> {
    let value = field(meminfo, name)?;
    value.strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// QEMU's machines name it as the vendor, the machine's type as the product, and the version
/// of that type, which is QEMU's unless an older one was asked for; others leave at least the
/// processor's flag.
fn hypervisor(
    [vendor, product, version]: [Option<String>; 3],
    kind: Option<String>,
    cpuinfo: &str,
) -> Option<String> {
    let virtual_ = field(cpuinfo, "flags")
        .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor"));
    let dmi = [vendor, product].into_iter().flatten().filter(|text| !text.is_empty());
    let dmi = dmi.collect::<Vec<_>>().join(" ");
    match kind {
        Some(kind) if !kind.is_empty() => Some(kind),
        _ if dmi.contains("QEMU") => {
            let version = version.filter(|version| !version.is_empty());
            Some(version.map_or(dmi.clone(), |version| format!("{dmi}, {version}")))
        }
        _ if !virtual_ => None,
        _ if dmi.is_empty() => Some("unnamed".into()),
        _ => Some(dmi),
    }
}

/// The word in brackets.
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    rest.split_once(']').map(|(word, _)| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_are_read() {
        let cpuinfo = "processor\t: 0\nmodel name\t: A Processor\nflags\t\t: fpu hypervisor\n";
        assert_eq!(field(cpuinfo, "model name").unwrap(), "A Processor");
        assert_eq!(kilobytes("MemTotal:       100 kB\n", "MemTotal"), Some(102_400));
        assert_eq!(chosen("always [madvise] never\n").unwrap(), "madvise");
        let known = |vendor: &str, flags: &str| {
            let dmi = [vendor, "Standard PC (Q35)", "pc-q35-11.1"];
            hypervisor(dmi.map(|text| Some(text.into())), None, flags)
        };
        assert_eq!(known("QEMU", "").unwrap(), "QEMU Standard PC (Q35), pc-q35-11.1");
        assert_eq!(known("Vendor", ""), None, "a real machine");
        assert_eq!(known("Vendor", cpuinfo).unwrap(), "Vendor Standard PC (Q35)");
        assert_eq!(hypervisor([None, None, None], None, cpuinfo).unwrap(), "unnamed");
    }

    #[test]
    fn stolen_time_is_a_share_of_all_time() {
        let before = parse_ticks("cpu  10 0 10 70 5 0 0 5 3 0\ncpu0 1 1\n").unwrap();
        assert_eq!(before, Ticks { all: 100, stolen: 5 });
        let after = parse_ticks("cpu  60 0 10 90 5 0 0 35 3 0\n").unwrap();
        assert_eq!(stolen(before, after), Some(0.3));
        assert_eq!(stolen(before, before), None);
        assert_eq!(parse_ticks("cpu  1 2 3\n"), None);
        let conditions = Before::now().conditions();
        assert!(conditions.load[0].is_some() && conditions.allowed.is_some(), "{conditions:?}");
    }

    #[test]
    fn this_machine_has_memory() {
        let machine = machine();
        assert!(machine.memory > 0 && machine.processors > 0 && !machine.kernel.is_empty());
        assert!(peak_memory().unwrap() > 1 << 20);
    }
}
