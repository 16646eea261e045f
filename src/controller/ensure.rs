//! Making objects exist, and be gone.

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        batch::v1::Job,
        core::v1::{ConfigMap, Service},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde::{Serialize, de::DeserializeOwned};

use super::{Context, Error, context::refusal};
use crate::{
    brief::Brief,
    name,
    workload::{MADE_FROM, brief_map, pipeline_service, pipeline_set},
};

/// What the operator may own: its own kinds and those that it makes.
pub trait Owned:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Serialize + DeserializeOwned + Clone + std::fmt::Debug
{
}
impl<K> Owned for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Serialize + DeserializeOwned + Clone + std::fmt::Debug
{
}

impl Context {
    fn of<K: Owned>(&self, namespace: &str) -> Api<K> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Creates an object unless it exists; returns it as it is. One of that name that has another owner is an error, never taken over.
    pub async fn create<K: Owned>(&self, wanted: &K) -> Result<K, Error> {
        let namespace = wanted.namespace().unwrap_or_default();
        let api = self.of::<K>(&namespace);
        let found = match api.get_opt(&wanted.name_any()).await? {
            Some(found) => found,
            None => {
                self.wrote::<K>();
                match api.create(&PostParams::default(), wanted).await {
                    Ok(made) => return Ok(made),
                    Err(kube::Error::Api(status)) if status.code == 409 => api.get(&wanted.name_any()).await?,
                    Err(other) => return Err(refusal(&K::kind(&()), &wanted.name_any(), other)),
                }
            }
        };
        let (kind, name) = (K::kind(&()).into_owned(), wanted.name_any());
        match standing(&found, wanted) {
            Standing::Ours => Ok(found),
            Standing::Going => Err(Error::Going { kind, name }),
            Standing::Foreign => Err(Error::NotOurs { kind, name }),
        }
    }

    /// Removes an object, if it exists and `owner` owns it. Its dependents go after it.
    pub async fn remove<K: Owned>(&self, namespace: &str, object: &str, owner: &str) -> Result<(), Error> {
        let api = self.of::<K>(namespace);
        let Some(found) = api.get_opt(object).await? else { return Ok(()) };
        if found.meta().deletion_timestamp.is_some() || found.owner_references().iter().all(|o| o.uid != owner) {
            return Ok(());
        }
        let mut how = DeleteParams::background();
        how.preconditions = Some(Preconditions { uid: found.uid(), resource_version: None });
        self.wrote::<K>();
        match api.delete(object, &how).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(other) => Err(other.into()),
        }
    }

    /// The pipeline of an epoch. Its ConfigMap is left as it is if there is one; its pod and replicas are brought up to date.
    pub async fn ensure_pipeline(&self, brief: &Brief, image: &str, replicas: i32, owner: &OwnerReference) -> Result<(), Error> {
        self.create(&brief_map(brief, owner)).await?;
        self.create(&pipeline_service(brief, owner)).await?;
        let wanted = pipeline_set(brief, image, replicas, owner);
        let found: StatefulSet = self.create(&wanted).await?;
        if let Some(patch) = pipeline_patch(&found, &wanted) {
            self.wrote::<StatefulSet>();
            let api = self.of::<StatefulSet>(&brief.namespace);
            let patched = api.patch(&wanted.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await;
            patched.map_err(|error| refusal("StatefulSet", &wanted.name_any(), error))?;
        }
        Ok(())
    }

    /// Removes the pipeline of an epoch. Its brief stays.
    pub async fn delete_pipeline(&self, namespace: &str, mirror: &str, epoch: u32, owner: &str) -> Result<(), Error> {
        let object = name::pipeline(mirror, epoch);
        self.remove::<StatefulSet>(namespace, &object, owner).await?;
        self.remove::<Service>(namespace, &object, owner).await
    }

    /// Removes the brief of an epoch.
    pub async fn delete_brief(&self, namespace: &str, mirror: &str, epoch: u32, owner: &str) -> Result<(), Error> {
        self.remove::<ConfigMap>(namespace, &name::pipeline(mirror, epoch), owner).await
    }

    /// The snapshot Job; its parallelism and pause are brought up to date.
    pub async fn ensure_snapshot_job(&self, wanted: &Job) -> Result<(), Error> {
        let found = self.create(wanted).await?;
        let (has, wants) = (found.spec.unwrap_or_default(), wanted.spec.clone().unwrap_or_default());
        if has.parallelism != wants.parallelism || has.suspend.unwrap_or_default() != wants.suspend.unwrap_or_default() {
            let patch = serde_json::json!({ "spec": { "parallelism": wants.parallelism, "suspend": wants.suspend } });
            self.wrote::<Job>();
            let api = self.of::<Job>(&wanted.namespace().unwrap_or_default());
            let patched = api.patch(&wanted.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
            patched.map_err(|error| refusal("Job", &wanted.name_any(), error))?;
        }
        Ok(())
    }

    /// The brief that an epoch was begun with, if it was.
    pub async fn stored_brief(&self, namespace: &str, mirror: &str, mirror_uid: &str, epoch: u32) -> Result<Option<Box<Brief>>, Error> {
        let object = name::pipeline(mirror, epoch);
        let Some(map) = self.of::<ConfigMap>(namespace).get_opt(&object).await? else { return Ok(None) };
        if map.owner_references().iter().all(|o| o.uid != mirror_uid) {
            return Ok(None);
        }
        let text = map.data.unwrap_or_default().remove("brief.json").unwrap_or_default();
        serde_json::from_str(&text).map(|brief| Some(Box::new(brief))).map_err(|e| Error::Brief { name: object, cause: e.to_string() })
    }
}

/// The patch that makes a StatefulSet the wanted one, if it is another. The template is replaced as a whole: what is no longer wanted goes.
fn pipeline_patch(found: &StatefulSet, wanted: &StatefulSet) -> Option<serde_json::Value> {
    let made_from = |set: &StatefulSet| set.annotations().get(MADE_FROM).cloned();
    let replicas = |set: &StatefulSet| set.spec.as_ref().and_then(|s| s.replicas);
    if made_from(found) == made_from(wanted) && replicas(found) == replicas(wanted) {
        return None;
    }
    let mut template = serde_json::json!(wanted.spec.as_ref().map(|s| &s.template));
    template["$patch"] = "replace".into();
    let annotations = serde_json::json!({ MADE_FROM: made_from(wanted) });
    Some(serde_json::json!({ "metadata": { "annotations": annotations }, "spec": { "replicas": replicas(wanted), "template": template } }))
}

/// An owner reference that makes `object` the controller of what bears it.
pub fn owner<K: Owned>(object: &K) -> OwnerReference {
    object.controller_owner_ref(&()).unwrap_or_default()
}

/// Whose an object of the wanted name is.
#[derive(Debug, PartialEq)]
enum Standing {
    Ours,
    /// It is being deleted, or its owner was: one of the same name has followed.
    Going,
    Foreign,
}

fn standing<K: Owned>(found: &K, wanted: &K) -> Standing {
    let named = |o: &OwnerReference| (o.api_version.clone(), o.kind.clone(), o.name.clone());
    let (has, wants) = (found.owner_references().first(), wanted.owner_references().first());
    if found.meta().deletion_timestamp.is_some() {
        return Standing::Going;
    }
    match (has, wants) {
        (Some(has), Some(wants)) if has.uid == wants.uid => Standing::Ours,
        (Some(has), Some(wants)) if named(has) == named(wants) => Standing::Going,
        _ => Standing::Foreign,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pipeline_is_patched_as_a_whole_when_its_image_or_pod_changes_and_left_alone_else() {
        let made = |made_from: &str, replicas: i32| {
            let spec = json!({ "replicas": replicas, "serviceName": "s", "selector": {}, "template": { "spec": { "containers": [] } } });
            let annotations = json!({ MADE_FROM: made_from });
            serde_json::from_value::<StatefulSet>(json!({ "metadata": { "annotations": annotations }, "spec": spec })).unwrap()
        };
        assert_eq!(pipeline_patch(&made("a", 1), &made("a", 1)), None);
        let patch = pipeline_patch(&made("a", 1), &made("b", 1)).unwrap();
        assert_eq!(patch["metadata"]["annotations"][MADE_FROM], "b");
        assert_eq!(patch["spec"]["template"], json!({ "$patch": "replace", "spec": { "containers": [] } }));
        assert_eq!(pipeline_patch(&made("a", 1), &made("a", 0)).unwrap()["spec"]["replicas"], 0);
        let before = StatefulSet { spec: made("a", 1).spec, ..StatefulSet::default() };
        assert!(pipeline_patch(&before, &made("a", 1)).is_some(), "one of an earlier version");
    }

    #[test]
    fn an_object_of_the_wanted_name_is_ours_going_or_foreign() {
        let owned = |kind: &str, uid: &str| {
            let owner = OwnerReference { kind: kind.into(), name: "shop".into(), uid: uid.into(), ..OwnerReference::default() };
            let mut map = ConfigMap::default();
            map.metadata.owner_references = Some(vec![owner]);
            map
        };
        let wanted = owned("Mirror", "new");
        assert_eq!(standing(&owned("Mirror", "new"), &wanted), Standing::Ours);
        assert_eq!(standing(&owned("Mirror", "old"), &wanted), Standing::Going);
        assert_eq!(standing(&owned("Deployment", "old"), &wanted), Standing::Foreign);
        assert_eq!(standing(&ConfigMap::default(), &wanted), Standing::Foreign);
    }
}
