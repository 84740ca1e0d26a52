//! What the kernel made of a function: its block devices, interfaces and device nodes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::Sysfs;
use crate::pci::Address;
use crate::pci::sysfs::{link_name, names, read_text};

/// How deep a function's directory is searched: a disk behind USB hubs is a dozen deep.
const DEPTH: u32 = 32;

/// A block device: a disk, a partition, or what is made of them.
#[derive(Debug)]
pub(super) struct Block {
    /// The kernel's name, such as `nvme0n1p1`.
    pub(super) name: String,
    /// Major and minor number.
    pub(super) number: Option<(u32, u32)>,
    /// What is made of it.
    pub(super) holders: Vec<String>,
}

/// What is below a function's directory in sysfs.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    /// Its block devices, and those that are made of them.
    pub(super) blocks: Vec<Block>,
    /// Its device nodes of every kind.
    pub(super) paths: BTreeSet<PathBuf>,
    /// The directories of its network interfaces.
    pub(super) interfaces: Vec<PathBuf>,
    /// It has interfaces that this network namespace does not show.
    pub(super) interfaces_elsewhere: bool,
}

impl Nodes {
    /// Collects what is below the function's directory.
    pub(super) fn below(sysfs: &Sysfs, dir: &Path) -> Nodes {
        let mut nodes = Nodes::default();
        nodes.collect(sysfs, dir, DEPTH);
        nodes
    }

    fn collect(&mut self, sysfs: &Sysfs, dir: &Path, depth: u32) {
        let subsystem = link_name(&dir.join("subsystem")).ok().flatten();
        let name = dir.file_name().map(|name| name.to_string_lossy().into_owned());
        match (subsystem.as_deref(), name) {
            (Some("block"), Some(name)) => match head_of_path(&name) {
                Some(head) => self.class_block(sysfs, &head),
                None => self.block(sysfs, dir, name),
            },
            (Some("net"), Some(_)) => self.interfaces.push(dir.to_owned()),
            // The directory is there as long as there is an interface in any namespace.
            (None, Some(name)) if name == "net" => {
                self.interfaces_elsewhere |= names(dir).is_ok_and(|names| names.is_empty());
            }
            _ => {}
        }
        if dir.join("dev").is_file() {
            self.paths.extend(node(dir));
        }
        let Some(depth) = depth.checked_sub(1) else { return };
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            // Another function, behind a bridge.
            let is_function = entry.file_name().to_string_lossy().parse::<Address>().is_ok();
            if is_dir && !is_function {
                self.collect(sysfs, &entry.path(), depth);
            }
        }
    }

    fn block(&mut self, sysfs: &Sysfs, dir: &Path, name: String) {
        if self.blocks.iter().any(|block| block.name == name) {
            return;
        }
        let number = read_text(&dir.join("dev")).ok().and_then(|text| number(&text));
        let made_of_it = names(&dir.join("holders")).unwrap_or_default();
        let described = |holder: &String| {
            let mapped = sysfs.tree.root().join("class/block").join(holder).join("dm/name");
            read_text(&mapped).map_or_else(|_| holder.clone(), |name| format!("{holder} ({name})"))
        };
        let holders = made_of_it.iter().map(described).collect();
        self.blocks.push(Block { name, number, holders });
        for holder in made_of_it {
            self.class_block(sysfs, &holder);
        }
    }

    /// A block device that lies elsewhere, with its partitions.
    fn class_block(&mut self, sysfs: &Sysfs, name: &str) {
        let link = sysfs.tree.root().join("class/block").join(name);
        if let Ok(dir) = link.canonicalize()
            && !self.blocks.iter().any(|block| block.name == name)
        {
            self.collect(sysfs, &dir, 2);
        }
    }
}

/// The node that the kernel makes for the device with this directory.
fn node(dir: &Path) -> Option<PathBuf> {
    let uevent = read_text(&dir.join("uevent")).ok()?;
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    Some(Path::new("/dev").join(name.trim_start_matches('/')))
}

/// An NVMe namespace that several controllers lead to is one block device, `nvme1n2`; the path
/// through one controller is hidden, `nvme1c1n2`.
fn head_of_path(name: &str) -> Option<String> {
    let rest = name.strip_prefix("nvme")?;
    let (subsystem, rest) = rest.split_once('c')?;
    let (controller, namespace) = rest.split_once('n')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let all = [subsystem, controller, namespace].into_iter().all(is_number);
    all.then(|| format!("nvme{subsystem}n{namespace}"))
}

/// Reads `MAJOR:MINOR`; none for 0:N, which a file system without a device has.
pub(super) fn number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().split_once(':')?;
    let number = (major.parse().ok()?, minor.parse().ok()?);
    (number.0 != 0).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_paths_of_nvme_are_told_from_namespaces_and_partitions() {
        assert_eq!(head_of_path("nvme0c1n12").as_deref(), Some("nvme0n12"));
        for name in ["nvme0n1", "nvme0n1p1", "nvmec1n1", "nvme0c1n1p1", "sda", ""] {
            assert_eq!(head_of_path(name), None, "{name}");
        }
        assert_eq!(number("259:1\n"), Some((259, 1)));
        assert_eq!(number("0:30"), None);
    }
}
