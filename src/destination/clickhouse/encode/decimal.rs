//! Decimals: PostgreSQL's `numeric` as a scaled integer of up to 256 bits. Pure.

/// Why a number cannot be held.
const SPECIAL: &str = "NaN and infinity have no place in a Decimal";
const TOO_FINE: &str = "it has more digits after the point than the Decimal holds";
const TOO_LARGE: &str = "it has more digits before the point than the Decimal holds";
const MALFORMED: &str = "it is not a number";

/// An unsigned number of 256 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wide {
    high: u128,
    low: u128,
}

impl Wide {
    /// `self * factor + more`.
    fn times_plus(self, factor: u32, more: u32) -> Option<Self> {
        let factor = u128::from(factor);
        if self.high == 0
            && let Some(low) = self.low.checked_mul(factor).and_then(|low| low.checked_add(u128::from(more)))
        {
            return Some(Self { high: 0, low });
        }
        let mask = u128::from(u64::MAX);
        let first = (self.low & mask) * factor + u128::from(more);
        let second = (self.low >> 64) * factor + (first >> 64);
        let low = (second << 64) | (first & mask);
        let high = self.high.checked_mul(factor)?.checked_add(second >> 64)?;
        Some(Self { high, low })
    }

    fn less_than_power(self, digits: u8) -> bool {
        let mut bound = Self { high: 0, low: 1 };
        for _ in 0..digits {
            match bound.times_plus(10, 0) {
                Some(next) => bound = next,
                None => return true,
            }
        }
        (self.high, self.low) < (bound.high, bound.low)
    }

    /// Two's complement, the lowest byte first.
    fn put(self, negative: bool, bytes: usize, out: &mut Vec<u8>) {
        let mut all = [0; 32];
        let (mut low, mut high) = (self.low, self.high);
        if negative {
            (low, high) = (!low, !high);
            let carried;
            (low, carried) = low.overflowing_add(1);
            high = high.wrapping_add(u128::from(carried));
        }
        all[..16].copy_from_slice(&low.to_le_bytes());
        all[16..].copy_from_slice(&high.to_le_bytes());
        out.extend_from_slice(&all[..bytes]);
    }
}

/// Bytes of a Decimal of this precision (ClickHouse docs, "Decimal").
pub(super) fn width(precision: u8) -> usize {
    match precision {
        0..=9 => 4,
        10..=18 => 8,
        19..=38 => 16,
        _ => 32,
    }
}

fn finish(number: Option<Wide>, negative: bool, precision: u8, out: &mut Vec<u8>) -> Result<(), &'static str> {
    let number = number.filter(|n| n.less_than_power(precision)).ok_or(TOO_LARGE)?;
    number.put(negative, width(precision), out);
    Ok(())
}

/// From the binary form: digits of base 10,000, the exponent of the first one, and the sign (PostgreSQL source, `numeric_send`).
pub(super) fn from_binary(bytes: &[u8], precision: u8, scale: u8, out: &mut Vec<u8>) -> Result<(), &'static str> {
    let word = |at: usize| bytes.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]])).ok_or(MALFORMED);
    let (count, weight, sign) = (word(0)?, i32::from(word(2)?.cast_signed()), word(4)?);
    if !matches!(sign, 0 | 0x4000) {
        return Err(SPECIAL);
    }
    let (mut number, mut place) = (Some(Wide::default()), i32::from(scale));
    for i in 0..count {
        let digit = u32::from(word(8 + 2 * usize::from(i))?);
        place = 4 * (weight - i32::from(i)) + i32::from(scale);
        if place >= 0 {
            number = number.and_then(|n| n.times_plus(10_000, digit));
            continue;
        }
        let beyond = 10u32.pow(place.unsigned_abs().min(4));
        if digit % beyond != 0 {
            return Err(TOO_FINE);
        }
        if beyond < 10_000 {
            number = number.and_then(|n| n.times_plus(10_000 / beyond, digit / beyond));
        }
    }
    if count > 0 {
        for _ in 0..place.max(0) {
            number = number.and_then(|n| n.times_plus(10, 0));
        }
    }
    finish(number, sign != 0, precision, out)
}

/// From the text form.
pub(super) fn from_text(text: &[u8], precision: u8, scale: u8, out: &mut Vec<u8>) -> Result<(), &'static str> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        all => (false, all),
    };
    if digits.first().is_some_and(u8::is_ascii_alphabetic) {
        return Err(SPECIAL);
    }
    let point = digits.iter().position(|b| *b == b'.').unwrap_or(digits.len());
    let (whole, fraction) = (&digits[..point], digits.get(point + 1..).unwrap_or_default());
    if whole.is_empty() && fraction.is_empty() || whole.iter().chain(fraction).any(|b| !b.is_ascii_digit()) {
        return Err(MALFORMED);
    }
    let (kept, beyond) = fraction.split_at(fraction.len().min(usize::from(scale)));
    if beyond.iter().any(|b| *b != b'0') {
        return Err(TOO_FINE);
    }
    let zeros = std::iter::repeat_n(&b'0', usize::from(scale) - kept.len());
    let number =
        whole.iter().chain(kept).chain(zeros).try_fold(Wide::default(), |number, digit| number.times_plus(10, u32::from(digit - b'0')));
    finish(number, negative, precision, out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What PostgreSQL sends for a number.
    fn sent(text: &str) -> Vec<u8> {
        let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let mut all = format!("{}{whole}", "0".repeat((4 - whole.len() % 4) % 4));
        let weight = (all.len() / 4) as i16 - 1;
        all.push_str(fraction);
        all.push_str(&"0".repeat((4 - all.len() % 4) % 4));
        let words: Vec<u16> = all.as_bytes().chunks(4).map(|c| std::str::from_utf8(c).unwrap().parse().unwrap()).collect();
        let mut out = Vec::new();
        let head = [words.len() as u16, weight.cast_unsigned(), if negative { 0x4000 } else { 0 }, fraction.len() as u16];
        head.iter().chain(&words).for_each(|w| out.extend_from_slice(&w.to_be_bytes()));
        out
    }

    proptest! {
        #[test]
        fn binary_and_text_are_the_same_number(number in "-?[0-9]{1,50}(\\.[0-9]{1,45})?", precision in 1u8..=76, scale in 0u8..=40) {
            let scale = scale.min(precision);
            let (mut a, mut b) = (Vec::new(), Vec::new());
            let by_text = from_text(number.as_bytes(), precision, scale, &mut a);
            let by_binary = from_binary(&sent(&number), precision, scale, &mut b);
            prop_assert_eq!(by_text.is_ok(), by_binary.is_ok());
            prop_assert_eq!(a, b);
        }

        #[test]
        fn what_fits_in_a_machine_word_is_that_word(number: i64) {
            let mut out = Vec::new();
            from_text(number.to_string().as_bytes(), 76, 0, &mut out).unwrap();
            let mut expected = if number < 0 { [0xff; 32] } else { [0; 32] };
            expected[..8].copy_from_slice(&number.to_le_bytes());
            prop_assert_eq!(out, expected);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut out = Vec::new();
        assert_eq!(from_text(b"1.25", 5, 1, &mut out), Err(TOO_FINE));
        assert_eq!(from_text(b"1000.0", 4, 1, &mut out), Err(TOO_LARGE));
        assert_eq!(from_text(b"NaN", 4, 1, &mut out), Err(SPECIAL));
        assert_eq!(from_text(b"-Infinity", 4, 1, &mut out), Err(SPECIAL));
        assert_eq!(from_text(b"1e5", 4, 1, &mut out), Err(MALFORMED));
        assert_eq!(from_binary(&[0, 0, 0, 0, 0xC0, 0, 0, 0], 4, 1, &mut out), Err(SPECIAL));
        assert_eq!((out, from_text("9".repeat(76).as_bytes(), 76, 0, &mut Vec::new())), (vec![], Ok(())));
    }
}
