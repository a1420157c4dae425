//! A folder and the files in it, so that nobody else reads them, writes them, or puts something in their place.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use storm_auth_core::store::MAX_RECORD;
use zeroize::Zeroizing;

/// The folder, open: whatever happens to its path, the files of one operation lie in one folder.
#[cfg(unix)]
#[derive(Debug)]
pub(crate) struct Folder(rustix::fd::OwnedFd);

#[cfg(unix)]
impl Folder {
    /// Opens it, and makes it where it is missing. It has to belong to this user, and nobody else may write to it.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        use rustix::fs::{Mode, OFlags};
        use std::os::unix::fs::DirBuilderExt;

        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = match rustix::fs::open(path, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
                return Err(refused("it, or what it lies in, is a link or a file; name the folder itself"));
            }
            Err(rustix::io::Errno::NOENT) => {
                std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
                rustix::fs::open(path, flags, Mode::empty())?
            }
            opened => opened?,
        };
        let stat = rustix::fs::fstat(&folder)?;
        if stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(refused("the folder belongs to another user; name one of this user's own"));
        }
        if stat.st_mode & 0o022 != 0 {
            return Err(refused("others may write to the folder; take that right from them (chmod 700)"));
        }
        Ok(Self(folder))
    }

    /// Opens a file for reading; `None` where it is missing.
    pub(crate) fn existing(&self, name: &str) -> io::Result<Option<File>> {
        match self.open_file(name, rustix::fs::OFlags::RDONLY) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some),
        }
    }

    /// Opens a file for reading and writing, and makes it where it is missing.
    pub(crate) fn file(&self, name: &str) -> io::Result<File> {
        self.open_file(name, rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CREATE).map_err(unwritable)
    }

    /// A file that was not there before.
    fn new_file(&self, name: &str) -> io::Result<File> {
        use rustix::fs::OFlags;

        self.open_file(name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL).map_err(unwritable)
    }

    fn open_file(&self, name: &str, flags: rustix::fs::OFlags) -> io::Result<File> {
        use rustix::fs::{FileType, Mode, OFlags};
        use rustix::io::Errno;

        // A pipe must not let anybody wait, and no link is followed.
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.0, name, flags, Mode::RUSR | Mode::WUSR) {
            // In the system's words, too many levels of links, or no such device.
            Err(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => {
                return Err(refused(format!("{name} in the folder is a link, a folder or a pipe; remove it")));
            }
            opened => opened?,
        };
        let stat = rustix::fs::fstat(&file)?;
        // None at all, if another one has taken its place since.
        let plain = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink <= 1;
        if !plain {
            return Err(refused(format!("{name} in the folder is no plain file, or has a second name; remove it")));
        }
        if stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_mode & 0o077 != 0 {
            return Err(refused(format!("{name} in the folder is not this user's alone; remove it")));
        }
        Ok(File::from(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.0, from, &self.0, to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name, rustix::fs::AtFlags::empty())?)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let entries = rustix::fs::Dir::read_from(&self.0)?;
        Ok(entries.filter_map(|entry| Some(entry.ok()?.file_name().to_str().ok()?.to_owned())).collect())
    }
}

/// The folder, by its path: who may read and write there is what the system grants below a user's own folder.
#[cfg(not(unix))]
#[derive(Debug)]
pub(crate) struct Folder(std::path::PathBuf);

#[cfg(not(unix))]
impl Folder {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        Ok(Self(path.to_owned()))
    }

    pub(crate) fn existing(&self, name: &str) -> io::Result<Option<File>> {
        match File::open(self.plain(name)?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some),
        }
    }

    pub(crate) fn file(&self, name: &str) -> io::Result<File> {
        File::options().read(true).write(true).create(true).truncate(false).open(self.plain(name)?)
    }

    fn plain(&self, name: &str) -> io::Result<std::path::PathBuf> {
        let path = self.0.join(name);
        match std::fs::symlink_metadata(&path) {
            Ok(found) if !found.is_file() => Err(refused(format!("{name} in the folder is no plain file; remove it"))),
            _ => Ok(path),
        }
    }

    fn new_file(&self, name: &str) -> io::Result<File> {
        File::options().write(true).create_new(true).open(self.0.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.0.join(from), self.0.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.0.join(name))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let entries = std::fs::read_dir(&self.0)?;
        Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
    }
}

/// What a file that is not finished yet ends with.
const UNFINISHED: &str = ".new";

impl Folder {
    /// What a file holds, up to the length of the longest record and one byte more; nothing where it is missing.
    pub(crate) fn read(&self, name: &str) -> io::Result<Zeroizing<Vec<u8>>> {
        match self.existing(name)? {
            Some(file) => read(&file),
            None => Ok(Zeroizing::default()),
        }
    }

    /// Puts a whole file in the place of one: whoever reads finds the old one or the new one. To be called by one process at a
    /// time; what others were killed over is cleared away.
    pub(crate) fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        for left in self.names()?.into_iter().filter(|left| left.ends_with(UNFINISHED)) {
            // What cannot be removed is in nobody's way, unless it has this file's name.
            let _ = self.remove(&left);
        }
        let unfinished = format!("{name}{UNFINISHED}");
        let written = self.new_file(&unfinished)?.write_all(bytes);
        written.and_then(|()| self.rename(&unfinished, name)).inspect_err(|_| {
            // The disk is full, perhaps; the old file is still there.
            let _ = self.remove(&unfinished);
        })
    }
}

pub(crate) fn read(mut file: &File) -> io::Result<Zeroizing<Vec<u8>>> {
    // With room for all of it, so that no copy is left where it was outgrown.
    let length = file.metadata()?.len().min(MAX_RECORD as u64 + 1);
    let mut bytes = Zeroizing::new(Vec::with_capacity(length as usize + 64));
    file.seek(SeekFrom::Start(0))?;
    file.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes a few bytes over what an open file holds.
pub(crate) fn overwrite(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    file.seek(SeekFrom::Start(0))?;
    file.write_all(bytes)?;
    file.set_len(bytes.len() as u64)
}

/// Says what to change where the system lets nobody write, or not this user.
#[cfg(unix)]
fn unwritable(error: io::Error) -> io::Error {
    let change = match error.kind() {
        // And not what is refused below.
        io::ErrorKind::PermissionDenied if error.raw_os_error().is_some() => {
            "let this user write to the folder and to what is in it (chmod 700), or name another one"
        }
        io::ErrorKind::ReadOnlyFilesystem => "name a folder that can be written to",
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{error}; {change}"))
}

fn refused(problem: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, problem.into())
}
