//! Replies of variable length: a structure, and a chain of capabilities behind it.

use std::mem::{offset_of, size_of};
use std::ops::Range;

use nix::errno::Errno;
use vfio_bindings::bindings::vfio as uapi;

use super::ioctl::done;

/// Room for a structure and its chain: the kernel's replies are a few hundred bytes.
const CAPACITY: usize = 4096;

/// How often the kernel may ask for more room.
const ATTEMPTS: usize = 4;

/// The bytes that the kernel replied with, read with bounds checks.
#[derive(Debug)]
pub(super) struct Reply(Vec<u8>);

/// Makes a request whose structure `T` starts with `argsz`, `flags` and, where the request
/// is about one of several, its index; gives more room until the whole reply fits.
///
/// `request` may write `argsz` bytes, never fewer than `T` has, from the pointer on.
pub(super) fn ask<T>(
    index: u32,
    mut request: impl FnMut(*mut T) -> nix::Result<libc::c_int>,
) -> nix::Result<Reply> {
    ask_until(index, &mut request, |status, reply, capacity| {
        status?;
        let needed = reply.u32(0).unwrap_or(0) as usize;
        Ok((needed > capacity).then_some(needed))
    })
}

/// As [`ask`], for a request that says in another way than by `argsz` how much room it needs:
/// `more` looks at its outcome and at the reply, and says how much to give it in another attempt.
pub(super) fn ask_until<T>(
    index: u32,
    mut request: impl FnMut(*mut T) -> nix::Result<libc::c_int>,
    more: impl Fn(nix::Result<()>, &Reply, usize) -> nix::Result<Option<usize>>,
) -> nix::Result<Reply> {
    const { assert!(size_of::<T>() >= 12 && size_of::<T>() <= CAPACITY && align_of::<T>() <= 8) };
    let mut capacity = CAPACITY;
    for _ in 0..ATTEMPTS {
        // u64 elements, so that the structure inside is aligned.
        let mut words = vec![0u64; capacity.div_ceil(8)];
        let argsz = u32::try_from(capacity).map_err(|_| Errno::EMSGSIZE)?;
        words[0] = pair(argsz, 0);
        words[1] = pair(index, 0);
        let status = done(request(words.as_mut_ptr().cast()));
        let reply = Reply(words.iter().flat_map(|word| word.to_ne_bytes()).collect());
        match more(status, &reply, capacity)? {
            None => return Ok(reply),
            Some(needed) => capacity = needed.max(CAPACITY),
        }
    }
    Err(Errno::EMSGSIZE)
}

/// Two u32 as they follow one another in memory.
fn pair(first: u32, second: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_ne_bytes());
    bytes[4..].copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

impl Reply {
    #[cfg(test)]
    pub(super) fn new(bytes: Vec<u8>) -> Reply {
        Reply(bytes)
    }

    pub(super) fn u16(&self, at: usize) -> Option<u16> {
        Some(u16::from_ne_bytes(self.0.get(at..at.checked_add(2)?)?.try_into().ok()?))
    }

    pub(super) fn u32(&self, at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(self.0.get(at..at.checked_add(4)?)?.try_into().ok()?))
    }

    pub(super) fn u64(&self, at: usize) -> Option<u64> {
        Some(u64::from_ne_bytes(self.0.get(at..at.checked_add(8)?)?.try_into().ok()?))
    }

    /// The capability chain that the u32 at `cap_offset` leads to, as (id, offset) pairs.
    ///
    /// Each offset is larger than the one before, so the chain ends.
    pub(super) fn capabilities(&self, cap_offset: usize) -> Vec<(u32, usize)> {
        use uapi::vfio_info_cap_header as Header;
        let mut found = Vec::new();
        let mut at = self.u32(cap_offset).unwrap_or(0);
        while at != 0 {
            let offset = at as usize;
            let Some(id) = self.u16(offset + offset_of!(Header, id)) else { break };
            found.push((u32::from(id), offset));
            match self.u32(offset + offset_of!(Header, next)) {
                Some(next) if next > at => at = next,
                _ => break,
            }
        }
        found
    }

    /// A list of pairs of u64: how many is the u32 at `count`, the first is at `first`.
    /// `None` when they are not all inside the reply.
    pub(super) fn pairs(&self, count: usize, first: usize) -> Option<Vec<(u64, u64)>> {
        let count = self.u32(count)? as usize;
        let range: Range<usize> = first..first.checked_add(count.checked_mul(16)?)?;
        self.0.get(range.clone())?;
        range.step_by(16).map(|at| Some((self.u64(at)?, self.u64(at + 8)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_gets_the_room_that_it_asks_for() {
        let mut rooms = Vec::new();
        let reply = ask::<uapi::vfio_region_info>(7, |info| {
            // SAFETY: `ask` hands out a whole structure.
            let info = unsafe { &mut *info };
            rooms.push((info.argsz, info.index));
            info.argsz = 9000;
            Ok(0)
        });
        assert_eq!(reply.unwrap().0.len(), 9000);
        assert_eq!(rooms, [(4096, 7), (9000, 7)]);
    }

    #[test]
    fn a_kernel_that_is_never_content_is_given_up() {
        let mut calls = 0;
        let reply = ask::<uapi::vfio_region_info>(0, |info| {
            calls += 1;
            // SAFETY: `ask` hands out a whole structure.
            unsafe { (*info).argsz += 1 };
            Ok(0)
        });
        assert_eq!((reply.unwrap_err(), calls), (Errno::EMSGSIZE, ATTEMPTS));
    }

    #[test]
    fn lists_that_leave_the_reply_are_refused() {
        let mut bytes = vec![0; 40];
        bytes[0..4].copy_from_slice(&2u32.to_ne_bytes());
        bytes[16] = 5;
        let reply = Reply::new(bytes);
        assert_eq!(reply.pairs(0, 8), Some(vec![(0, 5), (0, 0)]));
        assert_eq!(reply.pairs(0, 9), None);
        assert_eq!(reply.pairs(0, usize::MAX), None);
        assert_eq!(reply.pairs(38, 0), None);
    }
}
