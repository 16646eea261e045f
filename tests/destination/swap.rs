//! What a swap keeps and what readers see of it, on PostgreSQL.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use mirror_operator::{
    api::resync::OnOldSnapshot,
    destination::Error,
    table::{Column, TableSchema},
};

use crate::{
    fixture::{Fixture, from_loaded, open, table, until_loaded, whole},
    on_postgres::OnPostgres,
};

const COLUMNS: &[&str] = &["id bigint!", "version text"];

fn a() -> TableSchema {
    table(0, "a", COLUMNS)
}

fn b() -> TableSchema {
    table(1, "b", COLUMNS)
}

/// A mirror of two tables whose rows say which epoch they are from.
async fn first_epoch() -> OnPostgres {
    let place = OnPostgres::new().await;
    whole(&*open(&place.brief(1)).await, &[(a(), &["1\t1", "2\t1"]), (b(), &["1\t1"])]).await;
    place
}

async fn resync(place: &OnPostgres, epoch: u32) {
    let version = format!("1\t{epoch}");
    whole(&*open(&place.brief(epoch)).await, &[(a(), &[&version, &format!("2\t{epoch}")]), (b(), &[&version])]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_see_old_or_new_tables_and_never_a_mix_nor_an_error() {
    let place = first_epoch().await;
    let end = Arc::new(AtomicBool::new(false));
    let mut readers = Vec::new();
    // Two orders of locking, and each table by itself: a swap that locks in one order meets readers that lock in the other.
    for sql in [
        "SELECT (SELECT min(version) FROM public.a), (SELECT min(version) FROM public.b), (SELECT count(*) FROM public.a), (SELECT count(*) FROM public.b)",
        "SELECT (SELECT min(version) FROM public.b), (SELECT min(version) FROM public.a), (SELECT count(*) FROM public.b), (SELECT count(*) FROM public.a)",
    ] {
        let (client, end) = (place.client().await, end.clone());
        let statement = client.prepare(sql).await.unwrap();
        readers.push(tokio::spawn(async move {
            let (mut longest, mut versions) = (Duration::ZERO, Vec::new());
            while !end.load(Ordering::Relaxed) {
                let before = Instant::now();
                let row = client.query_one(&statement, &[]).await.unwrap();
                longest = longest.max(before.elapsed());
                let (one, other): (String, String) = (row.get(0), row.get(1));
                assert_eq!(one, other);
                assert!(row.get::<_, i64>(2) > 0 && row.get::<_, i64>(3) > 0);
                versions.push(one);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            versions.dedup();
            (longest, versions)
        }));
    }
    for epoch in 2..5 {
        resync(&place, epoch).await;
        open(&place.brief(epoch)).await.drop_retired().await.unwrap();
    }
    end.store(true, Ordering::Relaxed);
    for reader in readers {
        let (longest, versions) = reader.await.unwrap();
        assert_eq!(versions, ["1", "2", "3", "4"]);
        println!("longest read across three swaps: {longest:?}");
        // The target is 50 ms on a machine of one's own; this bound holds on a busy one.
        assert!(longest < Duration::from_millis(400), "{longest:?}");
    }
}

/// Awaits that a query answers true, while the swap goes on.
async fn awaits<T>(place: &OnPostgres, swap: &tokio::task::JoinHandle<T>, query: &str) {
    while place.rows(query).await != ["t"] {
        assert!(!swap.is_finished(), "the swap did not wait");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_reader_is_given_way_and_others_pass_meanwhile() {
    let place = first_epoch().await;
    let at = open(&place.brief(2)).await;
    until_loaded(&*at, &[(a(), &["1\t2"]), (b(), &["1\t2"])]).await;
    at.seal().await.unwrap();
    at.carry().await.unwrap();
    let long = place.client().await;
    long.batch_execute("BEGIN; SELECT * FROM public.b").await.unwrap();
    let swap = tokio::spawn(async move { at.swap().await });
    awaits(&place, &swap, "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'public.b'::regclass)").await;
    assert_eq!(place.rows("SELECT DISTINCT version FROM public.a").await, ["1"]);
    assert!(!swap.is_finished());
    long.batch_execute("COMMIT").await.unwrap();
    assert!(swap.await.unwrap().unwrap().retries > 0);
    assert_eq!(place.rows("SELECT version FROM public.a WHERE id = 1").await, ["2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_with_an_older_snapshot_is_waited_for() {
    let place = first_epoch().await;
    let at = open(&place.brief(2)).await;
    until_loaded(&*at, &[(a(), &["1\t2"]), (b(), &["1\t2"])]).await;
    at.seal().await.unwrap();
    let old = place.client().await;
    old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1").await.unwrap();
    at.carry().await.unwrap();
    let swap = tokio::spawn(async move { at.swap().await });
    let looked = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
                  AND application_name LIKE 'mo %' AND state = 'idle' AND query LIKE '%backend_xmin IS NOT NULL%')";
    awaits(&place, &swap, looked).await;
    let seen: i64 = old.query_one("SELECT count(*) FROM public.b", &[]).await.unwrap().get(0);
    assert_eq!(seen, 1);
    old.batch_execute("COMMIT").await.unwrap();
    swap.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_snapshot_that_outlasts_the_wait_ends_or_passes_the_swap_as_asked() {
    let place = first_epoch().await;
    let old = place.client().await;
    old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1").await.unwrap();
    let mut brief = place.brief(2);
    brief.old_snapshot_wait_millis = 200;
    brief.on_old_snapshot = OnOldSnapshot::Fail;
    let at = open(&brief).await;
    until_loaded(&*at, &[(a(), &["1\t2"])]).await;
    let Err(Error::Permanent(failure)) = from_loaded(&*at).await else { panic!() };
    assert_eq!(failure.reason, "OldSnapshot");
    assert!(failure.message.contains("(reader)"), "{}", failure.message);
    brief.on_old_snapshot = OnOldSnapshot::Proceed;
    open(&brief).await.swap().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_tables_of_the_last_swap_stay_until_the_next_one_is_done() {
    let place = first_epoch().await;
    resync(&place, 2).await;
    let old = async || place.rows("SELECT version FROM public.a_old WHERE id = 1").await;
    let snapshot = place.client().await;
    snapshot.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1").await.unwrap();
    let mut brief = place.brief(3);
    (brief.old_snapshot_wait_millis, brief.on_old_snapshot) = (200, OnOldSnapshot::Fail);
    let at = open(&brief).await;
    until_loaded(&*at, &[(a(), &["1\t3"]), (b(), &["1\t3"])]).await;
    assert!(matches!(from_loaded(&*at).await, Err(Error::Permanent(_))));
    assert_eq!(old().await, ["1"]);
    // Its readers are given way too.
    snapshot.batch_execute("COMMIT; BEGIN; SELECT * FROM public.a_old").await.unwrap();
    let swap = tokio::spawn(async move { at.swap().await });
    until_swapping(&place).await;
    assert_eq!(old().await, ["1"]);
    snapshot.batch_execute("COMMIT").await.unwrap();
    assert!(swap.await.unwrap().unwrap().retries > 0);
    assert_eq!(old().await, ["2"]);
}

/// Waits until the swap asks for the locks that readers feel.
async fn until_swapping(place: &OnPostgres) {
    let asked = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'
                 AND relation IN (to_regclass('public.a'), to_regclass('public.a_old')))";
    crate::support::until("the swap has asked for its locks", async || place.rows(asked).await == ["t"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_changes_while_the_swap_waits_is_kept() {
    for (change, look, expected) in [
        (
            "GRANT SELECT (version) ON public.a TO PUBLIC",
            "SELECT attacl IS NOT NULL FROM pg_attribute WHERE attrelid = 'public.a'::regclass AND attname = 'version'",
            "t",
        ),
        ("GRANT SELECT ON public.v TO PUBLIC", "SELECT relacl IS NOT NULL FROM pg_class WHERE oid = 'public.v'::regclass", "t"),
    ] {
        let place = first_epoch().await;
        place.run("CREATE VIEW public.v AS SELECT id FROM public.a").await;
        let at = open(&place.brief(2)).await;
        until_loaded(&*at, &[(a(), &["1\t2"]), (b(), &["1\t2"])]).await;
        at.seal().await.unwrap();
        at.carry().await.unwrap();
        let long = place.client().await;
        long.batch_execute("BEGIN; SELECT * FROM public.a").await.unwrap();
        let swap = tokio::spawn(async move { at.swap().await });
        until_swapping(&place).await;
        place.run(change).await;
        long.batch_execute("COMMIT").await.unwrap();
        swap.await.unwrap().unwrap();
        assert_eq!(place.rows("SELECT version FROM public.a WHERE id = 1").await, ["2"], "{change}");
        assert_eq!(place.rows(look).await, [expected], "{change}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_people_gave_to_a_table_is_kept() {
    let place = first_epoch().await;
    let role = format!("mo_test_role_{}", place.to.database.replace("mo_test_", ""));
    place
        .run(&format!(
            "CREATE ROLE {role}; CREATE ROLE {role}_reader;
             GRANT SELECT ON public.a TO {role}_reader WITH GRANT OPTION; GRANT UPDATE (version) ON public.a TO PUBLIC;
             COMMENT ON TABLE public.a IS 'it''s \\ ours'; COMMENT ON COLUMN public.a.version IS 'v';
             CREATE INDEX \"by Version\" ON public.a (lower(version)) WHERE id > 0; COMMENT ON INDEX public.\"by Version\" IS 'fast';
             CREATE UNIQUE INDEX a_both ON public.a (version, id); ALTER TABLE public.a ADD CONSTRAINT a_pair UNIQUE (id, version);
             ALTER TABLE public.a ADD CONSTRAINT a_positive CHECK (id > 0);
             ALTER TABLE public.a ENABLE ROW LEVEL SECURITY; CREATE POLICY mine ON public.a FOR SELECT TO {role}_reader USING (id = 1);
             ALTER TABLE public.a SET (fillfactor = 90, toast.autovacuum_enabled = false); ALTER TABLE public.a REPLICA IDENTITY FULL;
             CREATE STATISTICS public.a_stat ON id, version FROM public.a; ALTER TABLE public.a ALTER COLUMN version SET STATISTICS 77;
             CREATE PUBLICATION ours FOR TABLE public.a;
             CREATE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
             CREATE TRIGGER t BEFORE INSERT ON public.a FOR EACH ROW EXECUTE FUNCTION public.f(); ALTER TABLE public.a DISABLE TRIGGER t;
             ALTER TABLE public.a OWNER TO {role}; GRANT CREATE, USAGE ON SCHEMA public TO {role}"
        ))
        .await;
    let looks = "SELECT c.relacl, pg_get_userbyid(c.relowner), c.reloptions, c.relrowsecurity, c.relreplident, obj_description(c.oid), col_description(c.oid, 2),
            (SELECT attacl FROM pg_attribute WHERE attrelid = c.oid AND attnum = 2), (SELECT attstattarget FROM pg_attribute WHERE attrelid = c.oid AND attnum = 2),
            (SELECT string_agg(pg_get_indexdef(indexrelid) || coalesce(obj_description(indexrelid), ''), '; ' ORDER BY indexrelid::regclass::text) FROM pg_index WHERE indrelid = c.oid),
            (SELECT string_agg(conname || pg_get_constraintdef(oid), '; ' ORDER BY conname) FROM pg_constraint WHERE conrelid = c.oid AND contype <> 'n'),
            (SELECT string_agg(concat(polname, polroles, pg_get_expr(polqual, polrelid)), '; ') FROM pg_policy WHERE polrelid = c.oid),
            (SELECT string_agg(pg_get_triggerdef(oid) || tgenabled::text, '; ') FROM pg_trigger WHERE tgrelid = c.oid),
            (SELECT string_agg(pg_get_statisticsobjdef(oid), '; ') FROM pg_statistic_ext WHERE stxrelid = c.oid),
            (SELECT count(*) FROM pg_publication_rel WHERE prrelid = c.oid),
            (SELECT reloptions FROM pg_class t WHERE t.oid = c.reltoastrelid)
        FROM pg_class c WHERE c.oid = 'public.a'::regclass";
    let before = place.rows(looks).await;
    let oid = place.rows("SELECT 'public.a'::regclass::oid").await;
    for epoch in 2..4 {
        resync(&place, epoch).await;
        assert_eq!(place.rows(looks).await, before);
        open(&place.brief(epoch)).await.drop_retired().await.unwrap();
    }
    assert_ne!(place.rows("SELECT 'public.a'::regclass::oid").await, oid);
    place.run(&format!("DROP TABLE public.a; DROP OWNED BY {role}; DROP ROLE {role}, {role}_reader")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_on_a_column_that_is_gone_is_left_out_with_a_note() {
    let place = first_epoch().await;
    place.run("CREATE INDEX by_version ON public.a (version)").await;
    let at = open(&place.brief(2)).await;
    whole(&*at, &[(table(0, "a", &["id bigint!", "other text"]), &["1\tx"])]).await;
    let note = at.progress().await.unwrap().1[0].note.clone().unwrap();
    assert!(note.contains("index \"by_version\" was not kept"), "{note}");
}

#[tokio::test(flavor = "multi_thread")]
async fn views_follow_and_keep_their_grants() {
    let place = first_epoch().await;
    place
        .run(
            "CREATE VIEW public.direct WITH (security_barrier) AS SELECT * FROM public.a; GRANT SELECT ON public.direct TO PUBLIC;
              CREATE VIEW public.above AS SELECT d.version AS x, b.version AS y FROM public.direct d JOIN public.b USING (id);
              COMMENT ON VIEW public.above IS 'two'",
        )
        .await;
    let looks = "SELECT relname, relacl, reloptions, obj_description(oid, 'pg_class') FROM pg_class WHERE relkind = 'v' AND relnamespace = 'public'::regnamespace ORDER BY 1";
    let before = place.rows(looks).await;
    resync(&place, 2).await;
    assert_eq!(place.rows("SELECT * FROM public.above").await, ["2|2"]);
    assert_eq!(place.rows(looks).await, before);
    // A column that both use changes its type: they are made again.
    let at = open(&place.brief(3)).await;
    let changed = table(0, "a", &["id bigint!", "version integer"]);
    assert_eq!(at.preflight(&[changed.clone(), b()]).await.unwrap(), vec![]);
    whole(&*at, &[(changed, &["1\t3"]), (b(), &["1\t3"])]).await;
    assert_eq!(place.rows("SELECT * FROM public.above").await, ["3|3"]);
    assert_eq!(place.rows("SELECT version + 1 FROM public.direct").await, ["4", "3"]);
    assert_eq!(place.rows(looks).await, before);
    at.drop_retired().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_follow_is_named_before_anything_is_changed() {
    let place = first_epoch().await;
    place
        .run("CREATE TABLE public.child (a bigint REFERENCES public.a); CREATE MATERIALIZED VIEW public.summary AS SELECT count(*) FROM public.a;
              CREATE VIEW public.uses AS SELECT version FROM public.b")
        .await;
    let at = open(&place.brief(2)).await;
    let found = at.preflight(&[a(), table(1, "b", &["id bigint!"])]).await.unwrap();
    assert!(found.iter().all(|f| f.reason == "DependentObject" && f.permanent), "{found:?}");
    let all = found.iter().map(|f| f.message.as_str()).collect::<String>();
    for word in ["child", "materialized view public.summary", "view public.uses, which uses column version"] {
        assert!(all.contains(word), "{word}: {all}");
    }
    until_loaded(&*at, &[(a(), &["1\t2"]), (b(), &["1\t2"])]).await;
    let Err(Error::Permanent(failure)) = from_loaded(&*at).await else { panic!() };
    assert_eq!(failure.reason, "DependentObject");
    assert_eq!(place.rows("SELECT DISTINCT version FROM public.a").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_names_a_column_that_is_gone_and_what_cannot_be_carried_past_is_named_before_anything_is_changed() {
    let place = first_epoch().await;
    place
        .run(
            "CREATE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
              CREATE TRIGGER watching BEFORE UPDATE OF version ON public.a FOR EACH ROW EXECUTE FUNCTION public.f();
              CREATE TRIGGER harmless BEFORE UPDATE OF id ON public.a FOR EACH ROW EXECUTE FUNCTION public.f();
              CREATE POLICY hiding ON public.a USING (version <> ''); CREATE POLICY open ON public.a USING (id > 0);
              ALTER TABLE public.b ADD CONSTRAINT later UNIQUE (version) DEFERRABLE",
        )
        .await;
    let version: i32 = place.rows("SHOW server_version_num").await[0].parse().unwrap();
    if version >= 150_000 {
        place.run("CREATE PUBLICATION narrow FOR TABLE public.a (id, version)").await;
    }
    let found = open(&place.brief(2)).await.preflight(&[table(0, "a", &["id bigint!"]), b()]).await.unwrap();
    let mut all: Vec<&str> = found.iter().map(|f| f.message.as_str()).collect();
    all.sort_unstable();
    let mut words =
        vec!["policy hiding on table public.a, which uses column version", "trigger watching on table public.a, which uses column version"];
    if version >= 150_000 {
        words.insert(1, "publication of table public.a in publication narrow, which uses column version");
    }
    words.push("its deferrable constraint later");
    assert_eq!(all.len(), words.len(), "{all:?}");
    for (message, words) in all.iter().zip(words) {
        assert!(message.contains(words) && message.contains("Drop it before the resync"), "{words}: {message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_security_that_hides_rows_from_the_role_is_told_with_its_cure() {
    let place = first_epoch().await;
    let role = format!("mo_test_hidden_{}", place.to.database.replace("mo_test_", ""));
    place
        .run(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT ALL ON DATABASE \"{}\" TO {role}; GRANT ALL ON SCHEMA public, _mirror_operator TO {role};
             GRANT ALL ON ALL TABLES IN SCHEMA public, _mirror_operator TO {role}; ALTER TABLE public.a OWNER TO {role}; ALTER TABLE public.b OWNER TO {role};
             ALTER TABLE public.a ENABLE ROW LEVEL SECURITY; ALTER TABLE public.a FORCE ROW LEVEL SECURITY",
            place.to.database
        ))
        .await;
    let mut brief = place.brief(2);
    let mut to = place.to.clone();
    (to.user, to.password) = (role.clone(), Some(crate::support::secret("x")));
    brief.destination = mirror_operator::brief::DestinationPeer::Postgres(to);
    let found = open(&brief).await.preflight(&[a(), b()]).await.unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].message.contains("public.a") && found[0].message.contains("NO FORCE ROW LEVEL SECURITY"), "{found:?}");
    place.run("ALTER TABLE public.a NO FORCE ROW LEVEL SECURITY").await;
    assert_eq!(open(&brief).await.preflight(&[a(), b()]).await.unwrap(), vec![]);
    place
        .run(&format!(
            "ALTER TABLE public.a OWNER TO CURRENT_USER; ALTER TABLE public.b OWNER TO CURRENT_USER; DROP OWNED BY {role}; DROP ROLE {role}"
        ))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_is_made_again_keeps_its_triggers_and_rules() {
    let place = first_epoch().await;
    place
        .run("CREATE VIEW public.v AS SELECT id, version FROM public.a;
              CREATE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
              CREATE TRIGGER instead INSTEAD OF INSERT ON public.v FOR EACH ROW EXECUTE FUNCTION public.f();
              CREATE RULE silent AS ON DELETE TO public.v DO INSTEAD NOTHING; CREATE RULE later AS ON UPDATE TO public.v DO INSTEAD NOTHING")
        .await;
    let looks = "SELECT (SELECT string_agg(pg_get_triggerdef(oid), ';') FROM pg_trigger WHERE tgrelid = 'public.v'::regclass),
                        (SELECT string_agg(pg_get_ruledef(oid), ';' ORDER BY rulename) FROM pg_rewrite WHERE ev_class = 'public.v'::regclass AND rulename <> '_RETURN')";
    let before = place.rows(looks).await;
    let at = open(&place.brief(2)).await;
    whole(&*at, &[(table(0, "a", &["id bigint!", "version integer"]), &["1\t2"]), (b(), &["1\t2"])]).await;
    assert_eq!(place.rows("SELECT version + 1 FROM public.v WHERE id = 1").await, ["3"]);
    assert_eq!(place.rows(looks).await, before);
    at.drop_retired().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_tables_are_refused() {
    let place = OnPostgres::new().await;
    place.run("CREATE TABLE public.a_resync (x int); CREATE TABLE public.b (x int); INSERT INTO public.b VALUES (1); CREATE VIEW public.c AS SELECT 1").await;
    let at = open(&place.brief(1)).await;
    at.begin().await.unwrap();
    let found = at.preflight(&[a(), b(), table(2, "c", COLUMNS), table(3, "d", &["id bigint!", "x no_such_type"])]).await.unwrap();
    let reasons: Vec<&str> = found.iter().map(|f| f.reason.as_str()).collect();
    assert_eq!(reasons, ["TypeUnsupported", "ForeignShadow", "TableNotOurs", "TableNotOurs"], "{found:?}");
    let refused = at.create_shadows(crate::fixture::boundary(1), &[a()], &crate::fixture::plan(&[1])).await;
    assert!(matches!(&refused, Err(Error::Permanent(f)) if f.reason == "ForeignShadow"), "{refused:?}");
    assert_eq!(place.rows("SELECT count(*) FROM public.b").await, ["1"]);
    // Another mirror's table.
    place.run("DROP TABLE public.a_resync").await;
    whole(&*at, &[(a(), &["1\t1"])]).await;
    let mut other = place.brief(1);
    other.mirror_uid = "0a1b2c3e-0000-4000-8000-000000000002".into();
    let found = open(&other).await.preflight(&[a()]).await.unwrap();
    assert_eq!(found.iter().map(|f| f.reason.as_str()).collect::<Vec<_>>(), ["Conflict"], "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_table_of_nobodys_is_taken_over_with_its_grants() {
    let place = OnPostgres::new().await;
    place.run("CREATE TABLE public.a (id bigint PRIMARY KEY, version text, extra int); GRANT SELECT ON public.a TO PUBLIC").await;
    let at = open(&place.brief(1)).await;
    assert_eq!(at.preflight(&[a()]).await.unwrap(), vec![]);
    whole(&*at, &[(a(), &["1\t1"])]).await;
    assert_eq!(place.rows("SELECT has_table_privilege('public', 'public.a', 'SELECT'), version FROM public.a").await, ["t|1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_names_go_all_the_way() {
    let place = OnPostgres::new().await;
    let long = "ü".repeat(31);
    let names = ["Upper Case", "quo\"te", "it's; DROP", long.as_str(), "x\\y"];
    let schema = |number: u32| {
        let mut schema = table(number, names[number as usize], &["Id \" bigint!", "naïve column text"]);
        schema.destination.schema = "Odd \"schema\"".into();
        schema
    };
    for epoch in 1..4 {
        let at = open(&place.brief(epoch)).await;
        let schemas: Vec<TableSchema> = (0..names.len() as u32).map(schema).collect();
        assert_eq!(at.preflight(&schemas).await.unwrap(), vec![]);
        let row = format!("1\t{epoch}");
        let rows: &[&str] = &[&row];
        whole(&*at, &schemas.into_iter().map(|s| (s, rows)).collect::<Vec<_>>()).await;
        at.drop_retired().await.unwrap();
    }
    for name in names {
        let sql = format!("SELECT \"naïve column\" FROM \"Odd \"\"schema\"\"\".{}", mirror_operator::postgres::ident(name));
        assert_eq!(place.rows(&sql).await, ["3"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_columns_are_computed_and_a_role_without_rights_is_told_the_cure() {
    let place = OnPostgres::new().await;
    let mut schema = a();
    schema.columns.push(Column { generated: Some("id * 2".into()), ..crate::fixture::column("twice", "bigint", false) });
    whole(&*open(&place.brief(1)).await, &[(schema, &["4\t1"])]).await;
    assert_eq!(place.rows("SELECT twice FROM public.a").await, ["8"]);

    let role = format!("mo_test_poor_{}", place.to.database.replace("mo_test_", ""));
    let fresh = OnPostgres::new().await;
    fresh.run(&format!("CREATE ROLE {role} LOGIN PASSWORD 'x'; REVOKE CREATE ON SCHEMA public FROM PUBLIC")).await;
    let mut brief = fresh.brief(1);
    let mut to = fresh.to.clone();
    (to.user, to.password) = (role.clone(), Some(crate::support::secret("x")));
    brief.destination = mirror_operator::brief::DestinationPeer::Postgres(to);
    let at = open(&brief).await;
    let cures: String = at.preflight(&[a()]).await.unwrap().iter().map(|f| f.message.clone() + "\n").collect();
    assert!(cures.contains(&format!("GRANT CREATE ON DATABASE \"{}\" TO \"{role}\"", fresh.to.database)), "{cures}");
    assert!(cures.contains(&format!("GRANT USAGE, CREATE ON SCHEMA \"public\" TO \"{role}\"")), "{cures}");
    assert!(matches!(at.begin().await, Err(Error::Permanent(f)) if f.reason == "PermissionDenied"));
    // What the cure says is enough.
    fresh
        .run(&format!("GRANT CREATE ON DATABASE \"{}\" TO {role}; GRANT USAGE, CREATE ON SCHEMA public TO {role}", fresh.to.database))
        .await;
    assert_eq!(at.preflight(&[a()]).await.unwrap(), vec![]);
    for epoch in 1..3 {
        let mut brief = brief.clone();
        brief.epoch = epoch;
        let at = open(&brief).await;
        whole(&*at, &[(a(), &["1\t1"])]).await;
        at.drop_retired().await.unwrap();
    }
    drop(at);
    fresh.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_table_that_is_still_read_keeps_nobody_waiting() {
    let place = first_epoch().await;
    resync(&place, 2).await;
    let reader = place.client().await;
    reader.batch_execute("BEGIN; SELECT * FROM public.a_old").await.unwrap();
    let at = open(&place.brief(2)).await;
    let dropping = tokio::spawn(async move { at.drop_retired().await });
    let asked = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = to_regclass('public.a_old'))";
    crate::support::until("the drop has asked for its lock", async || place.rows(asked).await == ["t"]).await;
    // The fence, which whoever applies changes passes with every batch, is free again soon.
    let fence = format!(
        "SET lock_timeout = '2s'; BEGIN; SELECT pg_advisory_xact_lock_shared(hashtextextended('mirror-operator fence {}', 0)); COMMIT",
        place.brief(2).mirror_uid
    );
    place.run(&fence).await;
    assert!(!dropping.is_finished());
    reader.batch_execute("COMMIT").await.unwrap();
    dropping.await.unwrap().unwrap();
    assert_eq!(place.rows("SELECT to_regclass('public.a_old') IS NULL").await, ["t"]);
}
