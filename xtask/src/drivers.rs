//! Finds the drivers that device tests need, without touching a device.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::workspace::output;

/// Where Vulkan's loader looks for descriptions of drivers.
const VULKAN_FOLDERS: [&str; 3] = [
    "/usr/share/vulkan/icd.d",
    "/etc/vulkan/icd.d",
    "/usr/local/share/vulkan/icd.d",
];

/// The description of Mesa's software driver (lavapipe), if it and the loader are installed.
pub(crate) fn software_vulkan() -> Option<PathBuf> {
    let files = VULKAN_FOLDERS
        .iter()
        .filter_map(|folder| Path::new(folder).read_dir().ok())
        .flatten();
    let lavapipe = |file: &PathBuf| {
        file.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with("lvp_icd"))
    };
    files
        .flatten()
        .map(|file| file.path())
        .find(lavapipe)
        .filter(|_| loadable("libvulkan.so.1"))
}

/// True if the dynamic linker knows a library of this name.
pub(crate) fn loadable(library: &str) -> bool {
    // Not everyone has /sbin in PATH.
    let listed = ["ldconfig", "/sbin/ldconfig"]
        .into_iter()
        .find_map(|program| output(Command::new(program).arg("-p")).ok());
    listed.is_some_and(|listed| {
        listed
            .lines()
            .any(|line| line.split_whitespace().next() == Some(library))
    })
}
