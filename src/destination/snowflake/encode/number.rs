//! Numbers. Pure.

use super::MALFORMED;

const SPECIAL: &str = "NaN and infinity have no place in a NUMBER: give the column the type FLOAT or VARCHAR";
const TOO_FINE: &str =
    "it has more digits after the point than the column's NUMBER holds: give the column another scale, or the type VARCHAR";
const TOO_LARGE: &str =
    "it has more digits before the point than the column's NUMBER holds: give the column another precision, or the type VARCHAR";

/// A whole number of up to eight bytes, the highest first.
pub(super) fn whole(bytes: &[u8]) -> Option<i64> {
    match bytes.len() {
        2 => Some(i64::from(i16::from_be_bytes(bytes.try_into().ok()?))),
        4 => Some(i64::from(i32::from_be_bytes(bytes.try_into().ok()?))),
        8 => Some(i64::from_be_bytes(bytes.try_into().ok()?)),
        _ => None,
    }
}

pub(super) fn put_whole(number: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// A float from PostgreSQL's text.
pub(super) fn float(text: &[u8]) -> Option<f64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// One of 32 bits. Its text may have one digit more than [`put_float4`] needs: PostgreSQL leaves out numbers halfway to the next one, which read back too.
pub(super) fn float4(text: &[u8]) -> Option<f32> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The shortest digits that read back; `NaN`, `inf` and `-inf` (Snowflake docs, "Numeric data types", "Special values").
pub(super) fn put_float(number: f64, out: &mut Vec<u8>) {
    match number {
        n if n.is_nan() => out.extend_from_slice(b"NaN"),
        n if n.is_infinite() => out.extend_from_slice(if n > 0.0 { b"inf" } else { b"-inf" }),
        n => out.extend_from_slice(ryu::Buffer::new().format_finite(n).as_bytes()),
    }
}

/// The same for a number of 32 bits: by its digits. As its bits say it, it would be another number in 64 of them.
pub(super) fn put_float4(number: f32, out: &mut Vec<u8>) {
    let digits = number.is_finite().then(|| ryu::Buffer::new().format_finite(number).parse().ok()).flatten();
    put_float(digits.unwrap_or(f64::from(number)), out);
}

/// A `numeric` of the binary form: whether it is negative, and its digits before and after the point; the infinite ones and NaN are refused.
struct Digits {
    negative: bool,
    text: Vec<u8>,
    /// Digits before the point.
    whole: usize,
}

impl Digits {
    /// Reads digits of base 10,000, the exponent of the first one, sign and scale (PostgreSQL source, `numeric_send`).
    fn read(bytes: &[u8]) -> Result<Self, &'static str> {
        let word = |at: usize| bytes.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]])).ok_or(MALFORMED);
        let (count, weight, sign, shown) = (usize::from(word(0)?), i32::from(word(2)?.cast_signed()), word(4)?, usize::from(word(6)?));
        if !matches!(sign, 0 | 0x4000) {
            return Err(SPECIAL);
        }
        let digit = |exponent: i32| match usize::try_from(weight - exponent) {
            Ok(place) if place < count => word(8 + 2 * place),
            _ => Ok(0),
        };
        let mut text = Vec::with_capacity(64);
        for exponent in (0..=weight.max(0)).rev() {
            match digit(exponent)? {
                value if !text.is_empty() => put_four(value, &mut text),
                0 if exponent > 0 => {}
                value => text.extend_from_slice(itoa::Buffer::new().format(value).as_bytes()),
            }
        }
        let whole = text.len();
        for exponent in 1..=shown.div_ceil(4) {
            put_four(digit(-(exponent as i32))?, &mut text);
        }
        text.truncate(whole + shown);
        Ok(Self { negative: sign != 0, text, whole })
    }
}

/// From the binary form of `numeric`.
pub(super) fn from_binary(bytes: &[u8], precision: u8, scale: u8, out: &mut Vec<u8>) -> Result<(), &'static str> {
    let Digits { negative, text, whole } = Digits::read(bytes)?;
    check_and_put(negative, &text[..whole], &text[whole..], precision, scale, out)
}

/// Writes a `numeric` of the binary form as PostgreSQL shows it, whatever it is.
pub(super) fn show(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), &'static str> {
    match bytes.get(4..6) {
        Some([0xC0, 0]) => out.extend_from_slice(b"NaN"),
        Some([0xD0, 0]) => out.extend_from_slice(b"Infinity"),
        Some([0xF0, 0]) => out.extend_from_slice(b"-Infinity"),
        _ => {
            let Digits { negative, text, whole } = Digits::read(bytes)?;
            out.extend_from_slice(if negative { b"-" } else { b"" });
            out.extend_from_slice(&text[..whole]);
            if text.len() > whole {
                out.push(b'.');
                out.extend_from_slice(&text[whole..]);
            }
        }
    }
    Ok(())
}

fn put_four(value: u16, out: &mut Vec<u8>) {
    let digit = |divisor: u16| b'0' + (value / divisor % 10) as u8;
    out.extend_from_slice(&[digit(1000), digit(100), digit(10), digit(1)]);
}

/// From the text form.
pub(super) fn from_text(text: &[u8], precision: u8, scale: u8, out: &mut Vec<u8>) -> Result<(), &'static str> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        all => (false, all),
    };
    if digits.first().is_some_and(u8::is_ascii_alphabetic) {
        return Err(if matches!(digits, b"NaN" | b"Infinity") { SPECIAL } else { MALFORMED });
    }
    let point = digits.iter().position(|b| *b == b'.').unwrap_or(digits.len());
    let (whole, fraction) = (&digits[..point], digits.get(point + 1..).unwrap_or_default());
    if whole.is_empty() && fraction.is_empty() || whole.iter().chain(fraction).any(|b| !b.is_ascii_digit()) {
        return Err(MALFORMED);
    }
    check_and_put(negative, whole, fraction, precision, scale, out)
}

fn check_and_put(negative: bool, whole: &[u8], fraction: &[u8], precision: u8, scale: u8, out: &mut Vec<u8>) -> Result<(), &'static str> {
    let zeros = whole.iter().take_while(|b| **b == b'0').count();
    if whole.len() - zeros > usize::from(precision - scale) {
        return Err(TOO_LARGE);
    }
    let (kept, beyond) = fraction.split_at(fraction.len().min(usize::from(scale)));
    if beyond.iter().any(|b| *b != b'0') {
        return Err(TOO_FINE);
    }
    if negative && whole.iter().chain(kept).any(|b| *b != b'0') {
        out.push(b'-');
    }
    out.extend_from_slice(if zeros == whole.len() { b"0" } else { &whole[zeros..] });
    if !kept.is_empty() {
        out.push(b'.');
        out.extend_from_slice(kept);
    }
    Ok(())
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
        // As the server does, without what is zero at either end.
        let first = words.iter().position(|w| *w != 0).unwrap_or(words.len());
        let last = words.iter().rposition(|w| *w != 0).map_or(first, |at| at + 1);
        let kept = &words[first..last];
        let head = [kept.len() as u16, (weight - first as i16).cast_unsigned(), if negative { 0x4000 } else { 0 }, fraction.len() as u16];
        head.iter().chain(kept).flat_map(|w| w.to_be_bytes()).collect()
    }

    proptest! {
        #[test]
        fn binary_and_text_are_the_same_number(number in "-?(0|[1-9][0-9]{0,45})(\\.[0-9]{1,20})?", precision in 1u8..=38, scale in 0u8..=37) {
            let scale = scale.min(precision);
            let (mut a, mut b) = (Vec::new(), Vec::new());
            let by_text = from_text(number.as_bytes(), precision, scale, &mut a);
            let by_binary = from_binary(&sent(&number), precision, scale, &mut b);
            prop_assert_eq!(by_text, by_binary);
            prop_assert_eq!(String::from_utf8(a), String::from_utf8(b));
        }

        #[test]
        fn floats_read_back(bits: u64) {
            let number = f64::from_bits(bits);
            let mut out = Vec::new();
            put_float(number, &mut out);
            let back = float(&out).unwrap();
            prop_assert!(back == number || back.is_nan() && number.is_nan());
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut out = Vec::new();
        assert_eq!(from_text(b"1.25", 5, 1, &mut out), Err(TOO_FINE));
        assert_eq!(from_text(b"1000.0", 4, 1, &mut out), Err(TOO_LARGE));
        assert_eq!(from_text(b"NaN", 4, 1, &mut out), Err(SPECIAL));
        assert_eq!(from_text(b"secret", 4, 1, &mut out), Err(MALFORMED));
        assert_eq!(from_binary(&[0, 0, 0, 0, 0xC0, 0, 0, 0], 4, 1, &mut out), Err(SPECIAL));
        assert!(out.is_empty());
        for (text, written) in [("-0.00", "0.00"), ("007.50", "7.50"), ("-12", "-12"), (".5", "0.5")] {
            out.clear();
            from_text(text.as_bytes(), 38, 9, &mut out).unwrap();
            assert_eq!(String::from_utf8_lossy(&out), written);
        }
    }

    #[test]
    fn a_real_is_what_its_digits_say() {
        let mut out = Vec::new();
        put_float4(0.1, &mut out);
        assert_eq!(out, b"0.1");
        // As PostgreSQL prints it, with a digit more.
        out.clear();
        put_float4(float4(b"5.2449048e+07").unwrap(), &mut out);
        assert_eq!(out, b"52449050.0");
    }
}
