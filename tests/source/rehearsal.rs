//! A dry run against both servers.

use mirror_operator::pipeline::prepare;

use crate::{
    fixture::{Fixture, number},
    load::whole,
};

#[tokio::test]
async fn a_dry_run_reckons_the_load_tells_what_is_in_the_way_and_changes_nothing() {
    let fixture = Fixture::new().await;
    let (source, target) = (fixture.at_source().await, fixture.at_destination().await);
    source
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, repeat('x', 100) FROM generate_series(1, 20000) g; ANALYZE t")
        .await
        .unwrap();
    let objects = "SELECT count(*) FROM pg_class WHERE relnamespace NOT IN ('pg_catalog'::regnamespace, 'pg_toast'::regnamespace)";
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
    let everything = async || {
        let changes = "SELECT count(*) FROM pg_namespace";
        (
            number(&source, slots).await,
            number(&source, "SELECT count(*) FROM pg_publication").await,
            number(&target, objects).await,
            number(&target, changes).await,
        )
    };
    let mut first = fixture.brief(1, &["public.t"]);
    first.snapshot.chunk_size = Some("256Ki".to_string().try_into().unwrap());
    let before = everything().await;
    let plan = prepare::rehearse(&first).await.unwrap();
    assert_eq!((plan.tables, plan.rows), (1, 20_000));
    assert!(plan.chunks >= 8 && plan.partitions >= 1 && plan.bytes > 2_000_000, "{plan:?}");
    assert_eq!(everything().await, before, "before the first load");

    whole(&fixture, &first).await;
    let (before, ledger) = (everything().await, "SELECT sum(epoch)::bigint FROM _mirror_operator.epoch");
    let second = fixture.brief(2, &["public.t"]);
    prepare::rehearse(&second).await.unwrap();
    target.batch_execute("CREATE TABLE t_resync (theirs int)").await.unwrap();
    let said = prepare::rehearse(&second).await.unwrap_err();
    assert_eq!(said.reason, "ForeignShadow", "{said:?}");
    target.batch_execute("DROP TABLE t_resync").await.unwrap();
    assert_eq!((everything().await, number(&target, ledger).await), (before, 1), "the slot of epoch 1 stays");
    drop((source, target));
    fixture.end().await;
}
