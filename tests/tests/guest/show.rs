//! `vfio-dma show`, held against `lspci` for every function of the guest.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use serde_json::Value;
use vfio_dma::host::Sysfs;
use vfio_dma_tests::vfio_dma;
use vfio_dma_tools::vm::{Device, LSPCI, VmConfig, pciutils};

use crate::support::bind;

/// edu, a test device, a controller for disks, one for USB, two bridges, and behind the root
/// ports network cards, one of which can have virtual functions.
pub(crate) fn machine() -> VmConfig {
    let devices = [
        "edu",
        "pci-testdev,membar=16M",
        "nvme,serial=1",
        "qemu-xhci",
        "pcie-root-port,id=rp1,chassis=1,slot=1",
        "pcie-root-port,id=rp2,chassis=2,slot=2,x-speed=8,x-width=4",
        "pcie-pci-bridge",
    ];
    VmConfig {
        devices: devices.map(Device::from).into(),
        qemu_args: ["-device", "igb,bus=rp1", "-device", "e1000e,bus=rp2,romfile="]
            .map(Into::into)
            .into(),
        files: pciutils().expect("pciutils can be fetched"),
        ..VmConfig::default()
    }
}

/// The card behind the first root port.
fn igb() -> vfio_dma::pci::Address {
    "0000:01:00.0".parse().unwrap()
}

pub(crate) fn virtual_functions_are_switched_on() {
    bind(igb());
    fs::write("/sys/module/vfio_pci/parameters/enable_sriov", "Y").unwrap();
    let dir = Sysfs::new().tree().device_dir(igb()).unwrap();
    fs::write(dir.join("sriov_numvfs"), "2").unwrap();
    let said = vfio_dma(&["show", &igb().to_string()]);
    assert_eq!(said.status, 0, "{said:#?}");
    assert!(said.out.contains("2 of 8 VFs enabled: 0000:01:10.0 0000:01:10.2"), "{}", said.out);
    let said = vfio_dma(&["show", "0000:01:10.0"]);
    assert!(said.out.contains("a virtual function of 0000:01:00.0"), "{said:#?}");
}

fn lspci(arguments: &[&str]) -> String {
    let output = Command::new(LSPCI[0]).args(&LSPCI[1..]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn show(address: &str) -> Value {
    let said = vfio_dma(&["show", address, "--json"]);
    assert_eq!((said.status, said.err.as_str()), (0, ""), "{said:#?}");
    serde_json::from_str(&said.out).unwrap()
}

/// The functions of the guest, and what `lspci` says of each with these options.
fn by_function(option: &str) -> BTreeMap<String, String> {
    let text = lspci(&["-D", option, "-nn"]);
    let mut functions = BTreeMap::new();
    for block in text.split("\n\n").filter(|block| !block.trim().is_empty()) {
        let block = block.trim_start_matches('\n');
        let first = block.strip_prefix("Slot:\t").unwrap_or(block);
        let address = first.split_whitespace().next().unwrap();
        functions.insert(address.to_owned(), block.to_owned());
    }
    let present = fs::read_dir("/sys/bus/pci/devices").unwrap().count();
    assert_eq!(functions.len(), present, "{text}");
    assert!(present >= 13, "{text}");
    functions
}

pub(crate) fn names_and_header_are_those_of_lspci() {
    for (address, said) in by_function("-vmmk") {
        let shown = show(&address);
        let of = |label: &str| {
            let line = said.lines().find_map(|line| line.strip_prefix(&format!("{label}:\t")))?;
            // "Intel Corporation [8086]"
            let (name, id) = line.rsplit_once(" [")?;
            Some((name.to_owned(), format!("0x{}", id.trim_end_matches(']'))))
        };
        for (label, name, id) in [
            ("Vendor", "vendor", "vendor"),
            ("Device", "device", "device"),
            ("SVendor", "", "subsystem_vendor"),
            ("SDevice", "subsystem", "subsystem_device"),
            ("Class", "class", ""),
        ] {
            let Some((its_name, its_id)) = of(label) else { continue };
            let own = &shown["names"][name];
            // What has no name is "Device" in lspci.
            let unnamed =
                own.is_null() && matches!(its_name.as_str(), "Vendor" | "Device" | "Class");
            assert!(
                name.is_empty() || unnamed || *own == its_name,
                "{address} {label}: {own} {said}"
            );
            assert!(id.is_empty() || shown["identity"][id] == its_id, "{address} {label}: {said}");
        }
        let driver = said.lines().find_map(|line| line.strip_prefix("Driver:\t"));
        assert_eq!(shown["identity"]["driver"].as_str(), driver, "{address}: {said}");
        let group = said.lines().find_map(|line| line.strip_prefix("IOMMUGroup:\t"));
        let own = shown["identity"]["iommu_group"]["number"].as_u64();
        assert_eq!(own.map(|own| own.to_string()).as_deref(), group, "{address}: {said}");
    }
}

/// The value of a field, or of a register for an empty name.
fn field(shown: &Value, register: &str, field: &str) -> Option<u64> {
    let structures = shown["structures"].as_array()?;
    let registers = structures.iter().flat_map(|s| s["registers"].as_array().unwrap());
    let found = registers.into_iter().find(|r| r["name"] == register)?;
    if field.is_empty() {
        return found["value"].as_u64();
    }
    let fields = found["fields"].as_array()?;
    let found = fields.iter().find(|f| f["name"] == field);
    found.unwrap_or_else(|| panic!("{register} has no field {field}"))["value"].as_u64()
}

/// A line of `lspci -vv` by its beginning; the register; and flags by their names in both.
type Flags = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const UNCORRECTABLE: &[(&str, &str)] = &[
    ("DLP", "data-link-protocol"),
    ("SDES", "surprise-down"),
    ("TLP", "poisoned-tlp"),
    ("FCP", "flow-control-protocol"),
    ("CmpltTO", "completion-timeout"),
    ("CmpltAbrt", "completer-abort"),
    ("UnxCmplt", "unexpected-completion"),
    ("RxOF", "receiver-overflow"),
    ("MalfTLP", "malformed-tlp"),
    ("ECRC", "ecrc"),
    ("UnsupReq", "unsupported-request"),
    ("ACSViol", "acs-violation"),
];
const CORRECTABLE: &[(&str, &str)] = &[
    ("RxErr", "receiver"),
    ("BadTLP", "bad-tlp"),
    ("BadDLLP", "bad-dllp"),
    ("Rollover", "replay-rollover"),
    ("Timeout", "replay-timeout"),
    ("AdvNonFatalErr", "advisory-non-fatal"),
];
const ACS: &[(&str, &str)] = &[
    ("SrcValid", "source-validation"),
    ("TransBlk", "translation-blocking"),
    ("ReqRedir", "request-redirect"),
    ("CmpltRedir", "completion-redirect"),
    ("UpstreamFwd", "upstream-forwarding"),
    ("EgressCtrl", "egress-control"),
    ("DirectTrans", "direct-translated"),
];

const FLAGS: &[Flags] = &[
    (
        "Control:",
        "COMMAND",
        &[
            ("I/O", "io-space"),
            ("Mem", "memory-space"),
            ("BusMaster", "bus-master"),
            ("SpecCycle", "special-cycles"),
            ("MemWINV", "memory-write-invalidate"),
            ("VGASnoop", "vga-palette-snoop"),
            ("ParErr", "parity-error-response"),
            ("SERR", "serr"),
            ("FastB2B", "fast-back-to-back"),
            ("DisINTx", "intx-disable"),
        ],
    ),
    (
        "Status: Cap",
        "STATUS",
        &[
            ("Cap", "capability-list"),
            ("66MHz", "66-mhz"),
            ("FastB2B", "fast-back-to-back"),
            ("ParErr", "master-data-parity-error"),
            (">TAbort", "signaled-target-abort"),
            ("<TAbort", "received-target-abort"),
            ("<MAbort", "received-master-abort"),
            (">SERR", "signaled-system-error"),
            ("<PERR", "detected-parity-error"),
            ("INTx", "intx-pending"),
        ],
    ),
    (
        "BridgeCtl:",
        "BRIDGE_CONTROL",
        &[
            ("Parity", "parity-error-response"),
            ("SERR", "serr"),
            ("VGA", "vga"),
            (">Reset", "bus-reset"),
        ],
    ),
    (
        "Capabilities: [MSI:",
        "MSI_FLAGS",
        &[("Enable", "enable"), ("Maskable", "maskable"), ("64bit", "64-bit")],
    ),
    ("Capabilities: [MSI-X:", "MSIX_FLAGS", &[("Enable", "enable"), ("Masked", "masked")]),
    (
        "DevCap:",
        "EXP_DEVCAP",
        &[
            ("ExtTag", "extended-tags"),
            ("RBE", "role-based-errors"),
            ("FLReset", "function-level-reset"),
        ],
    ),
    (
        "DevCtl:",
        "EXP_DEVCTL",
        &[
            ("CorrErr", "correctable-reporting"),
            ("NonFatalErr", "non-fatal-reporting"),
            ("FatalErr", "fatal-reporting"),
            ("UnsupReq", "unsupported-request-reporting"),
        ],
    ),
    (
        "RlxdOrd",
        "EXP_DEVCTL",
        &[
            ("RlxdOrd", "relaxed-ordering"),
            ("ExtTag", "extended-tags"),
            ("PhantFunc", "phantom-functions"),
            ("AuxPwr", "aux-power"),
            ("NoSnoop", "no-snoop"),
        ],
    ),
    (
        "DevSta:",
        "EXP_DEVSTA",
        &[
            ("CorrErr", "correctable-error"),
            ("NonFatalErr", "non-fatal-error"),
            ("FatalErr", "fatal-error"),
            ("UnsupReq", "unsupported-request"),
            ("AuxPwr", "aux-power"),
            ("TransPend", "transactions-pending"),
        ],
    ),
    (
        "SltCap:",
        "EXP_SLTCAP",
        &[
            ("AttnBtn", "attention-button"),
            ("PwrCtrl", "power-controller"),
            ("MRL", "mrl-sensor"),
            ("AttnInd", "attention-indicator"),
            ("PwrInd", "power-indicator"),
            ("HotPlug", "hot-plug"),
            ("Surprise", "hot-plug-surprise"),
        ],
    ),
    ("UESta:", "AER_UNCOR_STATUS", UNCORRECTABLE),
    ("UEMsk:", "AER_UNCOR_MASK", UNCORRECTABLE),
    ("UESvrt:", "AER_UNCOR_SEVER", UNCORRECTABLE),
    ("CESta:", "AER_COR_STATUS", CORRECTABLE),
    ("CEMsk:", "AER_COR_MASK", CORRECTABLE),
    ("ACSCap:", "ACS_CAP", ACS),
    ("ACSCtl:", "ACS_CTRL", ACS),
    ("IOVCtl:", "SRIOV_CTRL", &[("Enable", "vf-enable"), ("MSE", "vf-memory-space")]),
];

/// A line of `lspci -vv`, what stands before a number in it, its base, the register and field;
/// the number is what is added to the field, which is then shifted.
type Number = (&'static str, &'static str, u32, &'static str, &'static str, fn(u64) -> u64);

const NUMBERS: &[Number] = &[
    ("Capabilities: [MSI:", "Count=1/", 10, "MSI_FLAGS", "capable", |n| 1 << n),
    ("Capabilities: [MSI-X:", "Count=", 10, "MSIX_FLAGS", "last-vector", |n| n + 1),
    ("Vector table:", "BAR=", 10, "MSIX_TABLE", "bar", |n| n),
    ("Vector table:", "offset=", 16, "MSIX_TABLE", "offset-8", |n| n * 8),
    ("PBA:", "BAR=", 10, "MSIX_PBA", "bar", |n| n),
    ("PBA:", "offset=", 16, "MSIX_PBA", "offset-8", |n| n * 8),
    ("DevCap:", "MaxPayload ", 10, "EXP_DEVCAP", "max-payload", |n| 128 << n),
    ("MaxPayload ", "MaxPayload ", 10, "EXP_DEVCTL", "max-payload", |n| 128 << n),
    ("MaxPayload ", "MaxReadReq ", 10, "EXP_DEVCTL", "max-read-request", |n| 128 << n),
    ("LnkCap:", "Port #", 10, "EXP_LNKCAP", "port", |n| n),
    ("LnkCap:", "Width x", 10, "EXP_LNKCAP", "width", |n| n),
    ("LnkSta:", "Width x", 10, "EXP_LNKSTA", "width", |n| n),
    ("SltCap:", "Slot #", 10, "EXP_SLTCAP", "slot", |n| n),
    ("AERCap:", "First Error Pointer: ", 16, "AER_CAP", "first-error", |n| n),
    ("Initial VFs:", "Initial VFs: ", 10, "SRIOV_INITIAL_VF", "", |n| n),
    ("Initial VFs:", "Total VFs: ", 10, "SRIOV_TOTAL_VF", "", |n| n),
    ("Initial VFs:", "Number of VFs: ", 10, "SRIOV_NUM_VF", "", |n| n),
    ("VF offset:", "VF offset: ", 10, "SRIOV_VF_OFFSET", "", |n| n),
    ("VF offset:", "stride: ", 10, "SRIOV_VF_STRIDE", "", |n| n),
    ("VF offset:", "Device ID: ", 16, "SRIOV_VF_DID", "", |n| n),
    ("Bus: primary=", "primary=", 16, "PRIMARY_BUS", "", |n| n),
    ("Bus: primary=", "secondary=", 16, "SECONDARY_BUS", "", |n| n),
    ("Bus: primary=", "subordinate=", 16, "SUBORDINATE_BUS", "", |n| n),
];

/// The number that follows a text on a line.
fn number(line: &str, before: &str, base: u32) -> Option<u64> {
    let rest = &line[line.find(before)? + before.len()..];
    let end = rest.find(|c: char| !c.is_digit(base)).unwrap_or(rest.len());
    u64::from_str_radix(&rest[..end], base).ok()
}

/// Whether a flag is set on a line: `Mem+`, `Mem-`.
fn flag(line: &str, name: &str) -> Option<bool> {
    let mut words = line.split(|c: char| c.is_whitespace() || c == ',' || c == ';');
    words.find_map(|word| match word.strip_prefix(name)? {
        "+" => Some(true),
        "-" => Some(false),
        _ => None,
    })
}

/// Lines of a function under what they are compared by; a capability's title stands as
/// `Capabilities: [MSI:`.
fn lines(said: &str) -> Vec<String> {
    let kinds = [("MSI:", "[MSI: "), ("MSI-X:", "[MSI-X: ")];
    let line = |line: &str| {
        let line = line.trim();
        let title = line.strip_prefix("Capabilities: [").and_then(|rest| rest.split_once("] "));
        let kind = title.and_then(|(_, title)| {
            kinds.iter().find_map(|(kind, key)| Some((key, title.strip_prefix(kind)?)))
        });
        kind.map_or_else(|| line.to_owned(), |(key, rest)| format!("Capabilities: {key}{rest}"))
    };
    said.lines().map(line).collect()
}

pub(crate) fn capabilities_are_those_of_lspci() {
    let (mut compared, mut kinds) = (0, BTreeMap::<&str, u32>::new());
    for (address, said) in by_function("-vv") {
        let shown = show(&address);
        assert_eq!(shown["missing"].as_array().unwrap().len(), 0, "{address}: {shown}");
        assert_eq!(shown["defects"].as_array().unwrap().len(), 0, "{address}: {shown}");
        // Each capability at its place, in the order of the lists.
        let theirs: Vec<u64> = said
            .lines()
            .filter_map(|line| number(line.trim().strip_prefix("Capabilities: ")?, "[", 16))
            .collect();
        let own = shown["structures"].as_array().unwrap()[1..].iter();
        let own: Vec<u64> = own.map(|structure| structure["offset"].as_u64().unwrap()).collect();
        assert_eq!(own, theirs, "{address}: {said}");
        for (raw, line) in said.lines().zip(lines(&said)) {
            for (begin, register, flags) in FLAGS.iter().filter(|(b, ..)| line.starts_with(b)) {
                for (name, own) in *flags {
                    let Some(theirs) = flag(&line, name) else { continue };
                    let own = field(&shown, register, own);
                    assert_eq!(own, Some(theirs.into()), "{address} {register} {name}: {line}");
                    compared += 1;
                    *kinds.entry(begin).or_default() += 1;
                }
            }
            for (begin, before, base, register, own, of) in
                NUMBERS.iter().filter(|(b, ..)| line.starts_with(b))
            {
                let Some(theirs) = number(&line, before, *base) else { continue };
                let own = field(&shown, register, own).map(of);
                assert_eq!(own, Some(theirs), "{address} {register} {before}: {line}");
                compared += 1;
                *kinds.entry(begin).or_default() += 1;
            }
            if let Some(region) = number(raw, "Region ", 10).filter(|_| raw.starts_with("\tRegion"))
            {
                let bars = shown["identity"]["bars"].as_array().unwrap();
                let bar = bars.iter().find(|bar| bar["index"] == region).unwrap();
                let at =
                    if line.contains("I/O ports at ") { "I/O ports at " } else { "Memory at " };
                assert_eq!(bar["start"].as_u64(), number(&line, at, 16), "{address}: {line}");
                let wide = line.contains("64-bit");
                assert_eq!(bar["kind"] == "memory64", wide, "{address}: {line}");
                let prefetchable = line.contains(", prefetchable");
                assert_eq!(bar["prefetchable"], prefetchable, "{address}: {line}");
                compared += 3;
                *kinds.entry("Region").or_default() += 1;
            }
        }
    }
    println!("{compared} values compared: {kinds:?}");
    // Every kind of line occurs in this guest.
    for begin in FLAGS.iter().map(|(begin, ..)| begin).chain(NUMBERS.iter().map(|(b, ..)| b)) {
        assert!(kinds.contains_key(begin), "{begin} was never compared: {kinds:?}");
    }
    assert!(compared > 500, "{compared}: {kinds:?}");
}

pub(crate) fn without_root_it_says_what_is_missing() {
    let output = Command::new("/bin/vfio-dma").args(["show", "0000:01:00.0"]).uid(1000).output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("not shown: capabilities") && said.contains("root"), "{said}");
    assert!(said.contains("COMMAND") && said.contains("link  "), "{said}");
    assert!(!said.contains("EXP_DEVCTL"), "{said}");
}

pub(crate) fn the_payload_path_and_the_link_are_told() {
    let said = vfio_dma(&["show", "0000:02:00.0"]);
    for part in [
        "2.5 GT/s x1; the card can 2.5 GT/s x1, the slot (0000:00:0a.0)",
        "above it     0000:00:0a.0 128 bytes, can ",
        "capability 0x",
        "extended capability 0x100: advanced error reporting",
        "EXP_DEVCTL",
        "max-read-request=",
        "reset methods",
        "Intel Corporation, 82574L Gigabit Network Connection",
    ] {
        assert!(said.out.contains(part), "{part:?} is missing:\n{}", said.out);
    }
}
