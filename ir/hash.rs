//! Maps and sets by hash. Keys come out of files, so seeds are made when the process runs: no file can be made beforehand
//! whose keys all collide. Nothing may depend on the order in which they list what they have.

use std::hash::BuildHasher;
use std::sync::LazyLock;

use foldhash::fast::{FoldHasher, RandomState};

/// A map by hash.
pub type HashMap<K, V> = std::collections::HashMap<K, V, RandomState>;

/// A set by hash.
pub type HashSet<K> = std::collections::HashSet<K, RandomState>;

/// A map by hash that lists its entries in the order in which they came.
pub(crate) type IndexMap<K, V> = indexmap::IndexMap<K, V, RandomState>;

/// A set by hash that lists what it has in the order in which it came.
pub(crate) type IndexSet<K> = indexmap::IndexSet<K, RandomState>;

/// What is hashed into one number.
pub type Fold = FoldHasher<'static>;

/// A hasher; equal data have equal hashes until the process ends.
pub fn hasher() -> Fold {
    static SEEDS: LazyLock<RandomState> = LazyLock::new(RandomState::default);
    SEEDS.build_hasher()
}
