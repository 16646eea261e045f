//! Installs the chart with real helm, once for all tests.

use std::process::Command;

use tokio::sync::OnceCell;

/// The namespace of the operator under test.
pub const NAMESPACE: &str = "mirror-operator";

static INSTALLED: OnceCell<()> = OnceCell::const_new();

/// Installs or upgrades the release and waits until its pod is ready.
pub async fn operator() {
    INSTALLED
        .get_or_init(|| async {
            let image = std::env::var("IMAGE").expect("IMAGE: the operator's image; run the tests by `make e2e`");
            let (repository, tag) = image.rsplit_once(':').expect("repository:tag");
            let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/mirror-operator");
            let mut helm = Command::new("helm");
            helm.args([
                "upgrade",
                "--install",
                "mirror-operator",
                chart,
                "--namespace",
                NAMESPACE,
                "--create-namespace",
                "--wait",
                "--timeout",
                "120s",
            ]);
            helm.args(["--set", &format!("image.repository={repository}"), "--set", &format!("image.tag={tag}")]);
            let output = helm.output().expect("helm runs");
            assert!(output.status.success(), "helm: {}", String::from_utf8_lossy(&output.stderr));
        })
        .await;
}
