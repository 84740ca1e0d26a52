//! What a device's work would cost on a PCI Express link: an analytical model.
//!
//! A model of a device moves bytes at memory speed, and a card pays for a link. Here the
//! transaction-layer packets (TLPs) that a card would put on the link for the same work are
//! counted ([`LinkMeter`]), turned into bytes, and compared with what a link of a given
//! generation and width carries ([`LinkConfig`]). The same arithmetic predicts the payload
//! bandwidth of reads, writes and scatter/gather ([`predict`]).
//!
//! Source: R. Neugebauer et al., "Understanding PCIe performance for end host networking",
//! SIGCOMM 2018, and its public model; the latency limits come from the PCI Express Base
//! Specification.
//!
//! It is an estimate and not a bound: measured reads exceed it by up to 4%. It leaves out
//! latency and the limit of outstanding reads, flow-control stalls, completions cut at the
//! read completion boundary, packets cut at 4 KiB boundaries and byte enables of unaligned
//! data, other traffic on the link, and power states. Generation 6 and later send flits and
//! are not covered.

mod config;
mod iotlb;
mod limits;
mod meter;
pub mod predict;
mod tlp;

pub use config::{AddressSize, Generation, LinkConfig, LinkConfigError};
pub use iotlb::{IoTlb, IoTlbConfig, IoTlbConfigError};
pub use meter::{LinkMeter, TlpCounts};
pub use tlp::{Direction, Packets, TlpKind, Traffic, Work};
