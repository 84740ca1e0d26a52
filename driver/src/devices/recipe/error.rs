//! What can go wrong with a recipe, and with the card that it is for.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::ExpressionError;
use crate::device::DeviceError;
use crate::dma::{DmaError, SgError};
use crate::irq::IrqError;
use crate::mmio::MmioError;
use crate::pci::Remedy;
use crate::registers::RegisterFileError;

/// A recipe that makes no sense, or a card that does not do what it says.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// The file cannot be read.
    #[error("reading {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The register file that it names is at fault.
    #[error(transparent)]
    Registers(#[from] RegisterFileError),
    /// It is not TOML of this form.
    #[error("the recipe is malformed: {0}")]
    Form(String),
    /// A part of it makes no sense.
    #[error("the recipe's {part}: {problem}")]
    Part {
        /// Which part: `step "to the device"`, `limits`.
        part: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A value cannot be computed, or does not fit its register.
    #[error("{register}: {problem}")]
    Value {
        /// The register.
        register: String,
        /// What is wrong.
        problem: String,
    },
    /// Nothing keeps the card from the rest of memory, where a wrong recipe would have it write.
    #[error(
        "{location}: a recipe is run behind an IOMMU only: an address that is wrong would be \
         anybody's memory"
    )]
    NoIommu {
        /// The device.
        location: String,
    },
    /// The card did not end a step in time.
    #[error("{location}: step {step:?} of transfer {transfer} did not end within {} ms: {state}", .waited.as_millis())]
    Timeout {
        /// The device.
        location: String,
        /// The step.
        step: String,
        /// Which transfer, from 0 on.
        transfer: u64,
        /// How long was waited.
        waited: Duration,
        /// What was waited for, and what is there.
        state: String,
    },
    /// A register does not hold what the recipe wants when a step has ended.
    #[error("{location}: after step {step:?} of transfer {transfer}, {state}")]
    Check {
        /// The device.
        location: String,
        /// The step.
        step: String,
        /// Which transfer, from 0 on.
        transfer: u64,
        /// What it should hold, and what it does.
        state: String,
    },
    /// It was asked to stop.
    #[error("interrupted after {done} of {bytes} bytes")]
    Interrupted {
        /// Bytes that were moved.
        done: u64,
        /// Bytes that were to be.
        bytes: u64,
    },
    /// The device cannot be set up.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl RecipeError {
    /// What the reader can do about it, where that is known.
    #[must_use]
    pub fn remedy(&self) -> Option<&Remedy> {
        match self {
            RecipeError::Device(error) => error.remedy(),
            _ => None,
        }
    }

    pub(super) fn value(register: &str, problem: impl ToString) -> RecipeError {
        RecipeError::Value { register: register.to_owned(), problem: problem.to_string() }
    }
}

impl From<MmioError> for RecipeError {
    fn from(error: MmioError) -> RecipeError {
        DeviceError::from(error).into()
    }
}

impl From<IrqError> for RecipeError {
    fn from(error: IrqError) -> RecipeError {
        DeviceError::from(error).into()
    }
}

impl From<DmaError> for RecipeError {
    fn from(error: DmaError) -> RecipeError {
        DeviceError::from(error).into()
    }
}

impl From<SgError> for RecipeError {
    fn from(error: SgError) -> RecipeError {
        RecipeError::Part { part: "limits".into(), problem: error.to_string() }
    }
}

impl From<ExpressionError> for RecipeError {
    fn from(error: ExpressionError) -> RecipeError {
        RecipeError::Part { part: "expressions".into(), problem: error.to_string() }
    }
}
