//! Identifiers and strings in GoogleSQL. Pure.

use crate::table::TableName;

/// An identifier, quoted: "They have the same escape sequences as string literals" (BigQuery docs, "Lexical structure and syntax").
pub fn ident(name: &str) -> String {
    quoted(name, '`')
}

/// A string literal.
pub fn literal(text: &str) -> String {
    quoted(text, '\'')
}

/// `project.dataset.table`, each quoted.
pub fn qualified(project: &str, table: &TableName) -> String {
    format!("{}.{}.{}", ident(project), ident(&table.schema), ident(&table.name))
}

/// Quoted names, separated by commas.
pub fn list<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> String {
    names.into_iter().map(|name| ident(name.as_ref())).collect::<Vec<_>>().join(", ")
}

fn quoted(text: &str, quote: char) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => out.push_str(&format!("\\U{:08x}", u32::from(c))),
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

    /// Reads a quoted text as GoogleSQL's lexer does.
    fn read(quoted: &str, quote: char) -> Option<String> {
        let mut out = String::new();
        let mut rest = quoted.strip_prefix(quote)?.chars();
        loop {
            match rest.next()? {
                '\\' => out.push(match rest.next()? {
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    'U' => char::from_u32(u32::from_str_radix(&rest.by_ref().take(8).collect::<String>(), 16).ok()?)?,
                    other => other,
                }),
                '\n' | '\r' => return None,
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
        let table = TableName { schema: "shop".into(), name: "it's `x`".into() };
        assert_eq!(qualified("my-project", &table), "`my-project`.`shop`.`it's \\`x\\``");
    }
}
