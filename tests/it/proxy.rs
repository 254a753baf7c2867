//! A bad network between a node and Postgres: everything passes through here, and goes wrong on request.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What happens to what passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weather {
    /// Everything passes.
    Fair,
    /// New connections are closed at once, standing ones too.
    Refuse,
    /// Nothing passes either way and nothing is closed: a black hole.
    Freeze,
    /// What Postgres says does not arrive.
    DeafNode,
    /// What the node says does not arrive.
    MuteNode,
    /// Every piece is late by this much each way.
    Delay(Duration),
    /// A byte at a time, with this pause.
    Trickle(Duration),
    /// One byte of each piece from Postgres is another.
    Corrupt,
    /// New connections are taken and never answered; standing ones go on.
    Silent,
    /// Somebody in between: says that the server has no TLS, and carries on with what follows in the clear.
    StripTls,
}

/// What asks for TLS.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
/// Most that is remembered of what nodes said.
const MOST_HEARD: usize = 64 * 1024;

impl Weather {
    fn stops(self, from_server: bool) -> bool {
        match self {
            Self::Freeze => true,
            Self::DeafNode => from_server,
            Self::MuteNode => !from_server,
            _ => false,
        }
    }
}

/// A proxy before one server. Dropped, it is gone with its connections.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    weather: Arc<watch::Sender<Weather>>,
    upstream: Arc<AtomicU16>,
    heard: Heard,
    task: JoinHandle<()>,
}

type Heard = Arc<Mutex<Vec<u8>>>;

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.weather.send_replace(Weather::Refuse);
    }
}

impl Proxy {
    pub(crate) async fn before(upstream: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let weather = Arc::new(watch::channel(Weather::Fair).0);
        let told = Arc::clone(&weather);
        let upstream = Arc::new(AtomicU16::new(upstream));
        let to = Arc::clone(&upstream);
        let heard = Heard::default();
        let ear = Arc::clone(&heard);
        let task = tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else {
                    continue;
                };
                let weather = told.subscribe();
                let now = *weather.borrow();
                match now {
                    Weather::Refuse => reset(client),
                    Weather::Silent => {
                        tokio::spawn(hold(client, weather));
                    }
                    _ => {
                        tokio::spawn(carry(
                            client,
                            to.load(Ordering::Acquire),
                            weather,
                            Arc::clone(&ear),
                        ));
                    }
                }
            }
        });
        Self {
            port,
            weather,
            upstream,
            heard,
            task,
        }
    }

    /// From now on another server is behind it; standing connections are reset.
    pub(crate) async fn redirect(&self, upstream: u16) {
        self.upstream.store(upstream, Ordering::Release);
        self.cut().await;
    }

    /// The first of what was said to the server since the last call, of all connections together.
    pub(crate) fn heard(&self) -> Vec<u8> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }

    pub(crate) fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Resets every standing connection and lets new ones through.
    pub(crate) async fn cut(&self) {
        self.set(Weather::Refuse);
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        self.set(Weather::Fair);
    }

    /// A URL of a database behind it.
    pub(crate) fn url(&self, database: &str) -> String {
        format!(
            "postgres://sidetone@127.0.0.1:{}/{database}?sslmode=disable",
            self.port
        )
    }
}

fn reset(stream: TcpStream) {
    // A linger of zero makes the close a reset.
    let _ = stream.set_zero_linger();
}

async fn hold(client: TcpStream, mut weather: watch::Receiver<Weather>) {
    let _ = weather
        .wait_for(|now| !matches!(now, Weather::Silent))
        .await;
    drop(client);
}

async fn carry(
    mut client: TcpStream,
    upstream: u16,
    weather: watch::Receiver<Weather>,
    heard: Heard,
) {
    let stripped = *weather.borrow() == Weather::StripTls;
    if stripped {
        let mut request = [0; 8];
        if client.read_exact(&mut request).await.is_err() {
            return;
        }
        remember(&heard, &request);
        if request != SSL_REQUEST || client.write_all(b"N").await.is_err() {
            return reset(client);
        }
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", upstream)).await else {
        return reset(client);
    };
    let (_, _) = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let mut refused = weather.clone();
    tokio::select! {
        () = pass(client_read, server_write, weather.clone(), Some(&heard)) => {}
        () = pass(server_read, client_write, weather, None) => {}
        _ = refused.wait_for(|now| matches!(now, Weather::Refuse)) => {}
    }
}

fn remember(heard: &Heard, bytes: &[u8]) {
    let mut heard = heard.lock().unwrap();
    let room = MOST_HEARD.saturating_sub(heard.len());
    heard.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

/// `heard` is where it is remembered; `None` for what comes from the server.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
    heard: Option<&Heard>,
) {
    let from_server = heard.is_none();
    let mut piece = vec![0; 16 * 1024];
    loop {
        if weather
            .wait_for(|now| !now.stops(from_server))
            .await
            .is_err()
        {
            return;
        }
        let Ok(length @ 1..) = from.read(&mut piece).await else {
            return;
        };
        if weather
            .wait_for(|now| !now.stops(from_server))
            .await
            .is_err()
        {
            return;
        }
        let now = *weather.borrow();
        let bytes = &mut piece[..length];
        if let Some(heard) = heard {
            remember(heard, bytes);
        }
        match now {
            Weather::Delay(time) => tokio::time::sleep(time).await,
            Weather::Corrupt if from_server => bytes[length / 2] ^= 0x40,
            Weather::Trickle(pause) => {
                for byte in bytes.iter() {
                    if to.write_all(&[*byte]).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(pause).await;
                }
                continue;
            }
            _ => {}
        }
        if to.write_all(bytes).await.is_err() {
            return;
        }
    }
}
