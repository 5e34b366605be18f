//! Memory in huge pages, where the system leaves the choice to programs.

/// Starts the program anew, once, with glibc asking for huge pages; returns where that is impossible or of no use.
///
/// A decode step reads weights, keys and values from all over memory. With pages of 4 KiB one core read the weights of SmolLM2 at 19
/// to 24 GB/s on the machine that this was measured on, and with pages of 2 MiB at 27. glibc takes that wish only from the
/// environment, before a program begins; whoever has set `GLIBC_TUNABLES` already is left alone.
///
/// Call it first in `main`.
pub(crate) fn ask() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use std::os::unix::process::CommandExt;

        const TUNABLES: &str = "GLIBC_TUNABLES";
        let choice = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
        let ours_to_choose = choice.is_ok_and(|choice| choice.contains("[madvise]"));
        if !ours_to_choose || std::env::var_os(TUNABLES).is_some() {
            return;
        }
        let Ok(program) = std::env::current_exe() else {
            return;
        };
        let mut arguments = std::env::args_os();
        let mut command = std::process::Command::new(program);
        if let Some(name) = arguments.next() {
            command.arg0(name);
        }
        // It returns only if it failed: then the program goes on with the pages that it has.
        let _failure = command
            .args(arguments)
            .env(TUNABLES, "glibc.malloc.hugetlb=1")
            .exec();
    }
}
