//! What is measured: the variants, their order in each round, and how much of it fits into
//! the time that there is.

use std::fmt;
use std::time::Duration;

use super::error::BenchError;
use super::profile::Profile;
use super::results::{Method, Series};
use super::units::bytes;

/// Time for each variant in a round, unless asked for otherwise.
pub const SLICE: Duration = Duration::from_millis(25);
/// The longest transfer: 64 MiB.
pub const LONGEST: u64 = 64 << 20;
/// Transfers take turns with different places up to so many bytes.
const WORKING_SET: u64 = 16 << 20;
/// The most transfers for a doorbell.
pub const MOST_BATCH: u32 = 1024;
/// The most segments of a transfer that a profile has by itself.
const MOST_SEGMENTS: u64 = 65_536;
/// The most variants, each of which keeps its tables and its distribution of latencies.
const MOST_VARIANTS: usize = 1000;
/// The most segments that can be asked for.
const MOST_SEGMENTS_ASKED: u64 = 1 << 20;
/// The bytes that a doorbell is rung for in the tables of sizes and segments, about.
const BATCH_BYTES: u64 = 256 << 10;
/// The bytes in flight on each channel in those tables, about: enough that neither the driver
/// nor the device waits for the other.
const FLYING_BYTES: u64 = 2 << 20;
/// The longest copy between slots that is measured.
const LONGEST_SLOT: u64 = 16 << 10;
/// Copies between slots for a doorbell.
pub(super) const SLOT_BATCH: u32 = 32;
/// The shortest time for a variant in a round.
const SHORTEST_SLICE: Duration = Duration::from_millis(2);

/// What was asked for; `None` for what the profile has.
#[derive(Debug, Clone)]
pub struct PlanOptions {
    /// The profile.
    pub profile: Profile,
    /// Bytes of a transfer.
    pub sizes: Option<Vec<u64>>,
    /// Bytes of a segment; an inner `None` is contiguous, which is measured in any case.
    pub segments: Option<Vec<Option<u64>>>,
    /// Transfers for a doorbell.
    pub batches: Option<Vec<u32>>,
    /// The most channels at once.
    pub channels: Option<u32>,
}

/// One variant of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Spec {
    /// The table that it belongs to.
    pub series: Series,
    /// Bytes of a transfer.
    pub transfer: u64,
    /// Bytes of a segment; `None` for contiguous.
    pub segment: Option<u64>,
    /// Transfers for a doorbell.
    pub batch: u32,
    /// Channels at once.
    pub channels: u32,
    /// How the device is told where the data is.
    pub method: Method,
}

impl Spec {
    /// Segments of a transfer.
    #[must_use]
    pub fn pieces(&self) -> u64 {
        self.segment.map_or(1, |segment| self.transfer.div_ceil(segment))
    }

    /// Transfers in flight on each channel, as far as its ring has room: the next batch, at
    /// least, waits behind the one in hand.
    #[must_use]
    pub fn depth(&self) -> u32 {
        match self.series {
            Series::Latency => 1,
            Series::Batch => 2 * self.batch,
            Series::Segments | Series::Channels | Series::Methods | Series::Slots => {
                let batches = FLYING_BYTES / (self.transfer * u64::from(self.batch));
                self.batch * batches.clamp(2, 8) as u32
            }
        }
    }

    /// Different places that the transfers of all channels take turns with.
    #[must_use]
    pub fn slots(&self) -> u64 {
        let all = u64::from(self.depth() * self.channels);
        // A slot that is in flight is nobody else's.
        if self.series == Series::Slots {
            return all;
        }
        (WORKING_SET / self.stride()).clamp(1, all)
    }

    /// Bytes from one place to the next.
    #[must_use]
    pub fn stride(&self) -> u64 {
        let least = if self.transfer < 4096 { 64 } else { 4096 };
        let segment = self.segment.unwrap_or(1);
        self.transfer.next_multiple_of(least).next_multiple_of(segment)
    }

    /// Bytes from the first place to the end of the last.
    #[must_use]
    pub fn extent(&self) -> u64 {
        self.slots() * self.stride()
    }

    /// How much there is to do for a batch on each channel, roughly: a segment costs what 4 KiB
    /// do.
    #[must_use]
    pub fn work(&self) -> u64 {
        let transfers = u64::from(self.batch * self.channels);
        (self.pieces() + self.transfer / 4096) * transfers
    }

    /// The contiguous variant that this one is compared with.
    #[must_use]
    pub fn reference(&self) -> Spec {
        let method = if self.series == Series::Methods { Method::Prp } else { self.method };
        Spec { segment: None, method, ..*self }
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", bytes(self.transfer))?;
        match self.segment {
            Some(segment) => write!(f, " in {} segments", bytes(segment))?,
            None => f.write_str(" contiguous")?,
        }
        match self.series {
            Series::Segments => Ok(()),
            Series::Methods => f.write_str(self.method.suffix()),
            Series::Batch => write!(f, ", batch {}", self.batch),
            Series::Channels if self.channels == 1 => f.write_str(", 1 channel"),
            Series::Channels => write!(f, ", {} channels", self.channels),
            Series::Latency => f.write_str(", one at a time"),
            Series::Slots => write!(f, " from slot to slot, channels: {}", self.channels),
        }
    }
}

/// The variants for an engine with scatter/gather hardware, `channels` channels and room
/// for `ring` descriptors in each; and what was left out.
///
/// # Errors
///
/// Fails when what was asked for makes no sense.
pub fn plan(
    options: &PlanOptions,
    channels: u32,
    ring: u64,
) -> Result<(Vec<Spec>, Vec<String>), BenchError> {
    let PlanOptions { profile, .. } = *options;
    let mut notes = Vec::new();
    let sizes = sorted(options.sizes.clone().unwrap_or_else(|| profile.sizes()));
    let segments = match &options.segments {
        Some(list) => {
            let segments = sorted(list.iter().copied().flatten().collect());
            check_segments(&segments, &sizes)?;
            segments
        }
        None => profile.segments(),
    };
    let most = if options.segments.is_some() { MOST_SEGMENTS_ASKED } else { MOST_SEGMENTS };
    let mut specs = Vec::new();
    let mut left_out = Vec::new();
    for &transfer in &sizes {
        let smaller = segments.iter().copied().filter(|&segment| segment < transfer);
        let (fitting, rest): (Vec<u64>, Vec<u64>) =
            smaller.partition(|segment| transfer.div_ceil(*segment) <= most);
        left_out.extend(rest.iter().map(|&s| format!("{} in {}", bytes(transfer), bytes(s))));
        let pieces = fitting.first().map_or(1, |segment| transfer.div_ceil(*segment));
        // A batch is one doorbell: it has to fit into the ring.
        let batch = (BATCH_BYTES / transfer).clamp(1, 32).min(ring / pieces).max(1) as u32;
        let all = std::iter::once(None).chain(fitting.into_iter().map(Some));
        let series = Series::Segments;
        let method = Method::Auto;
        specs.extend(all.map(|segment| Spec {
            series,
            transfer,
            segment,
            batch,
            channels: 1,
            method,
        }));
    }
    if !left_out.is_empty() {
        let what = left_out.join(", ");
        notes.push(format!("left out, with more than {most} segments in a transfer: {what}"));
    }
    let within = |own: &[u64], longest: u64| match &options.sizes {
        Some(_) => sizes.iter().copied().filter(|&size| size <= longest).collect(),
        None => own.to_vec(),
    };
    let contiguous = |series, transfer, batch, channels| Spec {
        series,
        transfer,
        segment: None,
        batch,
        channels,
        method: Method::Auto,
    };
    let batches = sorted(options.batches.clone().unwrap_or_else(|| profile.batches()));
    for transfer in within(profile.batch_sizes(), 4 << 10) {
        specs.extend(batches.iter().map(|&batch| contiguous(Series::Batch, transfer, batch, 1)));
    }
    let most_channels = match options.channels {
        Some(asked) if asked > channels => {
            return Err(BenchError::TooManyChannels { asked, channels });
        }
        asked => asked.unwrap_or(channels),
    };
    for transfer in within(profile.channel_sizes(), 1 << 20) {
        let batch = (BATCH_BYTES / transfer).clamp(1, 32) as u32;
        let counts = (1..=most_channels).filter(|&n| n == most_channels || n.is_power_of_two());
        specs.extend(counts.map(|n| contiguous(Series::Channels, transfer, batch, n)));
    }
    for transfer in within(profile.latency_sizes(), 64 << 10) {
        specs.push(contiguous(Series::Latency, transfer, 1, 1));
    }
    for transfer in within(profile.slot_sizes(), LONGEST_SLOT) {
        let counts = (1..=most_channels).filter(|&n| n == most_channels || n.is_power_of_two());
        specs.extend(counts.map(|n| contiguous(Series::Slots, transfer, SLOT_BATCH, n)));
    }
    if specs.len() > MOST_VARIANTS {
        return Err(BenchError::TooManyVariants { asked: specs.len(), most: MOST_VARIANTS });
    }
    Ok((specs, notes))
}

/// The variants for edu, which takes 100 ms for up to 4 KiB, one way.
#[must_use]
pub fn plan_edu(options: &PlanOptions) -> (Vec<Spec>, Vec<String>) {
    let sizes = sorted(options.sizes.clone().unwrap_or_else(|| vec![64, 4 << 10, 8 << 10]));
    let segments = match &options.segments {
        Some(list) => sorted(list.iter().copied().flatten().collect()),
        None => vec![4 << 10],
    };
    let mut specs = Vec::new();
    for transfer in sizes {
        let smaller = segments.iter().copied().filter(|&s| s < transfer && s % 4096 == 0);
        let all = std::iter::once(None).chain(smaller.map(Some));
        specs.extend(all.map(|segment| Spec {
            series: Series::Segments,
            transfer,
            segment,
            batch: 1,
            channels: 1,
            method: Method::Auto,
        }));
    }
    let fits = |size: u64| size.is_multiple_of(4096) && specs.iter().any(|s| s.transfer > size);
    let unfit: Vec<String> =
        segments.iter().filter(|&&size| !fits(size)).map(|&size| bytes(size)).collect();
    let mut notes: Vec<String> = [
        "edu takes 100 ms for each piece of up to 4 KiB, one way: only a few variants are \
         measured, and of batches, channels and latency none, for it has one transfer at a time",
        "edu has no scatter/gather hardware: segments, of whole pages, go one after another, and \
         the model, which is of I/OAT, counts none of its packets",
    ]
    .map(Into::into)
    .into();
    if options.segments.is_some() && !unfit.is_empty() {
        notes.push(format!(
            "left out, for segments are whole pages and smaller than a transfer: segments of {}",
            unfit.join(", ")
        ));
    }
    (specs, notes)
}

fn check_segments(segments: &[u64], sizes: &[u64]) -> Result<(), BenchError> {
    let longest = sizes.last().copied().unwrap_or(0);
    for &segment in segments {
        if segment >= longest {
            return Err(BenchError::LongSegment { segment, longest });
        }
        let used = sizes.iter().filter(|&&size| size > segment);
        if used.clone().all(|size| size.div_ceil(segment) > MOST_SEGMENTS_ASKED) {
            return Err(BenchError::TooManySegments { segment, most: MOST_SEGMENTS_ASKED });
        }
    }
    Ok(())
}

fn sorted<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    list.sort_unstable();
    list.dedup();
    list
}

/// The order of `count` variants in a round: another one in each, so that none always
/// follows the same one.
#[must_use]
pub fn order(count: usize, seed: u64, round: u32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(u64::from(round));
    fastrand::Rng::with_seed(seed).shuffle(&mut order);
    order
}

/// What fits into the time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fit {
    /// Time for each variant in a round.
    pub slice: Duration,
    /// Which variants are measured.
    pub keep: Vec<bool>,
}

/// Fits variants into a budget: by shorter slices first, then by leaving the slowest out.
/// `beyond` is what a sample of each takes beyond its slice.
#[must_use]
pub fn fit(beyond: &[Duration], rounds: u32, slice: Duration, budget: Duration) -> Fit {
    let mut keep = vec![true; beyond.len()];
    let total = |slice: Duration, keep: &[bool]| -> Duration {
        let kept = beyond.iter().zip(keep).filter(|(_, keep)| **keep);
        kept.map(|(&beyond, _)| beyond + slice).sum::<Duration>().saturating_mul(rounds)
    };
    let shortest = SHORTEST_SLICE.min(slice);
    let mut slice = slice;
    while total(slice, &keep) > budget && slice > shortest {
        slice = (slice * 3 / 4).max(shortest);
    }
    let mut slowest: Vec<usize> = (0..beyond.len()).collect();
    slowest.sort_by_key(|&i| beyond[i]);
    while total(slice, &keep) > budget
        && let Some(i) = slowest.pop()
    {
        keep[i] = false;
    }
    Fit { slice, keep }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(profile: Profile) -> PlanOptions {
        PlanOptions { profile, sizes: None, segments: None, batches: None, channels: None }
    }

    #[test]
    fn every_scattered_variant_has_its_contiguous_one() {
        for profile in [Profile::Quick, Profile::Full] {
            let (specs, _) = plan(&options(profile), 4, 4095).unwrap();
            for spec in &specs {
                assert!(specs.contains(&spec.reference()), "{spec}");
                assert!(spec.segment.is_none_or(|segment| segment < spec.transfer));
                let batch = u64::from(spec.batch) * spec.pieces();
                assert!(spec.batch == 1 || batch <= 4095, "{spec} fits into the ring");
                assert!(spec.extent() <= WORKING_SET.max(spec.stride()), "{spec}");
            }
            let mut distinct = specs.clone();
            distinct.sort_by_key(|s| (s.series, s.transfer, s.segment, s.batch, s.channels));
            distinct.dedup();
            assert_eq!(distinct.len(), specs.len(), "none twice");
        }
        let (full, _) = plan(&options(Profile::Full), 4, 4095).unwrap();
        for (transfer, segment) in
            [(64, None), (64 << 20, None), (128 << 10, Some(64)), (64 << 20, Some(2 << 20))]
        {
            let has = |s: &Spec| s.segment == segment && s.transfer >= transfer;
            assert!(full.iter().any(has), "{transfer} {segment:?}");
        }
        let batches: Vec<u32> =
            full.iter().filter(|s| s.series == Series::Batch).map(|s| s.batch).collect();
        assert!(batches.contains(&1) && batches.contains(&1024));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let ask = |sizes: &[u64], segments: &[u64], channels| {
            let options = PlanOptions {
                sizes: Some(sizes.to_vec()),
                segments: Some(segments.iter().copied().map(Some).collect()),
                channels,
                ..options(Profile::Quick)
            };
            plan(&options, 2, 4095).map_err(|error| error.to_string())
        };
        assert!(ask(&[4096], &[1024], Some(2)).is_ok());
        let error = ask(&[64, 4096], &[4096], None).unwrap_err();
        assert!(error.contains("4 KiB") && error.contains("not smaller"), "{error}");
        let error = ask(&[64 << 20], &[1], None).unwrap_err();
        assert!(error.contains("1048576 segments"), "{error}");
        let many: Vec<u64> = (1..=100).collect();
        assert!(ask(&[4096], &many, None).is_ok());
        let sizes: Vec<u64> = (200..=300).collect();
        let error = ask(&sizes, &many, None).unwrap_err();
        assert!(error.contains("the most is 1000"), "{error}");
        let error = ask(&[4096], &[1024], Some(3)).unwrap_err();
        assert!(error.contains("3 channels are asked for: the device has 2"), "{error}");
    }

    #[test]
    fn segments_that_edu_cannot_have_are_told() {
        let segments = [Some(64), Some(4096), Some(8192), None].to_vec();
        let sizes = Some(vec![8192]);
        let options = PlanOptions { sizes, segments: Some(segments), ..options(Profile::Quick) };
        let (specs, notes) = plan_edu(&options);
        let segments: Vec<Option<u64>> = specs.iter().map(|spec| spec.segment).collect();
        assert_eq!(segments, [None, Some(4096)]);
        assert!(notes.last().unwrap().ends_with("segments of 64 B, 8 KiB"), "{notes:?}");
    }

    #[test]
    fn variants_take_turns() {
        let count = 12;
        let rounds: Vec<Vec<usize>> = (0..10).map(|round| order(count, 1, round)).collect();
        let mut followers = vec![std::collections::HashSet::new(); count];
        for round in &rounds {
            let mut all = round.clone();
            all.sort_unstable();
            assert_eq!(all, (0..count).collect::<Vec<_>>(), "every variant in each round");
            for two in round.windows(2) {
                followers[two[0]].insert(two[1]);
            }
        }
        assert!(followers.iter().all(|after| after.len() > 2), "{followers:?}");
        assert_eq!(order(count, 1, 3), rounds[3], "the seed decides");
    }

    #[test]
    fn slices_shrink_before_variants_go() {
        let ms = Duration::from_millis;
        let fits = fit(&[ms(1), ms(1), ms(1)], 10, ms(20), ms(1000));
        assert_eq!(fits, Fit { slice: ms(20), keep: vec![true; 3] });
        let fits = fit(&[ms(1), ms(1), ms(1)], 10, ms(20), ms(300));
        assert!(fits.slice < ms(10) && fits.slice > ms(5), "{fits:?}");
        assert_eq!(fits.keep, [true; 3]);
        let fits = fit(&[ms(1), ms(50), ms(10)], 10, ms(20), ms(300));
        assert_eq!(fits, Fit { slice: ms(2), keep: vec![true, false, true] });
        assert_eq!(fit(&[ms(50)], 10, ms(20), ms(1)).keep, [false]);
        assert_eq!(fit(&[ms(50)], 0, ms(20), ms(0)).keep, [true], "no round is left");
    }

    #[test]
    fn a_segment_has_a_unit_that_no_count_has() {
        let spec = Spec {
            series: Series::Segments,
            transfer: 1 << 20,
            segment: Some(256),
            batch: 1,
            channels: 1,
            method: Method::Auto,
        };
        assert_eq!(spec.to_string(), "1 MiB in 256 B segments");
    }
}
