//! What a client may ask for, and what the reply is.

use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_DMA_MAP_FLAG_READ,
    VFIO_DMA_MAP_FLAG_WRITE, VFIO_DMA_UNMAP_FLAG_ALL, VFIO_IRQ_INFO_AUTOMASKED,
    VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_MASKABLE, VFIO_IRQ_INFO_NORESIZE,
    VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_TYPE_MASK,
    VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_BOOL, VFIO_IRQ_SET_DATA_EVENTFD,
    VFIO_IRQ_SET_DATA_NONE, VFIO_IRQ_SET_DATA_TYPE_MASK, VFIO_PCI_NUM_IRQS, VFIO_PCI_NUM_REGIONS,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
};
use vfio_dma::backend::{DmaAccess, IrqKind, Region};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::channel::{Channel, Closed};
use super::descriptors::{Descriptors, is_eventfd};
use super::pieces::pieces;
use super::protocol::{
    Capabilities, Command, DeviceInfo, DmaMap, DmaUnmap, Flags, Header, IrqInfo, IrqSet, MAJOR,
    MAX_DATA, MAX_FDS, MINOR, RegionAccess, RegionInfo, Version, VersionData, WriteMulti, WriteOne,
};
use crate::function::{Event, PciFunction};
use crate::regs::rate::RateLimit;

/// What clients were refused: they decide how often.
static REFUSED: RateLimit = RateLimit::new();

/// Why a request is not carried out.
enum Refusal {
    /// It gets an error reply, and the connection goes on.
    Errno(Errno),
    /// It is not a message of the protocol: the connection ends.
    Malformed(String),
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Refusal::Errno(errno)
    }
}

fn malformed<T>(problem: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Malformed(problem.into()))
}

/// Serves one client until it leaves or breaks the protocol; tells why it is over.
pub(super) fn run(mut channel: Channel<'_>, function: &dyn PciFunction) -> Closed {
    let mut reply = Vec::new();
    let mut greeted = false;
    loop {
        let (header, payload, descriptors) = match channel.receive() {
            Ok(message) => message,
            Err(closed) => return closed,
        };
        reply.clear();
        let outcome = carry_out(function, &mut greeted, &header, payload, descriptors, &mut reply);
        // What the request did not take is closed before the reply says that it is done.
        let closed = descriptors.close();
        let outcome = match outcome {
            Ok(()) => Ok(&reply[..]),
            Err(Refusal::Errno(errno)) => {
                log::debug!("command {}: error reply {errno}", header.command);
                Err(errno)
            }
            Err(Refusal::Malformed(problem)) => {
                // The client may be waiting; what becomes of the reply does not matter any more.
                if header.flags & Flags::NO_REPLY.bits() == 0 {
                    let _ = channel.reply(&header, Err(Errno::EINVAL));
                }
                return Closed::Malformed { command: header.command, problem };
            }
        };
        if header.flags & Flags::NO_REPLY.bits() != 0 {
            if let Err(errno) = outcome {
                REFUSED
                    .warn(format_args!("command {} without reply failed: {errno}", header.command));
            }
        } else if let Err(closed) = channel.reply(&header, outcome) {
            return closed;
        }
        if let Err(stuck) = closed {
            return stuck;
        }
    }
}

/// Carries out one request and puts its reply's payload into `reply`.
fn carry_out(
    function: &dyn PciFunction,
    greeted: &mut bool,
    header: &Header,
    payload: &[u8],
    descriptors: &mut Descriptors,
    reply: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let command = Command::from_number(header.command);
    if *greeted == (command == Some(Command::Version)) {
        return malformed(if *greeted {
            "the version is negotiated already"
        } else {
            "the first message is not the version"
        });
    }
    let Some(command) = command else {
        return Err(Errno::EOPNOTSUPP.into());
    };
    match command {
        Command::Version => {
            version(payload, reply)?;
            *greeted = true;
        }
        Command::DmaMap => dma_map(function, parse(payload)?.0, descriptors)?,
        Command::DmaUnmap => {
            let request: DmaUnmap = parse(payload)?.0;
            dma_unmap(function, &request)?;
            reply.extend_from_slice(request.as_bytes());
        }
        Command::DeviceGetInfo => {
            let request: DeviceInfo = parse(payload)?.0;
            let info = DeviceInfo {
                argsz: room::<DeviceInfo>(request.argsz)?,
                flags: VFIO_DEVICE_FLAGS_RESET | VFIO_DEVICE_FLAGS_PCI,
                num_regions: VFIO_PCI_NUM_REGIONS,
                num_irqs: VFIO_PCI_NUM_IRQS,
            };
            reply.extend_from_slice(info.as_bytes());
        }
        Command::DeviceGetRegionInfo => {
            let info = region_info(function, &parse(payload)?.0)?;
            reply.extend_from_slice(info.as_bytes());
        }
        Command::DeviceGetIrqInfo => {
            let info = irq_info(function, &parse(payload)?.0)?;
            reply.extend_from_slice(info.as_bytes());
        }
        Command::DeviceSetIrqs => {
            let (request, data) = parse(payload)?;
            set_irqs(function, &request, data, descriptors)?;
        }
        Command::RegionRead => {
            let (access, _) = parse(payload)?;
            let region = region_of(function, &access)?;
            reply.extend_from_slice(access.as_bytes());
            let start = reply.len();
            reply.resize(start + access.count as usize, 0);
            let data = &mut reply[start..];
            for piece in pieces(region, access.offset, access.count as usize) {
                let offset = access.offset + piece.start as u64;
                function.read(region, offset, &mut data[piece]);
            }
        }
        Command::RegionWrite => {
            let (access, data) = parse::<RegionAccess>(payload)?;
            if data.len() != access.count as usize {
                return malformed(format!("{} bytes of data for {}", data.len(), access.count));
            }
            write(function, &access, data)?;
            reply.extend_from_slice(access.as_bytes());
        }
        Command::RegionWriteMulti => {
            let (request, writes) = parse::<WriteMulti>(payload)?;
            let done = write_multi(function, &request, writes)?;
            reply.extend_from_slice(WriteMulti { count: done }.as_bytes());
        }
        Command::DeviceReset => function.reset(),
    }
    Ok(())
}

/// The structure at the start of a payload, and what follows it.
fn parse<T: FromBytes + KnownLayout + Immutable>(payload: &[u8]) -> Result<(T, &[u8]), Refusal> {
    T::read_from_prefix(payload).or_else(|_| {
        malformed(format!("{} bytes of payload, at least {} needed", payload.len(), size_of::<T>()))
    })
}

/// Checks that the client has room for `T` and returns T's size, the `argsz` of the reply.
fn room<T>(argsz: u32) -> Result<u32, Errno> {
    let size = size_of::<T>() as u32;
    if argsz < size { Err(Errno::EINVAL) } else { Ok(size) }
}

fn version(payload: &[u8], reply: &mut Vec<u8>) -> Result<(), Refusal> {
    let (proposed, data): (Version, _) = parse(payload)?;
    if proposed.major != MAJOR {
        return malformed(format!("major version {}, this server has {MAJOR}", proposed.major));
    }
    let version = Version { major: MAJOR, minor: MINOR };
    reply.extend_from_slice(version.as_bytes());
    if data.is_empty() {
        return Ok(());
    }
    let json = data.strip_suffix(&[0]);
    let Some(json) = json else {
        return malformed("version data without a NUL at its end");
    };
    let theirs: VersionData = match serde_json::from_slice(json) {
        Ok(data) => data,
        Err(error) => return malformed(format!("version data: {error}")),
    };
    log::debug!("the client proposes {theirs:?}");
    // The reply is a subset of what was proposed. It leaves `max_dma_maps` out: QEMU takes
    // it as at most 65,535, and this server has room for more.
    let theirs = theirs.capabilities;
    let ours = Capabilities {
        max_msg_fds: theirs.max_msg_fds.map(|_| MAX_FDS as u64),
        max_data_xfer_size: theirs.max_data_xfer_size.map(|n| n.min(u64::from(MAX_DATA))),
        pgsizes: theirs.pgsizes.map(|sizes| sizes & !0xfff).filter(|&sizes| sizes != 0),
        write_multiple: theirs.write_multiple,
    };
    let json = serde_json::to_vec(&VersionData { capabilities: ours })
        .or_else(|error| malformed(format!("version data: {error}")))?;
    reply.extend_from_slice(&json);
    reply.push(0);
    Ok(())
}

fn dma_map(
    function: &dyn PciFunction,
    request: DmaMap,
    descriptors: &[OwnedFd],
) -> Result<(), Refusal> {
    room::<DmaMap>(request.argsz)?;
    let access = match request.flags {
        VFIO_DMA_MAP_FLAG_READ => DmaAccess::Read,
        VFIO_DMA_MAP_FLAG_WRITE => DmaAccess::Write,
        f if f == VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE => DmaAccess::ReadWrite,
        _ => return Err(Errno::EINVAL.into()),
    };
    let memory = function.memory();
    let result = match descriptors {
        [] => memory.map_unbacked(request.address, request.size, access),
        [fd] => memory.map_fd(request.address, request.size, fd, request.offset, access),
        _ => return Err(Errno::EINVAL.into()),
    };
    result.map_err(|error| {
        REFUSED.warn(format_args!("DMA_MAP refused: {error}"));
        error.errno().into()
    })
}

fn dma_unmap(function: &dyn PciFunction, request: &DmaUnmap) -> Result<(), Refusal> {
    room::<DmaUnmap>(request.argsz)?;
    let memory = function.memory();
    match request.flags {
        0 => {
            memory.unmap(request.address, request.size).map_err(|error| {
                REFUSED.warn(format_args!("DMA_UNMAP refused: {error}"));
                error.errno()
            })?;
        }
        VFIO_DMA_UNMAP_FLAG_ALL if request.address == 0 && request.size == 0 => memory.unmap_all(),
        _ => return Err(Errno::EINVAL.into()),
    }
    Ok(())
}

fn region_info(function: &dyn PciFunction, request: &RegionInfo) -> Result<RegionInfo, Errno> {
    let argsz = room::<RegionInfo>(request.argsz)?;
    if request.index >= VFIO_PCI_NUM_REGIONS {
        return Err(Errno::EINVAL);
    }
    let size = Region::from_index(request.index).map_or(0, |region| function.region_size(region));
    let flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
    Ok(RegionInfo {
        argsz,
        flags: if size == 0 { 0 } else { flags },
        index: request.index,
        cap_offset: 0,
        size,
        offset: 0,
    })
}

fn irq_kind(index: u32) -> Option<IrqKind> {
    [IrqKind::Intx, IrqKind::Msi, IrqKind::MsiX].into_iter().find(|kind| kind.index() == index)
}

fn irq_info(function: &dyn PciFunction, request: &IrqInfo) -> Result<IrqInfo, Errno> {
    let argsz = room::<IrqInfo>(request.argsz)?;
    if request.index >= VFIO_PCI_NUM_IRQS {
        return Err(Errno::EINVAL);
    }
    let kind = irq_kind(request.index);
    let flags = match kind {
        Some(IrqKind::Intx) => {
            VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED
        }
        Some(IrqKind::Msi) => VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_NORESIZE,
        Some(IrqKind::MsiX) => VFIO_IRQ_INFO_EVENTFD,
        None => 0,
    };
    let count = kind.map_or(0, |kind| function.irq_count(kind));
    Ok(IrqInfo { argsz, flags, index: request.index, count })
}

fn set_irqs(
    function: &dyn PciFunction,
    request: &IrqSet,
    data: &[u8],
    descriptors: &mut Descriptors,
) -> Result<(), Refusal> {
    let IrqSet { argsz, flags, start, count, .. } = *request;
    room::<IrqSet>(argsz)?;
    let kind = irq_kind(request.index).ok_or(Errno::EINVAL)?;
    let vectors = function.irq_count(kind);
    let end = start.checked_add(count).filter(|&end| end <= vectors).ok_or(Errno::EINVAL)?;
    let data_type = flags & VFIO_IRQ_SET_DATA_TYPE_MASK;
    let action = flags & VFIO_IRQ_SET_ACTION_TYPE_MASK;
    if flags != data_type | action {
        return Err(Errno::EINVAL.into());
    }
    if count == 0 {
        // The way to take all of a kind away, even of a kind that the function lacks.
        if (data_type, action) != (VFIO_IRQ_SET_DATA_NONE, VFIO_IRQ_SET_ACTION_TRIGGER) {
            return Err(Errno::EINVAL.into());
        }
        function.irq_disconnect(kind);
        return Ok(());
    }
    if data_type == VFIO_IRQ_SET_DATA_EVENTFD {
        if action != VFIO_IRQ_SET_ACTION_TRIGGER {
            return Err(Errno::EOPNOTSUPP.into());
        }
        let events: Vec<Option<Event>> = if descriptors.is_empty() {
            vec![None; count as usize]
        } else if descriptors.len() == count as usize && descriptors.iter().all(is_eventfd) {
            let events = descriptors.drain(..).map(|fd| Event::new(fd).map(Some));
            events.collect::<io::Result<_>>().map_err(|error| {
                REFUSED
                    .warn(format_args!("DEVICE_SET_IRQS: preparing to signal an eventfd: {error}"));
                error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
            })?
        } else {
            return Err(Errno::EINVAL.into());
        };
        function.irq_connect(kind, start, &events);
        return Ok(());
    }
    let chosen: Vec<u32> = match data_type {
        VFIO_IRQ_SET_DATA_NONE => (start..end).collect(),
        VFIO_IRQ_SET_DATA_BOOL => {
            if data.len() < count as usize {
                return malformed(format!("{} booleans for {count} vectors", data.len()));
            }
            (start..end).zip(data).filter(|(_, wanted)| **wanted != 0).map(|(n, _)| n).collect()
        }
        _ => return Err(Errno::EINVAL.into()),
    };
    for vector in chosen {
        match action {
            VFIO_IRQ_SET_ACTION_MASK => function.irq_set_masked(kind, vector, true),
            VFIO_IRQ_SET_ACTION_UNMASK => function.irq_set_masked(kind, vector, false),
            VFIO_IRQ_SET_ACTION_TRIGGER => function.irq_trigger(kind, vector),
            _ => return Err(Errno::EINVAL.into()),
        }
    }
    Ok(())
}

/// The region that an access names; an error when the access is not inside of it.
fn region_of(function: &dyn PciFunction, access: &RegionAccess) -> Result<Region, Errno> {
    let region = Region::from_index(access.region).ok_or(Errno::EINVAL)?;
    let end = access.offset.checked_add(u64::from(access.count)).ok_or(Errno::EINVAL)?;
    if access.count > MAX_DATA || end > function.region_size(region) {
        return Err(Errno::EINVAL);
    }
    Ok(region)
}

fn write(function: &dyn PciFunction, access: &RegionAccess, data: &[u8]) -> Result<(), Errno> {
    let region = region_of(function, access)?;
    for piece in pieces(region, access.offset, data.len()) {
        function.write(region, access.offset + piece.start as u64, &data[piece]);
    }
    Ok(())
}

/// Carries out writes in order up to the first that cannot be; returns how many were.
fn write_multi(
    function: &dyn PciFunction,
    request: &WriteMulti,
    writes: &[u8],
) -> Result<u64, Refusal> {
    let (writes, rest) = writes.as_chunks::<{ size_of::<WriteOne>() }>();
    if !rest.is_empty() || writes.len() as u64 != request.count {
        return malformed(format!("{} whole writes, {} promised", writes.len(), request.count));
    }
    for (done, bytes) in writes.iter().enumerate() {
        let (one, _): (WriteOne, _) = parse(bytes)?;
        let data = one.data.get(..one.access.count as usize);
        let result = data.ok_or(Errno::EINVAL).and_then(|data| write(function, &one.access, data));
        if let Err(errno) = result {
            REFUSED.warn(format_args!("write {done} of {}: {errno}", request.count));
            return Ok(done as u64);
        }
    }
    Ok(request.count)
}
