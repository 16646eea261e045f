//! ClickHouse behind TLS: a proxy with a certificate of its own stands in front of the server, which itself offers none.

use mirror_operator::{
    api::peer::TlsMode,
    brief::{Brief, DestinationPeer},
    destination::clickhouse::Peer,
    postgres::connect::SecretFile,
};

use crate::{
    fixture::{Fixture, open, table, whole},
    on_clickhouse::OnClickHouse,
    tls::{certificates, proxy},
};

#[tokio::test(flavor = "multi_thread")]
async fn every_tls_mode_connects_or_says_why_not() {
    let place = OnClickHouse::new().await;
    let directory = certificates("DNS:localhost");
    let port = proxy(&directory, "127.0.0.1", (place.to.host.clone(), place.to.port)).await;
    let ca = SecretFile { path: directory.join("ca.crt"), secret: "ca".into(), key: "ca.crt".into() };
    let brief = |mode: TlsMode, host: &str, trusted: bool| -> Brief {
        let mut at = place.to.clone();
        (at.host, at.port, at.tls, at.ca) = (host.into(), port, mode, trusted.then(|| ca.clone()));
        Brief { destination: DestinationPeer::ClickHouse(Peer { at, settings: Default::default(), cluster: None }), ..place.brief(1) }
    };
    let whole_mirror = [(place.adapt(table(0, "t", &["id bigint!", "name text"])), &["1\tone"][..])];
    whole(&*open(&brief(TlsMode::VerifyFull, "localhost", true)).await, &whole_mirror).await;
    assert_eq!(place.read("t", &["id", "name"]).await, ["1|one|f"]);
    for (mode, host, trusted) in [(TlsMode::Require, "127.0.0.1", false), (TlsMode::VerifyCA, "127.0.0.1", true)] {
        assert!(open(&brief(mode, host, trusted)).await.state().await.unwrap().is_some(), "{mode:?}");
    }
    for (mode, host, trusted) in
        [(TlsMode::VerifyFull, "127.0.0.1", true), (TlsMode::VerifyCA, "localhost", false), (TlsMode::VerifyFull, "localhost", false)]
    {
        let refused = open(&brief(mode, host, trusted)).await.state().await.unwrap_err().to_string();
        assert!(refused.contains("certificate"), "{mode:?}: {refused}");
    }
    std::fs::remove_dir_all(directory).unwrap();
}
