//! Pieces of a buffer in an order in which no two neighbours follow each other.

/// The numbers below `count` in an order of the seed's, none followed by its successor.
#[must_use]
pub(super) fn scattered(count: usize, seed: u64) -> Vec<usize> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut order: Vec<usize> = (0..count).collect();
    random.shuffle(&mut order);
    let merges = |order: &[usize], i: usize| i > 0 && order[i - 1].checked_add(1) == Some(order[i]);
    // About one neighbour is left by chance; moving it elsewhere may make another.
    for _ in 0..64 {
        let left: Vec<usize> = (1..count).filter(|&i| merges(&order, i)).collect();
        if left.is_empty() {
            return order;
        }
        for i in left {
            order.swap(i, random.usize(..count));
        }
    }
    // Backwards there is never one.
    (0..count).rev().collect()
}

/// Offset and length of piece `n` of `len` bytes in pieces of `size`.
#[must_use]
pub(super) fn pieces(n: usize, size: usize, len: usize) -> (usize, usize) {
    let at = n * size;
    (at, size.min(len - at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_piece_follows_its_neighbour_and_none_is_left_out() {
        for count in (0..70).chain([1000, 4096]) {
            for seed in 0..20 {
                let order = scattered(count, seed);
                assert!(order.windows(2).all(|two| two[0] + 1 != two[1]), "{count} {seed}");
                let mut sorted = order.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, (0..count).collect::<Vec<_>>());
            }
        }
        assert_ne!(scattered(100, 1), scattered(100, 2));
        assert_eq!(scattered(100, 1), scattered(100, 1));
    }

    #[test]
    fn the_last_piece_is_what_is_left() {
        assert_eq!(pieces(0, 4096, 10_000), (0, 4096));
        assert_eq!(pieces(2, 4096, 10_000), (8192, 1808));
    }
}
