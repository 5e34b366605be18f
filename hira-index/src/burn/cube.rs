//! CubeCL backends (CUDA, wgpu): the device engine of hira-kernels over their tensors. What the host engine wants of them is read back through
//! their tensor data: the defaults of [`HiraBackend`] serve that.

use std::{
    any::Any,
    fmt,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use burn::tensor::{
    DType, Shape, Slice, TensorMetadata,
    ops::{FloatTensor, FloatTensorOps},
};
use burn_cubecl::{
    BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement,
    cubecl::{client::ComputeClient, device::Device, server::Handle},
    kernel::into_contiguous,
    ops::numeric::empty_device_contiguous_dtype,
    tensor::CubeTensor,
};
use hira_kernels::{
    Precision,
    cube::{
        self, Attended, DecodeParams, DeviceCertificate, DeviceFaults, DeviceLayer, DeviceRows,
        DeviceShape, DeviceWorkspace,
    },
};

use super::{
    DeviceAnswer, DeviceEngineError, DeviceHead, DeviceLayout, DeviceRecord, DeviceRule,
    DeviceStep, HiraBackend,
};
use crate::{DeviceMemory, DeviceStore, DeviceUsage, RowPlace, RowsNotMoved};

/// Tokens that a new layer has room for, if the sequence can be so long.
const FIRST_CAPACITY: usize = 1024;

impl<R: CubeRuntime, F: FloatElement, I: IntElement, BT: BoolElement> HiraBackend
    for CubeBackend<R, F, I, BT>
{
    fn device_store(
        layout: &DeviceLayout,
        element: DType,
        device: &Self::Device,
        sibling: Option<&dyn DeviceStore>,
    ) -> Option<Result<Box<dyn DeviceStore>, DeviceEngineError>> {
        let sibling = sibling.and_then(|store| (store as &dyn Any).downcast_ref::<CubeStore<R>>());
        let store = CubeStore::<R>::new(layout, element, device, sibling);
        Some(store.map(|store| Box::new(store) as Box<dyn DeviceStore>))
    }

    fn device_append(
        store: &mut dyn DeviceStore,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
    ) -> Result<(), DeviceEngineError> {
        of_runtime_mut::<R>(store)?.append(keys, values)
    }

    fn device_attend(
        store: &mut dyn DeviceStore,
        queries: FloatTensor<Self>,
        step: &DeviceStep,
    ) -> Result<DeviceAnswer<Self>, DeviceEngineError> {
        of_runtime_mut::<R>(store)?.attend(queries, step)
    }

    fn device_rows(
        store: &mut dyn DeviceStore,
        tokens: Range<usize>,
    ) -> Result<[FloatTensor<Self>; 2], DeviceEngineError> {
        let store = of_runtime_mut::<R>(store)?;
        let start = match store.rows() {
            RowPlace::Device => tokens.start,
            RowPlace::Host => 0,
        };
        let rows = store.rows_of(tokens)?;
        Ok(rows.map(|rows| {
            let shape = rows.shape();
            let whole = |i: usize| Slice::from(0..shape[i]);
            match start {
                0 => rows,
                _ => Self::float_slice(
                    rows,
                    &[whole(0), whole(1), Slice::from(start..shape[2]), whole(3)],
                ),
            }
        }))
    }

    fn device_usage(device: &Self::Device) -> Option<DeviceUsage> {
        let usage = cube::memory_usage(&R::client(device), device.to_id().index_id.into())?;
        Some(DeviceUsage {
            used: usage.used as usize,
            total: usage.total as usize,
        })
    }
}

fn of_runtime_mut<R: CubeRuntime>(
    store: &mut dyn DeviceStore,
) -> Result<&mut CubeStore<R>, DeviceEngineError> {
    (store as &mut dyn Any)
        .downcast_mut::<CubeStore<R>>()
        .ok_or(DeviceEngineError::Foreign)
}

/// A layer of a CubeCL runtime.
struct CubeStore<R: CubeRuntime> {
    client: ComputeClient<R>,
    device: R::CubeDevice,
    layout: DeviceLayout,
    element: DType,
    layer: DeviceLayer<R>,
    scratch: Arc<Scratch<R>>,
}

/// What a step needs for its time only. Layers of one cache have one, steps follow one another.
struct Scratch<R: CubeRuntime> {
    workspace: Mutex<DeviceWorkspace<R>>,
    /// Steps that have used it.
    steps: AtomicU64,
}

impl<R: CubeRuntime> fmt::Debug for CubeStore<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CubeStore")
            .field("device", &self.device)
            .field("layout", &self.layout)
            .field("element", &self.element)
            .field("len", &self.layer.len())
            .field("capacity", &self.layer.capacity())
            .finish_non_exhaustive()
    }
}

impl<R: CubeRuntime> CubeStore<R> {
    fn new(
        layout: &DeviceLayout,
        element: DType,
        device: &R::CubeDevice,
        sibling: Option<&Self>,
    ) -> Result<Self, DeviceEngineError> {
        let client = R::client(device);
        let shape = DeviceShape {
            heads: layout.sequences * layout.kv_heads,
            group: layout.heads / layout.kv_heads,
            dim: layout.head_dim,
            value_dim: layout.value_dim,
            precision: layout.stored(element)?,
        };
        let capacity = FIRST_CAPACITY.min(layout.max_len);
        let layer = match layout.rows {
            RowPlace::Device => DeviceLayer::new(&client, shape, capacity)?,
            RowPlace::Host => DeviceLayer::with_host_rows(&client, shape, capacity)?,
        };
        let shared =
            sibling.filter(|sibling| sibling.layer.shape() == shape && sibling.device == *device);
        let scratch = match shared {
            Some(sibling) => sibling.scratch.clone(),
            None => Arc::new(Scratch {
                workspace: Mutex::new(DeviceWorkspace::new(&client, shape, capacity)?),
                steps: AtomicU64::new(0),
            }),
        };
        Ok(Self {
            client,
            device: device.clone(),
            layout: *layout,
            element,
            layer,
            scratch,
        })
    }

    /// The capacity that room for so many tokens asks for: doubled while that is within what a sequence can hold.
    fn capacity_for(&self, len: usize) -> usize {
        let capacity = self.layer.capacity();
        if len <= capacity {
            return capacity;
        }
        len.max((2 * capacity).min(self.layout.max_len))
    }

    fn append(
        &mut self,
        keys: CubeTensor<R>,
        values: CubeTensor<R>,
    ) -> Result<(), DeviceEngineError> {
        let tokens = keys.shape()[2];
        let capacity = self.capacity_for(self.layer.len() + tokens);
        self.layer.grow(&self.client, capacity)?;
        let [keys, values] = [keys, values].map(|tensor| self.arrived(tensor));
        let [keys, values] = [keys?, values?].map(|tensor| rows_of(&tensor, self.layout.kv_heads));
        Ok(self.layer.append(&self.client, &keys, &values, tokens)?)
    }

    fn attend(
        &mut self,
        queries: CubeTensor<R>,
        step: &DeviceStep,
    ) -> Result<(CubeTensor<R>, Arc<dyn DeviceRecord>), DeviceEngineError> {
        let queries = self.arrived(queries)?;
        let [sequences, heads] = [queries.shape()[0], queries.shape()[1]];
        if heads != self.layout.heads {
            return Err(DeviceEngineError::Heads {
                expected: self.layout.heads,
                received: heads,
            });
        }
        let (shape, len) = (self.layer.shape(), self.layer.len());
        let out = empty_device_contiguous_dtype(
            self.client.clone(),
            queries.device.clone(),
            Shape::new([sequences, heads, 1, shape.value_dim]),
            queries.dtype,
        );
        // the queries of a KV head lie side by side: one long row a KV head
        let of_heads = |tensor: &CubeTensor<R>, dim: usize| {
            DeviceRows::contiguous(
                tensor.handle.clone(),
                tensor.dtype.into(),
                self.layout.kv_heads,
                1,
                shape.group * dim,
            )
        };
        let queries_of = of_heads(&queries, shape.dim);
        let out_of = of_heads(&out, shape.value_dim);
        let mut workspace = self.scratch.lock();
        workspace.reserve(&self.client, self.layer.capacity())?;
        let mut params = params(step);
        let attended = match &params {
            Some(params) => cube::decode(
                &self.client,
                &mut self.layer,
                &mut workspace,
                &queries_of,
                &out_of,
                params,
            )?,
            None => {
                cube::decode_dense(
                    &self.client,
                    &mut self.layer,
                    &mut workspace,
                    &queries_of,
                    &out_of,
                    step.scale,
                )?;
                Attended::Everything
            }
        };
        if attended == Attended::Everything {
            params = None;
        }
        let record = CubeRecord {
            client: self.client.clone(),
            certificates: workspace.take_certificates(&self.client),
            faulty_rows: self.layer.faults_handle(),
            faulty_queries: workspace.faults_handle(),
            visible: len,
            params,
            number: self.scratch.steps.fetch_add(1, Ordering::Relaxed) + 1,
            scratch: self.scratch.clone(),
        };
        drop(workspace);
        Ok((out, Arc::new(record)))
    }

    /// The tensor as kernels take it, if it is of the layer's device and element type.
    fn arrived(&self, tensor: CubeTensor<R>) -> Result<CubeTensor<R>, DeviceEngineError> {
        if tensor.device != self.device {
            return Err(DeviceEngineError::Foreign);
        }
        if tensor.dtype != self.element {
            return Err(DeviceEngineError::Element {
                received: tensor.dtype,
                precision: self.layer.shape().precision,
            });
        }
        Ok(into_contiguous(tensor))
    }

    /// The rows of these tokens if they are in main memory, else those of all tokens up to the last of them.
    fn rows_of(&mut self, tokens: Range<usize>) -> Result<[CubeTensor<R>; 2], DeviceEngineError> {
        let shape = self.layer.shape();
        let dtype = match shape.precision {
            Precision::F32 => DType::F32,
            Precision::F16 => DType::F16,
            Precision::Bf16 => DType::BF16,
        };
        let tensor = |handle: Handle, capacity: usize, dim: usize| {
            CubeTensor::new_contiguous(
                self.client.clone(),
                self.device.clone(),
                Shape::new([self.layout.sequences, self.layout.kv_heads, capacity, dim]),
                handle,
                dtype,
            )
        };
        let (len, dims) = (tokens.len(), [shape.dim, shape.value_dim]);
        if let Some(handles) = self.layer.device_rows() {
            let capacity = self.layer.capacity();
            let [keys, values] = handles;
            let all = [(keys, dims[0]), (values, dims[1])];
            return Ok(all.map(|(handle, dim)| {
                let mut tensor = tensor(handle, capacity, dim);
                tensor.meta.shape_mut()[2] = tokens.end;
                tensor
            }));
        }
        self.layer.settle_rows(&self.client)?;
        let sent = self.layer.sent_rows(&self.client, tokens);
        let [keys, values] = sent.ok_or(DeviceEngineError::Read)?;
        Ok([tensor(keys, len, dims[0]), tensor(values, len, dims[1])])
    }

    /// Bytes with so many tokens, and rows there.
    fn bytes(&self, len: usize, rows: RowPlace) -> DeviceMemory {
        let capacity = self.capacity_for(len);
        match self.layer.bytes_with(capacity, len, rows == RowPlace::Host) {
            Ok(bytes) => DeviceMemory {
                keys: bytes.keys as usize,
                values: bytes.values as usize,
                sketch: bytes.sketch as usize,
                host_keys: bytes.host_keys as usize,
                host_values: bytes.host_values as usize,
            },
            // no buffer reaches so far: nothing that is limited has room for it
            Err(_) => DeviceMemory {
                sketch: usize::MAX,
                ..DeviceMemory::default()
            },
        }
    }
}

impl<R: CubeRuntime> Scratch<R> {
    fn lock(&self) -> std::sync::MutexGuard<'_, DeviceWorkspace<R>> {
        // every step writes what it reads: what a panic left half done is no harm
        self.workspace
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the kernels are asked for; `None` for dense attention.
fn params(step: &DeviceStep) -> Option<DecodeParams> {
    let rule = match step.rule {
        DeviceRule::Everything => return None,
        DeviceRule::TopK { k } => cube::DeviceRule::Top(k),
        DeviceRule::Fixed { tau } => cube::DeviceRule::AtLeast(tau),
        DeviceRule::Mass { dropped } => cube::DeviceRule::Mass(dropped),
    };
    Some(DecodeParams {
        rule,
        scale: step.scale,
        sinks: step.sinks,
        window: step.window,
        compensate: step.compensated,
    })
}

/// Rows of a contiguous `[B, H, L, D]`.
fn rows_of<R: CubeRuntime>(tensor: &CubeTensor<R>, heads: usize) -> DeviceRows {
    let shape = tensor.shape();
    DeviceRows::contiguous(
        tensor.handle.clone(),
        tensor.dtype.into(),
        heads,
        shape[2],
        shape[3],
    )
}

impl<R: CubeRuntime> DeviceStore for CubeStore<R> {
    fn len(&self) -> usize {
        self.layer.len()
    }

    fn truncate(&mut self, len: usize) {
        self.layer.truncate(len);
    }

    fn fork(&self) -> Box<dyn DeviceStore> {
        Box::new(Self {
            client: self.client.clone(),
            device: self.device.clone(),
            layout: self.layout,
            element: self.element,
            layer: self.layer.fork(&self.client),
            scratch: self.scratch.clone(),
        })
    }

    fn memory(&self) -> DeviceMemory {
        self.bytes(self.layer.len(), self.rows())
    }

    fn memory_with(&self, tokens: usize, rows: RowPlace) -> DeviceMemory {
        self.bytes(self.layer.len() + tokens, rows)
    }

    fn rows(&self) -> RowPlace {
        match self.layer.has_host_rows() {
            true => RowPlace::Host,
            false => RowPlace::Device,
        }
    }

    fn move_rows(&mut self, to: RowPlace) -> Result<(), RowsNotMoved> {
        let moved = match to {
            RowPlace::Device => self.layer.rows_to_device(&self.client),
            RowPlace::Host => self.layer.rows_to_host(&self.client),
        };
        moved.map_err(|_| RowsNotMoved)
    }
}

/// A step's figures in device memory.
struct CubeRecord<R: CubeRuntime> {
    client: ComputeClient<R>,
    certificates: Handle,
    faulty_rows: Handle,
    faulty_queries: Handle,
    visible: usize,
    params: Option<DecodeParams>,
    /// Which use of the scratch the step was.
    number: u64,
    scratch: Arc<Scratch<R>>,
}

impl<R: CubeRuntime> fmt::Debug for CubeRecord<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CubeRecord")
            .field("visible", &self.visible)
            .field("params", &self.params)
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl<R: CubeRuntime> DeviceRecord for CubeRecord<R> {
    fn read(&self) -> Result<Vec<DeviceHead>, DeviceEngineError> {
        let rows = DeviceFaults::read(&self.client, self.faulty_rows.clone());
        let row = |what, position: Option<usize>| position.map(|position| (what, position));
        if let Some((what, position)) = row("keys", rows.key).or(row("values", rows.value)) {
            return Err(DeviceEngineError::NonFinite { what, position });
        }
        let queries = self
            .client
            .read_one(self.faulty_queries.clone())
            .map_err(|_| DeviceEngineError::Read)?;
        if queries.iter().any(|&byte| byte != 0) {
            return Err(DeviceEngineError::NonFinite {
                what: "queries",
                position: self.visible - 1,
            });
        }
        let certificates = DeviceCertificate::read(&self.client, self.certificates.clone());
        let head = |certificate: DeviceCertificate| DeviceHead {
            survivors: certificate.survivors,
            attended: certificate.selected,
            dropped_mass_bound: certificate.dropped_mass_bound,
            output_error_bound: certificate.output_error_bound,
        };
        Ok(certificates.into_iter().map(head).collect())
    }

    fn attended(&self) -> Result<Option<Vec<Vec<u32>>>, DeviceEngineError> {
        let workspace = self.scratch.lock();
        let latest = self.scratch.steps.load(Ordering::Relaxed) == self.number;
        let params = self.params.filter(|_| latest);
        Ok(params.map(|params| workspace.attended(&self.client, self.visible, &params)))
    }
}
