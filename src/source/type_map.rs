//! Which type a source's column gets at a PostgreSQL destination. Pure.

/// First oid that a server gives to what users and extensions create (PostgreSQL source, `access/transam.h`: FirstNormalObjectId).
const FIRST_USER_OID: u32 = 16_384;

/// A column's type as the source's catalog tells it, domains resolved to what they are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceType {
    /// Its oid.
    pub oid: u32,
    /// As `format_type` prints it, with its modifier: `numeric(10,2)`, `integer[]`, `public.mood`.
    pub text: String,
    /// `pg_type.typtype`.
    pub kind: Kind,
    /// Of an array: its element's type, as `(oid, name, separator in the array's text form)`.
    pub element: Option<Element>,
    /// Whether it has a binary form.
    pub sendable: bool,
}

impl SourceType {
    /// See [`Column::base_type`](crate::table::Column::base_type). `declared` is the column's type as the catalog prints it.
    pub fn base_of(&self, declared: &str) -> Option<String> {
        (self.text != declared).then(|| self.text.clone())
    }
}

/// The type of an array's elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// Its oid.
    pub oid: u32,
    /// As `format_type` prints it.
    pub text: String,
    /// What separates elements in the array's text form.
    pub separator: char,
}

/// What a type is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A base type, an array among them.
    Base,
    /// A range or multirange.
    Range,
    /// An enum.
    Enum,
    /// A composite, a pseudo-type, or something newer than this code.
    Other,
}

/// What a column becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The destination's type, in its own words.
    pub destination_type: String,
    /// Whether the source's binary form is what that type reads.
    pub binary: bool,
}

impl Kind {
    /// From `pg_type.typtype`.
    pub fn of(typtype: char) -> Self {
        match typtype {
            'b' => Self::Base,
            'r' | 'm' => Self::Range,
            'e' => Self::Enum,
            _ => Self::Other,
        }
    }
}

/// The destination's type for a source's type. `wanted` is the Mirror's own choice.
///
/// Types that every server has stay as they are and travel in binary. What users and extensions made need not exist at the destination, so it becomes
/// text unless the Mirror names a type. Enums travel in binary: their binary form is their label, as is that of text.
pub fn destination_type(source: &SourceType, wanted: Option<&str>) -> Mapped {
    let own = natural(source);
    match wanted.map(str::trim) {
        Some(wanted) if !wanted.eq_ignore_ascii_case(&own.destination_type) => Mapped { destination_type: wanted.into(), binary: false },
        _ => own,
    }
}

fn natural(source: &SourceType) -> Mapped {
    let text = |binary| Mapped { destination_type: "text".into(), binary };
    if source.kind == Kind::Enum {
        return text(true);
    }
    match &source.element {
        Some(element) if element.oid >= FIRST_USER_OID || names_an_object(&element.text) => {
            // An array's binary form names its element's type, which is not text.
            if element.separator == ',' { Mapped { destination_type: "text[]".into(), binary: false } } else { text(false) }
        }
        None if source.oid >= FIRST_USER_OID || names_an_object(&source.text) => text(false),
        Some(_) if source.oid >= FIRST_USER_OID => text(false),
        _ if !matches!(source.kind, Kind::Base | Kind::Range) => text(false),
        _ if !source.sendable => text(false),
        _ => Mapped { destination_type: source.text.clone(), binary: true },
    }
}

/// `regclass` and its like hold the oid of something of this server; only its name means anything elsewhere.
fn names_an_object(type_name: &str) -> bool {
    type_name.starts_with("reg")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(oid: u32, text: &str) -> SourceType {
        SourceType { oid, text: text.into(), kind: Kind::Base, element: None, sendable: true }
    }

    fn array(oid: u32, text: &str, element_oid: u32, element: &str) -> SourceType {
        SourceType { element: Some(Element { oid: element_oid, text: element.into(), separator: ',' }), ..base(oid, text) }
    }

    #[test]
    fn every_kind_of_type_finds_its_place() {
        let user = 20_000;
        let table = [
            (base(20, "bigint"), ("bigint", true)),
            (base(1700, "numeric(10,2)"), ("numeric(10,2)", true)),
            (array(1007, "integer[]", 23, "integer"), ("integer[]", true)),
            (SourceType { kind: Kind::Range, ..base(3904, "int4range") }, ("int4range", true)),
            (SourceType { kind: Kind::Enum, ..base(user, "public.mood") }, ("text", true)),
            (array(user, "public.mood[]", user + 1, "public.mood"), ("text[]", false)),
            (base(user, "public.citext"), ("text", false)),
            (SourceType { kind: Kind::Range, ..base(user, "public.span") }, ("text", false)),
            (SourceType { kind: Kind::Other, ..base(user, "public.pair") }, ("text", false)),
            (base(2205, "regclass"), ("text", false)),
            (array(2210, "regclass[]", 2205, "regclass"), ("text[]", false)),
            (SourceType { sendable: false, ..base(1033, "aclitem") }, ("text", false)),
            (SourceType { kind: Kind::Other, ..base(83, "pg_class") }, ("text", false)),
        ];
        for (source, (name, binary)) in table {
            assert_eq!(destination_type(&source, None), Mapped { destination_type: name.into(), binary }, "{source:?}");
        }
    }

    #[test]
    fn a_wanted_type_travels_as_text_unless_it_is_the_same() {
        let int = base(23, "integer");
        assert_eq!(destination_type(&int, Some("bigint")), Mapped { destination_type: "bigint".into(), binary: false });
        assert_eq!(destination_type(&int, Some(" INTEGER ")), Mapped { destination_type: "integer".into(), binary: true });
    }
}
