use std::collections::BTreeMap;

use super::GgufError;

/// One metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// `f32` or `f64`.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(String),
    /// A list.
    Array(Array),
}

/// A list of metadata values of one type, stored compactly.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// Unsigned integers, kept at file width where that is a byte.
    Bytes(Vec<u8>),
    /// Wider unsigned integers.
    Unsigned(Vec<u64>),
    /// Signed integers.
    Signed(Vec<i64>),
    /// `f32` or `f64`.
    Float(Vec<f64>),
    /// Truth values.
    Bool(Vec<bool>),
    /// Texts.
    Text(Vec<String>),
    /// Lists of lists.
    Nested(Vec<Array>),
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Self::Unsigned(_) | Self::Signed(_) => "integer",
            Self::Float(_) => "float",
            Self::Bool(_) => "bool",
            Self::Text(_) => "string",
            Self::Array(_) => "array",
        }
    }
}

/// The metadata of a GGUF file: typed look-ups that name the key when they fail.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata(BTreeMap<String, Value>);

impl FromIterator<(String, Value)> for Metadata {
    fn from_iter<I: IntoIterator<Item = (String, Value)>>(entries: I) -> Self {
        Self(entries.into_iter().collect())
    }
}

impl Metadata {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if there are no keys.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A count or an id; `None` if the key is absent.
    ///
    /// # Errors
    /// [`GgufError::KeyType`] if the value is not an integer of at least 0.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.look_up(key, "non-negative integer", |value| match value {
            Value::Unsigned(v) => Some(*v),
            Value::Signed(v) => u64::try_from(*v).ok(),
            _ => None,
        })
    }

    /// A number; `None` if the key is absent.
    ///
    /// # Errors
    /// [`GgufError::KeyType`] if the value is not a float.
    pub fn float(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.look_up(key, "float", |value| match value {
            Value::Float(v) => Some(*v),
            _ => None,
        })
    }

    /// A truth value; `None` if the key is absent.
    ///
    /// # Errors
    /// [`GgufError::KeyType`] if the value is not a bool.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.look_up(key, "bool", |value| match value {
            Value::Bool(v) => Some(*v),
            _ => None,
        })
    }

    /// A text; `None` if the key is absent.
    ///
    /// # Errors
    /// [`GgufError::KeyType`] if the value is not a string.
    pub fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.look_up(key, "string", |value| match value {
            Value::Text(v) => Some(v.as_str()),
            _ => None,
        })
    }

    /// A list of texts; `None` if the key is absent.
    ///
    /// # Errors
    /// [`GgufError::KeyType`] if the value is not a list of strings.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>, GgufError> {
        self.look_up(key, "array of strings", |value| match value {
            Value::Array(Array::Text(v)) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// A list of numbers; `None` if the key is absent.
    ///
    /// # Errors
    /// [`GgufError::KeyType`] if the value is not a list of floats.
    pub fn floats(&self, key: &str) -> Result<Option<&[f64]>, GgufError> {
        self.look_up(key, "array of floats", |value| match value {
            Value::Array(Array::Float(v)) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// A list of integers; `None` if the key is absent.
    ///
    /// # Errors
    /// [`GgufError::KeyType`] if the value is not a list of integers that fit 64 signed bits.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>, GgufError> {
        self.look_up(key, "array of integers", |value| match value {
            Value::Array(Array::Bytes(v)) => Some(v.iter().map(|&x| i64::from(x)).collect()),
            Value::Array(Array::Unsigned(v)) => v.iter().map(|&x| i64::try_from(x).ok()).collect(),
            Value::Array(Array::Signed(v)) => Some(v.clone()),
            _ => None,
        })
    }

    fn look_up<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.0.get(key) else {
            return Ok(None);
        };
        match read(value) {
            Some(found) => Ok(Some(found)),
            None => Err(GgufError::KeyType {
                key: key.to_owned(),
                expected,
                received: value.kind(),
            }),
        }
    }
}
