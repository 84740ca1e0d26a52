//! Loading the driver's kernel module.

use std::io::{self, Read as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{HostError, Result, Sysfs};
use crate::pci::Remedy;
use crate::pci::sysfs::VFIO_PCI;

impl Sysfs {
    /// Loads vfio-pci unless it is there, as a module or built in.
    pub(super) fn ensure_vfio_pci(&self) -> Result<()> {
        let registered = || self.driver_dir(VFIO_PCI).exists();
        if registered() {
            return Ok(());
        }
        let reason = match self.modprobe(VFIO_PCI) {
            Ok(()) if registered() => return Ok(()),
            Ok(()) => {
                format!("modprobe succeeded, {} is absent", self.driver_dir(VFIO_PCI).display())
            }
            Err(reason) => reason,
        };
        let remedy = if nix::unistd::geteuid().is_root() {
            Remedy::InstallModules { option: "CONFIG_VFIO_PCI" }
        } else {
            Remedy::RunAsRoot
        };
        Err(HostError::Module { module: VFIO_PCI, reason, remedy })
    }

    /// Runs the first modprobe that exists; the error says why the module is not loaded.
    fn modprobe(&self, module: &str) -> std::result::Result<(), String> {
        for program in &self.modprobe {
            match run(program, module, self.timeout) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(format!("{}: {error}", program.display())),
                Ok(complaint) => return complaint.map_or(Ok(()), Err),
            }
        }
        Err("there is no modprobe on this machine".into())
    }
}

/// Runs `program module`; `None` when it succeeded, else what it had to say.
fn run(program: &Path, module: &str, timeout: Duration) -> io::Result<Option<String>> {
    let mut child = Command::new(program)
        .arg(module)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let deadline = Instant::now().checked_add(timeout);
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if deadline.is_some_and(|end| Instant::now() > end) => {
                child.kill()?;
                child.wait()?;
                let name = program.display();
                return Ok(Some(format!("{name} did not end within {timeout:?}")));
            }
            None => thread::sleep(Duration::from_millis(5)),
        }
    };
    if status.success() {
        return Ok(None);
    }
    let mut complaint = String::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(4096).read_to_string(&mut complaint)?;
    }
    Ok(Some(format!("{} {module}: {status}: {}", program.display(), complaint.trim())))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::fake::Fake;
    use super::*;

    #[test]
    fn modprobe_is_run_when_the_driver_is_absent() {
        let fake = Fake::new();
        let dir = fake.path("bus/pci/drivers/vfio-pci");
        let tool = fake.script(&format!("[ \"$1\" = vfio-pci ] && mkdir -p {}", dir.display()));
        let missing = PathBuf::from("/nonexistent/modprobe");
        let sysfs = Sysfs { modprobe: vec![missing, tool], ..fake.sysfs() };
        assert!(!dir.exists());
        sysfs.ensure_vfio_pci().unwrap();
        assert!(dir.exists());
        // Once it is registered, no program is needed.
        Sysfs { modprobe: vec![], ..sysfs }.ensure_vfio_pci().unwrap();
    }

    #[test]
    fn an_absent_module_is_an_error_that_names_it_and_the_remedy() {
        let fake = Fake::new();
        let failing = fake.script("echo FATAL: Module vfio-pci not found >&2; exit 1");
        let idle = fake.script("exit 0");
        let slow = fake.script("exec sleep 60");
        let (long, short) = (Duration::from_secs(60), Duration::from_millis(100));
        for (tool, timeout, expected) in [
            (failing, long, "FATAL: Module vfio-pci not found"),
            (idle, long, "is absent"),
            (slow, short, "did not end within"),
            (PathBuf::from("/nonexistent"), long, "no modprobe on this machine"),
        ] {
            let sysfs = Sysfs { modprobe: vec![tool], timeout, ..fake.sysfs() };
            let error = sysfs.ensure_vfio_pci().unwrap_err();
            assert!(matches!(error, HostError::Module { module: "vfio-pci", .. }));
            let text = error.to_string();
            assert!(text.contains(expected), "{text}");
            assert!(text.contains("CONFIG_VFIO_PCI") || text.contains("as root"), "{text}");
        }
    }
}
