//! A channel that is given up says why: which step failed, with what, and what it had reported.

use super::*;
use crate::events::Event;

/// Starts a copy of three descriptors.
fn start(ioat: &Ioat, channel: &mut Channel) -> Token {
    let (source, target) = scattered(ioat, 3, 1);
    let token = channel.copy(source, target, WhenFull::Return).unwrap();
    channel.issue().unwrap();
    token
}

/// What the channel says of its loss, and that the refusal of a copy says the same.
fn loss_of(ioat: &Ioat, channel: &mut Channel) -> Loss {
    let loss = channel.loss().expect("the channel is lost").clone();
    let (source, target) = pair(ioat, 64, 1);
    let refused = channel.copy(source, target, WhenFull::Return).unwrap_err();
    let text = refused.error.to_string();
    let IoatError::ChannelLost { loss: told, channel: 0, .. } = refused.error else {
        panic!("{text}")
    };
    assert_eq!(*told, loss);
    assert!(text.contains(&loss.to_string()) && text.contains("remedy: close every channel"));
    loss
}

#[test]
fn an_engine_that_does_not_stop() {
    for (halt, errors) in [(false, ChannelErrors::empty()), (true, ChannelErrors::READ_DATA)] {
        let (backing, ioat, mut channel) = open(config());
        backing.registers().deaf = true;
        if halt {
            backing.registers().fail_at = Some((1, 0x100));
        } else {
            backing.registers().hold = true;
        }
        let token = start(&ioat, &mut channel);
        if !halt {
            channel.abort().unwrap_err();
        }
        let finished = channel.wait(token, SECOND).unwrap();
        let loss = loss_of(&ioat, &mut channel);
        assert_eq!((loss.step, loss.errors), (LossStep::Stop, Some(errors)));
        assert!(loss.cause.contains("RESET not done within 20 ms"), "{loss}");
        // The transfer says so too.
        assert_eq!(finished.result.unwrap_err(), TransferError::Lost(loss.to_string()));
    }
}

#[test]
fn an_engine_that_is_gone() {
    let (backing, ioat, mut channel) = open(config());
    backing.registers().hold = true;
    let token = start(&ioat, &mut channel);
    backing.registers().gone = true;
    assert!(channel.wait(token, SECOND).unwrap().result.is_err());
    let loss = loss_of(&ioat, &mut channel);
    assert_eq!((loss.step, loss.errors), (LossStep::Look, None));
    assert!(loss.cause.contains("all ones"), "{loss}");
}

#[test]
fn an_engine_that_does_not_take_the_ring_again() {
    let (backing, ioat, mut channel) = open(config());
    backing.registers().fail_at = Some((1, 0x200));
    backing.registers().refuses_chain = (4, 0x10);
    let token = start(&ioat, &mut channel);
    // The one that it halted on has its own error; the channel has another.
    let finished = channel.wait(token, SECOND);
    assert!(
        matches!(
            finished.unwrap().result,
            Err(TransferError::Halted { errors: ChannelErrors::WRITE_DATA, .. })
        ),
        "the transfer that it halted on has an error of its own"
    );
    let loss = loss_of(&ioat, &mut channel);
    assert_eq!((loss.step, loss.errors), (LossStep::Rearm, Some(ChannelErrors::WRITE_DATA)));
    assert!(loss.cause.contains("chain address (CHANERR 0x10)"), "{loss}");
}

#[test]
fn an_engine_that_takes_the_ring_at_the_last_try_is_no_loss() {
    let (backing, ioat, mut channel) = open(config());
    backing.registers().fail_at = Some((1, 0x200));
    backing.registers().refuses_chain = (3, 0x10);
    let token = start(&ioat, &mut channel);
    assert!(channel.wait(token, SECOND).unwrap().result.is_err());
    assert!(!channel.is_lost(), "{:?}", channel.loss());
    let token = start(&ioat, &mut channel);
    channel.wait(token, SECOND).unwrap().into_result().unwrap();
}

#[test]
fn an_event_of_the_function() {
    let (backing, ioat, mut channel) = open(config());
    backing.registers().hold = true;
    let token = start(&ioat, &mut channel);
    backing.signal(Event::Error, ioat.device_events());
    assert_eq!(channel.wait(token, SECOND).unwrap().result, Err(TransferError::BusError));
    let loss = channel.loss().unwrap();
    assert_eq!((loss.step, loss.errors), (LossStep::Event, Some(ChannelErrors::empty())));
    assert!(loss.cause.contains("PCI Express"), "{loss}");
}

#[test]
fn an_engine_that_does_not_stop_when_it_is_closed() {
    let (backing, ioat, _first) = open(config());
    let second = ioat.channel(1).unwrap();
    backing.registers().deaf_second = true;
    drop(second);
    let IoatError::ChannelLost { channel: 1, loss, .. } = ioat.channel(1).unwrap_err() else {
        panic!("the second channel opens")
    };
    assert_eq!((loss.step, loss.errors), (LossStep::Close, Some(ChannelErrors::empty())));
    assert!(loss.cause.contains("channel 1: RESET not done"), "{loss}");
}
