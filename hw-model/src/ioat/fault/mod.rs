//! I/OAT's faults on request.
//!
//! A [`FaultPlan`] has the grammar of [`fault`](crate::fault); what it counts are
//! descriptors, or RESETs, or SUSPENDs.
//!
//! Descriptors, RESETs and SUSPENDs are counted for each channel since the plan was put in
//! force: at the model's start, or by [`Ioat::inject`](super::Ioat::inject). A reset does not
//! restart the count, so that a fault at a descriptor happens once, and the retry passes.
//! Without `@` the fault happens each time; without `#` on each channel.
//!
//! | fault | value | at the descriptor |
//! |---|---|---|
//! | `chanerr` | bits 0 to 18 with `+` between | it is not executed; the channel halts with these bits of CHANERR |
//! | `halt` | | it is not executed; the channel halts, and CHANERR stays as it is |
//! | `no-completion` | | its completion word is not written |
//! | `late-completion` | time, 10ms | its completion word is written this much later; its interrupt comes before; the channel waits |
//! | `double-completion` | time, 1ms | its completion word is written, and again this much later, also over a newer one |
//! | `torn-completion` | time, 1ms | its completion word is written in two halves, the lower first, this far apart |
//! | `stale-completion` | | the completion word written before is written again in place of its own |
//! | `astray-completion` | address, CHANCMP + 64 | its completion word is written to this address |
//! | `no-interrupt` | | its interrupt is lost |
//! | `spurious-interrupt` | | it interrupts, whether it asks for it and is rearmed or not |
//! | `double-interrupt` | | its interrupt is signalled twice |
//! | `gone` | | from now on all reads are all ones, and nothing happens any more |
//! | `exit` | | the serving process is asked to end, and nothing happens any more |
//! | `reset-hang` | | (at a RESET) it never ends; a function-level reset helps |
//! | `suspend-hang` | | (at a SUSPEND) it never ends and the channel does nothing; RESET helps |
//!
//! Times are in `us`, `ms` or `s`; addresses are hexadecimal with `0x`, or decimal. A fault
//! of a completion or interrupt shows only on a descriptor that asks for one. Of several
//! faults of the same kind at one descriptor the last rule's happens.
//!
//! `chanerr=8@100` refuses the 100th descriptor of each channel with a read-data error;
//! `no-interrupt@/7#0,torn-completion=50us@/11` loses each 7th interrupt of channel 0 and
//! tears each 11th completion.

mod grammar;

use std::time::Duration;

pub use crate::fault::{FaultError, Rule, When};

use super::registers::ChannelError;

/// Something that goes wrong; the module's table says how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// `chanerr`: the channel halts with these bits.
    Error(ChannelError),
    /// `halt`: the channel halts without a bit.
    Halt,
    /// `no-completion`: the completion word is not written.
    NoCompletion,
    /// `late-completion`: the completion word is written later.
    LateCompletion(Duration),
    /// `double-completion`: the completion word is written again later.
    DoubleCompletion(Duration),
    /// `torn-completion`: the completion word is written in two halves.
    TornCompletion(Duration),
    /// `stale-completion`: the former completion word is written.
    StaleCompletion,
    /// `astray-completion`: the completion word is written to this address, or to the one
    /// 64 bytes after CHANCMP.
    AstrayCompletion(Option<u64>),
    /// `no-interrupt`: the interrupt is lost.
    LostInterrupt,
    /// `spurious-interrupt`: an interrupt that nothing asks for.
    SpuriousInterrupt,
    /// `double-interrupt`: the interrupt is signalled twice.
    DoubleInterrupt,
    /// `gone`: the device has left the bus.
    Gone,
    /// `exit`: the process that serves the function should end.
    Exit,
    /// `reset-hang`: RESET never ends.
    ResetHang,
    /// `suspend-hang`: SUSPEND never ends.
    SuspendHang,
}

/// What is to go wrong, of I/OAT's faults.
pub type FaultPlan = crate::fault::FaultPlan<Fault>;

impl FaultPlan {
    /// What goes wrong with a channel's `number`th descriptor.
    pub(super) fn descriptor(&self, channel: u8, number: u64) -> DescriptorFaults {
        let mut faults = DescriptorFaults::default();
        for (rule, fault) in self.due(channel, number) {
            let planned = Some(Planned { rule, fault });
            match fault {
                Fault::Error(_) | Fault::Halt => faults.halt = planned,
                Fault::NoCompletion
                | Fault::LateCompletion(_)
                | Fault::DoubleCompletion(_)
                | Fault::TornCompletion(_)
                | Fault::StaleCompletion
                | Fault::AstrayCompletion(_) => faults.completion = planned,
                Fault::LostInterrupt | Fault::SpuriousInterrupt | Fault::DoubleInterrupt => {
                    faults.interrupt = planned;
                }
                Fault::Gone | Fault::Exit => faults.end = planned,
                Fault::ResetHang | Fault::SuspendHang => {}
            }
        }
        faults
    }

    /// The rule by which a channel's `number`th RESET never ends.
    pub(super) fn reset_hangs(&self, channel: u8, number: u64) -> Option<usize> {
        self.rule(channel, number, Fault::ResetHang)
    }

    /// The rule by which a channel's `number`th SUSPEND never ends.
    pub(super) fn suspend_hangs(&self, channel: u8, number: u64) -> Option<usize> {
        self.rule(channel, number, Fault::SuspendHang)
    }

    fn rule(&self, channel: u8, number: u64, fault: Fault) -> Option<usize> {
        self.due(channel, number).find(|(_, due)| *due == fault).map(|(rule, _)| rule)
    }
}

/// A fault that is due, by the index of its rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) rule: usize,
    pub(super) fault: Fault,
}

impl Planned {
    /// The bits with which a channel halts.
    pub(super) fn errors(self) -> ChannelError {
        match self.fault {
            Fault::Error(errors) => errors,
            _ => ChannelError::empty(),
        }
    }
}

/// What goes wrong with one descriptor, one fault of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct DescriptorFaults {
    pub(super) halt: Option<Planned>,
    pub(super) completion: Option<Planned>,
    pub(super) interrupt: Option<Planned>,
    pub(super) end: Option<Planned>,
}

/// The plan in force, and how often each of its rules took effect.
#[derive(Debug, Default)]
pub(super) struct InForce {
    pub(super) plan: FaultPlan,
    pub(super) fired: Vec<u64>,
}

impl InForce {
    pub(super) fn new(plan: FaultPlan) -> InForce {
        InForce { fired: vec![0; plan.rules().len()], plan }
    }
}
