//! Decoder of the output plugin pgoutput, protocol version 1, values as text: PostgreSQL docs, "Logical Replication Message Formats". No I/O.
//!
//! Values are slices of the message, not copies.

use bytes::{Buf, Bytes};

use crate::{destination::Cell, postgres::Lsn};

/// One message of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A transaction's changes follow.
    Begin {
        /// Where its commit record starts.
        final_lsn: Lsn,
        /// When it committed, in microseconds since 2000-01-01.
        time: i64,
        /// Its number.
        xid: u32,
    },
    /// The transaction is complete.
    Commit {
        /// Where its commit record ends: the position to go on from.
        end_lsn: Lsn,
        /// Commit time, microseconds since 2000-01-01.
        time: i64,
    },
    /// How a table's rows look from now on.
    Relation(Relation),
    /// A new row.
    Insert {
        /// Oid of the table.
        relation: u32,
        /// The row.
        row: Vec<Cell>,
    },
    /// A changed row.
    Update {
        /// Oid of the table.
        relation: u32,
        /// What it was, if its key changed or the table's replica identity is FULL.
        old: Option<OldRow>,
        /// The row.
        row: Vec<Cell>,
    },
    /// A deleted row.
    Delete {
        /// Oid of the table.
        relation: u32,
        /// What it was.
        old: OldRow,
    },
    /// Emptied tables.
    Truncate {
        /// Their oids.
        relations: Vec<u32>,
    },
    /// A type's name, an origin's name, or a message of `pg_logical_emit_message`: of no use here.
    Other,
}

/// What a row was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OldRow {
    /// Its key; the other cells are NULL.
    Key(Vec<Cell>),
    /// All of it.
    Full(Vec<Cell>),
}

impl OldRow {
    /// Its cells.
    pub fn cells(&self) -> &[Cell] {
        match self {
            Self::Key(cells) | Self::Full(cells) => cells,
        }
    }
}

/// How a table's rows look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// Its oid.
    pub oid: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// `relreplident`: `d`, `n`, `f` or `i`.
    pub identity: u8,
    /// Its published columns, in order.
    pub columns: Vec<RelationColumn>,
}

/// A published column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationColumn {
    /// Whether it is part of the replica identity.
    pub key: bool,
    /// Its name.
    pub name: String,
    /// Its type's oid.
    pub type_oid: u32,
    /// Its type's modifier, or -1.
    pub type_modifier: i32,
}

/// What cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of the change stream is not understood: {0}")]
pub struct DecodeError(&'static str);

const SHORT: DecodeError = DecodeError("it ends early");

type Decoded<T> = Result<T, DecodeError>;

/// Reads one message.
pub fn decode(mut bytes: Bytes) -> Decoded<Message> {
    let b = &mut bytes;
    let message = match b.try_get_u8().map_err(|_| SHORT)? {
        b'B' => Message::Begin { final_lsn: Lsn(u64(b)?), time: u64(b)?.cast_signed(), xid: u32(b)? },
        b'C' => {
            u8(b)?;
            u64(b)?;
            Message::Commit { end_lsn: Lsn(u64(b)?), time: u64(b)?.cast_signed() }
        }
        b'R' => Message::Relation(relation(b)?),
        b'I' => {
            let relation = u32(b)?;
            expect(b, b'N')?;
            Message::Insert { relation, row: tuple(b)? }
        }
        b'U' => update(b)?,
        b'D' => {
            let relation = u32(b)?;
            let old = old_row(u8(b)?, b)?.ok_or(DecodeError("a delete without the old row"))?;
            Message::Delete { relation, old }
        }
        b'T' => {
            let count = u32(b)?;
            u8(b)?;
            let relations = (0..count).map(|_| u32(b)).collect::<Decoded<_>>()?;
            Message::Truncate { relations }
        }
        b'Y' | b'O' | b'M' => return Ok(Message::Other),
        _ => return Err(DecodeError("of an unknown kind")),
    };
    if bytes.is_empty() { Ok(message) } else { Err(DecodeError("more follows its end")) }
}

fn update(b: &mut Bytes) -> Decoded<Message> {
    let relation = u32(b)?;
    let kind = u8(b)?;
    let old = old_row(kind, b)?;
    if old.is_some() {
        expect(b, b'N')?;
    } else if kind != b'N' {
        return Err(DecodeError("a tuple of an unknown kind"));
    }
    Ok(Message::Update { relation, old, row: tuple(b)? })
}

fn old_row(kind: u8, b: &mut Bytes) -> Decoded<Option<OldRow>> {
    match kind {
        b'K' => Ok(Some(OldRow::Key(tuple(b)?))),
        b'O' => Ok(Some(OldRow::Full(tuple(b)?))),
        _ => Ok(None),
    }
}

fn relation(b: &mut Bytes) -> Decoded<Relation> {
    let oid = u32(b)?;
    let schema = string(b)?;
    // PostgreSQL sends the empty string for pg_catalog.
    let schema = if schema.is_empty() { "pg_catalog".into() } else { schema };
    let name = string(b)?;
    let identity = u8(b)?;
    let count = u16(b)?;
    let columns = (0..count)
        .map(|_| {
            let key = u8(b)? & 1 == 1;
            Ok(RelationColumn { key, name: string(b)?, type_oid: u32(b)?, type_modifier: u32(b)?.cast_signed() })
        })
        .collect::<Decoded<_>>()?;
    Ok(Relation { oid, schema, name, identity, columns })
}

fn tuple(b: &mut Bytes) -> Decoded<Vec<Cell>> {
    let count = usize::from(u16(b)?);
    // A count that promises more than there is must not make room for it.
    let mut cells = Vec::with_capacity(count.min(b.len()));
    for _ in 0..count {
        cells.push(match u8(b)? {
            b'n' => Cell::Null,
            b'u' => Cell::Unchanged,
            b't' => {
                let length = u32(b)? as usize;
                if b.len() < length {
                    return Err(SHORT);
                }
                Cell::Text(b.split_to(length))
            }
            _ => return Err(DecodeError("a value of an unknown kind")),
        });
    }
    Ok(cells)
}

fn expect(b: &mut Bytes, kind: u8) -> Decoded<()> {
    if u8(b)? == kind { Ok(()) } else { Err(DecodeError("a tuple of an unknown kind")) }
}

fn string(b: &mut Bytes) -> Decoded<String> {
    let end = b.iter().position(|c| *c == 0).ok_or(SHORT)?;
    let text = b.split_to(end);
    b.advance(1);
    String::from_utf8(text.into()).map_err(|_| DecodeError("a name that is not UTF-8"))
}

fn u8(b: &mut Bytes) -> Decoded<u8> {
    b.try_get_u8().map_err(|_| SHORT)
}

fn u16(b: &mut Bytes) -> Decoded<u16> {
    b.try_get_u16().map_err(|_| SHORT)
}

fn u32(b: &mut Bytes) -> Decoded<u32> {
    b.try_get_u32().map_err(|_| SHORT)
}

fn u64(b: &mut Bytes) -> Decoded<u64> {
    b.try_get_u64().map_err(|_| SHORT)
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut, BytesMut};
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn encode_tuple(cells: &[Cell], out: &mut BytesMut) {
        out.put_u16(u16::try_from(cells.len()).unwrap());
        for cell in cells {
            match cell {
                Cell::Null => out.put_u8(b'n'),
                Cell::Unchanged => out.put_u8(b'u'),
                Cell::Text(text) => {
                    out.put_u8(b't');
                    out.put_u32(u32::try_from(text.len()).unwrap());
                    out.put_slice(text);
                }
            }
        }
    }

    fn encode_old(old: &OldRow, out: &mut BytesMut) {
        out.put_u8(if matches!(old, OldRow::Key(_)) { b'K' } else { b'O' });
        encode_tuple(old.cells(), out);
    }

    fn encode_string(text: &str, out: &mut BytesMut) {
        out.put_slice(text.as_bytes());
        out.put_u8(0);
    }

    fn encode_relation(r: &Relation, out: &mut BytesMut) {
        out.put_u8(b'R');
        out.put_u32(r.oid);
        encode_string(&r.schema, out);
        encode_string(&r.name, out);
        out.put_u8(r.identity);
        out.put_u16(u16::try_from(r.columns.len()).unwrap());
        for c in &r.columns {
            out.put_u8(u8::from(c.key));
            encode_string(&c.name, out);
            out.put_u32(c.type_oid);
            out.put_i32(c.type_modifier);
        }
    }

    fn encode(message: &Message) -> Bytes {
        let mut out = BytesMut::new();
        match message {
            Message::Begin { final_lsn, time, xid } => {
                out.put_u8(b'B');
                out.put_u64(final_lsn.0);
                out.put_i64(*time);
                out.put_u32(*xid);
            }
            Message::Commit { end_lsn, time } => {
                out.put_slice(&[b'C', 0]);
                out.put_u64(7);
                out.put_u64(end_lsn.0);
                out.put_i64(*time);
            }
            Message::Relation(relation) => encode_relation(relation, &mut out),
            Message::Insert { relation, row } => {
                out.put_u8(b'I');
                out.put_u32(*relation);
                out.put_u8(b'N');
                encode_tuple(row, &mut out);
            }
            Message::Update { relation, old, row } => {
                out.put_u8(b'U');
                out.put_u32(*relation);
                if let Some(old) = old {
                    encode_old(old, &mut out);
                }
                out.put_u8(b'N');
                encode_tuple(row, &mut out);
            }
            Message::Delete { relation, old } => {
                out.put_u8(b'D');
                out.put_u32(*relation);
                encode_old(old, &mut out);
            }
            Message::Truncate { relations } => {
                out.put_u8(b'T');
                out.put_u32(u32::try_from(relations.len()).unwrap());
                out.put_u8(3);
                relations.iter().for_each(|r| out.put_u32(*r));
            }
            Message::Other => out.put_slice(b"Ywhatever"),
        }
        out.freeze()
    }

    fn cell() -> impl Strategy<Value = Cell> {
        prop_oneof![Just(Cell::Null), Just(Cell::Unchanged), vec(any::<u8>(), 0..20).prop_map(|v| Cell::Text(v.into()))]
    }

    fn row() -> impl Strategy<Value = Vec<Cell>> {
        vec(cell(), 0..6)
    }

    fn old() -> impl Strategy<Value = OldRow> {
        prop_oneof![row().prop_map(OldRow::Key), row().prop_map(OldRow::Full)]
    }

    fn any_relation() -> impl Strategy<Value = Message> {
        let column = (any::<bool>(), "[^\u{0}]{1,9}", any::<u32>(), any::<i32>())
            .prop_map(|(key, name, type_oid, type_modifier)| RelationColumn { key, name, type_oid, type_modifier });
        (any::<u32>(), "[^\u{0}]{1,9}", "[^\u{0}]{1,9}", any::<u8>(), vec(column, 0..5))
            .prop_map(|(oid, schema, name, identity, columns)| Message::Relation(Relation { oid, schema, name, identity, columns }))
    }

    fn message() -> impl Strategy<Value = Message> {
        prop_oneof![
            (any::<u64>(), any::<i64>(), any::<u32>()).prop_map(|(lsn, time, xid)| Message::Begin { final_lsn: Lsn(lsn), time, xid }),
            (any::<u64>(), any::<i64>()).prop_map(|(lsn, time)| Message::Commit { end_lsn: Lsn(lsn), time }),
            any_relation(),
            (any::<u32>(), row()).prop_map(|(relation, row)| Message::Insert { relation, row }),
            (any::<u32>(), proptest::option::of(old()), row()).prop_map(|(relation, old, row)| Message::Update { relation, old, row }),
            (any::<u32>(), old()).prop_map(|(relation, old)| Message::Delete { relation, old }),
            vec(any::<u32>(), 0..5).prop_map(|relations| Message::Truncate { relations }),
            Just(Message::Other),
        ]
    }

    proptest! {
        #[test]
        fn an_encoded_message_reads_back(message in message()) {
            prop_assert_eq!(decode(encode(&message)), Ok(message));
        }

        #[test]
        fn a_message_cut_short_is_refused(message in message(), cut in 1usize..40) {
            let bytes = encode(&message);
            prop_assume!(message != Message::Other && cut <= bytes.len());
            prop_assert!(decode(bytes.slice(..bytes.len() - cut)).is_err());
        }

        #[test]
        fn garbage_never_panics(kind in prop::sample::select(b"BCRIUDTYOM?".to_vec()), rest: Vec<u8>) {
            let mut bytes = vec![kind];
            bytes.extend(rest);
            let _ = decode(bytes.into());
        }
    }
}
