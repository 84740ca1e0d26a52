//! How the command ends: its exit status, and the signals that end it early.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use vfio_dma::pci::AddressError;

use super::Failure;

/// Exit status of a command line that makes no sense, as clap has it.
const USAGE: u8 = 2;
/// What a shell adds to the number of the signal that ended a program.
const SIGNALLED: u8 = 128;

/// What was asked for cannot be: an option that does not apply, or a value out of range.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Usage(String);

/// A failure that is the command line's.
pub(super) fn usage(text: impl ToString) -> Failure {
    Usage(text.to_string()).into()
}

/// The signal that came last; 0 for none.
static SIGNAL: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// The flag of [`interrupted`].
static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// A flag that Ctrl-C, a hang-up or SIGTERM sets, in place of ending the process; the
/// second time ends it. A later call clears the flag.
///
/// # Errors
///
/// Fails when the signals cannot be caught.
pub(super) fn interrupted() -> Result<Arc<AtomicBool>, Failure> {
    let last = SIGNAL.get_or_init(Arc::default);
    if let Some(interrupted) = INTERRUPTED.get() {
        // A command of the shell that was interrupted is over.
        last.store(0, Ordering::SeqCst);
        interrupted.store(false, Ordering::SeqCst);
        return Ok(Arc::clone(interrupted));
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // Whoever asks twice does not wait for what is stuck; a guest dies with its runner.
        // This action is the first of the signal: it finds the flag as earlier signals left it.
        flag::register_conditional_shutdown(
            signal,
            i32::from(SIGNALLED) + signal,
            Arc::clone(&interrupted),
        )?;
        flag::register_usize(signal, Arc::clone(last), usize::try_from(signal)?)?;
        flag::register(signal, Arc::clone(&interrupted))?;
    }
    Ok(Arc::clone(INTERRUPTED.get_or_init(|| interrupted)))
}

/// The exit status of a subcommand that failed: 2 for usage, 128 and the signal's number when
/// one came before, 1 otherwise.
pub(super) fn status(failure: &Failure) -> ExitCode {
    let signal = SIGNAL.get().map_or(0, |signal| signal.load(Ordering::SeqCst));
    ExitCode::from(status_after(failure, u8::try_from(signal).unwrap_or(0)))
}

fn status_after(failure: &Failure, signal: u8) -> u8 {
    if failure.is::<Usage>() || failure.is::<AddressError>() {
        USAGE
    } else if signal != 0 {
        SIGNALLED.saturating_add(signal)
    } else {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vfio_dma::pci::Address;

    #[test]
    fn the_status_tells_usage_failure_and_interruption_apart() {
        let plain: Failure = "it failed".into();
        assert_eq!((status_after(&plain, 0), status_after(&plain, 2)), (1, 130));
        assert_eq!(status_after(&plain, 15), 143);
        assert_eq!(status_after(&usage("--option"), 0), 2);
        let address: Failure = "5".parse::<Address>().unwrap_err().into();
        assert_eq!(status_after(&address, 0), 2);
    }
}
