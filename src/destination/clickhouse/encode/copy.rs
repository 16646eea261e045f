//! The pieces of a `COPY … TO STDOUT` stream, row by row. Pure.

use bytes::{Buf, Bytes};

use super::{Refused, RowEncoder, sink::Rows};
use crate::postgres::copy::{HEADER, SIGNATURE, field, unescape};

/// Reads a stream whose pieces may end anywhere.
pub struct CopyReader<'a> {
    encoder: &'a RowEncoder,
    binary: bool,
    buffer: Bytes,
    /// Past the header.
    started: bool,
    ended: bool,
    rows: u64,
}

/// Why a row cannot be written.
#[derive(Debug, PartialEq, Eq)]
pub enum CopyError {
    /// The stream is not what a COPY sends.
    Malformed,
    /// A column cannot hold a value.
    Value {
        /// Which and why.
        refused: Refused,
        /// The row, for people.
        row: String,
    },
}

impl<'a> CopyReader<'a> {
    /// For a stream in binary or text form.
    pub fn new(encoder: &'a RowEncoder, binary: bool) -> Self {
        Self { encoder, binary, buffer: Bytes::new(), started: !binary, ended: false, rows: 0 }
    }

    /// Takes what came next. Where the last piece ended with a row, which a source's pieces do, nothing is copied.
    pub fn push(&mut self, piece: Bytes) {
        self.buffer = if self.buffer.is_empty() { piece } else { [&self.buffer[..], &piece].concat().into() };
    }

    /// Rows written so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Whether the stream may end here.
    pub fn is_whole(&self) -> bool {
        self.buffer.is_empty() && (self.ended || !self.binary)
    }

    /// Writes the next row; false if it is not complete yet.
    pub fn next_row(&mut self, out: &mut impl Rows) -> Result<bool, CopyError> {
        if !self.started && !self.header()? || self.ended || self.buffer.is_empty() {
            return Ok(false);
        }
        let read = if self.binary { self.tuple(out)? } else { self.line(out)? };
        if let Some(length) = read {
            self.buffer.advance(length);
            self.rows += u64::from(!self.ended);
        }
        Ok(read.is_some() && !self.ended)
    }

    fn header(&mut self) -> Result<bool, CopyError> {
        let Some(head) = self.buffer.get(..HEADER) else { return Ok(false) };
        let extension = head.last_chunk::<4>().map_or(0, |b| u32::from_be_bytes(*b)) as usize;
        if !head.starts_with(SIGNATURE) {
            return Err(CopyError::Malformed);
        }
        if self.buffer.len() < HEADER + extension {
            return Ok(false);
        }
        self.buffer.advance(HEADER + extension);
        self.started = true;
        Ok(true)
    }

    /// Writes a tuple; its length, or `None` if it is not complete, and then nothing is written.
    fn tuple(&mut self, out: &mut impl Rows) -> Result<Option<usize>, CopyError> {
        let Some((head, fields)) = self.buffer.split_first_chunk::<2>() else { return Ok(None) };
        match i16::from_be_bytes(*head) {
            -1 => {
                self.ended = true;
                return Ok(Some(2));
            }
            count if usize::try_from(count) != Ok(self.encoder.columns.len()) => return Err(CopyError::Malformed),
            _ => {}
        }
        let mut rest = fields;
        if self.encoder.columns.iter().any(|_| field(&mut rest).is_err()) {
            return Ok(None);
        }
        let length = self.buffer.len() - rest.len();
        rest = fields;
        for (place, column) in self.encoder.columns.iter().enumerate() {
            let Ok(field) = field(&mut rest) else { return Ok(None) };
            if let Err(why) = column.put(field, true, out.column(place)) {
                return Err(self.refused(place, why, self.fields()));
            }
        }
        out.end_row();
        Ok(Some(length))
    }

    /// The fields of the tuple at the front, as far as they are there.
    fn fields(&self) -> Vec<Option<Vec<u8>>> {
        let mut rest = &self.buffer[2..];
        std::iter::from_fn(|| field(&mut rest).ok().map(|f| f.map(<[u8]>::to_vec))).take(self.encoder.columns.len()).collect()
    }

    fn line(&mut self, out: &mut impl Rows) -> Result<Option<usize>, CopyError> {
        let Some(end) = self.buffer.iter().position(|b| *b == b'\n') else { return Ok(None) };
        let fields: Vec<Option<Vec<u8>>> = self.buffer[..end].split(|b| *b == b'\t').map(unescape).collect();
        if fields.len() != self.encoder.columns.len() {
            return Err(CopyError::Malformed);
        }
        for (place, (column, field)) in self.encoder.columns.iter().zip(&fields).enumerate() {
            if let Err(why) = column.put(field.as_deref(), false, out.column(place)) {
                return Err(self.refused(place, why, fields));
            }
        }
        out.end_row();
        Ok(Some(end + 1))
    }

    fn refused(&self, column: usize, why: &'static str, fields: Vec<Option<Vec<u8>>>) -> CopyError {
        let row = self.encoder.name_key(|place| fields.get(place).and_then(|f| f.as_deref()), self.binary);
        CopyError::Value { refused: Refused { column, why }, row }
    }
}
