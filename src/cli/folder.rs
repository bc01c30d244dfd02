//! The folder of an embedded server: made when it is not there, and held by one process at a time.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::exit::Failure;

/// Keeps a folder that lies in a repository out of it.
const GITIGNORE: &str = "# Data of `leasehold dev`.\n*\n";

/// A folder that is ours until this is dropped. A temporary one is removed then.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    temporary: bool,
    /// The lock goes with the process, however it ends.
    _lock: File,
}

impl Folder {
    /// Takes the folder at `path`, and makes it if need be.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let bad = |why: std::io::Error| {
            Failure::trouble(format!(
                "data folder {}: {why}; choose one that you can write to, by --data",
                path.display()
            ))
        };
        make(path).map_err(bad)?;
        let mut lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join("lock"))
            .map_err(bad)?;
        hold(&mut lock, path, bad)?;
        let ignore = path.join(".gitignore");
        if !ignore.exists() {
            std::fs::write(ignore, GITIGNORE).map_err(bad)?;
        }
        Ok(Self {
            path: path.to_owned(),
            temporary: false,
            _lock: lock,
        })
    }

    /// Makes a folder that goes with this process.
    pub(super) fn temporary() -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("leasehold-{}", Uuid::new_v4()));
        let mut folder = Self::open(&path)?;
        folder.temporary = true;
        Ok(folder)
    }

    /// Removes the folder if it is temporary: for a process that ends without dropping this.
    pub(super) fn removal(&self) -> impl FnOnce() + Send + 'static {
        let path = self.temporary.then(|| self.path.clone());
        move || {
            if let Some(path) = path {
                // The store may still be writing: then something stays, as after a kill.
                let _ = std::fs::remove_dir_all(path);
            }
        }
    }

    /// The file of the store.
    pub(super) fn database(&self) -> PathBuf {
        self.path.join("leasehold.db")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.temporary
            && let Err(why) = std::fs::remove_dir_all(&self.path)
        {
            tracing::warn!(folder = %self.path.display(), %why, "the temporary folder stays");
        }
    }
}

fn make(path: &Path) -> std::io::Result<()> {
    let mut folder = DirBuilder::new();
    // Payloads are nobody else's business.
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut folder, 0o700);
    folder.recursive(true).create(path)
}

fn hold(
    file: &mut File,
    folder: &Path,
    bad: impl Fn(std::io::Error) -> Failure,
) -> Result<(), Failure> {
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.take(20).read_to_string(&mut holder);
            let holder = holder
                .trim()
                .parse::<u32>()
                .map(|id| format!(" (process {id})"))
                .unwrap_or_default();
            let folder = folder.display();
            return Err(Failure::usage(format!(
                "the data folder {folder} is in use by another server{holder}; stop it, or choose another by --data"
            )));
        }
        Err(TryLockError::Error(why)) => return Err(bad(why)),
    }
    // For the message above; the lock itself is not in the file.
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(bad)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_folder_has_one_server_at_a_time() {
        let outer = tempfile::tempdir().unwrap();
        let path = outer.path().join("a/b");
        let first = Folder::open(&path).unwrap();
        let refused = Folder::open(&path).unwrap_err();
        let process = format!("(process {})", std::process::id());
        assert!(
            refused.why.contains("in use") && refused.why.contains(&process),
            "{}",
            refused.why
        );
        drop(first);
        assert!(Folder::open(&path).is_ok());
    }

    #[test]
    fn a_temporary_folder_goes_with_its_server() {
        let folder = Folder::temporary().unwrap();
        let path = folder.path.clone();
        assert!(path.is_dir());
        drop(folder);
        assert!(!path.exists());
    }
}
