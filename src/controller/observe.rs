//! Reading facts: pods, Jobs, and what pipeline pods say.

use std::net::SocketAddr;

use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{ContainerState, ContainerStatus, Pod, PodStatus},
    },
    jiff::Timestamp,
};
use kube::{Api, ResourceExt, api::ListParams};
use serde::de::DeserializeOwned;

use super::{Context, Error};
use crate::{
    report::{JobReport, Report},
    resync::JobFacts,
    workload::{EPOCH_LABEL, MIRROR_LABEL, PORT},
};

/// The pods of one epoch of one Mirror.
pub struct Pods(Vec<Pod>);

impl Pods {
    fn component(&self, component: &str) -> impl Iterator<Item = &Pod> {
        self.0.iter().filter(move |p| p.labels().get("app.kubernetes.io/component").is_some_and(|c| c == component))
    }

    /// The pods whose containers may still run, beside those of `except`, by name.
    pub fn alive(&self, except: &[&str]) -> Vec<String> {
        let counts = |p: &&Pod| {
            let component = p.labels().get("app.kubernetes.io/component").map(String::as_str).unwrap_or_default();
            !except.contains(&component) && !matches!(p.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
        };
        let mut names: Vec<String> = self.0.iter().filter(counts).map(ResourceExt::name_any).collect();
        names.sort();
        names
    }

    /// Why the newest pod of a component does not run.
    pub fn trouble(&self, component: &str) -> Option<String> {
        let newest = self.component(component).max_by_key(|p| p.creation_timestamp())?;
        trouble(newest)
    }

    /// What the finished pods of a Job left as their termination messages, the newest first.
    pub fn words<T: DeserializeOwned>(&self, job: &Job) -> Vec<T> {
        let uid = job.uid().unwrap_or_default();
        let mut finished: Vec<&Pod> = self.0.iter().filter(|p| p.owner_references().iter().any(|o| o.uid == uid)).collect();
        finished.sort_by_key(|p| p.creation_timestamp());
        finished.iter().rev().filter_map(|p| serde_json::from_str(message(p)?).ok()).collect()
    }

    /// Where the pipeline pod answers. Written out, an address of IPv6 has its brackets.
    fn pipeline_address(&self) -> Option<SocketAddr> {
        let address = self.component("pipeline").find_map(|p| p.status.as_ref()?.pod_ip.as_deref())?;
        Some(SocketAddr::new(address.parse().ok()?, PORT))
    }
}

fn message(pod: &Pod) -> Option<&str> {
    let container = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
    let ended = container
        .state
        .as_ref()
        .and_then(|s| s.terminated.as_ref())
        .or(container.last_state.as_ref().and_then(|s| s.terminated.as_ref()))?;
    ended.message.as_deref()
}

/// Why a pod does not run, in the kubelet's or scheduler's words.
pub fn trouble(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let name = pod.name_any();
    if starved(status) {
        let cure = match pod.labels().get("app.kubernetes.io/component").map(String::as_str) {
            Some("pipeline") => ": raise replication.resources.limits.memory of the Mirror",
            Some("snapshot") => ": raise snapshot.resources.limits.memory, and apply a new MirrorResync",
            _ => "",
        };
        return Some(format!("Pod {name} was killed because it needs more memory than it may use (OOMKilled){cure}"));
    }
    if let Some(waiting) = status.container_statuses.iter().flatten().find_map(|c| c.state.as_ref()?.waiting.as_ref())
        && let Some(reason) = waiting.reason.as_deref().filter(|r| !matches!(*r, "ContainerCreating" | "PodInitializing"))
    {
        return Some(format!("Pod {name}: {reason}. {}", waiting.message.clone().unwrap_or_default()));
    }
    unscheduled(status).map(|why| format!("Pod {name} cannot be scheduled: {why}"))
}

/// Whether the last that is known of a pod is that it went beyond its memory.
fn starved(status: &PodStatus) -> bool {
    let ended = |c: &ContainerStatus| {
        let state = |state: &Option<ContainerState>| state.as_ref().and_then(|s| s.terminated.as_ref()).map(|t| t.reason.clone());
        let running = c.state.as_ref().is_some_and(|s| s.running.is_some());
        state(&c.state).or_else(|| state(&c.last_state)).flatten().filter(|_| !running)
    };
    status.container_statuses.iter().flatten().filter_map(ended).any(|reason| reason == "OOMKilled")
}

fn unscheduled(status: &PodStatus) -> Option<String> {
    let condition = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False")?;
    Some(condition.message.clone().unwrap_or_default())
}

impl Context {
    /// The pods of a Mirror, of one epoch or all.
    pub async fn pods(&self, namespace: &str, mirror: &str, epoch: Option<u32>) -> Result<Pods, Error> {
        let mut selector = format!("{MIRROR_LABEL}={mirror}");
        if let Some(epoch) = epoch {
            selector.push_str(&format!(",{EPOCH_LABEL}={epoch}"));
        }
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        Ok(Pods(api.list(&ListParams::default().labels(&selector)).await?.items))
    }

    /// The pods of one Job.
    pub async fn pods_of_job(&self, namespace: &str, job: &str) -> Result<Pods, Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        Ok(Pods(api.list(&ListParams::default().labels(&format!("job-name={job}"))).await?.items))
    }

    /// A Job that `owner` owns.
    pub async fn job(&self, namespace: &str, name: &str, owner: &str) -> Result<Option<Job>, Error> {
        let api: Api<Job> = Api::namespaced(self.client.clone(), namespace);
        let job = api.get_opt(name).await?;
        Ok(job.filter(|j| j.owner_references().iter().any(|o| o.uid == owner) && j.metadata.deletion_timestamp.is_none()))
    }

    /// What the pipeline pod says, if it can be asked.
    pub async fn ask_pipeline(&self, pods: &Pods, mirror_uid: &str, epoch: u32) -> Option<Report> {
        let url = format!("http://{}/status", pods.pipeline_address()?);
        let report: Report = self.http.get(url).send().await.ok()?.json().await.ok()?;
        (report.mirror_uid == mirror_uid && report.epoch == epoch).then_some(report)
    }
}

/// A Job as facts, with what its pods left. The pods must have been read after the Job: else it may seem to have ended without a word.
pub fn job_facts(job: Option<Job>, component: &str, pods: &Pods) -> Option<JobFacts> {
    let job = job?;
    let name = job.name_any();
    let condition = |kind: &str| {
        let conditions = job.status.as_ref().and_then(|s| s.conditions.as_ref());
        conditions.into_iter().flatten().find(|c| c.type_ == kind && c.status == "True").cloned()
    };
    let ended = condition("Complete").or(condition("Failed"));
    Some(JobFacts {
        completed: condition("Complete").is_some(),
        refused: condition("Failed").is_some_and(|c| c.reason.as_deref() == Some("PodFailurePolicy")),
        ended: ended.map(|c| c.last_transition_time.map_or(Timestamp::UNIX_EPOCH, |t| t.0)),
        failed: condition("Failed")
            .map(|c| format!("Job {name} failed: {} {}", c.reason.unwrap_or_default(), c.message.unwrap_or_default()).trim().to_string()),
        failed_indexes: job.status.as_ref().and_then(|s| s.failed_indexes.as_ref()).map_or(0, |list| count_indexes(list)),
        report: decisive(pods.words(&job)),
        pod_trouble: pods.trouble(component),
    })
}

/// Of what the pods of a Job said, the newest first, the word that counts: one that ends it, else the newest. A pod that is stopped because another has
/// ended the Job may well be the last to speak.
fn decisive(words: Vec<JobReport>) -> Option<JobReport> {
    let ends = |r: &JobReport| r.swapped.is_some() || r.failure.as_ref().is_some_and(|f| f.permanent);
    let at = words.iter().position(ends).unwrap_or_default();
    words.into_iter().nth(at)
}

/// How many indexes a list such as `1,3-5,7` names (Kubernetes docs, Job status, `failedIndexes`).
fn count_indexes(list: &str) -> u32 {
    let of = |part: &str| match part.split_once('-') {
        Some((first, last)) => Some(last.parse::<u32>().ok()?.checked_sub(first.parse().ok()?)? + 1),
        None => part.parse::<u32>().ok().map(|_| 1),
    };
    list.split(',').filter_map(of).sum()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Pod, PodStatus, Pods, count_indexes, decisive, trouble};
    use crate::report::{Failure, JobReport};

    #[test]
    fn a_word_that_ends_a_job_counts_more_than_a_later_one() {
        let said = |reason: &str, permanent: bool| JobReport {
            failure: Some(Failure { reason: reason.into(), message: String::new(), permanent }),
            ..JobReport::default()
        };
        let reason = |words: Vec<JobReport>| decisive(words).and_then(|r| r.failure).map(|f| f.reason);
        assert_eq!(reason(vec![said("Stopped", false), said("ValueRefused", true), said("Away", false)]), Some("ValueRefused".into()));
        assert_eq!(reason(vec![said("Stopped", false), said("Away", false)]), Some("Stopped".into()));
        assert_eq!(reason(vec![]), None);
    }

    #[test]
    fn a_pod_that_was_killed_for_its_memory_says_which_limit_to_raise_until_it_runs_again() {
        let said = |component: &str, state: serde_json::Value| {
            let container = json!({ "name": "main", "image": "i", "imageID": "i", "ready": false, "restartCount": 1, "state": state,
                "lastState": { "terminated": { "exitCode": 137, "reason": "OOMKilled" } } });
            let pod = json!({ "metadata": { "name": "p", "labels": { "app.kubernetes.io/component": component } },
                "status": { "containerStatuses": [container] } });
            trouble(&serde_json::from_value(pod).unwrap())
        };
        let waiting = json!({ "waiting": { "reason": "CrashLoopBackOff" } });
        assert!(said("pipeline", waiting.clone()).unwrap().contains("raise replication.resources.limits.memory"));
        assert!(said("snapshot", waiting).unwrap().contains("raise snapshot.resources.limits.memory"));
        assert_eq!(said("pipeline", json!({ "running": {} })), None);
        let failed = json!({ "terminated": { "exitCode": 2, "reason": "Error" } });
        assert_eq!(said("snapshot", failed), None, "it ended otherwise since");
    }

    #[test]
    fn a_pipeline_is_asked_at_its_address_of_either_family() {
        let at = |address: &str| {
            let mut pod = Pod::default();
            pod.metadata.labels = Some([("app.kubernetes.io/component".to_string(), "pipeline".to_string())].into());
            pod.status = Some(PodStatus { pod_ip: Some(address.into()), ..PodStatus::default() });
            Pods(vec![pod]).pipeline_address().map(|address| address.to_string())
        };
        assert_eq!(at("10.1.2.3").as_deref(), Some("10.1.2.3:8080"));
        assert_eq!(at("fd00::7").as_deref(), Some("[fd00::7]:8080"));
        assert_eq!(at(""), None);
    }

    #[test]
    fn lists_of_indexes_are_counted() {
        assert_eq!([count_indexes(""), count_indexes("4"), count_indexes("1,3-5,7")], [0, 1, 5]);
    }
}
