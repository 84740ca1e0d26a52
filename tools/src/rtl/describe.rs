//! Simulated devices by their descriptions: `litepcie,channels=2`, `rtl,top=NAME,file=PATH`.

use std::path::PathBuf;
use std::sync::Arc;

use vfio_dma_model::fault::FaultPlan;
use vfio_dma_model::link::LinkMeter;
use vfio_dma_model::pci::Header;
use vfio_dma_model::rtl::{self, Simulation, SimulationConfig};
use vfio_dma_model::tlp::{Order, TlpConfig, TlpFault, TlpFunction};

use super::litepcie::{self, Options};
use super::{Design, RtlError, build};

/// A function that is simulated.
pub type RtlFunction = TlpFunction<Simulation>;

/// Which hardware it is.
#[derive(Debug, Clone)]
enum Hardware {
    LitePcie(Options),
    Design(Design),
}

/// A device that is simulated, as a description has it.
#[derive(Debug, Clone)]
pub struct RtlConfig {
    hardware: Hardware,
    /// How the function is set up.
    pub function: TlpConfig,
    /// Where waveforms go.
    pub trace: Option<PathBuf>,
    /// Its name, for messages.
    pub name: &'static str,
    /// The text of each fault that is to happen.
    pub faults: Vec<String>,
}

impl RtlConfig {
    /// LitePCIe's card with these options.
    #[must_use]
    pub fn litepcie(options: Options) -> RtlConfig {
        let function = rtl::litepcie::config();
        RtlConfig::new(Hardware::LitePcie(options), function, "litepcie")
    }

    /// A design of the user's, identified so.
    #[must_use]
    pub fn design(design: Design, function: TlpConfig) -> RtlConfig {
        RtlConfig::new(Hardware::Design(design), function, "rtl")
    }

    fn new(hardware: Hardware, function: TlpConfig, name: &'static str) -> RtlConfig {
        RtlConfig { hardware, function, trace: None, name, faults: Vec::new() }
    }

    /// What LitePCIe's card is generated with; `None` for another design.
    #[must_use]
    pub fn litepcie_options(&self) -> Option<&Options> {
        match &self.hardware {
            Hardware::LitePcie(options) => Some(options),
            Hardware::Design(_) => None,
        }
    }

    /// Width of the bus in bits; that of the template for a design, which does not say.
    #[must_use]
    pub fn bus_width(&self) -> u32 {
        self.litepcie_options().map_or(128, |options| options.data_width.into())
    }

    /// Counts packets with this meter.
    pub fn set_meter(&mut self, meter: Option<Arc<LinkMeter>>) {
        self.function.root.meter = meter;
    }

    /// Builds what is not built, and starts the simulation.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be built or started.
    pub fn start(&self) -> Result<RtlFunction, RtlError> {
        let mut config = SimulationConfig::new(self.program()?);
        config.trace.clone_from(&self.trace);
        Ok(TlpFunction::new(Simulation::start(&config)?, self.function.clone())?)
    }

    /// The program that simulates it, built when it is not in the cache.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be built.
    pub fn program(&self) -> Result<PathBuf, RtlError> {
        let trace = self.trace.is_some();
        match &self.hardware {
            Hardware::LitePcie(options) => {
                let options = Options { trace: trace || options.trace, ..options.clone() };
                Ok(litepcie::card(&options)?.program)
            }
            Hardware::Design(design) => {
                build(&Design { trace: trace || design.trace, ..design.clone() })
            }
        }
    }
}

/// Whether a text is meant as the description of a simulated device.
#[must_use]
pub fn is_description(text: &str) -> bool {
    matches!(text.split(',').next(), Some("litepcie" | "rtl"))
}

/// Reads `litepcie` or `rtl,top=NAME,file=PATH` with more properties, and at the end
/// `,fault=SPEC`; `None` for another device.
///
/// | property | |
/// |---|---|
/// | `channels`, `width`, `tags`, `synchronizer` | of LitePCIe's card |
/// | `top`, `file` (several), `data` (several) | of a design |
/// | `id=VVVV:DDDD`, `bar0`, `vectors` | how it is seen |
/// | `payload`, `rcb`, `completion`, `latency`, `rate`, `shuffle` | sizes in bytes, times in cycles |
/// | `reads`, `posted` | credits |
/// | `trace` | where waveforms go |
///
/// # Errors
///
/// Says what is wrong with a device of these names.
pub fn describe(text: &str) -> Result<Option<RtlConfig>, RtlError> {
    let error = |why: String| RtlError::Description { text: text.into(), why };
    let (device, plan) = match text.split_once(",fault=") {
        Some((device, plan)) => (device, Some(plan)),
        None => (text, None),
    };
    let mut parts = device.split(',');
    let mut config = match parts.next() {
        Some("litepcie") => RtlConfig::litepcie(Options::default()),
        Some("rtl") => {
            let (files, data) = (Vec::new(), Vec::new());
            let design = Design { files, data, top: String::new(), trace: false };
            RtlConfig::design(design, TlpConfig::new(user_header()))
        }
        _ => return Ok(None),
    };
    for part in parts {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        set(&mut config, name, value).map_err(error)?;
    }
    if let Hardware::Design(Design { top, files, .. }) = &config.hardware
        && (top.is_empty() || files.is_empty())
    {
        return Err(error("a design needs top=MODULE and file=PATH".into()));
    }
    if let Some(plan) = plan {
        config.function.root.faults =
            plan.parse::<FaultPlan<TlpFault>>().map_err(|bad| error(bad.to_string()))?;
        config.faults = plan.split(',').map(|rule| rule.trim().to_owned()).collect();
    }
    config.function.check().map_err(|bad| error(bad.to_string()))?;
    Ok(Some(config))
}

/// What identifies a design that does not say: QEMU's vendor for devices of its own, and no
/// device of it.
fn user_header() -> Header {
    Header {
        vendor: 0x1234,
        device: 0x0d3a,
        revision: 0,
        class: 0x05_80_00,
        subsystem_vendor: 0,
        subsystem: 0,
        interrupt_pin: 0,
    }
}

fn set(config: &mut RtlConfig, name: &str, value: &str) -> Result<(), String> {
    fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, String> {
        value.parse().map_err(|_| format!("{name}={value} is no number in range"))
    }
    let function = &mut config.function;
    match (name, &mut config.hardware) {
        ("channels", Hardware::LitePcie(options)) => {
            options.channels = number(name, value)?;
            if !(1..=8).contains(&options.channels) {
                return Err("channels is 1 to 8".into());
            }
        }
        ("width", Hardware::LitePcie(options)) => {
            options.data_width = number(name, value)?;
            if ![64, 128].contains(&options.data_width) {
                return Err("width is 64 or 128: with a wider bus the card mixes packets up".into());
            }
        }
        ("tags", Hardware::LitePcie(options)) => {
            options.tags = number(name, value)?;
            if ![2, 4, 8, 16].contains(&options.tags) {
                return Err("tags is 2, 4, 8 or 16".into());
            }
        }
        ("synchronizer", Hardware::LitePcie(options)) => options.synchronizer = true,
        ("top", Hardware::Design(design)) => design.top = value.into(),
        ("file", Hardware::Design(design)) => design.files.push(value.into()),
        ("data", Hardware::Design(design)) => design.data.push(value.into()),
        ("id", Hardware::Design(_)) => {
            let hex = |text| u16::from_str_radix(text, 16).ok();
            let ids = value.split_once(':').and_then(|(v, d)| Some((hex(v)?, hex(d)?)));
            let ids = ids.ok_or_else(|| format!("id={value} is not as in id=1234:0001"))?;
            (function.header.vendor, function.header.device) = ids;
        }
        ("bar0", _) => function.bar0 = number(name, value)?,
        ("vectors", _) => function.vectors = number(name, value)?,
        ("payload", _) => function.max_payload = number(name, value)?,
        ("rcb", _) => function.root.read_completion_boundary = number(name, value)?,
        ("completion", _) => function.root.longest_completion = number(name, value)?,
        ("latency", _) => function.root.latency = number(name, value)?,
        ("rate", _) => function.root.bytes_per_cycle = number(name, value)?,
        ("shuffle", _) => {
            let cycles = number(name, value)?;
            function.root.order = Order::Shuffled { cycles, seed: 1 };
        }
        ("reads", _) => function.root.credits.reads = number(name, value)?,
        ("posted", _) => function.root.credits.posted_bytes = number(name, value)?,
        ("trace", _) => config.trace = Some(value.into()),
        _ => return Err(format!("{name:?} is not one of its properties")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_are_read() {
        assert!(describe("ioat,channels=2").unwrap().is_none());
        let text = "litepcie,channels=2,width=64,latency=300,rcb=128,fault=lost@3,ur@9";
        let config = describe(text).unwrap().unwrap();
        let Hardware::LitePcie(options) = &config.hardware else { panic!() };
        assert_eq!((options.channels, options.data_width), (2, 64));
        let root = &config.function.root;
        assert_eq!((root.latency, root.read_completion_boundary), (300, 128));
        assert_eq!(root.faults.rules().len(), 2);
        let text = "rtl,top=t,file=a.sv,file=b.sv,id=1234:abcd,bar0=4096,trace=w.fst";
        let config = describe(text).unwrap().unwrap();
        let Hardware::Design(design) = &config.hardware else { panic!() };
        assert_eq!((design.files.len(), config.function.header.device), (2, 0xabcd));
        for (bad, words) in [
            ("rtl,top=t", "file=PATH"),
            ("litepcie,channels=9", "1 to 8"),
            ("litepcie,file=x", "not one of its properties"),
            ("litepcie,latency=x", "no number"),
            ("litepcie,rcb=96", "64 or 128"),
            ("litepcie,vectors=3", "a power of two from 1 to 32"),
            ("litepcie,fault=x@1", "there is no fault"),
        ] {
            let error = describe(bad).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains(bad), "{error}");
        }
    }
}
