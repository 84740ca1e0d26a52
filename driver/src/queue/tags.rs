//! Tags of commands that complete in any order.

use super::QueueError;

/// Bits of a tag that say which entry it is; the others count how often it was used.
const INDEX_BITS: u32 = 12;

/// Commands in flight, each with a tag of 16 bits that the device gives back when it
/// completed the command (NVM Express Base 1.4, 4.6: the command identifier).
///
/// The low 12 bits of a tag are an index, the high 4 count how often that index was used: a
/// completion that comes once more names a tag that is not in flight, unless 16 commands used
/// the index in between. Nothing is allocated after [`Tags::new`].
#[derive(Debug)]
pub struct Tags<T> {
    entries: Vec<Entry<T>>,
    /// Indices that are not in use; the one used last is used next.
    free: Vec<u16>,
}

#[derive(Debug)]
struct Entry<T> {
    generation: u16,
    item: Option<T>,
}

impl<T> Tags<T> {
    /// The most commands in flight: what the index of a tag counts.
    pub const MOST: u32 = 1 << INDEX_BITS;

    /// Room for so many commands in flight.
    ///
    /// # Errors
    ///
    /// [`QueueError::Size`] for none, or more than [`Tags::MOST`].
    pub fn new(capacity: u32) -> Result<Tags<T>, QueueError> {
        if !(1..=Self::MOST).contains(&capacity) {
            return Err(QueueError::Size { size: capacity, least: 1, most: Self::MOST });
        }
        let entries = (0..capacity).map(|_| Entry { generation: 0, item: None }).collect();
        Ok(Tags { entries, free: (0..capacity as u16).rev().collect() })
    }

    /// Commands that can be in flight.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.entries.len()
    }

    /// Commands that can be inserted now.
    #[inline]
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Commands in flight.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Whether nothing is in flight.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The index of a tag, below [`Tags::capacity`] for one of these: for what is kept for
    /// each command outside of here.
    #[inline]
    #[must_use]
    pub fn index(tag: u16) -> usize {
        usize::from(tag & (Self::MOST - 1) as u16)
    }

    /// The tag that the next command gets; `None` when no more can be in flight.
    #[inline]
    #[must_use]
    pub fn next_tag(&self) -> Option<u16> {
        let &index = self.free.last()?;
        Some(self.tag(index))
    }

    /// Counts a command as in flight, under the tag of [`Tags::next_tag`]; gives it back when
    /// no more can be.
    ///
    /// # Errors
    ///
    /// The command.
    #[inline]
    pub fn insert(&mut self, item: T) -> Result<u16, T> {
        let Some(index) = self.free.pop() else { return Err(item) };
        self.entries[usize::from(index)].item = Some(item);
        Ok(self.tag(index))
    }

    /// Takes the command that the device says it completed.
    ///
    /// # Errors
    ///
    /// [`QueueError::NoCommand`] for a tag that is not in flight.
    #[inline]
    pub fn complete(&mut self, tag: u16) -> Result<T, QueueError> {
        let index = Self::index(tag);
        let is_current = index < self.entries.len() && self.tag(index as u16) == tag;
        let item = if is_current { self.entries[index].item.take() } else { None };
        let Some(item) = item else {
            return Err(QueueError::NoCommand { tag, in_flight: self.len() });
        };
        self.entries[index].generation = self.entries[index].generation.wrapping_add(1);
        self.free.push(index as u16);
        Ok(item)
    }

    /// Takes every command in flight: the device was stopped, and has forgotten them.
    pub fn complete_all(&mut self, mut each: impl FnMut(T)) {
        for (entry, index) in self.entries.iter_mut().zip(0u16..) {
            if let Some(item) = entry.item.take() {
                entry.generation = entry.generation.wrapping_add(1);
                self.free.push(index);
                each(item);
            }
        }
    }

    /// The commands in flight, with their tags.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u16, &mut T)> {
        self.entries.iter_mut().zip(0u16..).filter_map(|(entry, index)| {
            let tag = index | entry.generation << INDEX_BITS;
            entry.item.as_mut().map(|item| (tag, item))
        })
    }

    #[inline]
    fn tag(&self, index: u16) -> u16 {
        index | self.entries[usize::from(index)].generation << INDEX_BITS
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_tag_that_comes_twice_or_was_never_given_names_nothing() {
        let mut tags = Tags::new(3).unwrap();
        let first = tags.insert('a').unwrap();
        assert_eq!(tags.complete(first), Ok('a'));
        let second = tags.insert('b').unwrap();
        assert_eq!(Tags::<char>::index(first), Tags::<char>::index(second));
        for bogus in [first, 3, 0xffff, second ^ 0x8000] {
            let none = QueueError::NoCommand { tag: bogus, in_flight: 1 };
            assert_eq!(tags.complete(bogus), Err(none));
        }
        assert_eq!(tags.complete(second), Ok('b'));
        let third = tags.insert('c').unwrap();
        tags.insert('d').unwrap();
        let mut all = String::new();
        tags.complete_all(|item| all.push(item));
        assert_eq!((all.len(), tags.free(), tags.complete(third).is_err()), (2, 3, true));
        for size in [0, Tags::<char>::MOST + 1] {
            assert!(matches!(Tags::<char>::new(size), Err(QueueError::Size { .. })));
        }
        assert_eq!(Tags::<char>::new(Tags::<char>::MOST).unwrap().free(), 4096);
    }

    proptest! {
        /// Against a map of what is in flight.
        #[test]
        fn each_command_completes_once(
            capacity in 1u32..20,
            steps in proptest::collection::vec((any::<bool>(), any::<u16>()), 1..300),
        ) {
            let mut tags = Tags::new(capacity).unwrap();
            let mut known: HashMap<u16, usize> = HashMap::new();
            let mut last = None;
            for (n, (is_new, pick)) in steps.into_iter().enumerate() {
                if is_new {
                    let next = tags.next_tag();
                    prop_assert_eq!(next.is_some(), known.len() < capacity as usize);
                    match tags.insert(n) {
                        Ok(tag) => {
                            prop_assert_eq!(Some(tag), next);
                            prop_assert!(Tags::<usize>::index(tag) < capacity as usize);
                            prop_assert_eq!(known.insert(tag, n), None);
                        }
                        Err(item) => prop_assert_eq!(item, n),
                    }
                } else if let Some(&tag) = known.keys().nth(pick as usize % known.len().max(1)) {
                    prop_assert_eq!(tags.complete(tag).ok(), known.remove(&tag));
                    last = Some(tag);
                }
                if let Some(last) = last.filter(|last| !known.contains_key(last)) {
                    prop_assert!(tags.complete(last).is_err());
                }
                let all: HashMap<u16, usize> = tags.iter_mut().map(|(t, n)| (t, *n)).collect();
                prop_assert_eq!(&all, &known);
                prop_assert_eq!(tags.len() + tags.free(), capacity as usize);
            }
        }
    }
}
