//! What people have given to a live table, as statements that give it to another: owner, grants, comments, policies and so on.

use tokio_postgres::Transaction;

use super::error::At;
use crate::destination::Error;

/// Statements that can be run while the target bears another name. `$1`: from, `$2`: the target's quoted name, `$3`: the relation whose columns and
/// grants the target has, `$4`: TABLE or VIEW.
const BEFORE: &str = "
    WITH source AS (SELECT * FROM pg_catalog.pg_class WHERE oid = $1),
         both_columns AS (SELECT o.* FROM pg_catalog.pg_attribute o JOIN pg_catalog.pg_attribute w ON w.attname = o.attname
                          WHERE o.attrelid = $1 AND w.attrelid = $3 AND o.attnum > 0 AND NOT o.attisdropped AND NOT w.attisdropped)
    SELECT statement FROM (
        SELECT 1 AS step, format('ALTER TABLE %s OWNER TO %I', $2::text, pg_get_userbyid(relowner)) AS statement
        FROM source WHERE pg_get_userbyid(relowner) <> current_user
      UNION ALL
        SELECT DISTINCT 2, format('REVOKE ALL ON %s FROM %s', $2, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END)
        FROM pg_catalog.pg_class t, aclexplode(t.relacl) a WHERE t.oid = $3 AND a.grantee <> t.relowner
      UNION ALL
        SELECT 3, format('GRANT %s ON %s TO %s%s', a.privilege_type, $2, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
                         CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
        FROM source s, aclexplode(s.relacl) a WHERE a.grantee <> s.relowner
      UNION ALL
        SELECT 4, format('GRANT %s (%I) ON %s TO %s%s', a.privilege_type, c.attname, $2,
                         CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
                         CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
        FROM both_columns c, aclexplode(c.attacl) a
      UNION ALL
        SELECT 5, format('COMMENT ON %s %s IS %s', $4::text, $2, quote_nullable(obj_description($1, 'pg_class')))
      UNION ALL
        SELECT 6, format('COMMENT ON COLUMN %s.%I IS %L', $2, attname, col_description($1, attnum)) FROM both_columns
        WHERE col_description($1, attnum) IS NOT NULL
      UNION ALL
        SELECT 7, format('ALTER TABLE %s SET (%s)', $2, string_agg(format('%s%I = %L', o.toast, o.option_name, o.option_value), ', '))
        FROM (SELECT '' AS toast, x.* FROM source s, pg_options_to_table(s.reloptions) x WHERE s.relkind = 'r'
              UNION ALL SELECT 'toast.', x.* FROM source s JOIN pg_catalog.pg_class t ON t.oid = s.reltoastrelid, pg_options_to_table(t.reloptions) x) o
        HAVING count(*) > 0
      UNION ALL
        SELECT 8, format('ALTER TABLE %s %s ROW LEVEL SECURITY', $2, w.what) FROM source s,
               LATERAL (VALUES ('ENABLE', s.relrowsecurity), ('FORCE', s.relforcerowsecurity)) AS w (what, wanted) WHERE w.wanted
      UNION ALL
        SELECT 9, format('ALTER TABLE %s REPLICA IDENTITY %s', $2, CASE relreplident WHEN 'f' THEN 'FULL' ELSE 'NOTHING' END)
        FROM source WHERE relreplident IN ('f', 'n') AND relkind = 'r'
      UNION ALL
        SELECT 10, format('ALTER TABLE %s ALTER COLUMN %I SET STATISTICS %s', $2, attname, attstattarget) FROM both_columns WHERE attstattarget >= 0 AND $4 = 'TABLE'
    ) x ORDER BY step, statement";

/// Statements for the time when the new table bears the live name, as they speak of that name. `$1`: the old table, `$2`: the live name, quoted,
/// `$3`: the new table.
const AFTER: &str = "
    SELECT statement FROM (
        SELECT 1 AS step, format('CREATE POLICY %I ON %s AS %s FOR %s TO %s%s%s', p.polname, $2::text,
                 CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
                 CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,
                 (SELECT string_agg(CASE r WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(r)) END, ', ') FROM unnest(p.polroles) r),
                 ' USING (' || pg_get_expr(p.polqual, p.polrelid) || ')', ' WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')') AS statement
        FROM pg_catalog.pg_policy p WHERE p.polrelid = $1
      UNION ALL
        SELECT 2, pg_get_triggerdef(t.oid) FROM pg_catalog.pg_trigger t WHERE t.tgrelid = $1 AND NOT t.tgisinternal
      UNION ALL
        SELECT 3, format('ALTER TABLE %s %s TRIGGER %I', $2, CASE t.tgenabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE ALWAYS' END, t.tgname)
        FROM pg_catalog.pg_trigger t WHERE t.tgrelid = $1 AND NOT t.tgisinternal AND t.tgenabled <> 'O'
      UNION ALL
        SELECT 4, format('ALTER STATISTICS %I.%I RENAME TO %I; ', n.nspname, s.stxname, 'mo_old_' || s.oid) || pg_get_statisticsobjdef(s.oid)
        FROM pg_catalog.pg_statistic_ext s JOIN pg_catalog.pg_namespace n ON n.oid = s.stxnamespace WHERE s.stxrelid = $1
          AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute o WHERE o.attrelid = $1 AND o.attnum = ANY (s.stxkeys)
                          AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute w WHERE w.attrelid = $3 AND w.attname = o.attname))
    ) x ORDER BY step, statement";

/// Publications of the destination itself; filters and column lists came with version 15.
const PUBLISHED: &str =
    "SELECT format('ALTER PUBLICATION %I DROP TABLE %s; ALTER PUBLICATION %I ADD TABLE %s', p.pubname, $3::text, p.pubname, $2::text)
    FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid WHERE r.prrelid = $1";
const PUBLISHED_SINCE_15: &str = "SELECT format('ALTER PUBLICATION %I DROP TABLE %s; ALTER PUBLICATION %I ADD TABLE %s%s%s', p.pubname, $3::text, p.pubname, $2::text,
        ' (' || (SELECT string_agg(quote_ident(a.attname), ', ') FROM pg_catalog.pg_attribute a WHERE a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs)) || ')',
        ' WHERE (' || pg_get_expr(r.prqual, r.prrelid) || ')')
    FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid WHERE r.prrelid = $1";

/// Statements that make `to` look like `from`, wherever a name does not matter. `kind` is TABLE or VIEW.
pub(super) async fn before(tx: &Transaction<'_>, from: u32, to: &str, to_oid: u32, kind: &str) -> Result<Vec<String>, Error> {
    let rows = tx.query(BEFORE, &[&from, &to, &to_oid, &kind]).await.at(&format!("reading grants and comments for {to}"))?;
    Ok(rows.iter().map(|r| r.get(0)).collect())
}

/// Statements for the moment after the new table has taken the name `live` and the old one is called `retired`.
pub(super) async fn after(tx: &Transaction<'_>, old: u32, live: &str, new: u32, retired: &str) -> Result<Vec<String>, Error> {
    let doing = format!("reading policies and triggers of {live}");
    let mut statements: Vec<String> = tx.query(AFTER, &[&old, &live, &new]).await.at(&doing)?.iter().map(|r| r.get(0)).collect();
    let version: i32 = tx.query_one("SELECT current_setting('server_version_num')::int", &[]).await.at(&doing)?.get(0);
    let published = if version >= 150_000 { PUBLISHED_SINCE_15 } else { PUBLISHED };
    statements.extend(tx.query(published, &[&old, &live, &retired]).await.at(&doing)?.iter().map(|r| r.get::<_, String>(0)));
    Ok(statements)
}
