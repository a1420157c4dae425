//! A store for one machine: a folder.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use storm_auth_core::Unix;
use storm_auth_core::store::{
    Lease, Owner, Record, RecordName, StoreCommand, StoreFailure, StoreOp, StoreReply, TokenStore,
};

use crate::StoreError;
use crate::folder::{self, Folder};

/// The longest rest and the longest closure of a gate: a clock that was set makes none of them endless.
const HOUR: Duration = Duration::from_secs(3_600);

/// How long a process waits for another one that is just writing. A writer needs microseconds; one that was stopped is left.
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// Shares tokens among the processes of one user on one machine, through a folder that only this user may use.
///
/// Cron jobs and command-line tools that live for a second share a token with it, and so do several services. What lies in the
/// folder, by a name that shows nothing:
///
/// - `*.token`: the record, written whole into a new file that then takes the place of the old one;
/// - `*.lease`: locked by the process whose request is under way, so a process that is killed frees it at once. It is never
///   deleted. It says who holds it and since when, and how long it rests;
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
    /// The process that locked it: a forked child has a copy of the descriptor, and not the lease.
    process: u32,
}

/// What a lease's file says.
#[derive(Clone, Copy, Default, Debug)]
struct Note {
    /// Who renewed it last, and until when that is good.
    holder: Option<(Owner, Unix)>,
    rests_until: Unix,
    failures: u32,
}

impl FileStore {
    /// A store in this folder, which is made where it is missing.
    ///
    /// # Errors
    /// The folder cannot be made or used, belongs to another user, or others may write to it; the error says what to change.
    pub fn new(folder: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let folder = folder.into();
        match Folder::open(&folder) {
            Ok(_) => Ok(Self { folder, held: Mutex::default() }),
            Err(error) => Err(StoreError::new(format!("{}: {error}", folder.display()))),
        }
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
        let folder = folder.ok_or_else(|| {
            StoreError::new(
                "no folder of this user's own is known; set HOME or XDG_STATE_HOME, or name a folder".to_owned(),
            )
        })?;
        Self::new(folder.join("storm-auth"))
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn held(&self) -> std::sync::MutexGuard<'_, BTreeMap<RecordName, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_perform(&self, op: &StoreOp, now: Unix) -> io::Result<StoreReply> {
        let folder = Folder::open(&self.folder)?;
        let names = Names::of(op);
        let mut held = self.held();
        // A child's copies are closed and not unlocked: the lock is its parent's.
        held.retain(|_, held| held.process == process::id());
        let _writing = match op.command {
            StoreCommand::Read => None,
            _ => Some(write_lock(&folder)?),
        };
        let lease = match &op.command {
            StoreCommand::Read => None,
            StoreCommand::Lease { owner, ttl } => Some(take(&folder, &names, op.record, &mut held, *owner, *ttl, now)?),
            StoreCommand::Publish { owner, record } => {
                publish(&folder, &names, op.record, &mut held, *owner, record, now)?;
                None
            }
            StoreCommand::Release { owner, rest, failures } => {
                let note = Note { holder: None, rests_until: now + (*rest).min(HOUR), failures: *failures };
                give_back(op.record, &mut held, *owner, note)?;
                None
            }
            StoreCommand::CloseGate { until } => {
                let until = (*until).min(now + HOUR);
                if read_gate(&folder, &names, now)?.is_none_or(|before| before < until) {
                    folder.replace(&names.gate, format!("{}\n", until.as_millis()).as_bytes())?;
                }
                None
            }
        };
        let (lease, note) = match lease {
            Some(lease) => lease,
            None => look(&folder, &names, held.get(&op.record), now)?,
        };
        let record = Record::from_bytes(&folder.read(&names.token)?);
        Ok(StoreReply { record, gate: read_gate(&folder, &names, now)?, lease, failures: note.failures })
    }
}

impl TokenStore for FileStore {
    fn perform(&self, op: &StoreOp) -> Result<StoreReply, StoreFailure> {
        let now = Unix::from(SystemTime::now());
        self.try_perform(op, now).map_err(|error| StoreFailure::new(format!("{}: {error}", self.folder.display())))
    }
}

struct Names {
    token: String,
    lease: String,
    gate: String,
}

impl Names {
    fn of(op: &StoreOp) -> Self {
        Self {
            token: format!("{}.token", op.record),
            lease: format!("{}.lease", op.record),
            gate: format!("{}.gate", op.gate),
        }
    }
}

/// Takes or renews the lease; returns who has it then.
fn take(
    folder: &Folder,
    names: &Names,
    record: RecordName,
    held: &mut BTreeMap<RecordName, Held>,
    owner: Owner,
    ttl: Duration,
    now: Unix,
) -> io::Result<(Lease, Note)> {
    let own = held.get_mut(&record);
    let file = match own {
        // Of another machine in this process: it lapses as any other does, but here it can be taken over.
        Some(other) if other.owner != owner => match Note::read(&other.file)? {
            note @ Note { holder: Some((_, until)), .. } if until > now => return Ok((Lease::Taken, note)),
            _ => {
                other.owner = owner;
                &other.file
            }
        },
        Some(own) => &own.file,
        None => {
            let file = folder.file(&names.lease, true)?.expect("it is made where it is missing");
            if !try_lock(&file)? {
                let note = Note::read(&file)?;
                return Ok((note.of_another(now), note));
            }
            let note = Note::read(&file)?;
            if note.rests(now) > Duration::ZERO {
                return Ok((Lease::Resting(note.rests(now)), note)); // closing it unlocks it
            }
            &held.entry(record).or_insert(Held { owner, file, process: process::id() }).file
        }
    };
    let note = Note { holder: Some((owner, now + ttl)), rests_until: Unix::default(), ..Note::read(file)? };
    folder::overwrite(file, note.to_text().as_bytes())?;
    Ok((Lease::Mine, note))
}

fn publish(
    folder: &Folder,
    names: &Names,
    name: RecordName,
    held: &mut BTreeMap<RecordName, Held>,
    owner: Option<Owner>,
    record: &Record,
    now: Unix,
) -> io::Result<()> {
    let own = |held: &BTreeMap<RecordName, Held>| held.get(&name).is_some_and(|held| Some(held.owner) == owner);
    let (lease, _) = look(folder, names, held.get(&name), now)?;
    let barred = owner.is_some() && !own(held) && lease == Lease::Taken;
    let kept = Record::from_bytes(&folder.read(&names.token)?);
    if !barred && kept.is_none_or(|kept| kept.order < record.order) {
        folder.replace(&names.token, &record.to_bytes())?;
    }
    if let Some(owner) = owner.filter(|_| own(held)) {
        give_back(name, held, owner, Note::default())?;
    } else if !barred
        && !held.contains_key(&name)
        && let Some(file) = folder.file(&names.lease, false)?
        && try_lock(&file)?
    {
        folder::overwrite(&file, Note::default().to_text().as_bytes())?;
    }
    Ok(())
}

/// Ends a lease of this process's own.
fn give_back(name: RecordName, held: &mut BTreeMap<RecordName, Held>, owner: Owner, note: Note) -> io::Result<()> {
    if held.get(&name).is_none_or(|held| held.owner != owner) {
        return Ok(());
    }
    let Some(Held { file, .. }) = held.remove(&name) else { return Ok(()) };
    let noted = folder::overwrite(&file, note.to_text().as_bytes());
    // Not only by closing it: a forked child may have a copy of the descriptor.
    file.unlock()?;
    noted
}

/// Who has the lease, as it is.
fn look(folder: &Folder, names: &Names, own: Option<&Held>, now: Unix) -> io::Result<(Lease, Note)> {
    if let Some(own) = own {
        return Ok((Lease::Taken, Note::read(&own.file)?));
    }
    let Some(file) = folder.file(&names.lease, false)? else { return Ok((Lease::Free, Note::default())) };
    let note = Note::read(&file)?;
    let lease = match note.holder {
        None if note.rests(now) > Duration::ZERO => Lease::Resting(note.rests(now)),
        None => Lease::Free,
        // It may have been killed. A shared lock, so that those who look are not in each other's way.
        Some(_) => match file.try_lock_shared() {
            Ok(()) => Lease::Free,
            Err(TryLockError::WouldBlock) => note.of_another(now),
            Err(TryLockError::Error(error)) => return Err(error),
        },
    };
    Ok((lease, note))
}

fn read_gate(folder: &Folder, names: &Names, now: Unix) -> io::Result<Option<Unix>> {
    let bytes = folder.read(&names.gate)?;
    let until = core::str::from_utf8(&bytes).ok().and_then(|text| text.strip_suffix('\n')?.parse().ok());
    Ok(until.map(Unix::from_millis).filter(|until| *until > now).map(|until| until.min(now + HOUR)))
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

fn write_lock(folder: &Folder) -> io::Result<File> {
    let file = folder.file("write.lock", true)?.expect("it is made where it is missing");
    let since = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
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
        let (owner, until) = self.holder.map_or((0, 0), |(owner, until)| (owner.0, until.as_millis()));
        format!("1 {owner:032x} {until} {} {}\n", self.rests_until.as_millis(), self.failures)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.strip_suffix('\n')?.strip_prefix("1 ")?.split(' ');
        let owner = u128::from_str_radix(fields.next()?, 16).ok()?;
        let mut number = || fields.next()?.parse().ok();
        let (until, rests_until, failures) = (number()?, number()?, number()?);
        Some(Self {
            holder: (until > 0).then(|| (Owner(owner), Unix::from_millis(until))),
            rests_until: Unix::from_millis(rests_until),
            failures: u32::try_from(failures).ok()?,
        })
    }

    fn rests(self, now: Unix) -> Duration {
        self.rests_until.since(now).min(HOUR)
    }

    /// What the lease is like for whoever does not hold it, while it is locked.
    fn of_another(self, now: Unix) -> Lease {
        match self.holder {
            Some((_, until)) if until <= now => Lease::Lapsed,
            _ => Lease::Taken,
        }
    }
}
