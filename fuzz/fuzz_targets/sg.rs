//! Scatter/gather lists under any limits: the pieces are the bytes, each once, each legal.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vfio_dma::dma::{DmaLimits, Iova, Pieces, Segment, SgList};
use vfio_dma_fuzz::Bytes;

fn list(bytes: &mut Bytes<'_>) -> Option<SgList> {
    let count = bytes.u8() % 12;
    let segments = (0..count).map(|_| Segment {
        iova: Iova(bytes.edge()),
        len: usize::from(bytes.u16()) + usize::from(bytes.u8() & 7) * 0x1_0000,
    });
    let segments: Vec<Segment> = segments.collect();
    SgList::new(segments).ok()
}

fn limits(bytes: &mut Bytes<'_>) -> DmaLimits {
    let power = |byte: u8| 1u64 << (byte % 24);
    DmaLimits {
        address_mask: bytes.edge() | 0xffff,
        alignment: power(bytes.u8() % 8),
        max_segment: bytes.edge(),
        max_segments: bytes.edge(),
        boundary: (bytes.u8() & 1 == 0).then(|| power(bytes.u8())),
        virt_boundary: (bytes.u8() & 3 == 0).then(|| power(bytes.u8() % 14)),
        granularity: power(bytes.u8() % 5),
    }
}

/// One segment of a list is within the limits.
fn check(limits: &DmaLimits, at: u64, len: u64) {
    let last = at.checked_add(len - 1).expect("inside of the address space");
    assert!(last <= limits.address_mask, "{at:#x} + {len:#x}");
    assert!(len <= limits.max_segment && at.is_multiple_of(limits.alignment), "{at:#x} + {len:#x}");
    assert!(len.is_multiple_of(limits.granularity), "{at:#x} + {len:#x}");
    if let Some(boundary) = limits.boundary {
        assert_eq!(at / boundary, last / boundary, "{at:#x} + {len:#x}");
    }
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes::new(data);
    let limits = limits(&mut bytes);
    let Some(source) = list(&mut bytes) else { return };
    // Millions of one-byte pieces prove no more than thousands.
    if limits.max_segment < 64 || limits.boundary.is_some_and(|boundary| boundary < 64) {
        return;
    }
    if let Ok(cut) = source.cut(&limits) {
        assert_eq!(cut.iter().map(|segment| segment.len as u64).sum::<u64>(), source.len());
        assert!(cut.len() as u64 <= limits.max_segments);
        let mut cursor = source.segments().iter().copied();
        let mut left: Option<Segment> = None;
        for (number, segment) in cut.iter().enumerate() {
            check(&limits, segment.iova.0, segment.len as u64);
            if let (Some(boundary), Some(before)) =
                (limits.virt_boundary, number.checked_sub(1).map(|n| cut[n]))
            {
                let end = before.iova.0.wrapping_add(before.len as u64);
                assert!(end.is_multiple_of(boundary) && segment.iova.0.is_multiple_of(boundary));
            }
            let rest = left.take().or_else(|| cursor.next()).expect("no byte comes twice");
            assert_eq!(rest.iova, segment.iova);
            if rest.len > segment.len {
                let iova = Iova(rest.iova.0.wrapping_add(segment.len as u64));
                left = Some(Segment { iova, len: rest.len - segment.len });
            }
        }
        assert!(left.is_none() && cursor.next().is_none(), "no byte is left out");
    }
    let Some(target) = list(&mut bytes) else { return };
    let Ok(pieces) = Pieces::new(&source, &target, &limits) else { return };
    let (most, mut count, mut sum) = (pieces.at_most(), 0u64, 0u64);
    for piece in pieces {
        check(&limits, piece.source.0, piece.len);
        check(&limits, piece.target.0, piece.len);
        (count, sum) = (count + 1, sum + piece.len);
    }
    assert_eq!(sum, source.len());
    assert!(count <= most && count <= limits.max_segments);
});
