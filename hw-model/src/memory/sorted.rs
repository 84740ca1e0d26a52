//! A map from addresses to small values, in sorted chunks.
//!
//! A lookup is a binary search among the chunks' last keys, which stay in the cache, and
//! one inside a chunk: two cache misses or so, where a tree with hundreds of thousands of
//! keys takes one for each of its levels.

/// Keys in a chunk at most; a full one is split.
const FULL: usize = 256;

#[derive(Debug)]
struct Chunk<V> {
    keys: Vec<u64>,
    values: Vec<V>,
}

impl<V> Chunk<V> {
    fn new() -> Self {
        // Exactly what it can hold: growing by doubling would cost as much again.
        Chunk { keys: Vec::with_capacity(FULL), values: Vec::with_capacity(FULL) }
    }

    fn last(&self) -> u64 {
        self.keys.last().copied().unwrap_or(0)
    }

    fn split(&mut self) -> Self {
        let mut upper = Chunk::new();
        upper.keys.extend(self.keys.drain(FULL / 2..));
        upper.values.extend(self.values.drain(FULL / 2..));
        upper
    }
}

/// A map with `u64` keys in order.
#[derive(Debug)]
pub(super) struct SortedMap<V> {
    /// The last key of each chunk.
    lasts: Vec<u64>,
    /// None is empty.
    chunks: Vec<Chunk<V>>,
    len: usize,
}

impl<V> Default for SortedMap<V> {
    fn default() -> Self {
        SortedMap { lasts: Vec::new(), chunks: Vec::new(), len: 0 }
    }
}

impl<V> SortedMap<V> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The entries from the first key at or after `key` on.
    #[inline]
    pub(super) fn from(&self, key: u64) -> Entries<'_, V> {
        let chunk = self.lasts.partition_point(|&last| last < key);
        let index = self.chunks.get(chunk).map_or(0, |c| c.keys.partition_point(|&k| k < key));
        Entries { map: self, place: Place::new(chunk, index) }
    }

    /// As [`SortedMap::from`], at less cost when `hit` says of an entry that it is the one:
    /// of that at `next`, of the one behind it (pieces of two buffers that were mapped at the
    /// same time alternate), of the second one before it (addresses are handed out from the
    /// highest down), or of that at `other`. The rest is looked at only when it does not.
    ///
    /// A place may be of the map as it once was.
    #[inline]
    pub(super) fn near(
        &self,
        key: u64,
        next: Place,
        other: Place,
        hit: impl Fn(u64, &V) -> bool,
    ) -> Entries<'_, V> {
        for place in [next, next.second_before(), next.behind(), other] {
            let entries = Entries { map: self, place };
            if entries.get().is_some_and(|(last, value)| hit(last, value)) {
                return entries;
            }
        }
        self.from(key)
    }

    /// Adds an entry whose key is not in the map.
    pub(super) fn insert(&mut self, key: u64, value: V) {
        // A key behind all others goes into the last chunk.
        let found = self.lasts.partition_point(|&last| last < key);
        let mut chunk = found.min(self.chunks.len().saturating_sub(1));
        if self.chunks.is_empty() {
            self.push_chunk(0, Chunk::new());
        } else if self.chunks[chunk].keys.len() == FULL {
            if found == self.chunks.len() {
                // Ascending keys leave full chunks behind.
                chunk += 1;
                self.push_chunk(chunk, Chunk::new());
            } else {
                let upper = self.chunks[chunk].split();
                self.lasts[chunk] = self.chunks[chunk].last();
                self.push_chunk(chunk + 1, upper);
                chunk += usize::from(key > self.lasts[chunk]);
            }
        }
        let into = &mut self.chunks[chunk];
        let index = into.keys.partition_point(|&k| k < key);
        into.keys.insert(index, key);
        into.values.insert(index, value);
        self.lasts[chunk] = into.last();
        self.len += 1;
    }

    fn push_chunk(&mut self, at: usize, chunk: Chunk<V>) {
        self.lasts.insert(at, chunk.last());
        self.chunks.insert(at, chunk);
    }

    /// Removes the entry of a key.
    pub(super) fn remove(&mut self, key: u64) -> Option<V> {
        let chunk = self.lasts.partition_point(|&last| last < key);
        let from = self.chunks.get_mut(chunk)?;
        let index = from.keys.binary_search(&key).ok()?;
        from.keys.remove(index);
        let value = from.values.remove(index);
        if from.keys.is_empty() {
            self.chunks.remove(chunk);
            self.lasts.remove(chunk);
        } else {
            self.lasts[chunk] = from.last();
            self.merge_with_next(chunk);
        }
        self.len -= 1;
        Some(value)
    }

    /// Takes the next chunk's entries over when both are sparse.
    fn merge_with_next(&mut self, chunk: usize) {
        let len = |n: usize| self.chunks.get(n).map_or(FULL, |c| c.keys.len());
        if len(chunk) + len(chunk + 1) > FULL / 2 {
            return;
        }
        let next = self.chunks.remove(chunk + 1);
        self.lasts.remove(chunk);
        self.chunks[chunk].keys.extend(next.keys);
        self.chunks[chunk].values.extend(next.values);
    }
}

/// Where an entry is, or was: any change of the map may move it.
///
/// In one word, the chunk above the index: a processor that reads as a whole what was just
/// written in parts waits until all stores before that are done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Place(u64);

impl Place {
    #[inline]
    fn new(chunk: usize, index: usize) -> Place {
        Place((chunk as u64) << 32 | index as u64)
    }

    #[inline]
    fn chunk(self) -> usize {
        (self.0 >> 32) as usize
    }

    #[inline]
    fn index(self) -> usize {
        self.0 as u32 as usize
    }

    /// The next index of the same chunk.
    #[inline]
    fn behind(self) -> Place {
        Place::new(self.chunk(), self.index() + 1)
    }

    /// The second index before it, or one that no chunk has.
    #[inline]
    fn second_before(self) -> Place {
        Place::new(self.chunk(), self.index().wrapping_sub(2) & 0xffff_ffff)
    }
}

/// Entries in order.
#[derive(Debug)]
pub(super) struct Entries<'m, V> {
    map: &'m SortedMap<V>,
    place: Place,
}

impl<'m, V> Entries<'m, V> {
    /// Where the next entry is.
    #[inline]
    pub(super) fn place(&self) -> Place {
        self.place
    }

    #[inline]
    fn get(&self) -> Option<(u64, &'m V)> {
        let (chunk, index) = (self.map.chunks.get(self.place.chunk())?, self.place.index());
        Some((*chunk.keys.get(index)?, chunk.values.get(index)?))
    }
}

impl<'m, V> Iterator for Entries<'m, V> {
    type Item = (u64, &'m V);

    #[inline]
    fn next(&mut self) -> Option<(u64, &'m V)> {
        let (at, index) = (self.place.chunk(), self.place.index());
        let chunk = self.map.chunks.get(at)?;
        let entry = (*chunk.keys.get(index)?, chunk.values.get(index)?);
        self.place = match index + 1 {
            end if end == chunk.keys.len() => Place::new(at + 1, 0),
            next => Place::new(at, next),
        };
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    fn compare(map: &SortedMap<u64>, model: &BTreeMap<u64, u64>, key: u64) {
        assert_eq!(map.len(), model.len());
        let rest: Vec<_> = map.from(key).map(|(k, &v)| (k, v)).collect();
        let wanted: Vec<_> = model.range(key..).map(|(&k, &v)| (k, v)).collect();
        assert_eq!(rest, wanted);
        assert!(map.chunks.iter().all(|c| !c.keys.is_empty() && c.keys.len() <= FULL));
        assert!(map.chunks.iter().zip(&map.lasts).all(|(c, &last)| c.last() == last));
    }

    proptest! {
        /// Runs of keys come and go, so that chunks fill, split, thin out and merge.
        #[test]
        fn agrees_with_a_tree(
            runs in proptest::collection::vec((any::<bool>(), 0u64..3000, 1u64..700, 1u64..4), 1..30),
            probe in 0u64..12_000,
        ) {
            let (mut map, mut model) = (SortedMap::default(), BTreeMap::new());
            for (add, start, count, step) in runs {
                for key in (start..).step_by(step as usize).take(count as usize) {
                    if add && !model.contains_key(&key) {
                        map.insert(key, key * 3);
                        model.insert(key, key * 3);
                    } else if !add {
                        assert_eq!(map.remove(key), model.remove(&key));
                    }
                }
                compare(&map, &model, probe);
            }
            compare(&map, &model, 0);
        }
    }

    #[test]
    fn the_ends_of_the_key_space_are_keys() {
        let (mut map, mut model) = (SortedMap::default(), BTreeMap::new());
        for key in [u64::MAX, 0, 1 << 63] {
            map.insert(key, key);
            model.insert(key, key);
        }
        for key in [0, 1, u64::MAX] {
            compare(&map, &model, key);
        }
        assert_eq!(map.remove(u64::MAX), Some(u64::MAX));
        assert_eq!(map.remove(u64::MAX), None);
        assert!(map.from(u64::MAX).next().is_none());
    }
}
