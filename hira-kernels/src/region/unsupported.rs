//! Where there are no regions: nothing can be made, so nothing has to be done.

use std::fs::File;
use std::io;
use std::ops::Range;

pub(super) enum Mapping {}

pub(super) fn page_bytes() -> usize {
    4096
}

pub(super) fn read_at(_file: &File, _out: &mut [u8], _offset: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(super) fn read_cached(_file: &File, _out: &mut [u8], _offset: u64) -> bool {
    false
}

impl Mapping {
    pub(super) fn anonymous(_len: usize) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn of_file(_file: &File, _offset: u64, _len: usize) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match *self {}
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        match *self {}
    }

    pub(super) fn replace(&self, _file: &File, _offset: u64) -> io::Result<()> {
        match *self {}
    }

    pub(super) fn copy_in_place(&self) -> io::Result<()> {
        match *self {}
    }

    pub(super) fn discard(&self, _range: Range<usize>) {
        match *self {}
    }

    pub(super) fn will_need(&self, _range: Range<usize>) {
        match *self {}
    }

    pub(super) fn resident_bytes(&self) -> usize {
        match *self {}
    }
}
