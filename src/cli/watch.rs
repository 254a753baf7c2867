//! `sidetone watch`: follows a number or a tenant, over restarts of the daemon too.

use std::io;
use std::time::Duration;

use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use tokio::signal::unix::SignalKind;
use tokio::time::timeout;
use uuid::Uuid;

use super::client::{self, CallSocket, Client, ClientError, Followed, QUICK, Stream};
use super::output;
use super::run::Signals;
use super::{CliError, Exit, SettingsArgs, block_on};

/// First and longest pause before connecting again; the daemon may ask for a longer one, up to as much as `RETRY_MOST`.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MOST: Duration = Duration::from_secs(2);
const RETRY_MOST: Duration = Duration::from_secs(60);

/// A stream from which nothing came for so long is dead: heartbeats are 15 s apart at most.
const SILENCE: Duration = Duration::from_secs(60);

/// Longest line of a stream.
const MOST_LINE_BYTES: usize = 64 * 1024;

/// What to follow.
#[derive(Debug, clap::Args)]
pub struct WatchArgs {
    /// Number, in any spelling
    #[arg(
        allow_hyphen_values = true,
        required_unless_present = "tenant",
        conflicts_with = "tenant"
    )]
    number: Option<String>,
    /// Tenant with all its numbers, by slug or id
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// Every event as a line of JSON, heartbeats included
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: CallSocket,
}

impl WatchArgs {
    fn target(&self) -> String {
        let pair = |name: &str, value: &String| vec![(name.to_owned(), value.clone())];
        let query = match (&self.number, &self.tenant) {
            (Some(number), _) => pair("to", number),
            (None, Some(tenant)) => pair("tenant", tenant),
            (None, None) => Vec::new(),
        };
        client::target("/v1/watch", &query)
    }
}

pub(super) fn run(settings: &SettingsArgs, args: &WatchArgs) -> Result<Exit, CliError> {
    let client = args.socket.client(settings)?;
    block_on(async {
        let signals = Signals::listen(&[SignalKind::interrupt(), SignalKind::terminate()])?;
        tokio::select! {
            ended = follow(&client, args) => ended,
            () = signals.times(1) => Ok(Exit::Ok),
        }
    })?
}

/// Ends only where there is no sense in going on.
async fn follow(client: &Client, args: &WatchArgs) -> Result<Exit, CliError> {
    let target = args.target();
    let mut reader = Reader::default();
    let mut pause = PAUSE_FIRST;
    let (mut connected, mut outage) = (false, false);
    loop {
        let why = match client.follow(&target, reader.id.as_deref(), QUICK).await {
            Ok(Followed::Stream(stream)) => {
                if outage {
                    anstream::eprintln!("sidetone: connected again");
                }
                (connected, outage) = (true, false);
                if listen(stream, &mut reader, args.json).await? {
                    pause = PAUSE_FIRST;
                }
                "the stream ended".to_owned()
            }
            Ok(Followed::Answer(reply)) if connected && reply.code.as_u16() == 503 => {
                crate::cause::chain(&reply.refusal())
            }
            Ok(Followed::Answer(reply)) if args.json => {
                output::print_body(&reply.body)?;
                return Ok(reply.exit());
            }
            Ok(Followed::Answer(reply)) => return Err(reply.refusal()),
            Err(err @ ClientError::Denied { .. }) => return Err(err.into()),
            Err(err) if !connected => return Err(err.into()),
            Err(err) => crate::cause::chain(&err),
        };
        if !outage {
            outage = true;
            let why = output::printable(&why);
            anstream::eprintln!("sidetone: {why}; connecting again until Ctrl-C");
        }
        tokio::time::sleep(jittered(pause)).await;
        let most = reader.retry.unwrap_or(PAUSE_MOST).min(RETRY_MOST);
        pause = pause.saturating_mul(2).min(most.max(PAUSE_FIRST));
    }
}

/// Half to all of it, by chance, so that many who lost one daemon do not come back at once.
fn jittered(pause: Duration) -> Duration {
    let by_chance = f64::from(Uuid::new_v4().as_bytes().first().copied().unwrap_or(0));
    pause.mul_f64(0.5 + by_chance / 512.0)
}

/// Prints what comes until the stream ends or falls silent. Whether any event came.
async fn listen(mut stream: Stream, reader: &mut Reader, json: bool) -> Result<bool, CliError> {
    let mut heard = false;
    reader.begin();
    while let Ok(Some(bytes)) = timeout(SILENCE, stream.next()).await {
        for event in reader.read(&bytes) {
            heard = true;
            match event.line(json) {
                Some(line) => output::print(&line)?,
                None => still_read()?,
            }
        }
        if reader.is_lost() {
            break;
        }
    }
    Ok(heard)
}

/// Whether anybody still reads what is printed: nothing may be printed for days.
fn still_read() -> Result<(), CliError> {
    let stdout = io::stdout();
    let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
    let now = Timespec::default();
    match poll(&mut fds, Some(&now)) {
        Ok(1..) if fds.iter().any(|fd| fd.revents().contains(PollFlags::ERR)) => {
            Err(CliError::Output(io::ErrorKind::BrokenPipe.into()))
        }
        _ => Ok(()),
    }
}

/// An event as it came.
#[derive(Debug, PartialEq, Eq)]
struct Heard {
    name: String,
    id: String,
    data: Value,
}

impl Heard {
    /// What is printed of it, if anything.
    fn line(&self, json: bool) -> Option<String> {
        if json {
            let line = json!({"event": self.name, "id": self.id, "data": self.data});
            return Some(format!("{line}\n"));
        }
        let text = |pointer: &str| {
            let value = self.data.pointer(pointer).and_then(Value::as_str);
            value.unwrap_or_default()
        };
        let number = |pointer: &str| self.data.pointer(pointer).and_then(Value::as_u64);
        let age = output::duration(number("/staleness_ms").unwrap_or_default());
        let told = match self.name.as_str() {
            "revision" => {
                let mut words = vec![text("/number").to_owned(), text("/status").to_owned()];
                if !text("/revision").is_empty() {
                    words.push(format!("revision {}", text("/revision")));
                }
                if !text("/tenant/slug").is_empty() {
                    words.push(format!("tenant {}", text("/tenant/slug")));
                }
                words.extend(number("/numbers").map(|count| format!("{count} numbers")));
                words.retain(|word| !word.is_empty());
                words.join("  ")
            }
            "upstream" => match (self.data.get("level"), self.data.get("stale")) {
                (Some(Value::Bool(true)), Some(Value::Bool(true))) => {
                    format!("upstream late; answers are stale, {age} old")
                }
                (Some(Value::Bool(true)), _) => "upstream level".to_owned(),
                (_, Some(Value::Bool(true))) => {
                    format!(
                        "upstream lost ({}); answers are stale, {age} old",
                        text("/feed")
                    )
                }
                _ => format!("upstream lost ({}); answers are {age} old", text("/feed")),
            },
            _ => return None,
        };
        let at = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
        Some(format!("{at}  {}\n", output::printable(&told)))
    }
}

/// Reads a stream of events as WHATWG HTML says ("Interpreting an event stream"), within limits.
#[derive(Debug, Default)]
struct Reader {
    /// Of the last event that had one: where to go on.
    id: Option<String>,
    /// How long the daemon asks to wait before connecting again.
    retry: Option<Duration>,
    line: Vec<u8>,
    name: String,
    data: String,
    pending: Option<String>,
    lost: bool,
}

impl Reader {
    /// A new stream; what the one before left half said is nothing.
    fn begin(&mut self) {
        *self = Self {
            id: self.id.take(),
            retry: self.retry,
            ..Self::default()
        };
    }

    /// Whether a line is longer than any of ours.
    fn is_lost(&self) -> bool {
        self.lost
    }

    fn read(&mut self, bytes: &[u8]) -> Vec<Heard> {
        let mut heard = Vec::new();
        for byte in bytes {
            if *byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                let line = String::from_utf8_lossy(&line).into_owned();
                heard.extend(self.line(line.strip_suffix('\r').unwrap_or(&line)));
            } else if self.line.len().saturating_add(self.data.len()) < MOST_LINE_BYTES {
                self.line.push(*byte);
            } else {
                self.lost = true;
            }
        }
        heard
    }

    fn line(&mut self, line: &str) -> Option<Heard> {
        if line.is_empty() {
            return self.dispatch();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.name = value.to_owned(),
            "data" => {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(value);
            }
            "id" if !value.contains('\0') => self.pending = Some(value.to_owned()),
            "retry" => self.retry = value.parse().ok().map(Duration::from_millis).or(self.retry),
            _ => {}
        }
        None
    }

    fn dispatch(&mut self) -> Option<Heard> {
        let (name, data) = (
            std::mem::take(&mut self.name),
            std::mem::take(&mut self.data),
        );
        let id = self.pending.take();
        if let Some(id) = &id {
            self.id = Some(id.clone());
        }
        if data.is_empty() {
            return None;
        }
        Some(Heard {
            name,
            id: id.unwrap_or_default(),
            data: serde_json::from_str(&data).unwrap_or(Value::String(data)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_whole_however_they_are_cut() {
        let text = "retry: 2000\n\n: a comment\nevent: revision\nid: ok:5f\ndata: {\"status\":\"ok\"}\n\nevent: heartbeat\r\ndata: {}\r\n\r\nevent: half";
        for size in [1, 2, 7, text.len()] {
            let mut reader = Reader::default();
            let heard: Vec<Heard> = text
                .as_bytes()
                .chunks(size)
                .flat_map(|piece| reader.read(piece))
                .collect();
            let names: Vec<(&str, &str)> = heard
                .iter()
                .map(|event| (event.name.as_str(), event.id.as_str()))
                .collect();
            assert_eq!(names, [("revision", "ok:5f"), ("heartbeat", "")]);
            assert_eq!(heard[0].data["status"], "ok");
            assert_eq!(reader.retry, Some(Duration::from_secs(2)));
            reader.begin();
            assert_eq!(reader.id.as_deref(), Some("ok:5f"));
            assert_eq!(reader.read(b"data: 1\n\n")[0].name, "");
        }
    }

    #[test]
    fn a_line_without_an_end_is_not_kept() {
        let mut reader = Reader::default();
        for _ in 0..100 {
            reader.read(&[b'x'; 4096]);
        }
        assert!(reader.is_lost() && reader.line.len() <= MOST_LINE_BYTES);
    }

    #[test]
    fn people_see_changes_and_scripts_see_everything() {
        let event = |name: &str, data: Value| Heard {
            name: name.to_owned(),
            id: String::new(),
            data,
        };
        let shown = |event: &Heard| {
            let line = event.line(false)?;
            Some(line.split_once("  ")?.1.trim_end().to_owned())
        };
        let change = event(
            "revision",
            json!({"status": "ok", "number": "+14155550100", "revision": "5f", "tenant": {"slug": "a\u{1b}[2J"}}),
        );
        assert_eq!(
            shown(&change).unwrap(),
            "+14155550100  ok  revision 5f  tenant a\\u{1b}[2J"
        );
        let tenant = event(
            "revision",
            json!({"status": "unknown_tenant", "numbers": 0, "revision": "", "tenant": {"slug": ""}}),
        );
        assert_eq!(shown(&tenant).unwrap(), "unknown_tenant  0 numbers");
        let lost = event(
            "upstream",
            json!({"level": false, "stale": false, "feed": "backoff", "staleness_ms": 1200}),
        );
        assert_eq!(
            shown(&lost).unwrap(),
            "upstream lost (backoff); answers are 1.2 s old"
        );
        let beat = event("heartbeat", json!({"level": true}));
        assert_eq!(shown(&beat), None);
        assert_eq!(
            beat.line(true).unwrap(),
            "{\"data\":{\"level\":true},\"event\":\"heartbeat\",\"id\":\"\"}\n"
        );
    }

    #[test]
    fn a_pause_is_never_longer_than_it_is_said_to_be() {
        for _ in 0..100 {
            let pause = jittered(PAUSE_MOST);
            assert!(pause >= PAUSE_MOST / 2 && pause <= PAUSE_MOST);
        }
    }
}
