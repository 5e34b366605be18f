//! What a decode step needs in device memory beside a layer.

use cubecl::prelude::*;
use cubecl::server::Handle;

use super::attend::PART;
use super::combine::{CERTIFICATE, MAX_PARTS};
use super::marks::WORD;
use super::mass::BINS;
use super::rows::argument;
use super::scan::CONSTANTS;
use super::shape::{CHUNK, KEYS};
use super::survivors::TAIL;
use super::threshold::CUT;
use super::{DeviceCertificate, DeviceError, DeviceShape};

mod handles;

/// Buffers of a decode step, for all layers of one shape: steps of one stream follow one another.
///
/// # Complexity
///
/// 13 bytes a query and key for which there is room, and about `2 KiB * Dv` a query.
pub struct DeviceWorkspace<R: Runtime> {
    shape: DeviceShape,
    capacity: usize,
    estimates: Handle,
    maxima: Handle,
    positions: Handle,
    scores: Handle,
    marks: Handle,
    constants: Handle,
    cuts: Handle,
    bins: Handle,
    counts: Handle,
    tails: Handle,
    parts: Handle,
    certificates: Handle,
    faults: Handle,
    runtime: std::marker::PhantomData<R>,
}

impl<R: Runtime> DeviceWorkspace<R> {
    /// A workspace for layers of `shape` with up to `capacity` keys, rounded up to whole chunks of 1024.
    ///
    /// # Errors
    ///
    /// As [`DeviceLayer::new`](super::DeviceLayer::new), and [`DeviceError::Device`] if the device is too small for the kernels.
    pub fn new(
        client: &ComputeClient<R>,
        shape: DeviceShape,
        capacity: usize,
    ) -> Result<Self, DeviceError> {
        shape.check()?;
        let limit = shape.limit();
        if capacity > limit {
            return Err(DeviceError::Capacity {
                limit,
                received: capacity,
            });
        }
        let hardware = &client.properties().hardware;
        let (units, shared) = (super::shape::UNITS, shared_bytes(&shape));
        if hardware.max_units_per_cube < units || hardware.max_shared_memory_size < shared {
            return Err(DeviceError::Device { units, shared });
        }
        let capacity = capacity.max(1).div_ceil(CHUNK) * CHUNK;
        let queries = shape.queries();
        let of_key = |bytes: usize| client.empty(queries * capacity * bytes);
        let of_query = |words: usize| client.empty(queries * words * 4);
        Ok(Self {
            shape,
            capacity,
            estimates: of_key(4),
            maxima: client.empty(queries * capacity / KEYS * 4),
            positions: of_key(4),
            scores: of_key(4),
            marks: client.empty(shape.heads * capacity / WORD * 4),
            constants: of_query(CONSTANTS),
            cuts: of_query(CUT),
            bins: of_query(2 * BINS),
            counts: of_query(MAX_PARTS),
            tails: of_query(MAX_PARTS * (TAIL + shape.value_dim)),
            parts: of_query(MAX_PARTS * (PART + shape.value_dim)),
            certificates: of_query(CERTIFICATE),
            faults: client.create_from_slice(u32::as_bytes(&[0])),
            runtime: std::marker::PhantomData,
        })
    }

    /// What layers it serves.
    pub fn shape(&self) -> DeviceShape {
        self.shape
    }

    /// Keys a layer may have.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Makes room for `len` keys, at least doubling the capacity if it grows. Nothing is kept.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Capacity`] if no index reaches so far.
    pub fn reserve(&mut self, client: &ComputeClient<R>, len: usize) -> Result<(), DeviceError> {
        if len > self.capacity {
            let doubled = (2 * self.capacity).min(self.shape.limit());
            *self = Self::new(client, self.shape, len.max(doubled))?;
        }
        Ok(())
    }

    /// What the last step proved, for every query of every head. Waits for the device.
    pub fn certificates(&self, client: &ComputeClient<R>) -> Vec<DeviceCertificate> {
        let bytes = client.read_one_unchecked(self.certificates.clone());
        let (words, _) = f32::from_bytes(&bytes).as_chunks::<CERTIFICATE>();
        let of = |&[mass, error, tau, selected, survivors, log_sum_exp]: &[f32; CERTIFICATE]| {
            DeviceCertificate {
                dropped_mass_bound: mass,
                output_error_bound: error,
                tau,
                selected: selected as usize,
                survivors: survivors as usize,
                log_sum_exp,
            }
        };
        words.iter().map(of).collect()
    }

    /// Whether a [`decode`](super::decode) since the workspace was made saw a query that is not finite or too large: its answer is meaningless. Waits for the device.
    pub fn saw_faulty_query(&self, client: &ComputeClient<R>) -> bool {
        let bytes = client.read_one_unchecked(self.faults.clone());
        u32::from_bytes(&bytes).iter().any(|&fault| fault != 0)
    }

    pub(super) fn estimates(&self) -> ArrayArg<R> {
        argument(&self.estimates, 4)
    }

    pub(super) fn maxima(&self) -> ArrayArg<R> {
        argument(&self.maxima, 4)
    }

    pub(super) fn positions(&self) -> ArrayArg<R> {
        argument(&self.positions, 4)
    }

    pub(super) fn scores(&self) -> ArrayArg<R> {
        argument(&self.scores, 4)
    }

    pub(super) fn marks(&self) -> ArrayArg<R> {
        argument(&self.marks, 4)
    }

    /// The first words of the marks, to be read.
    pub(super) fn marks_handle(&self, words: usize) -> Handle {
        let rest = self.marks.size_in_used() - 4 * words as u64;
        self.marks.clone().offset_end(rest)
    }

    pub(super) fn constants(&self) -> ArrayArg<R> {
        argument(&self.constants, 4)
    }

    pub(super) fn cuts(&self) -> ArrayArg<R> {
        argument(&self.cuts, 4)
    }

    pub(super) fn bins(&self) -> ArrayArg<R> {
        argument(&self.bins, 4)
    }

    pub(super) fn counts(&self) -> ArrayArg<R> {
        argument(&self.counts, 4)
    }

    pub(super) fn tails(&self) -> ArrayArg<R> {
        argument(&self.tails, 4)
    }

    pub(super) fn parts(&self) -> ArrayArg<R> {
        argument(&self.parts, 4)
    }

    pub(super) fn certificates_out(&self) -> ArrayArg<R> {
        argument(&self.certificates, 4)
    }

    pub(super) fn faults(&self) -> ArrayArg<R> {
        argument(&self.faults, 4)
    }

    /// Estimates, scores, positions, counts, cuts and constants.
    #[cfg(all(test, feature = "wgpu"))]
    pub(super) fn handles(&self) -> [Handle; 6] {
        let Self {
            estimates,
            scores,
            positions,
            counts,
            cuts,
            constants,
            ..
        } = self;
        [estimates, scores, positions, counts, cuts, constants].map(Handle::clone)
    }
}

/// Bytes of shared memory of the kernel that takes most, the dense one or the histogram of a mass.
fn shared_bytes(shape: &DeviceShape) -> usize {
    let units = super::shape::UNITS as usize;
    let shared = shape.group.min(super::scan::SHARED);
    let dense = 4 * shape.group * shape.dim
        + 4 * shared * units
        + 4 * shape.group * (units / 4 + 17)
        + 16 * units;
    dense.max(8 * BINS)
}
