//! Awaits copies one after another, on an executor of a few lines:
//! `cargo run --example ioat_async -- model`.

use std::future::Future;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::ioat::{Config, Ioat, SharedChannel};
use vfio_dma::dma::{Direction, Pattern, Request};

use common::Result;

mod common;

const LEN: usize = 100_000;

async fn copy(ioat: &Ioat, channel: &SharedChannel, seed: u64) -> Result<()> {
    let mut source = ioat.allocate(&Request::new(LEN, Direction::ToDevice))?;
    let target = ioat.allocate(&Request::new(LEN, Direction::FromDevice))?;
    Pattern::new(seed).fill(&mut source, 0, LEN, 0)?;
    let finished = channel.copy(source.into(), target.into())?.await?;
    let target = finished.into_result()?.target.into_buffer().ok_or("no target")?;
    Ok(Pattern::new(seed).check(&target, 0, LEN, 0)??)
}

fn main() -> ExitCode {
    common::run("Awaits copies of an Intel I/OAT engine one after another.", await_copies)
}

fn await_copies(device: Device) -> Result<()> {
    let ioat = Ioat::probe(device, Config::default())?;
    let channel = SharedChannel::new(ioat.channel(0)?)?;
    block_on(async {
        for seed in 0..16 {
            copy(&ioat, &channel, seed).await?;
        }
        println!("16 copies of {LEN} bytes were awaited, every byte is right");
        Ok(())
    })
}

/// Runs a future in this thread; any other executor does as well.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}
