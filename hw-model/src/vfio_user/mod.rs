//! Serves a [`PciFunction`](crate::function::PciFunction) on a unix socket, as a vfio-user device.
//!
//! QEMU's `vfio-user-pci` (10.1 and later) and the driver's socket backend are clients. One
//! client is served at a time; others wait in the socket's queue. When a client leaves, or
//! sends what is not the protocol, its memory is unmapped, its interrupts are disconnected
//! and the function is reset; the next client finds it as after power-on.
//!
//! A request that cannot be carried out gets an error reply: the header alone, with the
//! error flag and an errno, as the specification has it. A message that is malformed,
//! truncated, oversized or out of order ends its connection with a logged reason, and
//! nothing else. Messages and descriptors are limited in size and number, so that a client
//! cannot make the server allocate without bound.
//!
//! Not offered: migration, dirty page tracking, regions that a client maps, and server
//! requests (`DMA_READ`, `DMA_WRITE`): memory that a client does not share is out of reach.
//! What it shares must be a memfd, or a file in tmpfs or hugetlbfs: a file of another file
//! system may belong to somebody who never hands its pages out.
//!
//! No client holds the server up: eventfds are signalled without waiting
//! ([`Event`](crate::function::Event)), and a client whose file cannot be closed is given up.
//! One thing is the kernel's: a process ends only when each of its files is closed, so that
//! of a client's own file system waits for that client.

mod channel;
mod descriptors;
pub(crate) mod pieces;
pub mod protocol;
mod server;
mod session;
mod stop;
#[cfg(test)]
mod tests;

#[cfg(all(test, shuttle))]
pub(crate) use server::disconnect;
pub use server::{Ended, Server, ServerError};
pub use stop::Stop;
