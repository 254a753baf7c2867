//! Hours of misfortunes: what the judge finds, and whether memory and descriptors stay where they are.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::faults::ordeal;

/// What may be added to a fifth more before it counts as growth.
const SPARE_BYTES: f64 = 16e6;
const SPARE_DESCRIPTORS: f64 = 8.0;
const EVERY: Duration = Duration::from_secs(2);

struct Sample {
    at: Duration,
    resident: f64,
    descriptors: f64,
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes SIDETONE_SOAK_MINUTES; make soak runs it"]
async fn after_minutes_of_faults_nothing_is_wrong_and_nothing_has_grown() {
    let minutes: u64 =
        std::env::var("SIDETONE_SOAK_MINUTES").map_or(10, |text| text.parse().unwrap());
    let mut samples: Vec<Sample> = Vec::new();
    ordeal(minutes * 60, false, async |socket| {
        let began = Instant::now();
        let mut told = 0;
        while began.elapsed() < Duration::from_secs(minutes * 60) {
            samples.extend(sample(&socket, began).await);
            let minute = began.elapsed().as_secs() / 60;
            if minute > told
                && let Some(last) = samples.last()
            {
                told = minute;
                println!(
                    "minute {minute}: {:.1} MB resident, {} descriptors",
                    last.resident / 1e6,
                    last.descriptors
                );
            }
            tokio::time::sleep(EVERY).await;
        }
        curve(&samples);
    })
    .await;
    for (what, of, spare) in [
        (
            "bytes resident",
            (|sample| sample.resident) as fn(&Sample) -> f64,
            SPARE_BYTES,
        ),
        (
            "descriptors",
            |sample| sample.descriptors,
            SPARE_DESCRIPTORS,
        ),
    ] {
        let values: Vec<f64> = samples.iter().map(of).collect();
        if let Some((middle, last)) = grown(&values, spare) {
            panic!("{what}: from {middle} in the middle third to {last} in the last");
        }
    }
}

/// A node that is slow just now is asked again with the next sample.
async fn sample(socket: &Path, began: Instant) -> Option<Sample> {
    let stream = tokio::net::UnixStream::connect(socket).await.ok()?;
    let request = "GET /metrics HTTP/1.1\r\nHost: l\r\nConnection: close\r\n\r\n";
    let text = crate::node::exchange(stream, request).await.ok()?.body;
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.trim().parse().ok())
    };
    Some(Sample {
        at: began.elapsed(),
        resident: value("process_resident_memory_bytes ")?,
        descriptors: value("process_open_fds ")?,
    })
}

/// The medians of the middle and the last third, where the last is more than a fifth larger.
fn grown(values: &[f64], spare: f64) -> Option<(f64, f64)> {
    let third = values.len() / 3;
    let median = |part: &[f64]| {
        let mut part = part.to_vec();
        part.sort_by(f64::total_cmp);
        part.get(part.len() / 2).copied().unwrap_or(0.0)
    };
    let (middle, last) = (
        median(&values[third..2 * third]),
        median(&values[2 * third..]),
    );
    (last > middle * 1.2 + spare).then_some((middle, last))
}

/// Thirty lines: time, memory, descriptors.
fn curve(samples: &[Sample]) {
    let most = samples.iter().map(|s| s.resident).fold(1.0, f64::max);
    println!("{:>8} {:>10} {:>6}", "seconds", "MB", "fds");
    for sample in samples.iter().step_by(samples.len().div_ceil(30).max(1)) {
        let length = (sample.resident / most * 40.0).round();
        println!(
            "{:>8} {:>10.1} {:>6} {}",
            sample.at.as_secs(),
            sample.resident / 1e6,
            sample.descriptors,
            "#".repeat(length as usize)
        );
    }
}

#[test]
fn growth_is_found_and_a_plateau_is_not() {
    let growing: Vec<f64> = (0..90).map(f64::from).collect();
    assert!(grown(&growing, 5.0).is_some());
    assert!(grown(&[10.0; 90], 5.0).is_none());
    let warm: Vec<f64> = (0..90).map(|i| f64::from(i.min(20))).collect();
    assert!(grown(&warm, 1.0).is_none());
}
