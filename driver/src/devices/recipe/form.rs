//! A recipe's text.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use super::{Expected, Expression, Recipe, RecipeError, Step, Wait, Write};
use crate::backend::IrqKind;
use crate::dma::DmaLimits;
use crate::registers::{AccessMode, Register, RegisterFile, Target, parse_number};

type Result<T> = std::result::Result<T, RecipeError>;

/// The most steps of a transfer, and the most writes of a step.
const MOST: usize = 256;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct FileForm {
    registers: Option<String>,
    #[serde(default)]
    bar: u8,
    #[serde(default)]
    limits: LimitsForm,
    #[serde(default)]
    setup: Vec<WriteForm>,
    #[serde(default, rename = "step")]
    steps: Vec<StepForm>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct LimitsForm {
    address_bits: Option<u32>,
    max_length: Option<u64>,
    alignment: Option<u64>,
    granularity: Option<u64>,
    boundary: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct WriteForm {
    register: String,
    bar: Option<u8>,
    value: ValueForm,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ValueForm {
    Number(u64),
    Text(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ExpectedForm {
    register: String,
    bar: Option<u8>,
    equals: ValueForm,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct WaitForm {
    irq: Option<IrqForm>,
    vector: Option<u32>,
    register: Option<String>,
    bar: Option<u8>,
    equals: Option<ValueForm>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum IrqForm {
    Intx,
    Msi,
    Msix,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct StepForm {
    #[serde(default)]
    name: String,
    #[serde(default)]
    write: Vec<WriteForm>,
    wait: WaitForm,
    #[serde(default)]
    check: Vec<ExpectedForm>,
    #[serde(default)]
    after: Vec<WriteForm>,
    #[serde(default = "five_seconds")]
    timeout_ms: u64,
}

fn five_seconds() -> u64 {
    5000
}

pub(super) fn read(path: &Path) -> Result<Recipe> {
    let failed = |source| RecipeError::Read { path: path.to_owned(), source };
    parse(&fs::read_to_string(path).map_err(failed)?, path.parent())
}

/// Reads a text; a register file that it names lies in `beside`.
pub(super) fn parse(text: &str, beside: Option<&Path>) -> Result<Recipe> {
    let form: FileForm =
        toml::from_str(text).map_err(|error| RecipeError::Form(error.to_string()))?;
    let registers = match (&form.registers, beside) {
        (None, _) => RegisterFile::default(),
        (Some(name), Some(dir)) => RegisterFile::read(dir.join(name))?,
        (Some(_), None) => {
            return Err(part("registers", "a text without a file names no other file"));
        }
    };
    let names = Names { registers, bar: form.bar };
    if form.steps.is_empty() {
        return Err(part("steps", "there are none: a transfer has at least one [[step]]"));
    }
    if form.steps.len() > MOST || form.setup.len() > MOST {
        return Err(part("steps", "there are more than 256"));
    }
    let limits = limits(&form.limits)?;
    let setup = form.setup.iter().map(|write| names.write("setup", write));
    let setup: Vec<Write> = setup.collect::<Result<_>>()?;
    if setup.iter().any(|write| write.value != constant(&write.value)) {
        return Err(part("setup", "it knows no transfer: its values are numbers"));
    }
    let steps = form.steps.iter().enumerate().map(|(n, step)| names.step(n, step));
    let steps: Vec<Step> = steps.collect::<Result<_>>()?;
    let mut kinds = steps.iter().filter_map(|step| match step.wait {
        Wait::Irq { kind, .. } => Some(kind),
        Wait::Register(_) => None,
    });
    if let Some(first) = kinds.next()
        && kinds.any(|other| other != first)
    {
        return Err(part("steps", "they wait for interrupts of different kinds"));
    }
    let recipe = Recipe { limits, setup, steps };
    if !recipe.has_source() && !recipe.has_target() {
        return Err(part("steps", "none of them writes `source` or `target` to a register"));
    }
    Ok(recipe)
}

/// The expression without what depends on a transfer.
fn constant(value: &Expression) -> Expression {
    use super::expression::Variable::{Length, Source, Target};
    let depends = [Source, Target, Length].into_iter().any(|variable| value.names(variable));
    if depends { Expression::number(0) } else { value.clone() }
}

fn part(part: impl Into<String>, problem: impl ToString) -> RecipeError {
    RecipeError::Part { part: part.into(), problem: problem.to_string() }
}

fn limits(form: &LimitsForm) -> Result<DmaLimits> {
    let problem = |problem: &str| part("limits", problem);
    let bits = form.address_bits.unwrap_or(64);
    if !(12..=64).contains(&bits) {
        return Err(problem("address-bits is 12 to 64"));
    }
    let limits = DmaLimits {
        address_mask: u64::MAX >> (64 - bits),
        alignment: form.alignment.unwrap_or(1),
        granularity: form.granularity.unwrap_or(1),
        boundary: form.boundary,
        max_segment: form.max_length.unwrap_or(u64::MAX),
        ..DmaLimits::default()
    };
    if limits.max_segment == 0 {
        return Err(problem("a max-length of 0 bytes moves nothing"));
    }
    limits.validate().map_err(|error| problem(&error.to_string()))?;
    Ok(limits)
}

/// What the names of a recipe mean.
struct Names {
    registers: RegisterFile,
    bar: u8,
}

impl Names {
    fn step(&self, number: usize, form: &StepForm) -> Result<Step> {
        let name = if form.name.is_empty() { format!("{number}") } else { form.name.clone() };
        let of = format!("step {name:?}");
        if form.write.is_empty() {
            return Err(part(of, "it writes nothing, so that nothing starts"));
        }
        if form.write.len() > MOST || form.after.len() > MOST || form.check.len() > MOST {
            return Err(part(of, "it has more than 256 accesses"));
        }
        if !(1..=3_600_000).contains(&form.timeout_ms) {
            return Err(part(of, "timeout-ms is 1 to 3600000"));
        }
        let writes = |list: &[WriteForm]| -> Result<Vec<Write>> {
            list.iter().map(|w| self.write(&of, w)).collect()
        };
        let check = |c: &ExpectedForm| self.expected(&of, &c.register, c.bar, &c.equals);
        Ok(Step {
            writes: writes(&form.write)?,
            wait: self.wait(&of, &form.wait)?,
            checks: form.check.iter().map(check).collect::<Result<_>>()?,
            after: writes(&form.after)?,
            timeout: Duration::from_millis(form.timeout_ms),
            name,
        })
    }

    fn wait(&self, of: &str, form: &WaitForm) -> Result<Wait> {
        match (&form.irq, &form.register, &form.equals) {
            (Some(irq), None, None) => {
                let kind = match irq {
                    IrqForm::Intx => IrqKind::Intx,
                    IrqForm::Msi => IrqKind::Msi,
                    IrqForm::Msix => IrqKind::MsiX,
                };
                let vector = form.vector.unwrap_or(0);
                if vector >= 2048 {
                    return Err(part(of, "there are at most 2048 vectors"));
                }
                Ok(Wait::Irq { kind, vector })
            }
            (None, Some(register), Some(equals)) if form.vector.is_none() => {
                Ok(Wait::Register(self.expected(of, register, form.bar, equals)?))
            }
            _ => Err(part(of, "wait has either `irq`, or `register` and `equals`")),
        }
    }

    fn write(&self, of: &str, form: &WriteForm) -> Result<Write> {
        let (bar, register, field) = self.register(of, &form.register, form.bar)?;
        let value = match &form.value {
            ValueForm::Number(number) => Expression::number(*number),
            ValueForm::Text(text) => {
                let named = field.as_ref().and_then(|field| register.field(field)?.number(text));
                match named {
                    Some(number) => Expression::number(number),
                    None => text.parse().map_err(|error| part(of, error))?,
                }
            }
        };
        if register.access == AccessMode::ReadOnly {
            return Err(part(of, format!("{} is read only", form.register)));
        }
        Ok(Write { bar, register, field, value })
    }

    fn expected(
        &self,
        of: &str,
        name: &str,
        bar: Option<u8>,
        equals: &ValueForm,
    ) -> Result<Expected> {
        let (bar, register, field) = self.register(of, name, bar)?;
        let equals = match equals {
            ValueForm::Number(number) => Some(*number),
            ValueForm::Text(text) => {
                let named = field.as_ref().and_then(|field| register.field(field)?.number(text));
                named.or_else(|| parse_number(text))
            }
        };
        let equals = equals.ok_or_else(|| part(of, format!("what {name} equals is no number")))?;
        if register.access == AccessMode::WriteOnly {
            return Err(part(of, format!("{name} is write only")));
        }
        Ok(Expected { bar, register, field, equals })
    }

    fn register(
        &self,
        of: &str,
        text: &str,
        bar: Option<u8>,
    ) -> Result<(u8, Register, Option<String>)> {
        let bar = bar.unwrap_or(self.bar);
        if bar > 5 {
            return Err(part(of, format!("there is no BAR {bar}: BARs are 0 to 5")));
        }
        match text.parse::<Target>().map_err(|error| part(of, error))? {
            Target::At { offset, width } => {
                let width = width.unwrap_or(4);
                if !offset.is_multiple_of(width.into()) {
                    return Err(part(of, format!("{text} is not at a multiple of its width")));
                }
                let register = Register::new(text, offset, width, AccessMode::ReadWrite);
                Ok((bar, register, None))
            }
            Target::Named { register: name, field } => {
                let found = self.registers.find(bar, &name).ok_or_else(|| {
                    part(of, format!("BAR{bar} has no register {name:?} in the register file"))
                })?;
                if let Some(field) = &field
                    && found.field(field).is_none()
                {
                    return Err(part(of, format!("{name} has no field {field:?}")));
                }
                Ok((bar, found.clone(), field))
            }
        }
    }
}
