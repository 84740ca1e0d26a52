//! Writes that have a card raise an interrupt.

use std::str::FromStr;

use vfio_dma::device::Device;
use vfio_dma::registers::{Register, RegisterFile, Target};

use crate::cli::poke::{assignments, value};
use crate::cli::{Failure, card};

/// `BAR:REGISTER=VALUE`.
#[derive(Debug, Clone)]
pub(super) struct Raise {
    bar: u8,
    target: Target,
    value: String,
}

/// A register and what is written to it.
#[derive(Debug)]
pub(super) struct Write {
    bar: u8,
    register: Register,
    value: u64,
}

impl FromStr for Raise {
    type Err = String;

    fn from_str(text: &str) -> Result<Raise, String> {
        let parts = text.split_once(':').and_then(|(bar, rest)| {
            let (target, value) = rest.split_once('=')?;
            let bar = bar.parse().ok().filter(|bar| *bar <= 5)?;
            Some((bar, target, value))
        });
        let (bar, target, value) =
            parts.ok_or_else(|| format!("{text:?} is not BAR:REGISTER=VALUE, such as 0:0x60=1"))?;
        let target = target.parse().map_err(|error| format!("{error}"))?;
        Ok(Raise { bar, target, value: value.to_owned() })
    }
}

impl Raise {
    /// Looks the register up.
    pub(super) fn resolve(&self, registers: &RegisterFile) -> Result<Write, Failure> {
        let (register, field) = card::register(registers, self.bar, &self.target)?;
        let fields = assignments(&register, field.as_deref(), &self.value)?;
        // Fields that are not named are zero: the register is not read.
        let value = value(&register, &fields, 0, &self.value)?;
        Ok(Write { bar: self.bar, register, value })
    }
}

/// Makes the writes, in their order.
pub(super) fn write(device: &Device, writes: &[Write]) -> Result<(), Failure> {
    for Write { bar, register, value } in writes {
        device.bar(*bar)?.write_register(register, *value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_has_a_bar_a_register_and_a_value() {
        let raise: Raise = "0:0x60:4=0x1".parse().unwrap();
        let write = raise.resolve(&RegisterFile::default()).unwrap();
        assert_eq!((write.bar, write.register.offset, write.value), (0, 0x60, 1));
        for text in ["", "0x60=1", "6:0x60=1", "0:0x60", "0:=1", "0:0x60:3=1"] {
            assert!(text.parse::<Raise>().is_err(), "{text}");
        }
    }
}
