//! Sums of value rows, wherever they are stored.

use hira_cache::HeadCache;
use hira_kernels::{DiskRows, Kernel};

/// Positions at the front of a list, ascending, that lie before `end`.
fn count_before(positions: &[u32], end: usize) -> usize {
    positions.partition_point(|&position| (position as usize) < end)
}

/// `out[n] += sum of weights[n][i] * value of rows[i]`, rows in order; `rebased` is a buffer. A sum does not depend on where its rows are.
pub(crate) fn add_weighted_values<const N: usize>(
    kernel: Kernel,
    (head, disk): (&HeadCache, &DiskRows),
    (rows, weights): (&[u32], [&[f32]; N]),
    rebased: &mut Vec<u32>,
    mut out: [&mut [f32]; N],
) {
    let values = head.values();
    let mut done = 0;
    while let Some(run) = rows.get(done).and_then(|&row| values.run_at(row as usize)) {
        let (start, stored) = (run.start as u32, run.rows);
        let len = count_before(&rows[done..], run.start + stored.len() / values.dim());
        let here = &rows[done..done + len];
        let weights = weights.map(|weights| &weights[done..done + len]);
        let out = out.each_mut().map(|out| &mut **out);
        done += len;
        if let Some(region) = stored.region() {
            region.count_reads(len);
            if let Some(read) = disk.rows_of(run.start, here, rebased) {
                kernel.weighted_sums_into(weights, read, rebased, out);
                continue;
            }
        }
        let in_run: &[u32] = if start == 0 {
            here
        } else {
            rebased.clear();
            rebased.extend(here.iter().map(|&row| row - start));
            rebased
        };
        kernel.weighted_sums_into(weights, stored, in_run, out);
    }
}
