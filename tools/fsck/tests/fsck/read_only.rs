//! A store that nobody can write to: `check`, `inspect`, `stats` and every dry run need no more.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::image::{Image, Left};
use crate::program::{Run, check, fsck, output};

/// Runs the program with the store mounted read-only, in a mount namespace that ends with it. `None` where that is not allowed.
fn on_read_only_mount(arguments: &str, folder: &Path) -> Option<Run> {
    const NOT_ALLOWED: i32 = 77;
    let program = env!("CARGO_BIN_EXE_taffrail-fsck");
    let store = folder.display();
    let script = format!(
        "mount --bind '{store}' '{store}' && mount -o remount,bind,ro '{store}' || exit {NOT_ALLOWED}
         if touch '{store}/probe' 2>/dev/null; then exit {NOT_ALLOWED}; fi
         command={arguments:?}; set -- $command; name=$1; shift; '{program}' $name '{store}' \"$@\""
    );
    for flags in [&["--mount"][..], &["--mount", "--map-root-user"][..]] {
        let Ok(output) = output(Command::new("unshare").args(flags).args(["sh", "-c", &script])) else {
            continue;
        };
        let code = output.status.code().unwrap_or(NOT_ALLOWED);
        let text = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        if code != NOT_ALLOWED && !errors.contains("unshare:") {
            return Some(Run { code, stdout: text, stderr: errors });
        }
    }
    None
}

#[test]
fn a_read_only_mount_suffices() {
    let image = Image::usual(Left::Killed);
    let Some(run) = on_read_only_mount("check --json --deep", image.path()) else {
        println!("SKIPPED: mounting in a namespace of one's own is not allowed here");
        return;
    };
    assert_eq!((run.code, run.harms()), (0, Vec::new()), "{run:?}");
    assert_eq!(run.json()["totals"]["blobs"], 8);
    let run = on_read_only_mount("inspect", image.path()).unwrap();
    assert!(run.code == 0 && run.stdout.contains("SOLO"), "{run:?}");
    let run = on_read_only_mount("stats --json --estimate-dedup", image.path()).unwrap();
    assert_eq!((run.code, &run.json()["blobs"]["linked"]["count"]), (0, &7.into()), "{run:?}");
    let run = on_read_only_mount("gc --dry-run --json", image.path()).unwrap();
    assert_eq!((run.code, &run.json()["plan"]["blobs"]), (0, &1.into()), "{run:?}");
    let run = on_read_only_mount("gc", image.path()).unwrap();
    assert!(run.code == 3 && run.stderr.contains("mounted read-only"), "{run:?}");

    image.flip("SUPER.0", 70);
    let run = on_read_only_mount("check --json", image.path()).unwrap();
    assert_eq!((run.code, run.findings("superblock").len()), (1, 1), "{run:?}");
    let run = on_read_only_mount("repair --dry-run", image.path()).unwrap();
    assert!(run.code == 1 && run.stdout.contains("to do       SUPER.0"), "{run:?}");
    let run = on_read_only_mount("repair", image.path()).unwrap();
    assert!(run.code == 2 && run.stderr.contains("Read-only file system"), "{run:?}");
}

#[test]
fn files_that_may_not_be_written_suffice() {
    let image = Image::usual(Left::Closed);
    let change = |folder_mode: u32, file_mode: u32| {
        let mut open = vec![image.path().to_owned()];
        while let Some(folder) = open.pop() {
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path);
                } else {
                    fs::set_permissions(&path, fs::Permissions::from_mode(file_mode)).unwrap();
                }
            }
            fs::set_permissions(&folder, fs::Permissions::from_mode(folder_mode)).unwrap();
        }
    };
    change(0o500, 0o400);
    let run = check(image.path());
    let inspected = fsck(&["inspect"], image.path());
    change(0o700, 0o600);
    assert_eq!((run.code, run.harms()), (0, Vec::new()), "{run:?}");
    assert_eq!(inspected.code, 0);
}
