//! The k-means builder and its settings.

use serde::{Deserialize, Serialize};

use super::lloyd::Lloyd;
use super::{BuildInput, Builder, Hierarchy};
use crate::IndexError;

/// k-means, level by level from the coarsest: Lloyd's iterations on a sample, then every key to its nearest centroid.
///
/// The same keys and settings give the same clusters on every kernel and thread count. None is empty, whatever the keys are.
///
/// # References
///
/// S. Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory 28(2), 1982, section II. D. Arthur and S.
/// Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007, section 2.2. For `spherical`: I. Dhillon and D. Modha,
/// "Concept decompositions for large sparse text data using clustering", Machine Learning 42, 2001, section 3.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KMeansBuilder {
    /// Where the first centroids come from. Default: k-means++.
    pub start: KMeansStart,
    /// Most iterations of a single clustering. Default: 25.
    pub max_iterations: usize,
    /// Iterations end when the mean squared distance falls by less than this share. Default: 1e-4.
    pub tolerance: f32,
    /// Restarts with other first centroids, at least 1; the one of least squared distance is taken. Default: 1.
    pub nredo: usize,
    /// Whether keys are clustered by their direction alone, whatever their norm. Default: false.
    pub spherical: bool,
    /// Seed of the sample and of the start. Default: 0.
    pub seed: u64,
}

/// Where the first centroids of k-means come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum KMeansStart {
    /// k-means++: each further centroid is a key drawn with probability proportional to its squared distance from those before.
    #[default]
    PlusPlus,
    /// Distinct keys, drawn uniformly.
    Random,
}

impl Default for KMeansBuilder {
    fn default() -> Self {
        Self {
            start: KMeansStart::PlusPlus,
            max_iterations: 25,
            tolerance: 1e-4,
            nredo: 1,
            spherical: false,
            seed: 0,
        }
    }
}

impl KMeansBuilder {
    /// Says whether the values are possible, and if not, which key is wrong and what it has to be.
    ///
    /// # Errors
    ///
    /// [`IndexError::Config`].
    pub fn validate(&self) -> Result<(), IndexError> {
        let fault = |key, requirement| Err(IndexError::Config { key, requirement });
        if !(self.tolerance >= 0.0 && self.tolerance.is_finite()) {
            return fault("builder.k_means.tolerance", "finite and not negative");
        }
        if self.nredo == 0 {
            return fault("builder.k_means.nredo", "at least 1");
        }
        Ok(())
    }
}

impl Builder for KMeansBuilder {
    /// # Complexity
    ///
    /// O(keys * min(branching_factor, 64) * dim) a level for the final assignment, and as much for each iteration on a sample of at
    /// most 16 keys a cluster.
    fn build(&self, input: &BuildInput<'_>) -> Result<Hierarchy, IndexError> {
        let mut lloyd = Lloyd::new(*self, input.kernel, input.keys, input.dim);
        Hierarchy::divide(input, |rows, clusters| lloyd.split(rows, clusters))
    }
}
