//! Best-first descent: a proven threshold for top-k rules, from the clusters that promise most.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::ops::Range;

use hira_kernels::TILE;

use crate::scan::Scan;
use crate::settle::Target;
use crate::visible::Visible;

/// A descent ends once it has seen this many keys for each wanted one, and no less than [`MIN_SEEN`]: what is left is better
/// found by pruning whole levels against the threshold reached so far.
const SEEN: usize = 4;
const MIN_SEEN: usize = 512;

/// A cluster that waits to be opened.
#[derive(Debug, Clone, Copy)]
struct Node {
    /// No key in it scores more.
    bound: f32,
    /// Index of its segment among the visible ones.
    segment: u32,
    depth: u32,
    cluster: u32,
}

impl Node {
    /// Highest bound first; among equals the earlier cluster, so that the order is the same on every run.
    fn rank(&self, other: &Self) -> Ordering {
        let place = |node: &Self| (node.segment, node.depth, node.cluster);
        self.bound
            .total_cmp(&other.bound)
            .then_with(|| place(other).cmp(&place(self)))
    }
}

impl Ord for Node {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank(other)
    }
}

impl PartialOrd for Node {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.rank(other) == Ordering::Equal
    }
}

impl Eq for Node {}

/// Buffers and counts of a descent.
#[derive(Debug, Default)]
pub(crate) struct BestFirst {
    queue: Vec<Node>,
    bounds: Vec<f32>,
    /// One bit a leaf cluster, segment after segment: a leaf is read once for the whole group.
    visited: Vec<u64>,
    /// First bit of each visible segment.
    firsts: Vec<usize>,
    lower: Vec<f32>,
    upper: Vec<f32>,
    /// Lower bounds of the keys seen, one run a query; no key is in a run twice.
    seen: Vec<Vec<f32>>,
    /// Cluster bounds computed.
    pub(crate) opened: usize,
}

impl BestFirst {
    pub(crate) fn memory_usage(&self) -> usize {
        let seen: usize = self.seen.iter().map(Vec::capacity).sum();
        self.queue.capacity() * size_of::<Node>()
            + 8 * (self.visited.capacity() + self.firsts.capacity())
            + 4 * (self.bounds.capacity() + self.lower.capacity() + self.upper.capacity() + seen)
    }

    /// Gives each top-k query that has no threshold yet one that `k` keys are proven to reach, where the clusters tell.
    ///
    /// For each such query the cluster with the highest bound is opened
    /// next, until no cluster left can hold a better key than the `k`-th best lower bound, or enough keys were seen. The
    /// `k`-th largest of the lower bounds of distinct keys is reached by `k` keys, so it never excludes one of the best `k`.
    ///
    /// # Complexity
    ///
    /// O(clusters opened * (D + log clusters)), and a tile read for every 16 keys seen, `4 k` or 512 of them a query.
    ///
    /// # References
    ///
    /// G. R. Hjaltason and H. Samet, "Distance browsing in spatial databases", ACM TODS 24(2), 1999, section 3: the queue of
    /// clusters by bound.
    pub(crate) fn raise(&mut self, scan: &Scan<'_>, norms: &[f32], taus: &mut [f32]) {
        self.opened = 0;
        let wanted = |(target, &tau): (&Target, &f32)| match *target {
            Target::Top { k, .. } if tau == f32::NEG_INFINITY => k,
            _ => 0,
        };
        if scan
            .group
            .targets
            .iter()
            .zip(&*taus)
            .all(|pair| wanted(pair) == 0)
        {
            return;
        }
        self.begin(scan, taus.len());
        let mut queue = BinaryHeap::from(std::mem::take(&mut self.queue));
        for (g, tau) in taus.iter_mut().enumerate() {
            let k = wanted((&scan.group.targets[g], tau));
            if k == 0 {
                continue;
            }
            queue.clear();
            self.push_roots(scan, norms, g, *tau, &mut queue);
            let budget = (SEEN * k).max(MIN_SEEN) + self.seen[g].len();
            let mut check = k.max(self.seen[g].len());
            while let Some(mut node) = queue.pop() {
                if node.bound < *tau {
                    break;
                }
                // Down to a leaf at once: a loose bound on an upper level promises more than the leaves below it hold, and would
                // have all its peers opened before any key is seen.
                while let Some(child) = self.open(scan, norms, g, node, *tau, &mut queue) {
                    node = child;
                }
                let seen = self.seen[g].len();
                if seen >= check {
                    *tau = tau.max(scan.group.kernel.kth_largest(&self.seen[g], k));
                    check = 2 * seen;
                }
                if seen >= budget {
                    break;
                }
            }
            *tau = tau.max(scan.group.kernel.kth_largest(&self.seen[g], k));
        }
        self.queue = queue.into_vec();
    }

    fn begin(&mut self, scan: &Scan<'_>, queries: usize) {
        self.seen.resize_with(queries, Vec::new);
        self.seen.iter_mut().for_each(Vec::clear);
        self.firsts.clear();
        let mut leaves = 0;
        for visible in Visible::segments(scan.group.index, scan.group.seen) {
            self.firsts.push(leaves);
            leaves += visible.segment.levels().last().map_or(0, |leaf| leaf.len());
        }
        self.visited.clear();
        self.visited.resize(leaves.div_ceil(64), 0);
    }

    fn push_roots(
        &mut self,
        scan: &Scan<'_>,
        norms: &[f32],
        g: usize,
        tau: f32,
        queue: &mut BinaryHeap<Node>,
    ) {
        for (segment, visible) in Visible::segments(scan.group.index, scan.group.seen).enumerate() {
            // Where hidden keys are mixed with visible ones a cluster says too little; the scan reads such a segment whole.
            if !visible.is_mixed()
                && let Some(roots) = visible.segment.levels().first()
            {
                let clusters = 0..roots.len() as u32;
                let best = self.push(scan, norms, g, (segment, 0), clusters, &visible, tau, queue);
                queue.extend(best);
            }
        }
    }

    /// Replaces a cluster by its children and takes the best of them out again, or reads its keys if it is a leaf that was not read
    /// yet.
    fn open(
        &mut self,
        scan: &Scan<'_>,
        norms: &[f32],
        g: usize,
        node: Node,
        tau: f32,
        queue: &mut BinaryHeap<Node>,
    ) -> Option<Node> {
        let (segment, depth) = (node.segment as usize, node.depth as usize);
        let visible = Visible::nth(scan.group.index, scan.group.seen, segment)?;
        let levels = visible.segment.levels();
        let children = levels[depth].children(node.cluster as usize);
        if depth + 1 < levels.len() {
            let below = (segment, depth + 1);
            return self.push(scan, norms, g, below, children, &visible, tau, queue);
        }
        let bit = self.firsts[segment] + node.cluster as usize;
        if self.visited[bit / 64] >> (bit % 64) & 1 == 0 {
            self.visited[bit / 64] |= 1 << (bit % 64);
            self.read(
                scan,
                &visible,
                segment,
                children.start as usize..children.end as usize,
            );
        }
        None
    }

    /// Pushes the clusters whose bound reaches `tau`, all but the best of them, which is returned.
    #[expect(clippy::too_many_arguments, reason = "one place for both callers")]
    fn push(
        &mut self,
        scan: &Scan<'_>,
        norms: &[f32],
        g: usize,
        (segment, depth): (usize, usize),
        clusters: Range<u32>,
        visible: &Visible<'_>,
        tau: f32,
        queue: &mut BinaryHeap<Node>,
    ) -> Option<Node> {
        self.bounds.resize(clusters.len(), 0.0);
        self.opened += clusters.len();
        visible.segment.levels()[depth].upper_bounds_into(
            scan.group.kernel,
            clusters.start as usize..clusters.end as usize,
            scan.group.query(g),
            norms[g],
            &mut self.bounds,
        );
        let mut best: Option<Node> = None;
        for (cluster, &bound) in clusters.zip(&self.bounds) {
            if bound >= tau {
                let node = Node {
                    bound,
                    segment: segment as u32,
                    depth: depth as u32,
                    cluster,
                };
                match &mut best {
                    Some(best) if *best < node => queue.push(std::mem::replace(best, node)),
                    Some(_) => queue.push(node),
                    None => best = Some(node),
                }
            }
        }
        best
    }

    /// Notes the lower bounds of the keys in `slots`, for every query.
    fn read(
        &mut self,
        scan: &Scan<'_>,
        visible: &Visible<'_>,
        segment: usize,
        slots: Range<usize>,
    ) {
        let Some(sketch) = visible.sketch() else {
            return;
        };
        let tiles = slots.start / TILE..slots.end.div_ceil(TILE);
        let (first, lanes) = (tiles.start * TILE, tiles.len() * TILE);
        let size = lanes * self.seen.len();
        self.lower.resize(size, 0.0);
        self.upper.resize(size, 0.0);
        scan.group.kernel.intervals_into(
            sketch,
            tiles,
            scan.prepared,
            &scan.offsets[segment],
            &mut self.lower,
            &mut self.upper,
        );
        // The other lanes of the outer tiles belong to neighbouring clusters, which count them themselves.
        for (seen, lower) in self.seen.iter_mut().zip(self.lower.chunks_exact(lanes)) {
            seen.extend_from_slice(&lower[slots.start - first..slots.end - first]);
        }
    }
}
