//! What a step left in a workspace, for those who read it later.

use cubecl::prelude::*;
use cubecl::server::Handle;

use super::DeviceWorkspace;
use crate::cube::combine::CERTIFICATE;
use crate::cube::splits::Splits;
use crate::cube::threshold::CUT;
use crate::cube::{DecodeParams, DeviceCertificate};

impl DeviceCertificate {
    /// Reads what [`DeviceWorkspace::take_certificates`] handed out, for every query of every head. Waits for the device.
    pub fn read<R: Runtime>(client: &ComputeClient<R>, handle: Handle) -> Vec<Self> {
        let bytes = client.read_one_unchecked(handle);
        let (words, _) = f32::from_bytes(&bytes).as_chunks::<CERTIFICATE>();
        let of =
            |&[mass, error, tau, selected, survivors, log_sum_exp]: &[f32; CERTIFICATE]| Self {
                dropped_mass_bound: mass,
                output_error_bound: error,
                tau,
                selected: selected as usize,
                survivors: survivors as usize,
                log_sum_exp,
            };
        words.iter().map(of).collect()
    }
}

impl<R: Runtime> DeviceWorkspace<R> {
    /// The certificates of the last step, in a buffer that no later step writes to.
    ///
    /// # Complexity
    ///
    /// Takes a buffer of 24 bytes a query from the runtime's pool.
    pub fn take_certificates(&mut self, client: &ComputeClient<R>) -> Handle {
        let bytes = self.shape.queries() * CERTIFICATE * 4;
        std::mem::replace(&mut self.certificates, client.empty(bytes))
    }

    /// One word that is not 0 once a step has seen a query that is not finite or too large.
    pub fn faults_handle(&self) -> Handle {
        self.faults.clone()
    }

    /// Bytes of device memory that it holds.
    pub fn bytes(&self) -> u64 {
        let Self {
            estimates,
            maxima,
            positions,
            scores,
            marks,
            constants,
            cuts,
            bins,
            ..
        } = self;
        let Self {
            counts,
            tails,
            parts,
            certificates,
            faults,
            ..
        } = self;
        let all = [
            estimates,
            maxima,
            positions,
            scores,
            marks,
            constants,
            cuts,
            bins,
            counts,
            tails,
            parts,
            certificates,
            faults,
        ];
        all.iter().map(|handle| handle.size_in_used()).sum()
    }

    /// The positions that the last [`decode`](crate::cube::decode) attended to, ascending, for every query: `len` and `params` are its own.
    /// Waits for the device.
    pub fn attended(
        &self,
        client: &ComputeClient<R>,
        len: usize,
        params: &DecodeParams,
    ) -> Vec<Vec<u32>> {
        let read = |handle: &Handle| client.read_one_unchecked(handle.clone());
        let (positions, scores) = (read(&self.positions), read(&self.scores));
        let (counts, cuts) = (read(&self.counts), read(&self.cuts));
        let (positions, scores) = (u32::from_bytes(&positions), f32::from_bytes(&scores));
        let (counts, (cuts, _)) = (
            u32::from_bytes(&counts),
            f32::from_bytes(&cuts).as_chunks::<CUT>(),
        );
        let splits = Splits::new(&self.shape, len);
        let (splits, keys) = (splits.count, splits.keys());
        let window = len.saturating_sub(params.window);
        let attended = |query: usize| {
            let (tau, last) = (cuts[query][1], cuts[query][2].to_bits());
            let survivors = (0..splits).flat_map(|split| {
                let first = query * self.capacity + split * keys;
                let run = first..first + counts[query * splits + split] as usize;
                positions[run.clone()]
                    .iter()
                    .copied()
                    .zip(scores[run].iter().copied())
            });
            let reached = survivors.filter(|&(position, score)| {
                let always = (position as usize) < params.sinks || position as usize >= window;
                always || score > tau || (score == tau && position <= last)
            });
            let mut positions: Vec<u32> = reached.map(|(position, _)| position).collect();
            positions.sort_unstable();
            positions
        };
        (0..self.shape.queries()).map(attended).collect()
    }
}
