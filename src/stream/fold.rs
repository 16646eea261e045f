//! Folds a table's changes, in their order, to at most one change per row. No I/O.
//!
//! What a batch does must not depend on where its borders are: a row that is inserted and deleted within one batch is still written, flagged as
//! deleted, because it would be if a border fell between the two.

use std::collections::{HashMap, hash_map::Entry};

use crate::destination::{Cell, Counts, Position, RowChange};

/// A change as the source made it. Rows have a cell for each copied column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new row.
    Insert(Vec<Cell>),
    /// A changed row. `old` is present if the source sent it: the key may have changed.
    Update {
        /// What it was: the key's cells, or with `full` all.
        old: Option<Vec<Cell>>,
        /// Whether `old` is the whole row.
        full: bool,
        /// The row.
        row: Vec<Cell>,
    },
    /// A deleted row: the key's cells, or all of a table without key.
    Delete(Vec<Cell>),
}

/// The changes of one table since the last [`take`](Self::take).
#[derive(Debug)]
pub struct Fold {
    /// The key's places in a row; empty: whole rows tell rows apart.
    key: Vec<usize>,
    /// Where in `states` the row with a key is.
    places: HashMap<Vec<Cell>, usize>,
    /// In the order in which rows were first touched: so they are written, and new ones lie together.
    states: Vec<State>,
    whole: Vec<RowChange>,
    /// Where the last change of each of `states`, or else of `whole`, was made.
    positions: Vec<Position>,
    /// Where the next change was made.
    position: Position,
    counts: Counts,
}

/// The change does not fit on top of what is folded: have that written, then push this again.
#[derive(Debug, PartialEq, Eq)]
pub struct WriteFirst(pub Change);

/// What becomes of the row with a key.
#[derive(Debug)]
enum State {
    Upsert {
        row: Vec<Cell>,
        deleted: bool,
    },
    Delete {
        key: Vec<Cell>,
    },
    Rekey {
        old_key: Vec<Cell>,
        row: Vec<Cell>,
    },
    /// It is the source of a Rekey.
    Moved,
}

impl Fold {
    /// An empty fold for a table with its key in these places.
    pub fn new(key: &[usize]) -> Self {
        Self {
            key: key.to_vec(),
            places: HashMap::new(),
            states: Vec::new(),
            whole: Vec::new(),
            positions: Vec::new(),
            position: Position::default(),
            counts: Counts::default(),
        }
    }

    /// Changes that are pushed from now on were made at this position.
    pub fn at(&mut self, position: Position) {
        self.position = position;
    }

    /// How many row changes it holds.
    pub fn len(&self) -> usize {
        self.states.len() + self.whole.len()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes everything out: the changes, where the last one that each of them stands for was made, and counts.
    pub fn take(&mut self) -> (Vec<RowChange>, Vec<Position>, Counts) {
        let counts = std::mem::take(&mut self.counts);
        let mut positions = std::mem::take(&mut self.positions);
        let mut changes = std::mem::take(&mut self.whole);
        if self.states.is_empty() {
            return (changes, positions, counts);
        }
        let key = &self.key;
        changes.reserve(self.states.len());
        self.places.clear();
        let mut kept = 0;
        for (place, state) in self.states.drain(..).enumerate() {
            changes.push(match state {
                State::Upsert { row, deleted } => RowChange::Upsert { row, deleted },
                State::Delete { key: cells } => RowChange::Delete { key: spread(key, cells) },
                State::Rekey { old_key, row } => RowChange::Rekey { old_key: spread(key, old_key), row },
                State::Moved => continue,
            });
            positions.swap(kept, place);
            kept += 1;
        }
        positions.truncate(kept);
        (changes, positions, counts)
    }

    /// Adds a change.
    pub fn push(&mut self, change: Change) -> Result<(), WriteFirst> {
        let count = match &change {
            Change::Insert(_) => Counts { inserts: 1, ..Counts::default() },
            Change::Update { .. } => Counts { updates: 1, ..Counts::default() },
            Change::Delete(_) => Counts { deletes: 1, ..Counts::default() },
        };
        if self.key.is_empty() {
            self.push_whole(change);
            self.positions.resize(self.whole.len(), self.position);
        } else {
            self.push_keyed(change)?;
        }
        self.counts.inserts += count.inserts;
        self.counts.updates += count.updates;
        self.counts.deletes += count.deletes;
        Ok(())
    }

    fn push_whole(&mut self, change: Change) {
        match change {
            Change::Insert(row) => self.whole.push(RowChange::Add { row }),
            Change::Delete(row) => self.whole.push(RowChange::Remove { row }),
            Change::Update { old, mut row, .. } => {
                if let Some(old) = old {
                    merge(&mut row, &old);
                    self.whole.push(RowChange::Remove { row: old });
                }
                self.whole.push(RowChange::Add { row });
            }
        }
    }

    fn push_keyed(&mut self, change: Change) -> Result<(), WriteFirst> {
        match change {
            Change::Insert(row) => self.replace(self.key_of(&row), row).map_err(|row| WriteFirst(Change::Insert(row))),
            Change::Delete(old) => self.delete(self.key_of(&old)).map_err(|()| WriteFirst(Change::Delete(old))),
            Change::Update { old: None, full, row } => {
                self.update(self.key_of(&row), row).map_err(|row| WriteFirst(Change::Update { old: None, full, row }))
            }
            Change::Update { old: Some(old), full, mut row } => {
                // A key's value that is stored apart is sent with the old key only.
                for place in &self.key {
                    if row[*place] == Cell::Unchanged {
                        row[*place] = old[*place].clone();
                    }
                }
                if full {
                    merge(&mut row, &old);
                }
                let (from, to) = (self.key_of(&old), self.key_of(&row));
                let done = if from == to { self.update(to, row) } else { self.rekey(from, to, row) };
                done.map_err(|row| WriteFirst(Change::Update { old: Some(old), full, row }))
            }
        }
    }

    fn replace(&mut self, key: Vec<Cell>, row: Vec<Cell>) -> Result<(), Vec<Cell>> {
        match self.state(&key) {
            // What was in the way moved there in this fold, or was moved away from there: the order of the two matters.
            Some(State::Moved | State::Rekey { .. }) => return Err(row),
            None | Some(State::Upsert { .. } | State::Delete { .. }) => {}
        }
        self.set(key, State::Upsert { row, deleted: false });
        Ok(())
    }

    fn delete(&mut self, key: Vec<Cell>) -> Result<(), ()> {
        match self.state_mut(&key) {
            None => {
                self.set(key.clone(), State::Delete { key: key.clone() });
            }
            Some(State::Upsert { deleted, .. }) => *deleted = true,
            Some(State::Delete { .. }) => {}
            Some(State::Rekey { .. } | State::Moved) => return Err(()),
        }
        self.touch(&key);
        Ok(())
    }

    fn update(&mut self, key: Vec<Cell>, mut row: Vec<Cell>) -> Result<(), Vec<Cell>> {
        match self.state_mut(&key) {
            None => {
                self.set(key.clone(), State::Upsert { row, deleted: false });
            }
            Some(State::Upsert { row: before, deleted }) => {
                merge(&mut row, before);
                (*before, *deleted) = (row, false);
            }
            Some(State::Rekey { row: before, .. }) => {
                merge(&mut row, before);
                *before = row;
            }
            // The source does not update a row that is not there; in doubt, one after the other.
            Some(State::Delete { .. } | State::Moved) => return Err(row),
        }
        self.touch(&key);
        Ok(())
    }

    fn rekey(&mut self, from: Vec<Cell>, to: Vec<Cell>, mut row: Vec<Cell>) -> Result<(), Vec<Cell>> {
        if matches!(self.state(&to), Some(State::Moved | State::Rekey { .. })) {
            return Err(row);
        }
        match self.state_mut(&from) {
            Some(State::Upsert { row: before, deleted: deleted @ false }) => {
                if is_partial(before) && is_partial(&row) {
                    return Err(row);
                }
                merge(&mut row, before);
                *deleted = true;
                self.touch(&from);
                self.set(to, State::Upsert { row, deleted: false });
            }
            Some(_) => return Err(row),
            None if is_partial(&row) => {
                self.set(from.clone(), State::Moved);
                self.set(to, State::Rekey { old_key: from, row });
            }
            None => {
                self.set(from.clone(), State::Delete { key: from });
                self.set(to, State::Upsert { row, deleted: false });
            }
        }
        Ok(())
    }

    fn state(&self, key: &[Cell]) -> Option<&State> {
        self.places.get(key).map(|place| &self.states[*place])
    }

    fn state_mut(&mut self, key: &[Cell]) -> Option<&mut State> {
        self.places.get(key).map(|place| &mut self.states[*place])
    }

    fn set(&mut self, key: Vec<Cell>, state: State) {
        match self.places.entry(key) {
            Entry::Occupied(at) => {
                self.states[*at.get()] = state;
                self.positions[*at.get()] = self.position;
            }
            Entry::Vacant(at) => {
                at.insert(self.states.len());
                self.states.push(state);
                self.positions.push(self.position);
            }
        }
    }

    /// The state of this key has changed now.
    fn touch(&mut self, key: &[Cell]) {
        if let Some(place) = self.places.get(key) {
            self.positions[*place] = self.position;
        }
    }

    fn key_of(&self, row: &[Cell]) -> Vec<Cell> {
        self.key.iter().map(|place| row[*place].clone()).collect()
    }
}

fn is_partial(row: &[Cell]) -> bool {
    row.contains(&Cell::Unchanged)
}

/// Fills what was not sent from the row as it was.
fn merge(row: &mut [Cell], before: &[Cell]) {
    for (cell, old) in row.iter_mut().zip(before) {
        if *cell == Cell::Unchanged {
            *cell = old.clone();
        }
    }
}

/// Puts a key's cells in a row's places.
fn spread(places: &[usize], key: Vec<Cell>) -> Vec<Cell> {
    let width = places.iter().max().map_or(0, |last| last + 1);
    let mut row = vec![Cell::Unchanged; width];
    for (place, cell) in places.iter().zip(key) {
        row[*place] = cell;
    }
    row
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::postgres::Lsn;

    fn at(change: u64) -> Position {
        Position { commit: Lsn(1), change: Lsn(change) }
    }

    fn text(value: u32) -> Cell {
        Cell::Text(value.to_string().into())
    }

    /// Key, then two values, as the destination has them; and whether it is flagged.
    type Table = BTreeMap<String, (Vec<Cell>, bool)>;

    fn name(cell: &Cell) -> String {
        format!("{cell:?}")
    }

    /// What the contract of `RowChange` says, one row at a time.
    fn apply(table: &mut Table, change: RowChange, soft: bool) {
        match change {
            RowChange::Upsert { mut row, deleted } => {
                let key = name(&row[0]);
                if deleted && !soft {
                    table.remove(&key);
                    return;
                }
                if is_partial(&row) {
                    merge(&mut row, &table[&key].0);
                }
                table.insert(key, (row, deleted));
            }
            RowChange::Delete { key } => bury(table, &name(&key[0]), soft),
            RowChange::Rekey { old_key, mut row } => {
                let old = name(&old_key[0]);
                merge(&mut row, &table[&old].0);
                bury(table, &old, soft);
                table.insert(name(&row[0]), (row, false));
            }
            RowChange::Add { .. } | RowChange::Remove { .. } => panic!("not for a table with a key"),
        }
    }

    fn bury(table: &mut Table, key: &str, soft: bool) {
        if soft {
            if let Some(row) = table.get_mut(key) {
                row.1 = true;
            }
        } else {
            table.remove(key);
        }
    }

    /// One change as it is, without a fold.
    fn apply_at_once(table: &mut Table, change: Change, soft: bool) {
        let mut fold = Fold::new(&[0]);
        fold.push(change).unwrap();
        fold.take().0.into_iter().for_each(|change| apply(table, change, soft));
    }

    #[derive(Clone, Debug)]
    struct Step {
        key: u32,
        to: u32,
        values: [u32; 2],
        unchanged: [bool; 2],
        kind: u8,
        full: bool,
        border: bool,
    }

    fn step() -> impl Strategy<Value = Step> {
        (0u32..4, 0u32..4, any::<[u32; 2]>(), any::<[bool; 2]>(), 0u8..4, any::<bool>(), prop::bool::weighted(0.2))
            .prop_map(|(key, to, values, unchanged, kind, full, border)| Step { key, to, values, unchanged, kind, full, border })
    }

    /// What the source would send for a step; `None` if the step cannot happen there.
    fn happen(source: &mut BTreeMap<u32, [u32; 2]>, step: &Step) -> Option<Change> {
        let row = |key, values: [u32; 2]| vec![text(key), text(values[0]), text(values[1])];
        match (step.kind, source.get(&step.key).copied()) {
            (0, None) => {
                source.insert(step.key, step.values);
                Some(Change::Insert(row(step.key, step.values)))
            }
            (1, Some(_)) => {
                source.remove(&step.key);
                Some(Change::Delete(vec![text(step.key), Cell::Null, Cell::Null]))
            }
            (2 | 3, Some(before)) => {
                let to = if step.kind == 3 && !source.contains_key(&step.to) { step.to } else { step.key };
                let values = [0, 1].map(|i| if step.unchanged[i] { before[i] } else { step.values[i] });
                source.remove(&step.key);
                source.insert(to, values);
                let sent = |i: usize| if step.unchanged[i] { Cell::Unchanged } else { text(values[i]) };
                let old = match (step.full, to == step.key) {
                    (true, _) => Some(row(step.key, before)),
                    (false, false) => Some(vec![text(step.key), Cell::Null, Cell::Null]),
                    (false, true) => None,
                };
                Some(Change::Update { old, full: step.full, row: vec![text(to), sent(0), sent(1)] })
            }
            _ => None,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn a_fold_does_what_its_changes_do(steps in vec(step(), 0..60), soft: bool) {
            let (mut source, mut naive, mut folded) = (BTreeMap::new(), Table::new(), Table::new());
            let mut fold = Fold::new(&[0]);
            let mut counted = 0;
            let mut write = |fold: &mut Fold| {
                let (changes, positions, counts) = fold.take();
                assert_eq!(changes.len(), positions.len());
                counted += counts.inserts + counts.updates + counts.deletes;
                // The order of rows is open: turn it around at will.
                changes.into_iter().rev().for_each(|change| apply(&mut folded, change, soft));
            };
            let mut made = 0;
            for step in &steps {
                let Some(change) = happen(&mut source, step) else { continue };
                made += 1;
                apply_at_once(&mut naive, change.clone(), soft);
                if let Err(WriteFirst(change)) = fold.push(change) {
                    write(&mut fold);
                    prop_assert_eq!(fold.push(change), Ok(()));
                }
                if step.border {
                    write(&mut fold);
                }
            }
            write(&mut fold);
            prop_assert_eq!(&folded, &naive);
            prop_assert_eq!(counted, made);
            let live: Vec<_> = folded.values().filter(|(_, deleted)| !deleted).map(|(row, _)| row.clone()).collect();
            let expected: Vec<_> = source.iter().map(|(k, v)| vec![text(*k), text(v[0]), text(v[1])]).collect();
            prop_assert_eq!(live, expected);
        }
    }

    #[test]
    fn rows_without_a_key_are_added_and_removed_whole() {
        let mut fold = Fold::new(&[]);
        fold.push(Change::Insert(vec![text(1), text(2)])).unwrap();
        fold.push(Change::Update { old: Some(vec![text(1), text(2)]), full: true, row: vec![text(3), Cell::Unchanged] }).unwrap();
        let (changes, _, counts) = fold.take();
        assert_eq!(
            changes,
            vec![
                RowChange::Add { row: vec![text(1), text(2)] },
                RowChange::Remove { row: vec![text(1), text(2)] },
                RowChange::Add { row: vec![text(3), text(2)] },
            ]
        );
        assert_eq!(counts, Counts { inserts: 1, updates: 1, deletes: 0 });
    }

    #[test]
    fn each_row_bears_the_position_of_its_last_change() {
        let mut fold = Fold::new(&[0]);
        let key = |k: u32| vec![text(k), Cell::Null, Cell::Null];
        let row = |k: u32, v: Cell| vec![text(k), v, text(0)];
        let update = |k, old: Option<u32>, v| Change::Update { old: old.map(key), full: false, row: row(k, v) };
        let changes = [
            Change::Insert(row(1, text(1))),
            Change::Insert(row(2, text(1))),
            update(1, None, text(2)),
            // 5 becomes 6 with a value that was not sent: 5 itself needs no change of its own.
            update(6, Some(5), Cell::Unchanged),
            Change::Delete(key(2)),
            Change::Delete(key(3)),
        ];
        for (position, change) in changes.into_iter().enumerate() {
            fold.at(at(position as u64 + 10));
            fold.push(change).unwrap();
        }
        // What has to wait for a write leaves no trace.
        fold.at(at(99));
        assert!(fold.push(Change::Delete(key(6))).is_err());
        let (changes, positions, _) = fold.take();
        assert_eq!((changes.len(), positions), (4, vec![at(12), at(14), at(13), at(15)]));
    }
}
