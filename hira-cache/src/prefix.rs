//! Caches of prompts by their tokens: what a prompt shares with an earlier one is not computed again.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use crate::{CacheError, HiraCache, memory_of};

/// Why a cache was not stored. The store is then as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrefixError {
    /// A prefix is one sequence.
    #[error("expected a cache of 1 sequence, received {received}")]
    Sequences {
        /// Sequences of the cache.
        received: usize,
    },
    /// A layer holds fewer tokens than were named.
    #[error("expected a cache of at least {tokens} tokens in every layer, received {stored}")]
    Short {
        /// Tokens that were named.
        tokens: usize,
        /// Tokens that every layer holds.
        stored: usize,
    },
    /// The cache alone is larger than the store may be.
    #[error("expected at most {budget} bytes, received {received}")]
    Budget {
        /// Bytes that the store may use.
        budget: usize,
        /// Bytes of the cache.
        received: usize,
    },
    /// Later tokens than those that were named cannot be left out: a layer with a window has evicted keys that would be seen again.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// Forks of the caches of prompts, by model and tokens, within a budget of bytes; those that were not used for longest go first.
///
/// Tokens are compared one by one. Beside them there is only the name of the model, which must tell apart whatever changes keys or values: weights,
/// rotary positions, precision.
///
/// # Complexity
///
/// A look-up compares with O(log entries) token lists: in their order, the one that shares most with a prompt is beside it.
///
/// # Examples
///
/// ```
/// use hira_cache::{CacheConfig, HiraCache, PrefixStore};
///
/// let mut store = PrefixStore::new(1 << 20);
/// let mut cache = HiraCache::new(CacheConfig::new(1, 1, 1, 2, 100))?;
/// cache.append(0, &[0.5; 2 * 3], &[0.5; 2 * 3])?; // what the model made of tokens 7, 8 and 9
/// store.insert("model", &[7, 8, 9], &mut cache).expect("it fits");
///
/// let (shared, cache) = store.longest("model", &[7, 8, 3, 4]).expect("two tokens");
/// assert_eq!((shared, cache.len()), (2, 2)); // tokens 3 and 4 are left to compute
/// assert!(store.longest("another", &[7, 8]).is_none());
/// # Ok::<(), hira_cache::CacheError>(())
/// ```
#[derive(Debug, Clone)]
pub struct PrefixStore {
    budget: usize,
    models: HashMap<String, BTreeMap<Vec<u32>, Entry>>,
    /// Counts uses: the time of the last one.
    now: u64,
}

#[derive(Debug, Clone)]
struct Entry {
    cache: HiraCache,
    used: u64,
}

impl PrefixStore {
    /// An empty store of at most `budget` bytes of keys, values and index; what entries share counts once.
    pub fn new(budget: usize) -> Self {
        Self {
            budget,
            models: HashMap::new(),
            now: 0,
        }
    }

    /// Entries stored.
    pub fn len(&self) -> usize {
        self.models.values().map(BTreeMap::len).sum()
    }

    /// Whether nothing is stored.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all entries together.
    pub fn bytes(&self) -> usize {
        let entries = self.models.values().flat_map(BTreeMap::values);
        memory_of(entries.map(|entry| &entry.cache)).total()
    }

    /// Forgets every entry.
    pub fn clear(&mut self) {
        self.models.clear();
    }

    /// Keeps a [fork](HiraCache::fork) of `cache`, whose first tokens are `tokens`; later ones are left out. An entry of the same tokens is
    /// replaced.
    ///
    /// # Errors
    ///
    /// [`PrefixError`] for a cache of several sequences, of fewer tokens, or larger than the budget.
    pub fn insert(
        &mut self,
        model: &str,
        tokens: &[u32],
        cache: &mut HiraCache,
    ) -> Result<(), PrefixError> {
        let sequences = cache.config().sequences;
        if sequences != 1 {
            return Err(PrefixError::Sequences {
                received: sequences,
            });
        }
        if cache.len() < tokens.len() {
            return Err(PrefixError::Short {
                tokens: tokens.len(),
                stored: cache.len(),
            });
        }
        let mut fork = cache.fork();
        fork.truncate(tokens.len())?;
        let received = fork.memory().total();
        if received > self.budget {
            return Err(PrefixError::Budget {
                budget: self.budget,
                received,
            });
        }
        let used = self.tick();
        let entry = Entry { cache: fork, used };
        let of_model = self.models.entry(model.to_owned()).or_default();
        of_model.insert(tokens.to_vec(), entry);
        while self.bytes() > self.budget && self.len() > 1 {
            self.evict();
        }
        Ok(())
    }

    /// A cache of the longest beginning that `tokens` share with an entry of `model`, and its length; `None` if they share no token, or a layer with a window
    /// has evicted what the beginning sees.
    ///
    /// It may be all of `tokens`: whoever needs the logits of the last one truncates by one and computes that again. A beginning that ends inside
    /// of a long segment of an entry copies the part of that segment it needs; a whole entry copies nothing.
    pub fn longest(&mut self, model: &str, tokens: &[u32]) -> Option<(usize, HiraCache)> {
        let used = self.tick();
        let entries = self.models.get_mut(model)?;
        let beside = [
            entries
                .range::<[u32], _>((Bound::Unbounded, Bound::Included(tokens)))
                .next_back(),
            entries
                .range::<[u32], _>((Bound::Excluded(tokens), Bound::Unbounded))
                .next(),
        ];
        let beside = beside.into_iter().flatten();
        let shared = beside.map(|(key, _)| (shared(key, tokens), key));
        let (len, key) = shared.max_by_key(|&(len, _)| len)?;
        if len == 0 {
            return None;
        }
        let key = key.clone();
        let entry = entries.get_mut(&key)?;
        entry.used = used;
        let mut cache = entry.cache.fork();
        // A layer with a window may have forgotten what a shorter prompt sees.
        cache.truncate(len).ok()?;
        Some((len, cache))
    }

    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// Forgets the entry that was not used for longest.
    fn evict(&mut self) {
        let entries = self.models.iter().flat_map(|(model, entries)| {
            entries
                .iter()
                .map(move |(tokens, entry)| (entry.used, model, tokens))
        });
        let Some((_, model, tokens)) = entries.min_by_key(|&(used, ..)| used) else {
            return;
        };
        let (model, tokens) = (model.clone(), tokens.clone());
        if let Some(entries) = self.models.get_mut(&model) {
            entries.remove(&tokens);
            if entries.is_empty() {
                self.models.remove(&model);
            }
        }
    }
}

/// Number of leading tokens that are the same.
fn shared(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
