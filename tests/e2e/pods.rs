//! What data pods ask for and where they run.

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Pod, PodSpec},
};
use mirror_operator::api::resync::Phase;
use serde_json::{Value, json};

use crate::{
    visible::one_table,
    world::{LIMIT, World, until},
};

fn limit(pod: &PodSpec) -> Option<String> {
    Some(pod.containers[0].resources.as_ref()?.limits.as_ref()?.get("memory")?.0.clone())
}

fn is_placed(pod: &PodSpec) -> bool {
    let selected = pod.node_selector.as_ref().is_some_and(|s| s.get("kubernetes.io/os").is_some_and(|os| os == "linux"));
    selected && pod.tolerations.iter().flatten().any(|t| t.key.as_deref() == Some("e2e") && t.operator.as_deref() == Some("Exists"))
}

async fn pipeline(world: &World) -> Option<Pod> {
    world.pods("pipeline").await.into_iter().find(|p| p.metadata.deletion_timestamp.is_none())
}

#[tokio::test]
async fn pods_are_what_mirror_and_resync_say_and_a_live_pipeline_follows_without_a_resync() {
    let world = one_table(World::new("pods").await).await;
    let memory = |most: &str| json!({ "resources": { "requests": { "memory": "48Mi" }, "limits": { "memory": most } } });
    let pods = json!({ "nodeSelector": { "kubernetes.io/os": "linux" }, "tolerations": [{ "key": "e2e", "operator": "Exists" }] });
    let mirror = |replication: Value| json!({ "pods": pods, "snapshot": memory("300Mi"), "replication": replication });
    world.apply(world.mirror("m", &["public.t"], mirror(memory("301Mi")))).await.unwrap();
    world.ready("m").await;
    world.apply(world.resync("again", "m", json!({ "snapshot": memory("302Mi") }))).await.unwrap();
    world.phase("again", Phase::Running).await;
    for (job, most) in [("m-initial-snapshot", "300Mi"), ("again-snapshot", "302Mi")] {
        let job: Job = world.get(job).await;
        let pod = job.spec.unwrap().template.spec.unwrap();
        assert_eq!(limit(&pod).as_deref(), Some(most));
        assert!(is_placed(&pod), "{pod:?}");
    }
    let before = pipeline(&world).await.expect("a pipeline");
    let pod = before.spec.as_ref().unwrap();
    assert_eq!(limit(pod).as_deref(), Some("301Mi"));
    assert!(is_placed(pod), "{pod:?}");

    world.apply(world.mirror("m", &["public.t"], mirror(memory("304Mi")))).await.unwrap();
    until("the pipeline's pod is made anew", LIMIT, || async {
        let pod = pipeline(&world).await.ok_or("no pod")?;
        let limit = limit(pod.spec.as_ref().unwrap());
        if limit.as_deref() == Some("304Mi") { Ok(()) } else { Err(format!("{limit:?}")) }
    })
    .await;
    world.source.batch_execute("INSERT INTO t VALUES (2, 'after')").await.unwrap();
    world.equal("t", "id, v").await;
    let epoch = world.ready("m").await.status.unwrap().live_epoch;
    assert_eq!(epoch, 2, "nothing was loaded again");
    let again = pipeline(&world).await.expect("a pipeline");
    assert_ne!(again.metadata.uid, before.metadata.uid);
    world.end().await;
}
