//! Runs variants on edu: to the device and back, one transfer at a time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use vfio_dma::backend::Translation;
use vfio_dma::devices::edu::Edu;
use vfio_dma::dma::{Buffer, Direction, PageSize, Pattern, Placement, Request, Strategy};

use super::error::BenchError;
use super::plan::Spec;
use super::subject::{Extent, Sample, Subject, histogram};
use super::test_memory::TestMemory;

/// What the device moves at a time.
const PIECE: u64 = 4 << 10;

struct Ready {
    spec: Spec,
    /// Always there between two runs; a failed transfer may keep them.
    buffers: Option<(Buffer, Buffer)>,
}

/// edu as the subject of a benchmark.
pub(super) struct EduSubject {
    edu: Edu,
    cells: BTreeMap<usize, Ready>,
    /// For the processor's own copy.
    memory: TestMemory,
    seed: u64,
}

impl EduSubject {
    /// Takes memory for the processor's copy; the device gets its buffers one by one.
    ///
    /// # Errors
    ///
    /// Fails when there is no memory.
    pub(super) fn new(edu: Edu, specs: &[Spec], seed: u64) -> Result<EduSubject, BenchError> {
        let len = specs.iter().map(Spec::extent).max().unwrap_or(1);
        let len = usize::try_from(len)?;
        let memory = TestMemory::new(edu.device().allocator(), len, seed)?;
        Ok(EduSubject { edu, cells: BTreeMap::new(), memory, seed })
    }
}

impl Subject for EduSubject {
    fn prepare(&mut self, number: usize, spec: &Spec) -> Result<u64, BenchError> {
        let space = self.edu.device().space();
        let contiguous = match space.translation() {
            Translation::Iommu => Strategy::IommuContiguous(PageSize::Base),
            Translation::Physical => Strategy::PhysicalContiguous(PageSize::Base),
        };
        let calls = || space.usage().map_calls;
        let before = calls();
        let place = |direction| {
            let mut request = Request::new(spec.transfer as usize, direction);
            match spec.segment {
                None => request.order = Some(vec![contiguous]),
                Some(bytes) => {
                    request.placement = Placement::ScatterGather;
                    request.longest_run = Some(bytes as usize);
                }
            }
            self.edu.allocate(&request)
        };
        let mut source = place(Direction::ToDevice)?;
        let target = place(Direction::FromDevice)?;
        Pattern::new(self.seed).fill(&mut source, 0, spec.transfer as usize, 0)?;
        let map_calls = calls() - before;
        self.cells.insert(number, Ready { spec: *spec, buffers: Some((source, target)) });
        Ok(map_calls)
    }

    fn run(
        &mut self,
        number: usize,
        extent: Extent,
        latency: &mut Histogram<u64>,
    ) -> Result<Sample, BenchError> {
        let cell = self
            .cells
            .get_mut(&number)
            .ok_or(BenchError::State("a variant that is not prepared"))?;
        let time = match extent {
            Extent::Once => Duration::ZERO,
            Extent::For(time) => time,
        };
        let transfer = cell.spec.transfer;
        let (begin, mut transfers) = (Instant::now(), 0);
        let mut last = begin;
        loop {
            let (source, target) = cell
                .buffers
                .take()
                .ok_or(BenchError::State("the device keeps the buffers of a failed transfer"))?;
            let buffers = self.edu.copy(source, 0, target, 0, transfer as usize)?.wait()?;
            cell.buffers = Some(buffers);
            let now = Instant::now();
            let ns = u64::try_from((now - last).as_nanos()).unwrap_or(u64::MAX);
            latency.saturating_record(ns);
            (transfers, last) = (transfers + 1, now);
            if now - begin >= time {
                break;
            }
        }
        // Each piece is told to the device by one write of its command register, each way.
        let pieces = 2
            * transfers
            * cell.spec.segment.map_or_else(
                || transfer.div_ceil(PIECE),
                |segment| transfer.div_ceil(segment.min(PIECE)),
            );
        let elapsed = last - begin;
        let (descriptors, doorbells) = (pieces, pieces);
        Ok(Sample { transfers, elapsed, descriptors, doorbells, cycles: 0 })
    }

    fn verify(&mut self, number: usize) -> Result<Sample, BenchError> {
        let cell = self
            .cells
            .get_mut(&number)
            .ok_or(BenchError::State("a variant that is not prepared"))?;
        let (spec, len) = (cell.spec, cell.spec.transfer as usize);
        if let Some((_, target)) = &mut cell.buffers {
            Pattern::new(!self.seed).fill(target, 0, len, 0)?;
        }
        let sample = self.run(number, Extent::Once, &mut histogram())?;
        let cell = self.cells.get(&number).and_then(|cell| cell.buffers.as_ref());
        let (_, target) = cell.ok_or(BenchError::State("a variant without buffers"))?;
        Pattern::new(self.seed).check(target, 0, len, 0)?.map_err(|mismatch| {
            let address_bits = self.edu.device().dma_limits().address_mask.count_ones();
            BenchError::WrongPattern { spec, mismatch, address_bits }
        })?;
        Ok(sample)
    }

    fn spec(&self, number: usize) -> Option<Spec> {
        self.cells.get(&number).map(|cell| cell.spec)
    }

    fn memory(&mut self) -> &mut TestMemory {
        &mut self.memory
    }
}
