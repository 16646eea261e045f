//! Writing the brief of an epoch from the custom resources.

use crate::{
    api::{
        Mirror, MirrorResync, MirrorSpec, MirrorStatus, Peer,
        condition::{self, Verdict},
        mirror::{Mode, Sequences, Snapshot, SoftDelete, Table},
        peer::Role,
        quantity::Span,
        resync::{Carry, Handover, SnapshotOverrides, Verification},
    },
    brief::{Brief, DestinationPeer},
    name,
    peer::{self, connection},
    table::TableName,
    workload::PORT,
};

/// The brief for `epoch`. Without a resync (nobody asked for one) the defaults of a MirrorResync are taken.
/// `live` is the brief of the live epoch, where there is one: tables that the resync does not list stay as that has them.
/// The error says in words what is wrong and what cures it.
pub fn brief(
    mirror: &Mirror,
    resync: Option<&MirrorResync>,
    epoch: u32,
    source: Option<&Peer>,
    destination: Option<&Peer>,
    live: Option<&Brief>,
) -> Result<Brief, String> {
    validate(mirror)?;
    let spec = &mirror.spec;
    let source = known(source, &spec.source.peer, Role::Source, connection)?;
    let destination = known(destination, &spec.destination.peer, Role::Destination, peer::destination)?;
    if spec.sequences == Sequences::Sync && !matches!(destination, DestinationPeer::Postgres(_)) {
        return Err(format!("Peer {:?} has no sequences; set sequences to Ignore.", spec.destination.peer));
    }
    let Wanted { tables, soft_delete, synced_at_column } = wanted(spec, &destination);
    let namespace = mirror.metadata.namespace.clone().unwrap_or_default();
    let mirror_name = mirror.metadata.name.clone().unwrap_or_default();
    let defaults: crate::api::MirrorResyncSpec =
        serde_json::from_value(serde_json::json!({ "mirror": mirror_name })).map_err(|e| format!("defaults of a MirrorResync: {e}"))?;
    let wanted = resync.map_or(&defaults, |r| &r.spec);
    let previous_epoch = mirror.status.as_ref().map_or(0, |s| s.live_epoch);
    let (tables, kept) = match wanted.tables.as_slice() {
        [] => (tables, vec![]),
        only => some(only, tables, live, spec, mirror)?,
    };
    distinct(&tables)?;
    let handover = handover(wanted.handover, mirror)?;
    let load = loads(spec, previous_epoch, &tables)?;
    let millis = |span: &Span| u64::try_from(span.get().as_millis()).unwrap_or(u64::MAX);
    Ok(Brief {
        pipeline_url: format!("http://{}.{namespace}.svc:{PORT}", name::pipeline(&mirror_name, epoch)),
        namespace,
        mirror: mirror_name,
        mirror_uid: mirror.metadata.uid.clone().unwrap_or_default(),
        epoch,
        previous_epoch,
        resync: resync.and_then(|r| r.metadata.name.clone()).unwrap_or_default(),
        resync_uid: resync.and_then(|r| r.metadata.uid.clone()).unwrap_or_default(),
        source,
        destination,
        publication: spec.source.publication.clone(),
        own_slot: spec.source.slot.clone(),
        tables,
        kept,
        soft_delete,
        synced_at_column,
        mode: spec.mode,
        load,
        handover,
        sequences: spec.sequences,
        snapshot: snapshot(&spec.snapshot, wanted.snapshot.as_ref()),
        replication: spec.replication.clone(),
        pods: spec.pods.clone(),
        carry: if load { wanted.carry.clone() } else { Carry { soft_deleted: false, missing: false } },
        verification: if load { wanted.verification } else { Verification::None },
        old_snapshot_wait_millis: millis(&wanted.swap.old_snapshot_wait),
        on_old_snapshot: wanted.swap.on_old_snapshot,
        keep_old_millis: millis(&wanted.keep_old),
    })
}

/// Whether tables are loaded rather than begin empty. A resync that loaded nothing would take every row for one that the source has lost.
fn loads(spec: &MirrorSpec, previous_epoch: u32, tables: &[Table]) -> Result<bool, String> {
    let load = spec.initial_load || previous_epoch > 0;
    match tables.iter().find(|table| !load && table.is_adopted()) {
        Some(Table { source, .. }) => {
            Err(format!("Table {source} is adopted with its rows, which would be gone if it began empty: set initialLoad to true."))
        }
        None => Ok(load),
    }
}

/// How the stream passes to this epoch. Where nothing is streamed there is nothing to hand over.
fn handover(wanted: Handover, mirror: &Mirror) -> Result<Handover, String> {
    let streams = mirror.spec.mode == Mode::Continuous && mirror.status.as_ref().is_some_and(|s| s.live_epoch > 0 && !s.stream_dropped);
    match wanted {
        Handover::Live if streams && mirror.spec.source.slot.is_some() => {
            Err("A live handover needs a slot for each of two epochs, and source.slot names one for all: set handover to DropFirst.".into())
        }
        Handover::Live if streams => Ok(Handover::Live),
        _ => Ok(Handover::DropFirst),
    }
}

/// The tables of an epoch that rebuilds only some of them, as the Mirror has them now, and the numbers of the others, which stay as the live epoch has them.
fn some(
    only: &[String],
    tables: Vec<Table>,
    live: Option<&Brief>,
    spec: &MirrorSpec,
    mirror: &Mirror,
) -> Result<(Vec<Table>, Vec<u32>), String> {
    let all = "Apply a MirrorResync without tables, which rebuilds all of them.";
    let lost = |s: &MirrorStatus| {
        s.stream_dropped || condition::get(&s.conditions, "SlotHealthy").is_some_and(|c| c.status == Verdict::False.as_str())
    };
    let Some(live) = live.filter(|_| spec.mode == Mode::Continuous && !mirror.status.as_ref().is_some_and(lost)) else {
        return Err(format!("Only some tables can be rebuilt while the others are streamed, and this Mirror does not stream. {all}"));
    };
    if !same_settings(live, spec) {
        return Err(format!("The Mirror's settings were changed since its tables were made, which concerns all of them. {all}"));
    }
    let mut made = live.tables.clone();
    let mut rebuilt = vec![];
    for source in only {
        let Some(table) = tables.iter().find(|table| table.source == *source) else {
            return Err(format!("The Mirror has no table {source:?}; add it there, or correct spec.tables in a new MirrorResync."));
        };
        match made.iter().position(|table| table.source == *source) {
            Some(number) => made[number] = table.clone(),
            None => made.push(table.clone()),
        }
        rebuilt.extend(made.iter().position(|table| table.source == *source));
    }
    let kept = (0..made.len()).filter(|number| !rebuilt.contains(number)).map(|number| number as u32).collect();
    Ok((made, kept))
}

/// Whether what concerns all tables of an epoch is as the spec has it.
fn same_settings(brief: &Brief, spec: &MirrorSpec) -> bool {
    let Wanted { soft_delete, synced_at_column, .. } = wanted(spec, &brief.destination);
    brief.soft_delete == soft_delete
        && brief.synced_at_column == synced_at_column
        && brief.publication == spec.source.publication
        && brief.own_slot == spec.source.slot
        && brief.sequences == spec.sequences
        && brief.mode == spec.mode
}

/// The load as the Mirror has it, where its resync does not say otherwise.
fn snapshot(of_mirror: &Snapshot, overrides: Option<&SnapshotOverrides>) -> Snapshot {
    let mut snapshot = of_mirror.clone();
    if let Some(overrides) = overrides {
        snapshot.max_parallel_workers = overrides.max_parallel_workers.unwrap_or(snapshot.max_parallel_workers);
        snapshot.partition_size = overrides.partition_size.clone().unwrap_or(snapshot.partition_size);
        snapshot.chunk_size = overrides.chunk_size.clone().or(snapshot.chunk_size);
        snapshot.max_bytes_per_second = overrides.max_bytes_per_second.clone().or(snapshot.max_bytes_per_second);
        snapshot.resources = overrides.resources.clone().unwrap_or(snapshot.resources);
    }
    snapshot
}

/// What a spec says of the tables at a destination.
struct Wanted {
    tables: Vec<Table>,
    soft_delete: SoftDelete,
    synced_at_column: String,
}

fn wanted(spec: &MirrorSpec, destination: &DestinationPeer) -> Wanted {
    let mut wanted =
        Wanted { tables: spec.tables.clone(), soft_delete: spec.soft_delete.clone(), synced_at_column: spec.synced_at_column.clone() };
    if let DestinationPeer::ClickHouse(at) = destination {
        into_database(&mut wanted.tables, &at.at.database);
        // The names that PeerDB uses there.
        for name in [&mut wanted.soft_delete.column, &mut wanted.synced_at_column] {
            if name.starts_with("_PEERDB_") {
                *name = name.to_lowercase();
            }
        }
    }
    if let DestinationPeer::BigQuery(at) = destination {
        into_database(&mut wanted.tables, &at.at.database);
    }
    if let DestinationPeer::Snowflake(at) = destination {
        into_database(&mut wanted.tables, &at.schema);
        for table in &mut wanted.tables {
            let name = table.destination.as_deref().and_then(TableName::parse);
            table.destination = name.map(|n| quoted(&at.names.stored(&n.schema), &at.names.stored(&n.name))).or(table.destination.take());
        }
        for name in [&mut wanted.soft_delete.column, &mut wanted.synced_at_column] {
            *name = at.names.stored(name);
        }
    }
    wanted
}

/// Whether tables made from `brief` are what `spec` says.
pub fn made_from(brief: &Brief, spec: &MirrorSpec) -> bool {
    // How a table is read makes no other table of it, nor does its place in the list.
    let made = |tables: Vec<Table>| {
        let mut tables: Vec<Table> = tables.into_iter().map(|table| Table { partition_key: None, ..table }).collect();
        tables.sort_by(|a, b| a.source.cmp(&b.source));
        tables
    };
    made(brief.tables.clone()) == made(wanted(spec, &brief.destination).tables) && same_settings(brief, spec)
}

/// What CEL cannot say of a Mirror: comparing all destinations would exceed its cost limit.
pub fn validate(mirror: &Mirror) -> Result<(), String> {
    distinct(&mirror.spec.tables)?;
    for table in &mirror.spec.tables {
        for text in std::iter::once(&table.source).chain(&table.destination) {
            let name = TableName::parse(text).ok_or_else(|| format!("{text:?} is not a table name of the form schema.table."))?;
            for part in [&name.schema, &name.name] {
                if part.len() > name::MAX_NAME {
                    return Err(format!("{part:?} has {} bytes; PostgreSQL allows {} in a name.", part.len(), name::MAX_NAME));
                }
            }
        }
    }
    Ok(())
}

fn distinct(tables: &[Table]) -> Result<(), String> {
    let mut seen = std::collections::BTreeMap::new();
    for table in tables {
        let destination = table.destination.as_ref().unwrap_or(&table.source);
        if let Some(other) = seen.insert(TableName::parse(destination), &table.source) {
            return Err(format!("{other:?} and {:?} have the same destination {destination:?}.", table.source));
        }
    }
    Ok(())
}

/// Tables that name no destination go into this database.
fn into_database(tables: &mut [Table], database: &str) {
    for table in tables {
        if let (None, Some(source)) = (&table.destination, TableName::parse(&table.source)) {
            table.destination = Some(quoted(database, &source.name));
        }
    }
}

/// A table's name as people write it: see [`TableName::parse`].
fn quoted(schema: &str, name: &str) -> String {
    if schema.contains(['.', '"']) { format!("\"{}\".{name}", schema.replace('"', "\"\"")) } else { format!("{schema}.{name}") }
}

fn known<T>(peer: Option<&Peer>, name: &str, role: Role, reach: impl Fn(&Peer, &str) -> Option<T>) -> Result<T, String> {
    let peer = peer.ok_or_else(|| format!("Peer {name:?} does not exist in this namespace; create it."))?;
    if !peer.spec.roles.contains(&role) {
        return Err(format!("Peer {name:?} does not have the role {role:?}; add it to its spec.roles."));
    }
    let side = match role {
        Role::Source => "source",
        Role::Destination => "destination",
    };
    reach(peer, side).ok_or_else(|| format!("Peer {name:?} is of a kind that this version does not know."))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::verify;

    fn object<T: serde::de::DeserializeOwned>(kind: &str, name: &str, spec: serde_json::Value) -> T {
        let api_version = "mirror-operator.io/v1alpha1";
        serde_json::from_value(
            json!({ "apiVersion": api_version, "kind": kind, "metadata": { "name": name, "namespace": "n" }, "spec": spec }),
        )
        .unwrap()
    }

    #[test]
    fn tables_for_clickhouse_go_into_the_peers_database_with_the_names_that_peerdb_uses() {
        let at = json!({ "host": "h", "database": "my.shop", "user": "u" });
        let source: Peer = object("Peer", "a", json!({ "roles": ["Source"], "postgres": at }));
        let destination: Peer = object("Peer", "b", json!({ "roles": ["Destination"], "clickhouse": at }));
        let mirror = |tables| -> Mirror {
            object("Mirror", "m", json!({ "source": { "peer": "a" }, "destination": { "peer": "b" }, "tables": tables }))
        };
        let two = mirror(json!([{ "source": "public.orders" }, { "source": "public.t", "destination": "other.t" }]));
        let made = brief(&two, None, 1, Some(&source), Some(&destination), None).unwrap();
        assert!(made_from(&made, &two.spec), "a mirror is in sync with itself");
        assert!(!made_from(&made, &mirror(json!([{ "source": "public.orders" }])).spec));
        let by_key =
            mirror(json!([{ "source": "public.orders", "partitionKey": "id" }, { "source": "public.t", "destination": "other.t" }]));
        assert!(made_from(&made, &by_key.spec), "how a table is read makes no other table of it");
        let names: Vec<_> = made.tables.iter().map(|t| TableName::parse(t.destination.as_deref().unwrap()).unwrap().to_string()).collect();
        assert_eq!(names, ["my.shop.orders", "other.t"]);
        assert_eq!((made.soft_delete.column.as_str(), made.synced_at_column.as_str()), ("_peerdb_is_deleted", "_peerdb_synced_at"));
        assert!(matches!(&made.destination, DestinationPeer::ClickHouse(peer) if peer.at.port == 8123));
        let same = mirror(json!([{ "source": "a.orders" }, { "source": "b.orders" }]));
        assert!(brief(&same, None, 1, Some(&source), Some(&destination), None).unwrap_err().contains("same destination"));
    }

    #[test]
    fn tables_for_bigquery_go_into_the_peers_dataset_and_its_key_is_mounted() {
        let source: Peer = object("Peer", "a", json!({ "roles": ["Source"], "postgres": { "host": "h", "database": "d", "user": "u" } }));
        let at = json!({ "project": "my-project", "dataset": "shop", "credentialsSecretRef": { "name": "bq", "key": "key.json" } });
        let destination: Peer = object("Peer", "b", json!({ "roles": ["Destination"], "bigquery": at }));
        let mirror: Mirror = object(
            "Mirror",
            "m",
            json!({ "source": { "peer": "a" }, "destination": { "peer": "b" }, "tables": [{ "source": "public.orders" }] }),
        );
        let made = brief(&mirror, None, 1, Some(&source), Some(&destination), None).unwrap();
        assert_eq!((made.tables[0].destination.as_deref(), made.soft_delete.column.as_str()), (Some("shop.orders"), "_PEERDB_IS_DELETED"));
        let DestinationPeer::BigQuery(peer) = &made.destination else { panic!("{:?}", made.destination) };
        assert_eq!(
            (peer.endpoint.as_str(), peer.storage_endpoint.as_str()),
            ("https://bigquery.googleapis.com", "https://bigquerystorage.googleapis.com")
        );
        let key = made.destination.connection().password.as_ref().unwrap();
        assert_eq!((key.secret.as_str(), key.path.to_str()), ("bq", Some("/etc/mirror-operator/destination/password/value")));
    }

    #[test]
    fn a_mirror_without_an_initial_load_begins_empty_and_its_resyncs_load() {
        let at = json!({ "host": "h", "database": "d", "user": "u" });
        let peer = |name: &str, role: &str| -> Peer { object("Peer", name, json!({ "roles": [role], "postgres": at })) };
        let spec = json!({ "source": { "peer": "a" }, "destination": { "peer": "b" }, "tables": [{ "source": "public.t" }] });
        let mut mirror: Mirror = object("Mirror", "m", spec);
        let loads =
            |mirror: &Mirror| brief(mirror, None, 2, Some(&peer("a", "Source")), Some(&peer("b", "Destination")), None).unwrap().load;
        assert!(loads(&mirror));
        mirror.spec.initial_load = false;
        mirror.status = Some(crate::api::MirrorStatus { epoch: 2, ..Default::default() });
        assert!(!loads(&mirror), "also when the first try has failed");
        let made = brief(&mirror, None, 2, Some(&peer("a", "Source")), Some(&peer("b", "Destination")), None).unwrap();
        assert!(!made.carry.missing && !made.carry.soft_deleted, "whatever is there is nothing that the source has lost");
        mirror.status = Some(crate::api::MirrorStatus { epoch: 2, live_epoch: 1, ..Default::default() });
        assert!(loads(&mirror));

        mirror.status = None;
        mirror.spec.tables[0].snowflake = Some(serde_json::from_value(json!({ "adopt": true })).unwrap());
        let refused = brief(&mirror, None, 1, Some(&peer("a", "Source")), Some(&peer("b", "Destination")), None).unwrap_err();
        assert!(refused.contains("set initialLoad to true"), "{refused}");
    }

    #[test]
    fn sequences_are_mirrored_to_postgres_only_and_a_change_of_that_wants_a_resync() {
        let at = json!({ "host": "h", "database": "d", "user": "u" });
        let source: Peer = object("Peer", "a", json!({ "roles": ["Source"], "postgres": at }));
        let to = |kind: &str| -> Peer { object("Peer", "b", json!({ "roles": ["Destination"], kind: at })) };
        let mirror = |sequences| -> Mirror {
            let spec = json!({ "source": { "peer": "a" }, "destination": { "peer": "b" }, "tables": [{ "source": "public.t" }], "sequences": sequences });
            object("Mirror", "m", spec)
        };
        let (with, without) = (mirror("Sync"), mirror("Ignore"));
        let made = brief(&with, None, 1, Some(&source), Some(&to("postgres")), None).unwrap();
        assert!(made_from(&made, &with.spec) && !made_from(&made, &without.spec));
        assert!(brief(&with, None, 1, Some(&source), Some(&to("clickhouse")), None).unwrap_err().contains("has no sequences"));
        assert!(brief(&without, None, 1, Some(&source), Some(&to("clickhouse")), None).is_ok());
    }

    #[test]
    fn a_resync_says_whether_what_it_loads_is_verified_and_checksums_serve_postgres_only() {
        let at = json!({ "host": "h", "database": "d", "user": "u" });
        let source: Peer = object("Peer", "a", json!({ "roles": ["Source"], "postgres": at }));
        let to = |kind: &str| -> Peer { object("Peer", "b", json!({ "roles": ["Destination"], kind: at })) };
        let spec = json!({ "source": { "peer": "a" }, "destination": { "peer": "b" }, "tables": [{ "source": "public.t" }] });
        let mut mirror: Mirror = object("Mirror", "m", spec);
        let made = |mirror: &Mirror, kind: &str, verification: &str| {
            let resync: MirrorResync = object("MirrorResync", "r", json!({ "mirror": "m", "verification": verification }));
            brief(mirror, Some(&resync), 1, Some(&source), Some(&to(kind)), None).unwrap()
        };
        for (kind, verification, served) in [
            ("postgres", "Checksum", true),
            ("postgres", "RowCount", true),
            ("clickhouse", "RowCount", true),
            ("clickhouse", "Checksum", false),
        ] {
            let made = made(&mirror, kind, verification);
            assert!(verify::is_wanted(&made));
            let problem = verify::problem(&made);
            assert_eq!(problem.is_none(), served, "{kind}, {verification}");
            assert!(problem.is_none_or(|p| p.reason == "VerificationUnsupported" && p.message.contains("RowCount")));
        }
        assert!(!verify::is_wanted(&brief(&mirror, None, 1, Some(&source), Some(&to("postgres")), None).unwrap()));
        mirror.spec.initial_load = false;
        assert!(!verify::is_wanted(&made(&mirror, "postgres", "RowCount")), "nothing is loaded");
    }

    #[test]
    fn of_some_tables_a_resync_takes_the_spec_of_now_and_of_the_others_what_the_live_epoch_has() {
        let at = json!({ "host": "h", "database": "d", "user": "u" });
        let peer = |name: &str, role: &str| -> Peer { object("Peer", name, json!({ "roles": [role], "postgres": at })) };
        let (source, destination) = (peer("a", "Source"), peer("b", "Destination"));
        let mirror = |tables: &serde_json::Value, more: serde_json::Value| -> Mirror {
            let mut spec = json!({ "source": { "peer": "a" }, "destination": { "peer": "b" }, "tables": tables });
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let mut mirror: Mirror = object("Mirror", "m", spec);
            mirror.status = Some(crate::api::MirrorStatus { epoch: 2, live_epoch: 1, ..Default::default() });
            mirror
        };
        let of = |mirror: &Mirror, tables: &[&str], live: Option<&Brief>| {
            let resync: MirrorResync = object("MirrorResync", "r", json!({ "mirror": "m", "handover": "Live", "tables": tables }));
            brief(mirror, Some(&resync), 2, Some(&source), Some(&destination), live)
        };
        let before = mirror(&json!([{ "source": "public.a" }, { "source": "public.b" }, { "source": "public.gone" }]), json!({}));
        let live = brief(&before, None, 1, Some(&source), Some(&destination), None).unwrap();
        let excluded = json!(["x"]);
        let changed = json!([{ "source": "public.new" }, { "source": "public.b", "excludeColumns": excluded }, { "source": "public.a", "excludeColumns": excluded }]);
        let now = mirror(&changed, json!({}));
        let made = of(&now, &["public.b", "public.new"], Some(&live)).unwrap();
        let names: Vec<_> = made.tables.iter().map(|t| (t.source.as_str(), t.exclude_columns.len())).collect();
        assert_eq!(names, [("public.a", 0), ("public.b", 1), ("public.gone", 0), ("public.new", 0)]);
        assert_eq!(made.kept, [0, 2]);
        assert!(made.is_live() && !made_from(&made, &now.spec), "public.a is not as the spec has it now");
        let rest = of(&now, &["public.a"], Some(&made)).unwrap();
        assert_eq!(rest.kept, [1, 2, 3]);
        assert!(!made_from(&rest, &now.spec), "public.gone is still there");
        assert!(of(&now, &[], Some(&live)).unwrap().kept.is_empty());

        for (words, outcome) in [
            ("no table \"public.gone\"", of(&now, &["public.gone"], Some(&live))),
            ("does not stream", of(&now, &["public.a"], None)),
            ("concerns all of them", of(&mirror(&changed, json!({ "syncedAtColumn": "x" })), &["public.a"], Some(&live))),
        ] {
            let refused = outcome.unwrap_err();
            assert!(refused.contains(words), "{refused}");
        }
        let mut dropped = now.clone();
        dropped.status.as_mut().unwrap().stream_dropped = true;
        assert!(of(&dropped, &["public.a"], Some(&live)).unwrap_err().contains("without tables"));
    }

    #[test]
    fn names_at_snowflake_follow_one_rule() {
        let source: Peer = object("Peer", "a", json!({ "roles": ["Source"], "postgres": { "host": "h", "database": "d", "user": "u" } }));
        let at = |names: &str| -> Peer {
            let secret = json!({ "name": "s", "key": "k" });
            let at = json!({ "account": "my_org-one", "database": "d.b", "schema": "shop", "user": "mirror", "role": "r", "warehouse": "Big", "privateKeySecretRef": secret, "names": names });
            object("Peer", "b", json!({ "roles": ["Destination"], "snowflake": at }))
        };
        let tables =
            json!([{ "source": "public.orders" }, { "source": "public.Items" }, { "source": "public.t", "destination": "other.t" }]);
        let mirror: Mirror = object("Mirror", "m", json!({ "source": { "peer": "a" }, "destination": { "peer": "b" }, "tables": tables }));
        for (names, expected, database) in
            [("Upper", ["SHOP.ORDERS", "SHOP.Items", "OTHER.T"], "D.B"), ("AsSource", ["shop.orders", "shop.Items", "other.t"], "d.b")]
        {
            let made = brief(&mirror, None, 1, Some(&source), Some(&at(names)), None).unwrap();
            assert!(made_from(&made, &mirror.spec), "a mirror is in sync with itself");
            let tables: Vec<_> =
                made.tables.iter().map(|t| TableName::parse(t.destination.as_deref().unwrap()).unwrap().to_string()).collect();
            assert_eq!(tables, expected);
            assert_eq!(made.soft_delete.column, "_PEERDB_IS_DELETED");
            let DestinationPeer::Snowflake(to) = &made.destination else { panic!() };
            assert_eq!((to.at.database.as_str(), to.at.host.as_str(), to.at.port), (database, "my-org-one.snowflakecomputing.com", 443));
            assert!(to.key_pair && to.at.password.is_some() && to.warehouse.as_deref() == Some("Big"));
        }
        let clash: Mirror = object(
            "Mirror",
            "m",
            json!({ "source": { "peer": "a" }, "destination": { "peer": "b" }, "tables": [{ "source": "public.orders" }, { "source": "public.ORDERS" }] }),
        );
        assert!(brief(&clash, None, 1, Some(&source), Some(&at("Upper")), None).unwrap_err().contains("same destination"));
        assert!(brief(&clash, None, 1, Some(&source), Some(&at("AsSource")), None).is_ok());
    }
}
