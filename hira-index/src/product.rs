//! Product quantisation of a sealed segment: codebooks by a short k-means per subvector, and the codes of its keys.

use hira_kernels::{Kernel, MAX_SUBVECTORS, Precision, ProductShape, ProductView, TILE};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::snapshot::{ProductParts, broken};
use crate::{IndexError, memory, rows};

/// Tiles that are gathered into slot order at a time.
const GATHER_TILES: usize = 64;

/// How the keys of a sealed segment are product-quantised.
///
/// No value changes the answer to a query; they change how many tiles a search can rule out, and at what cost. Codes pay
/// where keys lie in tight clusters and the coarse levels put them in cluster order: of 65,536 such keys a search reads
/// 8 % of the sketch, in two thirds of the time with 8 subvectors. They do not pay on the keys of a language model's attention at 8,192 keys:
/// 16 subvectors of 4 bits leave 46 to 91 % of the keys, so that every tile of 16 holds one that is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProductConfig {
    /// Subvectors of a key, 1 to 127. They are runs of `ceil(dim / subvectors)` dimensions, so that there are fewer where
    /// that leaves none for the last. Default: 8, which beat 16 and 32 in every measurement on clustered keys of dimension 64.
    pub subvectors: usize,
    /// Bits of a subvector's code, 4 or 8. Tables of 4 bits fit a register and are read by shuffles; tables of 8 bits are
    /// sixteen times as large, and so is the work to fill them for a query. Default: 4.
    pub bits: u32,
    /// Most iterations of the k-means. Default: 10.
    pub max_iterations: usize,
    /// Seed of the first codebooks. The same seed and keys give the same codes. Default: 0.
    pub seed: u64,
    /// Keys that the codebooks are trained on, evenly spaced; at least 1. Default: 2048.
    pub train: usize,
}

impl Default for ProductConfig {
    fn default() -> Self {
        Self {
            subvectors: 8,
            bits: 4,
            max_iterations: 10,
            seed: 0,
            train: 2048,
        }
    }
}

impl ProductConfig {
    /// Sets [`subvectors`](Self::subvectors).
    pub fn with_subvectors(mut self, subvectors: usize) -> Self {
        self.subvectors = subvectors;
        self
    }

    /// Sets [`bits`](Self::bits).
    pub fn with_bits(mut self, bits: u32) -> Self {
        self.bits = bits;
        self
    }

    /// Sets [`max_iterations`](Self::max_iterations).
    pub fn with_max_iterations(mut self, max_iterations: usize) -> Self {
        self.max_iterations = max_iterations;
        self
    }

    /// Sets [`seed`](Self::seed).
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets [`train`](Self::train).
    pub fn with_train(mut self, train: usize) -> Self {
        self.train = train;
        self
    }

    /// Says whether keys can be coded so, and if not, which value is wrong and what it has to be.
    ///
    /// # Errors
    ///
    /// [`IndexError::Config`].
    pub fn validate(&self) -> Result<(), IndexError> {
        let requirements = [
            (
                (1..=MAX_SUBVECTORS).contains(&self.subvectors),
                "product.subvectors",
                "from 1 to 127",
            ),
            (
                self.bits == 4 || self.bits == 8,
                "product.bits",
                "either 4 or 8",
            ),
            (self.train > 0, "product.train", "at least 1"),
        ];
        match requirements.iter().find(|(holds, ..)| !holds) {
            Some(&(_, key, requirement)) => Err(IndexError::Config { key, requirement }),
            None => Ok(()),
        }
    }
}

/// Makes product codes of keys: what an index does with every segment that it seals, for keys of one's own.
///
/// # Examples
///
/// ```
/// use hira_index::{ProductConfig, ProductQuantizationBuilder};
/// use hira_kernels::Kernel;
///
/// let keys: Vec<f32> = (0..40 * 8).map(|i| (i as f32 * 0.7).sin()).collect();
/// let builder = ProductQuantizationBuilder::new(ProductConfig::default().with_subvectors(4))?;
/// let codes = builder.build(Kernel::best(), &keys, &[0.0; 8], None)?;
/// assert_eq!(codes.view().shape.subvectors(), 4);
/// assert_eq!(codes.view().tiles(), 3);
/// # Ok::<(), hira_index::IndexError>(())
/// ```
#[derive(Debug, Clone)]
pub struct ProductQuantizationBuilder {
    config: ProductConfig,
}

impl ProductQuantizationBuilder {
    /// A builder with these settings.
    ///
    /// # Errors
    ///
    /// Whatever [`ProductConfig::validate`] refuses.
    pub fn new(config: ProductConfig) -> Result<Self, IndexError> {
        config.validate()?;
        Ok(Self { config })
    }

    /// Trains codebooks on the rows of `keys` about `centre`, and codes the rows in the given order (their own if `None`).
    ///
    /// # Numerics
    ///
    /// The same codes on every kernel. A code names the nearest entry of its codebook in `f32`; whatever that loses is in
    /// the reach of the key, which is rounded outward (see `hira_kernels::ProductTables`).
    ///
    /// # Complexity
    ///
    /// For `n` keys O(n * dim * 2^bits), and O(train * dim * 2^bits) an iteration.
    ///
    /// # Errors
    ///
    /// [`IndexError::ZeroDimension`] if `centre` is empty; [`IndexError::Dimension`], [`IndexError::NonFinite`] or
    /// [`IndexError::Magnitude`] for keys or a centre that an index would refuse; [`IndexError::Dimension`] if `order` has
    /// another length than there are keys, or names a row that is not there.
    pub fn build(
        &self,
        kernel: Kernel,
        keys: &[f32],
        centre: &[f32],
        order: Option<&[u32]>,
    ) -> Result<ProductCodes, IndexError> {
        if centre.is_empty() {
            return Err(IndexError::ZeroDimension);
        }
        rows::check(kernel, centre, centre.len(), Precision::F32)?;
        let len = rows::check(kernel, keys, centre.len(), Precision::F32)?;
        if let Some(order) = order
            && (order.len() != len || order.iter().any(|&row| row as usize >= len))
        {
            return Err(IndexError::Dimension {
                expected: len,
                received: order.len(),
            });
        }
        Ok(ProductCodes::new(kernel, &self.config, keys, centre, order))
    }
}

/// Product codes in slot order, sixteen keys to a tile, with the codebooks they belong to.
#[derive(Debug, Clone, PartialEq)]
pub struct ProductCodes {
    shape: ProductShape,
    len: usize,
    entries: Vec<f32>,
    levels: Vec<f32>,
    codes: Vec<u8>,
}

impl ProductCodes {
    /// Codes of checked rows.
    pub(crate) fn new(
        kernel: Kernel,
        config: &ProductConfig,
        keys: &[f32],
        centre: &[f32],
        order: Option<&[u32]>,
    ) -> Self {
        let shape = ProductShape::new(centre.len(), config.subvectors, config.bits);
        let entries = Training::new(shape, config, keys, centre).entries(kernel, centre);
        Self::with_entries(kernel, shape, entries, keys, centre, order)
    }

    /// The codes of `len` keys that were saved, if they are those of `config`.
    pub(crate) fn restore(
        config: Option<&ProductConfig>,
        dim: usize,
        len: usize,
        parts: ProductParts<'_>,
    ) -> Result<Self, IndexError> {
        let shape = config.map(|config| ProductShape::new(dim, config.subvectors, config.bits));
        let fits = |shape: &ProductShape| {
            parts.entries.len() == dim * shape.entries()
                && parts.levels.len() == shape.entries()
                && parts.codes.len() == len.div_ceil(TILE) * shape.tile_bytes()
        };
        let shape = shape
            .filter(fits)
            .ok_or(broken("the product codes are those of its tiles"))?;
        Ok(Self {
            shape,
            len,
            entries: parts.entries.into_owned(),
            levels: parts.levels.into_owned(),
            codes: parts.codes.into_owned(),
        })
    }

    /// What the kernels read.
    pub fn view(&self) -> ProductView<'_> {
        ProductView {
            shape: self.shape,
            len: self.len,
            entries: &self.entries,
            levels: &self.levels,
            codes: &self.codes,
        }
    }

    /// What the codes have to be, made anew from the keys and the same codebooks.
    pub(crate) fn again(
        &self,
        kernel: Kernel,
        keys: &[f32],
        centre: &[f32],
        order: Option<&[u32]>,
    ) -> Self {
        let entries = self.entries.clone();
        Self::with_entries(kernel, self.shape, entries, keys, centre, order)
    }

    pub(crate) fn bytes(&self) -> usize {
        memory::bytes(&self.entries) + memory::bytes(&self.levels) + memory::bytes(&self.codes)
    }

    fn with_entries(
        kernel: Kernel,
        shape: ProductShape,
        entries: Vec<f32>,
        keys: &[f32],
        centre: &[f32],
        order: Option<&[u32]>,
    ) -> Self {
        let dim = shape.dim();
        let len = keys.len() / dim;
        let mut codes = vec![0; len.div_ceil(TILE) * shape.tile_bytes()];
        let mut reaches = vec![0.0; len];
        let batches = codes
            .chunks_mut(GATHER_TILES * shape.tile_bytes())
            .zip(reaches.chunks_mut(GATHER_TILES * TILE));
        let mut gathered = Vec::new();
        for (i, (codes, reaches)) in batches.enumerate() {
            let slots = i * GATHER_TILES * TILE..i * GATHER_TILES * TILE + reaches.len();
            let rows = match order {
                None => &keys[slots.start * dim..slots.end * dim],
                Some(order) => {
                    gathered.clear();
                    for &position in &order[slots] {
                        gathered.extend_from_slice(&keys[position as usize * dim..][..dim]);
                    }
                    &gathered
                }
            };
            kernel.product_encode(shape, rows, centre, &entries, codes, reaches);
        }
        let levels = levels(&reaches, shape.entries());
        kernel.product_levels(shape, &levels, &reaches, &mut codes);
        Self {
            shape,
            len,
            entries,
            levels,
            codes,
        }
    }
}

/// Levels that as many of the reaches share: each reach is rounded up to the next.
fn levels(reaches: &[f32], count: usize) -> Vec<f32> {
    let mut sorted = reaches.to_vec();
    sorted.sort_unstable_by(f32::total_cmp);
    let level = |j: usize| (j * sorted.len()).div_ceil(count).checked_sub(1);
    (1..=count)
        .map(|j| level(j).map_or(0.0, |at| sorted[at]))
        .collect()
}

/// Lloyd's iterations on a sample of the keys, for all subvectors side by side.
struct Training {
    shape: ProductShape,
    max_iterations: usize,
    seed: u64,
    sample: Vec<f32>,
}

impl Training {
    fn new(shape: ProductShape, config: &ProductConfig, keys: &[f32], centre: &[f32]) -> Self {
        let dim = centre.len();
        let len = keys.len() / dim;
        let count = config.train.min(len);
        let rows = (0..count).map(|i| i * len / count);
        Self {
            shape,
            max_iterations: config.max_iterations,
            seed: config.seed,
            sample: rows
                .flat_map(|row| &keys[row * dim..][..dim])
                .copied()
                .collect(),
        }
    }

    /// The codebooks: finite, and no farther from zero than the farthest sampled key is from `centre`.
    fn entries(&self, kernel: Kernel, centre: &[f32]) -> Vec<f32> {
        let (shape, len) = (self.shape, self.sample.len() / centre.len());
        let mut entries = self.first_entries(centre);
        if len == 0 {
            return entries;
        }
        let mut codes = vec![0; len.div_ceil(TILE) * shape.tile_bytes()];
        let mut before = Vec::new();
        let mut reaches = vec![0.0; len];
        for _ in 0..self.max_iterations {
            kernel.product_encode(
                shape,
                &self.sample,
                centre,
                &entries,
                &mut codes,
                &mut reaches,
            );
            if codes == before {
                break;
            }
            self.update(&codes, centre, &mut entries);
            before.clone_from(&codes);
        }
        entries
    }

    /// k-means++ (Arthur and Vassilvitskii 2007, section 2.2) in each subvector: sampled keys, each with a probability that
    /// grows with its squared distance from those taken before.
    fn first_entries(&self, centre: &[f32]) -> Vec<f32> {
        let (dim, count) = (centre.len(), self.shape.entries());
        let mut entries = vec![0.0; dim * count];
        let len = self.sample.len() / dim;
        if len == 0 {
            return entries;
        }
        let mut random = StdRng::seed_from_u64(self.seed);
        let mut squares = vec![0.0f32; len];
        for m in 0..self.shape.subvectors() {
            let dims = self.shape.dims(m);
            squares.fill(f32::INFINITY);
            let mut chosen = random.random_range(0..len);
            for j in 0..count {
                let entry = &self.sample[chosen * dim..][dims.clone()];
                for (i, (x, mu)) in dims.clone().zip(entry.iter().zip(&centre[dims.clone()])) {
                    entries[i * count + j] = x - mu;
                }
                let mut total = 0.0f64;
                for (square, row) in squares.iter_mut().zip(self.sample.chunks_exact(dim)) {
                    let pairs = row[dims.clone()].iter().zip(entry);
                    let distance: f32 = pairs.map(|(x, y)| (x - y) * (x - y)).sum();
                    *square = square.min(distance);
                    total += f64::from(*square);
                }
                chosen = if total > 0.0 && total.is_finite() {
                    pick(&squares, random.random::<f64>() * total)
                } else {
                    (chosen + 1) % len
                };
            }
        }
        entries
    }

    /// Moves every entry to the mean of the sampled keys that are coded by it, if there are any.
    fn update(&self, codes: &[u8], centre: &[f32], entries: &mut [f32]) {
        let (dim, count) = (centre.len(), self.shape.entries());
        let mut sums = vec![0.0f64; dim * count];
        let mut members = vec![0u32; self.shape.subvectors() * count];
        for (slot, row) in self.sample.chunks_exact(dim).enumerate() {
            for m in 0..self.shape.subvectors() {
                let code = self.shape.code(codes, slot, m);
                members[m * count + code] += 1;
                for i in self.shape.dims(m) {
                    sums[i * count + code] += f64::from(row[i]) - f64::from(centre[i]);
                }
            }
        }
        for (m, members) in members.chunks_exact(count).enumerate() {
            for i in self.shape.dims(m) {
                let here = i * count..(i + 1) * count;
                let parts = entries[here.clone()].iter_mut().zip(&sums[here]);
                for ((entry, sum), &members) in parts.zip(members) {
                    if members > 0 {
                        *entry = (sum / f64::from(members)) as f32;
                    }
                }
            }
        }
    }
}

/// The first index at which the running sum of `squares` passes `at`.
fn pick(squares: &[f32], mut at: f64) -> usize {
    for (i, &square) in squares.iter().enumerate() {
        at -= f64::from(square);
        if at < 0.0 {
            return i;
        }
    }
    squares.len() - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Five corners in each of two subvectors: sixteen entries hold them all.
    fn corners(len: usize) -> Vec<f32> {
        (0..len)
            .flat_map(|i| {
                let (a, b) = ((i * 7 % 5) as f32, (i * 3 % 5) as f32);
                [a, 10.0 * a, -b, 1.0]
            })
            .collect()
    }

    #[test]
    fn few_distinct_subvectors_are_coded_exactly() {
        let keys = corners(100);
        for bits in [4, 8] {
            let config = ProductConfig::default().with_subvectors(2).with_bits(bits);
            let codes = ProductCodes::new(Kernel::best(), &config, &keys, &[0.0; 4], None);
            let view = codes.view();
            // What is left is the rounding of a score: 5 * 2^-24 of the norm of a key.
            assert!(view.levels.iter().all(|&level| level < 1e-4), "{view:?}");
        }
    }

    #[test]
    fn training_lowers_what_the_codes_leave_out() {
        let dim = 24;
        let mut random = StdRng::seed_from_u64(5);
        let keys: Vec<f32> = (0..2000 * dim)
            .map(|_| random.random_range(-1.0f32..1.0) + random.random_range(-1.0f32..1.0))
            .collect();
        let left = |iterations: usize| -> f64 {
            let config = ProductConfig::default()
                .with_subvectors(8)
                .with_max_iterations(iterations);
            let codes = ProductCodes::new(Kernel::best(), &config, &keys, &vec![0.0; dim], None);
            codes.levels.iter().map(|&level| f64::from(level)).sum()
        };
        let (start, end) = (left(0), left(10));
        assert!(end < 0.93 * start, "{start} {end}");
    }

    #[test]
    fn kernels_and_orders_give_the_same_codes() {
        let (dim, len) = (10, 1100);
        let keys: Vec<f32> = (0..len * dim).map(|i| (i as f32 * 0.77).sin()).collect();
        let order: Vec<u32> = (0..len as u32).map(|i| i * 7 % len as u32).collect();
        let moved: Vec<f32> = order
            .iter()
            .flat_map(|&row| &keys[row as usize * dim..][..dim])
            .copied()
            .collect();
        for bits in [4, 8] {
            let config = ProductConfig::default().with_subvectors(3).with_bits(bits);
            let make = |kernel, order| ProductCodes::new(kernel, &config, &keys, &[0.1; 10], order);
            let expected = make(Kernel::Scalar, Some(&order[..]));
            for kernel in Kernel::available() {
                assert_eq!(make(kernel, Some(&order[..])), expected);
                assert_eq!(expected.again(kernel, &moved, &[0.1; 10], None), expected);
            }
            assert_ne!(make(Kernel::Scalar, None).codes, expected.codes);
        }
    }

    #[test]
    fn what_cannot_be_coded_is_refused() {
        let builder = ProductQuantizationBuilder::new(ProductConfig::default()).unwrap();
        let build = |keys: &[f32], centre: &[f32], order| {
            builder.build(Kernel::best(), keys, centre, order).map(drop)
        };
        assert_eq!(build(&[], &[], None), Err(IndexError::ZeroDimension));
        assert!(build(&[], &[1.0], None).is_ok());
        assert!(build(&[1.0; 3], &[0.0; 2], None).is_err());
        assert!(build(&[f32::NAN; 2], &[0.0; 2], None).is_err());
        assert!(build(&[1.0; 2], &[f32::INFINITY; 2], None).is_err());
        assert!(build(&[1.0; 4], &[0.0; 2], Some(&[0])).is_err());
        assert!(build(&[1.0; 4], &[0.0; 2], Some(&[0, 2])).is_err());
        for config in [
            ProductConfig::default().with_bits(5),
            ProductConfig::default().with_subvectors(0),
            ProductConfig::default().with_subvectors(128),
            ProductConfig::default().with_train(0),
        ] {
            assert!(ProductQuantizationBuilder::new(config).is_err());
        }
    }
}
