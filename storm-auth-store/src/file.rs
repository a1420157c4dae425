//! A store for one machine: a folder.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Mutex, MutexGuard, TryLockError as TryMutexError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use storm_auth_core::Unix;
use storm_auth_core::store::{
    Lease, Owner, Record, RecordName, StoreCommand, StoreFailure, StoreOp, StoreReply, TokenStore,
};

use crate::StoreError;
use crate::folder::{self, Folder};

/// The longest rest, the longest closure of a gate, and the most that a record may be from the future to count as one.
const HOUR: Duration = Duration::from_secs(3_600);

/// How long a process waits for another one that is just writing. A writer needs microseconds; one that was stopped is left.
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// Shares tokens among the processes of one user on one machine, through a folder that only this user may use.
///
/// Cron jobs and command-line tools that live for a second share a token with it, and so do several services. What lies in the
/// folder, by a name that shows nothing:
///
/// - `*.token`: the record, written whole into a new file that then takes the place of the old one;
/// - `*.lease`: locked by the process whose request is under way, so a process that is killed frees it at once, unless a forked child
///   has a copy of the descriptor and has not used the store since. It is never deleted. It says who holds it and since when, and
///   how long it rests;
/// - `*.gate`: until when nothing is sent;
/// - `write.lock`: locked for the moment of each change.
///
/// The folder is made with mode 0700 and the files with 0600, whatever the umask. A folder of another user, or one that others may
/// write to, is refused, and so is anything in it that is no plain file of this user's own: no link is followed. Locks and renames
/// are the system's; network file systems that do not keep them are no place for it.
///
/// A record holds the token. Whoever can read the user's files can read it, unless it is [sealed](crate::Sealed).
///
/// ```no_run
/// use storm_auth_store::FileStore;
///
/// let store = FileStore::new("/var/lib/acme/tokens")?;
/// # drop(store);
/// # Ok::<(), storm_auth_store::StoreError>(())
/// ```
#[derive(Debug)]
pub struct FileStore {
    folder: PathBuf,
    /// The leases of machines in this process.
    held: Mutex<BTreeMap<RecordName, Held>>,
}

#[derive(Debug)]
struct Held {
    owner: Owner,
    file: File,
    until: Unix,
    /// The process that locked it: a forked child has a copy of the descriptor, and not the lease.
    process: u32,
}

/// What a lease's file says.
#[derive(Clone, Copy, Default, Debug)]
struct Note {
    /// Who holds the lease.
    holder: Option<Owner>,
    /// When it was renewed, or released.
    at: Unix,
    /// Until when the holder keeps it unless it renews it, or nobody may have it.
    until: Unix,
    failures: u32,
}

/// A lock that ends with this. Closing it would do, were there not forked children with copies of the descriptor.
#[derive(Debug)]
struct Locked(File);

impl Drop for Locked {
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

impl FileStore {
    /// A store in this folder, which is made where it is missing.
    ///
    /// # Errors
    /// The folder cannot be made or used, belongs to another user, or others may write to it; the error says what to change.
    pub fn new(folder: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let folder = folder.into();
        let wrong = |error: io::Error| {
            // The system says what is wrong; what is told by this crate says what to do as well.
            let cure = if error.get_ref().is_some() {
                ""
            } else {
                "; check the path and who may write there, or name another folder"
            };
            StoreError::new(format!("{}: {error}{cure}", folder.display()))
        };
        if folder.as_os_str().is_empty() {
            return Err(StoreError::new("no folder is named; name one of this user's own".to_owned()));
        }
        // A process that goes to another place still means this one.
        let whole = std::path::absolute(&folder).map_err(wrong)?;
        Folder::open(&whole).map_err(wrong)?;
        Ok(Self { folder: whole, held: Mutex::default() })
    }

    /// A store in the folder that the system sets aside for such things of this user: `storm-auth` in `$XDG_RUNTIME_DIR`, in
    /// `$XDG_STATE_HOME` or in `~/.local/state`; in `~/Library/Caches` on macOS and in `%LOCALAPPDATA%` on Windows. Never a
    /// folder that all users share.
    ///
    /// # Errors
    /// As [`new`](Self::new), or none of these variables is set.
    pub fn for_user() -> Result<Self, StoreError> {
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = |below: &str| variable("HOME").map(|home| home.join(below));
        let folder = if cfg!(windows) {
            variable("LOCALAPPDATA")
        } else if cfg!(target_os = "macos") {
            home("Library/Caches")
        } else {
            variable("XDG_RUNTIME_DIR").or_else(|| variable("XDG_STATE_HOME")).or_else(|| home(".local/state"))
        };
        let unknown = "no folder of this user's own is known; set HOME or XDG_STATE_HOME, or name a folder";
        Self::new(folder.ok_or_else(|| StoreError::new(unknown.to_owned()))?.join("storm-auth"))
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The leases of this process, for an operation at `now`.
    fn held(&self, now: Unix) -> io::Result<MutexGuard<'_, BTreeMap<RecordName, Held>>> {
        let since = Instant::now();
        let mut held = loop {
            match self.held.try_lock() {
                Ok(held) => break held,
                Err(TryMutexError::Poisoned(held)) => break held.into_inner(),
                // A thread of this process, or one of its parent's that a forked child does not have.
                Err(TryMutexError::WouldBlock) if since.elapsed() < LONGEST_WAIT => {
                    thread::sleep(Duration::from_millis(1));
                }
                Err(TryMutexError::WouldBlock) => {
                    let problem = "another thread of this process has used the store for half a second";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, problem));
                }
            }
        };
        // A child's copies are closed and not unlocked, since the lock is its parent's; what was not renewed in time is given up.
        held.retain(|_, held| held.process == process::id() && (held.until > now || held.file.unlock().is_err()));
        Ok(held)
    }

    fn try_perform(&self, op: &StoreOp, now: Unix) -> io::Result<StoreReply> {
        let folder = Folder::open(&self.folder)?;
        let mut held = self.held(now)?;
        let mut desk = Desk {
            token: format!("{}.token", op.record),
            lease: format!("{}.lease", op.record),
            gate: format!("{}.gate", op.gate),
            name: op.record,
            folder: &folder,
            held: &mut held,
            now,
        };
        let _writing = match op.command {
            StoreCommand::Read => None,
            _ => Some(write_lock(&folder)?),
        };
        let mut lease = None;
        match &op.command {
            StoreCommand::Read => {}
            StoreCommand::Lease { owner, ttl } => lease = Some(desk.take(*owner, *ttl)?),
            StoreCommand::Publish { owner, record } => desk.publish(*owner, record)?,
            StoreCommand::Release { owner, rest, failures } => {
                let until = now + (*rest).min(HOUR);
                desk.give_back(*owner, Note { holder: None, at: now, until, failures: *failures })?;
            }
            StoreCommand::CloseGate { until } => {
                let until = (*until).min(now + HOUR);
                if desk.gate()?.is_none_or(|before| before < until) {
                    let text = format!("1 {} {}\n", now.as_millis(), until.as_millis());
                    folder.replace(&desk.gate, text.as_bytes())?;
                }
            }
        }
        let (lease, note) = match lease {
            Some(lease) => lease,
            None => desk.look()?,
        };
        let record = Record::from_bytes(&folder.read(&desk.token)?);
        Ok(StoreReply { record, gate: desk.gate()?, lease, failures: note.failures })
    }
}

impl TokenStore for FileStore {
    fn perform(&self, op: &StoreOp) -> Result<StoreReply, StoreFailure> {
        let now = Unix::from(SystemTime::now());
        self.try_perform(op, now).map_err(|error| StoreFailure::new(format!("{}: {error}", self.folder.display())))
    }
}

/// One operation on one key.
struct Desk<'a> {
    token: String,
    lease: String,
    gate: String,
    name: RecordName,
    folder: &'a Folder,
    held: &'a mut BTreeMap<RecordName, Held>,
    now: Unix,
}

impl Desk<'_> {
    /// Takes or renews the lease; returns who has it then.
    fn take(&mut self, owner: Owner, ttl: Duration) -> io::Result<(Lease, Note)> {
        let (now, until) = (self.now, self.now + ttl);
        let renewed = |file: &File| {
            let note = Note { holder: Some(owner), at: now, until, ..Note::read(file)? };
            folder::overwrite(file, note.to_text().as_bytes())?;
            Ok((Lease::Mine, note))
        };
        match self.held.get_mut(&self.name) {
            Some(held) if held.owner == owner => {
                held.until = until;
                return renewed(&held.file);
            }
            // Another machine in this process.
            Some(held) => return Ok((Lease::Taken, Note::read(&held.file)?)),
            None => {}
        }
        let file = self.folder.file(&self.lease)?;
        if !try_lock(&file)? {
            let note = Note::read(&file)?;
            return Ok((note.of_another(now), note));
        }
        let note = Note::read(&file)?;
        let written = match note.rests(now) {
            Some(rest) => Ok((Lease::Resting(rest), note)),
            None => renewed(&file),
        };
        match written {
            Ok((Lease::Mine, _)) => {
                self.held.insert(self.name, Held { owner, file, until, process: process::id() });
            }
            // The disk is full, perhaps: nobody has it.
            _ => drop(Locked(file)),
        }
        written
    }

    fn publish(&mut self, owner: Option<Owner>, record: &Record) -> io::Result<()> {
        let own = self.held.get(&self.name).is_some_and(|held| Some(held.owner) == owner);
        let (lease, note) = self.look()?;
        let barred = owner.is_some() && !own && lease == Lease::Taken;
        // One that has ended, or is from a future that no clock's fault explains, is in nobody's way.
        let counts = |kept: &Record| kept.expires_at > self.now && kept.order.sent <= self.now + HOUR;
        let kept = Record::from_bytes(&self.folder.read(&self.token)?).filter(counts);
        let written = match barred || kept.is_some_and(|kept| kept.order >= record.order) {
            true => Ok(false),
            false => self.folder.replace(&self.token, &record.to_bytes()).map(|()| true),
        };
        let note = match written {
            Ok(true) => Note::default(),
            _ => Note { holder: None, at: self.now, until: self.now, failures: note.failures },
        };
        if own && let Some(owner) = owner {
            // The lease ends whatever came of it.
            self.give_back(owner, note)?;
        } else if matches!(written, Ok(true)) && !self.held.contains_key(&self.name) {
            let file = self.folder.file(&self.lease)?;
            if try_lock(&file)? {
                let locked = Locked(file);
                folder::overwrite(&locked.0, note.to_text().as_bytes())?;
            }
        }
        written.map(drop)
    }

    /// Ends a lease of this process's own.
    fn give_back(&mut self, owner: Owner, note: Note) -> io::Result<()> {
        if self.held.get(&self.name).is_none_or(|held| held.owner != owner) {
            return Ok(());
        }
        let Some(Held { file, .. }) = self.held.remove(&self.name) else { return Ok(()) };
        let locked = Locked(file);
        folder::overwrite(&locked.0, note.to_text().as_bytes())
    }

    /// Who has the lease, as it is.
    fn look(&self) -> io::Result<(Lease, Note)> {
        if let Some(held) = self.held.get(&self.name) {
            return Ok((Lease::Taken, Note::read(&held.file)?));
        }
        let Some(file) = self.folder.existing(&self.lease)? else { return Ok((Lease::Free, Note::default())) };
        let note = Note::read(&file)?;
        let lease = match (note.holder, note.rests(self.now)) {
            (None, Some(rest)) => Lease::Resting(rest),
            (None, None) => Lease::Free,
            // It may have been killed. A shared lock, so that those who look are not in each other's way.
            (Some(_), _) => match file.try_lock_shared() {
                Ok(()) => {
                    drop(Locked(file));
                    Lease::Free
                }
                Err(TryLockError::WouldBlock) => note.of_another(self.now),
                Err(TryLockError::Error(error)) => return Err(error),
            },
        };
        Ok((lease, note))
    }

    fn gate(&self) -> io::Result<Option<Unix>> {
        let bytes = self.folder.read(&self.gate)?;
        let found = core::str::from_utf8(&bytes).ok().and_then(|text| {
            let (at, until) = text.strip_suffix('\n')?.strip_prefix("1 ")?.split_once(' ')?;
            Some((at.parse().ok()?, until.parse().ok()?))
        });
        Ok(found.and_then(|(at, until)| {
            let left = left(Unix::from_millis(at), Unix::from_millis(until), self.now)?;
            Some(self.now + left)
        }))
    }
}

/// What is left of a span that was noted at a time; nothing where the clock was set back behind that. Who reads a note may have looked
/// at the clock before its writer did.
fn left(at: Unix, until: Unix, now: Unix) -> Option<Duration> {
    (at <= now + Duration::from_secs(1) && now < until).then(|| until.since(now).min(HOUR))
}

/// Whether the lease could be locked. Somebody who only looks holds it for microseconds.
fn try_lock(file: &File) -> io::Result<bool> {
    for wait in [0, 1, 2, 4] {
        thread::sleep(Duration::from_millis(wait));
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(false)
}

fn write_lock(folder: &Folder) -> io::Result<Locked> {
    let file = folder.file("write.lock")?;
    let since = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Locked(file)),
            Err(TryLockError::WouldBlock) if since.elapsed() < LONGEST_WAIT => thread::sleep(Duration::from_millis(1)),
            Err(TryLockError::WouldBlock) => {
                let problem = "another process has held write.lock for half a second; look for one that was stopped";
                return Err(io::Error::new(io::ErrorKind::TimedOut, problem));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

impl Note {
    /// What a file says; nothing where it was cut through or is not one.
    fn read(file: &File) -> io::Result<Self> {
        let bytes = folder::read(file)?;
        Ok(core::str::from_utf8(&bytes).ok().and_then(Self::parse).unwrap_or_default())
    }

    fn to_text(self) -> String {
        let holder = self.holder.map_or_else(|| "-".to_owned(), |owner| owner.to_string());
        format!("1 {holder} {} {} {}\n", self.at.as_millis(), self.until.as_millis(), self.failures)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.strip_suffix('\n')?.strip_prefix("1 ")?.split(' ');
        let holder = match fields.next()? {
            "-" => None,
            owner => Some(Owner(u128::from_str_radix(owner, 16).ok()?)),
        };
        let mut number = || fields.next()?.parse().ok();
        let (at, until, failures) = (Unix::from_millis(number()?), Unix::from_millis(number()?), number()?);
        Some(Self { holder, at, until, failures: u32::try_from(failures).ok()? })
    }

    /// How long the lease rests, if it does.
    fn rests(self, now: Unix) -> Option<Duration> {
        left(self.at, self.until, now).filter(|_| self.holder.is_none())
    }

    /// What the lease is like for whoever does not hold it, while it is locked.
    fn of_another(self, now: Unix) -> Lease {
        // Its holder may not have said anything yet.
        let renewed = self.holder.is_none() || left(self.at, self.until, now).is_some();
        if renewed { Lease::Taken } else { Lease::Lapsed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r71_a_note_of_the_next_millisecond_is_no_lapsed_lease_and_one_from_before_a_clock_was_set_back_is() {
        let note = Note {
            holder: Some(Owner(1)),
            at: Unix::from_millis(100_001),
            until: Unix::from_millis(110_001),
            failures: 0,
        };
        for (now, lease) in [
            (100_000, Lease::Taken),
            (110_000, Lease::Taken),
            (110_001, Lease::Lapsed),
            (99_001, Lease::Taken),
            (99_000, Lease::Lapsed),
        ] {
            assert_eq!(note.of_another(Unix::from_millis(now)), lease, "at {now}");
        }
    }
}
