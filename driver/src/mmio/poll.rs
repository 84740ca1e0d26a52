//! Waiting for a register.

use std::time::{Duration, Instant};

/// How long the register is looked at without a pause.
const SPIN: Duration = Duration::from_micros(50);
/// The longest pause between two looks.
const LONGEST_PAUSE: Duration = Duration::from_millis(1);

/// Looks at a device until it answers: at once for 50 us, then ever more seldom, at least
/// every millisecond. Returns `None` when `limit` passed without an answer.
///
/// The last look is taken after the limit, so that a process that did not run meanwhile
/// does not take its own absence for the device's.
///
/// # Errors
///
/// The first error of `look`.
pub fn poll_until<T, E>(
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>, E>,
) -> Result<Option<T>, E> {
    let begin = Instant::now();
    let mut pause = Duration::from_micros(1);
    loop {
        // Read before the device is looked at.
        let elapsed = begin.elapsed();
        if let Some(value) = look()? {
            return Ok(Some(value));
        }
        if elapsed >= limit {
            return Ok(None);
        }
        if elapsed < SPIN {
            std::hint::spin_loop();
            continue;
        }
        std::thread::sleep(pause.min(limit - elapsed));
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_the_error_and_the_limit_end_it() {
        let mut looks = 0;
        let third = poll_until(Duration::MAX, || {
            looks += 1;
            Ok::<_, ()>((looks == 3).then_some(looks))
        });
        assert_eq!(third, Ok(Some(3)));
        assert_eq!(poll_until(Duration::MAX, || Err::<Option<()>, _>(7)), Err(7));
        let begin = Instant::now();
        let limit = Duration::from_millis(20);
        let mut late = false;
        let never = poll_until(limit, || {
            late = begin.elapsed() >= limit;
            Ok::<Option<()>, ()>(None)
        });
        assert_eq!(never, Ok(None));
        assert!(late, "the last look comes after the limit");
        let mut looks = 0;
        let once = poll_until(Duration::ZERO, || {
            looks += 1;
            Ok::<Option<()>, ()>(None)
        });
        assert_eq!((once, looks), (Ok(None), 1));
    }
}
