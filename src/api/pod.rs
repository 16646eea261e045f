//! What the pods of a mirror ask for, and where they may run.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{ResourceRequirements, Toleration as KubernetesToleration},
    apimachinery::pkg::api::resource::Quantity as KubernetesQuantity,
};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::quantity::{Quantity, quantity};

/// What a pod asks for and may use at most, as in a container (core/v1 ResourceRequirements). What is given replaces the default as a whole.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("!has(self.requests) || !has(self.limits) || !has(self.requests.cpu) || !has(self.limits.cpu) || !quantity(self.requests.cpu).isGreaterThan(quantity(self.limits.cpu))").message("requests.cpu is more than limits.cpu"),
    validation = Rule::new("!has(self.requests) || !has(self.limits) || !has(self.requests.memory) || !has(self.limits.memory) || !quantity(self.requests.memory).isGreaterThan(quantity(self.limits.memory))").message("requests.memory is more than limits.memory"),
    validation = Rule::new("!has(self.requests) || !has(self.limits) || !has(self.requests.ephemeral__dash__storage) || !has(self.limits.ephemeral__dash__storage) || !quantity(self.requests.ephemeral__dash__storage).isGreaterThan(quantity(self.limits.ephemeral__dash__storage))").message("requests.ephemeral-storage is more than limits.ephemeral-storage")
)]
pub struct Resources {
    /// What the scheduler sets aside; as much as `limits` where only that is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<Amounts>,
    /// What a pod may use at most. One that needs more memory is killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Amounts>,
}

/// Amounts of a node's resources.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Amounts {
    /// Processors, such as `500m` for a half, or `"2"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Quantity>,
    /// Bytes of memory, such as `512Mi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
    /// Bytes of the node's disk for logs, such as `1Gi`; the pods write nothing else there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral_storage: Option<Quantity>,
}

/// Where the pods of a mirror may run.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Placement {
    /// Labels that a node must have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("additionalProperties" = { "type": "string", "maxLength": 63, "pattern": LABEL_PATTERN }))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that do not keep the pods away.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
}

/// The value of a label (Kubernetes docs, "Labels and Selectors", "Syntax and character set").
const LABEL_PATTERN: &str = "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$";

/// A taint that is put up with, as in a pod (core/v1 Toleration).
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.key) || self.operator == 'Exists'").message("without key operator must be Exists"),
    validation = Rule::new("!has(self.value) || self.operator == 'Equal'").message("value is only used with operator Equal"),
    validation = Rule::new("!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')").message("tolerationSeconds is only used with effect NoExecute")
)]
pub struct Toleration {
    /// The taint's key; every key if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 316))]
    pub key: Option<String>,
    /// Whether the taint's value counts.
    #[serde(default)]
    pub operator: TolerationOperator,
    /// The taint's value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub value: Option<String>,
    /// The taint's effect; every effect if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
    /// How many seconds a pod stays on a node that gets the taint; for ever if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toleration_seconds: Option<i64>,
}

/// Whether a taint's value counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TolerationOperator {
    /// It must be the toleration's.
    #[default]
    Equal,
    /// Any will do.
    Exists,
}

/// What a taint does to pods that do not put up with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TaintEffect {
    /// None of them is started on the node.
    NoSchedule,
    /// None is started if it can be helped.
    PreferNoSchedule,
    /// Those that run are ended too.
    NoExecute,
}

impl Resources {
    /// A request of processors and memory, and a limit of memory; from literals known to be valid.
    pub(crate) fn of(cpu: &'static str, memory: &'static str, most: &'static str) -> Self {
        Self {
            requests: Some(Amounts { cpu: Some(quantity(cpu)), memory: Some(quantity(memory)), ephemeral_storage: None }),
            limits: Some(Amounts { memory: Some(quantity(most)), ..Amounts::default() }),
        }
    }
}

impl From<&Resources> for ResourceRequirements {
    fn from(resources: &Resources) -> Self {
        let amounts = |amounts: &Amounts| {
            let named = [("cpu", &amounts.cpu), ("memory", &amounts.memory), ("ephemeral-storage", &amounts.ephemeral_storage)];
            let given = named.into_iter().filter_map(|(name, amount)| Some((name.into(), KubernetesQuantity(amount.clone()?.into()))));
            given.collect::<BTreeMap<String, _>>()
        };
        Self { requests: resources.requests.as_ref().map(amounts), limits: resources.limits.as_ref().map(amounts), ..Self::default() }
    }
}

impl From<&Toleration> for KubernetesToleration {
    fn from(toleration: &Toleration) -> Self {
        Self {
            key: toleration.key.clone(),
            operator: Some(format!("{:?}", toleration.operator)),
            value: toleration.value.clone(),
            effect: toleration.effect.map(|effect| format!("{effect:?}")),
            toleration_seconds: toleration.toleration_seconds,
        }
    }
}
