//! Divides a load into chunks and partitions. Pure: metadata in, plan out.

use std::ops::Range;

use crate::destination::{Chunk, Plan};

/// What the catalog says of a relation that is read: a table, or one leaf of a partitioned one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// Number of the table that it belongs to.
    pub table: u32,
    /// Its oid at the source.
    pub oid: u32,
    /// Where its rows lie: blocks, or positions of keys, of which the last may be left out. Empty if it can only be read whole.
    pub positions: Range<u64>,
    /// Its size, with values stored out of line.
    pub bytes: u64,
    /// Estimate of its rows.
    pub rows: u64,
}

/// How large things should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// About the bytes of a chunk.
    pub chunk: u64,
    /// About the bytes of a partition, at most.
    pub partition: u64,
    /// Workers that load at the same time.
    pub workers: u16,
}

/// A chunk whose size nobody has given is not smaller than this, but for small tables.
pub const LEAST_CHUNK: u64 = 64 << 20;

/// A partition below this is not worth a pod of its own: it loads in about the time that a pod takes to start.
const WORTH_A_POD: u64 = 128 << 20;

/// What a chunk costs besides its bytes (statements, commits), in bytes that could be copied meanwhile.
const COST_OF_A_CHUNK: u64 = 64 << 10;

/// Chunks of one relation, at most: each is written down before the load begins, and the size of what is no table is the planner's guess.
const MOST_CHUNKS: u64 = 100_000;

/// How long a chunk should take at most where reading is bounded, for it is begun anew as a whole.
const SECONDS_OF_A_CHUNK: u64 = 60;

/// The size of chunks where none is given: the one that serves the destination best, as long as no worker goes without a chunk for it, none takes longer than
/// a minute at `bytes_per_second` of all workers together, and none is more than a partition.
pub fn chunk_size(relations: &[Relation], best: u64, partition: u64, workers: u16, bytes_per_second: Option<u64>) -> u64 {
    let workers = u64::from(workers.max(1));
    let total = relations.iter().map(|r| r.bytes).fold(0, u64::saturating_add);
    let in_time = bytes_per_second.map_or(u64::MAX, |bytes| (bytes / workers).saturating_mul(SECONDS_OF_A_CHUNK));
    (total / workers).min(best).min(in_time).max(LEAST_CHUNK).min(partition)
}

/// Divides `relations` into chunks and bins them into partitions: the largest tables first, the partitions about equal in work.
///
/// Every relation has at least one chunk, an empty one too: rows may come before it is read, and its load has to be marked done.
pub fn plan(relations: &[Relation], sizes: Sizes) -> Plan {
    let mut largest_first: Vec<&Relation> = relations.iter().collect();
    let of_table = |table: u32| relations.iter().filter(|r| r.table == table).map(|r| r.bytes).fold(0, u64::saturating_add);
    // All relations of a table stay together, so that its key can be built as early as possible.
    largest_first.sort_by_cached_key(|r| (std::cmp::Reverse(of_table(r.table)), r.table, std::cmp::Reverse(r.bytes), r.oid));
    let mut chunks: Vec<Chunk> = largest_first.into_iter().flat_map(|relation| divide(relation, sizes.chunk)).collect();
    let partitions = assign(&mut chunks, sizes);
    Plan {
        chunks,
        partitions,
        rows: relations.iter().map(|r| r.rows).fold(0, u64::saturating_add),
        bytes: relations.iter().map(|r| r.bytes).fold(0, u64::saturating_add),
    }
}

/// The chunks of one relation: equal ranges of positions. The first has whatever lies before them, and the last what lies after, because the relation may
/// have grown by the time it is read.
fn divide(relation: &Relation, chunk: u64) -> impl Iterator<Item = Chunk> + '_ {
    let Range { start, end } = relation.positions;
    let length = end.saturating_sub(start);
    let count = relation.bytes.div_ceil(chunk.max(1)).clamp(1, length.clamp(1, MOST_CHUNKS));
    let share = move |whole: u64, part: u64| (u128::from(whole) * u128::from(part) / u128::from(count)) as u64;
    (0..count).map(move |part| Chunk {
        number: 0,
        partition: 0,
        table: relation.table,
        relation: relation.oid,
        first: if part == 0 { 0 } else { start + share(length, part) },
        end: (part + 1 < count).then(|| start + share(length, part + 1)),
        bytes: share(relation.bytes, part + 1) - share(relation.bytes, part),
    })
}

/// Numbers the chunks and gives each its partition; returns how many partitions there are.
fn assign(chunks: &mut [Chunk], sizes: Sizes) -> u32 {
    let work = |chunk: &Chunk| u128::from(chunk.bytes) + u128::from(COST_OF_A_CHUNK);
    let total: u128 = chunks.iter().map(work).sum();
    let even_share = total / u128::from(sizes.workers.max(1));
    let wanted = even_share.max(WORTH_A_POD.into()).min(u128::from(sizes.partition.max(1))).max(1);
    let bins = total.div_ceil(wanted).clamp(1, chunks.len().max(1) as u128);
    let (mut before, mut last_bin, mut partition) = (0u128, None, None::<u32>);
    for (number, chunk) in (0..).zip(chunks.iter_mut()) {
        // By the chunk's middle, so that the bins come out about equal; a bin that a large chunk leaps over is not counted.
        let bin = ((2 * before + work(chunk)) * bins / (2 * total)).min(bins - 1);
        if last_bin != Some(bin) {
            partition = Some(partition.map_or(0, |p| p + 1));
            last_bin = Some(bin);
        }
        before += work(chunk);
        chunk.number = number;
        chunk.partition = partition.unwrap_or_default();
    }
    // Without a chunk there is still a worker to be had, which seals the tables.
    partition.map_or(1, |p| p + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::keys;
    use proptest::prelude::*;

    const SIZES: Sizes = Sizes { chunk: 64 << 20, partition: 1 << 30, workers: 4 };

    fn heap(table: u32, bytes: u64) -> Relation {
        Relation { table, oid: 100 + table, positions: 0..bytes.div_ceil(8192), bytes, rows: bytes / 100 }
    }

    fn relations() -> impl Strategy<Value = Vec<Relation>> {
        let toast = prop_oneof![Just(0u64), 0u64..100_000_000_000];
        let blocks = (0u64..40_000, toast).prop_map(|(blocks, toast)| (0..blocks, blocks * 8192 + toast));
        let some_keys = (any::<i64>(), any::<i64>(), 0u64..100_000_000_000)
            .prop_map(|(a, b, bytes)| (keys::position(a.min(b))..keys::position(a.max(b)), bytes));
        let one = (0u32..20, prop_oneof![blocks, some_keys]);
        proptest::collection::vec(one, 0..60).prop_map(|list| {
            (1..).zip(list).map(|(oid, (table, (positions, bytes)))| Relation { table, oid, positions, bytes, rows: 1 }).collect()
        })
    }

    proptest! {
        #[test]
        fn chunks_tile_every_relation(relations in relations(), chunk in 1u64..1 << 32, partition in 1u64..1 << 40, workers in 0u16..300) {
            let plan = plan(&relations, Sizes { chunk: chunk.max(1 << 20), partition, workers });
            for relation in &relations {
                let mut next = Some(0);
                for chunk in plan.chunks.iter().filter(|c| c.relation == relation.oid) {
                    prop_assert_eq!(Some(chunk.first), next);
                    prop_assert_eq!(chunk.table, relation.table);
                    if let Some(end) = chunk.end {
                        prop_assert!(end > chunk.first && end > relation.positions.start && end <= relation.positions.end);
                    }
                    next = chunk.end;
                }
                prop_assert_eq!(next, None, "the last chunk has no end");
            }
            let bytes: u64 = plan.chunks.iter().map(|c| c.bytes).sum();
            prop_assert_eq!(bytes, plan.bytes);
        }

        #[test]
        fn partitions_are_dense_and_hold_at_least_one_chunk(relations in relations(), partition in 1u64..1 << 40, workers in 1u16..300) {
            let plan = plan(&relations, Sizes { chunk: 64 << 20, partition, workers });
            prop_assert!(plan.partitions as usize <= plan.chunks.len().max(1));
            let mut expected = 0;
            for (number, chunk) in plan.chunks.iter().enumerate() {
                prop_assert_eq!(chunk.number as usize, number);
                prop_assert!(chunk.partition == expected || (number > 0 && chunk.partition == expected + 1));
                expected = chunk.partition;
            }
            prop_assert_eq!(plan.partitions, expected + 1);
        }
    }

    #[test]
    fn ranges_of_keys_are_equal_and_whatever_lies_outside_is_in_the_first_and_the_last() {
        let of = |first, last| Relation { table: 0, oid: 1, positions: keys::position(first)..keys::position(last), bytes: 400, rows: 4 };
        let ends = |relation| -> Vec<_> {
            let plan = plan(&[relation], Sizes { chunk: 100, ..SIZES });
            assert_eq!((plan.chunks.first().map(|c| c.first), plan.chunks.last().map(|c| c.end)), (Some(0), Some(None)));
            plan.chunks.iter().filter_map(|c| c.end).map(keys::key).collect()
        };
        assert_eq!(ends(of(-200, 200)), [-100, 0, 100]);
        assert_eq!(ends(of(1, 3)), [2]);
        assert_eq!(ends(of(7, 7)), [0i64; 0]);
        assert_eq!(ends(of(i64::MIN, i64::MAX)), [i64::MIN / 2 - 1, -1, i64::MAX / 2]);
    }

    #[test]
    fn a_wild_estimate_does_not_become_more_chunks_than_can_be_kept() {
        let wild = Relation { table: 0, oid: 1, positions: 0..u64::MAX, bytes: u64::MAX, rows: u64::MAX };
        let plan = plan(&[wild], SIZES);
        assert_eq!(plan.chunks.len() as u64, MOST_CHUNKS);
        assert_eq!(plan.chunks.iter().map(|c| c.bytes).sum::<u64>(), u64::MAX);
    }

    #[test]
    fn a_plan_without_rows_has_a_partition_all_the_same() {
        let plan = plan(&[], SIZES);
        assert_eq!((plan.partitions, plan.chunks.len()), (1, 0));
    }

    #[test]
    fn thousands_of_tiny_tables_share_few_partitions() {
        let tables: Vec<_> = (0..5000).map(|n| heap(n, 16 << 10)).collect();
        let plan = plan(&tables, SIZES);
        assert_eq!(plan.chunks.len(), 5000);
        assert!(plan.partitions <= SIZES.workers.into(), "{}", plan.partitions);
    }

    #[test]
    fn a_medium_table_occupies_every_worker_and_a_small_one_only_one() {
        assert_eq!(plan(&[heap(0, 1_350_000_000)], SIZES).partitions, 4);
        assert_eq!(plan(&[heap(0, 100 << 20)], SIZES).partitions, 1);
        assert_eq!(plan(&[heap(0, 0), heap(1, 0)], SIZES).partitions, 1);
    }

    #[test]
    fn chunks_without_a_size_are_as_large_as_serves_the_destination_and_leave_work_for_every_worker() {
        const MIB: u64 = 1 << 20;
        let of = |total: u64, best: u64| {
            chunk_size(&[heap(0, total / 4), heap(1, total - total / 4)], best * MIB, SIZES.partition, 4, None) / MIB
        };
        // PostgreSQL, BigQuery, Snowflake.
        assert_eq!([64, 256, 1024].map(|best| of(100 << 30, best)), [64, 256, 1024]);
        assert_eq!([64, 256, 1024].map(|best| of(2 << 30, best)), [64, 256, 512]);
        assert_eq!([64, 256, 1024].map(|best| of(1 << 20, best)), [64, 64, 64]);
        assert_eq!(chunk_size(&[heap(0, 100 << 30)], 1024 * MIB, 16 * MIB, 4, None), 16 * MIB);
        let paced = |mib: u64| chunk_size(&[heap(0, 100 << 30)], 1024 * MIB, 8192 * MIB, 4, Some(mib * MIB)) / MIB;
        assert_eq!([paced(1), paced(10), paced(1000)], [64, 150, 1024], "a minute of a worker's share");
        let all = [heap(0, 2 << 30)];
        let plan = plan(&all, Sizes { chunk: chunk_size(&all, 1024 * MIB, SIZES.partition, 4, None), ..SIZES });
        assert_eq!((plan.chunks.len(), plan.partitions), (4, 4));
    }

    #[test]
    fn a_large_table_fills_partitions_of_the_wanted_size() {
        let plan = plan(&[heap(0, 100 << 30)], SIZES);
        assert!((100..=110).contains(&plan.partitions), "{}", plan.partitions);
        let most = (0..plan.partitions).map(|p| plan.chunks.iter().filter(|c| c.partition == p).map(|c| c.bytes).sum::<u64>()).max();
        assert!(most <= Some((1 << 30) + (64 << 20)));
    }

    #[test]
    fn the_largest_table_comes_first_and_empty_ones_join_the_last_partition() {
        let plan = plan(&[heap(0, 0), heap(1, 10 << 30), heap(2, 20 << 30)], SIZES);
        assert_eq!(plan.chunks[0].table, 2);
        let empty = plan.chunks.iter().find(|c| c.table == 0).unwrap();
        assert_eq!((empty.first, empty.end, empty.partition), (0, None, plan.partitions - 1));
    }
}
