//! The block of a memory pattern: where ONNX Runtime puts the values of a run that it has seen before.
//!
//! The first run with given input shapes writes down what is allocated and freed, and when. Every allocation, rounded
//! up to 256 bytes, is given the smallest gap between the values that are there then in which it fits, the lowest of
//! equals, the space up to the largest end so far included; otherwise it goes behind the last value. Later runs
//! allocate one block up to the largest end (`MemPatternPlanner` in `core/framework/mem_pattern_planner.h`,
//! `ExecutionFrame` in `core/framework/execution_frame.cc`).

use std::collections::{BTreeMap, BTreeSet};

/// Alignment of values within the block, in bytes (`kAllocAlignment`).
const ALIGNMENT: u64 = 256;

/// A block that grows while values come and go.
#[derive(Debug, Default)]
pub(super) struct Block {
    bytes: u64,
    /// Gaps below `bytes` by offset, and the same by length.
    gaps: BTreeMap<u64, u64>,
    by_length: BTreeSet<(u64, u64)>,
}

/// A place in the block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    offset: u64,
    bytes: u64,
}

impl Block {
    /// Bytes from the start to the largest end so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Finds a place for this many bytes.
    pub fn place(&mut self, bytes: u64) -> Place {
        let bytes = bytes.div_ceil(ALIGNMENT).saturating_mul(ALIGNMENT);
        if bytes == 0 {
            return Place { offset: 0, bytes };
        }
        if let Some(&(length, offset)) = self.by_length.range((bytes, 0)..).next() {
            self.remove(offset, length);
            self.insert(offset.saturating_add(bytes), length - bytes);
            return Place { offset, bytes };
        }
        // Behind the last value, where a gap may end the block.
        let offset = match self.gaps.last_key_value() {
            Some((&offset, &length)) if offset.saturating_add(length) == self.bytes => {
                self.remove(offset, length);
                offset
            }
            _ => self.bytes,
        };
        self.bytes = offset.saturating_add(bytes);
        Place { offset, bytes }
    }

    /// Gives a place back.
    pub fn free(&mut self, place: Place) {
        let Place { mut offset, bytes: mut length } = place;
        if length == 0 {
            return;
        }
        if let Some((&before, &bytes)) = self.gaps.range(..offset).next_back()
            && before.saturating_add(bytes) == offset
        {
            self.remove(before, bytes);
            (offset, length) = (before, length.saturating_add(bytes));
        }
        if let Some(&bytes) = self.gaps.get(&offset.saturating_add(length)) {
            self.remove(offset.saturating_add(length), bytes);
            length = length.saturating_add(bytes);
        }
        self.insert(offset, length);
    }

    fn insert(&mut self, offset: u64, length: u64) {
        if length > 0 {
            self.gaps.insert(offset, length);
            self.by_length.insert((length, offset));
        }
    }

    fn remove(&mut self, offset: u64, length: u64) {
        self.gaps.remove(&offset);
        self.by_length.remove(&(length, offset));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_rounded_up_and_stand_one_behind_the_other() {
        let mut block = Block::default();
        assert_eq!(block.place(1), Place { offset: 0, bytes: 256 });
        assert_eq!(block.place(257), Place { offset: 256, bytes: 512 });
        assert_eq!(block.place(0).bytes, 0);
        assert_eq!(block.bytes(), 768);
    }

    #[test]
    fn the_smallest_gap_is_taken_even_where_the_block_could_end() {
        let mut block = Block::default();
        let a = block.place(1024);
        let _wall = block.place(256);
        let b = block.place(512);
        block.free(a);
        block.free(b);
        assert_eq!(block.place(512).offset, 1280, "the space at the end fits best");
        assert_eq!(block.place(768).offset, 0);
        assert_eq!(block.bytes(), 1792);
    }

    #[test]
    fn a_gap_at_the_end_that_is_too_small_is_extended() {
        let mut block = Block::default();
        let _wall = block.place(256);
        let a = block.place(256);
        block.free(a);
        assert_eq!(block.place(512).offset, 256);
        assert_eq!(block.bytes(), 768);
    }

    #[test]
    fn neighbouring_gaps_become_one() {
        let mut block = Block::default();
        let places: Vec<Place> = (0..4).map(|_| block.place(256)).collect();
        block.free(places[0]);
        block.free(places[2]);
        block.free(places[1]);
        assert_eq!(block.place(768).offset, 0);
        assert_eq!(block.bytes(), 1024);
    }
}
