//! Counts the packets that a card would put on its link for what a model does.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use super::config::LinkConfig;
use super::iotlb::{IoTlb, IoTlbConfig};
use super::tlp::{Packets, TlpKind, Traffic, Work, wire};

const KINDS: usize = TlpKind::ALL.len();

/// Counts packets, from any thread, for the price of a few relaxed additions.
///
/// The engine and the registers report what they do; lengths are cut into packets by the
/// link's MPS and MRRS at once, so that a meter belongs to one [`LinkConfig`].
#[derive(Debug)]
pub struct LinkMeter {
    link: LinkConfig,
    packets: [AtomicU64; KINDS],
    data: [AtomicU64; KINDS],
    descriptors: AtomicU64,
    iotlb: Option<Mutex<IoTlb>>,
}

impl Default for LinkMeter {
    fn default() -> Self {
        LinkMeter::new(LinkConfig::default())
    }
}

impl LinkMeter {
    /// A meter for a link, with nothing counted yet.
    #[must_use]
    pub fn new(link: LinkConfig) -> Self {
        LinkMeter {
            link,
            packets: Default::default(),
            data: Default::default(),
            descriptors: AtomicU64::new(0),
            iotlb: None,
        }
    }

    /// Also follows the addresses through an IO-TLB.
    #[must_use]
    pub fn with_iotlb(mut self, config: IoTlbConfig) -> Self {
        self.iotlb = Some(Mutex::new(IoTlb::new(config)));
        self
    }

    /// The link that packets are counted for.
    #[must_use]
    pub fn link(&self) -> &LinkConfig {
        &self.link
    }

    /// The host writes `len` bytes to a register.
    pub fn host_write(&self, len: u64) {
        self.count(Work::HostWrite(len));
    }

    /// The host reads `len` bytes from a register.
    pub fn host_read(&self, len: u64) {
        self.count(Work::HostRead(len));
    }

    /// The device fetches `count` descriptors of `bytes` bytes together.
    pub fn descriptor_fetch(&self, count: u64, bytes: u64) {
        self.descriptors.fetch_add(count, Ordering::Relaxed);
        self.count(Work::DescriptorFetch(bytes));
    }

    /// The device reads `len` bytes of data.
    pub fn data_read(&self, len: u64) {
        self.count(Work::DataRead(len));
    }

    /// The device writes `len` bytes of data.
    pub fn data_write(&self, len: u64) {
        self.count(Work::DataWrite(len));
    }

    /// The device writes a completion of `len` bytes.
    pub fn completion_write(&self, len: u64) {
        self.count(Work::CompletionWrite(len));
    }

    /// The device raises an interrupt.
    pub fn msi(&self) {
        self.count(Work::Interrupt);
    }

    /// One packet of a kind with `len` bytes of data, as a transaction layer sent it.
    pub fn packet(&self, kind: TlpKind, len: u64) {
        self.packets[kind as usize].fetch_add(1, Ordering::Relaxed);
        self.data[kind as usize].fetch_add(len, Ordering::Relaxed);
    }

    /// The device's access of `len` bytes at `iova` goes through the IO-TLB, if there is one.
    pub fn translate(&self, iova: u64, len: u64) {
        if let Some(iotlb) = &self.iotlb {
            iotlb.lock().unwrap_or_else(PoisonError::into_inner).access(iova, len);
        }
    }

    fn count(&self, work: Work) {
        for (kind, Packets { packets, data }) in work.packets(&self.link).into_iter().flatten() {
            self.packets[kind as usize].fetch_add(packets, Ordering::Relaxed);
            self.data[kind as usize].fetch_add(data, Ordering::Relaxed);
        }
    }

    /// What was counted so far. While work goes on, single counts may be a little apart.
    #[must_use]
    pub fn snapshot(&self) -> TlpCounts {
        let [hits, misses] = self.iotlb.as_ref().map_or([0, 0], |iotlb| {
            let iotlb = iotlb.lock().unwrap_or_else(PoisonError::into_inner);
            [iotlb.hits(), iotlb.misses()]
        });
        TlpCounts {
            kinds: std::array::from_fn(|kind| Packets {
                packets: self.packets[kind].load(Ordering::Relaxed),
                data: self.data[kind].load(Ordering::Relaxed),
            }),
            descriptors: self.descriptors.load(Ordering::Relaxed),
            iotlb_hits: hits,
            iotlb_misses: misses,
        }
    }
}

/// Packets by kind, as a [`LinkMeter`] counted them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct TlpCounts {
    kinds: [Packets; KINDS],
    descriptors: u64,
    iotlb_hits: u64,
    iotlb_misses: u64,
}

impl TlpCounts {
    /// The packets of one kind.
    #[must_use]
    pub fn get(&self, kind: TlpKind) -> Packets {
        self.kinds[kind as usize]
    }

    /// How many descriptors the fetches brought.
    #[must_use]
    pub fn descriptors(&self) -> u64 {
        self.descriptors
    }

    /// Pages that the IO-TLB knew, and those that took a page walk.
    #[must_use]
    pub fn iotlb(&self) -> [u64; 2] {
        [self.iotlb_hits, self.iotlb_misses]
    }

    /// The data that the device read and wrote, in bytes: what the work was for.
    #[must_use]
    pub fn payload(&self) -> u64 {
        self.get(TlpKind::DataReadCompletion).data + self.get(TlpKind::DataWrite).data
    }

    /// What was counted since `earlier`, a snapshot of the same meter.
    #[must_use]
    pub fn since(&self, earlier: &TlpCounts) -> TlpCounts {
        TlpCounts {
            kinds: std::array::from_fn(|kind| Packets {
                packets: self.kinds[kind].packets.saturating_sub(earlier.kinds[kind].packets),
                data: self.kinds[kind].data.saturating_sub(earlier.kinds[kind].data),
            }),
            descriptors: self.descriptors.saturating_sub(earlier.descriptors),
            iotlb_hits: self.iotlb_hits.saturating_sub(earlier.iotlb_hits),
            iotlb_misses: self.iotlb_misses.saturating_sub(earlier.iotlb_misses),
        }
    }

    /// The bytes of all packets on the wire of `link`, the one they were counted for.
    #[must_use]
    pub fn traffic(&self, link: &LinkConfig) -> Traffic {
        let mut traffic = Traffic::default();
        for kind in TlpKind::ALL {
            traffic += wire(kind, self.get(kind), link);
        }
        traffic
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_numbered_in_their_order() {
        for (n, kind) in TlpKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, n);
        }
    }

    #[test]
    fn a_copy_of_one_descriptor_is_counted_packet_by_packet() {
        let meter = LinkMeter::default();
        meter.host_write(2);
        let rung = meter.snapshot();
        meter.descriptor_fetch(1, 64);
        meter.data_read(4096);
        meter.data_write(4096);
        meter.completion_write(8);
        meter.msi();
        meter.host_read(8);
        let counts = meter.snapshot();
        let of = |kind| {
            let Packets { packets, data } = counts.get(kind);
            (packets, data)
        };
        assert_eq!(
            TlpKind::ALL.map(of),
            [
                (1, 4),
                (1, 0),
                (1, 8),
                (1, 0),
                (1, 64),
                (8, 0),
                (16, 4096),
                (16, 4096),
                (1, 8),
                (1, 4),
            ]
        );
        assert_eq!((counts.payload(), counts.descriptors()), (8192, 1));
        let upstream = 28 + 24 + 8 * 24 + (4096 + 16 * 24) + 32 + 28;
        let downstream = 28 + 24 + 84 + (4096 + 16 * 20);
        assert_eq!(counts.traffic(meter.link()), Traffic { upstream, downstream });
        let since = counts.since(&rung).traffic(meter.link());
        assert_eq!(since, Traffic { upstream, downstream: downstream - 28 });
    }

    #[test]
    fn threads_lose_no_counts() {
        let meter = LinkMeter::new("gen4x4,mps=128".parse().unwrap());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| meter.data_write(300)));
            }
        });
        let packets = meter.snapshot().get(TlpKind::DataWrite);
        assert_eq!((packets.packets, packets.data), (12_000, 1_200_000));
    }

    #[test]
    fn addresses_go_through_the_iotlb() {
        let config: IoTlbConfig = "2".parse().unwrap();
        let meter = LinkMeter::default().with_iotlb(config);
        meter.translate(0x1fff, 2);
        meter.translate(0x1000, 64);
        meter.translate(0x9000, 64);
        assert_eq!(meter.snapshot().iotlb(), [1, 3]);
    }
}
