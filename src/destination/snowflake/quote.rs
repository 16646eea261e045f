//! Identifiers and strings in Snowflake's SQL. Pure.

/// An identifier, quoted: Snowflake takes it as it is, capitals and all (Snowflake docs, "Identifier requirements").
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string literal. Backslashes begin escapes inside of quotes (Snowflake docs, "String & binary data types").
pub fn literal(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('\'');
    for c in text.chars() {
        match c {
            '\0' => out.push_str("\\0"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\\' => out.push_str("\\\\"),
            '\'' => out.push_str("''"),
            c => out.push(c),
        }
    }
    out.push('\'');
    out
}

/// `database.schema.table`, each quoted.
pub fn qualified(database: &str, schema: &str, table: &str) -> String {
    format!("{}.{}.{}", ident(database), ident(schema), ident(table))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads a literal as Snowflake's lexer does.
    fn read_literal(quoted: &str) -> Option<String> {
        let mut out = String::new();
        let mut rest = quoted.strip_prefix('\'')?.chars().peekable();
        loop {
            match rest.next()? {
                '\\' => out.push(match rest.next()? {
                    '0' => '\0',
                    'n' => '\n',
                    'r' => '\r',
                    other => other,
                }),
                '\'' if rest.peek() == Some(&'\'') => out.push(rest.next()?),
                '\'' => return rest.next().is_none().then_some(out),
                c => out.push(c),
            }
        }
    }

    /// Reads an identifier: to the first quote that is not doubled.
    fn read_ident(quoted: &str) -> Option<String> {
        let inside = quoted.strip_prefix('"')?.strip_suffix('"')?;
        let doubled = inside.replace("\"\"", "");
        (!doubled.contains('"')).then(|| inside.replace("\"\"", "\""))
    }

    proptest! {
        #[test]
        fn whatever_is_quoted_reads_back(text in any::<String>()) {
            prop_assert_eq!(read_literal(&literal(&text)), Some(text.clone()));
            prop_assert_eq!(read_ident(&ident(&text)), Some(text));
        }
    }

    #[test]
    fn a_table_is_quoted_part_by_part() {
        assert_eq!(qualified("D", "a.b", "it's \"x\""), "\"D\".\"a.b\".\"it's \"\"x\"\"\"");
    }
}
