//! The formats of a `COPY … TO STDOUT` stream (PostgreSQL docs, "COPY", "File Formats"). Pure.

/// What a binary stream begins with.
pub const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
/// Signature, flags, and the length of what follows those.
pub const HEADER: usize = SIGNATURE.len() + 8;

/// More has to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incomplete;

/// The next field of a tuple, `None` for NULL; an error if it is not complete.
pub fn field<'b>(rest: &mut &'b [u8]) -> Result<Option<&'b [u8]>, Incomplete> {
    let (head, after) = rest.split_first_chunk().ok_or(Incomplete)?;
    let Ok(length) = usize::try_from(i32::from_be_bytes(*head)) else {
        *rest = after;
        return Ok(None);
    };
    let (field, after) = after.split_at_checked(length).ok_or(Incomplete)?;
    *rest = after;
    Ok(Some(field))
}

/// A field of a text stream; `None` for NULL.
pub fn unescape(field: &[u8]) -> Option<Vec<u8>> {
    if field == b"\\N" {
        return None;
    }
    let mut out = Vec::with_capacity(field.len());
    let mut bytes = field.iter();
    while let Some(byte) = bytes.next() {
        out.push(match (byte, if *byte == b'\\' { bytes.next() } else { None }) {
            (_, Some(b'b')) => 8,
            (_, Some(b't')) => b'\t',
            (_, Some(b'n')) => b'\n',
            (_, Some(b'v')) => 11,
            (_, Some(b'f')) => 12,
            (_, Some(b'r')) => b'\r',
            (_, Some(other)) => *other,
            (plain, None) => *plain,
        });
    }
    Some(out)
}
