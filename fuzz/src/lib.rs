//! What the fuzz targets share: a stream of bytes that never ends, and a PCI function that
//! does to a driver what its bytes say.

mod bytes;
mod hostile;

pub use bytes::Bytes;
pub use hostile::{Hostile, Plausible};
