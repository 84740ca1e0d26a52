//! Registers declared once: offset, width, access and reset value.
//!
//! A device writes a table of [`Register`]s and hands it to a [`RegisterSet`], which does
//! what every device needs: it finds the registers that an access touches, puts accesses of
//! any legal width together (the two halves of a 64-bit register, or four 8-bit registers at
//! once), keeps read-only bits, clears what is written as one or what was read, and answers
//! what is illegal with all ones. What is particular to the device happens in two closures:
//! one before a register is read, one after it was written.
//!
//! Values are atomic: an engine's thread changes a status register while a driver reads it.

pub(crate) mod rate;

use std::fmt;
use std::sync::atomic::Ordering;

use rate::RateLimit;

use crate::sync::AtomicU64;

/// One register: where it is, and what an access does to each of its bits.
///
/// A bit that no access method names is read-only.
#[derive(Debug, Clone)]
pub struct Register<K> {
    key: K,
    name: &'static str,
    offset: u32,
    bytes: u8,
    reset: u64,
    writable: u64,
    write_one_to_clear: u64,
    clear_on_read: u64,
    command: bool,
}

impl<K: Copy> Register<K> {
    /// A read-only register of 1, 2, 4 or 8 bytes at a byte offset, with its reset value.
    #[must_use]
    pub const fn new(key: K, name: &'static str, offset: u32, bytes: u8, reset: u64) -> Self {
        Register {
            key,
            name,
            offset,
            bytes,
            reset,
            writable: 0,
            write_one_to_clear: 0,
            clear_on_read: 0,
            command: false,
        }
    }

    /// These bits hold what is written.
    #[must_use]
    pub const fn writable(mut self, bits: u64) -> Self {
        self.writable = bits;
        self
    }

    /// These bits are cleared by writing one to them; writing zero does nothing.
    #[must_use]
    pub const fn write_one_to_clear(mut self, bits: u64) -> Self {
        self.write_one_to_clear = bits;
        self
    }

    /// These bits are cleared when they were read.
    #[must_use]
    pub const fn clear_on_read(mut self, bits: u64) -> Self {
        self.clear_on_read = bits;
        self
    }

    /// A write is an order to the device: it is not stored (in bits that are not writable)
    /// but always handed on.
    #[must_use]
    pub const fn command(mut self) -> Self {
        self.command = true;
        self
    }

    /// What the device calls it in its code.
    #[must_use]
    pub fn key(&self) -> K {
        self.key
    }

    /// What the datasheet calls it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its byte offset in the region.
    #[must_use]
    pub fn offset(&self) -> u32 {
        self.offset
    }

    /// Its width in bytes.
    #[must_use]
    pub fn bytes(&self) -> u8 {
        self.bytes
    }

    /// Its value after reset.
    #[must_use]
    pub fn reset(&self) -> u64 {
        self.reset
    }

    /// The bits that a write can set.
    #[must_use]
    pub fn writable_bits(&self) -> u64 {
        self.writable
    }

    fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.bytes)
    }

    fn mask(&self) -> u64 {
        u64::MAX >> (64 - 8 * u32::from(self.bytes))
    }

    /// The value after `written` arrived in the bits of `lanes`.
    fn merge(&self, old: u64, written: u64, lanes: u64) -> u64 {
        let stored = self.writable & lanes;
        let value = (old & !stored) | (written & stored);
        value & !(written & lanes & self.write_one_to_clear)
    }
}

/// What a write did to a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write {
    /// The register's value before.
    pub old: u64,
    /// The register's value after.
    pub new: u64,
    /// The data of the access, at its place in the register; 0 elsewhere.
    pub written: u64,
    /// The bits of the register that the access covered.
    pub lanes: u64,
}

/// What lies between the registers of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holes {
    /// Reserved bytes that read zero and ignore writes, as in configuration space.
    Zero,
    /// Nothing: an access that touches no register at all is illegal.
    Illegal,
}

/// A table of registers that contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The width is none that a bus has.
    #[error("register {name} at {offset:#x} has a width of {bytes} bytes, not 1, 2, 4 or 8")]
    Width {
        /// Name of the register.
        name: &'static str,
        /// Its offset.
        offset: u32,
        /// Its width in bytes.
        bytes: u8,
    },
    /// The register begins before the one in front of it ends, or ends after its region.
    #[error("register {name} at {offset:#x} overlaps another or exceeds its region")]
    Place {
        /// Name of the register.
        name: &'static str,
        /// Its offset.
        offset: u32,
    },
    /// A value or a mask has bits that the register does not have.
    #[error("register {name} at {offset:#x}: its reset value or a mask is wider than it is")]
    Bits {
        /// Name of the register.
        name: &'static str,
        /// Its offset.
        offset: u32,
    },
}

/// A register's place in its set, which stays the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegisterId(usize);

/// The registers of one region, and their values.
pub struct RegisterSet<K> {
    name: &'static str,
    size: u64,
    widest: usize,
    holes: Holes,
    registers: Box<[Register<K>]>,
    values: Box<[AtomicU64]>,
    illegal: AtomicU64,
    log: RateLimit,
}

impl<K: Copy + Eq> RegisterSet<K> {
    /// A set in reset state; `size` is that of the region and `widest` the longest access,
    /// both in bytes.
    ///
    /// # Errors
    ///
    /// Fails when a register has no legal width, overlaps another, or lies outside.
    pub fn new(
        name: &'static str,
        size: u64,
        widest: usize,
        holes: Holes,
        mut registers: Vec<Register<K>>,
    ) -> Result<Self, LayoutError> {
        registers.sort_by_key(Register::offset);
        let mut end = 0;
        for register in &registers {
            let Register { name, offset, bytes, .. } = *register;
            if !matches!(bytes, 1 | 2 | 4 | 8) {
                return Err(LayoutError::Width { name, offset, bytes });
            }
            if u64::from(offset) < end || register.end() > size {
                return Err(LayoutError::Place { name, offset });
            }
            let bits = register.reset
                | register.writable
                | register.write_one_to_clear
                | register.clear_on_read;
            if bits & !register.mask() != 0 {
                return Err(LayoutError::Bits { name, offset });
            }
            end = register.end();
        }
        let values = registers.iter().map(|r| AtomicU64::new(r.reset)).collect();
        Ok(RegisterSet {
            name,
            size,
            widest,
            holes,
            registers: registers.into(),
            values,
            illegal: AtomicU64::new(0),
            log: RateLimit::default(),
        })
    }

    /// Finds a register by its key.
    #[must_use]
    pub fn find(&self, key: K) -> Option<RegisterId> {
        self.registers.iter().position(|r| r.key == key).map(RegisterId)
    }

    /// All registers, in ascending order of their offsets.
    #[must_use]
    pub fn registers(&self) -> &[Register<K>] {
        &self.registers
    }

    /// The size of the region in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many illegal accesses there were.
    #[must_use]
    pub fn illegal_accesses(&self) -> u64 {
        self.illegal.load(Ordering::Relaxed)
    }

    /// A register's value, as the device sees it: nothing is cleared.
    #[must_use]
    pub fn get(&self, id: RegisterId) -> u64 {
        self.values[id.0].load(Ordering::Acquire)
    }

    /// Sets a register's value, read-only bits and all.
    pub fn set(&self, id: RegisterId, value: u64) {
        self.values[id.0].store(value & self.registers[id.0].mask(), Ordering::Release);
    }

    /// Sets bits of a register; returns its former value.
    pub fn set_bits(&self, id: RegisterId, bits: u64) -> u64 {
        self.values[id.0].fetch_or(bits & self.registers[id.0].mask(), Ordering::AcqRel)
    }

    /// Clears bits of a register; returns its former value.
    pub fn clear_bits(&self, id: RegisterId, bits: u64) -> u64 {
        self.values[id.0].fetch_and(!bits, Ordering::AcqRel)
    }

    /// Puts every register back to its reset value.
    pub fn reset(&self) {
        for (value, register) in self.values.iter().zip(&self.registers) {
            value.store(register.reset, Ordering::Release);
        }
    }

    /// Carries out a read. `refresh` is called for each register before its value is taken,
    /// `taken` after it, with the value.
    pub fn read(
        &self,
        offset: u64,
        data: &mut [u8],
        mut refresh: impl FnMut(K),
        mut taken: impl FnMut(K, u64),
    ) {
        let Some(first) = self.resolve(offset, data.len()) else {
            data.fill(0xff);
            self.refuse("read", offset, data.len());
            return;
        };
        data.fill(0);
        for (index, register) in self.touched(first, offset, data.len()) {
            let Overlap { in_access, in_register, count } =
                Overlap::of(register, offset, data.len());
            refresh(register.key);
            let lanes = lanes(in_register, count);
            let clear = register.clear_on_read & lanes;
            let value = if clear == 0 {
                self.values[index].load(Ordering::Acquire)
            } else {
                self.values[index].fetch_and(!clear, Ordering::AcqRel)
            };
            let bytes = (value >> (8 * in_register)).to_le_bytes();
            data[in_access..in_access + count].copy_from_slice(&bytes[..count]);
            taken(register.key, value & lanes);
        }
    }

    /// Carries out a write. `written` is called after each register that can be written has
    /// its new value.
    pub fn write(&self, offset: u64, data: &[u8], mut written: impl FnMut(K, Write)) {
        let Some(first) = self.resolve(offset, data.len()) else {
            self.refuse("write", offset, data.len());
            return;
        };
        for (index, register) in self.touched(first, offset, data.len()) {
            let Overlap { in_access, in_register, count } =
                Overlap::of(register, offset, data.len());
            let mut bytes = [0; 8];
            bytes[..count].copy_from_slice(&data[in_access..in_access + count]);
            let value = u64::from_le_bytes(bytes) << (8 * in_register);
            let lanes = lanes(in_register, count);
            if register.writable | register.write_one_to_clear == 0 && !register.command {
                continue;
            }
            let mut old = self.values[index].load(Ordering::Acquire);
            let new = loop {
                let new = register.merge(old, value, lanes);
                match self.values[index].compare_exchange_weak(
                    old,
                    new,
                    Ordering::AcqRel,
                    Ordering::Acquire,
                ) {
                    Ok(_) => break new,
                    Err(now) => old = now,
                }
            };
            written(register.key, Write { old, new, written: value, lanes });
        }
    }

    /// The first register that an access touches; `None` when the access is illegal.
    fn resolve(&self, offset: u64, len: usize) -> Option<usize> {
        let legal = len.is_power_of_two()
            && len <= self.widest
            && offset.is_multiple_of(len as u64)
            && offset.checked_add(len as u64).is_some_and(|end| end <= self.size);
        if !legal {
            return None;
        }
        let first = self.registers.partition_point(|r| r.end() <= offset);
        let hit =
            self.registers.get(first).is_some_and(|r| u64::from(r.offset) < offset + len as u64);
        (hit || self.holes == Holes::Zero).then_some(first)
    }

    fn touched(
        &self,
        first: usize,
        offset: u64,
        len: usize,
    ) -> impl Iterator<Item = (usize, &Register<K>)> {
        let end = offset + len as u64;
        self.registers[first..]
            .iter()
            .take_while(move |r| u64::from(r.offset) < end)
            .enumerate()
            .map(move |(n, r)| (first + n, r))
    }

    fn refuse(&self, what: &str, offset: u64, len: usize) {
        self.illegal.fetch_add(1, Ordering::Relaxed);
        let name = self.name;
        self.log.warn(format_args!("{name}: illegal {what} of {len} bytes at {offset:#x}"));
    }
}

impl<K> fmt::Debug for RegisterSet<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(
                self.registers
                    .iter()
                    .zip(&self.values)
                    .map(|(r, v)| (r.name, format!("{:#x}", v.load(Ordering::Relaxed)))),
            )
            .finish()
    }
}

/// The bytes that an access and a register share.
struct Overlap {
    in_access: usize,
    in_register: usize,
    count: usize,
}

impl Overlap {
    fn of<K>(register: &Register<K>, offset: u64, len: usize) -> Overlap {
        let (first, last) =
            (u64::from(register.offset), register.offset as u64 + u64::from(register.bytes));
        let start = first.max(offset);
        let end = last.min(offset + len as u64);
        Overlap {
            in_access: (start - offset) as usize,
            in_register: (start - first) as usize,
            count: (end - start) as usize,
        }
    }
}

/// The bits of `count` bytes from byte `first` on.
fn lanes(first: usize, count: usize) -> u64 {
    (u64::MAX >> (64 - 8 * count)) << (8 * first)
}

#[cfg(test)]
mod tests;
