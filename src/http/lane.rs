//! Threads of their own for callers that ask without a pause.
//!
//! On the event loop a request costs four system calls and a turn of the scheduler; a thread that waits in `recv` for
//! one caller needs two calls, and the kernel hands over from caller to answer directly. A connection gets such a lane
//! while its requests follow each other closely, and goes back to the event loop as soon as it would have to wait:
//! for its caller, for room in the socket, for anything else. Whatever takes time and whoever is slow is therefore
//! the event loop's; a lane is never held by a caller that sends nothing for [`LINGER`].

use std::future::Future;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use nix::libc;
use nix::setsockopt_impl;
use nix::sys::socket::{self, sockopt::SetStruct};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use super::line::Progress;

/// How long a lane waits for the next request; requests that follow each other more slowly gain nothing from it.
pub(super) const LINGER: Duration = Duration::from_millis(100);

/// Lanes at once. More connections than that are answered by the event loop.
const LANES: usize = 64;

/// Reads whose bytes may stay with the kernel, and how many bytes: far less than what keeps a caller from sending.
const MOST_LEFT_READS: u32 = 16;
const MOST_LEFT_BYTES: usize = 4096;

/// The bytes of a connection on a lane. Nothing but the wait for the next request blocks.
///
/// Bytes that are taken from a Unix socket free room for the peer, and the kernel wakes it to say so, also a caller
/// that waits for its answer only: it would run, find none, and sleep again, all while the answer is made. So they are
/// looked at first (`MSG_PEEK`, each time where the last look ended: `SO_PEEK_OFF`, socket(7)) and taken some requests
/// later.
#[derive(Debug)]
pub(super) struct Track {
    stream: UnixStream,
    /// Bytes that were looked at and not taken, and the reads they came with.
    left: usize,
    reads: u32,
}

/// `SO_PEEK_OFF`, which no library of ours names.
#[derive(Clone)]
struct PeekOffset;
setsockopt_impl!(
    PeekOffset,
    libc::SOL_SOCKET,
    libc::SO_PEEK_OFF,
    i32,
    SetStruct<i32>
);

impl Track {
    /// From the event loop. A connection that cannot come is lost.
    pub(super) fn enter(stream: tokio::net::UnixStream) -> io::Result<Self> {
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(LINGER))?;
        socket::setsockopt(&stream, PeekOffset, &0)?;
        Ok(Self {
            stream,
            left: 0,
            reads: 0,
        })
    }

    /// Back to the event loop.
    pub(super) fn leave(mut self) -> io::Result<tokio::net::UnixStream> {
        self.take_left()?;
        self.stream.set_nonblocking(true)?;
        tokio::net::UnixStream::from_std(self.stream)
    }

    pub(super) fn socket(&self) -> &UnixStream {
        &self.stream
    }

    /// What is there, or comes within [`LINGER`] if that is waited for.
    pub(super) fn read(&mut self, into: &mut [u8], waits: bool) -> Result<usize, Errno> {
        if self.reads >= MOST_LEFT_READS || self.left >= MOST_LEFT_BYTES {
            self.take_left()?;
        }
        let flags = if waits {
            RecvFlags::PEEK
        } else {
            RecvFlags::PEEK | RecvFlags::DONTWAIT
        };
        let (read, _) = recv(&self.stream, into, flags)?;
        self.left = self.left.saturating_add(read);
        self.reads = self.reads.saturating_add(1);
        Ok(read)
    }

    /// What there is room for.
    pub(super) fn write(&self, bufs: &[IoSlice<'_>]) -> Result<usize, Errno> {
        write(&self.stream, bufs)
    }

    /// Takes what was looked at.
    fn take_left(&mut self) -> Result<(), Errno> {
        let mut piece = [0; MOST_LEFT_BYTES];
        while self.left > 0 {
            let most = self.left.min(piece.len());
            let into = piece.get_mut(..most).unwrap_or_default();
            match recv(&self.stream, into, RecvFlags::DONTWAIT) {
                // What was looked at is there.
                Ok((0, _)) => return Err(Errno::CONNRESET),
                Ok((taken, _)) => self.left = self.left.saturating_sub(taken),
                Err(Errno::INTR) => {}
                Err(err) => return Err(err),
            }
        }
        self.reads = 0;
        Ok(())
    }
}

/// Writes what there is room for.
pub(super) fn write(socket: impl AsFd, bufs: &[IoSlice<'_>]) -> Result<usize, Errno> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(socket, bufs, &mut SendAncillaryBuffer::default(), flags)
}

/// A connection that is being answered.
pub(super) type Ride = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The lanes that are free.
#[derive(Debug, Clone)]
pub(super) struct Lanes(Arc<Semaphore>);

impl Lanes {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(LANES)))
    }

    /// A lane, where one is free.
    pub(super) fn enter(&self) -> Option<Lane> {
        Some(Lane(self.0.clone().try_acquire_owned().ok()?))
    }
}

/// The right to a thread.
#[derive(Debug)]
pub(super) struct Lane(#[expect(dead_code, reason = "held")] OwnedSemaphorePermit);

/// Answers a connection to its end, on the event loop and on a lane in turn.
pub(super) fn ride(mut connection: Ride, progress: Progress, connections: TaskTracker) -> Ride {
    Box::pin(async move {
        let lane = std::future::poll_fn(|cx| {
            let polled = connection.as_mut().poll(cx);
            match (polled, progress.lane_entered()) {
                (Poll::Ready(()), _) => Poll::Ready(None),
                (Poll::Pending, Some(lane)) => Poll::Ready(Some(lane)),
                (Poll::Pending, None) => Poll::Pending,
            }
        });
        if let Some(lane) = lane.await {
            let runtime = tokio::runtime::Handle::current();
            let counted = connections.token();
            runtime.clone().spawn_blocking(move || {
                let _counted = counted;
                if let Some(connection) = straight(connection, &progress) {
                    drop(lane);
                    let tracker = connections.clone();
                    tracker.spawn_on(ride(connection, progress, connections), &runtime);
                }
            });
        }
    })
}

/// Answers on this thread until the connection ends or has to wait; then it is given back.
fn straight(mut connection: Ride, progress: &Progress) -> Option<Ride> {
    let again = Arc::new(Again(AtomicBool::new(false)));
    let waker = Waker::from(again.clone());
    progress.on_lane(true);
    loop {
        again.0.store(false, Ordering::Relaxed);
        if connection
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_ready()
        {
            return None;
        }
        // hyper pauses after some requests in a row and wakes itself.
        if !again.0.load(Ordering::Relaxed) || !progress.is_on_lane() {
            progress.on_lane(false);
            return Some(connection);
        }
    }
}

struct Again(AtomicBool);

impl Wake for Again {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}
