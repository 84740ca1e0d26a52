//! The driver against an engine that is late.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::*;
use crate::devices::CopyEngine;
use crate::dma::{Pattern, SgTable};
use crate::testing::{HostIommu, Registers, Scripted};

/// edu's engine, which is done at once unless it is held.
#[derive(Debug)]
struct Fake {
    host: Arc<HostIommu>,
    /// What started stays running.
    hold: bool,
    master: bool,
    source: u64,
    target: u64,
    len: usize,
    command: u64,
    buffer: [u8; regs::DEVICE_BUFFER_LEN],
}

impl Registers for Fake {
    fn read(&mut self, offset: u64, _: usize) -> u64 {
        match offset {
            0x00 => 0x0100_00ed,
            0x98 if self.hold => self.command,
            0x98 => self.command & !regs::COMMAND_RUN,
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, _: usize, value: u64) {
        match offset {
            0x80 => self.source = value,
            0x88 => self.target = value,
            0x90 => self.len = value as usize,
            0x98 => {
                self.command = value;
                if self.hold || !self.master {
                    return;
                }
                let to_memory = value & regs::COMMAND_TO_MEMORY != 0;
                let (memory, own) =
                    if to_memory { (self.target, self.source) } else { (self.source, self.target) };
                let memory = self.host.host(memory, self.len).unwrap();
                // SAFETY: a mapping has so many bytes, which are only reached volatilely.
                let memory = unsafe { VolatileSlice::new(memory.as_ptr(), self.len) };
                let own = &mut self.buffer[(own - regs::DEVICE_BUFFER) as usize..][..self.len];
                if to_memory {
                    memory.copy_from(own);
                } else {
                    memory.copy_to(own);
                }
            }
            _ => {}
        }
    }

    fn bus_master(&mut self, on: bool) {
        self.master = on;
    }
}

#[test]
fn a_transfer_after_one_that_did_not_run_out_moves_its_bytes() {
    let backing = Scripted::new((0x1234, 0x11e8), |host| Fake {
        host,
        hold: false,
        master: false,
        source: 0,
        target: 0,
        len: 0,
        command: 0,
        buffer: [0; regs::DEVICE_BUFFER_LEN],
    });
    let device = Device::open(backing.attach()).unwrap();
    let config = Config {
        completion: Completion::Polled,
        address_bits: 64,
        timeout: Duration::from_millis(20),
    };
    let mut edu = Edu::probe(device, config).unwrap();
    let mut source = edu.allocate(&Request::new(10_000, Direction::ToDevice)).unwrap();
    Pattern::new(1).fill(&mut source, 0, 10_000, 0).unwrap();
    let target = edu.allocate(&Request::new(10_000, Direction::FromDevice)).unwrap();
    let tables = (SgTable::from(source), SgTable::from(target));

    let second = Duration::from_secs(1);
    backing.registers().hold = true;
    let late = CopyEngine::copy_tables(&mut edu, tables.0, tables.1, second).unwrap_err();
    assert!(matches!(late.error.of_engine(), Some(EduError::Timeout { .. })), "{late:?}");
    assert!(!backing.registers().master, "the engine runs on: it may not reach memory");
    let (source, target) = late.tables.unwrap();
    let busy = CopyEngine::copy_tables(&mut edu, source, target, second).unwrap_err();
    assert!(matches!(busy.error.of_engine(), Some(EduError::Busy { .. })), "{busy:?}");

    backing.registers().hold = false;
    let (source, target) = busy.tables.unwrap();
    let (_source, target) = CopyEngine::copy_tables(&mut edu, source, target, second).unwrap();
    let target = target.into_buffer().unwrap();
    assert_eq!(Pattern::new(1).check(&target, 0, 10_000, 0).unwrap(), Ok(()));
}

/// edu whose interrupt comes and whose cause does not.
#[derive(Debug, Default)]
struct Stuck {
    event: Option<OwnedFd>,
    /// The line stays up: it fires again as soon as it is let through.
    level: bool,
}

impl Stuck {
    fn fire(&self) {
        if let Some(event) = &self.event {
            nix::unistd::write(event, &1u64.to_ne_bytes()).unwrap();
        }
    }
}

impl Registers for Stuck {
    fn read(&mut self, offset: u64, _: usize) -> u64 {
        match offset {
            0x00 => 0x0100_00ed,
            0x24 => {
                // A message that repeats itself: there again by the next look.
                self.fire();
                0
            }
            _ => 0,
        }
    }
    fn write(&mut self, offset: u64, _: usize, _: u64) {
        if offset == 0x60 || self.level {
            self.fire();
        }
    }
    fn connect(&mut self, mut events: Vec<OwnedFd>) {
        self.event = events.pop();
    }
}

#[test]
fn an_interrupt_that_never_ends_does_not_outlast_the_deadline() {
    for (completion, level) in [(Completion::Msi, false), (Completion::Intx, true)] {
        let scripted = Scripted::new((0x1234, 0x11e8), |_| Stuck { level, ..Stuck::default() });
        let timeout = Duration::from_millis(50);
        let config = Config { completion, timeout, ..Config::default() };
        let mut edu = Edu::probe(Device::open(scripted.attach()).unwrap(), config).unwrap();
        let (ended, end) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let raised = edu.interrupt(1);
            let computed = edu.factorial(5);
            ended.send((raised, computed)).unwrap();
        });
        let (raised, computed) =
            end.recv_timeout(Duration::from_secs(10)).expect("both waits have ended");
        assert!(matches!(raised, Err(EduError::Timeout { .. })), "{raised:?}");
        assert!(matches!(computed, Err(EduError::Timeout { .. })), "{computed:?}");
    }
}

#[test]
fn what_polls_cannot_wait_for_an_interrupt_and_says_so() {
    let scripted = Scripted::new((0x1234, 0x11e8), |_| Stuck::default());
    let config = Config { completion: Completion::Polled, ..Config::default() };
    let mut edu = Edu::probe(Device::open(scripted.attach()).unwrap(), config).unwrap();
    assert!(matches!(edu.interrupt(1), Err(EduError::NoInterrupts { .. })));
}

#[test]
fn a_device_that_is_no_edu_comes_back() {
    let scripted = Scripted::new((0x1234, 0x11e8), |_| crate::testing::NoRegisters);
    let device = Device::open(scripted.attach()).unwrap();
    let (error, device) = Edu::probe(device, Config::default()).unwrap_err().into_parts();
    assert!(matches!(error, EduError::NotEdu { id: 0, .. }), "{error}");
    // Its BAR and its vectors are free again.
    let config = Config { address_bits: 7, ..Config::default() };
    let (error, device) = Edu::probe(device, config).unwrap_err().into_parts();
    assert!(matches!(error, EduError::AddressBits { bits: 7 }), "{error}");
    assert_eq!(device.vectors(crate::backend::IrqKind::Msi, 1).unwrap().len(), 1);
}
