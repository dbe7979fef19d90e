//! The run: every set pushed, listed, looked at, pulled, referred to and deleted, and every check counted.

use std::collections::BTreeMap;

use anyhow::Result;
use reqwest::Method;
use serde_json::Value;

use super::blobs::{CHUNK_BYTES_MIN, Push, Twist, Way, content};
use super::data::{self, Algorithm, DataSet, Referrer};
use super::wire::{Ask, Check, Length, Miss, Wire, broken, join, media_type_of, with_query};
use super::{Target, Totals, Version};

/// Bytes of a blob that goes in one piece.
const BLOB_BYTES: usize = 512;
/// Bytes of the blob that is read in ranges.
const RANGED_BYTES: usize = 2048;

/// What the run knows of a way to push.
#[derive(Debug, Default, Clone)]
struct Known {
    tried: bool,
    tried_by: Vec<Algorithm>,
    passed: bool,
    failed: bool,
}

#[derive(Debug)]
pub(super) struct Run {
    wire: Wire,
    target: Target,
    totals: Totals,
    ways: BTreeMap<Way, Known>,
    chunk_bytes_min: usize,
}

impl Run {
    pub(super) fn new(target: &Target) -> Result<Self> {
        Ok(Self {
            wire: Wire::new(&target.base, target.user.clone())?,
            target: target.clone(),
            totals: Totals::default(),
            ways: BTreeMap::new(),
            chunk_bytes_min: CHUNK_BYTES_MIN,
        })
    }

    pub(super) fn all(mut self) -> Result<Totals> {
        let ping = self.wire.send(&Ask::new(Method::GET, "/v2/")).map(|_| ());
        self.count("ping", ping);
        self.empty_repository();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            self.blob_ways(algorithm);
            self.ranges(algorithm);
            self.known_contents(algorithm);
            self.bad_digests(algorithm);
        }
        for mut set in data::sets(self.target.version) {
            self.push_set(&mut set);
            self.list_tags(&set);
            self.look(&set, &Method::HEAD);
            self.look(&set, &Method::GET);
            self.referrers(&set);
            self.delete_set(&set);
        }
        self.manifest_mistakes();
        Ok(self.totals)
    }

    /// Counts a check and remembers what it said; returns whether it passed.
    fn count(&mut self, name: &str, check: Check) -> bool {
        match check {
            Ok(()) => {
                self.totals.passed += 1;
                true
            }
            Err(misses) => {
                let optional = misses.iter().any(|miss| matches!(miss, Miss::Unsupported(_)));
                let word = if optional { "Skip" } else { "FAIL" };
                *(if optional { &mut self.totals.skipped } else { &mut self.totals.failed }) += 1;
                let said: Vec<String> = misses
                    .into_iter()
                    .map(|miss| match miss {
                        Miss::Broken(text) | Miss::Unsupported(text) => text,
                    })
                    .collect();
                self.totals.said.push(format!("{word} {name}: {}", said.join("; ")));
                false
            }
        }
    }

    /// Digest headers are due on every answer only since the development version.
    fn digests_due(&self) -> bool {
        self.target.version == Version::Development
    }

    fn repository(&self) -> String {
        self.target.repository.clone()
    }

    fn empty_repository(&mut self) {
        let path = format!("/v2/{}/tags/list", self.repository());
        let tags = self.wire.send(&Ask::new(Method::GET, path)).and_then(|reply| reply.status(&[200, 404]));
        self.count("empty/tag list", tags);
        let subject = Algorithm::Sha256.digest(&crate::images::noise(rand::random(), 32));
        let list = self.referrers_of(&subject, None).map(|_| ());
        self.count("empty/referrers", list);
    }

    // ---- blobs

    /// Pushes in one way, and counts it.
    fn push(&mut self, set: &DataSet, digest: &str, repository: &str, way: Way, twist: Twist) -> bool {
        let check = Push {
            require_digest: self.digests_due(),
            wire: &mut self.wire,
            repository,
            digest,
            content: content(set, digest),
            twist,
            chunk_bytes_min: &mut self.chunk_bytes_min,
        }
        .run(way);
        let passed = self.count(&format!("{}/push {way:?} {twist:?}", set.name), check);
        let known = self.ways.entry(way).or_default();
        *(if passed { &mut known.passed } else { &mut known.failed }) = true;
        passed
    }

    fn mark_tried(&mut self, way: Way, algorithm: Algorithm) {
        let known = self.ways.entry(way).or_default();
        known.tried = true;
        known.tried_by.push(algorithm);
    }

    /// Pushes in whatever way works: first those that were not tried, then those that are known to work.
    fn push_any(&mut self, set: &DataSet, digest: &str, repository: &str) -> bool {
        let algorithm = Algorithm::of(digest);
        let known = |way: &Way| self.ways.get(way).cloned().unwrap_or_default();
        let mut order: Vec<Way> = Way::ALL.into_iter().filter(|way| !known(way).tried).collect();
        let by_algorithm = |way: &Way| !known(way).tried_by.contains(&algorithm);
        let good = |way: &Way| known(way).passed && !known(way).failed;
        for wanted in [&by_algorithm as &dyn Fn(&Way) -> bool, &good, &|_| true] {
            for way in Way::ALL {
                if wanted(&way) && !order.contains(&way) {
                    order.push(way);
                }
            }
        }
        for way in order {
            let pushed = self.push(set, digest, repository, way, Twist::default());
            self.mark_tried(way, algorithm);
            if pushed {
                return true;
            }
        }
        false
    }

    fn mount(&mut self, set: &DataSet, digest: &str, from: &str, missing: bool) -> bool {
        let repository = self.repository();
        let check = Push {
            require_digest: false,
            wire: &mut self.wire,
            repository: &repository,
            digest,
            content: content(set, digest),
            twist: Twist::default(),
            chunk_bytes_min: &mut self.chunk_bytes_min,
        }
        .mount(from);
        let check = match (missing, check) {
            (false, check) => check,
            // What is not there cannot be mounted: here the fallback is the only right answer.
            (true, Ok(())) => broken("a blob that is not there was mounted"),
            (true, Err(misses)) if misses.iter().any(|miss| matches!(miss, Miss::Unsupported(_))) => Ok(()),
            (true, Err(misses)) => Err(misses),
        };
        self.count(&format!("{}/mount from {from:?}", set.name), check)
    }

    fn look_at_blob(&mut self, set: &DataSet, digest: &str, method: &Method) {
        let path = format!("/v2/{}/blobs/{digest}", self.repository());
        let due = self.digests_due();
        let check = self.wire.blob_is(method.clone(), path, set, digest, due);
        self.count(&format!("{}/blob {method}", set.name), check);
    }

    fn delete_blob(&mut self, set: &DataSet, digest: &str, repository: &str) {
        let path = format!("/v2/{repository}/blobs/{digest}");
        self.delete(&format!("{}/blob", set.name), &path, &[202, 404], &[405]);
    }

    /// Deletes, and looks whether it is gone at once; two checks.
    fn delete(&mut self, name: &str, path: &str, good: &[u16], unsupported_by: &[u16]) {
        let deleted = self.wire.send(&Ask::new(Method::DELETE, path)).and_then(|reply| {
            if unsupported_by.contains(&reply.status) {
                return Err(vec![Miss::Unsupported(format!("DELETE answered {}", reply.status))]);
            }
            reply.status(good)
        });
        if !self.count(&format!("{name} delete"), deleted) {
            self.totals.skipped += 1;
            self.totals.said.push(format!("Skip {name} gone: it could not be deleted"));
            return;
        }
        let gone = self
            .wire
            .send(&Ask::new(Method::HEAD, path).accept_manifests())
            .and_then(|reply| reply.status(&[404]));
        self.count(&format!("{name} gone"), gone);
    }

    fn blob_ways(&mut self, algorithm: Algorithm) {
        let mut set = DataSet::named(&format!("{} blobs", algorithm.name()));
        let (here, there) = (self.repository(), self.target.other_repository.clone());
        let never = set.random_blob(algorithm, BLOB_BYTES);
        let path = format!("/v2/{here}/blobs/{never}");
        let missing = self.wire.send(&Ask::new(Method::GET, path)).and_then(|reply| reply.status(&[404]));
        self.count(&format!("{}/get a missing one", set.name), missing);

        for way in [Way::PostOnly, Way::PostPut, Way::Chunked, Way::Stream] {
            let digest = set.random_blob(algorithm, BLOB_BYTES);
            let pushed = self.push(&set, &digest, &here, way, Twist::default());
            self.mark_tried(way, algorithm);
            self.look_and_delete(&set, &digest, pushed);
        }
        for from in [there.as_str(), ""] {
            let digest = set.random_blob(algorithm, BLOB_BYTES);
            self.push_any(&set, &digest, &there);
            let mounted = self.mount(&set, &digest, from, false);
            self.look_and_delete(&set, &digest, mounted);
            self.delete_blob(&set, &digest, &there);
        }
        let digest = set.random_blob(algorithm, BLOB_BYTES);
        let mounted = self.mount(&set, &digest, &there, true);
        self.look_and_delete(&set, &digest, mounted);

        self.cancel(&set, &never);
        self.mark_tried(Way::PostPut, algorithm);
        self.delete_blob(&set, &never, &here);

        let flags = [(false, false), (true, false), (false, true), (true, true)];
        for (put_last_chunk, out_of_order) in flags {
            let digest = set.random_blob(algorithm, self.chunk_bytes_min * 3 - 5);
            let twist = Twist { put_last_chunk, out_of_order, ..Twist::default() };
            let pushed = self.push(&set, &digest, &here, Way::Chunked, twist);
            self.look_and_delete(&set, &digest, pushed);
        }
    }

    fn look_and_delete(&mut self, set: &DataSet, digest: &str, pushed: bool) {
        if pushed {
            self.look_at_blob(set, digest, &Method::HEAD);
            self.look_at_blob(set, digest, &Method::GET);
        }
        let here = self.repository();
        self.delete_blob(set, digest, &here);
    }

    fn cancel(&mut self, set: &DataSet, digest: &str) {
        if self.target.version == Version::Published {
            self.totals.disabled += 1;
            return;
        }
        let repository = self.repository();
        let check = Push {
            require_digest: false,
            wire: &mut self.wire,
            repository: &repository,
            digest,
            content: &[],
            twist: Twist::default(),
            chunk_bytes_min: &mut self.chunk_bytes_min,
        }
        .cancel();
        self.count(&format!("{}/cancel", set.name), check);
    }

    fn ranges(&mut self, algorithm: Algorithm) {
        let mut set = DataSet::named(&format!("{} ranges", algorithm.name()));
        let here = self.repository();
        let digest = set.random_blob(algorithm, RANGED_BYTES);
        if !self.push_any(&set, &digest, &here) {
            self.count(&set.name, broken("nothing could be pushed"));
            return;
        }
        let last = RANGED_BYTES - 1;
        let satisfiable = [("500-1499", 500, 1499), ("500-", 500, last), ("-500", RANGED_BYTES - 500, last)];
        let beyond = [("2000-5000", 2000, last)];
        for (range, start, end) in satisfiable.into_iter().chain(beyond) {
            let check = self.range(&set, &digest, range, Some((start, end)));
            self.count(&format!("{}/{range}", set.name), check);
        }
        for range in ["500-0", "5000-10000"] {
            let check = self.range(&set, &digest, range, None);
            self.count(&format!("{}/{range}", set.name), check);
        }
        self.delete_blob(&set, &digest, &here);
    }

    fn range(&mut self, set: &DataSet, digest: &str, range: &str, due: Option<(usize, usize)>) -> Check {
        let all = content(set, digest);
        let path = format!("/v2/{}/blobs/{digest}", self.repository());
        let reply = self.wire.send(&Ask::new(Method::GET, path).header("range", format!("bytes={range}")))?;
        let check = match due {
            None => reply.status(&[416]),
            Some((start, end)) => {
                let of =
                    |size: &str| reply.header_is("content-range", &format!("bytes {start}-{end}/{size}"));
                join([
                    reply.status(&[206]),
                    reply.body_is(&all[start..=end]),
                    reply.header_is("content-length", &(end - start + 1).to_string()),
                    of(&all.len().to_string()).or_else(|_| of("*")),
                ])
            }
        };
        if check.is_err() && reply.status == 200 && reply.body == all {
            return super::wire::unsupported("a range was answered with the whole blob");
        }
        check
    }

    fn known_contents(&mut self, algorithm: Algorithm) {
        let here = self.repository();
        for bytes in [&b""[..], b"{}"] {
            let mut set = DataSet::named(&format!("{} known content {bytes:?}", algorithm.name()));
            let digest = algorithm.digest(bytes);
            set.blobs.insert(digest.clone(), bytes.to_vec());
            self.push_any(&set, &digest, &here);
            self.look_at_blob(&set, &digest, &Method::HEAD);
            self.look_at_blob(&set, &digest, &Method::GET);
            self.delete_blob(&set, &digest, &here);
        }
    }

    fn bad_digests(&mut self, algorithm: Algorithm) {
        let mut set = DataSet::named(&format!("{} bad digests", algorithm.name()));
        let here = self.repository();
        let twist = Twist { bad_digest: true, ..Twist::default() };
        let with_put = Twist { put_last_chunk: true, ..twist };
        let tries = [
            (Way::PostOnly, twist),
            (Way::PostPut, twist),
            (Way::Chunked, twist),
            (Way::Chunked, with_put),
            (Way::Stream, twist),
        ];
        for (way, twist) in tries {
            let digest = set.random_blob(algorithm, self.chunk_bytes_min * 3 - 5);
            if let Some(bytes) = set.blobs.get_mut(&digest) {
                bytes.extend_from_slice(b"oh no");
            }
            self.push(&set, &digest, &here, way, twist);
        }
    }

    // ---- manifests

    fn push_set(&mut self, set: &mut DataSet) {
        let here = self.repository();
        for digest in set.blobs.keys().cloned().collect::<Vec<_>>() {
            self.push_any(set, &digest, &here);
        }
        for digest in set.order.clone() {
            let tags: Vec<String> = set
                .tags
                .iter()
                .filter(|(_, tagged)| set.tag_parameters && **tagged == digest)
                .map(|(tag, _)| tag.clone())
                .collect();
            let check = self.put_manifest(set, &digest, &digest, &tags);
            if self.count(&format!("{}/put by digest", set.name), check) {
                set.tags_pushed.extend(tags);
            }
        }
        for (tag, digest) in set.tags.clone() {
            if set.tags_pushed.contains(&tag) {
                continue;
            }
            let check = self.put_manifest(set, &tag, &digest, &[]);
            if self.count(&format!("{}/put by tag", set.name), check) {
                set.tags_pushed.insert(tag);
            }
        }
    }

    fn put_manifest(&mut self, set: &DataSet, reference: &str, digest: &str, tags: &[String]) -> Check {
        let body = set.manifests.get(digest).map(Vec::as_slice).unwrap_or_default();
        let media_type = media_type_of(body);
        let mut path = format!("/v2/{}/manifests/{reference}", self.repository());
        for tag in tags {
            path = with_query(&path, "tag", tag);
        }
        let reply = self.wire.send(&Ask::new(Method::PUT, path).body(&media_type, body, Length::Unknown))?;
        if set.bad_digest {
            return reply.status(&[400]);
        }
        let subject = subject_of(body);
        let answered = join([
            reply.status(&[201]),
            subject.map_or(Ok(()), |subject| reply.header_is("oci-subject", &subject)),
            reply.digest_is(digest, false),
        ]);
        let stands = reply.location().and_then(|location| {
            let reply = self.wire.send(&Ask::new(Method::GET, location).accept_manifests())?;
            join([
                reply.status(&[200]),
                reply.header_is("content-type", &media_type),
                reply.header_is("content-length", &body.len().to_string()),
                reply.body_is(body),
            ])
        });
        join([answered, stands])?;
        let named: Vec<&str> = reply
            .headers
            .get_all("oci-tag")
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .collect();
        match tags.iter().find(|tag| !named.contains(&tag.as_str())) {
            None => Ok(()),
            Some(tag) => super::wire::unsupported(format!("no OCI-Tag: {tag}")),
        }
    }

    fn list_tags(&mut self, set: &DataSet) {
        let check = self.tags_are_listed(set);
        self.count(&format!("{}/tag list", set.name), check);
    }

    fn tags_are_listed(&mut self, set: &DataSet) -> Check {
        let path = format!("/v2/{}/tags/list", self.repository());
        let mut all = self.tags_at(&path)?;
        let missing = set
            .tags
            .keys()
            .filter(|tag| !all.contains(tag))
            .map(|tag| broken(format!("no {tag} in the list")));
        join(missing.collect::<Vec<_>>())?;
        if all.len() < 2 {
            return Ok(());
        }
        all.sort();
        let (before, after) = all.split_at(all.len() / 2);
        let last = before.last().map(String::as_str).unwrap_or_default();
        let page = self.tags_at(&with_query(&path, "last", last))?;
        join([
            if before.iter().any(|tag| page.contains(tag)) {
                broken(format!("a tag up to last={last}"))
            } else {
                Ok(())
            },
            if after.iter().all(|tag| page.contains(tag)) {
                Ok(())
            } else {
                broken(format!("no tag after last={last}"))
            },
        ])
    }

    fn tags_at(&mut self, path: &str) -> Result<Vec<String>, Vec<Miss>> {
        let reply = self.wire.send(&Ask::new(Method::GET, path))?;
        reply.status(&[200, 404])?;
        let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        let tags = body["tags"].as_array().cloned().unwrap_or_default();
        Ok(tags.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    }

    /// Looks at all of a set: tags, manifests, blobs.
    fn look(&mut self, set: &DataSet, method: &Method) {
        let due = self.digests_due();
        let references = set.tags.iter().chain(set.order.iter().map(|own| (own, own)));
        for (reference, digest) in references.filter(|_| !set.bad_digest) {
            let path = format!("/v2/{}/manifests/{reference}", self.target.repository);
            let check = self.wire.manifest_is(method.clone(), path, set, digest, due);
            self.count(&format!("{}/manifest {method}", set.name), check);
        }
        for digest in set.blobs.keys() {
            self.look_at_blob(set, digest, method);
        }
    }

    fn referrers(&mut self, set: &DataSet) {
        if set.referrers.is_empty() {
            return;
        }
        let mut misses = Vec::new();
        for (subject, due) in &set.referrers {
            match self.referrers_of(subject, None) {
                Err(more) => misses.extend(more),
                Ok((found, _)) => misses.extend(lacking(&found, due.iter())),
            }
            let mut types: Vec<&String> = due.iter().map(|referrer| &referrer.artifact_type).collect();
            types.sort();
            types.dedup();
            for wanted in types {
                match self.referrers_of(subject, Some(wanted)) {
                    Err(more) => misses.extend(more),
                    Ok((found, filtered)) => {
                        if !filtered {
                            misses.push(Miss::Unsupported("no OCI-Filters-Applied".to_owned()));
                        }
                        let due =
                            due.iter().filter(|referrer| !filtered || referrer.artifact_type == *wanted);
                        misses.extend(lacking(&found, due));
                        if filtered && found.iter().any(|entry| entry["artifactType"] != **wanted) {
                            misses.push(Miss::Broken(format!("the filter for {wanted} let others through")));
                        }
                    }
                }
            }
        }
        let check = if misses.is_empty() { Ok(()) } else { Err(misses) };
        self.count(&format!("{}/referrers", set.name), check);
    }

    /// The referrers of a subject, and whether they were filtered by type.
    fn referrers_of(&mut self, subject: &str, wanted: Option<&str>) -> Result<(Vec<Value>, bool), Vec<Miss>> {
        let mut path = format!("/v2/{}/referrers/{subject}", self.repository());
        if let Some(wanted) = wanted {
            path = with_query(&path, "artifactType", wanted);
        }
        let reply = self.wire.send(&Ask::new(Method::GET, path))?;
        join([reply.status(&[200]), reply.header_is("content-type", crate::http::OCI_INDEX)])?;
        let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        if body["mediaType"] != crate::http::OCI_INDEX || body["schemaVersion"] != 2 {
            return broken("the referrers are no OCI index");
        }
        let filtered =
            reply.header("oci-filters-applied").split(',').any(|name| name.trim() == "artifactType");
        Ok((body["manifests"].as_array().cloned().unwrap_or_default(), filtered))
    }

    fn delete_set(&mut self, set: &DataSet) {
        let here = self.repository();
        for tag in &set.tags_pushed {
            self.delete(
                &format!("{}/tag", set.name),
                &format!("/v2/{here}/manifests/{tag}"),
                &[202, 404],
                &[400, 405],
            );
        }
        for digest in set.order.iter().rev() {
            let path = format!("/v2/{here}/manifests/{digest}");
            self.delete(&format!("{}/manifest", set.name), &path, &[202, 404], &[400, 405]);
        }
        for digest in set.blobs.keys() {
            self.delete_blob(set, digest, &here);
        }
    }

    fn manifest_mistakes(&mut self) {
        let here = self.repository();
        let absent = Algorithm::Sha256.digest(&crate::images::noise(rand::random(), 1024));
        for reference in [absent, format!("missing-{:x}", rand::random::<u64>())] {
            let ask = Ask::new(Method::GET, format!("/v2/{here}/manifests/{reference}")).accept_manifests();
            let check = self.wire.send(&ask).and_then(|reply| reply.status(&[404]));
            self.count("missing manifest", check);
        }
        let set = data::for_a_bad_reference();
        for digest in set.blobs.keys() {
            self.push_any(&set, digest, &here);
        }
        let path = format!("/v2/{here}/manifests/sha256:baddigeststring");
        let body = set.manifests.values().next().map(Vec::as_slice).unwrap_or_default();
        let put = Ask::new(Method::PUT, path.clone()).body(&media_type_of(body), body, Length::Unknown);
        let put = self.wire.send(&put).and_then(|reply| reply.status(&[400]));
        self.count("a digest that is none/put", put);
        let get = Ask::new(Method::GET, path).accept_manifests();
        let get = self.wire.send(&get).and_then(|reply| reply.status(&[404, 400]));
        self.count("a digest that is none/get", get);
        self.delete_set(&set);
    }
}

fn subject_of(manifest: &[u8]) -> Option<String> {
    let parsed: Value = serde_json::from_slice(manifest).ok()?;
    parsed["subject"]["digest"].as_str().map(str::to_owned)
}

/// The due referrers that a list lacks.
fn lacking<'a>(found: &[Value], due: impl Iterator<Item = &'a Referrer>) -> Vec<Miss> {
    due.filter(|referrer| {
        !found.iter().any(|entry| {
            let same =
                ["digest", "mediaType", "size"].iter().all(|key| entry[key] == referrer.descriptor[key]);
            let annotations = referrer.descriptor["annotations"].as_object();
            same && entry["artifactType"].as_str().unwrap_or_default() == referrer.artifact_type
                && annotations
                    .is_none_or(|due| due.iter().all(|(key, value)| entry["annotations"][key] == *value))
        })
    })
    .map(|referrer| Miss::Broken(format!("no {} among the referrers", referrer.descriptor["digest"])))
    .collect()
}
