//! How a program that runs a model begins and ends.

use std::process::ExitCode;

use crate::{huge_pages, threads};

/// Asks for huge pages and makes the main thread a member of rayon's pool. Call it first in `main`: it may start the program anew.
pub fn begin() {
    huge_pages::ask();
    threads::join_pool();
}

/// [`begin`], then `run`, whose error goes to standard error and becomes the exit code.
pub fn main(run: impl FnOnce() -> anyhow::Result<()>) -> ExitCode {
    begin();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
