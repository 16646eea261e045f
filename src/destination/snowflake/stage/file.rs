//! One file on its way into object storage: packed while rows come, sent in parts while they are packed. I/O.

use std::{io::Write, sync::Arc};

use bytes::Bytes;
use object_store::{MultipartUpload, ObjectStore, PutPayload, path::Path};
use tokio::task::JoinHandle;
use zstd::stream::write::Encoder;

use super::refusal::{Refusal, refusal};
use crate::destination::Error;

/// A part of a file: one is filled while another is on its way. Object storage wants 5 MiB at least and 10,000 parts at most.
const PART: usize = 8 << 20;
/// A file that is larger once it is compressed is followed by another: Snowflake recommends 100 to 250 MB (Snowflake docs, "Preparing your data files"), and a
/// warehouse reads several at once.
const FILE: usize = 160 << 20;
/// zstd's fastest level but for the negative ones.
const LEVEL: i32 = 1;

/// A file that is being written.
pub(in super::super) struct File {
    store: Arc<dyn ObjectStore>,
    path: Path,
    /// What to look at when it does not get there.
    cure: Arc<str>,
    packed: Encoder<'static, Vec<u8>>,
    parts: Option<Parts>,
    /// Bytes in parts before the one that is filled.
    sent: usize,
}

struct Parts {
    upload: Box<dyn MultipartUpload>,
    on_its_way: Option<JoinHandle<object_store::Result<()>>>,
}

impl File {
    /// Begins a file.
    pub(super) fn new(store: Arc<dyn ObjectStore>, path: Path, cure: Arc<str>) -> Result<Self, Error> {
        let packed = Encoder::new(Vec::with_capacity(PART + PART / 8), LEVEL).map_err(unpacked)?;
        Ok(Self { store, path, cure, packed, parts: None, sent: 0 })
    }

    /// Adds rows. They are on their way before the next part is full.
    pub(in super::super) async fn write(&mut self, rows: &[u8]) -> Result<(), Error> {
        self.packed.write_all(rows).map_err(unpacked)?;
        if self.packed.get_ref().len() >= PART {
            let part = std::mem::replace(self.packed.get_mut(), Vec::with_capacity(PART + PART / 8));
            self.send(part.into()).await?;
        }
        Ok(())
    }

    /// Whether the next rows belong into another file.
    pub(in super::super) fn is_full(&self) -> bool {
        self.sent + self.packed.get_ref().len() >= FILE
    }

    async fn send(&mut self, part: Bytes) -> Result<(), Error> {
        if self.parts.is_none() {
            let upload = self.store.put_multipart(&self.path).await.map_err(|e| lost(&e, &self.cure))?;
            self.parts = Some(Parts { upload, on_its_way: None });
        }
        self.sent += part.len();
        if let Some(parts) = &mut self.parts {
            parts.arrived(&self.cure).await?;
            parts.on_its_way = Some(tokio::spawn(parts.upload.put_part(PutPayload::from_bytes(part))));
        }
        Ok(())
    }

    /// Ends the file: from now on it is in the stage.
    pub(in super::super) async fn finish(mut self) -> Result<(), Error> {
        let packed = std::mem::replace(&mut self.packed, Encoder::new(Vec::new(), LEVEL).map_err(unpacked)?);
        let rest = Bytes::from(packed.finish().map_err(unpacked)?);
        if self.parts.is_none() {
            return self.store.put(&self.path, PutPayload::from_bytes(rest)).await.map(drop).map_err(|e| lost(&e, &self.cure));
        }
        self.send(rest).await?;
        match &mut self.parts {
            Some(parts) => {
                parts.arrived(&self.cure).await?;
                parts.upload.complete().await.map(drop).map_err(|e| lost(&e, &self.cure))
            }
            None => Ok(()),
        }
    }

    /// Gives it up: parts that have arrived would be kept, and paid for.
    pub(in super::super) async fn abort(mut self) {
        if let Some(parts) = &mut self.parts {
            let _ = parts.arrived(&self.cure).await;
            let _ = parts.upload.abort().await;
        }
    }
}

impl Parts {
    async fn arrived(&mut self, cure: &str) -> Result<(), Error> {
        match self.on_its_way.take() {
            Some(part) => part.await.map_err(|e| Error::Transient(format!("uploading rows: {e}")))?.map_err(|e| lost(&e, cure)),
            None => Ok(()),
        }
    }
}

/// Without the address, which may be a signed one.
fn lost(error: &object_store::Error, cure: &str) -> Error {
    let why = match refusal(error) {
        Refusal::Missing => "the place is gone",
        Refusal::Denied => "the place's credentials are not taken",
        Refusal::Elsewhere => "the place is in another region",
        Refusal::Other => "object storage cannot be reached, or refuses",
    };
    Error::Transient(format!("uploading rows to the stage: {why}; {cure}"))
}

fn unpacked(error: std::io::Error) -> Error {
    Error::Transient(format!("compressing rows: {error}"))
}
