//! The wire format of protocol buffers (its documentation, "Encoding"), as far as rows need it. Pure.

use prost_types::{DescriptorProto, FieldDescriptorProto, field_descriptor_proto::Label, field_descriptor_proto::Type as ProtoType};

use super::super::types::Type;

/// A field's number and wire type as bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tag {
    bytes: [u8; 5],
    length: u8,
}

impl Tag {
    pub(super) fn new(number: u32, type_: &Type) -> Self {
        let wire = match proto_type(type_) {
            ProtoType::Int32 | ProtoType::Int64 | ProtoType::Bool => 0,
            ProtoType::Double => 1,
            _ => 2,
        };
        let mut encoded = Vec::with_capacity(5);
        put_varint(u64::from(number << 3 | wire), &mut encoded);
        let mut bytes = [0; 5];
        bytes[..encoded.len()].copy_from_slice(&encoded);
        Self { bytes, length: encoded.len() as u8 }
    }

    #[inline]
    pub(super) fn put(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bytes[..usize::from(self.length)]);
    }
}

#[inline]
pub(super) fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[inline]
pub(super) fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    put_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// How a type travels (BigQuery docs, "Use the Storage Write API", "Data type conversions").
fn proto_type(type_: &Type) -> ProtoType {
    match type_ {
        Type::Bool => ProtoType::Bool,
        Type::Int64 | Type::Timestamp => ProtoType::Int64,
        Type::Date => ProtoType::Int32,
        Type::Float64 => ProtoType::Double,
        Type::Bytes => ProtoType::Bytes,
        Type::Array(element) => proto_type(element),
        Type::Numeric(..) | Type::BigNumeric(..) | Type::String | Type::Datetime | Type::Time | Type::Json => ProtoType::String,
    }
}

/// What tells the service how rows of these fields are written, numbered from 1.
pub(super) fn descriptor<'a>(fields: impl Iterator<Item = (&'a str, &'a Type)>) -> DescriptorProto {
    let field = |(place, (name, type_)): (usize, (&str, &Type))| FieldDescriptorProto {
        name: Some(name.into()),
        number: i32::try_from(place + 1).ok(),
        label: Some(if matches!(type_, Type::Array(_)) { Label::Repeated } else { Label::Optional } as i32),
        r#type: Some(proto_type(type_) as i32),
        ..FieldDescriptorProto::default()
    };
    DescriptorProto { name: Some("Row".into()), field: fields.enumerate().map(field).collect(), ..DescriptorProto::default() }
}
