//! The canonical score, of one key, of a run of keys, and of gathered keys.

use crate::element::Element;
use crate::kernel::dispatch;
use crate::stored::for_elements;
use crate::{Kernel, StoredSlice};

/// Checked rows: `count` rows of `dim` values, at row numbers that lie inside `data`. What the kernels trust.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a, E> {
    data: &'a [E],
    dim: usize,
    order: Order<'a>,
}

#[derive(Clone, Copy)]
enum Order<'a> {
    /// All rows, in order.
    Run,
    /// These rows; all inside the data.
    Gather(&'a [u32]),
}

impl<'a, E: Element> Rows<'a, E> {
    /// The whole of `data`.
    ///
    /// # Panics
    ///
    /// If `data` is not `count` rows of `dim`.
    pub(crate) fn run(data: &'a [E], dim: usize, count: usize) -> Self {
        assert_eq!(data.len(), count * dim, "{count} rows of {dim}");
        Self {
            data,
            dim,
            order: Order::Run,
        }
    }

    /// The given rows of `data`.
    ///
    /// # Panics
    ///
    /// If a row lies outside `data`, or `dim` is 0 while a row is asked for.
    pub(crate) fn gather(data: &'a [E], dim: usize, rows: &'a [u32]) -> Self {
        if let Some(&last) = rows.iter().max() {
            assert!(
                dim > 0 && (last as usize) < data.len() / dim,
                "row {last} lies inside the data"
            );
        }
        Self {
            data,
            dim,
            order: Order::Gather(rows),
        }
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn dim(&self) -> usize {
        self.dim
    }

    /// Row `i`, or `None` past the last.
    #[inline(always)]
    pub(crate) fn get(&self, i: usize) -> Option<&'a [E]> {
        self.columns(i, 0, self.dim)
    }

    /// Up to `count` rows of a run from row `i` on; none past its end, or if rows are gathered.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn in_run(&self, i: usize, count: usize) -> &'a [E] {
        let rest = match self.order {
            Order::Run => self.data.get(i * self.dim..).unwrap_or(&[]),
            Order::Gather(_) => &[],
        };
        &rest[..rest.len().min(count * self.dim)]
    }

    /// Row `i` if its address is one that the processor cannot foresee: worth fetching ahead.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn gathered(&self, i: usize) -> Option<&'a [E]> {
        match self.order {
            Order::Run => None,
            Order::Gather(_) => self.get(i),
        }
    }

    /// The columns `from..from + count` of row `i`, or `None` past the last.
    #[inline(always)]
    pub(crate) fn columns(&self, i: usize, from: usize, count: usize) -> Option<&'a [E]> {
        let row = match self.order {
            Order::Run => i,
            Order::Gather(rows) => *rows.get(i)? as usize,
        };
        self.data.get(row * self.dim + from..)?.get(..count)
    }
}

impl Kernel {
    /// The canonical score `q . k` of a query and a key in any precision.
    ///
    /// # Units
    ///
    /// A score: no scale is applied.
    ///
    /// # Numerics
    ///
    /// Both rows are padded with zeros to whole blocks of 16. Sixteen lanes start at `+0.0`; block by block
    /// `lane[l] = fma(q[16b + l], k[16b + l], lane[l])` over the widened values of the key; then a pairwise tree (16 -> 8 -> 4 -> 2 -> 1, lane `l` with lane
    /// `l + half`). The same bits on every kernel. Relative to `sum |q_i k_i|` the error is at most `gamma_n` with
    /// `n = ceil(D/16) + 4`.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn score<'a>(self, query: &[f32], key: impl Into<StoredSlice<'a>>) -> f32 {
        let key = key.into();
        assert_eq!(
            query.len(),
            key.len(),
            "query and key have the same dimension"
        );
        let mut out = [0.0];
        for_elements!(key, key => {
            dispatch!(self, scores(query, Rows::run(key, key.len(), 1), &mut out))
        });
        out[0]
    }

    /// [`score`](Self::score) of each row of `keys`.
    ///
    /// # Shapes
    ///
    /// `query`: `[D]`, `keys`: `[out.len()][D]`.
    ///
    /// # Panics
    ///
    /// If `keys` has another length.
    pub fn scores_into<'a>(self, query: &[f32], keys: impl Into<StoredSlice<'a>>, out: &mut [f32]) {
        for_elements!(keys.into(), keys => {
            dispatch!(self, scores(query, Rows::run(keys, query.len(), out.len()), out))
        });
    }

    /// [`score`](Self::score) of the rows of `keys` that `rows` names, in that order.
    ///
    /// Rows are fetched ahead of their use, so that rows that lie in no cache cost their bandwidth, not their latency.
    ///
    /// # Shapes
    ///
    /// `query`: `[D]`, `keys`: `[N][D]`, `rows` and `out`: the same length.
    ///
    /// # Panics
    ///
    /// If a row is not below `N`, or `out` and `rows` differ in length.
    pub fn scores_at_into<'a>(
        self,
        query: &[f32],
        keys: impl Into<StoredSlice<'a>>,
        rows: &[u32],
        out: &mut [f32],
    ) {
        assert_eq!(rows.len(), out.len(), "one output per row");
        for_elements!(keys.into(), keys => {
            dispatch!(self, scores(query, Rows::gather(keys, query.len(), rows), out))
        });
    }
}
