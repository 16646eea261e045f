//! Changes as rows of the stage, in COPY's text form: PostgreSQL docs, "COPY", Text Format.

use std::collections::HashMap;

use bytes::{BufMut, Bytes, BytesMut};

use super::statements::{BURY, DELETE, Names, PARTIAL, Partial, PartialKind, UPSERT};
use crate::destination::{Cell, RowChange};

/// Bytes of one message to the server.
const PIECE: usize = 256 * 1024;

/// Encoded changes, and what is to be done once they are staged.
#[derive(Debug, Default)]
pub(super) struct Staged {
    pub pieces: Vec<Bytes>,
    pub statements: Vec<String>,
    /// For statements that must touch a number of rows: it and the statement's index.
    pub expected: Vec<(usize, u64)>,
}

/// Encodes `changes`; all of them rows of `names`.
pub(super) fn encode(names: &Names, changes: Vec<RowChange>) -> Staged {
    let mut out = Encoder { pieces: Vec::new(), piece: BytesMut::new(), keys: names.key.len() };
    let mut seen = [false; PARTIAL as usize];
    let mut partials: HashMap<Partial, (u32, u64)> = HashMap::new();
    for change in changes {
        let (op, row, old_key) = match change {
            RowChange::Add { row } => (UPSERT, row, None),
            RowChange::Remove { row } | RowChange::Delete { key: row } => (DELETE, row, None),
            RowChange::Upsert { row, deleted: true } if !names.soft() => (DELETE, row, None),
            RowChange::Upsert { row, deleted } if row.contains(&Cell::Unchanged) => {
                (number(&mut partials, &row, PartialKind::Update { deleted }), row, None)
            }
            RowChange::Upsert { row, deleted } => (if deleted { BURY } else { UPSERT }, row, None),
            RowChange::Rekey { old_key, row } => (number(&mut partials, &row, PartialKind::Rekey), row, Some(old_key)),
        };
        if let Some(seen) = seen.get_mut(op as usize) {
            *seen = true;
        }
        out.row(op, &row, names, old_key.as_deref());
    }
    let mut staged = Staged { pieces: out.finish(), ..Staged::default() };
    staged.plan(names, seen, partials);
    staged
}

/// The op of a partial row; a new one if none is like it.
fn number(partials: &mut HashMap<Partial, (u32, u64)>, row: &[Cell], kind: PartialKind) -> u32 {
    let next = PARTIAL + partials.len() as u32;
    let unchanged = row.iter().map(|cell| *cell == Cell::Unchanged).collect();
    let (op, rows) = partials.entry(Partial { unchanged, kind }).or_insert((next, 0));
    *rows += 1;
    *op
}

impl Staged {
    /// Orders the statements: what goes makes room first (unique indexes), and a live row comes after dead ones with an equal key.
    fn plan(&mut self, names: &Names, seen: [bool; PARTIAL as usize], partials: HashMap<Partial, (u32, u64)>) {
        let keyless = names.key.is_empty();
        if seen[DELETE as usize] && !keyless {
            self.statements.push(names.delete());
        }
        let mut partials: Vec<_> = partials.into_iter().collect();
        partials.sort_by_key(|(partial, (op, _))| (partial.kind != PartialKind::Rekey, *op));
        let (rekeys, updates): (Vec<_>, Vec<_>) = partials.into_iter().partition(|(p, _)| p.kind == PartialKind::Rekey);
        for (partial, (op, rows)) in rekeys {
            self.expected.push((self.statements.len(), rows));
            self.statements.extend(names.partial(op, &partial));
        }
        for op in [BURY, UPSERT] {
            if seen[op as usize] {
                self.statements.push(names.upsert(op));
            }
        }
        for (partial, (op, rows)) in updates {
            self.expected.push((self.statements.len(), rows));
            self.statements.extend(names.partial(op, &partial));
        }
        // Without keys a row may be removed that was added just before.
        if seen[DELETE as usize] && keyless {
            self.statements.push(names.delete_alike());
        }
    }
}

struct Encoder {
    pieces: Vec<Bytes>,
    piece: BytesMut,
    keys: usize,
}

impl Encoder {
    fn row(&mut self, op: u32, row: &[Cell], names: &Names, old_key: Option<&[Cell]>) {
        if self.piece.len() >= PIECE {
            self.pieces.push(std::mem::take(&mut self.piece).freeze());
        }
        if self.piece.is_empty() {
            self.piece.reserve(PIECE + PIECE / 8);
        }
        self.piece.put_slice(op.to_string().as_bytes());
        for place in 0..names.width() {
            self.cell(row.get(place));
        }
        for i in 0..self.keys {
            self.cell(old_key.and_then(|key| key.get(names.key[i])));
        }
        self.piece.put_u8(b'\n');
    }

    fn cell(&mut self, cell: Option<&Cell>) {
        self.piece.put_u8(b'\t');
        match cell {
            Some(Cell::Text(text)) => escape(text, &mut self.piece),
            Some(Cell::Null | Cell::Unchanged) | None => self.piece.put_slice(b"\\N"),
        }
    }

    fn finish(mut self) -> Vec<Bytes> {
        if !self.piece.is_empty() {
            self.pieces.push(self.piece.freeze());
        }
        self.pieces
    }
}

/// Most values have nothing to escape and are copied in one go.
fn escape(text: &[u8], out: &mut BytesMut) {
    let mut rest = text;
    while let Some(at) = rest.iter().position(|b| matches!(b, b'\\' | b'\t' | b'\n' | b'\r')) {
        out.put_slice(&rest[..at]);
        out.put_u8(b'\\');
        out.put_u8(match rest[at] {
            b'\t' => b't',
            b'\n' => b'n',
            b'\r' => b'r',
            other => other,
        });
        rest = &rest[at + 1..];
    }
    out.put_slice(rest);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_escaped_value_reads_back(text: Vec<u8>) {
            let mut out = BytesMut::new();
            escape(&text, &mut out);
            prop_assert!(!out.iter().any(|b| matches!(b, b'\t' | b'\n' | b'\r')));
            let mut back = Vec::new();
            let mut bytes = out.iter();
            while let Some(byte) = bytes.next() {
                back.push(match byte {
                    b'\\' => match bytes.next() {
                        Some(b't') => b'\t',
                        Some(b'n') => b'\n',
                        Some(b'r') => b'\r',
                        Some(other) => *other,
                        None => panic!("ends in a backslash"),
                    },
                    other => *other,
                });
            }
            prop_assert_eq!(back, text);
        }
    }
}
