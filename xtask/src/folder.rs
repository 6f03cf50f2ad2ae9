//! A folder for each run, even if several run at the same time.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Maximum number of concurrent runs of one kind from one checkout; more would not fit into a computer's memory.
const AT_ONCE: usize = 64;

/// A folder that this process owns until the value is dropped.
pub struct Folder {
    path: PathBuf,
    /// The kernel releases the lock however the process ends.
    _lock: File,
}

impl Folder {
    /// Claims `home/name` or, if another process has it, `home/name-2` and so on.
    ///
    /// # Errors
    /// A folder can't be made or locked.
    pub fn claim(home: &Path, name: &str) -> Result<Self> {
        for number in 1..=AT_ONCE {
            let path = match number {
                1 => home.join(name),
                _ => home.join(format!("{name}-{number}")),
            };
            if let Some(lock) = lock(&path)? {
                if number > 1 {
                    eprintln!(
                        "{} is in use by another run; this one has {}",
                        home.join(name).display(),
                        path.display()
                    );
                }
                return Ok(Self { path, _lock: lock });
            }
        }
        bail!(
            "{AT_ONCE} other runs are in {}; wait until one of them ends",
            home.display()
        )
    }

    /// Returns the folder's path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Makes the folder and locks it. Returns `None` if another process has it.
fn lock(path: &Path) -> Result<Option<File>> {
    let context = || format!("can't lock {}", path.display());
    fs::create_dir_all(path).with_context(context)?;
    let file = File::create(path.join("lock")).with_context(context)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).with_context(context),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_runs_at_once_have_a_folder_each() {
        let home = tempfile::tempdir().unwrap();
        let first = Folder::claim(home.path(), "run").unwrap();
        let second = Folder::claim(home.path(), "run").unwrap();
        assert_eq!(first.path(), home.path().join("run"));
        assert_eq!(second.path(), home.path().join("run-2"));
        drop(first);
        let third = Folder::claim(home.path(), "run").unwrap();
        assert_eq!(third.path(), home.path().join("run"));
    }
}
