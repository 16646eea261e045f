//! Identifiers and strings in ClickHouse's SQL. Pure.

/// An identifier, quoted. Backslashes and control characters are escaped: ClickHouse reads escapes inside of quotes.
pub fn ident(name: &str) -> String {
    quoted(name, '`')
}

/// A string literal.
pub fn literal(text: &str) -> String {
    quoted(text, '\'')
}

/// `database.table`, both quoted.
pub fn qualified(database: &str, table: &str) -> String {
    format!("{}.{}", ident(database), ident(table))
}

fn quoted(text: &str, quote: char) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\0' => out.push_str("\\0"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads a quoted text as ClickHouse's lexer does: to the first quote that no backslash precedes.
    fn read(quoted: &str, quote: char) -> Option<String> {
        let mut out = String::new();
        let mut rest = quoted.strip_prefix(quote)?.chars();
        loop {
            match rest.next()? {
                '\\' => out.push(match rest.next()? {
                    '0' => '\0',
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    other => other,
                }),
                c if c == quote => return rest.next().is_none().then_some(out),
                c => out.push(c),
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_is_quoted_reads_back(text in any::<String>()) {
            prop_assert_eq!(read(&ident(&text), '`'), Some(text.clone()));
            prop_assert_eq!(read(&literal(&text), '\''), Some(text));
        }
    }

    #[test]
    fn a_table_is_quoted_part_by_part() {
        assert_eq!(qualified("a.b", "it's `x`"), "`a.b`.`it's \\`x\\``");
    }
}
