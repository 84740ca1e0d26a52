//! Errors of several channels at once, on a device whose channels share the mirror of CHANERR
//! (version 3.2): each channel is set up again, and none takes another along.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, and so do its helpers")]

use std::thread::scope;
use std::time::{Duration, Instant};

use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::ioat::{
    Channel, ChannelErrors, Config, Ioat, Stats, TransferError, WaitMode, WhenFull,
};
use vfio_dma::dma::{Direction, Pattern, Request, SgTable};
use vfio_dma_model::embedded::Embedded;
use vfio_dma_model::ioat::{IoatConfig, Personality};

const CHANNELS: u8 = 4;
const LEN: usize = 4096;
const IN_FLIGHT: usize = 8;
const SHARE: Duration = Duration::from_secs(3);

/// Copies for a while; returns how many transfers halted, and the channel's counts.
fn copy_for_a_while(ioat: &Ioat, channel: &mut Channel) -> u64 {
    let table = |seed| {
        let mut buffer = ioat.allocate(&Request::new(LEN, Direction::Bidirectional)).unwrap();
        Pattern::new(seed).fill(&mut buffer, 0, LEN, 0).unwrap();
        SgTable::from(buffer)
    };
    let mut pairs: Vec<_> = (0..IN_FLIGHT as u64).map(|n| (table(n), table(!n))).collect();
    let (begin, mut halted, mut seed) = (Instant::now(), 0, 1 << 20);
    while begin.elapsed() < SHARE {
        let mut in_flight = Vec::new();
        for (source, target) in pairs.drain(..) {
            seed += 1;
            let mut source = source.into_buffer().unwrap();
            Pattern::new(seed).fill(&mut source, 0, LEN, 0).unwrap();
            let token = channel.copy(source.into(), target, WhenFull::Return).unwrap();
            in_flight.push((token, seed));
        }
        channel.issue().unwrap();
        for (token, seed) in in_flight {
            let finished = channel.wait(token, Duration::from_secs(10)).unwrap();
            let Some(tables) = finished.tables else { panic!("{:?}", finished.result) };
            match finished.result {
                Ok(()) => {
                    let target = &tables.target.buffers()[0];
                    Pattern::new(seed).check(target, 0, LEN, 0).unwrap().unwrap();
                }
                Err(TransferError::Halted { errors: ChannelErrors::READ_DATA, .. }) => halted += 1,
                Err(other) => panic!("{other}"),
            }
            pairs.push((tables.source.unwrap(), tables.target));
        }
    }
    assert!(!channel.is_lost(), "{:?}", channel.loss());
    halted
}

#[test]
fn channels_that_halt_at_the_same_time_are_all_set_up_again() {
    let faults = "chanerr=8@/503".parse().unwrap();
    let personality = Personality::Skylake;
    let config = IoatConfig { channels: CHANNELS, faults, personality, ..IoatConfig::default() };
    let model = Embedded::new(config).unwrap();
    let device = Device::open(model.attach().unwrap()).unwrap();
    let ioat = Ioat::probe(device, Config { wait: WaitMode::Poll, ..Config::default() }).unwrap();
    let mut channels: Vec<Channel> = (0..CHANNELS).map(|n| ioat.channel(n).unwrap()).collect();
    let halted: Vec<u64> = scope(|scope| {
        let threads: Vec<_> = channels
            .iter_mut()
            .map(|channel| {
                let ioat = &ioat;
                scope.spawn(move || copy_for_a_while(ioat, channel))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let stats: Vec<Stats> = channels.iter().map(Channel::stats).collect();
    assert!(halted.iter().all(|&halted| halted > 0), "{halted:?}: {stats:?}");
    assert!(stats.iter().zip(&halted).all(|(stats, &halted)| stats.recoveries >= halted));
    assert_eq!(model.function().stats().memory.refused_not_mapped, 0);
    println!("{halted:?} halted: {stats:?}");
    // One is closed and opened again while the others are there, and works.
    drop(channels.pop());
    let mut again = ioat.channel(CHANNELS - 1).unwrap();
    copy_for_a_while(&ioat, &mut again);
}
