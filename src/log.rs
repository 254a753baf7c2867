//! Log lines on standard error, and the filter that can be changed while the daemon runs.

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::Registry;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, fmt, reload};

use crate::config::{LogConfig, LogFormat};

/// Longest filter that is read.
const MOST_BYTES: usize = 4096;

/// Why logging cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The configured filter.
    #[error("log.filter: is no filter: {0}")]
    Filter(String),
    /// Something in this process logs already.
    #[error("log: a subscriber is set already")]
    Set(#[from] TryInitError),
}

/// The filter in force.
#[derive(Debug, Clone)]
pub struct LogControl(reload::Handle<EnvFilter, Registry>);

impl LogControl {
    /// Puts another filter in force: a level, or directives such as `info,sidetone::feed=debug`.
    ///
    /// # Errors
    /// What is wrong with the filter; the one before stays.
    pub fn set(&self, filter: &str) -> Result<(), String> {
        if filter.len() > MOST_BYTES {
            return Err(format!("longer than {MOST_BYTES} bytes"));
        }
        if filter.trim().is_empty() {
            return Err("is empty; name a level such as info, or off".to_owned());
        }
        let filter = EnvFilter::try_new(filter).map_err(|err| err.to_string())?;
        self.0.reload(filter).map_err(|err| err.to_string())
    }

    /// The filter in force, as directives.
    #[must_use]
    pub fn current(&self) -> String {
        self.0.with_current(ToString::to_string).unwrap_or_default()
    }
}

/// Begins to log, panics too, for the whole process, once.
///
/// # Errors
/// [`LogError`]
pub fn init(config: &LogConfig) -> Result<LogControl, LogError> {
    let (filter, control) = filter(&config.filter)?;
    let lines = fmt::layer().with_writer(std::io::stderr);
    match config.format {
        LogFormat::Json => {
            let lines = lines
                .json()
                .flatten_event(true)
                .with_current_span(true)
                .with_span_list(false);
            tracing_subscriber::registry()
                .with(filter)
                .with(lines)
                .try_init()?;
        }
        LogFormat::Text => {
            let lines = lines.with_ansi(false);
            tracing_subscriber::registry()
                .with(filter)
                .with(lines)
                .try_init()?;
        }
    }
    log_panics();
    Ok(control)
}

fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        // What it says may hold what was being read, a number say.
        tracing::error!(place, "panic");
        tracing::debug!(
            what = panic.payload_as_str().unwrap_or_default(),
            "what the panic said"
        );
    }));
}

/// A filter as a plain layer over everything: around a single layer a reload would panic.
fn filter(directives: &str) -> Result<(reload::Layer<EnvFilter, Registry>, LogControl), LogError> {
    let filter = EnvFilter::try_new(directives).map_err(|err| LogError::Filter(err.to_string()))?;
    let (layer, handle) = reload::Layer::new(filter);
    Ok((layer, LogControl(handle)))
}

/// A control that belongs to no subscriber, for tests of what has one.
#[cfg(test)]
pub(crate) fn unused() -> LogControl {
    let (layer, control) = filter("info").expect("a filter");
    // The filter lives as long as its layer.
    std::mem::forget(layer);
    control
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(buf)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Written {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    #[test]
    fn a_changed_filter_lets_debug_lines_through_and_a_bad_one_changes_nothing() {
        let written = Written::default();
        let (layer, control) = filter("info").unwrap();
        let make = {
            let written = written.clone();
            move || written.clone()
        };
        let subscriber = tracing_subscriber::registry()
            .with(layer)
            .with(fmt::layer().json().with_writer(make));
        tracing::subscriber::with_default(subscriber, || {
            for step in ["before", "after", "quiet"] {
                match step {
                    "after" => control.set("warn,sidetone=debug").unwrap(),
                    "quiet" => control.set("error").unwrap(),
                    _ => {}
                }
                tracing::debug!("debug {step}");
                tracing::info!("info {step}");
            }
            // The handle is good only as long as the subscriber is there.
            assert!(control.set("sidetone=loud").is_err());
            assert!(control.set(&"x".repeat(5000)).is_err());
            assert_eq!(control.current(), "error");
        });
        let text = written.text();
        assert!(
            !text.contains("debug before") && text.contains("info before"),
            "{text}"
        );
        assert!(
            text.contains("debug after") && text.contains("info after"),
            "{text}"
        );
        assert!(!text.contains("quiet"), "{text}");
    }

    #[test]
    fn a_panic_is_logged_by_its_place_and_what_it_says_at_debug_only() {
        let written = Written::default();
        let make = {
            let written = written.clone();
            move || written.clone()
        };
        let (layer, _control) = filter("info").unwrap();
        let subscriber = tracing_subscriber::registry()
            .with(layer)
            .with(fmt::layer().json().with_writer(make));
        tracing::subscriber::with_default(subscriber, || {
            let before = std::panic::take_hook();
            log_panics();
            let ended = std::panic::catch_unwind(|| panic!("while reading +14155550100"));
            std::panic::set_hook(before);
            assert!(ended.is_err());
        });
        let text = written.text();
        assert!(text.contains("src/log.rs:"), "{text}");
        assert!(!text.contains("14155550100"), "{text}");
    }
}
