//! What is written to a register: a number, or made of the addresses and the length.

use std::fmt;
use std::str::FromStr;

use crate::registers::parse_number;

/// A number that depends on a transfer: `target >> 32`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expression {
    first: Operand,
    rest: Vec<(Operator, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operand {
    Number(u64),
    Variable(Variable),
}

/// What a transfer is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Variable {
    Source,
    Target,
    Length,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    And,
    Or,
    ShiftLeft,
    ShiftRight,
}

const OPERATORS: [(&str, Operator); 8] = [
    ("<<", Operator::ShiftLeft),
    (">>", Operator::ShiftRight),
    ("+", Operator::Add),
    ("-", Operator::Subtract),
    ("*", Operator::Multiply),
    ("/", Operator::Divide),
    ("&", Operator::And),
    ("|", Operator::Or),
];

/// Why an expression has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?}: {problem}")]
pub struct ExpressionError {
    text: String,
    problem: &'static str,
}

/// The parts of one transfer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Values {
    pub(super) source: u64,
    pub(super) target: u64,
    pub(super) length: u64,
}

impl Expression {
    /// A number.
    #[must_use]
    pub fn number(number: u64) -> Expression {
        Expression { first: Operand::Number(number), rest: Vec::new() }
    }

    pub(super) fn names(&self, variable: Variable) -> bool {
        self.first == Operand::Variable(variable)
    }

    pub(super) fn value(&self, values: &Values) -> Result<u64, ExpressionError> {
        let mut value = match self.first {
            Operand::Number(number) => number,
            Operand::Variable(Variable::Source) => values.source,
            Operand::Variable(Variable::Target) => values.target,
            Operand::Variable(Variable::Length) => values.length,
        };
        for (operator, number) in &self.rest {
            let shift = u32::try_from(*number).unwrap_or(u32::MAX);
            let next = match operator {
                Operator::Add => value.checked_add(*number),
                Operator::Subtract => value.checked_sub(*number),
                Operator::Multiply => value.checked_mul(*number),
                Operator::Divide => value.checked_div(*number),
                Operator::And => Some(value & number),
                Operator::Or => Some(value | number),
                Operator::ShiftLeft => {
                    value.checked_shl(shift).filter(|shifted| shifted >> shift == value)
                }
                Operator::ShiftRight => Some(value.checked_shr(shift).unwrap_or(0)),
            };
            value = next.ok_or_else(|| self.error("it does not fit 64 bits, or divides by 0"))?;
        }
        Ok(value)
    }

    fn error(&self, problem: &'static str) -> ExpressionError {
        ExpressionError { text: self.to_string(), problem }
    }
}

impl FromStr for Expression {
    type Err = ExpressionError;

    fn from_str(text: &str) -> Result<Expression, ExpressionError> {
        let error = |problem| ExpressionError { text: text.to_owned(), problem };
        let end = |text: &str| text.find(|c: char| "+-*/&|<>".contains(c)).unwrap_or(text.len());
        let (first, mut left) = text.split_at(end(text));
        let first =
            match first.trim() {
                "source" => Operand::Variable(Variable::Source),
                "target" => Operand::Variable(Variable::Target),
                "length" => Operand::Variable(Variable::Length),
                other => Operand::Number(parse_number(other).ok_or_else(|| {
                    error("it begins with a number, `source`, `target` or `length`")
                })?),
            };
        let mut rest = Vec::new();
        while !left.is_empty() {
            let found = OPERATORS.iter().find(|(sign, _)| left.starts_with(sign));
            let (sign, operator) =
                found.ok_or_else(|| error("an operator is one of + - * / & | << >>"))?;
            let behind = &left[sign.len()..];
            let (number, more) = behind.split_at(end(behind));
            let number = parse_number(number.trim())
                .ok_or_else(|| error("a number is behind each operator"))?;
            rest.push((*operator, number));
            left = more;
        }
        Ok(Expression { first, rest })
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first {
            Operand::Number(number) => write!(f, "{number:#x}")?,
            Operand::Variable(Variable::Source) => f.write_str("source")?,
            Operand::Variable(Variable::Target) => f.write_str("target")?,
            Operand::Variable(Variable::Length) => f.write_str("length")?,
        }
        for (operator, number) in &self.rest {
            let sign = OPERATORS.iter().find(|(_, other)| other == operator);
            write!(f, " {} {number:#x}", sign.map_or("?", |(sign, _)| sign))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Option<u64> {
        let values = Values { source: 0x1_2345_6789, target: 0xffff_0000, length: 4096 };
        text.parse::<Expression>().ok()?.value(&values).ok()
    }

    #[test]
    fn expressions_go_from_left_to_right() {
        for (text, expected) in [
            ("7", Some(7)),
            ("0x10", Some(16)),
            ("source", Some(0x1_2345_6789)),
            ("source >> 32", Some(1)),
            ("source & 0xffffffff", Some(0x2345_6789)),
            ("length/4-1", Some(1023)),
            ("length * 2 | 1", Some(8193)),
            ("1 << 31", Some(1 << 31)),
            ("target >> 64", Some(0)),
            ("length - 4097", None),
            ("length / 0", None),
            ("source << 63", None),
            ("", None),
            ("length +", None),
            ("length length", None),
            ("length + source", None),
            ("colour", None),
            ("1 < 2", None),
            ("-1", None),
        ] {
            assert_eq!(value(text), expected, "{text}");
        }
        assert_eq!("length/4 -1".parse::<Expression>().unwrap().to_string(), "length / 0x4 - 0x1");
    }
}
