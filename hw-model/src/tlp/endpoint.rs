//! What has a transaction layer: simulated hardware, or a program in its place.

use super::error::EndpointError;

/// A packet for an endpoint, and when it may arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inbound {
    /// The cycle before which it does not arrive.
    pub due: u64,
    /// Whether it is a completion: requests stay in their order, completions are in that of
    /// their cycles, and none overtakes a request that was handed over before it (PCI Express
    /// Base Specification 3.0, section 2.4.1).
    pub is_completion: bool,
    /// Whether it is the last that answers a read: the credit of that read is returned.
    pub ends_read: bool,
    /// The packet; empty for one that was lost, which only returns its credit.
    pub words: Vec<u32>,
}

/// What the endpoint is told of its configuration space, as a vendor's core does with pins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Settings {
    /// Bus, device and function, as requests have them.
    pub id: u16,
    /// It may issue requests.
    pub bus_master: bool,
    /// Max_Payload_Size in bytes.
    pub max_payload: u16,
    /// Max_Read_Request_Size in bytes.
    pub max_read_request: u16,
    /// MSI is in use.
    pub msi_enabled: bool,
    /// Where a message is written.
    pub msi_address: u64,
    /// What is written there for vector 0.
    pub msi_data: u16,
}

/// What the root complex has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credits {
    /// Reads that are not answered yet (non-posted header credits); 0 for infinite.
    pub reads: u32,
    /// Bytes of posted data that it buffers; 0 for infinite.
    pub posted_bytes: u32,
    /// How many of those it writes to memory in each cycle.
    pub posted_bytes_per_cycle: u32,
}

/// How far to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// At most so many cycles.
    pub cycles: u32,
    /// At most so many after a read request: the answer may be due then.
    pub after_read: u32,
    /// Return as soon as fewer requests wait than this: the host has more. 0: not for that.
    pub requests_below: u32,
    /// Return when nothing has happened for so many cycles.
    pub quiet: u32,
    /// What the root complex has room for.
    pub credits: Credits,
}

/// What an endpoint did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It sent a packet, which may be malformed.
    Tlp(Vec<u32>),
    /// It sent a packet without an end, of which nothing is kept.
    Endless,
    /// It asked its core for an interrupt message.
    Interrupt(u8),
}

/// How a run went.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// The cycle that comes next.
    pub now: u64,
    /// Requests that it has not taken yet.
    pub requests: u32,
    /// Completions that it has not taken yet.
    pub completions: u32,
    /// Cycles since anything went in or out.
    pub quiet: u32,
    /// It says that it has work of its own.
    pub busy: bool,
    /// What it did, and in which cycle, in order.
    pub events: Vec<(u64, Event)>,
}

/// An endpoint's transaction layer.
pub trait Endpoint: Send {
    /// Holds its reset for some cycles. Packets on their way are lost.
    ///
    /// # Errors
    ///
    /// Fails when the simulation does.
    fn reset(&mut self) -> Result<(), EndpointError>;

    /// Hands packets over and runs; `inbound` is empty afterwards.
    ///
    /// # Errors
    ///
    /// Fails when the simulation does.
    fn run(
        &mut self,
        settings: &Settings,
        inbound: &mut Vec<Inbound>,
        limits: &Limits,
        outcome: &mut Outcome,
    ) -> Result<(), EndpointError>;
}

impl<E: Endpoint + ?Sized> Endpoint for Box<E> {
    fn reset(&mut self) -> Result<(), EndpointError> {
        (**self).reset()
    }

    fn run(
        &mut self,
        settings: &Settings,
        inbound: &mut Vec<Inbound>,
        limits: &Limits,
        outcome: &mut Outcome,
    ) -> Result<(), EndpointError> {
        (**self).run(settings, inbound, limits, outcome)
    }
}
