//! The pages of the S-EPT: linked where something is to be mapped, unlinked where nothing is any more.

use seam::abi::{PAGE_1G, PAGE_2M, PageSize};
use seam::address::{Gpa, Level};
use seam::call::SeamCall;
use seam::error::Rejected;
use seam::page::{Donated, Page};
use seam::retry::Wait;

use super::error::Error;
use super::mirror::{Boxed, Directory, Entry, PageTable, Place, Upper, index, start};
use super::pool::Pool;
use super::root::Live;
use super::{Cpu, PrivateMap};

impl PrivateMap {
    /// Takes a frame and links it under the entry of `level` at `gpa`. It goes home when the module refuses.
    fn link<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        live: &Live,
        gpa: Gpa,
        level: Level,
    ) -> Result<Page<Donated>, Error> {
        let page = self.take_frame(cpu, PageSize::Size4K)?;
        match cpu.tdh.mem_sept_add(live.tdr(), gpa, level, page) {
            Ok(page) => {
                self.stock.add_sept();
                Ok(page)
            }
            Err(Rejected { error, given }) => {
                cpu.pool.give(core::iter::once(given));
                Err(error.into())
            }
        }
    }

    /// A frame of the host.
    pub(super) fn take_frame<C, W, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        size: PageSize,
    ) -> Result<Page<seam::page::Clean>, Error> {
        cpu.pool.take(size).ok_or(Error::NoFrames(size))
    }

    /// Makes sure that the PDPT (or PML4) at `place` is there, and pins it.
    fn pin_upper<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        live: &Live,
        place: Place,
    ) -> Result<(), Error> {
        let uppers = &self.mirror.uppers;
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
            .map_or(Ok(()), |above| self.pin_upper(cpu, live, above))
            .and_then(|()| {
                let linked = self.link(cpu, live, place.gpa, place.level);
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

    /// Makes sure that the GiB of `gpa` has a directory.
    pub(super) fn link_directory<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        live: &Live,
        gpa: Gpa,
    ) -> Result<(), Error> {
        let gib = gpa.0 / PAGE_1G;
        let claimed = self.mirror.with(gib, |entry| match entry {
            Entry::Table(_) => Ok(false),
            Entry::Free => entry.claim().map(|_| true),
            Entry::Leaf(_) => Err(Error::Occupied),
            Entry::Claimed => Err(Error::Busy),
            Entry::BlockedTable { .. } => Err(Error::Blocked),
        })??;
        if !claimed {
            return Ok(());
        }
        let linked = self.new_directory(cpu, live, start(gpa, PAGE_1G));
        match linked {
            Ok(directory) => {
                self.mirror.put_gib(gib, Entry::Table(directory));
                Ok(())
            }
            Err(error) => {
                self.mirror.put_gib(gib, Entry::Free);
                Err(error)
            }
        }
    }

    fn new_directory<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        live: &Live,
        gpa: Gpa,
    ) -> Result<Boxed<Directory>, Error> {
        let mut directory = Boxed::new(Directory::new())?;
        let place = Place::pdpt(gpa);
        self.pin_upper(cpu, live, place)?;
        match self.link(cpu, live, gpa, Level::Pdpt) {
            Ok(page) => {
                directory.sept = Some(page);
                Ok(directory)
            }
            Err(error) => {
                self.mirror.uppers.unpin(place);
                Err(error)
            }
        }
    }

    /// Makes sure that the 2 MiB of `gpa` have a page table.
    pub(super) fn link_table<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        live: &Live,
        gpa: Gpa,
    ) -> Result<(), Error> {
        self.link_directory(cpu, live, gpa)?;
        let claimed = self.mirror.in_linked(gpa, |directory| {
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
            table.sept = Some(self.link(cpu, live, block, Level::Pd)?);
            Ok(table)
        });
        match linked {
            Ok(table) => {
                self.mirror.put_block(block, Entry::Table(table));
                Ok(())
            }
            Err(error) => {
                self.mirror.put_block(block, Entry::Free);
                Err(error)
            }
        }
    }
}
