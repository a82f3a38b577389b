//! The packages that guests are made of: fetched once, unpacked, and not installed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use object::{Object, ObjectSection};

/// The modules that a guest needs, beside what these need.
const WANTED: &[&str] = &["virtio_pci", "virtio_net"];
/// What a file of a kernel's modules ends with, and the same compressed.
const MODULE: &str = ".ko";
const PACKED_MODULE: &str = ".ko.xz";

/// A kernel that is there.
pub(super) struct Kernel {
    /// Its release, as `uname -r` says it.
    pub(super) release: String,
    /// Its image.
    pub(super) image: PathBuf,
    /// Its modules, in the order in which they are to be inserted.
    pub(super) modules: Vec<PathBuf>,
}

impl Kernel {
    /// The kernel of a package, or of the one that the package stands for.
    pub(super) fn of(cache: &Path, package: &str) -> Result<Self, String> {
        let kept = cache.join(package);
        if !kept.exists() {
            let unpacked = unpack(cache, package, Some("linux-image-"))?;
            let keep = || keep_kernel(&unpacked, &cache.join(format!("{package}.new")));
            let kernel = keep();
            remove(&unpacked);
            fs::rename(kernel?, &kept).map_err(|error| format!("{}: {error}", kept.display()))?;
        }
        let read = || -> std::io::Result<Self> {
            let mut modules: Vec<PathBuf> =
                fs::read_dir(kept.join("modules"))?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
            modules.sort();
            let release = fs::read_to_string(kept.join("release"))?;
            Ok(Self { release, image: kept.join("image"), modules })
        };
        read().map_err(|error| format!("{} cannot be used: {error}; remove it", kept.display()))
    }
}

/// The program of a package that is its own shell and everything that one calls.
pub(super) fn shell(cache: &Path, package: &str) -> Result<PathBuf, String> {
    let kept = cache.join("busybox");
    if !kept.exists() {
        let unpacked = unpack(cache, package, None)?;
        let program = ["bin/busybox", "usr/bin/busybox"].map(|path| unpacked.join(path));
        let found = program.iter().find(|path| path.exists()).ok_or(format!("{package} has no busybox"));
        let moved = found.and_then(|path| fs::rename(path, &kept).map_err(|error| error.to_string()));
        remove(&unpacked);
        moved?;
    }
    Ok(kept)
}

fn remove(directory: &Path) {
    if let Err(error) = fs::remove_dir_all(directory) {
        eprintln!("{} is left behind: {error}", directory.display());
    }
}

/// Runs a program without showing its output, which comes back.
fn tool(program: &str, arguments: &[&str], directory: &Path) -> Result<String, String> {
    let output = Command::new(program).args(arguments).current_dir(directory).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first = said.lines().find(|line| !line.starts_with("W: ")).unwrap_or("it does not say why");
    Err(format!("{program} {}: {first}", arguments.join(" ")))
}

/// Fetches a package and unpacks it into a directory of its own. With a prefix it is the first of that name that the
/// package depends on.
fn unpack(cache: &Path, package: &str, prefix: Option<&str>) -> Result<PathBuf, String> {
    let fetched = cache.join(format!("{package}.fetched"));
    if fetched.exists() {
        // A run that was killed left it.
        remove(&fetched);
    }
    let failed = |error: std::io::Error| format!("{}: {error}", fetched.display());
    fs::create_dir_all(&fetched).map_err(failed)?;
    let fetch = || -> Result<(), String> {
        let name = match prefix {
            Some(prefix) => stands_for(package, prefix)?,
            None => package.to_string(),
        };
        tool("apt-get", &["download", &name], &fetched)?;
        let archive = fs::read_dir(&fetched).map_err(failed)?.flatten().next().ok_or("apt-get fetched nothing")?.path();
        tool("dpkg-deb", &["--extract", &archive.to_string_lossy(), "."], &fetched)?;
        fs::remove_file(&archive).map_err(failed)
    };
    let fetched_well = fetch();
    if fetched_well.is_err() {
        remove(&fetched);
    }
    fetched_well.map(|()| fetched.clone())
}

/// The package that another one stands for.
fn stands_for(package: &str, prefix: &str) -> Result<String, String> {
    let depends = || tool("apt-cache", &["depends", package], Path::new("/"));
    let text = depends().or_else(|error| {
        // The lists of packages may be missing; only root can fetch them.
        tool("apt-get", &["update"], Path::new("/")).map_err(|_| error)?;
        depends()
    })?;
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names
        .map(str::trim)
        .find(|name| name.starts_with(prefix))
        .map(str::to_string)
        .ok_or(format!("{package} depends on no package that begins with {prefix}"))
}

/// Copies what a guest needs of an unpacked kernel.
fn keep_kernel(unpacked: &Path, kept: &Path) -> Result<PathBuf, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", kept.display());
    if kept.exists() {
        remove(kept);
    }
    fs::create_dir_all(kept.join("modules")).map_err(failed)?;
    let images = fs::read_dir(unpacked.join("boot")).map_err(failed)?.flatten().map(|entry| entry.path());
    let release = |path: &Path| path.file_name()?.to_str()?.strip_prefix("vmlinuz-").map(str::to_string);
    let (release, image) =
        images.filter_map(|path| Some((release(&path)?, path))).next().ok_or("the package has no kernel")?;
    fs::copy(image, kept.join("image")).map_err(failed)?;
    fs::write(kept.join("release"), &release).map_err(failed)?;
    let below = ["lib/modules", "usr/lib/modules"].map(|path| unpacked.join(path).join(&release));
    let below = below.iter().find(|path| path.exists()).ok_or("the package has no modules")?;
    let mut files = BTreeMap::new();
    list(&below.join("kernel"), &mut files).map_err(failed)?;
    let builtin = fs::read_to_string(below.join("modules.builtin")).map_err(failed)?;
    let builtin: Vec<String> = builtin.lines().filter_map(|line| module_name(line.rsplit('/').next()?)).collect();
    let mut modules = Vec::new();
    for name in WANTED {
        gather(name, &files, &builtin, &mut modules)?;
    }
    for (number, (name, bytes)) in modules.iter().enumerate() {
        fs::write(kept.join("modules").join(format!("{number:02}-{name}{MODULE}")), bytes).map_err(failed)?;
    }
    Ok(kept.to_path_buf())
}

/// The name of the module in a file of that name.
fn module_name(file: &str) -> Option<String> {
    let name = file.strip_suffix(MODULE).or_else(|| file.strip_suffix(PACKED_MODULE))?;
    Some(name.replace('-', "_"))
}

/// All modules in a directory and those below it.
fn list(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list(&entry.path(), files)?;
        } else if let Some(name) = entry.file_name().to_str().and_then(module_name) {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

/// Adds a module, after those that it needs.
fn gather(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    builtin: &[String],
    gathered: &mut Vec<(String, Vec<u8>)>,
) -> Result<(), String> {
    if gathered.iter().any(|(known, _)| known == name) {
        return Ok(());
    }
    let Some(path) = files.get(name) else {
        let is_built_in = builtin.iter().any(|known| known == name);
        return if is_built_in { Ok(()) } else { Err(format!("the kernel has no module {name}")) };
    };
    let bytes = contents(path)?;
    for needed in needs(&bytes).ok_or_else(|| format!("{} says not what it needs", path.display()))? {
        gather(&needed, files, builtin, gathered)?;
    }
    gathered.push((name.into(), bytes));
    Ok(())
}

/// A module as the kernel takes it.
fn contents(path: &Path) -> Result<Vec<u8>, String> {
    if !path.to_string_lossy().ends_with(PACKED_MODULE) {
        return fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    }
    let output = Command::new("xz").args(["--decompress", "--stdout"]).arg(path).output();
    match output {
        Ok(output) if output.status.success() => Ok(output.stdout),
        Ok(output) => Err(format!("xz: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("xz: {error}")),
    }
}

/// The modules that a module says it needs.
fn needs(module: &[u8]) -> Option<Vec<String>> {
    let file = object::File::parse(module).ok()?;
    let information = file.section_by_name(".modinfo")?.data().ok()?;
    let names = information.split(|&byte| byte == 0).find_map(|entry| entry.strip_prefix(b"depends="))?;
    let names = String::from_utf8_lossy(names);
    Some(names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_named_as_the_kernel_names_them() {
        assert_eq!(module_name("virtio-rng.ko").as_deref(), Some("virtio_rng"));
        assert_eq!(module_name("virtio_net.ko.xz").as_deref(), Some("virtio_net"));
        assert_eq!(module_name("modules.order"), None);
    }

    #[test]
    fn a_module_that_is_built_in_is_not_needed_and_one_that_is_nowhere_is_named() {
        let mut gathered = Vec::new();
        gather("virtio_pci", &BTreeMap::new(), &["virtio_pci".into()], &mut gathered).expect("it is built in");
        assert!(gathered.is_empty());
        let refused = gather("virtio_net", &BTreeMap::new(), &[], &mut gathered).expect_err("it is nowhere");
        assert!(refused.contains("virtio_net"), "{refused}");
    }
}
