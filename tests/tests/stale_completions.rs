//! A device that writes completion words again, laps of the ring later, on the embedded model:
//! no transfer is taken for done that is not.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, and so do its helpers")]

use std::thread::scope;
use std::time::{Duration, Instant};

use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::ioat::{Channel, Config, Ioat, Stats, WaitMode, WhenFull};
use vfio_dma::dma::{Direction, Pattern, Request, SgTable};
use vfio_dma_model::embedded::Embedded;
use vfio_dma_model::ioat::IoatConfig;

const CHANNELS: u8 = 4;
const LEN: usize = 4096;
const IN_FLIGHT: usize = 3;
const SHARE: Duration = Duration::from_secs(1);

/// Copies a few blocks at a time for a while, and looks at every byte as soon as its copy is
/// said to be done.
fn copy_for_a_while(ioat: &Ioat, mut channel: Channel) -> Stats {
    let table = |seed| {
        let mut buffer = ioat.allocate(&Request::new(LEN, Direction::Bidirectional)).unwrap();
        Pattern::new(seed).fill(&mut buffer, 0, LEN, 0).unwrap();
        SgTable::from(buffer)
    };
    let mut pairs: Vec<_> = (0..IN_FLIGHT as u64).map(|n| (table(n), table(!n))).collect();
    let begin = Instant::now();
    let mut seed = 1 << 20;
    while begin.elapsed() < SHARE {
        let mut expected = Vec::new();
        let mut tokens = Vec::new();
        for (source, target) in pairs.drain(..) {
            seed += 1;
            let mut source = source.into_buffer().unwrap();
            Pattern::new(seed).fill(&mut source, 0, LEN, 0).unwrap();
            expected.push(seed);
            tokens.push(channel.copy(source.into(), target, WhenFull::Return).unwrap());
            // Each has a doorbell, and so a completion word, of its own.
            channel.issue().unwrap();
        }
        for (token, seed) in tokens.into_iter().zip(expected) {
            let finished = channel.wait(token, Duration::from_secs(10)).unwrap();
            let tables = finished.into_result().unwrap();
            let target = &tables.target.buffers()[0];
            Pattern::new(seed).check(target, 0, LEN, 0).unwrap().unwrap();
            pairs.push((tables.source.unwrap(), tables.target));
        }
    }
    channel.stats()
}

#[test]
fn words_that_come_again_laps_later_complete_nothing() {
    for ring_size in [8, 128, 256] {
        let faults = "double-completion=1ms@/101".parse().unwrap();
        let config = IoatConfig { channels: CHANNELS, faults, ..IoatConfig::default() };
        let model = Embedded::new(config).unwrap();
        let device = Device::open(model.attach().unwrap()).unwrap();
        let config = Config { wait: WaitMode::Poll, ring_size, ..Config::default() };
        let ioat = Ioat::probe(device, config).unwrap();
        let stats: Vec<Stats> = scope(|scope| {
            let threads: Vec<_> = (0..CHANNELS)
                .map(|index| {
                    let (ioat, channel) = (&ioat, ioat.channel(index).unwrap());
                    scope.spawn(move || copy_for_a_while(ioat, channel))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let sum = |of: fn(&Stats) -> u64| stats.iter().map(of).sum::<u64>();
        assert!(sum(|stats| stats.transfers) > 1000, "{stats:?}");
        assert!(sum(|stats| stats.stale_completions) > 0, "the case needs some: {stats:?}");
        assert_eq!(sum(|stats| stats.recoveries), 0, "{stats:?}");
        println!("ring of {ring_size}: {stats:?}");
    }
}
