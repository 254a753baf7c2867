//! What sidetone is measured beside: the raw limit, a web server, a key-value store, the database itself. Each is a
//! process of its own with its socket in the run's directory, ended with it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

const PATIENCE: Duration = Duration::from_secs(20);

/// A peer's process. Dropped, it is gone.
pub(crate) struct Peer {
    child: Child,
    pub(crate) socket: PathBuf,
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Asked first: a killed master of nginx would leave its workers behind, and they its port taken.
        let _ = rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM);
        let began = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && began.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peer {
    fn start(mut command: Command, socket: PathBuf, dir: &Path) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(dir.join("peers.log"));
        let log = log.expect("a log in the run's directory");
        let child = command
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle of the log"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|err| panic!("{name}: {err}; scripts/ensure-peers installs it"));
        let peer = Self { child, socket };
        let began = Instant::now();
        while UnixStream::connect(&peer.socket).is_err() {
            assert!(
                began.elapsed() < PATIENCE,
                "{name} does not listen; see {dir:?}/peers.log"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        peer
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// This program as the raw limit: a blocking thread for each connection, a `read`, a `write`, no look at the bytes.
    pub(crate) fn echo(dir: &Path, request: usize, answer: usize) -> Self {
        let socket = dir.join("echo.sock");
        let mut command = Command::new(std::env::current_exe().expect("this program's path"));
        command
            .arg("--echo")
            .arg(&socket)
            .arg(request.to_string())
            .arg(answer.to_string());
        Self::start(command, socket, dir)
    }

    /// nginx with a worker for each core: `/text` from its configuration, `/file` from a file.
    pub(crate) fn nginx(dir: &Path, tcp: u16, body: &str) -> Self {
        let socket = dir.join("nginx.sock");
        fs::create_dir_all(dir.join("html")).expect("a directory for nginx");
        fs::write(dir.join("html/file"), body).expect("a file for nginx");
        // A parameter of nginx's configuration holds less than 4 KiB.
        let characters: Vec<char> = body.chars().collect();
        let mut pieces = String::new();
        let mut text = String::new();
        for (number, piece) in characters.chunks(1000).enumerate() {
            let piece: String = piece.iter().collect();
            let escaped = piece.replace('\\', "\\\\").replace('\'', "\\'");
            pieces += &format!("set $p{number} '{escaped}'; ");
            text += &format!("$p{number}");
        }
        let config = format!(
            "daemon off; pid {dir}/nginx.pid; error_log {dir}/nginx.err; worker_processes 2;
             events {{ worker_connections 4096; }}
             http {{
               access_log off; keepalive_requests 1000000000; keepalive_timeout 600;
               default_type application/json; open_file_cache max=100; root {dir}/html;
               client_body_temp_path {dir}/t1; proxy_temp_path {dir}/t2; fastcgi_temp_path {dir}/t3;
               uwsgi_temp_path {dir}/t4; scgi_temp_path {dir}/t5;
               server {{ listen unix:{socket} backlog=1024; listen 127.0.0.1:{tcp} backlog=1024;
                 location /text {{ {pieces} return 200 '{text}'; }}
                 location /file {{ }} }} }}",
            dir = dir.display(),
            socket = socket.display(),
        );
        fs::write(dir.join("nginx.conf"), config).expect("a configuration for nginx");
        let mut command = Command::new("nginx");
        command
            .arg("-c")
            .arg(dir.join("nginx.conf"))
            .arg("-e")
            .arg(dir.join("nginx.err"));
        if rustix::process::geteuid().is_root() {
            command.arg("-g").arg("user root;");
        }
        Self::start(command, socket, dir)
    }

    /// Redis without persistence, each key holding the ready answer.
    pub(crate) fn redis(dir: &Path, answers: impl Iterator<Item = (String, String)>) -> Self {
        let socket = dir.join("redis.sock");
        let mut command = Command::new("redis-server");
        command.args([
            "--port",
            "0",
            "--save",
            "",
            "--appendonly",
            "no",
            "--unixsocket",
        ]);
        command.arg(&socket);
        let peer = Self::start(command, socket, dir);
        let mut stream = UnixStream::connect(&peer.socket).expect("a connection to Redis");
        let mut count = 0_usize;
        let mut batch = Vec::new();
        let mut taken = |batch: &mut Vec<u8>, count: &mut usize| {
            stream.write_all(batch).expect("Redis takes keys");
            let mut ok = vec![0; *count * 5];
            stream.read_exact(&mut ok).expect("Redis says OK");
            assert!(
                ok.chunks(5).all(|answer| answer == b"+OK\r\n"),
                "Redis refuses a key"
            );
            batch.clear();
            *count = 0;
        };
        for (key, value) in answers {
            batch.extend_from_slice(
                format!(
                    "*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n{value}\r\n",
                    key.len(),
                    value.len()
                )
                .as_bytes(),
            );
            count += 1;
            if count == 500 {
                taken(&mut batch, &mut count);
            }
        }
        taken(&mut batch, &mut count);
        peer
    }
}

/// Answers every `request` bytes with `answer` bytes.
pub(crate) fn be_echo(socket: &Path, request: usize, answer: usize) -> ! {
    let listener = UnixListener::bind(socket).expect("a socket for the echo");
    let body: Vec<u8> = std::iter::repeat_n(b'x', answer).collect();
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let body = body.clone();
        let one = move || {
            let mut buffer = [0; 4096];
            let mut have = 0;
            while let Ok(read @ 1..) = stream.read(&mut buffer) {
                have += read;
                while have >= request {
                    have -= request;
                    if stream.write_all(&body).is_err() {
                        return;
                    }
                }
            }
        };
        let started = std::thread::Builder::new()
            .stack_size(128 * 1024)
            .spawn(one);
        started.expect("a thread for a connection");
    }
    std::process::exit(0)
}
