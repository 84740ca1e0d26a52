//! Figures as people read them, three to four digits with a unit.

/// A size: `64 B`, `4 KiB`, `16 MiB`, `1.50 KiB`; in bytes where two decimals are not exact.
#[must_use]
pub fn bytes(size: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|&(shift, _)| size >> shift > 0) {
        None => format!("{size} B"),
        Some((shift, unit)) if size.trailing_zeros() >= shift => {
            format!("{} {unit}", size >> shift)
        }
        Some((shift, unit)) if (u128::from(size) * 100).trailing_zeros() >= shift => {
            format!("{:.2} {unit}", size as f64 / f64::from(1_u32 << shift))
        }
        Some(_) => format!("{size} B"),
    }
}

/// A time in ns: `850 ns`, `12.3 us`, `1.50 s`.
#[must_use]
pub fn nanoseconds(ns: f64) -> String {
    let units = [(1e9, "s"), (1e6, "ms"), (1e3, "us")];
    let (scale, unit) =
        units.into_iter().find(|&(scale, _)| ns.abs() >= scale).unwrap_or((1.0, "ns"));
    let value = ns / scale;
    let digits = if unit == "ns" || value.abs() >= 100.0 {
        0
    } else if value.abs() >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$} {unit}")
}

/// A rate in bytes for each second: `850 kB/s`, `1.25 GB/s`, decimal as rates are.
#[must_use]
pub fn rate(bytes_per_second: f64) -> String {
    let units = [(1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s")];
    let found = units.into_iter().find(|&(scale, _)| bytes_per_second.abs() >= scale);
    let (scale, unit) = found.unwrap_or((1.0, "B/s"));
    let value = bytes_per_second / scale;
    let digits = usize::from(value.abs() < 100.0) + usize::from(value.abs() < 10.0);
    format!("{value:.digits$} {unit}")
}

/// A share: `97.3%`.
#[must_use]
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    let digits = if percent != 0.0 && percent.abs() < 0.1 { 4 } else { 1 };
    format!("{percent:.digits$}%")
}

/// A count for each transfer: `1`, `0.031`, `4096`.
#[must_use]
pub fn count(count: f64) -> String {
    match count {
        _ if count.fract() == 0.0 => format!("{count:.0}"),
        _ if count.abs() < 1.0 => format!("{count:.3}"),
        _ => format!("{count:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_few_digits_and_a_unit() {
        let sizes = [0, 64, 1024, 1536, 65_535, 1 << 20, 3 << 30].map(bytes);
        assert_eq!(sizes, ["0 B", "64 B", "1 KiB", "1.50 KiB", "65535 B", "1 MiB", "3 GiB"]);
        let times = [0.0, 999.0, 1234.0, 12_345.0, 123_456.0, 1.5e9].map(nanoseconds);
        assert_eq!(times, ["0 ns", "999 ns", "1.23 us", "12.3 us", "123 us", "1.50 s"]);
        let rates = [12.0, 81_920.0, 1.25e9, 123e9].map(rate);
        assert_eq!(rates, ["12.0 B/s", "81.9 kB/s", "1.25 GB/s", "123 GB/s"]);
        assert_eq!([0.9731, 0.0, 0.000_012].map(percent), ["97.3%", "0.0%", "0.0012%"]);
        assert_eq!([1.0, 0.03125, 4096.0, 1.5].map(count), ["1", "0.031", "4096", "1.5"]);
    }
}
