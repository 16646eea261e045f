//! Native: a block of columns, which is what the server itself works with. Reading one takes it a third of the time that RowBinary takes. Pure.
//!
//! A block is the numbers of columns and rows, and for each column its name, its type, where NULLs are, where arrays end, and the values (ClickHouse docs,
//! "Native"). The server casts a column from the type that is named to the table's.

use super::{
    RowEncoder, put_length, put_string,
    sink::{Rows, Sink},
};
use crate::destination::clickhouse::types::Type;

/// Rows of one table, by columns.
#[derive(Debug)]
pub struct Block {
    columns: Vec<Column>,
    rows: usize,
    bytes: usize,
}

/// The values of one column.
#[derive(Debug)]
pub struct Column {
    /// A byte for each value of a nullable type: 1 is NULL.
    nulls: Vec<u8>,
    /// From the outermost arrays to the innermost ones.
    arrays: Vec<Arrays>,
    values: Vec<u8>,
}

/// Arrays of one depth.
#[derive(Debug, Default)]
struct Arrays {
    /// Where each ends, counted in elements.
    ends: Vec<u8>,
    elements: u64,
}

impl Block {
    /// Without rows.
    pub fn new(encoder: &RowEncoder) -> Self {
        let column = |column: &super::ColumnEncoder| Column {
            nulls: Vec::new(),
            arrays: (0..depth(&column.type_)).map(|_| Arrays::default()).collect(),
            values: Vec::new(),
        };
        Self { columns: encoder.columns.iter().map(column).collect(), rows: 0, bytes: 0 }
    }

    /// Forgets the rows, and keeps the room that they took.
    pub fn clear(&mut self) {
        for Column { nulls, arrays, values } in &mut self.columns {
            nulls.clear();
            values.clear();
            for Arrays { ends, elements } in arrays {
                ends.clear();
                *elements = 0;
            }
        }
        (self.rows, self.bytes) = (0, 0);
    }

    /// Size of all values, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Gives the block's bytes piece by piece. `names` are those of the columns.
    pub fn pieces<E>(&self, encoder: &RowEncoder, names: &[String], mut take: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut head = Vec::new();
        put_length(self.columns.len(), &mut head);
        put_length(self.rows, &mut head);
        for ((column, encoder), name) in self.columns.iter().zip(&encoder.columns).zip(names) {
            put_string(name.as_bytes(), &mut head);
            put_string(wire(&encoder.type_).as_bytes(), &mut head);
            take(&head)?;
            for arrays in &column.arrays {
                take(&arrays.ends)?;
            }
            take(&column.nulls)?;
            take(&column.values)?;
            head.clear();
        }
        Ok(())
    }
}

impl Rows for Block {
    type Column = Column;

    fn column(&mut self, place: usize) -> &mut Column {
        &mut self.columns[place]
    }

    fn end_row(&mut self) {
        self.rows += 1;
        self.bytes = self.columns.iter().map(Column::bytes).sum();
    }
}

impl Column {
    fn bytes(&self) -> usize {
        self.nulls.len() + self.values.len() + self.arrays.iter().map(|a| a.ends.len()).sum::<usize>()
    }
}

impl Sink for Column {
    fn null(&mut self, is: bool) {
        self.nulls.push(u8::from(is));
    }

    fn null_has_value(&self) -> bool {
        true
    }

    fn length(&mut self, depth: usize, elements: usize) {
        if let Some(arrays) = self.arrays.get_mut(depth) {
            arrays.elements += elements as u64;
            arrays.ends.extend_from_slice(&arrays.elements.to_le_bytes());
        }
    }

    fn values(&mut self) -> &mut Vec<u8> {
        &mut self.values
    }
}

fn depth(type_: &Type) -> usize {
    match type_.bare() {
        Type::Array(inner) => 1 + depth(inner),
        _ => 0,
    }
}

/// The type that values travel in: JSON as its text, and no dictionaries.
fn wire(type_: &Type) -> String {
    match type_ {
        Type::Bool => "Bool".into(),
        Type::Int(bytes) => format!("Int{}", u32::from(*bytes) * 8),
        Type::UInt(bytes) => format!("UInt{}", u32::from(*bytes) * 8),
        Type::Float32 => "Float32".into(),
        Type::Float64 => "Float64".into(),
        Type::Decimal(precision, scale) => format!("Decimal({precision}, {scale})"),
        Type::String | Type::Json => "String".into(),
        Type::Uuid => "UUID".into(),
        Type::Date => "Date".into(),
        Type::Date32 => "Date32".into(),
        Type::DateTime => "DateTime('UTC')".into(),
        Type::DateTime64(scale) => format!("DateTime64({scale}, 'UTC')"),
        Type::Ipv4 => "IPv4".into(),
        Type::Ipv6 => "IPv6".into(),
        Type::Array(inner) => format!("Array({})", wire(inner)),
        Type::Nullable(inner) => format!("Nullable({})", wire(inner)),
        Type::LowCardinality(inner) => wire(inner),
    }
}
