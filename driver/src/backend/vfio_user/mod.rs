//! Devices served by another process on a vfio-user socket.
//!
//! [`VfioUser`] is a client of the protocol of QEMU's `docs/interop/vfio-user.rst`: it
//! drives a model without a kernel's VFIO, a virtual machine or privileges. Registers are
//! messages, interrupts are eventfds that the server was given, and memory is shared with
//! the server as files.
//!
//! # Cost and order
//!
//! A register read is one round trip to the server. A register write is only sent, as a
//! memory write on PCI is only posted: the server carries out what it is sent in order, so
//! that a later read, reset or unmap finds it done. Writes wait for their reply where that
//! order would not hold, because other registers are mapped and reached past the socket,
//! and in configuration space.
//!
//! # What the server may do
//!
//! It may die, be silent, or answer nonsense: every call ends within [`TIMEOUT`] (or
//! another bound, [`VfioUser::connect_within`]), and the device is then
//! [`BackendError::Gone`] for good. Its requests (`DMA_READ`, `DMA_WRITE`) are answered with
//! an error: it reaches the memory that it was given as a file, and no other.

mod connection;
mod descriptors;
mod iommu;
mod message;
mod receive;
mod region;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vfio_bindings::bindings::vfio as uapi;
use zerocopy::IntoBytes;

use super::{Backend, BackendError, Iommu, IrqKind, MappedRegion, Region, RegionInfo, Result};
use crate::pci::config::{Command as PciCommand, reg};
use connection::{Connection, MAX_FDS, Reply, Request};
use iommu::SocketIommu;
use message::{
    Capabilities, Command, DeviceInfo, IrqInfo, IrqSet, MAX_DATA, RegionAccess, VERSION, Version,
    VersionData,
};
use region::Described;

/// How long the server has for each call unless the caller says otherwise.
///
/// The longest that a well-behaved server takes is a reset or an unmap, which waits for what
/// the device has in hand.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// The longest bound for a call.
const LONGEST: Duration = Duration::from_secs(3600);

/// The regions of a PCI device, up to configuration space.
const REGIONS: [Region; 8] = [
    Region::Bar(0),
    Region::Bar(1),
    Region::Bar(2),
    Region::Bar(3),
    Region::Bar(4),
    Region::Bar(5),
    Region::Rom,
    Region::Config,
];

const IRQS: [IrqKind; 3] = [IrqKind::Intx, IrqKind::Msi, IrqKind::MsiX];

/// How many DMA mappings a server takes that does not say (`max_dma_maps`).
const DEFAULT_MAPS: u32 = 65_535;

/// What both sides agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limits {
    /// Descriptors in one message.
    fds: usize,
    /// Bytes in one region read or write: a multiple of 8.
    data: usize,
    /// DMA mappings at a time.
    maps: u32,
    /// Page sizes of DMA mappings: bit n stands for 2^n bytes.
    page_sizes: u64,
}

/// A PCI device that a server on a unix socket serves.
#[derive(Debug)]
pub struct VfioUser {
    connection: Arc<Connection>,
    iommu: Arc<dyn Iommu>,
    limits: Limits,
    /// By VFIO index.
    regions: Vec<Described>,
    /// Number of vectors, by VFIO index.
    irqs: [u32; 3],
    /// Which kinds of interrupt have eventfds at the server, by VFIO index.
    enabled: Mutex<[bool; 3]>,
    can_reset: bool,
    /// Register writes need no reply: nothing reaches the device past the socket.
    posts: bool,
}

impl VfioUser {
    /// Connects to the server that listens on the socket at `path`.
    ///
    /// Memory and I/O space of the function are enabled, as VFIO does when it opens a device.
    ///
    /// # Errors
    ///
    /// [`BackendError::Precondition`] when nobody listens there or this user may not connect;
    /// [`BackendError::Gone`] when the server does not speak the protocol, or not within
    /// [`TIMEOUT`]: most serve one client at a time.
    pub fn connect(path: impl AsRef<Path>) -> Result<VfioUser> {
        VfioUser::connect_within(path, TIMEOUT)
    }

    /// Connects as [`VfioUser::connect`] does, with another bound for each call, at most an
    /// hour.
    ///
    /// # Errors
    ///
    /// As [`VfioUser::connect`].
    pub fn connect_within(path: impl AsRef<Path>, timeout: Duration) -> Result<VfioUser> {
        let connection = Arc::new(Connection::open(path.as_ref(), timeout.min(LONGEST))?);
        let location = connection.location().to_owned();
        let unsupported =
            |what: &str| BackendError::Unsupported { what: what.into(), by: location.clone() };
        let limits = negotiate(&connection)?.ok_or_else(|| unsupported("a usable limit"))?;
        let device = device_info(&connection)?;
        if device.flags & uapi::VFIO_DEVICE_FLAGS_PCI == 0
            || device.num_regions <= Region::Config.index()
            || device.num_irqs <= IrqKind::MsiX.index()
        {
            return Err(unsupported("a PCI device with all its regions and interrupts"));
        }
        let regions: Vec<Described> = REGIONS
            .into_iter()
            .map(|region| Described::ask(&connection, region))
            .collect::<Result<_>>()?;
        let mut irqs = [0; 3];
        for kind in IRQS {
            irqs[kind.index() as usize] = irq_count(&connection, kind)?;
        }
        let posts = regions.iter().all(|region| region.info.mappable.is_empty());
        let iommu = SocketIommu::new(&connection, limits.page_sizes, limits.maps);
        let device = VfioUser {
            connection,
            iommu: Arc::new(iommu),
            limits,
            regions,
            irqs,
            enabled: Mutex::default(),
            can_reset: device.flags & uapi::VFIO_DEVICE_FLAGS_RESET != 0,
            posts,
        };
        device.enable_spaces()?;
        Ok(device)
    }

    fn enable_spaces(&self) -> Result<()> {
        let offset = u64::from(reg::COMMAND);
        let mut command = [0; 2];
        self.region_read(Region::Config, offset, &mut command)?;
        let spaces = PciCommand::IO_SPACE | PciCommand::MEMORY_SPACE;
        let command = u16::from_le_bytes(command) | spaces.bits();
        self.region_write(Region::Config, offset, &command.to_le_bytes())
    }

    fn described(&self, region: Region) -> Option<&Described> {
        // BAR 6 and 7 do not exist, though their indices are others'.
        let at = REGIONS.iter().position(|&known| known == region)?;
        self.regions.get(at)
    }

    /// Checks that an access lies inside of its region.
    fn check(&self, region: Region, offset: u64, len: usize) -> Result<&RegionInfo> {
        let info = match self.described(region) {
            Some(described) if described.info.size > 0 => &described.info,
            _ => return Err(BackendError::NoRegion { region }),
        };
        match offset.checked_add(len as u64) {
            Some(end) if end <= info.size => Ok(info),
            _ => Err(BackendError::OutOfBounds { region, offset, len, size: info.size }),
        }
    }

    fn refused(&self, what: String) -> BackendError {
        BackendError::Unsupported { what, by: self.connection.location().into() }
    }

    /// `VFIO_USER_DEVICE_SET_IRQS` for `count` vectors from `start` on.
    fn set_irqs(
        &self,
        kind: IrqKind,
        flags: u32,
        [start, count]: [u32; 2],
        fds: &[BorrowedFd<'_>],
        action: impl FnOnce() -> String,
    ) -> Result<()> {
        let argsz = size_of::<IrqSet>() as u32;
        let message = IrqSet { argsz, flags, index: kind.index(), start, count };
        let request =
            Request { command: Command::DeviceSetIrqs, payload: [message.as_bytes(), &[]], fds };
        self.connection.call(&request, action, |_| Ok(()))
    }

    /// Takes all vectors of a kind away, whether or not any are enabled.
    fn disconnect(&self, kind: IrqKind) -> Result<()> {
        let flags = uapi::VFIO_IRQ_SET_DATA_NONE | uapi::VFIO_IRQ_SET_ACTION_TRIGGER;
        self.set_irqs(kind, flags, [0, 0], &[], || format!("disabling {kind} vectors"))
    }
}

impl Backend for VfioUser {
    fn location(&self) -> String {
        self.connection.location().into()
    }

    fn region_info(&self, region: Region) -> Result<RegionInfo> {
        Ok(self.described(region).map(|described| described.info.clone()).unwrap_or_default())
    }

    fn region_read(&self, region: Region, offset: u64, data: &mut [u8]) -> Result<()> {
        if !self.check(region, offset, data.len())?.readable {
            return Err(self.refused(format!("reading the {region}")));
        }
        let mut offset = offset;
        for piece in data.chunks_mut(self.limits.data) {
            let count = piece.len() as u32;
            let access = RegionAccess { offset, region: region.index(), count };
            let request = Request {
                command: Command::RegionRead,
                payload: [access.as_bytes(), &[]],
                fds: &[],
            };
            let action = || format!("reading {count} bytes at {region} {offset:#x}");
            self.connection.call(&request, action, |reply| {
                let (echoed, bytes) = reply.parse::<RegionAccess>()?;
                if echoed != access || bytes.len() != piece.len() {
                    return Err(format!("{} bytes for {access:?}", bytes.len()));
                }
                piece.copy_from_slice(bytes);
                Ok(())
            })?;
            offset += u64::from(count);
        }
        Ok(())
    }

    fn region_write(&self, region: Region, offset: u64, data: &[u8]) -> Result<()> {
        if !self.check(region, offset, data.len())?.writable {
            return Err(self.refused(format!("writing the {region}")));
        }
        let post = self.posts && matches!(region, Region::Bar(_)) && data.len() <= 8;
        let mut offset = offset;
        for piece in data.chunks(self.limits.data) {
            let count = piece.len() as u32;
            let access = RegionAccess { offset, region: region.index(), count };
            let request = Request {
                command: Command::RegionWrite,
                payload: [access.as_bytes(), piece],
                fds: &[],
            };
            let action = || format!("writing {count} bytes at {region} {offset:#x}");
            if post {
                self.connection.post(&request, action)?;
            } else {
                self.connection.call(&request, action, |reply| {
                    let (echoed, _) = reply.parse::<RegionAccess>()?;
                    (echoed == access)
                        .then_some(())
                        .ok_or_else(|| format!("{echoed:?} was written, not {access:?}"))
                })?;
            }
            offset += u64::from(count);
        }
        Ok(())
    }

    fn map_region(&self, region: Region, area: Range<u64>) -> Result<Box<dyn MappedRegion>> {
        match self.described(region) {
            Some(described) => described.map(self.connection.location(), region, &area),
            None => Err(BackendError::NoRegion { region }),
        }
    }

    fn irq_count(&self, kind: IrqKind) -> Result<u32> {
        Ok(self.irqs[kind.index() as usize])
    }

    fn irq_enable(&self, kind: IrqKind, events: &[BorrowedFd<'_>]) -> Result<()> {
        let available = self.irqs[kind.index() as usize];
        let requested = u32::try_from(events.len()).unwrap_or(u32::MAX);
        if requested == 0 || requested > available {
            return Err(BackendError::NoVectors { kind, requested, available });
        }
        let mut enabled = self.enabled.lock().unwrap_or_else(PoisonError::into_inner);
        let enabled = &mut enabled[kind.index() as usize];
        if *enabled {
            self.disconnect(kind)?;
        }
        // From the first message on: should a later one fail, there is something to disable.
        *enabled = true;
        let flags = uapi::VFIO_IRQ_SET_DATA_EVENTFD | uapi::VFIO_IRQ_SET_ACTION_TRIGGER;
        let mut start = 0;
        for fds in events.chunks(self.limits.fds) {
            let count = fds.len() as u32;
            let action = || format!("enabling {count} {kind} vectors from {start} on");
            if let Err(error) = self.set_irqs(kind, flags, [start, count], fds, action) {
                match self.disconnect(kind) {
                    Ok(()) => *enabled = false,
                    Err(also) => log::warn!("{also}"),
                }
                return Err(error);
            }
            start += count;
        }
        Ok(())
    }

    fn irq_disable(&self, kind: IrqKind) -> Result<()> {
        let mut enabled = self.enabled.lock().unwrap_or_else(PoisonError::into_inner);
        let enabled = &mut enabled[kind.index() as usize];
        if *enabled {
            self.disconnect(kind)?;
            *enabled = false;
        }
        Ok(())
    }

    fn irq_trigger(&self, kind: IrqKind, vector: u32) -> Result<()> {
        let flags = uapi::VFIO_IRQ_SET_DATA_NONE | uapi::VFIO_IRQ_SET_ACTION_TRIGGER;
        let action = || format!("triggering {kind} vector {vector}");
        self.set_irqs(kind, flags, [vector, 1], &[], action)
    }

    fn intx_set_masked(&self, masked: bool) -> Result<()> {
        let kind = IrqKind::Intx;
        let available = self.irqs[kind.index() as usize];
        if available == 0 {
            return Err(BackendError::NoVectors { kind, requested: 1, available });
        }
        let (action, verb) = if masked {
            (uapi::VFIO_IRQ_SET_ACTION_MASK, "masking")
        } else {
            (uapi::VFIO_IRQ_SET_ACTION_UNMASK, "unmasking")
        };
        let flags = uapi::VFIO_IRQ_SET_DATA_NONE | action;
        self.set_irqs(kind, flags, [0, 1], &[], || format!("{verb} INTx"))
    }

    fn reset(&self) -> Result<()> {
        if !self.can_reset {
            return Err(self.refused("a reset".into()));
        }
        // What VFIO keeps of the header: cache line size, BARs, interrupt line, and at last
        // the command register.
        const KEPT: [(u64, usize); 9] = [
            (0x0c, 1),
            (0x10, 4),
            (0x14, 4),
            (0x18, 4),
            (0x1c, 4),
            (0x20, 4),
            (0x24, 4),
            (0x3c, 1),
            (0x04, 2),
        ];
        let mut saved = [[0; 4]; KEPT.len()];
        for ((offset, len), value) in KEPT.into_iter().zip(&mut saved) {
            self.region_read(Region::Config, offset, &mut value[..len])?;
        }
        let request = Request { command: Command::DeviceReset, payload: [&[], &[]], fds: &[] };
        self.connection.call(&request, || "resetting the function".into(), |_| Ok(()))?;
        for ((offset, len), value) in KEPT.into_iter().zip(&saved) {
            self.region_write(Region::Config, offset, &value[..len])?;
        }
        Ok(())
    }

    fn iommu(&self) -> &Arc<dyn Iommu> {
        &self.iommu
    }
}

/// Agrees on the version and the limits; `None` when a limit of the server allows nothing.
fn negotiate(connection: &Connection) -> Result<Option<Limits>> {
    let proposed = Capabilities {
        max_msg_fds: Some(MAX_FDS as u64),
        max_data_xfer_size: Some(u64::from(MAX_DATA)),
        max_dma_maps: Some(u64::from(DEFAULT_MAPS)),
        pgsizes: Some(1 << 12 | 1 << 21 | 1 << 30),
    };
    let mut data =
        serde_json::to_vec(&VersionData { capabilities: proposed }).map_err(|error| {
            BackendError::Unsupported { what: format!("JSON: {error}"), by: "this driver".into() }
        })?;
    data.push(0);
    let request =
        Request { command: Command::Version, payload: [VERSION.as_bytes(), &data], fds: &[] };
    let theirs = connection.call(&request, || "agreeing on a version".into(), version)?;
    log::debug!("{}: {theirs:?}", connection.location());
    Ok(limits(&theirs))
}

/// Reads the server's version and capabilities.
fn version(reply: Reply<'_>) -> std::result::Result<Capabilities, String> {
    let (version, data) = reply.parse::<Version>()?;
    if version != VERSION {
        return Err(format!("version {}.{}, not 0.0", version.major, version.minor));
    }
    let json = data.strip_suffix(&[0]).unwrap_or(data);
    if json.is_empty() {
        return Ok(Capabilities::default());
    }
    let data: VersionData =
        serde_json::from_slice(json).map_err(|error| format!("version data: {error}"))?;
    Ok(data.capabilities)
}

/// What the server's capabilities leave, with the specification's defaults for those that
/// it does not name; `None` when one of them leaves nothing to work with.
fn limits(theirs: &Capabilities) -> Option<Limits> {
    let data = theirs.max_data_xfer_size.unwrap_or(u64::from(MAX_DATA)).min(u64::from(MAX_DATA));
    let fds = theirs.max_msg_fds.unwrap_or(1).min(MAX_FDS as u64);
    let maps = theirs.max_dma_maps.unwrap_or(DEFAULT_MAPS.into()).min(u64::from(u32::MAX));
    // Pieces of a page are not shared.
    let page_sizes = theirs.pgsizes.unwrap_or(4096) & !0xfff;
    // Eight bytes are the widest register, which must not be taken apart.
    (data >= 8 && fds > 0 && maps > 0 && page_sizes != 0).then_some(Limits {
        fds: fds as usize,
        data: data as usize & !7,
        maps: maps as u32,
        page_sizes,
    })
}

fn device_info(connection: &Connection) -> Result<DeviceInfo> {
    let argsz = size_of::<DeviceInfo>() as u32;
    let message = DeviceInfo { argsz, flags: 0, num_regions: 0, num_irqs: 0 };
    let request =
        Request { command: Command::DeviceGetInfo, payload: [message.as_bytes(), &[]], fds: &[] };
    let action = || "asking for the device".into();
    connection.call(&request, action, |reply| Ok(reply.parse::<DeviceInfo>()?.0))
}

fn irq_count(connection: &Connection, kind: IrqKind) -> Result<u32> {
    let argsz = size_of::<IrqInfo>() as u32;
    let message = IrqInfo { argsz, flags: 0, index: kind.index(), count: 0 };
    let request = Request {
        command: Command::DeviceGetIrqInfo,
        payload: [message.as_bytes(), &[]],
        fds: &[],
    };
    let action = || format!("asking for the {kind} vectors");
    let info = connection.call(&request, action, |reply| {
        let (info, _) = reply.parse::<IrqInfo>()?;
        if info.index == kind.index() {
            Ok(info)
        } else {
            Err(format!("interrupts {} described, {} asked for", info.index, kind.index()))
        }
    })?;
    // A vector that cannot signal an eventfd is of no use here.
    let usable = info.flags & uapi::VFIO_IRQ_INFO_EVENTFD != 0;
    Ok(if usable { info.count } else { 0 })
}
