//! R67, R68, R70, R71: what a folder is worth when processes are killed in it and others meddle with it.

#![allow(unsafe_code, reason = "fork, umask and a limit of the file size have no safe form")]

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use storm_auth_blocking::core::Event;
use storm_auth_blocking::{Clock, Credentials, Scope, TokenProvider};
use storm_auth_core::Unix;
use storm_auth_core::store::{Lease, Owner, Record, StoreCommand, TokenStore};
use storm_auth_store::FileStore;
use storm_auth_tests::emulator::Emulator;

use crate::{Folder, Victim, lease, op, process, publish, until};

/// The parts of other processes.
pub(crate) fn play(part: &str, folder: &Path) {
    match part {
        // Writes one record after the other, until it is killed.
        "writes" => {
            let store = FileStore::new(folder).unwrap();
            let first = store.perform(&op(StoreCommand::Read)).unwrap().record;
            for sent in first.map_or(1, |record| record.order.sent.as_millis() + 1).. {
                if store.perform(&lease(7, 10_000)).unwrap().lease == Lease::Mine {
                    store.perform(&publish(Some(7), sent)).unwrap();
                }
            }
        }
        // Takes the lease, says so, and sleeps.
        "holds" => {
            let store = FileStore::new(folder).unwrap();
            assert_eq!(store.perform(&lease(7, 30)).unwrap().lease, Lease::Mine);
            say("held");
            thread::sleep(Duration::from_secs(600));
        }
        "umask" => {
            // SAFETY: this process has no other thread that makes files.
            unsafe { libc::umask(0) };
            let store = FileStore::new(folder).unwrap();
            store.perform(&lease(7, 10_000)).unwrap();
            store.perform(&publish(Some(7), 1)).unwrap();
            store.perform(&op(StoreCommand::CloseGate { until: Unix::from_millis(u64::MAX) })).unwrap();
        }
        "forks" => {
            let (store, other) = (FileStore::new(folder).unwrap(), FileStore::new(folder).unwrap());
            assert_eq!(store.perform(&lease(7, 10_000)).unwrap().lease, Lease::Mine);
            // SAFETY: the other threads of this process wait, and the child uses nothing of theirs.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let seen = store.perform(&op(StoreCommand::Read)).map(|reply| reply.lease);
                let asked = store.perform(&lease(8, 10_000)).map(|reply| reply.lease);
                let right = seen == Ok(Lease::Taken) && asked == Ok(Lease::Taken);
                // SAFETY: it ends here, and lives on with its copies of the descriptors for as long as its parent looks.
                unsafe {
                    if right {
                        libc::raise(libc::SIGSTOP);
                    }
                    libc::_exit(1);
                }
            }
            let mut status = 0;
            // SAFETY: plain system calls on a child of this process's own.
            let stopped =
                unsafe { libc::waitpid(child, &raw mut status, libc::WUNTRACED) } == child && libc::WIFSTOPPED(status);
            assert!(stopped, "the child found the lease other than taken");
            assert_eq!(other.perform(&lease(9, 10_000)).unwrap().lease, Lease::Taken);
            store.perform(&publish(Some(7), 1)).unwrap();
            assert_eq!(other.perform(&lease(9, 10_000)).unwrap().lease, Lease::Mine, "a stopped child holds no lock");
            // SAFETY: as above.
            unsafe { libc::kill(child, libc::SIGKILL) };
        }
        "full" => {
            let limit = libc::rlimit { rlim_cur: 100, rlim_max: 100 };
            // SAFETY: plain system calls; the limit makes a longer write fail instead of ending the process.
            unsafe {
                libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
                libc::setrlimit(libc::RLIMIT_FSIZE, &limit);
            }
            let store = FileStore::new(folder).unwrap();
            let failure = store.perform(&publish(None, 2)).unwrap_err();
            assert!(failure.detail.contains("File too large"), "{failure}");
            let kept = store.perform(&op(StoreCommand::Read)).unwrap().record.unwrap();
            assert_eq!(kept.order.sent, Unix::from_millis(1));
            // Not even a note can be written: then nobody has the lease.
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: as above.
            unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &none) };
            assert!(store.perform(&lease(7, 10_000)).is_err());
            assert_eq!(store.perform(&op(StoreCommand::Read)).unwrap().lease, Lease::Free);
        }
        "chmod" => {
            // The mode stops nobody who is root.
            // SAFETY: plain system calls, which change all threads of this process.
            let ordinary = unsafe { libc::geteuid() != 0 || (libc::setgid(65_534) == 0 && libc::setuid(65_534) == 0) };
            assert!(ordinary, "root can become somebody else");
            let mode = |folder: &Path, mode| fs::set_permissions(folder, Permissions::from_mode(mode)).unwrap();
            let [old, new] = old_and_new(folder);
            for folder in [&old, &new] {
                mode(folder, 0o500);
            }
            goes_on_alone(&old, &new, "chmod 700");
            // Then the folders can be removed, too.
            for folder in [&old, &new] {
                mode(folder, 0o700);
            }
            shares_again(&new);
        }
        #[cfg(target_os = "linux")]
        "mount" => {
            let [old, new] = old_and_new(folder);
            if !mount_to_read_only(folder) {
                say("SKIPPED: this user may mount nothing");
                return;
            }
            goes_on_alone(&old, &new, "name a folder that can be written to");
        }
        _ => unreachable!(),
    }
}

/// A folder with a record in it, and one that a store finds empty.
fn old_and_new(folder: &Path) -> [PathBuf; 2] {
    let folders = ["old", "new"].map(|name| folder.join(name));
    FileStore::new(&folders[0]).unwrap().perform(&publish(None, 1)).unwrap();
    FileStore::new(&folders[1]).unwrap();
    folders
}

/// Mounts a folder over itself, for this thread and those that it starts alone.
#[cfg(target_os = "linux")]
fn mount_to_read_only(folder: &Path) -> bool {
    let folder = std::ffi::CString::new(folder.to_str().unwrap()).unwrap();
    let mount = |what: &std::ffi::CStr, flags| {
        // SAFETY: paths that end with a zero; no type and no data is needed for these flags.
        unsafe { libc::mount(what.as_ptr(), what.as_ptr(), std::ptr::null(), flags, std::ptr::null()) == 0 }
    };
    // SAFETY: a plain system call.
    let apart = unsafe { libc::unshare(libc::CLONE_NEWNS) } == 0;
    apart
        && mount(c"/", libc::MS_REC | libc::MS_PRIVATE)
        && mount(&folder, libc::MS_BIND)
        && mount(&folder, libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY)
}

/// Both folders can be read and not written to; `change` is what is told then.
fn goes_on_alone(old: &Path, new: &Path, change: &str) {
    let store = FileStore::new(old).unwrap();
    assert_eq!(sent(&store), 1);
    let failure = store.perform(&publish(None, 2)).unwrap_err();
    assert!(failure.detail.contains(change) && failure.detail.contains(old.to_str().unwrap()), "{failure}");
    // Whoever may still write to a file that is there gets the lease, and it ends although nothing can be published.
    let _ = store.perform(&lease(7, 10_000));
    assert!(store.perform(&publish(Some(7), 2)).is_err());
    let reply = store.perform(&op(StoreCommand::Read)).unwrap();
    assert_eq!((reply.record.unwrap().order.sent, reply.lease), (Unix::from_millis(1), Lease::Free));

    let lifetime = Duration::from_secs(600);
    let emulator = Emulator::builder().lifetime(lifetime).start();
    let (clock, events) = (Clock::movable(), Arc::<Mutex<Vec<Event>>>::default());
    let seen = Arc::clone(&events);
    let tokens = provider(&emulator, new).clock(clock.clone());
    let tokens = tokens.on_event(move |event| seen.lock().unwrap().push(event.clone())).build_tokens().unwrap();
    for requests in 1..=3 {
        tokens.token().unwrap();
        assert_eq!(emulator.token_requests(), requests);
        until("neither the lease nor the token could be written", || tokens.counters().store_failures == 2 * requests);
        clock.advance(lifetime);
    }
    tokens.close(Duration::from_secs(10)).unwrap();
    // Once, although it can be read each time.
    let events = events.lock().unwrap();
    let told: Vec<_> =
        events.iter().filter(|event| matches!(event, Event::StoreFailed { .. } | Event::StoreRecovered)).collect();
    assert!(matches!(told[..], [Event::StoreFailed { detail, .. }] if detail.contains(change)), "{told:?}");
}

/// Two that use the folder send one request.
fn shares_again(folder: &Path) {
    let emulator = Emulator::start();
    for _ in 0..2 {
        let tokens = provider(&emulator, folder).build_tokens().unwrap();
        tokens.token().unwrap();
        tokens.close(Duration::from_secs(10)).unwrap();
    }
    assert_eq!(emulator.token_requests(), 1);
}

fn provider(emulator: &Emulator, folder: &Path) -> storm_auth_blocking::Builder {
    TokenProvider::builder()
        .token_url(emulator.token_url())
        .credentials(Credentials::new(emulator.client_id(), emulator.client_secret()).unwrap())
        .scope(Scope::new(emulator.scope()).unwrap())
        .store(FileStore::new(folder).unwrap())
}

fn say(word: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{word}").unwrap();
    out.flush().unwrap();
}

/// A process that plays a part until it is killed, and has said a word.
fn started(part: &str, folder: &Folder, word: &str) -> Victim {
    let mut victim = Victim(process(part, &folder.0).spawn().unwrap());
    let said = BufReader::new(victim.0.stdout.take().unwrap());
    assert!(said.lines().any(|line| line.unwrap() == word), "it says nothing");
    victim
}

/// What lies in the folder, with its mode.
fn modes(folder: &Path) -> Vec<(String, u32)> {
    let mut modes: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let ending = entry.path().extension().unwrap().to_string_lossy().into_owned();
            (ending, entry.metadata().unwrap().mode() & 0o7777)
        })
        .collect();
    modes.sort_unstable();
    modes
}

#[test]
fn r67_folder_and_files_are_this_users_alone_whatever_the_umask() {
    let folder = Folder::new("umask");
    assert!(process("umask", &folder.0).status().unwrap().success());
    assert_eq!(fs::metadata(&folder.0).unwrap().mode() & 0o7777, 0o700);
    let expected = ["gate", "lease", "lock", "token"].map(|ending| (ending.to_owned(), 0o600));
    assert_eq!(modes(&folder.0), expected);
}

#[test]
fn r67_a_folder_that_others_own_or_write_to_is_refused_with_what_to_change() {
    let folder = Folder::new("others");
    fs::create_dir(&folder.0).unwrap();
    for (mode, sound) in [(0o700, true), (0o755, true), (0o720, false), (0o702, false), (0o777, false)] {
        fs::set_permissions(&folder.0, Permissions::from_mode(mode)).unwrap();
        match FileStore::new(&folder.0) {
            Ok(_) => assert!(sound, "{mode:o}"),
            Err(error) => assert!(!sound && error.to_string().contains("chmod 700"), "{mode:o}: {error}"),
        }
    }
    fs::set_permissions(&folder.0, Permissions::from_mode(0o700)).unwrap();
    // Changed behind a store's back: it is no longer used.
    let store = folder.store();
    fs::set_permissions(&folder.0, Permissions::from_mode(0o777)).unwrap();
    assert!(store.perform(&op(StoreCommand::Read)).unwrap_err().detail.contains("chmod 700"));

    fs::set_permissions(&folder.0, Permissions::from_mode(0o700)).unwrap();
    let root = fs::metadata(&folder.0).unwrap().uid() == 0;
    let others = if root { folder.0.clone() } else { "/usr".into() };
    if root {
        std::os::unix::fs::chown(&others, Some(12_345), None).unwrap();
    }
    let error = FileStore::new(&others).expect_err("it is another's").to_string();
    assert!(error.contains("belongs to another user"), "{error}");
}

#[test]
fn r67_a_path_that_is_no_folder_is_refused() {
    let folder = Folder::new("nofolder");
    fs::create_dir(&folder.0).unwrap();
    let file = folder.0.join("file");
    File::create(&file).unwrap();
    let refused = |path: &Path| FileStore::new(path).unwrap_err().to_string();
    assert!(refused(&file).ends_with("is a link or a file; name the folder itself"));
    assert!(refused(&file.join("below")).ends_with("is a link or a file; name the folder itself"));
    assert!(refused(Path::new("")).ends_with("no folder is named; name one of this user's own"));
    // Whatever the system says is told with what to do.
    let long = folder.0.join("x".repeat(300));
    assert!(refused(&long).ends_with("; check the path and who may write there, or name another folder"));
    // Nor is a link to one followed: whoever may set it could choose where tokens go.
    let link = folder.0.join("link");
    symlink(&folder.0, &link).unwrap();
    assert!(refused(&link).ends_with("is a link or a file; name the folder itself"));
}

#[test]
fn r68_no_link_pipe_or_folder_in_a_files_place_is_followed_or_written_over() {
    for ending in ["token", "lease"] {
        let folder = Folder::new(&format!("trap-{ending}"));
        let store = folder.store();
        let (trap, prey) = (folder.file(ending), folder.0.join("prey"));
        let try_it = || {
            let (leased, published) = (store.perform(&lease(1, 10_000)), store.perform(&publish(Some(1), 9)));
            assert!(leased.is_err() || published.is_err(), "{ending}");
            let read = store.perform(&op(StoreCommand::Read)).unwrap_err();
            let file = trap.file_name().unwrap().to_str().unwrap();
            assert!(read.detail.contains(file) && read.detail.ends_with("remove it"), "{read}");
        };
        fs::write(&prey, "prey").unwrap();
        fs::set_permissions(&prey, Permissions::from_mode(0o600)).unwrap();
        symlink(&prey, &trap).unwrap();
        try_it();
        fs::remove_file(&trap).unwrap();
        fs::hard_link(&prey, &trap).unwrap();
        try_it();
        fs::remove_file(&trap).unwrap();
        fs::create_dir(&trap).unwrap();
        try_it();
        fs::remove_dir(&trap).unwrap();
        let name = std::ffi::CString::new(trap.to_str().unwrap()).unwrap();
        // SAFETY: a path that ends with a zero.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        try_it();
        assert_eq!(fs::read_to_string(&prey).unwrap(), "prey");
        // Without the trap all is well, at once.
        fs::remove_file(&trap).unwrap();
        assert!(store.perform(&publish(None, 9)).unwrap().record.is_some());
    }
}

#[test]
fn r68_a_file_that_others_may_read_is_not_used() {
    let folder = Folder::new("mode");
    let store = folder.store();
    store.perform(&publish(None, 1)).unwrap();
    fs::set_permissions(folder.file("token"), Permissions::from_mode(0o644)).unwrap();
    assert!(store.perform(&op(StoreCommand::Read)).unwrap_err().detail.contains("not this user's alone"));
}

#[test]
fn r70_a_record_that_is_none_is_a_miss_and_is_written_over() {
    let folder = Folder::new("corrupt");
    let store = folder.store();
    store.perform(&publish(None, 1)).unwrap();
    let sound = fs::read(folder.file("token")).unwrap();
    let mut foreign = sound.clone();
    foreign[11] = b'2'; // the version
    let oversized = [&sound[..], &vec![b'x'; 70_000]].concat();
    let broken = [&b""[..], b"\0", b"storm-auth 1 ", &sound[..40], &sound[..62], &foreign, &oversized, &[0xFF; 100]];
    for (number, bytes) in (2..).zip(broken) {
        fs::write(folder.file("token"), bytes).unwrap();
        assert!(store.perform(&op(StoreCommand::Read)).unwrap().record.is_none(), "{number}");
        assert!(store.perform(&publish(None, number)).unwrap().record.is_some(), "{number}");
    }
    // What the lease's file says may be nonsense as well.
    store.perform(&lease(1, 10_000)).unwrap();
    store.perform(&op(StoreCommand::Release { owner: Owner(1), rest: Duration::ZERO, failures: 0 })).unwrap();
    for bytes in [&b""[..], b"1 x", b"1 ffff 1 2", &[0xFF; 50], &[b'1'; 100_000]] {
        fs::write(folder.file("lease"), bytes).unwrap();
        assert_eq!(store.perform(&lease(1, 10_000)).unwrap().lease, Lease::Mine);
        let release = StoreCommand::Release { owner: Owner(1), rest: Duration::ZERO, failures: 0 };
        assert_eq!(store.perform(&op(release)).unwrap().lease, Lease::Free);
    }
}

#[test]
fn r70_r71_a_writer_that_is_killed_at_any_moment_leaves_a_record_and_no_lock() {
    let folder = Folder::new("killed");
    let store = folder.store();
    store.perform(&publish(None, 0)).unwrap();
    let mut newest = 0;
    for round in 0..40_u64 {
        let mut writer = Victim(process("writes", &folder.0).spawn().unwrap());
        // Until it writes, and then a little, another time in each round.
        let since = Instant::now();
        while sent(&store) == newest {
            assert!(since.elapsed() < Duration::from_secs(60), "it never writes");
        }
        let moment = Instant::now();
        while moment.elapsed() < Duration::from_micros(round * 37 % 900) {}
        writer.0.kill().unwrap();
        writer.0.wait().unwrap();
        let found = sent(&store);
        assert!(found > newest, "round {round}: {found} after {newest}");
        newest = found;
        assert_eq!(
            store.perform(&lease(1, 10_000)).unwrap().lease,
            Lease::Mine,
            "round {round}: the lease is free at once"
        );
        newest += 1;
        assert_eq!(store.perform(&publish(Some(1), newest)).unwrap().record.unwrap().order.sent.as_millis(), newest);
    }
    assert!(modes(&folder.0).iter().all(|(ending, _)| ending != "new"), "nothing unfinished is left");
}

fn sent(store: &FileStore) -> u64 {
    let record: Option<Record> = store.perform(&op(StoreCommand::Read)).unwrap().record;
    record.expect("the old record or the new one").order.sent.as_millis()
}

#[test]
fn r70_a_full_disk_leaves_the_old_record() {
    let folder = Folder::new("full");
    folder.store().perform(&publish(None, 1)).unwrap();
    assert!(process("full", &folder.0).status().unwrap().success());
    assert_eq!(folder.store().perform(&lease(1, 10_000)).unwrap().lease, Lease::Mine);
    assert!(modes(&folder.0).iter().all(|(ending, _)| ending != "new"), "nothing unfinished is left");
}

#[test]
fn r75_a_folder_that_can_only_be_read_is_told_with_what_to_change_and_done_without() {
    let folder = Folder::new("chmod");
    fs::create_dir(&folder.0).unwrap();
    fs::set_permissions(&folder.0, Permissions::from_mode(0o777)).unwrap();
    assert!(process("chmod", &folder.0).status().unwrap().success());
}

/// Only who may mount, as root may outside of most containers, has such a folder made; the test says so where it cannot.
#[cfg(target_os = "linux")]
#[test]
fn r75_a_file_system_that_can_only_be_read_is_told_with_what_to_change_and_done_without() {
    let folder = Folder::new("mount");
    fs::create_dir(&folder.0).unwrap();
    let played = process("mount", &folder.0).output().unwrap();
    assert!(played.status.success());
    if String::from_utf8_lossy(&played.stdout).contains("SKIPPED") {
        eprintln!("SKIPPED: this user may mount nothing");
    }
}

#[test]
fn r71_a_holder_that_is_killed_frees_its_lease_at_once_and_one_that_is_stopped_lapses() {
    let folder = Folder::new("stopped");
    let store = folder.store();
    let mut holder = started("holds", &folder, "held");
    // Its lease is for 30 ms and never renewed; its lock cannot be taken from it all the same.
    let since = Instant::now();
    while store.perform(&lease(1, 10_000)).unwrap().lease != Lease::Lapsed {
        assert!(since.elapsed() < Duration::from_secs(30));
    }
    assert_eq!(store.perform(&op(StoreCommand::Read)).unwrap().lease, Lease::Lapsed);
    // Who goes on alone is not kept from publishing.
    assert!(store.perform(&publish(None, 5)).unwrap().record.is_some());
    holder.0.kill().unwrap();
    holder.0.wait().unwrap();
    assert_eq!(store.perform(&op(StoreCommand::Read)).unwrap().lease, Lease::Free);
    assert_eq!(store.perform(&lease(1, 10_000)).unwrap().lease, Lease::Mine);
}

#[test]
fn r71_a_writer_that_is_stopped_in_its_moment_is_waited_for_and_then_left() {
    let folder = Folder::new("writer");
    let store = folder.store();
    store.perform(&publish(None, 1)).unwrap();
    let stopped = File::options().write(true).open(folder.0.join("write.lock")).unwrap();
    stopped.lock().unwrap();
    let failure = store.perform(&lease(1, 10_000)).unwrap_err();
    assert!(failure.detail.contains("look for one that was stopped"), "{failure}");
    // Reading needs no lock.
    assert!(store.perform(&op(StoreCommand::Read)).unwrap().record.is_some());
    stopped.unlock().unwrap();
    assert_eq!(store.perform(&lease(1, 10_000)).unwrap().lease, Lease::Mine);
}

#[test]
fn r75_a_folder_that_was_removed_is_made_again() {
    let folder = Folder::new("removed");
    let store = folder.store();
    store.perform(&publish(None, 1)).unwrap();
    fs::remove_dir_all(&folder.0).unwrap();
    assert!(store.perform(&op(StoreCommand::Read)).unwrap().record.is_none());
    assert!(store.perform(&publish(None, 2)).unwrap().record.is_some());
}

#[test]
fn r71_r76_what_was_noted_before_the_clock_was_set_back_holds_nobody_up() {
    let folder = Folder::new("clock");
    let store = folder.store();
    store.perform(&lease(1, 10_000)).unwrap();
    store.perform(&op(StoreCommand::Release { owner: Owner(1), rest: Duration::from_secs(60), failures: 3 })).unwrap();
    store.perform(&op(StoreCommand::CloseGate { until: Unix::from_millis(u64::MAX) })).unwrap();
    let reply = store.perform(&op(StoreCommand::Read)).unwrap();
    assert!(reply.gate.is_some() && matches!(reply.lease, Lease::Resting(_)));
    // As if it were yesterday now: everything was noted tomorrow.
    let tomorrow = Unix::from(std::time::SystemTime::now()).as_millis() + 86_400_000;
    fs::write(folder.file("lease"), format!("1 - {tomorrow} {} 3\n", tomorrow + 60_000)).unwrap();
    let gate = folder.0.join(format!("{}.gate", op(StoreCommand::Read).gate));
    fs::write(gate, format!("1 {tomorrow} {}\n", tomorrow + 60_000)).unwrap();
    let reply = store.perform(&op(StoreCommand::Read)).unwrap();
    assert_eq!((reply.gate, reply.lease, reply.failures), (None, Lease::Free, 3));
}

#[test]
fn r74_r75_a_record_that_has_ended_or_is_from_a_far_future_keeps_nobody_from_publishing() {
    let folder = Folder::new("poisoned");
    let store = folder.store();
    let poison = |sent: u64, lives: u64| {
        let now = Unix::from(std::time::SystemTime::now()).as_millis();
        let order = storm_auth_core::store::Order { sent: Unix::from_millis(now + sent), id: u64::MAX };
        let expires_at = Unix::from_millis(now + lives);
        let record = Record { order, expires_at, body: b"poison".to_vec().into() };
        fs::write(folder.file("token"), &record.to_bytes()[..]).unwrap();
    };
    store.perform(&publish(None, 1)).unwrap();
    for (sent, lives, barred) in [(3_000_000, 9_000_000, true), (4_000_000, 9_000_000, false), (0, 0, false)] {
        poison(sent, lives);
        let record = store.perform(&publish(None, 2)).unwrap().record.unwrap();
        assert_eq!(record.body[..] == *b"poison", barred, "{sent} {lives}");
    }
}

#[test]
fn r71_a_lease_that_its_machine_has_forgotten_lapses_in_its_own_process_too() {
    let folder = Folder::new("forgotten");
    let (store, other) = (folder.store(), folder.store());
    assert_eq!(store.perform(&lease(1, 20)).unwrap().lease, Lease::Mine);
    let since = Instant::now();
    while store.perform(&op(StoreCommand::Read)).unwrap().lease != Lease::Free {
        assert!(since.elapsed() < Duration::from_secs(30), "it is held for ever");
    }
    assert_eq!(other.perform(&lease(2, 10_000)).unwrap().lease, Lease::Mine);
}

#[test]
fn r54_r71_a_forked_child_neither_holds_nor_frees_its_parents_lease() {
    let folder = Folder::new("forked");
    assert!(process("forks", &folder.0).status().unwrap().success());
}
