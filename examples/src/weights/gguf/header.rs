use std::collections::BTreeMap;
use std::io::{self, Read};

use super::value::{Array, Metadata, Value};
use super::{GgmlType, GgufError};

/// Most dimensions a tensor may have.
const MAX_DIMENSIONS: u32 = 4;
/// How deep lists of lists may nest.
const MAX_NESTING: usize = 4;
/// Start of tensor data is rounded up to this unless `general.alignment` says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;
/// No list reserves more than this many elements before it has read them.
const RESERVE: usize = 1 << 16;

/// Where a tensor lies in the file, and how it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Dimensions, outermost first (the reverse of the file's order).
    pub shape: Vec<usize>,
    /// Number format.
    pub kind: GgmlType,
    /// First byte, from the start of the file.
    pub start: u64,
    /// Number of bytes.
    pub len: u64,
}

/// Everything of a GGUF file but the tensors' data.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// The format version: 2 or 3.
    pub version: u32,
    /// The metadata.
    pub metadata: Metadata,
    /// The tensors, by the file's names.
    pub tensors: BTreeMap<String, TensorInfo>,
}

impl Header {
    /// Parses the header of a file of `file_len` bytes.
    ///
    /// Every count is checked against the bytes that are left before anything is allocated for it, so a damaged file costs
    /// no more memory than a small multiple of its size; every tensor is checked to lie inside the file.
    ///
    /// # Errors
    /// A [`GgufError`] that says what is wrong and where.
    ///
    /// # Examples
    /// ```
    /// use hira_examples::weights::gguf::{GgufError, Header};
    ///
    /// let bytes = b"GGUF\x03\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff";
    /// assert!(matches!(Header::read(bytes.as_slice(), bytes.len() as u64), Err(GgufError::Truncated { .. })));
    /// ```
    pub fn read(reader: impl Read, file_len: u64) -> Result<Self, GgufError> {
        let mut bytes = Bytes {
            reader,
            position: 0,
            len: file_len,
        };
        let magic = bytes.array::<4>("magic")?;
        if magic != *b"GGUF" {
            return Err(GgufError::Magic { received: magic });
        }
        let version = bytes.u32("version")?;
        match version {
            2 | 3 => {}
            0x0200_0000 | 0x0300_0000 => return Err(GgufError::BigEndian),
            received => return Err(GgufError::Version { received }),
        }
        // A tensor takes at least name length, dimension count, type and offset; a key at least length, type and one byte.
        let tensor_count = bytes.count("tensor count", 8 + 4 + 4 + 8)?;
        let key_count = bytes.count("metadata count", 8 + 4 + 1)?;
        let metadata = read_metadata(&mut bytes, key_count)?;
        let alignment = metadata
            .unsigned("general.alignment")?
            .unwrap_or(DEFAULT_ALIGNMENT);
        if !alignment.is_power_of_two() || alignment > 1 << 20 {
            return Err(GgufError::Alignment {
                received: alignment,
            });
        }
        let infos = (0..tensor_count)
            .map(|_| RawInfo::read(&mut bytes))
            .collect::<Result<Vec<_>, _>>()?;
        let data_start = bytes.position.next_multiple_of(alignment);
        let mut tensors = BTreeMap::new();
        for raw in infos {
            let (name, info) = raw.locate(data_start, alignment, file_len)?;
            if tensors.contains_key(&name) {
                return Err(GgufError::DuplicateTensor { tensor: name });
            }
            tensors.insert(name, info);
        }
        Ok(Self {
            version,
            metadata,
            tensors,
        })
    }
}

/// A tensor's entry as it stands in the file.
struct RawInfo {
    name: String,
    shape: Vec<u64>,
    kind: u32,
    offset: u64,
}

impl RawInfo {
    fn read(bytes: &mut Bytes<impl Read>) -> Result<Self, GgufError> {
        let name = bytes.text("tensor name")?;
        let dimensions = bytes.u32("dimension count")?;
        if dimensions == 0 || dimensions > MAX_DIMENSIONS {
            return Err(GgufError::Dimensions {
                tensor: name,
                received: dimensions,
                most: MAX_DIMENSIONS,
            });
        }
        let mut shape = (0..dimensions)
            .map(|_| bytes.u64("dimension"))
            .collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        let kind = bytes.u32("tensor type")?;
        let offset = bytes.u64("tensor offset")?;
        Ok(Self {
            name,
            shape,
            kind,
            offset,
        })
    }

    fn locate(
        self,
        data_start: u64,
        alignment: u64,
        file_len: u64,
    ) -> Result<(String, TensorInfo), GgufError> {
        let Self {
            name,
            shape,
            kind,
            offset,
        } = self;
        let kind = match GgmlType::from_code(kind) {
            Some(kind) => kind,
            None => {
                return Err(GgufError::TensorType {
                    tensor: name,
                    code: kind,
                    format: super::format_name(kind),
                });
            }
        };
        let size = kind.bytes_of(&shape);
        let dimensions: Option<Vec<usize>> =
            shape.iter().map(|&d| usize::try_from(d).ok()).collect();
        let (Some(len), Some(dimensions)) = (size, dimensions) else {
            return Err(GgufError::TensorSize {
                tensor: name,
                shape,
                format: kind.name(),
            });
        };
        if !offset.is_multiple_of(alignment) {
            return Err(GgufError::Misaligned {
                tensor: name,
                offset,
                alignment,
            });
        }
        let start = data_start.saturating_add(offset);
        let needed = start.saturating_add(len);
        if needed > file_len {
            return Err(GgufError::TensorTruncated {
                tensor: name,
                needed,
                available: file_len,
            });
        }
        Ok((
            name,
            TensorInfo {
                shape: dimensions,
                kind,
                start,
                len,
            },
        ))
    }
}

fn read_metadata(bytes: &mut Bytes<impl Read>, count: usize) -> Result<Metadata, GgufError> {
    let mut metadata = BTreeMap::new();
    for _ in 0..count {
        let key = bytes.text("metadata key")?;
        let code = bytes.u32("value type")?;
        let value = read_value(bytes, &key, code)?;
        if metadata.contains_key(&key) {
            return Err(GgufError::DuplicateKey { key });
        }
        metadata.insert(key, value);
    }
    Ok(metadata.into_iter().collect())
}

fn read_value(bytes: &mut Bytes<impl Read>, key: &str, code: u32) -> Result<Value, GgufError> {
    Ok(match code {
        0 => Value::Unsigned(bytes.array::<1>("u8")?[0].into()),
        1 => Value::Signed(i8::from_le_bytes(bytes.array("i8")?).into()),
        2 => Value::Unsigned(u16::from_le_bytes(bytes.array("u16")?).into()),
        3 => Value::Signed(i16::from_le_bytes(bytes.array("i16")?).into()),
        4 => Value::Unsigned(bytes.u32("u32")?.into()),
        5 => Value::Signed(i32::from_le_bytes(bytes.array("i32")?).into()),
        6 => Value::Float(f32::from_le_bytes(bytes.array("f32")?).into()),
        7 => Value::Bool(bytes.bool()?),
        8 => Value::Text(bytes.text("string")?),
        9 => Value::Array(read_array(bytes, key, 0)?),
        10 => Value::Unsigned(bytes.u64("u64")?),
        11 => Value::Signed(i64::from_le_bytes(bytes.array("i64")?)),
        12 => Value::Float(f64::from_le_bytes(bytes.array("f64")?)),
        code => {
            return Err(GgufError::ValueType {
                key: key.to_owned(),
                code,
            });
        }
    })
}

fn read_array(bytes: &mut Bytes<impl Read>, key: &str, depth: usize) -> Result<Array, GgufError> {
    let code = bytes.u32("array type")?;
    let width = match code {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        8 | 10..=12 => 8,
        9 if depth < MAX_NESTING => 12,
        9 => {
            return Err(GgufError::Nesting {
                key: key.to_owned(),
                most: MAX_NESTING,
            });
        }
        code => {
            return Err(GgufError::ValueType {
                key: key.to_owned(),
                code,
            });
        }
    };
    let n = bytes.count("array length", width)?;
    Ok(match code {
        0 => Array::Bytes(bytes.list(n, |b| Ok(b.array::<1>("u8")?[0]))?),
        1 => Array::Signed(bytes.list(n, |b| Ok(i8::from_le_bytes(b.array("i8")?).into()))?),
        2 => Array::Unsigned(bytes.list(n, |b| Ok(u16::from_le_bytes(b.array("u16")?).into()))?),
        3 => Array::Signed(bytes.list(n, |b| Ok(i16::from_le_bytes(b.array("i16")?).into()))?),
        4 => Array::Unsigned(bytes.list(n, |b| Ok(b.u32("u32")?.into()))?),
        5 => Array::Signed(bytes.list(n, |b| Ok(i32::from_le_bytes(b.array("i32")?).into()))?),
        6 => Array::Float(bytes.list(n, |b| Ok(f32::from_le_bytes(b.array("f32")?).into()))?),
        7 => Array::Bool(bytes.list(n, Bytes::bool)?),
        8 => Array::Text(bytes.list(n, |b| b.text("string"))?),
        10 => Array::Unsigned(bytes.list(n, |b| b.u64("u64"))?),
        11 => Array::Signed(bytes.list(n, |b| Ok(i64::from_le_bytes(b.array("i64")?)))?),
        12 => Array::Float(bytes.list(n, |b| Ok(f64::from_le_bytes(b.array("f64")?)))?),
        _ => Array::Nested(bytes.list(n, |b| read_array(b, key, depth + 1))?),
    })
}

/// A reader that knows how many bytes are left.
struct Bytes<R> {
    reader: R,
    position: u64,
    len: u64,
}

impl<R: Read> Bytes<R> {
    /// Fails if fewer than `needed` bytes are left.
    fn require(&self, what: &'static str, needed: u64) -> Result<(), GgufError> {
        let available = self.len.saturating_sub(self.position);
        if needed > available {
            return Err(GgufError::Truncated {
                what,
                at: self.position,
                needed,
                available,
            });
        }
        Ok(())
    }

    fn fill(&mut self, what: &'static str, buffer: &mut [u8]) -> Result<(), GgufError> {
        let needed = buffer.len() as u64;
        self.require(what, needed)?;
        self.reader
            .read_exact(buffer)
            .map_err(|source| match source.kind() {
                io::ErrorKind::UnexpectedEof => GgufError::Truncated {
                    what,
                    at: self.position,
                    needed,
                    available: 0,
                },
                _ => GgufError::Io(source),
            })?;
        self.position += needed;
        Ok(())
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        let mut buffer = [0; N];
        self.fill(what, &mut buffer)?;
        Ok(buffer)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn bool(&mut self) -> Result<bool, GgufError> {
        match self.array::<1>("bool")?[0] {
            0 => Ok(false),
            1 => Ok(true),
            received => Err(GgufError::Bool {
                at: self.position - 1,
                received,
            }),
        }
    }

    /// A count of things that take at least `width` bytes each, checked against what is left.
    fn count(&mut self, what: &'static str, width: u64) -> Result<usize, GgufError> {
        let count = self.u64(what)?;
        self.require(what, count.saturating_mul(width))?;
        usize::try_from(count).map_err(|_| GgufError::Truncated {
            what,
            at: self.position,
            needed: count,
            available: 0,
        })
    }

    fn text(&mut self, what: &'static str) -> Result<String, GgufError> {
        let len = self.count(what, 1)?;
        let at = self.position;
        let mut buffer = vec![0; len];
        self.fill(what, &mut buffer)?;
        String::from_utf8(buffer).map_err(|_| GgufError::Utf8 { what, at })
    }

    fn list<T>(
        &mut self,
        count: usize,
        mut read: impl FnMut(&mut Self) -> Result<T, GgufError>,
    ) -> Result<Vec<T>, GgufError> {
        let mut items = Vec::with_capacity(count.min(RESERVE));
        for _ in 0..count {
            items.push(read(self)?);
        }
        Ok(items)
    }
}
