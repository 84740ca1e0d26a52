//! The benchmark of contiguous against scatter/gather transfers, and what is made of its
//! results.

pub mod results;
