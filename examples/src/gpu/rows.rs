//! Keys, values and queries of a Llama 3 layer in bf16, for `hira-gpu` and for other programs.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    ops::Range,
    path::Path,
};

use half::bf16;
use hira_kernels::Precision;

use super::Case;
use crate::bench::{Data, Library, Problem, Scenario, Shape, TooFewRows, Work};

/// Rows of one sequence, `[Hkv, N, D]`, and queries of some tokens.
pub struct GpuRows {
    /// Where they come from.
    pub source: &'static str,
    /// Query heads.
    pub heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Dimension.
    pub dim: usize,
    /// Keys of a KV head.
    pub len: usize,
    /// Keys.
    pub keys: Vec<bf16>,
    /// Values.
    pub values: Vec<bf16>,
    /// `[R, Hq, D]`.
    pub queries: Vec<bf16>,
}

impl GpuRows {
    /// Rows of so many keys, and queries of so many tokens; generated from recorded ones if there are any.
    ///
    /// # Errors
    ///
    /// [`TooFewRows`] if the recordings are too short to be fitted.
    pub fn generate(library: &Library, len: usize, queries: usize) -> Result<Self, TooFewRows> {
        let scenario = Scenario {
            work: Work::Step,
            shape: Shape::Llama3,
            data: Data::Generated,
            len,
            precision: Precision::Bf16,
            warm: false,
            rules: Vec::new(),
            quick: false,
            by_mass: false,
            peers: false,
        };
        let problem = Problem::of(&scenario, library, queries)?;
        let narrow = |rows: &[f32]| rows.iter().map(|&x| bf16::from_f32(x)).collect();
        let mut rows = Self {
            source: problem.source,
            heads: problem.heads(),
            kv_heads: problem.kv_heads,
            dim: problem.dim,
            len: problem.len,
            keys: narrow(&problem.keys),
            values: narrow(&problem.values),
            queries: narrow(&problem.queries),
        };
        // recordings may have fewer: they come again
        let wanted = queries * rows.heads * rows.dim;
        let recorded = rows.queries.clone();
        rows.queries = recorded.into_iter().cycle().take(wanted).collect();
        Ok(rows)
    }

    /// Tokens that have queries.
    pub fn tokens(&self) -> usize {
        self.queries.len() / (self.heads * self.dim)
    }

    /// Some rows of every head of keys or values, `[Hkv, n, D]`.
    pub fn part(&self, rows: &[bf16], range: Range<usize>) -> Vec<f32> {
        let heads = rows.chunks_exact(self.len * self.dim);
        heads
            .flat_map(|head| &head[range.start * self.dim..range.end * self.dim])
            .map(|x| x.to_f32())
            .collect()
    }

    /// Writes `k.bf16`, `v.bf16`, `q.bf16` (little-endian) and `rows.json`, which `benches/gpu/sdpa.py` reads.
    ///
    /// # Errors
    ///
    /// [`io::Error`] if a file cannot be written.
    pub fn write(&self, cases: &[Case], folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        for (name, rows) in [("k", &self.keys), ("v", &self.values), ("q", &self.queries)] {
            let mut file = BufWriter::new(File::create(folder.join(format!("{name}.bf16")))?);
            for value in rows {
                file.write_all(&value.to_le_bytes())?;
            }
            file.flush()?;
        }
        let cases: Vec<[usize; 2]> = cases
            .iter()
            .map(|case| [case.context, case.batch])
            .collect();
        let about = serde_json::json!({
            "source": self.source, "heads": self.heads, "kv_heads": self.kv_heads, "dim": self.dim,
            "len": self.len, "queries": self.tokens(), "cases": cases,
        });
        fs::write(folder.join("rows.json"), about.to_string())
    }
}
