//! `cargo xtask gpu`: one program for a machine with a GPU, built where there is none.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{
    drivers::loadable,
    workspace::{Workspace, output},
};

/// Most bytes of the program.
const LARGEST: u64 = 60 << 20;

/// The CUDA version whose driver interface it is built for, as cudarc names it.
const CUDA: &str = "13000";

/// Libraries of glibc and of the compiler, by the start of their names: nothing else may be linked.
const GLIBC: [&str; 6] = [
    "linux-vdso.so",
    "libc.so",
    "libm.so",
    "libgcc_s.so",
    "libdl.so",
    "ld-linux",
];

/// How to run it elsewhere.
const ELSEWHERE: &str = "
On the machine with the GPU, in a copy of this folder (no Rust and no registry needed; a CUDA driver, NVRTC and CUDA's headers are):
  ./hira-gpu --quick                              a first look, a minute or two
  ./hira-gpu                                      every check, then every case
  python3 sdpa.py hira-gpu-rows > sdpa.csv        PyTorch over the same rows (torch with CUDA, nothing else)
  ./hira-gpu --sdpa sdpa.csv                      both in one table; hira-gpu.csv has it for programs
Where CUDA is there only as torch's packages: eval \"$(python3 sdpa.py --environment)\" first.
";

/// Builds, reports, and runs it if there is a CUDA driver.
pub(crate) fn run(workspace: &Workspace, build_only: bool, flags: &[String]) -> Result<bool> {
    ensure!(
        cfg!(all(target_arch = "x86_64", target_os = "linux")),
        "expected x86-64 Linux, which the program is for"
    );
    let target = workspace.target().join("gpu");
    let mut build = workspace.cargo("build");
    build
        .args(["--release", "--package", "hira-examples"])
        .args(["--bin", "hira-gpu", "--features", "cuda,wgpu"])
        .env("CARGO_TARGET_DIR", &target)
        .env("CUDARC_CUDA_VERSION", CUDA);
    if !build.status()?.success() {
        return Ok(false);
    }
    let folder = workspace.target().join("hira-gpu");
    fs::create_dir_all(&folder)?;
    let program = folder.join("hira-gpu");
    fs::copy(target.join("release/hira-gpu"), &program).context("the program was not built")?;
    fs::copy(
        workspace.root().join("benches/gpu/sdpa.py"),
        folder.join("sdpa.py"),
    )?;
    for capture in workspace.captures() {
        let captures = folder.join("captures");
        fs::create_dir_all(&captures)?;
        let copy = captures.join(capture.file_name().context("a capture has a name")?);
        // a capture never changes, and may be read-only
        if !copy.exists() {
            fs::copy(&capture, copy)?;
        }
    }
    check(&program)?;
    println!("{ELSEWHERE}");
    if build_only || !loadable("libcuda.so.1") {
        println!("Not run: no CUDA driver here, or only the build was asked for.");
        return Ok(true);
    }
    let run = Command::new(&program)
        .args(flags)
        .current_dir(&folder)
        .status();
    Ok(run?.success())
}

/// The size, and what is linked.
fn check(program: &Path) -> Result<()> {
    let bytes = fs::metadata(program)?.len();
    let mib = bytes as f64 / f64::from(1 << 20);
    println!("{}: {mib:.1} MiB, linked to", program.display());
    ensure!(bytes <= LARGEST, "expected at most 60 MiB");
    let linked = output(Command::new("ldd").arg(program))?;
    print!("{linked}");
    let foreign = foreign(&linked);
    ensure!(
        foreign.is_empty(),
        "expected glibc alone, linked to {}",
        foreign.join(", ")
    );
    Ok(())
}

/// What `ldd` names that a machine may lack.
fn foreign(linked: &str) -> Vec<&str> {
    let names = linked
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(|path| path.rsplit('/').next().unwrap_or(path));
    names
        .filter(|name| !GLIBC.iter().any(|start| name.starts_with(start)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_machine_may_lack_is_named() {
        let linked = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibcuda.so.1 => /usr/lib/libcuda.so.1 (0x00007f)\n\
                      \tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(foreign(linked), ["libcuda.so.1"]);
        assert!(foreign("\tlibm.so.6 => /lib/libm.so.6 (0x00007f)\n").is_empty());
    }
}
