//! Copies between a transfer's list and a bounce buffer, by the processor.

use crate::dma::{Buffer, DmaError, SgTable};

/// Which way bytes are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Copy {
    /// From the list to the bounce buffer.
    In,
    /// From the bounce buffer to the list.
    Out,
}

/// Copies all bytes of a list, in its order.
///
/// A list knows device addresses only: each is looked for in the buffers behind it.
pub(super) fn copy(table: &SgTable, bounce: &Buffer, way: Copy) -> Result<(), DmaError> {
    let mut done = 0;
    for segment in table.list().segments() {
        let (mut at, mut left) = (segment.iova.0, segment.len);
        // Neighbours are merged in a list, also those of different buffers.
        while left > 0 {
            let found = table.buffers().iter().find_map(|buffer| Some((buffer, find(buffer, at)?)));
            let Some((buffer, (offset, len))) = found else {
                let (offset, size) = (done, bounce.len());
                return Err(DmaError::OutOfBounds { offset, len: left, size });
            };
            let len = len.min(left);
            let (own, theirs) = (bounce.slice(done, len)?, buffer.slice(offset, len)?);
            match way {
                Copy::In => theirs.copy_to_volatile_slice(own),
                Copy::Out => own.copy_to_volatile_slice(theirs),
            }
            bounce.check_there(done, len)?;
            buffer.check_there(offset, len)?;
            (done, at, left) = (done + len, at.wrapping_add(len as u64), left - len);
        }
    }
    Ok(())
}

/// Where in a buffer a device address lies, and how many bytes lie behind it in one piece.
fn find(buffer: &Buffer, at: u64) -> Option<(usize, usize)> {
    let mut start = 0;
    for segment in buffer.segments() {
        let inside = at.wrapping_sub(segment.iova.0);
        if inside < segment.len as u64 {
            return Some((start + inside as usize, segment.len - inside as usize));
        }
        start += segment.len;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::dma::{Direction, Pattern, Placement, Request};
    use crate::testing::allocator;

    #[test]
    fn a_list_of_odd_pieces_comes_and_goes_whole() {
        let (allocator, _host) = allocator();
        let allocate = |len, placement| {
            let request = Request::new(len, Direction::Bidirectional).placement(placement);
            allocator.allocate(&request).unwrap()
        };
        let mut first = allocate(20_000, Placement::ScatterGather);
        let mut second = allocate(9_000, Placement::Contiguous);
        Pattern::new(1).fill(&mut first, 0, 20_000, 0).unwrap();
        Pattern::new(2).fill(&mut second, 0, 9_000, 0).unwrap();
        let (first, second) = (Arc::new(first), Arc::new(second));
        let pieces = [(&first, 13, 9_001), (&second, 1, 5_000), (&first, 12_000, 7_999)];
        let pieces = || pieces.iter().map(|(buffer, at, len)| (Arc::clone(buffer), *at, *len));
        let table = SgTable::gather(pieces()).unwrap();
        let mut bounce = allocate(22_000, Placement::Contiguous);
        copy(&table, &bounce, Copy::In).unwrap();
        let check = |seed, at, len, position| {
            Pattern::new(seed).check(&bounce, at, len, position).unwrap().unwrap();
        };
        check(1, 0, 9_001, 13);
        check(2, 9_001, 5_000, 1);
        check(1, 14_001, 7_999, 12_000);
        Pattern::new(3).fill(&mut bounce, 0, 22_000, 0).unwrap();
        copy(&table, &bounce, Copy::Out).unwrap();
        drop(table);
        Pattern::new(3).check(&first, 13, 9_001, 0).unwrap().unwrap();
        Pattern::new(3).check(&second, 1, 5_000, 9_001).unwrap().unwrap();
        Pattern::new(1).check(&first, 0, 13, 0).unwrap().unwrap();
        Pattern::new(1).check(&first, 9_014, 2_986, 9_014).unwrap().unwrap();
    }
}
