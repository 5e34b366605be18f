//! Checks and times the device engine on a GPU, and prints one table.

use std::{
    fs,
    io::{Write, stdout},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use hira_attention::{HiraBackend, device::DeviceError};
use hira_examples::{
    bench::Library,
    device::DeviceName,
    element::Element,
    gpu::{Case, Check, Finding, GpuRows, Sdpa, Settings, Table, bandwidth, measure},
    program,
};

/// Checks the device engine against attention in f64 and against the host engine, then times one decode step's attention (append, threshold, search,
/// values; Llama 3's shape, 32 query heads on 8 KV heads of dimension 128, bf16) beside Burn's own attention over the same keys, and checks
/// of each case that no key of the exact top was missed.
///
/// PyTorch's side: `python3 sdpa.py hira-gpu-rows > sdpa.csv` over the rows that this program has written, then `hira-gpu --sdpa sdpa.csv`, which
/// measures nothing and prints both in one table.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Which device: cuda, or wgpu (Vulkan, Metal, DirectX; also a software driver) if it was compiled in.
    #[arg(long, default_value = "cuda")]
    device: DeviceName,
    /// Only check.
    #[arg(long, conflicts_with_all = ["bench", "sdpa"])]
    check: bool,
    /// Only time.
    #[arg(long, conflicts_with = "sdpa")]
    bench: bool,
    /// Fewer checks and two small cases: for a machine without a GPU, or for a first look.
    #[arg(long)]
    quick: bool,
    /// Keys per query.
    #[arg(long, default_value_t = 256)]
    top_k: usize,
    /// Contexts, multiples of 1,024; from 8k to a million, and 4k, unless --quick.
    #[arg(long, value_delimiter = ',')]
    contexts: Vec<usize>,
    /// Batches, 1 and 16 unless --quick; on CUDA fewer sequences where the device has no room for so many.
    #[arg(long, value_delimiter = ',')]
    batches: Vec<usize>,
    /// Most steps of a round.
    #[arg(long, default_value_t = 200)]
    steps: usize,
    /// Rounds.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Folder with recorded keys to generate rows from. Default: the folder `captures` beside this program; rows are synthetic without.
    #[arg(long, env = "HIRA_CAPTURES")]
    captures: Option<PathBuf>,
    /// Where to write the rows, for sdpa.py: 4 KiB a key.
    #[arg(long, value_name = "FOLDER", default_value = "hira-gpu-rows")]
    rows: PathBuf,
    /// Where to write what was measured, and where --sdpa reads it.
    #[arg(long, value_name = "FILE", default_value = "hira-gpu.csv")]
    csv: PathBuf,
    /// What sdpa.py has printed over the rows: prints the table with it, and measures nothing.
    #[arg(long, value_name = "FILE")]
    sdpa: Option<PathBuf>,
}

fn main() -> ExitCode {
    program::begin();
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            if error.is::<DeviceError>() {
                eprintln!(
                    "hira-gpu is about devices: --device wgpu takes any Vulkan driver, software too; the CPU is timed by bench_attention"
                );
                ExitCode::from(2)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    if let Some(sdpa) = &arguments.sdpa {
        return join(&arguments.csv, sdpa);
    }
    let device = arguments.device;
    ensure!(
        matches!(device, DeviceName::Cuda | DeviceName::Wgpu),
        "there is no device engine for the CPU: use --device cuda or --device wgpu"
    );
    device.check()?;
    let (name, memory) = about(device)?;
    let session = Session {
        arguments,
        name,
        memory,
    };
    // not by `run_on`: the backends of the CPU would be compiled in for nothing
    match device {
        #[cfg(feature = "cuda")]
        DeviceName::Cuda => session.run::<burn_cuda::Cuda<f32, i32>>(&Default::default()),
        #[cfg(feature = "wgpu")]
        DeviceName::Wgpu => session.run::<burn_wgpu::Wgpu<f32, i32>>(&Default::default()),
        other => bail!(DeviceError::NotCompiled(other.into())),
    }
}

/// Prints what was measured before beside PyTorch's figures, and writes both.
fn join(measured: &Path, sdpa: &Path) -> Result<()> {
    let read = |file: &Path| {
        fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
    };
    let table = Table::parse(&read(measured)?)
        .with_context(|| format!("{} is not what hira-gpu writes", measured.display()))?;
    let figures = Sdpa::parse(&read(sdpa)?);
    ensure!(
        !figures.is_empty(),
        "{} is not what sdpa.py prints",
        sdpa.display()
    );
    print!("{}", table.markdown(&figures));
    fs::write(measured, table.csv(&figures))
        .with_context(|| format!("cannot write {}", measured.display()))
}

/// The name of the device, and the bytes of its memory if that is known.
fn about(device: DeviceName) -> Result<(String, Option<usize>)> {
    match device {
        #[cfg(feature = "cuda")]
        DeviceName::Cuda => {
            let devices = hira_kernels::cuda::devices();
            let first = devices.first().ok_or(DeviceError::NoCudaDevice)?;
            Ok((first.name.clone(), Some(first.memory)))
        }
        #[cfg(feature = "wgpu")]
        DeviceName::Wgpu => {
            use burn_wgpu::{graphics::AutoGraphicsApi, init_setup};
            let setup = || init_setup::<AutoGraphicsApi>(&Default::default(), Default::default());
            // wgpu's runtime panics where there is no adapter
            let Ok(setup) = std::panic::catch_unwind(setup) else {
                bail!("no device was found that wgpu can use (Vulkan, Metal, DirectX)");
            };
            Ok((setup.adapter.get_info().name, None))
        }
        other => bail!(DeviceError::NotCompiled(other.into())),
    }
}

struct Session {
    arguments: Arguments,
    name: String,
    memory: Option<usize>,
}

impl Session {
    fn run<B: HiraBackend>(self, device: &B::Device) -> Result<()> {
        let device_name = format!("{} ({})", self.name, B::name(device));
        println!("device: {device_name}");
        if !self.arguments.bench {
            self.check::<B>(device)?;
        }
        if !self.arguments.check {
            self.bench::<B>(device_name, device)?;
        }
        Ok(())
    }

    fn check<B: HiraBackend>(&self, device: &B::Device) -> Result<()> {
        let possible = |element: &Element| element.check::<B>(device).is_ok();
        let elements = [Element::F32, Element::F16, Element::Bf16];
        let elements: Vec<_> = elements.into_iter().filter(possible).collect();
        let checks = Check::all(&elements, self.arguments.quick);
        let start = Instant::now();
        let (mut failed, mut keys) = (0, 0);
        for (i, check) in checks.iter().enumerate() {
            print!("check {} of {}: {check}: ", i + 1, checks.len());
            // seen even if the device ends the program
            stdout().flush()?;
            match check.run::<B>(device) {
                Ok(Finding { keys: 0, .. }) => println!("ok"),
                Ok(finding) => {
                    keys += finding.keys;
                    println!(
                        "ok, {} of {} keys attended to, none missed, error at most {:.0} % of what is allowed",
                        finding.attended,
                        finding.keys,
                        100.0 * finding.error
                    );
                }
                Err(error) => {
                    failed += 1;
                    println!("FAILED: {error}");
                }
            }
        }
        println!(
            "{} checks of tensors of {}: {failed} failed; {keys} keys compared, in {:.0} s\n",
            checks.len(),
            elements
                .iter()
                .map(|element| element.name())
                .collect::<Vec<_>>()
                .join(", "),
            start.elapsed().as_secs_f64()
        );
        ensure!(failed == 0, "{failed} of {} checks failed", checks.len());
        Ok(())
    }

    fn bench<B: HiraBackend>(self, name: String, device: &B::Device) -> Result<()> {
        let cases = self.cases()?;
        let Session { arguments, .. } = self;
        let longest = cases.iter().map(|case| case.context).max();
        let queries = cases.iter().map(|case| case.batch).max();
        let (longest, queries) = (longest.unwrap_or(0), queries.unwrap_or(0));
        let rows = GpuRows::generate(&library(&arguments)?, longest, queries)?;
        println!("rows: {}", rows.source);
        rows.write(&cases, &arguments.rows)
            .with_context(|| format!("cannot write to {}", arguments.rows.display()))?;
        let wide = Element::Bf16.check::<B>(device).is_err();
        let settings = Settings {
            top_k: arguments.top_k,
            steps: arguments.steps,
            rounds: if arguments.quick { 3 } else { arguments.rounds },
            element: if wide { Element::F32 } else { Element::Bf16 },
        };
        println!("tensors of {}, stored as bf16", settings.element);
        let elements = if arguments.quick { 1 << 20 } else { 1 << 28 };
        let mut table = Table {
            device: name,
            copy: bandwidth::<B>(device, elements, &settings)?,
            outcomes: Vec::new(),
        };
        let (all, mut failed) = (cases.len(), 0);
        for case in cases {
            let Case { context, batch } = case;
            match measure::<B>(&rows, case, &settings, device) {
                Ok(outcome) => table.outcomes.push(outcome),
                Err(error) => {
                    failed += 1;
                    eprintln!("context {context}, batch {batch}: {error}");
                }
            }
            B::memory_cleanup(device);
            eprintln!("context {context}, batch {batch}: over");
            // what there is, in case that a later case ends the program
            fs::write(&arguments.csv, table.csv(&Sdpa::default()))
                .with_context(|| format!("cannot write {}", arguments.csv.display()))?;
        }
        println!("\n{}", table.markdown(&Sdpa::default()));
        println!(
            "No key of the exact top was missed in the cases above. Written: {}; for PyTorch: {}",
            arguments.csv.display(),
            arguments.rows.display()
        );
        ensure!(failed == 0, "{failed} of {all} cases failed");
        Ok(())
    }

    /// What is measured on this device.
    fn cases(&self) -> Result<Vec<Case>> {
        let arguments = &self.arguments;
        let or = |given: &[usize], quick: &[usize], usual: &[usize]| match (given, arguments.quick)
        {
            ([], true) => quick.to_vec(),
            ([], false) => usual.to_vec(),
            (given, _) => given.to_vec(),
        };
        let usual = [4096, 8192, 32_768, 131_072, 524_288, 1_048_576];
        let contexts = or(&arguments.contexts, &[2048], &usual);
        let batches = or(&arguments.batches, &[1, 2], &[1, 16]);
        let mut cases: Vec<Case> = Vec::new();
        for &context in &contexts {
            ensure!(
                context > 0 && context.is_multiple_of(1024),
                "a context is a multiple of 1024, received {context}"
            );
            for &batch in &batches {
                ensure!(batch > 0, "a batch has at least one sequence");
                let wanted = Case { context, batch };
                let case = match self.memory {
                    Some(memory) => wanted.fitting(memory),
                    None => Some(wanted),
                };
                if case != Some(wanted) {
                    let room = case.map_or(0, |case| case.batch);
                    println!("context {context}: there is room for {room} of {batch} sequences");
                }
                cases.extend(case.filter(|case| !cases.contains(case)));
            }
        }
        ensure!(!cases.is_empty(), "no case has room on this device");
        Ok(cases)
    }
}

fn library(arguments: &Arguments) -> Result<Library> {
    let beside = || Some(std::env::current_exe().ok()?.parent()?.join("captures"));
    match arguments.captures.clone().or_else(beside) {
        Some(folder) => Library::open(&folder),
        None => Ok(Library::default()),
    }
}
