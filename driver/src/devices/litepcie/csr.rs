//! Where a card's registers are: LitePCIe cards are generated, each with its own map.

use std::collections::BTreeMap;

/// A map of registers that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CsrError {
    /// A line of the file is not what it should be.
    #[error("line {line} of csr.csv, {text:?}: {why}")]
    Line {
        /// Which line, from 1 on.
        line: usize,
        /// What it says.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The file is JSON, and not what it should be.
    #[error("csr.json: {why}")]
    Json {
        /// What is wrong with it.
        why: String,
    },
    /// The card has no such register.
    #[error("the card's map of registers has no {name}")]
    Missing {
        /// Its name.
        name: String,
    },
}

/// Registers by name, as LiteX writes them to `csr.csv` and `csr.json`: byte offsets in BAR0.
///
/// ```
/// use vfio_dma::devices::litepcie::CsrMap;
///
/// let map: CsrMap = "csr_register,leds_out,0x00002000,1,rw".parse()?;
/// assert_eq!(map.offset("leds_out")?, 0x2000);
/// # Ok::<(), vfio_dma::devices::litepcie::CsrError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CsrMap {
    offsets: BTreeMap<String, u64>,
}

/// Registers of one direction of a channel, in the order in which LiteX places them
/// (litepcie/frontend/dma.py): name, and offset from the direction's first. A value of 64 bits
/// has its high half first (`csr_ordering` big).
const DIRECTION: [(&str, u64); 7] = [
    ("enable", 0x00),
    ("table_value", 0x04),
    ("table_we", 0x0c),
    ("table_loop_prog_n", 0x10),
    ("table_loop_status", 0x14),
    ("table_level", 0x18),
    ("table_reset", 0x1c),
];

/// Channels that a generated card has at most.
pub(super) const MOST_CHANNELS: u8 = 8;

impl Default for CsrMap {
    /// The map of the card that `vfio-dma model --device litepcie` serves, for up to 8
    /// channels.
    fn default() -> Self {
        let mut offsets: BTreeMap<String, u64> = [
            ("ctrl_reset", 0x00),
            ("ctrl_scratch", 0x04),
            ("ctrl_bus_errors", 0x08),
            ("pcie_msi_enable", 0x1000),
            ("card_data_width", 0x9800),
            ("card_pulse", 0x9804),
        ]
        .into_iter()
        .map(|(name, offset)| (name.to_owned(), offset))
        .collect();
        for channel in 0..MOST_CHANNELS {
            let base = 0x1800 + 0x800 * u64::from(channel);
            for (direction, at) in [("writer", 0x00), ("reader", 0x20)] {
                for (name, offset) in DIRECTION {
                    let name = format!("pcie_dma{channel}_{direction}_{name}");
                    offsets.insert(name, base + at + offset);
                }
            }
            offsets.insert(format!("pcie_dma{channel}_loopback_enable"), base + 0x40);
            let ends = 0x5800 + 0x800 * u64::from(channel);
            for (n, name) in (0..).zip(["generate", "consumed", "checksum", "clear"]) {
                offsets.insert(format!("ends{channel}_{name}"), ends + 4 * n);
            }
        }
        CsrMap { offsets }
    }
}

impl std::str::FromStr for CsrMap {
    type Err = CsrError;

    /// Reads a `csr.csv`, or a `csr.json` (with the feature `serde`).
    fn from_str(text: &str) -> Result<Self, CsrError> {
        if text.trim_start().starts_with('{') {
            return json(text);
        }
        let mut map = CsrMap { offsets: BTreeMap::new() };
        for (n, text) in text.lines().enumerate() {
            let bad = |why| CsrError::Line { line: n + 1, text: text.to_owned(), why };
            let mut fields = text.trim().split(',');
            if fields.next() != Some("csr_register") {
                continue;
            }
            let (Some(name), Some(offset)) = (fields.next(), fields.next()) else {
                return Err(bad("a register has a name and an offset"));
            };
            let digits = offset.strip_prefix("0x").unwrap_or(offset);
            let offset = u64::from_str_radix(digits, 16)
                .map_err(|_| bad("the offset is a hexadecimal number, as in 0x1800"))?;
            map.insert(name, offset).map_err(bad)?;
        }
        Ok(map)
    }
}

/// Reads a `csr.json`.
#[cfg(feature = "serde")]
fn json(text: &str) -> Result<CsrMap, CsrError> {
    #[derive(serde::Deserialize)]
    struct File {
        csr_registers: BTreeMap<String, Register>,
    }
    #[derive(serde::Deserialize)]
    struct Register {
        addr: u64,
    }
    let bad = |why: String| CsrError::Json { why };
    let file: File = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
    let mut map = CsrMap { offsets: BTreeMap::new() };
    for (name, register) in file.csr_registers {
        map.insert(&name, register.addr).map_err(|why| bad(format!("{name}: {why}")))?;
    }
    Ok(map)
}

#[cfg(not(feature = "serde"))]
fn json(_: &str) -> Result<CsrMap, CsrError> {
    Err(CsrError::Json { why: "it is read with the feature serde; csr.csv always is".into() })
}

impl CsrMap {
    fn insert(&mut self, name: &str, offset: u64) -> Result<(), &'static str> {
        if !offset.is_multiple_of(4) || offset > u64::from(u32::MAX) {
            return Err("the offset is a multiple of 4 below 4 GiB");
        }
        match self.offsets.insert(name.to_owned(), offset) {
            Some(_) => Err("the register is there twice"),
            None => Ok(()),
        }
    }
}

impl CsrMap {
    /// The offset of a register in BAR0, in bytes.
    ///
    /// # Errors
    ///
    /// [`CsrError::Missing`] when the card has none of that name.
    pub fn offset(&self, name: &str) -> Result<u64, CsrError> {
        let found = self.offsets.get(name).copied();
        found.ok_or_else(|| CsrError::Missing { name: name.to_owned() })
    }

    /// The registers: name and offset, in the order of their names.
    pub fn registers(&self) -> impl Iterator<Item = (&str, u64)> {
        self.offsets.iter().map(|(name, &offset)| (name.as_str(), offset))
    }

    /// How many DMA channels the map has.
    #[must_use]
    pub fn channels(&self) -> u8 {
        let has = |n: &u8| self.offsets.contains_key(&format!("pcie_dma{n}_writer_enable"));
        (0..MOST_CHANNELS).take_while(has).count() as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_csv_is_read_by_name() {
        let text = "#comment\ncsr_base,ctrl,0x0,,\ncsr_register,ctrl_scratch,0x00000004,1,rw\n\
            csr_register,pcie_dma0_writer_enable,0x00001800,1,rw\nconstant,x,1,,\n";
        let map: CsrMap = text.parse().unwrap();
        assert_eq!(map.offset("ctrl_scratch"), Ok(4));
        assert_eq!((map.channels(), map.registers().count()), (1, 2));
        let missing = map.offset("nothing").unwrap_err().to_string();
        assert!(missing.contains("has no nothing"), "{missing}");
        for (line, words) in [
            ("csr_register,a", "a name and an offset"),
            ("csr_register,a,zz", "hexadecimal"),
            ("csr_register,a,0x3", "multiple of 4"),
            ("csr_register,a,0x4\ncsr_register,a,0x8", "twice"),
        ] {
            let error = line.parse::<CsrMap>().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    #[cfg(feature = "serde")]
    fn json_is_read_by_name() {
        let text = r#"{"csr_bases": {}, "csr_registers": {
            "ctrl_scratch": {"addr": 4, "size": 1, "type": "rw"},
            "leds_out": {"addr": 8192, "size": 1, "type": "rw"}}}"#;
        let map: CsrMap = text.parse().unwrap();
        assert_eq!((map.offset("leds_out"), map.registers().count()), (Ok(0x2000), 2));
        for (text, words) in [
            ("{", "csr.json: EOF"),
            ("{\"csr_registers\": 1}", "invalid type"),
            (r#"{"csr_registers": {"a": {"addr": 3}}}"#, "a: the offset is a multiple of 4"),
        ] {
            let error = text.parse::<CsrMap>().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn the_default_map_is_that_of_the_generated_card() {
        let map = CsrMap::default();
        assert_eq!(map.offset("pcie_dma0_writer_table_we"), Ok(0x180c));
        assert_eq!(map.offset("pcie_dma0_reader_table_loop_status"), Ok(0x1834));
        assert_eq!(map.offset("pcie_dma1_loopback_enable"), Ok(0x2040));
        assert_eq!(map.channels(), MOST_CHANNELS);
    }
}
