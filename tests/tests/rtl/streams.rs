//! LitePCIe's channels as streams between memory and the card's own logic, of which the generated
//! card has some: it sums what comes, and makes words that count up.

use std::time::{Duration, Instant};

use vfio_dma::device::Device;
use vfio_dma::devices::litepcie::{Config, CsrError, LitePcie, LitePcieError, Synchronizer};
use vfio_dma::devices::{ByteEngine, PciDriver};
use vfio_dma::dma::{Direction, Pattern, Placement, Request, SgTable};
use vfio_dma_tools::rtl::RtlConfig;
use vfio_dma_tools::rtl::litepcie::{Options, card, csr};

use crate::litepcie::{Model, check, driven, model};
use crate::segments::{LONG, copy, whole};

/// Two channels with synchronizers, and the widest bus: streams of whole packets work there.
pub(crate) fn wide() -> Options {
    Options { channels: 2, data_width: 512, synchronizer: true, ..Options::default() }
}

/// Bytes of a word of its bus.
const WIDE: usize = 64;

fn two_channels() -> Model {
    model(&RtlConfig::litepcie(Options { channels: 2, ..Options::default() }))
}

/// The wide card, with its own map of registers.
fn synchronized() -> (Model, LitePcie) {
    let map = csr(&card(&wide()).unwrap().csr.with_extension("json")).unwrap().parse().unwrap();
    let model = model(&RtlConfig::litepcie(wide()));
    let device = Device::open(model.attach().unwrap()).unwrap();
    let card = LitePcie::probe(device, Config { csr: map, ..Config::default() }).unwrap();
    (model, card)
}

/// A table of `len` bytes in pages that are no neighbours, for data to the card.
fn source(card: &dyn ByteEngine, len: usize, seed: u64) -> SgTable {
    let request = Request::new(len, Direction::ToDevice).placement(Placement::ScatterGather);
    let mut buffer = card.allocate(&request).unwrap();
    Pattern::new(seed).fill(&mut buffer, 0, len, 0).unwrap();
    buffer.into()
}

/// The same for data from it.
fn target(card: &dyn ByteEngine, len: usize) -> SgTable {
    let request = Request::new(len, Direction::FromDevice).placement(Placement::ScatterGather);
    card.allocate(&request).unwrap().into()
}

/// What the card's logic makes of a pattern: for each word of the bus, a turn to the left and
/// all words of 32 bits.
fn checksum(len: usize, seed: u64, word: usize) -> u32 {
    let pattern = Pattern::new(seed);
    let bytes: Vec<u8> = (0..len as u64).map(|at| pattern.byte(at)).collect();
    bytes.chunks(word).fold(0, |sum: u32, word| {
        let words = word.chunks(4).map(|four| u32::from_le_bytes(four.try_into().unwrap()));
        words.fold(sum.rotate_left(1), |sum, word| sum ^ word)
    })
}

/// Clears the sum of a channel's logic, sends, and compares.
fn send_and_sum(card: &mut LitePcie, channel: u8, len: usize, word: usize) {
    let seed = u64::from(channel) + 1;
    card.set_csr(&format!("ends{channel}_clear"), 1).unwrap();
    let table = source(card, len, seed);
    card.send(channel, table, LONG).unwrap();
    assert_eq!(consumed(card, channel), len / word);
    let sum = card.csr(&format!("ends{channel}_checksum")).unwrap();
    assert_eq!(sum, checksum(len, seed, word), "channel {channel}");
}

/// Words of the bus that the channel's logic took; waits until none comes any more.
fn consumed(card: &LitePcie, channel: u8) -> usize {
    let read = || card.csr(&format!("ends{channel}_consumed")).unwrap() as usize;
    let mut count = read();
    loop {
        std::thread::sleep(Duration::from_millis(2));
        match read() {
            same if same == count => return count,
            more => count = more,
        }
    }
}

fn generate(card: &mut LitePcie, channel: u8, on: bool) {
    card.set_csr(&format!("ends{channel}_generate"), on.into()).unwrap();
}

fn words(table: SgTable) -> Vec<u32> {
    let buffer = table.into_buffer().unwrap();
    let mut bytes = vec![0; buffer.len()];
    buffer.read(0, &mut bytes).unwrap();
    bytes.chunks(4).map(|four| u32::from_le_bytes(four.try_into().unwrap())).collect()
}

/// Receives and looks whether the words count up; returns the first one.
fn receive_and_look(card: &mut LitePcie, channel: u8, len: usize) -> u32 {
    let table = target(card, len);
    let words = words(card.receive(channel, table, LONG).unwrap());
    assert_eq!(words.len(), len / 4);
    assert!(words.windows(2).all(|two| two[1] == two[0].wrapping_add(1)), "{:x?}", &words[..64]);
    words[0]
}

pub(crate) fn each_channel_sends_and_receives() {
    let model = two_channels();
    let mut card = driven(&model);
    assert_eq!(ByteEngine::channels(&card), 2);
    // More than its tables have descriptors for at a time.
    for (channel, len) in [(0, 2 << 20), (1, 64 << 10), (0, 16)] {
        send_and_sum(&mut card, channel, len, 16);
    }
    for channel in [1, 0] {
        generate(&mut card, channel, true);
        // What it made before there was a place for it is gone; then nothing is.
        let first = receive_and_look(&mut card, channel, 2 << 20);
        assert_eq!(receive_and_look(&mut card, channel, 4096), first + (2 << 18));
        generate(&mut card, channel, false);
    }
    // What was under way in a stream does not end up in a copy, nor the reverse.
    let len = 64 << 10;
    assert_eq!(copy(&mut card, len, &whole(len), &whole(len), 3), 0);
    send_and_sum(&mut card, 0, 4096, 16);
    generate(&mut card, 0, true);
    receive_and_look(&mut card, 0, 4096);
    check(&model.function().stats());
}

pub(crate) fn a_stream_without_data_is_late_and_the_card_goes_on() {
    let model = two_channels();
    let mut card = driven(&model);
    let table = target(&card, 4096);
    let failed = card.receive(0, table, Duration::from_millis(200)).unwrap_err();
    let error = failed.error.of_engine::<LitePcieError>();
    assert!(matches!(error, Some(LitePcieError::Timeout { written: 0, .. })), "{error:?}");
    assert!(failed.table.is_some());
    let table = source(&card, 4096, 1);
    let failed = card.send(2, table, LONG).unwrap_err();
    let error = failed.error.of_engine::<LitePcieError>();
    assert!(matches!(error, Some(LitePcieError::NoChannel { channel: 2, .. })), "{error:?}");
    send_and_sum(&mut card, 0, 4096, 16);
}

pub(crate) fn streams_loop_by_themselves() {
    let model = two_channels();
    let mut card = driven(&model);
    let len = 32 << 10;
    let patient = Instant::now() + Duration::from_secs(60);
    let table = source(&card, len, 1);
    let looping = ByteEngine::start_loop(&mut card, 0, Some(table), None).unwrap();
    while looping.sent().unwrap() < 3 {
        assert!(Instant::now() < patient, "{:?}", looping.sent());
    }
    let (back, none) = looping.stop().unwrap();
    assert!(back.is_some() && none.is_none());
    assert!(consumed(&card, 0) >= 3 * len / 16);

    generate(&mut card, 1, true);
    let table = target(&card, len);
    let looping = ByteEngine::start_loop(&mut card, 1, None, Some(table)).unwrap();
    while looping.received().unwrap() < 3 {
        assert!(Instant::now() < patient, "{:?}", looping.received());
    }
    let (none, back) = looping.stop().unwrap();
    assert!(none.is_none());
    let words = words(back.unwrap());
    // Whole words of the bus, each after the one before it, but for where it was stopped.
    let follows = |two: &[u32]| two[1] == two[0].wrapping_add(1);
    let breaks = words.windows(2).filter(|two| !follows(two)).count();
    assert!(breaks <= 1 && words[0] as usize >= len / 4, "{breaks} {:x?}", &words[..8]);
    // One that is dropped is stopped too.
    let table = target(&card, len);
    drop(ByteEngine::start_loop(&mut card, 1, None, Some(table)).unwrap());
    generate(&mut card, 1, false);
    send_and_sum(&mut card, 0, 4096, 16);
}

pub(crate) fn synchronizers_hold_streams_back_until_a_pulse() {
    let (_model, mut card) = synchronized();
    let len = 4096;
    let pulse = |card: &mut LitePcie| card.set_csr("card_pulse", 1).unwrap();
    // The card has room for so much: it is read, and waits.
    for (mode, early) in [(Synchronizer::Start, false), (Synchronizer::StartBoth, true)] {
        card.set_synchronizer(0, Synchronizer::Hold).unwrap();
        card.set_csr("ends0_clear", 1).unwrap();
        card.set_synchronizer(0, mode).unwrap();
        if early {
            // Nothing waits yet: this one starts nothing.
            pulse(&mut card);
        }
        let table = source(&card, len, 1);
        card.send(0, table, LONG).unwrap();
        assert_eq!(consumed(&card, 0), 0, "{mode:?}");
        pulse(&mut card);
        assert_eq!(consumed(&card, 0), len / WIDE, "{mode:?}");
        assert_eq!(card.csr("ends0_checksum").unwrap(), checksum(len, 1, WIDE), "{mode:?}");
        // It stays open.
        send_and_sum(&mut card, 0, 64 << 10, WIDE);
    }
    // What the logic makes before the pulse is gone.
    card.set_synchronizer(1, Synchronizer::Start).unwrap();
    generate(&mut card, 1, true);
    pulse(&mut card);
    assert!(receive_and_look(&mut card, 1, len) > 0);
    generate(&mut card, 1, false);
    card.set_synchronizer(1, Synchronizer::Bypass).unwrap();
    send_and_sum(&mut card, 1, len, WIDE);

    let model = two_channels();
    let error = driven(&model).set_synchronizer(0, Synchronizer::Hold).unwrap_err();
    assert!(matches!(error, LitePcieError::Csr(CsrError::Missing { .. })), "{error}");
}
