//! A guest whose parts are at hand: builds its root file system, boots it, runs a command.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::Output;
use super::cache::Cache;
use super::config::{SHARE, SHARE_TAG, VmConfig};
use super::error::{Context, VmError};
use super::initramfs::{Archive, check_static};
use super::kernel::{self, Image};
use super::machine::{Machine, Ports};
use super::modules::{self, Tree};
use super::qemu::Qemu;
use super::session::{Finished, Input, Limits, Streams, serve};
use crate::progress::Step;

const INIT: &str = include_str!("guest_init.sh");

/// A guest that is ready to boot: QEMU, kernel and userland are on this machine.
#[derive(Debug, Clone)]
pub struct Guest {
    pub(super) cache: Cache,
    pub(super) qemu: Qemu,
    pub(super) image: Image,
    busybox: std::path::PathBuf,
    config: VmConfig,
    without_kvm: Option<String>,
}

impl Guest {
    /// Finds, fetches or builds what `config` needs, and settles how its processor runs.
    pub fn prepare(config: VmConfig) -> Result<Self, VmError> {
        // Mistakes in the configuration show before anything is fetched.
        config.check()?;
        let cache = Cache::open()?;
        let qemu = Qemu::find(&cache)?;
        let busybox = kernel::busybox(&cache)?;
        let image = config.kernel.resolve(&cache)?;
        let mut guest = Self { cache, qemu, image, busybox, config, without_kvm: None };
        (guest.config.accel, guest.without_kvm) = guest.config.accel.settle(&guest)?;
        log::debug!("kernel {}, {:?}", guest.image.release, guest.config.accel);
        Ok(guest)
    }

    /// Why its processor is translated (TCG) though nobody asked for that; `None` under KVM.
    #[must_use]
    pub fn without_kvm(&self) -> Option<&str> {
        self.without_kvm.as_deref()
    }

    /// The same parts with another configuration.
    pub(super) fn with(&self, config: VmConfig) -> Self {
        Self { config, ..self.clone() }
    }

    /// Boots, runs `command` with its output collected, and powers off.
    pub fn run<S: AsRef<OsStr>>(&self, command: &[S]) -> Result<Output, VmError> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut streams =
            Streams { stdout: &mut stdout, stderr: &mut stderr, input: Input::None, cancel: None };
        let Finished { status, console, boot } = self.run_streaming(command, &mut streams)?;
        Ok(Output { status, stdout, stderr, console, boot })
    }

    /// Boots, runs `command` with its output passed on as it comes, and powers off.
    ///
    /// The command's arguments arrive as they are. QEMU ends with the calling thread at
    /// the latest.
    pub fn run_streaming<S: AsRef<OsStr>>(
        &self,
        command: &[S],
        streams: &mut Streams<'_>,
    ) -> Result<Finished, VmError> {
        let step = Step::new("booting a guest");
        let root =
            memfd_create("initramfs", MFdFlags::MFD_CLOEXEC).during("create a memory file")?;
        let mut writer = BufWriter::with_capacity(1 << 20, File::from(root));
        self.write_root(&mut writer, command, &streams.input)?;
        let root = writer.into_inner().map_err(io::IntoInnerError::into_error);
        let root = OwnedFd::from(root.during("write the guest's root file system")?);

        let (ports, mut inherited, port_arguments) = Ports::open()?;
        let mut qemu = self.qemu.command();
        qemu.args(self.config.accel.arguments());
        qemu.args(self.config.machine_arguments()?);
        qemu.args(port_arguments);
        qemu.arg("-kernel").arg(&self.image.path);
        qemu.arg("-initrd").arg(format!("/proc/self/fd/{}", root.as_raw_fd()));
        qemu.arg("-append").arg(self.config.kernel_line());
        qemu.args(&self.config.qemu_args);
        inherited.push(root);
        let machine = Machine::start(qemu, &inherited)?;
        // The far ends of the ports must be QEMU's alone: its end is then their end.
        drop(inherited);

        let limits = Limits { boot: self.config.boot_timeout, command: self.config.timeout };
        let mut step = Some(step);
        serve(machine, ports, limits, streams, || drop(step.take()))
    }

    fn write_root(
        &self,
        out: impl Write,
        command: &[impl AsRef<OsStr>],
        input: &Input,
    ) -> Result<(), VmError> {
        const WRITING: &str = "write the guest's root file system";
        let mut root = Archive::new(out);
        root.console().during(WRITING)?;
        for dir in ["/dev", "/proc", "/sys", "/tmp", "/root", "/run", "/mnt", "/etc", "/usr", SHARE]
        {
            root.directory(dir).during(WRITING)?;
        }
        root.file("/init", 0o755, INIT.as_bytes()).during(WRITING)?;
        root.file("/etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n").during(WRITING)?;
        root.file("/etc/group", 0o644, b"root:x:0:\n").during(WRITING)?;
        for (link, target) in [("/sbin", "bin"), ("/usr/bin", "../bin"), ("/usr/sbin", "../bin")] {
            root.link(link, target).during(WRITING)?;
        }
        let busybox = fs::read(&self.busybox).at("read", &self.busybox)?;
        check_static(&self.busybox, &busybox)?;
        root.file("/bin/busybox", 0o755, &busybox).during(WRITING)?;
        for applet in self.applets()? {
            root.link(&format!("/bin/{applet}"), "busybox").during(WRITING)?;
        }
        if let Some(program) = &self.config.program {
            let data = fs::read(program).at("read", program)?;
            check_static(program, &data)?;
            root.file("/bin/vfio-dma", 0o755, &data).during(WRITING)?;
        }
        for file in &self.config.files {
            let data = fs::read(&file.host).at("read", &file.host)?;
            root.file(&file.guest, file.mode, &data).during(WRITING)?;
        }
        let load = self.write_modules(&mut root)?;
        root.file("/etc/vfio-dma/settings", 0o644, &self.settings(&load, input)?)
            .during(WRITING)?;
        root.file("/etc/vfio-dma/command", 0o644, &script(&self.config.env, command)?)
            .during(WRITING)?;
        root.finish().during(WRITING)?;
        Ok(())
    }

    /// Places the modules and returns the names of those to load.
    fn write_modules(&self, root: &mut Archive<impl Write>) -> Result<Vec<String>, VmError> {
        let load = self.config.modules_to_load();
        // A kernel without modules has what it has: whether that is enough shows in use.
        let Some(dir) = &self.image.modules else {
            return Ok(Vec::new());
        };
        let include = self.config.modules.include.iter().map(String::as_str);
        let found = if load.is_empty() && self.config.modules.include.is_empty() {
            Vec::new()
        } else {
            Tree::open(dir, &self.image.release)?.closure(load.iter().copied().chain(include))?
        };
        let base = format!("/lib/modules/{}", self.image.release);
        let mut place = |name: &str, data: &[u8]| {
            root.file(&format!("{base}/{name}"), 0o644, data).during("place a module")
        };
        for module in &found {
            place(&module.path.to_string_lossy(), &module.data)?;
        }
        place("modules.dep", modules::dep_file(&found).as_bytes())?;
        place("modules.alias", modules::alias_file(&found).as_bytes())?;
        // Those that the kernel has built in are not among the files.
        let has = |name: &str| found.iter().any(|m| m.name == name.replace('-', "_"));
        Ok(load.into_iter().filter(|name| has(name)).map(str::to_owned).collect())
    }

    fn settings(&self, load: &[String], input: &Input) -> Result<Vec<u8>, VmError> {
        let share = self.config.share.as_ref().map(|_| (SHARE_TAG, SHARE));
        settings(load, input, share)
    }

    fn applets(&self) -> Result<Vec<String>, VmError> {
        let output = Command::new(&self.busybox).arg("--list").output().at("run", &self.busybox)?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().filter(|name| *name != "busybox").map(str::to_owned).collect())
    }
}

/// What the guest's init is told; `share` is a tag and where its file system goes.
fn settings(
    modules: &[String],
    input: &Input,
    share: Option<(&str, &str)>,
) -> Result<Vec<u8>, VmError> {
    let mut text = b"MODULES=".to_vec();
    text.extend(quoted(modules.join(" ").as_bytes())?);
    let input = match input {
        Input::None => "\nINPUT=none\n".to_owned(),
        Input::Lines(_) => "\nINPUT=lines\n".to_owned(),
        Input::Shell { rows, columns, .. } => {
            format!("\nINPUT=shell\nROWS={rows}\nCOLUMNS={columns}\n")
        }
    };
    text.extend(input.into_bytes());
    if let Some((tag, dir)) = share {
        text.extend(format!("SHARE_TAG={tag}\nSHARE={dir}\n").into_bytes());
    }
    Ok(text)
}

/// A script that runs `command` with every argument as it is.
fn script(env: &[(String, OsString)], command: &[impl AsRef<OsStr>]) -> Result<Vec<u8>, VmError> {
    let mut text = Vec::new();
    for (name, value) in env {
        let letters = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if name.is_empty() || !letters || name.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(VmError::BadConfig {
                what: "environment variable",
                value: name.clone(),
                why: "a name is made of letters, digits and underscores".into(),
            });
        }
        text.extend(format!("export {name}=").into_bytes());
        text.extend(quoted(value.as_bytes())?);
        text.push(b'\n');
    }
    text.extend(b"exec");
    for argument in command {
        text.push(b' ');
        text.extend(quoted(argument.as_ref().as_bytes())?);
    }
    text.push(b'\n');
    Ok(text)
}

fn quoted(word: &[u8]) -> Result<Vec<u8>, VmError> {
    let word = shlex::bytes::try_quote(word).map_err(|e| VmError::BadConfig {
        what: "argument",
        value: String::from_utf8_lossy(word).into_owned(),
        why: e.to_string(),
    })?;
    Ok(word.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_gets_every_argument_as_it_is() {
        let awkward: Vec<&OsStr> = [
            &b"two words"[..],
            b"",
            b"it's",
            b"\"$HOME\" `id` \\",
            b"line\nline",
            b"*",
            b"!x",
            b"\xff\x81\x88",
            b"-n",
        ]
        .map(OsStr::from_bytes)
        .into();
        let mut command = vec![OsStr::new("printf"), OsStr::new("[%s]")];
        command.extend(&awkward);
        let env = [("WORD".to_owned(), OsString::from("a 'b'"))];
        let text = script(&env, &command).unwrap();
        let output = Command::new("sh").arg("-c").arg(OsStr::from_bytes(&text)).output().unwrap();
        let mut expected = Vec::new();
        for word in awkward {
            expected.extend([b"[", word.as_bytes(), b"]"].concat());
        }
        assert_eq!(output.stdout, expected);
    }

    #[test]
    fn what_a_shell_cannot_carry_is_refused() {
        assert!(script(&[], &["a\0b"]).is_err());
        assert!(script(&[("A B".into(), "".into())], &["true"]).is_err());
        assert!(script(&[("1".into(), "".into())], &["true"]).is_err());
    }

    #[test]
    fn settings_are_shell() {
        let text = settings(&["vfio-pci".into(), "dca".into()], &Input::None, None).unwrap();
        assert_eq!(text, b"MODULES='vfio-pci dca'\nINPUT=none\n");
        let text = settings(&[], &Input::None, Some(("tag", "/dir"))).unwrap();
        assert_eq!(text, b"MODULES=''\nINPUT=none\nSHARE_TAG=tag\nSHARE=/dir\n");
    }
}
