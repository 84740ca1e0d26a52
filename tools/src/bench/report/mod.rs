//! A benchmark as one self-contained page.
