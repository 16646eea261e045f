//! The Storage Write API: rows into streams, and streams into tables. I/O.
//!
//! The crate's own helper knows the default stream and the public endpoint only; its generated client takes a channel of one's own.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{Stream, StreamExt};
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::{
    AppendRowsRequest, AppendRowsResponse, BatchCommitWriteStreamsRequest, CreateWriteStreamRequest, FinalizeWriteStreamRequest, ProtoRows,
    ProtoSchema, WriteStream, append_rows_request, append_rows_response, big_query_write_client::BigQueryWriteClient, storage_error,
    write_stream,
};
use prost_types::DescriptorProto;
use tonic::{
    Code, Request, Status,
    transport::{Channel, ClientTlsConfig, Endpoint},
};

use super::{
    auth::Auth,
    client::{Backoff, Peer, escaped},
    error::Refusal,
};
use crate::{destination::Error, table::TableName};

/// How long a request may take that has nothing to wait for.
const LIMIT: Duration = Duration::from_secs(60);
/// How long is waited for a table that has just been made to be known (BigQuery docs, "Use the Storage Write API", on NOT_FOUND).
const PATIENCE: Duration = Duration::from_secs(60);

/// Writes to the tables of one project.
pub(super) struct Writer {
    client: BigQueryWriteClient<Channel>,
    auth: Arc<Auth>,
    project: String,
}

impl Writer {
    /// Connects to nothing yet.
    pub(super) fn new(to: &Peer, auth: Arc<Auth>) -> Result<Self, Error> {
        let failed = |e: &dyn std::fmt::Display| Error::Transient(format!("preparing connections to BigQuery: {e}"));
        let mut endpoint = Endpoint::from_shared(to.storage_endpoint.clone())
            .map_err(|e| failed(&e))?
            .connect_timeout(Duration::from_millis(to.at.connect_timeout_millis))
            .tcp_nodelay(true)
            .tcp_keepalive(Some(Duration::from_secs(20)));
        if to.storage_endpoint.starts_with("https://") {
            let tls = ClientTlsConfig::new().trust_anchors(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
            endpoint = endpoint.tls_config(tls).map_err(|e| failed(&e))?;
        }
        Ok(Self { client: BigQueryWriteClient::new(endpoint.connect_lazy()), auth, project: to.project.clone() })
    }

    /// How this API names a table.
    fn path(&self, table: &TableName) -> String {
        format!("projects/{}/datasets/{}/tables/{}", self.project, table.schema, table.name)
    }

    /// The stream of a table whose rows are there at once.
    pub(super) fn default_stream(&self, table: &TableName) -> String {
        format!("{}/streams/_default", self.path(table))
    }

    /// A request with what the service wants beside it: where it is to be brought, and a token.
    async fn request<T>(&self, message: T, routing: String) -> Result<Request<T>, Refusal> {
        let mut request = Request::new(message);
        let bad = |_| Refusal::unheard("a request's header cannot be written");
        request.metadata_mut().insert("x-goog-request-params", routing.parse().map_err(bad)?);
        if let Some(token) = self.auth.token().await? {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().map_err(bad)?);
        }
        Ok(request)
    }

    /// The same for a table that has just been made: the service may not know it at once.
    pub(super) async fn open_new(&self, table: &TableName) -> Result<String, Refusal> {
        let mut pause = Backoff::new(PATIENCE);
        loop {
            match self.open(table).await {
                Err(refusal) if refusal.is("notFound") && pause.wait().await => {}
                answer => return answer,
            }
        }
    }

    /// Opens a stream whose rows nobody sees before it is committed; returns its name.
    pub(super) async fn open(&self, table: &TableName) -> Result<String, Refusal> {
        let parent = self.path(table);
        let mut pause = Backoff::new(PATIENCE);
        loop {
            let stream = WriteStream { r#type: write_stream::Type::Pending as i32, ..WriteStream::default() };
            let message = CreateWriteStreamRequest { parent: parent.clone(), write_stream: Some(stream) };
            let mut request = self.request(message, format!("parent={}", escaped(&parent))).await?;
            request.set_timeout(LIMIT);
            match self.client.clone().create_write_stream(request).await.map_err(|status| refusal(&status)) {
                Err(refusal) if refusal.passes() && pause.wait().await => {}
                answer => return answer.map(|stream| stream.into_inner().name),
            }
        }
    }

    /// Appends rows as they come; returns how many. On a stream of one's own each row has its place, so that none is written twice.
    pub(super) async fn append(
        &self,
        stream: &str,
        descriptor: DescriptorProto,
        batches: impl Stream<Item = Vec<Vec<u8>>> + Send + 'static,
    ) -> Result<u64, Refusal> {
        let placed = !stream.ends_with("/_default");
        let (name, mut schema, mut offset) = (stream.to_string(), Some(ProtoSchema { proto_descriptor: Some(descriptor) }), 0);
        let requests = batches.map(move |serialized_rows| {
            let place = placed.then_some(offset);
            offset += serialized_rows.len() as i64;
            let rows = append_rows_request::ProtoData { writer_schema: schema.take(), rows: Some(ProtoRows { serialized_rows }) };
            AppendRowsRequest {
                write_stream: name.clone(),
                offset: place,
                trace_id: "mirror-operator".into(),
                missing_value_interpretations: HashMap::new(),
                rows: Some(append_rows_request::Rows::ProtoRows(rows)),
                ..AppendRowsRequest::default()
            }
        });
        let (counted, rows) = counting(requests);
        let request = self.request(counted, format!("write_stream={}", escaped(stream))).await?;
        let mut answers = self.client.clone().append_rows(request).await.map_err(|status| refusal(&status))?.into_inner();
        let mut batches = 0;
        while let Some(answer) = answers.message().await.map_err(|status| refusal(&status))? {
            appended(answer)?;
            batches += 1;
        }
        let sent = rows.lock().map_or((0, 0), |sent| *sent);
        if batches != sent.0 {
            return Err(Refusal::unheard(format!("{batches} of {} appends were confirmed", sent.0)));
        }
        Ok(sent.1)
    }

    /// Ends a stream; returns how many rows it has.
    pub(super) async fn finalize(&self, stream: &str) -> Result<u64, Refusal> {
        let message = FinalizeWriteStreamRequest { name: stream.into() };
        let mut request = self.request(message, format!("name={}", escaped(stream))).await?;
        request.set_timeout(LIMIT);
        let answer = self.client.clone().finalize_write_stream(request).await.map_err(|status| refusal(&status))?;
        Ok(answer.into_inner().row_count.unsigned_abs())
    }

    /// Makes a stream's rows those of its table, all at once. One that was committed stays so.
    pub(super) async fn commit(&self, table: &TableName, stream: &str) -> Result<(), Refusal> {
        let parent = self.path(table);
        let message = BatchCommitWriteStreamsRequest { parent: parent.clone(), write_streams: vec![stream.into()] };
        let mut request = self.request(message, format!("parent={}", escaped(&parent))).await?;
        request.set_timeout(LIMIT);
        let answer = self.client.clone().batch_commit_write_streams(request).await.map_err(|status| refusal(&status))?.into_inner();
        if answer.commit_time.is_some() || self.is_committed(stream).await? {
            return Ok(());
        }
        let error = answer.stream_errors.into_iter().next().unwrap_or_default();
        match storage_error::StorageErrorCode::try_from(error.code) {
            Ok(storage_error::StorageErrorCode::StreamAlreadyCommitted) => Ok(()),
            Ok(code) => Err(Refusal { status: 400, reason: code.as_str_name().into(), words: error.error_message }),
            Err(_) => Err(Refusal { status: 400, reason: "invalid".into(), words: error.error_message }),
        }
    }

    async fn is_committed(&self, stream: &str) -> Result<bool, Refusal> {
        let message = gcp_bigquery_client::google::cloud::bigquery::storage::v1::GetWriteStreamRequest { name: stream.into(), view: 0 };
        let mut request = self.request(message, format!("name={}", escaped(stream))).await?;
        request.set_timeout(LIMIT);
        let answer = self.client.clone().get_write_stream(request).await.map_err(|status| refusal(&status))?;
        Ok(answer.into_inner().commit_time.is_some())
    }
}

type Sent = Arc<std::sync::Mutex<(u64, u64)>>;

/// Counts requests and their rows as they go out.
fn counting<S>(requests: S) -> (impl Stream<Item = AppendRowsRequest> + Send + 'static, Sent)
where
    S: Stream<Item = AppendRowsRequest> + Send + 'static,
{
    let sent = Sent::default();
    let counter = sent.clone();
    let counted = requests.inspect(move |request| {
        let rows = match &request.rows {
            Some(append_rows_request::Rows::ProtoRows(data)) => data.rows.as_ref().map_or(0, |rows| rows.serialized_rows.len()),
            _ => 0,
        };
        if let Ok(mut sent) = counter.lock() {
            *sent = (sent.0 + 1, sent.1 + rows as u64);
        }
    });
    (counted, sent)
}

/// Whether an append was done. Rows that are refused are told by their columns' names at most: the service's words quote values.
fn appended(answer: AppendRowsResponse) -> Result<(), Refusal> {
    if !answer.row_errors.is_empty() {
        let words = format!("Failed to parse: {} rows are refused", answer.row_errors.len());
        return Err(Refusal { status: 400, reason: "invalidQuery".into(), words });
    }
    match answer.response {
        Some(append_rows_response::Response::Error(error)) => Err(refusal(&Status::new(Code::from_i32(error.code), error.message))),
        _ => Ok(()),
    }
}

/// gRPC's codes as reasons (BigQuery docs, "Use the Storage Write API", "Error handling").
fn refusal(status: &Status) -> Refusal {
    let words = status.message().to_string();
    let (status, reason) = match status.code() {
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => (0, ""),
        Code::Internal | Code::Aborted => (500, "backendError"),
        Code::ResourceExhausted => (429, "quotaExceeded"),
        Code::NotFound => (404, "notFound"),
        Code::PermissionDenied => (403, "accessDenied"),
        Code::Unauthenticated => (401, "authError"),
        Code::AlreadyExists | Code::OutOfRange => (409, "offset"),
        Code::InvalidArgument if words.contains("stream") => (404, "notFound"),
        _ => (400, "invalid"),
    };
    Refusal { status, reason: reason.into(), words }
}
