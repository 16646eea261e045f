//! PostgreSQL's numbers as the text that NUMERIC and BIGNUMERIC read. Pure.

const TOO_FINE: &str = "the number has more digits after the point than the column's type";
const TOO_LARGE: &str = "the number is too large for the column's type";
const SPECIAL: &str = "NaN and infinity have no place in NUMERIC and BIGNUMERIC: give the column the type FLOAT64 or STRING";
const MALFORMED: &str = "it is not a number";

/// From the binary form: digits of base 10,000, the exponent of the first one, and the sign (PostgreSQL source, `numeric_send`).
pub(super) fn from_binary(bytes: &[u8], bounds: (u8, u8), out: &mut Vec<u8>) -> Result<(), &'static str> {
    let word = |at: usize| bytes.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]])).ok_or(MALFORMED);
    let (count, weight, sign) = (word(0)?, i32::from(word(2)?.cast_signed()), word(4)?);
    if !matches!(sign, 0 | 0x4000) {
        return Err(SPECIAL);
    }
    // Ten groups before the point are more than any type here holds.
    if count > 0 && weight >= 10 {
        return Err(TOO_LARGE);
    }
    let first = weight.max(0);
    let last = weight - i32::from(count) + 1;
    let start = out.len();
    if sign != 0 {
        out.push(b'-');
    }
    for group in (last.min(0)..=first).rev() {
        let at = weight - group;
        let digits = if (0..i32::from(count)).contains(&at) { word(8 + 2 * at as usize)? } else { 0 };
        if group == -1 {
            out.push(b'.');
        }
        let tens = |by: u16| b'0' + (digits / by % 10) as u8;
        out.extend_from_slice(&[tens(1000), tens(100), tens(10), tens(1)]);
    }
    finish(start, bounds, out)
}

/// From the text form.
pub(super) fn from_text(text: &[u8], bounds: (u8, u8), out: &mut Vec<u8>) -> Result<(), &'static str> {
    let digits = text.strip_prefix(b"-").or_else(|| text.strip_prefix(b"+")).unwrap_or(text);
    if digits.first().is_some_and(u8::is_ascii_alphabetic) {
        return Err(SPECIAL);
    }
    let plain = |b: &u8| b.is_ascii_digit() || *b == b'.';
    if !digits.iter().any(u8::is_ascii_digit) || !digits.iter().all(plain) || digits.iter().filter(|b| **b == b'.').count() > 1 {
        return Err(MALFORMED);
    }
    let start = out.len();
    if text.first() == Some(&b'-') {
        out.push(b'-');
    }
    out.extend_from_slice(digits);
    finish(start, bounds, out)
}

/// Takes needless zeros off and looks whether the rest fits.
fn finish(start: usize, (whole, scale): (u8, u8), out: &mut Vec<u8>) -> Result<(), &'static str> {
    let digits = start + usize::from(out.get(start) == Some(&b'-'));
    let mut point = out[digits..].iter().position(|b| *b == b'.').map_or(out.len(), |at| digits + at);
    if point < out.len() {
        while out.last() == Some(&b'0') {
            out.pop();
        }
        if out.last() == Some(&b'.') {
            out.pop();
        }
        point = point.min(out.len());
    }
    let zeros = out[digits..point].iter().take_while(|b| **b == b'0').count();
    // One digit before the point stays.
    let zeros = zeros.min((point - digits).saturating_sub(1));
    out.drain(digits..digits + zeros);
    let point = point - zeros;
    let written = &out[digits..point];
    let before = if written == b"0" { 0 } else { written.len() };
    if before > usize::from(whole) {
        return Err(TOO_LARGE);
    }
    if (out.len() - point).saturating_sub(1) > usize::from(scale) {
        return Err(TOO_FINE);
    }
    // Zero has no sign.
    if &out[start..] == b"-0" {
        out.remove(start);
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
        let mut weight = (all.len() / 4) as i16 - 1;
        all.push_str(fraction);
        all.push_str(&"0".repeat((4 - all.len() % 4) % 4));
        let mut words: Vec<u16> = all.as_bytes().chunks(4).map(|c| std::str::from_utf8(c).unwrap().parse().unwrap()).collect();
        // As PostgreSQL does, groups of zeros at either end are left out.
        while words.first() == Some(&0) {
            words.remove(0);
            weight -= 1;
        }
        while words.last() == Some(&0) {
            words.pop();
        }
        let mut out = Vec::new();
        let sign = if negative { 0x4000 } else { 0 };
        let weight = if words.is_empty() { 0 } else { weight };
        let head = [words.len() as u16, weight.cast_unsigned(), sign, fraction.len() as u16];
        head.iter().chain(&words).for_each(|w| out.extend_from_slice(&w.to_be_bytes()));
        out
    }

    fn text(number: &str, bounds: (u8, u8)) -> Result<String, &'static str> {
        let mut out = b"kept".to_vec();
        from_text(number.as_bytes(), bounds, &mut out).map(|()| String::from_utf8(out[4..].to_vec()).unwrap())
    }

    proptest! {
        #[test]
        fn binary_and_text_are_the_same_number(number in "-?[0-9]{1,45}(\\.[0-9]{1,42})?", whole in 0u8..=38, scale in 0u8..=38) {
            let mut out = b"kept".to_vec();
            let by_binary = from_binary(&sent(&number), (whole, scale), &mut out).map(|()| String::from_utf8(out[4..].to_vec()).unwrap());
            prop_assert_eq!(text(&number, (whole, scale)), by_binary);
        }

        #[test]
        fn what_fits_in_a_machine_word_is_that_word(number: i64) {
            prop_assert_eq!(text(&number.to_string(), (38, 38)), Ok(number.to_string()));
        }
    }

    #[test]
    fn needless_zeros_go_and_what_does_not_fit_is_refused() {
        assert_eq!(text("007.500", (1, 1)), Ok("7.5".into()));
        assert_eq!(text("-0.00", (1, 1)), Ok("0".into()));
        assert_eq!(text("0.25", (0, 2)), Ok("0.25".into()));
        assert_eq!(text("100", (3, 0)), Ok("100".into()));
        assert_eq!(text("1.25", (5, 1)), Err(TOO_FINE));
        assert_eq!(text("1000.0", (3, 1)), Err(TOO_LARGE));
        assert_eq!(text("NaN", (4, 1)), Err(SPECIAL));
        assert_eq!(text("-Infinity", (4, 1)), Err(SPECIAL));
        for wrong in ["1e5", "", "-", ".", "1.2.3"] {
            assert_eq!(text(wrong, (4, 1)), Err(MALFORMED), "{wrong}");
        }
        assert_eq!(from_binary(&[0, 0, 0, 0, 0xC0, 0, 0, 0], (4, 1), &mut Vec::new()), Err(SPECIAL));
        // Of two reasons both forms give the same.
        let both = format!("1{}.{}1", "0".repeat(18), "0".repeat(40));
        assert_eq!((text(&both, (0, 0)), from_binary(&sent(&both), (0, 0), &mut Vec::new())), (Err(TOO_LARGE), Err(TOO_LARGE)));
    }
}
