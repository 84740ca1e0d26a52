//! Packets of a hostile endpoint to the root complex: memory that is not to be written is not, what
//! is malformed is counted, and the function's registers answer within a bound.
#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use vfio_dma::backend::Region;
use vfio_dma::device::Device;
use vfio_dma::dma::{Direction, Pattern, Request as Allocation};
use vfio_dma_fuzz::Bytes;
use vfio_dma_model::embedded::{Embedded, IommuOptions};
use vfio_dma_model::rtl::litepcie;
use vfio_dma_model::tlp::{
    Completion, Endpoint, EndpointError, Event, Inbound, Limits, Outcome, Request, Settings,
    Status, Tlp, TlpFunction,
};

/// Bytes of each buffer.
const LEN: usize = 8192;

/// What the endpoint is to send, and where memory is: it learns the latter through registers.
struct Script {
    bytes: Vec<u8>,
    position: usize,
    places: Vec<u64>,
}

impl Script {
    /// A packet, mostly a legal one.
    fn packet(&mut self, seen: &[Inbound]) -> Option<Event> {
        let rest = self.bytes.get(self.position..).filter(|rest| !rest.is_empty())?;
        let mut bytes = Bytes::new(rest);
        let kind = bytes.u8();
        let place = self.places.get(usize::from(kind >> 4)).copied().unwrap_or(0x10_0000);
        let address = place + u64::from(bytes.u16() & 0x3fff);
        let len = usize::from(bytes.u8()) + 1;
        let mut used = 4;
        let inside = len.min(4096 - (address & 0xfff) as usize);
        let request = Request::of_bytes(0x100, kind, address, inside);
        let event = match kind % 8 {
            0 | 1 => Event::Tlp(Tlp::Read(request).encode()),
            2 | 3 => Event::Tlp(Tlp::Write(request, vec![kind; request.len()]).encode()),
            // An answer to a read of a register, with what was asked changed.
            4 => {
                let read =
                    seen.iter().rev().find_map(|inbound| match Tlp::decode(&inbound.words) {
                        Ok(Tlp::Read(read)) => Some(read),
                        _ => None,
                    });
                let (tag, requester) = read.map_or((kind, 0), |read| (read.tag, read.requester));
                let completion = Completion {
                    completer: 0x100,
                    requester,
                    tag: tag ^ u8::from(len & 3 == 3),
                    status: if len & 4 == 0 { Status::Success } else { Status::CompleterAbort },
                    byte_count: (len as u16 & 7).max(1),
                    lower_address: address as u8 & 0x7f,
                    poisoned: len & 16 != 0,
                };
                Event::Tlp(Tlp::Completion(completion, vec![kind; 4 * (len & 3)]).encode())
            }
            5 => Event::Interrupt(len as u8),
            6 => Event::Endless,
            // Words of any kind, whose first may be a header.
            _ => {
                used += 4 * len;
                Event::Tlp((0..len).map(|_| bytes.u32()).collect())
            }
        };
        self.position += used;
        Some(event)
    }
}

impl Endpoint for Script {
    fn reset(&mut self) -> Result<(), EndpointError> {
        Ok(())
    }

    fn run(
        &mut self,
        _settings: &Settings,
        inbound: &mut Vec<Inbound>,
        limits: &Limits,
        outcome: &mut Outcome,
    ) -> Result<(), EndpointError> {
        for packet in inbound.iter() {
            if let Ok(Tlp::Write(_, data)) = Tlp::decode(&packet.words)
                && let Ok(place) = <[u8; 8]>::try_from(data.as_slice())
            {
                self.places.push(u64::from_le_bytes(place));
            }
        }
        for _ in 0..8 {
            let Some(event) = self.packet(inbound) else { break };
            outcome.events.push((outcome.now, event));
        }
        inbound.clear();
        outcome.now += u64::from(limits.cycles.max(1));
        outcome.quiet =
            if outcome.events.is_empty() { outcome.quiet.saturating_add(limits.cycles) } else { 0 };
        outcome.busy = self.position < self.bytes.len();
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes::new(data);
    let mut words = Vec::new();
    for chunk in data.chunks_exact(4).take(64) {
        words.push(u32::from_be_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]));
    }
    if let Ok(tlp) = Tlp::decode(&words) {
        // A digest, attributes and reserved bits are not kept.
        assert_eq!(Tlp::decode(&tlp.encode()).as_ref(), Ok(&tlp), "{words:x?}");
    }
    let mut config = litepcie::config();
    config.register_timeout = 4096;
    config.root.latency = u32::from(bytes.u8());
    config.root.bytes_per_cycle = u32::from(bytes.u8() % 32);
    let script = Script { bytes: bytes.rest().to_vec(), position: 0, places: Vec::new() };
    let function = TlpFunction::new(script, config).expect("a function");
    let model = Embedded::with_function(function, IommuOptions::default());
    let start = Instant::now();
    let mut device = Device::open(model.attach().expect("the only one")).expect("a device");
    let allocate = |direction| device.allocate(&Allocation::new(LEN, direction)).expect("memory");
    let mut source = allocate(Direction::ToDevice);
    let target = allocate(Direction::FromDevice);
    let pattern = Pattern::new(1);
    pattern.fill(&mut source, 0, LEN, 0).expect("inside");
    let bar = device.bar(0).expect("BAR0");
    device.set_bus_master(true).expect("bus mastering");
    for buffer in [&source, &target] {
        bar.write::<u64>(0, buffer.segments()[0].iova.0).expect("inside");
    }
    for n in 0..4 {
        let _ = bar.read::<u32>(4 * n).expect("inside");
    }
    device.reset().expect("a reset");
    let _ = bar.read::<u32>(0).expect("inside");
    pattern.check(&source, 0, LEN, 0).expect("inside").expect("what is read only is unchanged");
    assert!(device.region(Region::Bar(0)).is_ok());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
});
