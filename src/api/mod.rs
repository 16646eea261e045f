//! The custom resources of `mirror-operator.io/v1alpha1`: Peer, Mirror and MirrorResync. No I/O.

pub mod bigquery;
pub mod clickhouse;
pub mod condition;
pub mod mirror;
pub mod peer;
pub mod pod;
pub mod quantity;
pub mod resync;
pub mod snowflake;

pub use mirror::{Mirror, MirrorSpec, MirrorStatus};
pub use peer::{Peer, PeerSpec, PeerStatus};
pub use resync::{MirrorResync, MirrorResyncSpec, MirrorResyncStatus};

/// The API group of all kinds.
pub const GROUP: &str = "mirror-operator.io";
/// The one served version.
pub const VERSION: &str = "v1alpha1";
