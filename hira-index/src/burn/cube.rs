//! CubeCL backends (CUDA, wgpu) are read back through their tensor data: the defaults of [`HiraBackend`] serve them.

use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};

use super::HiraBackend;

impl<R: CubeRuntime, F: FloatElement, I: IntElement, BT: BoolElement> HiraBackend
    for CubeBackend<R, F, I, BT>
{
}
