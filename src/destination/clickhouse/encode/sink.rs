//! Where values go: one after the other, or each to its column. Pure.

use super::put_length;

/// Takes the values of a column. A type has one kind of values at most, however deep in arrays, and only those may be NULL.
pub trait Sink {
    /// Says before a value of a nullable type whether it is NULL.
    fn null(&mut self, is: bool);

    /// Whether NULL is followed by a value, which nobody looks at.
    fn null_has_value(&self) -> bool;

    /// Begins an array with so many elements, within so many others.
    fn length(&mut self, depth: usize, elements: usize);

    /// Where the bytes of a value go.
    fn values(&mut self) -> &mut Vec<u8>;
}

/// Takes rows.
pub trait Rows {
    /// What takes the values of one column.
    type Column: Sink;

    /// Where the next value of this column goes.
    fn column(&mut self, place: usize) -> &mut Self::Column;

    /// A row is complete.
    fn end_row(&mut self);
}

/// RowBinary: values in the order of the rows (ClickHouse docs, "RowBinary").
impl Sink for Vec<u8> {
    fn null(&mut self, is: bool) {
        self.push(u8::from(is));
    }

    fn null_has_value(&self) -> bool {
        false
    }

    fn length(&mut self, _: usize, elements: usize) {
        put_length(elements, self);
    }

    fn values(&mut self) -> &mut Vec<u8> {
        self
    }
}

impl Rows for Vec<u8> {
    type Column = Self;

    fn column(&mut self, _: usize) -> &mut Self {
        self
    }

    fn end_row(&mut self) {}
}
