//! What a link is: `gen3x8,mps=256,mrrs=512,addr=64,ecrc=0`.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::limits::limits;

/// A generation of PCI Express.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Generation {
    /// 2.5 GT/s, 8b/10b
    Gen1 = 1,
    /// 5 GT/s, 8b/10b
    Gen2,
    /// 8 GT/s, 128b/130b
    Gen3,
    /// 16 GT/s, 128b/130b
    Gen4,
    /// 32 GT/s, 128b/130b
    Gen5,
}

impl Generation {
    /// Every generation that the model covers.
    pub const ALL: [Generation; 5] =
        [Generation::Gen1, Generation::Gen2, Generation::Gen3, Generation::Gen4, Generation::Gen5];

    /// What one lane carries each way after line coding, in Gb/s.
    #[must_use]
    pub fn lane_gbps(self) -> f64 {
        match self {
            Generation::Gen1 => 2.5 * 8.0 / 10.0,
            Generation::Gen2 => 5.0 * 8.0 / 10.0,
            Generation::Gen3 => 8.0 * 128.0 / 130.0,
            Generation::Gen4 => 16.0 * 128.0 / 130.0,
            Generation::Gen5 => 32.0 * 128.0 / 130.0,
        }
    }
}

/// How long the addresses in requests are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(into = "u32")]
pub enum AddressSize {
    /// 32 bits: three double words of header.
    Bits32 = 32,
    /// 64 bits: four double words of header.
    Bits64 = 64,
}

impl From<AddressSize> for u32 {
    fn from(size: AddressSize) -> u32 {
        size as u32
    }
}

/// A link and how it is set up.
///
/// It is written as `gen3x8`, followed by what differs from `mps=256,mrrs=512,addr=64,ecrc=0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct LinkConfig {
    generation: Generation,
    lanes: u32,
    mps: u32,
    mrrs: u32,
    address: AddressSize,
    ecrc: bool,
}

impl Default for LinkConfig {
    /// The link that the model is checked against: `gen3x8`.
    fn default() -> Self {
        LinkConfig {
            generation: Generation::Gen3,
            lanes: 8,
            mps: 256,
            mrrs: 512,
            address: AddressSize::Bits64,
            ecrc: false,
        }
    }
}

impl LinkConfig {
    /// The generation.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The number of lanes.
    #[must_use]
    pub fn lanes(&self) -> u32 {
        self.lanes
    }

    /// The longest payload of a TLP, Max_Payload_Size, in bytes.
    #[must_use]
    pub fn mps(&self) -> u32 {
        self.mps
    }

    /// The longest read that one request asks for, Max_Read_Request_Size, in bytes.
    #[must_use]
    pub fn mrrs(&self) -> u32 {
        self.mrrs
    }

    /// How long the addresses in requests are.
    #[must_use]
    pub fn address(&self) -> AddressSize {
        self.address
    }

    /// Whether TLPs carry an end-to-end checksum.
    #[must_use]
    pub fn ecrc(&self) -> bool {
        self.ecrc
    }

    /// What the link carries each way after line coding, in Gb/s.
    #[must_use]
    pub fn raw_gbps(&self) -> f64 {
        self.generation.lane_gbps() * f64::from(self.lanes)
    }

    /// What is left of [`LinkConfig::raw_gbps`] for TLPs, in Gb/s.
    ///
    /// An acknowledgement and a flow-control update of 8 bytes each take their share once
    /// in their limit, and a SKIP ordered set of 4 bytes comes every 1538 symbols.
    #[must_use]
    pub fn tlp_gbps(&self) -> f64 {
        let limits = limits(self.generation, self.lanes, self.mps)
            .expect("a configuration is only made for a link that the table has");
        let packets = 8.0 / f64::from(limits.ack) + 8.0 / f64::from(limits.update_fc);
        self.raw_gbps() * (1.0 - packets - 4.0 / 1538.0)
    }
}

/// Why a text is not a link.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkConfigError {
    /// It does not start with a generation and a width.
    #[error("{text:?} is not a link: it starts with generation and lanes, as in gen3x8")]
    Start {
        /// The text up to the first comma.
        text: String,
    },
    /// The generation is not covered.
    #[error("gen{generation}: the model covers gen1 to gen5{}", flits(.generation))]
    Generation {
        /// The number after `gen`.
        generation: String,
    },
    /// There is no such width.
    #[error("x{lanes}: a link has x1, x2, x4, x8 or x16 lanes")]
    Lanes {
        /// The number after `x`.
        lanes: String,
    },
    /// No setting has this name.
    #[error("{name:?} is no setting of a link; there are mps, mrrs, addr and ecrc")]
    Name {
        /// The text before `=`.
        name: String,
    },
    /// A setting came twice.
    #[error("{name} is given twice")]
    Twice {
        /// The setting.
        name: String,
    },
    /// A setting has a value that it cannot have.
    #[error("{name}={value}: {allowed}")]
    Value {
        /// The setting.
        name: String,
        /// The text after `=`.
        value: String,
        /// What is possible.
        allowed: &'static str,
    },
}

fn flits(generation: &str) -> &'static str {
    match generation {
        "6" | "7" => "; later ones send flits, which cost differently",
        _ => "",
    }
}

impl FromStr for LinkConfig {
    type Err = LinkConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(',');
        let link = parts.next().unwrap_or_default();
        let start = || LinkConfigError::Start { text: link.to_owned() };
        let (generation, lanes) =
            link.strip_prefix("gen").and_then(|rest| rest.split_once('x')).ok_or_else(start)?;
        if [generation, lanes]
            .iter()
            .any(|n| n.is_empty() || !n.bytes().all(|b| b.is_ascii_digit()))
        {
            return Err(start());
        }
        let known = Generation::ALL.into_iter().find(|&g| (g as u32).to_string() == generation);
        let mut config = LinkConfig {
            generation: known
                .ok_or_else(|| LinkConfigError::Generation { generation: generation.to_owned() })?,
            lanes: one_of(&[1, 2, 4, 8, 16], lanes)
                .ok_or_else(|| LinkConfigError::Lanes { lanes: lanes.to_owned() })?,
            ..LinkConfig::default()
        };
        const SIZES: [u32; 6] = [128, 256, 512, 1024, 2048, 4096];
        let mut seen = Vec::new();
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let wrong = |allowed| LinkConfigError::Value {
                name: name.to_owned(),
                value: value.to_owned(),
                allowed,
            };
            let size = || {
                one_of(&SIZES, value)
                    .ok_or_else(|| wrong("it is 128, 256, 512, 1024, 2048 or 4096 bytes"))
            };
            match name {
                "mps" => config.mps = size()?,
                "mrrs" => config.mrrs = size()?,
                "addr" => {
                    config.address = match value {
                        "32" => AddressSize::Bits32,
                        "64" => AddressSize::Bits64,
                        _ => return Err(wrong("addresses have 32 or 64 bits")),
                    };
                }
                "ecrc" => {
                    config.ecrc = match value {
                        "0" => false,
                        "1" => true,
                        _ => return Err(wrong("it is 0 (off) or 1 (on)")),
                    };
                }
                _ => {
                    return Err(LinkConfigError::Name { name: name.to_owned() });
                }
            }
            if seen.contains(&name) {
                return Err(LinkConfigError::Twice { name: name.to_owned() });
            }
            seen.push(name);
        }
        Ok(config)
    }
}

fn one_of(allowed: &[u32], text: &str) -> Option<u32> {
    allowed.iter().copied().find(|n| n.to_string() == text)
}

impl fmt::Display for LinkConfig {
    /// The whole text, which reads back as the same link.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "gen{}x{},mps={},mrrs={},addr={},ecrc={}",
            self.generation as u32,
            self.lanes,
            self.mps,
            self.mrrs,
            self.address as u32,
            u32::from(self.ecrc)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_has_its_default() {
        let link: LinkConfig = "gen3x8".parse().unwrap();
        assert_eq!(link, LinkConfig::default());
        assert_eq!(link.to_string(), "gen3x8,mps=256,mrrs=512,addr=64,ecrc=0");
        let text = "gen5x16,mps=4096,mrrs=128,addr=32,ecrc=1";
        assert_eq!(text.parse::<LinkConfig>().unwrap().to_string(), text);
        let reordered: LinkConfig = "gen5x16,ecrc=1,addr=32,mrrs=128,mps=4096".parse().unwrap();
        assert_eq!(reordered.to_string(), text);
    }

    #[test]
    fn what_is_wrong_is_explained() {
        for (text, explanation) in [
            ("", r#""" is not a link: it starts with generation and lanes, as in gen3x8"#),
            ("gen3", r#""gen3" is not a link: it starts with generation and lanes, as in gen3x8"#),
            ("3x8", r#""3x8" is not a link: it starts with generation and lanes, as in gen3x8"#),
            (
                "gen-3x8",
                r#""gen-3x8" is not a link: it starts with generation and lanes, as in gen3x8"#,
            ),
            (
                "gen6x8",
                "gen6: the model covers gen1 to gen5; later ones send flits, which cost differently",
            ),
            ("gen0x8", "gen0: the model covers gen1 to gen5"),
            ("gen3x3", "x3: a link has x1, x2, x4, x8 or x16 lanes"),
            ("gen3x08", "x08: a link has x1, x2, x4, x8 or x16 lanes"),
            ("gen3x8,", r#""" is no setting of a link; there are mps, mrrs, addr and ecrc"#),
            ("gen3x8,mp=1", r#""mp" is no setting of a link; there are mps, mrrs, addr and ecrc"#),
            ("gen3x8,mps=300", "mps=300: it is 128, 256, 512, 1024, 2048 or 4096 bytes"),
            ("gen3x8,mrrs", "mrrs=: it is 128, 256, 512, 1024, 2048 or 4096 bytes"),
            ("gen3x8,addr=48", "addr=48: addresses have 32 or 64 bits"),
            ("gen3x8,ecrc=yes", "ecrc=yes: it is 0 (off) or 1 (on)"),
            ("gen3x8,mps=256,mps=512", "mps is given twice"),
        ] {
            assert_eq!(text.parse::<LinkConfig>().unwrap_err().to_string(), explanation);
        }
    }

    #[test]
    fn rates_are_those_of_the_published_model() {
        let gbps = |text: &str| {
            let link: LinkConfig = text.parse().unwrap();
            [link.raw_gbps(), link.tlp_gbps()].map(|rate| (rate * 100.0).round() / 100.0)
        };
        assert_eq!(gbps("gen3x8"), [63.02, 57.88]);
        assert_eq!(gbps("gen1x1")[0], 2.0);
        assert_eq!(gbps("gen2x16")[0], 64.0);
        assert_eq!(gbps("gen4x8")[0], 126.03);
        assert_eq!(gbps("gen5x16")[0], 504.12);
    }

    #[test]
    fn every_link_has_its_limits() {
        for generation in 1..=5 {
            for lanes in [1, 2, 4, 8, 16] {
                for mps in [128, 256, 512, 1024, 2048, 4096] {
                    let text = format!("gen{generation}x{lanes},mps={mps}");
                    let link: LinkConfig = text.parse().unwrap();
                    let share = link.tlp_gbps() / link.raw_gbps();
                    assert!((0.65..1.0).contains(&share), "{text}: {share}");
                }
            }
        }
    }
}
