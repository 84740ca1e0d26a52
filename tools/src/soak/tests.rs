//! A soak of a device that writes where it should not: it is found out.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use vfio_dma::backend::{
    Backend, DmaAccess, Iommu, IommuInfo, IrqKind, MapRequest, MappedRegion, Region, RegionInfo,
    Result,
};
use vfio_dma::devices::{Identity, recognise};
use vfio_dma_model::embedded::{Attached, Embedded};
use vfio_dma_model::ioat::IoatConfig;

use super::*;

/// The model, and a device's mistake: with each so manyth doorbell a byte of memory changes that
/// it may write.
#[derive(Debug)]
struct Careless {
    model: Attached,
    iommu: Arc<dyn Iommu>,
    noted: Arc<Noted>,
}

/// What is mapped for writing alone: addresses in this process, and lengths.
#[derive(Debug, Default)]
struct Noted {
    written: Mutex<Vec<(u64, usize, usize)>>,
    doorbells: AtomicU64,
    spoiled: AtomicU64,
}

#[derive(Debug)]
struct Noting {
    iommu: Arc<dyn Iommu>,
    noted: Arc<Noted>,
}

impl Iommu for Noting {
    fn name(&self) -> &str {
        self.iommu.name()
    }

    fn info(&self) -> Result<IommuInfo> {
        self.iommu.info()
    }

    unsafe fn map(&self, request: &MapRequest<'_>) -> Result<()> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.iommu.map(request) }?;
        if request.access == DmaAccess::Write {
            let base = request.host.as_ptr().expose_provenance();
            self.noted.written.lock().unwrap().push((request.iova, base, request.len));
        }
        Ok(())
    }

    fn unmap(&self, iova: u64, len: usize) -> Result<()> {
        // Nothing is spoiled meanwhile.
        let mut written = self.noted.written.lock().unwrap();
        written.retain(|&(at, ..)| at != iova);
        self.iommu.unmap(iova, len)
    }
}

impl Noted {
    fn spoil(&self) {
        let written = self.written.lock().unwrap();
        let count = self.spoiled.load(Ordering::Relaxed) as usize;
        let Some(&(_, base, len)) = written.get(count * 7 % written.len().max(1)) else { return };
        let at = NonNull::new(std::ptr::with_exposed_provenance_mut::<u8>(base)).unwrap();
        // SAFETY: mapped memory stays allocated until it is unmapped, which waits for the lock.
        let at = unsafe { at.byte_add(40.min(len - 1)) };
        // SAFETY: as above, and a device may read and write mapped memory at any time, so that
        // nothing refers to it; what the model's threads do at the same time is what a device
        // does.
        let byte = unsafe { at.read_volatile() };
        // SAFETY: as above.
        unsafe { at.write_volatile(byte ^ 0x5a) };
        self.spoiled.fetch_add(1, Ordering::Relaxed);
    }
}

impl Backend for Careless {
    fn location(&self) -> String {
        self.model.location()
    }

    fn region_info(&self, region: Region) -> Result<RegionInfo> {
        self.model.region_info(region)
    }

    fn region_read(&self, region: Region, offset: u64, data: &mut [u8]) -> Result<()> {
        self.model.region_read(region, offset, data)
    }

    fn region_write(&self, region: Region, offset: u64, data: &[u8]) -> Result<()> {
        // DMACOUNT of any channel.
        if region == Region::Bar(0) && offset % 0x80 == 6 && offset > 0x80 {
            let doorbells = self.noted.doorbells.fetch_add(1, Ordering::Relaxed);
            if doorbells % 50 == 49 {
                self.noted.spoil();
            }
        }
        self.model.region_write(region, offset, data)
    }

    fn map_region(&self, region: Region, area: Range<u64>) -> Result<Box<dyn MappedRegion>> {
        self.model.map_region(region, area)
    }

    fn irq_count(&self, kind: IrqKind) -> Result<u32> {
        self.model.irq_count(kind)
    }

    fn irq_enable(&self, kind: IrqKind, events: &[BorrowedFd<'_>]) -> Result<()> {
        self.model.irq_enable(kind, events)
    }

    fn irq_disable(&self, kind: IrqKind) -> Result<()> {
        self.model.irq_disable(kind)
    }

    fn intx_set_masked(&self, masked: bool) -> Result<()> {
        self.model.intx_set_masked(masked)
    }

    fn reset(&self) -> Result<()> {
        self.model.reset()
    }

    fn iommu(&self) -> &Arc<dyn Iommu> {
        &self.iommu
    }
}

#[test]
fn a_device_that_writes_where_it_should_not_is_found_out() {
    let model = Embedded::new(IoatConfig { channels: 2, ..IoatConfig::default() }).unwrap();
    let noted = Arc::new(Noted::default());
    let mut open = || {
        let model = model.attach()?;
        let iommu = Arc::new(Noting { iommu: Arc::clone(model.iommu()), noted: noted.clone() });
        let device = Device::open(Careless { model, iommu, noted: noted.clone() })?;
        let known = recognise(&Identity::of(&device)?).ok_or("it is I/OAT")?;
        Ok((known.driver, device))
    };
    let options = Options {
        time: Duration::from_secs(60),
        operations: 20_000,
        seed: 77,
        max_size: Some(64 << 10),
        channels: None,
        ring: Some(64),
        rules: Vec::new(),
    };
    let stop = AtomicBool::new(false);
    let summary = run(&options, &mut open, None, &stop).unwrap();
    let spoiled = noted.spoiled.load(Ordering::Relaxed);
    assert!(spoiled > 5, "{spoiled}");
    assert!(!summary.passed, "{summary}");
    // What was spoiled in a range that the device then wrote is right again, and a byte that
    // was spoiled twice is told once or not at all: how many are left depends on time.
    assert!(summary.wrong_bytes >= spoiled / 10, "{spoiled}: {summary}");
    assert!(summary.wrong_bytes <= spoiled, "{spoiled}: {summary}");
    let first = &summary.wrong[0];
    assert_eq!(first.found ^ first.expected, 0x5a, "{first:?}");
    let text = summary.to_string();
    assert!(text.contains("wrong bytes of") && text.ends_with("FAILED"), "{text}");
    assert!(text.contains(&first.place.to_string()), "{text}");
}

#[test]
fn every_field_of_the_summary_is_in_the_docs() {
    let mut model = Model::new(1, FaultPlan::default());
    let mut open = || {
        let device = Device::open(model.attach()?)?;
        let known = recognise(&Identity::of(&device)?).ok_or("it is I/OAT")?;
        Ok((known.driver, device))
    };
    let options = Options {
        time: Duration::from_secs(60),
        operations: 100,
        seed: 1,
        max_size: None,
        channels: None,
        ring: None,
        rules: Vec::new(),
    };
    let summary = run(&options, &mut open, None, &AtomicBool::new(false)).unwrap();
    let json = serde_json::to_value(&summary).unwrap();
    let docs = include_str!("../../../docs/soak.md");
    let leaks = json["leaks"].as_object().unwrap();
    let held = leaks["before"].as_object().unwrap();
    let fields = [json.as_object().unwrap(), leaks, held].map(serde_json::Map::keys);
    for field in fields.into_iter().flatten() {
        assert!(docs.contains(&format!("`{field}`")), "docs/soak.md lacks {field}");
    }
}
