//! Hardware from its source: Verilog is compiled by Verilator, once, and kept.
//!
//! A [`Design`] is the user's files and the name of the top module, whose pins are those of
//! `hw-model/rtl/rtl.h` (docs/bring-your-verilog.md). [`build`] makes a program of it, which
//! [`vfio_dma_model::rtl::Simulation`] runs. [`litepcie`] makes a design of LitePCIe's gateware.
//!
//! Verilator, a C++ compiler, make and Python are those of the machine; a Verilator that is
//! missing is fetched through apt into `${XDG_CACHE_HOME:-~/.cache}/vfio-dma`. What is built is
//! kept there too, by the versions of all tools and the content of all files.

pub mod cycles;
mod describe;
mod linux;
pub mod litepcie;
mod toolchain;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use vfio_dma_model::rtl::HARNESS;
use vfio_dma_model::tlp::{EndpointError, TlpError};

use crate::progress::Step;
use crate::vm::VmError;
use crate::vm::apt::run_with_lines;
use crate::vm::cache::{Cache, digest};
use crate::vm::error::Context;

pub use describe::{RtlConfig, RtlFunction, describe, is_description};
pub use linux::{LinuxDriver, linux_driver};
use toolchain::Toolchain;

/// Why hardware cannot be built or simulated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RtlError {
    /// Programs are missing.
    #[error(
        "simulating hardware needs {missing}\n  remedy: on Debian: `apt-get install {packages}`; \
         or leave it out of the tests with VFIO_DMA_WITHOUT=rtl"
    )]
    NoTools {
        /// What was not found.
        missing: String,
        /// Packages that have it.
        packages: String,
    },
    /// The sources do not compile.
    #[error("{what} failed; all that it printed is in {}:\n{source}", .log.display())]
    Build {
        /// What was being done.
        what: String,
        /// Where its output is.
        log: PathBuf,
        /// How it ended.
        source: VmError,
    },
    /// The device's description makes no sense.
    #[error("{text:?} is no simulated device: {why}")]
    Description {
        /// The description.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file, a download or the cache.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The function cannot be made.
    #[error(transparent)]
    Tlp(#[from] TlpError),
    /// The simulation cannot be started.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
}

/// Verilog, and what of it is the top.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Design {
    /// Verilog and SystemVerilog files, in the order in which they are read.
    pub files: Vec<PathBuf>,
    /// Files that memories are filled from (`$readmemh`), which go beside the program.
    pub data: Vec<PathBuf>,
    /// Name of the top module.
    pub top: String,
    /// Whether the program can write waveforms; it is slower then, also when it does not.
    pub trace: bool,
}

/// A program that simulates a design, built when it is not in the cache.
///
/// # Errors
///
/// Fails when tools are missing or the sources do not compile.
pub fn build(design: &Design) -> Result<PathBuf, RtlError> {
    build_in(&Cache::open()?, design)
}

fn build_in(cache: &Cache, design: &Design) -> Result<PathBuf, RtlError> {
    let bad = |why: &str| RtlError::Description { text: design.top.clone(), why: why.into() };
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if design.top.is_empty() || !design.top.chars().all(is_name) {
        return Err(bad("the name of a module has letters, digits and _"));
    }
    if design.files.is_empty() {
        return Err(bad("a design has at least one file"));
    }
    let tools = Toolchain::find(cache)?;
    let mut all = format!("{}\n{}\n{:?}\n", tools.versions, design.top, design.trace);
    for (name, text) in HARNESS {
        all += &format!("{name} {}\n", digest(text.as_bytes()));
    }
    for path in design.files.iter().chain(&design.data) {
        let content = fs::read(path).at("read", path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        all += &format!("{name} {}\n", digest(&content));
    }
    let key = format!("{}-{}", design.top, digest(all.as_bytes()));
    let log = cache.kind("rtl")?.join(format!("{key}.log"));
    let mut failed = None;
    let entry = cache.entry("rtl", &format!("current-{key}"), |dir| {
        match compile(&tools, design, dir, &log) {
            Ok(()) => Ok(key.clone()),
            Err(error) => {
                failed = Some(error);
                // What it was is told in place of this.
                Err(VmError::Cancelled)
            }
        }
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(entry?.join("sim")),
    }
}

fn compile(tools: &Toolchain, design: &Design, dir: &Path, log: &Path) -> Result<(), RtlError> {
    let step = Step::long(format!("compiling {} (once; log: {})", design.top, log.display()));
    let work = dir.join("work");
    fs::create_dir(&work).at("create", &work)?;
    for (name, text) in HARNESS {
        let path = work.join(name);
        fs::write(&path, text).at("write", &path)?;
    }
    let top = &design.top;
    let header = work.join("vtop.h");
    fs::write(&header, format!("#include \"V{top}.h\"\nusing Top = V{top};\n"))
        .at("write", &header)?;
    let mut printed = String::new();
    let mut run = |what: &str, command: Command| -> Result<(), RtlError> {
        printed += &format!("$ {command:?}\n");
        let result = run_with_lines(command, |line| {
            printed += line;
            printed.push('\n');
        });
        if let Err(error) = &result {
            printed += &format!("{error}\n");
        }
        fs::write(log, &printed).at("write", log)?;
        let what = format!("{what} of {top}");
        result.map(drop).map_err(|source| RtlError::Build { what, log: log.to_owned(), source })
    };
    let mut verilate = tools.verilator();
    let flags = "-std=c++17 -O2 -fno-strict-aliasing -I..";
    let traced = if design.trace { " -DRTL_TRACE" } else { "" };
    verilate.current_dir(&work).args(["--cc", "--exe", "-O3", "--noassert", "--top-module", top]);
    verilate.args(["--x-assign", "fast", "--x-initial", "fast"]);
    // Warnings are the design's own business: they are in the log.
    verilate.args(["-Wno-fatal", "--Mdir", "obj", "-o", "sim"]);
    verilate.args(["-CFLAGS", &format!("{flags}{traced}")]);
    if design.trace {
        verilate.args(["--trace-fst", "--trace-structs"]);
    }
    for file in &design.files {
        verilate.arg(std::path::absolute(file).at("find", file)?);
    }
    verilate.args(["harness.cpp", "top.cpp"]);
    run("Verilator", verilate)?;
    step.percent(30.0);
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut make = tools.command("nice");
    make.args(["-n", "5", "make", "-C", "obj", "-f", &format!("V{top}.mk"), &format!("-j{jobs}")]);
    make.args(["OPT_FAST=-O2", "OPT_SLOW=-O1"]).current_dir(&work);
    run("The C++ compiler", make)?;
    let built = work.join("obj/sim");
    let kept = dir.join("sim");
    fs::copy(&built, &kept).at("copy", &built)?;
    for path in &design.data {
        let name = path.file_name().unwrap_or_default();
        fs::copy(path, dir.join(name)).at("copy", path)?;
    }
    fs::remove_dir_all(&work).at("remove", &work)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_design_without_sense_is_refused() {
        let design = |top: &str, files: &[&str]| Design {
            files: files.iter().map(PathBuf::from).collect(),
            data: Vec::new(),
            top: top.into(),
            trace: false,
        };
        let cache = Cache::at(std::env::temp_dir().join("vfio-dma-no-cache"));
        for (design, words) in [
            (design("a b", &["x.v"]), "letters, digits"),
            (design("", &["x.v"]), "letters, digits"),
            (design("top", &[]), "at least one file"),
        ] {
            let error = build_in(&cache, &design).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
