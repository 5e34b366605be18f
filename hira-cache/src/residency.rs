//! Where the exact rows of a cache lie: makes room before rows are stored, and moves what a placement wants moved.

use std::io;
use std::sync::Arc;

use hira_kernels::{Backing, Region, StoredRows, give_back_free_pages};
use hira_memory::{
    Budget, MemoryError, Part, Placement, RowRun, Spill, Tier, TierStatistics, Usage, arrange,
    available_bytes,
};

use crate::{CacheConfig, HeadCache, LayerCache};

/// Tokens of a layer between two looks at what is read most.
const BALANCE_TOKENS: usize = 256;

/// Rows that a run of values may reserve beyond those that it needs; see `values.rs`.
const RESERVED_ROWS: usize = 512;

/// Tiers, budgets and what decides between them.
///
/// A fork has a copy with the same budgets: what it shares counts in each. The spill file is one.
#[derive(Debug, Clone)]
pub(crate) struct Residency {
    policy: Arc<dyn Placement>,
    host: Budget,
    spill: Option<Spill>,
    tiers: Vec<Tier>,
    pinned: (usize, usize),
    run_len: usize,
    row_bytes: usize,
    /// Bytes of exact rows in main memory, layer by layer.
    in_memory: Vec<usize>,
    since_balance: usize,
    statistics: TierStatistics,
}

/// A run of rows that can be moved.
struct Movable {
    region: Arc<Region>,
    rows: RowRun,
}

/// Everything that is stored.
#[derive(Default)]
struct Inventory {
    movable: Vec<Movable>,
    /// Bytes in main memory that have to stay there.
    fixed: usize,
}

impl Inventory {
    fn rows(&self) -> Vec<RowRun> {
        self.movable.iter().map(|movable| movable.rows).collect()
    }

    fn in_memory(&self) -> usize {
        let movable = self.movable.iter().map(|movable| movable.rows);
        let here = movable.filter(|rows| rows.tier == Tier::Host);
        self.fixed + here.map(|rows| rows.bytes).sum::<usize>()
    }
}

impl Residency {
    /// # Errors
    ///
    /// [`MemoryError::Unsupported`] or [`MemoryError::Spill`] if rows cannot be on disk as the configuration wants it.
    pub(crate) fn new(
        config: &CacheConfig,
        policy: Arc<dyn Placement>,
    ) -> Result<Self, MemoryError> {
        let mut tiers = config.tiers.clone();
        tiers.retain(|&tier| tier != Tier::Disk);
        let spill = match &config.disk_path {
            None => None,
            Some(_) if !Region::is_supported() => {
                return Err(MemoryError::Unsupported { tier: Tier::Disk });
            }
            Some(path) => {
                let spill = Spill::new(path, config.disk_budget);
                spill.open()?;
                tiers.push(Tier::Disk);
                Some(spill)
            }
        };
        let row_values = config.head_dim + config.value_dim;
        Ok(Self {
            policy,
            host: config.host_budget,
            spill,
            tiers,
            pinned: config.pinned,
            run_len: config.index.segment_len.max(1),
            row_bytes: row_values * config.index.precision.bytes(),
            in_memory: vec![0; config.layers],
            since_balance: 0,
            statistics: TierStatistics::default(),
        })
    }

    /// Whether there is anything to decide; if not, a cache is as it would be without this.
    pub(crate) fn is_active(&self) -> bool {
        self.spill.is_some() || self.host.limit().is_some()
    }

    /// Where a part that every step reads lies.
    pub(crate) fn tier_of(&self, part: Part) -> Tier {
        self.policy.place(part, &self.tiers).min(Tier::Host)
    }

    pub(crate) fn statistics(&self, layers: &[LayerCache]) -> TierStatistics {
        let mut statistics = self.statistics;
        statistics.spilled_bytes = self.spill.as_ref().map_or(0, Spill::used) as u64;
        for movable in self.inventory(layers).movable {
            let reads = movable.region.row_reads();
            statistics.hits += reads.from_memory;
            statistics.disk_rows += reads.from_disk;
            statistics.stalls += reads.waited_for;
        }
        statistics
    }

    /// Tokens of the next piece of a batch that begins at `len`: up to the end of a segment, after which rows can go.
    pub(crate) fn piece(&self, len: usize, tokens: usize) -> usize {
        (self.run_len - len % self.run_len).min(tokens)
    }

    /// Refuses what no tier has room for.
    pub(crate) fn check(
        &self,
        layers: &[LayerCache],
        layer: usize,
        tokens: usize,
    ) -> Result<(), MemoryError> {
        let Some(limit) = self.host.limit() else {
            return Ok(());
        };
        let heads = layers.iter().flat_map(LayerCache::heads);
        let stored: usize = heads.map(|head| head.len() * self.row_bytes).sum();
        let requested = layers[layer].heads().len() * tokens * self.row_bytes;
        let (tier, below) = match &self.spill {
            None => (Tier::Host, 0),
            Some(spill) => (Tier::Disk, spill.budget().limit().unwrap_or(usize::MAX)),
        };
        let most = limit.saturating_add(below);
        if stored.saturating_add(requested) <= most {
            return Ok(());
        }
        let stored = stored.saturating_sub(self.elsewhere(layers));
        if stored.saturating_add(requested) > most {
            return Err(MemoryError::TierFull {
                tier,
                limit: if tier == Tier::Host { limit } else { below },
                used: stored.saturating_sub(if tier == Tier::Host { 0 } else { limit }),
                requested,
            });
        }
        Ok(())
    }

    /// Bytes of rows that are in files of others, such as those that a cache was loaded from: they need no room in any tier.
    fn elsewhere(&self, layers: &[LayerCache]) -> usize {
        let rows = layers.iter().flat_map(LayerCache::heads);
        let rows = rows.flat_map(HeadCache::stored);
        let elsewhere = rows.filter(|(_, _, rows)| {
            let backing = rows.region().and_then(|region| region.backing());
            let is_ours = |backing: &Backing| {
                let spill = self.spill.as_ref();
                spill.is_some_and(|spill| spill.is_in(backing.file()))
            };
            backing.is_some_and(|backing| !is_ours(&backing))
        });
        let bytes = elsewhere.map(|(_, _, rows)| rows.as_slice().as_bytes().len());
        bytes.sum()
    }

    /// Makes room in main memory for `tokens` more of one layer, which fit its open segments.
    ///
    /// # Errors
    ///
    /// [`MemoryError::TierFull`] if there is none to be had, [`MemoryError::Spill`] if rows cannot be written.
    pub(crate) fn make_room(
        &mut self,
        layers: &mut [LayerCache],
        layer: usize,
        tokens: usize,
    ) -> Result<(), MemoryError> {
        let Some(limit) = self.host.limit() else {
            return Ok(());
        };
        let requested = self.growth(&layers[layer], tokens);
        self.in_memory[layer] = in_memory(&layers[layer]);
        if self.in_memory.iter().sum::<usize>() + requested <= limit {
            return Ok(());
        }
        let mut inventory = self.recount(layers);
        if inventory.in_memory() + requested <= limit {
            return Ok(());
        }
        if inventory.fixed + requested > limit {
            // What is being built can be moved once it is finished.
            for layer in layers.iter_mut() {
                layer.finish_builds();
                layer.move_to_regions();
            }
            inventory = self.recount(layers);
        }
        let full = |used| MemoryError::TierFull {
            tier: Tier::Host,
            limit,
            used,
            requested,
        };
        let room = limit
            .checked_sub(inventory.fixed + requested)
            .ok_or_else(|| full(inventory.fixed))?;
        if self.spill.is_none() {
            return Err(full(inventory.in_memory()));
        }
        let usage = Usage {
            used: inventory.in_memory(),
            limit,
        };
        let room = room.min(self.policy.room(usage));
        let placed = arrange(&*self.policy, &inventory.rows(), room, &self.tiers);
        for (movable, tier) in inventory.movable.iter().zip(placed) {
            if movable.rows.tier == Tier::Host && tier == Tier::Disk {
                self.demote(movable)?;
            }
        }
        self.recount(layers);
        Ok(())
    }

    /// Follows `tokens` that were appended to a layer: complete segments can be moved from now on, and are where the
    /// placement wants them. What cannot be moved stays, within the budget that was checked before.
    pub(crate) fn settle(&mut self, layers: &mut [LayerCache], layer: usize, tokens: usize) {
        self.since_balance += tokens;
        // the other layers' room is told by this until they are looked at again
        self.in_memory[layer] = in_memory(&layers[layer]);
        // Pieces end with segments.
        let sealed = layers[layer]
            .lens()
            .any(|len| len.is_multiple_of(self.run_len));
        if self.spill.is_none() || !sealed && self.since_balance < BALANCE_TOKENS * layers.len() {
            return;
        }
        self.since_balance = 0;
        layers[layer].move_to_regions();
        self.balance(layers);
        if sealed {
            give_back_free_pages();
        }
    }

    fn balance(&mut self, layers: &[LayerCache]) {
        let inventory = self.recount(layers);
        let used = inventory.in_memory();
        let limit = match self.host.limit() {
            Some(limit) => limit,
            None => available_bytes().map_or(usize::MAX, |free| used.saturating_add(free)),
        };
        // The open segments will grow.
        let open: usize = layers.iter().map(|layer| self.growth(layer, 0)).sum();
        let room = self.policy.room(Usage { used, limit }).min(limit);
        let room = room.saturating_sub(inventory.fixed);
        let room = room - open.min(room / 4);
        let placed = arrange(&*self.policy, &inventory.rows(), room, &self.tiers);
        let moves = || inventory.movable.iter().zip(&placed);
        for (movable, _) in moves().filter(|(m, to)| m.rows.tier < **to) {
            if self.demote(movable).is_err() {
                self.statistics.failed_moves += 1;
            }
        }
        let mut used = self.recount(layers).in_memory();
        for (movable, _) in moves().filter(|(m, to)| m.rows.tier > **to) {
            if used + movable.rows.bytes > limit {
                break;
            }
            match movable.region.promote() {
                Ok(()) => {
                    used += movable.rows.bytes;
                    self.statistics.promoted_bytes += movable.rows.bytes as u64;
                }
                Err(_) => self.statistics.failed_moves += 1,
            }
        }
        for Movable { region, .. } in &inventory.movable {
            region.age_reads();
            region.forget(0..region.len());
        }
        self.recount(layers);
    }

    fn demote(&mut self, movable: &Movable) -> Result<(), MemoryError> {
        let Some(spill) = &self.spill else {
            return Ok(());
        };
        let region = &movable.region;
        let failed = |error: io::Error| MemoryError::Spill {
            folder: spill.folder().to_path_buf(),
            kind: error.kind(),
        };
        if region.backing().is_none() {
            let extent = spill.write(region.bytes())?;
            let backing = Backing::new(Arc::clone(extent.file()), extent.offset());
            let backing = backing.with_owner(Arc::new(extent));
            region.set_backing(backing).map_err(failed)?;
        }
        region.demote().map_err(failed)?;
        self.statistics.demoted_bytes += movable.rows.bytes as u64;
        Ok(())
    }

    /// At most the bytes that the open segments of a layer grow by when `tokens` more are stored, or, for none, until they are complete.
    fn growth(&self, layer: &LayerCache, tokens: usize) -> usize {
        let rows = |head: &HeadCache| {
            // that of a layer with a window may be shorter
            let run_len = head.values().run_len();
            let open = head.len() % run_len;
            let left = run_len - open;
            if tokens == 0 {
                left
            } else {
                left.min(tokens + (open + tokens) / 4 + RESERVED_ROWS)
            }
        };
        layer.heads().iter().map(rows).sum::<usize>() * self.row_bytes
    }

    fn recount(&mut self, layers: &[LayerCache]) -> Inventory {
        for (bytes, layer) in self.in_memory.iter_mut().zip(layers) {
            *bytes = in_memory(layer);
        }
        self.inventory(layers)
    }

    fn inventory(&self, layers: &[LayerCache]) -> Inventory {
        let mut inventory = Inventory::default();
        for head in layers.iter().flat_map(LayerCache::heads) {
            for (part, start, rows) in head.stored() {
                let Some(region) = rows.region() else {
                    inventory.fixed += rows.bytes();
                    continue;
                };
                inventory.movable.push(Movable {
                    region: Arc::clone(region),
                    rows: RowRun {
                        part,
                        start,
                        bytes: rows.bytes(),
                        reads: region.reads(),
                        tier: tier(rows),
                        pinned: self.is_pinned(head, part, start, rows),
                    },
                });
            }
        }
        inventory
    }

    fn is_pinned(&self, head: &HeadCache, part: Part, start: usize, rows: &StoredRows) -> bool {
        let dim = match part {
            Part::Keys => head.index().dim(),
            _ => head.values().dim(),
        };
        let end = start + rows.len() / dim;
        start < self.pinned.0 || end + self.pinned.1 > head.len()
    }
}

fn tier(rows: &StoredRows) -> Tier {
    if rows.is_on_disk() {
        Tier::Disk
    } else {
        Tier::Host
    }
}

/// Bytes of a layer's exact rows in main memory.
fn in_memory(layer: &LayerCache) -> usize {
    let rows = layer.heads().iter().flat_map(HeadCache::stored);
    let here = rows.filter(|(_, _, rows)| !rows.is_on_disk());
    here.map(|(_, _, rows)| rows.bytes()).sum()
}
