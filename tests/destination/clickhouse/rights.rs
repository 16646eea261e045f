//! A user with the rights that the documentation lists, and with fewer.

use std::collections::BTreeSet;

use mirror_operator::{
    api::{
        clickhouse::{ClickHouseTable, Engine},
        peer::Role,
    },
    brief::{Brief, DestinationPeer},
    check,
    destination::{RowChange, clickhouse::Peer},
};

use super::{change, row, t, upsert};
use crate::{
    fixture::{Fixture, boundary, column, made, open, plan, whole},
    on_clickhouse::{OnClickHouse, ask},
};

const DOCUMENTATION: &str = include_str!("../../../docs/clickhouse.md");

/// What the documentation grants to the user `mirror` in the database `shop`, as `right ON what`.
fn documented() -> BTreeSet<String> {
    let section = DOCUMENTATION.lines().skip_while(|line| !line.starts_with("The user needs")).take_while(|line| !line.starts_with("## "));
    section.filter_map(|line| line.strip_prefix("    GRANT ")).flat_map(|grant| rights(grant, "mirror")).collect()
}

/// The rights of a statement after its first word.
fn rights(grant: &str, user: &str) -> Vec<String> {
    let statement = grant.split_once(';').map_or(grant, |(statement, _)| statement).trim();
    let (what, on) = statement.strip_suffix(&format!(" TO {user}")).unwrap_or_else(|| panic!("{grant}")).split_once(" ON ").unwrap();
    what.split(", ").map(|right| format!("{right} ON {on}")).collect()
}

fn as_user(place: &OnClickHouse, user: &str, epoch: u32) -> Brief {
    let mut brief = place.brief(epoch);
    let DestinationPeer::ClickHouse(peer) = &mut brief.destination else { panic!() };
    peer.at.user = user.into();
    brief
}

/// What is wrong with a Peer of this user.
async fn problems(place: &OnClickHouse, user: &str) -> Vec<String> {
    let mut at = place.to.clone();
    at.user = user.into();
    let peer = DestinationPeer::ClickHouse(Peer { at, settings: Default::default(), cluster: None });
    check::run(&peer, &[Role::Destination]).await.problems.into_iter().map(|problem| problem.message).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_exactly_the_rights_of_the_documentation_goes_all_the_way() {
    let place = OnClickHouse::least().await;
    let granted = ask(&place.to, "SHOW GRANTS FOR least FORMAT TSVRaw").await.unwrap();
    let granted: BTreeSet<String> = granted.lines().flat_map(|line| rights(line.strip_prefix("GRANT ").unwrap(), "least")).collect();
    assert_eq!(granted, documented().into_iter().map(|right| right.replace("shop.", "mo_least.")).collect());
    assert_eq!(problems(&place, "least").await, Vec::<String>::new());
    for engine in [Engine::ReplacingMergeTree, Engine::CoalescingMergeTree, Engine::MergeTree, Engine::Null] {
        let ttl = Some("toDateTime(id + 4000000000) + INTERVAL 1 DAY".into());
        let place = place.clone().with(ClickHouseTable { engine, ttl, partition_by: Some("id % 3".into()), ..ClickHouseTable::default() });
        let schema = t(&place);
        for epoch in 1..3 {
            let at = open(&as_user(&place, "least", epoch)).await;
            assert_eq!(at.preflight(std::slice::from_ref(&schema)).await.unwrap(), vec![], "{engine:?}");
            whole(&*at, &[(schema.clone(), &["1\tone\ta", "2\ttwo\ta"])]).await;
            at.drop_retired().await.unwrap();
            let mut to = at.applier().await.unwrap();
            let mut wider = schema.clone();
            wider.columns.push(column("price", "numeric(10,2)", false));
            wider.columns[3].destination_type = "Nullable(Decimal(10, 2))".into();
            change(&mut *to, &schema, 2000, upsert("1|…|c")).await.unwrap();
            change(&mut *to, &schema, 2001, RowChange::Delete { key: row("2") }).await.unwrap();
            if engine != Engine::Null {
                to.truncate(&schema, made(2002)).await.unwrap();
            }
            to.add_column(&wider, 3, Some("1.50")).await.unwrap();
            to.allow_null(&wider, 3).await.unwrap();
            change(&mut *to, &wider, 2003, upsert("3|three|c|7")).await.unwrap();
            if epoch == 1 && engine != Engine::Null {
                // What people give to a table is kept by the mirror's user.
                for sql in [
                    "MODIFY COLUMN name CODEC(ZSTD(3))",
                    "ADD INDEX by_name name TYPE bloom_filter",
                    "ADD CONSTRAINT positive CHECK id > 0",
                    "COMMENT COLUMN kind 'of what'",
                ] {
                    place.run(&format!("ALTER TABLE public.t {sql}")).await;
                }
            }
            assert_eq!(at.progress().await.unwrap().1[0].note.as_deref().filter(|note| !note.contains("price")), None, "{engine:?}");
        }
        let third = open(&as_user(&place, "least", 3)).await;
        third.begin().await.unwrap();
        third.create_shadows(boundary(1), std::slice::from_ref(&schema), &plan(&[1])).await.unwrap();
        third.abandon().await.unwrap();
        third.forget(true).await.unwrap();
        assert_eq!(place.tables().await, Vec::<String>::new(), "{engine:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_right_that_is_missing_is_told_with_the_statement_that_grants_it() {
    let place = OnClickHouse::new().await;
    let found = problems(&place, "reader").await;
    let told: BTreeSet<String> = found
        .iter()
        .flat_map(|message| message.split_once("Run at the destination: ").unwrap().1.split("; "))
        .flat_map(|statement| rights(statement.strip_prefix("GRANT ").unwrap(), "`reader`"))
        .collect();
    let database = format!("`{}`.", place.to.database);
    // The engines of tables are those of the Mirrors, which the Peer does not know.
    let of_tables = |right: &String| right.starts_with("TABLE ENGINE") && !right.ends_with("ON ReplacingMergeTree");
    let expected = documented().into_iter().filter(|right| !of_tables(right)).map(|right| right.replace("shop.", &database));
    assert_eq!(told, expected.collect(), "{found:?}");
}
