//! The faults of the model, which errors they explain, and the model that has them.

use std::sync::Arc;

use vfio_dma::devices::ioat::TransferError;
use vfio_dma_model::embedded::{Attached, Embedded};
use vfio_dma_model::ioat::{Fault, FaultPlan, IoatConfig, Personality};

use super::SoakError;

/// Every kind of fault of the model, at rates that leave most transfers alone. What costs the
/// driver a time-out, or takes the device away, is seldom.
///
/// Channel 0 has the faults that end the device.
pub const ALL: &str = "chanerr=8@/4099,chanerr=9@/6101,chanerr=0@/9001,chanerr=11@/12007,\
    chanerr=10+2@/15013,chanerr=18@/21001,halt@/7001,\
    no-completion@/5501,late-completion=2ms@/8009,double-completion@/3001,\
    double-completion=20us@/1709,torn-completion=200us@/4507,stale-completion@/2003,\
    astray-completion@/6507,no-interrupt@/1511,spurious-interrupt@/907,double-interrupt@/1103,\
    suspend-hang@/311,reset-hang@/509,gone@5000011#0,exit@7000003#0";

/// What faults can do to transfers.
#[derive(Debug, Clone, Default)]
pub(super) struct Explained {
    /// The bits of CHANERR with which channels halt.
    halts: Vec<u32>,
    bad_completions: bool,
    suspend_hangs: bool,
    /// A channel, or the device, is lost.
    losses: bool,
    /// The device does nothing any more, and says nothing of it.
    pub(super) goes_silent: bool,
}

impl Explained {
    /// By a plan of faults.
    pub(super) fn by(plan: &FaultPlan) -> Explained {
        let mut explained = Explained::default();
        for rule in plan.rules() {
            match rule.fault {
                Fault::Error(bits) => explained.halts.push(bits.bits()),
                Fault::Halt => explained.halts.push(0),
                Fault::StaleCompletion
                | Fault::DoubleCompletion(_)
                | Fault::TornCompletion(_)
                | Fault::AstrayCompletion(_) => explained.bad_completions = true,
                Fault::SuspendHang => explained.suspend_hangs = true,
                Fault::ResetHang => explained.losses = true,
                Fault::Gone => explained.losses = true,
                Fault::Exit => (explained.losses, explained.goes_silent) = (true, true),
                _ => {}
            }
        }
        explained
    }

    /// Whether a channel, or the device, may be lost.
    pub(super) fn losses(&self) -> bool {
        self.losses
    }

    /// Whether a transfer may have ended so; `aborted` says whether it was in flight when its
    /// channel was aborted.
    pub(super) fn transfer(&self, error: &TransferError, aborted: bool) -> bool {
        match error {
            TransferError::Halted { errors, .. } => self.halts.contains(&errors.bits()),
            TransferError::Behind => !self.halts.is_empty() || self.bad_completions,
            TransferError::Aborted => aborted || self.suspend_hangs || self.goes_silent,
            TransferError::Completion(_) => self.bad_completions,
            TransferError::Lost(_) => self.losses,
            _ => false,
        }
    }
}

/// The model in this process, which is made anew when a fault has ended it.
#[derive(Debug)]
pub struct Model {
    channels: u8,
    plan: FaultPlan,
    current: Option<Arc<Embedded>>,
    /// How many were made.
    made: u32,
    /// Of those that are no more.
    fired: Vec<u64>,
    late: u64,
}

impl Model {
    /// A model with so many channels, and these faults.
    #[must_use]
    pub fn new(channels: u8, plan: FaultPlan) -> Model {
        let fired = vec![0; plan.rules().len()];
        Model { channels, plan, current: None, made: 0, fired, late: 0 }
    }

    /// Attaches a driver; each model that is made is the other of the two devices.
    ///
    /// # Errors
    ///
    /// Fails when a driver has it, and when it cannot be made.
    pub fn attach(&mut self) -> Result<Attached, SoakError> {
        let model = match &self.current {
            Some(model) => model,
            None => {
                let personality = match self.made % 2 {
                    0 => Personality::Skylake,
                    _ => Personality::IceLake,
                };
                let config = IoatConfig {
                    personality,
                    channels: self.channels,
                    faults: self.plan.clone(),
                    ..IoatConfig::default()
                };
                self.made += 1;
                self.current.insert(Embedded::new(config)?)
            }
        };
        Ok(model.attach()?)
    }

    /// Whether a fault has ended the device for good.
    pub(super) fn has_ended(&self) -> bool {
        let Some(model) = &self.current else { return false };
        let fired = model.function().faults_fired();
        let ends = |fault| matches!(fault, Fault::Gone | Fault::Exit);
        self.plan.rules().iter().zip(fired).any(|(rule, fired)| ends(rule.fault) && fired > 0)
    }

    /// Lets go of the model; the next driver gets another.
    pub(super) fn discard(&mut self) {
        let (fired, late) = (self.fired(), self.late_accesses());
        (self.fired, self.late) = (fired, late);
        self.current = None;
    }

    /// How often each rule took effect.
    pub(super) fn fired(&self) -> Vec<u64> {
        let mut fired = self.fired.clone();
        if let Some(model) = &self.current {
            let now = model.function().faults_fired();
            fired.iter_mut().zip(now).for_each(|(sum, now)| *sum += now);
        }
        fired
    }

    /// Accesses to memory that was not mapped any more.
    pub(super) fn late_accesses(&self) -> u64 {
        let now = self.current.as_ref();
        self.late + now.map_or(0, |model| model.function().stats().memory.refused_not_mapped)
    }

    pub(super) fn plan(&self) -> &FaultPlan {
        &self.plan
    }
}

#[cfg(test)]
mod tests {
    use vfio_dma::devices::ioat::ChannelErrors;
    use vfio_dma::dma::Iova;

    use super::*;

    /// Every name of the grammar, which the model's own error lists.
    #[test]
    fn all_has_every_kind_of_fault_of_the_model() {
        let plan: FaultPlan = ALL.parse().unwrap();
        let unknown = "nonsense".parse::<FaultPlan>().unwrap_err().to_string();
        let (_, names) = unknown.split_once("there are ").unwrap();
        let mut of = Vec::new();
        for words in names.split(", ").flat_map(|part| part.split(" and ")) {
            of.push(words.trim().to_owned());
        }
        // "no-, late-, … and astray-completion": the first halves belong to the last one.
        let mut expected = Vec::new();
        let mut halves: Vec<String> = Vec::new();
        for word in of {
            if word.ends_with('-') {
                halves.push(word);
            } else {
                let end = word.split_once('-').map_or("", |(_, end)| end).to_owned();
                expected.extend(halves.drain(..).map(|half| half + &end));
                expected.push(word);
            }
        }
        assert!(expected.len() >= 15, "{expected:?}");
        for name in expected {
            let has = ALL.split(',').any(|rule| {
                rule.trim().split(['=', '@', '#']).next().is_some_and(|known| known == name)
            });
            assert!(has, "{name}");
        }
        assert_eq!(plan.rules().len(), ALL.split(',').count());
    }

    #[test]
    fn an_error_is_explained_by_the_faults_that_lead_to_it() {
        let halted = |bits| TransferError::Halted {
            errors: ChannelErrors::from_bits_retain(bits),
            piece: 0,
            slot: 0,
            source_address: 0,
            target: Iova(0),
            len: 1,
            done: 0,
        };
        let lost = TransferError::Lost("gone".into());
        let explained = |plan: &str, error: &TransferError, aborted| {
            Explained::by(&plan.parse().unwrap()).transfer(error, aborted)
        };
        assert!(explained("chanerr=8@/9", &halted(0x100), false));
        assert!(!explained("chanerr=8@/9", &halted(0x200), false));
        assert!(!explained("chanerr=8@/9", &halted(0), false));
        assert!(explained("halt@/9", &halted(0), false));
        assert!(explained("halt@/9", &TransferError::Behind, false));
        assert!(!explained("no-interrupt", &TransferError::Behind, false));
        for (plan, aborted, expected) in
            [("", false, false), ("", true, true), ("suspend-hang@/2", false, true)]
        {
            assert_eq!(explained(plan, &TransferError::Aborted, aborted), expected);
        }
        assert!(explained("gone@3", &lost, false) && explained("reset-hang@3", &lost, false));
        assert!(!explained("halt@3,no-completion@/3", &lost, true));
    }

    #[test]
    fn a_model_that_ended_is_followed_by_the_other_device() {
        let mut model = Model::new(2, "gone@1".parse().unwrap());
        drop(model.attach().unwrap());
        assert!(!model.has_ended());
        let first = Arc::clone(model.current.as_ref().unwrap());
        assert_eq!(first.function().config().personality, Personality::Skylake);
        model.discard();
        drop(model.attach().unwrap());
        let second = model.current.as_ref().unwrap();
        assert_eq!(second.function().config().personality, Personality::IceLake);
        assert_eq!((model.fired(), model.late_accesses()), (vec![0], 0));
    }
}
