//! What a cache uses, part by part and tier by tier.

use serde::Serialize;

use crate::{Part, Tier};
use hira_index::{DeviceMemory, IndexMemory};

/// Bytes of one part on one tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryEntry {
    /// The part.
    pub part: Part,
    /// Where it lies.
    pub tier: Tier,
    /// Bytes.
    pub bytes: usize,
}

/// Memory in use, one entry a part, coarsest level first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct MemoryReport {
    entries: Vec<MemoryEntry>,
}

impl MemoryReport {
    /// The entries, coarsest level first, then sketch, keys, values and sample.
    pub fn entries(&self) -> &[MemoryEntry] {
        &self.entries
    }

    /// All bytes.
    pub fn total(&self) -> usize {
        self.entries.iter().map(|entry| entry.bytes).sum()
    }

    /// Bytes on one tier.
    pub fn on(&self, tier: Tier) -> usize {
        let on_tier = self.entries.iter().filter(|entry| entry.tier == tier);
        on_tier.map(|entry| entry.bytes).sum()
    }

    /// Bytes of one part, over all tiers.
    pub fn of(&self, part: Part) -> usize {
        let of_part = self.entries.iter().filter(|entry| entry.part == part);
        of_part.map(|entry| entry.bytes).sum()
    }

    /// Adds what a device engine has allocated, on the device and in main memory.
    pub fn add_device(&mut self, memory: &DeviceMemory) {
        self.add(Part::Sketch, Tier::Device, memory.sketch);
        self.add(Part::Keys, Tier::Device, memory.keys);
        self.add(Part::Values, Tier::Device, memory.values);
        if memory.on_host() > 0 {
            self.add(Part::Keys, Tier::Host, memory.host_keys);
            self.add(Part::Values, Tier::Host, memory.host_values);
        }
    }

    /// Adds `bytes` of `part` on `tier`.
    pub fn add(&mut self, part: Part, tier: Tier, bytes: usize) {
        let same = |entry: &&mut MemoryEntry| entry.part == part && entry.tier == tier;
        if let Some(entry) = self.entries.iter_mut().find(same) {
            entry.bytes += bytes;
            return;
        }
        self.entries.push(MemoryEntry { part, tier, bytes });
        self.entries.sort_by_key(|entry| (entry.part, entry.tier));
    }

    /// Adds the levels, the sketch and the sample of one index; `place` says on which tier each of them lies.
    pub fn add_index(&mut self, index: &IndexMemory, place: impl Fn(Part) -> Tier) {
        for (level, bytes) in index.levels.iter().enumerate() {
            let part = Part::Level(level);
            self.add(part, place(part), *bytes);
        }
        let sketch = index.sketch + index.product;
        self.add(Part::Sketch, place(Part::Sketch), sketch);
        self.add(Part::Sample, place(Part::Sample), index.sample);
    }
}

impl std::fmt::Display for MemoryReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for entry in &self.entries {
            writeln!(
                f,
                "{:<10} {:<7} {:>12} bytes",
                entry.part.to_string(),
                entry.tier,
                entry.bytes
            )?;
        }
        write!(f, "{:<18} {:>12} bytes", "total", self.total())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_several_indexes_add_up_by_tier() {
        let index = IndexMemory {
            keys: 100,
            sketch: 20,
            product: 10,
            levels: vec![1, 2],
            sample: 8,
        };
        let place = |part| match part {
            Part::Level(0) | Part::Sketch => Tier::Device,
            _ => Tier::Host,
        };
        let mut report = MemoryReport::default();
        for _ in 0..2 {
            report.add_index(&index, place);
            report.add(Part::Keys, Tier::Host, index.keys);
            report.add(Part::Values, Tier::Host, 50);
        }
        assert_eq!(report.total(), 2 * 191);
        assert_eq!(report.on(Tier::Device), 2 * (1 + 30));
        assert_eq!(report.on(Tier::Host), 2 * (2 + 108 + 50));
        assert_eq!(report.of(Part::Keys), 200);
        assert_eq!(report.of(Part::Sample), 16);
        let parts: Vec<Part> = report.entries().iter().map(|entry| entry.part).collect();
        assert_eq!(
            parts,
            [
                Part::Level(0),
                Part::Level(1),
                Part::Sketch,
                Part::Keys,
                Part::Values,
                Part::Sample
            ]
        );
    }
}
