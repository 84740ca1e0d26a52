//! Fetching descriptors and moving data: what the engine does without a lock.

use std::collections::VecDeque;

use super::channel::{Channel, Position};
use super::descriptor::{self, Descriptor, Operation};
use super::device::Device;
use super::registers::ChannelError;
use crate::bus_master::{BusMaster, Moved};
use crate::memory::{Direction, DmaFault, FaultReason};

/// How many descriptors are fetched at once.
const AHEAD: usize = 16;
/// A fetch does not cross such a boundary: the mapping may end there.
const PAGE: u64 = 4096;

/// Why a descriptor was not executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// The channel halts with these bits.
    Halt(ChannelError),
    /// A reset does not wait for the transfer.
    Aborted,
}

/// Descriptors that were fetched before their turn.
///
/// Software may extend a chain at any time: it writes a descriptor, links it to the last one
/// and counts it. A counted descriptor does not change, but the link of the last counted one
/// may. So nothing is used that was not counted when it was fetched, and the link of the
/// last counted descriptor is read again when the count has passed it.
#[derive(Debug)]
pub(super) struct Fetcher {
    epoch: u64,
    ready: VecDeque<(u64, Descriptor)>,
    /// Where the chain goes on after `ready`, if that descriptor was counted.
    link: Option<u64>,
    /// The last link led to the adjacent address, so that it pays to fetch several.
    sequential: bool,
}

impl Default for Fetcher {
    fn default() -> Self {
        Fetcher { epoch: 0, ready: VecDeque::with_capacity(AHEAD), link: None, sequential: true }
    }
}

impl Fetcher {
    /// Forgets everything when the chain is not the one it was.
    pub(super) fn follow(&mut self, epoch: u64) {
        if self.epoch != epoch {
            self.epoch = epoch;
            self.ready.clear();
            self.link = None;
        }
    }

    /// The next descriptor and its address; `ahead`, at least 1, are counted.
    #[inline]
    fn next(
        &mut self,
        device: &Device,
        port: &mut BusMaster<'_>,
        position: Position,
        ahead: u16,
    ) -> Result<(u64, Descriptor), ChannelError> {
        if let Some(ready) = self.ready.pop_front() {
            return Ok(ready);
        }
        let address = match position {
            Position::Nowhere => return Err(ChannelError::CHAIN_ADDRESS),
            Position::At(address) => {
                let good = address.is_multiple_of(descriptor::SIZE as u64)
                    && device.config.reaches(address, descriptor::SIZE as u64);
                if !good {
                    return Err(ChannelError::CHAIN_ADDRESS);
                }
                address
            }
            Position::After(last) => {
                let link = match self.link.take() {
                    Some(link) => link,
                    None => port
                        .fetch_u64(last + descriptor::NEXT)
                        .map_err(|fault| data_error(&fault))?,
                };
                if !link.is_multiple_of(descriptor::SIZE as u64) {
                    return Err(ChannelError::DESCRIPTOR_ALIGNMENT);
                }
                if !device.config.reaches(link, descriptor::SIZE as u64) {
                    return Err(ChannelError::NEXT_ADDRESS);
                }
                link
            }
        };
        self.fetch(port, address, usize::from(ahead))
    }

    fn fetch(
        &mut self,
        port: &mut BusMaster<'_>,
        address: u64,
        ahead: usize,
    ) -> Result<(u64, Descriptor), ChannelError> {
        let in_page = ((PAGE - address % PAGE) / descriptor::SIZE as u64) as usize;
        let mut most = if self.sequential { ahead.min(in_page).min(AHEAD) } else { 1 };
        let mut buffer = [[0; descriptor::SIZE]; AHEAD];
        let mut read = |count: usize| port.fetch(address, buffer[..count].as_flattened_mut());
        let mut fetched = read(most);
        if fetched.is_err() && most > 1 {
            // What lies behind the first one need not be the chain, nor be mapped.
            most = 1;
            fetched = read(1);
        }
        fetched.map_err(|fault| data_error(&fault))?;
        let mut run = 0;
        let mut place = address;
        for bytes in &buffer[..most] {
            let descriptor = Descriptor::parse(bytes);
            self.ready.push_back((place, descriptor));
            run += 1;
            place = place.wrapping_add(descriptor::SIZE as u64);
            self.sequential = descriptor.next == place;
            self.link = (run < ahead).then_some(descriptor.next);
            if !self.sequential {
                break;
            }
        }
        // What comes next arrives from the driver's processor while data is moved.
        let behind = (ahead - run).min(in_page - run).min(AHEAD);
        if self.sequential && behind != 0 {
            port.prefetch(place, (behind * descriptor::SIZE) as u64);
        }
        port.fetched(run as u64, address, (most * descriptor::SIZE) as u64);
        // The loop ran at least once: `ahead` and `in_page` are at least 1.
        self.ready.pop_front().ok_or(ChannelError::DESCRIPTOR_COUNT)
    }
}

/// A request that was refused is a data error; one that cannot be made is an address error.
pub(super) fn data_error(fault: &DmaFault) -> ChannelError {
    log::debug!("{fault}");
    match (fault.direction, fault.reason) {
        (Direction::Read, FaultReason::Wraps) => ChannelError::SOURCE_ADDRESS,
        (Direction::Read, _) => ChannelError::READ_DATA,
        (Direction::Write, FaultReason::Wraps) => ChannelError::DESTINATION_ADDRESS,
        (Direction::Write, _) => ChannelError::WRITE_DATA,
    }
}

/// Fetches and executes the next descriptor; returns it with its address.
pub(super) fn execute(
    device: &Device,
    channel: &Channel,
    (fetcher, port): (&mut Fetcher, &mut BusMaster<'_>),
    position: Position,
    ahead: u16,
) -> Result<(u64, Descriptor), Stop> {
    if !device.pci.may_issue_requests() {
        port.release();
        let n = channel.index;
        device.log.warn(format_args!("channel {n}: DMA while the function is not a bus master"));
        return Err(Stop::Halt(ChannelError::READ_DATA));
    }
    let (address, descriptor) = fetcher.next(device, port, position, ahead).map_err(Stop::Halt)?;
    let operation = descriptor.operation(device.config.transfer_capacity).map_err(Stop::Halt)?;
    let stops = || channel.aborted();
    let moved = match operation {
        Operation::Null => Ok(Moved::All),
        Operation::Copy { source, destination, size } => {
            let size = u64::from(size);
            reach(device, source, size, ChannelError::SOURCE_ADDRESS)?;
            reach(device, destination, size, ChannelError::DESTINATION_ADDRESS)?;
            port.copy(destination, source, size, stops)
        }
        Operation::Fill { pattern, destination, size } => {
            let size = u64::from(size);
            reach(device, destination, size, ChannelError::DESTINATION_ADDRESS)?;
            port.fill(destination, pattern, size, stops)
        }
    };
    match moved.map_err(|fault| Stop::Halt(data_error(&fault)))? {
        Moved::All => Ok((address, descriptor)),
        Moved::Stopped => Err(Stop::Aborted),
    }
}

fn reach(device: &Device, address: u64, len: u64, error: ChannelError) -> Result<(), Stop> {
    if device.config.reaches(address, len) { Ok(()) } else { Err(Stop::Halt(error)) }
}
