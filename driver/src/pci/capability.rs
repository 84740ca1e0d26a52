//! The capability lists of configuration space.

use super::registers::{CAPABILITY_LIST, STATUS, STATUS_CAPABILITIES};

/// Offset of the device status register in the PCI Express capability, 16 bits.
pub const EXPRESS_DEVICE_STATUS: u16 = 0x0a;
/// Device status, bit 5: transactions are pending.
pub const EXPRESS_TRANSACTIONS_PENDING: u16 = 1 << 5;

/// A capability of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Capability {
    /// Power management (id 0x01).
    PowerManagement {
        /// Offset in configuration space.
        offset: u16,
    },
    /// Message-signalled interrupts (id 0x05).
    Msi(Msi),
    /// Extended message-signalled interrupts (id 0x11).
    MsiX(MsiX),
    /// PCI Express (id 0x10).
    PciExpress(PciExpress),
    /// Another capability of the standard list.
    Other {
        /// Its id (PCI Code and ID Assignment Specification).
        id: u8,
        /// Offset in configuration space.
        offset: u16,
    },
    /// A capability of the extended list.
    Extended {
        /// Its id.
        id: u16,
        /// Its version.
        version: u8,
        /// Offset in configuration space.
        offset: u16,
    },
}

/// Message-signalled interrupts (PCI Local Bus 3.0, 6.8.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Msi {
    /// Offset in configuration space.
    pub offset: u16,
    /// Vectors that the function can use: 1 to 32.
    pub vectors: u32,
    /// It can send to 64-bit addresses.
    pub wide: bool,
    /// Vectors can be masked one by one.
    pub maskable: bool,
}

/// Extended message-signalled interrupts (PCI Local Bus 3.0, 6.8.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct MsiX {
    /// Offset in configuration space.
    pub offset: u16,
    /// Vectors of the table: 1 to 2048.
    pub vectors: u32,
    /// BAR that holds the table, and its byte offset there.
    pub table: (u8, u32),
    /// BAR that holds the pending bits, and their byte offset there.
    pub pending: (u8, u32),
}

/// PCI Express (PCI Express Base 4.0, 7.5.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct PciExpress {
    /// Offset in configuration space.
    pub offset: u16,
    /// Device and port type: 0 endpoint, 1 legacy endpoint, 4 root port, 9 root-complex
    /// integrated endpoint.
    pub kind: u8,
    /// The function can be reset alone.
    pub function_level_reset: bool,
}

/// First byte behind the standard header.
const HEADER_END: u16 = 0x40;
/// First byte of the extended list.
const EXTENDED: u16 = 0x100;

/// A bounds-checked reader.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn u8(&self, at: u16) -> Option<u8> {
        self.0.get(usize::from(at)).copied()
    }
    fn u16(&self, at: u16) -> Option<u16> {
        let at = usize::from(at);
        Some(u16::from_le_bytes(self.0.get(at..at + 2)?.try_into().ok()?))
    }
    fn u32(&self, at: u16) -> Option<u32> {
        let at = usize::from(at);
        Some(u32::from_le_bytes(self.0.get(at..at + 4)?.try_into().ok()?))
    }
}

/// Walks both lists of a configuration space of 256 or 4096 bytes.
///
/// Each list ends where it loops, leaves its part of the space, or reads all ones: a
/// device cannot keep the walk busy.
#[must_use]
pub fn walk(config: &[u8]) -> Vec<Capability> {
    let bytes = Bytes(config);
    let mut found = Vec::new();
    let mut seen = [false; 4096 / 4];
    // Each offset is visited once.
    let mut first_visit = |at: u16| !std::mem::replace(&mut seen[usize::from(at) / 4], true);

    let has_list = bytes.u16(STATUS).is_some_and(|s| s != u16::MAX && s & STATUS_CAPABILITIES != 0);
    let mut at = if has_list { bytes.u8(CAPABILITY_LIST).unwrap_or(0) } else { 0 };
    loop {
        // The two lowest bits are reserved (PCI 3.0, 6.7).
        let offset = u16::from(at) & !3;
        if offset < HEADER_END || !first_visit(offset) {
            break;
        }
        let (Some(id), Some(next)) = (bytes.u8(offset), bytes.u8(offset + 1)) else { break };
        if id == u8::MAX {
            break;
        }
        found.push(decode(&bytes, id, offset).unwrap_or(Capability::Other { id, offset }));
        at = next;
    }

    let mut offset = EXTENDED;
    while offset >= EXTENDED && first_visit(offset) {
        let Some(header) = bytes.u32(offset).filter(|&h| h != 0 && h != u32::MAX) else { break };
        let (id, version) = (header as u16, (header >> 16) as u8 & 0xf);
        found.push(Capability::Extended { id, version, offset });
        offset = (header >> 20) as u16 & !3;
    }
    found
}

fn decode(bytes: &Bytes<'_>, id: u8, offset: u16) -> Option<Capability> {
    let control = || bytes.u16(offset + 2);
    Some(match id {
        0x01 => Capability::PowerManagement { offset },
        0x05 => {
            let control = control()?;
            Capability::Msi(Msi {
                offset,
                vectors: 1 << (control >> 1 & 7).min(5),
                wide: control & 1 << 7 != 0,
                maskable: control & 1 << 8 != 0,
            })
        }
        0x10 => Capability::PciExpress(PciExpress {
            offset,
            kind: (control()? >> 4 & 0xf) as u8,
            function_level_reset: bytes.u32(offset + 4)? & 1 << 28 != 0,
        }),
        0x11 => {
            let place = |word: u32| ((word & 7) as u8, word & !7);
            Capability::MsiX(MsiX {
                offset,
                vectors: u32::from(control()? & 0x7ff) + 1,
                table: place(bytes.u32(offset + 4)?),
                pending: place(bytes.u32(offset + 8)?),
            })
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config() -> Vec<u8> {
        let mut c = vec![0; 4096];
        c[6] = 0x10;
        c[0x34] = 0x43; // the low bits do not count
        c[0x40..0x42].copy_from_slice(&[0x05, 0x60]);
        c[0x42..0x44].copy_from_slice(&0x0184u16.to_le_bytes());
        c[0x60..0x62].copy_from_slice(&[0x11, 0x80]);
        c[0x62..0x64].copy_from_slice(&0x0007u16.to_le_bytes());
        c[0x64..0x68].copy_from_slice(&0x2004u32.to_le_bytes());
        c[0x68..0x6c].copy_from_slice(&0x3004u32.to_le_bytes());
        c[0x80..0x82].copy_from_slice(&[0x10, 0xa0]);
        c[0x82..0x84].copy_from_slice(&0x0092u16.to_le_bytes());
        c[0x84..0x88].copy_from_slice(&(1u32 << 28).to_le_bytes());
        c[0xa0..0xa2].copy_from_slice(&[0x09, 0x40]); // vendor specific, then a loop
        c[0x100..0x104].copy_from_slice(&0x1481_0001u32.to_le_bytes());
        c[0x148..0x14c].copy_from_slice(&0x0001_0003u32.to_le_bytes());
        c
    }

    #[test]
    fn both_lists_are_decoded_and_a_loop_ends() {
        assert_eq!(
            walk(&config()),
            [
                Capability::Msi(Msi { offset: 0x40, vectors: 4, wide: true, maskable: true }),
                Capability::MsiX(MsiX {
                    offset: 0x60,
                    vectors: 8,
                    table: (4, 0x2000),
                    pending: (4, 0x3000)
                }),
                Capability::PciExpress(PciExpress {
                    offset: 0x80,
                    kind: 9,
                    function_level_reset: true
                }),
                Capability::Other { id: 0x09, offset: 0xa0 },
                Capability::Extended { id: 1, version: 1, offset: 0x100 },
                Capability::Extended { id: 3, version: 1, offset: 0x148 },
            ]
        );
        assert_eq!(walk(&config()[..256]).len(), 4, "no extended list in 256 bytes");
    }

    #[test]
    fn a_function_that_is_gone_has_none() {
        assert_eq!(walk(&[0xff; 4096]), []);
        assert_eq!(walk(&[]), []);
    }

    proptest! {
        #[test]
        fn no_contents_panic_or_loop(mut bytes in proptest::collection::vec(any::<u8>(), 0..4097)) {
            if let Some(status) = bytes.get_mut(6) {
                *status |= 0x10;
            }
            let found = walk(&bytes);
            prop_assert!(found.len() <= 1024);
        }
    }
}
