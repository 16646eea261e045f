//! The pipeline of one epoch: a StatefulSet of one pod, its Service and the ConfigMap with the brief.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{StatefulSet, StatefulSetSpec},
        core::v1::{ConfigMap, ContainerPort, HTTPGetAction, Probe, Service, ServicePort, ServiceSpec},
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference},
        util::intstr::IntOrString,
    },
};

use super::pod::{EPOCH_LABEL, MADE_FROM, MIRROR_LABEL, PodShape, RESYNC_LABEL, labels, template};
use crate::{brief::Brief, name};

/// Where a pipeline pod answers.
pub const PORT: u16 = 8080;

fn own_labels(brief: &Brief) -> BTreeMap<String, String> {
    labels("pipeline", &[(MIRROR_LABEL, &brief.mirror), (EPOCH_LABEL, &brief.epoch.to_string())])
}

fn metadata(brief: &Brief, owner: &OwnerReference) -> ObjectMeta {
    ObjectMeta {
        name: Some(name::pipeline(&brief.mirror, brief.epoch)),
        namespace: Some(brief.namespace.clone()),
        labels: Some(own_labels(brief)),
        owner_references: Some(vec![owner.clone()]),
        ..ObjectMeta::default()
    }
}

/// The ConfigMap with the brief. Immutable: an epoch never changes what it was begun with.
pub fn brief_map(brief: &Brief, owner: &OwnerReference) -> ConfigMap {
    // A Brief holds only strings, numbers and lists, so serialisation cannot fail; an empty file would be refused by its reader.
    let text = serde_json::to_string(brief).unwrap_or_default();
    ConfigMap {
        metadata: metadata(brief, owner),
        immutable: Some(true),
        data: Some(BTreeMap::from([("brief.json".into(), text)])),
        ..ConfigMap::default()
    }
}

/// The Service through which workers ask for the snapshot. Its address does not change when the pod does.
pub fn pipeline_service(brief: &Brief, owner: &OwnerReference) -> Service {
    Service {
        metadata: metadata(brief, owner),
        spec: Some(ServiceSpec {
            selector: Some(own_labels(brief)),
            ports: Some(vec![ServicePort {
                name: Some("http".into()),
                port: PORT.into(),
                target_port: Some(IntOrString::Int(PORT.into())),
                ..ServicePort::default()
            }]),
            publish_not_ready_addresses: Some(true),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// The StatefulSet of one pod: never two of one epoch at the same time.
pub fn pipeline_set(brief: &Brief, image: &str, replicas: i32, owner: &OwnerReference) -> StatefulSet {
    let mut pod_labels = own_labels(brief);
    pod_labels.insert(RESYNC_LABEL.into(), brief.resync.clone());
    let mut pod = template(PodShape {
        labels: pod_labels,
        image,
        args: vec!["pipeline".into()],
        env: vec![],
        brief: Some(name::pipeline(&brief.mirror, brief.epoch)),
        secrets: brief.secrets(),
        identity: brief.destination.identity_label(),
        resources: &brief.replication.resources,
        placement: &brief.pods,
        restart: "Always",
    });
    if let Some(container) = pod.spec.as_mut().and_then(|s| s.containers.first_mut()) {
        container.ports = Some(vec![ContainerPort { name: Some("http".into()), container_port: PORT.into(), ..ContainerPort::default() }]);
        container.liveness_probe = Some(Probe {
            http_get: Some(HTTPGetAction {
                path: Some("/healthz".into()),
                port: IntOrString::Int(PORT.into()),
                ..HTTPGetAction::default()
            }),
            period_seconds: Some(10),
            failure_threshold: Some(3),
            timeout_seconds: Some(5),
            ..Probe::default()
        });
    }
    let made_from = serde_json::json!({ "image": image, "resources": brief.replication.resources, "pods": brief.pods });
    let annotations = BTreeMap::from([(MADE_FROM.into(), made_from.to_string())]);
    StatefulSet {
        metadata: ObjectMeta { annotations: Some(annotations), ..metadata(brief, owner) },
        spec: Some(StatefulSetSpec {
            replicas: Some(replicas),
            service_name: Some(name::pipeline(&brief.mirror, brief.epoch)),
            selector: LabelSelector { match_labels: Some(own_labels(brief)), ..LabelSelector::default() },
            template: pod,
            pod_management_policy: Some("Parallel".into()),
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    }
}
