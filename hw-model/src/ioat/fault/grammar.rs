//! The text form of I/OAT's faults.

use std::time::Duration;

use super::{ChannelError, Fault};
use crate::fault::{DeviceFault, address, duration};
use crate::ioat::MAX_CHANNELS;

impl DeviceFault for Fault {
    const CHANNELS: u8 = MAX_CHANNELS;

    fn parse(name: &str, value: Option<&str>) -> Result<Self, String> {
        fault(name, value)
    }
}

fn fault(name: &str, value: Option<&str>) -> Result<Fault, String> {
    let time = |default: Duration| value.map_or(Ok(default), duration);
    let ms = Duration::from_millis;
    let fault = match name {
        "chanerr" => return bits(value).map(Fault::Error),
        "late-completion" => return time(ms(10)).map(Fault::LateCompletion),
        "double-completion" => return time(ms(1)).map(Fault::DoubleCompletion),
        "torn-completion" => return time(ms(1)).map(Fault::TornCompletion),
        "astray-completion" => {
            return value.map(address).transpose().map(Fault::AstrayCompletion);
        }
        "halt" => Fault::Halt,
        "no-completion" => Fault::NoCompletion,
        "stale-completion" => Fault::StaleCompletion,
        "no-interrupt" => Fault::LostInterrupt,
        "spurious-interrupt" => Fault::SpuriousInterrupt,
        "double-interrupt" => Fault::DoubleInterrupt,
        "gone" => Fault::Gone,
        "exit" => Fault::Exit,
        "reset-hang" => Fault::ResetHang,
        "suspend-hang" => Fault::SuspendHang,
        _ => {
            return Err(format!(
                "there is no fault \"{name}\"; there are chanerr, halt, \
                 no-, late-, double-, torn-, stale- and astray-completion, \
                 no-, spurious- and double-interrupt, gone, exit, reset-hang and suspend-hang"
            ));
        }
    };
    match value {
        None => Ok(fault),
        Some(value) => Err(format!("{name} takes no value, but has \"={value}\"")),
    }
}

fn bits(value: Option<&str>) -> Result<ChannelError, String> {
    let value =
        value.ok_or("chanerr needs the bits of CHANERR, such as chanerr=8 or chanerr=0+9")?;
    value.split('+').try_fold(ChannelError::empty(), |bits, text| {
        let bit = text.parse().ok().and_then(|bit: u32| 1u32.checked_shl(bit));
        match bit.and_then(ChannelError::from_bits) {
            Some(bit) => Ok(bits | bit),
            None => Err(format!("\"{text}\" is no bit of CHANERR: they are 0 to 18")),
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fault::{Rule as AnyRule, When};
    use crate::ioat::FaultPlan;
    use crate::ioat::fault::Planned;

    type Rule = AnyRule<Fault>;

    fn one(text: &str) -> Rule {
        let plan: FaultPlan = text.parse().unwrap();
        assert_eq!(plan.rules().len(), 1);
        plan.rules()[0]
    }

    #[test]
    fn each_fault_has_a_name() {
        let us = Duration::from_micros;
        let faults = [
            ("chanerr=8", Fault::Error(ChannelError::READ_DATA)),
            ("chanerr=0+18", Fault::Error(ChannelError::from_bits(0x4_0001).unwrap())),
            ("halt", Fault::Halt),
            ("no-completion", Fault::NoCompletion),
            ("late-completion", Fault::LateCompletion(us(10_000))),
            ("late-completion=3s", Fault::LateCompletion(us(3_000_000))),
            ("double-completion=5ms", Fault::DoubleCompletion(us(5_000))),
            ("torn-completion=20us", Fault::TornCompletion(us(20))),
            ("stale-completion", Fault::StaleCompletion),
            ("astray-completion", Fault::AstrayCompletion(None)),
            ("astray-completion=0x10000", Fault::AstrayCompletion(Some(0x1_0000))),
            ("no-interrupt", Fault::LostInterrupt),
            ("spurious-interrupt", Fault::SpuriousInterrupt),
            ("double-interrupt", Fault::DoubleInterrupt),
            ("gone", Fault::Gone),
            ("exit", Fault::Exit),
            ("reset-hang", Fault::ResetHang),
            ("suspend-hang", Fault::SuspendHang),
        ];
        for (text, fault) in faults {
            assert_eq!(one(text), Rule { fault, when: When::Every(1), channel: None }, "{text}");
        }
    }

    #[test]
    fn a_rule_says_when_and_where() {
        let rule = |when, channel| Rule { fault: Fault::Halt, when, channel };
        assert_eq!(one("halt@7"), rule(When::At(7), None));
        assert_eq!(one(" halt@/3#2 "), rule(When::Every(3), Some(2)));
        assert_eq!(one("halt#0"), rule(When::Every(1), Some(0)));
        let plan: FaultPlan = "halt@7,no-interrupt@/2".parse().unwrap();
        let lost = FaultPlan::every(2, Fault::LostInterrupt);
        assert_eq!(plan, FaultPlan::at(7, Fault::Halt).and(lost));
        assert!("".parse::<FaultPlan>().unwrap().is_empty());
    }

    #[test]
    fn errors_name_the_rule_and_what_would_be_right() {
        let error = |text: &str| text.parse::<FaultPlan>().unwrap_err().to_string();
        for (text, words) in [
            ("halt,explode@3", ["\"explode@3\"", "spurious-"]),
            ("chanerr", ["\"chanerr\"", "chanerr=8"]),
            ("chanerr=19", ["\"19\"", "0 to 18"]),
            ("chanerr=64", ["\"64\"", "0 to 18"]),
            ("halt=3", ["halt takes no value", "=3"]),
            ("halt@0", ["@0", "from @1 on"]),
            ("halt@/0", ["@/0", "each Kth"]),
            ("halt#8", ["#8", "#0 to #7"]),
            ("late-completion=5", ["\"5\"", "us, ms or s"]),
            ("late-completion=99999s", ["99999s", "60 s"]),
            ("astray-completion=zz", ["zz", "0x"]),
            ("halt,", ["\"\"", "there is no fault"]),
        ] {
            let error = error(text);
            assert!(words.iter().all(|word| error.contains(word)), "{text}: {error}");
        }
    }

    #[test]
    fn a_descriptor_meets_the_faults_that_are_due() {
        let plan: FaultPlan =
            "chanerr=9@4#1,no-completion@/2,stale-completion@4,reset-hang@2".parse().unwrap();
        assert_eq!(plan.descriptor(1, 3), Default::default());
        let fourth = plan.descriptor(1, 4);
        assert_eq!(fourth.halt.unwrap().errors(), ChannelError::WRITE_DATA);
        let stale = Planned { rule: 2, fault: Fault::StaleCompletion };
        assert_eq!(fourth.completion, Some(stale));
        assert_eq!(plan.descriptor(0, 4).halt, None);
        let none = Planned { rule: 1, fault: Fault::NoCompletion };
        assert_eq!(plan.descriptor(0, 6).completion, Some(none));
        assert_eq!((plan.reset_hangs(0, 2), plan.reset_hangs(0, 3)), (Some(3), None));
        assert_eq!(plan.suspend_hangs(0, 2), None);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[a-z0-9=@/#+,. -]{0,60}") {
            let _ = text.parse::<FaultPlan>();
        }
    }
}
