//! Dates and times, which PostgreSQL has over a wider range than ClickHouse. Pure.

use super::super::types::Type;
use crate::api::clickhouse::OutOfRange;

/// Days from 1970-01-01 to 2000-01-01, where PostgreSQL's calendar begins.
const EPOCH_DAYS: i64 = 10_957;
const DAY: i128 = 86_400_000_000;
/// 1900-01-01, 2299-12-31 and 2299-12-31 23:59:59.999999999 as ClickHouse's Date32 and DateTime64 have them (ClickHouse docs, "DateTime64").
const FIRST_DAY: i64 = -25_567;
const LAST_DAY: i64 = 120_529;

const BEYOND: &str = "the date is outside of what ClickHouse's type holds; outOfRange: Clamp or String lets it pass";
const MALFORMED: &str = "it is not a date";
/// Why a date or time cannot be a key.
pub(super) const NOT_IN_KEY: &str = "ClickHouse's type does not hold the date as it is, and the column is part of the key, where two values must not become one; \
                                     outOfRange: String lets it pass, and so does a finer `type`";

/// A moment in microseconds since 1970, or what is before or after all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::destination) enum Moment {
    Before,
    At(i128),
    After,
}

/// From the binary form of `date`: days since 2000.
pub(in crate::destination) fn date_from_binary(bytes: &[u8]) -> Option<Moment> {
    Some(match i32::from_be_bytes(bytes.try_into().ok()?) {
        i32::MAX => Moment::After,
        i32::MIN => Moment::Before,
        days => Moment::At((i128::from(days) + i128::from(EPOCH_DAYS)) * DAY),
    })
}

/// From the binary form of `timestamp` and `timestamptz`: microseconds since 2000.
pub(in crate::destination) fn timestamp_from_binary(bytes: &[u8]) -> Option<Moment> {
    Some(match i64::from_be_bytes(bytes.try_into().ok()?) {
        i64::MAX => Moment::After,
        i64::MIN => Moment::Before,
        micros => Moment::At(i128::from(micros) + i128::from(EPOCH_DAYS) * DAY),
    })
}

/// From the text form of either, in PostgreSQL's ISO style: `2000-01-01`, `2000-01-01 12:30:00.5+02`, `0044-03-15 BC`, `infinity`.
pub(in crate::destination) fn from_text(text: &[u8]) -> Result<Moment, &'static str> {
    match text {
        b"infinity" => return Ok(Moment::After),
        b"-infinity" => return Ok(Moment::Before),
        _ => {}
    }
    read(std::str::from_utf8(text).map_err(|_| MALFORMED)?).ok_or(MALFORMED)
}

fn read(text: &str) -> Option<Moment> {
    let (text, before_christ) = text.strip_suffix(" BC").map_or((text, false), |rest| (rest, true));
    let (date, clock) = text.split_once(' ').map_or((text, None), |(date, clock)| (date, Some(clock)));
    let mut parts = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    let days = days(if before_christ { 1 - year } else { year }, month, day);
    let micros = match clock {
        None => 0,
        Some(clock) => {
            let zone = clock.find(['+', '-']).unwrap_or(clock.len());
            let (clock, zone) = clock.split_at(zone);
            let offset = match zone.chars().next() {
                Some(sign) => duration(&zone[1..])? * if sign == '-' { -1 } else { 1 },
                None => 0,
            };
            duration(clock)? - offset
        }
    };
    Some(Moment::At(i128::from(days) * DAY + micros))
}

/// `hh[:mm[:ss[.ffffff]]]` in microseconds.
fn duration(text: &str) -> Option<i128> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut seconds = 0;
    for (part, unit) in whole.splitn(3, ':').zip([3600, 60, 1]) {
        seconds += part.parse::<i128>().ok()? * unit;
    }
    let micros = if fraction.is_empty() { 0 } else { format!("{fraction:0<6}").get(..6)?.parse::<i128>().ok()? };
    Some(seconds * 1_000_000 + micros)
}

/// Days since 1970 of a date in the proleptic Gregorian calendar (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", days_from_civil).
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year - era * 400;
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Writes a moment as a type of ClickHouse; `false` if the type holds no moments.
pub(super) fn put(moment: Moment, to: &Type, rule: OutOfRange, out: &mut Vec<u8>) -> Result<bool, &'static str> {
    let (first, last, unit) = match to {
        Type::Date => (0, i128::from(u16::MAX), DAY),
        Type::Date32 => (i128::from(FIRST_DAY), i128::from(LAST_DAY), DAY),
        Type::DateTime => (0, i128::from(u32::MAX), 1_000_000),
        Type::DateTime64(scale) => return put_ticks(moment, *scale, rule, out).map(|()| true),
        _ => return Ok(false),
    };
    let value = within(moment, first, last, |micros| units(micros, unit), rule)?;
    match to {
        Type::Date => out.extend_from_slice(&(value as u16).to_le_bytes()),
        Type::Date32 => out.extend_from_slice(&(value as i32).to_le_bytes()),
        _ => out.extend_from_slice(&(value as u32).to_le_bytes()),
    }
    Ok(true)
}

/// Whether a type has a value for this moment and no other.
pub(super) fn holds(moment: Moment, to: &Type) -> bool {
    let unit = match to {
        Type::Date | Type::Date32 => DAY,
        Type::DateTime => 1_000_000,
        Type::DateTime64(scale) => 10i128.pow(6u32.saturating_sub(u32::from(*scale))),
        _ => return false,
    };
    let within = put(moment, to, OutOfRange::Error, &mut Vec::new()).is_ok();
    within && matches!(moment, Moment::At(micros) if micros.rem_euclid(unit) == 0)
}

fn put_ticks(moment: Moment, scale: u8, rule: OutOfRange, out: &mut Vec<u8>) -> Result<(), &'static str> {
    let ticks = |micros: i128| match scale {
        0..=6 => units(micros, 10i128.pow(6 - u32::from(scale))),
        more => micros * 10i128.pow(u32::from(more) - 6),
    };
    let second = 10i128.pow(scale.into());
    let first = i128::from(FIRST_DAY) * 86_400 * second;
    let last = ((i128::from(LAST_DAY) + 1) * 86_400 * second - 1).min(i128::from(i64::MAX));
    let value = within(moment, first, last, ticks, rule)?;
    out.extend_from_slice(&(value as i64).to_le_bytes());
    Ok(())
}

/// How many whole units. Dividing 128 bits takes many times as long, and hardly a moment needs them.
fn units(micros: i128, unit: i128) -> i128 {
    match (i64::try_from(micros), i64::try_from(unit)) {
        (Ok(micros), Ok(unit)) => micros.div_euclid(unit).into(),
        _ => micros.div_euclid(unit),
    }
}

/// The value between `first` and `last`, by the rule for what is beyond them.
fn within(moment: Moment, first: i128, last: i128, value: impl Fn(i128) -> i128, rule: OutOfRange) -> Result<i128, &'static str> {
    let value = match moment {
        Moment::Before => first - 1,
        Moment::At(micros) => value(micros),
        Moment::After => last + 1,
    };
    match rule {
        OutOfRange::Clamp => Ok(value.clamp(first, last)),
        _ if (first..=last).contains(&value) => Ok(value),
        _ => Err(BEYOND),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn micros(text: &str) -> i128 {
        match from_text(text.as_bytes()) {
            Ok(Moment::At(micros)) => micros,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn texts_of_dates_are_read() {
        assert_eq!(micros("1970-01-01"), 0);
        assert_eq!(micros("2000-01-01"), i128::from(EPOCH_DAYS) * DAY);
        assert_eq!(micros("1900-01-01"), i128::from(FIRST_DAY) * DAY);
        assert_eq!(micros("2299-12-31"), i128::from(LAST_DAY) * DAY);
        assert_eq!(micros("1970-01-01 01:00:00.000001+02"), -3_600_000_000 + 1);
        assert_eq!(micros("1970-01-01 00:00:00.5-00:30"), 1_800_000_000 + 500_000);
        // 4714-11-24 BC is the first day that PostgreSQL has: Julian day 0, 2440588 days before 1970.
        assert_eq!(micros("4714-11-24 BC"), -2_440_588 * DAY);
        assert_eq!(from_text(b"infinity"), Ok(Moment::After));
        assert_eq!(from_text(b"-infinity"), Ok(Moment::Before));
        assert_eq!(from_text(b"today"), Err(MALFORMED));
    }

    #[test]
    fn what_is_out_of_range_follows_the_rule() {
        let put = |moment, to: &Type, rule| {
            let mut out = Vec::new();
            put(moment, to, rule, &mut out).map(|_| out)
        };
        let clamped = put(Moment::After, &Type::Date32, OutOfRange::Clamp);
        assert_eq!(clamped, Ok((LAST_DAY as i32).to_le_bytes().to_vec()));
        assert_eq!(put(Moment::Before, &Type::Date32, OutOfRange::Error), Err(BEYOND));
        assert_eq!(put(Moment::Before, &Type::DateTime, OutOfRange::Clamp), Ok(vec![0; 4]));
        let last = (LAST_DAY + 1) * 86_400_000_000 - 1;
        assert_eq!(put(Moment::After, &Type::DateTime64(6), OutOfRange::Clamp), Ok(last.to_le_bytes().to_vec()));
        assert_eq!(put(Moment::After, &Type::DateTime64(9), OutOfRange::Clamp), Ok(i64::MAX.to_le_bytes().to_vec()));
        assert_eq!(put(Moment::At(-1), &Type::DateTime64(3), OutOfRange::Error), Ok((-1i64).to_le_bytes().to_vec()));
    }

    #[test]
    fn a_type_holds_what_it_neither_clamps_nor_rounds() {
        let day = 1_000 * DAY;
        for (moment, to, expected) in [
            (Moment::At(day), Type::Date32, true),
            (Moment::At(day + 1), Type::Date32, false),
            (Moment::At(day), Type::Date, true),
            (Moment::At(-day), Type::Date, false),
            (Moment::At(day + 1_000_000), Type::DateTime, true),
            (Moment::At(day + 999_999), Type::DateTime, false),
            (Moment::At(day + 1_000), Type::DateTime64(3), true),
            (Moment::At(day + 1), Type::DateTime64(3), false),
            (Moment::At(-day + 1), Type::DateTime64(6), true),
            (Moment::After, Type::DateTime64(6), false),
            (Moment::Before, Type::Date32, false),
        ] {
            assert_eq!(holds(moment, &to), expected, "{moment:?} {to:?}");
        }
    }

    proptest! {
        #[test]
        fn a_day_reads_back(day in -800_000i64..3_000_000) {
            let back = jiff::civil::date(1970, 1, 1).checked_add(jiff::Span::new().days(day.clamp(-700_000, 2_900_000)));
            let day = day.clamp(-700_000, 2_900_000);
            if let Ok(date) = back && date.year() > 0 {
                prop_assert_eq!(micros(&format!("{:04}-{:02}-{:02}", date.year(), date.month(), date.day())), i128::from(day) * DAY);
            }
        }
    }
}
