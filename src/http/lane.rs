//! Threads of their own for callers that ask without a pause.
//!
//! On the event loop a request costs four system calls and a turn of the scheduler; a thread that waits in `recv` for
//! one caller needs two calls, and the kernel hands over from caller to answer directly. A connection gets such a lane
//! while its requests follow each other closely, and goes back to the event loop as soon as it would have to wait:
//! for its caller, for room in the socket, for anything else. Whatever takes time and whoever is slow is therefore
//! the event loop's; a lane is never held by a caller that sends nothing for [`LINGER`].

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use super::line::Progress;

/// How long a lane waits for the next request; requests that follow each other more slowly gain nothing from it.
pub(super) const LINGER: Duration = Duration::from_millis(100);

/// Lanes at once. More connections than that are answered by the event loop.
const LANES: usize = 64;

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
