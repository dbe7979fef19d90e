//! What is made of what: the engine, core over its database, the distribution API over both, the background work.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use taffrail_blobstore::{SessionId, Store};
use taffrail_core::context::Context;
use taffrail_core::facade::{Core, CoreOptions};
use taffrail_distribution::engine::Engine;
use taffrail_distribution::limits::Limits;
use taffrail_distribution::registry::Registry;
use taffrail_jobservice::{Jobs, JobsOptions, ScrubOptions, Sources};

use crate::ambient;
use crate::config::Config;
use crate::config::sections::{Scrub, TlsMode};
use crate::data_dir::DataDir;
use crate::drain::Drain;
use crate::first_password;
use crate::health::Health;
use crate::metrics::{CoreFigures, JobFigures, Metrics};
use crate::request::Refusal;
use crate::routes::{BodyLimits, Routes};

/// The parts of a running registry that outlive its assembly.
pub(crate) struct Parts {
    core: Core,
    jobs: Jobs,
}

impl Parts {
    /// Puts the parts together.
    ///
    /// # Errors
    /// When the database or the signing keys cannot be opened, or there is no first password to be had.
    pub(crate) async fn assemble(
        config: &Config,
        dir: &DataDir,
        store: &Arc<Store>,
        drain: &Drain,
    ) -> anyhow::Result<(Self, Routes)> {
        let context = ambient::context();
        let core = Core::open(core_options(config, dir, context.clone()))
            .await
            .context("cannot open the catalog")?;
        let jobs = taffrail_jobservice::start(
            jobs_options(config),
            Arc::clone(store),
            Sources::new(core.database(), &context),
            context,
        )
        .await
        .context("cannot start the background work")?;
        let engine = Engine::new(
            Arc::clone(store),
            Arc::new(ambient::now_ms),
            Arc::new(|| SessionId::new(ambient::random_bytes())),
        );
        let registry = Registry::new(Arc::new(engine), core.catalog(), core.access_control(), limits(config));
        let probed = core.clone();
        let health = Health::new(
            drain.clone(),
            store,
            Box::new(move || {
                let core = probed.clone();
                Box::pin(async move { core.health().await.is_ok() })
            }),
        );
        let api =
            core.router().fallback(async || Refusal::NotFound.into_response().map(axum::body::Body::new));
        let routes = Routes::new(registry, api, health, BodyLimits::of(&config.limits));
        Ok((Self { core, jobs }, routes))
    }

    /// Adds what core and the background work count to the metrics.
    pub(crate) fn show(&self, metrics: &Metrics) {
        metrics.add(JobFigures(self.jobs.counters()));
        let core = self.core.clone();
        metrics.add(CoreFigures { password_hashes: Box::new(move || core.password_hashes()) });
    }

    /// Ends the background work, then closes the database.
    pub(crate) async fn stop(self) {
        self.jobs.stop().await;
        self.core.close().await;
    }
}

pub(crate) fn core_options(config: &Config, dir: &DataDir, context: Context) -> CoreOptions {
    CoreOptions {
        database: dir.database(),
        key_dir: dir.keys(),
        external_url: config.server.external_url.as_ref().map(ToString::to_string),
        tls: config.tls.mode != TlsMode::Off,
        first_password: first_password::source(config, dir),
        hashes_max: std::thread::available_parallelism().map_or(1, usize::from),
        context,
    }
}

fn jobs_options(config: &Config) -> JobsOptions {
    JobsOptions {
        expiry_pause: Duration::from_secs(config.uploads.sweep_secs),
        collection_pause: Duration::from_millis(config.storage.collection_pause_ms),
        scrub: scrub_options(&config.scrub),
        trust_store: config.storage.trust_store,
        compaction_bytes_per_sec: config.storage.compaction_bytes_per_sec,
        ..JobsOptions::default()
    }
}

/// How the store is read again, unless that is switched off.
fn scrub_options(config: &Scrub) -> Option<ScrubOptions> {
    let options = ScrubOptions {
        period: Duration::from_secs(config.period_secs),
        digest_period: Duration::from_secs(config.digest_period_secs),
        bytes_per_s: config.bytes_per_sec,
    };
    (config.period_secs > 0 && config.bytes_per_sec > 0).then_some(options)
}

/// The bounds of the distribution API. Those that have no key keep the defaults that distribution gives a reason for.
pub(crate) fn limits(config: &Config) -> Limits {
    let entries = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let of = &config.limits;
    let page_max = entries(of.page_entries_max);
    let defaults = Limits::default();
    Limits {
        manifest_bytes_max: usize::try_from(of.manifest_bytes_max).unwrap_or(usize::MAX),
        blob_bytes_max: config.uploads.blob_bytes_max,
        tags_page_default: defaults.tags_page_default.min(page_max),
        tags_page_max: page_max,
        catalog_page_default: entries(of.page_entries_default),
        catalog_page_max: page_max,
        referrers_page_default: defaults.referrers_page_default.min(page_max),
        referrers_page_max: page_max,
        body_window: Duration::from_secs(of.body_window_secs),
        body_bytes_per_s_min: of.body_bytes_per_sec_min,
        extra_manifest_types: of.extra_manifest_types.iter().map(|kind| kind.as_str().to_owned()).collect(),
        ..defaults
    }
}
