//! Parts of a BAR as they are named on the command line.

use std::str::FromStr;

use vfio_dma::registers::{Target, parse_number};

/// A part of a BAR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    Range { start: u64, end: u64 },
    Place(Target),
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Part, String> {
        let range = |start: &str, end: Option<u64>| {
            let start = parse_number(start)?;
            let end = end.filter(|end| start < *end)?;
            Some(Part::Range { start, end })
        };
        let found = if let Some((start, end)) = text.split_once("..") {
            range(start, parse_number(end))
        } else if let Some((start, len)) = text.split_once('+') {
            let end = parse_number(start).zip(parse_number(len));
            range(start, end.and_then(|(start, len)| start.checked_add(len)))
        } else {
            return text.parse().map(Part::Place).map_err(|error| error.to_string());
        };
        found.ok_or_else(|| {
            format!("{text:?} is no range: it is START..END or START+LENGTH, and not empty")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_an_end_or_a_length() {
        assert_eq!("0x10..0x20".parse(), Ok(Part::Range { start: 16, end: 32 }));
        assert_eq!("16+4".parse(), Ok(Part::Range { start: 16, end: 20 }));
        assert!(matches!("STATUS".parse(), Ok(Part::Place(_))));
        for text in ["4..4", "4..2", "4+0", "..", "+", "0x10..", "1+0xffffffffffffffff", "a..b"] {
            assert!(text.parse::<Part>().is_err(), "{text}");
        }
    }
}
