//! Kernel modules for a guest: found by name, with what they depend on.
//!
//! Dependencies and aliases are read from the modules themselves (the `.modinfo` section),
//! because a package's tree has no `modules.dep` before it is installed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use elf::ElfBytes;
use elf::endian::AnyEndian;
use lzma_rust2::XzReader;

use super::error::{Context, VmError};

/// Largest module that is unpacked, in bytes.
const LARGEST_MODULE: u64 = 64 << 20;

/// The modules that a guest gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Modules {
    /// Loaded before the command runs, in order; what they depend on comes along.
    pub load: Vec<String>,
    /// Placed in the guest for its own `modprobe`, not loaded.
    pub include: Vec<String>,
}

impl Modules {
    /// No modules at all: the guest has no VFIO unless its kernel has it built in.
    #[must_use]
    pub const fn none() -> Self {
        Self { load: Vec::new(), include: Vec::new() }
    }

    /// vfio-pci and the type 1 IOMMU backend.
    #[must_use]
    pub fn vfio() -> Self {
        Self { load: vec!["vfio_iommu_type1".into(), "vfio-pci".into()], include: Vec::new() }
    }
}

impl Default for Modules {
    fn default() -> Self {
        Self::vfio()
    }
}

/// A module, unpacked.
#[derive(Debug)]
pub(super) struct Module {
    /// Name with underscores, as `lsmod` prints it.
    pub(super) name: String,
    /// Path under the release's directory, not compressed.
    pub(super) path: PathBuf,
    /// The object file.
    pub(super) data: Vec<u8>,
    /// Names of the modules it needs.
    pub(super) needs: Vec<String>,
    /// Patterns of the devices it drives, and other names of it.
    pub(super) aliases: Vec<String>,
}

/// The modules of one kernel release on the host.
#[derive(Debug)]
pub(super) struct Tree {
    root: PathBuf,
    release: String,
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

impl Tree {
    /// Lists the modules under `root`, a `/lib/modules/RELEASE`.
    pub(super) fn open(root: &Path, release: &str) -> Result<Self, VmError> {
        let mut files = BTreeMap::new();
        for entry in walkdir::WalkDir::new(root.join("kernel")) {
            let entry = entry.map_err(std::io::Error::from).at("read", root)?;
            if let Some(name) = module_name(entry.path()) {
                files.insert(name, entry.into_path());
            }
        }
        // Kernels without built-in modules may come without the list.
        let builtin = fs::read_to_string(root.join("modules.builtin")).unwrap_or_default();
        let builtin = builtin.lines().filter_map(|l| module_name(Path::new(l))).collect();
        Ok(Self { root: root.to_owned(), release: release.to_owned(), files, builtin })
    }

    /// `names` and all that they need, each after what it needs.
    pub(super) fn closure<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<Module>, VmError> {
        let mut found = Vec::new();
        let mut seen = BTreeSet::new();
        for name in names {
            self.add(name, &mut found, &mut seen)?;
        }
        Ok(found)
    }

    fn add(
        &self,
        name: &str,
        found: &mut Vec<Module>,
        seen: &mut BTreeSet<String>,
    ) -> Result<(), VmError> {
        let key = normal(name);
        if self.builtin.contains(&key) || !seen.insert(key.clone()) {
            return Ok(());
        }
        let file = self.files.get(&key).ok_or_else(|| VmError::NoModule {
            name: name.to_owned(),
            release: self.release.clone(),
        })?;
        let data = unpack(file)?;
        let bad = |why: String| VmError::BadModule { path: file.clone(), why };
        let info = Info::read(&data).map_err(bad)?;
        for need in &info.needs {
            self.add(need, found, seen)?;
        }
        let path = file
            .strip_prefix(&self.root)
            .unwrap_or(file)
            .with_file_name(format!("{}.ko", file_stem(file).unwrap_or(&key)));
        found.push(Module { name: key, path, data, needs: info.needs, aliases: info.aliases });
        Ok(())
    }
}

/// `modules.dep` for `modules`: each path with all that it needs, the nearest first.
pub(super) fn dep_file(modules: &[Module]) -> String {
    let by_name: BTreeMap<&str, &Module> = modules.iter().map(|m| (m.name.as_str(), m)).collect();
    let mut text = String::new();
    for module in modules {
        let mut needed: Vec<&Module> = Vec::new();
        let mut wave: Vec<&str> = module.needs.iter().map(String::as_str).collect();
        // A chain of needs is at most as long as there are modules; a circle ends there too.
        for _ in modules {
            let mut next = Vec::new();
            for name in wave {
                let Some(&need) = by_name.get(name) else {
                    continue;
                };
                // A module that two others need must come after both: the list is walked
                // from its end when loading.
                needed.retain(|m| m.name != need.name);
                needed.push(need);
                next.extend(need.needs.iter().map(String::as_str));
            }
            wave = next;
        }
        text += &format!("{}:", module.path.display());
        for need in needed {
            text += &format!(" {}", need.path.display());
        }
        text.push('\n');
    }
    text
}

/// `modules.alias` for `modules`.
pub(super) fn alias_file(modules: &[Module]) -> String {
    let lines = modules
        .iter()
        .flat_map(|m| m.aliases.iter().map(move |alias| format!("alias {alias} {}\n", m.name)));
    lines.collect()
}

/// Names with `-` and `_` mean the same module.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

fn file_stem(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()?.split_once(".ko").map(|(stem, _)| stem)
}

fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let (stem, rest) = name.split_once(".ko")?;
    (rest.is_empty() || rest.starts_with('.')).then(|| normal(stem))
}

fn unpack(path: &Path) -> Result<Vec<u8>, VmError> {
    let data = fs::read(path).at("read", path)?;
    match path.extension().and_then(|e| e.to_str()) {
        Some("ko") => Ok(data),
        Some("xz") => {
            let mut plain = Vec::new();
            XzReader::new(data.as_slice(), true)
                .take(LARGEST_MODULE)
                .read_to_end(&mut plain)
                .at("unpack", path)?;
            Ok(plain)
        }
        other => Err(VmError::BadModule {
            path: path.to_owned(),
            why: format!("compression {:?} is not known, only xz is", other.unwrap_or("")),
        }),
    }
}

/// What a module tells of itself in `.modinfo`: strings `KEY=VALUE`, each ended by a zero.
#[derive(Debug, Default)]
struct Info {
    needs: Vec<String>,
    aliases: Vec<String>,
}

impl Info {
    fn read(data: &[u8]) -> Result<Self, String> {
        let file = ElfBytes::<AnyEndian>::minimal_parse(data).map_err(|e| e.to_string())?;
        let section = file
            .section_header_by_name(".modinfo")
            .map_err(|e| e.to_string())?
            .ok_or("it has no .modinfo section")?;
        let (bytes, _) = file.section_data(&section).map_err(|e| e.to_string())?;
        Ok(Self::parse(bytes))
    }

    fn parse(section: &[u8]) -> Self {
        let mut info = Self::default();
        for entry in section.split(|&b| b == 0) {
            let entry = String::from_utf8_lossy(entry);
            match entry.split_once('=') {
                Some(("depends", list)) => {
                    info.needs.extend(list.split(',').filter(|n| !n.is_empty()).map(normal));
                }
                Some(("alias", alias)) => info.aliases.push(alias.to_owned()),
                _ => {}
            }
        }
        info
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str, needs: &[&str]) -> Module {
        Module {
            name: name.into(),
            path: format!("kernel/{name}.ko").into(),
            data: Vec::new(),
            needs: needs.iter().map(|&n| n.to_owned()).collect(),
            aliases: vec![format!("pci:{name}*")],
        }
    }

    #[test]
    fn modinfo_gives_needs_and_aliases() {
        let info =
            Info::parse(b"license=GPL\0alias=pci:v*d*\0depends=vfio-pci-core,vfio\0depends=\0");
        assert_eq!(info.needs, ["vfio_pci_core", "vfio"]);
        assert_eq!(info.aliases, ["pci:v*d*"]);
    }

    #[test]
    fn dep_lists_what_is_needed_last_first() {
        let all = [
            module("vfio", &[]),
            module("irqbypass", &[]),
            module("core", &["vfio", "irqbypass"]),
            module("pci", &["core", "vfio"]),
        ];
        let text = dep_file(&all);
        let pci = text.lines().last().unwrap();
        assert_eq!(pci, "kernel/pci.ko: kernel/core.ko kernel/vfio.ko kernel/irqbypass.ko");
        assert!(text.starts_with("kernel/vfio.ko:\n"));
        assert!(alias_file(&all).starts_with("alias pci:vfio* vfio\n"));
    }

    #[test]
    fn module_names_ignore_compression_and_dashes() {
        assert_eq!(module_name(Path::new("a/vfio-pci.ko.xz")).as_deref(), Some("vfio_pci"));
        assert_eq!(module_name(Path::new("dca.ko")).as_deref(), Some("dca"));
        assert_eq!(module_name(Path::new("modules.kolibri")), None);
        assert_eq!(module_name(Path::new("modules.dep")), None);
    }

    #[test]
    fn missing_module_is_named_and_builtin_ones_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("kernel")).unwrap();
        fs::write(dir.path().join("kernel/broken.ko"), "not an object").unwrap();
        fs::write(dir.path().join("modules.builtin"), "kernel/drivers/virtio/virtio-pci.ko\n")
            .unwrap();
        let tree = Tree::open(dir.path(), "6.1").unwrap();
        assert!(tree.closure(["virtio_pci"]).unwrap().is_empty());
        let error = tree.closure(["vfio-pci"]).unwrap_err();
        assert_eq!(error.to_string(), "kernel 6.1 has no module vfio-pci");
        assert!(matches!(tree.closure(["broken"]), Err(VmError::BadModule { .. })));
    }
}
