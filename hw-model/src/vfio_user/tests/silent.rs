//! A client that serves a file system itself and answers nothing any more: everything that
//! touches its file waits.

use std::ffi::CString;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use super::client::Running;
use super::{EINVAL, Ended};

/// Requests of `include/uapi/linux/fuse.h` that are answered, by number.
const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const INIT: u32 = 26;

/// `struct fuse_attr` of a file of 1 MiB.
fn attributes() -> Vec<u8> {
    let longs = [2u64, 1 << 20, 2048, 0, 0, 0].map(u64::to_ne_bytes).concat();
    let words = [0u32, 0, 0, 0o100_666, 1, 0, 0, 0, 4096, 0].map(u32::to_ne_bytes).concat();
    [longs, words].concat()
}

/// A file system with one file, mounted by a directory's owner.
struct Silent {
    /// Its end of the mount.
    device: Mutex<Option<File>>,
    directory: tempfile::TempDir,
}

impl Silent {
    /// `None` when this process may not mount one.
    fn mount() -> Option<Silent> {
        let device = File::options().read(true).write(true).open("/dev/fuse").ok()?;
        let directory = tempfile::tempdir().unwrap();
        let path = CString::new(directory.path().as_os_str().as_bytes()).unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let options = CString::new(options).unwrap();
        let (name, flags) = (c"fuse".as_ptr(), libc::MS_NOSUID | libc::MS_NODEV);
        // SAFETY: all four are strings that end with a NUL.
        let result =
            unsafe { libc::mount(name, path.as_ptr(), name, flags, options.as_ptr().cast()) };
        (result == 0).then(|| Silent { device: Mutex::new(Some(device)), directory })
    }

    /// Ends the file system: whatever waits for an answer fails.
    fn end(&self) {
        self.device.lock().unwrap().take();
    }

    /// Answers until a file is open; nothing after that.
    fn open(&self) -> File {
        let path = self.directory.path().join("file");
        let device = self.device.lock().unwrap();
        let mut device = device.as_ref().unwrap();
        std::thread::scope(|scope| {
            let opening = scope.spawn(move || open(&path));
            loop {
                let mut request = vec![0; 1 << 20];
                let len = match device.read(&mut request) {
                    Ok(len) => len,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) => panic!("{error}"),
                };
                assert!(len >= 40);
                let opcode = u32::from_ne_bytes(request[4..8].try_into().unwrap());
                let payload = match opcode {
                    INIT => {
                        let words = [7u32, 31, 0, 0, 0, 4096, 1];
                        [words.map(u32::to_ne_bytes).concat(), vec![0; 36]].concat()
                    }
                    LOOKUP => {
                        let ids = [2u64, 1, 0, 0].map(u64::to_ne_bytes).concat();
                        [ids, vec![0; 8], attributes()].concat()
                    }
                    GETATTR => [vec![0; 16], attributes()].concat(),
                    OPEN => vec![0; 16],
                    _ => Vec::new(),
                };
                let mut reply = Vec::new();
                reply.extend((16 + payload.len() as u32).to_ne_bytes());
                reply.extend(if payload.is_empty() { -libc::ENOSYS } else { 0 }.to_ne_bytes());
                reply.extend(&request[8..16]);
                reply.extend(payload);
                device.write_all(&reply).unwrap();
                if opcode == OPEN {
                    break;
                }
            }
            opening.join().unwrap()
        })
    }
}

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.end();
        let path = CString::new(self.directory.path().as_os_str().as_bytes()).unwrap();
        // SAFETY: the path ends with a NUL.
        assert_eq!(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) }, 0);
    }
}

/// Runs the test again as root of a user namespace of its own, which may mount.
fn in_a_namespace() {
    const CHILD: &str = "VFIO_DMA_MODEL_NAMESPACE";
    let needs = "mounting a file system takes /dev/fuse that this user may open (modprobe fuse), and \
                 either root or user namespaces (sysctl kernel.unprivileged_userns_clone=1)";
    assert!(std::env::var_os(CHILD).is_none(), "{needs}");
    let (user, group) = (nix::unistd::getuid(), nix::unistd::getgid());
    let enter = move || {
        // SAFETY: a system call without pointers.
        if unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
        std::fs::write("/proc/self/gid_map", format!("0 {group} 1"))
    };
    let name = "vfio_user::tests::silent::\
                a_file_that_nobody_answers_for_holds_up_neither_others_nor_the_end";
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args([name, "--exact", "--nocapture"]).env(CHILD, "1");
    // SAFETY: the child makes system calls; no other thread of it is there to hold a lock.
    unsafe { child.pre_exec(enter) };
    let status = child.status().unwrap_or_else(|error| panic!("{error}: {needs}"));
    assert!(status.success(), "{needs}");
}

#[test]
fn a_file_that_nobody_answers_for_holds_up_neither_others_nor_the_end() {
    let Some(silent) = Silent::mount() else {
        return in_a_namespace();
    };
    let file = silent.open();
    let running = Running::start();
    let (done, is_done) = mpsc::channel();
    std::thread::scope(|scope| {
        let file = &file;
        scope.spawn(move || {
            let begin = Instant::now();
            let mut client = running.connect();
            assert_eq!(client.map(0, 4096, Some((file.as_fd(), 0)), 3), EINVAL);
            // It is given up: it may go on to do that as often as it likes.
            assert!(client.is_closed());
            running.connect();
            assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
            let ended = running.stop();
            done.send(ended).unwrap();
        });
        let ended = is_done.recv_timeout(Duration::from_secs(15));
        // Everything that waits for an answer fails now: also what a server that is wrong
        // waits for, and the end of the file itself.
        silent.end();
        assert_eq!(ended, Ok(Ended::Stopped));
    });
}
