//! What the checks need besides cargo, and how to get it by name: Debian packages, Go modules, cargo's own tools.
//!
//! Nothing is fetched by address. As root, what is missing is installed; otherwise the commands are printed. A tool
//! that cannot be had is no error here: the tests that need it say `SKIPPED`.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use crate::step::root;

/// A program and the Debian package that has it.
const DEBIAN: [(&str, &str); 15] = [
    ("dockerd", "docker.io"),
    ("docker", "docker.io"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("skopeo", "skopeo"),
    ("buildah", "buildah"),
    ("podman", "podman"),
    ("crun", "crun"),
    ("nginx", "nginx"),
    ("strace", "strace"),
    ("mkfs.ext4", "e2fsprogs"),
    ("xfs_io", "xfsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("docker-registry", "docker-registry"),
    ("mount", "mount"),
];

/// A program, the Go package that makes it, its module and the pinned version.
struct GoTool {
    program: &'static str,
    package: &'static str,
    module: &'static str,
    version: &'static str,
    form: Form,
}

/// How a package becomes a program.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// It is one.
    Command,
    /// It is a package of tests, which compile to one.
    Tests,
}

const GO: [GoTool; 5] = [
    GoTool {
        program: "crane",
        package: "github.com/google/go-containerregistry/cmd/crane",
        module: "github.com/google/go-containerregistry",
        version: "v0.22.1",
        form: Form::Command,
    },
    GoTool {
        program: "oras",
        package: "oras.land/oras/cmd/oras",
        module: "oras.land/oras",
        version: "v1.2.3",
        form: Form::Command,
    },
    GoTool {
        program: "helm",
        package: "helm.sh/helm/v3/cmd/helm",
        module: "helm.sh/helm/v3",
        version: "v3.22.0",
        form: Form::Command,
    },
    // Of 2026-07-16: the first rewrite after 1.1.1, which tests sha512, upload cancel and `?tag=`. It has no tag.
    GoTool {
        program: "conformance",
        package: "github.com/opencontainers/distribution-spec/conformance",
        module: "github.com/opencontainers/distribution-spec/conformance",
        version: "967efdc079b91785ad18c77cc4f8991a47feefbf",
        form: Form::Command,
    },
    // The program before the rewrite, of the time of 1.1.0-rc: fewer checks, but every proxy has it.
    GoTool {
        program: "conformance-2023",
        package: "github.com/opencontainers/distribution-spec/conformance",
        module: "github.com/opencontainers/distribution-spec/conformance",
        version: "v0.0.0-20230516164017-7fcdf80f3c8b",
        form: Form::Tests,
    },
];

/// What the comparison needs besides: another registry, a measure of the disk.
const DEBIAN_BENCH: [(&str, &str); 2] = [("docker-registry", "docker-registry"), ("fio", "fio")];

const GO_BENCH: [GoTool; 1] = [GoTool {
    program: "registry",
    package: "github.com/distribution/distribution/v3/cmd/registry",
    module: "github.com/distribution/distribution/v3",
    version: "v3.1.1",
    form: Form::Command,
}];

/// A cargo subcommand and its pinned version.
const CARGO: [(&str, &str); 2] = [("cargo-deny", "0.20.2"), ("cargo-fuzz", "0.13.2")];

/// Installs what is missing where that is allowed. Returns a sentence for each tool that is still missing.
pub(crate) fn set_up() -> Result<Vec<String>> {
    let mut missing = Vec::new();
    debian(&DEBIAN, &mut missing)?;
    go(&GO, &mut missing);
    for (program, version) in CARGO {
        if !is_here(program)
            && !run(Command::new("cargo").args(["install", "--locked", program, "--version", version]))?
        {
            missing.push(format!("{program}: cargo install {program} --version {version} failed"));
        }
    }
    for line in &missing {
        println!("missing: {line}");
    }
    Ok(missing)
}

/// Installs what the comparison needs. Returns a sentence for each tool that is still missing.
pub(crate) fn set_up_bench() -> Result<Vec<String>> {
    let mut missing = Vec::new();
    debian(&DEBIAN, &mut missing)?;
    debian(&DEBIAN_BENCH, &mut missing)?;
    go(&GO_BENCH, &mut missing);
    Ok(missing)
}

/// Where the Go tools are put: beside the build, so that removing the build removes them.
pub(crate) fn tool_dir() -> PathBuf {
    let target = variable("CARGO_TARGET_DIR").map(PathBuf::from);
    target.or_else(|| root().ok().map(|root| root.join("target"))).unwrap_or_default().join("tools")
}

/// Whether this is the machine that guards the branch.
pub(crate) fn on_ci() -> bool {
    variable("CI").as_deref() == Some("true")
}

fn go(tools: &[GoTool], missing: &mut Vec<String>) {
    for tool in tools.iter().filter(|tool| !is_here(tool.program)) {
        if let Err(error) = install_go(tool) {
            missing.push(format!("{} ({} {}): {error:#}", tool.program, tool.module, tool.version));
        }
    }
}

fn debian(wanted: &[(&'static str, &'static str)], missing: &mut Vec<String>) -> Result<()> {
    let mut packages: Vec<&str> =
        wanted.iter().filter(|(program, _)| !is_here(program)).map(|(_, package)| *package).collect();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let root_here = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
    if !root_here || !is_here("apt-get") {
        missing.push(format!(
            "Debian packages, to be installed by root: apt-get install {}",
            packages.join(" ")
        ));
        return Ok(());
    }
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(["-qq", "-o", "DPkg::Lock::Timeout=300"]);
        command
    };
    let _stopped = StoppedServices::by(Path::new(POLICY))?;
    let updated = run(apt().arg("update"))?;
    if !updated || !run(apt().args(["install", "--yes", "--no-install-recommends"]).args(&packages))? {
        missing.push(format!("apt-get could not install {}", packages.join(" ")));
    }
    Ok(())
}

/// What Debian asks whether a service may be started (invoke-rc.d(8), deb-systemd-invoke(1p)).
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Keeps packages from starting their services when they are installed: nginx would take port 80, docker-registry port 5000, and
/// both would stay. An environment variable would leave nothing to remove, but systemd's part of Debian looks at none.
#[derive(Debug)]
struct StoppedServices {
    policy: Option<PathBuf>,
}

impl StoppedServices {
    /// Until it is dropped. Where there is a policy already, that one counts: it is the operator's.
    fn by(policy: &Path) -> Result<Self> {
        let failed = || format!("writing {}", policy.display());
        let new = std::fs::File::options().write(true).create_new(true).mode(0o755).open(policy);
        let mut file = match new {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                return Ok(Self { policy: None });
            }
            Err(error) => return Err(error).with_context(failed),
        };
        let stopped = Self { policy: Some(policy.to_path_buf()) };
        // If we are killed it stays, and forbids nothing: it asks whether we are still there. 101 is "forbidden".
        let script = format!(
            "#!/bin/sh\n# Made by cargo xtask, which removes it; what is left over may be removed.\n\
             kill -0 {} 2>/dev/null && exit 101\nexit 0\n",
            std::process::id()
        );
        file.write_all(script.as_bytes()).with_context(failed)?;
        Ok(stopped)
    }
}

impl Drop for StoppedServices {
    fn drop(&mut self) {
        if let Some(policy) = &self.policy
            && let Err(error) = std::fs::remove_file(policy)
        {
            println!("cannot remove {}: {error}", policy.display());
        }
    }
}

/// `go install` inside of a throw-away module. The short form `go install package@version` asks the module proxy for
/// more than the version (its list, for retractions), which not every proxy has.
fn install_go(tool: &GoTool) -> Result<()> {
    anyhow::ensure!(is_here("go"), "needs Go");
    let dir = tempfile::tempdir()?;
    std::fs::create_dir_all(tool_dir())?;
    let requirement = format!("module tools\n\ngo 1.24\n\nrequire {} {}\n", tool.module, tool.version);
    std::fs::write(dir.path().join("go.mod"), requirement)?;
    println!("installing {} {}", tool.program, tool.version);
    let made = tool_dir().join(tool.program);
    let mut command = Command::new("go");
    match tool.form {
        Form::Command => command.args(["install", tool.package]),
        Form::Tests => command.args(["test", "-c", "-o"]).arg(&made).arg(tool.package),
    };
    let output = command
        .current_dir(dir.path())
        .env("GOFLAGS", "-mod=mod -buildvcs=false")
        .env("GOBIN", tool_dir())
        .output()
        .context("running go")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let last: Vec<&str> = said.lines().filter(|line| !line.starts_with("go: downloading")).collect();
    anyhow::ensure!(output.status.success(), "{}", last.join(" "));
    Ok(())
}

fn is_here(program: &str) -> bool {
    let mut dirs: Vec<PathBuf> = vec![tool_dir(), "/usr/sbin".into(), "/sbin".into()];
    dirs.extend(variable("PATH").iter().flat_map(std::env::split_paths));
    dirs.extend(variable("HOME").map(|home| Path::new(&home).join("go/bin")));
    dirs.into_iter().any(|dir| dir.join(program).is_file())
}

fn run(command: &mut Command) -> Result<bool> {
    println!("running {command:?}");
    Ok(command.stdin(Stdio::null()).status().with_context(|| format!("running {command:?}"))?.success())
}

#[expect(clippy::disallowed_methods, reason = "a repository task reads its own environment")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(policy: &Path) -> Option<i32> {
        Command::new(policy).args(["nginx", "start"]).status().unwrap().code()
    }

    #[test]
    fn services_stay_stopped_for_as_long_as_packages_are_installed() {
        let dir = tempfile::tempdir().unwrap();
        let policy = dir.path().join("policy-rc.d");
        let stopped = StoppedServices::by(&policy).unwrap();
        assert_eq!(answer(&policy), Some(101));
        drop(stopped);
        assert!(!policy.exists());
    }

    #[test]
    fn a_policy_of_the_operator_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let policy = dir.path().join("policy-rc.d");
        std::fs::write(&policy, "theirs").unwrap();
        drop(StoppedServices::by(&policy).unwrap());
        assert_eq!(std::fs::read(&policy).unwrap(), b"theirs");
    }

    #[test]
    fn a_policy_that_was_left_over_forbids_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let policy = dir.path().join("policy-rc.d");
        let stopped = StoppedServices::by(&policy).unwrap();
        let mut ended = Command::new("true").spawn().unwrap();
        ended.wait().unwrap();
        let ours = std::fs::read_to_string(&policy).unwrap();
        let left = ours.replace(&std::process::id().to_string(), &ended.id().to_string());
        std::fs::write(&policy, left).unwrap();
        assert_eq!(answer(&policy), Some(0));
        drop(stopped);
    }
}
