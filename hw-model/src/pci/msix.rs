//! The MSI-X table and pending bits, as registers of a BAR (PCI Local Bus Specification 3.0,
//! section 6.8.2.6 to 6.8.2.9).
//!
//! The table is storage. Whether a vector is delivered is decided by the transport, as with
//! VFIO: it owns the table that the driver sees, and connects and masks vectors. The pending
//! bits are the device's: a vector that was raised while it was masked.

use crate::regs::Register;

/// The registers of `vectors` table entries at `table` and of the pending bits at `pending`,
/// both byte offsets. `key` makes the key of each: [`Part`] and the vector (0 for the
/// pending bits, which are one register for all of up to 64 vectors).
pub fn registers<K: Copy>(
    vectors: u8,
    table: u32,
    pending: u32,
    key: impl Fn(Part, u8) -> K,
) -> Vec<Register<K>> {
    let mut registers = Vec::new();
    for vector in 0..vectors.min(64) {
        let at = table + 16 * u32::from(vector);
        let key = |part| key(part, vector);
        registers.extend([
            Register::new(key(Part::Address), "MSI-X Message Address", at, 8, 0).writable(!0x3),
            Register::new(key(Part::Data), "MSI-X Message Data", at + 8, 4, 0)
                .writable(0xffff_ffff),
            Register::new(key(Part::Control), "MSI-X Vector Control", at + 12, 4, 1).writable(1),
        ]);
    }
    registers.push(Register::new(key(Part::Pending, 0), "MSI-X Pending Bits", pending, 8, 0));
    registers
}

/// A register of MSI-X.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// Where the message is written.
    Address,
    /// What is written there.
    Data,
    /// Bit 0 masks the vector.
    Control,
    /// One bit for each vector.
    Pending,
}
