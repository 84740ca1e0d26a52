//! Recipes: a first DMA test of a card that has no driver, from a file.
//!
//! A recipe is TOML: which registers to write for the source, the target and the length of a
//! transfer, what starts it, and what to wait for. [`Recipe::run`] places buffers under the
//! recipe's limits, moves a pattern through the card, and verifies it.
//!
//! ```toml
//! registers = "edu.registers.toml"  # names, beside this file; offsets do without
//! bar = 0                           # 0 if left out
//!
//! [limits]
//! address-bits = 28                 # 64 if left out
//! max-length = 4096                 # bytes of one transfer; any if left out
//! alignment = 1                     # of addresses, a power of two in bytes
//! granularity = 1                   # lengths are multiples of it, a power of two in bytes
//! # boundary = 4096                 # no transfer crosses a multiple of it
//!
//! # Written once, before the first transfer.
//! [[setup]]
//! register = "0x20:4"               # OFFSET:WIDTH, NAME or NAME.FIELD
//! value = 0
//!
//! # A transfer is these steps, one after another; edu has two, most cards have one.
//! [[step]]
//! name = "to the device"
//! timeout-ms = 5000                 # 5000 if left out
//!
//! [[step.write]]                    # in this order; the last one starts the card
//! register = "DMA_SOURCE"
//! value = "source"                  # an expression, see below
//!
//! [step.wait]                       # one of: an interrupt, or a register
//! irq = "msi"                       # "intx", "msi", "msix"
//! vector = 0                        # 0 if left out
//! # register = "DMA_COMMAND.run"
//! # equals = 0
//!
//! [[step.check]]                    # what a register has to hold then
//! register = "STATUS.error"
//! equals = 0
//!
//! [[step.after]]                    # written when the step is done
//! register = "IRQ_ACK"
//! value = 0x100
//! ```
//!
//! An expression is a number, `source`, `target` or `length`, and any of `+ - * / & | << >>` with a
//! number behind it, from left to right: `target >> 32`, `length / 4 - 1`. `source` and `target` are
//! the addresses that the card sees, `length` is in bytes. A recipe whose steps name `source` and
//! `target` copies; one that names `target` alone has the card write, one that names `source` alone
//! has it read.

mod error;
mod expression;
mod form;
mod run;

use std::path::Path;
use std::time::Duration;

use crate::backend::IrqKind;
use crate::dma::DmaLimits;
use crate::registers::Register;

pub use error::RecipeError;
pub use expression::{Expression, ExpressionError};
pub use run::{Loopback, LoopbackOptions, Verdict};

/// A DMA test of a card, as it is written down.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    limits: DmaLimits,
    setup: Vec<Write>,
    steps: Vec<Step>,
}

/// A register, or a field of it, and what is written to it.
#[derive(Debug, Clone, PartialEq)]
struct Write {
    bar: u8,
    register: Register,
    field: Option<String>,
    value: Expression,
}

/// A register, or a field of it, and what it is to hold.
#[derive(Debug, Clone, PartialEq)]
struct Expected {
    bar: u8,
    register: Register,
    field: Option<String>,
    equals: u64,
}

/// What ends a step.
#[derive(Debug, Clone, PartialEq)]
enum Wait {
    Irq { kind: IrqKind, vector: u32 },
    Register(Expected),
}

/// One start of the card, and its end.
#[derive(Debug, Clone, PartialEq)]
struct Step {
    name: String,
    writes: Vec<Write>,
    wait: Wait,
    checks: Vec<Expected>,
    after: Vec<Write>,
    timeout: Duration,
}

impl Recipe {
    /// Reads a recipe, and the register file that it names, which lies beside it.
    ///
    /// # Errors
    ///
    /// Fails when one of them cannot be read, is malformed or makes no sense.
    pub fn read(path: impl AsRef<Path>) -> Result<Recipe, RecipeError> {
        form::read(path.as_ref())
    }

    /// Reads a recipe's text; it may name no register file.
    ///
    /// # Errors
    ///
    /// Fails when it is malformed or makes no sense.
    pub fn parse(text: &str) -> Result<Recipe, RecipeError> {
        form::parse(text, None)
    }

    /// What the card demands of its buffers.
    #[must_use]
    pub fn limits(&self) -> &DmaLimits {
        &self.limits
    }

    /// Whether the card is told where to read.
    #[must_use]
    pub fn has_source(&self) -> bool {
        self.values().any(|value| value.names(expression::Variable::Source))
    }

    /// Whether the card is told where to write.
    #[must_use]
    pub fn has_target(&self) -> bool {
        self.values().any(|value| value.names(expression::Variable::Target))
    }

    fn values(&self) -> impl Iterator<Item = &Expression> {
        let steps = self.steps.iter().flat_map(|step| &step.writes);
        steps.map(|write| &write.value)
    }

    /// The kind of interrupt that its steps wait for, and how many vectors that takes.
    fn vectors(&self) -> Option<(IrqKind, u32)> {
        let waits = self.steps.iter().filter_map(|step| match step.wait {
            Wait::Irq { kind, vector } => Some((kind, vector.saturating_add(1))),
            Wait::Register(_) => None,
        });
        waits.max_by_key(|(_, count)| *count)
    }
}

#[cfg(test)]
mod tests;
