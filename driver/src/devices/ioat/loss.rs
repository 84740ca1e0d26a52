//! Why a channel was given up.

use std::fmt;

use super::ChannelErrors;

/// What failed when a channel was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LossStep {
    /// The status of the channel, CHANSTS, could not be read.
    Look,
    /// The engine did not stop: SUSPEND, RESET, or reading CHANSTS and CHANERR after them.
    Stop,
    /// The engine stood, and did not take the ring again.
    Rearm,
    /// It took the ring, and could not be told what to do next.
    Doorbell,
    /// The function reported an event, which ends every channel of it.
    Event,
    /// The engine did not stop when the channel was closed.
    Close,
}

impl fmt::Display for LossStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LossStep::Look => "asking how far it is",
            LossStep::Stop => "stopping it",
            LossStep::Rearm => "setting it up again",
            LossStep::Doorbell => "telling it what is left to do",
            LossStep::Event => "an event of the function",
            LossStep::Close => "stopping it when it was closed",
        })
    }
}

/// Why a channel was given up: the step that failed, with what, and what the channel itself had
/// reported.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loss {
    /// What failed.
    pub step: LossStep,
    /// With what, in words: a register access, or a time that was exceeded.
    pub cause: String,
    /// What CHANERR said of the channel before it was given up; `None` when it could not be read.
    pub errors: Option<ChannelErrors>,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Loss { step, cause, errors } = self;
        write!(f, "{step}: {cause}")?;
        match errors {
            Some(errors) if errors.is_empty() => f.write_str("; CHANERR had no bit set"),
            Some(errors) => write!(f, "; it had halted: {errors}"),
            None => f.write_str("; CHANERR could not be read"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_says_which_step_failed_and_what_the_channel_had_reported() {
        let loss = |errors| Loss { step: LossStep::Stop, cause: "RESET not done".into(), errors };
        assert_eq!(
            loss(Some(ChannelErrors::READ_DATA)).to_string(),
            "stopping it: RESET not done; it had halted: read data (CHANERR 0x100)"
        );
        let none = loss(Some(ChannelErrors::empty())).to_string();
        assert!(none.ends_with("CHANERR had no bit set"), "{none}");
        assert!(loss(None).to_string().ends_with("CHANERR could not be read"));
    }
}
