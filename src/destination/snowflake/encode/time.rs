//! Dates and times, which PostgreSQL has over a wider range than Snowflake. Pure.

use crate::api::snowflake::BeyondRange;

/// Days from 1970-01-01 to 2000-01-01, where PostgreSQL's calendar begins.
const EPOCH_DAYS: i64 = 10_957;
const DAY: i64 = 86_400_000_000;
/// 0001-01-01 and the day after 9999-12-31 (Snowflake docs, "Date & time data types": years from 0 to 9999; its texts have four digits).
const FIRST_DAY: i64 = -719_162;
const END_DAY: i64 = 2_932_897;

const BEYOND: &str = "the date is outside of what Snowflake's type holds, the years 1 to 9999; outOfRange: Clamp lets it pass";
const BEYOND_TIME: &str = "the time 24:00 is outside of what Snowflake's type holds; outOfRange: Clamp lets it pass";
const MALFORMED: &str = "it is not a date";

/// Microseconds since 1970. What is infinite, or too far away to be counted so, is the last or first that there is.
pub(super) type Micros = i64;

/// From the binary form of `date`: days since 2000.
pub(super) fn date_from_binary(bytes: &[u8]) -> Option<Micros> {
    Some(match i32::from_be_bytes(bytes.try_into().ok()?) {
        i32::MAX => Micros::MAX,
        i32::MIN => Micros::MIN,
        days => (i64::from(days) + EPOCH_DAYS).saturating_mul(DAY),
    })
}

/// From the binary form of `timestamp` and `timestamptz`: microseconds since 2000.
pub(super) fn timestamp_from_binary(bytes: &[u8]) -> Option<Micros> {
    Some(match i64::from_be_bytes(bytes.try_into().ok()?) {
        i64::MIN => Micros::MIN,
        micros => micros.saturating_add(EPOCH_DAYS * DAY),
    })
}

/// From the binary form of `time`: microseconds since midnight.
pub(super) fn time_from_binary(bytes: &[u8]) -> Option<Micros> {
    Some(i64::from_be_bytes(bytes.try_into().ok()?)).filter(|micros| (0..=DAY).contains(micros))
}

/// From the text form of `time`: `12:30:00.5`.
pub(super) fn time_from_text(text: &[u8]) -> Option<Micros> {
    duration(std::str::from_utf8(text).ok()?).filter(|micros| (0..=DAY).contains(micros))
}

/// From the text form of dates and times, in PostgreSQL's ISO style: `2000-01-01`, `2000-01-01 12:30:00.5+02`, `0044-03-15 BC`, `infinity`.
pub(super) fn from_text(text: &[u8]) -> Result<Micros, &'static str> {
    match text {
        b"infinity" => Ok(Micros::MAX),
        b"-infinity" => Ok(Micros::MIN),
        _ => read(std::str::from_utf8(text).map_err(|_| MALFORMED)?).ok_or(MALFORMED),
    }
}

fn read(text: &str) -> Option<Micros> {
    let (text, before_christ) = text.strip_suffix(" BC").map_or((text, false), |rest| (rest, true));
    let (date, clock) = text.split_once(' ').map_or((text, None), |(date, clock)| (date, Some(clock)));
    let mut parts = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    let days = days(if before_christ { 1 - year } else { year }, month, day);
    let micros = match clock {
        None => 0,
        Some(clock) => {
            let (clock, zone) = clock.split_at(clock.find(['+', '-']).unwrap_or(clock.len()));
            let offset = match zone.chars().next() {
                Some(sign) => duration(&zone[1..])? * if sign == '-' { -1 } else { 1 },
                None => 0,
            };
            duration(clock)? - offset
        }
    };
    Some(days.saturating_mul(DAY).saturating_add(micros))
}

/// `hh[:mm[:ss[.ffffff]]]` in microseconds.
fn duration(text: &str) -> Option<Micros> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut seconds = 0;
    for (part, unit) in whole.splitn(3, ':').zip([3600, 60, 1]) {
        seconds += part.parse::<i64>().ok()?.checked_mul(unit)?;
    }
    let micros = if fraction.is_empty() { 0 } else { format!("{fraction:0<6}").get(..6)?.parse::<i64>().ok()? };
    seconds.checked_mul(1_000_000)?.checked_add(micros)
}

/// Days since 1970 of a date in the proleptic Gregorian calendar (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", days_from_civil).
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year - era * 400;
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The date of a day since 1970 (the same, civil_from_days).
fn civil(day: i64) -> (u32, u32, u32) {
    let day = day + 719_468;
    let era = day.div_euclid(146_097);
    let of_era = day - era * 146_097;
    let of_era_year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * of_era_year + of_era_year / 4 - of_era_year / 100);
    let month = (5 * of_year + 2) / 153;
    let year = of_era_year + era * 400 + i64::from(month >= 10);
    (year as u32, (if month < 10 { month + 3 } else { month - 9 }) as u32, (of_year - (153 * month + 2) / 5 + 1) as u32)
}

/// Writes a date: `2000-01-01`.
pub(super) fn put_date(micros: Micros, rule: BeyondRange, out: &mut Vec<u8>) -> Result<(), &'static str> {
    put_day(within(micros, rule)?.div_euclid(DAY), out);
    Ok(())
}

/// Writes a time of a day, with its offset if it is a moment: `2000-01-01 12:30:00.500000 +0000`.
pub(super) fn put_timestamp(micros: Micros, moment: bool, rule: BeyondRange, out: &mut Vec<u8>) -> Result<(), &'static str> {
    let micros = within(micros, rule)?;
    put_day(micros.div_euclid(DAY), out);
    out.push(b' ');
    put_clock(micros.rem_euclid(DAY), out);
    if moment {
        out.extend_from_slice(b" +0000");
    }
    Ok(())
}

/// Writes a time: `12:30:00.500000`.
pub(super) fn put_time(micros: Micros, rule: BeyondRange, out: &mut Vec<u8>) -> Result<(), &'static str> {
    if micros >= DAY && rule == BeyondRange::Error {
        return Err(BEYOND_TIME);
    }
    put_clock(micros.min(DAY - 1), out);
    Ok(())
}

fn within(micros: Micros, rule: BeyondRange) -> Result<Micros, &'static str> {
    let range = FIRST_DAY * DAY..=END_DAY * DAY - 1;
    match rule {
        _ if range.contains(&micros) => Ok(micros),
        BeyondRange::Clamp => Ok(micros.clamp(*range.start(), *range.end())),
        BeyondRange::Error => Err(BEYOND),
    }
}

fn put_day(day: i64, out: &mut Vec<u8>) {
    let (year, month, day) = civil(day);
    let digit = |number: u32| b'0' + (number % 10) as u8;
    out.extend_from_slice(&[
        digit(year / 1000),
        digit(year / 100),
        digit(year / 10),
        digit(year),
        b'-',
        digit(month / 10),
        digit(month),
        b'-',
        digit(day / 10),
        digit(day),
    ]);
}

fn put_clock(micros: Micros, out: &mut Vec<u8>) {
    let (seconds, mut fraction) = ((micros / 1_000_000) as u32, (micros % 1_000_000) as u32);
    let digit = |number: u32| b'0' + (number % 10) as u8;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let mut text = [
        digit(hours / 10),
        digit(hours),
        b':',
        digit(minutes / 10),
        digit(minutes),
        b':',
        digit(seconds % 60 / 10),
        digit(seconds % 60),
        b'.',
        b'0',
        b'0',
        b'0',
        b'0',
        b'0',
        b'0',
    ];
    for place in (9..15).rev() {
        text[place] = digit(fraction);
        fraction /= 10;
    }
    out.extend_from_slice(&text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn micros(text: &str) -> i64 {
        from_text(text.as_bytes()).unwrap()
    }

    fn timestamp(micros: i64, rule: BeyondRange) -> Result<String, &'static str> {
        let mut out = Vec::new();
        put_timestamp(micros, false, rule, &mut out).map(|()| String::from_utf8(out).unwrap())
    }

    #[test]
    fn texts_of_dates_are_read() {
        assert_eq!(micros("1970-01-01"), 0);
        assert_eq!(micros("0001-01-01"), FIRST_DAY * DAY);
        assert_eq!(micros("10000-01-01"), END_DAY * DAY);
        assert_eq!(micros("1970-01-01 01:00:00.000001+02"), -3_600_000_000 + 1);
        assert_eq!(micros("1970-01-01 00:00:00.5-00:30"), 1_800_000_000 + 500_000);
        // 4714-11-24 BC is the first day that PostgreSQL has: Julian day 0, 2440588 days before 1970.
        assert_eq!(micros("4714-11-24 BC"), -2_440_588 * DAY);
        assert_eq!(micros("5874897-12-31"), i64::MAX);
        assert_eq!(micros("infinity"), i64::MAX);
        assert_eq!(from_text(b"today"), Err(MALFORMED));
        assert_eq!(time_from_text(b"24:00:00"), Some(DAY));
        assert_eq!(time_from_text(b"24:00:01"), None);
    }

    #[test]
    fn what_is_out_of_range_follows_the_rule() {
        for (micros, clamped) in [(i64::MAX, "9999-12-31 23:59:59.999999"), (i64::MIN, "0001-01-01 00:00:00.000000")] {
            assert_eq!(timestamp(micros, BeyondRange::Clamp).as_deref(), Ok(clamped));
            assert_eq!(timestamp(micros, BeyondRange::Error), Err(BEYOND));
        }
        let mut out = Vec::new();
        assert_eq!(put_time(DAY, BeyondRange::Error, &mut out), Err(BEYOND_TIME));
        put_time(DAY, BeyondRange::Clamp, &mut out).unwrap();
        assert_eq!(out, b"23:59:59.999999");
    }

    proptest! {
        #[test]
        fn a_time_reads_back(micros_of in FIRST_DAY * DAY..END_DAY * DAY) {
            prop_assert_eq!(micros(&timestamp(micros_of, BeyondRange::Error).unwrap()), micros_of);
            let mut out = Vec::new();
            put_date(micros_of, BeyondRange::Error, &mut out).unwrap();
            prop_assert_eq!(from_text(&out).unwrap(), micros_of.div_euclid(DAY) * DAY);
        }
    }
}
