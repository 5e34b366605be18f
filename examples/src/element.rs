//! The element type of a model's tensors, chosen by name at run time.

use burn::tensor::{DType, Shape, Tensor, TensorData, TensorPrimitive};
use clap::ValueEnum;
use half::{bf16, f16};
use hira_attention::HiraBackend;
use hira_attention::device::DeviceKind;
use hira_index::burn::from_host;

use crate::device::DeviceName;

/// The `--dtype` argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, ValueEnum)]
pub enum Element {
    /// 32 bits.
    #[default]
    F32,
    /// IEEE's 16 bits: 11 bits of precision, nothing beyond 65,504.
    F16,
    /// The upper half of an f32: 8 bits of precision, its whole range.
    Bf16,
}

/// A device does not compute with the element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ElementError {
    /// Not on any device of that kind.
    #[error("--device {kind} computes in {}, received --dtype {received}", names(.possible))]
    Kind {
        /// The kind of device.
        kind: DeviceKind,
        /// What it computes with.
        possible: &'static [Element],
        /// What was asked for.
        received: Element,
    },
    /// Not on this device.
    #[error("this device does not compute in {received}: use --dtype f32")]
    Device {
        /// What was asked for.
        received: Element,
    },
}

fn names(elements: &[Element]) -> String {
    let names: Vec<_> = elements.iter().map(Element::to_string).collect();
    names.join(", ")
}

impl std::fmt::Display for Element {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Element {
    /// The name as it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// Burn's name of it.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }

    /// Half the distance of neighbouring numbers just above 1.
    pub fn rounding(self) -> f64 {
        match self {
            Self::F32 => 2f64.powi(-24),
            Self::F16 => 2f64.powi(-11),
            Self::Bf16 => 2f64.powi(-8),
        }
    }

    /// The nearest number of this type.
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::F16 => f16::from_f32(x).to_f32(),
            Self::Bf16 => bf16::from_f32(x).to_f32(),
        }
    }

    /// What a kind of device can compute with.
    pub fn of_device(name: DeviceName) -> &'static [Self] {
        match name {
            DeviceName::Flex | DeviceName::Ndarray => &[Self::F32],
            DeviceName::Cuda => &[Self::F32, Self::F16, Self::Bf16],
            DeviceName::Wgpu => &[Self::F32, Self::F16],
        }
    }

    /// Checks that a kind of device can compute with it, before anything touches one.
    ///
    /// # Errors
    /// [`ElementError::Kind`] that names what is possible.
    pub fn check_on(self, name: DeviceName) -> Result<(), ElementError> {
        let possible = Self::of_device(name);
        if possible.contains(&self) {
            return Ok(());
        }
        Err(ElementError::Kind {
            kind: name.into(),
            possible,
            received: self,
        })
    }

    /// Checks that this very device can.
    ///
    /// # Errors
    /// [`ElementError::Device`].
    pub fn check<B: HiraBackend>(self, device: &B::Device) -> Result<(), ElementError> {
        if self == Self::F32 || B::supports_dtype(device, self.dtype()) {
            return Ok(());
        }
        Err(ElementError::Device { received: self })
    }

    /// A tensor of this type from row-major elements, each rounded to the nearest; f32 is what the backend has in its place.
    ///
    /// # Panics
    /// If `rows` does not hold `shape` elements.
    pub fn tensor<B: HiraBackend, const N: usize>(
        self,
        rows: Vec<f32>,
        shape: [usize; N],
        device: &B::Device,
    ) -> Tensor<B, N> {
        let data = match self {
            Self::F32 => return from_host(rows, shape, device),
            Self::F16 => {
                let rows: Vec<_> = rows.into_iter().map(f16::from_f32).collect();
                TensorData::new(rows, Shape::from(shape))
            }
            Self::Bf16 => {
                let rows: Vec<_> = rows.into_iter().map(bf16::from_f32).collect();
                TensorData::new(rows, Shape::from(shape))
            }
        };
        Tensor::from_primitive(TensorPrimitive::Float(B::float_from_data(data, device)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_cannot_names_what_it_can() {
        for (device, element, possible) in [
            (DeviceName::Flex, Element::F16, "f32"),
            (DeviceName::Ndarray, Element::Bf16, "f32"),
            (DeviceName::Wgpu, Element::Bf16, "f32, f16"),
        ] {
            let error = element.check_on(device).unwrap_err().to_string();
            assert!(
                error.contains(&format!("computes in {possible},")),
                "{error}"
            );
        }
        for &element in Element::value_variants() {
            assert_eq!(element.check_on(DeviceName::Cuda), Ok(()));
        }
    }

    #[test]
    fn rounding_is_half_the_distance_of_numbers_above_one() {
        for &element in Element::value_variants() {
            let half = element.rounding() as f32;
            assert_eq!(element.round(1.0 + 0.9 * half), 1.0);
            assert_eq!(element.round(1.0 + 1.1 * half), 1.0 + 2.0 * half);
        }
    }
}
