//! Partitions against a map of the same blobs.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::digest::Algorithm;
use crate::disk::sim::SimDisk;
use crate::format::SegmentId;
use crate::format::checkpoint::Location;
use crate::format::partition::order;
use crate::format::seal::Place;

const NAME: PartitionName = PartitionName { number: 7, shard: 3 };

fn key() -> Key {
    Key::new([1; 32], [2; 16])
}

/// A blob of that many links. Its digest is not that of its content, which nothing here looks at: prefixes are alike, so that some
/// pages begin with the prefix that the one before ends with.
fn blob(number: u64, links: u64) -> StoredBlob {
    let algorithm = Algorithm::ALL[usize::try_from(number % 3).unwrap()];
    let mut bytes = Digest::of(algorithm, &number.to_le_bytes()).bytes().to_vec();
    bytes[..8].copy_from_slice(&(number % 5).to_be_bytes());
    let segment = SegmentId(number % 9 + 1);
    let location = if number.is_multiple_of(7) {
        Location::Solo { segment: SegmentId(number << 32), epoch: 3, trailer: [9; 32] }
    } else {
        Location::Inline(Place { segment, epoch: 2, offset_bytes: number * 64 })
    };
    let link =
        |link: u64| (RepositoryKey::new(link * 3 + 1).unwrap(), number + link, SegmentId(link % 4 + 1));
    StoredBlob {
        digest: Digest::from_parts(algorithm, &bytes).unwrap(),
        len_bytes: number * 1_000,
        record_segment: segment,
        record_lsn: number,
        location,
        quarantined: number.is_multiple_of(11),
        unlinked_since_ms: if links == 0 { number } else { 0 },
        links: StoredLinks::Here((0..links).map(link).collect()),
    }
}

fn written(disk: &SimDisk, blobs: &BTreeMap<u64, u64>) -> (Partition, Vec<StoredBlob>) {
    let mut sorted: Vec<StoredBlob> = blobs.iter().map(|(number, links)| blob(*number, *links)).collect();
    sorted.sort_by(|one, other| order(&one.digest, &other.digest));
    disk.create_dir("index").unwrap();
    let key = key();
    let mut writer = PartitionWriter::create(disk, &key, NAME, 4).unwrap();
    sorted.iter().for_each(|blob| writer.put(blob.clone()).unwrap());
    writer.finish().unwrap();
    (Partition::open(disk, &key, NAME, None).unwrap().unwrap(), sorted)
}

fn with_links(partition: &Partition, found: StoredBlob) -> StoredBlob {
    let links = StoredLinks::Here(partition.links_of(&found).unwrap());
    StoredBlob { links, ..found }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Spread evenly, crowded at either end, all alike, few or none.
    #[test]
    fn a_page_is_found_where_a_plain_search_finds_it(
        firsts in vec(0..u64::MAX >> SHARD_BITS, 0..300),
        crowd in prop_oneof![Just(0_u32), 1..57_u32],
        from_the_end in any::<bool>(),
        sought in vec(0..u64::MAX >> SHARD_BITS, 20),
    ) {
        let end = u64::MAX >> SHARD_BITS;
        let crowded = |first: &u64| if from_the_end { end - (first >> crowd) } else { first >> crowd };
        let mut directory: Vec<u64> = firsts.iter().map(crowded).collect();
        directory.sort_unstable();
        let near = directory.iter().flat_map(|first| [first.saturating_sub(1), *first, first + 1]);
        for prefix in near.chain(sought).chain([0, end]) {
            let expected = directory.partition_point(|first| *first <= prefix);
            prop_assert_eq!(position(&directory, prefix), expected);
        }
    }

    #[test]
    fn a_partition_has_what_was_put_into_it_and_nothing_else(
        blobs in prop::collection::btree_map(0_u64..4_000, prop_oneof![8 => 0_u64..4, 1 => 0_u64..200], 0..300),
    ) {
        let (partition, sorted) = written(&SimDisk::new(), &blobs);
        for number in (0..4_000).step_by(3).chain(blobs.keys().copied()) {
            let links = blobs.get(&number);
            let wanted = blob(number, links.copied().unwrap_or(0));
            let found = partition.find(&wanted.digest).unwrap();
            let found = found.map(|found| with_links(&partition, found));
            prop_assert_eq!(&found, &links.map(|_| wanted));
        }
        for stored in partition.walk().map(Result::unwrap) {
            for repository in 1..130 {
                let repository = RepositoryKey::new(repository).unwrap();
                let is_linked = partition.links_of(&stored).unwrap().iter().any(|link| link.0 == repository);
                let found = partition.find_linked(&stored.digest, repository).unwrap();
                prop_assert_eq!(found.is_some_and(|(blob, link)| blob == stored && link.0 == repository), is_linked);
            }
        }
        let walked: Vec<StoredBlob> =
            partition.walk().map(|found| with_links(&partition, found.unwrap())).collect();
        prop_assert_eq!(&walked, &sorted);
        let garbage: Vec<(u64, Digest)> = sorted
            .iter()
            .filter(|blob| blob.holders().next().is_none())
            .map(|blob| (blob.unlinked_since_ms, blob.digest))
            .collect();
        prop_assert_eq!(partition.garbage().unwrap(), garbage);
        prop_assert_eq!(partition.header.blobs, sorted.len() as u64);
    }
}

#[test]
fn no_flipped_bit_of_a_partition_changes_an_answer() {
    let disk = SimDisk::new();
    let blobs: BTreeMap<u64, u64> = (0..90).map(|number| (number, number % 4 + number / 80 * 30)).collect();
    let (_, sorted) = written(&disk, &blobs);
    let name = NAME.file_name();
    let len = disk.contents(&name).unwrap().len() as u64;
    // All of the header's fields and seal, and enough of the rest.
    for at in (0..128).chain(4064..4096).chain((4096..len).step_by(13)) {
        let bit = u8::try_from(at % 8).unwrap();
        let damaged = disk.fork();
        assert!(damaged.flip_bit(&name, at, bit));
        let Some(partition) = Partition::open(&damaged, &key(), NAME, None).unwrap() else { continue };
        let mut refused = usize::from(partition.garbage().is_err());
        for blob in &sorted {
            match partition.find(&blob.digest) {
                Ok(Some(found)) => match partition.links_of(&found) {
                    Ok(links) => assert_eq!(StoredLinks::Here(links), blob.links, "byte {at}"),
                    Err(failed) => refused += usize::from(failed.is_damage()),
                },
                Ok(None) => panic!("byte {at} hides {}", blob.digest),
                Err(failed) => refused += usize::from(failed.is_damage()),
            }
        }
        assert!(refused > 0, "byte {at} of {len} is not checked by anything");
    }
}

/// A blob whose links have pages of their own took a search through them, which told strangers that somebody has it.
#[test]
fn a_stranger_has_as_many_pages_looked_at_whatever_there_is() {
    let disk = SimDisk::new();
    let blobs: BTreeMap<u64, u64> =
        (0..400).map(|number| (number, [0, 1, 3, 60, 2_000][usize::try_from(number % 5).unwrap()])).collect();
    let (partition, sorted) = written(&disk, &blobs);
    assert!(partition.header.link_pages > 1_000);
    let pages = |digest: &Digest, repository: u64| {
        let before = disk.counters().read_bytes;
        let found = partition.find(digest).unwrap();
        let found_bytes = disk.counters().read_bytes - before;
        let linked = partition.find_linked(digest, RepositoryKey::new(repository).unwrap()).unwrap();
        assert!(linked.is_none());
        let both_bytes = disk.counters().read_bytes - before;
        (found.is_some(), (both_bytes - 2 * found_bytes) / PAGE_BYTES as u64)
    };
    let absent = pages(&blob(1_000, 0).digest, 9);
    assert_eq!(absent, (false, u64::from(search_pages_max(partition.header.link_pages))));
    for blob in &sorted {
        for repository in [3, 150, 3_000, 5_999, 90_000] {
            assert_eq!(pages(&blob.digest, repository), (true, absent.1), "{}", blob.digest);
        }
    }
}

#[test]
fn a_stranger_has_as_many_pages_looked_at_for_what_changed_lately() {
    let disk = SimDisk::new();
    let (partition, sorted) = written(&disk, &(0..20).map(|number| (number, number * 10)).collect());
    let mut shard = crate::locator::Shard::default();
    shard.load_partition(Some(Arc::new(partition)), crate::locator::Tally::default());
    let stranger = RepositoryKey::new(5_000).unwrap();
    for stored in &sorted {
        let look = |shard: &crate::locator::Shard| {
            let before = disk.counters().read_bytes;
            assert!(shard.linked(stranger, &stored.digest).unwrap().is_none());
            assert_eq!(shard.link_generation(stranger, &stored.digest).unwrap(), None);
            disk.counters().read_bytes - before
        };
        let unchanged = look(&shard);
        assert!(unchanged > 0);
        shard.edit(&stored.digest).unwrap().unwrap();
        assert_eq!(look(&shard), unchanged, "changed");
        shard.remove(&stored.digest).unwrap().unwrap();
        assert_eq!(look(&shard), unchanged, "gone");
    }
}
