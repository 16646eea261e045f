//! PostgreSQL's arrays in their two forms. Pure.

/// An array as it is written in text: what is in braces, or one element.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::destination) enum Item {
    Null,
    Element(Vec<u8>),
    Array(Vec<Item>),
}

/// Reads the text form: `{1,NULL,"a b"}`, `{{1,2},{3,4}}`, `[0:1]={1,2}` (PostgreSQL docs, "Array Input and Output Syntax").
pub(in crate::destination) fn read(text: &[u8]) -> Option<Vec<Item>> {
    let start = if text.first() == Some(&b'[') { text.iter().position(|b| *b == b'=')? + 1 } else { 0 };
    let mut at = start;
    let items = braces(text, &mut at)?;
    (at == text.len()).then_some(items)
}

fn braces(text: &[u8], at: &mut usize) -> Option<Vec<Item>> {
    let mut items = Vec::new();
    (text.get(*at) == Some(&b'{')).then_some(())?;
    *at += 1;
    if text.get(*at) == Some(&b'}') {
        *at += 1;
        return Some(items);
    }
    loop {
        items.push(match text.get(*at)? {
            b'{' => Item::Array(braces(text, at)?),
            b'"' => Item::Element(quoted(text, at)?),
            _ => bare(text, at)?,
        });
        *at += 1;
        match text.get(*at - 1)? {
            b',' => {}
            b'}' => return Some(items),
            _ => return None,
        }
    }
}

fn quoted(text: &[u8], at: &mut usize) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        *at += 1;
        match text.get(*at)? {
            b'"' => {
                *at += 1;
                return Some(out);
            }
            b'\\' => {
                *at += 1;
                out.push(*text.get(*at)?);
            }
            other => out.push(*other),
        }
    }
}

fn bare(text: &[u8], at: &mut usize) -> Option<Item> {
    let mut out = Vec::new();
    loop {
        match text.get(*at)? {
            b',' | b'}' => break,
            b'\\' => {
                *at += 1;
                out.push(*text.get(*at)?);
            }
            other => out.push(*other),
        }
        *at += 1;
    }
    Some(if out.eq_ignore_ascii_case(b"NULL") { Item::Null } else { Item::Element(out) })
}

/// The binary form: its dimensions, and then its elements one by one (PostgreSQL source, `array_send`).
pub(in crate::destination) struct Binary<'a> {
    pub(in crate::destination) dimensions: Vec<usize>,
    rest: &'a [u8],
}

impl<'a> Binary<'a> {
    pub(in crate::destination) fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut array = Self { dimensions: Vec::new(), rest: bytes };
        let count = array.number()?;
        // Whether there are NULLs, and the element's type.
        array.number()?;
        array.number()?;
        for _ in 0..count {
            let length = usize::try_from(array.number()?).ok()?;
            array.dimensions.push(length);
            // Where it begins to count.
            array.number()?;
        }
        Some(array)
    }

    fn number(&mut self) -> Option<i32> {
        let (head, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(i32::from_be_bytes(*head))
    }

    /// The next element; the inner `None` is NULL.
    pub(in crate::destination) fn element(&mut self) -> Option<Option<&'a [u8]>> {
        let Ok(length) = usize::try_from(self.number()?) else { return Some(None) };
        let (element, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(Some(element))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(text: &str) -> Item {
        Item::Element(text.as_bytes().to_vec())
    }

    #[test]
    fn texts_of_arrays_are_read() {
        assert_eq!(read(b"{}"), Some(vec![]));
        assert_eq!(read(b"{1,NULL,\"NULL\"}"), Some(vec![element("1"), Item::Null, element("NULL")]));
        assert_eq!(read(br#"{"a \"b\\",c d}"#), Some(vec![element("a \"b\\"), element("c d")]));
        assert_eq!(read(b"[0:1]={1,2}"), Some(vec![element("1"), element("2")]));
        let pair = |a, b| Item::Array(vec![element(a), element(b)]);
        assert_eq!(read(b"{{1,2},{3,4}}"), Some(vec![pair("1", "2"), pair("3", "4")]));
        for wrong in ["", "1", "{1", "{\"a}", "{1}2", "{{1}", "[0:1]"] {
            assert_eq!(read(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
