//! `taffrail import`: what docker-registry wrote is all there afterwards, whatever happened on the way.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use taffrail_tests::distribution::{self, Distribution};
use taffrail_tests::fsck::{self, Depth, Ended};
use taffrail_tests::http::{Extra, OCI_INDEX, OCI_MANIFEST, Registry, sha256};
use taffrail_tests::images::{Image, Layer, index_of, noise};
use taffrail_tests::loop_disk::{LoopDisk, NEEDS_TO_SHARE};
use taffrail_tests::program::Program;
use taffrail_tests::require_tools;
use taffrail_tests::server::{ADMIN_PASSWORD, Options, Server};
use taffrail_tests::tools;

use crate::taffrail;
use crate::tree::{Tree, image_of};

/// Everything that one registry answers about some repositories: manifests by reference and blobs, as status and digest.
type Answers = BTreeMap<String, (u16, String)>;

/// What was pushed: repository, references, blobs.
struct Pushed {
    references: Vec<(&'static str, String)>,
    blobs: Vec<(&'static str, String)>,
}

impl Pushed {
    fn answers(&self, registry: &Registry, rename: impl Fn(&str) -> String) -> Result<Answers> {
        let mut answers = Answers::new();
        for (repository, reference) in &self.references {
            let answer = registry.manifest(&rename(repository), reference)?;
            let content = format!("{} {}", answer.header("content-type"), sha256(&answer.body));
            let content = if answer.status == 200 { content } else { String::new() };
            answers.insert(format!("{repository} {reference}"), (answer.status, content));
        }
        for (repository, digest) in &self.blobs {
            let answer = registry.blob(&rename(repository), digest)?;
            let content = if answer.status == 200 { sha256(&answer.body) } else { String::new() };
            answers.insert(format!("{repository} {digest}"), (answer.status, content));
        }
        Ok(answers)
    }
}

/// Repositories without a project get the default one.
fn renamed(repository: &str) -> String {
    if repository.contains('/') { repository.to_owned() } else { format!("library/{repository}") }
}

/// Pushes images, an index, a referrer, shared layers and a loose one; deletes a manifest and pushes over a tag.
fn push_everything(registry: &Registry) -> Result<Pushed> {
    let shared = Layer { seed: 7, bytes: 1_300_000 };
    let layers = |seed: u64, bytes: u64| [shared, Layer { seed, bytes }];
    let (one, two) = (Image::new("amd64", &layers(1, 20_000))?, Image::new("arm64", &layers(2, 3_000_000))?);
    let gone = Image::new("amd64", &layers(3, 700_000))?;
    let mut pushed = Pushed { references: Vec::new(), blobs: Vec::new() };
    let mut push = |repository: &'static str, tag: &str, image: &Image| -> Result<()> {
        image.push(registry, repository, tag)?;
        pushed.references.extend([(repository, tag.to_owned()), (repository, image.digest())]);
        pushed.blobs.extend(image.blobs().into_iter().map(|digest| (repository, digest)));
        Ok(())
    };
    push("library/one", "v1", &one)?;
    push("app", "latest", &one)?;
    push("team/app", "amd64", &one)?;
    push("team/app", "arm64", &two)?;
    push("team/deep/er-still", "v2", &two)?;
    push("team/app", "moved", &gone)?;
    push("team/app", "moved", &two)?;
    let index = index_of(&[("amd64", &one), ("arm64", &two)]);
    registry.push_manifest("team/app", "multi", OCI_INDEX, &index)?;
    pushed.references.extend([("team/app", "multi".to_owned()), ("team/app", sha256(&index))]);
    let config = b"{}";
    registry.push_blob("team/app", config)?;
    let referrer = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/vnd.example.sbom",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": sha256(config), "size": 2},
        "layers": [{"mediaType": "application/vnd.oci.empty.v1+json", "digest": sha256(config), "size": 2}],
        "subject": {"mediaType": OCI_MANIFEST, "digest": one.digest(), "size": one.manifest.len()},
    })
    .to_string();
    registry.push_manifest("team/app", &sha256(referrer.as_bytes()), OCI_MANIFEST, referrer.as_bytes())?;
    pushed.references.push(("team/app", sha256(referrer.as_bytes())));
    registry.delete_manifest("team/app", &gone.digest())?.expect(&[202])?;
    pushed.blobs.push(("team/app", registry.push_blob("team/app", b"no manifest names me")?));
    pushed.references.push(("team/app", "never".to_owned()));
    Ok(pushed)
}

fn import(tree: &Path, data: &Path, more: &[&str], code: i32) -> Result<Value> {
    let tree = tree.to_string_lossy();
    let args: Vec<&str> = ["import", &tree, "--json"].into_iter().chain(more.iter().copied()).collect();
    taffrail::json(&args, data, code)
}

fn serve(data: &Path) -> Result<Server> {
    Server::start_with(Options { data_dir: Some(data.to_path_buf()), ..Options::default() })
}

#[test]
fn what_docker_registry_wrote_is_pulled_from_taffrail_byte_by_byte() -> Result<()> {
    require_tools!(distribution::NEEDS);
    let scratch = tempfile::tempdir()?;
    let other = Distribution::start(scratch.path())?;
    let client = other.client()?;
    let pushed = push_everything(&client)?;
    let before = pushed.answers(&client, str::to_owned)?;
    let tree = other.stop()?;
    let data = scratch.path().join("data");

    let foreseen = import(&tree, &data, &["--dry-run"], 0)?;
    ensure!(!data.exists(), "a dry run made something");
    let report = import(&tree, &data, &["--into-public"], 0)?;
    for field in ["repositories", "manifests", "tags", "blobs", "deduplicated", "unreferenced_blobs"] {
        ensure!(report[field] == foreseen[field], "{field}: {report:#} after {foreseen:#}");
    }
    ensure!(report["repositories"] == 4 && report["tags"] == 7, "{report:#}");
    ensure!(report["projects_made"] == json!(["team"]), "{report:#}");
    // What the deletion left is still in the links of the repository, as the loose layer is.
    ensure!(report["unreferenced_blobs"]["count"] == 3, "{report:#}");
    ensure!(report["projects_public"] == json!(["library"]), "{report:#}");
    let again = import(&tree, &data, &["--into-public"], 0)?;
    ensure!(again["blobs"]["count"] == 0 && again["manifests"] == 0 && again["tags"] == 0, "{again:#}");
    ensure!(again["skipped"]["manifests"] == report["manifests"], "{again:#}");

    let mut server = serve(&data)?;
    let admin = server.admin()?;
    let after = pushed.answers(&admin, renamed)?;
    ensure!(before == after, "before {before:#?}\nafter {after:#?}");
    let referrers = admin.send(
        &Method::GET,
        "team/app",
        "pull",
        &format!("/v2/team/app/referrers/{}", one_digest()?),
        &Extra::default(),
    )?;
    ensure!(referrers.json()?["manifests"].as_array().map(Vec::len) == Some(1), "{}", referrers.text());
    // The projects are private.
    ensure!(server.client(None)?.manifest("team/app", "multi")?.status != 200, "anybody may pull");
    if tools::find("skopeo").is_ok() {
        let to = format!("dir:{}", scratch.path().join("pulled").display());
        let from = format!("docker://{}/team/app:multi", server.host());
        let login = format!("admin:{ADMIN_PASSWORD}");
        Program::new("skopeo")?
            .args(["copy", "--all", "--preserve-digests", "--src-tls-verify=false", "--src-creds", &login])
            .args([&from, &to])
            .succeed()?;
    }
    let (code, said) = taffrail::run(&["import", &tree.to_string_lossy()], &data)?;
    ensure!(code == 3 && said.contains("stopped") && said.contains("in use by process"), "{code}: {said}");
    server.terminate()?;
    fsck::check(&data, Ended::InOrder, Depth::Digests)?;
    Ok(())
}

fn one_digest() -> Result<String> {
    let layers = [Layer { seed: 7, bytes: 1_300_000 }, Layer { seed: 1, bytes: 20_000 }];
    Ok(Image::new("amd64", &layers)?.digest())
}

/// A tree with enough in it that an import can be met on its way.
fn large_tree(dir: &Path) -> Result<(Tree, Vec<(String, String)>)> {
    let tree = Tree::make(dir)?;
    let mut images = Vec::new();
    for number in 0..12_u64 {
        let repository = format!("project-{}/app-{number}", number % 3);
        let bytes = if number % 2 == 0 { 5_000_000 } else { 40_000 };
        let (manifest, _) = tree.image(&repository, "v1", &noise(number, bytes))?;
        images.push((repository, manifest));
    }
    Ok((tree, images))
}

#[test]
fn an_import_that_was_killed_goes_on_and_doubles_nothing() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let (_tree, images) = large_tree(scratch.path())?;
    let data = scratch.path().join("data");
    let path = scratch.path().to_string_lossy().into_owned();
    for files in [1, 3, 5] {
        let mut child = taffrail::command(&["import", &path], &data)?
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        while solo_files(&data)? < files && child.try_wait()?.is_none() {
            std::thread::yield_now();
        }
        child.kill()?;
        child.wait()?;
    }
    let report = import(scratch.path(), &data, &[], 0)?;
    ensure!(report["skipped"]["blobs"]["count"].as_u64() > Some(0), "nothing survived: {report:#}");
    let mut server = serve(&data)?;
    let admin = server.admin()?;
    for (repository, manifest) in &images {
        let answer = admin.manifest(repository, "v1")?.expect(&[200])?;
        ensure!(sha256(&answer.body) == *manifest, "{repository}");
        for layer in answer.json()?["layers"].as_array().context("layers")? {
            let digest = layer["digest"].as_str().context("a digest")?;
            ensure!(sha256(&admin.blob(repository, digest)?.expect(&[200])?.body) == digest, "{repository}");
        }
    }
    server.terminate()?;
    // 12 layers and one configuration, each once.
    let checked = fsck::check(&data, Ended::InOrder, Depth::Digests)?;
    ensure!(checked.blobs == 12 + 12 + 1, "{checked:?}");
    Ok(())
}

fn solo_files(data: &Path) -> Result<usize> {
    let mut count = 0;
    for folder in fs::read_dir(data.join("store/solo")).into_iter().flatten() {
        count += fs::read_dir(folder?.path())?.count();
    }
    Ok(count)
}

#[test]
fn what_is_damaged_is_named_and_never_linked() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let tree = Tree::make(scratch.path())?;
    let layer = |seed: u64| noise(seed, 1_500_000);
    let (good, _) = tree.image("shop/good", "v1", &layer(1))?;
    let (rotten, rotten_layer) = tree.image("shop/rotten", "v1", &layer(2))?;
    fs::write(tree.data(&rotten_layer), &layer(2)[1..])?;
    let (short, short_layer) = tree.image("shop/short", "v1", &layer(3))?;
    fs::write(tree.data(&short_layer), &layer(3)[..1_000_000])?;
    let (lost, lost_layer) = tree.image("shop/lost", "v1", &layer(4))?;
    fs::remove_file(tree.data(&lost_layer))?;
    // The bytes lie outside of the tree, where a link must not lead.
    let (led, led_layer) = tree.image("shop/led", "v1", &layer(5))?;
    let outside = scratch.path().join("outside");
    fs::rename(tree.data(&led_layer), &outside)?;
    symlink(&outside, tree.data(&led_layer))?;
    let schema1 = br#"{"schemaVersion":1,"name":"shop/old","tag":"v1","fsLayers":[]}"#;
    let old = tree.manifest("shop/old", Some("v1"), schema1)?;
    let broken = tree.manifest("shop/good", Some("broken"), b"{ no json")?;
    // An index over a good child and one that is refused; the good one stays.
    let (child, _) = tree.image("shop/index", "amd64", &layer(1))?;
    tree.layer("shop/index", &layer(2))?;
    let bad_child = image_of(br#"{"architecture":"amd64","os":"linux"}"#, &layer(2));
    fs::write(tree.data(&rotten_layer), &layer(2)[1..])?;
    let bad_child = tree.manifest("shop/index", None, &bad_child)?;
    let described = |digest: &String| {
        let size = fs::metadata(tree.data(digest)).map_or(0, |data| data.len());
        json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": size})
    };
    let index = json!({
        "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [described(&child), described(&bad_child)],
    });
    let index = tree.manifest("shop/index", Some("multi"), index.to_string().as_bytes())?;
    // Names.
    tree.image("Upper/case", "v1", &layer(1))?;
    tree.image("dou--ble/app", "v1", &layer(1))?;
    tree.image("twin", "v1", &layer(1))?;
    tree.image("library/twin", "v1", &layer(1))?;
    symlink(tree.repository("shop/good"), tree.repository("shop/alias"))?;
    let tags = tree.repository("shop/good").join("_manifests/tags");
    fs::create_dir_all(tags.join("giant/current"))?;
    fs::write(tags.join("giant/current/link"), vec![b'x'; 1 << 20])?;
    tree.tag("shop/good", "-odd", &good)?;
    tree.tag("shop/good", "deleted", &sha256(b"was here once"))?;
    let other_name = tree.repository("shop/good").join("_manifests/revisions/sha256").join("0".repeat(64));
    fs::create_dir_all(&other_name)?;
    fs::write(other_name.join("link"), &good)?;

    let data = scratch.path().join("data");
    let report = import(scratch.path(), &data, &["--into-public"], 1)?;
    let refused: Vec<(String, String)> = report["refused"]
        .as_array()
        .context("refused")?
        .iter()
        .map(|refused| {
            let field = |name: &str| refused[name].as_str().unwrap_or_default().to_owned();
            (format!("{} {} {}", field("what"), field("repository"), field("name")), field("reason"))
        })
        .collect();
    let mut unexplained = refused.clone();
    let mut expect = |what: &str, reason: &str| {
        let found =
            unexplained.iter().position(|(name, why)| name.trim_end() == what && why.contains(reason));
        ensure!(found.is_some(), "no {what:?} because of {reason:?} in {report:#}");
        unexplained.remove(found.unwrap_or_default());
        Ok(())
    };
    expect(&format!("manifest shop/rotten {rotten}"), "bytes, not 1500000")?;
    expect("tag shop/rotten v1", "is refused")?;
    expect(&format!("manifest shop/short {short}"), "has 1000000 bytes, not 1500000")?;
    expect("tag shop/short v1", "is refused")?;
    expect(&format!("manifest shop/lost {lost}"), "is missing")?;
    expect("tag shop/lost v1", "is refused")?;
    expect(&format!("manifest shop/led {led}"), "is a symbolic link")?;
    expect("tag shop/led v1", "is refused")?;
    expect(&format!("manifest shop/old {old}"), "schema 1 is not supported")?;
    expect("tag shop/old v1", "is refused")?;
    expect(&format!("manifest shop/good {broken}"), "not acceptable JSON")?;
    expect("tag shop/good broken", "is refused")?;
    expect(&format!("manifest shop/index {bad_child}"), "bytes, not 1500000")?;
    expect(&format!("manifest shop/index {index}"), &bad_child)?;
    expect("tag shop/index multi", "is refused")?;
    expect("repository Upper/case", "lowercase")?;
    expect("repository dou--ble/app", "project name")?;
    expect("repository twin", "--project")?;
    expect("repository shop/alias", "symbolic link")?;
    expect("tag shop/good giant", "a link has at most")?;
    expect("tag shop/good -odd", "a tag has")?;
    expect("tag shop/good deleted", "not in the repository")?;
    expect(&format!("manifest shop/good sha256:{}", "0".repeat(64)), "not what its folder is called")?;
    // Their bytes are read only because a link of the repository names them.
    expect(&format!("blob  {rotten_layer}"), "damaged")?;
    expect(&format!("blob  {short_layer}"), "damaged")?;
    ensure!(unexplained.is_empty(), "{unexplained:#?}");

    let mut server = serve(&data)?;
    let admin = server.admin()?;
    for (repository, reference, status) in [
        ("shop/good", "v1", 200),
        ("shop/index", "amd64", 200),
        ("library/twin", "v1", 200),
        ("shop/rotten", "v1", 404),
        ("shop/short", "v1", 404),
        ("shop/index", "multi", 404),
        ("shop/old", "v1", 404),
    ] {
        let answer = admin.manifest(repository, reference)?;
        ensure!(answer.status == status, "{repository}:{reference} {}", answer.status);
    }
    for (repository, digest) in [("shop/rotten", &rotten_layer), ("shop/led", &led_layer)] {
        ensure!(admin.blob(repository, digest)?.status == 404, "{repository} {digest}");
    }
    server.terminate()?;
    fsck::check(&data, Ended::InOrder, Depth::Digests)?;
    Ok(())
}

#[test]
fn bytes_that_rotted_since_are_found_while_they_are_taken_in() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let tree = Tree::make(scratch.path())?;
    let (manifest, layer) = tree.image("shop/rotten", "v1", &noise(9, 2_000_000))?;
    let mut bytes = noise(9, 2_000_000);
    bytes[1_999_999] ^= 1;
    fs::write(tree.data(&layer), bytes)?;
    let data = scratch.path().join("data");
    let report = import(scratch.path(), &data, &[], 1)?;
    let reasons = report["refused"].as_array().context("refused")?;
    ensure!(reasons.len() == 3, "{report:#}");
    ensure!(
        reasons[0]["name"] == layer && reasons[0]["reason"].to_string().contains("is damaged"),
        "{report:#}"
    );
    ensure!(reasons[1]["name"] == manifest && reasons[2]["name"] == "v1", "{report:#}");
    // Once it is whole again, the same command takes it over.
    fs::write(tree.data(&layer), noise(9, 2_000_000))?;
    let report = import(scratch.path(), &data, &[], 0)?;
    ensure!(report["blobs"]["count"] == 1 && report["tags"] == 1, "{report:#}");
    Ok(())
}

#[test]
fn a_tag_that_names_something_else_here_stays_until_it_is_said_to_move() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let tree = Tree::make(scratch.path())?;
    let data = scratch.path().join("data");
    let (old, _) = tree.image("app", "latest", b"old")?;
    import(scratch.path(), &data, &["--project", "mine"], 0)?;
    let (new, _) = tree.image("app", "latest", b"new")?;
    let report = import(scratch.path(), &data, &["--project", "mine"], 1)?;
    ensure!(report["refused"][0]["reason"].to_string().contains("--move-tags"), "{report:#}");
    let digest_now = || -> Result<String> {
        let mut server = serve(&data)?;
        let digest = sha256(&server.admin()?.manifest("mine/app", "latest")?.expect(&[200])?.body);
        server.terminate()?;
        Ok(digest)
    };
    ensure!(digest_now()? == old, "the tag moved");
    let report = import(scratch.path(), &data, &["--project", "mine", "--move-tags"], 0)?;
    ensure!(report["tags"] == 1 && report["manifests"] == 0, "{report:#}");
    ensure!(digest_now()? == new, "the tag stayed");
    Ok(())
}

/// `app` became `library/app`, and everybody could pull what had been private, without a word about it.
#[test]
fn nothing_goes_into_a_public_project_unless_that_is_said() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let tree = Tree::make(scratch.path())?;
    let data = scratch.path().join("data");
    tree.image("app", "v1", b"secret")?;
    tree.image("team/app", "v1", b"secret as well")?;
    let path = scratch.path().to_string_lossy().into_owned();
    for _ in 0..2 {
        let (code, said) = taffrail::run(&["import", &path], &data)?;
        ensure!(code == 3 && said.contains("library is public"), "{code}: {said}");
        ensure!(said.contains("--into-public") && said.contains("--project"), "{said}");
    }
    let report = import(scratch.path(), &data, &["--project", "mine"], 0)?;
    ensure!(report["projects_made"] == json!(["mine", "team"]), "something was made before: {report:#}");
    ensure!(report["projects_public"] == json!([]), "{report:#}");
    let (code, said) = taffrail::run(&["import", &path, "--into-public"], &data)?;
    ensure!(code == 0 && said.contains("1 (library): everybody can pull"), "{code}: {said}");
    let mut server = serve(&data)?;
    let anybody = server.client(None)?;
    ensure!(anybody.manifest("library/app", "v1")?.status == 200);
    ensure!(anybody.manifest("mine/app", "v1")?.status != 200);
    server.terminate()?;
    Ok(())
}

/// Imports took manifests that a push would have been refused.
#[test]
fn a_manifest_is_as_long_as_one_that_is_pushed_may_be() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let tree = Tree::make(scratch.path())?;
    let (data, path) = (scratch.path().join("data"), scratch.path().to_string_lossy().into_owned());
    tree.image("team/app", "short", b"layer")?;
    let mut long = image_of(br#"{"architecture":"amd64","os":"linux"}"#, b"layer");
    long.resize(1025, b' ');
    let long = tree.manifest("team/app", Some("long"), &long)?;
    for more in [&["--dry-run"][..], &[]] {
        let args: Vec<&str> = ["import", &path, "--json"].into_iter().chain(more.iter().copied()).collect();
        let mut command = taffrail::command(&args, &data)?;
        let output = command.env("TAFFRAIL__LIMITS__MANIFEST_BYTES_MAX", "1024").output()?;
        let report: Value = serde_json::from_slice(&output.stdout)?;
        let refused = &report["refused"][0];
        ensure!(
            refused["name"] == long && refused["reason"].to_string().contains("at most 1024"),
            "{report:#}"
        );
        ensure!(report["manifests"] == 1 && report["tags"] == 1, "{report:#}");
    }
    Ok(())
}

#[test]
fn where_files_can_share_extents_large_blobs_are_not_written_again() -> Result<()> {
    if !tools::present(&NEEDS_TO_SHARE)? {
        return Ok(());
    }
    let disk = LoopDisk::make_sharing(400)?;
    let tree = Tree::make(&disk.mount_point())?;
    let bytes = noise(4, 60_000_123);
    let (_, layer) = tree.image("team/large", "v1", &bytes)?;
    let mut rotten = noise(5, 5_000_000);
    let (_, bad) = tree.image("team/rotten", "v1", &rotten)?;
    rotten[4_000_000] ^= 1;
    fs::write(tree.data(&bad), rotten)?;
    let data = disk.mount_point().join("data");
    let report = import(&disk.mount_point(), &data, &["--mode", "reflink"], 1)?;
    ensure!(report["mode"] == "reflink" && report["refused"][0]["name"] == bad, "{report:#}");
    let store = data.join("store");
    let shared = fs::read_dir(store.join("solo"))?
        .flatten()
        .flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten().flatten())
        .map(|file| file.path())
        .find(|path| fs::metadata(path).is_ok_and(|about| about.len() > 60_000_000));
    let shared = shared.context("a file of the large blob")?;
    if tools::find("xfs_io").is_ok() {
        let map = Program::new("xfs_io")?.args(["-r", "-c", "fiemap -v"]).arg(&shared).succeed()?.stdout;
        // Flag 0x2000: FIEMAP_EXTENT_SHARED (linux/fiemap.h).
        ensure!(map.contains("0x2000") || map.contains("0x2001"), "nothing is shared: {map}");
    }
    // What changes in the other registry afterwards changes nothing here.
    fs::write(tree.data(&layer), noise(6, 60_000_123))?;
    let mut server = serve(&data)?;
    ensure!(sha256(&server.admin()?.blob("team/large", &layer)?.expect(&[200])?.body) == layer);
    server.terminate()?;
    fsck::check(&data, Ended::InOrder, Depth::Digests)?;
    Ok(())
}

#[test]
fn what_is_no_registry_is_refused_before_anything_is_made() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let data = scratch.path().join("data");
    let (code, said) = taffrail::run(&["import", &scratch.path().to_string_lossy()], &data)?;
    ensure!(code == 3 && said.contains("holds no registry"), "{code}: {said}");
    Tree::make(scratch.path())?;
    let (code, said) =
        taffrail::run(&["import", &scratch.path().to_string_lossy(), "--project", "A/b"], &data)?;
    ensure!(code == 3 && said.contains("--project"), "{code}: {said}");
    ensure!(!data.exists(), "something was made");
    Ok(())
}
