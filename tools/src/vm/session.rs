//! The conversation with a running guest: its output, its input, its deadlines and its end.
//!
//! One thread waits for all of it with `poll`, so that every wait is bounded by the guest's
//! deadlines and by the caller's request to stop.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::process::ChildStderr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::error::{Context, VmError, tail};
use super::machine::{Machine, Ports};

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
/// What ends the input of a terminal in line mode: the first of the two ends a line that was
/// begun.
const END_OF_FILE: [u8; 2] = [0x04; 2];

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

/// Serves the guest's ports until its command has ended and it is off; `ready` is called
/// when the command starts.
pub(super) fn serve(
    mut machine: Machine,
    ports: Ports,
    limits: Limits,
    streams: &mut Streams<'_>,
    ready: impl FnMut(),
) -> Result<Finished, VmError> {
    let mut session = Session {
        qemu_errors: machine.errors.take(),
        ports,
        open: [true; 4],
        limits,
        phase: Phase::Booting { since: Instant::now() },
        console: Log::default(),
        qemu: Log::default(),
        status: Vec::new(),
        pending: Vec::new(),
        ready,
    };
    session.run(streams)?;
    let how = machine.end();
    match session.phase {
        Phase::Ended { boot, status, .. } => {
            Ok(Finished { status, console: session.console.text, boot })
        }
        _ => Err(VmError::GuestDied {
            status: how,
            qemu: session.qemu.shown(),
            console: session.console.shown(),
        }),
    }
}

struct Session<R> {
    ports: Ports,
    /// Console, output, errors and status, until each is at its end.
    open: [bool; 4],
    qemu_errors: Option<ChildStderr>,
    limits: Limits,
    phase: Phase,
    console: Log,
    qemu: Log,
    /// The beginning of a line on the status port.
    status: Vec<u8>,
    /// Input that the guest has not taken yet.
    pending: Vec<u8>,
    ready: R,
}

impl<R: FnMut()> Session<R> {
    /// Goes on until all ports are at their end, or nothing more is to be expected of them.
    fn run(&mut self, streams: &mut Streams<'_>) -> Result<(), VmError> {
        let (mut input, lines) = match &mut streams.input {
            Input::None => (None, false),
            Input::Lines(file) => (Some(file), true),
            Input::Shell { terminal, .. } => (Some(terminal), false),
        };
        while self.open.contains(&true) || self.qemu_errors.is_some() {
            if streams.cancel.is_some_and(|c| c.load(Ordering::SeqCst)) {
                return Err(VmError::Cancelled);
            }
            let Some(left) = self.time_left()? else {
                return Ok(());
            };

            // Input waits until the guest has taken what was before, and has booted.
            let takes_input =
                matches!(self.phase, Phase::Running { .. }) && self.pending.is_empty();
            let wanted = [
                self.open[0].then(|| self.ports.console.as_fd()),
                self.open[1].then(|| self.ports.output.as_fd()),
                self.open[2].then(|| self.ports.errors.as_fd()),
                self.open[3].then(|| self.ports.status.as_fd()),
                self.qemu_errors.as_ref().map(AsFd::as_fd),
                input.as_deref().filter(|_| takes_input).map(AsFd::as_fd),
            ];
            let at = wait(wanted, !self.pending.is_empty(), left.min(TICK))?;

            // The status first, so that `ready` comes before any output.
            if at[3] {
                self.read_status()?;
            }
            if at[0] {
                self.open[0] = read_some(&self.ports.console, |d| self.console.write_all(d))?;
            }
            if at[1] {
                self.open[1] = read_some(&self.ports.output, |d| pass_on(streams.stdout, d))?;
            }
            if at[2] {
                self.open[2] = read_some(&self.ports.errors, |d| pass_on(streams.stderr, d))?;
            }
            if at[4]
                && let Some(pipe) = &mut self.qemu_errors
            {
                if !read_some(pipe, |d| self.qemu.write_all(d))? {
                    self.qemu_errors = None;
                }
                if self.qemu.contains(KVM_FAILED) {
                    return Ok(());
                }
            }
            if at[5]
                && let Some(file) = &mut input
            {
                let more = read_some(&mut **file, |d| self.pending.write_all(d))?;
                if !lines && self.pending.contains(&ESCAPE) {
                    return Err(VmError::Cancelled);
                }
                if !more {
                    input = None;
                    if lines {
                        self.pending.extend(END_OF_FILE);
                    }
                }
            }
            send(&self.ports.output, &mut self.pending)?;
        }
        Ok(())
    }

    /// Time until the present phase's deadline; none when there is nothing left to wait for.
    fn time_left(&self) -> Result<Option<Duration>, VmError> {
        let left = |limit: Duration, since: Instant| limit.checked_sub(since.elapsed());
        match (self.phase, self.limits) {
            (Phase::Booting { since }, Limits { boot: limit, .. }) => match left(limit, since) {
                None => Err(VmError::BootTimeout { limit, console: self.console.shown() }),
                left => Ok(left),
            },
            (Phase::Running { .. }, Limits { command: None, .. }) => Ok(Some(TICK)),
            (Phase::Running { since, .. }, Limits { command: Some(limit), .. }) => {
                match left(limit, since) {
                    None => Err(VmError::CommandTimeout { limit, console: self.console.shown() }),
                    left => Ok(left),
                }
            }
            // All output came before the status: only the power switch is left.
            (Phase::Ended { since, .. }, _) => Ok(left(POWER_OFF_LIMIT, since)),
        }
    }

    fn read_status(&mut self) -> Result<(), VmError> {
        self.open[3] = read_some(&self.ports.status, |d| self.status.write_all(d))?;
        while let Some(end) = self.status.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = self.status.drain(..=end).collect();
            let next = advance(self.phase, &String::from_utf8_lossy(&line))?;
            if let (Phase::Booting { .. }, Phase::Running { .. }) = (self.phase, next) {
                (self.ready)();
            }
            self.phase = next;
        }
        if self.status.len() > STATUS_LINE_LIMIT {
            return Err(VmError::GuestSetup { why: "its status line has no end".into() });
        }
        Ok(())
    }
}

fn pass_on(to: &mut dyn Write, data: &[u8]) -> io::Result<()> {
    to.write_all(data)?;
    to.flush()
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

fn send(mut to: &UnixStream, pending: &mut Vec<u8>) -> Result<(), VmError> {
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
    /// The lines that an error shows.
    fn shown(&self) -> String {
        tail(&self.text, SHOWN_LINES)
    }

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
    use std::os::fd::{AsRawFd, RawFd};
    use std::process::Command;

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
    fn logs_keep_their_end() {
        let mut log = Log::default();
        log.write_all(&vec![b'a'; 2 * LOG_LIMIT]).unwrap();
        log.write_all(b"end").unwrap();
        assert_eq!(log.text.len(), LOG_LIMIT);
        assert!(log.text.ends_with(b"aend"));
    }
}
