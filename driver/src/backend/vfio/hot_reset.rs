//! The reset of all that is reset together with a device: its slot, or its bus (VFIO's hot reset).

use std::mem::offset_of;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use nix::errno::Errno;
use vfio_bindings::bindings::vfio as uapi;

use super::group::{self, Group};
use super::ioctl::{self, done};
use super::reply::{Reply, ask_until};
use super::{claim, os_error};
use crate::backend::{Affected, BackendError, Result};
use crate::pci::sysfs::Tree;
use crate::pci::{Address, Remedy};

/// Says of a function that this process does not own it (`VFIO_PCI_DEVID_NOT_OWNED`).
const NOT_OWNED: u32 = u32::MAX;

/// The functions that a segment of PCI has room for.
const FUNCTIONS: usize = 1 << 16;

/// What the kernel says of a reset.
#[derive(Debug, PartialEq, Eq)]
struct Info {
    /// The device is bound to an iommufd: the numbers are ids of devices, else those of groups.
    by_device: bool,
    functions: Vec<(Address, u32)>,
}

fn decode(reply: &Reply) -> Option<Info> {
    use uapi::vfio_pci_dependent_device as Dependent;
    use uapi::vfio_pci_hot_reset_info as Header;
    let flags = reply.u32(offset_of!(Header, flags))?;
    let count = reply.u32(offset_of!(Header, count))? as usize;
    let mut functions = Vec::new();
    for number in 0..count {
        let at = number.checked_mul(size_of::<Dependent>())?;
        let at = at.checked_add(offset_of!(Header, devices))?;
        let place = reply.u32(at + offset_of!(Dependent, segment))?.to_ne_bytes();
        let domain = u16::from_ne_bytes([place[0], place[1]]);
        let (bus, devfn) = (place[2], place[3]);
        let address = Address::new(domain.into(), bus, devfn >> 3, devfn & 7).ok()?;
        functions.push((address, reply.u32(at)?));
    }
    Some(Info { by_device: flags & uapi::VFIO_PCI_HOT_RESET_FLAG_DEV_ID != 0, functions })
}

fn info(device: RawFd, address: Address) -> Result<Info> {
    let failed = |errno| {
        let no_way = || Remedy::from("it is on a root bus, which no bridge resets");
        let remedy = (errno == Errno::ENODEV).then(no_way);
        os_error(format!("{address}: asking what a reset of its bus hits"), errno, remedy)
    };
    let reply = list(|info| {
        // SAFETY: the descriptor is a device, and `list` gives the kernel as much room as it says.
        unsafe { ioctl::device_get_pci_hot_reset_info(device, info) }
    });
    decode(&reply.map_err(failed)?).ok_or_else(|| failed(Errno::EPROTO))
}

/// The kernel's list, with as much room as it needs: ENOSPC comes with how many functions there
/// are (`vfio_pci_ioctl_get_pci_hot_reset_info` in `drivers/vfio/pci/vfio_pci_core.c`).
fn list(
    request: impl FnMut(*mut uapi::vfio_pci_hot_reset_info) -> nix::Result<libc::c_int>,
) -> nix::Result<Reply> {
    use uapi::vfio_pci_hot_reset_info as Header;
    ask_until(0, request, |status, reply, capacity| match status {
        Ok(()) => Ok(None),
        Err(Errno::ENOSPC) => {
            let count = reply.u32(offset_of!(Header, count)).unwrap_or(0) as usize;
            let needed =
                offset_of!(Header, devices) + count * size_of::<uapi::vfio_pci_dependent_device>();
            let more = count <= FUNCTIONS && needed > capacity;
            more.then_some(Some(needed)).ok_or(Errno::ENOSPC)
        }
        Err(errno) => Err(errno),
    })
}

/// The functions that the reset hits, the device among them.
pub(super) fn scope(device: RawFd, address: Address) -> Result<Vec<Affected>> {
    let info = info(device, address)?;
    let affected = |&(address, number): &(Address, u32)| Affected {
        address,
        owned: is_owned(&info, address, number),
        open_here: claim::is_open(address),
    };
    Ok(info.functions.iter().map(affected).collect())
}

/// Whether the kernel takes this process for the owner of a function. That of a group it does
/// for the group's descriptor, and a function of the group with no driver is none of VFIO's.
fn is_owned(info: &Info, address: Address, number: u32) -> bool {
    if info.by_device {
        return number != NOT_OWNED;
    }
    group::opened(number).is_some() && Tree::new().is_with_vfio(address).unwrap_or(false)
}

/// Resets all of them.
pub(super) fn reset(device: RawFd, address: Address) -> Result<()> {
    let info = info(device, address)?;
    let owned = |&&(function, number): &&(Address, u32)| is_owned(&info, function, number);
    let foreign = info.functions.iter().filter(|function| !owned(function));
    let functions: Vec<Address> = foreign.map(|&(function, _)| function).collect();
    if !functions.is_empty() {
        return Err(BackendError::not_owned(address.to_string(), functions));
    }
    let mut groups: Vec<Arc<Group>> = Vec::new();
    if !info.by_device {
        let mut numbers: Vec<u32> = info.functions.iter().map(|&(_, number)| number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        groups.extend(numbers.into_iter().filter_map(group::opened));
    }
    // The header of three words, then the descriptors.
    let mut words = vec![0u32; 3 + groups.len()];
    words[0] = size_of_val(&words[..]) as u32;
    words[2] = groups.len() as u32;
    for (word, group) in words[3..].iter_mut().zip(&groups) {
        *word = group.as_raw_fd() as u32;
    }
    // SAFETY: the descriptor is a device, and the structure is followed by as many descriptors
    // as it says.
    let status = unsafe { ioctl::device_pci_hot_reset(device, words.as_ptr().cast()) };
    done(status).map_err(|errno| {
        let remedy = match errno {
            Errno::EINVAL | Errno::ENODEV => {
                Some("every function that the reset hits has to be bound to vfio-pci".into())
            }
            // It may be reset all the same.
            Errno::ENOTTY => Some(
                "the link below the bridge did not come back in time, or the kernel does not let \
                 the bus be reset: dmesg says which"
                    .into(),
            ),
            Errno::EBUSY => Some(
                "another thread of a process has one of the functions' memory locked for a moment: \
                 try again"
                    .into(),
            ),
            _ => None,
        };
        os_error(format!("{address}: resetting its bus"), errno, remedy)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(flags: u32, functions: &[(u32, u16, u8, u8)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [12 + 8 * functions.len() as u32, flags, functions.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        for &(number, domain, bus, devfn) in functions {
            bytes.extend(number.to_ne_bytes());
            bytes.extend(domain.to_ne_bytes());
            bytes.extend([bus, devfn]);
        }
        bytes
    }

    #[test]
    fn the_kernel_is_given_room_for_as_many_functions_as_there_are() {
        let mut rooms = Vec::new();
        let listed = list(|info| {
            // SAFETY: `list` hands out a whole header.
            let info = unsafe { &mut *info };
            rooms.push(info.argsz);
            info.count = 1000;
            if (info.argsz as usize) < 12 + 8 * 1000 { Err(Errno::ENOSPC) } else { Ok(0) }
        });
        assert_eq!(decode(&listed.unwrap()).unwrap().functions.len(), 1000);
        assert_eq!(rooms, [4096, 8012]);
    }

    #[test]
    fn a_list_that_cannot_be_had_is_given_up() {
        let mut calls = 0;
        let mut refuse = |count, errno| {
            calls = 0;
            let listed = list(|info| {
                calls += 1;
                // SAFETY: `list` hands out a whole header.
                unsafe { (*info).count = count };
                Err(errno)
            });
            (listed.unwrap_err(), calls)
        };
        assert_eq!(refuse(0, Errno::ENODEV), (Errno::ENODEV, 1));
        // It has room for that many, and for no more than there can be.
        assert_eq!(refuse(1, Errno::ENOSPC), (Errno::ENOSPC, 1));
        assert_eq!(refuse(u32::MAX, Errno::ENOSPC), (Errno::ENOSPC, 1));
        assert_eq!(refuse(0, Errno::EAGAIN), (Errno::EAGAIN, 1));
    }

    #[test]
    fn what_a_reset_hits_is_decoded() {
        let bytes = reply(1, &[(7, 0, 1, 0), (NOT_OWNED, 2, 0x81, 0xff)]);
        let info = decode(&Reply::new(bytes.clone())).unwrap();
        let address = |text: &str| text.parse::<Address>().unwrap();
        assert!(info.by_device);
        let expected = [(address("0000:01:00.0"), 7), (address("0002:81:1f.7"), NOT_OWNED)];
        assert_eq!(info.functions, expected);
        assert!(!decode(&Reply::new(reply(0, &[]))).unwrap().by_device);
        // Fewer than it says there are.
        for len in 0..bytes.len() {
            assert_eq!(decode(&Reply::new(bytes[..len].to_vec())), None, "{len}");
        }
    }
}
