//! A query group against the codebooks of one segment, as tables of bytes.

use super::{ProductShape, ProductView, Query};
use crate::kernel::dispatch;
use crate::{Kernel, QueryGroup, TILE, lanes};

/// Largest byte of a table.
const MAX_BYTE: f64 = 255.0;

/// Makes a step larger than the range over [`MAX_BYTE`], so that [`CODE_UP`] does not take a byte past it.
const STEP_UP: f64 = 1.0 + 1.0 / (1u64 << 30) as f64;

/// Covers the three roundings of `(value - lowest) / step * CODE_UP`: `(1 + 2^-40) (1 - 2^-53)^3 > 1`.
const CODE_UP: f64 = 1.0 + 1.0 / (1u64 << 40) as f64;

/// `2^-132` a dimension: the absolute part of the slack, as for the sketch.
const UNDERFLOW: f64 = f32::from_bits(1 << 17) as f64;

/// What turns a sum of table bytes into a bound: `base + step * sum`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Constants {
    base: f64,
    step: f64,
}

impl Constants {
    /// Turns sums of table bytes into bounds of keys whose bytes sum to at most that.
    ///
    /// Rounded to `f32`, a value loses at most `2^-24` of itself and `2^-150`; it is raised by twice that and more. The
    /// roundings in `f64` are part of `base`. Sums are below `2^16`: exact as `f32`.
    #[inline(always)]
    pub(crate) fn finish(&self, sums: &mut [f32]) {
        for sum in sums {
            let value = self.base + self.step * f64::from(*sum);
            let margin = value.abs() * (1.0 / (1u64 << 23) as f64) + UNDERFLOW;
            *sum = (value + margin) as f32;
        }
    }
}

/// The products of a query group with every codebook entry of one segment, one byte each, rounded outward.
///
/// Reusable: [`prepare`](Self::prepare) allocates only when the group or the codebooks grow.
#[derive(Clone, Debug, Default)]
pub struct ProductTables {
    shape: Option<ProductShape>,
    /// Per query, a table of `entries` bytes a row; see [`Query`].
    tables: Vec<u8>,
    constants: Vec<Constants>,
    /// Products of one query, `[rows][entries]`.
    values: Vec<f64>,
}

impl ProductTables {
    /// Tables of no query.
    pub fn new() -> Self {
        Self::default()
    }

    /// Computes the tables of every query of `group` for codes about `centre`, replacing what was held.
    ///
    /// # Numerics
    ///
    /// With `k = mu + k_hat + e`, `k_hat` one entry `c_m` per subvector, the exact product is
    /// `q.k = q.mu + sum_m q_m.c_m + q.e`, and the canonical score is at most `q.k + gamma_n ||q|| ||k||` above
    /// (`gamma_n` as for the sketch), plus `2^-150` for each operation with a subnormal result. Hence
    /// `score <= q.mu + sum_m q_m.c_m + ||q|| reach` plus the terms below, with
    /// `reach = ||e|| + gamma_n ||k|| + 2^-36 ||k_hat||`, rounded outward and stored as the next higher level. Per query:
    ///
    /// 1. `q_m.c_m` is a sum of exact `f64` products of two `f32`, with less than `2^16` additions: off by at most
    ///    `2^-37 sum |q_i c_i|`, over all subvectors at most `2^-37 ||q|| ||k_hat||`. That is in the reach.
    ///    `||q|| level` is one exact product: row `M` of the tables.
    /// 2. `q.mu` likewise: `2^-37 ||q|| ||mu||`, in the base.
    /// 3. A row of values `v_j` becomes bytes `b_j = ceil((v_j - lowest) / step * (1 + 2^-40))`. The subtraction, the
    ///    division and the product round by `2^-53` each, so `lowest + step b_j >= v_j` exactly; and with
    ///    `step = range (1 + 2^-30) / 255` no byte passes 255. Values are multiples of `2^-298`: nothing underflows.
    /// 4. The base sums `q.mu` and at most 128 lowest values: each of its `n <= 130` additions is off by at most
    ///    `2^-53` of a partial sum, in all by less than `2^-45` of the sum of magnitudes.
    /// 5. `base + step * sum` rounds twice: at most `2^-52` of `|base| + 255 rows step`, with the two before in
    ///    `2^-44` of all magnitudes.
    /// 6. `2^-150` for each of the canonical score's fewer than `dim + 64` operations with a subnormal result; taken as
    ///    `2^-132`.
    ///
    /// Nothing overflows: with norms below `2^63` every magnitude is below `2^140`. The same bits on every kernel.
    ///
    /// # Complexity
    ///
    /// `O(dim * entries)` a query, and `256 * rows` bytes to write for 8 bits, `16 * rows` for 4.
    ///
    /// # Panics
    ///
    /// If the dimensions of group, codes and centre differ, or the codebooks do not have the size of their shape.
    pub fn prepare(
        &mut self,
        kernel: Kernel,
        group: &QueryGroup,
        product: ProductView<'_>,
        centre: &[f32],
    ) {
        product.check();
        let dim = product.shape.dim();
        assert_eq!(group.dim(), dim, "the codes have the queries' dimension");
        assert_eq!(centre.len(), dim, "the centre has the queries' dimension");
        self.shape = Some(product.shape);
        dispatch!(kernel, product_tables(self, group, product, centre));
    }

    /// Queries of the group.
    pub fn len(&self) -> usize {
        self.constants.len()
    }

    /// Whether there is no query.
    pub fn is_empty(&self) -> bool {
        self.constants.is_empty()
    }

    /// Bytes allocated.
    pub fn memory_usage(&self) -> usize {
        self.tables.capacity()
            + self.constants.capacity() * size_of::<Constants>()
            + self.values.capacity() * size_of::<f64>()
    }

    pub(super) fn shape(&self) -> Option<ProductShape> {
        self.shape
    }

    /// Query `g`.
    pub(super) fn query(&self, g: usize) -> Query<'_> {
        let bytes = self.tables.len() / self.len();
        Query {
            tables: &self.tables[g * bytes..][..bytes],
            constants: self.constants[g],
        }
    }

    /// The body of every kernel's `product_tables`: inlined into a function with that kernel's target features. Every
    /// product in it is exact or stands alone, so that a fused operation would change nothing.
    #[inline(always)]
    pub(crate) fn fill(&mut self, group: &QueryGroup, product: ProductView<'_>, centre: &[f32]) {
        let shape = product.shape;
        let (rows, entries) = (shape.rows(), shape.entries());
        let bytes = rows.next_multiple_of(2) * entries;
        self.values.clear();
        self.values.resize(rows * entries, 0.0);
        self.tables.clear();
        self.tables.resize(group.len() * bytes, 0);
        self.constants.clear();
        let centre_norm = lanes::norm_up(centre);
        for g in 0..group.len() {
            let (query, norm) = (group.query(g), f64::from(group.norm(g)));
            let (products, reaches) = self.values.split_at_mut((rows - 1) * entries);
            for (m, values) in products.chunks_exact_mut(entries).enumerate() {
                let dims = shape.dims(m);
                let book = &product.entries[dims.start * entries..dims.end * entries];
                products_into(&query[dims], book, values);
            }
            for (value, &level) in reaches.iter_mut().zip(product.levels) {
                *value = norm * f64::from(level);
            }
            let offset: f64 = dot(query, centre);
            let (mut base, mut magnitude, mut range) = (offset, offset.abs(), 0.0f64);
            for values in self.values.chunks_exact(entries) {
                let [lowest, highest] = ends(values);
                base += lowest;
                magnitude += lowest.abs();
                range = range.max(highest - lowest);
            }
            let step = range * STEP_UP / MAX_BYTE;
            let tables = self.tables[g * bytes..][..bytes].chunks_exact_mut(entries);
            for (values, table) in self.values.chunks_exact(entries).zip(tables) {
                write_bytes(values, step, table);
            }
            let all = magnitude + MAX_BYTE * rows as f64 * step;
            let slack = all / (1u64 << 44) as f64
                + norm * centre_norm / (1u64 << 36) as f64
                + (shape.dim() + 64) as f64 * UNDERFLOW;
            self.constants.push(Constants {
                base: base + slack,
                step,
            });
        }
    }
}

/// `q . c` for every entry of a codebook, in `f64`.
#[inline(always)]
fn products_into(query: &[f32], book: &[f32], values: &mut [f64]) {
    let entries = values.len();
    for (block, values) in values.chunks_exact_mut(TILE).enumerate() {
        let mut sums = [0.0f64; TILE];
        for (&q, book) in query.iter().zip(book.chunks_exact(entries)) {
            let book = &book[block * TILE..][..TILE];
            for l in 0..TILE {
                sums[l] += f64::from(q) * f64::from(book[l]);
            }
        }
        values.copy_from_slice(&sums);
    }
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0.0f64; TILE];
    for block in 0..a.len().div_ceil(TILE) {
        let (a, b) = (lanes::load(a, block), lanes::load(b, block));
        for l in 0..TILE {
            sums[l] += f64::from(a[l]) * f64::from(b[l]);
        }
    }
    lanes::tree_f64(sums)
}

/// The least and the largest value.
#[inline(always)]
fn ends(values: &[f64]) -> [f64; 2] {
    let (mut low, mut high) = ([f64::INFINITY; TILE], [f64::NEG_INFINITY; TILE]);
    for values in values.chunks_exact(TILE) {
        for l in 0..TILE {
            low[l] = if values[l] < low[l] {
                values[l]
            } else {
                low[l]
            };
            high[l] = if values[l] > high[l] {
                values[l]
            } else {
                high[l]
            };
        }
    }
    [
        low.into_iter().fold(f64::INFINITY, f64::min),
        high.into_iter().fold(f64::NEG_INFINITY, f64::max),
    ]
}

/// Writes the table of one row; item 3 of [`ProductTables::prepare`].
#[inline(always)]
fn write_bytes(values: &[f64], step: f64, table: &mut [u8]) {
    let divisor = if step > 0.0 { step } else { 1.0 };
    let lowest = ends(values)[0];
    for (byte, value) in table.iter_mut().zip(values) {
        *byte = ((value - lowest) / divisor * CODE_UP).ceil() as u8;
    }
}
