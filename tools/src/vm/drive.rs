//! Drives whose blocks are a file of the host.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use vfio_dma::dma::Pattern;

use super::config::Device;
use super::error::{Context, VmError};

/// A file with the blocks of a drive, filled with a [`Pattern`]; removed when dropped.
#[derive(Debug)]
pub struct Image {
    file: NamedTempFile,
}

impl Image {
    /// A file of so many bytes.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be written.
    pub fn new(size: u64, pattern: Pattern) -> Result<Image, VmError> {
        const MAKING: &str = "make a drive image";
        let mut file = NamedTempFile::with_prefix("vfio-dma-drive-").during(MAKING)?;
        let mut part = vec![0; 1 << 20];
        let mut at = 0;
        while at < size {
            let len = part.len().min(usize::try_from(size - at).unwrap_or(usize::MAX));
            pattern.bytes(at, &mut part[..len]);
            file.write_all(&part[..len]).during(MAKING)?;
            at += len as u64;
        }
        Ok(Image { file })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Its bytes.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be read.
    pub fn bytes(&self) -> Result<Vec<u8>, VmError> {
        std::fs::read(self.path()).at("read", self.path())
    }

    /// Writes bytes, before a guest has it.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be written.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), VmError> {
        use std::os::unix::fs::FileExt as _;
        self.file.as_file().write_all_at(bytes, offset).at("write", self.path())
    }
}

/// An NVMe drive of QEMU, with one namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NvmeDrive {
    /// The file with its blocks.
    pub image: PathBuf,
    /// It takes no writes.
    pub read_only: bool,
    /// More options of QEMU's `-drive`, such as `throttling.bps-total=65536`.
    pub drive_options: Vec<String>,
    /// Properties of QEMU's `-device nvme`; a serial number is added where there is none.
    pub properties: Vec<String>,
}

impl NvmeDrive {
    /// A drive with these blocks.
    #[must_use]
    pub fn new(image: impl Into<PathBuf>) -> NvmeDrive {
        let (drive_options, properties) = (Vec::new(), Vec::new());
        NvmeDrive { image: image.into(), read_only: false, drive_options, properties }
    }

    /// With properties of QEMU's `-device nvme`, such as `mdts=5`.
    #[must_use]
    pub fn with(mut self, properties: &[&str]) -> NvmeDrive {
        self.properties.extend(properties.iter().map(|&property| property.to_owned()));
        self
    }

    /// With options of QEMU's `-drive`.
    #[must_use]
    pub fn drive(mut self, options: &[&str]) -> NvmeDrive {
        self.drive_options.extend(options.iter().map(|&option| option.to_owned()));
        self
    }

    /// The device, and what QEMU needs besides it; `id` tells it from other drives.
    #[must_use]
    pub fn describe(&self, id: &str) -> (Device, [OsString; 2]) {
        let mut device = format!("nvme,drive={id}");
        if !self.properties.iter().any(|property| property.starts_with("serial=")) {
            device += &format!(",serial=vfio-dma-{id}");
        }
        for property in &self.properties {
            device += &format!(",{property}");
        }
        // A comma in a value is doubled.
        let mut drive = OsString::from(format!("if=none,id={id},format=raw,file="));
        drive.push(self.image.to_string_lossy().replace(',', ",,"));
        if self.read_only {
            drive.push(",read-only=on");
        }
        for option in &self.drive_options {
            drive.push(",");
            drive.push(option);
        }
        (Device::Qemu(device), ["-drive".into(), drive])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_the_pattern_and_is_removed() {
        let pattern = Pattern::new(5);
        let image = Image::new((1 << 20) + 777, pattern).unwrap();
        let bytes = image.bytes().unwrap();
        let mut expected = vec![0; (1 << 20) + 777];
        pattern.bytes(0, &mut expected);
        assert!(bytes == expected);
        image.write(1000, b"here").unwrap();
        assert_eq!(image.bytes().unwrap()[1000..1004], *b"here");
        let path = image.path().to_owned();
        drop(image);
        assert!(!path.exists());
    }

    #[test]
    fn a_drive_is_told_with_its_serial_number_and_quoted() {
        let drive = NvmeDrive::new("/tmp/a,b").with(&["mdts=5"]);
        let (device, drive_argument) = drive.describe("d0");
        assert_eq!(device, Device::from("nvme,drive=d0,serial=vfio-dma-d0,mdts=5"));
        assert_eq!(drive_argument, ["-drive", "if=none,id=d0,format=raw,file=/tmp/a,,b"]);
        let own = NvmeDrive { read_only: true, ..NvmeDrive::new("i").with(&["serial=x"]) };
        let (device, [_, argument]) = own.drive(&["cache=unsafe"]).describe("d1");
        assert_eq!(device, Device::from("nvme,drive=d1,serial=x"));
        assert_eq!(argument, "if=none,id=d1,format=raw,file=i,read-only=on,cache=unsafe");
    }
}
