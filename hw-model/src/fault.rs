//! Faults on request: what is to go wrong, and when, for any device.
//!
//! A [`FaultPlan`] is a list of [`Rule`]s, built in code or parsed from text:
//!
//! ```text
//! PLAN = RULE *( "," RULE )
//! RULE = FAULT [ "=" VALUE ] [ "@" WHEN ] [ "#" CHANNEL ]
//! WHEN = N              the Nth event, counted from 1
//!      | "/" K          each Kth
//! ```
//!
//! What the faults are, and what they count, is the device's: it implements [`DeviceFault`].
//! Events are counted for each channel. Without `@` a fault happens each time; without `#` on
//! each channel.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The faults of a device.
pub trait DeviceFault: Copy + fmt::Debug + PartialEq {
    /// How many channels the device has at most.
    const CHANNELS: u8;

    /// The fault with this name and value.
    ///
    /// # Errors
    ///
    /// Says what is wrong, and what would be right.
    fn parse(name: &str, value: Option<&str>) -> Result<Self, String>;
}

/// When a fault happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Once, at this number; the first is 1.
    At(u64),
    /// At each multiple of this number, which is not 0.
    Every(u64),
}

impl When {
    fn is(self, number: u64) -> bool {
        match self {
            When::At(at) => number == at,
            When::Every(step) => step != 0 && number.is_multiple_of(step),
        }
    }
}

/// One fault, and when and where it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule<F> {
    /// What goes wrong.
    pub fault: F,
    /// When.
    pub when: When,
    /// On which channel; `None` for all.
    pub channel: Option<u8>,
}

/// What is to go wrong. The module's documentation has the grammar of its text form, which
/// is parsed by `str::parse`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultPlan<F> {
    rules: Vec<Rule<F>>,
}

impl<F> Default for FaultPlan<F> {
    /// Nothing goes wrong.
    fn default() -> Self {
        FaultPlan { rules: Vec::new() }
    }
}

impl<F: Copy> FaultPlan<F> {
    /// A plan of these rules.
    #[must_use]
    pub fn new(rules: impl IntoIterator<Item = Rule<F>>) -> Self {
        FaultPlan { rules: rules.into_iter().collect() }
    }

    /// A plan with one fault, once, at the `number`th event of each channel.
    #[must_use]
    pub fn at(number: u64, fault: F) -> Self {
        FaultPlan::new([Rule { fault, when: When::At(number), channel: None }])
    }

    /// A plan with one fault at each `step`th event of each channel.
    #[must_use]
    pub fn every(step: u64, fault: F) -> Self {
        FaultPlan::new([Rule { fault, when: When::Every(step), channel: None }])
    }

    /// Adds the rules of another plan, after this one's.
    #[must_use]
    pub fn and(mut self, other: FaultPlan<F>) -> Self {
        self.rules.extend(other.rules);
        self
    }

    /// The rules.
    #[must_use]
    pub fn rules(&self) -> &[Rule<F>] {
        &self.rules
    }

    /// Whether nothing is to go wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The faults that are due at a channel's `number`th event, each behind the index of its
    /// rule and in the order of the rules.
    pub fn due(&self, channel: u8, number: u64) -> impl Iterator<Item = (usize, F)> {
        let here = move |rule: &Rule<F>| {
            rule.channel.is_none_or(|only| only == channel) && rule.when.is(number)
        };
        let rules = self.rules.iter().enumerate().filter(move |(_, rule)| here(rule));
        rules.map(|(index, rule)| (index, rule.fault))
    }
}

/// A fault plan that cannot be understood. The message names the rule and what may stand
/// in its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("fault \"{rule}\": {problem}")]
pub struct FaultError {
    /// The rule that is wrong.
    pub rule: String,
    /// What is wrong with it, and what would be right.
    pub problem: String,
}

impl<F: DeviceFault> FromStr for FaultPlan<F> {
    type Err = FaultError;

    /// Parses a plan by the grammar in the module's documentation. An empty text is an empty
    /// plan.
    fn from_str(text: &str) -> Result<Self, FaultError> {
        if text.trim().is_empty() {
            return Ok(FaultPlan::default());
        }
        let rules = text.split(',').map(|text| {
            let text = text.trim();
            rule(text).map_err(|problem| FaultError { rule: text.into(), problem })
        });
        Ok(FaultPlan { rules: rules.collect::<Result<_, _>>()? })
    }
}

fn rule<F: DeviceFault>(text: &str) -> Result<Rule<F>, String> {
    let (text, channel) = match text.split_once('#') {
        Some((text, channel)) => (text, Some(channel_number(channel, F::CHANNELS)?)),
        None => (text, None),
    };
    let (text, when) = match text.split_once('@') {
        Some((text, when)) => (text, self::when(when)?),
        None => (text, When::Every(1)),
    };
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    Ok(Rule { fault: F::parse(name, value)?, when, channel })
}

fn channel_number(text: &str, channels: u8) -> Result<u8, String> {
    let most = channels.saturating_sub(1);
    let number = text.parse().ok().filter(|&n: &u8| n <= most);
    number.ok_or_else(|| format!("\"#{text}\" names no channel: it takes #0 to #{most}"))
}

fn when(text: &str) -> Result<When, String> {
    let number = |digits: &str| digits.parse().ok().filter(|&n: &u64| n > 0);
    let when = match text.strip_prefix('/') {
        Some(step) => number(step).map(When::Every),
        None => number(text).map(When::At),
    };
    when.ok_or_else(|| {
        format!("\"@{text}\" is no time: it takes @N for the Nth, from @1 on, or @/K for each Kth")
    })
}

/// The longest delay: it keeps a channel's thread and whoever waits for it.
const LONGEST: Duration = Duration::from_secs(60);

/// A time, as faults take it: a number and us, ms or s.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let units = [("us", 1), ("ms", 1_000), ("s", 1_000_000)];
    let found = units.into_iter().find_map(|(unit, factor)| {
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(factor).map(Duration::from_micros)
    });
    match found {
        Some(time) if time <= LONGEST => Ok(time),
        Some(_) => Err(format!("\"{text}\" is longer than {} s", LONGEST.as_secs())),
        None => Err(format!("\"{text}\" is no time: it takes a number and us, ms or s")),
    }
}

/// An address, as faults take it: hexadecimal with 0x, or decimal.
pub(crate) fn address(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("\"{text}\" is no address: it takes 0x and hexadecimal digits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device of two channels, with one fault.
    #[derive(Debug, Clone, Copy, PartialEq)]
    struct Stall(Duration);

    impl DeviceFault for Stall {
        const CHANNELS: u8 = 2;

        fn parse(name: &str, value: Option<&str>) -> Result<Self, String> {
            match (name, value) {
                ("stall", Some(value)) => duration(value).map(Stall),
                _ => Err(format!("there is no fault \"{name}\"; there is stall")),
            }
        }
    }

    #[test]
    fn a_device_of_its_own_has_the_grammar() {
        let plan: FaultPlan<Stall> = "stall=1ms@/3#1,stall=2s@6".parse().unwrap();
        let stalls = |channel, number| {
            plan.due(channel, number).map(|(rule, stall)| (rule, stall.0.as_micros()))
        };
        assert_eq!(stalls(1, 6).collect::<Vec<_>>(), [(0, 1_000), (1, 2_000_000)]);
        assert_eq!(stalls(0, 6).collect::<Vec<_>>(), [(1, 2_000_000)]);
        assert_eq!(stalls(1, 7).count(), 0);
        for (text, words) in [("stall=1ms#2", "#0 to #1"), ("halt", "there is stall")] {
            let error = text.parse::<FaultPlan<Stall>>().unwrap_err().to_string();
            assert!(error.contains(words) && error.contains(text), "{error}");
        }
    }
}
