//! Engines that copy one list after another: edu, and whatever else is a copy engine.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vfio_dma::devices::{CopyEngine, CopyFailed};
use vfio_dma::dma::{Direction, SgTable};

use super::SoakError;
use super::counts::{Counts, Place, Shared};
use super::memory::{Source, Target};
use super::place::place;
use super::plan::{Placing, Planner, Shape, Step, Work, chance, mix, rng};

/// Buffers that are written in turn.
const LANES: usize = 2;

/// The longest that a copy is given which is to be cancelled.
const SHORT_MS: u64 = 150;

/// A round on a copy engine.
pub(super) struct Round<'a> {
    pub(super) shared: &'a Shared<'a>,
    pub(super) seed: u64,
    pub(super) number: u64,
    pub(super) max_size: usize,
    /// Every length and offset is a multiple of so many bytes.
    pub(super) unit: usize,
    /// The most pieces of a side.
    pub(super) max_pieces: usize,
    pub(super) steps: u64,
    pub(super) ends: Instant,
    pub(super) limit: Duration,
}

impl Round<'_> {
    fn at(&self, step: u64) -> Place {
        Place { round: self.number, channel: 0, step }
    }

    /// Copies until the round is over, and looks at everything then.
    pub(super) fn run(&self, mut engine: Box<dyn CopyEngine>) {
        let mut counts = Counts::default();
        if let Err(error) = self.copies(&mut *engine, &mut counts) {
            self.shared.unexplained(self.at(counts.copies), error);
        }
        drop(engine);
        self.shared.count(&counts);
    }

    fn copies(&self, engine: &mut dyn CopyEngine, counts: &mut Counts) -> Result<(), SoakError> {
        let mut dice = rng(self.seed, &[self.number, u64::MAX]);
        let allocate = |placing, direction| {
            place(placing, direction, None, |request| engine.allocate(request))
        };
        let mut sources = Vec::new();
        for n in 0..2 {
            let len = (self.max_size + dice.usize(0..=self.max_size)).next_multiple_of(self.unit);
            let buffer = allocate(Placing::random(&mut dice, len), Direction::ToDevice)?;
            sources.push(Source::new(buffer, mix(self.seed ^ self.number) + n)?);
        }
        let shape = Shape {
            max_size: self.max_size,
            sources: sources.iter().map(|source| source.buffer().len()).collect(),
            lanes: LANES,
            max_pieces: self.max_pieces,
            can_fill: false,
            slots: None,
            cancel: false,
            unit: self.unit,
        };
        let mut planner = Planner::new(self.seed, self.number, 0, shape);
        let mut lanes: Vec<Option<Target>> = (0..LANES).map(|_| None).collect();
        let (mut expected, mut scratch) = (Vec::new(), Vec::new());
        while planner.number() < self.steps
            && !self.shared.round_is_over()
            && Instant::now() < self.ends
        {
            let at = self.at(planner.number());
            let Step::Transfer(transfer) = planner.step() else { continue };
            let lane = &mut lanes[transfer.lane];
            if let Some(placing) = transfer.place {
                if let Some(old) = lane.as_mut() {
                    self.shared.looked(at, "all of a target", old.check_all(&mut scratch)?);
                }
                let buffer = place(placing, Direction::FromDevice, None, |request| {
                    engine.allocate(request)
                })?;
                match buffer.segments().len() {
                    1 => counts.placed_contiguous += 1,
                    _ => counts.placed_scattered += 1,
                }
                *lane = Some(Target::new(buffer, mix(at.step))?);
            }
            let target = lane.as_mut().ok_or(SoakError::State("a lane has a buffer"))?;
            let Work::Copy(pieces) = &transfer.work else { continue };
            expected.clear();
            for &(n, from, len) in pieces {
                expected.extend_from_slice(sources[n].bytes(from, len));
            }
            target
                .prepare(&transfer.target, &expected)?
                .ok_or(SoakError::State("no transfer has the lane's buffer"))?;
            let from =
                pieces.iter().map(|&(n, at, len)| (Arc::clone(sources[n].buffer()), at, len));
            let (source, table) = (SgTable::gather(from)?, target.table()?);
            let mut dice = rng(self.seed, &[self.number, at.step, u64::MAX]);
            let short =
                chance(&mut dice, 1, 8).then(|| Duration::from_millis(dice.u64(0..=SHORT_MS)));
            counts.copies += 1;
            self.shared.operations.fetch_add(1, Ordering::Relaxed);
            let (error, tables) =
                match engine.copy_tables(source, table, short.unwrap_or(self.limit)) {
                    Ok(tables) => {
                        drop(tables);
                        let wrong = target.check_done(&mut scratch)?;
                        if self.shared.looked(at, "the target", wrong) {
                            counts.succeeded += 1;
                            let len = transfer.len as u64;
                            self.shared.bytes.fetch_add(len, Ordering::Relaxed);
                        }
                        continue;
                    }
                    Err(CopyFailed { error, tables }) => (error, tables),
                };
            counts.failed += 1;
            match short {
                Some(_) => {
                    (counts.cancellations, counts.aborted) =
                        (counts.cancellations + 1, counts.aborted + 1)
                }
                None => self.shared.unexplained(at, &error),
            }
            let is_kept = tables.is_none();
            drop(tables);
            if is_kept {
                // The device could not be stopped, which nothing explains.
                return Err(SoakError::Lost(error.to_string()));
            }
            let wrong = target.check_undone(&mut scratch)?;
            self.shared.looked(at, "the target of what failed", wrong);
        }
        let at = self.at(planner.number());
        for target in lanes.iter_mut().flatten() {
            self.shared.looked(at, "all of a target", target.check_all(&mut scratch)?);
        }
        for source in &sources {
            self.shared.looked(at, "a source", source.check(&mut scratch)?);
        }
        Ok(())
    }
}
