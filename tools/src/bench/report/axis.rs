//! Axes: where a value lies and which values have a label.

/// How values are spread over an axis.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Scale {
    Linear,
    Log,
}

/// One axis of a plot.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    pub(super) title: String,
    scale: Scale,
    /// The ends, placed.
    pub(super) range: [f64; 2],
    /// Places and labels, rising.
    pub(super) ticks: Vec<(f64, String)>,
}

impl Axis {
    /// From zero to a little above the largest value.
    pub(super) fn linear(
        title: &str,
        values: impl IntoIterator<Item = f64>,
        label: impl Fn(f64) -> String,
    ) -> Axis {
        let largest = values.into_iter().filter(|v| v.is_finite()).fold(0.0, f64::max);
        let largest = if largest > 0.0 { largest } else { 1.0 };
        let step = nice(largest / 5.0);
        let steps = (largest * 1.02 / step).ceil().clamp(1.0, 20.0) as u32;
        let ticks = (0..=steps).map(|n| f64::from(n) * step);
        Axis {
            title: title.to_owned(),
            scale: Scale::Linear,
            range: [0.0, f64::from(steps) * step],
            ticks: ticks.map(|value| (value, plain(&label(value)))).collect(),
        }
    }

    /// Decades, with 2 and 5 between them where there are few.
    pub(super) fn log(
        title: &str,
        values: impl IntoIterator<Item = f64>,
        label: impl Fn(f64) -> String,
    ) -> Axis {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.into_iter().filter(|value| value.is_finite() && *value > 0.0) {
            (low, high) = (low.min(value.log10()), high.max(value.log10()));
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        let room = (high - low).max(0.2) * 0.06;
        let range = [low - room, high + room];
        let between: &[f64] = match range[1] - range[0] {
            wide if wide > 3.0 => &[1.0],
            wide if wide > 1.6 => &[1.0, 3.0],
            wide if wide > 0.7 => &[1.0, 2.0, 5.0],
            _ => &[1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
        };
        let decades = range[0].floor() as i32..=range[1].ceil() as i32;
        let values = decades.flat_map(|n| between.iter().map(move |m| m * 10_f64.powi(n)));
        let ticks = values.map(|value| (value.log10(), plain(&label(value))));
        Axis {
            title: title.to_owned(),
            scale: Scale::Log,
            range,
            ticks: ticks.filter(|(at, _)| (range[0]..=range[1]).contains(at)).collect(),
        }
    }

    /// Places that are named one by one, rising.
    pub(super) fn named(title: &str, ticks: Vec<(f64, String)>) -> Axis {
        let first = ticks.first().map_or(0.0, |tick| tick.0);
        let last = ticks.last().map_or(1.0, |tick| tick.0);
        Axis {
            title: title.to_owned(),
            scale: Scale::Linear,
            range: [first - 0.5, last + 0.5],
            ticks,
        }
    }

    /// Linear from zero, or decades where the values differ too much to be told apart.
    pub(super) fn fitting(
        title: &str,
        values: impl IntoIterator<Item = f64>,
        label: impl Fn(f64) -> String,
    ) -> Axis {
        let values: Vec<f64> = values.into_iter().filter(|value| *value > 0.0).collect();
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(0.0, f64::max);
        if least.is_finite() && most > 30.0 * least {
            Axis::log(&format!("{title}, log scale"), values, label)
        } else {
            Axis::linear(title, values, label)
        }
    }

    /// Where a value lies, within the ends.
    pub(super) fn place(&self, value: f64) -> f64 {
        let [low, high] = self.range;
        let placed = match self.scale {
            Scale::Linear => value,
            Scale::Log if value > 0.0 => value.log10(),
            Scale::Log => low,
        };
        if placed.is_nan() { low } else { placed.clamp(low, high) }
    }
}

/// A label without the zeroes that end its decimals, which a round value does not need.
fn plain(label: &str) -> String {
    let end = label.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(label.len());
    let (number, unit) = label.split_at(end);
    match number.contains('.') {
        true => format!("{}{unit}", number.trim_end_matches('0').trim_end_matches('.')),
        false => label.to_owned(),
    }
}

/// The next larger of 1, 2, 2.5 and 5 times a power of ten.
fn nice(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 2.5, 5.0].into_iter().find(|factor| factor * power >= step * 0.999);
    factor.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_axes_begin_at_zero_and_have_round_steps() {
        let axis = Axis::linear("", [3.0, 9.7], |value| value.to_string());
        let labels: Vec<&str> = axis.ticks.iter().map(|(_, label)| label.as_str()).collect();
        assert_eq!(labels, ["0", "2", "4", "6", "8", "10"]);
        assert_eq!(axis.range, [0.0, 10.0]);
    }

    #[test]
    fn log_axes_hold_their_values() {
        let axis = Axis::log("", [0.0, 120.0, 45_000.0], |value| value.to_string());
        assert!(axis.place(120.0) > axis.range[0] && axis.place(45_000.0) < axis.range[1]);
        assert!(axis.ticks.len() >= 2 && axis.ticks.iter().all(|(at, _)| *at >= axis.range[0]));
        assert!(axis.ticks.contains(&(3.0, "1000".to_owned())));
        assert_eq!(axis.place(0.0), axis.range[0]);
    }

    #[test]
    fn labels_are_plain() {
        let labels = ["10.00 GB/s", "0.0 /s", "2.50 us", "100 ns", "1.50", "x 1.0"].map(plain);
        assert_eq!(labels, ["10 GB/s", "0 /s", "2.5 us", "100 ns", "1.5", "x 1.0"]);
    }

    #[test]
    fn figures_that_are_none_have_an_axis() {
        for values in [vec![], vec![0.0], vec![f64::NAN], vec![f64::INFINITY]] {
            for axis in [
                Axis::linear("", values.clone(), |_| String::new()),
                Axis::log("", values.clone(), |_| String::new()),
                Axis::fitting("", values.clone(), |_| String::new()),
            ] {
                assert!(axis.range[0] < axis.range[1], "{values:?}");
                assert!(axis.place(f64::NAN).is_finite());
            }
        }
    }
}
