//! Data pointers of every short list, with pages of 64 bytes: 8 PRP entries or 4 SGL descriptors.

use super::tests::walk;
use super::*;
use crate::dma::Iova;

const SMALL: Shape = Shape {
    page: 64,
    block: 16,
    max_bytes: 16 << 10,
    list_pages: 2,
    max_pieces: 64,
    sgl_alignment: Some(1),
};

/// Runs of pages: bit `n` of `gaps` says that page `n + 1` does not follow page `n`.
fn pages(shape: &Shape, offset: u64, bytes: u64, gaps: u32) -> Vec<Segment> {
    let (mut list, mut left, mut at) = (Vec::<Segment>::new(), bytes, 1 << 16 | offset);
    for n in 0.. {
        let len = shape.in_page(at, left);
        match list.last_mut() {
            Some(last) if gaps >> (n - 1) & 1 == 0 => last.len += len as usize,
            _ => list.push(Segment { iova: Iova(at), len: len as usize }),
        }
        left -= len;
        if left == 0 {
            return list;
        }
        let gap = if gaps >> n & 1 == 0 { 0 } else { shape.page };
        at = (at & !(shape.page - 1)) + shape.page + gap;
    }
    list
}

#[test]
fn prps_of_every_short_list_are_exactly_its_bytes() {
    let mut lists = 0u32;
    for (list_pages, max_bytes) in [(1, 16 << 10), (2, 16 << 10), (3, 16 << 10), (1, 160)] {
        let shape = Shape { list_pages, max_bytes, ..SMALL };
        for offset in (0..shape.page).step_by(4) {
            for blocks in 1..=36 {
                let bytes = blocks * shape.block;
                let count = (offset + bytes).div_ceil(shape.page);
                // Every way to cut up to 8 pages; longer lists whole, and all apart.
                let all = (1u32 << (count - 1)) - 1;
                for gaps in 0..=all {
                    if count > 8 && gaps != 0 && gaps != all && !gaps.is_power_of_two() {
                        continue;
                    }
                    let segments = pages(&shape, offset, bytes, gaps);
                    assert_eq!(shape.describe(&segments, DataMethod::Prp), Ok(Described::Prp));
                    walk(&shape, Described::Prp, &segments);
                    lists += 1;
                }
            }
        }
    }
    assert!(lists > 60_000, "{lists} lists");
}

#[test]
fn sgls_of_every_short_list_are_exactly_its_bytes() {
    let mut lists = 0u32;
    for (list_pages, max_bytes) in [(1, 16 << 10), (2, 16 << 10), (3, 16 << 10), (2, 32)] {
        let shape = Shape { list_pages, max_bytes, ..SMALL };
        for count in 1..=8u32 {
            // Lengths of 1, 15, 16 and 17 bytes in every order, with the last one filled up.
            for code in 0..4u32.pow(count) {
                let (mut at, mut total) = (1 << 16, 0);
                let mut segments: Vec<Segment> = (0..count)
                    .map(|n| {
                        let len = [1, 15, 16, 17][(code >> (2 * n) & 3) as usize];
                        let segment = Segment { iova: Iova(at), len };
                        at += 2 * len as u64 + 1;
                        total += len;
                        segment
                    })
                    .collect();
                let block = shape.block as usize;
                segments[count as usize - 1].len += total.next_multiple_of(block) - total;
                match shape.describe(&segments, DataMethod::Sgl) {
                    Ok(described) => {
                        walk(&shape, described, &segments);
                    }
                    // A block has more pieces than the lists have descriptors.
                    Err(LimitExceeded::TooManySegments { needed, limit, .. }) => {
                        assert_eq!(limit, shape.sgl_capacity());
                        assert!(needed > limit && limit < 8, "{segments:?}");
                    }
                    Err(other) => panic!("{other}: {segments:?}"),
                }
                lists += 1;
            }
        }
    }
    assert!(lists > 300_000, "{lists} lists");
}
