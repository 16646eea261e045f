//! What a PostgreSQL destination refuses while it loads.

use crate::{
    fixture::{Fixture, boundary, load, open, plan, refused, table},
    on_postgres::OnPostgres,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_a_constraint_refuses_is_told_without_its_values_and_none_of_its_chunk_stays() {
    let place = OnPostgres::new().await;
    let orders = place.adapt(table(0, "orders", &["id bigint!", "name text"]));
    let at = open(&place.brief(1)).await;
    at.begin().await.unwrap();
    at.create_shadows(boundary(1), std::slice::from_ref(&orders), &plan(&[1])).await.unwrap();
    place.run("ALTER TABLE public.orders_resync ADD CONSTRAINT short CHECK (length(name) < 9)").await;
    let failure = refused(load(&*at, &orders, 0, &["1\tfine", "2\tthe secret of two"]).await);
    assert_eq!(failure.reason, "RowRefused");
    assert!(failure.message.contains("\"short\"") && failure.message.contains("Remove the constraint at the destination"), "{failure:?}");
    assert!(!failure.message.contains("secret"), "{failure:?}");
    assert_eq!(place.count("orders_resync").await, 0);
    place.run("ALTER TABLE public.orders_resync DROP CONSTRAINT short").await;
    assert_eq!(load(&*at, &orders, 0, &["1\tfine", "2\tthe secret of two"]).await.unwrap().rows, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_cannot_be_renewed_for_shadows_that_were_never_made() {
    let place = OnPostgres::new().await;
    let at = open(&place.brief(1)).await;
    at.begin().await.unwrap();
    assert_eq!(refused(at.renew_snapshot(boundary(2)).await).reason, "NoShadows");
    assert_eq!(at.state().await.unwrap().unwrap().generation, 0, "it is as it was");
}
