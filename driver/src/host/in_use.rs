//! Finding out what the host uses a function for.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::nodes::Nodes;
use super::{HostUse, PciDeviceInfo, Result, Sysfs};
use crate::pci::sysfs::{link_name, names, read_text};
use crate::pci::{Address, ClassCode};

impl Sysfs {
    /// What the host uses a function for, as far as this process may see; nothing for one that
    /// is bound to vfio-pci.
    ///
    /// # Errors
    ///
    /// Fails when there is no such function, or sysfs cannot be read.
    pub fn uses(&self, address: Address) -> Result<Vec<HostUse>> {
        self.uses_of(&self.device(address)?)
    }

    pub(super) fn uses_of(&self, device: &PciDeviceInfo) -> Result<Vec<HostUse>> {
        if device.with_vfio {
            return Ok(Vec::new());
        }
        let dir = self.tree.device_dir(device.address)?;
        let mut uses = Vec::new();
        if is_platform(device.class) {
            uses.push(HostUse::Platform { class: device.class });
        }
        uses.extend(self.virtual_functions(device.address)?);
        let nodes = Nodes::below(self, &dir);
        self.of_block_devices(&nodes, &mut uses);
        self.of_processes(&nodes, &dir, &mut uses);
        of_interfaces(&nodes, &mut uses);
        uses.extend(self.consoles(&nodes));
        Ok(uses)
    }

    /// The virtual functions that are switched on.
    pub(super) fn virtual_functions(&self, physical: Address) -> Result<Option<HostUse>> {
        let dir = self.tree.device_dir(physical)?;
        let count = read_text(&dir.join("sriov_numvfs")).ok().and_then(|text| text.parse().ok());
        let functions: Vec<String> = (0..count.unwrap_or(0u32))
            .map(|n| {
                let name = link_name(&dir.join(format!("virtfn{n}"))).ok().flatten();
                name.unwrap_or_else(|| format!("number {n}"))
            })
            .collect();
        let some = !functions.is_empty();
        Ok(some.then_some(HostUse::VirtualFunctions { physical, functions }))
    }

    /// Mounts, swap, and what is made of block devices.
    fn of_block_devices(&self, nodes: &Nodes, uses: &mut Vec<HostUse>) {
        for block in &nodes.blocks {
            for holder in &block.holders {
                let (device, holder) = (block.name.clone(), holder.clone());
                uses.push(HostUse::Holder { device, holder });
            }
        }
        let mut seen = BTreeSet::new();
        for table in self.mount_tables() {
            for MountLine { number, source, at } in table.lines().filter_map(MountLine::read) {
                let source = self.node_name(source);
                let block = nodes
                    .blocks
                    .iter()
                    .find(|block| block.number == number || source.as_deref() == Some(&block.name));
                // The same mount shows in each namespace that it was copied to.
                if let Some(block) = block
                    && seen.insert((block.name.clone(), at.clone()))
                {
                    uses.push(HostUse::Mount { device: block.name.clone(), at });
                }
            }
        }
        let swaps = fs::read_to_string(self.proc.join("swaps")).unwrap_or_default();
        for line in swaps.lines().skip(1) {
            let path = unescape(line.split_whitespace().next().unwrap_or_default());
            let name = self.node_name(&path);
            if let Some(block) =
                nodes.blocks.iter().find(|block| name.as_deref() == Some(&block.name))
            {
                uses.push(HostUse::Swap { device: block.name.clone() });
            }
        }
        if uses.is_empty() {
            let claimed = nodes.blocks.iter().filter(|block| self.is_claimed(&block.name));
            uses.extend(claimed.map(|block| HostUse::Claimed { device: block.name.clone() }));
        }
    }

    /// The table of each mount namespace that a process lives in.
    fn mount_tables(&self) -> Vec<String> {
        let mut namespaces = BTreeSet::new();
        let mut tables = Vec::new();
        for process in names(&self.proc).unwrap_or_default() {
            let dir = self.proc.join(&process);
            let Ok(namespace) = fs::read_link(dir.join("ns/mnt")) else { continue };
            if namespaces.insert(namespace) {
                tables.extend(fs::read_to_string(dir.join("mountinfo")));
            }
        }
        tables
    }

    /// The kernel's name of a block device by the path of its node, through links such as
    /// those of `/dev/mapper` and `/dev/disk`.
    fn node_name(&self, path: &str) -> Option<String> {
        let below = Path::new(path).strip_prefix("/dev").ok()?;
        let path = self.dev.join(below);
        let path = path.canonicalize().unwrap_or(path);
        Some(path.file_name()?.to_string_lossy().into_owned())
    }

    /// Whether somebody has opened a block device for himself alone: the kernel then refuses
    /// `O_EXCL` (open(2)).
    fn is_claimed(&self, name: &str) -> bool {
        use std::os::unix::fs::OpenOptionsExt as _;
        let flags = libc::O_EXCL | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let node = self.dev.join(name);
        let is_block = |path: &Path| {
            use std::os::unix::fs::FileTypeExt as _;
            fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device())
        };
        let opened = || fs::OpenOptions::new().read(true).custom_flags(flags).open(&node);
        is_block(&node) && opened().is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
    }

    /// Processes that have one of the nodes open, or a BAR through sysfs.
    fn of_processes(&self, nodes: &Nodes, dir: &Path, uses: &mut Vec<HostUse>) {
        let dir = dir.canonicalize().ok();
        let is_bar = |path: &PathBuf| {
            let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
            name.starts_with("resource") && path.parent() == dir.as_deref()
        };
        for process in names(&self.proc).unwrap_or_default() {
            let Ok(pid) = process.parse() else { continue };
            let dir = self.proc.join(&process);
            let Ok(files) = fs::read_dir(dir.join("fd")) else { continue };
            let open: BTreeSet<PathBuf> =
                files.flatten().filter_map(|file| fs::read_link(file.path()).ok()).collect();
            for node in open.iter().filter(|node| nodes.paths.contains(*node) || is_bar(node)) {
                let command = super::holder::command(&dir);
                uses.push(HostUse::Open { node: node.clone(), pid, command });
            }
        }
    }

    fn consoles(&self, nodes: &Nodes) -> Vec<HostUse> {
        let text = fs::read_to_string(self.proc.join("consoles")).unwrap_or_default();
        let names = text.lines().filter_map(|line| line.split_whitespace().next());
        names
            .filter(|name| nodes.paths.contains(&Path::new("/dev").join(name)))
            .map(|name| HostUse::Console { name: name.to_owned() })
            .collect()
    }
}

/// Bridges and IOMMUs: the machine does not work without them.
fn is_platform(class: ClassCode) -> bool {
    // PCI bridges are refused in any case.
    let bridge = class.base == 0x06 && !class.is_pci_bridge();
    bridge || (class.base, class.sub) == (0x08, 0x06)
}

fn of_interfaces(nodes: &Nodes, uses: &mut Vec<HostUse>) {
    /// `IFF_UP` of the kernel's `include/uapi/linux/if.h`.
    const UP: u32 = 1;
    for dir in &nodes.interfaces {
        let Some(name) = dir.file_name().map(|name| name.to_string_lossy().into_owned()) else {
            continue;
        };
        let flags = read_text(&dir.join("flags")).unwrap_or_default();
        let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16).unwrap_or(0);
        let up = flags & UP != 0;
        let addresses = addresses(&name);
        let master = link_name(&dir.join("master")).ok().flatten();
        if up || !addresses.is_empty() || master.is_some() {
            uses.push(HostUse::Interface { name, up, addresses, master });
        }
    }
    if nodes.interfaces_elsewhere {
        uses.push(HostUse::InterfaceElsewhere);
    }
}

/// The network addresses of an interface.
fn addresses(interface: &str) -> Vec<String> {
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let own = all.filter(|address| address.interface_name == interface);
    own.filter_map(|address| {
        let address = address.address?;
        let v4 = address.as_sockaddr_in().map(|v4| v4.ip().to_string());
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().to_string()))
    })
    .collect()
}

/// A line of `mountinfo` (proc(5)): `36 35 98:0 /root /mnt rw - ext4 /dev/sda1 rw`.
#[derive(Debug, PartialEq, Eq)]
struct MountLine<'a> {
    /// The device, for a file system that has one of its own.
    number: Option<(u32, u32)>,
    source: &'a str,
    at: String,
}

impl MountLine<'_> {
    fn read(line: &str) -> Option<MountLine<'_>> {
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(2);
        let number = super::nodes::number(front.next()?);
        let at = unescape(front.nth(1)?);
        Some(MountLine { number, source: back.split(' ').nth(1)?, at })
    }
}

/// Blanks and the like are three octal digits behind a backslash.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code.filter(u8::is_ascii) {
            Some(code) => {
                plain.push(char::from(code));
                plain.push_str(&part[3..]);
            }
            None => plain.extend(["\\", part]),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::super::HostError;
    use super::super::fake::Fake;
    use super::*;

    const BDF: &str = "0000:00:05.0";

    fn texts(fake: &Fake, address: Address) -> Vec<String> {
        fake.sysfs().uses(address).unwrap().iter().map(ToString::to_string).collect()
    }

    fn disk() -> (Fake, Address) {
        let fake = Fake::new();
        fake.register("vfio-pci", &[]);
        let address = fake.device(BDF, 0x1b36, 0x0010, Some("nvme"), Some(3));
        fake.node(BDF, "nvme/nvme0", "nvme", "241:0", "nvme0");
        fake.node(BDF, "nvme/nvme0/nvme0n1", "block", "259:0", "nvme0n1");
        fake.node(BDF, "nvme/nvme0/nvme0n1/nvme0n1p1", "block", "259:1", "nvme0n1p1");
        (fake, address)
    }

    fn process(fake: &Fake, pid: u32, open: &str) {
        let dir = fake.path("proc").join(pid.to_string());
        fs::create_dir_all(dir.join("fd")).unwrap();
        fs::create_dir_all(dir.join("ns")).unwrap();
        fs::write(dir.join("comm"), "smartd\n").unwrap();
        std::os::unix::fs::symlink(open, dir.join("fd/3")).unwrap();
    }

    #[test]
    fn mounts_of_every_namespace_swap_and_open_nodes_are_uses() {
        let (fake, address) = disk();
        assert_eq!(texts(&fake, address), [""; 0]);
        process(&fake, 7, "/dev/nvme0");
        for (pid, namespace, table) in [
            (7, "mnt:[1]", "36 35 259:1 / /mnt/a\\040b rw - ext4 /dev/x rw\n"),
            (8, "mnt:[1]", "never read"),
            (
                9,
                "mnt:[2]",
                "36 35 259:1 / /mnt/a\\040b rw shared:1 - ext4 /dev/x rw\n\
                 37 35 0:30 /s /srv rw - btrfs /dev/nvme0n1 rw\n\
                 38 35 0:31 / /proc rw - proc proc rw\n",
            ),
        ] {
            let dir = fake.path("proc").join(pid.to_string());
            fs::create_dir_all(dir.join("ns")).unwrap();
            std::os::unix::fs::symlink(namespace, dir.join("ns/mnt")).unwrap();
            fs::write(dir.join("mountinfo"), table).unwrap();
        }
        let swaps = "Filename Type Size Used Priority\n/dev/nvme0n1p1 partition 100 0 -2\n";
        fs::write(fake.path("proc/swaps"), swaps).unwrap();
        assert_eq!(
            texts(&fake, address),
            [
                "nvme0n1p1 is mounted at /mnt/a b",
                "nvme0n1 is mounted at /srv",
                "the machine swaps to nvme0n1p1",
                "process 7 (smartd) has /dev/nvme0 open",
            ]
        );
        let error = fake.sysfs().bind(address).unwrap_err();
        assert!(matches!(&error, HostError::Occupied { uses, .. } if uses.len() == 4), "{error}");
        let text = error.to_string();
        assert!(text.contains("umount /mnt/a b") && text.contains("kill 7"), "{text}");
        assert_eq!(fake.writes(), [""; 0]);
        assert_eq!(fake.sysfs().recall(address), None);
        fake.sysfs().bind_in_use(address).unwrap();
        assert_eq!(fake.sysfs().tree().driver(address).unwrap().as_deref(), Some("vfio-pci"));
        assert_eq!(fake.sysfs().uses(address).unwrap(), []);
    }

    #[test]
    fn what_is_made_of_a_partition_is_followed_to_its_mounts() {
        let (fake, address) = disk();
        let partition = fake.path("bus/pci/devices").join(BDF).join("nvme/nvme0/nvme0n1/nvme0n1p1");
        fs::create_dir_all(partition.join("holders/dm-0")).unwrap();
        fake.class_block("dm-0", "254:0");
        fs::create_dir_all(fake.path("class/block/dm-0/dm")).unwrap();
        fs::write(fake.path("class/block/dm-0/dm/name"), "vg-root\n").unwrap();
        process(&fake, 7, "/dev/null");
        std::os::unix::fs::symlink("mnt:[1]", fake.path("proc/7/ns/mnt")).unwrap();
        let table = "36 35 254:0 / / rw - ext4 /dev/mapper/vg-root rw\n";
        fs::write(fake.path("proc/7/mountinfo"), table).unwrap();
        assert_eq!(
            texts(&fake, address),
            ["dm-0 (vg-root) is made of nvme0n1p1", "dm-0 is mounted at /"]
        );
    }

    #[test]
    fn the_head_of_a_path_of_several_is_a_block_device_of_the_function() {
        let fake = Fake::new();
        let address = fake.device(BDF, 0x1b36, 0x0010, Some("nvme"), Some(3));
        fake.node(BDF, "nvme/nvme1", "nvme", "241:0", "nvme1");
        let hidden = fake.path("bus/pci/devices").join(BDF).join("nvme/nvme1/nvme1c1n2");
        fs::create_dir_all(&hidden).unwrap();
        std::os::unix::fs::symlink("/sys/class/block", hidden.join("subsystem")).unwrap();
        fake.class_block("nvme1n2", "259:4");
        fs::create_dir_all(fake.path("class/block/nvme1n2/holders/md0")).unwrap();
        assert_eq!(texts(&fake, address), ["md0 is made of nvme1n2"]);
    }

    #[test]
    fn an_interface_is_used_when_it_is_up_or_belongs_to_another() {
        let fake = Fake::new();
        let address = fake.device(BDF, 0x8086, 0x10d3, Some("e1000e"), Some(3));
        let interface = fake.path("bus/pci/devices").join(BDF).join("net/test-eth7");
        fs::create_dir_all(&interface).unwrap();
        std::os::unix::fs::symlink("/sys/class/net", interface.join("subsystem")).unwrap();
        fs::write(interface.join("flags"), "0x1002\n").unwrap();
        assert_eq!(texts(&fake, address), [""; 0]);
        fs::write(interface.join("flags"), "0x1003\n").unwrap();
        std::os::unix::fs::symlink("../br0", interface.join("master")).unwrap();
        let expected = "network interface test-eth7 is up, is a part of br0";
        assert_eq!(texts(&fake, address), [expected]);
        let uses = fake.sysfs().uses(address).unwrap();
        let command = "ip link set test-eth7 nomaster && ip link set test-eth7 down";
        assert_eq!(uses[0].command().as_deref(), Some(command));
        fs::remove_dir_all(&interface).unwrap();
        let expected = "its network interface is in another network namespace";
        assert_eq!(texts(&fake, address), [expected]);
    }

    #[test]
    fn virtual_functions_consoles_and_parts_of_the_machine_are_uses() {
        let fake = Fake::new();
        fake.register("vfio-pci", &[]);
        let address = fake.device(BDF, 0x8086, 0x10c9, Some("igb"), Some(3));
        let dir = fake.path("bus/pci/devices").join(BDF);
        fs::write(dir.join("sriov_numvfs"), "2\n").unwrap();
        std::os::unix::fs::symlink("../0000:00:15.0", dir.join("virtfn0")).unwrap();
        let expected = "its virtual functions exist: 0000:00:15.0, number 1";
        assert_eq!(texts(&fake, address), [expected]);
        fs::write(dir.join("sriov_numvfs"), "0\n").unwrap();
        fake.node(BDF, "tty/ttyS4", "tty", "4:68", "ttyS4");
        fs::write(fake.path("proc/consoles"), "ttyS4  -W- (EC p a)  4:68\n").unwrap();
        assert_eq!(texts(&fake, address), ["ttyS4 is a console of the kernel"]);
        fs::remove_file(fake.path("proc/consoles")).unwrap();
        for (class, name) in
            [("0x060000", "host bridge"), ("0x060100", "ISA bridge"), ("0x080600", "IOMMU")]
        {
            fs::write(dir.join("class"), format!("{class}\n")).unwrap();
            let error = fake.sysfs().bind(address).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn escapes_of_mount_points_are_read() {
        assert_eq!(unescape("a\\040b\\134c"), "a b\\c");
        assert_eq!(unescape("a\\9\\"), "a\\9\\");
        assert_eq!(MountLine::read("36 35 98:0 / /m rw"), None);
        assert_eq!(MountLine::read("36 35 - "), None);
    }
}
