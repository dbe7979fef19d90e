//! L-17: a database that does nothing for a while: locked by another process, or on a disk that hangs.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _};
use taffrail_tests::images::Image;
use taffrail_tests::server::Options;
use taffrail_tests::tools;
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::client::{self, ms, quantile};
use crate::plan::Plan;
use crate::row::Row;
use crate::site::{Site, until};

const REPOSITORY: &str = "library/stalled";
const NUMBER: &str = "L-17";

/// Requests at a time that need the database while it stalls.
const WAITING: usize = 100;
/// L-17: how long one of them may wait, and a second for the machine.
const WAIT_MAX: Duration = Duration::from_secs(11);
/// How soon all is well again when the database is.
const HEAL_MAX: Duration = Duration::from_secs(2);
/// A pull that needs no database takes no longer than that.
const PULL_MAX: Duration = Duration::from_secs(1);

/// What the requests ask for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asking {
    /// A manifest is put: it needs the writer.
    Write,
    /// A tag that nobody asked for before: it needs a reader.
    Read,
}

pub(crate) fn run(plan: &Plan) -> Result<Vec<Row>> {
    let site = Site::start(plan, Options::default())?;
    let image = Image::unique(&[1_000])?;
    image.push(&site.admin, REPOSITORY, "first")?;
    let scene = Scene {
        host: site.host()?,
        token: site.token(REPOSITORY)?,
        blob: site.push_noise(REPOSITORY, 17, 300_000)?,
        manifest: image.manifest.clone(),
    };
    let lock = plan.runtime.block_on(lock(&site))?;
    let mut rows = during(plan, &site, &scene, "another process holds the lock", Asking::Write, || {
        let mut lock = lock;
        plan.runtime.block_on(sqlx::query("ROLLBACK").execute(&mut lock))?;
        Ok(plan.runtime.block_on(lock.close())?)
    })?;
    for (what, asking) in [("its disk hangs", Asking::Read), ("its disk hangs", Asking::Write)] {
        rows.extend(match Hanging::start(plan, &site) {
            Err(error) => {
                vec![Row::skipped(NUMBER, format!("{what}: {}", asking.word()), format!("{error:#}"))]
            }
            Ok(hanging) => during(plan, &site, &scene, what, asking, || hanging.end())?,
        });
    }
    Ok(rows)
}

impl Asking {
    fn word(self) -> &'static str {
        match self {
            Self::Write => "a PUT of a manifest",
            Self::Read => "a GET by tag",
        }
    }
}

/// What the requests are made of.
struct Scene {
    host: SocketAddr,
    token: String,
    blob: String,
    manifest: Vec<u8>,
}

impl Scene {
    fn request(&self, asking: Asking, tag: &str) -> Vec<u8> {
        let path = format!("/v2/{REPOSITORY}/manifests/{tag}");
        match asking {
            Asking::Read => client::head("GET", &path, self.host, &self.token).into_bytes(),
            Asking::Write => {
                let media_type = "application/vnd.oci.image.manifest.v1+json";
                let length = self.manifest.len();
                let lines =
                    format!("{}Content-Type: {media_type}\r\nContent-Length: {length}\r\n", self.token);
                [client::head("PUT", &path, self.host, &lines).as_bytes(), &self.manifest].concat()
            }
        }
    }
}

/// One stall, which has begun: what is asked meanwhile, and afterwards.
fn during(
    plan: &Plan,
    site: &Site,
    scene: &Scene,
    what: &str,
    asking: Asking,
    end: impl FnOnce() -> Result<()>,
) -> Result<Vec<Row>> {
    let began = Instant::now();
    let until_end = began + plan.stall;
    let (host, pull) = (scene.host, client::head("GET", &scene.blob, scene.host, &scene.token));
    let pulls =
        plan.runtime.spawn(async move { client::sample(host, pull.as_bytes(), 200, until_end).await });
    let (mut waits, mut statuses, mut hanging) = (Vec::new(), Vec::new(), 0);
    let mut asked = JoinSet::new();
    {
        let _runtime = plan.runtime.enter();
        for number in 0..WAITING {
            let request =
                scene.request(asking, &format!("{}{number}-{}", asking.word().len(), rand::random::<u32>()));
            asked.spawn(async move {
                // Some come later: they must not wait for all of those in front of them.
                sleep(plan_share(number)).await;
                let began = Instant::now();
                let answered = tokio::time::timeout(WAIT_MAX * 4, ask(host, &request)).await;
                (began.elapsed(), answered)
            });
        }
    }
    std::thread::sleep(until_end.saturating_duration_since(Instant::now()));
    let in_flight = site.metric("taffrail_http_requests_in_flight")?;
    end()?;
    let healed = until("the database is used again", Duration::from_secs(60), || {
        let request = scene.request(Asking::Write, "after");
        Ok(plan.runtime.block_on(ask(host, &request)).is_ok_and(|status| status == 201))
    })?;
    plan.runtime.block_on(async {
        while let Some(one) = asked.join_next().await {
            let (wait, answered) = one?;
            waits.push(wait);
            match answered {
                Ok(Ok(status)) => statuses.push(status),
                Ok(Err(_)) | Err(_) => hanging += 1,
            }
        }
        anyhow::Ok(())
    })?;
    let mut pulls = plan.runtime.block_on(pulls)?.context("a pull with a known token")?;
    let (longest, slowest) = (quantile(&mut waits, 1.0), quantile(&mut pulls, 1.0));
    let count = |status| statuses.iter().filter(|one| **one == status).count();
    let (refused, done, missing) = (count(503), count(201), count(404));
    let what = format!("{what} for {:?}: ", plan.stall);
    Ok(vec![
        Row::held(
            NUMBER,
            format!("{what}{WAITING} x {}", asking.word()),
            "each answered: 503, or what is due",
            format!(
                "{refused} x 503, {done} x 201, {missing} x 404, {hanging} without an answer; {in_flight} under way at its end"
            ),
            refused + done + missing == WAITING,
        ),
        Row::new(
            NUMBER,
            format!("{what}the longest wait of those"),
            format!("<= {WAIT_MAX:?}"),
            format!("{longest:.2?}"),
            plan.figure(longest <= WAIT_MAX),
        ),
        Row::new(
            NUMBER,
            format!("{what}pulls of a blob with a known token"),
            format!("all answered, none above {PULL_MAX:?}"),
            format!(
                "{} answered, p99 {}, longest {}",
                pulls.len(),
                ms(quantile(&mut pulls, 0.99)),
                ms(slowest)
            ),
            plan.figure(slowest <= PULL_MAX),
        ),
        Row::new(
            NUMBER,
            format!("{what}until a push works again"),
            format!("<= {HEAL_MAX:?}"),
            format!("{healed:.2?}"),
            plan.figure(healed <= HEAL_MAX),
        ),
    ])
}

/// How long the `number`th request waits before it asks: they come over two seconds.
fn plan_share(number: usize) -> Duration {
    Duration::from_secs(2) * u32::try_from(number).unwrap_or(0) / u32::try_from(WAITING).unwrap_or(1)
}

async fn ask(host: SocketAddr, request: &[u8]) -> Result<u16> {
    let mut stream = client::dial(host, client::loopback(17)).await?;
    stream.write_all(request).await?;
    let begun = client::answer(&mut stream, false).await?;
    client::finish(&mut stream, &begun).await?;
    Ok(begun.status)
}

/// Takes the lock of the one who writes.
async fn lock(site: &Site) -> Result<SqliteConnection> {
    let path = site.server.data_dir().join("catalog/taffrail.db");
    let mut connection = SqliteConnectOptions::new().filename(path).connect().await?;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut connection).await?;
    Ok(connection)
}

/// strace on the server: each read, write, lock and flush of the database's files takes as long as the stall.
struct Hanging(Child);

impl Hanging {
    fn start(plan: &Plan, site: &Site) -> Result<Self> {
        const CALLS: &str = "pread64,pwrite64,fdatasync,fsync,fcntl";
        let database = site.server.data_dir().join("catalog/taffrail.db");
        let mut command = Command::new(tools::find("strace")?);
        command.args(["-f", "-qq", "-o", "/dev/null", "-p", &site.pid()?.to_string()]);
        for end in ["", "-wal", "-shm"] {
            command.arg("-P").arg(format!("{}{end}", database.display()));
        }
        command
            .args(["-e", &format!("trace={CALLS}"), "-e"])
            .arg(format!("inject={CALLS}:delay_enter={}", plan.stall.as_micros()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = command.spawn()?;
        let status = format!("/proc/{}/status", site.pid()?);
        until("strace holds the server", Duration::from_secs(10), || {
            ensure!(child.try_wait()?.is_none(), "strace cannot trace a process here");
            let traced = std::fs::read_to_string(&status)?;
            Ok(traced.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0")))
        })?;
        Ok(Self(child))
    }

    fn end(mut self) -> Result<()> {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).context("strace")?;
        rustix::process::kill_process(pid, Signal::INT)?;
        self.0.wait()?;
        Ok(())
    }
}
