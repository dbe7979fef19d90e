//! What the time of an answer tells: the timing halves of S-20, S-21, S-42 and S-43, measured on this machine.
//!
//! `cargo xtask timing`, or `TAFFRAIL_BIN=…/release/taffrail cargo run --release -p taffrail-tests --example timing [SAMPLES]`.
//! Each line is one question asked in two ways whose answers must not be told apart, in random order, by one client that does
//! nothing else. It shows both medians, the number of samples of each side, by how much the larger median exceeds the smaller,
//! and the distance of the ranks (`ranks.rs`). Times are of an idle machine or of none: run it alone.
#![expect(clippy::print_stdout, reason = "a command-line tool speaks on standard output")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use taffrail_tests::http::{Registry, sha256};
use taffrail_tests::images::{Image, noise};
use taffrail_tests::ranks::Comparison;
use taffrail_tests::raw::{Connection, RawAnswer};
use taffrail_tests::scene::{create_project, create_user};
use taffrail_tests::server::{Options, Server};

/// Samples of each side without an argument: medians of times of a few percent's spread are then good to one percent.
const SAMPLES: usize = 400;

/// Cheap questions are asked so many times as often as those that hash a password or write to the disk.
const CHEAP: usize = 4;

/// S-21 and S-43: medians within ten percent.
const EXCESS_MAX: f64 = 0.1;

/// Bytes of an uploaded blob.
const BLOB_BYTES: usize = 4096;

const KNOWN: (&str, &str) = ("known", "Windlass-and-bowsprit-41");
const OUTSIDER: (&str, &str) = ("outsider", "Gangway-63");
const SECRET: &str = "closed/secret";
const OWN: &str = "own/app";

/// What a comparison must come to.
#[derive(Clone, Copy)]
enum Demand {
    /// Ranks that chance explains.
    Indistinguishable,
    /// That, or medians within [`EXCESS_MAX`].
    CloseMedians,
}

/// One of the two ways to ask.
#[derive(Clone, Copy)]
enum Side {
    First,
    Second,
}

struct Bench {
    server: Server,
    host: String,
    admin: Registry,
    /// The `Authorization` line of the outsider's token for his own repository.
    own: String,
    /// The same of his name and password.
    outsider: String,
    /// Addresses given away, so that no two wrong passwords come from one.
    addresses: u32,
    failed: u32,
}

#[expect(clippy::disallowed_methods, reason = "a binary reads its own command line")]
fn main() -> Result<()> {
    let samples = std::env::args().nth(1).map_or(Ok(SAMPLES), |arg| arg.parse())?;
    ensure!(samples >= 20, "fewer than 20 samples say nothing");
    let mut bench = Bench::set()?;
    bench.secrets(samples)?;
    bench.names(samples)?;
    bench.hidden_things(samples)?;
    bench.hidden_projects(samples)?;
    bench.mounts(samples)?;
    bench.uploads(samples)?;
    ensure!(bench.failed == 0, "{} comparisons differ", bench.failed);
    Ok(())
}

fn basic(name: &str, password: &str) -> String {
    format!("Authorization: Basic {}\r\n", STANDARD.encode(format!("{name}:{password}")))
}

/// The text with the character at `index` replaced by another.
fn bent(text: &str, index: usize) -> Result<String> {
    let mut bytes = text.as_bytes().to_vec();
    let byte = bytes.get_mut(index).context("an index in the text")?;
    *byte = if *byte == b'A' { b'B' } else { b'A' };
    Ok(String::from_utf8(bytes)?)
}

impl Bench {
    fn set() -> Result<Self> {
        // Wrong passwords are throttled by address, and each sample must come from another.
        let options = Options::default().key("server", "trusted_proxies", "127.0.0.0/8");
        let server = Server::start_with(options)?;
        let admin = server.admin()?;
        for (name, password) in [KNOWN, OUTSIDER] {
            create_user(&admin, name, password)?;
        }
        create_project(&admin, "closed", false)?;
        let outsider = server.client(Some(OUTSIDER))?;
        create_project(&outsider, "own", false)?;
        Image::unique(&[100])?.push(&outsider, OWN, "one")?;
        let token = outsider.token(&[&format!("repository:{OWN}:pull,push,delete")])?;
        Ok(Self {
            host: server.host(),
            own: format!("Authorization: Bearer {token}\r\n"),
            outsider: basic(OUTSIDER.0, OUTSIDER.1),
            server,
            admin,
            addresses: 0,
            failed: 0,
        })
    }

    /// A request with a header line for an address that none had before.
    fn elsewhere(&mut self, line: &str, headers: &str) -> Vec<u8> {
        self.addresses += 1;
        let [_, a, b, c] = self.addresses.to_be_bytes();
        self.request(line, &format!("X-Forwarded-For: 10.{a}.{b}.{c}\r\n{headers}"), &[])
    }

    fn request(&self, line: &str, headers: &str, body: &[u8]) -> Vec<u8> {
        let head = format!(
            "{line} HTTP/1.1\r\nHost: {}\r\n{headers}Content-Length: {}\r\n\r\n",
            self.host,
            body.len()
        );
        [head.as_bytes(), body].concat()
    }

    /// Asks `samples` questions of both sides in random order, each on a connection that has answered before, and prints what
    /// came of it. `ask` makes the request of a side for a round; `look` sees its answer.
    fn compare(
        &mut self,
        (title, demand, status): (&str, Demand, u16),
        samples: usize,
        mut ask: impl FnMut(&mut Self, Side, usize) -> Result<Vec<u8>>,
        mut look: impl FnMut(&mut Self, &RawAnswer) -> Result<()>,
    ) -> Result<()> {
        let mut times = [Vec::with_capacity(samples), Vec::with_capacity(samples)];
        let warm_up = self.request("GET /healthz", "", &[]);
        for round in 0..samples {
            let mut sides = [Side::First, Side::Second];
            if rand::random() {
                sides.reverse();
            }
            for side in sides {
                let request = ask(self, side, round)?;
                let mut connection = Connection::open(&self.host)?;
                connection.ask(&warm_up)?;
                let began = Instant::now();
                let answer = connection.ask(&request)?;
                let took = began.elapsed();
                ensure!(answer.status == status, "{title}: answered {}: {}", answer.status, answer.text());
                match side {
                    Side::First => times[0].push(took),
                    Side::Second => times[1].push(took),
                }
                look(self, &answer)?;
            }
        }
        self.report(title, demand, &times);
        Ok(())
    }

    fn report(&mut self, title: &str, demand: Demand, times: &[Vec<Duration>; 2]) {
        let compared = Comparison::of(&times[0], &times[1]);
        let close = compared.excess() <= EXCESS_MAX;
        let verdict = match (compared.differs(), demand) {
            (false, _) => "alike",
            (true, Demand::CloseMedians) if close => "alike within 10 %",
            (true, Demand::CloseMedians | Demand::Indistinguishable) => "DIFFERS",
        };
        self.failed += u32::from(verdict == "DIFFERS");
        let shown = |index: usize| {
            let [median, spread] = [compared.medians[index], compared.spreads[index]];
            format!("{:>9.1} ±{:>7.1}", micros(median), micros(spread) / 2.0)
        };
        println!(
            "{title:<70} {} | {} us, n {:>5}, {:>5.1} %, z {:>5.1}: {verdict}",
            shown(0),
            shown(1),
            times[0].len(),
            compared.excess() * 100.0,
            compared.z
        );
    }

    /// S-20: at which byte a secret is wrong.
    fn secrets(&mut self, samples: usize) -> Result<()> {
        let last = KNOWN.1.len() - 1;
        let wrong = [bent(KNOWN.1, 0)?, bent(KNOWN.1, last)?];
        self.compare(
            ("S-20 password: wrong at its first byte | at its last", Demand::Indistinguishable, 401),
            samples,
            |bench, side, _| {
                let [first, second] = &wrong;
                let password = match side {
                    Side::First => first,
                    Side::Second => second,
                };
                Ok(bench.elsewhere("GET /service/token?service=x", &basic(KNOWN.0, password)))
            },
            |_, _| Ok(()),
        )?;
        let token = self.server.client(Some(KNOWN))?.token(&["repository:library/x:pull"])?;
        let signature = token.rfind('.').context("a signature")? + 1;
        // The last character holds bits that stand for nothing.
        let wrong = [bent(&token, signature)?, bent(&token, token.len() - 2)?];
        self.compare(
            ("S-20 token: signature wrong at its first byte | at its last", Demand::Indistinguishable, 401),
            samples * CHEAP,
            |bench, side, _| {
                let [first, second] = &wrong;
                let token = match side {
                    Side::First => first,
                    Side::Second => second,
                };
                Ok(bench.request("GET /v2/", &format!("Authorization: Bearer {token}\r\n"), &[]))
            },
            |_, _| Ok(()),
        )
    }

    /// S-21: whether anybody has a name.
    fn names(&mut self, samples: usize) -> Result<()> {
        for (what, line) in
            [("token", "GET /service/token?service=x"), ("login", "GET /api/v2.0/users/current")]
        {
            let title = format!("S-21 {what}: a name that nobody has | a wrong password");
            self.compare(
                (&title, Demand::CloseMedians, 401),
                samples,
                |bench, side, round| {
                    let unknown = format!("nobody{round}");
                    let name = match side {
                        Side::First => unknown.as_str(),
                        Side::Second => KNOWN.0,
                    };
                    Ok(bench.elsewhere(line, &basic(name, "Wrong-Password-1")))
                },
                |_, _| Ok(()),
            )?;
        }
        Ok(())
    }

    /// S-42: blobs and manifests that others have.
    fn hidden_things(&mut self, samples: usize) -> Result<()> {
        let secret = Image::unique(&[5_000])?;
        secret.push(&self.admin, SECRET, "one")?;
        let layer = secret.blobs().get(1).context("a layer")?.clone();
        for (method, place, there) in
            [("GET", "blobs", layer.clone()), ("HEAD", "blobs", layer), ("GET", "manifests", secret.digest())]
        {
            let title = format!("S-42 {method} {place}: a digest that others have | that nobody has");
            let nowhere = sha256(&noise(rand::random(), 32));
            self.compare(
                (&title, Demand::CloseMedians, 404),
                samples * CHEAP,
                |bench, side, _| {
                    let digest = match side {
                        Side::First => &there,
                        Side::Second => &nowhere,
                    };
                    Ok(bench.request(&format!("{method} /v2/{OWN}/{place}/{digest}"), &bench.own, &[]))
                },
                |_, _| Ok(()),
            )?;
        }
        Ok(())
    }

    /// S-42 and rule N: projects of others, looked at for the first time and again.
    fn hidden_projects(&mut self, samples: usize) -> Result<()> {
        for round in 0..samples {
            create_project(&self.admin, &format!("hidden{round}"), false)?;
        }
        // What the outsider is, the server knows before.
        let warm_up = self.request("GET /api/v2.0/projects/own", &self.outsider, &[]);
        ensure!(Connection::open(&self.host)?.ask(&warm_up)?.status == 200, "the outsider is not let in");
        let ask = |rest: &'static str, api: bool, once: bool| {
            move |bench: &mut Self, side: Side, round: usize| {
                let round = if once { round } else { 0 };
                let name = match side {
                    Side::First => format!("hidden{round}"),
                    Side::Second => format!("absent{round}"),
                };
                let (base, authorization) =
                    if api { ("/api/v2.0/projects", &bench.outsider) } else { ("/v2", &bench.own) };
                Ok(bench.request(&format!("GET {base}/{name}{rest}"), authorization, &[]))
            }
        };
        let titled = |what: &str| format!("S-42 {what}: hidden | absent");
        let title = titled("REST project, seen for the first time");
        self.compare((&title, Demand::CloseMedians, 404), samples, ask("", true, true), |_, _| Ok(()))?;
        let title = titled("REST project, seen again");
        let again = ask("/members", true, false);
        self.compare((&title, Demand::CloseMedians, 404), samples * CHEAP, again, |_, _| Ok(()))?;
        // A minute later nothing is remembered; what was remembered goes with any change, such as this one.
        create_project(&self.admin, "later", false)?;
        let warm_up = self.request(&format!("HEAD /v2/{OWN}/manifests/one"), &self.own, &[]);
        ensure!(Connection::open(&self.host)?.ask(&warm_up)?.status == 200, "the outsider is not let in");
        let title = titled("repository in a project, seen for the first time");
        let first = ask("/app/manifests/one", false, true);
        self.compare((&title, Demand::CloseMedians, 404), samples, first, |_, _| Ok(()))?;
        let title = titled("repository in a project, seen again");
        let again = ask("/app/manifests/one", false, false);
        self.compare((&title, Demand::CloseMedians, 404), samples * CHEAP, again, |_, _| Ok(()))
    }

    /// S-43: a mount of what others have.
    fn mounts(&mut self, samples: usize) -> Result<()> {
        let held = self.admin.push_blob(SECRET, &noise(rand::random(), BLOB_BYTES))?;
        let nowhere = sha256(&noise(rand::random(), BLOB_BYTES));
        for (what, from) in [("without a source", ""), ("from where others have it", "&from=closed/secret")] {
            let title = format!("S-43 mount {what}: held by others | by nobody");
            self.compare(
                (&title, Demand::CloseMedians, 202),
                samples * CHEAP,
                |bench, side, _| {
                    let digest = match side {
                        Side::First => &held,
                        Side::Second => &nowhere,
                    };
                    let line = format!("POST /v2/{OWN}/blobs/uploads/?mount={digest}{from}");
                    Ok(bench.request(&line, &bench.own, &[]))
                },
                |bench, answer| {
                    // A repository has only so many sessions.
                    let line = format!("DELETE {}", answer.header("location"));
                    let cancel = bench.request(&line, &bench.own, &[]);
                    ensure!(Connection::open(&bench.host)?.ask(&cancel)?.status == 204, "the session stays");
                    Ok(())
                },
            )?;
        }
        Ok(())
    }

    /// S-43: an upload of what others have.
    fn uploads(&mut self, samples: usize) -> Result<()> {
        let mut held = Vec::with_capacity(samples);
        for _ in 0..samples {
            let bytes = noise(rand::random(), BLOB_BYTES);
            self.admin.push_blob(SECRET, &bytes)?;
            held.push(bytes);
        }
        self.compare(
            ("S-43 upload: bytes that others have | that nobody has", Demand::CloseMedians, 201),
            samples,
            |bench, side, round| {
                let fresh = noise(rand::random(), BLOB_BYTES);
                let bytes = match side {
                    Side::First => held.get(round).context("a held blob")?,
                    Side::Second => &fresh,
                };
                let line = format!("POST /v2/{OWN}/blobs/uploads/?digest={}", sha256(bytes));
                let headers = format!("{}Content-Type: application/octet-stream\r\n", bench.own);
                Ok(bench.request(&line, &headers, bytes))
            },
            |_, _| Ok(()),
        )
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
