//! Two benchmarks against each other.
