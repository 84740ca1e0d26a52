//! A scatter/gather list and the buffers behind it.

use std::sync::Arc;

use super::{SgError, SgList};
use crate::dma::{AddressSpace, Buffer, Direction};

/// One side of a transfer: a list, and the buffers that keep its addresses mapped.
///
/// It is made once and then moved into a driver and back without an allocation. A buffer
/// that several tables share cannot be written by the processor meanwhile, for that takes
/// it for itself ([`SgTable::into_buffer`]).
#[derive(Debug)]
pub struct SgTable(Box<Inner>);

#[derive(Debug)]
struct Inner {
    list: SgList,
    /// Where the buffers are mapped; `None` when not all in one place.
    space: Option<Arc<AddressSpace>>,
    /// The directions that every buffer allows, as [`bit`]s.
    directions: u8,
    buffers: Vec<Arc<Buffer>>,
}

/// A bit for each direction.
#[inline]
fn bit(direction: Direction) -> u8 {
    1 << direction as u8
}

/// The directions that a buffer of one allows.
fn allowed(have: Direction) -> u8 {
    let all = [Direction::ToDevice, Direction::FromDevice, Direction::Bidirectional];
    let fits = |need: &Direction| *need == have || have == Direction::Bidirectional;
    all.into_iter().filter(fits).map(bit).sum()
}

impl Inner {
    /// What is asked of a table with every transfer is found out once.
    fn new(list: SgList, buffers: Vec<Arc<Buffer>>) -> Inner {
        let first = buffers.first().map(|first| Arc::clone(first.space()));
        let space =
            first.filter(|space| buffers.iter().all(|buffer| Arc::ptr_eq(buffer.space(), space)));
        let directions = buffers.iter().fold(u8::MAX, |all, b| all & allowed(b.direction()));
        Inner { list, space, directions, buffers }
    }
}

impl SgTable {
    /// `len` bytes of a buffer from `offset` on.
    ///
    /// # Errors
    ///
    /// Fails when the range is empty or not inside the buffer.
    pub fn range(
        buffer: impl Into<Arc<Buffer>>,
        offset: usize,
        len: usize,
    ) -> Result<SgTable, SgError> {
        SgTable::gather([(buffer.into(), offset, len)])
    }

    /// Several pieces, one after another: (buffer, offset, length).
    ///
    /// # Errors
    ///
    /// Fails when there are no bytes, or a range is not inside its buffer.
    pub fn gather(
        ranges: impl IntoIterator<Item = (Arc<Buffer>, usize, usize)>,
    ) -> Result<SgTable, SgError> {
        let mut segments = Vec::new();
        let mut buffers: Vec<Arc<Buffer>> = Vec::new();
        for (buffer, offset, len) in ranges {
            segments.extend(buffer.segments_of(offset, len)?);
            if !buffers.iter().any(|known| Arc::ptr_eq(known, &buffer)) {
                buffers.push(buffer);
            }
        }
        Ok(SgTable(Box::new(Inner::new(SgList::new(segments)?, buffers))))
    }

    /// What the device sees.
    #[inline]
    #[must_use]
    pub fn list(&self) -> &SgList {
        &self.0.list
    }

    /// The buffers, each once.
    #[must_use]
    pub fn buffers(&self) -> &[Arc<Buffer>] {
        &self.0.buffers
    }

    /// The buffers, each once.
    #[must_use]
    pub fn into_buffers(self) -> Vec<Arc<Buffer>> {
        self.0.buffers
    }

    /// The buffer, when there is exactly one and nothing else shares it.
    #[must_use]
    pub fn into_buffer(self) -> Option<Buffer> {
        let mut buffers = self.into_buffers();
        if buffers.len() > 1 { None } else { Arc::into_inner(buffers.pop()?) }
    }

    /// Whether every buffer is mapped in this address space.
    #[inline]
    #[must_use]
    pub fn is_in(&self, space: &Arc<AddressSpace>) -> bool {
        self.0.space.as_ref().is_some_and(|ours| Arc::ptr_eq(ours, space))
    }

    /// The first direction among the buffers that does not allow `need`.
    #[inline]
    #[must_use]
    pub fn wrong_direction(&self, need: Direction) -> Option<Direction> {
        if self.0.directions & bit(need) != 0 { None } else { self.find_wrong(need) }
    }

    #[cold]
    fn find_wrong(&self, need: Direction) -> Option<Direction> {
        let mut have = self.0.buffers.iter().map(|buffer| buffer.direction());
        have.find(|&have| allowed(have) & bit(need) == 0)
    }
}

/// All of a buffer.
impl From<Buffer> for SgTable {
    fn from(buffer: Buffer) -> SgTable {
        SgTable::from(Arc::new(buffer))
    }
}

/// All of a buffer that other tables share.
impl From<Arc<Buffer>> for SgTable {
    fn from(buffer: Arc<Buffer>) -> SgTable {
        let list = SgList::of(&buffer);
        let list = list.expect("a buffer has bytes, at addresses that a device has");
        SgTable(Box::new(Inner::new(list, vec![buffer])))
    }
}
