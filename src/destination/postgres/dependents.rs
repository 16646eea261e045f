//! What others have built upon a live table: views, which move with its name, and things that cannot, which are found before anything is dropped.

use std::collections::BTreeMap;

use tokio_postgres::{GenericClient, Transaction};

use super::{dress, error::At};
use crate::{destination::Error, postgres::qualified};

/// What a swap of the relation `$1` would leave attached to the old table. `$2`: names of the new table's columns.
const OBSTACLES: &str = "
    WITH row_types AS (SELECT unnest(ARRAY[t.oid, t.typarray]) AS oid FROM pg_catalog.pg_type t WHERE t.typrelid = $1)
    SELECT format('foreign key %I of table %s', conname, conrelid::regclass) FROM pg_catalog.pg_constraint
    WHERE confrelid = $1 AND conrelid <> $1 AND contype = 'f'
  UNION ALL
    SELECT format('its foreign key %I to %s', conname, confrelid::regclass) FROM pg_catalog.pg_constraint WHERE conrelid = $1 AND contype = 'f'
  UNION ALL
    SELECT format('its rule %I', rulename) FROM pg_catalog.pg_rewrite WHERE ev_class = $1
  UNION ALL
    SELECT DISTINCT CASE WHEN r.rulename <> '_RETURN' THEN format('rule %I of %s', r.rulename, r.ev_class::regclass)
                         ELSE format('materialized view %s', r.ev_class::regclass) END
    FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid JOIN pg_catalog.pg_class v ON v.oid = r.ev_class
    WHERE d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = $1 AND r.ev_class <> $1
      AND (r.rulename <> '_RETURN' OR v.relkind = 'm')
  UNION ALL
    SELECT DISTINCT format('view %s, which uses column %I that the new table does not have', r.ev_class::regclass, a.attname)
    FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid
    JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
    WHERE d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = $1 AND r.ev_class <> $1
      AND a.attnum > 0 AND a.attname <> ALL ($2::text[])
  UNION ALL
    SELECT DISTINCT format('%s, which uses column %I that the new table does not have', pg_describe_object(d.classid, d.objid, 0), a.attname)
    FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
    WHERE d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = $1 AND a.attnum > 0 AND a.attname <> ALL ($2::text[])
      AND (d.classid IN ('pg_catalog.pg_trigger'::regclass, 'pg_catalog.pg_publication_rel'::regclass)
           OR d.classid = 'pg_catalog.pg_policy'::regclass AND d.objid IN (SELECT oid FROM pg_catalog.pg_policy WHERE polrelid = $1))
  UNION ALL
    SELECT format('its deferrable constraint %I, which rows cannot be carried past', conname) FROM pg_catalog.pg_constraint
    WHERE conrelid = $1 AND condeferrable AND contype IN ('u', 'x')
  UNION ALL
    SELECT DISTINCT format('function %s', p.oid::regprocedure) FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_proc p ON p.oid = d.objid
    WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND (d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = $1
          OR d.refclassid = 'pg_catalog.pg_type'::regclass AND d.refobjid IN (SELECT oid FROM row_types))
  UNION ALL
    SELECT format('column %I of %s, whose type is the table''s row', a.attname, a.attrelid::regclass) FROM pg_catalog.pg_attribute a
    WHERE a.atttypid IN (SELECT oid FROM row_types WHERE oid <> 0) AND NOT a.attisdropped
  UNION ALL
    SELECT format('policy %I of %s', p.polname, p.polrelid::regclass) FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_policy p ON p.oid = d.objid
    WHERE d.classid = 'pg_catalog.pg_policy'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = $1 AND p.polrelid <> $1
  UNION ALL
    SELECT format('inheritance of %s from %s', inhrelid::regclass, inhparent::regclass) FROM pg_catalog.pg_inherits WHERE inhparent = $1 OR inhrelid = $1";

/// What keeps the relations `$1` from being dropped, each with the relation that it hangs on: what depends on them or on a part of them, such as the
/// row type or the key, and is no part of any (PostgreSQL docs, "pg_depend": such dependencies are `n`, those of parts `a`, `i`, `P` and `S`).
const HANGING: &str = "
    WITH RECURSIVE part (root, class, object) AS (
        SELECT oid, 'pg_catalog.pg_class'::regclass::oid, oid FROM unnest($1::oid[]) AS r (oid)
         UNION
        SELECT p.root, d.classid, d.objid FROM part p JOIN pg_catalog.pg_depend d ON d.refclassid = p.class AND d.refobjid = p.object
        WHERE d.deptype IN ('a', 'i', 'P', 'S'))
    SELECT DISTINCT p.root::regclass::text, CASE WHEN r.rulename = '_RETURN' THEN pg_describe_object('pg_catalog.pg_class'::regclass, r.ev_class, 0)
                                                 ELSE pg_describe_object(d.classid, d.objid, d.objsubid) END
    FROM part p JOIN pg_catalog.pg_depend d ON d.refclassid = p.class AND d.refobjid = p.object
    LEFT JOIN pg_catalog.pg_rewrite r ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND r.oid = d.objid
    WHERE d.deptype = 'n' AND NOT EXISTS (SELECT FROM part o WHERE o.class = d.classid AND o.object = d.objid)
    ORDER BY 1, 2";

/// Views upon `$1`, whatever their depth, and for each whether a column that it uses has another type in the new table: `$2` are the new tables, in
/// the order of `$1`. A view upon a view with such a column is one itself. The depth is the longest way to a table.
const VIEWS: &str = "
    WITH RECURSIVE swapped AS (SELECT * FROM unnest($1::oid[], $2::oid[]) AS s (old, new)),
    uses AS (SELECT DISTINCT d.refobjid AS used, r.ev_class AS view, d.refobjsubid AS number FROM pg_catalog.pg_depend d
             JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid AND r.rulename = '_RETURN' AND r.ev_class <> d.refobjid
             WHERE d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass),
    direct AS (SELECT u.view, bool_or(o.attnum IS NOT NULL AND (o.atttypid, o.atttypmod, o.attcollation)
                        IS DISTINCT FROM (n.atttypid, n.atttypmod, n.attcollation)) AS changed
               FROM swapped s JOIN uses u ON u.used = s.old
               LEFT JOIN pg_catalog.pg_attribute o ON o.attrelid = s.old AND o.attnum = u.number AND o.attnum > 0
               LEFT JOIN pg_catalog.pg_attribute n ON n.attrelid = s.new AND n.attname = o.attname GROUP BY u.view),
    tree AS (SELECT view, 1 AS depth, changed FROM direct
             UNION SELECT u.view, t.depth + 1, t.changed FROM tree t JOIN uses u ON u.used = t.view)
    SELECT v.oid, n.nspname, v.relname, pg_get_userbyid(v.relowner), pg_get_viewdef(v.oid), max(t.depth), bool_or(t.changed),
           (SELECT string_agg(format('%I = %L', option_name, option_value), ', ') FROM pg_options_to_table(v.reloptions))
    FROM tree t JOIN pg_catalog.pg_class v ON v.oid = t.view JOIN pg_catalog.pg_namespace n ON n.oid = v.relnamespace
    WHERE t.changed OR t.view IN (SELECT view FROM direct) GROUP BY v.oid, n.nspname ORDER BY max(t.depth) DESC, v.oid";

/// Words for whatever hangs on the table and cannot move with its name. `columns` are those of the new table.
pub(super) async fn obstacles(client: &impl GenericClient, live: u32, columns: &[String]) -> Result<Vec<String>, Error> {
    let rows = client.query(OBSTACLES, &[&live, &columns]).await.at("looking for dependent objects")?;
    Ok(rows.iter().map(|r| r.get(0)).collect())
}

/// Words for whatever keeps these relations from being dropped, with the cure; a sentence for each relation.
pub(super) async fn hanging(client: &impl GenericClient, relations: &[u32]) -> Result<Vec<String>, Error> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in client.query(HANGING, &[&relations]).await.at("looking for dependent objects")? {
        found.entry(row.get(0)).or_default().push(row.get(1));
    }
    let cured = |(table, what): (String, Vec<String>)| {
        format!("{} hangs on {table}, which cannot be dropped: drop it, or rename {table}, which then stays", what.join(" and "))
    };
    Ok(found.into_iter().map(cured).collect())
}

/// How the views upon the swapped tables come to the new ones.
#[derive(Default)]
pub(super) struct Views {
    /// Statements that lock the views and change nothing, in the order in which readers lock: outermost first.
    pub(super) locks: Vec<String>,
    /// Before the tables' names change.
    pub(super) before: Vec<String>,
    /// After.
    pub(super) after: Vec<String>,
}

/// Plans it. Views keep their identity where the types allow; the others are dropped and made again, with owner, grants and comments.
pub(super) async fn views(tx: &Transaction<'_>, old: &[u32], new: &[u32]) -> Result<Views, Error> {
    let mut views = Views::default();
    let mut dropped = Vec::new();
    for row in tx.query(VIEWS, &[&old, &new]).await.at("reading views")? {
        let (oid, name): (u32, String) = (row.get(0), qualified(row.get(1), row.get(2)));
        let (owner, definition, changed): (&str, &str, bool) = (row.get(3), row.get(4), row.get(6));
        let options = row.get::<_, Option<&str>>(7).map(|o| format!(" WITH ({o})")).unwrap_or_default();
        views.locks.push(format!("ALTER TABLE {name} OWNER TO {}", crate::postgres::ident(owner)));
        // The list comes outermost first; what is made again begins with the innermost.
        let mut made = Vec::new();
        if changed {
            dropped.push(name.clone());
            made.push(format!("CREATE VIEW {name}{options} AS {definition}"));
            made.extend(dress::before(tx, oid, &name, oid, "VIEW").await?);
            made.extend(dress::after(tx, oid, &name, oid, &name).await?);
            made.extend(rules(tx, oid).await?);
        } else {
            made.push(format!("CREATE OR REPLACE VIEW {name}{options} AS {definition}"));
        }
        made.append(&mut views.after);
        views.after = made;
    }
    if !dropped.is_empty() {
        views.before.push(format!("DROP VIEW {}", dropped.join(", ")));
    }
    Ok(views)
}

/// The statements that make a view's rules again, besides the one that makes it a view.
async fn rules(tx: &Transaction<'_>, view: u32) -> Result<Vec<String>, Error> {
    let sql =
        "SELECT rtrim(pg_get_ruledef(oid), ';') FROM pg_catalog.pg_rewrite WHERE ev_class = $1 AND rulename <> '_RETURN' ORDER BY rulename";
    Ok(tx.query(sql, &[&view]).await.at("reading rules")?.iter().map(|r| r.get(0)).collect())
}
