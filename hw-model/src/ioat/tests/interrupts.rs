//! MSI-X, MSI and INTx.

use super::*;

fn interrupting(rig: &Rig, count: u64) {
    for n in 0..count {
        let next = RING + 64 * ((n + 1) % count);
        rig.descriptor(RING + 64 * n, 1, NULL | DONE | INT, 0, 0, next);
    }
    rig.arm(RING);
}

fn rearm(rig: &Rig) {
    rig.write(0x80, 2, 0x1d);
}

fn quiet(event: &EventFd) {
    settle();
    assert!(event.read().is_err());
}

#[test]
fn a_vector_interrupts_once_until_it_is_rearmed() {
    let rig = Rig::one();
    let event = &rig.connect(IrqKind::MsiX, 1)[0];
    interrupting(&rig, 4);
    rig.ring(1);
    wait("it interrupts", || event.read() == Ok(1));
    assert_eq!(rig.completion(), RING | IDLE, "the word is there before the interrupt");
    assert_eq!(rig.read(0x80, 2), 0x1d, "disabled until rearmed");
    rig.ring(3);
    wait("it is done", || rig.completion() == (RING + 128) | IDLE);
    quiet(event);
    rearm(&rig);
    wait("what was held is delivered", || event.read() == Ok(1));
    rearm(&rig);
    quiet(event);
    assert_eq!(rig.read(0x80, 2), 0x1c);
    assert_eq!((rig.stats().interrupts, rig.stats().interrupts_delivered), (2, 2));
}

#[test]
fn each_channel_has_its_vector() {
    let rig = Rig::new(IoatConfig { channels: 3, ..IoatConfig::default() });
    let events = rig.connect(IrqKind::MsiX, 3);
    rig.descriptor(RING, 1, NULL | DONE | INT, 0, 0, RING);
    for (n, event) in events.iter().enumerate() {
        rig.write(Rig::reg(n as u8, 0x10), 8, RING);
        rig.write(Rig::reg(n as u8, 0x06), 2, 1);
        wait("its vector fires", || event.read() == Ok(1));
        assert!(events.iter().all(|event| event.read().is_err()), "and no other");
    }
    assert_eq!(rig.read(0x04, 4), 0b111);
    assert_eq!(rig.read(0x04, 4), 0, "reading clears");
}

#[test]
fn a_masked_vector_is_pending_in_the_bar() {
    let rig = Rig::one();
    let event = &rig.connect(IrqKind::MsiX, 1)[0];
    use crate::function::PciFunction;
    rig.model.function().irq_set_masked(IrqKind::MsiX, 0, true);
    interrupting(&rig, 1);
    rig.ring(1);
    wait("it is pending", || rig.read(0x3000, 8) == 1);
    quiet(event);
    rig.model.function().irq_set_masked(IrqKind::MsiX, 0, false);
    assert_eq!((event.read(), rig.read(0x3000, 8)), (Ok(1), 0));
    // The mask of the whole function, in configuration space.
    rig.set_config(0x80, 0xc000_0000);
    rearm(&rig);
    rig.ring(2);
    wait("it is pending", || rig.read(0x3000, 8) == 1);
    rig.set_config(0x80, 0x8000_0000);
    assert_eq!(event.read(), Ok(1));
}

#[test]
fn msi_needs_the_master_enable_and_follows_attnstatus() {
    let rig = Rig::one();
    let event = &rig.connect(IrqKind::Msi, 1)[0];
    interrupting(&rig, 4);
    rig.ring(1);
    wait("attention is shown", || rig.read(0x03, 1) == 0x02);
    quiet(event);
    rig.write(0x03, 1, 0x01);
    wait("enabling sends it", || event.read() == Ok(1));
    assert_eq!(rig.read(0x03, 1), 0x07);
    assert_eq!((rig.read(0x04, 4), rig.read(0x03, 1)), (1, 0x01));
    rearm(&rig);
    rig.ring(2);
    wait("the next comes", || event.read() == Ok(1));
    assert_eq!(rig.config(0x04) >> 16 & 0x8, 0, "INTx is not asserted");
}

#[test]
fn intx_is_a_level_that_reading_attnstatus_lowers() {
    let rig = Rig::one();
    let event = &rig.connect(IrqKind::Intx, 1)[0];
    rig.write(0x03, 1, 0x01);
    interrupting(&rig, 4);
    rig.ring(1);
    wait("it fires", || event.read() == Ok(1));
    assert_ne!(rig.config(0x04) >> 16 & 0x8, 0, "the status register shows it");
    rig.device.intx_set_masked(false).unwrap();
    assert_eq!(event.read(), Ok(1), "the level is still high");
    assert_eq!(rig.read(0x04, 4), 1);
    rig.device.intx_set_masked(false).unwrap();
    assert!(event.read().is_err());
    assert_eq!(rig.config(0x04) >> 16 & 0x8, 0);
    // Disabled in the command register: shown, not asserted.
    rig.set_config(0x04, 0x0406);
    rearm(&rig);
    rig.ring(2);
    wait("it is shown", || rig.config(0x04) >> 16 & 0x8 != 0);
    quiet(event);
    rig.set_config(0x04, 0x0006);
    assert_eq!(event.read(), Ok(1));
}

#[test]
fn a_function_that_is_no_bus_master_sends_no_messages() {
    let rig = Rig::one();
    let event = &rig.connect(IrqKind::MsiX, 1)[0];
    rig.bus_master(false);
    interrupting(&rig, 1);
    rig.ring(1);
    wait("the channel halts", || rig.state() == HALTED);
    quiet(event);
}

#[test]
fn the_delay_joins_interrupts() {
    let rig = Rig::one();
    let event = &rig.connect(IrqKind::MsiX, 1)[0];
    const DELAY: Duration = Duration::from_micros(10_000);
    rig.write(0x0c, 2, 10_000);
    interrupting(&rig, 4);
    let start = Instant::now();
    rig.ring(4);
    wait("all are done", || rig.completion() == (RING + 192) | IDLE);
    wait("they are delivered", || event.read() == Ok(1));
    assert!(start.elapsed() >= DELAY);
    quiet(event);
    assert_eq!(rig.stats().interrupts, 1);
    // The delay counts from rearming, when that comes later.
    rig.ring(5);
    wait("it is done", || rig.completion() == RING | IDLE);
    settle();
    let start = Instant::now();
    rearm(&rig);
    wait("it is delivered", || event.read() == Ok(1));
    assert!(start.elapsed() >= DELAY);
}

#[test]
fn an_error_interrupts_only_when_asked() {
    let rig = Rig::one();
    let event = &rig.connect(IrqKind::MsiX, 1)[0];
    for (control, interrupts) in [(0x0d, false), (0x1d, true)] {
        rig.write(0x80, 2, control);
        rig.descriptor(RING, 0, DONE, 0, 0, RING);
        rig.arm(RING);
        rig.halts(1, 1 << 11, 0);
        if interrupts {
            wait("it interrupts", || event.read() == Ok(1));
        } else {
            quiet(event);
        }
        rig.recover();
    }
}
