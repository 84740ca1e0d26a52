//! The QEMU process and the host's ends of its serial ports.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

use super::error::{Context, VmError};

/// The host's end of the guest's serial ports, in their order.
#[derive(Debug)]
pub(super) struct Ports {
    /// The kernel's console.
    pub(super) console: UnixStream,
    /// The command's standard output, and its input.
    pub(super) output: UnixStream,
    /// The command's standard error.
    pub(super) errors: UnixStream,
    /// What the guest's init reports.
    pub(super) status: UnixStream,
}

/// Interrupt lines of the serial ports: unlike the PC's default, no two share one.
const PORT_IRQS: [u8; 4] = [4, 3, 5, 7];

impl Ports {
    /// Opens four connected pairs; the other ends and their arguments go to QEMU.
    pub(super) fn open() -> Result<(Self, Vec<OwnedFd>, Vec<String>), VmError> {
        let mut theirs = Vec::new();
        let mut arguments = Vec::new();
        let mut port = |index: usize, irq: u8| -> Result<UnixStream, VmError> {
            let (our, their) = UnixStream::pair().during("open a socket pair")?;
            our.set_nonblocking(true).during("prepare a socket")?;
            let fd = their.as_raw_fd();
            arguments.extend([
                "-chardev".to_owned(),
                format!("socket,id=port{index},fd={fd}"),
                "-device".to_owned(),
                format!("isa-serial,chardev=port{index},index={index},irq={irq}"),
            ]);
            theirs.push(their.into());
            Ok(our)
        };
        let [console, output, errors, status] = PORT_IRQS;
        let ports = Self {
            console: port(0, console)?,
            output: port(1, output)?,
            errors: port(2, errors)?,
            status: port(3, status)?,
        };
        Ok((ports, theirs, arguments))
    }
}

/// A QEMU that dies with this value, and with the thread that started it.
#[derive(Debug)]
pub(super) struct Machine {
    child: Child,
    /// QEMU's own messages.
    pub(super) errors: Option<ChildStderr>,
}

impl Machine {
    /// Starts `command` with `inherited` descriptors left open under their numbers.
    pub(super) fn start(mut command: Command, inherited: &[OwnedFd]) -> Result<Self, VmError> {
        let name = command.get_program().to_string_lossy().into_owned();
        log::debug!("{command:?}");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // Its own group: a Ctrl-C at the terminal reaches this process, which then ends QEMU.
        command.process_group(0);
        let parent = Pid::this();
        let fds: Vec<RawFd> = inherited.iter().map(AsRawFd::as_raw_fd).collect();
        let prepare = move || prepare_child(parent, &fds);
        // SAFETY: between fork and exec only async-signal-safe calls are allowed.
        // `prepare_child` makes the system calls prctl, getppid and fcntl and does not
        // allocate; the descriptors are open, as `inherited` outlives `spawn`.
        unsafe { command.pre_exec(prepare) };
        let mut child = command.spawn().during(format!("run {name}"))?;
        let errors = child.stderr.take();
        Ok(Self { child, errors })
    }

    /// Ends it when it still runs, and tells how it ended.
    pub(super) fn end(&mut self) -> String {
        // It may have ended by itself: then there is nothing to kill.
        let _ = self.child.kill();
        match self.child.wait() {
            Ok(status) => status.to_string(),
            Err(e) => e.to_string(),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}

/// Ties the child's life to its parent's and lets it keep `fds`.
fn prepare_child(parent: Pid, fds: &[RawFd]) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != parent {
        return Err(Errno::ESRCH.into());
    }
    for &fd in fds {
        // SAFETY: `Machine::start` holds these descriptors open across the fork.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn a_dropped_machine_is_gone() {
        let mut command = Command::new("sleep");
        command.arg("60");
        let machine = Machine::start(command, &[]).unwrap();
        let process = PathBuf::from(format!("/proc/{}", machine.child.id()));
        assert!(process.exists());
        drop(machine);
        assert!(!process.exists());
    }

    #[test]
    fn a_machine_dies_with_its_thread() {
        let mut machine = std::thread::spawn(|| {
            let mut command = Command::new("sleep");
            command.arg("60");
            Machine::start(command, &[]).unwrap()
        })
        .join()
        .unwrap();
        let status = machine.child.wait().unwrap();
        assert_eq!(status.to_string(), "signal: 9 (SIGKILL)");
    }
}
