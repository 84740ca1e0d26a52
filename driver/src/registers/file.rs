//! Register files: TOML that names the registers of a card's BARs.
//!
//! ```toml
//! [[register]]
//! name = "STATUS"       # letters, digits, `_`, `-`; unique in the file, upper or lower case
//! bar = 0               # 0 if left out
//! offset = 0x20         # bytes, a multiple of the width
//! width = 4             # bytes: 1, 2, 4 (if left out) or 8
//! access = "rw"         # "ro", "rw" (if left out), "w1c" or "wo"
//! read-side-effects = false
//!
//! [[register.field]]
//! name = "state"
//! bits = "1:0"          # highest and lowest bit, or one bit
//! access = "w1c"        # left out, as the register; "w1c" in a register that is "rw"
//! values = { "0" = "idle", "1" = "running" }
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{AccessMode, Field, Register, parse_number};

/// The registers of a card, by BAR.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegisterFile {
    registers: Vec<(u8, Register)>,
}

/// A register file that cannot be read or makes no sense.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterFileError {
    /// The file cannot be read.
    #[error("reading {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// It is not TOML of this form.
    #[error("the register file is malformed: {0}")]
    Form(String),
    /// A register makes no sense.
    #[error("the register file's register {register}: {problem}")]
    Register {
        /// The register's name.
        register: String,
        /// What is wrong with it.
        problem: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct FileForm {
    #[serde(default, rename = "register")]
    registers: Vec<RegisterForm>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RegisterForm {
    name: String,
    #[serde(default)]
    bar: u8,
    offset: u64,
    #[serde(default = "word")]
    width: u8,
    #[serde(default)]
    access: AccessForm,
    #[serde(default)]
    read_side_effects: bool,
    #[serde(default, rename = "field")]
    fields: Vec<FieldForm>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "lowercase")]
enum AccessForm {
    Ro,
    #[default]
    Rw,
    W1c,
    Wo,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct FieldForm {
    name: String,
    bits: Bits,
    access: Option<FieldAccessForm>,
    #[serde(default)]
    values: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum FieldAccessForm {
    W1c,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Bits {
    One(u8),
    Range(String),
}

fn word() -> u8 {
    4
}

impl RegisterFile {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be read, is malformed or makes no sense.
    pub fn read(path: impl AsRef<Path>) -> Result<RegisterFile, RegisterFileError> {
        let path = path.as_ref();
        let failed = |source| RegisterFileError::Read { path: path.to_owned(), source };
        RegisterFile::parse(&fs::read_to_string(path).map_err(failed)?)
    }

    /// Reads a file's text.
    ///
    /// # Errors
    ///
    /// Fails when it is malformed or makes no sense.
    pub fn parse(text: &str) -> Result<RegisterFile, RegisterFileError> {
        let form: FileForm =
            toml::from_str(text).map_err(|error| RegisterFileError::Form(error.to_string()))?;
        let mut names = BTreeSet::new();
        let mut registers = Vec::new();
        for register in form.registers {
            let name = register.name.clone();
            let problem = |problem| RegisterFileError::Register { register: name.clone(), problem };
            if !names.insert(name.to_ascii_lowercase()) {
                return Err(problem("the name is used twice".into()));
            }
            let bar = register.bar;
            registers.push((bar, build(register).map_err(problem)?));
        }
        registers.sort_by_key(|(bar, register)| (*bar, register.offset));
        Ok(RegisterFile { registers })
    }

    /// The registers of a BAR, in the order of their offsets.
    pub fn of_bar(&self, bar: u8) -> impl Iterator<Item = &Register> {
        self.registers.iter().filter(move |(of, _)| *of == bar).map(|(_, register)| register)
    }

    /// The register of a BAR with this name, upper or lower case.
    #[must_use]
    pub fn find(&self, bar: u8, name: &str) -> Option<&Register> {
        self.of_bar(bar).find(|register| register.name.eq_ignore_ascii_case(name))
    }
}

fn build(form: RegisterForm) -> Result<Register, String> {
    check_name(&form.name)?;
    if form.bar > 5 {
        return Err(format!("there is no BAR {}: BARs are 0 to 5", form.bar));
    }
    if !matches!(form.width, 1 | 2 | 4 | 8) {
        return Err(format!("a width of {} bytes: it is 1, 2, 4 or 8", form.width));
    }
    if !form.offset.is_multiple_of(form.width.into()) {
        return Err(format!("{:#x} is not a multiple of its {} bytes", form.offset, form.width));
    }
    let mut fields: Vec<Field> = Vec::new();
    let mut used = 0;
    for field in form.fields {
        let field = build_field(field, form.width * 8)?;
        if fields.iter().any(|other| other.name.eq_ignore_ascii_case(&field.name)) {
            return Err(format!("it has two fields {}", field.name));
        }
        if used & field.mask() != 0 {
            return Err(format!("the bits of field {} are those of another too", field.name));
        }
        used |= field.mask();
        fields.push(field);
    }
    Ok(Register {
        name: form.name,
        offset: form.offset,
        width: form.width,
        access: match form.access {
            AccessForm::Ro => AccessMode::ReadOnly,
            AccessForm::Rw => AccessMode::ReadWrite,
            AccessForm::W1c => AccessMode::WriteOneToClear,
            AccessForm::Wo => AccessMode::WriteOnly,
        },
        read_has_side_effects: form.read_side_effects,
        fields,
    })
}

fn build_field(form: FieldForm, register_bits: u8) -> Result<Field, String> {
    let FieldForm { name, bits, access, values } = form;
    check_name(&name)?;
    let (high, low) = match bits {
        Bits::One(bit) => Some((bit, bit)),
        Bits::Range(text) => match text.split_once(':') {
            Some((high, low)) => high.trim().parse().ok().zip(low.trim().parse().ok()),
            None => text.trim().parse().ok().map(|bit| (bit, bit)),
        },
    }
    .ok_or_else(|| format!("the bits of field {name} are not `high:low` or one bit"))?;
    if high < low || high >= register_bits {
        return Err(format!(
            "field {name} has bits {high}:{low}; the register has {}:0, highest first",
            register_bits - 1
        ));
    }
    let mut field = Field::new(name, low, high - low + 1);
    field.write_one_to_clear = access.is_some();
    let mut named = Vec::new();
    for (number, text) in values {
        let parsed = parse_number(&number);
        let fits = parsed.filter(|&parsed| field.insert(0, parsed).is_some());
        let problem =
            || format!("{number:?} is not a number of the {} bits of {}", field.bits, field.name);
        named.push((fits.ok_or_else(problem)?, text));
    }
    field.values = named;
    Ok(field)
}

/// A name can stand on a command line before `.` and `=`, and is not taken for a number.
fn check_name(name: &str) -> Result<(), String> {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if plain && name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Ok(());
    }
    Err(format!("{name:?} is not a name: letters, digits, `_` and `-`, a letter first"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EDU: &str = r#"
        [[register]]
        name = "LIVENESS"
        offset = 0x04
        [[register]]
        name = "ID"
        offset = 0
        access = "ro"
        [[register.field]]
        name = "minor"
        bits = "23:16"
        [[register.field]]
        name = "edu"
        bits = "7:0"
        values = { "0xed" = "edu" }
        [[register]]
        bar = 2
        name = "FIFO"
        offset = 8
        width = 8
        read-side-effects = true
    "#;

    #[test]
    fn registers_come_by_bar_and_offset() {
        let file = RegisterFile::parse(EDU).unwrap();
        let names: Vec<_> = file.of_bar(0).map(|register| &*register.name).collect();
        assert_eq!(names, ["ID", "LIVENESS"]);
        let id = file.find(0, "id").unwrap();
        assert_eq!((id.offset, id.width, id.access), (0, 4, AccessMode::ReadOnly));
        let decoded = id.decode(0x0102_00ed);
        assert_eq!((&*decoded[0].name, decoded[0].value), ("minor", 2));
        assert_eq!(decoded[1].meaning.as_deref(), Some("edu"));
        assert!(file.find(0, "FIFO").is_none());
        let fifo = file.find(2, "FIFO").unwrap();
        assert!(fifo.read_has_side_effects && fifo.width == 8);
        assert_eq!(RegisterFile::parse("").unwrap(), RegisterFile::default());
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        let register = |rest: &str| format!("[[register]]\nname = \"A\"\n{rest}");
        let field = |rest: &str| register(&format!("offset = 0\n[[register.field]]\n{rest}"));
        for (text, part) in [
            (register("offset = 2"), "0x2 is not a multiple of its 4 bytes"),
            (register("offset = 0\nwidth = 3"), "a width of 3 bytes"),
            (register("offset = 0\nbar = 6"), "no BAR 6"),
            (register("offset = -4"), "invalid value"),
            (register("offset = 0\naccess = \"x\""), "unknown variant"),
            (register("offset = 0\ncolour = 1"), "unknown field"),
            (register("offset = 0\n[[register]]\nname = \"a\"\noffset = 4"), "used twice"),
            ("[[register]]\nname = \"0x4\"\noffset = 0".into(), "is not a name"),
            (field("name = \"f\"\nbits = \"32\""), "bits 32:32"),
            (field("name = \"f\"\nbits = \"0:3\""), "highest first"),
            (field("name = \"f\"\nbits = \"a:b\""), "`high:low`"),
            (field("name = \"f\"\nbits = 3\nvalues = { \"2\" = \"x\" }"), "of the 1 bits of f"),
            (
                field("name = \"f\"\nbits = \"3:0\"\n[[register.field]]\nname = \"g\"\nbits = 3"),
                "those of another too",
            ),
            ("register".into(), "malformed"),
        ] {
            let error = RegisterFile::parse(&text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}\n{error}");
        }
        let error = RegisterFile::read("/nowhere/at/all").unwrap_err().to_string();
        assert!(error.contains("/nowhere/at/all"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn no_text_makes_the_parser_panic(
            changes in proptest::collection::vec((0_usize..EDU.len(), "[0-9a-z\\[\\]=\":\\n-]{0,3}"), 0..6),
        ) {
            let mut text = EDU.to_owned();
            for (at, part) in changes {
                let at = at.min(text.len());
                let end = (at + part.len()).min(text.len());
                text.replace_range(at..end, &part);
            }
            if let Ok(file) = RegisterFile::parse(&text) {
                for register in (0..6).flat_map(|bar| file.of_bar(bar)) {
                    let _ = register.decode(u64::MAX);
                }
            }
        }
    }
}
