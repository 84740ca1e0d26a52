//! Why a function does not answer.

use std::fmt;

use super::{BarKind, Result, Sysfs};
use crate::pci::config::Command;
use crate::pci::sysfs::read_text;
use crate::pci::{Address, ConfigSpace, Remedy};

/// What keeps a function from answering accesses to a BAR: they read all ones then, or are a
/// bus error.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Silence {
    /// The kernel knows no function at the address: it was removed.
    Absent,
    /// Configuration space reads all ones too: nothing is there any more.
    NoAnswer,
    /// It is in a power state other than D0, as the kernel knows it: `D3hot`.
    Suspended {
        /// The state.
        state: String,
    },
    /// The link to it is down.
    LinkDown {
        /// The port above it.
        port: Option<Address>,
    },
    /// The command register's memory space bit is clear.
    MemoryOff,
    /// The command register's I/O space bit is clear.
    PortsOff,
}

impl Silence {
    /// What brings an answer.
    #[must_use]
    pub fn remedy(&self, address: Address) -> Remedy {
        match self {
            Silence::Absent | Silence::NoAnswer => Remedy::BringBack,
            Silence::Suspended { .. } => Remedy::KeepAwake { address },
            Silence::LinkDown { .. } => "check that the card sits firmly, has its power, and, if \
                                         it is programmable, that it is programmed; then have the \
                                         bus scanned again"
                .into(),
            Silence::MemoryOff => Remedy::EnableDecoding { address, ports: false },
            Silence::PortsOff => Remedy::EnableDecoding { address, ports: true },
        }
    }
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Silence::Absent => f.write_str("there is no such function any more"),
            Silence::NoAnswer => f.write_str(
                "nothing answers at the address: configuration space reads all ones too",
            ),
            Silence::Suspended { state } => {
                write!(f, "the function is in power state {state}, not D0")
            }
            Silence::LinkDown { port: Some(port) } => write!(f, "the link below {port} is down"),
            Silence::LinkDown { port: None } => f.write_str("its link is down"),
            Silence::MemoryOff => {
                f.write_str("the memory space bit of its command register is clear")
            }
            Silence::PortsOff => f.write_str("the I/O space bit of its command register is clear"),
        }
    }
}

impl Sysfs {
    /// What keeps a function from answering accesses to a BAR of this kind; none where nothing
    /// is known to. The BAR is not accessed.
    ///
    /// # Errors
    ///
    /// Fails when configuration space cannot be read.
    pub fn silence(&self, address: Address, kind: BarKind) -> Result<Option<Silence>> {
        let Ok(dir) = self.tree().device_dir(address) else { return Ok(Some(Silence::Absent)) };
        // First of all: reading configuration space wakes a function up for a moment.
        let state = read_text(&dir.join("power_state")).ok();
        if let Some(state) =
            state.filter(|state| matches!(&**state, "D1" | "D2" | "D3hot" | "D3cold"))
        {
            return Ok(Some(Silence::Suspended { state }));
        }
        let config = self.config(address)?;
        if config.read_u32(0)? == u32::MAX && config.read_u32(4)? == u32::MAX {
            let port = self.port_above(&dir);
            let is_down = port.is_some_and(|port| self.link_is_down(port));
            return Ok(Some(if is_down { Silence::LinkDown { port } } else { Silence::NoAnswer }));
        }
        let command = ConfigSpace::new(config.access()).command()?;
        Ok(match kind {
            BarKind::Io if !command.contains(Command::IO_SPACE) => Some(Silence::PortsOff),
            BarKind::Memory32 | BarKind::Memory64 if !command.contains(Command::MEMORY_SPACE) => {
                // The bit of a virtual function is that of its physical one (PCIe Base 4.0,
                // 9.3.4.1.3).
                self.tree().physical_function(address).is_none().then_some(Silence::MemoryOff)
            }
            _ => None,
        })
    }

    /// The bridge whose directory the function's is in.
    pub(super) fn port_above(&self, dir: &std::path::Path) -> Option<Address> {
        dir.canonicalize().ok()?.parent()?.file_name()?.to_str()?.parse().ok()
    }

    /// Whether the port says of its link that it is not active; a port that cannot tell is
    /// taken for one whose link is up (PCIe Base 4.0, 7.5.3.8, data link layer link active).
    fn link_is_down(&self, port: Address) -> bool {
        let read = || {
            let config = self.config(port).ok()?;
            let layout = crate::pci::Layout::read(&config).ok()?;
            let value = |register, field| layout.value(&config, register, field).ok().flatten();
            let tells = value("EXP_LNKCAP", "link-active-reporting")? != 0;
            Some(tells && value("EXP_LNKSTA", "link-active")? == 0)
        };
        read().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::fake::Fake;
    use super::*;

    #[test]
    fn each_reason_is_found_and_has_a_remedy() {
        let fake = Fake::new();
        let address = fake.device("0000:00:05.0", 0x1234, 0x11e8, None, None);
        let dir = fake.path("bus/pci/devices/0000:00:05.0");
        let sysfs = fake.sysfs();
        let silence = |kind| sysfs.silence(address, kind).unwrap();
        assert_eq!(silence(BarKind::Memory32), Some(Silence::MemoryOff));
        assert_eq!(silence(BarKind::Io), Some(Silence::PortsOff));
        let mut config = fs::read(dir.join("config")).unwrap();
        config[4] = 3;
        fs::write(dir.join("config"), &config).unwrap();
        assert_eq!((silence(BarKind::Memory64), silence(BarKind::Io)), (None, None));
        fs::write(dir.join("config"), [0xff; 64]).unwrap();
        assert_eq!(silence(BarKind::Io), Some(Silence::NoAnswer));
        fs::write(dir.join("power_state"), "D3hot\n").unwrap();
        assert_eq!(silence(BarKind::Io), Some(Silence::Suspended { state: "D3hot".into() }));
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(silence(BarKind::Io), Some(Silence::Absent));
        let remedy = Silence::MemoryOff.remedy(address).to_string();
        assert!(remedy.contains("setpci -s 0000:00:05.0 COMMAND=2:2"), "{remedy}");
    }
}
