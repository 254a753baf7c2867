//! When a tenant is open: the weekly hours and their exceptions, read once, asked per call.
//!
//! What is open is decided by local wall-clock time: by the civil date and time that the instant has
//! in the zone, never by time elapsed. Where clocks go back, the repeated hour is open both times or
//! neither; where they go forward, what was to open in the gap is open from the first instant after
//! it; a day that a zone leaves out still lends the following morning its overnight hours. No value
//! and no instant can make this panic.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use jiff::civil::{Date, DateTime, Weekday};
use jiff::tz::TimeZone;
use serde_json::{Map, Value};

/// Most intervals of one day.
pub const MAX_INTERVALS: usize = 24;

/// Most exceptions: three years of single days.
pub const MAX_EXCEPTIONS: usize = 1100;

/// Most characters of an unknown key that an error repeats.
const SHOWN_CHARS: usize = 32;

const MINUTES_PER_HOUR: u16 = 60;
const MINUTES_PER_DAY: u16 = 24 * MINUTES_PER_HOUR;

const WEEKDAYS: [(&str, Weekday); 7] = [
    ("mon", Weekday::Monday),
    ("tue", Weekday::Tuesday),
    ("wed", Weekday::Wednesday),
    ("thu", Weekday::Thursday),
    ("fri", Weekday::Friday),
    ("sat", Weekday::Saturday),
    ("sun", Weekday::Sunday),
];

/// The hours in which a tenant is open, as `business_hours` of its settings states them:
///
/// ```json
/// {"mon": ["09:00-13:00", "14:00-18:00"], "fri": ["22:00-06:00"],
///  "exceptions": {"2026-12-25": [], "12-24": ["09:00-12:00"]}}
/// ```
///
/// An interval holds its start and not its end, which may be `24:00`; one whose end is not after its
/// start runs past midnight (`09:00-09:00` for 24 hours) and belongs to the day it starts. A day that
/// is not named is closed. An exception replaces all that starts on its day, that of one date before
/// that of every year; the hours that run in from the day before stay that day's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BusinessHours {
    /// By days since Monday.
    week: [Day; 7],
    dates: BTreeMap<Date, Day>,
    /// By month and day of every year.
    yearly: BTreeMap<(i8, i8), Day>,
}

/// The intervals that start on one day.
type Day = Vec<Interval>;

/// Minutes since the midnight its day starts with: `start` below 24 hours, `end` after it and at most
/// 24 hours later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Interval {
    start: u16,
    end: u16,
}

/// Why `business_hours` cannot be used, and where in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HoursError {
    /// The value, or its `exceptions`, is something other than an object.
    #[error("{at}: must be an object of days")]
    NotAnObject {
        /// The value meant.
        at: Place,
    },
    /// A key that names no day.
    #[error("{at}: must be mon, tue, wed, thu, fri, sat, sun or exceptions")]
    NotAWeekday {
        /// The key met.
        at: Place,
    },
    /// An exception for a day that no calendar has, or written otherwise.
    #[error("{at}: must be a date such as 2026-12-25, or 12-25 for every year")]
    NotADate {
        /// The key met.
        at: Place,
    },
    /// A day whose hours are no list.
    #[error("{at}: must be a list of intervals such as \"09:00-13:00\", [] for closed")]
    NotAList {
        /// The day meant.
        at: Place,
    },
    /// An interval written otherwise, or with a time no clock shows.
    #[error("{at}: must be an interval such as \"09:00-13:00\", from 00:00 to 24:00")]
    NotAnInterval {
        /// The day and interval meant.
        at: Place,
    },
    /// An interval given before on the same day.
    #[error("{at}: repeats an interval of this day; leave one of them")]
    Repeated {
        /// The day and interval meant.
        at: Place,
    },
    /// A day with more than [`MAX_INTERVALS`].
    #[error("{at}: has more than {MAX_INTERVALS} intervals; join those that touch")]
    TooManyIntervals {
        /// The day meant.
        at: Place,
    },
    /// More than [`MAX_EXCEPTIONS`].
    #[error("{at}: has more than {MAX_EXCEPTIONS} days; remove those that are past")]
    TooManyExceptions {
        /// The exceptions.
        at: Place,
    },
}

/// A place in `business_hours`, shown as a path: `business_hours.exceptions.12-24[0]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    exceptions: bool,
    key: Option<String>,
    interval: Option<usize>,
}

impl Place {
    fn exceptions() -> Self {
        Self {
            exceptions: true,
            ..Self::default()
        }
    }

    /// The place of a key, which may be anything: made printable and short.
    fn key(&self, key: &str) -> Self {
        let mut shown: String = key
            .chars()
            .take(SHOWN_CHARS)
            .flat_map(char::escape_debug)
            .collect();
        if key.chars().nth(SHOWN_CHARS).is_some() {
            shown.push('…');
        }
        Self {
            key: Some(shown),
            ..self.clone()
        }
    }

    fn interval(&self, index: usize) -> Self {
        Self {
            interval: Some(index),
            ..self.clone()
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("business_hours")?;
        if self.exceptions {
            f.write_str(".exceptions")?;
        }
        if let Some(key) = &self.key {
            write!(f, ".{key}")?;
        }
        if let Some(index) = self.interval {
            write!(f, "[{index}]")?;
        }
        Ok(())
    }
}

impl BusinessHours {
    /// Reads the column. A column that is null has no hours and is not asked about here.
    ///
    /// # Errors
    /// [`HoursError`] for the first thing that is not understood: hours are used whole or not at all.
    pub fn parse(json: &Value) -> Result<Self, HoursError> {
        let top = Place::default();
        let mut week: [Day; 7] = Default::default();
        let mut exceptions = None;
        for (key, value) in object(json, &top)? {
            let at = top.key(key);
            if key == "exceptions" {
                exceptions = Some(value);
                continue;
            }
            let day = WEEKDAYS
                .iter()
                .zip(&mut week)
                .find(|((name, _), _)| name == key);
            let (_, day) = day.ok_or_else(|| HoursError::NotAWeekday { at: at.clone() })?;
            *day = intervals(value, &at)?;
        }
        let mut hours = Self {
            week,
            dates: BTreeMap::new(),
            yearly: BTreeMap::new(),
        };
        if let Some(exceptions) = exceptions {
            hours.read_exceptions(exceptions)?;
        }
        Ok(hours)
    }

    fn read_exceptions(&mut self, json: &Value) -> Result<(), HoursError> {
        let top = Place::exceptions();
        let days = object(json, &top)?;
        if days.len() > MAX_EXCEPTIONS {
            return Err(HoursError::TooManyExceptions { at: top });
        }
        for (key, value) in days {
            let at = top.key(key);
            if let Some(date) = date(key) {
                self.dates.insert(date, intervals(value, &at)?);
            } else if let Some(day) = day_of_every_year(key) {
                self.yearly.insert(day, intervals(value, &at)?);
            } else {
                return Err(HoursError::NotADate { at });
            }
        }
        Ok(())
    }

    /// Whether the tenant is open at this instant, by the wall clock of this zone.
    pub fn is_open(&self, at: Timestamp, tz: &TimeZone) -> bool {
        self.is_open_locally(tz.to_datetime(at))
    }

    fn is_open_locally(&self, local: DateTime) -> bool {
        let minute = minute_of_day(local);
        let overnight = minute.saturating_add(MINUTES_PER_DAY);
        let today = local.date();
        self.open_minutes(today, minute)
            || today
                .yesterday()
                .is_ok_and(|yesterday| self.open_minutes(yesterday, overnight))
    }

    /// Whether an interval that starts on `date` holds the minute, counted from its midnight.
    fn open_minutes(&self, date: Date, minute: u16) -> bool {
        self.day(date)
            .iter()
            .any(|interval| interval.start <= minute && minute < interval.end)
    }

    /// What starts on a date.
    fn day(&self, date: Date) -> &[Interval] {
        let every_week = || {
            let days = WEEKDAYS.iter().zip(&self.week);
            days.filter(|((_, weekday), _)| *weekday == date.weekday())
                .map(|(_, day)| day)
                .next()
        };
        self.dates
            .get(&date)
            .or_else(|| self.yearly.get(&(date.month(), date.day())))
            .or_else(every_week)
            .map_or(&[], Vec::as_slice)
    }
}

fn object<'a>(json: &'a Value, at: &Place) -> Result<&'a Map<String, Value>, HoursError> {
    json.as_object()
        .ok_or_else(|| HoursError::NotAnObject { at: at.clone() })
}

fn intervals(json: &Value, at: &Place) -> Result<Day, HoursError> {
    let list = json
        .as_array()
        .ok_or_else(|| HoursError::NotAList { at: at.clone() })?;
    if list.len() > MAX_INTERVALS {
        return Err(HoursError::TooManyIntervals { at: at.clone() });
    }
    let mut day = Day::with_capacity(list.len());
    for (index, value) in list.iter().enumerate() {
        let interval =
            value
                .as_str()
                .and_then(Interval::parse)
                .ok_or_else(|| HoursError::NotAnInterval {
                    at: at.interval(index),
                })?;
        if day.contains(&interval) {
            return Err(HoursError::Repeated {
                at: at.interval(index),
            });
        }
        day.push(interval);
    }
    Ok(day)
}

impl Interval {
    /// Reads `HH:MM-HH:MM`, no spaces, two digits each.
    fn parse(text: &str) -> Option<Self> {
        let (start, end) = text.split_once('-')?;
        let start = minutes(start).filter(|start| *start < MINUTES_PER_DAY)?;
        let end = minutes(end)?;
        let end = if end > start {
            end
        } else {
            end.checked_add(MINUTES_PER_DAY)?
        };
        Some(Self { start, end })
    }
}

/// The minutes from midnight to `HH:MM`, `24:00` at most.
fn minutes(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let hour: u16 = number(hour, 2)?;
    let minute = number(minute, 2).filter(|minute| *minute < MINUTES_PER_HOUR)?;
    let total = hour.checked_mul(MINUTES_PER_HOUR)?.checked_add(minute)?;
    (total <= MINUTES_PER_DAY).then_some(total)
}

/// A date of one year: `YYYY-MM-DD`.
fn date(key: &str) -> Option<Date> {
    let (year, day) = key.split_once('-')?;
    let (month, day) = day.split_once('-')?;
    Date::new(number(year, 4)?, number(month, 2)?, number(day, 2)?).ok()
}

/// A day of every year that has it: `MM-DD`.
fn day_of_every_year(key: &str) -> Option<(i8, i8)> {
    const LEAP_YEAR: i16 = 2000; // so that 02-29 is one
    let (month, day) = key.split_once('-')?;
    let (month, day) = (number(month, 2)?, number(day, 2)?);
    Date::new(LEAP_YEAR, month, day).ok().map(|_| (month, day))
}

/// A number written with exactly so many digits.
fn number<T: std::str::FromStr>(text: &str, digits: usize) -> Option<T> {
    let all_digits = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    if all_digits { text.parse().ok() } else { None }
}

fn minute_of_day(local: DateTime) -> u16 {
    let unsigned = |part: i8| u16::from(part.unsigned_abs());
    unsigned(local.hour())
        .saturating_mul(MINUTES_PER_HOUR)
        .saturating_add(unsigned(local.minute()))
}
