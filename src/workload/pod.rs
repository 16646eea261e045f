//! What all pods have in common: labels, security, mounts.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Capabilities, ConfigMapVolumeSource, Container, EnvVar, KeyToPath, PodSecurityContext, PodSpec, PodTemplateSpec, SeccompProfile,
        SecretVolumeSource, SecurityContext, Volume, VolumeMount,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::{
    api::pod::{Placement, Resources},
    postgres::connect::SecretFile,
};

/// Label with the Mirror's name.
pub const MIRROR_LABEL: &str = "mirror-operator.io/mirror";
/// Label with the epoch.
pub const EPOCH_LABEL: &str = "mirror-operator.io/epoch";
/// Label with the MirrorResync's name.
pub const RESYNC_LABEL: &str = "mirror-operator.io/resync";

/// Annotation of a pipeline's StatefulSet with what its pod was made from: the API server writes quantities in its own way, so they cannot be compared.
pub const MADE_FROM: &str = "mirror-operator.io/made-from";

/// The user and group of all containers; any but root.
const USER: i64 = 65532;

/// The labels of everything of one component.
pub fn labels(component: &str, more: &[(&str, &str)]) -> BTreeMap<String, String> {
    let fixed = [
        ("app.kubernetes.io/name", "mirror-operator"),
        ("app.kubernetes.io/managed-by", "mirror-operator"),
        ("app.kubernetes.io/component", component),
    ];
    fixed.iter().chain(more).map(|(key, value)| ((*key).to_string(), (*value).to_string())).collect()
}

/// What one pod runs with.
pub struct PodShape<'a> {
    /// Labels of the pod.
    pub labels: BTreeMap<String, String>,
    /// The image.
    pub image: &'a str,
    /// Subcommand and its arguments.
    pub args: Vec<String>,
    /// Environment beside the log level.
    pub env: Vec<EnvVar>,
    /// ConfigMap with the brief, if the pod needs one.
    pub brief: Option<String>,
    /// Secrets that are mounted.
    pub secrets: Vec<&'a SecretFile>,
    /// A label that gives it an identity.
    pub identity: Option<(&'a str, &'a str)>,
    /// What it asks for.
    pub resources: &'a Resources,
    /// Where it may run.
    pub placement: &'a Placement,
    /// `Always` or `Never`.
    pub restart: &'a str,
}

/// A pod that passes PodSecurity *restricted* and has no API token (Kubernetes docs, "Pod Security Standards").
pub fn template(shape: PodShape<'_>) -> PodTemplateSpec {
    let (volumes, mounts) = mounts(&shape);
    let mut env = vec![EnvVar { name: "MIRROR_LOG".into(), value: std::env::var("MIRROR_LOG").ok(), ..EnvVar::default() }];
    env.retain(|v| v.value.is_some());
    env.extend(shape.env);
    let mut pod_labels = shape.labels;
    pod_labels.extend(shape.identity.map(|(name, value)| (name.to_string(), value.to_string())));
    let Placement { node_selector, tolerations } = shape.placement.clone();
    let container = Container {
        name: "main".into(),
        image: Some(shape.image.into()),
        image_pull_policy: Some("IfNotPresent".into()),
        args: Some(shape.args),
        env: Some(env),
        resources: Some(shape.resources.into()),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), ..Capabilities::default() }),
            ..SecurityContext::default()
        }),
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        volume_mounts: Some(mounts),
        ..Container::default()
    };
    PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(pod_labels), ..ObjectMeta::default() }),
        spec: Some(PodSpec {
            containers: vec![container],
            volumes: Some(volumes),
            restart_policy: Some(shape.restart.into()),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            termination_grace_period_seconds: Some(10),
            node_selector: (!node_selector.is_empty()).then_some(node_selector),
            tolerations: (!tolerations.is_empty()).then(|| tolerations.iter().map(Into::into).collect()),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                run_as_group: Some(USER),
                fs_group: Some(USER),
                seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), localhost_profile: None }),
                ..PodSecurityContext::default()
            }),
            ..PodSpec::default()
        }),
    }
}

fn mounts(shape: &PodShape<'_>) -> (Vec<Volume>, Vec<VolumeMount>) {
    let mut volumes = vec![];
    let mut mounts = vec![];
    if let Some(map) = &shape.brief {
        volumes.push(Volume {
            name: "brief".into(),
            config_map: Some(ConfigMapVolumeSource { name: map.clone(), ..ConfigMapVolumeSource::default() }),
            ..Volume::default()
        });
        mounts.push(VolumeMount {
            name: "brief".into(),
            mount_path: "/etc/mirror-operator/brief".into(),
            read_only: Some(true),
            ..VolumeMount::default()
        });
    }
    for file in &shape.secrets {
        let Some(folder) = file.path.parent() else { continue };
        let name = folder.to_string_lossy().trim_start_matches("/etc/mirror-operator/").replace('/', "-");
        volumes.push(secret_volume(&name, file));
        mounts.push(VolumeMount { name, mount_path: folder.to_string_lossy().into(), read_only: Some(true), ..VolumeMount::default() });
    }
    (volumes, mounts)
}

/// Optional, so that the program itself can say which Secret or key is missing rather than the pod hanging without a word.
fn secret_volume(name: &str, file: &SecretFile) -> Volume {
    let path = file.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    Volume {
        name: name.into(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(file.secret.clone()),
            items: Some(vec![KeyToPath { key: file.key.clone(), path, mode: None }]),
            default_mode: Some(0o440),
            optional: Some(true),
        }),
        ..Volume::default()
    }
}
