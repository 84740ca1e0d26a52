//! A kernel built for guests from Debian's kernel source.
//!
//! It has everything that the tests of VFIO and of the I/OAT model need built in, and
//! little else: it boots in about a second. `full.config` lists its options. The build takes
//! some minutes and, while it runs, about 2.5 GB under the cache directory. What a module needs
//! to be compiled against it is kept beside it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::apt::{self, Apt, run_with_lines};
use super::cache::{Cache, digest};
use super::error::{Context, VmError};
use super::qemu::{APT_KIND, SUITES};
use crate::progress::Step;

const FRAGMENT: &str = include_str!("full.config");
/// How many lines `make` prints, about; only the progress display depends on it.
const EXPECTED_LINES: f32 = 2100.0;
/// What the build calls, and the Debian package that has it.
const PROGRAMS: [(&str, &str); 5] =
    [("make", "make"), ("flex", "flex"), ("bison", "bison"), ("bc", "bc"), ("m4", "m4")];
/// The header that objtool includes, and its package.
const HEADER: (&str, &str) = ("gelf.h", "libelf-dev");
/// Packages that a private tree must not have, by the beginnings of their names: the
/// system's own C library and compiler are used, and two do not mix.
const SYSTEM_PACKAGES: [&str; 7] =
    ["libc6", "libc-", "gcc", "libgcc", "libstdc++", "libcrypt", "linux-libc"];

/// What of the tree a module is compiled against, in the entry of the cache.
const MODULE_TREE: &str = "build";

/// The kernel image, built when it is not in the cache.
pub(super) fn kernel(cache: &Cache) -> Result<PathBuf, VmError> {
    Ok(entry(cache)?.join("bzImage"))
}

/// Compiles the module whose `Kbuild` is in `dir` against this kernel, which is built when it is
/// not in the cache. All that `make` prints goes to `log`.
pub(crate) fn build_module(cache: &Cache, dir: &Path, log: &Path) -> Result<(), VmError> {
    let tree = entry(cache)?.join(MODULE_TREE);
    let tools = Tools::find(cache, &dir.join(".tools"))?;
    let mut command = Command::new("nice");
    command.args(["-n", "10", "make", "-C"]).arg(&tree);
    command.arg(format!("M={}", dir.display())).arg("modules");
    tools.apply(&mut command);
    let mut printed = String::new();
    let result = run_with_lines(command, |line| {
        printed += line;
        printed.push('\n');
    });
    if let Err(e) = &result {
        printed += &format!("{e}\n");
    }
    fs::write(log, printed).at("write", log)?;
    tools.remove()?;
    result.map(drop)
}

/// What identifies this kernel: the key of its entry.
pub(crate) fn identity(cache: &Cache) -> Result<String, VmError> {
    let entry = entry(cache)?;
    Ok(entry.file_name().unwrap_or_default().to_string_lossy().into_owned())
}

fn entry(cache: &Cache) -> Result<PathBuf, VmError> {
    let options: Vec<String> = options(FRAGMENT).map(|line| format!("{line}\n")).collect();
    let hash = digest(options.concat().as_bytes());
    let log = cache.kind("full")?.join(format!("build-{hash}.log"));
    cache.entry("full", &format!("current-{hash}"), |dir| {
        let version = build(cache, dir, &log)?;
        Ok(format!("{version}-{hash}"))
    })
}

fn build(cache: &Cache, dir: &Path, log: &Path) -> Result<String, VmError> {
    let tools = Tools::find(cache, &dir.join("tools"))?;
    let work = dir.join("source");
    fs::create_dir(&work).at("create", &work)?;
    let (source, version) = fetch_source(cache, &work)?;
    let fragment = dir.join("fragment");
    fs::write(&fragment, FRAGMENT).at("write", &fragment)?;

    let mut log_file = File::create(log).at("create", log)?;
    let mut make = |arguments: &[&str], step: &Step| -> Result<(), VmError> {
        let mut command = Command::new("nice");
        command.args(["-n", "10", "make"]).args(arguments).current_dir(&source);
        command.env("KCONFIG_ALLCONFIG", &fragment);
        command.env("KBUILD_BUILD_USER", "vfio-dma").env("KBUILD_BUILD_HOST", "localhost");
        tools.apply(&mut command);
        let mut lines = 0.0;
        let mut written = Ok(());
        let result = run_with_lines(command, |line| {
            lines += 1.0;
            step.percent((100.0 * lines / EXPECTED_LINES).min(99.0));
            if written.is_ok() {
                written = writeln!(log_file, "{line}");
            }
        });
        if let Err(e) = &result {
            written = written.and_then(|()| writeln!(log_file, "{e}"));
        }
        written.at("write", log)?;
        result
            .map(|_| ())
            .map_err(|e| VmError::KernelBuild { log: log.to_owned(), source: Box::new(e) })
    };
    let step = Step::long(format!(
        "building Linux {version} (a few minutes, once; log: {})",
        log.display()
    ));
    make(&["allnoconfig"], &step)?;
    check_options(&source.join(".config"))?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let version_words = "LOCALVERSION=-vfio-dma";
    // `modules`, of which there are none, writes down which symbols a module finds.
    make(&[&format!("-j{jobs}"), version_words, "bzImage", "modules"], &step)?;
    // The kernel's own script for packages of headers knows what a module needs of the tree.
    let install = "$(srctree)/scripts/package/install-extmod-build";
    let install = format!("KBUILD_RUN_COMMAND={install} {}", dir.join(MODULE_TREE).display());
    make(&[version_words, "run-command", &install], &step)?;
    drop(step);

    for (built, kept) in [("arch/x86/boot/bzImage", "bzImage"), (".config", "config")] {
        let (built, kept) = (source.join(built), dir.join(kept));
        fs::copy(&built, &kept).at("copy", &built)?;
    }
    fs::remove_dir_all(&work).at("remove", &work)?;
    tools.remove()?;
    Ok(version)
}

/// Downloads the kernel source into `work` and unpacks it.
fn fetch_source(cache: &Cache, work: &Path) -> Result<(PathBuf, String), VmError> {
    let apt = Apt::open(&cache.kind(APT_KIND)?, &SUITES)?;
    let package = apt.dependency(SUITES[1], "linux-source", "linux-source-")?;
    let step = Step::long(format!("fetching {package}"));
    let debs = apt.download(SUITES[1], &[&package], work, &step)?;
    drop(step);
    let version = apt::version(&debs, &package)?;
    apt::unpack(&debs, work)?;
    let _step = Step::new(format!("unpacking {package}"));
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(work.join("usr/src").join(format!("{package}.tar.xz")));
    tar.arg("-C").arg(work);
    run_with_lines(tar, |_| ())?;
    Ok((work.join(package), version))
}

/// Refuses a configuration from which an option of the fragment was dropped: the options
/// that it depends on have changed then.
fn check_options(config: &Path) -> Result<(), VmError> {
    let text = fs::read_to_string(config).at("read", config)?;
    let missing = missing_options(FRAGMENT, &text);
    if missing.is_empty() {
        return Ok(());
    }
    Err(VmError::BadConfig {
        what: "kernel option",
        value: missing.join(" "),
        why: "this kernel source does not take it as full.config has it".into(),
    })
}

fn missing_options<'a>(fragment: &'a str, config: &str) -> Vec<&'a str> {
    let set: BTreeSet<&str> = config.lines().collect();
    options(fragment).filter(|l| !set.contains(l)).collect()
}

/// The lines of a fragment that set an option.
fn options(fragment: &str) -> impl Iterator<Item = &str> {
    fragment.lines().filter(|l| l.starts_with("CONFIG_"))
}

/// What the build needs beyond a C compiler: the system's, or a private tree's.
#[derive(Debug, Default)]
struct Tools {
    tree: Option<PathBuf>,
}

impl Tools {
    /// Looks for the tools; those that are missing are unpacked into `tree`.
    fn find(cache: &Cache, tree: &Path) -> Result<Self, VmError> {
        let missing: Vec<(&str, &str)> = PROGRAMS
            .into_iter()
            .filter(|(program, _)| which::which(program).is_err())
            .chain((!has_header(HEADER.0)).then_some(HEADER))
            .collect();
        let none = |missing: &[(&str, &str)]| VmError::NoBuildTools {
            missing: missing.iter().map(|m| m.0).collect::<Vec<_>>().join(", "),
            packages: missing.iter().map(|m| m.1).collect::<Vec<_>>().join(" "),
        };
        if which::which("gcc").is_err() {
            return Err(none(&[&[("gcc", "gcc")], missing.as_slice()].concat()));
        }
        if missing.is_empty() {
            return Ok(Self::default());
        }
        // The system's own release: what comes from there fits its C library.
        let archive = match apt::archive() {
            Ok(archive) => archive,
            Err(VmError::CannotFetch { .. }) => return Err(none(&missing)),
            Err(e) => return Err(e),
        };
        let release = archive.release.as_str();
        let apt = Apt::open(&cache.kind(&format!("apt-{release}"))?, &[release])?;
        let step = Step::long("fetching build tools");
        let packages: Vec<&str> = missing.iter().map(|m| m.1).collect();
        let mut debs = apt.download_closure(release, &packages, &step)?;
        drop(step);
        debs.retain(|deb| {
            let name = deb.file_name().unwrap_or_default().to_string_lossy();
            !SYSTEM_PACKAGES.iter().any(|prefix| name.starts_with(prefix))
        });
        apt::unpack(&debs, tree)?;
        apt.empty_archives()?;
        Ok(Self { tree: Some(tree.to_owned()) })
    }

    /// Lets `command` find them.
    fn apply(&self, command: &mut Command) {
        let Some(tree) = &self.tree else { return };
        let libraries = [tree.join("usr/lib/x86_64-linux-gnu"), tree.join("lib/x86_64-linux-gnu")];
        let includes = [tree.join("usr/include"), tree.join("usr/include/x86_64-linux-gnu")];
        prepend(command, "PATH", &[tree.join("usr/bin")]);
        prepend(command, "LIBRARY_PATH", &libraries);
        prepend(command, "LD_LIBRARY_PATH", &libraries);
        prepend(command, "C_INCLUDE_PATH", &includes);
        // Both are compiled in as absolute paths.
        let data = tree.join("usr/share/bison");
        if data.exists() {
            command.env("BISON_PKGDATADIR", data);
        }
        let m4 = tree.join("usr/bin/m4");
        if m4.exists() {
            command.env("M4", m4);
        }
    }

    fn remove(&self) -> Result<(), VmError> {
        match &self.tree {
            Some(tree) => fs::remove_dir_all(tree).at("remove", tree),
            None => Ok(()),
        }
    }
}

fn prepend(command: &mut Command, variable: &str, dirs: &[PathBuf]) {
    let old = std::env::var_os(variable).unwrap_or_default();
    let rest = std::env::split_paths(&old).filter(|dir| !dir.as_os_str().is_empty());
    // A directory whose name has a colon cannot be in such a list; the build then says
    // which tool it does not find.
    if let Ok(value) = std::env::join_paths(dirs.iter().cloned().chain(rest)) {
        command.env(variable, value);
    }
}

fn has_header(name: &str) -> bool {
    let mut command = Command::new("gcc");
    command.args(["-E", "-include", name, "-x", "c", "/dev/null", "-o", "/dev/null"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_options_are_found() {
        let fragment = "# comment\nCONFIG_A=y\nCONFIG_B=y\n\nCONFIG_C=n\n";
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_BB=y\nCONFIG_C=n\n";
        assert_eq!(missing_options(fragment, config), ["CONFIG_B=y"]);
        assert!(missing_options(FRAGMENT, FRAGMENT).is_empty());
    }

    #[test]
    fn fragment_has_no_line_twice() {
        let options: Vec<&str> = options(FRAGMENT).collect();
        assert_eq!(options.iter().collect::<BTreeSet<_>>().len(), options.len());
        assert!(options.contains(&"CONFIG_VFIO_NOIOMMU=y"));
    }

    #[test]
    fn lists_of_directories_grow_in_front() {
        let mut command = Command::new("true");
        prepend(&mut command, "PATH", &["/a".into(), "/b".into()]);
        let value = command.get_envs().next().and_then(|(_, v)| v).unwrap().to_owned();
        assert!(value.to_string_lossy().starts_with("/a:/b:/"), "{value:?}");
    }
}
