//! Log sequence numbers.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A position in the write-ahead log, in bytes; written as PostgreSQL does, `16/B374D848` (PostgreSQL docs, "pg_lsn Type").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a log sequence number");
        let (high, low) = text.split_once('/').ok_or_else(wrong)?;
        let part = |hex: &str| u32::from_str_radix(hex, 16).map_err(|_| wrong());
        Ok(Self(u64::from(part(high)?) << 32 | u64::from(part(low)?)))
    }
}

impl TryFrom<String> for Lsn {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Lsn> for String {
    fn from(lsn: Lsn) -> String {
        lsn.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_printed_position_reads_back(position: u64) {
            prop_assert_eq!(Lsn(position).to_string().parse::<Lsn>(), Ok(Lsn(position)));
        }
    }

    #[test]
    fn text_that_is_no_position_is_refused() {
        for text in ["", "/", "1", "1/", "/1", "g/1", "100000000/0", "1/-1"] {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
    }
}
