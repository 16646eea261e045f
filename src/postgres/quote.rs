//! The one place where names and texts become SQL for PostgreSQL.

/// A name as a quoted identifier. Always quoted, so that case and odd characters survive (PostgreSQL docs, "Identifiers and Key Words").
///
/// PostgreSQL refuses NUL in any text, so such a name fails at the server rather than being changed here.
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `schema.name`, both quoted.
pub fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", ident(schema), ident(name))
}

/// A text as a string constant that reads the same whatever `standard_conforming_strings` says.
pub fn literal(text: &str) -> String {
    if text.contains('\\') {
        format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads a quoted identifier back by PostgreSQL's rule: a doubled quote is a quote, a single one ends it.
    fn unquote(sql: &str) -> Option<String> {
        let inner = sql.strip_prefix('"')?.strip_suffix('"')?;
        let name = inner.replace("\"\"", "\u{0}");
        (!name.contains('"')).then(|| name.replace('\u{0}', "\""))
    }

    proptest! {
        #[test]
        fn a_quoted_identifier_reads_back_whole(name in "[^\u{0}]{1,63}") {
            let quoted = ident(&name);
            prop_assert_eq!(unquote(&quoted), Some(name));
        }

        #[test]
        fn a_literal_never_ends_early(text in "[^\u{0}]{0,80}") {
            let sql = literal(&text);
            let (body, escapes) = match sql.strip_prefix("E'") { Some(b) => (b, true), None => (&sql[1..], false) };
            let mut out = String::new();
            let mut chars = body.strip_suffix('\'').unwrap().chars();
            while let Some(c) = chars.next() {
                match c {
                    '\'' => { prop_assert_eq!(chars.next(), Some('\'')); out.push('\''); }
                    '\\' if escapes => out.push(chars.next().unwrap()),
                    other => out.push(other),
                }
            }
            prop_assert_eq!(out, text);
        }
    }
}
