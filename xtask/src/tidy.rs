//! The house rules that need no compiler, checked over every file that Git tracks or would track.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::{
    Cli,
    source::{code, has_word, lines_without_tests, without_strings},
    steps,
    workspace::Workspace,
};

const MAX_LINES: usize = 600;

/// Kinds of text that are checked for whitespace and paths.
const TEXT: [&str; 10] = [
    "rs", "toml", "md", "sh", "json", "yaml", "yml", "txt", "py", "run",
];

/// Marks of work that was left undone, as they stand in code or comments.
const UNFINISHED: [&str; 5] = ["TODO", "FIXME", "XXX", "todo!", "unimplemented!"];

/// Folders at the root of a machine that no file of the project may name: they are one person's or one job's.
const HOST_FOLDERS: [&str; 4] = ["work", "tmp", "root", "home"];

/// Documents whose commands must exist.
const DOCUMENTS: [&str; 4] = [
    "README.md",
    "CONTRIBUTING.md",
    "ARCHITECTURE.md",
    "examples/data/README.md",
];

/// Every breach of a rule, a line each.
pub(crate) fn check(workspace: &Workspace) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for file in workspace.files()? {
        let kind = file
            .extension()
            .or(file.file_name())
            .and_then(|kind| kind.to_str())
            .unwrap_or_default();
        if !TEXT.contains(&kind) {
            continue;
        }
        let text = fs::read_to_string(workspace.root().join(&file))
            .with_context(|| format!("{} is not UTF-8 text", file.display()))?;
        findings.extend(check_text(&file, &text));
        if kind == "rs" {
            findings.extend(check_rust(&file, &text));
        }
        if file.ends_with("Cargo.toml") && file.components().count() > 1 {
            findings.extend(check_manifest(&file, &text));
        }
    }
    for document in DOCUMENTS {
        match fs::read_to_string(workspace.root().join(document)) {
            Ok(text) => findings.extend(check_commands(workspace, document, &text)),
            Err(_) => findings.push(format!("{document}: missing")),
        }
    }
    Ok(findings)
}

/// Trailing whitespace, a missing last line end, paths of one machine.
fn check_text(file: &Path, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.ends_with([' ', '\t', '\r']) {
            findings.push(format!("{}:{number}: trailing whitespace", file.display()));
        }
        if let Some(folder) = host_folder(line) {
            findings.push(format!(
                "{}:{number}: a path below /{folder}, which is one machine's",
                file.display()
            ));
        }
    }
    if !text.is_empty() && !text.ends_with('\n') {
        findings.push(format!(
            "{}: no line end after the last line",
            file.display()
        ));
    }
    findings
}

/// The folder of [`HOST_FOLDERS`] that a path in a line begins with; one in the middle of a path or address is none.
fn host_folder(line: &str) -> Option<&'static str> {
    let inside = |character: char| character.is_alphanumeric() || "_-./}~$".contains(character);
    HOST_FOLDERS.into_iter().find(|folder| {
        line.match_indices(&format!("/{folder}/"))
            .any(|(at, _)| !line[..at].ends_with(inside))
    })
}

/// Length, `unsafe`, unfinished marks, ignored tests, and the `//!` of a crate.
fn check_rust(file: &Path, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let in_folder = |folder: &str| file.components().any(|part| part.as_os_str() == folder);
    let lines = lines_without_tests(text);
    let is_test = in_folder("tests") || in_folder("benches") || file.ends_with("tests.rs");
    if lines > MAX_LINES && !is_test {
        findings.push(format!(
            "{}: {lines} lines, {MAX_LINES} at most: one noun per file",
            file.display()
        ));
    }
    if file.ends_with("lib.rs") && !text.starts_with("//!") {
        findings.push(format!("{}: does not begin with `//!`", file.display()));
    }
    for (number, line) in (1..).zip(text.lines()) {
        let mut find = |what: &str| findings.push(format!("{}:{number}: {what}", file.display()));
        if has_word(&code(line), "unsafe") && !file.starts_with("hira-kernels") {
            find("`unsafe` outside hira-kernels");
        }
        let written = without_strings(line);
        if UNFINISHED.iter().any(|mark| has_word(&written, mark)) {
            find("unfinished");
        }
        let example = line
            .trim_start()
            .trim_start_matches(['/', '!'])
            .trim_start()
            .strip_prefix("```");
        if code(line).contains("#[ignore") || example.is_some_and(|kind| has_word(kind, "ignore")) {
            find("ignored test or example: a test prints why it cannot run, an example compiles");
        }
    }
    findings
}

/// Dependencies that do not come from the workspace, and a missing `[lints] workspace = true`.
fn check_manifest(file: &Path, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let mut in_dependencies = false;
    for (number, line) in (1..).zip(text.lines()) {
        if line.starts_with('[') {
            in_dependencies = line.trim_end_matches(']').ends_with("dependencies");
        } else if in_dependencies && line.contains('=') && !line.contains("workspace = true") {
            findings.push(format!(
                "{}:{number}: not inherited from [workspace.dependencies]",
                file.display()
            ));
        }
    }
    if !file.starts_with("hira-kernels") && !text.contains("[lints]\nworkspace = true") {
        findings.push(format!(
            "{}: does not inherit the workspace's lints",
            file.display()
        ));
    }
    findings
}

/// `cargo xtask CHORE`, `--only STEP`, `--bin NAME` and `--example NAME` in a document that do not exist.
fn check_commands(workspace: &Workspace, document: &str, text: &str) -> Vec<String> {
    let cli = Cli::command();
    let chores: Vec<_> = cli
        .get_subcommands()
        .map(|chore| chore.get_name().to_string())
        .collect();
    let steps: Vec<_> = steps::ALL
        .iter()
        .map(|step| step.name.to_string())
        .collect();
    let known = [
        ("cargo xtask ", chores),
        ("--only ", steps),
        ("--bin ", workspace.binaries()),
        ("--example ", workspace.examples()),
    ];
    let mut findings = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        for (before, names) in &known {
            for word in
                words_after(line, before).filter(|word| !names.iter().any(|name| name == word))
            {
                findings.push(format!(
                    "{document}:{number}: `{before}{word}` does not exist"
                ));
            }
        }
    }
    findings
}

/// The lower-case words that stand right after `before` in a line: `NAME` and `--flag` are none.
fn words_after<'line>(line: &'line str, before: &'line str) -> impl Iterator<Item = &'line str> {
    line.match_indices(before).filter_map(move |(at, _)| {
        let rest = &line[at + before.len()..];
        let part = |character: char| {
            character.is_ascii_lowercase() || character.is_ascii_digit() || "_-".contains(character)
        };
        let end = rest
            .find(|character| !part(character))
            .unwrap_or(rest.len());
        let word = &rest[..end];
        (!word.is_empty() && !word.starts_with('-')).then_some(word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rust(file: &str, text: &str) -> usize {
        check_rust(Path::new(file), text).len()
    }

    #[test]
    fn text_rules() {
        let check = |text: &str| check_text(Path::new("a.md"), text).len();
        assert_eq!(check("fine\n"), 0);
        assert_eq!(check("space \n"), 1);
        assert_eq!(check("no end"), 1);
        for folder in HOST_FOLDERS {
            assert_eq!(check(&format!("see /{folder}/x\n")), 1);
            assert_eq!(check(&format!("see a/{folder}/x\n")), 0);
        }
    }

    #[test]
    fn rust_rules() {
        assert_eq!(rust("hira-index/src/lib.rs", "//! An index.\n"), 0);
        assert_eq!(rust("hira-index/src/lib.rs", "mod x;\n"), 1);
        let block = "unsafe { }\n";
        assert_eq!(rust("hira-index/src/a.rs", block), 1);
        assert_eq!(rust("hira-kernels/src/a.rs", block), 0);
        assert_eq!(
            rust("a.rs", "// says \"unsafe\" only\n#![forbid(unsafe_code)]\n"),
            0
        );
        for mark in UNFINISHED {
            assert_eq!(rust("a.rs", &format!("// {mark} this\n")), 1);
        }
        assert_eq!(rust("a.rs", concat!("#[", "ignore]\n")), 1);
        assert_eq!(rust("a.rs", "    /// ```rust,ignore\n"), 1);
        assert_eq!(rust("a.rs", "//! ```no_run\n"), 0);
        assert_eq!(rust("a.rs", &"x\n".repeat(MAX_LINES + 1)), 1);
        assert_eq!(rust("tests/a.rs", &"x\n".repeat(MAX_LINES + 1)), 0);
    }

    #[test]
    fn manifest_rules() {
        let check = |text: &str| check_manifest(Path::new("x/Cargo.toml"), text).len();
        let lints = "[lints]\nworkspace = true\n";
        assert_eq!(
            check(&format!(
                "[dependencies]\nserde.workspace = true\n\n{lints}"
            )),
            0
        );
        assert_eq!(
            check(&format!("[dev-dependencies]\nserde = \"1\"\n\n{lints}")),
            1
        );
        assert_eq!(check("[package]\nname = \"x\"\n"), 1);
    }

    #[test]
    fn commands_in_documents() {
        let words = |line| words_after(line, "cargo xtask ").collect::<Vec<_>>();
        assert_eq!(
            words("run `cargo xtask test`, then `cargo xtask demo`"),
            ["test", "demo"]
        );
        assert!(words("`cargo xtask --help` and cargo xtask NAME").is_empty());
    }
}
