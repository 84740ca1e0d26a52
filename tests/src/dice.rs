//! Numbers that a seed repeats.

use std::hash::{BuildHasher, RandomState};

/// A small generator (xorshift64*) whose seed is printed, so that a failure can be repeated.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// The variable that gives the seed; cases in guests see it too.
    pub const SEED: &str = "VFIO_DMA_SEED";

    /// A generator with this seed.
    #[must_use]
    pub fn new(seed: u64) -> Dice {
        // The state must not be 0, from which it never leaves.
        Dice(seed | 1 << 63)
    }

    /// A generator with the seed in [`Dice::SEED`], or with a new one; prints it.
    ///
    /// # Panics
    ///
    /// When the variable is set and holds no number.
    #[must_use]
    pub fn seeded() -> Dice {
        let seed = match std::env::var(Dice::SEED) {
            Ok(seed) => seed.parse().expect("VFIO_DMA_SEED is a decimal number"),
            Err(_) => RandomState::new().hash_one(0) >> 1,
        };
        println!("{}={seed}", Dice::SEED);
        Dice::new(seed)
    }

    /// A number below `below`, which is not 0.
    pub fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below
    }
}
