//! A sysfs tree of any content to enumeration: an error or the functions, no panic.
#![no_main]

use std::fs;
use std::os::unix::fs::symlink;

use libfuzzer_sys::fuzz_target;
use vfio_dma::host::Sysfs;
use vfio_dma_fuzz::Bytes;

/// Attributes of a function, with what they mostly hold.
const ATTRIBUTES: [(&str, &[u8]); 9] = [
    ("vendor", b"0x8086\n"),
    ("device", b"0x2021\n"),
    ("subsystem_vendor", b"0x8086\n"),
    ("subsystem_device", b"0x0000\n"),
    ("class", b"0x088000\n"),
    ("revision", b"0x04\n"),
    ("numa_node", b"-1\n"),
    ("driver_override", b"(null)\n"),
    ("resource", b"0x00000000fe000000 0x00000000fe003fff 0x0000000000140204\n"),
];

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes::new(data);
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let root = directory.path();
    let devices = root.join("bus/pci/devices");
    fs::create_dir_all(&devices).expect("an empty tree");
    fs::create_dir_all(root.join("kernel/iommu_groups/7/devices")).expect("an empty tree");
    let name = match bytes.u8() {
        0..=15 => String::from_utf8_lossy(bytes.take(12)).replace(['/', '\0'], "x"),
        byte => format!("0000:00:{:02x}.{}", byte % 32, byte % 8),
    };
    if matches!(name.as_str(), "" | "." | "..") {
        return;
    }
    let device = devices.join(name);
    fs::create_dir_all(&device).expect("the directory of a function");
    for (attribute, usual) in ATTRIBUTES {
        let path = device.join(attribute);
        let result = match bytes.u8() {
            0..=7 => Ok(()),
            8..=11 => fs::create_dir(path),
            12..=15 => symlink("no such target", path),
            16..=63 => {
                let len = usize::from(bytes.u8()) % 80;
                fs::write(path, bytes.take(len))
            }
            _ => fs::write(path, usual),
        };
        result.expect("an attribute");
    }
    let group = match bytes.u8() {
        0..=31 => None,
        32..=63 => Some("../../../kernel/iommu_groups/x".into()),
        64..=95 => Some(format!("../../../{}", bytes.u64())),
        _ => Some("../../../kernel/iommu_groups/7".into()),
    };
    if let Some(group) = group {
        symlink(group, device.join("iommu_group")).expect("the group's link");
    }
    if bytes.u8() & 1 == 0 {
        let len = usize::from(bytes.u8());
        fs::write(device.join("config"), bytes.take(len)).expect("configuration space");
    }
    let sysfs = Sysfs::at(root);
    if let Ok(functions) = sysfs.enumerate() {
        assert!(functions.len() <= 1);
        for function in functions {
            assert_eq!(sysfs.device(function.address).expect("it is there"), function);
            let _ = sysfs.config_header(function.address);
            let _ = sysfs.tree().viability(function.address);
        }
    }
});
