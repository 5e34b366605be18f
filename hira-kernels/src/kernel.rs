//! The instruction sets a kernel can use, detected at run time.

use crate::KernelError;

/// Proof that this machine has AVX2, FMA and F16C. Only [`Avx2::detect`] makes one.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Avx2(());

/// Proof that this machine has AVX-512 F, BW, VL, DQ and VNNI, AVX2, FMA, F16C and POPCNT. Only [`Avx512::detect`] makes one.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Avx512(());

#[cfg(target_arch = "x86_64")]
impl Avx2 {
    /// The token, if the running machine has the instructions.
    pub fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }
}

#[cfg(target_arch = "x86_64")]
impl Avx512 {
    /// The token, if the running machine has the instructions.
    pub fn detect() -> Option<Self> {
        let found = Avx2::detect().is_some()
            && is_x86_feature_detected!("popcnt")
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni");
        found.then_some(Self(()))
    }
}

/// An implementation of every operation in this crate.
///
/// Chosen once and passed along: the dispatch costs one branch a call, never one a key. All kernels give the same
/// bits for scores, sketches, intervals, candidates, tail sums, softmax weights and weighted sums.
///
/// On other architectures than x86-64 only [`Kernel::Scalar`] exists.
///
/// # Examples
///
/// ```
/// use hira_kernels::Kernel;
///
/// let query = [1.0, 2.0, 3.0];
/// let key = [4.0, 5.0, 6.0];
/// for kernel in Kernel::available() {
///     assert_eq!(kernel.score(&query, &key), 32.0, "{}", kernel.name());
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// Portable Rust; the reference for the others.
    Scalar,
    /// 8 lanes, with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// 16 lanes, with 8-bit dot products (VNNI).
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

impl Kernel {
    /// Every kernel that this machine can run, slowest first. Never empty.
    pub fn available() -> impl Iterator<Item = Kernel> {
        let kernels = [
            Some(Kernel::Scalar),
            #[cfg(target_arch = "x86_64")]
            Avx2::detect().map(Kernel::Avx2),
            #[cfg(target_arch = "x86_64")]
            Avx512::detect().map(Kernel::Avx512),
        ];
        kernels.into_iter().flatten()
    }

    /// The fastest kernel that this machine can run.
    pub fn best() -> Kernel {
        Self::available().last().unwrap_or(Kernel::Scalar)
    }

    /// `scalar`, `avx2` or `avx512`.
    pub fn name(self) -> &'static str {
        match self {
            Kernel::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512(_) => "avx512",
        }
    }

    /// The kernel of that [`name`](Self::name).
    ///
    /// # Errors
    ///
    /// [`KernelError::UnknownName`] if there is no such kernel, [`KernelError::Unavailable`] if this machine (or
    /// this architecture) cannot run it.
    ///
    /// # Examples
    ///
    /// ```
    /// use hira_kernels::{Kernel, KernelError};
    ///
    /// assert_eq!(Kernel::from_name("scalar"), Ok(Kernel::Scalar));
    /// assert_eq!(Kernel::from_name("mmx"), Err(KernelError::UnknownName));
    /// ```
    pub fn from_name(name: &str) -> Result<Kernel, KernelError> {
        let known = ["scalar", "avx2", "avx512"];
        let kernel = *known
            .iter()
            .find(|&&known| known == name)
            .ok_or(KernelError::UnknownName)?;
        Self::available()
            .find(|found| found.name() == kernel)
            .ok_or(KernelError::Unavailable { kernel })
    }
}

/// Calls the function of that name in the implementation that `$kernel` stands for.
macro_rules! dispatch {
    ($kernel:expr, $name:ident($($argument:expr),* $(,)?)) => {
        match $kernel {
            $crate::Kernel::Scalar => $crate::scalar::$name($($argument),*),
            #[cfg(target_arch = "x86_64")]
            $crate::Kernel::Avx2(token) => token.$name($($argument),*),
            #[cfg(target_arch = "x86_64")]
            $crate::Kernel::Avx512(token) => token.$name($($argument),*),
        }
    };
}
pub(crate) use dispatch;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_available_kernel_is_found_by_its_name() {
        for kernel in Kernel::available() {
            assert_eq!(Kernel::from_name(kernel.name()), Ok(kernel));
        }
        assert_eq!(Kernel::available().next(), Some(Kernel::Scalar));
        assert_eq!(Kernel::available().last(), Some(Kernel::best()));
    }
}
