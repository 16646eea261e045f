//! What people hang on a table that has to go, on PostgreSQL: it is named with its cure, and nothing is lost for it.

use mirror_operator::{destination::Error, table::TableSchema};

use crate::{
    fixture::{Fixture, from_loaded, open, table, until_loaded, whole},
    on_postgres::OnPostgres,
};

fn a() -> TableSchema {
    table(0, "a", &["id bigint!", "version text"])
}

fn b() -> TableSchema {
    table(1, "b", &["id bigint!", "version text"])
}

/// A mirror after its first resync: `a_old` and `b_old` are kept.
async fn with_old_tables() -> OnPostgres {
    let place = OnPostgres::new().await;
    for epoch in 1..3 {
        let row = format!("1\t{epoch}");
        whole(&*open(&place.brief(epoch)).await, &[(a(), &[&row]), (b(), &[&row])]).await;
    }
    place
}

const CHILD: &str = "CREATE TABLE public.child (a bigint REFERENCES public.a_old)";
const VIEWS: &str = "CREATE VIEW public.old AS SELECT * FROM public.a_old; CREATE VIEW public.above AS SELECT * FROM public.old;
    CREATE FUNCTION public.first(public.b_old) RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint'; ALTER TABLE public.b_old ADD own bigserial";

fn transient<T: std::fmt::Debug>(outcome: Result<T, Error>) -> String {
    match outcome {
        Err(Error::Transient(words)) => words,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_hangs_on_the_old_tables_is_named_before_a_resync_changes_anything() {
    let place = with_old_tables().await;
    let at = open(&place.brief(3)).await;
    assert_eq!(at.preflight(&[a(), b()]).await.unwrap(), vec![]);
    place.run(CHILD).await;
    place.run(VIEWS).await;
    let found = at.preflight(&[a(), b()]).await.unwrap();
    assert!(found.iter().all(|f| f.reason == "DependentObject" && f.permanent), "{found:?}");
    let all: Vec<&str> = found.iter().map(|f| f.message.as_str()).collect();
    assert_eq!(all.len(), 2, "{all:?}");
    for words in ["constraint child_a_fkey on table public.child and view public.old hangs on public.a_old", "or rename public.a_old"] {
        assert!(all[0].contains(words), "{all:?}");
    }
    assert!(all[1].contains("function public.first(public.b_old) hangs on public.b_old"), "{all:?}");
    // A table that people have renamed is theirs.
    place.run("ALTER TABLE public.a_old RENAME TO a_kept; DROP FUNCTION public.first").await;
    assert_eq!(at.preflight(&[a(), b()]).await.unwrap(), vec![]);
    whole(&*at, &[(a(), &["1\t3"]), (b(), &["1\t3"])]).await;
    at.drop_retired().await.unwrap();
    assert_eq!(place.rows("SELECT version FROM public.above").await, ["1"]);
    assert_eq!(place.tables().await, ["a", "a_kept", "b", "child"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_came_while_a_load_ran_is_waited_for_by_the_swap() {
    let place = with_old_tables().await;
    let at = open(&place.brief(3)).await;
    until_loaded(&*at, &[(a(), &["1\t3"]), (b(), &["1\t3"])]).await;
    place.run("CREATE VIEW public.old AS SELECT * FROM public.a_old").await;
    let words = transient(from_loaded(&*at).await);
    assert!(words.contains("view public.old hangs on public.a_old") && words.contains("tried again"), "{words}");
    assert_eq!(place.rows("SELECT version FROM public.a").await, ["2"]);
    place.run("DROP VIEW public.old").await;
    at.swap().await.unwrap();
    assert_eq!(place.rows("SELECT version FROM public.a").await, ["3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_table_that_cannot_be_dropped_says_why() {
    let place = with_old_tables().await;
    place.run("CREATE VIEW public.old AS SELECT * FROM public.a_old").await;
    let at = open(&place.brief(2)).await;
    let words = transient(at.drop_retired().await);
    assert!(words.contains("view public.old hangs on public.a_old"), "{words}");
    place.run("DROP VIEW public.old").await;
    at.drop_retired().await.unwrap();
    assert_eq!(place.tables().await, ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_goes_says_what_hangs_on_its_tables() {
    let place = with_old_tables().await;
    place.run("CREATE VIEW public.old AS SELECT * FROM public.a_old; CREATE VIEW public.live AS SELECT * FROM public.b").await;
    let at = open(&place.brief(2)).await;
    let words = transient(at.forget(true).await);
    assert!(words.contains("view public.old hangs on public.a_old") && words.contains("view public.live hangs on public.b"), "{words}");
    assert_eq!(place.tables().await, ["a", "a_old", "b", "b_old"]);
    // Live tables that stay are in nobody's way.
    place.run("DROP VIEW public.old").await;
    at.forget(false).await.unwrap();
    assert_eq!(place.tables().await, ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_that_is_given_up_says_what_hangs_on_its_shadows() {
    let place = OnPostgres::new().await;
    let at = open(&place.brief(1)).await;
    until_loaded(&*at, &[(a(), &["1\t1"])]).await;
    place.run("CREATE VIEW public.early AS SELECT * FROM public.a_resync").await;
    let words = transient(at.abandon().await);
    assert!(words.contains("view public.early hangs on public.a_resync"), "{words}");
    place.run("DROP VIEW public.early").await;
    at.abandon().await.unwrap();
    assert_eq!(place.tables().await, Vec::<String>::new());
}
