//! What can go wrong with the packets of an endpoint, on request.

use crate::fault::DeviceFault;

/// A fault of the root complex or of the link. Those of completions count the endpoint's reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlpFault {
    /// `lost`: the read is never answered.
    Lost,
    /// `late=CYCLES`: the answer comes so many cycles later; others overtake it.
    Late(u64),
    /// `poison`: the answer's data is wrong, and marked as such.
    Poisoned,
    /// `ur`: the read is answered as an unsupported request.
    Unsupported,
    /// `reorder`: the answer comes after that of the next read.
    Reordered,
    /// `linkdown`: the link goes down, for good.
    LinkDown,
}

impl DeviceFault for TlpFault {
    const CHANNELS: u8 = 1;

    fn parse(name: &str, value: Option<&str>) -> Result<Self, String> {
        let plain = match name {
            "lost" => TlpFault::Lost,
            "poison" => TlpFault::Poisoned,
            "ur" => TlpFault::Unsupported,
            "reorder" => TlpFault::Reordered,
            "linkdown" => TlpFault::LinkDown,
            "late" => {
                let cycles = value.and_then(|text| text.parse().ok());
                let cycles = cycles.filter(|&n: &u64| (1..=1_000_000).contains(&n));
                return cycles.map(TlpFault::Late).ok_or_else(|| {
                    "late takes a number of cycles up to 1000000, as in late=500".into()
                });
            }
            _ => {
                return Err(format!(
                    "there is no fault \"{name}\"; there are lost, late=CYCLES, poison, ur, \
                     reorder and linkdown"
                ));
            }
        };
        match value {
            None => Ok(plain),
            Some(value) => Err(format!("{name} takes no value, \"{value}\" is one")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::FaultPlan;

    #[test]
    fn the_grammar_is_that_of_all_devices() {
        let plan: FaultPlan<TlpFault> = "lost@3,late=500@/7,linkdown@9".parse().unwrap();
        let due = |n| plan.due(0, n).map(|(_, fault)| fault).collect::<Vec<_>>();
        assert_eq!(due(3), [TlpFault::Lost]);
        assert_eq!(due(7), [TlpFault::Late(500)]);
        assert_eq!((due(8).len(), due(9)), (0, vec![TlpFault::LinkDown]));
        for (text, words) in [
            ("late", "late=500"),
            ("lost=3", "no value"),
            ("halt", "there are lost"),
            ("ur#1", "#0"),
        ] {
            let error = text.parse::<FaultPlan<TlpFault>>().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
