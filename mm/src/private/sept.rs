//! S-EPT pages: linked where memory is to be mapped, unlinked where nothing is mapped any more.

use seam::abi::{PAGE_1G, PAGE_2M, PageSize};
use seam::address::{Gpa, Level};
use seam::call::SeamCall;
use seam::error::Rejected;
use seam::page::{Clean, Donated, Page};
use seam::retry::Wait;

use super::Op;
use super::error::Error;
use super::mirror::{Boxed, Directory, Entry, PageTable, Place, Upper, index, start};
use super::pool::Pool;

impl<C: SeamCall, W: Wait, P: Pool> Op<'_, C, W, P> {
    /// Takes a frame and links it under the entry of `level` at `gpa`. The frame is freed when the module refuses.
    fn link(&self, gpa: Gpa, level: Level) -> Result<Page<Donated>, Error> {
        let page = self.take_sept()?;
        match self.cpu.tdh.mem_sept_add(self.live.tdr(), gpa, level, page) {
            Ok(page) => Ok(page),
            Err(Rejected { error, given }) => {
                self.give_sept(given);
                Err(error.into())
            }
        }
    }

    /// Takes a frame for a page of the S-EPT, and counts it.
    pub(super) fn take_sept(&self) -> Result<Page<Clean>, Error> {
        self.map.stock.add_sept()?;
        let taken = self.take_frame(PageSize::Size4K);
        taken.inspect_err(|_| self.map.stock.remove_sept(1))
    }

    /// Frees a frame from [`Self::take_sept`] that did not become a page of the S-EPT.
    pub(super) fn give_sept(&self, page: Page<Clean>) {
        self.cpu.pool.give(core::iter::once(page));
        self.map.stock.remove_sept(1);
    }

    /// Takes a frame of the host.
    pub(super) fn take_frame(&self, size: PageSize) -> Result<Page<Clean>, Error> {
        self.cpu.pool.take(size).ok_or(Error::NoFrames(size))
    }

    /// Ensures that the PDPT (or PML4) at `place` is linked, and pins it.
    fn pin_upper(&self, place: Place) -> Result<(), Error> {
        let uppers = &self.map.mirror.uppers;
        let there = uppers.with(place, |upper| match upper {
            Upper::Linked { pins, .. } => {
                *pins += 1;
                Ok(true)
            }
            Upper::Free => {
                *upper = Upper::Claimed;
                Ok(false)
            }
            Upper::Claimed => Err(Error::Busy),
            Upper::Blocked { .. } => Err(Error::Blocked),
        })??;
        if there {
            return Ok(());
        }
        let above = uppers.above(place);
        let linked = above
            .map_or(Ok(()), |above| self.pin_upper(above))
            .and_then(|()| {
                let linked = self.link(place.gpa, place.level);
                if let (Err(_), Some(above)) = (&linked, above) {
                    uppers.unpin(above);
                }
                linked
            });
        match linked {
            Ok(page) => {
                uppers.put(place, Upper::Linked { page, pins: 1 });
                Ok(())
            }
            Err(error) => {
                uppers.put(place, Upper::Free);
                Err(error)
            }
        }
    }

    /// Ensures that the GiB of `gpa` has a directory.
    pub(super) fn link_directory(&self, gpa: Gpa) -> Result<(), Error> {
        let gib = gpa.0 / PAGE_1G;
        let claimed = self.map.mirror.with(gib, |entry| match entry {
            Entry::Table(_) => Ok(false),
            Entry::Free => entry.claim().map(|_| true),
            Entry::Leaf(_) => Err(Error::Occupied),
            Entry::Claimed => Err(Error::Busy),
            Entry::BlockedTable { .. } => Err(Error::Blocked),
        })??;
        if !claimed {
            return Ok(());
        }
        let linked = self.new_directory(start(gpa, PAGE_1G));
        match linked {
            Ok(directory) => {
                self.map.mirror.put_gib(gib, Entry::Table(directory));
                Ok(())
            }
            Err(error) => {
                self.map.mirror.put_gib(gib, Entry::Free);
                Err(error)
            }
        }
    }

    fn new_directory(&self, gpa: Gpa) -> Result<Boxed<Directory>, Error> {
        let mut directory = Boxed::new(Directory::new())?;
        let place = Place::pdpt(gpa);
        self.pin_upper(place)?;
        match self.link(gpa, Level::Pdpt) {
            Ok(page) => {
                directory.sept = Some(page);
                Ok(directory)
            }
            Err(error) => {
                self.map.mirror.uppers.unpin(place);
                Err(error)
            }
        }
    }

    /// Ensures that the 2 MiB of `gpa` have a page table.
    pub(super) fn link_table(&self, gpa: Gpa) -> Result<(), Error> {
        self.link_directory(gpa)?;
        let claimed = self.map.mirror.in_linked(gpa, |directory| {
            let at = index(gpa, PAGE_2M);
            match directory.entry(at) {
                Entry::Table(_) => Ok(false),
                Entry::Free => directory.claim(at).map(|_| true),
                Entry::Leaf(_) => Err(Error::Occupied),
                Entry::Claimed => Err(Error::Busy),
                Entry::BlockedTable { .. } => Err(Error::Blocked),
            }
        })??;
        if !claimed {
            return Ok(());
        }
        let block = start(gpa, PAGE_2M);
        let linked = Boxed::new(PageTable::new()).and_then(|mut table| {
            table.sept = Some(self.link(block, Level::Pd)?);
            Ok(table)
        });
        match linked {
            Ok(table) => {
                self.map.mirror.put_block(block, Entry::Table(table));
                Ok(())
            }
            Err(error) => {
                self.map.mirror.put_block(block, Entry::Free);
                Err(error)
            }
        }
    }
}
