//! Dates and times, which PostgreSQL has over a wider range than BigQuery. Pure.

pub(super) use crate::destination::clickhouse::encode::time::{Moment, date_from_binary, from_text, timestamp_from_binary};

use crate::api::bigquery::OutOfRange;

const DAY: i128 = 86_400_000_000;
/// 0001-01-01 and 9999-12-31 in days since 1970 (BigQuery docs, "Data types", "Date type").
const FIRST_DAY: i128 = -719_162;
const LAST_DAY: i128 = 2_932_896;

const BEYOND: &str = "the date or time is outside of what BigQuery's type holds; outOfRange: Clamp or String lets it pass";
const MALFORMED: &str = "it is not a time";

/// Days since 1970.
pub(super) fn day(moment: Moment, rule: OutOfRange) -> Result<i32, &'static str> {
    within(moment, FIRST_DAY, LAST_DAY, |micros| micros.div_euclid(DAY), rule).map(|day| day as i32)
}

/// Microseconds since 1970.
pub(super) fn micros(moment: Moment, rule: OutOfRange) -> Result<i64, &'static str> {
    within(moment, FIRST_DAY * DAY, (LAST_DAY + 1) * DAY - 1, |micros| micros, rule).map(|micros| micros as i64)
}

/// A value between `first` and `last`, by the rule for what is beyond them.
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

/// `2000-01-01 12:30:00.500000`, of microseconds since 1970.
pub(super) fn put_datetime(micros: i64, out: &mut Vec<u8>) {
    let (days, rest) = (micros.div_euclid(DAY as i64), micros.rem_euclid(DAY as i64));
    let (year, month, day) = civil(days);
    put_digits(year, 4, out);
    out.push(b'-');
    put_digits(month, 2, out);
    out.push(b'-');
    put_digits(day, 2, out);
    out.push(b' ');
    put_clock(rest, out);
}

/// `12:30:00.500000`, of microseconds since midnight. The length of both is fixed: 26 and 15 bytes.
pub(super) fn put_clock(micros: i64, out: &mut Vec<u8>) {
    let seconds = micros / 1_000_000;
    put_digits(seconds / 3600, 2, out);
    out.push(b':');
    put_digits(seconds / 60 % 60, 2, out);
    out.push(b':');
    put_digits(seconds % 60, 2, out);
    out.push(b'.');
    put_digits(micros % 1_000_000, 6, out);
}

fn put_digits(number: i64, width: u32, out: &mut Vec<u8>) {
    for place in (0..width).rev() {
        out.push(b'0' + (number / 10i64.pow(place) % 10) as u8);
    }
}

/// Microseconds since midnight from the text form of `time`. 24:00 is beyond the day.
pub(super) fn clock_from_text(text: &[u8], rule: OutOfRange) -> Result<i64, &'static str> {
    let moment = from_text(&[b"1970-01-01 ", text].concat()).map_err(|_| MALFORMED)?;
    clock(moment, rule)
}

/// The same from microseconds.
pub(super) fn clock_from_binary(bytes: &[u8], rule: OutOfRange) -> Result<i64, &'static str> {
    let micros = i64::from_be_bytes(bytes.try_into().map_err(|_| MALFORMED)?);
    clock(Moment::At(micros.into()), rule)
}

fn clock(moment: Moment, rule: OutOfRange) -> Result<i64, &'static str> {
    within(moment, 0, DAY - 1, |micros| micros, rule).map(|micros| micros as i64)
}

/// Year, month and day of days since 1970 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days).
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days - era * 146_097;
    let of_cycle = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * of_cycle + of_cycle / 4 - of_cycle / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (of_cycle + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_out_of_range_follows_the_rule() {
        assert_eq!(day(Moment::After, OutOfRange::Clamp), Ok(LAST_DAY as i32));
        assert_eq!(day(Moment::Before, OutOfRange::Error), Err(BEYOND));
        assert_eq!(micros(Moment::Before, OutOfRange::Clamp), Ok(-62_135_596_800_000_000));
        assert_eq!(micros(Moment::After, OutOfRange::Clamp), Ok(253_402_300_799_999_999));
        assert_eq!(clock_from_text(b"24:00:00", OutOfRange::Clamp), Ok(DAY as i64 - 1));
        assert_eq!(clock_from_text(b"24:00:00", OutOfRange::Error), Err(BEYOND));
        assert_eq!(clock_from_text(b"01:02:03.5", OutOfRange::Error), Ok(3_723_500_000));
    }

    proptest! {
        #[test]
        fn a_datetime_reads_back(micros in -62_135_596_800_000_000i64..=253_402_300_799_999_999) {
            let mut out = Vec::new();
            put_datetime(micros, &mut out);
            prop_assert_eq!(out.len(), 26);
            prop_assert_eq!(from_text(&out), Ok(Moment::At(micros.into())));
        }
    }
}
