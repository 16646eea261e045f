//! Objects that cannot be read, such as one that was stored under the schema of another version. In a list or a watch a single one of them would hide all
//! others for as long as it is there. So everything of our kinds is read behind a guard: such an object is told of and left alone, the others go on.

use std::{fmt::Debug, sync::Arc};

use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Resource, ResourceExt,
    api::{ApiResource, DynamicObject},
    core::{DeserializeGuard, error_boundary::InvalidObject},
    runtime::controller::Action,
};
use serde::de::DeserializeOwned;

use super::{Context, Error, ensure::Owned};
use crate::resync::Notice;

/// Why an object could not be read.
fn unreadable<K: Resource<DynamicType = ()>>(object: InvalidObject) -> Error {
    Error::Unreadable { kind: K::kind(&()).into_owned(), name: object.metadata.name.unwrap_or_default(), cause: object.error }
}

/// One pass over an object, if it can be read. Else an Event says why it cannot: its status may be what cannot be read, and is not touched. The watch brings
/// it again once somebody has changed it.
pub async fn readable<K, F>(
    object: Arc<DeserializeGuard<K>>,
    context: Arc<Context>,
    reconcile: impl FnOnce(Arc<K>, Arc<Context>) -> F,
) -> Result<Action, Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned,
    F: Future<Output = Result<Action, Error>>,
{
    match &object.0 {
        Ok(inner) => reconcile(Arc::new(inner.clone()), context).await,
        Err(invalid) => {
            let mut invalid = invalid.clone();
            context.forget(invalid.metadata.uid.as_deref().unwrap_or_default());
            if K::kind(&()) == "Mirror" {
                context.forget_numbers(&object.namespace().unwrap_or_default(), &object.name_any());
            }
            if let Some(cause) = context.field::<K>(&object).await? {
                invalid.error = cause;
            }
            let error = unreadable::<K>(invalid);
            tracing::warn!(namespace = object.namespace(), %error, "an object is left alone");
            context.say(&*object, &Notice::warning("Unreadable", format!("{error}."))).await;
            Ok(Action::await_change())
        }
    }
}

impl Context {
    /// An object that may be missing; one that cannot be read is an error for people.
    pub async fn read<K: Owned>(&self, namespace: &str, name: &str) -> Result<Option<K>, Error> {
        let api: Api<DeserializeGuard<K>> = Api::namespaced(self.client.clone(), namespace);
        api.get_opt(name).await?.map(|found| found.0.map_err(unreadable::<K>)).transpose()
    }

    /// Which field of an object cannot be read, and why: the guard does not tell the field. `None` if the object is gone, or can be read by now.
    async fn field<K>(&self, object: &DeserializeGuard<K>) -> Result<Option<String>, Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + DeserializeOwned,
    {
        let kind = ApiResource::erase::<K>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &object.namespace().unwrap_or_default(), &kind);
        let Some(found) = api.get_opt(&object.name_any()).await? else { return Ok(None) };
        let found = serde_json::to_value(found).map_err(kube::Error::SerdeError)?;
        Ok(serde_path_to_error::deserialize::<_, K>(found).err().map(|error| error.to_string()))
    }
}

/// Of a list, the objects that can be read. The others are as if they were not there, but for those that `needed` wants: they are an error for people.
pub fn known<K>(list: Vec<DeserializeGuard<K>>, needed: impl Fn(&str) -> bool) -> Result<Vec<K>, Error>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Debug,
{
    let found = list.into_iter().filter_map(|object| match object.0 {
        Ok(object) => Some(Ok(object)),
        Err(invalid) => invalid.metadata.uid.as_deref().is_some_and(&needed).then(|| Err(unreadable::<K>(invalid))),
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, convert::Infallible, time::Duration};

    use axum::{
        Json, Router,
        body::{Body, Bytes, to_bytes},
        extract::{Request, State},
        http::{Method, StatusCode},
        response::{IntoResponse, Response},
    };
    use futures::StreamExt;
    use kube::Client;
    use serde_json::{Value, json};
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        api::MirrorResync,
        controller::{Settings, controllers},
    };

    /// What was written: the path, and the body as it was sent.
    type Written = (String, Value);

    fn object(kind: &str, name: &str, spec: &Value) -> Value {
        let (creation, uid) = ("2026-01-01T00:00:00Z", format!("{kind}-{name}"));
        let metadata = json!({ "name": name, "namespace": "shop", "uid": uid, "resourceVersion": "1", "creationTimestamp": creation });
        json!({ "apiVersion": "mirror-operator.io/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec })
    }

    /// Of a kind, by its plural: its name, a spec that can be read, and one that cannot.
    fn kind(plural: &str) -> Option<(&'static str, Value, Value)> {
        let server = json!({ "host": "h", "database": "d", "user": "u" });
        let mirror = |tables: Value| json!({ "source": { "peer": "gone" }, "destination": { "peer": "gone-too" }, "tables": tables });
        match plural {
            "peers" => Some(("Peer", json!({ "roles": ["Source"], "postgres": server }), json!({ "roles": "Source", "postgres": server }))),
            "mirrors" => Some(("Mirror", mirror(json!([{ "source": "public.t" }])), mirror(json!(["public.t"])))),
            "mirrorresyncs" => Some(("MirrorResync", json!({ "mirror": "good" }), json!({ "mirror": "good", "handover": "Sideways" }))),
            _ => None,
        }
    }

    /// An API server that has of each kind an object that can be read and one that cannot. Its watches bring both anew, under other names. What is written is
    /// taken as it is.
    async fn answer(State(told): State<UnboundedSender<Written>>, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_string();
        if parts.method != Method::GET {
            let sent: Value = serde_json::from_slice(&to_bytes(body, usize::MAX).await.unwrap()).unwrap_or_default();
            let _ = told.send((path, sent.clone()));
            return Json(sent).into_response();
        }
        let last = path.rsplit('/').next().unwrap_or_default();
        let kind = kind(last);
        if parts.uri.query().is_some_and(|query| query.contains("watch=true")) {
            let brought = kind.map_or_else(String::new, |(kind, good, bad)| {
                let event = |name, spec| format!("{}\n", json!({ "type": "ADDED", "object": object(kind, name, spec) }));
                event("later-bad", &bad) + &event("later-good", &good)
            });
            let lines = futures::stream::iter([Ok::<_, Infallible>(Bytes::from(brought))]);
            return Body::from_stream(lines.chain(futures::stream::pending())).into_response();
        }
        let above = path.rsplit('/').nth(1).unwrap_or_default();
        if let (Some((kind, _, bad)), true) = (self::kind(above), last.ends_with("bad")) {
            return Json(object(kind, last, &bad)).into_response();
        }
        let items = match kind {
            Some((kind, good, bad)) => vec![object(kind, "bad", &bad), object(kind, "good", &good)],
            None if ["jobs", "statefulsets", "pods"].contains(&last) => vec![],
            None => {
                let missing = json!({ "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404, "message": path });
                return (StatusCode::NOT_FOUND, Json(missing)).into_response();
            }
        };
        Json(json!({ "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": "1" }, "items": items })).into_response()
    }

    fn context() -> (Arc<Context>, UnboundedReceiver<Written>) {
        let (told, written) = unbounded_channel();
        let client = Client::new(Router::new().fallback(answer).with_state(told), "shop");
        let settings = Settings { watch_namespace: None, namespace: "o".into(), identity: "o-0".into(), image: "i".into(), port: 0 };
        (Arc::new(Context::new(client, settings)), written)
    }

    /// What a write shows: that an object was worked on, or that it was said to be unreadable.
    fn shown((path, body): &Written) -> Option<String> {
        let words = |at: &str| body.pointer(at).and_then(Value::as_str).unwrap_or_default().to_string();
        let below = path.split("/namespaces/shop/").nth(1)?;
        if below == "events" && words("/reason") == "Unreadable" {
            let field = if words("/regarding/kind") == "MirrorResync" { "spec.handover: " } else { "spec." };
            assert!(words("/note").contains(&format!("cannot be read: {field}")), "{body}");
            return Some(format!("{} {} is unreadable", words("/regarding/kind"), words("/regarding/name")));
        }
        let mut parts = below.split('/');
        let (kind, _, _) = kind(parts.next()?)?;
        Some(format!("{kind} {} is worked on", parts.next()?))
    }

    #[tokio::test]
    async fn objects_that_cannot_be_read_are_told_of_and_the_others_go_on() {
        let (context, mut written) = context();
        let stop = CancellationToken::new();
        let work = tokio::spawn({
            let stop = stop.clone();
            async move { controllers(&context, &stop).await }
        });
        let mut missing: BTreeSet<String> = ["Peer", "Mirror", "MirrorResync"]
            .into_iter()
            .flat_map(|kind| {
                ["", "later-"].map(|when| [format!("{kind} {when}bad is unreadable"), format!("{kind} {when}good is worked on")])
            })
            .flatten()
            .collect();
        let all = async {
            while !missing.is_empty() {
                let next = written.recv().await.unwrap();
                let seen = shown(&next);
                assert!(!seen.as_ref().is_some_and(|s| s.ends_with("bad is worked on")), "{next:?}");
                seen.map(|s| missing.remove(&s));
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(30), all).await;
        assert!(in_time.is_ok(), "not seen: {missing:?}");
        stop.cancel();
        work.await.unwrap();
    }

    #[tokio::test]
    async fn one_that_is_needed_and_cannot_be_read_is_an_error_for_people() {
        let list = || -> Vec<DeserializeGuard<MirrorResync>> {
            let (kind, good, bad) = kind("mirrorresyncs").unwrap();
            serde_json::from_value(json!([object(kind, "bad", &bad), object(kind, "good", &good)])).unwrap()
        };
        let names = |found: Vec<MirrorResync>| found.iter().map(ResourceExt::name_any).collect::<Vec<_>>();
        assert_eq!(names(known(list(), |_| false).unwrap()), ["good"]);
        assert_eq!(names(known(list(), |uid| uid == "MirrorResync-good").unwrap()), ["good"]);
        let error = known(list(), |uid| uid == "MirrorResync-bad").unwrap_err();
        assert_eq!(error.for_people(), Some("Unreadable"));
        let words = error.to_string();
        assert!(words.starts_with("MirrorResync \"bad\" cannot be read: ") && words.contains("Sideways"), "{words}");
    }
}
