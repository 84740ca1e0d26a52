//! The faults of the model, which errors they explain, and the model that has them.

use std::sync::Arc;

use vfio_dma::devices::ioat::TransferError;
use vfio_dma_model::embedded::{Attached, Embedded};
use vfio_dma_model::ioat::{Fault, FaultPlan, IoatConfig, Personality};

use super::SoakError;

/// Every kind of fault of the model, at rates that leave most transfers alone. What costs the
/// driver a time-out, or takes the device away, is seldom.
pub const ALL: &str = "chanerr=8@/4099,chanerr=9@/6101,chanerr=0@/9001,chanerr=11@/12007,\
    chanerr=10+2@/15013,chanerr=18@/21001,halt@/7001,\
    no-completion@/5501,late-completion=2ms@/8009,double-completion@/3001,\
    double-completion=20us@/1709,torn-completion=200us@/4507,stale-completion@/2003,\
    astray-completion@/6507,no-interrupt@/1511,spurious-interrupt@/907,double-interrupt@/1103,\
    suspend-hang@/101,reset-hang@/701,gone@1000003#0,exit@1000003#1";

/// The faults of a round's model: what they did explains errors.
#[derive(Debug, Clone, Default)]
pub(super) struct Explained {
    plan: FaultPlan,
    model: Option<Arc<Embedded>>,
}

/// Whether a fault halts the channel.
fn halts(fault: Fault) -> bool {
    matches!(fault, Fault::Error(_) | Fault::Halt)
}

fn spoils_completions(fault: Fault) -> bool {
    matches!(
        fault,
        Fault::StaleCompletion
            | Fault::DoubleCompletion(_)
            | Fault::TornCompletion(_)
            | Fault::AstrayCompletion(_)
    )
}

/// Whether a fault ends the device for good.
pub(super) fn ends(fault: Fault) -> bool {
    matches!(fault, Fault::Gone | Fault::Exit)
}

impl Explained {
    /// Whether a fault of such a kind took effect.
    fn fired(&self, is: impl Fn(Fault) -> bool) -> bool {
        let Some(model) = &self.model else { return false };
        let fired = model.function().faults_fired();
        self.plan.rules().iter().zip(fired).any(|(rule, fired)| fired > 0 && is(rule.fault))
    }

    /// Whether the device does nothing any more, and says nothing of it.
    pub(super) fn is_silent(&self) -> bool {
        self.fired(|fault| fault == Fault::Exit)
    }

    /// Whether the device may become so.
    pub(super) fn may_be_silent(&self) -> bool {
        self.plan.rules().iter().any(|rule| rule.fault == Fault::Exit)
    }

    /// Whether a channel, or the device, may be lost.
    pub(super) fn losses(&self) -> bool {
        self.fired(|fault| ends(fault) || fault == Fault::ResetHang)
    }

    /// Whether a transfer may have ended so; `aborted` says whether it was in flight when its
    /// channel was aborted.
    pub(super) fn transfer(&self, error: &TransferError, aborted: bool) -> bool {
        match error {
            TransferError::Halted { errors, .. } => self.fired(|fault| match fault {
                Fault::Error(bits) => bits.bits() == errors.bits(),
                Fault::Halt => errors.is_empty(),
                _ => false,
            }),
            TransferError::Behind => self.fired(|fault| halts(fault) || spoils_completions(fault)),
            TransferError::Aborted => {
                aborted || self.fired(|fault| matches!(fault, Fault::SuspendHang | Fault::Exit))
            }
            TransferError::Completion(_) => self.fired(spoils_completions),
            TransferError::Lost(_) => self.losses(),
            _ => false,
        }
    }
}

/// How often channels halted on request.
pub(super) fn halts_fired(plan: &FaultPlan, fired: &[u64]) -> u64 {
    let halting = plan.rules().iter().zip(fired).filter(|(rule, _)| halts(rule.fault));
    halting.map(|(_, fired)| fired).sum()
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

    /// What the faults of the model that is there explain.
    pub(super) fn explained(&self) -> Explained {
        Explained { plan: self.plan.clone(), model: self.current.clone() }
    }

    /// Whether a fault has ended the device for good.
    pub(super) fn has_ended(&self) -> bool {
        self.explained().fired(ends)
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

    pub(super) fn channels(&self) -> u64 {
        self.channels.into()
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

    /// A model with faults that have taken effect, by a copy of several descriptors; `None` for
    /// one whose faults have not.
    fn after(plan: &str, runs: bool) -> Explained {
        use vfio_dma::devices::PciDriver as _;
        use vfio_dma::devices::ioat::{Config, Ioat, WhenFull};
        use vfio_dma::dma::{Direction, Request};
        let mut model = Model::new(1, plan.parse().unwrap());
        let device = vfio_dma::device::Device::open(model.attach().unwrap()).unwrap();
        let ioat = Ioat::probe(device, Config::default()).unwrap();
        if runs {
            let mut channel = ioat.channel(0).unwrap();
            let place = |way| ioat.allocate(&Request::new(64, way)).unwrap().into();
            let (from, to) = (place(Direction::ToDevice), place(Direction::FromDevice));
            let token = channel.copy(from, to, WhenFull::Return).unwrap();
            let _ = channel.wait(token, std::time::Duration::from_secs(10));
            let _ = channel.abort();
        }
        model.explained()
    }

    #[test]
    fn an_error_is_explained_by_a_fault_that_leads_to_it_and_took_effect() {
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
        let read = after("chanerr=8@1", true);
        assert!(
            read.transfer(&halted(0x100), false) && read.transfer(&TransferError::Behind, false)
        );
        for error in [halted(0x200), halted(0), lost.clone(), TransferError::Aborted] {
            assert!(!read.transfer(&error, false), "{error}");
        }
        assert!(read.transfer(&TransferError::Aborted, true));
        assert!(!after("chanerr=8@1", false).transfer(&halted(0x100), false), "not yet");
        assert!(after("halt@1", true).transfer(&halted(0), false));
        assert!(after("gone@1", true).transfer(&lost, false));
        assert!(!Explained::default().transfer(&lost, true));
        let late = after("late-completion=1ms", true);
        assert!(!late.transfer(&TransferError::Behind, false));
        assert!(!late.losses() && !late.is_silent() && !late.may_be_silent());
    }

    #[test]
    fn halts_are_counted_among_other_faults() {
        let plan: FaultPlan = "halt@/3,no-interrupt@/2,chanerr=8@1,gone@5".parse().unwrap();
        assert_eq!(halts_fired(&plan, &[4, 100, 1, 1]), 5);
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
