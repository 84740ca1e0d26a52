//! Copies a text with whichever engine a device is: `cargo run --example copy -- 0000:00:05.0`,
//! or with the path of a vfio-user socket.
use std::time::Duration;

use vfio_dma::backend::vfio_user::VfioUser;
use vfio_dma::device::Device;
use vfio_dma::devices::open_copy_engine;
use vfio_dma::dma::{Direction, Request};
use vfio_dma::session::Session;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let place = std::env::args().nth(1).ok_or("usage: copy PCI-ADDRESS | SOCKET")?;
    let device = match place.contains('/') {
        true => Device::open(VfioUser::connect(&place)?)?,
        false => Session::new().open(place.parse()?)?,
    };
    let mut engine = open_copy_engine(device)?;
    let mut source = engine.allocate(&Request::new(19, Direction::ToDevice))?;
    let target = engine.allocate(&Request::new(19, Direction::FromDevice))?;
    source.write(0, b"the same everywhere")?;
    let (_, target) = engine.copy(source, target, Duration::from_secs(5))?;
    let mut text = [0; 19];
    target.buffers()[0].read(0, &mut text)?;
    println!("{}", String::from_utf8_lossy(&text));
    Ok(())
}
