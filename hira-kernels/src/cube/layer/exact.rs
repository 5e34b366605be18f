//! Exact rows that lie in main memory: how they get there, and back to the device.

use std::ops::Range;

use cubecl::bytes::Bytes;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::{Buffers, DeviceLayer};
use crate::cube::host::HostRows;
use crate::cube::quantise::{block_means_of_new, copy_heads};
use crate::cube::rows::argument;
use crate::cube::shape::{BLOCK, CHUNK};
use crate::cube::staged::{Ranks, Staged, send_run};
use crate::cube::{DeviceError, DeviceRows, DeviceShape};

/// New tokens that may wait on the device for the next step to read them.
const WAITING: usize = 16;

/// Where exact rows are.
#[derive(Clone, Debug)]
pub(super) enum Exact {
    /// In the layer's buffers.
    Device,
    /// In main memory.
    Host(HostExact),
}

/// Rows in main memory, and those on their way.
#[derive(Clone, Debug)]
pub(super) struct HostExact {
    rows: HostRows,
    /// What comes after them, oldest first.
    fresh: Vec<Fresh>,
    /// Sums of the values of the block that is not complete, `[heads][value_dim]`; `None` if tokens of it were taken back.
    open: Option<Handle>,
}

/// Rows that the device has written and nobody has read: keys and values `[heads][stride][row]`. Never written again, so forks share them.
#[derive(Clone, Debug)]
struct Fresh {
    rows: [Handle; 2],
    stride: usize,
    tokens: usize,
}

impl Exact {
    pub(super) fn is_on_device(&self) -> bool {
        matches!(self, Exact::Device)
    }

    /// Forgets what lies behind `len` tokens, of which there are more.
    pub(super) fn truncate(&mut self, len: usize) {
        if let Exact::Host(host) = self {
            let mut left = len.saturating_sub(host.rows.len());
            for fresh in &mut host.fresh {
                fresh.tokens = fresh.tokens.min(left);
                left -= fresh.tokens;
            }
            host.fresh.retain(|fresh| fresh.tokens > 0);
            host.rows.truncate(len);
            host.open = None;
        }
    }
}

impl HostExact {
    pub(super) fn new<R: Runtime>(client: &ComputeClient<R>, shape: &DeviceShape) -> Self {
        Self {
            rows: HostRows::new(shape),
            fresh: Vec::new(),
            open: Some(Self::empty_sums(client, shape)),
        }
    }

    fn empty_sums<R: Runtime>(client: &ComputeClient<R>, shape: &DeviceShape) -> Handle {
        client.empty(shape.heads * shape.value_dim * 4)
    }

    /// Tokens whose rows are on their way.
    fn waiting(&self) -> usize {
        self.fresh.iter().map(|fresh| fresh.tokens).sum()
    }

    /// Reads `first` and the rows that are on their way, with one wait for the device.
    fn fetch<R: Runtime>(
        &mut self,
        client: &ComputeClient<R>,
        first: Option<Handle>,
    ) -> Result<Option<Bytes>, DeviceError> {
        let fresh = self.fresh.iter().flat_map(|fresh| fresh.rows.clone());
        let handles: Vec<Handle> = first.iter().cloned().chain(fresh).collect();
        if handles.is_empty() {
            return Ok(None);
        }
        let mut read = read_all(client, handles)?.into_iter();
        let first = first.and_then(|_| read.next());
        for fresh in self.fresh.drain(..) {
            let (Some(keys), Some(values)) = (read.next(), read.next()) else {
                return Err(DeviceError::Read);
            };
            self.rows
                .append([&keys, &values], fresh.stride, fresh.tokens);
        }
        Ok(first)
    }
}

/// The rows of all heads, one after another.
fn joined(heads: &[Bytes]) -> Vec<u8> {
    heads
        .iter()
        .flat_map(|bytes| bytes.iter().copied())
        .collect()
}

/// Waits for the device and reads.
fn read_all<R: Runtime>(
    client: &ComputeClient<R>,
    handles: Vec<Handle>,
) -> Result<Vec<Bytes>, DeviceError> {
    let expected = handles.len();
    let read = cubecl::reader::try_read_sync(client.read_async(handles));
    match read {
        Some(Ok(read)) if read.len() == expected => Ok(read),
        _ => Err(DeviceError::Read),
    }
}

impl<R: Runtime> DeviceLayer<R> {
    /// Stores tokens whose exact rows go to main memory, [`CHUNK`] at a time.
    pub(super) fn append_to_host(
        &mut self,
        client: &ComputeClient<R>,
        keys: &DeviceRows,
        values: &DeviceRows,
        tokens: usize,
    ) -> Result<(), DeviceError> {
        let before = self.len;
        let mut done = 0;
        while done < tokens {
            let piece = CHUNK.min(tokens - done);
            let stored = self.append_piece(client, keys, values, done, piece);
            if stored.is_err() {
                self.truncate(before);
                return stored;
            }
            done += piece;
        }
        Ok(())
    }

    fn append_piece(
        &mut self,
        client: &ComputeClient<R>,
        keys: &DeviceRows,
        values: &DeviceRows,
        skip: usize,
        tokens: usize,
    ) -> Result<(), DeviceError> {
        let open = self.open_sums(client)?;
        let rows = Buffers::rows(client, &self.shape, tokens);
        let next = HostExact::empty_sums(client, &self.shape);
        self.quantise(client, keys, values, skip, tokens, Some(&rows));
        let blocks = (self.len + tokens).div_ceil(BLOCK) - self.len / BLOCK;
        block_means_of_new::launch(
            client,
            CubeCount::Static(blocks as u32, self.shape.heads as u32, 1),
            CubeDim::new_1d(self.shape.value_dim as u32 / 4),
            argument(&rows[1], 16),
            argument(&open, 4),
            argument(&next, 4),
            argument(&self.buffers.means, 4),
            self.len as u32,
            tokens as u32,
            self.capacity as u32,
            self.shape.value_dim,
            self.shape.precision,
        );
        self.len += tokens;
        let Exact::Host(host) = &mut self.exact else {
            return Ok(());
        };
        host.open = Some(next);
        host.fresh.push(Fresh {
            rows,
            stride: tokens,
            tokens,
        });
        if host.waiting() > WAITING {
            host.fetch(client, None)?;
        }
        Ok(())
    }

    /// The sums of the values of the block that goes on.
    fn open_sums(&mut self, client: &ComputeClient<R>) -> Result<Handle, DeviceError> {
        let Exact::Host(host) = &mut self.exact else {
            return Ok(HostExact::empty_sums(client, &self.shape));
        };
        if let Some(open) = &host.open {
            return Ok(open.clone());
        }
        host.fetch(client, None)?;
        let sums = host.rows.open_sums(self.shape.precision);
        let open = client.create_from_slice(f32::as_bytes(&sums));
        host.open = Some(open.clone());
        Ok(open)
    }

    /// What a step that was told by `marks`, `[heads][words]`, which rows it reads needs on the device beside them; `None` if that is more than
    /// `most` rows. Waits for the device, once.
    pub(in crate::cube) fn stage(
        &mut self,
        client: &ComputeClient<R>,
        marks: Handle,
        most: usize,
    ) -> Result<Option<Staged>, DeviceError> {
        let Exact::Host(host) = &mut self.exact else {
            return Ok(None);
        };
        let marks = host.fetch(client, Some(marks))?.ok_or(DeviceError::Read)?;
        let marks = u32::from_bytes(&marks);
        let ranks = Ranks::new(marks);
        if ranks.rows() > most {
            return Ok(None);
        }
        let heads = self.shape.heads;
        Ok(Some(Staged::new(client, &host.rows, marks, &ranks, heads)))
    }

    /// Brings what is still on its way to main memory, if that is where the rows lie. Waits for the device if something is.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Read`].
    pub fn settle_rows(&mut self, client: &ComputeClient<R>) -> Result<(), DeviceError> {
        if let Exact::Host(host) = &mut self.exact {
            host.fetch(client, None)?;
        }
        Ok(())
    }

    /// A copy on the device of the keys and values of `tokens`, `[heads][tokens][row]`, which lie in main memory and are
    /// [settled](Self::settle_rows) there; `None` if they are not.
    pub fn sent_rows(
        &self,
        client: &ComputeClient<R>,
        tokens: Range<usize>,
    ) -> Option<[Handle; 2]> {
        match &self.exact {
            Exact::Host(host) if tokens.end <= host.rows.len() => {
                Some(send_run(client, &host.rows, tokens, self.shape.heads))
            }
            _ => None,
        }
    }

    /// Moves the exact rows to main memory, where they stay from now on; nothing if they are there. Waits for the device.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Read`]; the rows are then where they were.
    ///
    /// # Complexity
    ///
    /// A read of all rows, 1024 tokens at a time.
    pub fn rows_to_host(&mut self, client: &ComputeClient<R>) -> Result<(), DeviceError> {
        let Some(rows) = &self.buffers.rows else {
            return Ok(());
        };
        let mut host = HostExact::new(client, &self.shape);
        let (heads, capacity) = (self.shape.heads, self.capacity as u64);
        for first in (0..self.len).step_by(CHUNK) {
            let tokens = CHUNK.min(self.len - first);
            let of_head = |rows: &Handle, head: usize| {
                let bytes = rows.size_in_used() / (heads as u64 * capacity);
                let start = (head as u64 * capacity + first as u64) * bytes;
                let end = start + tokens as u64 * bytes;
                let rest = rows.size_in_used() - end;
                rows.clone().offset_start(start).offset_end(rest)
            };
            let handles = rows
                .iter()
                .flat_map(|rows| (0..heads).map(move |head| of_head(rows, head)));
            let read = read_all(client, handles.collect())?;
            let (keys, values) = read.split_at(heads);
            let [keys, values] = [keys, values].map(joined);
            host.rows.append([&keys, &values], tokens, tokens);
        }
        host.open = None;
        self.buffers.rows = None;
        self.exact = Exact::Host(host);
        Ok(())
    }

    /// Moves the exact rows to the device, where they stay from now on; nothing if they are there. Waits for the device if rows are still on
    /// their way from it.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Read`]; the rows are then where they were.
    ///
    /// # Complexity
    ///
    /// A copy of all rows, 1024 tokens at a time.
    pub fn rows_to_device(&mut self, client: &ComputeClient<R>) -> Result<(), DeviceError> {
        self.settle_rows(client)?;
        let Exact::Host(host) = &self.exact else {
            return Ok(());
        };
        let heads = self.shape.heads;
        let rows = Buffers::rows(client, &self.shape, self.capacity);
        for first in (0..self.len).step_by(CHUNK) {
            let tokens = CHUNK.min(self.len - first);
            let sent = send_run(client, &host.rows, first..first + tokens, heads);
            for (sent, rows) in sent.iter().zip(&rows) {
                let of_head = rows.size_in_used() / 16 / heads as u64;
                let row = of_head as usize / self.capacity;
                let from = (tokens * row) as u32;
                copy_heads::launch(
                    client,
                    CubeCount::Static(from.div_ceil(256 * 16), heads as u32, 1),
                    CubeDim::new_1d(256),
                    argument(sent, 16),
                    argument(rows, 16),
                    from,
                    of_head as u32,
                    (first * row) as u32,
                );
            }
        }
        self.buffers.rows = Some(rows);
        self.exact = Exact::Device;
        Ok(())
    }
}
