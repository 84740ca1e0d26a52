//! Packages of a Debian archive, fetched into a private directory.
//!
//! apt runs with its own state and cache: nothing on the system changes and no privilege
//! is needed. The archive's address is the one this machine already uses, the keyring is
//! the one that it already trusts.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::cache::lock;
use super::error::{Context, VmError, tail};
use crate::progress::Step;

const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.pgp",
    "/usr/share/keyrings/debian-archive-keyring.gpg",
];

/// File whose time is that of the last reading of the lists.
const UPDATED: &str = "updated";
/// How long the lists are good for.
const FRESH: Duration = Duration::from_secs(3600);

/// A private apt: one release of Debian and its lists.
#[derive(Debug)]
pub(crate) struct Apt {
    root: PathBuf,
    _lock: File,
}

impl Apt {
    /// Sets up apt under `root` for `suites` and reads their package lists, unless they were
    /// read within the hour.
    ///
    /// One process at a time has it.
    pub(crate) fn open(root: &Path, suites: &[&str]) -> Result<Self, VmError> {
        for tool in ["apt-get", "apt-cache", "dpkg-deb"] {
            which::which(tool)
                .map_err(|_| VmError::CannotFetch { missing: format!("no `{tool}` in PATH") })?;
        }
        let keyring = KEYRINGS.into_iter().find(|k| Path::new(k).exists()).ok_or_else(|| {
            VmError::CannotFetch {
                missing: "no /usr/share/keyrings/debian-archive-keyring.*".into(),
            }
        })?;
        let apt = Self { root: root.to_owned(), _lock: lock(&root.join("lock"))? };
        if apt.is_fresh() {
            return Ok(apt);
        }
        let archive = archive()?.site;
        for dir in ["lists/partial", "archives/partial"] {
            let dir = root.join(dir);
            fs::create_dir_all(&dir).at("create", &dir)?;
        }
        let sources: String = suites
            .iter()
            .map(|suite| format!("deb [signed-by={keyring}] {archive} {suite} main\n"))
            .collect();
        apt.write("sources.list", &sources)?;
        apt.write("status", "")?;
        apt.write("apt.conf", &configuration(root))?;
        let step = Step::new(format!("reading the package lists of {}", suites.join(", ")));
        apt.run("apt-get", &["update"], &step)?;
        apt.write(UPDATED, "")?;
        Ok(apt)
    }

    fn is_fresh(&self) -> bool {
        let written = fs::metadata(self.root.join(UPDATED)).and_then(|meta| meta.modified());
        written.is_ok_and(|time| time.elapsed().is_ok_and(|age| age < FRESH))
    }

    fn write(&self, name: &str, text: &str) -> Result<(), VmError> {
        let path = self.root.join(name);
        fs::write(&path, text).at("write", &path)
    }

    /// Downloads `packages` from `suite` with everything that they depend on.
    pub(crate) fn download_closure(
        &self,
        suite: &str,
        packages: &[&str],
        step: &Step,
    ) -> Result<Vec<PathBuf>, VmError> {
        self.empty_archives()?;
        let mut arguments =
            vec!["install", "--download-only", "-y", "--no-install-recommends", "-t", suite];
        arguments.extend(packages);
        self.run("apt-get", &arguments, step)?;
        self.downloaded(&self.root.join("archives"))
    }

    /// Downloads exactly `packages` into `dir`.
    pub(crate) fn download(
        &self,
        suite: &str,
        packages: &[&str],
        dir: &Path,
        step: &Step,
    ) -> Result<Vec<PathBuf>, VmError> {
        let mut arguments = vec!["download", "-t", suite];
        arguments.extend(packages);
        self.run_in(dir, "apt-get", &arguments, step)?;
        self.downloaded(dir)
    }

    /// The first package that `package` in `suite` depends on and whose name begins with
    /// `prefix`: what a meta-package stands for.
    pub(crate) fn dependency(
        &self,
        suite: &str,
        package: &str,
        prefix: &str,
    ) -> Result<String, VmError> {
        let step = Step::new(format!("resolving {package}"));
        let text = self.run("apt-cache", &["depends", "-t", suite, package], &step)?;
        text.lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|name| name.starts_with(prefix))
            .map(str::to_owned)
            .ok_or_else(|| VmError::NoPackage { pattern: format!("{prefix}* (from {package})") })
    }

    /// Removes the downloaded packages.
    pub(crate) fn empty_archives(&self) -> Result<(), VmError> {
        for deb in self.downloaded(&self.root.join("archives"))? {
            fs::remove_file(&deb).at("remove", &deb)?;
        }
        Ok(())
    }

    fn downloaded(&self, dir: &Path) -> Result<Vec<PathBuf>, VmError> {
        let mut debs = Vec::new();
        for entry in fs::read_dir(dir).at("read", dir)? {
            let path = entry.at("read", dir)?.path();
            if path.extension().is_some_and(|e| e == "deb") {
                debs.push(path);
            }
        }
        debs.sort();
        Ok(debs)
    }

    fn run(&self, tool: &str, arguments: &[&str], step: &Step) -> Result<String, VmError> {
        self.run_in(&self.root, tool, arguments, step)
    }

    fn run_in(
        &self,
        dir: &Path,
        tool: &str,
        arguments: &[&str],
        step: &Step,
    ) -> Result<String, VmError> {
        let mut command = Command::new(tool);
        command.arg("-c").arg(self.root.join("apt.conf"));
        if tool == "apt-get" {
            command.args(["-q=2", "-o", "APT::Status-Fd=1"]);
        }
        command.args(arguments).current_dir(dir);
        command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
        run_with_lines(command, |line| {
            if let Some(done) = download_percent(line) {
                step.percent(done);
            }
        })
    }
}

/// Unpacks `debs` into `tree`.
pub(crate) fn unpack(debs: &[PathBuf], tree: &Path) -> Result<(), VmError> {
    let step = Step::new("unpacking");
    for (n, deb) in debs.iter().enumerate() {
        step.percent(100.0 * n as f32 / debs.len() as f32);
        let mut command = Command::new("dpkg-deb");
        command.arg("-x").arg(deb).arg(tree);
        run_with_lines(command, |_| ())?;
    }
    Ok(())
}

/// The version of the package `name` among `debs`, with `_` after an epoch: it becomes part of
/// a path, and paths in lists must not have colons.
pub(crate) fn version(debs: &[PathBuf], name: &str) -> Result<String, VmError> {
    debs.iter()
        .filter_map(|deb| deb.file_stem()?.to_str())
        .find_map(|stem| stem.strip_prefix(name)?.strip_prefix('_')?.split('_').next())
        .map(|version| version.replace("%3a", "_"))
        .ok_or_else(|| VmError::NoPackage { pattern: name.to_owned() })
}

/// Runs `command` with its output read line by line; its whole output when it succeeds.
pub(crate) fn run_with_lines(
    mut command: Command,
    mut line_seen: impl FnMut(&str),
) -> Result<String, VmError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let shown = format!("{command:?}");
    log::trace!("{shown}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().during(format!("run {name}"))?;
    let mut errors = child.stderr.take().map(|mut pipe| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            // A pipe that breaks ends the text early; the exit status tells the rest.
            let _ = pipe.read_to_end(&mut text);
            text
        })
    });
    let mut text = String::new();
    if let Some(pipe) = child.stdout.take() {
        for line in BufReader::new(pipe).split(b'\n') {
            let line = line.during(format!("read what {name} prints"))?;
            let line = String::from_utf8_lossy(&line);
            line_seen(&line);
            text.push_str(&line);
            text.push('\n');
        }
    }
    let status = child.wait().during(format!("wait for {name}"))?;
    let errors = errors.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
    if status.success() {
        return Ok(text);
    }
    let output = if errors.is_empty() { text.into_bytes() } else { errors };
    Err(VmError::Tool { command: shown, status, output: tail(&output, 20) })
}

/// apt's settings: everything it writes is under `root`, and hooks of the system's own
/// configuration, which would act on the system's cache, are taken out.
fn configuration(root: &Path) -> String {
    let root = root.display();
    format!(
        r#"#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Dir::Cache::pkgcache;
#clear Dir::Cache::srcpkgcache;
#clear APT::Default-Release;
Dir::Etc::sourcelist "{root}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "{root}";
Dir::State::lists "{root}/lists";
Dir::State::status "{root}/status";
Dir::Cache "{root}";
Dir::Cache::archives "{root}/archives";
APT::Sandbox::User "";
APT::Get::List-Cleanup "false";
Debug::NoLocking "true";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
"#
    )
}

/// The percentage in a `dlstatus` line of apt's status descriptor.
fn download_percent(line: &str) -> Option<f32> {
    let mut fields = line.strip_prefix("dlstatus:")?.split(':');
    fields.nth(1)?.parse().ok()
}

const TARGET_FORMAT: &str = "$(CREATED_BY)|$(SITE)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)|$(LABEL)";

fn index_targets() -> Result<String, VmError> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", TARGET_FORMAT]).env("LC_ALL", "C");
    run_with_lines(command, |_| ())
}

/// Where this machine's Debian packages come from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Archive {
    /// Address of the archive.
    pub(crate) site: String,
    /// The release that this machine follows.
    pub(crate) release: String,
}

/// The Debian archive that this machine is configured for.
pub(crate) fn archive() -> Result<Archive, VmError> {
    main_archive(&index_targets()?)
}

/// Chooses Debian's main archive among this machine's sources.
///
/// Vendors' archives and the security archive are not it. Origin and label are known only
/// after the machine's lists were read once; before that the last part of the address
/// tells.
fn main_archive(targets: &str) -> Result<Archive, VmError> {
    let mut by_path = None;
    for line in targets.lines() {
        let fields: Vec<&str> = line.split('|').collect();
        let &["Packages", site, release, "main", origin, label] = fields.as_slice() else {
            continue;
        };
        // A suite such as bookworm-updates has no tools of its own.
        if release.contains('-') || site.starts_with("file:") || site.starts_with("cdrom:") {
            continue;
        }
        let found = || Archive { site: site.to_owned(), release: release.to_owned() };
        if origin == "Debian" && label == "Debian" {
            return Ok(found());
        }
        let unknown = origin.is_empty() || origin.starts_with('$');
        if unknown && site.trim_end_matches('/').ends_with("/debian") {
            by_path.get_or_insert_with(found);
        }
    }
    by_path.ok_or_else(|| VmError::CannotFetch {
        missing: "no Debian archive among the sources of `apt-get indextargets`".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(site: &str, release: &str) -> Archive {
        Archive { site: site.into(), release: release.into() }
    }

    #[test]
    fn debian_main_is_chosen_among_foreign_sources() {
        let targets = "Packages|https://vendor.test/debian|bookworm|main|Vendor|Vendor\n\
            Packages|http://m.test/debian-security|bookworm-security|main|Debian|Debian-Security\n\
            DEP-11|http://m.test/debian|bookworm|main|Debian|Debian\n\
            Packages|http://m.test/debian|bookworm-updates|main|Debian|Debian\n\
            Packages|http://m.test/debian|bookworm|contrib|Debian|Debian\n\
            Packages|http://m.test/debian|bookworm|main|Debian|Debian\n";
        assert_eq!(main_archive(targets).unwrap(), archive("http://m.test/debian", "bookworm"));
    }

    #[test]
    fn address_decides_before_lists_were_read() {
        let targets = "Packages|https://vendor.test/apt|stable|main||\n\
            Packages|http://m.test/debian-security|bookworm-security|main||\n\
            Packages|http://m.test/debian|bookworm|main||\n";
        assert_eq!(main_archive(targets).unwrap(), archive("http://m.test/debian", "bookworm"));
    }

    #[test]
    fn other_distributions_are_refused_with_a_remedy() {
        let targets = "Packages|http://m.test/ubuntu|noble|main|Ubuntu|Ubuntu\n";
        let message = main_archive(targets).unwrap_err().to_string();
        assert!(message.contains("VFIO_DMA_QEMU") && message.contains("--kernel"), "{message}");
    }

    #[test]
    fn versions_come_from_file_names() {
        let debs = [
            PathBuf::from("/x/qemu-system-x86-data_9_all.deb"),
            PathBuf::from("/x/qemu-system-x86_1%3a11.1.3+ds-1~bpo13+1_amd64.deb"),
        ];
        assert_eq!(version(&debs, "qemu-system-x86").unwrap(), "1_11.1.3+ds-1~bpo13+1");
        assert!(version(&debs, "qemu").is_err());
    }

    #[test]
    fn download_lines_give_a_percentage() {
        assert_eq!(download_percent("dlstatus:3:41.2500:Retrieving file 3 of 90"), Some(41.25));
        assert_eq!(download_percent("pmstatus:x:1:y"), None);
        assert_eq!(download_percent("dlstatus:x"), None);
    }

    #[test]
    fn failing_programs_show_their_errors() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo bad >&2; exit 3"]);
        let error = run_with_lines(command, |_| ()).unwrap_err();
        assert!(matches!(error, VmError::Tool { ref output, .. } if output == "bad"), "{error}");
    }
}
