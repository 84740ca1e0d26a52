//! NUMA nodes: where memory is, and which node this thread prefers for what it populates.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_ulong, c_void};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::OnceLock;

use nix::errno::Errno;

/// Bits of a mask of nodes: more than any kernel is built for (`CONFIG_NODES_SHIFT` is at most
/// 10).
const NODES: usize = 1024;
const WORD: usize = c_ulong::BITS as usize;
const WORDS: usize = NODES / WORD;

/// How many pages are asked about at a time.
const BATCH: usize = 4096;

/// Whether this machine has memory on more than one node: on others nothing is to be chosen.
pub(in crate::dma) fn there_are_several() -> bool {
    static SEVERAL: OnceLock<bool> = OnceLock::new();
    *SEVERAL.get_or_init(|| {
        let text = std::fs::read_to_string("/sys/devices/system/node/has_memory");
        // A list such as 0-1,3.
        text.is_ok_and(|text| text.trim().contains(['-', ',']))
    })
}

/// Has the pages that this thread populates come from one node, if that has any, until the value
/// is dropped. The thread's own policy is put back then.
///
/// A strict policy would end the process where the node is exhausted, not just fail.
#[derive(Debug)]
pub(in crate::dma) struct Preferred {
    mode: c_int,
    nodes: [c_ulong; WORDS],
    /// The policy is this thread's.
    _thread: PhantomData<*const ()>,
}

impl Preferred {
    /// Prefers a node.
    pub(in crate::dma) fn node(node: u32) -> nix::Result<Preferred> {
        let (mut mode, mut nodes): (c_int, _) = (0, [0; WORDS]);
        // SAFETY: the mask has as many bits as are said, one more than the kernel counts.
        let status = unsafe {
            libc::syscall(
                libc::SYS_get_mempolicy,
                &raw mut mode,
                nodes.as_mut_ptr(),
                NODES + 1,
                std::ptr::null::<c_void>(),
                0,
            )
        };
        Errno::result(status)?;
        let former = Preferred { mode, nodes, _thread: PhantomData };
        let mut wanted = [0; WORDS];
        let word = wanted.get_mut(node as usize / WORD).ok_or(Errno::EINVAL)?;
        *word = 1 << (node as usize % WORD);
        if let Err(errno) = set(libc::MPOL_PREFERRED, &wanted) {
            // Nothing has changed.
            std::mem::forget(former);
            return Err(errno);
        }
        Ok(former)
    }
}

impl Drop for Preferred {
    fn drop(&mut self) {
        if let Err(errno) = set(self.mode, &self.nodes) {
            log::error!("putting this thread's memory policy back: {errno}");
        }
    }
}

fn set(mode: c_int, nodes: &[c_ulong; WORDS]) -> nix::Result<()> {
    // SAFETY: the mask has as many bits as are said, one more than the kernel counts.
    let status = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, nodes.as_ptr(), NODES + 1) };
    Errno::result(status).map(drop)
}

/// The nodes that pages of a range are on, with the bytes on each; pages that are not present
/// are not counted. One page in `step` bytes is asked about.
pub(super) fn nodes_of(base: NonNull<u8>, len: usize, step: usize) -> nix::Result<Vec<(u32, u64)>> {
    let mut found: BTreeMap<u32, u64> = BTreeMap::new();
    let offsets: Vec<usize> = (0..len).step_by(step).collect();
    for batch in offsets.chunks(BATCH) {
        let pages: Vec<usize> = batch.iter().map(|offset| base.addr().get() + offset).collect();
        let mut status: Vec<c_int> = vec![-libc::ENOENT; pages.len()];
        // SAFETY: as many addresses and states as are said; without nodes nothing is moved.
        let asked = unsafe {
            libc::syscall(
                libc::SYS_move_pages,
                0,
                pages.len(),
                pages.as_ptr(),
                std::ptr::null::<c_int>(),
                status.as_mut_ptr(),
                0,
            )
        };
        Errno::result(asked)?;
        for (offset, node) in batch.iter().zip(status) {
            if let Ok(node) = u32::try_from(node) {
                *found.entry(node).or_default() += step.min(len - offset) as u64;
            }
        }
    }
    Ok(found.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::super::{Memory, PageSize};
    use super::*;

    #[test]
    fn memory_is_on_nodes_and_the_policy_of_the_thread_comes_back() {
        let policy = || std::fs::read_to_string("/proc/thread-self/numa_maps").unwrap_or_default();
        let before = policy().lines().next().map(str::to_owned);
        // The machine may have no NUMA in its kernel, or a sandbox no such calls.
        let preferred = match Preferred::node(0) {
            Ok(preferred) => preferred,
            Err(errno) => {
                assert!(matches!(errno, Errno::ENOSYS | Errno::EPERM), "{errno}");
                return;
            }
        };
        let memory = Memory::allocate(100_000, PageSize::Base, false).unwrap();
        let nodes = nodes_of(memory.base(), memory.len(), 4096).unwrap();
        assert_eq!(nodes.iter().map(|(_, bytes)| bytes).sum::<u64>(), memory.len() as u64);
        if !there_are_several() {
            assert_eq!(nodes, [(0, memory.len() as u64)]);
        }
        drop(preferred);
        assert_eq!(policy().lines().next().map(str::to_owned), before);
        assert_eq!(Preferred::node(NODES as u32).unwrap_err(), Errno::EINVAL);
    }
}
