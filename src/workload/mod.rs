//! Builds the Kubernetes objects that do the work. Pure: no client.

mod job;
mod pipeline;
mod pod;

pub use job::{KEEPS_MEMORY, check_job, cleanup_job, forget_job, plan_job, snapshot_job, swap_job};
pub use pipeline::{PORT, brief_map, pipeline_service, pipeline_set};
pub use pod::{EPOCH_LABEL, MADE_FROM, MIRROR_LABEL, RESYNC_LABEL, labels};

/// Who writes these objects, for server-side apply.
pub const MANAGER: &str = "mirror-operator";

#[cfg(test)]
mod tests {
    use k8s_openapi::{api::core::v1::PodSpec, apimachinery::pkg::apis::meta::v1::OwnerReference};
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        api::{Mirror, MirrorResync, Peer},
        brief::Brief,
    };

    fn brief(mirror: Value, resync: Value) -> Brief {
        let peer = |name: &str| {
            let spec = json!({ "roles": ["Source", "Destination"], "postgres": { "host": name, "database": "d", "user": "u" } });
            Peer::new(name, serde_json::from_value(spec).unwrap())
        };
        let merged = |mut spec: Value, more: Value| {
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            spec
        };
        let spec = json!({ "source": { "peer": "a" }, "destination": { "peer": "b" }, "tables": [{ "source": "public.t" }] });
        let mirror = Mirror::new("shop", serde_json::from_value(merged(spec, mirror)).unwrap());
        let resync = MirrorResync::new("again", serde_json::from_value(merged(json!({ "mirror": "shop" }), resync)).unwrap());
        crate::mirror::brief(&mirror, Some(&resync), 1, Some(&peer("a")), Some(&peer("b")), None).unwrap()
    }

    /// The pods of the pipeline, of the snapshot Job and of the swap Job.
    fn pods(brief: &Brief) -> [PodSpec; 3] {
        let owner = OwnerReference::default();
        let of_job = |job: k8s_openapi::api::batch::v1::Job| job.spec.unwrap().template.spec.unwrap();
        let pipeline = pipeline_set(brief, "i", 1, &owner).spec.unwrap().template.spec.unwrap();
        [pipeline, of_job(snapshot_job(brief, "i", 1, 1, false, &owner)), of_job(swap_job(brief, "i", &owner))]
    }

    fn resources(pod: &PodSpec) -> Value {
        serde_json::to_value(pod.containers[0].resources.as_ref().unwrap()).unwrap()
    }

    #[test]
    fn pods_ask_for_little_unless_the_mirror_or_its_resync_says_more() {
        let little = |memory: &str, most: &str| json!({ "requests": { "cpu": "20m", "memory": memory }, "limits": { "memory": most } });
        let [pipeline, worker, swap] = pods(&brief(json!({}), json!({})));
        assert_eq!([resources(&pipeline), resources(&worker)], [little("64Mi", "512Mi"), little("32Mi", "512Mi")]);
        assert_eq!(resources(&swap), little("32Mi", "128Mi"));

        let (two, three) = (json!({ "limits": { "cpu": "2" } }), json!({ "requests": { "ephemeral-storage": "3Gi" } }));
        let mirror = json!({ "replication": { "resources": two }, "snapshot": { "resources": two } });
        let [pipeline, worker, swap] = pods(&brief(mirror.clone(), json!({})));
        assert_eq!(
            [resources(&pipeline), resources(&worker)],
            [two.clone(), two.clone()],
            "given resources replace the default as a whole"
        );
        assert_eq!(resources(&swap), little("32Mi", "128Mi"));
        let [pipeline, worker, _] = pods(&brief(mirror, json!({ "snapshot": { "resources": three } })));
        assert_eq!([resources(&pipeline), resources(&worker)], [two, three]);
    }

    #[test]
    fn all_pods_of_a_mirror_run_where_it_says() {
        let tolerations = json!([{ "key": "db", "value": "x", "effect": "NoExecute", "tolerationSeconds": 9 }, { "operator": "Exists" }]);
        let brief = brief(json!({ "pods": { "nodeSelector": { "disk": "ssd" }, "tolerations": tolerations } }), json!({}));
        for pod in pods(&brief) {
            assert_eq!(pod.node_selector, Some([("disk".to_string(), "ssd".to_string())].into()));
            let wanted = json!([
                { "key": "db", "operator": "Equal", "value": "x", "effect": "NoExecute", "tolerationSeconds": 9 },
                { "operator": "Exists" }
            ]);
            assert_eq!(serde_json::to_value(pod.tolerations).unwrap(), wanted);
        }
    }

    #[test]
    fn a_brief_of_an_earlier_version_gets_the_defaults() {
        let mut stored = serde_json::to_value(brief(json!({}), json!({}))).unwrap();
        for (part, field) in [("snapshot", "resources"), ("replication", "resources")] {
            stored[part].as_object_mut().unwrap().remove(field).unwrap();
        }
        stored.as_object_mut().unwrap().remove("pods").unwrap();
        assert_eq!(serde_json::from_value::<Brief>(stored).unwrap(), brief(json!({}), json!({})));
    }

    #[test]
    fn pods_have_what_writes_to_the_stage_of_a_peer() {
        let of = |stage: Value| {
            let secret = json!({ "name": "s", "key": "k" });
            let at = json!({ "account": "a", "database": "d", "schema": "shop", "user": "u", "passwordSecretRef": secret, "stage": stage });
            let peer = Peer::new("b", serde_json::from_value(json!({ "roles": ["Destination"], "snowflake": at })).unwrap());
            let destination = crate::peer::destination(&peer, "destination").unwrap();
            let pods = [
                pipeline_set(
                    &Brief { destination: destination.clone(), ..brief(json!({}), json!({})) },
                    "i",
                    1,
                    &OwnerReference::default(),
                )
                .spec
                .unwrap()
                .template,
                check_job("n", "c", "b", &destination, "Destination", "i", &OwnerReference::default()).spec.unwrap().template,
            ];
            let read = |pod: &k8s_openapi::api::core::v1::PodTemplateSpec| {
                let spec = pod.spec.clone().unwrap();
                let mounts = spec.containers[0].volume_mounts.clone().unwrap();
                let path = mounts.into_iter().find(|m| m.name == "destination-stage").map(|m| m.mount_path);
                let secret = spec
                    .volumes
                    .unwrap()
                    .into_iter()
                    .find(|v| v.name == "destination-stage")
                    .map(|v| v.secret.unwrap().secret_name.unwrap());
                let label = pod.metadata.as_ref().unwrap().labels.as_ref().unwrap().contains_key("azure.workload.identity/use");
                (path.zip(secret), label)
            };
            assert_eq!(read(&pods[0]), read(&pods[1]));
            read(&pods[0])
        };
        let azure = "azure://acc.blob.core.windows.net/c/p";
        let mounted = Some(("/etc/mirror-operator/destination/stage".to_string(), "bucket".to_string()));
        assert_eq!(
            of(json!({ "name": "rows", "url": azure, "credentialsSecretRef": { "name": "bucket", "key": "sas" } })),
            (mounted, false)
        );
        assert_eq!(of(json!({ "name": "rows", "url": azure })), (None, true));
        assert_eq!(of(json!({ "name": "rows", "url": "s3://b/p", "region": "r" })), (None, false));
    }
}
