//! Product quantisation: codes of a few bits a subvector, and a proven upper bound for a whole tile of them.
//!
//! A coarser sketch than the int8 one, read before it: at 64 dimensions and 16 subvectors of 4 bits it takes 9 bytes a
//! key instead of 68. Every 16 keys get one upper bound a query; a tile whose bound misses the threshold needs no
//! further look.
//!
//! # References
//!
//! Jégou, Douze, Schmid, Product Quantization for Nearest Neighbor Search (2011), section 3: the codes, and distances
//! by table. André, Kermarrec, Le Scouarnec, Cache locality is not enough (2015), section 4: 4-bit codes, whose tables
//! fit a register and are read by a byte shuffle. Neither proves a bound; that part is derived at
//! [`ProductTables::prepare`].

mod encode;
mod tables;

use std::ops::Range;

use crate::kernel::dispatch;
use crate::scan::MAX_SHARED;
use crate::{Kernel, MAX_DIM, TILE};

pub(crate) use encode::encode;
pub(crate) use tables::Constants;
pub use tables::ProductTables;

/// Most subvectors of a product code: with the row of reaches, 128 rows of bytes sum to at most `128 * 255 < 2^16`.
pub const MAX_SUBVECTORS: usize = 127;

/// How a key is cut into subvectors, and how many bits each of them gets.
///
/// # Numerics
///
/// The subvectors are runs of `ceil(dim / subvectors)` dimensions; the last one may be shorter, and where the run length
/// leaves nothing for the last ones there are fewer of them than asked for.
///
/// # Examples
///
/// ```
/// use hira_kernels::ProductShape;
///
/// let shape = ProductShape::new(64, 16, 4);
/// assert_eq!((shape.subvectors(), shape.entries(), shape.tile_bytes()), (16, 16, 9 * 16));
/// assert_eq!(ProductShape::new(10, 4, 8).dims(3), 9..10);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProductShape {
    dim: usize,
    width: usize,
    bits: u32,
}

impl ProductShape {
    /// # Panics
    ///
    /// If `dim` is 0 or above [`MAX_DIM`], `subvectors` is 0 or above [`MAX_SUBVECTORS`], or `bits` is neither 4 nor 8.
    pub fn new(dim: usize, subvectors: usize, bits: u32) -> Self {
        assert!(
            dim > 0 && dim <= MAX_DIM,
            "a row has 1 to {MAX_DIM} dimensions, not {dim}"
        );
        assert!(
            (1..=MAX_SUBVECTORS).contains(&subvectors),
            "a code has 1 to {MAX_SUBVECTORS} subvectors, not {subvectors}"
        );
        assert!(bits == 4 || bits == 8, "a subvector has 4 or 8 bits");
        Self {
            dim,
            width: dim.div_ceil(subvectors),
            bits,
        }
    }

    /// Dimensions per key.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Subvectors per key.
    pub fn subvectors(&self) -> usize {
        self.dim.div_ceil(self.width)
    }

    /// Codebook entries of a subvector, and levels of the reach: 16 or 256.
    pub fn entries(&self) -> usize {
        1 << self.bits
    }

    /// The dimensions of subvector `m`.
    pub fn dims(&self, m: usize) -> Range<usize> {
        m * self.width..self.dim.min((m + 1) * self.width)
    }

    /// Bytes that the codes of a tile of sixteen keys take.
    ///
    /// A tile has one row of sixteen codes for each subvector and one for the reach. Rows of 8 bits are sixteen bytes
    /// each; of 4-bit rows, two share sixteen bytes, the even row in the low nibbles.
    pub fn tile_bytes(&self) -> usize {
        if self.bits == 4 {
            TILE * self.rows().div_ceil(2)
        } else {
            TILE * self.rows()
        }
    }

    /// The code of a slot in row `row`: a subvector's, or in row [`subvectors`](Self::subvectors) the level of the reach.
    ///
    /// # Panics
    ///
    /// If `codes` does not hold the slot.
    pub fn code(&self, codes: &[u8], slot: usize, row: usize) -> usize {
        let byte = codes[self.byte(slot, row)];
        usize::from(if self.bits == 4 {
            byte >> (4 * (row % 2)) & 0x0f
        } else {
            byte
        })
    }

    /// Rows of a tile: subvectors and reach.
    pub(crate) fn rows(&self) -> usize {
        self.subvectors() + 1
    }

    pub(crate) fn has_nibbles(&self) -> bool {
        self.bits == 4
    }

    fn byte(&self, slot: usize, row: usize) -> usize {
        let line = if self.bits == 4 { row / 2 } else { row };
        slot / TILE * self.tile_bytes() + line * TILE + slot % TILE
    }

    /// Writes a code into a slot whose nibble or byte is 0.
    fn put(&self, codes: &mut [u8], slot: usize, row: usize, code: usize) {
        let shift = if self.bits == 4 { 4 * (row % 2) } else { 0 };
        codes[self.byte(slot, row)] |= (code as u8) << shift;
    }
}

/// Borrowed product codes of `len` keys.
#[derive(Clone, Copy, Debug)]
pub struct ProductView<'a> {
    /// Subvectors and bits.
    pub shape: ProductShape,
    /// Keys; lanes of the last tile beyond them repeat the last key.
    pub len: usize,
    /// The codebooks, `[dim][shape.entries()]`: entry `j` of a subvector is column `j` of its dimensions.
    pub entries: &'a [f32],
    /// The reaches that a key can have, ascending: `shape.entries()` of them.
    pub levels: &'a [f32],
    /// `tiles() * shape.tile_bytes()` bytes, or more.
    pub codes: &'a [u8],
}

impl ProductView<'_> {
    /// Tiles that hold the keys, the partly filled one included.
    pub fn tiles(&self) -> usize {
        self.len.div_ceil(TILE)
    }

    fn check(&self) {
        let entries = self.shape.entries();
        assert_eq!(
            self.entries.len(),
            self.shape.dim * entries,
            "the codebooks are [dim][entries]"
        );
        assert_eq!(self.levels.len(), entries, "one level per code");
    }
}

/// The codes of a run of whole tiles: what the kernels trust.
#[derive(Clone, Copy)]
pub(crate) struct CodeTiles<'a> {
    codes: &'a [u8],
    shape: ProductShape,
}

impl<'a> CodeTiles<'a> {
    /// # Panics
    ///
    /// If `tiles` reaches past the codes.
    fn new(product: ProductView<'a>, tiles: Range<usize>) -> Self {
        assert!(tiles.start <= tiles.end, "a range of tiles ascends");
        let bytes = product.shape.tile_bytes();
        Self {
            codes: &product.codes[tiles.start * bytes..tiles.end * bytes],
            shape: product.shape,
        }
    }

    pub(crate) fn shape(&self) -> ProductShape {
        self.shape
    }

    /// As many groups of `N` tiles as there are, and the tiles that are left.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn split<const N: usize>(
        &self,
    ) -> (impl Iterator<Item = [&'a [u8]; N]> + use<'a, N>, Self) {
        let bytes = self.shape.tile_bytes();
        let whole = self.codes.len() / (N * bytes) * (N * bytes);
        let (groups, rest) = self.codes.split_at(whole);
        let groups = groups
            .chunks_exact(N * bytes)
            .map(move |group| std::array::from_fn(|i| &group[i * bytes..][..bytes]));
        let rest = Self {
            codes: rest,
            shape: self.shape,
        };
        (groups, rest)
    }

    /// The tiles, `shape().tile_bytes()` bytes each.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        self.codes.chunks_exact(self.shape.tile_bytes())
    }
}

impl Kernel {
    /// Encodes the rows of `keys` about `centre` into the first slots of `codes`, and writes the reach of each.
    ///
    /// For each row `k` and subvector, the code is the codebook entry nearest to `k - centre`, in `f32`. The reach bounds
    /// what the codes leave out: see the numerics of [`ProductTables::prepare`]. Codes of reaches are not written, for
    /// their levels depend on all of them: [`product_levels`](Self::product_levels) comes next.
    ///
    /// # Shapes
    ///
    /// `keys`: `[reaches.len()][dim]`, `entries`: `[dim][shape.entries()]`, `codes`: whole tiles, which are overwritten.
    ///
    /// # Numerics
    ///
    /// The same bits on every kernel. The reach is an upper bound whichever entry was chosen.
    ///
    /// # Complexity
    ///
    /// `O(dim * shape.entries())` a row, without allocation.
    ///
    /// # Panics
    ///
    /// If a length is another than the shape asks for. Rows must be finite with norm below [`MAX_NORM`](crate::MAX_NORM),
    /// and so must `centre`; entries must be finite and below `2^65`.
    pub fn product_encode(
        self,
        shape: ProductShape,
        keys: &[f32],
        centre: &[f32],
        entries: &[f32],
        codes: &mut [u8],
        reaches: &mut [f32],
    ) {
        assert_eq!(centre.len(), shape.dim, "the centre is one row");
        assert_eq!(keys.len(), reaches.len() * shape.dim, "one reach per key");
        assert_eq!(
            entries.len(),
            shape.dim * shape.entries(),
            "the codebooks are [dim][entries]"
        );
        let tiles = reaches.len().div_ceil(TILE);
        assert_eq!(
            codes.len(),
            tiles * shape.tile_bytes(),
            "codes are {tiles} tiles"
        );
        dispatch!(
            self,
            product_encode(shape, keys, centre, entries, codes, reaches)
        );
    }

    /// Writes the code of every reach, the first of the ascending `levels` that is not below it, into the encoded slots.
    ///
    /// # Panics
    ///
    /// If `codes` is not the tiles of as many keys, there are not `shape.entries()` levels, they do not ascend, or the
    /// last of them is below a reach.
    pub fn product_levels(
        self,
        shape: ProductShape,
        levels: &[f32],
        reaches: &[f32],
        codes: &mut [u8],
    ) {
        assert_eq!(levels.len(), shape.entries(), "one level per code");
        assert!(levels.is_sorted(), "levels ascend");
        let tiles = reaches.len().div_ceil(TILE);
        assert_eq!(
            codes.len(),
            tiles * shape.tile_bytes(),
            "codes are {tiles} tiles"
        );
        encode::write_levels(shape, levels, reaches, codes);
    }

    /// Writes for every tile and query a proven upper bound of the scores of all keys of the tile.
    ///
    /// # Shapes
    ///
    /// `bounds`: `[tables.len()][tiles.len()]`.
    ///
    /// # Units
    ///
    /// Scores.
    ///
    /// # Numerics
    ///
    /// `kernel.score(query, key) <= bound` for every key of the tile, always; derived at [`ProductTables::prepare`]. The
    /// same bits on every kernel.
    ///
    /// # Complexity
    ///
    /// `O(tiles * subvectors * queries)`; with 4-bit codes a shuffle looks up sixteen (AVX2: 32, AVX-512: 64) of them, with
    /// 8-bit codes each takes a load. Reads `shape.tile_bytes()` a tile.
    ///
    /// # Panics
    ///
    /// If `tables` were prepared for another shape, `tiles` reaches past the codes, or `bounds` has another length.
    pub fn product_bounds_into(
        self,
        product: ProductView<'_>,
        tiles: Range<usize>,
        tables: &ProductTables,
        bounds: &mut [f32],
    ) {
        assert_eq!(
            tables.shape(),
            Some(product.shape),
            "the tables are for codes of this shape"
        );
        let count = tiles.len();
        assert_eq!(
            bounds.len(),
            tables.len() * count,
            "bounds are [queries][tiles]"
        );
        let tiles = CodeTiles::new(product, tiles);
        if count == 0 {
            return;
        }
        let mut rows = bounds.chunks_exact_mut(count);
        for g in (0..tables.len()).step_by(MAX_SHARED) {
            let shared = MAX_SHARED.min(tables.len() - g);
            match shared {
                1 => self.product_bounds_of::<1>(tiles, tables, g, &mut rows),
                2 => self.product_bounds_of::<2>(tiles, tables, g, &mut rows),
                3 => self.product_bounds_of::<3>(tiles, tables, g, &mut rows),
                _ => self.product_bounds_of::<4>(tiles, tables, g, &mut rows),
            }
        }
    }

    fn product_bounds_of<'a, const G: usize>(
        self,
        tiles: CodeTiles<'_>,
        tables: &ProductTables,
        first: usize,
        rows: &mut impl Iterator<Item = &'a mut [f32]>,
    ) {
        let queries: [Query<'_>; G] = std::array::from_fn(|g| tables.query(first + g));
        let mut bounds: [&mut [f32]; G] =
            std::array::from_fn(|_| rows.next().expect("there is a row for each query"));
        if tiles.shape.has_nibbles() {
            dispatch!(self, product_bounds(tiles, queries, &mut bounds));
        } else {
            crate::scalar::product_bounds(tiles, queries, &mut bounds);
        }
    }
}

/// The tables of one query: what the kernels trust.
#[derive(Clone, Copy)]
pub(crate) struct Query<'a> {
    /// A table of `entries` bytes a row; for 4 bits, one of zeros after an odd number of rows.
    pub(crate) tables: &'a [u8],
    pub(crate) constants: Constants,
}

impl Query<'_> {
    /// The tables of the low and of the high nibbles of a pair of 4-bit rows.
    #[inline(always)]
    pub(crate) fn pair(&self, pair: usize) -> &[[u8; TILE]; 2] {
        &self.tables.as_chunks::<TILE>().0.as_chunks::<2>().0[pair]
    }
}
