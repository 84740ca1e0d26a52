//! How often acknowledgements and flow-control updates are sent at the latest.

use std::sync::LazyLock;

use super::config::Generation;

/// The table of the PCI Express Base Specification, as it is in the file.
const TABLE: &str = include_str!("pcie_limits.csv");

/// The limits for one kind of link, in symbol times: about one each so many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) update_fc: u32,
    pub(super) ack: u32,
}

/// One line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    generation: u32,
    lanes: u32,
    mps: u32,
    limits: Limits,
}

static ROWS: LazyLock<Vec<Row>> = LazyLock::new(|| {
    let lines = TABLE.lines().filter(|line| !line.starts_with('#')).skip(1);
    lines.map(|line| parse(line).expect("the table in the crate is whole")).collect()
});

fn parse(line: &str) -> Option<Row> {
    let mut fields = line.split(',');
    let mut number = |prefix: &str| fields.next()?.strip_prefix(prefix)?.parse::<u32>().ok();
    let row = Row {
        generation: number("gen")?,
        lanes: number("x")?,
        mps: number("")?,
        limits: Limits { update_fc: number("")?, ack: number("")? },
    };
    fields.next().is_none().then_some(row)
}

/// The limits of a link; `None` for a combination that the table lacks.
pub(super) fn limits(generation: Generation, lanes: u32, mps: u32) -> Option<Limits> {
    let generation = generation as u32;
    let wanted = |row: &&Row| (row.generation, row.lanes, row.mps) == (generation, lanes, mps);
    ROWS.iter().find(wanted).map(|row| row.limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_whole() {
        assert_eq!(
            TABLE.lines().nth(1),
            Some("generation,lanes,mps_bytes,update_fc_limit,ack_limit")
        );
        assert_eq!(TABLE.lines().count(), 2 + 210);
        let mut expected = Vec::new();
        for generation in 1..=7 {
            for lanes in [1, 2, 4, 8, 16] {
                for mps in [128, 256, 512, 1024, 2048, 4096] {
                    expected.push((generation, lanes, mps));
                }
            }
        }
        let found: Vec<_> = ROWS.iter().map(|r| (r.generation, r.lanes, r.mps)).collect();
        assert_eq!(found, expected);
        assert!(ROWS.iter().all(|row| (48..=4239).contains(&row.limits.ack)));
        assert!(ROWS.iter().all(|row| row.limits.ack == row.limits.update_fc));
    }

    #[test]
    fn lines_are_found_and_bad_ones_are_not_taken() {
        let both = |limit| Some(Limits { update_fc: limit, ack: limit });
        assert_eq!(limits(Generation::Gen3, 8, 256), both(203));
        assert_eq!(limits(Generation::Gen1, 16, 128), both(48));
        assert_eq!(limits(Generation::Gen5, 1, 4096), both(4239));
        assert_eq!(limits(Generation::Gen3, 3, 256), None);
        for line in ["", "gen3,x8,256,203", "gen3,x8,256,203,203,1", "3,x8,256,203,203"] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
