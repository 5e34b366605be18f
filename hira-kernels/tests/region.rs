//! Regions: the same bytes wherever they are, for whoever reads them meanwhile.
#![cfg(target_os = "linux")]

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hira_kernels::{Backing, Precision, Region, RowBatch, StoredRows, StoredVec};

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

/// An unlinked file of `lead` bytes and then these.
fn file_of(lead: usize, bytes: &[u8]) -> Arc<File> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![0xee; lead]).unwrap();
    file.write_all(bytes).unwrap();
    Arc::new(file)
}

#[test]
fn bytes_are_the_same_in_memory_and_on_disk() {
    let page = Region::page_bytes();
    for len in [
        0,
        1,
        100,
        page - 1,
        page,
        page + 1,
        5 * page + 77,
        1200 * page,
    ] {
        let bytes = pattern(len);
        let region = Region::from_bytes(&bytes).unwrap();
        assert_eq!(
            region.demote().map_err(|e| e.kind()),
            Err(ErrorKind::InvalidInput)
        );
        let file = file_of(2 * page, &bytes);
        region
            .set_backing(Backing::new(Arc::clone(&file), 2 * page as u64))
            .unwrap();
        drop(file);
        let address = region.bytes().as_ptr();
        for _ in 0..2 {
            region.demote().unwrap();
            assert!(region.is_on_disk() && region.bytes() == bytes);
            region.forget(0..len);
            region.forget(len / 3..len / 2);
            region.will_need(len / 3..len);
            assert_eq!(region.bytes(), bytes);
            let mut read = vec![0; len - len / 2];
            region.read_at(len / 2, &mut read).unwrap();
            assert_eq!(read, bytes[len / 2..]);
            read.fill(0);
            if region.read_cached(len / 2, &mut read) {
                assert_eq!(read, bytes[len / 2..]);
            }
            assert!(region.resident_bytes() <= len);
            region.promote().unwrap();
            region.forget(0..len);
            assert!(!region.is_on_disk() && region.bytes() == bytes);
            assert_eq!(region.resident_bytes(), len);
        }
        assert_eq!(region.bytes().as_ptr(), address);
        assert!(region.allocated_bytes() >= len && region.allocated_bytes() < len + page);
    }
}

#[test]
fn a_file_is_mapped_from_any_byte() {
    let bytes = pattern(20_000);
    for lead in [0, 1, 4095, 4096, 10_000] {
        let file = file_of(lead, &bytes);
        let region = Region::map(Backing::new(Arc::clone(&file), lead as u64), 20_000).unwrap();
        assert!(region.is_on_disk() && region.bytes() == bytes);
        region.forget(17..20_000);
        assert_eq!(region.bytes(), bytes);
        region.promote().unwrap();
        assert_eq!(region.bytes(), bytes);
        let late = Region::map(Backing::new(file, lead as u64 + 1), 20_000);
        assert_eq!(late.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }
}

#[test]
fn a_file_of_other_bytes_is_refused() {
    let bytes = pattern(10_000);
    let region = Region::from_bytes(&bytes).unwrap();
    let mut other = bytes.clone();
    other[9_999] ^= 1;
    let refused = |file, offset| region.set_backing(Backing::new(file, offset));
    let kind = |result: std::io::Result<()>| result.unwrap_err().kind();
    assert_eq!(kind(refused(file_of(0, &other), 0)), ErrorKind::InvalidData);
    assert_eq!(
        kind(refused(file_of(0, &bytes[1..]), 0)),
        ErrorKind::UnexpectedEof
    );
    assert_eq!(
        kind(refused(file_of(0, &bytes), 8)),
        ErrorKind::InvalidInput
    );
    assert_eq!(region.bytes(), bytes);
    assert!(region.backing().is_none() && !region.drop_backing());
}

#[test]
fn the_owner_of_a_backing_lives_as_long_as_it_is_needed() {
    let bytes = pattern(5_000);
    let owner = Arc::new(());
    let backing = Backing::new(file_of(0, &bytes), 0).with_owner(owner.clone());
    let region = Region::from_bytes(&bytes).unwrap();
    region.set_backing(backing.clone()).unwrap();
    drop(backing);
    assert_eq!(Arc::strong_count(&owner), 2);
    assert!(region.drop_backing());
    assert_eq!(Arc::strong_count(&owner), 1);
    let backing = Backing::new(file_of(0, &bytes), 0).with_owner(owner.clone());
    region.set_backing(backing).unwrap();
    region.demote().unwrap();
    region.promote().unwrap();
    assert!(!region.drop_backing(), "pages are copies of the file's");
    drop(region);
    assert_eq!(Arc::strong_count(&owner), 1);
}

#[test]
fn readers_notice_nothing_while_a_region_moves() {
    let bytes = pattern(300 * 4096 + 5);
    let region = Region::from_bytes(&bytes).unwrap();
    region
        .set_backing(Backing::new(file_of(0, &bytes), 0))
        .unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..3 {
            let (region, bytes, done) = (&region, &bytes, &done);
            scope.spawn(move || {
                let mut i = reader;
                while !done.load(Ordering::Relaxed) {
                    i = (i * 7919 + 4093) % bytes.len();
                    let end = (i + 600).min(bytes.len());
                    assert_eq!(region.bytes()[i..end], bytes[i..end]);
                }
            });
        }
        for _ in 0..60 {
            region.demote().unwrap();
            region.forget(0..bytes.len() / 2);
            region.promote().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(region.bytes(), bytes);
}

#[test]
fn rows_are_the_same_owned_and_in_a_region() {
    let dim = 5;
    let values: Vec<f32> = (0..3000 * dim).map(|i| (i as f32 * 0.37).sin()).collect();
    for precision in Precision::ALL {
        let owned = StoredVec::rounded(precision, &values);
        let mut rows = StoredRows::from(owned.clone());
        rows.move_to_region().unwrap();
        let region = Arc::clone(rows.region().unwrap());
        let bytes = owned.as_slice().as_bytes();
        region
            .set_backing(Backing::new(file_of(0, bytes), 0))
            .unwrap();
        let picked = [0, 3, 4, 1000, 1001, 2998, 2999];
        for on_disk in [false, true] {
            if on_disk {
                region.demote().unwrap();
            }
            assert_eq!(rows.is_on_disk(), on_disk);
            assert_eq!(rows.as_slice(), owned.as_slice());
            rows.will_need(0..rows.len());
            let mut batch = RowBatch::default();
            for _ in 0..2 {
                batch.begin(precision);
                assert_eq!(batch.ask(&rows, &picked, dim), on_disk);
                assert_eq!(batch.ask(&rows, &picked[1..], dim), on_disk);
                assert_eq!(batch.is_empty(), !on_disk);
                batch.read();
                for part in 0..if on_disk { 2 } else { 0 } {
                    let gathered = batch.part(part);
                    assert_eq!(gathered.len(), picked[part..].len() * dim);
                    for (row, gathered) in picked[part..].iter().zip(gathered.rows(dim)) {
                        let first = *row as usize * dim;
                        assert_eq!(gathered, owned.as_slice().slice(first..first + dim));
                    }
                }
            }
            rows.forget(0..rows.len());
        }
        let fork = rows.clone();
        rows.truncate(17);
        assert_eq!(rows.as_slice(), owned.as_slice().slice(0..17));
        assert!(rows.region().is_none() && fork.region().is_some());
        assert_eq!(fork.clone().into_owned(), owned);

        let part = StoredRows::in_region(Arc::clone(&region), 4, 10, precision).unwrap();
        let first = 4 / precision.bytes();
        assert_eq!(part.as_slice(), owned.as_slice().slice(first..first + 10));
        assert!(StoredRows::in_region(Arc::clone(&region), 1, 10, precision).is_none());
        assert!(StoredRows::in_region(Arc::clone(&region), 4, values.len(), precision).is_none());
        assert!(
            StoredRows::in_region(region, 0, 0, precision)
                .unwrap()
                .is_empty()
        );
    }
}
