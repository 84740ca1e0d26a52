//! What a PCI Express link would make of the transfers: calculation, never measurement.
//!
//! The arithmetic is [`vfio_dma_model::link`]'s; `docs/link-cost.md` has it step by step.

use vfio_dma_model::link::predict::{Operation, ScatterGather};
use vfio_dma_model::link::{LinkConfig, TlpCounts, TlpKind};

use super::results::{LinkRow, LinkShare, LinkView};

/// The columns of a view, in their order: device reads, device writes, memory to memory.
pub const OPERATIONS: [(Operation, &str); 3] = [
    (Operation::Read, "device reads"),
    (Operation::Write, "device writes"),
    (Operation::Both, "memory to memory"),
];

/// The share of a contiguous transfer's rate that scatter/gather has to reach to cost less
/// than 5%.
pub const CHEAP: f64 = 0.95;

/// The smallest segment that [`LinkView::less_than_5_percent`] looks at.
const SMALLEST: u64 = 64;

/// Calculates what a link makes of a transfer of `transfer` bytes, contiguous and in each of
/// the segment sizes.
///
/// A contiguous transfer is one segment: it pays for one descriptor, and, as every transfer,
/// for a doorbell, a completion and an interrupt. Segments of zero bytes are left out.
///
/// The segment from which scatter/gather costs less than 5% is searched over the powers of
/// two from 64 bytes up to, but without, the whole transfer: it is the smallest of which it
/// and all larger ones reach [`CHEAP`].
#[must_use]
pub fn view(link: &LinkConfig, transfer: u64, segments: &[u64]) -> LinkView {
    let rows = segments.iter().filter(|&&segment| segment > 0).map(|&segment| LinkRow {
        segment,
        contiguous_gbps: OPERATIONS.map(|(operation, _)| gbps(link, operation, transfer, transfer)),
        segmented_gbps: OPERATIONS.map(|(operation, _)| gbps(link, operation, transfer, segment)),
        ratio: OPERATIONS.map(|(operation, _)| ratio(link, operation, transfer, segment)),
    });
    LinkView {
        link: link.to_string(),
        tlp_gbps: link.tlp_gbps(),
        transfer,
        rows: rows.collect(),
        less_than_5_percent: OPERATIONS.map(|(operation, _)| cheap_from(link, operation, transfer)),
    }
}

/// Payload in Gb/s of a transfer in segments.
fn gbps(link: &LinkConfig, operation: Operation, transfer: u64, segment: u64) -> f64 {
    ScatterGather::ioat(segment).gbps(link, operation, transfer)
}

/// The rate in segments as a share of the contiguous one; 1 for a transfer of no bytes.
fn ratio(link: &LinkConfig, operation: Operation, transfer: u64, segment: u64) -> f64 {
    match gbps(link, operation, transfer, transfer) {
        0.0 => 1.0,
        contiguous => gbps(link, operation, transfer, segment) / contiguous,
    }
}

fn cheap_from(link: &LinkConfig, operation: Operation, transfer: u64) -> Option<u64> {
    let sizes = (0..u64::BITS).map(|n| 1_u64 << n);
    let smaller: Vec<u64> = sizes.filter(|size| (SMALLEST..transfer).contains(size)).collect();
    let cheap = |&&segment: &&u64| ratio(link, operation, transfer, segment) >= CHEAP;
    smaller.iter().rev().take_while(cheap).last().copied()
}

/// What one transfer puts on the link, and the share of it that the measured rate would take.
///
/// `counts` are the model's for `transfers` transfers of `transfer` bytes each, counted for
/// this link; `bytes_per_second` is the measured rate. The share is that of the busier
/// direction; it exceeds 1 where a model is faster than the link. Without transfers all
/// figures are 0. The ratio to a contiguous transfer is left open.
#[must_use]
pub fn share(
    link: &LinkConfig,
    counts: &TlpCounts,
    transfers: u64,
    bytes_per_second: f64,
    transfer: u64,
) -> LinkShare {
    if transfers == 0 || transfer == 0 {
        return LinkShare {
            tlps: 0.0,
            upstream: 0.0,
            downstream: 0.0,
            share: 0.0,
            gbps: 0.0,
            ratio: None,
        };
    }
    let tlps: u64 = TlpKind::ALL.into_iter().map(|kind| counts.get(kind).packets).sum();
    let traffic = counts.traffic(link);
    let each = |total: u64| total as f64 / transfers as f64;
    // At the measured rate so many seconds go by for the transfers that were counted.
    let seconds = transfers as f64 * transfer as f64 / bytes_per_second;
    let [upstream, downstream] = traffic.share(link, seconds);
    let busier = each(traffic.upstream.max(traffic.downstream));
    LinkShare {
        tlps: each(tlps),
        upstream: each(traffic.upstream),
        downstream: each(traffic.downstream),
        share: upstream.max(downstream),
        gbps: if busier > 0.0 { transfer as f64 / busier * link.tlp_gbps() } else { 0.0 },
        ratio: None,
    }
}

#[cfg(test)]
mod tests {
    use vfio_dma_model::link::{LinkMeter, Work};

    use super::*;

    const TRANSFER: u64 = 1 << 20;
    const SEGMENTS: [u64; 5] = [64, 256, 1 << 10, 4 << 10, 64 << 10];

    /// Wire bytes of one segment by hand: [upstream, downstream], Gen3 x8, MPS 256, MRRS 512,
    /// the segment a multiple of 64 bytes.
    fn wire(segment: u64) -> [[u64; 2]; 3] {
        let requests = segment.div_ceil(512) * 24;
        let completions = segment + segment.div_ceil(256) * 20;
        let writes = segment + segment.div_ceil(256) * 24;
        let [fetch_up, fetch_down] = [24, 64 + 20];
        [
            [requests + fetch_up, completions + fetch_down],
            [writes + fetch_up, fetch_down],
            [requests + writes + fetch_up, completions + fetch_down],
        ]
    }

    #[test]
    fn ratios_are_those_of_the_closed_form() {
        let view = view(&LinkConfig::default(), TRANSFER, &SEGMENTS);
        // Doorbell down, completion and interrupt up: once for a transfer.
        let total = |segment: u64, operation: usize| {
            let [up, down] = wire(segment)[operation];
            let n = TRANSFER / segment;
            (n * up + 32 + 28).max(n * down + 28)
        };
        for row in &view.rows {
            for operation in 0..3 {
                let expected =
                    total(TRANSFER, operation) as f64 / total(row.segment, operation) as f64;
                let found = row.ratio[operation];
                assert!((found - expected).abs() < 1e-12, "{row:?}: {expected}");
                let quotient = row.segmented_gbps[operation] / row.contiguous_gbps[operation];
                assert!((found - quotient).abs() < 1e-12, "{row:?}");
            }
        }
        // Reads of 64 bytes: 84 of data and 84 of descriptor, against 552 for each 512.
        let coarse = (552.0 / 512.0 * 64.0) / 168.0;
        assert!((view.rows[0].ratio[0] - coarse).abs() < 1e-3, "{:?}", view.rows[0]);
    }

    #[test]
    fn data_alone_gives_the_published_figures() {
        // Without descriptors a piece is what the published model calculates: taken out of
        // the view's rates, the descriptor's bytes leave 42.10, 44.10, 33.08 and 52.92, 53.69,
        // 50.75 Gb/s.
        let link = LinkConfig::default();
        let published = [(64, [44.10, 42.10, 33.08]), (512, [53.69, 52.92, 50.75])];
        for (segment, expected) in published {
            let data_only = |operation: usize| {
                let [up, down] = wire(segment)[operation];
                segment as f64 / (up - 24).max(down - 84) as f64 * link.tlp_gbps()
            };
            let with_descriptor = |operation: usize| {
                let [up, down] = wire(segment)[operation];
                segment as f64 / up.max(down) as f64 * link.tlp_gbps()
            };
            let view = view(&link, 1 << 30, &[segment]);
            for (operation, gbps) in expected.into_iter().enumerate() {
                assert!((data_only(operation) - gbps).abs() < 0.01, "{segment} {operation}");
                let found = view.rows[0].segmented_gbps[operation];
                assert!((found - with_descriptor(operation)).abs() < 0.01, "{segment} {found}");
            }
        }
    }

    #[test]
    fn cheap_segments_are_found_where_the_ratio_says() {
        let link = LinkConfig::default();
        let all: Vec<u64> = (6..20).map(|n| 1 << n).collect();
        let found = view(&link, TRANSFER, &all);
        for (operation, cheap) in found.less_than_5_percent.into_iter().enumerate() {
            let cheap = cheap.unwrap();
            for row in &found.rows {
                let is_cheap = row.ratio[operation] >= CHEAP;
                assert_eq!(is_cheap, row.segment >= cheap, "{operation} {row:?}");
            }
        }
        // Nothing is smaller than 64 bytes, and no half is cheap in a short transfer.
        assert_eq!(view(&link, 64, &[64]).less_than_5_percent, [None; 3]);
        assert_eq!(view(&link, 128, &[64]).less_than_5_percent, [None; 3]);
    }

    #[test]
    fn the_documentation_has_these_figures() {
        let text = include_str!("../../../docs/link-cost.md");
        let link = LinkConfig::default();
        let found = view(&link, TRANSFER, &SEGMENTS);
        assert!(text.contains(&format!("{:.2} Gb/s", found.tlp_gbps)));
        let fetch = Work::DescriptorFetch(64).traffic(&link);
        let mut expected = Vec::new();
        for (n, (operation, name)) in OPERATIONS.into_iter().enumerate() {
            expected.push(format!("### {name}"));
            let row = |segment: u64, gbps: f64, ratio: f64| {
                let each = operation.traffic(&link, segment) + fetch;
                let all = ScatterGather::ioat(segment).traffic(&link, operation, TRANSFER);
                format!(
                    "| {segment} | {} | {} | {} | {} | {} | {gbps:.2} | {:.1}% |",
                    TRANSFER / segment,
                    each.upstream,
                    each.downstream,
                    all.upstream,
                    all.downstream,
                    ratio * 100.0
                )
            };
            for line in &found.rows {
                expected.push(row(line.segment, line.segmented_gbps[n], line.ratio[n]));
            }
            expected.push(row(TRANSFER, found.rows[0].contiguous_gbps[n], 1.0));
            let cheap = found.less_than_5_percent[n].unwrap();
            expected.push(format!("less than 5% from segments of {cheap} bytes on"));
        }
        // Each in its place: behind the one before it.
        let mut rest = text;
        for part in expected {
            let Some((_, behind)) = rest.split_once(&part) else {
                panic!("the documentation lacks {part:?}");
            };
            rest = behind;
        }
    }

    #[test]
    fn a_share_is_that_of_the_busier_direction() {
        let meter = LinkMeter::default();
        for _ in 0..10 {
            meter.descriptor_fetch(1, 64);
            meter.data_read(4096);
            meter.data_write(4096);
        }
        let link = *meter.link();
        let up = 24 + 8 * 24 + 4096 + 16 * 24;
        let down = 84 + 4096 + 16 * 20;
        // As many transfers a second as fill half of the upstream direction.
        let rate = link.tlp_gbps() * 1e9 / 8.0 / 2.0 / f64::from(up) * 4096.0;
        let found = share(&link, &meter.snapshot(), 10, rate, 4096);
        assert_eq!(found.tlps, f64::from(1 + 1 + 8 + 16 + 16));
        assert_eq!((found.upstream, found.downstream), (f64::from(up), f64::from(down)));
        assert!((found.share - 0.5).abs() < 1e-9, "{found:?}");
        // Twice as many fill all of it.
        assert!((found.gbps - 2.0 * rate * 8.0 / 1e9).abs() < 1e-9, "{found:?}");
    }

    #[test]
    fn nothing_gives_no_nonsense() {
        let link = LinkConfig::default();
        let none = share(&link, &TlpCounts::default(), 0, 1e9, 4096);
        assert_eq!(none.share, 0.0);
        assert_eq!(share(&link, &TlpCounts::default(), 1, 0.0, 4096).share, 0.0);
        let view = view(&link, 0, &[0, 64]);
        assert_eq!(view.rows.len(), 1);
        assert_eq!(view.rows[0].ratio, [1.0; 3]);
    }
}
