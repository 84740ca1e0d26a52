//! A function made of its transaction layer: packets in, packets out.
//!
//! A model such as [`ioat`](crate::ioat) is registers and an engine that we wrote. Hardware that
//! is simulated from its source has neither to show: it has a transaction layer, which sends and
//! takes packets (TLPs). [`TlpFunction`] makes a [`PciFunction`](crate::function::PciFunction) of
//! such an [`Endpoint`]:
//!
//! ```text
//! driver ── PciFunction ── TlpFunction ── packets ── Endpoint (rtl::Simulation, or a test's own)
//!                           ├─ configuration space, as a vendor's core has it
//!                           └─ root complex: registers as requests; reads answered in
//!                              completions, writes carried out, messages as interrupts
//! ```
//!
//! The root complex reaches memory through the same [`DmaMap`](crate::memory::DmaMap) as every
//! model, with its rights and faults. It takes what the PCI Express Base Specification 3.0
//! (chapter 2) allows, and counts and logs what it does not: a malformed packet is dropped, a
//! request that cannot be carried out is answered as unsupported. Completions are cut at the read
//! completion boundary, come after a latency and at a rate that are chosen, and go wrong on
//! request ([`TlpFault`]).
//!
//! Time is the endpoint's clock: it runs while there is something to do and stands still
//! otherwise. What a host does takes no cycles of its own, so that counts of cycles say what the
//! hardware needs.

mod config;
mod endpoint;
mod error;
mod fault;
mod function;
mod packet;
mod root;
mod stats;
#[cfg(test)]
mod tests;

pub use config::{TlpConfig, TlpError};
pub use endpoint::{Credits, Endpoint, Event, Inbound, Limits, Outcome, Settings};
pub use error::{EndpointError, Malformed};
pub use fault::TlpFault;
pub use function::TlpFunction;
pub use packet::{Completion, MAX_DATA, Request, Span, Status, Tlp};
pub use root::{Order, RootConfig};
pub use stats::Stats;
