//! What is measured, as data: every scenario has a name, and `--only` picks by it.

use hira_kernels::Precision;
use hira_threshold::ThresholdRule;

/// Heads and dimensions of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// 9 query heads on 3 KV heads of dimension 64: the model of the captures.
    SmolLm2,
    /// 32 query heads on 8 KV heads of dimension 128.
    Llama3,
    /// So many query heads on one KV head of dimension 64.
    OneHead(usize),
}

impl Shape {
    /// KV heads.
    pub fn kv_heads(self) -> usize {
        match self {
            Self::SmolLm2 => 3,
            Self::Llama3 => 8,
            Self::OneHead(_) => 1,
        }
    }

    /// Query heads of a KV head.
    pub fn group(self) -> usize {
        match self {
            Self::SmolLm2 => 3,
            Self::Llama3 => 4,
            Self::OneHead(group) => group,
        }
    }

    /// Dimension of keys and values.
    pub fn dim(self) -> usize {
        match self {
            Self::SmolLm2 | Self::OneHead(_) => 64,
            Self::Llama3 => 128,
        }
    }

    /// Bytes of keys and values for so many tokens.
    pub fn kv_bytes(self, len: usize, precision: Precision) -> usize {
        2 * self.kv_heads() * self.dim() * len * precision.bytes()
    }

    fn name(self) -> String {
        match self {
            Self::SmolLm2 => "smollm2".to_owned(),
            Self::Llama3 => "llama3".to_owned(),
            Self::OneHead(group) => format!("one-head-g{group}"),
        }
    }
}

/// Where keys and values come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// The last tokens of a captured layer.
    Layer(usize),
    /// Drawn by a [`Generator`](super::Generator) that was fitted to captured layers.
    Generated,
}

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A decode step's attention.
    Step,
    /// The search of one head for one query, without values.
    Search,
}

/// One line of the list.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// What is timed.
    pub work: Work,
    /// Heads and dimensions.
    pub shape: Shape,
    /// Where the rows come from.
    pub data: Data,
    /// Keys of a KV head.
    pub len: usize,
    /// How keys and values are stored. With less than f32 they are rounded beforehand, so that every answer is of the rounded ones.
    pub precision: Precision,
    /// Whether each contender uses the same copy again, instead of rotating over more than the caches hold.
    pub warm: bool,
    /// Rules of the sparse contenders.
    pub rules: Vec<ThresholdRule>,
    /// Whether one more of them keeps the mass that takes as many keys as the first rule, the best so many.
    pub by_mass: bool,
    /// Whether it belongs to the short run too.
    pub quick: bool,
    /// Whether its rows are written for other programs.
    pub peers: bool,
}

/// Longest context at which Burn's attention is measured: above, it takes tens of milliseconds a step and its ratio stays.
pub const BURN_LONGEST: usize = 32_768;

/// Most bytes of keys and values that the copies of one contender take.
const MEMORY: usize = 3 << 29;

/// Keys of the captures.
const CAPTURED: usize = 8192;

const TOP_256: ThresholdRule = ThresholdRule::TopK { k: 256 };
const TOP_64: ThresholdRule = ThresholdRule::TopK { k: 64 };
const TOP_2_PERCENT: ThresholdRule = ThresholdRule::Percentile { percent: 2.0 };

impl Scenario {
    /// Its name, unique in [`all`]: `smollm2/layer14/8192`, `llama3/generated/32768`, `search/layer14/8192`; those with
    /// 16 bits end in `/bf16`, warm ones in `/warm`.
    pub fn name(&self) -> String {
        let shape = match self.work {
            Work::Step => self.shape.name(),
            Work::Search => "search".to_owned(),
        };
        let data = match self.data {
            Data::Layer(layer) => format!("layer{layer:02}"),
            Data::Generated => "generated".to_owned(),
        };
        let bits = match self.precision {
            Precision::F32 => String::new(),
            precision => format!("/{}", precision.name()),
        };
        let warm = if self.warm { "/warm" } else { "" };
        format!("{shape}/{data}/{}{bits}{warm}", self.len)
    }

    /// Whether Burn's own attention takes part.
    pub fn has_burn(&self) -> bool {
        // the CPU backends have no 16-bit floats
        let f32 = self.precision == Precision::F32;
        self.work == Work::Step && self.len <= BURN_LONGEST && f32
    }

    /// Copies that a contender rotates over, for a last-level cache of so many bytes; 1 if warm.
    ///
    /// 30, SmolLM2's layers, or as many as make four times the cache; fewer where those do not fit into 1.5 GiB, but at least one,
    /// which is then by itself many times the cache.
    pub fn copies(&self, cache: usize) -> usize {
        if self.warm {
            return 1;
        }
        let bytes = self.kv_bytes();
        let layers = 30.max((4 * cache).div_ceil(bytes)).min(512);
        layers.min(MEMORY / bytes).max(1)
    }

    /// Bytes of one copy's keys and values.
    pub fn kv_bytes(&self) -> usize {
        self.shape.kv_bytes(self.len, self.precision)
    }

    fn step(shape: Shape, data: Data, len: usize) -> Self {
        Self {
            work: Work::Step,
            shape,
            data,
            len,
            precision: Precision::F32,
            warm: false,
            rules: vec![TOP_256, TOP_64, TOP_2_PERCENT],
            by_mass: false,
            quick: false,
            peers: false,
        }
    }

    fn quick(self) -> Self {
        Self {
            quick: true,
            ..self
        }
    }

    fn peers(self) -> Self {
        Self {
            peers: true,
            ..self
        }
    }

    fn only_top_256(self) -> Self {
        Self {
            rules: vec![TOP_256],
            ..self
        }
    }

    fn bf16(self) -> Self {
        Self {
            precision: Precision::Bf16,
            ..self
        }
    }

    fn warm(self) -> Self {
        Self { warm: true, ..self }
    }

    fn search(data: Data, len: usize) -> Self {
        Self {
            work: Work::Search,
            ..Self::step(Shape::OneHead(1), data, len).only_top_256()
        }
    }
}

/// Every scenario, in the order in which they run.
pub fn all() -> Vec<Scenario> {
    use Shape::{Llama3, OneHead, SmolLm2};
    let layer = Data::Layer(14);
    let generated = Data::Generated;
    let step = Scenario::step;
    let mut list = Vec::new();
    // short contexts: never slower than dense
    for len in [16, 64, 256, 1024, 1536] {
        list.push(step(SmolLm2, layer, len).only_top_256());
    }
    list.push(step(SmolLm2, layer, 4096));
    for len in [512, 2048, CAPTURED] {
        let scenario = step(SmolLm2, layer, len).quick().peers();
        list.push(Scenario {
            by_mass: len == CAPTURED,
            ..scenario
        });
        list.push(step(SmolLm2, layer, len).only_top_256().warm());
    }
    for other in [0, 3, 26] {
        let scenario = step(SmolLm2, Data::Layer(other), CAPTURED).only_top_256();
        list.push(Scenario {
            // layer 0 is flat: dense whatever the rule
            by_mass: other > 0,
            ..scenario
        });
    }
    // the same context once more, generated: what the generator changes
    list.push(step(SmolLm2, generated, CAPTURED));
    list.push(step(SmolLm2, generated, 32 << 10).quick().peers());
    list.push(step(SmolLm2, generated, 128 << 10).quick().peers());
    list.push(step(SmolLm2, generated, 1 << 20));
    // keys and values of 16 bits
    for len in [512, 2048, CAPTURED] {
        list.push(step(SmolLm2, layer, len).bf16().only_top_256().quick());
    }
    for (len, quick) in [(32 << 10, true), (128 << 10, true), (1 << 20, false)] {
        let scenario = step(SmolLm2, generated, len).bf16().only_top_256();
        list.push(Scenario { quick, ..scenario });
    }
    for len in [512, 2048] {
        list.push(step(Llama3, generated, len).only_top_256());
    }
    list.push(step(Llama3, generated, CAPTURED).quick().peers());
    list.push(step(Llama3, generated, 32 << 10).quick().peers());
    list.push(step(Llama3, generated, 128 << 10));
    for group in [1, 3, 8] {
        list.push(step(OneHead(group), layer, CAPTURED));
        list.push(step(OneHead(group), generated, 128 << 10));
    }
    list.push(Scenario::search(layer, CAPTURED).quick().peers());
    list.push(Scenario::search(generated, 128 << 10).peers());
    list.push(Scenario::search(generated, 1 << 20));
    list
}

/// The scenarios that a run measures: the short list or all, those whose name contains `pattern`.
pub fn chosen(quick: bool, pattern: Option<&str>) -> Vec<Scenario> {
    let mut list = all();
    list.retain(|scenario| match pattern {
        // named ones run whether they belong to the short list or not
        Some(pattern) => scenario.name().contains(pattern),
        None => scenario.quick || !quick,
    });
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(quick: bool, pattern: Option<&str>) -> Vec<String> {
        chosen(quick, pattern).iter().map(Scenario::name).collect()
    }

    #[test]
    fn names_are_unique() {
        let mut names = names(false, None);
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn patterns_choose_by_name_and_quick_by_the_list() {
        assert_eq!(
            names(false, Some("search/layer14")),
            ["search/layer14/8192"]
        );
        assert_eq!(names(true, Some("layer14/64")), ["smollm2/layer14/64"]);
        assert_eq!(
            names(false, Some("2048/bf16")),
            ["smollm2/layer14/2048/bf16"]
        );
        assert_eq!(
            names(false, Some("layer14/512/warm")),
            ["smollm2/layer14/512/warm"]
        );
        assert!(names(false, Some("nothing like it")).is_empty());
        let quick = names(true, None);
        assert!(quick.contains(&"smollm2/layer14/8192".to_owned()));
        assert!(!quick.contains(&"smollm2/generated/1048576".to_owned()));
        assert!(quick.len() < names(false, None).len());
    }

    #[test]
    fn cold_copies_leave_the_cache_and_fit_into_memory() {
        let cache = 32 << 20;
        for scenario in all() {
            let copies = scenario.copies(cache);
            let bytes = copies * scenario.kv_bytes();
            assert!(copies > 0, "{}", scenario.name());
            if !scenario.warm && copies < 512 {
                assert!(bytes >= 4 * cache, "{}: {bytes}", scenario.name());
            }
            assert!(bytes <= 2 << 30, "{}: {bytes}", scenario.name());
        }
        let model = &chosen(false, Some("smollm2/layer14/8192"))[0];
        assert_eq!(model.copies(cache), 30);
    }
}
