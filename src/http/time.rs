//! Durations and times as proto3 JSON writes them: `"15s"`, `"2026-11-24T03:51:00.25Z"`.

use std::time::Duration;

use crate::job::Timestamp;
use crate::job::draft::RawSpan;

/// What a duration must look like, for messages.
pub const SPAN_SHAPE: &str = "must be a duration in seconds, like \"15s\" or \"0.5s\"";
/// What a time must look like, for messages.
pub const TIME_SHAPE: &str = "must be a time like \"2026-11-24T03:51:00Z\"";

/// Writes a duration.
pub fn write_span(span: Duration) -> String {
    format!("{}{}s", span.as_secs(), fraction(span.subsec_nanos()))
}

/// Writes a time, in UTC.
pub fn write_time(time: Timestamp) -> String {
    let seconds = time.0.div_euclid(1_000_000);
    let micros = u32::try_from(time.0.rem_euclid(1_000_000)).unwrap_or_default();
    let (year, month, day) = civil(seconds.div_euclid(86_400));
    let clock = seconds.rem_euclid(86_400);
    let (hour, minute, second) = (clock / 3_600, clock / 60 % 60, clock % 60);
    let fraction = fraction(micros * 1_000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

/// Reads a duration; how large it may be is for the one who uses it.
pub fn read_span(text: &str) -> Option<RawSpan> {
    let number = text.strip_suffix('s')?;
    let (negative, number) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number),
    };
    let (whole, part) = match number.split_once('.') {
        Some((whole, part)) => (whole, nanos(part)?),
        None => (number, 0),
    };
    let seconds = digits(whole)?;
    Some(match negative {
        true => RawSpan {
            seconds: -seconds,
            nanos: -part,
        },
        false => RawSpan {
            seconds,
            nanos: part,
        },
    })
}

/// Reads an RFC 3339 time, with any offset, as seconds and nanoseconds since 1970.
pub fn read_time(text: &str) -> Option<RawSpan> {
    let year = digits(text.get(0..4)?)?;
    let month = digits(text.get(5..7)?)?;
    let day = digits(text.get(8..10)?)?;
    let hour = digits(text.get(11..13)?)?;
    let minute = digits(text.get(14..16)?)?;
    let second = digits(text.get(17..19)?)?;
    let marks: Vec<u8> = [4, 7, 10, 13, 16]
        .iter()
        .filter_map(|at| text.as_bytes().get(*at).copied())
        .collect();
    let in_range = (1..=12).contains(&month)
        && (1..=days_in(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !in_range || !matches!(marks.as_slice(), b"--T::" | b"--t::") {
        return None;
    }
    let rest = text.get(19..)?;
    let (fraction, zone) = match rest.strip_prefix('.') {
        Some(rest) => {
            let end = rest.find(|c: char| !c.is_ascii_digit())?;
            (nanos(rest.get(..end)?)?, rest.get(end..)?)
        }
        None => (0, rest),
    };
    let offset = match zone.as_bytes() {
        b"Z" | b"z" => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let hours = digits(zone.get(1..3)?)?;
            let minutes = digits(zone.get(4..6)?)?;
            if hours > 23 || minutes > 59 {
                return None;
            }
            let offset = hours * 3_600 + minutes * 60;
            if *sign == b'+' { offset } else { -offset }
        }
        _ => return None,
    };
    let clock = hour * 3_600 + minute * 60 + second;
    Some(RawSpan {
        seconds: days(year, month, day) * 86_400 + clock - offset,
        nanos: fraction,
    })
}

/// Decimal digits and nothing else; few enough to fit.
fn digits(text: &str) -> Option<i64> {
    let plain = (1..=15).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

/// The digits after the point, one to nine of them, as billionths.
fn nanos(part: &str) -> Option<i32> {
    let shift = 9_u32.checked_sub(u32::try_from(part.len()).ok()?)?;
    i32::try_from(digits(part)? * 10_i64.pow(shift)).ok()
}

/// Point and 3, 6 or 9 digits, as proto3 JSON writes them; nothing for a whole second.
fn fraction(nanos: u32) -> String {
    match nanos {
        0 => String::new(),
        n if n % 1_000_000 == 0 => format!(".{:03}", n / 1_000_000),
        n if n % 1_000 == 0 => format!(".{:06}", n / 1_000),
        n => format!(".{n:09}"),
    }
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Days from 1970-01-01 to a date. The year begins in March here, so that the leap day is its last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let before = year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    before + (month * 153 + 2) / 5 + day - 1 - 719_468
}

/// The date that lies `days` after 1970-01-01.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (year * 365 + year / 4 - year / 100);
    let month = (day * 5 + 2) / 153;
    let day = day - (month * 153 + 2) / 5 + 1;
    let year = era * 400 + year + i64::from(month >= 10);
    (year, (month + 2) % 12 + 1, day)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_exactly() {
        let span = |text| read_span(text).map(|s| (s.seconds, s.nanos));
        assert_eq!(span("15s"), Some((15, 0)));
        assert_eq!(span("-1.5s"), Some((-1, -500_000_000)));
        assert_eq!(span("0.000000001s"), Some((0, 1)));
        for bad in [
            "",
            "s",
            "15",
            "1.s",
            ".5s",
            "1.0000000001s",
            "1e3s",
            "+1s",
            "--1s",
            "1 s",
            "1m",
            "9999999999999999s",
            "١s",
        ] {
            assert_eq!(span(bad), None, "{bad}");
        }
    }

    #[test]
    fn times_are_read_exactly() {
        let time = |text| read_time(text).map(|s| (s.seconds, s.nanos));
        assert_eq!(time("1970-01-01T00:00:00Z"), Some((0, 0)));
        assert_eq!(time("1970-01-01T01:30:00.5+01:30"), Some((0, 500_000_000)));
        assert_eq!(time("0001-01-01T00:00:00Z"), Some((-62_135_596_800, 0)));
        assert_eq!(time("9999-12-31T23:59:59Z"), Some((253_402_300_799, 0)));
        assert_eq!(time("2024-02-29T00:00:00z"), Some((1_709_164_800, 0)));
        for bad in [
            "",
            "2026-11-24",
            "2026-11-24T03:51:00",
            "2026-11-24 03:51:00Z",
            "2023-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-11-24T24:00:00Z",
            "2026-11-24T03:51:60Z",
            "2026-11-24T03:51:00.Z",
            "2026-11-24T03:51:00.1234567891Z",
            "2026-11-24T03:51:00+1:00",
            "2026-11-24T03:51:00Zjunk",
            "ä026-11-24T03:51:00Z",
        ] {
            assert_eq!(time(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(micros in 0_i64..253_402_300_799_000_000) {
            let text = write_time(Timestamp(micros));
            let back = read_time(&text).unwrap();
            prop_assert_eq!(back.seconds * 1_000_000 + i64::from(back.nanos / 1_000), micros);
            // A second opinion on the calendar.
            let other = humantime::format_rfc3339_micros(UNIX_EPOCH + Duration::from_micros(micros as u64));
            let other = read_time(&other.to_string()).unwrap();
            prop_assert_eq!(other, back);
        }

        #[test]
        fn spans_are_read_back(nanos in 0_u64..) {
            let span = Duration::from_nanos(nanos);
            let back = read_span(&write_span(span)).unwrap();
            prop_assert_eq!(Duration::new(back.seconds as u64, back.nanos as u32), span);
        }

        #[test]
        fn no_text_is_fatal(text in ".{0,40}") {
            let _ = (read_span(&text), read_time(&text));
        }
    }
}
