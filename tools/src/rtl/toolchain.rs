//! Verilator and what compiles its output: the machine's, or fetched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::RtlError;
use crate::progress::Step;
use crate::vm::VmError;
use crate::vm::apt::{self, Apt, run_with_lines};
use crate::vm::cache::Cache;
use crate::vm::error::Context;

/// Names the Verilator to use.
const VARIABLE: &str = "VFIO_DMA_VERILATOR";
/// Something that has to be there, and the Debian package that has it.
type Need = (&'static str, &'static str);

/// What has to be there besides Verilator.
const PROGRAMS: [Need; 3] = [("g++", "g++"), ("make", "make"), ("python3", "python3")];
/// What makes a virtual environment, for hardware that Python generates.
const VENV: Need = ("Python's venv and pip", "python3-venv python3-pip");
const VERILATOR: Need = ("verilator", "verilator");
/// For C, beside what compiles simulations.
const GCC: Need = ("gcc", "gcc libc6-dev");

/// The programs, and what identifies their versions.
#[derive(Debug)]
pub(super) struct Toolchain {
    verilator: PathBuf,
    /// Verilator's files, when it is not where it was built for.
    root: Option<PathBuf>,
    pub(super) versions: String,
}

/// Whether a program is there and starts: a link to nothing is not.
fn works(program: &Path) -> bool {
    let mut command = Command::new(program);
    command.arg("--version");
    succeeds(command)
}

fn succeeds(mut command: Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn missing(programs: &[Need]) -> RtlError {
    let list = |part: fn(&Need) -> String, between| {
        programs.iter().map(part).collect::<Vec<_>>().join(between)
    };
    RtlError::NoTools {
        missing: list(|p| p.0.to_owned(), ", "),
        packages: list(|p| p.1.to_owned(), " "),
    }
}

/// What is built, beyond a simulation.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Goal {
    /// Hardware that Python generates.
    pub(super) generated: bool,
    /// Programs in C.
    pub(super) c: bool,
}

/// Refuses when something is missing that building needs, all of it at once.
pub(super) fn check(cache: &Cache, goal: Goal) -> Result<(), RtlError> {
    let is_there = |need: Need| match need {
        VENV => {
            let mut python = Command::new("python3");
            python.args(["-c", "import ensurepip, venv"]);
            succeeds(python)
        }
        VERILATOR => {
            std::env::var_os(VARIABLE).is_some()
                || works(Path::new(VERILATOR.0))
                || cache.found(VERILATOR.0, "current").is_some()
                // It is fetched then; another error is told when that is done.
                || !matches!(apt::archive(), Err(VmError::CannotFetch { .. }))
        }
        (program, _) => works(Path::new(program)),
    };
    let lacking = lacking(goal, is_there);
    if lacking.is_empty() { Ok(()) } else { Err(missing(&lacking)) }
}

fn lacking(goal: Goal, is_there: impl Fn(Need) -> bool) -> Vec<Need> {
    let has_python = is_there(PROGRAMS[2]);
    let needs = PROGRAMS
        .into_iter()
        .chain([VERILATOR])
        .chain(goal.generated.then_some(VENV))
        .chain(goal.c.then_some(GCC));
    // Without Python itself its parts cannot be looked for.
    needs.filter(|&need| (need == VENV && !has_python) || !is_there(need)).collect()
}

/// Python, for what is written in it.
pub(super) fn python() -> Result<PathBuf, RtlError> {
    let found = which::which("python3").ok().filter(|path| works(path));
    found.ok_or_else(|| missing(&[PROGRAMS[2], VENV]))
}

impl Toolchain {
    pub(super) fn find(cache: &Cache) -> Result<Toolchain, RtlError> {
        check(cache, Goal::default())?;
        let (verilator, root) = verilator(cache)?;
        let mut tools = Toolchain { verilator, root, versions: String::new() };
        let mut ask = tools.verilator();
        ask.arg("--version");
        let mut compiler = Command::new("g++");
        compiler.arg("--version");
        let first = |text: String| text.lines().next().unwrap_or_default().to_owned();
        tools.versions = format!(
            "{}\n{}",
            first(run_with_lines(ask, |_| ())?),
            first(run_with_lines(compiler, |_| ())?)
        );
        Ok(tools)
    }

    /// Verilator, to be given arguments.
    pub(super) fn verilator(&self) -> Command {
        let mut command = Command::new(&self.verilator);
        self.apply(&mut command);
        command
    }

    /// A program of the machine that may call Verilator's.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        self.apply(&mut command);
        command
    }

    fn apply(&self, command: &mut Command) {
        if let Some(root) = &self.root {
            command.env("VERILATOR_ROOT", root);
        }
    }
}

/// The Verilator in `VFIO_DMA_VERILATOR`, else the one in PATH, else one that is fetched.
fn verilator(cache: &Cache) -> Result<(PathBuf, Option<PathBuf>), RtlError> {
    if let Some(path) = std::env::var_os(VARIABLE) {
        let path = PathBuf::from(path);
        if !works(&path) {
            let text = path.display().to_string();
            return Err(RtlError::Description {
                text,
                why: format!("{VARIABLE} names it, and it does not start"),
            });
        }
        return Ok((path, None));
    }
    if let Ok(path) = which::which("verilator")
        && works(&path)
    {
        return Ok((path, None));
    }
    let none = || missing(&[VERILATOR]);
    let archive = match apt::archive() {
        Ok(archive) => archive,
        Err(VmError::CannotFetch { .. }) => return Err(none()),
        Err(error) => return Err(error.into()),
    };
    let release = archive.release;
    let kind = cache.kind(&format!("apt-{release}"))?;
    let tree = cache.entry("verilator", "current", |dir| {
        let apt = Apt::open(&kind, &[&release])?;
        let step = Step::new("fetching Verilator");
        // The program needs no more than the C library; its front end in Perl is not used.
        let debs = apt.download(&release, &["verilator"], dir, &step)?;
        drop(step);
        let version = apt::version(&debs, "verilator")?;
        apt::unpack(&debs, dir)?;
        for deb in &debs {
            fs::remove_file(deb).at("remove", deb)?;
        }
        Ok(version)
    })?;
    let root = tree.join("usr/share/verilator");
    let program = tree.join("usr/bin/verilator_bin");
    let mut command = Command::new(&program);
    command.arg("--version").env("VERILATOR_ROOT", &root);
    run_with_lines(command, |_| ())?;
    Ok((program, Some(root)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_with_the_packages_that_have_it() {
        let error = missing(&[("g++", "g++"), ("python3", "python3")]).to_string();
        assert!(error.contains("needs g++, python3"), "{error}");
        assert!(error.contains("apt-get install g++ python3"), "{error}");
        assert!(error.contains("VFIO_DMA_WITHOUT=rtl"), "{error}");
        assert!(!works(Path::new("/nonexistent/verilator")));
    }

    #[test]
    fn all_that_is_missing_is_told_at_once() {
        let goal = Goal { generated: true, c: true };
        let error = missing(&lacking(goal, |_| false)).to_string();
        for name in ["g++", "make", "python3", "verilator", "venv", "gcc"] {
            assert!(error.contains(name), "{name}: {error}");
        }
        assert!(error.contains("python3-venv") && error.contains("libc6-dev"), "{error}");
        let only = |there: Need| there != VERILATOR;
        assert_eq!(lacking(goal, only), [VERILATOR]);
        assert_eq!(lacking(Goal::default(), |need| need != VENV), []);
    }
}
