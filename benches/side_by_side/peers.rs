//! What sidetone is measured beside: the raw limit, a web server, a key-value store, the database itself. Each is a
//! process of its own with its socket in the run's directory, ended with it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;
use rustix::process::{Pid, Signal};

use crate::load::{At, Framing, Question, Target};

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

    /// The load of [`echo`](Self::echo) that asks this question and gets so many bytes.
    pub(crate) fn echoed(&self, question: &Question, answer: usize) -> Target {
        Target {
            at: At::Unix(self.socket.clone()),
            framing: Framing::Fixed(answer),
            questions: Arc::new(vec![Question {
                bytes: question.bytes.clone(),
                proof: b"x".to_vec(),
            }]),
            hello: Vec::new(),
            fresh: false,
            server: Some(self.pid()),
        }
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

/// How Postgres is asked for the whole configuration of a number, in one query prepared once on each connection.
pub(crate) struct Join {
    pub(crate) hello: Vec<Vec<u8>>,
}

impl Join {
    /// The members and the order are those of `/v1/resolve`; what the node works out from them for one call (local time,
    /// opening hours, which bindings match, revision, staleness) is left out, so it does less than a node does.
    pub(crate) const SQL: &str = "
        select json_build_object(
            'status', 'ok', 'number', n.e164, 'label', coalesce(n.label, ''),
            'tenant', json_build_object('id', t.id, 'slug', t.slug, 'name', t.name),
            'language', n.default_language, 'voice', coalesce(n.default_voice, ''), 'timezone', n.timezone,
            'business_hours', s.business_hours, 'model', s.model,
            'transcription_provider', coalesce(s.transcription_provider, ''), 'recording_enabled', s.recording_enabled,
            'prompt', (
                select json_build_object(
                    'ids', json_agg(p.id order by p.priority, p.id),
                    'system', string_agg(v.content, e'\\n\\n' order by p.priority, p.id),
                    'layers', json_agg(json_build_object('id', p.id, 'version', v.version, 'name', p.name, 'scope', p.scope,
                        'priority', p.priority, 'content', v.content, 'bindings', b.bindings) order by p.priority, p.id))
                  from public.prompts p
                  join lateral (
                    select version, content from public.prompt_versions
                     where prompt_id = p.id order by version desc limit 1) v on true
                  left join lateral (
                    select json_agg(json_build_object('account_ref', account_ref, 'event_type', event_type,
                                                      'phone_number_id', phone_number_id, 'conditions', conditions_json)) as bindings
                      from public.prompt_bindings where prompt_id = p.id) b on true
                 where p.tenant_id = t.id and p.active))::text
          from public.tenant_phone_numbers n
          join public.tenants t on t.id = n.tenant_id
          left join public.tenant_settings s on s.tenant_id = t.id
         where n.e164 = $1";

    pub(crate) fn prepared(user: &str, database: &str) -> Self {
        let mut startup = BytesMut::new();
        let who = [("user", user), ("database", database)];
        frontend::startup_message(who, &mut startup).expect("a short message");
        let mut plan = BytesMut::new();
        // One plan for every number, after the first executions as before them.
        frontend::query("set plan_cache_mode = force_generic_plan", &mut plan)
            .expect("a short message");
        let mut prepare = BytesMut::new();
        frontend::parse("join", Self::SQL, [], &mut prepare).expect("a short message");
        frontend::sync(&mut prepare);
        Self {
            hello: [startup, plan, prepare].map(|bytes| bytes.to_vec()).into(),
        }
    }

    pub(crate) fn question(e164: &str) -> Question {
        let mut bytes = BytesMut::new();
        let value = |value: &str, into: &mut BytesMut| {
            into.extend_from_slice(value.as_bytes());
            Ok(IsNull::No)
        };
        assert!(
            frontend::bind("", "join", [0], [e164], value, [0], &mut bytes).is_ok(),
            "a short message"
        );
        frontend::execute("", 0, &mut bytes).expect("a short message");
        frontend::sync(&mut bytes);
        Question {
            bytes: bytes.to_vec(),
            proof: e164.as_bytes().to_vec(),
        }
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
