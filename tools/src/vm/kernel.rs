//! The guest's kernel: a distribution's, one built for the purpose, or the caller's.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::apt::{self, Apt};
use super::cache::{Cache, identity};
use super::error::{Context, VmError};
use super::full;
use super::qemu::{APT_KIND, SUITES};
use crate::progress::Step;

/// Which kernel a guest runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Kernel {
    /// Debian's kernel: VFIO as modules, neither iommufd nor no-IOMMU mode.
    ///
    /// The image that `VFIO_DMA_KERNEL` names takes its place.
    #[default]
    Stock,
    /// A small kernel built from Debian's kernel source with all of VFIO, iommufd,
    /// no-IOMMU mode, `ioatdma` and `dmatest` built in.
    Full,
    /// A bzImage, with its modules when they are found near it.
    Image(PathBuf),
}

impl FromStr for Kernel {
    type Err = std::convert::Infallible;

    /// Reads `stock`, `full`, or else a path.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "stock" => Self::Stock,
            "full" => Self::Full,
            path => Self::Image(path.into()),
        })
    }
}

/// A kernel image on the host.
#[derive(Debug, Clone)]
pub(super) struct Image {
    /// The bzImage.
    pub(super) path: PathBuf,
    /// Release as `uname -r` prints it.
    pub(super) release: String,
    /// Directory of its modules, when it has any.
    pub(super) modules: Option<PathBuf>,
    /// What tells this kernel from another.
    pub(super) identity: String,
}

impl Kernel {
    /// Finds, fetches or builds the image.
    pub(super) fn resolve(&self, cache: &Cache) -> Result<Image, VmError> {
        match self {
            Self::Image(path) => Image::open(path),
            // It has no modules, whatever this system has for a kernel of its release.
            Self::Full => Ok(Image { modules: None, ..Image::open(&full::kernel(cache)?)? }),
            Self::Stock => match std::env::var_os("VFIO_DMA_KERNEL") {
                Some(path) => Image::open(Path::new(&path)),
                None => {
                    let apt_root = cache.kind(APT_KIND)?;
                    let tree = cache.entry("stock", "current", |tree| fetch(&apt_root, tree))?;
                    Image::open(&tree.join("boot/vmlinuz"))
                }
            },
        }
    }
}

/// Whether the stock kernel and busybox are on this machine already.
pub(super) fn parts_are_here(cache: &Cache) -> bool {
    [("VFIO_DMA_KERNEL", "stock"), ("VFIO_DMA_BUSYBOX", "busybox")].into_iter().all(
        |(variable, kind)| {
            std::env::var_os(variable).is_some() || cache.found(kind, "current").is_some()
        },
    )
}

impl Image {
    fn open(path: &Path) -> Result<Self, VmError> {
        let path = path.canonicalize().at("find", path)?;
        let release = release(&path)?;
        let modules = module_dirs(&path, &release).into_iter().find(|dir| dir.is_dir());
        let identity = identity(&path)?;
        Ok(Self { path, release, modules, identity })
    }
}

/// Where the modules of an image may be: beside it, in the tree whose `/boot` it is in, or
/// on this system.
fn module_dirs(image: &Path, release: &str) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    let parents = [image.parent(), image.parent().and_then(Path::parent)];
    for root in parents.into_iter().flatten().chain([Path::new("/")]) {
        dirs.push(root.join("lib/modules").join(release));
        dirs.push(root.join("usr/lib/modules").join(release));
    }
    dirs
}

/// Reads the release out of a bzImage.
///
/// The setup header has the magic "HdrS" at 0x202 and, at 0x20e, the address less 0x200 of
/// a string that begins with the release (Linux, Documentation/arch/x86/boot.rst).
fn release(image: &Path) -> Result<String, VmError> {
    let mut head = Vec::new();
    let file = File::open(image).at("open", image)?;
    file.take(0x200 + 0x1_0000 + 256).read_to_end(&mut head).at("read", image)?;
    parse_release(&head).map_err(|why| VmError::NotAKernel { path: image.to_owned(), why })
}

fn parse_release(head: &[u8]) -> Result<String, &'static str> {
    if head.get(0x202..0x206) != Some(b"HdrS") {
        return Err("no boot header");
    }
    let &[low, high] = head.get(0x20e..0x210).unwrap_or_default() else {
        return Err("the boot header is cut short");
    };
    let at = usize::from(u16::from_le_bytes([low, high])) + 0x200;
    let text = head.get(at..).unwrap_or_default();
    let end = text.iter().position(|&b| b == b' ' || b == 0).unwrap_or(text.len());
    match std::str::from_utf8(&text[..end]) {
        // The release becomes part of a path.
        Ok(release) if !release.is_empty() && !release.contains('/') && release != ".." => {
            Ok(release.to_owned())
        }
        _ => Err("it does not tell its release"),
    }
}

fn fetch(apt_root: &Path, tree: &Path) -> Result<String, VmError> {
    let apt = Apt::open(apt_root, &SUITES)?;
    let package = apt.dependency(SUITES[0], "linux-image-amd64", "linux-image-")?;
    let step = Step::long(format!("fetching {package} (once)"));
    let debs = apt.download(SUITES[0], &[&package], tree, &step)?;
    drop(step);
    let version = apt::version(&debs, &package)?;
    apt::unpack(&debs, tree)?;
    for deb in &debs {
        fs::remove_file(deb).at("remove", deb)?;
    }
    let boot = tree.join("boot");
    let image = package.replacen("linux-image-", "vmlinuz-", 1);
    let link = boot.join("vmlinuz");
    std::os::unix::fs::symlink(image, &link).at("create", &link)?;
    Ok(version)
}

/// The static busybox that a guest's userland is made of: the one in `VFIO_DMA_BUSYBOX`,
/// or Debian's.
pub(super) fn busybox(cache: &Cache) -> Result<PathBuf, VmError> {
    if let Some(path) = std::env::var_os("VFIO_DMA_BUSYBOX") {
        return Ok(path.into());
    }
    let apt_root = cache.kind(APT_KIND)?;
    let tree = cache.entry("busybox", "current", |tree| {
        let apt = Apt::open(&apt_root, &SUITES)?;
        let step = Step::new("fetching busybox");
        let debs = apt.download(SUITES[0], &["busybox-static"], tree, &step)?;
        drop(step);
        apt::unpack(&debs, tree)?;
        apt::version(&debs, "busybox-static")
    })?;
    Ok(tree.join("usr/bin/busybox"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(release: &[u8]) -> Vec<u8> {
        let mut head = vec![0; 0x1000];
        head[0x202..0x206].copy_from_slice(b"HdrS");
        head[0x20e..0x210].copy_from_slice(&0x600u16.to_le_bytes());
        head[0x800..0x800 + release.len()].copy_from_slice(release);
        head
    }

    #[test]
    fn release_is_read_from_the_boot_header() {
        let head = header(b"6.12.107+deb13-amd64 (builder) #1 SMP\0");
        assert_eq!(parse_release(&head).unwrap(), "6.12.107+deb13-amd64");
    }

    #[test]
    fn bad_images_are_refused() {
        assert!(parse_release(b"").is_err());
        assert!(parse_release(&header(b"")).is_err());
        assert!(parse_release(&header(b"../../etc \0")).is_err());
        let mut far = header(b"1");
        far[0x20e..0x210].copy_from_slice(&0xffffu16.to_le_bytes());
        assert!(parse_release(&far).is_err());
        assert!(parse_release(&header(b"1.2")[..0x20f]).is_err());
    }

    #[test]
    fn words_choose_a_kernel() {
        assert_eq!("stock".parse(), Ok(Kernel::Stock));
        assert_eq!("full".parse(), Ok(Kernel::Full));
        assert_eq!("/boot/k".parse(), Ok(Kernel::Image("/boot/k".into())));
    }
}
