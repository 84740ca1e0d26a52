//! A model on a socket, served from a thread of this process.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use tempfile::TempDir;
use vfio_dma_model::function::PciFunction;
use vfio_dma_model::ioat::{FaultError, Ioat, IoatConfig, IoatError, Personality};
use vfio_dma_model::vfio_user::{Ended, Server, ServerError, Stop};

use crate::vm::Device;

/// Why a model cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// There is no such model.
    #[error(transparent)]
    Model(#[from] IoatError),
    /// The socket cannot be served.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The device's description makes no sense.
    #[error(
        "{text:?} is not an ioat device: {why}; such as ioat, ioat-icx or ioat-skx,channels=4,fault=chanerr=8@100"
    )]
    Description {
        /// The description.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file, an eventfd or a thread cannot be made.
    #[error("serving the model: {0}")]
    Os(#[from] std::io::Error),
}

/// A function on a socket of its own, until dropped.
#[derive(Debug)]
pub struct Served<F = Ioat> {
    socket: PathBuf,
    function: Arc<F>,
    stop: Stop,
    thread: Option<JoinHandle<Result<Ended, ServerError>>>,
    /// Holds the socket.
    _directory: TempDir,
}

impl Served {
    /// Makes an I/OAT function and listens on a socket in a new directory.
    ///
    /// # Errors
    ///
    /// Fails when the configuration is out of range or the socket cannot be made.
    pub fn start(config: IoatConfig) -> Result<Served, ServeError> {
        Served::of(Ioat::new(config)?)
    }

    /// The model itself.
    #[must_use]
    pub fn ioat(&self) -> &Arc<Ioat> {
        &self.function
    }
}

impl<F: PciFunction + 'static> Served<F> {
    /// Listens on a socket in a new directory for any function.
    ///
    /// # Errors
    ///
    /// Fails when the socket cannot be made.
    pub fn of(function: F) -> Result<Served<F>, ServeError> {
        let directory = tempfile::Builder::new().prefix("vfio-dma-").tempdir()?;
        let socket = directory.path().join("device");
        let function = Arc::new(function);
        let server = Server::bind(&socket)?;
        let stop = Stop::new()?;
        let thread = std::thread::Builder::new().name("vfio-user".into()).spawn({
            let (function, stop) = (Arc::clone(&function), stop.clone());
            move || server.serve(&*function, &stop)
        })?;
        Ok(Served { socket, function, stop, thread: Some(thread), _directory: directory })
    }
}

impl<F> Served<F> {
    /// The device for a guest.
    #[must_use]
    pub fn device(&self) -> Device {
        Device::VfioUser { socket: self.socket.clone() }
    }

    /// The function.
    #[must_use]
    pub fn function(&self) -> &Arc<F> {
        &self.function
    }
}

impl<F> Drop for Served<F> {
    fn drop(&mut self) {
        self.stop.stop();
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Err(error))) => log::error!("serving a device: {error}"),
            Some(Err(_)) => log::error!("the thread that serves a device panicked"),
            _ => {}
        }
    }
}

/// Reads `ioat`, `ioat-skx` or `ioat-icx`, with `,channels=N` and, at the end, `,fault=SPEC`;
/// `None` for another device.
///
/// # Errors
///
/// Says what is wrong with a device whose name begins with `ioat`.
pub fn describe(text: &str) -> Result<Option<IoatConfig>, ServeError> {
    let error = |why: String| ServeError::Description { text: text.into(), why };
    // A fault plan has commas of its own, and so comes last.
    let (device, plan) = match text.split_once(",fault=") {
        Some((device, plan)) => (device, Some(plan)),
        None => (text, None),
    };
    let mut parts = device.split(',');
    let personality = match parts.next() {
        Some("ioat") => Personality::default(),
        Some(name) if name.starts_with("ioat-") => {
            name.parse().map_err(|unknown| error(format!("{unknown}")))?
        }
        _ => return Ok(None),
    };
    let mut config = IoatConfig { personality, ..IoatConfig::default() };
    if let Some(plan) = plan {
        config.faults = plan.parse().map_err(|bad: FaultError| error(bad.to_string()))?;
    }
    for part in parts {
        match part.split_once('=') {
            Some(("channels", number)) => {
                config.channels =
                    number.parse().map_err(|_| error(format!("channels={number} is no number")))?;
            }
            _ => return Err(error(format!("{part:?} is not one of its properties"))),
        }
    }
    config.check().map_err(|bad| error(bad.to_string()))?;
    Ok(Some(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_are_read() {
        assert!(describe("edu,dma_mask=0xff").unwrap().is_none());
        let plain = describe("ioat").unwrap().unwrap();
        assert_eq!((plain.personality, plain.channels), (Personality::Skylake, 1));
        let icx = describe("ioat-icx,channels=8").unwrap().unwrap();
        assert_eq!((icx.personality, icx.channels), (Personality::IceLake, 8));
        for bad in [
            "ioat-x",
            "ioat,channels=x",
            "ioat,mask=1",
            "ioat,",
            "ioat,fault=x@1",
            "ioat,channels=9",
        ] {
            let error = describe(bad).unwrap_err().to_string();
            assert!(error.contains(bad) && error.contains("channels=4"), "{error}");
        }
    }
}
