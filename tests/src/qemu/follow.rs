//! A reader of a file that another process writes.

use std::fs::{self, File};
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

/// A thread that reads a file as it grows, until a writer closes it.
pub struct Follower {
    path: PathBuf,
    thread: JoinHandle<()>,
}

impl Follower {
    /// Creates an empty file at `path`, follows it, and calls `take` with everything that is written to it.
    pub fn start(path: &Path, take: impl FnMut(&[u8]) + Send + 'static) -> io::Result<Self> {
        let file = {
            File::create(path)?;
            File::open(path)?
        };
        let inotify = inotify::init(CreateFlags::CLOEXEC)?;
        inotify::add_watch(&inotify, path, WatchFlags::MODIFY | WatchFlags::CLOSE_WRITE)?;
        Ok(Self {
            path: path.to_owned(),
            thread: thread::spawn(move || follow(file, &inotify, take)),
        })
    }

    /// Waits until everything that was written is taken. No other process may have the file open any more.
    pub fn finish(self) {
        // If the writer never opened the file, this close is the one that the thread waits for.
        drop(fs::OpenOptions::new().append(true).open(&self.path));
        let _ = self.thread.join();
    }
}

fn follow(mut file: File, inotify: &impl rustix::fd::AsFd, mut take: impl FnMut(&[u8])) {
    let mut buffer = [MaybeUninit::uninit(); 512];
    let mut reader = Reader::new(inotify, &mut buffer);
    loop {
        // An error here only loses the rest of the file.
        let Ok(event) = reader.next() else { return };
        let closed = ReadFlags::CLOSE_WRITE | ReadFlags::IGNORED;
        let is_closed = event.events().intersects(closed);
        let mut bytes = Vec::new();
        if file.read_to_end(&mut bytes).is_ok() && !bytes.is_empty() {
            take(&bytes);
        }
        if is_closed {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn written_bytes_are_read_immediately_and_completely() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("log");
        let (sender, taken) = mpsc::channel();
        let follower = Follower::start(&path, move |bytes| {
            sender.send(bytes.to_owned()).unwrap();
        })
        .unwrap();
        let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all(b"one").unwrap();
        let first = taken.recv_timeout(Duration::from_secs(60));
        assert_eq!(first.unwrap(), b"one");
        file.write_all(b"two").unwrap();
        drop(file);
        follower.finish();
        assert_eq!(taken.iter().flatten().collect::<Vec<_>>(), b"two");
    }

    #[test]
    fn a_file_without_a_writer_ends() {
        let home = tempfile::tempdir().unwrap();
        let follower = Follower::start(&home.path().join("log"), |_| panic!("nothing")).unwrap();
        follower.finish();
    }
}
