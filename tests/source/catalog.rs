//! Reading tables of every kind.

use mirror_operator::{
    api::{
        mirror::{self, Mode},
        peer::{Role, TlsMode},
    },
    brief::{Brief, DestinationPeer},
    check, destination,
    postgres::Connection,
    source::{Error, catalog, preflight},
    table::Identity,
};
use tokio_postgres::Client;

use crate::fixture::Fixture;

const SCHEMA: &str = r#"
CREATE SCHEMA "Odd ""Schema"".x";
CREATE TYPE public.mood AS ENUM ('sad', 'ok');
CREATE DOMAIN public.short AS varchar(10);
CREATE DOMAIN public.shorter AS public.short CHECK (length(value) < 5);
CREATE TYPE public.pair AS (a int, b text);
CREATE TYPE public.span AS RANGE (subtype = float8);
CREATE TABLE "Odd ""Schema"".x"."Täble 'one' \" (
  "Id Ö" bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, price numeric(10,2) NOT NULL, at timestamptz(3), tags text[], m public.mood, ms public.mood[],
  d public.shorter, ds public.short[], p public.pair, r int4range, own public.span, c regclass, x xml, acl aclitem, bits bit varying(7),
  double numeric GENERATED ALWAYS AS (price * 2) STORED, "a'b""c" char(3));
ALTER TABLE "Odd ""Schema"".x"."Täble 'one' \" ADD gone int;
ALTER TABLE "Odd ""Schema"".x"."Täble 'one' \" DROP gone;
CREATE TABLE events (id int, day date, note text, PRIMARY KEY (day, id) INCLUDE (note)) PARTITION BY RANGE (day);
CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM ('2026-02-01') TO ('2026-04-01') PARTITION BY LIST (id);
CREATE TABLE events_2a PARTITION OF events_2 DEFAULT;
CREATE TABLE by_index (a int, b text NOT NULL);
CREATE UNIQUE INDEX by_index_b ON by_index (b);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_b;
CREATE TABLE whole (a int, b text);
ALTER TABLE whole REPLICA IDENTITY FULL;
CREATE TABLE full_with_key (b text, a int PRIMARY KEY);
ALTER TABLE full_with_key REPLICA IDENTITY FULL;
CREATE TABLE keyless (a int);
CREATE TABLE deferred (a int PRIMARY KEY DEFERRABLE);
CREATE TABLE nothing (a int PRIMARY KEY);
ALTER TABLE nothing REPLICA IDENTITY NOTHING;
CREATE UNLOGGED TABLE fleeting (a int PRIMARY KEY);
CREATE TABLE parent (a int PRIMARY KEY);
CREATE TABLE child () INHERITS (parent);
CREATE VIEW seen AS SELECT * FROM keyless;
CREATE SEQUENCE counting;
"#;

const ODD: &str = r#""Odd ""Schema"".x".Täble 'one' \"#;

async fn read(fixture: &Fixture, brief: &Brief) -> (Vec<mirror_operator::table::TableSchema>, Vec<(String, String)>) {
    let catalog = catalog::read(&fixture.as_pod().await, brief).await.unwrap();
    (catalog.tables, catalog.problems.into_iter().map(|f| (f.reason, f.message)).collect())
}

#[tokio::test]
async fn odd_names_types_and_generated_columns_are_read() {
    let fixture = Fixture::new().await;
    let client = fixture.at_source().await;
    client.batch_execute(SCHEMA).await.unwrap();
    let (tables, problems) = read(&fixture, &fixture.brief(1, &[ODD])).await;
    assert_eq!(problems, []);
    let table = &tables[0];
    assert_eq!((table.source.schema.as_str(), table.source.name.as_str()), ("Odd \"Schema\".x", "Täble 'one' \\"));
    assert_eq!(table.identity, Identity::Key(vec![0]));
    let columns: Vec<_> =
        table.columns.iter().map(|c| (c.source.as_str(), c.source_type.as_str(), c.destination_type.as_str(), c.binary)).collect();
    assert_eq!(
        columns,
        [
            ("Id Ö", "bigint", "bigint", true),
            ("price", "numeric(10,2)", "numeric(10,2)", true),
            ("at", "timestamp(3) with time zone", "timestamp(3) with time zone", true),
            ("tags", "text[]", "text[]", true),
            ("m", "public.mood", "text", true),
            ("ms", "public.mood[]", "text[]", false),
            ("d", "public.shorter", "character varying(10)", true),
            ("ds", "public.short[]", "text[]", false),
            ("p", "public.pair", "text", false),
            ("r", "int4range", "int4range", true),
            ("own", "public.span", "text", false),
            ("c", "regclass", "text", false),
            ("x", "xml", "xml", true),
            ("acl", "aclitem", "text", false),
            ("bits", "bit varying(7)", "bit varying(7)", true),
            ("double", "numeric", "numeric", true),
            ("a'b\"c", "character(3)", "character(3)", true),
        ]
    );
    let domains: Vec<_> = table.columns.iter().filter_map(|c| Some((c.source.as_str(), c.base_type.as_deref()?))).collect();
    assert_eq!(domains, [("d", "character varying(10)")]);
    assert_eq!(table.columns[15].generated.as_deref(), Some("(price * (2)::numeric)"));
    assert!(table.columns[1].not_null && !table.columns[2].not_null);
    drop(client);
    fixture.end().await;
}

#[tokio::test]
async fn keys_are_what_the_source_sends_as_old_key() {
    let fixture = Fixture::new().await;
    let client = fixture.at_source().await;
    client.batch_execute(SCHEMA).await.unwrap();
    let names = ["public.events", "public.by_index", "public.whole", "public.full_with_key"];
    let (tables, problems) = read(&fixture, &fixture.brief(1, &names)).await;
    assert_eq!(problems, []);
    let identities: Vec<_> = tables.iter().map(|t| t.identity.clone()).collect();
    assert_eq!(identities, [Identity::Key(vec![1, 0]), Identity::Key(vec![1]), Identity::FullRow, Identity::Key(vec![1])]);
    let relations = catalog::relations(&fixture.as_pod().await, &tables).await.unwrap();
    assert_eq!(relations.iter().filter(|r| r.table == 0).count(), 2, "the two leaves of events");
    assert_eq!(relations.len(), 5);
    drop(client);
    fixture.end().await;
}

#[tokio::test]
async fn what_cannot_be_mirrored_is_refused_with_the_cure() {
    let fixture = Fixture::new().await;
    let client = fixture.at_source().await;
    client.batch_execute(SCHEMA).await.unwrap();
    let table = [
        ("public.missing", "TableMissing", "no table public.missing"),
        ("none.missing", "TableMissing", "no table none.missing"),
        ("public.keyless", "NoPrimaryKey", r#"ALTER TABLE "public"."keyless" ADD PRIMARY KEY"#),
        ("public.deferred", "NoPrimaryKey", r#"is DEFERRABLE, so updates and deletes do not say which row they mean: make it anew"#),
        ("public.deferred", "NoPrimaryKey", "REPLICA IDENTITY FULL"),
        ("public.nothing", "NoReplicaIdentity", r#"ALTER TABLE "public"."nothing" REPLICA IDENTITY DEFAULT"#),
        ("public.fleeting", "UnsupportedTable", "SET LOGGED"),
        ("public.parent", "UnsupportedTable", "inherit"),
        ("public.seen", "UnsupportedTable", "a view"),
        ("public.counting", "UnsupportedTable", "a sequence"),
    ];
    for (name, reason, words) in table {
        let (tables, problems) = read(&fixture, &fixture.brief(1, &[name])).await;
        assert!(tables.is_empty());
        assert!(problems.iter().any(|(r, message)| r == reason && message.contains(words)), "{name}: {problems:?}");
    }
    for (mode, key, words) in [
        (Mode::Continuous, Some("a"), "a view, which has no change stream"),
        (Mode::SnapshotOnly, None, "a view, which has no blocks to read. Name an integer column to read it by as its partitionKey"),
        (Mode::SnapshotOnly, Some("a"), ""),
    ] {
        let mut brief = Brief { mode, ..fixture.brief(1, &["public.seen"]) };
        brief.tables[0].partition_key = key.map(str::to_string);
        let (tables, problems) = read(&fixture, &brief).await;
        assert_eq!((tables.is_empty(), problems.is_empty()), (!words.is_empty(), words.is_empty()));
        assert!(problems.iter().all(|(_, message)| message.contains(words)), "{problems:?}");
    }
    let (_, problems) = read(&fixture, &fixture.brief(1, &["public.events", "public.events_1", "\"public\".whole", "public.whole"])).await;
    assert_eq!(problems.iter().map(|(r, _)| r.as_str()).collect::<Vec<_>>(), ["TableListedTwice", "TableListedTwice"]);
    drop(client);
    fixture.end().await;
}

#[tokio::test]
async fn wishes_that_cannot_be_met_are_refused_with_the_cure() {
    let fixture = Fixture::new().await;
    let client = fixture.at_source().await;
    client
        .batch_execute(
            "CREATE TABLE t (id int PRIMARY KEY, a int, g int GENERATED ALWAYS AS (a + 1) STORED, note text, \"_PEERDB_SYNCED_AT\" int)",
        )
        .await
        .unwrap();
    let renamed =
        |source: &str, destination: &str| mirror::Column { source: source.into(), destination: Some(destination.into()), type_: None };
    let fine = || {
        let mut brief = fixture.brief(1, &["public.t"]);
        brief.tables[0].exclude_columns = vec!["_PEERDB_SYNCED_AT".into()];
        brief
    };
    assert_eq!(read(&fixture, &fine()).await.1, []);
    type Wish = Box<dyn Fn(&mut Brief)>;
    let table: [(Wish, &str); 13] = [
        (Box::new(|b| b.tables[0].exclude_columns.clear()), "ColumnClash"),
        (Box::new(|b| b.tables[0].exclude_columns.push("id".into())), "KeyColumnExcluded"),
        (Box::new(|b| b.tables[0].exclude_columns.push("nope".into())), "ColumnMissing"),
        (Box::new(|b| b.tables[0].source = "nodot".into()), "BadTableName"),
        (Box::new(|b| b.tables[0].destination = Some("nodot".into())), "BadTableName"),
        (Box::new(|b| b.tables[0].partition_key = Some("nope".into())), "ColumnMissing"),
        (Box::new(|b| b.tables[0].partition_key = Some("_PEERDB_SYNCED_AT".into())), "PartitionKey"),
        (Box::new(|b| b.tables[0].partition_key = Some("note".into())), "PartitionKey"),
        (Box::new(|b| b.tables[0].partition_key = Some("a".into())), ""),
        (Box::new(|b| b.tables[0].exclude_columns.push("a".into())), "GeneratedColumn"),
        (Box::new(move |b| b.tables[0].columns.push(renamed("a", "b"))), "GeneratedColumn"),
        (Box::new(move |b| b.tables[0].columns.push(renamed("id", "a"))), "ColumnClash"),
        (Box::new(move |b| b.tables[0].columns.push(renamed("id", "_PEERDB_IS_DELETED"))), "ColumnClash"),
    ];
    for (wish, reason) in table {
        let mut brief = fine();
        wish(&mut brief);
        let (_, problems) = read(&fixture, &brief).await;
        assert_eq!(problems.iter().map(|(r, _)| r.as_str()).collect::<String>(), reason, "{problems:?}");
    }
    drop(client);
    fixture.end().await;
}

#[tokio::test]
async fn a_role_without_rights_is_told_each_statement() {
    let fixture = Fixture::new().await;
    let client = fixture.at_source().await;
    let role = format!("poor_{}", fixture.source.database);
    client.batch_execute(SCHEMA).await.unwrap();
    client
        .batch_execute(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'x'; REVOKE ALL ON SCHEMA public FROM PUBLIC; ALTER TABLE whole ENABLE ROW LEVEL SECURITY;
             ALTER TABLE events_2a ENABLE ROW LEVEL SECURITY"
        ))
        .await
        .unwrap();
    let mut brief = fixture.brief(1, &["public.whole", "public.events"]);
    brief.source.user = role.clone();
    brief.source.password = Some(crate::support::secret("x"));
    let poor = mirror_operator::postgres::connect(&brief.source, "test").await.unwrap();
    let catalog = catalog::read(&poor, &brief).await.unwrap();
    let all: Vec<String> = catalog.problems.iter().map(|f| f.message.clone()).collect();
    let has = |words: String| assert!(all.iter().any(|m| m.contains(&words)), "{words}: {all:#?}");
    has(format!("GRANT USAGE ON SCHEMA \"public\" TO \"{role}\""));
    has(format!("GRANT SELECT ON \"public\".\"whole\" TO \"{role}\""));
    has(format!("GRANT SELECT ON \"public\".\"events_2a\" TO \"{role}\""));
    has(format!("see every row of public.whole, which has row security: ALTER ROLE \"{role}\" BYPASSRLS"));
    // Partitions are read by their own names.
    has("see every row of public.events_2a".into());
    client
        .batch_execute(&format!("GRANT USAGE ON SCHEMA public TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"))
        .await
        .unwrap();
    // Whoever turns it on later makes the load fail; no row is left out in silence.
    let hidden = poor.query("SELECT * FROM public.whole", &[]).await.unwrap_err();
    assert_eq!(hidden.code().map(|c| c.code()), Some("42501"));
    client.batch_execute("ALTER TABLE whole DISABLE ROW LEVEL SECURITY; ALTER TABLE events_2a DISABLE ROW LEVEL SECURITY").await.unwrap();
    let catalog = catalog::read(&poor, &brief).await.unwrap();
    assert_eq!(catalog.problems, []);
    let problems = preflight::check(&poor, &brief, &catalog.tables).await.unwrap();
    let all: Vec<String> = problems.iter().map(|f| f.message.clone()).collect();
    let has = |words: String| assert!(all.iter().any(|m| m.contains(&words)), "{words}: {all:#?}");
    has(format!("ALTER ROLE \"{role}\" REPLICATION"));
    has(format!("GRANT CREATE ON DATABASE \"{}\" TO \"{role}\"", fixture.source.database));
    has("does not own public.whole, public.events".into());
    has("CREATE PUBLICATION".into());
    drop(poor);
    client.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
    drop(client);
    fixture.end().await;
}

#[tokio::test]
async fn a_table_with_nothing_to_copy_is_refused() {
    let fixture = Fixture::new().await;
    fixture.at_source().await.batch_execute("CREATE TABLE bare (); ALTER TABLE bare REPLICA IDENTITY FULL").await.unwrap();
    let (tables, problems) = read(&fixture, &fixture.brief(1, &["public.bare"])).await;
    let words = "public.bare has no column to copy; list it no more, or exclude fewer columns";
    assert_eq!((tables.len(), problems), (0, vec![("NoColumns".to_string(), words.to_string())]));
    fixture.end().await;
}

#[tokio::test]
async fn a_server_whose_certificate_nobody_knows_is_not_trusted() {
    // Without a CA of one's own the public ones are trusted; none of them has signed the test server's certificate.
    let stranger = Connection { tls: TlsMode::VerifyFull, ca: None, ..crate::support::connection(crate::support::SOURCE) };
    let [problem] = check::run(&DestinationPeer::Postgres(stranger), &[Role::Source]).await.problems.try_into().unwrap();
    assert_eq!((problem.reason.as_str(), problem.permanent), ("TlsFailed", false), "{problem:?}");
}

#[tokio::test]
async fn an_error_that_quotes_a_value_is_told_without_it() {
    let fixture = Fixture::new().await;
    let cause = fixture.as_pod().await.query("SELECT 'secret'::text::int", &[]).await.unwrap_err();
    let failure = Error::query("reading public.t")(cause).failure();
    assert!(failure.permanent && failure.message.contains("reading public.t") && failure.message.contains("22P02"), "{failure:?}");
    assert!(!failure.message.contains("secret"), "{failure:?}");
    fixture.end().await;
}

#[tokio::test]
async fn a_publication_of_the_users_own_must_cover_the_tables() {
    let fixture = Fixture::new().await;
    let client = fixture.at_source().await;
    client.batch_execute(SCHEMA).await.unwrap();
    let mut brief = fixture.brief(1, &["public.events", "public.whole"]);
    brief.publication = Some("Mine".into());
    let (tables, _) = read(&fixture, &brief).await;
    let reasons = async || {
        let problems = preflight::check(&fixture.as_pod().await, &brief, &tables).await.unwrap();
        problems.into_iter().map(|f| f.reason).collect::<Vec<_>>()
    };
    assert_eq!(reasons().await, ["PublicationMissing"]);
    client.batch_execute("CREATE PUBLICATION \"Mine\" FOR TABLE events WITH (publish = 'insert')").await.unwrap();
    assert_eq!(reasons().await, ["PublicationIncomplete"; 3]);
    client
        .batch_execute(
            "DROP PUBLICATION \"Mine\"; CREATE PUBLICATION \"Mine\" FOR TABLE events, whole (a) WITH (publish_via_partition_root = true)",
        )
        .await
        .unwrap();
    assert_eq!(reasons().await, ["PublicationIncomplete"]);
    client
        .batch_execute("DROP PUBLICATION \"Mine\"; CREATE PUBLICATION \"Mine\" FOR ALL TABLES WITH (publish_via_partition_root = true)")
        .await
        .unwrap();
    assert_eq!(reasons().await, Vec::<String>::new());
    drop(client);
    fixture.end().await;
}

/// Each value that a column can hold comes out at the destination as text says it does, whichever way it travelled.
#[tokio::test]
async fn every_type_arrives_as_it_was() {
    let fixture = Fixture::new().await;
    let client = fixture.at_source().await;
    client.batch_execute(SCHEMA).await.unwrap();
    client
        .batch_execute(
            r#"INSERT INTO "Odd ""Schema"".x"."Täble 'one' \" (price, at, tags, m, ms, d, ds, p, r, own, c, x, acl, bits, "a'b""c")
               VALUES (1.5, '2026-01-02 03:04:05.678Z', '{a,"b\"c",NULL}', 'ok', '{sad,ok}', 'abc', '{x,"y,z"}', '(1,"t\\x")', '[1,5)', '[1.5,2)', 'events',
                       '<a/>', 'postgres=r/postgres', B'101', 'x'), (2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
               CREATE TABLE moods (id int PRIMARY KEY, m public.mood, d public.shorter, r int4range, a inet, i interval, j jsonb, n numeric, v tsvector, o oid);
               INSERT INTO moods VALUES (1, 'sad', 'dom', '(,3]', '10.0.0.0/8', '1 mon -2 days 00:00:03.5', '{"a": [1, null]}', 'NaN', 'a:1A b', 42)"#,
        )
        .await
        .unwrap();
    let brief = fixture.brief(1, &[ODD, "public.moods"]);
    let tables = crate::load::whole(&fixture, &brief).await;
    assert!(!tables[0].binary() && tables[1].binary());
    let target = fixture.at_destination().await;
    for (table, columns) in [
        (
            r#""Odd ""Schema"".x"."Täble 'one' \""#,
            r#""Id Ö", price, at, tags, m::text, ms::text, d::text, ds::text, p::text, r, own::text, c::text, x::text, acl::text, bits, double, "a'b""c""#,
        ),
        ("public.moods", "id, m::text, d::text, r, a, i, j, n, v, o"),
    ] {
        let sql = format!("SELECT coalesce(string_agg(t::text, E'\\n' ORDER BY 1), '') FROM (SELECT {columns} FROM {table}) t");
        let text = async |client: &Client| client.query_one(&sql, &[]).await.unwrap().get::<_, String>(0);
        // With an empty search_path, as the pods have it: a regclass is then written with its schema.
        assert_eq!(text(&target).await, text(&fixture.as_pod().await).await);
    }
    destination::open(&brief).await.unwrap().forget(true).await.unwrap();
    drop((client, target));
    fixture.end().await;
}
