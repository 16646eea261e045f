//! Names derived from a mirror and its epoch, so that nothing is ever guessed or searched for.

use sha2::{Digest, Sha256};

/// PostgreSQL's limit of a name, in bytes (PostgreSQL docs, "Identifiers and Key Words": NAMEDATALEN - 1).
pub const MAX_NAME: usize = 63;

/// The first eight hex digits of an object's UID.
pub fn short_uid(uid: &str) -> &str {
    uid.split('-').next().unwrap_or(uid)
}

/// What all slots and publications of a mirror begin with, whatever the epoch: `mo_<mirror>_<short uid>_e`.
pub fn slot_prefix(mirror: &str, uid: &str) -> String {
    let plain: String = mirror.chars().map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '_' }).take(36).collect();
    format!("mo_{plain}_{}_e", short_uid(uid))
}

/// The slot and the publication of one epoch. Slot names allow lower case letters, digits and underscores only (PostgreSQL docs, "Replication Slots").
pub fn slot(mirror: &str, uid: &str, epoch: u32) -> String {
    format!("{}{epoch}", slot_prefix(mirror, uid))
}

/// The epoch of a slot or publication of this mirror; `None` if it is somebody else's.
pub fn epoch_of_slot(mirror: &str, uid: &str, slot: &str) -> Option<u32> {
    slot.strip_prefix(&slot_prefix(mirror, uid))?.parse().ok()
}

/// The shadow of a table: `<table>_resync`. See [`suffixed`] for names that would be too long.
pub fn shadow(table: &str) -> String {
    suffixed(table, "_resync")
}

/// What the old table is called between the swap and its end: `<table>_old`.
pub fn retired(table: &str) -> String {
    suffixed(table, "_old")
}

/// `name` with `suffix`. Where that is longer than a name may be, the name is cut at a character's border and six hex digits of the whole name's
/// SHA-256 keep two long names apart: `<start>~1a2b3c_resync`.
pub fn suffixed(name: &str, suffix: &str) -> String {
    if name.len() + suffix.len() <= MAX_NAME {
        return format!("{name}{suffix}");
    }
    let digest = Sha256::digest(name.as_bytes());
    let mark = format!("~{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2]);
    let mut end = MAX_NAME - suffix.len() - mark.len();
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{mark}{suffix}", &name[..end])
}

/// The workloads of an epoch: StatefulSet, Service and ConfigMap.
pub fn pipeline(mirror: &str, epoch: u32) -> String {
    format!("{mirror}-e{epoch}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UID: &str = "0a1b2c3d-0000-4000-8000-000000000000";

    proptest! {
        #[test]
        fn suffixed_names_fit_and_stay_apart(a in "\\PC{1,63}", b in "\\PC{1,63}") {
            prop_assume!(a.len() <= MAX_NAME && b.len() <= MAX_NAME);
            prop_assert!(shadow(&a).len() <= MAX_NAME);
            prop_assert!(shadow(&a).ends_with("_resync"));
            if a != b { prop_assert_ne!(shadow(&a), shadow(&b)); }
        }

        #[test]
        fn slot_names_are_legal_and_tell_their_epoch(mirror in "[a-z0-9]([a-z0-9.-]{0,50}[a-z0-9])?", epoch: u32) {
            let slot = slot(&mirror, UID, epoch);
            prop_assert!(slot.len() <= MAX_NAME);
            prop_assert!(slot.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_'));
            prop_assert_eq!(epoch_of_slot(&mirror, UID, &slot), Some(epoch));
        }
    }

    #[test]
    fn a_table_of_sixty_bytes_still_has_a_shadow() {
        let name = "x".repeat(60);
        assert_eq!(shadow(&name).len(), MAX_NAME);
        assert_eq!(shadow("orders"), "orders_resync");
    }
}
