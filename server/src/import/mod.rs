//! `taffrail import`: takes a registry over that keeps its data as docker-registry (distribution) does.
//!
//! What must stay true: whatever is linked was hashed while it was taken in; the result is as if everything had been pushed, manifest by
//! manifest, children first; a second run finds what the first one did, and does only the rest.

mod plan;
mod report;
mod take;
mod tree;

use std::collections::{BTreeSet, HashSet};
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, bail};
use taffrail_core::db::DbError;
use taffrail_core::facade::Core;
use taffrail_core::operator::Operator;
use taffrail_core::project::ProjectName;

use crate::cli::Import;
use crate::config::{Config, Environment};
use crate::data_dir::DataDir;
use crate::progress::Progress;
use crate::{ambient, first_password, store, wiring};

use plan::{Planner, Source};
use report::Report;
use take::{How, Taker};
use tree::Tree;

/// Exit code when something was refused.
const EXIT_REFUSED: u8 = 1;
/// Exit code when the import did not begin, or ended early.
const EXIT_FAILED: u8 = 3;
/// At least so many threads of the import: each hashes or waits for the disk.
const THREADS_MIN: usize = 4;

/// Takes a registry over, and says what came of it.
pub(crate) fn run(options: &Import, environment: &Environment) -> ExitCode {
    match import(options, environment) {
        Ok(report) if report.is_whole() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(EXIT_REFUSED),
        Err(error) => {
            let said = report::plain(&format!("taffrail: import: {error:#}"));
            let _ = writeln!(std::io::stderr(), "{said}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn import(options: &Import, environment: &Environment) -> anyhow::Result<Report> {
    let config = options.place.load(environment)?;
    let default =
        ProjectName::parse(&options.project).with_context(|| format!("--project {}", options.project))?;
    let tree = Tree::open(&options.dir)?;
    let (sources, refused) =
        plan::sources(&tree, &default).with_context(|| format!("{}/repositories", tree.path().display()))?;
    let progress = Progress::new(options.says.quiet);
    let mut report = Report { refused, ..Report::default() };
    if options.dry_run {
        foresee(&tree, &config, &sources, &mut report, Foreseen::Reported);
    } else {
        take_over(options, &config, &tree, &sources, &mut report, &progress)?;
    }
    progress.end();
    let text = if options.says.json {
        // What it says of the tree has no line ends: they are escaped in JSON.
        let lines: Vec<String> =
            format!("{:#}", report.json(tree.path())).lines().map(report::plain).collect();
        lines.join("\n") + "\n"
    } else {
        report.text(tree.path())
    };
    // Standard output that is closed is the reader's own wish.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    Ok(report)
}

/// What becomes of what a look at the tree finds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Foreseen {
    /// All of it is the report.
    Reported,
    /// The sizes are wanted.
    Counted,
}

/// Plans everything; counts each blob once.
fn foresee(tree: &Tree, config: &Config, sources: &[Source], report: &mut Report, foreseen: Foreseen) {
    let mut planner = Planner::new(tree, wiring::limits(config).manifest_bytes_max);
    let mut seen = HashSet::new();
    for source in sources {
        let planned = planner.plan(source);
        for (digest, len_bytes) in planned.blobs.iter().chain(&planned.unreferenced) {
            if seen.insert(*digest) {
                report.blobs.add(*len_bytes);
            } else {
                report.deduplicated.add(*len_bytes);
            }
        }
        planned.unreferenced.values().for_each(|len_bytes| report.unreferenced.add(*len_bytes));
        report.layers_gone += planned.layers_gone;
        let manifests = planned.levels.iter().flatten();
        report.repositories += 1;
        report.manifests += manifests.clone().count() as u64;
        report.tags += manifests.map(|manifest| manifest.tags.len() as u64).sum::<u64>();
        if foreseen == Foreseen::Reported {
            report.refused.extend(planned.refused);
        }
    }
}

fn take_over(
    options: &Import,
    config: &Config,
    tree: &Tree,
    sources: &[Source],
    report: &mut Report,
    progress: &Progress,
) -> anyhow::Result<()> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    DataDir::refuse_theirs(&config.storage.data_dir)?;
    let dir = DataDir::open_or_create(&config.storage.data_dir)?;
    let opened = store::open(&dir.store(), config);
    let store = Arc::new(opened.context("import works on the data directory of a registry that is stopped")?);
    let begun = Instant::now();
    let mode = take::mode(options.mode, tree, &dir.store())?;
    report.mode = Some(mode);
    let mut expected = Report::default();
    foresee(tree, config, sources, &mut expected, Foreseen::Counted);
    progress.begin("import", expected.blobs.bytes);
    let threads = std::thread::available_parallelism().map_or(THREADS_MIN, usize::from).max(THREADS_MIN);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let outcome: anyhow::Result<()> = runtime.block_on(async {
        let mut core_options = wiring::core_options(config, &dir, ambient::context());
        // Standard output is the report's.
        core_options.first_password = first_password::announced_on(std::io::stderr(), config, &dir);
        let core = Core::open(core_options).await.context("cannot open the catalog")?;
        let operator = core.operator().await.context("cannot read the catalog")?;
        let Some(operator) = operator else { bail!("the registry has no administrator to import as") };
        let moved = if options.move_tags { take::Tags::Moved } else { take::Tags::Kept };
        report.projects_public =
            public_projects(&operator, sources).await.context("cannot read the catalog")?;
        if !options.into_public && !report.projects_public.is_empty() {
            bail!("{}", public_refusal(&report.projects_public));
        }
        let manifest_bytes_max = wiring::limits(config).manifest_bytes_max;
        let how = How { mode, moved, manifest_bytes_max };
        let mut taker = Taker::new(tree, Arc::clone(&store), core.catalog(), operator, how, progress);
        let mut planner = Planner::new(tree, manifest_bytes_max);
        let mut outcome = Ok(());
        for source in sources {
            let planned = planner.plan(source);
            outcome = taker
                .take(source, planned, report)
                .await
                .context("stopped; what was taken over is kept, run the import again to go on");
            if outcome.is_err() {
                break;
            }
        }
        drop(taker);
        core.close().await;
        outcome
    });
    runtime.shutdown_background();
    report.took = begun.elapsed();
    let closed = Arc::try_unwrap(store).map(taffrail_blobstore::Store::close);
    outcome?;
    if let Ok(Err(error)) = closed {
        bail!(
            "the store was not closed cleanly ({error}); the next start recovers it, nothing that was reported is lost"
        );
    }
    Ok(())
}

/// Those of the projects that anybody may pull from.
async fn public_projects(operator: &Operator, sources: &[Source]) -> Result<Vec<String>, DbError> {
    let projects: BTreeSet<&ProjectName> = sources.iter().map(|source| &source.project).collect();
    let mut public = Vec::new();
    for project in projects {
        if operator.is_public(project).await? {
            public.push(project.to_string());
        }
    }
    Ok(public)
}

fn public_refusal(projects: &[String]) -> String {
    let (names, are) = (projects.join(", "), if projects.len() == 1 { "is" } else { "are" });
    format!(
        "nothing was taken over, because {names} {are} public: everybody could pull what is imported there, without a login. Start the \
         server and make it private first, choose another project for repositories without one with --project, or say \
         --into-public if everybody may"
    )
}
