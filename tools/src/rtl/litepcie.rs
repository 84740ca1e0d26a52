//! LitePCIe's gateware: fetched from the Python package index, generated and compiled, once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use vfio_dma_model::rtl::litepcie::{GENERATOR, PACKAGES};

use super::toolchain::{self, Goal};
use super::{Design, RtlError, build_in};
use crate::progress::Step;
use crate::vm::VmError;
use crate::vm::apt::run_with_lines;
use crate::vm::cache::{Cache, digest};
use crate::vm::error::Context;

/// What the card is generated with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// DMA channels, 1 to 8.
    pub channels: u8,
    /// Width of the bus in bits: 64, 128, 256 or 512. Above 128, short packets in both directions
    /// at once come out malformed.
    pub data_width: u16,
    /// Reads that it has in flight: 2, 4, 8 or 16.
    pub tags: u8,
    /// Whether a channel can wait for a pulse.
    pub synchronizer: bool,
    /// Whether the program can write waveforms.
    pub trace: bool,
}

impl Default for Options {
    /// One channel, 128 bits, 4 reads.
    fn default() -> Self {
        Options { channels: 1, data_width: 128, tags: 4, synchronizer: false, trace: false }
    }
}

/// A generated card.
#[derive(Debug, Clone)]
pub struct Card {
    /// The program that simulates it.
    pub program: PathBuf,
    /// Its map of registers.
    pub csr: PathBuf,
}

/// The card with these options, built when it is not in the cache.
///
/// # Errors
///
/// Fails when tools are missing, the packages cannot be fetched, or the build fails.
pub fn card(options: &Options) -> Result<Card, RtlError> {
    let cache = Cache::open()?;
    toolchain::check(&cache, Goal { generated: true, ..Goal::default() })?;
    let generated = generated(&cache, options)?;
    let program = build_in(
        &cache,
        &Design {
            files: vec![generated.join("litepcie.v")],
            data: vec![generated.join("litepcie_mem.init")],
            top: "litepcie".into(),
            trace: options.trace,
        },
    )?;
    Ok(Card { program, csr: generated.join("csr.csv") })
}

/// The directory of a card's Verilog, its maps of registers and its headers in C.
pub(super) fn generated(cache: &Cache, options: &Options) -> Result<PathBuf, RtlError> {
    let arguments = [
        format!("--channels={}", options.channels),
        format!("--data-width={}", options.data_width),
        format!("--tags={}", options.tags),
    ];
    let mut arguments = arguments.to_vec();
    arguments.extend(options.synchronizer.then(|| "--synchronizer".to_owned()));
    let python = environment(cache)?;
    let key = digest(format!("{PACKAGES:?}\n{GENERATOR}\n{arguments:?}").as_bytes());
    let entry = cache.entry("litepcie", &format!("current-{key}"), |dir| {
        let _step = Step::new("generating LitePCIe's card");
        let script = dir.join("generate.py");
        fs::write(&script, GENERATOR).at("write", &script)?;
        let mut command = Command::new(&python);
        command.arg("-B").arg(&script).arg(dir).args(&arguments);
        run_with_lines(command, |_| ())?;
        Ok(key.clone())
    })?;
    Ok(entry)
}

/// A virtual environment with LitePCIe's packages; returns its Python.
pub(super) fn environment(cache: &Cache) -> Result<PathBuf, RtlError> {
    let python = toolchain::python()?;
    let mut ask = Command::new(&python);
    ask.arg("--version");
    let version = run_with_lines(ask, |_| ())?;
    let key = digest(format!("{version}{PACKAGES:?}").as_bytes());
    let mut lacks_venv = false;
    let entry = cache.entry("litepcie-python", &format!("current-{key}"), |dir| {
        let _step = Step::new("fetching LitePCIe's packages");
        let mut venv = Command::new(&python);
        venv.args(["-m", "venv"]).arg(dir);
        if let Err(error) = run_with_lines(venv, |_| ()) {
            log::warn!("{error}");
            lacks_venv = true;
            return Err(VmError::Cancelled);
        }
        let mut pip = Command::new(dir.join("bin/python"));
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]);
        pip.args(PACKAGES);
        run_with_lines(pip, |_| ())?;
        Ok(key.clone())
    });
    if lacks_venv {
        let (missing, packages) =
            ("Python's venv and pip".to_owned(), "python3-venv python3-pip".to_owned());
        return Err(RtlError::NoTools { missing, packages });
    }
    Ok(entry?.join("bin/python"))
}

/// The map of registers of a generated card.
///
/// # Errors
///
/// Fails when the file cannot be read.
pub fn csr(path: &Path) -> Result<String, RtlError> {
    Ok(fs::read_to_string(path).at("read", path)?)
}
