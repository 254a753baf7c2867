//! The load: callers, each with a connection and a thread of its own as telephony processes have, asking one question
//! after the other (closed loop) or at a fixed rate whatever the answers do (open loop). Every answer is checked.
//!
//! An open loop counts a question's time from the moment it was due, not from when it could be sent: a server that
//! stalls is charged for everybody who would have asked meanwhile. So that it is not charged for the callers' sleep as
//! well, they have themselves woken as punctually as the kernel can: by itself it is up to 50 µs late, which was most of
//! the time that was measured.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use postgres_protocol::message::backend::{self, Header};

/// Longest answer that is read, and longest latency that is told apart.
const MOST_BYTES: usize = 4 << 20;
const MOST_NANOS: u64 = 60_000_000_000;
/// A server that says nothing for this long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where a server listens.
#[derive(Debug, Clone)]
pub(crate) enum At {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// How an answer ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Framing {
    /// A head with `Content-Length`, and the status 200.
    Http,
    /// RESP2's bulk string.
    Redis,
    /// As many bytes as agreed.
    Fixed(usize),
    /// Messages of Postgres up to the one that says that it is ready for more.
    Postgres,
}

/// What is sent, and what has to stand in the answer.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    pub(crate) bytes: Vec<u8>,
    pub(crate) proof: Vec<u8>,
}

/// One server and what it is asked.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) at: At,
    pub(crate) framing: Framing,
    pub(crate) questions: Arc<Vec<Question>>,
    /// What is sent on a new connection before the first question, each piece answered as a question is.
    pub(crate) hello: Vec<Vec<u8>>,
    /// A connection for each question.
    pub(crate) fresh: bool,
    /// Whose time on a core is told.
    pub(crate) server: Option<u32>,
}

/// What a run showed.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    pub(crate) per_second: f64,
    pub(crate) latency: Histogram<u64>,
}

impl Measured {
    /// Microseconds below which this share of the answers came.
    pub(crate) fn micros(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1000.0
    }
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn connect(at: &At) -> io::Result<Self> {
        Ok(match at {
            At::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                Self::Unix(stream)
            }
            At::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                Self::Tcp(stream)
            }
        })
    }

    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(into),
            Self::Tcp(stream) => stream.read(into),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.write_all(bytes),
            Self::Tcp(stream) => stream.write_all(bytes),
        }
    }
}

/// A caller with its connection.
pub(crate) struct Caller<'a> {
    target: &'a Target,
    stream: Option<Stream>,
    buffer: Vec<u8>,
}

impl<'a> Caller<'a> {
    pub(crate) fn new(target: &'a Target) -> Self {
        Self {
            target,
            stream: None,
            buffer: vec![0; 64 * 1024],
        }
    }

    /// Asks, and reads the answer to its end.
    pub(crate) fn ask(&mut self, question: &Question) -> io::Result<()> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let mut stream = Stream::connect(&self.target.at)?;
                for piece in &self.target.hello {
                    self.exchange(&mut stream, piece)?;
                }
                stream
            }
        };
        let answer = self.exchange(&mut stream, &question.bytes)?;
        let answer = &self.buffer[..answer];
        if memchr::memmem::find(answer, &question.proof).is_none() {
            let text = String::from_utf8_lossy(&answer[..answer.len().min(400)]).into_owned();
            return Err(io::Error::other(format!("a wrong answer: {text}")));
        }
        if !self.target.fresh {
            self.stream = Some(stream);
        }
        Ok(())
    }

    /// Sends, and reads what comes back: so many bytes of the buffer, and nothing behind them.
    fn exchange(&mut self, stream: &mut Stream, bytes: &[u8]) -> io::Result<usize> {
        stream.write_all(bytes)?;
        let mut length = 0;
        let whole = loop {
            if length == self.buffer.len() {
                if length >= MOST_BYTES {
                    return Err(io::Error::other("an answer without end"));
                }
                self.buffer.resize(length * 2, 0);
            }
            let read = stream.read(&mut self.buffer[length..])?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            length += read;
            let whole = ends_at(self.target.framing, &self.buffer[..length])?;
            if let Some(whole) = whole.filter(|whole| *whole <= length) {
                break whole;
            }
        };
        if whole != length {
            return Err(io::Error::other("more than one answer"));
        }
        Ok(whole)
    }
}

/// Where the answer ends, as soon as that can be told.
fn ends_at(framing: Framing, bytes: &[u8]) -> io::Result<Option<usize>> {
    let wrong = |what: &str| {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(400)]).into_owned();
        io::Error::other(format!("{what}: {text}"))
    };
    match framing {
        Framing::Fixed(length) => Ok(Some(length)),
        Framing::Http => {
            let Some(head) = memchr::memmem::find(bytes, b"\r\n\r\n") else {
                return Ok(None);
            };
            if !bytes.starts_with(b"HTTP/1.1 200") {
                return Err(wrong("not 200"));
            }
            let mut length = None;
            for line in bytes[..head].split(|byte| *byte == b'\n') {
                if line.len() > 15 && line[..15].eq_ignore_ascii_case(b"content-length:") {
                    let text = std::str::from_utf8(&line[15..]).unwrap_or_default();
                    length = text.trim().parse::<usize>().ok();
                }
            }
            let length = length.ok_or_else(|| wrong("no Content-Length"))?;
            Ok(Some(head + 4 + length))
        }
        Framing::Postgres => {
            let mut at = 0;
            while let Some(header) = Header::parse(&bytes[at..])? {
                let length = usize::try_from(header.len()).unwrap_or(MOST_BYTES);
                at += 1 + length;
                match header.tag() {
                    backend::ERROR_RESPONSE_TAG => return Err(wrong("an error")),
                    backend::READY_FOR_QUERY_TAG => return Ok(Some(at)),
                    _ if at >= bytes.len() => return Ok(None),
                    _ => {}
                }
            }
            Ok(None)
        }
        Framing::Redis => {
            let Some(line) = memchr::memmem::find(bytes, b"\r\n") else {
                return Ok(None);
            };
            let length = std::str::from_utf8(&bytes[1..line]).unwrap_or_default();
            let length: usize = length.parse().map_err(|_| wrong("no bulk string"))?;
            Ok(Some(line + 2 + length + 2))
        }
    }
}

/// A stream of questions in no order, the same for each seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, most: usize) -> usize {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap_or(0) % most.max(1)
    }
}

pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(MOST_NANOS, 3).expect("bounds that hdrhistogram allows")
}

/// Connections that this process and those it starts may have.
pub(crate) fn allow_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, most).expect("as many descriptors as the hard limit allows");
}

/// Asks every question once.
pub(crate) fn warm(target: &Target) {
    let mut caller = Caller::new(target);
    for question in target.questions.iter() {
        caller.ask(question).unwrap_or_else(|err| panic!("{err}"));
    }
}

/// So many callers ask as fast as answers come.
pub(crate) fn closed(target: &Target, callers: usize, lasts: Duration) -> Measured {
    run(target, callers, lasts, None)
}

/// So many callers ask at this rate together, whatever the answers do.
pub(crate) fn open(target: &Target, callers: usize, lasts: Duration, per_second: f64) -> Measured {
    run(target, callers, lasts, Some(per_second))
}

/// As [`open`], of two servers at the same time, each with callers of its own.
pub(crate) fn open_both(
    targets: [&Target; 2],
    callers: usize,
    lasts: Duration,
    per_second: f64,
) -> [Measured; 2] {
    std::thread::scope(|scope| {
        let both =
            targets.map(|target| scope.spawn(move || open(target, callers, lasts, per_second)));
        both.map(|one| one.join().expect("a load failed"))
    })
}

fn run(target: &Target, callers: usize, lasts: Duration, rate: Option<f64>) -> Measured {
    let stop = AtomicBool::new(false);
    let ready = std::sync::Barrier::new(callers + 1);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..callers)
            .map(|number| {
                let (stop, ready) = (&stop, &ready);
                let ask = move || {
                    rustix::thread::set_current_timer_slack(Some(std::num::NonZero::<u64>::MIN))
                        .expect("a thread's own timers");
                    let mut latency = histogram();
                    let mut random = Random::new(number as u64 + 1);
                    let mut caller = Caller::new(target);
                    let mut one = |caller: &mut Caller<'_>| {
                        let question = &target.questions[random.below(target.questions.len())];
                        caller.ask(question).unwrap_or_else(|err| panic!("{err}"));
                    };
                    one(&mut caller);
                    ready.wait();
                    let began = Instant::now();
                    let every = rate.map(|rate| Duration::from_secs_f64(callers as f64 / rate));
                    // Callers begin one after the other within the first interval.
                    let phase = every.map(|every| every.mul_f64(number as f64 / callers as f64));
                    let mut asked: u32 = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let due = match (every, phase) {
                            (Some(every), Some(phase)) => {
                                let due = began + phase + every * asked;
                                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                                due
                            }
                            _ => Instant::now(),
                        };
                        one(&mut caller);
                        let nanos = u64::try_from(due.elapsed().as_nanos()).unwrap_or(MOST_NANOS);
                        latency.saturating_record(nanos);
                        asked = asked.saturating_add(1);
                    }
                    (latency, began.elapsed())
                };
                std::thread::Builder::new()
                    .stack_size(256 * 1024)
                    .spawn_scoped(scope, ask)
            })
            .collect();
        ready.wait();
        std::thread::sleep(lasts);
        stop.store(true, Ordering::Relaxed);
        let mut latency = histogram();
        let mut longest = Duration::ZERO;
        for thread in threads {
            let (part, took) = thread
                .expect("a thread for a caller")
                .join()
                .expect("a caller failed");
            latency.add(part).expect("the same bounds");
            longest = longest.max(took);
        }
        Measured {
            per_second: latency.len() as f64 / longest.as_secs_f64(),
            latency,
        }
    })
}
