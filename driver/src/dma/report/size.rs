//! Sizes as people read them.

use std::fmt;

/// A number of bytes: `4 MiB` where it is a whole number of a unit, otherwise `4097 bytes`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size(pub(super) u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Size(bytes) = *self;
        let whole = |shift: u32| bytes > 0 && bytes.is_multiple_of(1 << shift);
        match [(30, "GiB"), (20, "MiB"), (10, "KiB")].into_iter().find(|unit| whole(unit.0)) {
            Some((shift, unit)) => write!(f, "{} {unit}", bytes >> shift),
            None if bytes == 1 => f.write_str("1 byte"),
            None => write!(f, "{bytes} bytes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_exact_has_a_unit() {
        let sizes = [0, 1, 1023, 1024, 1536, 4 << 20, (4 << 20) + 1, 3 << 30];
        assert_eq!(
            sizes.map(|size| Size(size).to_string()),
            [
                "0 bytes",
                "1 byte",
                "1023 bytes",
                "1 KiB",
                "1536 bytes",
                "4 MiB",
                "4194305 bytes",
                "3 GiB"
            ]
        );
    }
}
