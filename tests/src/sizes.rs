//! How much is moved where that takes long.

/// Names how much goes through simulated hardware behind a socket and in a guest, in MiB.
pub const RTL_SIZE: &str = "VFIO_DMA_RTL_MIB";

/// Bytes of one copy there: what the variable says, or 8 MiB.
///
/// # Panics
///
/// When the variable is no number from 1 to 1024.
#[must_use]
pub fn rtl_size() -> usize {
    let Ok(text) = std::env::var(RTL_SIZE) else { return 8 << 20 };
    match text.parse() {
        Ok(mib @ 1..=1024) => mib << 20,
        _ => panic!("{RTL_SIZE}={text} is no number from 1 to 1024"),
    }
}
