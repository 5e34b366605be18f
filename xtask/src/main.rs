//! Every chore of the workspace as one command: `cargo xtask --help` explains each.
//!
//! The test matrix is a list of steps (`matrix.rs`), each a function in `steps.rs`; the checks that need no compiler are
//! `tidy.rs` and `layers.rs`; `shell.rs` runs programs and counts the tests that they report.

mod asan;
mod bench;
mod demo;
mod docs;
mod drivers;
mod gpu;
mod layers;
mod matrix;
mod samples;
mod shell;
mod soak;
mod source;
mod steps;
mod tidy;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{matrix::Options, workspace::Workspace};

/// Every chore of Hira: tests, checks, the demo, the benches, the docs.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, about)]
pub(crate) struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Run the test matrix: everything that this machine can check, cheapest first
    ///
    /// Prints one line a step with its time, then what was skipped and why, then the number of
    /// tests. A step whose need is missing (a Vulkan or CUDA driver, the captures) is skipped and
    /// says so. The output of each step goes to target/xtask/STEP.log, and to the terminal with
    /// --verbose or when the step fails. The exit code is 0 only if no step failed.
    #[command(verbatim_doc_comment)]
    Test(Options),

    /// What .ci/run calls: the whole matrix, output shown, going on after a failure
    Ci,

    /// Check the house rules that need no compiler
    ///
    /// File lengths, `unsafe` only in hira-kernels, no unfinished markers or ignored tests, every
    /// crate introduced by its `//!`, no trailing whitespace, no paths of one machine, every
    /// dependency inherited from the workspace, and no document that names a command, binary or
    /// step which does not exist.
    #[command(verbatim_doc_comment)]
    Tidy,

    /// Check that dependencies between the crates point downwards only
    ///
    /// The order is kernels < index < threshold < search < memory < cache < attention < examples.
    /// Also proves with `cargo tree` that the numerical cores (--no-default-features) do not
    /// depend on Burn.
    #[command(verbatim_doc_comment)]
    Layers,

    /// Dense beside Hira on a real model: one document, one prefill, two answers, one table
    ///
    /// Builds hira-examples in release (some minutes the first time) and runs its `demo` binary,
    /// which fetches SmolLM2-135M (93 MB, once), reads the bundled text, asks a question about it
    /// and compares the two attentions. Everything after `demo` is handed to the binary:
    /// `cargo xtask demo -- --help` lists its flags.
    #[command(verbatim_doc_comment)]
    Demo {
        /// Flags of the demo binary, such as --question "..." --max-new 64 --top-k-keys 128 --json
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        flags: Vec<String>,
    },

    /// Time whole decode steps of a real model: Burn's own attention, dense and Hira, at 512, 2,048 and 8,000 tokens
    ///
    /// Builds hira-examples in release and runs its `decode` binary on SmolLM2-135M: one prefill, then
    /// greedy steps of each attention turn by turn, medians with quartiles. Everything after `decode`
    /// is handed to the binary: `cargo xtask decode -- --help` lists its flags.
    #[command(verbatim_doc_comment)]
    Decode {
        /// Flags of the decode binary, such as --contexts 512,8000 --weights f16
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        flags: Vec<String>,
    },

    /// Measure one decode step's attention and, without --quick, the kernels and the search
    ///
    /// Runs the `bench_attention` binary of hira-examples in release: a list of scenarios (16 keys
    /// to a million, SmolLM2's and Llama 3's shapes, cold and warm), Hira beside dense attention
    /// and Burn's own on the same tensors, one head's search, and what the machine can do at best;
    /// every timed answer is checked. CSV, Markdown and SVG plots go to target/hira-bench. With
    /// --peers also PyTorch, FAISS, hnswlib and usearch on the same rows (see benches/peers).
    /// Without --quick and flags also the benches of hira-kernels, hira-index and hira-search.
    /// Close other programs first: the figures are of memory speed. Everything else is handed to
    /// bench_attention: `cargo xtask bench -- --list`, `-- --only smollm2/generated`.
    #[command(verbatim_doc_comment)]
    Bench {
        /// Only the attention bench, its short list of scenarios: under two minutes once built
        #[arg(long)]
        quick: bool,
        /// Also time peers, with pinned packages from PyPI in target/peers (5.5 GB)
        #[arg(long)]
        peers: bool,
        /// Flags of the bench_attention binary
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        flags: Vec<String>,
    },

    /// Measure how far attention by each rule is from dense attention on a real model
    ///
    /// Builds hira-examples in release and runs its `eval` binary on SmolLM2-135M: a text is read
    /// with every rule (Hira's, and Quest, StreamingLLM and H2O to compare with) and each next token
    /// is judged against dense attention over the same past; tokens are decoded beside dense; the
    /// recorded keys are measured in f64. CSV, Markdown and SVG plots go to target/hira-eval, where
    /// a journal keeps what is finished: stop it at any time, a second run goes on. With --quick
    /// some minutes, without it hours. Everything after `eval` is handed to the binary:
    /// `cargo xtask eval -- --help` lists its flags.
    #[command(verbatim_doc_comment)]
    Eval {
        /// Flags of the eval binary, such as --quick, --long, --rules mass=0.99,top-k=256
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        flags: Vec<String>,
    },

    /// Check random histories against brute force, certificates against the truth, and properties on other cases
    ///
    /// Runs the `soak` example of hira-search in release, without Burn: indexes of every shape are
    /// grown, cut, forked and searched with every plan and rule, and every answer is compared. The
    /// default of 1e9 key checks takes one to two minutes on two cores, and the first build some
    /// minutes more. A failure prints the seed, the case and the shortest history found. Then the
    /// `certificates` example of hira-attention: the proven bounds of a million answers, over random
    /// and adversarial inputs, against attention in f64. Then the property tests of the cores, with
    /// random cases where the matrix has the same ones in every run: `cargo xtask soak properties N`
    /// tries N of each. Everything after `soak` is handed to the
    /// first, such as --checks 1e7 --seconds 60 --seed 1, and after `soak certificates` to the
    /// second: `cargo xtask soak -- --help` and `cargo xtask soak certificates --help` list flags.
    #[command(verbatim_doc_comment)]
    Soak {
        /// Flags of the soak
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        flags: Vec<String>,
    },

    /// Fuzz histories of indexes for a stretch of time, a minute if nothing else is said
    ///
    /// Runs the `fuzz` example of hira-search in release, without Burn: strings of bytes are read
    /// as histories of indexes, those that take a new way are kept and mutated, and every answer is
    /// compared with brute force. A failing input is written below target/fuzz and can be run again
    /// with --replay FILE. Everything after `fuzz` is handed to it: `cargo xtask fuzz -- --help`.
    #[command(verbatim_doc_comment)]
    Fuzz {
        /// Flags of the fuzzer, such as --seconds 600
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        flags: Vec<String>,
    },

    /// Run the tests of hira-kernels and hira-index under AddressSanitizer
    ///
    /// The same as the step `asan` of the test matrix. Needs no nightly toolchain, but a build of
    /// its own, in target/asan.
    #[command(verbatim_doc_comment)]
    Asan,

    /// Build `hira-gpu`, one program that checks and times the device engine on a machine with a GPU
    ///
    /// Builds it in release with the bindings of CUDA 13.0, in target/gpu, and leaves it in
    /// target/hira-gpu with the script of the PyTorch side and the captures, if there are any: one
    /// folder to copy to the machine with the GPU, which needs no Rust. Prints its size (60 MiB at
    /// most), what it links to (glibc alone: CUDA and Vulkan are found at run time) and how to run
    /// it. Where there is a CUDA driver it is run too, with what follows:
    /// `cargo xtask gpu -- --contexts 8192`.
    #[command(verbatim_doc_comment)]
    Gpu {
        /// Only build
        #[arg(long)]
        build_only: bool,
        /// Flags of the hira-gpu binary
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        flags: Vec<String>,
    },

    /// Build the documentation of every crate and print where it is
    Doc {
        /// Open it in the browser
        #[arg(long)]
        open: bool,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one chore; `false` means that it ran and found something wrong, which it has printed.
fn run(cli: Cli) -> Result<bool> {
    let workspace = Workspace::find()?;
    match cli.chore {
        Chore::Test(options) => matrix::run(&workspace, &options),
        Chore::Ci => matrix::run(&workspace, &Options::ci()),
        Chore::Tidy => report("tidy", tidy::check(&workspace)?),
        Chore::Layers => report("layers", layers::check(&workspace)?),
        Chore::Demo { flags } => demo::run(&workspace, "demo", &flags),
        Chore::Decode { flags } => demo::run(&workspace, "decode", &flags),
        Chore::Eval { flags } => demo::run(&workspace, "eval", &flags),
        Chore::Bench {
            quick,
            peers,
            flags,
        } => bench::run(
            &workspace,
            &bench::Options {
                quick,
                peers,
                flags: &flags,
            },
        ),
        Chore::Soak { flags } => soak::soak(&workspace, &flags),
        Chore::Fuzz { flags } => soak::fuzz(&workspace, &flags),
        Chore::Asan => asan::run(&workspace),
        Chore::Gpu { build_only, flags } => gpu::run(&workspace, build_only, &flags),
        Chore::Doc { open } => docs::run(&workspace, open),
    }
}

/// Prints the findings of a check, one a line; true if there are none.
fn report(check: &str, findings: Vec<String>) -> Result<bool> {
    for finding in &findings {
        println!("{finding}");
    }
    println!("{check}: {} findings", findings.len());
    Ok(findings.is_empty())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_chore_is_explained() {
        for chore in Cli::command().get_subcommands() {
            assert!(
                chore.get_about().is_some(),
                "{} has no help",
                chore.get_name()
            );
        }
    }
}
