//! LitePCIe's own Linux driver and its test program, for the guest's full kernel.
//!
//! Both come with the gateware, in the same package, and are compiled against the headers that
//! were generated with the card. Neither is changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use vfio_dma_model::rtl::litepcie::PACKAGES;

use super::RtlError;
use super::litepcie::{Options, environment, generated};
use super::toolchain::{self, Goal};
use crate::progress::Step;
use crate::vm::VmError;
use crate::vm::apt::run_with_lines;
use crate::vm::cache::{Cache, digest};
use crate::vm::error::Context;
use crate::vm::full;

/// What the kernel's build is told: the driver alone. The package's own list has a driver for a
/// serial port too, which is no part of the card and does not compile for newer kernels.
const KBUILD: &str = "obj-m := litepcie.o\nlitepcie-objs := main.o\n";
/// Sources of the test program, beside all of its library's.
const UTIL: &str = "litepcie_util.c";
/// Headers that are generated with the card.
const HEADERS: [&str; 2] = ["csr.h", "soc.h"];

/// A driver for a card, compiled.
#[derive(Debug, Clone)]
pub struct LinuxDriver {
    /// The module, for the kernel that `vm --kernel full` boots.
    pub module: PathBuf,
    /// `litepcie_util`, a static program.
    pub util: PathBuf,
}

/// LitePCIe's Linux driver for a card with these options; compiled, and the kernel too, when it
/// is not in the cache.
///
/// # Errors
///
/// Fails when tools are missing, something cannot be fetched, or it does not compile.
pub fn linux_driver(options: &Options) -> Result<LinuxDriver, RtlError> {
    let cache = Cache::open()?;
    toolchain::check(&cache, Goal { generated: true, c: true })?;
    let card = generated(&cache, options)?;
    let mut headers = String::new();
    for name in HEADERS {
        let path = card.join(name);
        headers += &fs::read_to_string(&path).at("read", &path)?;
    }
    let software = software(&cache)?;
    let kernel = full::identity(&cache)?;
    let key = digest(format!("{PACKAGES:?}\n{KBUILD}\n{kernel}\n{headers}").as_bytes());
    let log = cache.kind("litepcie-linux")?.join(format!("{key}.log"));
    let mut failed = None;
    let entry = cache.entry("litepcie-linux", &format!("current-{key}"), |dir| {
        let _step = Step::new("compiling LitePCIe's Linux driver");
        match compile(&cache, &software, &card, dir, &log) {
            Ok(()) => Ok(key.clone()),
            Err(error) => {
                failed = Some(error);
                // What it was is told in place of this.
                Err(VmError::Cancelled)
            }
        }
    });
    if let Some(source) = failed {
        let what = "compiling LitePCIe's Linux driver".to_owned();
        return Err(RtlError::Build { what, log, source });
    }
    let entry = entry?;
    Ok(LinuxDriver { module: entry.join("litepcie.ko"), util: entry.join("litepcie_util") })
}

/// The package's directory of C sources.
fn software(cache: &Cache) -> Result<PathBuf, RtlError> {
    let mut ask = Command::new(environment(cache)?);
    ask.args(["-B", "-c", "import litepcie; print(litepcie.__path__[0])"]);
    let package = run_with_lines(ask, |_| ())?;
    Ok(Path::new(package.trim()).join("software"))
}

/// Copies the C files of a directory, without those below it.
fn copy_sources(from: &Path, to: &Path) -> Result<Vec<PathBuf>, VmError> {
    fs::create_dir_all(to).at("create", to)?;
    let mut sources = Vec::new();
    for entry in fs::read_dir(from).at("read", from)? {
        let path = entry.at("read", from)?.path();
        let kind = path.extension().and_then(|extension| extension.to_str());
        if !matches!(kind, Some("c" | "h")) {
            continue;
        }
        let copy = to.join(path.file_name().unwrap_or_default());
        fs::copy(&path, &copy).at("copy", &path)?;
        if kind == Some("c") {
            sources.push(copy);
        }
    }
    sources.sort();
    Ok(sources)
}

fn compile(
    cache: &Cache,
    software: &Path,
    card: &Path,
    dir: &Path,
    log: &Path,
) -> Result<(), VmError> {
    let work = dir.join("work");
    let (kernel, user) = (work.join("kernel"), work.join("user"));
    copy_sources(&software.join("kernel"), &kernel)?;
    for name in HEADERS {
        let (from, to) = (card.join(name), kernel.join(name));
        fs::copy(&from, &to).at("copy", &from)?;
    }
    let kbuild = kernel.join("Kbuild");
    fs::write(&kbuild, KBUILD).at("write", &kbuild)?;
    full::build_module(cache, &kernel, log)?;
    let module = kernel.join("litepcie.ko");
    fs::copy(&module, dir.join("litepcie.ko")).at("copy", &module)?;

    copy_sources(&software.join("user"), &user)?;
    let library = user.join("liblitepcie");
    let sources = copy_sources(&software.join("user/liblitepcie"), &library)?;
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-static", "-I"]).arg(&kernel).arg("-I").arg(&library);
    gcc.arg("-o").arg(dir.join("litepcie_util")).arg(user.join(UTIL)).args(sources);
    run_with_lines(gcc, |_| ())?;
    fs::remove_dir_all(&work).at("remove", &work)
}
