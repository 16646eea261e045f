//! The Jobs: plan, snapshot, swap, cleanup, forget, check.

use k8s_openapi::{
    api::{
        batch::v1::{
            Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyOnPodConditionsPattern,
            PodFailurePolicyRule,
        },
        core::v1::{ConfigMap, EnvVar},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};

use super::{
    pipeline::brief_map,
    pod::{EPOCH_LABEL, MIRROR_LABEL, PodShape, RESYNC_LABEL, labels, template},
};
use crate::{
    api::pod::{Placement, Resources},
    brief::{Brief, DestinationPeer},
    name,
    report::EXIT_PERMANENT,
    resync,
};

/// How long a finished Job and its logs are kept, in seconds. Its result is in the status by then.
const KEEP_FINISHED: i32 = 3600;
/// How often a pod of a Job is tried again. Kubernetes' pauses double from 10 s to 6 min, so that is about three quarters of an hour.
const RETRIES: i32 = 12;

/// A Job's failure policy: an exit with [`EXIT_PERMANENT`] ends the Job, disruptions of the node cost nothing (Kubernetes docs, "Pod failure policy").
fn failure_policy() -> PodFailurePolicy {
    PodFailurePolicy {
        rules: vec![
            PodFailurePolicyRule {
                action: "FailJob".into(),
                on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
                    operator: "In".into(),
                    values: vec![EXIT_PERMANENT.into()],
                    container_name: None,
                }),
                on_pod_conditions: None,
            },
            PodFailurePolicyRule {
                action: "Ignore".into(),
                on_exit_codes: None,
                on_pod_conditions: Some(vec![PodFailurePolicyOnPodConditionsPattern {
                    type_: "DisruptionTarget".into(),
                    status: "True".into(),
                }]),
            },
        ],
    }
}

/// What the pods of short Jobs ask for: no rows pass through them.
fn short() -> Resources {
    Resources::of("20m", "32Mi", "128Mi")
}

struct Shape<'a> {
    brief: &'a Brief,
    image: &'a str,
    component: &'a str,
    args: Vec<String>,
    resources: &'a Resources,
    /// The ConfigMap with the brief.
    map: String,
}

/// The ConfigMap of the brief's epoch.
fn of_epoch(brief: &Brief) -> String {
    name::pipeline(&brief.mirror, brief.epoch)
}

fn brief_job(name: String, shape: Shape<'_>, owner: &OwnerReference) -> Job {
    let brief = shape.brief;
    let epoch = brief.epoch.to_string();
    let labels = labels(shape.component, &[(MIRROR_LABEL, &brief.mirror), (EPOCH_LABEL, &epoch), (RESYNC_LABEL, &brief.resync)]);
    let pod = template(PodShape {
        labels: labels.clone(),
        image: shape.image,
        args: shape.args,
        env: vec![],
        brief: Some(shape.map),
        secrets: brief.secrets(),
        identity: brief.destination.identity_label(),
        resources: shape.resources,
        placement: &brief.pods,
        restart: "Never",
    });
    Job {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(brief.namespace.clone()),
            labels: Some(labels),
            owner_references: Some(vec![owner.clone()]),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            template: pod,
            backoff_limit: Some(RETRIES),
            pod_failure_policy: Some(failure_policy()),
            ttl_seconds_after_finished: Some(KEEP_FINISHED),
            ..JobSpec::default()
        }),
        ..Job::default()
    }
}

/// What a worker's C library is told (glibc manual, "Memory Allocation Tunables"): to keep the memory that it has. Each chunk needs as much as the last one,
/// and more than half of a worker's time in the kernel went into giving it back and getting it anew.
pub const KEEPS_MEMORY: (&str, &str) =
    ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=1073741824:glibc.malloc.top_pad=67108864");

/// The Indexed Job that loads: one index a partition.
pub fn snapshot_job(brief: &Brief, image: &str, partitions: u32, parallelism: u16, suspended: bool, owner: &OwnerReference) -> Job {
    let shape = Shape {
        brief,
        image,
        component: "snapshot",
        args: vec!["snapshot".into()],
        resources: &brief.snapshot.resources,
        map: of_epoch(brief),
    };
    let mut job = brief_job(resync::job_name(&brief.resync, "snapshot"), shape, owner);
    if let Some(spec) = &mut job.spec {
        spec.completion_mode = Some("Indexed".into());
        spec.completions = Some(i32::try_from(partitions).unwrap_or(i32::MAX));
        spec.parallelism = Some(parallelism.into());
        spec.suspend = Some(suspended);
        spec.backoff_limit = None;
        spec.backoff_limit_per_index = Some(RETRIES);
        spec.max_failed_indexes = Some(0);
        let (name, value) = KEEPS_MEMORY;
        let keeps = EnvVar { name: name.into(), value: Some(value.into()), ..EnvVar::default() };
        let containers = spec.template.spec.iter_mut().flat_map(|pod| &mut pod.containers);
        containers.for_each(|container| container.env.get_or_insert_default().push(keeps.clone()));
    }
    job
}

/// The Job of a dry run, with a copy of the brief of its own: that of the epoch is written when a resync begins it. Its pods count to no epoch.
pub fn plan_job(brief: &Brief, image: &str, owner: &OwnerReference) -> (ConfigMap, Job) {
    let map = resync::job_name(&brief.resync, "plan");
    let shape = Shape { brief, image, component: "plan", args: vec!["plan".into()], resources: &short(), map: map.clone() };
    let mut job = brief_job(map.clone(), shape, owner);
    if let Some(spec) = &mut job.spec {
        // Somebody waits for the answer: it is soon said that there is none.
        spec.backoff_limit = Some(3);
        let pod = spec.template.metadata.as_mut().and_then(|m| m.labels.as_mut());
        pod.into_iter().chain(job.metadata.labels.as_mut()).for_each(|labels| drop(labels.remove(EPOCH_LABEL)));
    }
    let mut copy = brief_map(brief, owner);
    (copy.metadata.name, copy.metadata.labels) = (Some(map), job.metadata.labels.clone());
    (copy, job)
}

/// The Job that carries and swaps.
pub fn swap_job(brief: &Brief, image: &str, owner: &OwnerReference) -> Job {
    let shape = Shape { brief, image, component: "swap", args: vec!["swap".into()], resources: &short(), map: of_epoch(brief) };
    brief_job(resync::job_name(&brief.resync, "swap"), shape, owner)
}

/// The Job that removes what a resync has made that does not come to its swap.
pub fn cleanup_job(brief: &Brief, image: &str, owner: &OwnerReference) -> Job {
    let shape = Shape { brief, image, component: "cleanup", args: vec!["cleanup".into()], resources: &short(), map: of_epoch(brief) };
    let mut job = brief_job(resync::job_name(&brief.resync, "cleanup"), shape, owner);
    if let Some(spec) = &mut job.spec {
        // Fewer tries, so that the pauses stay short: another Job follows as long as there is something to remove.
        spec.backoff_limit = Some(5);
    }
    job
}

/// The Job that removes all traces of a Mirror.
pub fn forget_job(brief: &Brief, image: &str, drop_tables: bool, owner: &OwnerReference) -> Job {
    let mut args = vec!["forget".to_string()];
    if drop_tables {
        args.push("--drop-tables".into());
    }
    let shape = Shape { brief, image, component: "forget", args, resources: &short(), map: of_epoch(brief) };
    brief_job(format!("{}-forget", brief.mirror), shape, owner)
}

/// The Job that checks a Peer.
pub fn check_job(
    namespace: &str,
    name: &str,
    peer: &str,
    connection: &DestinationPeer,
    roles: &str,
    image: &str,
    owner: &OwnerReference,
) -> Job {
    let labels = labels("check", &[("mirror-operator.io/peer", peer)]);
    let connection_json = serde_json::to_string(connection).unwrap_or_default();
    let pod = template(PodShape {
        labels: labels.clone(),
        image,
        args: vec!["check".into(), "--roles".into(), roles.into()],
        env: vec![EnvVar { name: "MIRROR_PEER".into(), value: Some(connection_json), ..EnvVar::default() }],
        brief: None,
        secrets: connection.secrets().collect(),
        identity: connection.identity_label(),
        resources: &short(),
        placement: &Placement::default(),
        restart: "Never",
    });
    Job {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some(namespace.into()),
            labels: Some(labels),
            owner_references: Some(vec![owner.clone()]),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            template: pod,
            backoff_limit: Some(0),
            active_deadline_seconds: Some(120),
            ttl_seconds_after_finished: Some(KEEP_FINISHED),
            ..JobSpec::default()
        }),
        ..Job::default()
    }
}
