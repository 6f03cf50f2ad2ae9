//! The host's side of all vsock devices: who has which context id, and the services of the host.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::fmt;

use arrayvec::ArrayVec;
use devices::{Memory, Now, Other};
use sync::{FairMutex, Mutex};

use super::header::{Address, HOST};
use super::link::End;

/// Largest number of guests with a device.
pub const MEMBERS: usize = 256;
/// Largest number of connections of a guest.
pub const CONNECTIONS: usize = 16;
/// Largest number of those that others ask for, and of those that the guest asks one other guest for. The latter count
/// until the other guest has let go of them, too.
pub const INCOMING: usize = 8;
const WITH_ONE: usize = 8;
/// Number of those that no other guest can keep the guest from having with the host's services.
const WITH_HOST: usize = 4;

/// A service of the host, at a port of context id 2. Its methods are called while a guest's device works: they allocate
/// nothing, wait for nothing, and do a bounded amount of work.
pub trait Service: fmt::Debug + Send + Sync {
    /// Takes a guest's connection. A service that does not want it drops the end. One that accepts it calls
    /// [`End::open`], and keeps it.
    fn connect(&self, caller: Caller, end: End);

    /// Works on its connections, because a guest did something at one of them. `memory` is that guest's, with which
    /// others can be told of news ([`Memory::ring`]).
    fn attend(&self, memory: &dyn Memory, now: Now);
}

/// The guest that connects.
#[derive(Clone)]
pub struct Caller {
    /// Its side of the connection.
    pub address: Address,
    /// The guest.
    pub guest: Other,
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

/// The rights of a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Its context id, from 3.
    pub cid: u64,
    /// The context ids of the guests that it connects with, if they name it as well.
    pub peers: Vec<u64>,
    /// The ports of the host's services that it may use.
    pub ports: Vec<u32>,
}

/// A connection that a guest is asked to accept.
#[derive(Debug)]
pub(super) struct Asked {
    pub caller: Caller,
    pub port: u32,
    pub end: End,
}

/// The way to the other side of a new connection.
pub(super) enum Way {
    /// A service.
    Service(Arc<dyn Service>),
    /// A guest.
    Guest(Other, Arc<Inbox>),
}

/// The connections that wait for a guest's device.
pub(super) struct Inbox {
    /// `None` while its driver is not ready.
    waiting: Mutex<Option<ArrayVec<Asked, INCOMING>>>,
    /// Number of connections that each other guest may ask for.
    share: usize,
}

/// The guests and services that connections go between.
#[derive(Default)]
pub struct Hub {
    services: Box<[(u32, Arc<dyn Service>)]>,
    /// Taken for a look at each. A guest that asks again and again does not keep another one out.
    members: FairMutex<Vec<Member>>,
}

struct Member {
    settings: Settings,
    guest: Other,
    inbox: Arc<Inbox>,
}

/// A guest's place at the hub. It is given back when this is dropped.
pub struct Attached {
    hub: Arc<Hub>,
    guest: Other,
    settings: Settings,
    inbox: Arc<Inbox>,
}

/// The hub has no place for a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPlace {
    /// Another guest has this context id.
    Taken(u64),
    /// There are [`MEMBERS`] guests.
    Full,
}

impl fmt::Display for NoPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Taken(cid) => write!(f, "another TD that runs has the vsock cid {cid}"),
            Self::Full => write!(f, "{MEMBERS} TDs have a vsock device already"),
        }
    }
}

impl core::error::Error for NoPlace {}

impl Hub {
    /// Creates a hub with these services, by port.
    #[must_use]
    pub fn new(services: impl IntoIterator<Item = (u32, Arc<dyn Service>)>) -> Self {
        Self {
            services: services.into_iter().collect(),
            members: FairMutex::default(),
        }
    }

    /// Attaches a guest.
    ///
    /// # Errors
    /// [`NoPlace`].
    pub fn attach(self: &Arc<Self>, settings: Settings, guest: Other) -> Result<Attached, NoPlace> {
        let inbox = Arc::new(Inbox {
            waiting: Mutex::default(),
            share: share(INCOMING, &settings),
        });
        let member = Member {
            settings: settings.clone(),
            guest: guest.clone(),
            inbox: inbox.clone(),
        };
        let mut members = self.members.lock();
        let mut others = members.iter();
        if others.any(|other| other.settings.cid == settings.cid) {
            return Err(NoPlace::Taken(settings.cid));
        }
        if members.len() == MEMBERS {
            return Err(NoPlace::Full);
        }
        members.push(member);
        drop(members);
        Ok(Attached {
            hub: self.clone(),
            guest,
            settings,
            inbox,
        })
    }
}

impl Attached {
    /// Returns the guest's context id.
    pub(super) const fn cid(&self) -> u64 {
        self.settings.cid
    }

    /// Returns the number of connections that each other guest may ask this one for, so that none takes those of the others.
    pub(super) fn share_of_incoming(&self) -> usize {
        self.inbox.share
    }

    /// Returns the number of links that this guest may use with one other guest, so that some are left for the rest and
    /// for the host's services.
    pub(super) fn share_of_links(&self) -> usize {
        share(CONNECTIONS - WITH_HOST, &self.settings).min(WITH_ONE)
    }

    /// Returns the caller of a connection from this port.
    pub(super) fn caller(&self, port: u32) -> Caller {
        Caller {
            address: Address {
                cid: self.settings.cid,
                port,
            },
            guest: self.guest.clone(),
        }
    }

    /// Returns the way to an address, if there is one for this guest.
    pub(super) fn way(&self, to: Address) -> Option<Way> {
        if to.cid == HOST {
            let mut services = self.hub.services.iter();
            let (_, service) = services.find(|(port, _)| *port == to.port)?;
            let may_use = self.settings.ports.contains(&to.port);
            return may_use.then(|| Way::Service(service.clone()));
        }
        let own = self.settings.cid;
        if to.cid == own || !self.settings.peers.contains(&to.cid) {
            return None;
        }
        let members = self.hub.members.lock();
        let member = members
            .iter()
            .find(|member| member.settings.cid == to.cid)?;
        let is_mutual = member.settings.peers.contains(&own);
        is_mutual.then(|| Way::Guest(member.guest.clone(), member.inbox.clone()))
    }

    /// Lets others ask this guest for connections, or no more: those that wait are refused.
    pub(super) fn listen(&self, is_ready: bool) {
        let waiting = is_ready.then(ArrayVec::new);
        // Not dropped with the lock held.
        let before = core::mem::replace(&mut *self.inbox.waiting.lock(), waiting);
        drop(before);
    }

    /// Takes the next connection that the guest is asked to accept.
    pub(super) fn next_asked(&self) -> Option<Asked> {
        self.inbox.waiting.lock().as_mut()?.pop_at(0)
    }
}

/// Returns the part of `whole` for each guest that is named in `settings`.
fn share(whole: usize, settings: &Settings) -> usize {
    (whole / settings.peers.len().max(1)).max(1)
}

/// Asks a guest for a connection. It is refused if the guest's driver is not ready, or too many wait.
pub(super) fn ask(inbox: &Inbox, asked: Asked) {
    let cid = asked.caller.address.cid;
    let mut waiting = inbox.waiting.lock();
    let of_same = |waiting: &[Asked]| {
        let same = waiting
            .iter()
            .filter(|other| other.caller.address.cid == cid);
        same.count()
    };
    let refused = match &mut *waiting {
        Some(waiting) if of_same(waiting) == inbox.share => Some(asked),
        Some(waiting) => waiting.try_push(asked).err().map(|full| full.element()),
        None => Some(asked),
    };
    drop(waiting);
    drop(refused);
}

impl Drop for Attached {
    fn drop(&mut self) {
        let own = |member: &Member| Arc::ptr_eq(&member.inbox, &self.inbox);
        let mut members = self.hub.members.lock();
        let at = members.iter().position(own);
        let gone = at.map(|at| members.swap_remove(at));
        drop(members);
        drop(gone);
        self.listen(false);
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports = self.services.iter().map(|(port, _)| port);
        f.debug_list().entries(ports).finish()
    }
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.settings.fmt(f)
    }
}
