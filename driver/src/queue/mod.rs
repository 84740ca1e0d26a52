//! The parts that every queue is built from.
//!
//! | part | is | a device supplies |
//! |---|---|---|
//! | [`Producer`], [`SubmissionRing`] | positions of entries, and the entries | words of an entry; its doorbell's value, made of [`Published`] |
//! | [`LastDone`], [`CompletionCount`], [`CompletionRing`] | what the device writes: a word that names an entry, a counter, entries with a phase bit | how its word reads, or [`CompletionEntry`] |
//! | [`Tags`] | commands that complete in any order, each with a tag of 16 bits | nothing |
//! | [`Held`] | rings, not freed before the device is done with them | nothing |
//! | [`InFlight`] | what the device may touch, completed in any order, and never freed under it | nothing |
//! | [`SlotsInFlight`] | slots of pools that the device may touch, completed in the order of a ring's entries | nothing |
//! | [`wait_until`], [`service`], [`SharedQueue`] | waiting: by polling, interrupt, both, as a future | [`Queue`], and [`Transfers`] for futures |
//!
//! # Ordering, fence by fence
//!
//! | fence | orders | before | pairs with |
//! |---|---|---|---|
//! | D, in the doorbell's register write ([`mmio`](crate::mmio), "Ordering") | the stores to the source buffers, the entries, and a cleared completion word | the doorbell | the device fetches an entry only after the doorbell that made it valid |
//! | C, in the load of what the device writes ([`Coherent::load_acquire`](crate::dma::Coherent::load_acquire)) | that load | loads from the target buffers | the device's posted writes stay in order: the data, then the completion (PCIe Base 4.0, 2.4.1); a model stores it with release |
//! | C, again | that load | stores into the slots that it frees | the device has read an entry before it reports it done |
//!
//! Nothing else is needed: entries need no order among themselves, since none is looked at
//! before D, and the processor never reads an entry back.
//!
//! In the steady state nothing is allocated, no system call is made, a batch costs one
//! doorbell, and polling loads memory that stays in the cache until the device writes it.

mod completion;
mod error;
#[cfg(test)]
mod exhaustive;
#[cfg(test)]
mod exhaustive_in_flight;
mod held;
mod in_flight;
mod producer;
#[cfg(all(test, shuttle))]
mod schedules;
mod shared;
mod slots;
mod submission;
mod tags;
mod wait;

pub use completion::{CompletionCount, CompletionEntry, CompletionRing, LastDone};
pub use error::{QueueError, QueueSetupError};
pub use held::Held;
pub use in_flight::{InFlight, Slot};
pub use producer::{Producer, Published};
pub use shared::{Completion, SharedQueue, Transfers, Wakers};
pub use slots::{SlotPair, SlotsInFlight};
pub use submission::SubmissionRing;
pub use tags::Tags;
pub use wait::{Queue, WaitMode, service, wait_until};
