//! nginx in front of the server, configured with exactly what docs/operations/running.md says.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use reqwest::Method;
use taffrail_tests::certificate::Certificate;
use taffrail_tests::http::{Extra, Registry};
use taffrail_tests::images::{Image, noise};
use taffrail_tests::program::Program;
use taffrail_tests::require_tools;
use taffrail_tests::server::{ADMIN_PASSWORD, Options, Server};
use taffrail_tests::tools::{self, Tool};
use tempfile::TempDir;

/// A layer that no buffer on the way holds.
const LAYER_BYTES: usize = 100 << 20;
/// What a client sends of it at a time.
const CHUNK_BYTES: usize = 32 << 20;
/// nginx starts in an instant or not at all.
const READY_DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);
const REPOSITORY: &str = "library/proxied";

/// A running nginx, and the server behind it.
struct Proxied {
    nginx: Child,
    port: u16,
    certificate: Certificate,
    server: Server,
    // Last, so that the folder goes after the processes that write to it.
    dir: TempDir,
}

impl Drop for Proxied {
    fn drop(&mut self) {
        // There is nobody left to tell. The master takes its workers with it only when it is asked; they end when it is gone.
        let _ = Command::new("kill").arg(self.nginx.id().to_string()).status();
        let _ = self.nginx.wait();
    }
}

/// The block of the document that is marked with `language` and holds `word`.
fn documented(language: &str, word: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations/running.md");
    let text = std::fs::read_to_string(path)?;
    let fence = format!("```{language}\n");
    text.split(&fence)
        .skip(1)
        .filter_map(|rest| rest.split("\n```").next())
        .find(|block| block.contains(word))
        .map(|block| format!("{block}\n"))
        .with_context(|| format!("a block of {language} with {word:?} in the document"))
}

/// Puts what a machine has in place of what the document says, which must say it once.
fn set(text: &str, documented: &str, here: &str) -> Result<String> {
    ensure!(text.matches(documented).count() == 1, "{documented:?} is not once in\n{text}");
    Ok(text.replace(documented, here))
}

impl Proxied {
    fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let url = format!("https://127.0.0.1:{port}");
        let yaml = documented("yaml", "trusted_proxies")?;
        for line in ["  listen: 127.0.0.1:5000", "  external_url: https://registry.example.org"] {
            ensure!(yaml.contains(line), "{line:?} is not in\n{yaml}");
        }
        ensure!(yaml.contains("  trusted_proxies: [\"127.0.0.1\"]"), "another proxy in\n{yaml}");
        let options = Options::default().key("server", "external_url", &url).key(
            "server",
            "trusted_proxies",
            "127.0.0.1",
        );
        let server = Server::start_with(options)?;
        let certificate = Certificate::make(&dir.path().join("tls"))?;

        let nginx = documented("nginx", "upstream")?;
        let nginx = set(&nginx, "server 127.0.0.1:5000;", &format!("server {};", server.host()))?;
        let nginx = set(&nginx, "listen 443 ssl;", &format!("listen 127.0.0.1:{port} ssl;"))?;
        let file = |path: &Path| path.display().to_string();
        let nginx = set(&nginx, "/etc/nginx/registry.pem", &file(&certificate.certificate))?;
        let nginx = set(&nginx, "/etc/nginx/registry.key", &file(&certificate.key))?;
        let at = |name: &str| file(&dir.path().join(name));
        // As root its workers would be somebody who may not write here.
        let user = if rustix::process::geteuid().is_root() { "user root;\n" } else { "" };
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|name| format!("{name}_temp_path {};\n", at(name)))
            .collect();
        let config = format!(
            "{user}daemon off;\nworker_processes 2;\npid {};\nerror_log {} info;\nevents {{}}\n\
             http {{\naccess_log {};\n{temporary}{nginx}}}\n",
            at("pid"),
            at("error.log"),
            at("access.log"),
        );
        std::fs::write(dir.path().join("nginx.conf"), &config)?;
        let nginx = Command::new(tools::find("nginx")?)
            .arg("-e")
            .arg(dir.path().join("error.log"))
            .arg("-c")
            .arg(dir.path().join("nginx.conf"))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut proxied = Self { nginx, port, certificate, server, dir };
        let client = proxied.client(None)?;
        let since = Instant::now();
        while !matches!(client.probe("/readyz"), Ok(200)) {
            if let Some(status) = proxied.nginx.try_wait()? {
                bail!("nginx ended with {status}\n{}\n{config}", proxied.errors());
            }
            ensure!(since.elapsed() < READY_DEADLINE, "nginx serves nothing\n{}", proxied.errors());
            std::thread::sleep(POLL);
        }
        Ok(proxied)
    }

    fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn client(&self, user: Option<(&str, &str)>) -> Result<Registry> {
        Registry::new(&format!("https://{}", self.host()), user, Some(&self.certificate.authority))
    }

    fn admin(&self) -> Result<Registry> {
        self.client(Some(("admin", ADMIN_PASSWORD)))
    }

    fn errors(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("error.log")).unwrap_or_default()
    }

    fn trust_dir(&self) -> PathBuf {
        self.certificate.trust_dir()
    }
}

#[test]
fn a_large_layer_goes_through_nginx_both_ways_unbuffered() -> Result<()> {
    require_tools!(Tool::Program("nginx"));
    let proxied = Proxied::start()?;
    let admin = proxied.admin()?;
    let layer = noise(rand::random(), LAYER_BYTES);
    // Its client refuses a Location that does not lead back to the proxy.
    let digest = admin.push_blob_in_chunks(REPOSITORY, &layer, CHUNK_BYTES)?;
    ensure!(admin.blob(REPOSITORY, &digest)?.expect(&[200])?.body == layer, "another layer came back");
    // And in one piece.
    let half = &layer[..LAYER_BYTES / 2];
    let digest = admin.push_blob("library/whole", half)?;
    ensure!(admin.blob("library/whole", &digest)?.expect(&[200])?.body == half, "another layer came back");
    let errors = proxied.errors();
    ensure!(!errors.contains("buffered to a temporary file"), "{errors}");
    Ok(())
}

#[test]
fn clients_behind_nginx_are_sent_to_it_and_cannot_lie_about_themselves() -> Result<()> {
    require_tools!(Tool::Program("nginx"));
    let proxied = Proxied::start()?;
    let lies = Extra::default()
        .header("x-forwarded-for", "203.0.113.9")
        .header("x-forwarded-proto", "http")
        .header("x-forwarded-host", "evil.example");
    let answer = proxied.client(None)?.bare(&Method::GET, "/v2/", &lies)?.expect(&[401])?;
    let challenge = answer.header("www-authenticate");
    let realm = format!("realm=\"https://{}/service/token\"", proxied.host());
    ensure!(challenge.contains(&realm), "{challenge}");
    let admin = proxied.admin()?;
    let answer = admin
        .send(&Method::POST, REPOSITORY, "pull,push", &format!("/v2/{REPOSITORY}/blobs/uploads/"), &lies)?
        .expect(&[202])?;
    let location = answer.header("location");
    let base = format!("https://{}/", proxied.host());
    ensure!(location.starts_with('/') || location.starts_with(&base), "Location: {location}");
    ensure!(!proxied.server.log().contains("203.0.113.9"), "{}", proxied.server.log());

    // The head of a request for 1000 ranges fits through.
    let blob = noise(rand::random(), 200_000);
    let digest = admin.push_blob(REPOSITORY, &blob)?;
    let ranges: Vec<String> =
        (100..1100).map(|at| format!("{}-{}", 1000 * at / 6, 1000 * at / 6 + 9)).collect();
    let ranges = Extra::default().header("range", format!("bytes={}", ranges.join(",")));
    let path = format!("/v2/{REPOSITORY}/blobs/{digest}");
    admin.send(&Method::GET, REPOSITORY, "pull", &path, &ranges)?.expect(&[206])?;
    Ok(())
}

#[test]
fn skopeo_works_through_nginx() -> Result<()> {
    require_tools!(Tool::Program("nginx"), Tool::Program("skopeo"));
    let proxied = Proxied::start()?;
    let dir = tempfile::tempdir()?;
    let skopeo = |command: &str| -> Result<Program> {
        Ok(Program::new("skopeo")?.arg(command).env("REGISTRY_AUTH_FILE", dir.path().join("auth.json")))
    };
    skopeo("login")?
        .arg("--cert-dir")
        .arg(proxied.trust_dir())
        .args(["--username", "admin", "--password-stdin", &proxied.host()])
        .stdin(ADMIN_PASSWORD)
        .succeed()?;
    let image = Image::unique(&[20_000, 3_000_000])?;
    let layout = dir.path().join("layout");
    image.write_oci_layout(&layout, "one")?;
    let there = format!("docker://{}/{REPOSITORY}:one", proxied.host());
    skopeo("copy")?
        .arg("--preserve-digests")
        .arg("--dest-cert-dir")
        .arg(proxied.trust_dir())
        .args([&format!("oci:{}:one", layout.display()), &there])
        .succeed()?;
    let back = dir.path().join("back");
    skopeo("copy")?
        .arg("--preserve-digests")
        .arg("--src-cert-dir")
        .arg(proxied.trust_dir())
        .args([&there, &format!("oci:{}:one", back.display())])
        .succeed()?;
    for digest in image.blobs() {
        let path = back.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
        ensure!(taffrail_tests::images::sha256_of_file(&path)? == digest);
    }
    Ok(())
}
