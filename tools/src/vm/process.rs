//! A running QEMU: its serial ports, its deadlines and its end.
//!
//! One thread waits for all of it with `poll`, so that every wait is bounded by the guest's
//! deadlines and by the caller's request to stop.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

use super::error::{Context, VmError, tail};

/// Longest pause between two looks at the request to stop.
const TICK: Duration = Duration::from_millis(100);
/// Longest time a guest may take to switch itself off.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(5);
/// How much of a log is kept, in bytes.
const LOG_LIMIT: usize = 1 << 20;
/// Longest line on the status port, in bytes.
const STATUS_LINE_LIMIT: usize = 64 << 10;
/// Lines of a log that an error shows.
const SHOWN_LINES: usize = 30;
/// KVM's last words; QEMU stops the guest there and waits for a debugger.
const KVM_FAILED: &[u8] = b"KVM internal error";
/// The key that ends a shell's guest from outside: Ctrl-], as in telnet.
const ESCAPE: u8 = 0x1d;
/// The byte that ends the input of a terminal in line mode.
const END_OF_FILE: u8 = 0x04;

/// The host's end of the guest's serial ports, in their order.
#[derive(Debug)]
pub(super) struct Ports {
    console: UnixStream,
    output: UnixStream,
    errors: UnixStream,
    status: UnixStream,
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
    errors: Option<ChildStderr>,
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

    fn end(&mut self) -> String {
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

/// What a command in a guest reads and writes.
pub struct Streams<'a> {
    /// Receives the command's standard output as it comes.
    pub stdout: &'a mut dyn Write,
    /// Receives the command's standard error as it comes.
    pub stderr: &'a mut dyn Write,
    /// Where the command's input comes from.
    pub input: Input,
    /// Set by another thread or a signal handler to end the run.
    pub cancel: Option<&'a AtomicBool>,
}

/// The input of a command in a guest.
#[derive(Debug)]
pub enum Input {
    /// Nothing.
    None,
    /// Lines of text.
    Lines(File),
    /// Keys of a terminal in raw mode, for a shell; Ctrl-] ends the guest.
    Shell {
        /// The terminal.
        terminal: File,
        /// Height of the terminal.
        rows: u16,
        /// Width of the terminal.
        columns: u16,
    },
}

/// How long a guest may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) boot: Duration,
    pub(super) command: Option<Duration>,
}

/// How a command in a guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Its exit status; 128 + N when signal N ended it.
    pub status: u8,
    /// The end of what the guest's kernel wrote to its console.
    pub console: Vec<u8>,
    /// Time from the start of QEMU to the start of the command.
    pub boot: Duration,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Booting { since: Instant },
    Running { since: Instant, boot: Duration },
    Ended { since: Instant, boot: Duration, status: u8 },
}

/// Serves the guest's ports until its command has ended and it is off.
pub(super) fn serve(
    mut machine: Machine,
    ports: Ports,
    limits: Limits,
    streams: &mut Streams<'_>,
    mut ready: impl FnMut(),
) -> Result<Finished, VmError> {
    let mut phase = Phase::Booting { since: Instant::now() };
    let mut console = Log::default();
    let mut qemu = Log::default();
    let mut lines = Vec::new();
    let mut pending: Vec<u8> = Vec::new();
    let (mut input, ends) = match &mut streams.input {
        Input::None => (None, false),
        Input::Lines(file) => (Some(file), true),
        Input::Shell { terminal, .. } => (Some(terminal), false),
    };
    let mut errors = machine.errors.take();
    // Console, output, errors and status, until each is at its end.
    let mut open = [true; 4];

    while open.iter().any(|&o| o) || errors.is_some() {
        if streams.cancel.is_some_and(|c| c.load(Ordering::SeqCst)) {
            return Err(VmError::Cancelled);
        }
        let shown = |log: &Log| tail(&log.text, SHOWN_LINES);
        let left = match phase {
            Phase::Booting { since } => {
                limits.boot.checked_sub(since.elapsed()).ok_or_else(|| VmError::BootTimeout {
                    limit: limits.boot,
                    console: shown(&console),
                })?
            }
            Phase::Running { since, .. } => match limits.command {
                None => TICK,
                Some(limit) => limit
                    .checked_sub(since.elapsed())
                    .ok_or_else(|| VmError::CommandTimeout { limit, console: shown(&console) })?,
            },
            // All output came before the status: what is left is only the power switch.
            Phase::Ended { since, .. } => match POWER_OFF_LIMIT.checked_sub(since.elapsed()) {
                Some(left) => left,
                None => break,
            },
        };

        // Keys wait until the guest has taken the ones before, and has booted.
        let running = matches!(phase, Phase::Running { .. });
        let reading = if running && pending.is_empty() { input.as_deref() } else { None };
        let wanted = [
            open[0].then(|| ports.console.as_fd()),
            open[1].then(|| ports.output.as_fd()),
            open[2].then(|| ports.errors.as_fd()),
            open[3].then(|| ports.status.as_fd()),
            errors.as_ref().map(AsFd::as_fd),
            reading.map(AsFd::as_fd),
        ];
        let [at_console, at_output, at_errors, at_status, at_qemu, at_input] =
            wait(wanted, !pending.is_empty(), left.min(TICK))?;

        if at_console {
            open[0] = read_some(&ports.console, |data| console.write_all(data))?;
        }
        if at_output {
            open[1] = read_some(&ports.output, |data| {
                streams.stdout.write_all(data)?;
                streams.stdout.flush()
            })?;
        }
        if at_errors {
            open[2] = read_some(&ports.errors, |data| {
                streams.stderr.write_all(data)?;
                streams.stderr.flush()
            })?;
        }
        if at_qemu && let Some(pipe) = &mut errors {
            if !read_some(pipe, |data| qemu.write_all(data))? {
                errors = None;
            }
            if qemu.contains(KVM_FAILED) {
                break;
            }
        }
        if at_input && let Some(file) = &mut input {
            let more = read_some(&mut **file, |data| pending.write_all(data))?;
            if !ends && pending.contains(&ESCAPE) {
                return Err(VmError::Cancelled);
            }
            if !more {
                input = None;
                if ends {
                    pending.push(END_OF_FILE);
                }
            }
        }
        send_pending(&ports.output, &mut pending)?;
        if at_status {
            open[3] = read_some(&ports.status, |data| lines.write_all(data))?;
            while let Some(end) = lines.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = lines.drain(..=end).collect();
                let next = advance(phase, &String::from_utf8_lossy(&line))?;
                if let (Phase::Booting { .. }, Phase::Running { .. }) = (phase, next) {
                    ready();
                }
                phase = next;
            }
            if lines.len() > STATUS_LINE_LIMIT {
                return Err(VmError::GuestSetup { why: "its status line has no end".into() });
            }
        }
    }

    let how = machine.end();
    match phase {
        Phase::Ended { boot, status, .. } => Ok(Finished { status, console: console.text, boot }),
        _ => Err(VmError::GuestDied {
            status: how,
            qemu: tail(&qemu.text, SHOWN_LINES),
            console: tail(&console.text, SHOWN_LINES),
        }),
    }
}

/// The phase after a line on the status port.
fn advance(phase: Phase, line: &str) -> Result<Phase, VmError> {
    let now = Instant::now();
    let (word, rest) = line.trim_end().split_once(' ').unwrap_or((line.trim_end(), ""));
    match (phase, word, rest.parse::<u8>()) {
        (_, "fail", _) => Err(VmError::GuestSetup { why: rest.trim_end().to_owned() }),
        (Phase::Booting { since }, "ready", _) => {
            Ok(Phase::Running { since: now, boot: now - since })
        }
        (Phase::Running { boot, .. }, "exit", Ok(status)) => {
            Ok(Phase::Ended { since: now, boot, status })
        }
        _ => Err(VmError::GuestSetup { why: format!("unexpected status line {line:?}") }),
    }
}

/// Waits until one of `wanted` has something to read, or until `limit`.
///
/// With `sending` it also returns as soon as the second one can be written to.
fn wait<const N: usize>(
    wanted: [Option<BorrowedFd<'_>>; N],
    sending: bool,
    limit: Duration,
) -> Result<[bool; N], VmError> {
    let mut places = Vec::with_capacity(N);
    let mut fds = Vec::with_capacity(N);
    for (place, fd) in wanted.into_iter().enumerate() {
        if let Some(fd) = fd {
            let mut events = PollFlags::POLLIN;
            events.set(PollFlags::POLLOUT, sending && place == 1);
            places.push(place);
            fds.push(PollFd::new(fd, events));
        }
    }
    // Rounded up: a rest below 1 ms must not become a busy loop.
    let millis = u16::try_from(limit.as_millis() + 1).unwrap_or(u16::MAX);
    match poll(&mut fds, PollTimeout::from(millis)) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(e) => return Err(e).during("wait for the guest"),
    }
    let mut ready = [false; N];
    for (place, fd) in places.into_iter().zip(&fds) {
        let seen = fd.revents().unwrap_or(PollFlags::empty());
        ready[place] = !(seen - PollFlags::POLLOUT).is_empty();
    }
    Ok(ready)
}

/// Reads once and hands the data on; false at the end.
fn read_some(
    mut from: impl Read,
    take: impl FnOnce(&[u8]) -> io::Result<()>,
) -> Result<bool, VmError> {
    let mut buffer = [0; 64 << 10];
    match from.read(&mut buffer) {
        Ok(0) => Ok(false),
        Ok(n) => take(&buffer[..n]).during("pass on the guest's output").map(|()| true),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(true),
        // QEMU went away with data unread in its end, or a terminal hung up.
        Err(e) if e.kind() == ErrorKind::ConnectionReset => Ok(false),
        Err(e) if e.raw_os_error() == Some(Errno::EIO as i32) => Ok(false),
        Err(e) => Err(e).during("read from the guest"),
    }
}

fn send_pending(mut to: &UnixStream, pending: &mut Vec<u8>) -> Result<(), VmError> {
    if pending.is_empty() {
        return Ok(());
    }
    match to.write(pending) {
        Ok(n) => {
            pending.drain(..n);
            Ok(())
        }
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
        // The guest is off; the end of its ports ends the run.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => {
            pending.clear();
            Ok(())
        }
        Err(e) => Err(e).during("write to the guest"),
    }
}

/// The end of a text that may be long.
#[derive(Debug, Default)]
struct Log {
    text: Vec<u8>,
}

impl Log {
    fn contains(&self, what: &[u8]) -> bool {
        self.text.windows(what.len()).any(|w| w == what)
    }
}

impl Write for Log {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(data);
        if self.text.len() > 2 * LOG_LIMIT {
            self.text.drain(..self.text.len() - LOG_LIMIT);
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Machine {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Machine::start(command, &[]).unwrap()
    }

    fn serve_with(
        script: impl FnOnce(&[RawFd]) -> String,
        limits: Limits,
        cancel: Option<&AtomicBool>,
    ) -> (Result<Finished, VmError>, Vec<u8>, Vec<u8>) {
        let (ports, theirs, _) = Ports::open().unwrap();
        let fds: Vec<RawFd> = theirs.iter().map(AsRawFd::as_raw_fd).collect();
        let mut command = Command::new("bash");
        command.args(["-c", &script(&fds)]);
        let machine = Machine::start(command, &theirs).unwrap();
        drop(theirs);
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut streams =
            Streams { stdout: &mut stdout, stderr: &mut stderr, input: Input::None, cancel };
        let result = serve(machine, ports, limits, &mut streams, || ());
        (result, stdout, stderr)
    }

    const LIMITS: Limits =
        Limits { boot: Duration::from_secs(20), command: Some(Duration::from_secs(20)) };
    const SHORT: Duration = Duration::from_millis(300);

    #[test]
    fn ports_are_kept_apart() {
        let script = |fds: &[RawFd]| {
            let &[console, output, errors, status] = fds else { panic!("{fds:?}") };
            format!(
                "echo log >&{console}; echo ready >&{status}; echo one >&{output}; \
                 echo two >&{errors}; echo exit 7 >&{status}"
            )
        };
        let (result, stdout, stderr) = serve_with(script, LIMITS, None);
        let finished = result.unwrap();
        assert_eq!((finished.status, finished.console.as_slice()), (7, &b"log\n"[..]));
        assert_eq!((stdout.as_slice(), stderr.as_slice()), (&b"one\n"[..], &b"two\n"[..]));
    }

    #[test]
    fn deadlines_hold_and_show_the_console() {
        let limits = Limits { boot: SHORT, ..LIMITS };
        let (result, ..) = serve_with(|f| format!("echo stuck >&{}; sleep 20", f[0]), limits, None);
        let error = result.unwrap_err();
        assert!(matches!(&error, VmError::BootTimeout { console, .. } if console == "stuck"));

        let limits = Limits { command: Some(SHORT), ..LIMITS };
        let (result, ..) = serve_with(|f| format!("echo ready >&{}; sleep 20", f[3]), limits, None);
        assert!(matches!(result, Err(VmError::CommandTimeout { limit, .. }) if limit == SHORT));
    }

    #[test]
    fn early_death_tells_what_qemu_said() {
        let (result, ..) = serve_with(|_| "echo bad option >&2; exit 3".into(), LIMITS, None);
        let error = result.unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("bad option"), "{error}");
    }

    #[test]
    fn setup_failure_and_cancellation_end_the_run() {
        let (result, ..) =
            serve_with(|f| format!("echo fail no module >&{}; sleep 20", f[3]), LIMITS, None);
        assert!(matches!(result, Err(VmError::GuestSetup { why }) if why == "no module"));
        let cancel = AtomicBool::new(true);
        let (result, ..) = serve_with(|_| "sleep 20".into(), LIMITS, Some(&cancel));
        assert!(matches!(result, Err(VmError::Cancelled)));
    }

    #[test]
    fn a_dropped_machine_is_gone() {
        let machine = shell("sleep 60");
        let pid = machine.child.id();
        drop(machine);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn logs_keep_their_end() {
        let mut log = Log::default();
        log.write_all(&vec![b'a'; 2 * LOG_LIMIT]).unwrap();
        log.write_all(b"end").unwrap();
        assert_eq!(log.text.len(), LOG_LIMIT);
        assert!(log.text.ends_with(b"aend"));
    }
}
