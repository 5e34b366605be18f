//! Looks at caches that were saved.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use hira_cache::persist::{Inspection, Verify};

/// Looks at key/value caches that were saved.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Prints what a saved cache holds, and says whether it is whole.
    Inspect {
        /// The folder that the cache was saved in.
        folder: PathBuf,
        /// Check the manifest and the headers of the files only, and do not read what they hold.
        #[arg(long)]
        quick: bool,
        /// Print the segments of every head.
        #[arg(long)]
        heads: bool,
    },
}

fn main() -> ExitCode {
    match run(&Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> anyhow::Result<()> {
    let Command::Inspect {
        folder,
        quick,
        heads,
    } = command;
    let verify = if *quick {
        Verify::Manifest
    } else {
        Verify::All
    };
    let inspection = Inspection::read(folder, verify)
        .with_context(|| format!("cannot inspect {}", folder.display()))?;
    if *heads {
        println!("{inspection:#}");
    } else {
        println!("{inspection}");
    }
    Ok(())
}
