//! What the check of a PostgreSQL Peer says, and that its cures are enough.

use mirror_operator::{api::peer::Role, brief::DestinationPeer, check, report::Failure};

use crate::{fixture::Fixture, on_postgres::OnPostgres, support};

#[tokio::test(flavor = "multi_thread")]
async fn each_right_that_the_role_of_a_destination_lacks_is_told_with_the_statement_that_gives_it() {
    let place = OnPostgres::new().await;
    let database = &place.to.database;
    let role = format!("mo_test_poor_{}", database.replace("mo_test_", ""));
    place.run(&format!("CREATE ROLE {role} LOGIN PASSWORD 'x'; REVOKE ALL ON DATABASE {database} FROM PUBLIC; GRANT CONNECT ON DATABASE {database} TO {role}")).await;
    let mut to = place.to.clone();
    (to.user, to.password) = (role.clone(), Some(support::secret("x")));
    let peer = DestinationPeer::Postgres(to);
    let told = async |roles: &[Role]| check::run(&peer, roles).await.problems;
    let cure = |problem: &Failure| {
        let (_, cure) = problem.message.split_once(": GRANT").unwrap();
        format!("GRANT{cure}")
    };
    let lacking = told(&[Role::Destination]).await;
    assert!(lacking.iter().all(|p| p.reason == "DestinationPermissionDenied") && lacking.len() == 2, "{lacking:?}");
    assert!(lacking[0].message.contains("CREATE ON DATABASE") && lacking[1].message.contains("TEMPORARY"), "{lacking:?}");
    for problem in &lacking {
        place.run(&cure(problem)).await;
    }
    assert_eq!(told(&[Role::Destination]).await, []);
    // Somebody else has made the ledger's schema, such as another mirror's role.
    place.run("CREATE SCHEMA _mirror_operator").await;
    let foreign = told(&[Role::Destination]).await;
    assert!(foreign.len() == 1 && foreign[0].message.contains("_mirror_operator"), "{foreign:?}");
    place.run(&cure(&foreign[0])).await;
    assert_eq!(told(&[Role::Destination]).await, []);
    let as_source = told(&[Role::Source]).await;
    assert!(as_source.iter().any(|p| p.reason == "NoReplicationRight" && p.message.contains("REPLICATION")), "{as_source:?}");
    place.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}
