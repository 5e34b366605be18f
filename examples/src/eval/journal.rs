//! What was measured, a line of JSON each, so that a run that was stopped goes on where it was.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The file of finished work.
///
/// Every line carries the settings of its run. Lines of other settings are kept in the file and not given out; a last line without an end, which a
/// run leaves that was killed while it wrote, is cut off.
#[derive(Debug)]
pub struct Journal<R> {
    file: File,
    settings: String,
    records: Vec<R>,
}

#[derive(Debug, Deserialize)]
struct Line<R> {
    settings: String,
    record: R,
}

#[derive(Debug, Serialize)]
struct NewLine<'a, R> {
    settings: &'a str,
    record: &'a R,
}

impl<R: Serialize + DeserializeOwned> Journal<R> {
    /// Opens the file, or makes it; with `fresh` what it holds of these settings is forgotten. `settings` is a fingerprint of all that records
    /// depend on and do not say.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or written, or a line that has an end is not one of this program's.
    pub fn open(path: &Path, settings: &str, fresh: bool) -> io::Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        let (mut kept, mut records) = (String::new(), Vec::new());
        for line in whole.lines() {
            let parsed: Line<serde_json::Value> = serde_json::from_str(line)?;
            let ours = parsed.settings == settings;
            if ours && !fresh {
                records.push(serde_json::from_value(parsed.record)?);
            }
            if !(ours && fresh) {
                kept.push_str(line);
                kept.push('\n');
            }
        }
        if kept != text {
            std::fs::write(path, &kept)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self {
            file,
            settings: settings.to_owned(),
            records,
        })
    }

    /// Everything that was measured with these settings.
    pub fn records(&self) -> &[R] {
        &self.records
    }

    /// Whether there is a record that `is_it`.
    pub fn has(&self, is_it: impl FnMut(&R) -> bool) -> bool {
        self.records.iter().any(is_it)
    }

    /// Adds a record, on disk when this returns.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn add(&mut self, record: R) -> io::Result<()> {
        let mut line = serde_json::to_string(&NewLine {
            settings: &self.settings,
            record: &record,
        })?;
        line.push('\n');
        self.file.write_all(line.as_bytes())?;
        self.file.sync_data()?;
        self.records.push(record);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path, settings: &str) -> Journal<u32> {
        Journal::open(path, settings, false).expect("it opens")
    }

    #[test]
    fn a_second_run_finds_what_the_first_one_did() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("records.jsonl");
        open(&path, "a").add(1).expect("it is written");
        open(&path, "b").add(2).expect("it is written");
        open(&path, "a").add(3).expect("it is written");
        assert_eq!(open(&path, "a").records(), [1, 3]);
        assert_eq!(open(&path, "b").records(), [2]);
        assert!(open(&path, "b").has(|record| *record == 2));
        assert!(!open(&path, "c").has(|_| true));
        let fresh = Journal::<u32>::open(&path, "a", true).expect("it opens");
        assert!(fresh.records().is_empty());
        assert_eq!(open(&path, "a").records(), [0; 0]);
        assert_eq!(open(&path, "b").records(), [2]);
    }

    #[test]
    fn a_torn_last_line_is_cut_off_and_written_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("records.jsonl");
        open(&path, "a").add(7).expect("it is written");
        let whole = std::fs::read_to_string(&path).expect("a file");
        for torn in 1..whole.len() {
            std::fs::write(&path, format!("{whole}{}", &whole[..torn])).expect("it is written");
            let mut journal = open(&path, "a");
            assert_eq!(journal.records(), [7], "torn after {torn} bytes");
            journal.add(8).expect("it is written");
            assert_eq!(open(&path, "a").records(), [7, 8]);
        }
    }

    #[test]
    fn a_whole_line_of_something_else_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("records.jsonl");
        std::fs::write(&path, "notes\n").expect("it is written");
        assert!(Journal::<u32>::open(&path, "a", false).is_err());
    }
}
