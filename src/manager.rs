//! The service manager: what it is told, and its watchdog, which is fed with answers.
//!
//! A node that is alive but answers nobody is of no use to a call. So the watchdog is fed only after the node has
//! answered a question of its own that came through its call socket as a caller's does: found by its path, accepted, let
//! in, read, looked up in memory or in the replica, written. What the answer says is not judged: starting anew
//! mends neither a row nor a disk.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use sd_notify::NotifyState;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::cause;
use crate::engine::Engine;
use crate::http::Address;

/// Longest answer to a question of our own; a short view has less than 4 KB.
const MOST_BYTES: usize = 64 * 1024;

/// Tells systemd, where it is the one that started us.
pub fn tell(state: NotifyState<'_>) {
    if let Err(err) = sd_notify::notify(&[state]) {
        tracing::debug!(error = %err, "the service manager cannot be told");
    }
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
enum Unanswered {
    #[error("nobody can connect")]
    Connect(#[source] std::io::Error),
    #[error("the connection broke")]
    Broken(#[source] hyper::Error),
    #[error("the answer broke off")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the question cannot be written")]
    Question(#[source] hyper::http::Error),
    #[error("not within {0:?}")]
    Late(Duration),
}

/// The watchdog of the service manager that started this process.
#[derive(Debug)]
pub struct Watchdog {
    /// It bites when it was not fed for so long.
    bites_after: Duration,
    address: Option<Address>,
    engine: Arc<Engine>,
}

impl Watchdog {
    /// The watchdog, where there is one. Calls are answered at `address`.
    #[must_use]
    pub fn of_process(address: Option<Address>, engine: Arc<Engine>) -> Option<Self> {
        Some(Self {
            bites_after: sd_notify::watchdog_enabled().filter(|after| !after.is_zero())?,
            address,
            engine,
        })
    }

    /// Feeds it, twice in its time, as long as questions are answered. While the node drains it is fed without one: nobody
    /// is let in any more, and the drain has a bound of its own.
    pub async fn feed(self, draining: CancellationToken) {
        let (fed, hungry) = (self.part(2), self.part(10));
        let mut asked_for = String::new();
        loop {
            let answered = tokio::select! {
                () = draining.cancelled() => Ok(()),
                answered = self.ask(&mut asked_for) => answered,
            };
            let pause = match answered {
                Ok(()) => {
                    tell(NotifyState::Watchdog);
                    fed
                }
                Err(err) => {
                    tracing::warn!(
                        error = cause::chain(&err),
                        "the node does not answer itself; if that lasts, the service manager starts it anew"
                    );
                    hungry
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Asks once. Each time for another number, so that no row is taken for the node; for none where none is held.
    async fn ask(&self, asked_for: &mut String) -> Result<(), Unanswered> {
        let limit = self.part(4);
        let asked = async {
            let target = match self.number_after(std::mem::take(asked_for)).await {
                Some(number) => {
                    let target = format!("/v1/lookup?to=%2B{}", number.trim_start_matches('+'));
                    *asked_for = number;
                    target
                }
                None => "/healthz".to_owned(),
            };
            let code = match &self.address {
                Some(Address::Unix(path)) => {
                    let stream = UnixStream::connect(path).await;
                    exchange(stream.map_err(Unanswered::Connect)?, &target).await?
                }
                // Over TCP nobody knows that it is us who ask, and callers' questions are counted.
                Some(Address::Tcp(address)) => {
                    let stream = TcpStream::connect(address).await;
                    exchange(stream.map_err(Unanswered::Connect)?, "/healthz").await?
                }
                None => return Ok(()),
            };
            tracing::debug!(code = code.as_u16(), "the node answers itself");
            Ok(())
        };
        tokio::time::timeout(limit, asked)
            .await
            .unwrap_or(Err(Unanswered::Late(limit)))
    }

    fn part(&self, of: u32) -> Duration {
        self.bites_after.checked_div(of).unwrap_or(self.bites_after)
    }

    async fn number_after(&self, number: String) -> Option<String> {
        if !self.engine.health().is_synced() {
            return None;
        }
        let engine = Arc::clone(&self.engine);
        let read = move || engine.replica().view().ok()?.number_after(&number).ok()?;
        tokio::task::spawn_blocking(read).await.ok()?
    }
}

/// One question and its whole answer.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    target: &str,
) -> Result<StatusCode, Unanswered> {
    let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(Unanswered::Broken)?;
    // As callers ask: nothing here that would be answered in another way than theirs.
    let request = Request::get(target)
        .header(header::HOST, "localhost")
        .body(Empty::<Bytes>::new())
        .map_err(Unanswered::Question)?;
    let answer = async move {
        let answer = send.send_request(request).await;
        let (head, body) = answer.map_err(Unanswered::Broken)?.into_parts();
        let body = Limited::new(body, MOST_BYTES).collect().await;
        body.map_err(Unanswered::Body)?;
        Ok(head.status)
    };
    // The connection ends once `send` is dropped with the answer.
    let (code, _) = tokio::join!(answer, connection);
    code
}
