//! What object storage has against a request. The one place that says so.

use object_store::Error;

/// Why a request was not done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Refusal {
    /// There is no such bucket, container or object.
    Missing,
    /// The credentials are not taken, or do not allow it.
    Denied,
    /// The bucket is in another region.
    Elsewhere,
    /// Storage was not reached, or has something else against it.
    Other,
}

/// What an error means. Its words may hold a signed address: they are looked at and not told.
pub(super) fn refusal(error: &Error) -> Refusal {
    match error {
        Error::NotFound { .. } => return Refusal::Missing,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => return Refusal::Denied,
        _ => {}
    }
    // Of a listing that was refused, and of a token that was, the status is in the words only (object_store 0.12, `RequestError`).
    let words = error.to_string();
    let has_status = |status: u16| words.contains(&format!("status code: {status}"));
    if has_status(404) {
        Refusal::Missing
    } else if has_status(401) || has_status(403) {
        Refusal::Denied
    } else if words.contains("region") {
        // "PermanentRedirect", "AuthorizationHeaderMalformed" (Amazon S3 docs, "Error responses").
        Refusal::Elsewhere
    } else {
        Refusal::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_counts_wherever_it_stands() {
        let of = |words: &str| refusal(&Error::Generic { store: "S3", source: words.into() });
        assert_eq!(of("Error performing list request: … Server returned non-2xx status code: 404 Not Found: "), Refusal::Missing);
        assert_eq!(of("Server returned non-2xx status code: 403 Forbidden: "), Refusal::Denied);
        assert_eq!(of("Received redirect without LOCATION, this normally indicates an incorrectly configured region"), Refusal::Elsewhere);
        assert_eq!(of("connection refused"), Refusal::Other);
        assert_eq!(refusal(&Error::NotFound { path: "p".into(), source: "".into() }), Refusal::Missing);
        assert_eq!(refusal(&Error::Unauthenticated { path: "p".into(), source: "".into() }), Refusal::Denied);
    }
}
