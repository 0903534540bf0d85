//! Moments as people write them: RFC 3339, or milliseconds since 1970.

use crate::TimestampMs;
use std::fmt;

const DAY_S: i64 = 86_400;
/// Days from the first of March of the year 0 to 1970.
const DAYS_TO_1970: i64 = 719_468;
/// Days in 400 years.
const ERA_DAYS: i64 = 146_097;
/// RFC 3339 writes years with four digits; a fraction beyond milliseconds is cut.
const FRACTION_DIGITS_MAX: usize = 9;

/// `1795374428209` or `2026-11-22T19:07:08.209Z`; a time without `Z` or an offset says nothing.
///
/// # Errors
/// What is wrong with it, for the person who wrote it.
pub fn moment(text: &str) -> Result<TimestampMs, String> {
    if let Ok(ms) = text.parse::<i64>() {
        return Ok(TimestampMs(ms));
    }
    let refused = || "neither milliseconds since 1970 nor RFC 3339, such as 2026-11-22T19:07:08Z".to_owned();
    rfc3339_ms(text).map(TimestampMs).ok_or_else(refused)
}

/// Milliseconds since 1970 of a moment in RFC 3339.
pub fn rfc3339_ms(text: &str) -> Option<i64> {
    let (date, time) = text.split_once(['T', 't'])?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let (time, offset_min) = match time.strip_suffix(['Z', 'z']) {
        Some(time) => (time, 0),
        None => {
            let at = time.rfind(['+', '-'])?;
            let [hours, minutes] = numbers(&time[at + 1..], ':', [2, 2])?;
            let sign = if time[at..].starts_with('-') { -1 } else { 1 };
            ((hours <= 23 && minutes <= 59).then_some(&time[..at])?, sign * (hours * 60 + minutes))
        }
    };
    let (whole, fraction) = time.split_once('.').map_or((time, None), |(whole, fraction)| (whole, Some(fraction)));
    let [hour, minute, second] = numbers(whole, ':', [2, 2, 2])?;
    let ms = fraction.map_or(Some(0), millis)?;
    let in_range = (1..=12).contains(&month) && (1..=days_in(year, month)).contains(&day);
    if !in_range || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let seconds = days_since_1970(year, month, day) * DAY_S + hour * 3_600 + (minute - offset_min) * 60 + second;
    Some(seconds * 1_000 + ms)
}

/// A moment in RFC 3339, UTC, with milliseconds.
pub struct Rfc3339(pub TimestampMs);

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.0;
        let (days, of_day_s) = (ms.div_euclid(DAY_S * 1_000), ms.rem_euclid(DAY_S * 1_000) / 1_000);
        let (year, month, day) = civil(days);
        let (hour, minute, second) = (of_day_s / 3_600, of_day_s / 60 % 60, of_day_s % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms.rem_euclid(1_000))
    }
}

/// Numbers of so many digits each.
fn numbers<const N: usize>(text: &str, separator: char, digits: [usize; N]) -> Option<[i64; N]> {
    let mut parts = text.split(separator);
    let mut numbers = [0; N];
    for (number, digits) in numbers.iter_mut().zip(digits) {
        let part = parts.next()?;
        *number =
            (part.len() == digits && part.bytes().all(|byte| byte.is_ascii_digit())).then(|| part.parse().ok())??;
    }
    parts.next().is_none().then_some(numbers)
}

fn millis(fraction: &str) -> Option<i64> {
    let legal = (1..=FRACTION_DIGITS_MAX).contains(&fraction.len()) && fraction.bytes().all(|b| b.is_ascii_digit());
    let padded = format!("{fraction}00");
    legal.then(|| padded[..3].parse().ok())?
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days of the civil calendar, counted in years that begin in March, so that the leap day is the last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    365 * year + leap_days + (153 * month + 2) / 5 + day - 1 - DAYS_TO_1970
}

/// Year, month and day, the reverse.
fn civil(days_since_1970: i64) -> (i64, i64, i64) {
    let days = days_since_1970 + DAYS_TO_1970;
    let (era, of_era) = (days.div_euclid(ERA_DAYS), days.rem_euclid(ERA_DAYS));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let year = era * 400 + year_of_era;
    if month < 10 { (year, month + 3, day) } else { (year + 1, month - 9, day) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read() {
        for (text, ms) in [
            ("0", 0),
            ("1795374428209", 1_795_374_428_209),
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T23:59:59Z", 951_868_799_000),
            ("2010-03-18T12:34:56Z", 1_268_915_696_000),
            ("2100-03-01T00:00:00.5Z", 4_107_542_400_500),
            ("2010-03-18t14:04:56.123456+01:30", 1_268_915_696_123),
            ("2010-03-18T07:34:56-05:00", 1_268_915_696_000),
        ] {
            assert_eq!(moment(text), Ok(TimestampMs(ms)), "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in [
            "",
            "now",
            "2010-03-18",
            "2010-03-18T12:34:56",
            "2010-13-01T00:00:00Z",
            "2010-02-29T00:00:00Z",
            "2010-03-18T24:00:00Z",
            "2010-3-18T12:34:56Z",
            "2010-03-18T12:34:56.Z",
            "2010-03-18T12:34:56+1:00",
            "aZ",
            "2010-03T1:1:1Z",
        ] {
            assert!(moment(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for ms in [0, 951_868_799_123, 1_795_374_428_209, 4_107_542_400_000, -62_135_596_800_000, -1] {
            let text = Rfc3339(TimestampMs(ms)).to_string();
            assert_eq!(rfc3339_ms(&text), Some(ms), "{text}");
        }
        assert_eq!(Rfc3339(TimestampMs(1_795_374_428_209)).to_string(), "2026-11-22T19:07:08.209Z");
    }
}
