use super::*;

const MIB: u64 = 1 << 20;

fn config(text: &str) -> Config {
    // One thread, so that no figure hangs on the machine's cores.
    Config::parse(&format!("run.learner_threads = 1\n{text}")).unwrap()
}

fn plan(text: &str) -> MemoryPlan {
    config(text).memory().unwrap()
}

/// A small run: most parts are near to nothing.
const SMALL: &str = "input.side_px = 8\nbatch.images = 16\nreplay.max_bytes = 16777216\n\
                     image.max_bytes = 1048576\nimage.max_pixels = 2000000\n\
                     server.max_pending_body_bytes = 33554432";

#[test]
fn the_sum_is_that_of_the_parts_the_largest_of_which_comes_first() {
    for text in ["", SMALL, "drift.enabled = true\nkafka.dead_letter_topic = \"refused\""] {
        let plan = plan(text);
        assert_eq!(plan.bytes(), plan.parts.iter().map(|part| part.bytes).sum::<u64>());
        assert!(plan.parts.is_sorted_by_key(|part| std::cmp::Reverse(part.bytes)), "{plan}");
        assert!(plan.parts.iter().all(|part| part.bytes > 0 && !part.settings.is_empty()));
        let text = plan.to_string();
        assert_eq!(text.lines().count(), 1 + plan.parts.len());
        assert!(text.starts_with("memory, at most: "), "{text}");
    }
}

#[test]
fn more_of_anything_never_needs_less_memory() {
    let cases = [
        ("batch.images", "17", "128"),
        ("run.decode_threads", "1", "4"),
        ("run.view_threads", "1", "4"),
        ("server.threads", "1", "4"),
        ("server.max_pending_images", "512", "4096"),
        ("snapshot.resident", "1", "8"),
        ("snapshot.average_momentum", "0.0", "0.9"),
        ("learner.alignment.weight", "0.0", "1.0"),
        ("input.side_px", "16", "64"),
        ("image.working_side_px", "64", "512"),
        ("claims.prefixes", "[]", "[\"file:///tmp/\"]"),
        ("drift.enabled", "false", "true"),
        ("prequential.enabled", "false", "true"),
        ("encoder.architecture", "\"slim-resnet\"", "\"resnet18\""),
        ("objective", "{ kind = \"moco\", queue = 512 }", "{ kind = \"moco\", queue = 65536 }"),
        ("objective", "{ kind = \"simclr\" }", "{ kind = \"byol\" }"),
        ("objective", "{ kind = \"emp\", crops = 4 }", "{ kind = \"emp\", crops = 20 }"),
        ("kafka.properties", "{}", "{ \"queued.max.messages.kbytes\" = \"1048576\" }"),
    ];
    for (key, less, more) in cases {
        let bytes = |value: &str| plan(&format!("{key} = {value}")).bytes();
        let (less_bytes, more_bytes) = (bytes(less), bytes(more));
        assert!(less_bytes < more_bytes, "{key}: {less_bytes} for {less}, {more_bytes} for {more}");
    }
}

#[test]
fn values_beyond_all_reason_are_added_up_without_an_overflow() {
    let text = format!(
        "replay.max_bytes = {0}\nserver.max_pending_body_bytes = {1}",
        i64::MAX,
        i64::MAX >> 4
    );
    assert!(plan(&text).bytes() >= i64::MAX as u64);
    let refused = Config::parse(&format!("run.max_memory_bytes = 1000\n{text}"));
    assert!(refused.unwrap_err().to_string().contains("replay"));
}

#[test]
fn a_ceiling_that_is_too_low_is_refused_with_the_sum_and_the_largest_parts() {
    let needed = plan(SMALL).bytes();
    let text = format!("run.learner_threads = 1\nrun.max_memory_bytes = {}\n{SMALL}", 100 * MIB);
    let message = Config::parse(&text).unwrap_err().to_string();
    assert!(message.starts_with("run.max_memory_bytes = 104857600 is not allowed"), "{message}");
    let least: u64 = message
        .split_once("at least ")
        .and_then(|(_, rest)| rest.split_once(','))
        .map(|(sum, _)| sum.parse().unwrap())
        .unwrap();
    assert!(100 * MIB < least && least <= needed, "{message}");
    // In order, each with what makes it smaller, and what it says is enough is.
    let with_queues_of_one = config(SMALL).memory_with(1).unwrap();
    assert_eq!(with_queues_of_one.bytes(), least);
    let mut rest = &message[..];
    for part in with_queues_of_one.parts.iter().take(ROWS_TOLD) {
        let row = format!("{} {} MiB ({})", part.name, mib(part.bytes), part.settings);
        (_, rest) = rest.split_once(&row).unwrap_or_else(|| panic!("no {row} in {message}"));
    }
    let enough = config(&format!("run.max_memory_bytes = {least}\n{SMALL}"));
    assert_eq!(enough.memory().unwrap().decode_queue, 1);
}

#[test]
fn decode_queues_are_as_long_as_the_ceiling_allows_and_no_longer_than_without() {
    let without = plan(SMALL);
    assert_eq!(without.decode_queue, 16);
    let least = config(SMALL).memory_with(1).unwrap().bytes();
    let mut lengths = vec![];
    for spare in (0..64).map(|n| n * MIB) {
        let ceiling = least + spare;
        let plan = plan(&format!("run.max_memory_bytes = {ceiling}\n{SMALL}"));
        assert!(plan.bytes() <= ceiling, "{plan}");
        lengths.push(plan.decode_queue);
    }
    assert!(lengths.is_sorted() && lengths[0] == 1, "{lengths:?}");
    let all = plan(&format!("run.max_memory_bytes = {}\n{SMALL}", without.bytes() + MIB));
    assert_eq!(all, without);
}

#[test]
fn equal_streams_and_a_ceiling_exclude_each_other() {
    let text = "run.deterministic = true\nbatch.pace = \"fixed\"\nrun.max_memory_bytes";
    let message = Config::parse(&format!("{text} = 1000000000000")).unwrap_err().to_string();
    assert!(message.contains("unset with run.deterministic"), "{message}");
}

/// Those of the README, of config/default.toml and of a container of 4 GB.
#[test]
fn a_container_of_four_gigabytes_is_enough_for_images_of_four_megapixels() {
    let plan = plan(
        "run.max_memory_bytes = 3700000000\nimage.max_pixels = 4000000\n\
         image.max_bytes = 1048576\nserver.max_pending_body_bytes = 67108864",
    );
    assert!((3_400_000_000..3_700_000_000).contains(&plan.bytes()), "{plan}");
}
