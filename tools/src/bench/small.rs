//! From which size on an engine is quicker at small copies than the processor.

use vfio_dma_model::link::LinkConfig;
use vfio_dma_model::link::predict::{Operation, ScatterGather};

use super::plan::SLOT_BATCH;
use super::results::{Cell, Memcpy, Series, SmallCopies, SmallCopy};

/// What a doorbell is taken to cost on a card, in ns: a store to a register that is not cached
/// holds the next one up for 50 to 300 ns, by the processor.
const DOORBELL: f64 = 300.0;

/// Compares the copies between slots on one channel with the processor's of the same size, and
/// with what a card could do on this link; `None` without any.
pub(super) fn small_copies(
    cells: &[Cell],
    memcpy: &[Memcpy],
    link: &LinkConfig,
) -> Option<SmallCopies> {
    let alone = cells.iter().filter(|cell| cell.series == Series::Slots && cell.channels == 1);
    let mut rows: Vec<SmallCopy> = alone
        .filter_map(|cell| {
            let own = memcpy.iter().find(|memcpy| memcpy.transfer == cell.transfer)?;
            let time = |rate: f64| cell.transfer as f64 / rate * 1e9;
            Some(SmallCopy {
                transfer: cell.transfer,
                memcpy: time(own.bytes_per_second.median),
                device: time(cell.bytes_per_second.median),
                card: card(link, cell.transfer),
            })
        })
        .collect();
    rows.sort_by_key(|row| row.transfer);
    (!rows.is_empty()).then(|| SmallCopies {
        batch: SLOT_BATCH,
        doorbell: DOORBELL,
        device_from: quicker_from(&rows, |row| row.device),
        card_from: quicker_from(&rows, |row| row.card),
        rows,
    })
}

/// The time of a copy in a batch: what the busier direction of the link takes for its packets,
/// its part of the completion and of the doorbell. Completion is polled.
fn card(link: &LinkConfig, len: u64) -> f64 {
    let batch = u64::from(SLOT_BATCH);
    let driven = ScatterGather { interrupt: false, ..ScatterGather::ioat(len) };
    let gbps = driven.gbps(link, Operation::Both, batch * len);
    len as f64 * 8.0 / gbps + DOORBELL / batch as f64
}

/// The smallest size that is quicker together with all larger ones.
fn quicker_from(rows: &[SmallCopy], time: impl Fn(&SmallCopy) -> f64) -> Option<u64> {
    let quicker = rows.iter().rev().take_while(|row| time(row) <= row.memcpy);
    quicker.last().map(|row| row.transfer)
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    #[test]
    fn a_card_pays_for_packets_and_its_part_of_a_doorbell() {
        let link = LinkConfig::default();
        // Gen3 x8, both ways: down the descriptor's 64 + 20, the data's 64 + 20, and of 32
        // the doorbell's 28; up two requests of 24, the data's 64 + 24, and the word's 32.
        let (down, up) = (32 * (84 + 84) + 28, 32 * (24 + 24 + 88) + 32);
        let bits = f64::from(down.max(up) * 8);
        let expected = bits / link.tlp_gbps() / 32.0 + DOORBELL / 32.0;
        assert!((card(&link, 64) - expected).abs() < 1e-9, "{} {expected}", card(&link, 64));
        assert!(card(&link, 16 << 10) > card(&link, 64));
    }

    #[test]
    fn the_size_is_that_from_which_all_are_quicker() {
        let row = |transfer, device| SmallCopy { transfer, memcpy: 10.0, device, card: 0.0 };
        let from = |times: &[f64]| {
            let rows: Vec<_> = (1..).zip(times).map(|(n, &time)| row(n, time)).collect();
            quicker_from(&rows, |row| row.device)
        };
        assert_eq!(from(&[20.0, 9.0, 10.0]), Some(2));
        // Quick by chance below a slow one is not the point.
        assert_eq!((from(&[5.0, 11.0, 9.0]), from(&[5.0, 11.0]), from(&[])), (Some(3), None, None));
    }

    #[test]
    fn sizes_that_only_one_of_both_has_are_left_out() {
        let results = fixture::results();
        let link = LinkConfig::default();
        let found = small_copies(&results.cells, &results.memcpy, &link).unwrap();
        let sizes: Vec<u64> = found.rows.iter().map(|row| row.transfer).collect();
        assert!(sizes.is_sorted() && sizes.contains(&64) && sizes.contains(&(16 << 10)));
        for row in &found.rows {
            assert!(row.memcpy > 0.0 && row.device > 0.0 && row.card > 0.0, "{row:?}");
        }
        assert_eq!(small_copies(&results.cells, &[], &link), None);
        assert_eq!(small_copies(&[], &results.memcpy, &link), None);
    }
}
