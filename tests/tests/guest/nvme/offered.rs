//! What a controller may offer besides: doorbells in memory, memory of its own for queues,
//! copies by itself.

use vfio_dma::devices::PciDriver;
use vfio_dma::devices::nvme::{
    Config, Consent, IoQueue, Namespace, Nvme, NvmeError, QueueConfig, Stats, Token, WhenFull,
    Writable,
};
use vfio_dma::dma::{Direction, Request};
use vfio_dma::queue::WaitMode;
use vfio_dma_tests::{Dice, Machine, address};
use vfio_dma_tools::vm::{Image, VmConfig};

use super::{LIMIT, ended, initial};
use crate::support::open;

/// The only drive of the machine.
const DRIVE: u8 = 0;
const SIZE: u64 = 8 << 20;
const BLOCK: u64 = 512;
const BLOCKS: u64 = SIZE / BLOCK;

/// What is copied, to where; in blocks.
const SOURCES: [std::ops::Range<u64>; 4] = [3..4, 1000..1777, 200..210, 4000..4512];
const COPIED: u64 = 12_000;

/// What a copy command of this drive may have: QEMU's defaults are the same for all three.
const LIMITS: &str = "mssrl=100,mcl=250,msrc=3";
const CONFIGURED: &str = "pci_nvme_dbbuf_config";

/// A drive that is a namespace by itself, which is what QEMU copies on.
pub(crate) fn offering() -> Machine {
    let image = Image::new(SIZE, initial(DRIVE)).unwrap();
    let log = tempfile::NamedTempFile::new().unwrap();
    let path = image.path().display();
    let traces = format!("trace:pci_nvme_ub_*,trace:{CONFIGURED}");
    let vm = VmConfig {
        devices: vec!["nvme,id=offering,serial=vfio-dma-offering,cmb_size_mb=2".into()],
        qemu_args: [
            "-drive",
            &format!("if=none,id=blocks,format=raw,file={path}"),
            "-device",
            &format!("nvme-ns,drive=blocks,bus=offering,nsid=1,{LIMITS}"),
            "-d",
            &traces,
            "-D",
            &log.path().display().to_string(),
        ]
        .map(Into::into)
        .into(),
        ..VmConfig::default()
    };
    let mut expected = vec![0; SIZE as usize];
    initial(DRIVE).bytes(0, &mut expected);
    let verify = move || {
        let image = image.bytes().map_err(|error| error.to_string())?;
        let log = std::fs::read_to_string(log.path()).map_err(|error| error.to_string())?;
        if let Some(line) = log.lines().find(|line| line.contains("pci_nvme_ub_")) {
            return Err(format!("QEMU found undefined behaviour: {line}"));
        }
        let told = log.lines().filter(|line| line.contains(CONFIGURED)).count();
        eprintln!("told of shadow doorbells {told} times");
        // The guest ran one case or several: each leaves the image whole, or copied whole.
        let mut copied = expected.clone();
        let mut at = (COPIED * BLOCK) as usize;
        for source in SOURCES {
            let bytes = (source.start * BLOCK) as usize..(source.end * BLOCK) as usize;
            copied[at..at + bytes.len()].copy_from_slice(&expected[bytes.clone()]);
            at += bytes.len();
        }
        match (image == copied, image == expected) {
            (true, _) => eprintln!("the image has every block that was copied, and no other"),
            (_, true) => eprintln!("the image is as it was"),
            _ => return Err("the image is neither as it was nor as a copy makes it".into()),
        }
        Ok(())
    };
    Machine { vm, verify: Box::new(verify) }
}

fn offering_with(config: Config) -> (Nvme, Namespace) {
    let config = Config { wait: Some(WaitMode::Poll), ..config };
    let nvme = Nvme::probe(open(address(DRIVE)), config).expect("opening NVMe");
    let namespace = super::only(&nvme);
    (nvme, namespace)
}

/// Reads blocks one by one, each told by itself, up to 64 in flight; what that counted.
fn read_one_by_one(nvme: &Nvme, queue: &mut IoQueue, dice: &mut Dice, reads: u64) -> Stats {
    let namespace = super::only(nvme);
    let before = queue.stats();
    let mut flying: Vec<(Token, u64)> = Vec::new();
    for n in 0..reads {
        let lba = dice.roll(COPIED - 1);
        let buffer = nvme.allocate(&Request::new(512, Direction::FromDevice)).unwrap();
        let token = queue.read(&namespace, lba, buffer.into(), WhenFull::Wait(LIMIT)).unwrap();
        queue.issue().unwrap();
        flying.push((token, lba));
        if flying.len() == 64 || n == reads - 1 {
            for (token, lba) in flying.drain(..) {
                let table = queue.wait(token, LIMIT).unwrap().into_table().unwrap();
                let buffer = table.into_buffer().unwrap();
                initial(DRIVE).check(&buffer, 0, 512, lba * BLOCK).unwrap().unwrap();
            }
        }
    }
    let after = queue.stats();
    Stats {
        doorbells: after.doorbells - before.doorbells,
        shadow_doorbells: after.shadow_doorbells - before.shadow_doorbells,
        repeated_doorbells: after.repeated_doorbells - before.repeated_doorbells,
        head_doorbells: after.head_doorbells - before.head_doorbells,
        ..after
    }
}

pub(crate) fn shadow_doorbells_save_register_writes() {
    const READS: u64 = 64 * 20;
    let mut dice = Dice::seeded();
    let (nvme, _) = offering_with(Config { shadow_doorbells: false, ..Config::default() });
    assert!(nvme.info().has_shadow_doorbells && !nvme.has_shadow_doorbells());
    let mut queue = nvme.queue(QueueConfig::default()).unwrap();
    let by_register = read_one_by_one(&nvme, &mut queue, &mut dice, READS);
    assert_eq!((by_register.doorbells, by_register.shadow_doorbells), (READS, 0));
    drop((queue, nvme));
    let (nvme, namespace) = offering_with(Config::default());
    assert!(nvme.has_shadow_doorbells());
    let mut queue = nvme.queue(QueueConfig::default()).unwrap();
    for round in 0..3 {
        let stats = read_one_by_one(&nvme, &mut queue, &mut dice, READS);
        let Stats { doorbells, shadow_doorbells, repeated_doorbells, head_doorbells, .. } = stats;
        println!(
            "round {round}: {READS} doorbells, {doorbells} by register and {repeated_doorbells} \
             once more; {head_doorbells} of heads, {} without",
            by_register.head_doorbells
        );
        // Each is either, and the controller was spared some.
        assert_eq!(doorbells + shadow_doorbells, READS);
        assert!(shadow_doorbells > 0 && doorbells > 0, "{stats:?}");
        // A reset has the controller forget where they lie; it is told again, whatever is in
        // flight.
        let buffer = nvme.allocate(&Request::new(512, Direction::FromDevice)).unwrap();
        let token = queue.read(&namespace, 0, buffer.into(), WhenFull::Return).unwrap();
        queue.issue().unwrap();
        nvme.reset().unwrap();
        drop(queue.wait(token, LIMIT).unwrap());
        assert!(nvme.has_shadow_doorbells());
        assert_eq!(queue.stats().recoveries, round + 1);
    }
    // A queue whose number was in use before begins anew too.
    drop(queue);
    let mut again = nvme.queue(QueueConfig { size: 7, ..QueueConfig::default() }).unwrap();
    let stats = read_one_by_one(&nvme, &mut again, &mut dice, 100);
    assert_eq!(stats.doorbells + stats.shadow_doorbells, 100, "{stats:?}");
}

fn writable(nvme: &Nvme, queue: &mut IoQueue, blocks: std::ops::Range<u64>) -> Writable {
    let namespace = super::only(nvme);
    let consent = Consent::new(&*nvme.info().serial, namespace.bytes()).blocks(blocks);
    queue.writable(&namespace, &consent, LIMIT).expect("the right to write")
}

pub(crate) fn blocks_are_copied_by_the_controller() {
    let (nvme, namespace) = offering_with(Config::default());
    let limits = namespace.copy_limits();
    assert_eq!((limits.range_blocks, limits.command_blocks, limits.ranges), (100, 250, 4));
    let mut queue = nvme.queue(QueueConfig::default()).unwrap();
    let right = writable(&nvme, &mut queue, COPIED..BLOCKS);
    let before = queue.stats().commands;
    let mut refuse = |sources: &[std::ops::Range<u64>], to| {
        let refused = queue.copy(&right, sources, to, WhenFull::Return).unwrap_err();
        refused.error
    };
    let error = refuse(&SOURCES, COPIED - 1);
    assert!(matches!(error, NvmeError::NotWritable { .. }), "{error}");
    for outside in [BLOCKS - 1..BLOCKS + 1, 5..5, u64::MAX - 1..u64::MAX] {
        let error = refuse(&[0..1, outside], COPIED);
        assert!(matches!(error, NvmeError::OutOfRange { .. }), "{error}");
    }
    let error = refuse(&[], COPIED);
    assert!(matches!(error, NvmeError::OutOfRange { blocks: 0, .. }), "{error}");
    let error = refuse(&[0..4, COPIED + 4..COPIED + 9], COPIED);
    assert!(matches!(error, NvmeError::Overlap { .. }), "{error}");
    assert_eq!(queue.stats().commands, before);
    let token = queue.copy(&right, &SOURCES, COPIED, WhenFull::Return);
    let finished = ended(&mut queue, token);
    println!("{} commands", finished.commands);
    let blocks: u64 = SOURCES.iter().map(|source| source.end - source.start).sum();
    assert!(u64::from(finished.commands) >= blocks.div_ceil(250), "{finished:?}");
    finished.into_result().unwrap();
    let token = queue.flush(&namespace, WhenFull::Return);
    ended(&mut queue, token).into_result().unwrap();
    let mut to = COPIED;
    for source in SOURCES {
        let len = ((source.end - source.start) * BLOCK) as usize;
        let buffer = nvme.allocate(&Request::new(len, Direction::FromDevice)).unwrap();
        let token = queue.read(&namespace, to, buffer.into(), WhenFull::Return);
        let buffer = ended(&mut queue, token).into_table().unwrap().into_buffer().unwrap();
        initial(DRIVE).check(&buffer, 0, len, source.start * BLOCK).unwrap().unwrap();
        to += source.end - source.start;
    }
}

pub(crate) fn queues_lie_in_the_controllers_memory() {
    let mut dice = Dice::seeded();
    let inside = QueueConfig { memory_buffer: true, ..QueueConfig::default() };
    // Not without being asked for.
    let (nvme, _) = offering_with(Config::default());
    assert_eq!((nvme.has_memory_buffer(), nvme.memory_buffer()), (true, None));
    let refused = nvme.queue(inside).unwrap_err();
    assert!(matches!(refused, NvmeError::NotOffered { .. }), "{refused}");
    drop(nvme);
    for shadow_doorbells in [false, true] {
        let config = Config { memory_buffer: true, shadow_doorbells, ..Config::default() };
        let (nvme, _) = offering_with(config);
        let space = std::sync::Arc::clone(nvme.space());
        assert_eq!(nvme.memory_buffer(), Some(2 << 20));
        let mut queues = [inside, inside, QueueConfig::default()].map(|c| nvme.queue(c).unwrap());
        // QEMU takes submission queues there, and no completion queues.
        let lies = queues.each_ref().map(IoQueue::in_memory_buffer);
        assert_eq!(lies, [(true, false), (true, false), (false, false)]);
        for round in 0..2 {
            for queue in &mut queues {
                read_one_by_one(&nvme, queue, &mut dice, 200);
                assert_eq!(queue.stats().recoveries, round);
            }
            // A reset of the controller leaves it where it is.
            nvme.reset().unwrap();
            queues.iter_mut().for_each(|queue| _ = queue.poll().unwrap());
        }
        drop((queues, nvme));
        assert_eq!((space.usage().mappings, space.iovas().allocated()), (0, 0));
    }
}
