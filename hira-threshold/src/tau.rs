//! The serialised form of a fixed threshold: a number, or one of the words `-inf` and `inf`, because JSON has no
//! infinities.

use std::fmt;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserializer, Serializer};

pub(crate) fn serialize<S: Serializer>(tau: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    if *tau == f32::NEG_INFINITY {
        serializer.serialize_str("-inf")
    } else if *tau == f32::INFINITY {
        serializer.serialize_str("inf")
    } else {
        serializer.serialize_f32(*tau)
    }
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
    deserializer.deserialize_any(TauVisitor)
}

struct TauVisitor;

impl Visitor<'_> for TauVisitor {
    type Value = f32;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number within the range of f32, \"-inf\" or \"inf\"")
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<f32, E> {
        let tau = value as f32;
        // Formats with infinities of their own (YAML, TOML) arrive here too; a finite number must stay finite.
        if tau.is_infinite() && value.is_finite() {
            return Err(E::invalid_value(Unexpected::Float(value), &self));
        }
        Ok(tau)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<f32, E> {
        Ok(value as f32)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<f32, E> {
        Ok(value as f32)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<f32, E> {
        match value {
            "-inf" => Ok(f32::NEG_INFINITY),
            "inf" => Ok(f32::INFINITY),
            _ => Err(E::invalid_value(Unexpected::Str(value), &self)),
        }
    }
}
