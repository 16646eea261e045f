//! Row policies. The mirror's user must see every row: a look-up that misses one loses an update, and the ledger must be read as it was written.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::{
    ClickHouse,
    error::failure,
    ledger::{FACT, MIRROR},
    quote::{ident, literal, qualified},
};
use crate::{
    destination::Error,
    report::Failure,
    table::{TableName, TableSchema},
};

/// A policy that applies to the user.
#[derive(Debug, Deserialize)]
struct Policy {
    short_name: String,
    database: String,
    /// Empty: all tables of the database.
    table: String,
    restrictive: u8,
    filter: String,
}

impl Policy {
    fn applies_to(&self, table: &TableName) -> bool {
        self.database == table.schema && (self.table.is_empty() || self.table == table.name)
    }

    /// Whether it lets every row pass.
    fn passes_all(&self) -> bool {
        matches!(self.filter.as_str(), "1" | "true")
    }
}

/// Policies that hide rows of the mirror's tables, or of its ledger, from the user.
pub(super) async fn check(at: &ClickHouse, tables: &[TableSchema]) -> Result<Vec<Failure>, Error> {
    let mut names: Vec<TableName> = tables.iter().map(|t| t.destination.clone()).collect();
    names.extend([at.ledger_name(MIRROR), at.ledger_name(FACT)]);
    let databases: BTreeSet<String> = names.iter().map(|name| literal(&name.schema)).collect();
    let sql = format!(
        "WITH arrayConcat([currentUser()], enabledRoles()) AS me \
         SELECT short_name, database, table, is_restrictive AS restrictive, ifNull(select_filter, '1') AS filter FROM system.row_policies \
         WHERE database IN ({}) AND if(apply_to_all = 1, NOT hasAny(apply_to_except, me), hasAny(apply_to_list, me)) ORDER BY name",
        databases.into_iter().collect::<Vec<_>>().join(", ")
    );
    let policies: Vec<Policy> = at.client()?.rows(&sql, "looking at row policies").await?;
    Ok(names.iter().filter_map(|name| hidden(name, &policies, &at.to.at.user)).collect())
}

/// Rows pass that any permissive policy lets pass, and every restrictive one.
fn hidden(table: &TableName, policies: &[Policy], user: &str) -> Option<Failure> {
    let (restrictive, permissive): (Vec<&Policy>, Vec<&Policy>) =
        policies.iter().filter(|p| p.applies_to(table)).partition(|p| p.restrictive == 1);
    let on = qualified(&table.schema, &table.name);
    let (policy, cure) = if let Some(policy) = restrictive.iter().find(|p| !p.passes_all()) {
        let of = if policy.table.is_empty() { format!("{}.*", ident(&policy.database)) } else { on };
        (policy, format!("ALTER ROW POLICY {} ON {of} TO ALL EXCEPT {}", ident(&policy.short_name), ident(user)))
    } else if permissive.iter().any(|p| p.passes_all()) {
        return None;
    } else {
        (permissive.first()?, format!("CREATE ROW POLICY all_rows ON {on} USING 1 TO {}", ident(user)))
    };
    let message = format!(
        "row policy {:?} hides rows of {table} from user {user:?}, who writes it and must see all of them. Run at the destination: {cure}",
        policy.short_name
    );
    Some(failure("RowPolicy", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(table: &str, restrictive: u8, filter: &str) -> Policy {
        Policy { short_name: "p".into(), database: "shop".into(), table: table.into(), restrictive, filter: filter.into() }
    }

    #[test]
    fn policies_hide_rows_together() {
        let table = TableName { schema: "shop".into(), name: "t".into() };
        let cure = |policies: &[Policy]| {
            hidden(&table, policies, "mirror").map(|f| f.message.rsplit_once("destination: ").map(|(_, cure)| cure.to_string()).unwrap())
        };
        let all_rows = Some("CREATE ROW POLICY all_rows ON `shop`.`t` USING 1 TO `mirror`".to_string());
        let except = |on: &str| Some(format!("ALTER ROW POLICY `p` ON {on} TO ALL EXCEPT `mirror`"));
        for (policies, expected) in [
            (vec![], None),
            (vec![policy("u", 0, "id < 2")], None),
            (vec![policy("t", 0, "id < 2")], all_rows.clone()),
            (vec![policy("", 0, "id < 2")], all_rows),
            (vec![policy("t", 0, "id < 2"), policy("t", 0, "1")], None),
            (vec![policy("t", 1, "id < 2"), policy("t", 0, "1")], except("`shop`.`t`")),
            (vec![policy("", 1, "id < 2")], except("`shop`.*")),
            (vec![policy("t", 1, "1")], None),
        ] {
            assert_eq!(cure(&policies), expected, "{policies:?}");
        }
    }
}
