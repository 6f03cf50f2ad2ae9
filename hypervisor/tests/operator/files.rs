//! The test machine's memory for files that are put.

use host::platform::Platform;
use host::td::files::store::{FileMemory, FileSpace, FileStore};
use host::td::registry::Tds;
use mm::frames::{FRAME, blocks_of};
use mm::private::Ledger;
use seam::address::Hpa;

use super::kit::Server;
use super::rig::Rig;

/// Frames of the server, whose content is kept beside them.
pub struct RigFiles(pub Rig);

struct Space {
    rig: Rig,
    pa: u64,
    content: Vec<u8>,
}

impl FileMemory for RigFiles {
    fn take(&self, bytes: u64) -> Option<Box<dyn FileSpace>> {
        let whole = bytes.next_multiple_of(FRAME);
        let order = (whole / FRAME).next_power_of_two().ilog2();
        let pa = self.0.pool().ledger().with(|frames| {
            let block = frames.alloc_for_host(order).ok()?;
            frames.free(block).unwrap();
            frames.alloc_range((block.pa, block.pa + whole)).unwrap();
            Some(block.pa)
        })?;
        Some(Box::new(Space {
            rig: self.0.clone(),
            pa,
            content: vec![0; bytes as usize],
        }))
    }

    fn total_bytes(&self) -> u64 {
        self.0.pool().ledger().lock().total_bytes()
    }
}

impl FileSpace for Space {
    fn hpa(&self) -> Hpa {
        Hpa(self.pa)
    }

    fn bytes(&self) -> &[u8] {
        &self.content
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        let at = at as usize;
        self.content[at..at + bytes.len()].copy_from_slice(bytes);
        self.rig.write(Hpa(self.pa + at as u64), bytes);
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let end = self.pa + (self.content.len() as u64).next_multiple_of(FRAME);
        let ledger = self.rig.pool().ledger();
        for block in blocks_of((self.pa, end)) {
            ledger.with(|frames| frames.free(block)).unwrap();
        }
    }
}

/// Creates a host that knows no TD, and whose only file is the server's image, `image`.
pub fn host<'h>(
    server: &'h Server,
    files: &'h RigFiles,
    runner: &'h (dyn host::td::host::Runner + Sync),
) -> Tds<'h, Rig> {
    let none: Vec<(config::Td, host::td::files::Files<'h>)> = Vec::new();
    // Boot files stay for good.
    let image: &'static [u8] = server.image.to_vec().leak();
    let boot = [("image".to_owned(), Hpa(1 << 20), image)];
    let store = FileStore::new(files, boot);
    server
        .tds_of(&server.rig, none, runner)
        .with_files(store, &[])
}
