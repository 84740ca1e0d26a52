//! The benchmark of contiguous against scatter/gather transfers, and what is made of its
//! results.

pub mod compare;
pub mod csv;
#[cfg(test)]
mod fixture;
pub mod link;
pub mod report;
pub mod results;
pub mod units;
