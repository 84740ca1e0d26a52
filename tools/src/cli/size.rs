//! Sizes on the command line.

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a size: it is a number of bytes, or of K, M or G (powers of 1024)")]
pub struct SizeError {
    text: String,
}

/// Reads a size in bytes: a number, then nothing, `K`, `M` or `G` (powers of 1024).
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let error = || SizeError { text: text.to_owned() };
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        _ => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(error());
    }
    let number: u64 = digits.parse().map_err(|_| error())?;
    number.checked_mul(1 << shift).ok_or_else(error)
}

/// A size as it is given to an option: 64, 4K, 16M.
#[must_use]
pub fn typed(size: u64) -> String {
    [(30, "G"), (20, "M"), (10, "K")]
        .into_iter()
        .find(|&(shift, _)| size > 0 && size.is_multiple_of(1 << shift))
        .map_or_else(|| size.to_string(), |(shift, unit)| format!("{}{unit}", size >> shift))
}

/// Reads how many bytes are to be moved: a size that is not 0.
pub(super) fn parse_length(text: &str) -> Result<u64, String> {
    match parse_size(text) {
        Ok(0) => Err("there is nothing to move in 0 bytes".to_owned()),
        Ok(size) => Ok(size),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_powers_of_1024() {
        assert_eq!(parse_size("0"), Ok(0));
        assert_eq!(parse_size("100000"), Ok(100_000));
        assert_eq!(parse_size("4K"), Ok(4096));
        assert_eq!(parse_size("64m"), Ok(64 << 20));
        assert_eq!(parse_size("1G"), Ok(1 << 30));
    }

    #[test]
    fn what_is_typed_is_read() {
        for size in [0, 64, 1000, 1536, 4096, 16 << 20, 3 << 30] {
            assert_eq!(parse_size(&typed(size)), Ok(size));
        }
        assert_eq!([64, 4096, 16 << 20].map(typed), ["64", "4K", "16M"]);
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "K", "-1", "+1", "1.5G", "1T", "1 K", "1Kb", "é", "99999999999G"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
