//! What was counted up to an instant, as plain numbers, and what was counted between two.

use prometheus::Histogram;
use prometheus::core::Metric;

use super::{Label, Metrics, Outcome, Route};

/// Routes that answer about a number.
const QUESTIONS: [Route; 5] = [
    Route::Lookup,
    Route::Field,
    Route::Resolve,
    Route::Credentials,
    Route::Explain,
];

/// Counts since the node began, or since an earlier reading.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reading {
    /// Questions answered, by how they ended.
    pub lookups: Vec<(Outcome, u64)>,
    /// Seconds that questions about a number took.
    pub requests: Distribution,
    /// Seconds from changes in Postgres to their answers.
    pub visible: Distribution,
    /// Profiles served from memory.
    pub hits: u64,
    /// Profiles built from the replica.
    pub fills: u64,
}

impl Reading {
    /// Everything counted so far.
    #[must_use]
    pub fn of(metrics: &Metrics) -> Self {
        let of_routes = QUESTIONS
            .iter()
            .filter_map(|route| metrics.request_duration.of(*route))
            .map(Distribution::of);
        Self {
            lookups: Outcome::ALL
                .iter()
                .map(|outcome| (*outcome, metrics.lookups.get(*outcome)))
                .collect(),
            requests: of_routes.reduce(Distribution::and).unwrap_or_default(),
            visible: Distribution::of(&metrics.commit_to_visible),
            hits: metrics.cache_hits.get(),
            fills: metrics.cache_fills.get(),
        }
    }

    /// What was counted after an earlier reading.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let counts = self.lookups.iter().zip(&earlier.lookups);
        Self {
            lookups: counts
                .map(|((outcome, now), (_, then))| (*outcome, now.saturating_sub(*then)))
                .collect(),
            requests: self.requests.since(&earlier.requests),
            visible: self.visible.since(&earlier.visible),
            hits: self.hits.saturating_sub(earlier.hits),
            fills: self.fills.saturating_sub(earlier.fills),
        }
    }

    /// The part of all profiles that came from memory; `None` where none was wanted.
    #[must_use]
    pub fn hit_ratio(&self) -> Option<f64> {
        let all = self.hits.saturating_add(self.fills);
        (all > 0).then(|| count(self.hits) / count(all))
    }
}

/// How many observations fell below each bound.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Distribution {
    /// Bounds ascending, with the number of observations up to each.
    below: Vec<(f64, u64)>,
    total: u64,
}

impl Distribution {
    fn of(histogram: &Histogram) -> Self {
        let metric = histogram.metric();
        let shown = metric.get_histogram();
        Self {
            below: shown
                .get_bucket()
                .iter()
                .map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()))
                .collect(),
            total: shown.get_sample_count(),
        }
    }

    /// Both, of the same bounds.
    fn and(self, other: Self) -> Self {
        self.with(&other, u64::saturating_add)
    }

    fn since(&self, earlier: &Self) -> Self {
        self.clone().with(earlier, u64::saturating_sub)
    }

    fn with(mut self, other: &Self, both: impl Fn(u64, u64) -> u64) -> Self {
        for ((_, mine), (_, theirs)) in self.below.iter_mut().zip(&other.below) {
            *mine = both(*mine, *theirs);
        }
        self.total = both(self.total, other.total);
        self
    }

    /// The value that this part of all observations does not exceed, taken as spread evenly between two bounds, as
    /// Prometheus's `histogram_quantile` does; the last bound where it lies beyond that. `None` of nothing.
    #[must_use]
    pub fn quantile(&self, part: f64) -> Option<f64> {
        if self.total == 0 {
            return None;
        }
        let rank = part.clamp(0.0, 1.0) * count(self.total);
        let (mut bound_before, mut before) = (0.0, 0.0);
        for (bound, below) in &self.below {
            let below = count(*below);
            if below >= rank && below > before {
                return Some(
                    bound_before + (bound - bound_before) * (rank - before) / (below - before),
                );
            }
            (bound_before, before) = (*bound, below);
        }
        Some(bound_before)
    }
}

#[allow(clippy::cast_precision_loss)] // counts of a second
fn count(of: u64) -> f64 {
    of as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(below: &[(f64, u64)], total: u64) -> Distribution {
        Distribution {
            below: below.to_vec(),
            total,
        }
    }

    #[test]
    fn a_quantile_lies_between_the_bounds_that_hold_it() {
        let even = of(&[(1.0, 0), (2.0, 100), (4.0, 100)], 100);
        assert_eq!(even.quantile(0.5), Some(1.5));
        assert_eq!(even.quantile(1.0), Some(2.0));
        let skewed = of(&[(1.0, 90), (2.0, 90), (4.0, 100)], 100);
        assert_eq!(skewed.quantile(0.95), Some(3.0));
        assert_eq!(skewed.quantile(0.45), Some(0.5));
    }

    #[test]
    fn what_lies_beyond_the_last_bound_is_told_as_that_and_nothing_as_nothing() {
        assert_eq!(of(&[(1.0, 1), (2.0, 1)], 4).quantile(0.99), Some(2.0));
        assert_eq!(of(&[(1.0, 0), (2.0, 0)], 0).quantile(0.5), None);
        assert_eq!(of(&[], 3).quantile(0.5), Some(0.0));
    }

    #[test]
    fn two_readings_tell_what_happened_between_them_and_nothing_before() {
        let metrics = Metrics::new().unwrap();
        metrics.lookups.inc_by(Outcome::Ok, 7);
        metrics.request_duration.observe(Route::Lookup, 2.0);
        metrics.request_duration.observe(Route::Watch, 2.0);
        let before = Reading::of(&metrics);
        metrics.lookups.inc_by(Outcome::Ok, 3);
        metrics.lookups.inc(Outcome::UnknownNumber);
        metrics.cache_hits.inc_by(3);
        metrics.cache_fills.inc();
        metrics.request_duration.observe(Route::Field, 40e-6);
        metrics.request_duration.observe(Route::Other, 2.0);
        let between = Reading::of(&metrics).since(&before);
        let told = |outcome| {
            let found = between.lookups.iter().find(|(of, _)| *of == outcome);
            found.unwrap().1
        };
        assert_eq!((told(Outcome::Ok), told(Outcome::UnknownNumber)), (3, 1));
        assert_eq!(between.hit_ratio(), Some(0.75));
        let p99 = between.requests.quantile(0.99).unwrap();
        assert!((25e-6..=50e-6).contains(&p99), "{p99}");
        assert_eq!(between.visible.quantile(0.5), None);
        assert_eq!(
            Reading::of(&metrics)
                .since(&Reading::of(&metrics))
                .hit_ratio(),
            None
        );
    }
}
