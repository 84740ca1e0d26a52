//! That an idle model sleeps, and that nothing software writes panics or hangs it.

use std::fs;

use proptest::prelude::*;

use super::*;

/// Voluntary context switches of this process's threads whose name begins with `ioat-`: how
/// often they went to sleep.
fn sleeps(threads: &[u64]) -> u64 {
    let status = |tid| fs::read_to_string(format!("/proc/self/task/{tid}/status")).unwrap();
    let switches = |status: String| -> u64 {
        let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse().unwrap()
    };
    threads.iter().map(|tid| switches(status(tid))).sum()
}

/// The thread ids of engines.
fn engines() -> Vec<u64> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let named = tasks.filter(|task| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("ioat-"))
    });
    named.map(|task| task.file_name().to_str().unwrap().parse().unwrap()).collect()
}

#[test]
fn an_idle_model_sleeps() {
    let rig = Rig::new(IoatConfig { channels: 8, ..IoatConfig::default() });
    rig.works();
    let wakeups = || rig.stats().wakeups;
    let quiet = stable(wakeups);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(wakeups(), quiet, "no engine woke up in 200 ms");
    rig.reset();
    rig.clear_completion();
    rig.works();
    assert!(stable(wakeups) > quiet, "and one did for work");
}

/// A number that stays the same for a while.
fn stable(number: impl Fn() -> u64) -> u64 {
    let mut last = number();
    wait("the engines sleep", || {
        std::thread::sleep(Duration::from_millis(100));
        let now = number();
        std::mem::replace(&mut last, now) == now
    });
    last
}

#[test]
fn a_sleeping_engine_makes_no_switches() {
    // In a process of its own, so that each engine in it is the model's.
    let exe = std::env::current_exe().unwrap();
    let output = std::process::Command::new(exe)
        .args(["--exact", "ioat::tests::random::idle_child", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
#[ignore = "run by a_sleeping_engine_makes_no_switches, in a process of its own"]
fn idle_child() {
    let rig = Rig::new(IoatConfig { channels: 8, ..IoatConfig::default() });
    rig.works();
    // A thread names itself when it first runs.
    wait("all engines run", || engines().len() == 8);
    let threads = engines();
    let before = stable(|| sleeps(&threads));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(sleeps(&threads), before);
}

#[derive(Debug, Clone)]
enum Access {
    Read(u64, usize),
    Write(u64, usize, u64),
    Config(u64, u32),
    Doorbell(u16),
    Chain(u64),
    Command(u8),
    Memory(u64, u64),
    Reset,
}

fn access() -> impl Strategy<Value = Access> {
    let offset = prop_oneof![0u64..0x300, 0x2000u64..0x2040, 0u64..0x4000];
    let len = prop_oneof![Just(1usize), Just(2), Just(4), Just(8), 0usize..20];
    let address = prop_oneof![Just(RING), RING..RING + 0x200, any::<u64>()];
    prop_oneof![
        4 => (offset.clone(), len.clone()).prop_map(|(o, l)| Access::Read(o, l)),
        4 => (offset, len, any::<u64>()).prop_map(|(o, l, v)| Access::Write(o, l, v)),
        1 => (0u64..0x1000, any::<u32>()).prop_map(|(o, v)| Access::Config(o & !3, v)),
        4 => any::<u16>().prop_map(Access::Doorbell),
        4 => address.prop_map(Access::Chain),
        2 => any::<u8>().prop_map(Access::Command),
        2 => (0u64..64, any::<u64>()).prop_map(|(n, v)| Access::Memory(RING + 8 * n, v)),
        1 => Just(Access::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is written, the model answers, and a function-level reset makes it work.
    #[test]
    fn no_access_panics_or_hangs(accesses in prop::collection::vec(access(), 1..120)) {
        let rig = Rig::one();
        rig.null_ring(RING, 4);
        for access in accesses {
            match access {
                Access::Read(offset, len) => {
                    let mut data = [0; 20];
                    let _ = rig.device.region_read(Region::Bar(0), offset, &mut data[..len]);
                }
                Access::Write(offset, len, value) => {
                    let data = [value.to_le_bytes(); 3].concat();
                    let _ = rig.device.region_write(Region::Bar(0), offset, &data[..len]);
                }
                Access::Config(offset, value) => rig.set_config(offset, value),
                Access::Doorbell(count) => rig.ring(count),
                Access::Chain(address) => rig.arm(address),
                Access::Command(command) => rig.write(0x84, 1, command.into()),
                Access::Memory(at, value) => rig.word(at).store(value, Ordering::Release),
                Access::Reset => rig.device.reset().unwrap(),
            }
        }
        // Power on, in case a write put the function to sleep.
        rig.set_config(0xe4, 0);
        rig.device.reset().unwrap();
        rig.bus_master(true);
        rig.set_up(0);
        rig.reset();
        rig.clear_completion();
        rig.works();
    }
}
