//! What a guest is made of.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::accel::Accel;
use super::error::VmError;
use super::kernel::Kernel;
use super::modules::Modules;

/// Slot of the first device on bus 0; the second sits at the next one, and so on.
pub const FIRST_SLOT: u8 = 5;
/// Slot of the shared directory.
const SHARE_SLOT: u8 = 3;
/// Slots from here on belong to the chipset.
const END_SLOT: u8 = 0x1d;

/// The guest's IOMMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Iommu {
    /// `intel-iommu` (VT-d).
    Intel {
        /// Width of its DMA addresses in bits, 39 or 48; QEMU's default when none.
        aw_bits: Option<u8>,
    },
    /// `amd-iommu`; VFIO is told to do without isolated interrupts.
    Amd,
    /// `virtio-iommu-pci`, at 0000:00:02.0; VFIO is told to do without isolated interrupts.
    ///
    /// With a stock kernel its driver is a module, and a device has an IOMMU group only from
    /// the time when it is bound to a driver.
    Virtio,
    /// None: devices reach physical memory.
    None,
}

impl Default for Iommu {
    fn default() -> Self {
        Self::Intel { aw_bits: None }
    }
}

impl FromStr for Iommu {
    type Err = VmError;

    /// Reads `intel`, `intel,aw-bits=N`, `amd`, `virtio` or `none`.
    fn from_str(text: &str) -> Result<Self, VmError> {
        match text {
            "intel" => return Ok(Self::Intel { aw_bits: None }),
            "amd" => return Ok(Self::Amd),
            "virtio" => return Ok(Self::Virtio),
            "none" => return Ok(Self::None),
            _ => {}
        }
        let bits = text.strip_prefix("intel,aw-bits=").and_then(|n| n.parse().ok());
        match bits {
            Some(bits @ (39 | 48)) => Ok(Self::Intel { aw_bits: Some(bits) }),
            _ => Err(VmError::BadConfig {
                what: "IOMMU",
                value: text.into(),
                why: "it is intel, intel,aw-bits=39, intel,aw-bits=48, amd, virtio or none".into(),
            }),
        }
    }
}

/// A PCI device of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// An argument of QEMU's `-device`: a model's name and its properties.
    Qemu(String),
    /// A device that another process models, on a vfio-user socket.
    VfioUser {
        /// Path of the socket.
        socket: PathBuf,
    },
}

impl From<&str> for Device {
    fn from(text: &str) -> Self {
        Self::Qemu(text.to_owned())
    }
}

impl Device {
    /// The argument of `-device` that puts it at `slot` of bus 0.
    ///
    /// A device whose properties say where it goes stays there.
    pub(super) fn argument(&self, slot: u8) -> Result<OsString, VmError> {
        match self {
            Self::VfioUser { socket } => {
                // JSON is text: a path that is not cannot be given to QEMU.
                let path = socket.to_str().ok_or_else(|| VmError::BadConfig {
                    what: "socket",
                    value: socket.display().to_string(),
                    why: "the path is not UTF-8".into(),
                })?;
                let json = serde_json::json!({
                    "driver": "vfio-user-pci",
                    "bus": "pcie.0",
                    "addr": format!("{slot:#x}"),
                    "socket": { "type": "unix", "path": path },
                });
                Ok(json.to_string().into())
            }
            Self::Qemu(text) if text.is_empty() || text.starts_with('-') => {
                Err(VmError::BadConfig {
                    what: "device",
                    value: text.clone(),
                    why: "a device is a name of `qemu-system-x86_64 -device help`, then its \
                          properties, such as edu,dma_mask=0xffffffff"
                        .into(),
                })
            }
            Self::Qemu(text) if placed(text) => Ok(text.into()),
            Self::Qemu(text) => Ok(format!("{text},bus=pcie.0,addr={slot:#x}").into()),
        }
    }
}

/// Whether a device's properties already give its bus or slot, or are in JSON.
fn placed(text: &str) -> bool {
    text.starts_with('{')
        || text.split(',').skip(1).any(|p| p.starts_with("addr=") || p.starts_with("bus="))
}

/// A file that the host puts into the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFile {
    /// Path on the host.
    pub host: PathBuf,
    /// Absolute path in the guest.
    pub guest: String,
    /// Permissions, such as 0o755.
    pub mode: u32,
}

/// Where the directory of [`VmConfig::share`] is in the guest.
pub const SHARE: &str = "/share";
/// What the kernel calls its device.
pub(super) const SHARE_TAG: &str = "share";

/// Least and most memory of a guest, in bytes.
pub const MEMORY: RangeInclusive<u64> = 64 << 20..=1 << 40;
/// Fewest and most NUMA nodes of a guest.
pub const NODES: RangeInclusive<u32> = 1..=8;
/// Fewest and most processors of a guest: each has an interrupt address of 8 bits.
pub const CPUS: RangeInclusive<u32> = 1..=255;

/// A guest: what it is made of and how long it may take.
///
/// ```no_run
/// use vfio_dma_tools::vm::{Device, VmConfig};
///
/// let config = VmConfig { devices: vec![Device::from("edu")], ..VmConfig::default() };
/// let output = config.run(&["ls", "/sys/bus/pci/devices"])?;
/// assert!(String::from_utf8_lossy(&output.stdout).contains("0000:00:05.0"));
/// # Ok::<(), vfio_dma_tools::vm::VmError>(())
/// ```
#[derive(Debug, Clone)]
pub struct VmConfig {
    /// The kernel that it runs.
    pub kernel: Kernel,
    /// Its IOMMU.
    pub iommu: Iommu,
    /// Its PCI devices; the first is 0000:00:05.0, the second 0000:00:06.0, and so on.
    pub devices: Vec<Device>,
    /// Its memory in bytes, a multiple of 1 MiB.
    pub memory: u64,
    /// NUMA nodes that its memory is divided among, in equal parts of whole MiB; the processors
    /// are on the first.
    pub nodes: u32,
    /// Number of its processors.
    pub cpus: u32,
    /// The kernel modules that it gets.
    pub modules: Modules,
    /// A static program that becomes `/bin/vfio-dma`; by default the running one.
    pub program: Option<PathBuf>,
    /// More files for it.
    pub files: Vec<GuestFile>,
    /// A directory of the host that is [`SHARE`] in the guest, where the command begins; what
    /// is written there stays.
    pub share: Option<PathBuf>,
    /// Environment of the command.
    pub env: Vec<(String, OsString)>,
    /// More words for the kernel's command line.
    pub kernel_args: Vec<String>,
    /// More arguments for QEMU.
    pub qemu_args: Vec<OsString>,
    /// How its processor runs.
    pub accel: Accel,
    /// Longest time until it is ready for the command.
    pub boot_timeout: Duration,
    /// Longest time for the command; none: as long as it takes.
    pub timeout: Option<Duration>,
}

impl Default for VmConfig {
    fn default() -> Self {
        Self {
            kernel: Kernel::default(),
            iommu: Iommu::default(),
            devices: Vec::new(),
            memory: 1 << 30,
            nodes: 1,
            cpus: 1,
            modules: Modules::default(),
            program: std::env::current_exe().ok(),
            files: Vec::new(),
            share: None,
            env: Vec::new(),
            kernel_args: Vec::new(),
            qemu_args: Vec::new(),
            accel: Accel::default(),
            boot_timeout: Duration::from_secs(60),
            timeout: Some(Duration::from_secs(600)),
        }
    }
}

impl VmConfig {
    /// PCI address of the device at `index` in the guest.
    #[must_use]
    pub fn address(index: u8) -> String {
        format!("0000:00:{:02x}.0", FIRST_SLOT.saturating_add(index))
    }

    /// Refuses a guest that cannot be, before anything is fetched for it.
    ///
    /// # Errors
    ///
    /// Names the setting, its value, and what would be right.
    pub fn check(&self) -> Result<(), VmError> {
        self.machine_arguments().map(drop)
    }

    /// QEMU's arguments that describe the machine, without kernel, ports and processor.
    pub(super) fn machine_arguments(&self) -> Result<Vec<OsString>, VmError> {
        const MIB: u64 = 1 << 20;
        if !MEMORY.contains(&self.memory) || !self.memory.is_multiple_of(MIB) {
            return Err(VmError::BadConfig {
                what: "memory",
                value: format!("{} bytes", self.memory),
                why: "it is a multiple of 1 MiB, from 64 MiB to 1 TiB".into(),
            });
        }
        if !CPUS.contains(&self.cpus) {
            return Err(VmError::BadConfig {
                what: "number of processors",
                value: self.cpus.to_string(),
                why: format!("it is {} to {}", CPUS.start(), CPUS.end()),
            });
        }
        let slots = usize::from(END_SLOT - FIRST_SLOT);
        if self.devices.len() > slots {
            return Err(VmError::BadConfig {
                what: "number of devices",
                value: self.devices.len().to_string(),
                why: format!("at most {slots} fit on the bus"),
            });
        }
        if !NODES.contains(&self.nodes) || !self.memory.is_multiple_of(u64::from(self.nodes) * MIB)
        {
            return Err(VmError::BadConfig {
                what: "number of NUMA nodes",
                value: self.nodes.to_string(),
                why: format!(
                    "it is {} to {}, and each has as many whole MiB of memory",
                    NODES.start(),
                    NODES.end()
                ),
            });
        }
        let size = self.memory / MIB;
        // Only a shared memory backend gives vfio-user servers descriptors for guest memory.
        let mut arguments: Vec<OsString> = [
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-machine",
            "q35,kernel-irqchip=split,smbus=off,sata=off,vmport=off",
            "-m",
            &format!("{size}M"),
            "-smp",
            &self.cpus.to_string(),
        ]
        .map(OsString::from)
        .into();
        let part = size / u64::from(self.nodes);
        for node in 0..self.nodes {
            let backend = format!("memory-backend-memfd,id=memory{node},size={part}M,share=on");
            arguments.extend(["-object".into(), backend.into()]);
        }
        if self.nodes == 1 {
            arguments.extend(["-machine".into(), "memory-backend=memory0".into()]);
        } else {
            let last = self.cpus - 1;
            for node in 0..self.nodes {
                let cpus = if node == 0 { format!(",cpus=0-{last}") } else { String::new() };
                let described = format!("node,nodeid={node},memdev=memory{node}{cpus}");
                arguments.extend(["-numa".into(), described.into()]);
            }
        }
        // The IOMMU comes first: QEMU wants it before the devices behind it.
        let iommu = match self.iommu {
            Iommu::Intel { aw_bits: None } => "intel-iommu,caching-mode=on,intremap=on".into(),
            Iommu::Intel { aw_bits: Some(bits) } => {
                format!("intel-iommu,caching-mode=on,intremap=on,aw-bits={bits}")
            }
            Iommu::Amd => "amd-iommu,intremap=on,dma-remap=on".into(),
            Iommu::Virtio => "virtio-iommu-pci,bus=pcie.0,addr=0x2".into(),
            Iommu::None => String::new(),
        };
        if !iommu.is_empty() {
            arguments.extend(["-device".into(), iommu.into()]);
        }
        if let Some(dir) = &self.share {
            arguments.extend(share_arguments(dir)?);
        }
        for (slot, device) in (FIRST_SLOT..).zip(&self.devices) {
            arguments.extend(["-device".into(), device.argument(slot)?]);
        }
        Ok(arguments)
    }

    /// The kernel's command line.
    pub(super) fn kernel_line(&self) -> String {
        // A panic must end QEMU, not wait; the rest is time that a guest of seconds can spare.
        let mut words = vec![
            "console=ttyS0",
            "quiet",
            "panic=-1",
            "mitigations=off",
            "no_timer_check",
            "cryptomgr.notests",
            "audit=0",
            "nowatchdog",
        ];
        match self.iommu {
            Iommu::Intel { .. } => words.push("intel_iommu=on"),
            // virtio-iommu does not remap interrupts, and newer kernels do not let QEMU's
            // amd-iommu do it: they look for a southbridge at 00:14.0. VFIO then attaches no
            // device unless it is told to.
            Iommu::Amd | Iommu::Virtio => words.extend([
                "vfio_iommu_type1.allow_unsafe_interrupts=1",
                "iommufd.allow_unsafe_interrupts=1",
            ]),
            Iommu::None => {}
        }
        words.extend(self.kernel_args.iter().map(String::as_str));
        words.join(" ")
    }

    /// Names of the modules to load, those of the IOMMU first.
    pub(super) fn modules_to_load(&self) -> Vec<&str> {
        let iommu = (self.iommu == Iommu::Virtio).then_some("virtio_iommu");
        let share: &[&str] = if self.share.is_some() { &["9pnet_virtio", "9p"] } else { &[] };
        let asked = self.modules.load.iter().map(String::as_str);
        iommu.into_iter().chain(share.iter().copied()).chain(asked).collect()
    }
}

/// QEMU's arguments for a shared directory: a virtio device that speaks 9P, which QEMU serves
/// by itself. What the guest creates belongs to the user who runs QEMU.
fn share_arguments(dir: &Path) -> Result<[OsString; 4], VmError> {
    let refuse = |why: String| {
        let value = dir.display().to_string();
        Err(VmError::BadConfig { what: "shared directory", value, why })
    };
    match dir.metadata() {
        Ok(meta) if !meta.is_dir() => return refuse("it is not a directory".into()),
        Err(error) => return refuse(error.to_string()),
        Ok(_) => {}
    }
    let mut filesystem = b"local,id=share,security_model=none,multidevs=remap,path=".to_vec();
    for &byte in dir.as_os_str().as_bytes() {
        filesystem.push(byte);
        // A comma that does not end the value is written twice.
        if byte == b',' {
            filesystem.push(byte);
        }
    }
    let device =
        format!("virtio-9p-pci,bus=pcie.0,addr={SHARE_SLOT:#x},fsdev=share,mount_tag={SHARE_TAG}");
    Ok(["-fsdev".into(), OsString::from_vec(filesystem), "-device".into(), device.into()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_get_slots_in_order_unless_they_name_their_own() {
        let config = VmConfig {
            devices: vec!["edu,dma_mask=0xff".into(), "edu,addr=9".into(), "pci-testdev".into()],
            ..VmConfig::default()
        };
        let arguments = config.machine_arguments().unwrap();
        let tail: Vec<_> = arguments.iter().rev().step_by(2).take(3).collect();
        assert_eq!(
            tail,
            [
                "pci-testdev,bus=pcie.0,addr=0x7",
                "edu,addr=9",
                "edu,dma_mask=0xff,bus=pcie.0,addr=0x5"
            ]
        );
        assert_eq!(VmConfig::address(2), "0000:00:07.0");
    }

    #[test]
    fn sockets_are_quoted() {
        let device = Device::VfioUser { socket: "/tmp/a\"b,c".into() };
        let argument = device.argument(5).unwrap().into_string().unwrap();
        let json: serde_json::Value = serde_json::from_str(&argument).unwrap();
        assert_eq!(json["socket"]["path"], "/tmp/a\"b,c");
        assert_eq!(json["addr"], "0x5");
    }

    #[test]
    fn senseless_guests_are_refused() {
        let refuse = |config: VmConfig| config.machine_arguments().unwrap_err().to_string();
        let base = VmConfig::default;
        assert!(refuse(VmConfig { memory: (1 << 30) + 1, ..base() }).contains("1073741825 bytes"));
        for cpus in [0, 256, 999] {
            let said = refuse(VmConfig { cpus, ..base() });
            assert!(said.contains(&format!("\"{cpus}\": it is 1 to 255")), "{said}");
        }
        assert!(refuse(VmConfig { devices: vec!["edu".into(); 25], ..base() }).contains("24 fit"));
        assert!(refuse(VmConfig { devices: vec!["-edu".into()], ..base() }).contains("-edu"));
    }

    #[test]
    fn a_shared_directory_is_there_and_its_commas_arrive() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("a,b");
        let share = |dir: &Path| VmConfig { share: Some(dir.into()), ..VmConfig::default() };
        let refused = |dir: &Path| share(dir).machine_arguments().unwrap_err().to_string();
        assert!(refused(&dir).contains("No such file"), "{}", refused(&dir));
        std::fs::write(&dir, "").unwrap();
        assert!(refused(&dir).contains("it is not a directory"), "{}", refused(&dir));
        std::fs::remove_file(&dir).unwrap();
        std::fs::create_dir(&dir).unwrap();
        let arguments = share(&dir).machine_arguments().unwrap();
        let ends = |argument: &OsString| argument.to_string_lossy().ends_with("/a,,b");
        assert!(arguments.iter().any(ends), "{arguments:?}");
        assert_eq!(share(&dir).modules_to_load()[..2], ["9pnet_virtio", "9p"]);
    }

    #[test]
    fn callers_kernel_words_come_last() {
        let config = VmConfig { kernel_args: vec!["loglevel=7".into()], ..VmConfig::default() };
        let line = config.kernel_line();
        assert!(line.starts_with("console=ttyS0 quiet "), "{line}");
        assert!(line.ends_with(" intel_iommu=on loglevel=7"), "{line}");
    }

    #[test]
    fn iommus_are_read() {
        assert_eq!("intel".parse::<Iommu>().unwrap(), Iommu::default());
        let wide = "intel,aw-bits=48".parse::<Iommu>().unwrap();
        assert_eq!(wide, Iommu::Intel { aw_bits: Some(48) });
        assert!("intel,aw-bits=64".parse::<Iommu>().is_err());
        assert!("none ".parse::<Iommu>().is_err());
    }
}
