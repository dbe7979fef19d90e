//! The command line.

use std::path::Path;

use crate::server::{Options, Server, run};

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_reference_page_is_the_one_that_the_types_make() {
    let page = here().join("../docs/operations/configuration.md");
    let (code, made) = run(&["config", "reference"], here(), &[], "");
    assert_eq!(code, Some(0));
    let kept = std::fs::read_to_string(&page).unwrap_or_default();
    assert!(
        kept == made,
        "docs/operations/configuration.md is stale; `cargo run -- config reference > docs/operations/configuration.md`"
    );
}

#[test]
fn check_names_file_key_and_the_likeliest_right_one() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("bad.yaml"), "tls:\n  mood: off\n").unwrap();
    std::fs::write(dir.path().join("good.yaml"), "tls:\n  mode: off\n").unwrap();
    let (code, said) = run(&["config", "check", "--config", "bad.yaml"], dir.path(), &[], "");
    assert_eq!(code, Some(1));
    assert!(
        said.contains("bad.yaml: tls.mood is not a key") && said.contains("did you mean tls.mode?"),
        "{said}"
    );
    let (code, said) = run(&["config", "check", "--config", "good.yaml"], dir.path(), &[], "");
    assert_eq!((code, said.trim()), (Some(0), "the configuration is good"));
    let (code, said) = run(&["config", "check", "--config", "absent.yaml"], dir.path(), &[], "");
    assert!(code == Some(1) && said.contains("absent.yaml"), "{said}");
}

#[test]
fn a_wrong_command_line_is_told_from_a_restore_that_lost_something() {
    let (code, said) = run(&["restore", "--no-such-option"], here(), &[], "");
    assert!(code == Some(3) && said.contains("--no-such-option"), "{code:?} {said}");
    let (code, said) = run(&["restore", "--help"], here(), &[], "");
    assert!(code == Some(0) && said.contains("Exit codes"), "{code:?} {said}");
}

#[test]
fn show_prints_what_is_in_force_and_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let env = [("TAFFRAIL_ADMIN_PASSWORD", "hunter2-hunter2"), ("TAFFRAIL__LOG__FORMAT", "json")];
    let (code, said) = run(&["config", "show", "--listen", "127.0.0.1:7"], dir.path(), &env, "");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("listen: 127.0.0.1:7") && said.contains("format: json"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
    // What is shown can be read again.
    let shown: String =
        said.lines().filter(|line| !line.contains("admin_password")).collect::<Vec<_>>().join("\n");
    let shown = shown.replace("bootstrap:", "");
    std::fs::write(dir.path().join("shown.yaml"), shown).unwrap();
    let (code, said) = run(&["config", "check", "--config", "shown.yaml"], dir.path(), &[], "");
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn plain_http_for_other_machines_is_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let (code, said) = run(&["serve", "--listen", "0.0.0.0:0", "--data-dir", "data"], dir.path(), &[], "");
    assert!(code == Some(1) && said.contains("insecure_http"), "{said}");
    assert!(!dir.path().join("data").exists());
}

#[test]
fn a_lost_password_is_reset_while_no_server_runs() {
    let scratch = tempfile::tempdir().unwrap();
    let data_dir = scratch.path().join("data");
    let dir = data_dir.to_str().unwrap();
    let reset = |more: &[&str], input: &str| {
        run(&[&["admin", "reset-password", "--data-dir", dir], more].concat(), scratch.path(), &[], input)
    };
    let login = |server: &Server, password: &str| {
        let client = reqwest::blocking::Client::builder().no_proxy().build().unwrap();
        let url = format!("http://{}/api/v2.0/users/current", server.address);
        client.get(url).basic_auth("admin", Some(password)).send().unwrap().status().as_u16()
    };
    let (code, said) = reset(&[], "Beacon-Light-8\n");
    assert!(code == Some(1) && said.contains("data"), "there is nothing there yet: {said}");

    let mut server = Server::start_with(Options { data_dir: Some(data_dir.clone()), ..Options::default() });
    assert_eq!(login(&server, "Harbor-Light-7"), 200);
    let (code, said) = reset(&[], "Beacon-Light-8\n");
    assert!(code == Some(1) && said.contains(&server.pid().to_string()), "{said}");
    server.terminate();
    server.wait();

    for (more, input, why) in [
        (&[][..], "", "standard input"),
        (&[], "weak\n", "password"),
        (&["--user", "nobody"], "Beacon-Light-8\n", "nobody"),
    ] {
        let (code, said) = reset(more, input);
        assert!(code == Some(1) && said.contains(why), "{more:?} {input:?}: {said}");
    }
    let (code, said) = reset(&[], "Beacon-Light-8\n");
    assert!(code == Some(0) && !said.contains("Beacon"), "{said}");
    let mut server = Server::start_with(Options { data_dir: Some(data_dir.clone()), ..Options::default() });
    assert_eq!(login(&server, "Harbor-Light-7"), 401);
    assert_eq!(login(&server, "Beacon-Light-8"), 200);
    server.terminate();
    server.wait();

    let (code, said) = reset(&["--generate"], "");
    assert_eq!(code, Some(0), "{said}");
    let drawn = said.trim().rsplit(' ').next().unwrap().to_owned();
    let server = Server::start_with(Options { data_dir: Some(data_dir), ..Options::default() });
    assert_eq!(login(&server, &drawn), 200);
}
