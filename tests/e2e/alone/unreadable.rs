//! An object that the operator cannot read, as one that another version has stored may be.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceDefinition, JSONSchemaProps};
use kube::{
    Api,
    api::{DynamicObject, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use mirror_operator::api::resync::Phase;
use serde_json::json;

use super::release::{Restored, install, streaming};
use crate::world::{LIMIT, World, until};

/// Has the API server take whatever a Mirror says.
async fn loosen(world: &World) {
    let kinds: Api<CustomResourceDefinition> = Api::all(world.client.clone());
    let mut kind = kinds.get("mirrors.mirror-operator.io").await.expect("the kind is there");
    let anything =
        JSONSchemaProps { type_: Some("object".into()), x_kubernetes_preserve_unknown_fields: Some(true), ..JSONSchemaProps::default() };
    for version in &mut kind.spec.versions {
        version.schema.get_or_insert_default().open_api_v3_schema = Some(anything.clone());
    }
    kinds.replace("mirrors.mirror-operator.io", &PostParams::default(), &kind).await.expect("the kind is changed");
}

#[tokio::test]
async fn a_mirror_that_cannot_be_read_is_told_and_stops_no_other() {
    let world = streaming("unreadable").await;
    let _restored = Restored;
    loosen(&world).await;
    let odd = json!({ "kind": "Mirror", "metadata": { "name": "odd" }, "spec": { "tables": 7 } });
    until("the API server takes a Mirror that makes no sense", LIMIT, || world.apply(odd.clone())).await;
    world.event("odd", "Unreadable").await;
    world.warns(&["odd"], "spec.tables: ").await;
    world.apply(world.resync("again", "m", json!({}))).await.unwrap();
    world.phase("again", Phase::Running).await;
    // A process that lists everything anew meets it at once.
    super::operator::kill_operators(&world).await;
    world.source.batch_execute("CREATE TABLE u (id int PRIMARY KEY)").await.unwrap();
    world.apply(world.mirror("later", &["public.u"], json!({}))).await.unwrap();
    world.ready("later").await;

    install(&[]);
    let kind = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("mirror-operator.io", "v1alpha1", "Mirror"), "mirrors");
    let mirrors: Api<DynamicObject> = Api::namespaced_with(world.client.clone(), &world.namespace, &kind);
    mirrors.delete("odd", &Default::default()).await.unwrap();
    until("it makes sense to the API server again", LIMIT, || async {
        match world.apply(odd.clone()).await {
            Err(refused) if refused.contains("spec.tables") => Ok(()),
            other => {
                let _ = mirrors.delete("odd", &Default::default()).await;
                Err(format!("{other:?}"))
            }
        }
    })
    .await;
    world.equal("t", "id").await;
    world.end().await;
}
