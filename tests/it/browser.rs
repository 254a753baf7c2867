//! A headless Chromium, driven over WebDriver (W3C) as somebody at the keyboard would.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, MutexGuard};

use crate::cluster::scratch;
use crate::node::{PATIENCE, exchange};

/// Keys of WebDriver that are no characters.
pub(crate) const TAB: &str = "\u{e004}";
pub(crate) const ENTER: &str = "\u{e007}";
pub(crate) const SPACE: &str = " ";

/// How WebDriver calls an element in JSON.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// What a browser takes of the machine is enough for one at a time.
static ONE: Mutex<()> = Mutex::const_new(());

/// A browser with a profile of its own. Dropped, it is gone.
pub(crate) struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _one: MutexGuard<'static, ()>,
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver ends its browser when it is asked to, and not when it is killed.
        let pid = rustix::process::Pid::from_child(&self.driver);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.driver.wait();
    }
}

impl Browser {
    /// One whose user prefers these languages.
    pub(crate) async fn open(languages: &str) -> Self {
        let one = ONE.lock().await;
        let dir = scratch("browser");
        let mut driver = Command::new("chromedriver")
            .current_dir(&dir)
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|err| panic!("chromedriver: {err}; run scripts/ensure-chromium"));
        let mut said = BufReader::new(driver.stdout.take().unwrap());
        let port = loop {
            let mut line = String::new();
            assert!(said.read_line(&mut line).unwrap() > 0, "chromedriver ended");
            if let Some((_, port)) = line.split_once("started successfully on port ") {
                break port.trim().trim_end_matches('.').parse().unwrap();
            }
        };
        let mut browser = Self {
            driver,
            port,
            session: String::new(),
            _one: one,
        };
        let profile = dir.join("profile");
        let options = json!({"capabilities": {"alwaysMatch": {
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            "goog:chromeOptions": {
                "args": [
                    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic",
                    "--no-first-run", "--disable-background-networking", "--disable-component-update",
                    "--disable-sync", "--window-size=1280,1000", "--lang=en-US",
                    format!("--user-data-dir={}", profile.display()),
                ],
                "prefs": {"intl": {"accept_languages": languages, "selected_languages": languages}},
            },
        }}});
        let opened = browser.post("", &options).await;
        browser.session = opened["sessionId"].as_str().unwrap().to_owned();
        browser
    }

    async fn ask(&self, method: &str, what: &str, body: Option<&Value>) -> Result<Value, Value> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let session = if self.session.is_empty() {
            "/session".to_owned()
        } else {
            format!("/session/{}{what}", self.session)
        };
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = format!(
            "{method} {session} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let reply = exchange(stream, &request).await.unwrap();
        let value = reply.json()["value"].clone();
        if reply.status == 200 {
            Ok(value)
        } else {
            Err(value)
        }
    }

    async fn post(&self, what: &str, body: &Value) -> Value {
        self.ask("POST", what, Some(body))
            .await
            .unwrap_or_else(|err| panic!("{what}: {err:#}"))
    }

    pub(crate) async fn go(&self, url: &str) {
        self.post("/url", &json!({"url": url})).await;
    }

    pub(crate) async fn reload(&self) {
        self.post("/refresh", &json!({})).await;
    }

    /// What an expression of the page comes to; it may be a promise.
    pub(crate) async fn eval(&self, expression: &str) -> Value {
        let script = format!("return {expression}");
        self.post("/execute/sync", &json!({"script": script, "args": []}))
            .await
    }

    /// The text of an element as it is seen; empty where there is none.
    pub(crate) async fn text(&self, css: &str) -> String {
        let text = self
            .eval(&format!("document.querySelector({css:?})?.innerText ?? ''"))
            .await;
        text.as_str().unwrap().to_owned()
    }

    /// Waits until an expression holds.
    pub(crate) async fn until(&self, expression: &str) {
        self.within(PATIENCE, expression).await;
    }

    /// Waits until an expression holds, and tells how long that took.
    pub(crate) async fn within(&self, most: Duration, expression: &str) -> Duration {
        let began = Instant::now();
        while self.eval(&format!("Boolean({expression})")).await != true {
            if began.elapsed() > most {
                self.picture("failed").await;
                let seen = self.text("body").await;
                panic!("not within {most:?}: {expression}\n{seen}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        began.elapsed()
    }

    /// Waits until an element's text holds this.
    pub(crate) async fn reads(&self, css: &str, what: &str) {
        self.until(&format!(
            "document.querySelector({css:?})?.innerText.includes({what:?})"
        ))
        .await;
    }

    async fn element(&self, css: &str) -> String {
        let found = self
            .post("/element", &json!({"using": "css selector", "value": css}))
            .await;
        found[ELEMENT].as_str().unwrap().to_owned()
    }

    /// Clicks where an element is.
    pub(crate) async fn click(&self, css: &str) {
        let element = self.element(css).await;
        self.post(&format!("/element/{element}/click"), &json!({}))
            .await;
    }

    /// Types into a field.
    pub(crate) async fn fill(&self, css: &str, text: &str) {
        let element = self.element(css).await;
        self.post(&format!("/element/{element}/clear"), &json!({}))
            .await;
        self.post(&format!("/element/{element}/value"), &json!({"text": text}))
            .await;
    }

    /// Types where the focus is.
    pub(crate) async fn keys(&self, keys: &str) {
        let actions: Vec<Value> = keys
            .chars()
            .flat_map(|key| {
                ["keyDown", "keyUp"].map(|what| json!({"type": what, "value": key.to_string()}))
            })
            .collect();
        let keyboard = json!({"actions": [{"type": "key", "id": "keyboard", "actions": actions}]});
        self.post("/actions", &keyboard).await;
    }

    /// Presses Tab until the focus is on an element.
    pub(crate) async fn tab_to(&self, css: &str) {
        for _ in 0..60 {
            if self
                .eval(&format!(
                    "document.activeElement?.matches({css:?}) ?? false"
                ))
                .await
                == true
            {
                return;
            }
            self.keys(TAB).await;
        }
        panic!("Tab does not get to {css}");
    }

    /// A command of the DevTools protocol.
    pub(crate) async fn devtools(&self, command: &str, params: Value) -> Value {
        self.post(
            "/goog/cdp/execute",
            &json!({"cmd": command, "params": params}),
        )
        .await
    }

    pub(crate) async fn width(&self, width: u32) {
        let size = json!({"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": false});
        self.devtools("Emulation.setDeviceMetricsOverride", size)
            .await;
    }

    pub(crate) async fn colours(&self, scheme: &str) {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", features).await;
    }

    /// The whole page as an image below `target/tmp`.
    pub(crate) async fn picture(&self, name: &str) -> PathBuf {
        let params = json!({"format": "png", "captureBeyondViewport": true});
        let taken = self.devtools("Page.captureScreenshot", params).await;
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("page-{name}.png"));
        let png = STANDARD.decode(taken["data"].as_str().unwrap()).unwrap();
        std::fs::write(&path, png).unwrap();
        path
    }

    /// What the console was told since the last time, at any level.
    pub(crate) async fn console(&self) -> Vec<String> {
        let lines = self.post("/se/log", &json!({"type": "browser"})).await;
        let lines = lines.as_array().unwrap();
        lines
            .iter()
            .map(|line| format!("{} {}", line["level"], line["message"]))
            .collect()
    }

    /// Every address asked for since the last time.
    pub(crate) async fn requests(&self) -> Vec<String> {
        let lines = self.post("/se/log", &json!({"type": "performance"})).await;
        let lines = lines.as_array().unwrap();
        lines
            .iter()
            .filter_map(|line| serde_json::from_str::<Value>(line["message"].as_str()?).ok())
            .filter(|line| line["message"]["method"] == "Network.requestWillBeSent")
            .map(|line| {
                line["message"]["params"]["request"]["url"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            })
            .collect()
    }
}
