//! The bytes of one connection and their clock: how long a head, a pause and a stalled answer may take,
//! and how a connection ends when the daemon stops.
//!
//! A request that can be answered from memory is answered here (`swift.rs`); hyper sees all others.
//!
//! A connection that waits for its caller gives way when there are too many, the longest waiting first.
//!
//! hyper has one limit for a head and for the pause before it. Here a head has `header_timeout` from its
//! first byte, a pause `idle_timeout`. Once the daemon stops, a connection between requests is closed for
//! reading first and read once more: a request that was sent before is answered, one after it is refused
//! by the kernel and never lost.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use prometheus::IntCounter;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::Place;
use super::lane::{LINGER, Lane, Lanes, Track};
use super::swift::{self, Date};
use super::wire::{self, Handler, Reply};

/// An answer of which the caller takes nothing for this long is given up.
const STALLED: Duration = Duration::from_secs(30);

/// A stream of events of which the caller takes nothing for this long is given up: its caller can come back.
const SLOW: Duration = Duration::from_secs(10);

/// How long a caller that is still sending gets to read the last answer before the connection is cut.
const LINGERS: Duration = Duration::from_secs(1);

/// Pieces thrown away before others get their turn.
const PIECES_AT_ONCE: usize = 64;

/// What a caller gets to send its first request when it had only just connected as the daemon stopped.
const FIRST_REQUEST: Duration = Duration::from_millis(250);

/// Longest piece that is read at once by a thread that is not the event loop's, and before hyper is there.
pub(super) const PIECE: usize = 4096;

/// Requests answered in a row before others get their turn, where others wait.
const ANSWERS_AT_ONCE: usize = 64;

/// Any kind of connection.
#[derive(Debug)]
pub(super) enum Stream {
    Unix(UnixStream),
    Lane(Track),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// Lost on its way between event loop and lane.
    Lost,
}

impl Stream {
    /// Nothing more is taken from the peer; what it sent already can be read.
    fn shut_for_reading(&self) {
        // Fails only where the peer is gone, which reading tells anyway.
        let _ = match self {
            Self::Unix(stream) => rustix::net::shutdown(stream, rustix::net::Shutdown::Read),
            Self::Lane(track) => rustix::net::shutdown(track.socket(), rustix::net::Shutdown::Read),
            Self::Lost => Ok(()),
            Self::Tcp(stream) => rustix::net::shutdown(stream, rustix::net::Shutdown::Read),
            Self::Tls(stream) => {
                rustix::net::shutdown(stream.get_ref().0, rustix::net::Shutdown::Read)
            }
        };
    }
}

/// Calls a method of the tokio stream inside.
macro_rules! on {
    ($stream:expr, $method:ident($($argument:expr),*)) => {
        match $stream {
            Stream::Unix(stream) => Pin::new(stream).$method($($argument),*),
            Stream::Tcp(stream) => Pin::new(stream).$method($($argument),*),
            Stream::Tls(stream) => Pin::new(stream).$method($($argument),*),
            Stream::Lane(_) | Stream::Lost => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    };
}

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Waiting for a request since.
    Idle(Instant),
    /// Reading a head since.
    Head(Instant),
    /// A request is being answered.
    Busy,
    /// The answer is made; what is read next belongs to the next request.
    Answered,
}

/// How far the requests of a connection have come, told by its bytes and by the service.
#[derive(Debug, Clone)]
pub(super) struct Progress(Arc<Mutex<Read>>);

#[derive(Debug)]
struct Read {
    phase: Phase,
    /// No request was read yet.
    fresh: bool,
    /// The last byte that was no carriage return was a line feed.
    line_ended: bool,
    /// Heads that ended in what was read and were not answered yet. Too many where a body holds a blank line.
    heads: u32,
    /// Bytes read since the last head ended.
    since_head: u64,
    /// The last read took everything there was.
    emptied: bool,
    /// The request under way has no body.
    bodiless: bool,
    /// hyper has an answer to write.
    owes: bool,
    /// The last request followed the answer before it closely.
    brisk: bool,
    /// Answered by a thread of its own.
    on_lane: bool,
    /// The thread that is to go on with it.
    lane: Option<Lane>,
    /// Its place among those who ask.
    place: Option<Place>,
    /// The answer goes on; counts those that are given up.
    endless: Option<IntCounter>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Read {
            phase: Phase::Idle(Instant::now()),
            fresh: true,
            line_ended: false,
            heads: 0,
            since_head: 0,
            emptied: false,
            bodiless: true,
            owes: false,
            brisk: false,
            on_lane: false,
            lane: None,
            place: None,
            endless: None,
        })))
    }

    /// Keeps the connection's place until it ends.
    pub(super) fn keep(&self, place: Place) {
        self.lock().place = Some(place);
    }

    /// The answer is begun and goes on: the place is for others who ask. Never known to be the last.
    pub(super) fn goes_on(&self, cut_off: IntCounter) -> bool {
        let mut bytes = self.lock();
        bytes.endless = Some(cut_off);
        let place = bytes.place.take();
        drop(bytes);
        drop(place);
        false
    }

    /// The lane that the connection has to go on with from here, if any.
    pub(super) fn lane_entered(&self) -> Option<Lane> {
        self.lock().lane.take()
    }

    pub(super) fn on_lane(&self, is: bool) {
        self.lock().on_lane = is;
    }

    pub(super) fn is_on_lane(&self) -> bool {
        self.lock().on_lane
    }

    /// A whole head was read.
    pub(super) fn begin(&self, bodiless: bool) {
        let mut bytes = self.lock();
        bytes.phase = Phase::Busy;
        bytes.fresh = false;
        bytes.bodiless = bodiless;
        bytes.owes = true;
        bytes.heads = bytes.heads.saturating_sub(1);
    }

    /// Everything that was to be written is.
    fn flushed(&self) {
        let mut bytes = self.lock();
        if bytes.phase != Phase::Busy {
            bytes.owes = false;
        }
    }

    /// A request was read and answered here.
    fn answered(&self) {
        let mut bytes = self.lock();
        bytes.followed();
        bytes.fresh = false;
        bytes.phase = Phase::Idle(Instant::now());
    }

    /// The answer is made. Whether surely no further request was read: then the connection may be closed after it.
    pub(super) fn end(&self, body: Option<u64>) -> bool {
        let mut bytes = self.lock();
        bytes.phase = Phase::Answered;
        bytes.heads == 0 && Some(bytes.since_head) == body && bytes.emptied
    }

    fn lock(&self) -> MutexGuard<'_, Read> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Read {
    /// hyper asks for bytes. Outside of a request it has used up every whole head that was read before.
    fn asked(&mut self) -> Phase {
        if self.phase == Phase::Answered {
            let now = Instant::now();
            let begun = self.bodiless && self.since_head > 0;
            self.phase = if begun {
                Phase::Head(now)
            } else {
                Phase::Idle(now)
            };
        }
        if self.phase != Phase::Busy {
            self.heads = 0;
        }
        self.phase
    }

    /// The bytes of the next request, if they come now, are the first that hyper has not seen, and it has nothing left
    /// to write.
    fn is_between(&self) -> bool {
        matches!(self.phase, Phase::Idle(_))
            && self.heads == 0
            && self.since_head == 0
            && (self.bodiless || self.fresh)
            && !self.owes
    }

    /// A request came while one was waited for.
    fn followed(&mut self) {
        if let Phase::Idle(since) = self.phase {
            self.brisk = !self.fresh && since.elapsed() < LINGER;
        }
    }

    fn read(&mut self, bytes: &[u8], room: usize) {
        if bytes.is_empty() {
            return;
        }
        self.emptied = bytes.len() < room;
        if let Phase::Idle(_) = self.phase {
            self.followed();
            self.phase = Phase::Head(Instant::now());
        }
        for byte in bytes {
            self.since_head = self.since_head.saturating_add(1);
            match byte {
                b'\n' if self.line_ended => {
                    self.heads = self.heads.saturating_add(1);
                    self.since_head = 0;
                    self.line_ended = false;
                }
                b'\n' => self.line_ended = true,
                b'\r' => {}
                _ => self.line_ended = false,
            }
        }
    }
}

/// What ends a connection: too much time, too many others, the daemon.
#[derive(Debug, Clone)]
pub(super) struct Ends {
    pub(super) header_timeout: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) crowd: Arc<Notify>,
    pub(super) stop: CancellationToken,
    /// Where brisk callers are answered, if anywhere.
    pub(super) lanes: Option<Lanes>,
}

impl Ends {
    /// Lets so much time pass, unless the place is needed or the daemon stops. Whether the place is needed.
    pub(super) async fn hold_back(&self, pause: Duration) -> bool {
        if pause.is_zero() {
            return false;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => false,
            () = self.crowd.notified() => true,
            () = self.stop.cancelled() => false,
        }
    }
}

/// What was read and written of a connection before the event loop got it.
#[derive(Debug, Default)]
pub(super) struct Begun {
    /// Bytes that nobody has looked at, at most [`PIECE`].
    pub(super) came: Vec<u8>,
    /// The rest of an answer.
    pub(super) unsent: Vec<u8>,
    /// A request was answered.
    pub(super) answered: bool,
}

/// One connection, as hyper reads and writes it.
pub(super) struct Line<H> {
    stream: Stream,
    handler: Arc<H>,
    progress: Progress,
    ends: Ends,
    shut: bool,
    /// Nothing was read here yet.
    is_new: bool,
    came: Vec<u8>,
    reading: Pin<Box<Sleep>>,
    writing: Option<Pin<Box<Sleep>>>,
    /// Its place among those that wait for their callers.
    waiting: Option<Pin<Box<OwnedNotified>>>,
    /// What a lane reads into.
    piece: Vec<u8>,
    /// What was read before hyper was there.
    ahead: Vec<u8>,
    /// The head of an answer given here.
    head: Vec<u8>,
    /// What there was no room for of an answer given here.
    unsent: Vec<u8>,
    date: Date,
    /// Since when what the caller still sends is read and thrown away.
    lingers_since: Option<Instant>,
}

impl<H: Handler> Line<H> {
    pub(super) fn new(
        stream: Stream,
        begun: Begun,
        handler: Arc<H>,
        progress: Progress,
        ends: Ends,
    ) -> Self {
        let reading = Box::pin(tokio::time::sleep(ends.idle_timeout));
        if begun.answered {
            progress.answered();
        }
        Self {
            stream,
            handler,
            progress,
            ends,
            shut: false,
            is_new: true,
            came: begun.came,
            reading,
            writing: None,
            waiting: None,
            lingers_since: None,
            piece: Vec::new(),
            ahead: Vec::new(),
            head: Vec::new(),
            unsent: begun.unsent,
            date: Date::new(),
        }
    }

    /// Answers requests until one comes that is hyper's, whose bytes it reads first then. Whether one came.
    pub(super) fn poll_until_other(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut piece = [0; PIECE];
        let mut buf = ReadBuf::new(&mut piece);
        std::task::ready!(Pin::new(&mut *self).poll_read(cx, &mut buf))?;
        self.ahead.extend_from_slice(buf.filled());
        if self.ahead.is_empty() && self.shut {
            // Ended from this side: the caller may still be sending.
            std::task::ready!(Pin::new(self).poll_shutdown(cx))?;
            return Poll::Ready(Ok(false));
        }
        Poll::Ready(Ok(!self.ahead.is_empty()))
    }

    /// Answers the requests that these bytes begin with, as far as they can be answered at once. How many bytes those
    /// have; after an answer that there was no room for, none is looked at.
    fn answer_at_once(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> io::Result<usize> {
        let mut read: usize = 0;
        while self.unsent.is_empty()
            && let rest = bytes.get(read..).unwrap_or_default()
            && let Some((reply, length)) = wire::at_once(&*self.handler, rest)
        {
            self.send(reply, cx)?;
            self.progress.answered();
            read = read.saturating_add(length);
        }
        Ok(read)
    }

    /// Sends an answer, and keeps what there is no room for.
    fn send(&mut self, reply: Reply, cx: &mut Context<'_>) -> io::Result<()> {
        let mut head = std::mem::take(&mut self.head);
        head.clear();
        swift::write_head(&reply, &mut self.date, &mut head);
        let pieces = reply.pieces(&head);
        let slices = pieces.map(IoSlice::new);
        let sent = match self.write_on_lane(&slices) {
            Some(sent) => sent?,
            None => match on!(&mut self.stream, poll_write_vectored(cx, &slices)) {
                Poll::Ready(sent) => sent?,
                Poll::Pending => 0,
            },
        };
        wire::keep_rest(pieces, sent, &mut self.unsent);
        if !self.unsent.is_empty() {
            self.leave_lane();
        }
        self.head = head;
        Ok(())
    }

    /// Sends the rest of an answer.
    fn poll_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let sent = on!(&mut self.stream, poll_write(cx, &self.unsent));
            match std::task::ready!(self.stalled(sent, cx))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => drop(self.unsent.drain(..sent.min(self.unsent.len()))),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// A caller that asks without a pause goes on on a lane, where one is free.
    fn enter_lane(&mut self) -> bool {
        if !matches!(self.stream, Stream::Unix(_)) {
            return false;
        }
        let Some(lane) = self.ends.lanes.as_ref().and_then(Lanes::enter) else {
            return false;
        };
        let Stream::Unix(stream) = std::mem::replace(&mut self.stream, Stream::Lost) else {
            return false;
        };
        let Ok(track) = Track::enter(stream) else {
            return false;
        };
        self.stream = Stream::Lane(track);
        self.piece.resize(PIECE, 0);
        self.progress.lock().lane = Some(lane);
        true
    }

    /// Back to the event loop. A connection that cannot get there is lost.
    fn leave_lane(&mut self) {
        if !matches!(self.stream, Stream::Lane(_)) {
            return;
        }
        {
            let mut progress = self.progress.lock();
            progress.on_lane = false;
            progress.brisk = false;
        }
        if let Stream::Lane(track) = std::mem::replace(&mut self.stream, Stream::Lost)
            && let Ok(stream) = track.leave()
        {
            self.stream = Stream::Unix(stream);
        }
    }

    /// What was read already, or what is there: most callers have sent their first request before they are accepted,
    /// and the event loop need not tell that. Whether there was anything.
    fn read_what_came_with_it(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let room = buf.remaining().min(PIECE);
        if !self.came.is_empty() {
            let piece = self.came.len().min(room);
            buf.put_slice(self.came.get(..piece).unwrap_or_default());
            self.came.drain(..piece);
            self.is_new = !self.came.is_empty();
            return true;
        }
        let piece = buf.initialize_unfilled_to(room);
        let read = match &self.stream {
            Stream::Unix(stream) => recv(stream, piece, RecvFlags::DONTWAIT),
            Stream::Tcp(stream) => recv(stream, piece, RecvFlags::DONTWAIT),
            _ => return false,
        };
        let read = read.map_or(0, |(read, _)| read);
        buf.advance(read);
        read > 0
    }

    /// On a lane: what is there, or comes soon where the next request is waited for. Else the lane is left.
    fn read_on_lane(&mut self, phase: Phase, buf: &mut ReadBuf<'_>) -> Option<io::Result<()>> {
        let Stream::Lane(track) = &mut self.stream else {
            return None;
        };
        let waits = matches!(phase, Phase::Idle(_))
            && self.progress.is_on_lane()
            && !self.ends.stop.is_cancelled();
        let room = buf.remaining().min(PIECE);
        let piece = self.piece.get_mut(..room)?;
        match track.read(piece, waits) {
            Ok(read) => {
                buf.put_slice(self.piece.get(..read)?);
                Some(Ok(()))
            }
            Err(Errno::WOULDBLOCK | Errno::INTR) => {
                self.leave_lane();
                None
            }
            Err(err) => Some(Err(err.into())),
        }
    }

    /// On a lane: what there is room for. Else the lane is left.
    fn write_on_lane(&mut self, bufs: &[IoSlice<'_>]) -> Option<io::Result<usize>> {
        let Stream::Lane(track) = &self.stream else {
            return None;
        };
        match track.write(bufs) {
            Ok(written) => Some(Ok(written)),
            Err(Errno::WOULDBLOCK | Errno::INTR) => {
                self.leave_lane();
                None
            }
            Err(err) => Some(Err(err.into())),
        }
    }

    /// Whether this connection has to give way to others. One that waits anew stands last.
    fn is_crowded_out(&mut self, cx: &mut Context<'_>) -> bool {
        let crowd = &self.ends.crowd;
        let waiting = self
            .waiting
            .get_or_insert_with(|| Box::pin(crowd.clone().notified_owned()));
        let crowded_out = waiting.as_mut().poll(cx).is_ready();
        if crowded_out {
            self.waiting = None;
        }
        crowded_out
    }

    /// Whether so much time has passed; else wakes the task then.
    fn is_over(&mut self, since: Instant, limit: Duration, cx: &mut Context<'_>) -> bool {
        let Some(deadline) = since.checked_add(limit) else {
            return false;
        };
        if self.reading.deadline() != deadline {
            self.reading.as_mut().reset(deadline);
        }
        self.reading.as_mut().poll(cx).is_ready()
    }

    /// Whether the caller, found to be still sending, has time left to read.
    fn lingers(&mut self, cx: &mut Context<'_>) -> bool {
        match self.lingers_since {
            Some(since) => !self.is_over(since, LINGERS, cx),
            None => false,
        }
    }

    /// What follows a write that could not go on, or did.
    fn stalled<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.writing = None;
            self.waiting = None;
            return written;
        }
        let endless = self.progress.lock().endless.clone();
        let stopping = self.ends.stop.is_cancelled();
        let limit = match &endless {
            None => STALLED,
            Some(_) if stopping => LINGERS,
            Some(_) => SLOW,
        };
        let clock = self
            .writing
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        if let Some(sooner) = Instant::now().checked_add(limit)
            && clock.deadline() > sooner
        {
            clock.as_mut().reset(sooner);
        }
        let over = clock.as_mut().poll(cx).is_ready();
        if let Some(cut_off) = endless.as_ref().filter(|_| over && !stopping) {
            cut_off.inc();
        }
        // A stream has no place that it could give to another.
        if over || (endless.is_none() && self.is_crowded_out(cx)) {
            Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
        } else {
            Poll::Pending
        }
    }
}

impl<H: Handler> AsyncRead for Line<H> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let line = self.get_mut();
        for _ in 0..ANSWERS_AT_ONCE {
            std::task::ready!(line.poll_unsent(cx))?;
            if !line.ahead.is_empty() {
                let piece = line.ahead.len().min(buf.remaining());
                buf.put_slice(line.ahead.get(..piece).unwrap_or_default());
                line.ahead.drain(..piece);
                return Poll::Ready(Ok(()));
            }
            let (before, room) = (buf.filled().len(), buf.remaining().min(PIECE));
            let between = std::task::ready!(line.poll_more(cx, buf))?;
            let bytes = buf.filled().get(before..).unwrap_or_default();
            let mut answered = 0;
            if between && !bytes.is_empty() {
                answered = line.answer_at_once(bytes, cx)?;
            }
            let rest = bytes.get(answered..).unwrap_or_default();
            line.progress
                .lock()
                .read(rest, room.saturating_sub(answered));
            if answered == 0 {
                return Poll::Ready(Ok(()));
            }
            line.ahead.extend_from_slice(rest);
            buf.set_filled(before);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<H: Handler> Line<H> {
    /// Reads what comes. Whether it is what comes between two requests.
    fn poll_more(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<bool>> {
        let line = self;
        let (phase, brisk, between) = {
            let mut progress = line.progress.lock();
            if progress.lane.is_some() {
                return Poll::Pending; // on its way there
            }
            (progress.asked(), progress.brisk, progress.is_between())
        };
        let between = between && !line.ends.stop.is_cancelled();
        if let Some(done) = line.read_on_lane(phase, buf) {
            return Poll::Ready(done.map(|()| between));
        }
        if brisk && matches!(phase, Phase::Idle(_)) && line.enter_lane() {
            return Poll::Pending;
        }
        if line.is_new {
            line.is_new = false;
            if line.read_what_came_with_it(buf) {
                return Poll::Ready(Ok(between));
            }
        }
        if let Poll::Ready(done) = on!(&mut line.stream, poll_read(cx, buf)) {
            line.waiting = None;
            return Poll::Ready(done.map(|()| between));
        }
        let given_up = Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        let crowded_out = line.is_crowded_out(cx);
        match phase {
            // A body: whoever waits for it has a limit of its own.
            Phase::Busy | Phase::Answered if crowded_out => given_up,
            Phase::Busy | Phase::Answered => Poll::Pending,
            Phase::Head(since) => {
                let over = line.is_over(since, line.ends.header_timeout, cx);
                if over || crowded_out {
                    given_up
                } else {
                    Poll::Pending
                }
            }
            Phase::Idle(since) => {
                let stopping = line.ends.stop.is_cancelled();
                let fresh = line.progress.lock().fresh;
                let limit = if stopping && fresh {
                    FIRST_REQUEST
                } else {
                    line.ends.idle_timeout
                };
                let over = line.is_over(since, limit, cx) || crowded_out || (stopping && !fresh);
                if over && !line.shut {
                    line.shut = true;
                    // Wakes this task, which then reads what came meanwhile, or the end.
                    line.stream.shut_for_reading();
                }
                Poll::Pending
            }
        }
    }
}

impl<H: Handler> AsyncWrite for Line<H> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let line = self.get_mut();
        if let Some(written) = line.write_on_lane(&[IoSlice::new(buf)]) {
            return Poll::Ready(written);
        }
        let written = on!(&mut line.stream, poll_write(cx, buf));
        line.stalled(written, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let line = self.get_mut();
        if let Some(written) = line.write_on_lane(bufs) {
            return Poll::Ready(written);
        }
        let written = on!(&mut line.stream, poll_write_vectored(cx, bufs));
        line.stalled(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Lane(_) => true,
            Stream::Lost => false,
            Stream::Unix(stream) => stream.is_write_vectored(),
            Stream::Tcp(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let line = self.get_mut();
        if !matches!(line.stream, Stream::Lane(_)) {
            std::task::ready!(on!(&mut line.stream, poll_flush(cx)))?;
        }
        line.progress.flushed();
        Poll::Ready(Ok(()))
    }

    /// Closes in stages where the caller is still sending: an end with bytes unread would take away from it what it has
    /// not read yet of our answers (RFC 9112 section 9.6).
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let line = self.get_mut();
        if let Stream::Lane(_) = line.stream {
            line.leave_lane();
        }
        std::task::ready!(on!(&mut line.stream, poll_shutdown(cx)))?;
        let mut unread = [0; 4096];
        for _ in 0..PIECES_AT_ONCE {
            let mut buf = ReadBuf::new(&mut unread);
            match on!(&mut line.stream, poll_read(cx, &mut buf)) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    line.lingers_since.get_or_insert_with(Instant::now);
                }
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending if line.lingers(cx) => return Poll::Pending,
                Poll::Pending => return Poll::Ready(Ok(())),
            }
        }
        if line.lingers(cx) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&str]) -> Progress {
        let progress = Progress::new();
        for piece in pieces {
            progress.lock().read(piece.as_bytes(), 8192);
        }
        progress
    }

    #[tokio::test]
    async fn an_answered_request_with_nothing_behind_it_may_be_the_last() {
        for pieces in [
            &["GET / HTTP/1.1\r\nHost: x\r\n\r\n"][..],
            &["GET / HTTP/1.1\r", "\nHost: x\r\n", "\r", "\n"],
            &["GET /\n\n"],
        ] {
            let progress = read(pieces);
            progress.begin(true);
            assert!(progress.end(Some(0)), "{pieces:?}");
        }
        let progress = read(&["POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\n", "{\r\n}"]);
        progress.begin(false);
        assert!(progress.end(Some(4)));
    }

    #[tokio::test]
    async fn what_was_read_behind_a_request_keeps_the_connection_open() {
        let progress = read(&["GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n"]);
        progress.begin(true);
        assert!(!progress.end(Some(0)));
        progress.begin(true);
        assert!(progress.end(Some(0)));

        let progress = read(&["POST / HTTP/1.1\r\n\r\n{}GET /2 HT"]);
        progress.begin(false);
        assert!(!progress.end(Some(2)));

        let progress = Progress::new();
        progress.lock().read(b"GET /\r\n\r\n", 9); // the room was filled: there may be more
        progress.begin(true);
        assert!(!progress.end(Some(0)));
    }

    #[tokio::test]
    async fn a_head_that_began_behind_a_request_has_the_time_of_a_head() {
        let progress = read(&["GET /1 HTTP/1.1\r\n\r\nGET /2"]);
        progress.begin(true);
        progress.end(Some(0));
        assert!(matches!(progress.lock().asked(), Phase::Head(_)));
        let progress = read(&["GET /1 HTTP/1.1\r\n\r\n"]);
        progress.begin(true);
        progress.end(Some(0));
        assert!(matches!(progress.lock().asked(), Phase::Idle(_)));
    }
}
