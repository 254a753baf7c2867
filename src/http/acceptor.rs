//! Threads that accept, and answer callers that connect anew for each question.
//!
//! On the event loop a new connection costs a task, a clock, an entry among what the kernel watches, and a turn of the
//! scheduler. An acceptor reads at once what came with a connection, answers a plain request from memory, and looks
//! whether the caller leaves after that, as most do. Whatever turns out to be anything else is the event loop's, with
//! what was read of it: a caller that says nothing for [`STAYS`], a request that is not plain, a second request, an
//! answer that there is no room for, a caller of which more must be known. An acceptor waits for no caller; for a place
//! it does, and with it whoever else comes to the same door. Operators' doors have acceptors too, which answer nobody.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::line::{Begun, PIECE};
use super::listen::Arrival;
use super::swift::{self, Date};
use super::{Answering, Entrance, Host, Place, Side, lane, wire};

/// Most threads at one door. Each answers some ten thousand callers in a second.
const THREADS: usize = 4;

/// How long an acceptor keeps a connection.
pub(super) const STAYS: Duration = Duration::from_millis(20);

/// Most connections that an acceptor keeps.
const MOST_GUESTS: usize = 64;

/// Most connections that the kernel is not asked to watch: asking, and taking back what was asked, costs more than one
/// look at all of them, and mostly that finds that the callers have left.
const MOST_UNWATCHED: usize = 8;

/// Events taken from the kernel at once.
const EVENTS: usize = 16;

/// What the kernel calls its events; guests have their descriptors.
const BELL: u64 = u64::MAX;
const DOOR: u64 = BELL - 1;

/// Wakes every acceptor, for good.
#[derive(Debug)]
pub(super) struct Bell(Arc<OwnedFd>);

impl Bell {
    pub(super) fn ring(&self) {
        // Fails only where it has rung more often than anybody can count.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.ring();
    }
}

/// Starts acceptors at these entrances. They end when it is time to stop or to kill and the bell rings.
///
/// # Errors
/// The system has no descriptors left.
pub(super) fn spawn<H: Host>(
    acceptors: &mut JoinSet<()>,
    entrances: Vec<Entrance>,
    answering: impl Fn(Side) -> Answering<H>,
) -> io::Result<Bell> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let bell = Bell(Arc::new(eventfd(0, flags)?));
    let cores = available_parallelism().map_or(1, |cores| cores.get().min(THREADS));
    for entrance in entrances {
        let threads = match entrance.side {
            Side::Call => cores,
            Side::Admin => 1,
        };
        for _ in 0..threads {
            let acceptor = Acceptor::new(answering(entrance.side), entrance.clone(), &bell)?;
            acceptors.spawn_blocking(|| acceptor.run());
        }
    }
    Ok(bell)
}

/// A connection that an acceptor keeps for a while.
struct Guest<H> {
    arrival: Arrival,
    handler: H,
    place: Place,
    accepted: Instant,
    answered: bool,
    /// Bytes of the request that was answered which are still with the kernel.
    left: usize,
    watched: bool,
}

struct Acceptor<H: Host> {
    answering: Answering<H>,
    entrance: Entrance,
    poll: OwnedFd,
    /// Rings as long as anybody hears it.
    _bell: Arc<OwnedFd>,
    /// In the order in which they came.
    guests: Vec<Guest<H::Handler>>,
    piece: Vec<u8>,
    head: Vec<u8>,
    date: Date,
}

impl<H: Host> Acceptor<H> {
    fn new(answering: Answering<H>, entrance: Entrance, bell: &Bell) -> io::Result<Self> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let watch = |key, fd: BorrowedFd<'_>, flags| {
            epoll::add(&poll, fd, epoll::EventData::new_u64(key), flags)
        };
        watch(BELL, bell.0.as_fd(), epoll::EventFlags::IN)?;
        let one_of_us = epoll::EventFlags::IN | epoll::EventFlags::EXCLUSIVE;
        watch(DOOR, entrance.door.as_fd(), one_of_us)?;
        Ok(Self {
            answering,
            entrance,
            poll,
            _bell: bell.0.clone(),
            guests: Vec::with_capacity(MOST_GUESTS),
            piece: vec![0; PIECE],
            head: Vec::new(),
            date: Date::new(),
        })
    }

    fn run(mut self) {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            if let Err(err) = self.wait(&mut events) {
                return tracing::error!(error = %err, "an acceptor cannot wait for callers");
            }
            if self.answering.limits.ends.stop.is_cancelled() || self.answering.kill.is_cancelled()
            {
                break;
            }
            for event in &events {
                match event.data.u64() {
                    BELL => {}
                    DOOR => self.accept(),
                    guest => self.look_at(guest, event.flags),
                }
            }
            self.see_off();
        }
        self.hand_over(self.guests.len());
        Handle::current().block_on(self.answering.empty(&self.entrance));
    }

    /// What has happened, or happens next.
    fn wait(&mut self, events: &mut Vec<epoll::Event>) -> io::Result<()> {
        events.clear();
        if self.guests.iter().any(|guest| !guest.watched) {
            self.poll(events, Some(Duration::ZERO))?;
            if !events.is_empty() {
                return Ok(());
            }
            self.look_at_unwatched(0);
        }
        let left = |guest: &Guest<_>| STAYS.saturating_sub(guest.accepted.elapsed());
        let oldest = self.guests.first().map(left);
        self.poll(events, oldest)
    }

    fn poll(&self, events: &mut Vec<epoll::Event>, limit: Option<Duration>) -> io::Result<()> {
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        match epoll::wait(&self.poll, spare_capacity(events), limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(err) => Err(err.into()),
        }
    }

    fn accept(&mut self) {
        match self.entrance.door.waiting() {
            Ok(arrival) => match self.meet(arrival) {
                Ok(guest) => {
                    self.guests.push(guest);
                    self.look(self.guests.len().saturating_sub(1));
                }
                // There may be time to pass until there is a place: whoever has one may have to give it.
                Err(arrival) => {
                    self.hand_over(self.guests.len());
                    Handle::current().block_on(self.answering.enter(&self.entrance, arrival));
                }
            },
            // Another acceptor was faster.
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
            Err(err) => {
                let pause = self.answering.failed(&err, &self.entrance);
                self.hand_over(self.guests.len());
                std::thread::sleep(pause);
            }
        }
    }

    /// Lets somebody in, if that can be decided at once.
    fn meet(&self, arrival: Arrival) -> Result<Guest<H::Handler>, Arrival> {
        let entrance = &self.entrance;
        if entrance.side == Side::Admin {
            return Err(arrival);
        }
        let host = &self.answering.host;
        let who = arrival.user();
        if host.must_know_better() || !host.pause(Side::Call, who).is_zero() {
            return Err(arrival);
        }
        let Some(place) = entrance.room.try_enter(who) else {
            return Err(arrival);
        };
        let handler = host.connect(&entrance.door, Side::Call, &arrival);
        Ok(Guest {
            arrival,
            handler,
            place,
            accepted: Instant::now(),
            answered: false,
            left: 0,
            watched: false,
        })
    }

    /// Looks at the guest of an event.
    fn look_at(&mut self, key: u64, flags: epoll::EventFlags) {
        let Some(index) = self.index(key) else {
            return;
        };
        let answered = self.guests.get(index).is_some_and(|guest| guest.answered);
        if answered && flags.contains(epoll::EventFlags::HUP) {
            self.guests.remove(index);
        } else {
            self.look(index);
        }
    }

    /// Looks which guests that the kernel does not watch have left, and lets it watch others until only so many are
    /// left.
    fn look_at_unwatched(&mut self, most: usize) {
        let unwatched = |guest: &&Guest<H::Handler>| !guest.watched;
        if self.guests.iter().filter(unwatched).count() <= most {
            return;
        }
        self.drop_gone();
        let mut keys: Vec<u64> = self
            .guests
            .iter()
            .filter(unwatched)
            .map(Guest::key)
            .collect();
        keys.truncate(keys.len().saturating_sub(most));
        for key in keys {
            if let Some(index) = self.index(key) {
                self.look(index);
            }
            if let Some(index) = self.index(key) {
                self.watch(index);
            }
        }
    }

    fn index(&self, key: u64) -> Option<usize> {
        self.guests.iter().position(|guest| guest.key() == key)
    }

    /// Closes the Unix connections of guests that were answered and have closed theirs, found with one call for all.
    fn drop_gone(&mut self) {
        let may_be = |guest: &Guest<H::Handler>| {
            guest.answered && !guest.watched && matches!(guest.arrival, Arrival::Unix(..))
        };
        let asked = self.guests.iter().filter(|guest| may_be(guest));
        let mut asked: Vec<PollFd<'_>> = asked
            .map(|guest| PollFd::new(&guest.arrival, PollFlags::empty()))
            .collect();
        if asked.is_empty() || poll(&mut asked, Some(&Timespec::default())).is_err() {
            return;
        }
        let gone = asked.iter().map(|fd| fd.revents().contains(PollFlags::HUP));
        let gone: Vec<bool> = gone.collect();
        let mut gone = gone.into_iter();
        self.guests
            .retain(|guest| !(may_be(guest) && gone.next() == Some(true)));
    }

    /// Reads what a guest has sent, and does what follows from it.
    ///
    /// Taking bytes from a Unix socket wakes the peer (see `lane.rs`), which waits for its answer. So a request is looked
    /// at, and taken only when it is known that the guest stays after its answer.
    fn look(&mut self, index: usize) {
        let Some(guest) = self.guests.get_mut(index) else {
            return;
        };
        let looks = !guest.answered && matches!(guest.arrival, Arrival::Unix(..));
        let mut flags = RecvFlags::DONTWAIT;
        flags.set(RecvFlags::PEEK, looks);
        let read = match recv(&guest.arrival, &mut self.piece[..], flags) {
            Err(Errno::WOULDBLOCK | Errno::INTR) => return,
            Ok((0, _)) | Err(_) => return drop(self.guests.remove(index)),
            Ok((read, _)) => read,
        };
        let (mut seen, mut unsent) = (0, Vec::new());
        if guest.answered {
            seen = guest.take(read);
        } else if let Some((reply, length)) =
            wire::at_once(&guest.handler, self.piece.get(..read).unwrap_or_default())
        {
            self.head.clear();
            swift::write_head(&reply, &mut self.date, &mut self.head);
            let pieces = reply.pieces(&self.head);
            let sent = match lane::write(&guest.arrival, &pieces.map(IoSlice::new)) {
                Ok(sent) => sent,
                Err(Errno::WOULDBLOCK | Errno::INTR) => 0,
                Err(_) => return drop(self.guests.remove(index)),
            };
            wire::keep_rest(pieces, sent, &mut unsent);
            guest.answered = true;
            guest.left = if looks { length } else { 0 };
            seen = length;
        }
        if seen < read || !unsent.is_empty() {
            let guest = self.guests.remove(index);
            let rest = self.piece.get(seen..read).unwrap_or_default();
            let came = if looks { Vec::new() } else { rest.to_vec() };
            self.go_on(guest, came, unsent);
        }
    }

    /// Lets the kernel tell when a guest sends something or leaves.
    fn watch(&mut self, index: usize) {
        if let Some(guest) = self.guests.get_mut(index) {
            let key = epoll::EventData::new_u64(guest.key());
            // What is there already was looked at, and may be left there.
            let news = epoll::EventFlags::IN | epoll::EventFlags::ET;
            let added = epoll::add(&self.poll, &guest.arrival, key, news);
            guest.watched = added.is_ok();
            if added.is_err() {
                let guest = self.guests.remove(index);
                self.go_on(guest, Vec::new(), Vec::new());
            }
        }
    }

    /// Those who stay too long, or are too many, are the event loop's.
    fn see_off(&mut self) {
        self.look_at_unwatched(MOST_UNWATCHED);
        let long = |guest: &&Guest<_>| guest.accepted.elapsed() >= STAYS;
        let long = self.guests.iter().take_while(long).count();
        self.hand_over(long.max(self.guests.len().saturating_sub(MOST_GUESTS)));
    }

    /// The first so many guests go on on the event loop.
    fn hand_over(&mut self, count: usize) {
        for guest in self.guests.drain(..count).collect::<Vec<_>>() {
            self.go_on(guest, Vec::new(), Vec::new());
        }
    }

    fn go_on(&mut self, mut guest: Guest<H::Handler>, mut came: Vec<u8>, unsent: Vec<u8>) {
        if guest.watched {
            // It was added.
            let _ = epoll::delete(&self.poll, &guest.arrival);
        }
        while guest.left > 0 {
            match recv(&guest.arrival, &mut self.piece[..], RecvFlags::DONTWAIT) {
                Ok((read @ 1.., _)) => {
                    let seen = guest.take(read);
                    came.extend_from_slice(self.piece.get(seen..read).unwrap_or_default());
                }
                Err(Errno::INTR) => {}
                // What was looked at is there.
                Ok(_) | Err(_) => return,
            }
        }
        let begun = Begun {
            came,
            unsent,
            answered: guest.answered,
        };
        let met = std::future::ready(Some((guest.handler, guest.arrival, begun)));
        self.answering
            .go_on(&self.entrance, guest.accepted, guest.place, met);
    }
}

impl<H> Guest<H> {
    fn key(&self) -> u64 {
        u64::try_from(self.arrival.as_fd().as_raw_fd()).unwrap_or(BELL)
    }

    /// So many bytes were taken: how many of them belong to the request that was answered.
    fn take(&mut self, read: usize) -> usize {
        let answered = self.left.min(read);
        self.left = self.left.saturating_sub(answered);
        answered
    }
}
