//! Hardware that is simulated from its source, as an endpoint.
//!
//! A module that Verilator has compiled runs in a process of its own with a harness (the files
//! in [`HARNESS`]) that moves packets between its pins and a socket: what goes wrong in there, a
//! crash among it, is an endpoint that has gone. The harness steps the clock; each
//! [`Simulation::run`] is one message each way and as many cycles as can pass before the host
//! has to act. [`rtl.h`](HARNESS) has the interface of a top module's pins, in C.
//!
//! `vfio_dma_tools::rtl` builds such programs; this module only runs them.

pub mod litepcie;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use crate::tlp::{Endpoint, EndpointError, Event, Inbound, Limits, Outcome, Settings};

/// The harness: the name and text of each of its files.
pub const HARNESS: [(&str, &str); 3] = [
    ("rtl.h", include_str!("../../rtl/rtl.h")),
    ("top.cpp", include_str!("../../rtl/top.cpp")),
    ("harness.cpp", include_str!("../../rtl/harness.cpp")),
];

const RESET: u32 = 0;
const RUN: u32 = 1;
/// Cycles that reset is held: more than any synchronizer has stages.
const RESET_CYCLES: u32 = 16;
/// Double words of the longest answer: as many events as the harness collects, each a packet.
const LONGEST_ANSWER: usize = 1 << 20;
/// Bytes of most answers, with what they are read with.
const ANSWER: usize = 64 << 10;
/// Double words of an answer before its events.
const ANSWER_HEADER: usize = 7;
/// The last lines of what the simulation prints that an error quotes.
const LINES: usize = 20;
/// How long a simulation may take to end by itself, with its waveforms written.
const END: Duration = Duration::from_secs(5);

/// How long an answer is looked for before the thread sleeps: twice what some hundred cycles take.
const LOOKING: Duration = Duration::from_micros(200);

/// How a simulation is run.
#[derive(Debug, Clone)]
pub struct SimulationConfig {
    /// The program; it runs in its own directory.
    pub program: PathBuf,
    /// Where waveforms go, in FST format; the program must have been built for that.
    pub trace: Option<PathBuf>,
    /// How long an answer may take: thousands of times what a run needs.
    pub timeout: Duration,
}

impl SimulationConfig {
    /// This program, without waveforms.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> SimulationConfig {
        SimulationConfig { program: program.into(), trace: None, timeout: Duration::from_secs(30) }
    }
}

/// A process that simulates an endpoint. Dropping it ends the process.
#[derive(Debug)]
pub struct Simulation {
    child: Child,
    socket: Option<UnixStream>,
    timeout: Duration,
    message: Vec<u32>,
    bytes: Vec<u8>,
    /// Room for an answer.
    answer: Vec<u8>,
    output: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

/// Reads what has come, at least a byte. It looks for it again and again for a while: that costs
/// less than to sleep and be woken.
fn receive(socket: &mut UnixStream, into: &mut [u8]) -> std::io::Result<usize> {
    let begin = Instant::now();
    while begin.elapsed() < LOOKING {
        match recv(socket.as_raw_fd(), into, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => return Ok(len),
            Err(Errno::EAGAIN | Errno::EINTR) => std::thread::yield_now(),
            Err(errno) => return Err(errno.into()),
        }
    }
    match socket.read(into)? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        len => Ok(len),
    }
}

fn os(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> EndpointError {
    let action = action.into();
    move |source| EndpointError::Os { action, source }
}

impl Simulation {
    /// Starts the process.
    ///
    /// # Errors
    ///
    /// Fails when the program cannot be started.
    pub fn start(config: &SimulationConfig) -> Result<Simulation, EndpointError> {
        let starting = || format!("starting {}", config.program.display());
        let program = config.program.canonicalize().map_err(os(starting()))?;
        let (ours, theirs) = UnixStream::pair().map_err(os("making a socket"))?;
        ours.set_read_timeout(Some(config.timeout)).map_err(os("limiting the waiting"))?;
        ours.set_write_timeout(Some(config.timeout)).map_err(os("limiting the waiting"))?;
        let mut command = Command::new(&program);
        // Files that memories begin with are beside the program.
        command.current_dir(program.parent().unwrap_or(Path::new("/")));
        command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::piped());
        match &config.trace {
            Some(path) => {
                let path = std::path::absolute(path).map_err(os("finding the waveforms' path"))?;
                command.env("VFIO_DMA_TRACE", path)
            }
            None => command.env_remove("VFIO_DMA_TRACE"),
        };
        let mut child = command.spawn().map_err(os(starting()))?;
        // The command holds the other end as long as it lives: it must not outlive this.
        drop(command);
        let output = Arc::new(Mutex::new(Vec::new()));
        let reader = child.stderr.take().map(|pipe| {
            let output = Arc::clone(&output);
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    log::debug!("simulation: {line}");
                    let mut lines = output.lock().unwrap_or_else(PoisonError::into_inner);
                    if lines.len() == LINES {
                        lines.remove(0);
                    }
                    lines.push(line);
                }
            })
        });
        Ok(Simulation {
            child,
            socket: Some(ours),
            timeout: config.timeout,
            message: Vec::new(),
            bytes: Vec::new(),
            answer: vec![0; ANSWER],
            output,
            reader,
        })
    }

    /// Sends `self.message` and reads its answer into it.
    fn ask(&mut self) -> Result<(), EndpointError> {
        let result = self.exchange();
        result.map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
                EndpointError::Silent { waited: self.timeout }
            }
            std::io::ErrorKind::InvalidData => EndpointError::Protocol { what: error.to_string() },
            _ => self.ended(),
        })
    }

    fn exchange(&mut self) -> std::io::Result<()> {
        let Some(socket) = &mut self.socket else {
            return Err(std::io::ErrorKind::BrokenPipe.into());
        };
        self.bytes.clear();
        self.bytes.extend((self.message.len() as u32).to_le_bytes());
        self.message.iter().for_each(|word| self.bytes.extend(word.to_le_bytes()));
        socket.write_all(&self.bytes)?;
        let (mut have, mut needed) = (0, 4);
        while have < needed {
            if self.answer.len() <= have {
                self.answer.resize(needed.max(2 * have), 0);
            }
            have += receive(socket, &mut self.answer[have..])?;
            if let Some(count) = self.answer[..have].first_chunk() {
                let count = u32::from_le_bytes(*count) as usize;
                if count > LONGEST_ANSWER {
                    let text = format!("an answer of {count} double words");
                    return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, text));
                }
                needed = 4 + 4 * count;
            }
        }
        if have > needed {
            let text = format!("{} bytes behind an answer", have - needed);
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, text));
        }
        self.message.clear();
        let (words, _) = self.answer[4..needed].as_chunks();
        self.message.extend(words.iter().map(|&word| u32::from_le_bytes(word)));
        Ok(())
    }

    fn ended(&mut self) -> EndpointError {
        self.socket = None;
        let status = self.wait().map_or_else(|| "it had to be killed".into(), |s| s.to_string());
        if let Some(reader) = self.reader.take() {
            // Its pipe is closed: it ends.
            let _ = reader.join();
        }
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner).join("\n");
        EndpointError::Ended { status, output }
    }

    /// Waits for the process to end, and kills it if it does not.
    fn wait(&mut self) -> Option<std::process::ExitStatus> {
        let begin = Instant::now();
        while begin.elapsed() < END {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        None
    }

    fn parse(&self, outcome: &mut Outcome) -> Option<()> {
        let mut words = self.message.iter().copied();
        let mut next = || words.next();
        let u64_of = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        outcome.now = u64_of(next()?, next()?);
        (outcome.requests, outcome.completions) = (next()?, next()?);
        (outcome.quiet, outcome.busy) = (next()?, next()? != 0);
        for _ in 0..next()? {
            let (kind, cycle) = (next()?, u64_of(next()?, next()?));
            let count = next()? as usize;
            let words = (0..count).map(|_| next()).collect::<Option<Vec<u32>>>()?;
            outcome.events.push((
                cycle,
                match (kind, words.as_slice()) {
                    (0, _) => Event::Tlp(words),
                    (1, _) => Event::Endless,
                    (2, &[vector]) => Event::Interrupt(vector as u8),
                    _ => return None,
                },
            ));
        }
        Some(())
    }
}

impl Endpoint for Simulation {
    fn reset(&mut self) -> Result<(), EndpointError> {
        self.message.clear();
        self.message.extend([RESET, RESET_CYCLES]);
        self.ask()
    }

    fn run(
        &mut self,
        settings: &Settings,
        inbound: &mut Vec<Inbound>,
        limits: &Limits,
        outcome: &mut Outcome,
    ) -> Result<(), EndpointError> {
        let halves = |value: u64| [value as u32, (value >> 32) as u32];
        let [msi_low, msi_high] = halves(settings.msi_address);
        let message = &mut self.message;
        message.clear();
        message.extend([
            RUN,
            limits.cycles,
            limits.after_read,
            limits.requests_below,
            limits.quiet,
            limits.credits.reads,
            limits.credits.posted_bytes,
            limits.credits.posted_bytes_per_cycle,
            settings.id.into(),
            u32::from(settings.bus_master) | u32::from(settings.msi_enabled) << 1,
            settings.max_payload.into(),
            settings.max_read_request.into(),
            msi_low,
            msi_high,
            settings.msi_data.into(),
            inbound.len() as u32,
        ]);
        for packet in inbound.drain(..) {
            let flags = u32::from(packet.is_completion) | u32::from(packet.ends_read) << 1;
            let [low, high] = halves(packet.due);
            message.extend([flags, low, high, packet.words.len() as u32]);
            message.extend(packet.words);
        }
        self.ask()?;
        if self.message.len() < ANSWER_HEADER || self.parse(outcome).is_none() {
            let what = format!("an answer of {} double words breaks off", self.message.len());
            return Err(EndpointError::Protocol { what });
        }
        Ok(())
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        // The end of its input is what ends it.
        self.socket = None;
        self.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

#[cfg(test)]
mod tests;
