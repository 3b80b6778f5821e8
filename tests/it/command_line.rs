//! Commands as people type them: what they print, and how they fail.

use crate::harness::{Program, free_port, png, wait_for};
use selfstream::batch::Pace;
use selfstream::config::Config;
use std::path::Path;
use std::process::{Command, Output};

fn selfstream(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_selfstream")).args(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn check_config_accepts_the_defaults_and_names_what_it_refuses() {
    let output = selfstream(&["check-config"]);
    assert!(output.status.success());
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("memory, at most: ") && said.contains("replay.max_bytes"), "{said}");
    assert!(selfstream(&["check-config", "--config", "config/default.toml"]).status.success());

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.toml");
    std::fs::write(&path, "batch.images = 1").unwrap();
    let output = selfstream(&["check-config", "--config", path.to_str().unwrap()]);
    assert!(!output.status.success());
    let message = stderr(&output);
    assert!(message.contains("batch.images = 1"), "{message}");
    assert!(message.contains("from 2 to 8192"), "{message}");
}

#[test]
fn the_environment_wins_over_the_file() {
    let output = Command::new(env!("CARGO_BIN_EXE_selfstream"))
        .args(["check-config", "--print"])
        .env("SELFSTREAM__KAFKA__GROUP", "line-7")
        .env("SELFSTREAM__KAFKA__TOPICS", "[\"a\", \"b\"]")
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let printed: Config = toml::from_str(&printed).unwrap();
    assert_eq!(printed.kafka.group, "line-7");
    assert_eq!(printed.kafka.topics, ["a", "b"]);
}

/// The configuration of a container: the file and the environment that the Dockerfile gives it, and more of the latter.
fn of_a_container(more: &[(&str, &str)]) -> Config {
    let dockerfile = std::fs::read_to_string("Dockerfile").unwrap();
    let given =
        |word: &'static str| dockerfile.lines().filter_map(move |line| line.strip_prefix(word));
    let command: Vec<String> = serde_json::from_str(given("CMD ").next_back().unwrap()).unwrap();
    let [run, flag, place] = &command[..] else { panic!("{command:?}") };
    assert_eq!((&run[..], &flag[..]), ("run", "--config"));
    let file = given("COPY ").find_map(|copy| copy.strip_suffix(&format!(" {place}"))).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_selfstream"))
        .args(["check-config", "--print", "--config", file])
        .envs(given("ENV ").map(|pair| pair.split_once('=').unwrap()))
        .envs(more.iter().copied())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    toml::from_str(&String::from_utf8(output.stdout).unwrap()).unwrap()
}

/// What the image gives wins over a preset, so it gives nothing that one chooses.
#[test]
fn a_preset_has_its_effect_in_a_container() {
    let (plain, camera) =
        (of_a_container(&[]), of_a_container(&[("SELFSTREAM__PRESET", "camera")]));
    assert_eq!((plain.batch.pace, camera.batch.pace), (Pace::Fill, Pace::Fixed));
    let preset = Config::parse("preset = \"camera\"\nserver.listen = \"0.0.0.0:8080\"").unwrap();
    assert_eq!(camera, preset, "the address is all that a container differs by");
}

#[test]
fn an_unknown_librdkafka_property_ends_the_run_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    let text = format!(
        "kafka.properties.\"no.such.property\" = \"1\"\ncheckpoint.dir = \"{}\"\n\
         server.listen = \"127.0.0.1:0\"",
        dir.path().display()
    );
    std::fs::write(&path, text).unwrap();
    let output = selfstream(&["run", "--config", path.to_str().unwrap()]);
    assert!(!output.status.success());
    let message = stderr(&output);
    assert!(message.contains("no.such.property"), "{message}");
}

/// Every image told by what is the same image.
fn assert_predictions(lines: &str, n_images: usize) {
    assert_eq!(lines.lines().count(), n_images);
    for line in lines.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["image"].as_str().unwrap().starts_with(line["class"].as_str().unwrap()));
        assert!(line["knn"] == line["class"] && line["linear"].is_string());
    }
}

/// What `evaluate` reports of an encoder on training and test images.
fn evaluated([train, test]: [&str; 2], report: &Path, args: &[&str]) -> serde_json::Value {
    let of = ["evaluate", "--train", train, "--test", test, "--json", report.to_str().unwrap()];
    let output = selfstream(&[&of[..], args].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap()
}

#[test]
fn a_fixed_folder_is_learned_and_its_snapshot_embeds_and_evaluates() {
    let dir = tempfile::tempdir().unwrap();
    for index in 0..60u64 {
        let folder = dir.path().join(format!("images/class{}", index % 3));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{index}.png")), png(index % 3, 12)).unwrap();
    }
    let path = dir.path().join("config.toml");
    let text = format!(
        "source.kind = \"folder\"\nfolder.path = \"{dir}/images\"\nbatch.images = 20\n\
         input.side_px = 8\ncheckpoint.dir = \"{dir}/checkpoints\"\ngate.min_spread = 0.0\n\
         snapshot.dir = \"{dir}/snapshots\"\nserver.listen = \"127.0.0.1:0\"",
        dir = dir.path().display()
    );
    std::fs::write(&path, text).unwrap();
    let summary = dir.path().join("summary.json");
    let output = selfstream(&[
        "run",
        "--config",
        path.to_str().unwrap(),
        "--stop-after",
        "60",
        "--summary",
        summary.to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    let summary: serde_json::Value =
        serde_json::from_slice(&std::fs::read(summary).unwrap()).unwrap();
    assert_eq!(summary["images_learned"], 60);
    assert!(summary["versions_published"].as_u64().unwrap() >= 1);
    let seconds = |key: &str| summary[key].as_f64().unwrap();
    assert!(seconds("checkpoint_seconds") > 0.0 && seconds("checkpoint_write_seconds") > 0.0);
    assert!(seconds("checkpoint_seconds") < seconds("seconds"));

    let snapshots = dir.path().join("snapshots");
    let snapshots = snapshots.to_str().unwrap();
    let image = dir.path().join("images/class0/0.png");
    let output = selfstream(&["embed", image.to_str().unwrap(), "--snapshot", snapshots]);
    let line: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(line["version"], summary["version"]);
    let squares = line["embedding"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap().powi(2));
    assert!((squares.sum::<f64>() - 1.0).abs() < 1e-4);

    let images = dir.path().join("images");
    let images = images.to_str().unwrap();
    let report = dir.path().join("report.json");
    let page = dir.path().join("report.html");
    let predictions = dir.path().join("predictions.jsonl");
    let beside = ["--floors", "--supervised-steps", "2", "--over-time", "3", "--config"];
    let [config, page_path, predictions_path] =
        [&path, &page, &predictions].map(|path| path.to_str().unwrap());
    let outputs = ["--report", page_path, "--predictions", predictions_path];
    let snapshot = [&["--snapshot", snapshots], &outputs[..], &beside, &[config]].concat();
    let report = evaluated([images; 2], &report, &snapshot);
    // Every image of a class is the same image.
    assert_eq!(report["knn"], 1.0);
    assert_eq!((&report["images_train"], &report["images_test"]), (&60.into(), &60.into()));
    assert!(report["linear"].is_number() && report["version"] == summary["version"]);
    assert_eq!(report["confusion"], serde_json::json!([[20, 0, 0], [0, 20, 0], [0, 0, 20]]));
    assert_eq!(report["few_shot"].as_array().unwrap().len(), 3);
    let names = report["floors"].as_array().unwrap().iter().map(|floor| &floor["name"]);
    assert!(names.eq(["pixels", "untrained"]));
    // A floor that is evaluated by itself is the same encoder.
    let untrained = dir.path().join("untrained.json");
    let untrained = evaluated([images; 2], &untrained, &["--untrained", "--config", config]);
    assert_eq!(untrained["version"], report["floors"][1]["version"]);
    assert_eq!(untrained["linear"], report["floors"][1]["linear"]);
    assert_eq!(report["supervised"]["steps"], 2);
    assert_predictions(&std::fs::read_to_string(predictions).unwrap(), 60);
    let moments = report["over_time"].as_array().unwrap();
    assert_eq!(moments.last().unwrap()["version"], report["version"]);
    // The history that `run` kept beside the snapshots is on the page.
    let page = std::fs::read_to_string(page).unwrap();
    for text in ["The run", "Loss over steps", "60 images learned", "Supervised"] {
        assert!(page.contains(text), "no {text} on the page");
    }
}

/// Each image of `lines`, as `--predictions` writes them, with what its nearest neighbours say.
fn by_neighbours(lines: &str) -> Vec<String> {
    let told = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        format!("{} {}", line["image"], line["knn"])
    };
    lines.lines().map(told).collect()
}

/// Runs in `dir` on the images of its folder `train`, each step's encoder live at `address` and kept in `snapshots`.
fn learning(dir: &Path, address: &str) -> Program {
    let path = dir.join("config.toml");
    let text = format!(
        "source.kind = \"folder\"\nfolder.path = \"{dir}/train\"\nbatch.images = 20\n\
         batch.pace = \"fixed\"\ninput.side_px = 8\ncheckpoint.dir = \"{dir}/checkpoints\"\n\
         snapshot.dir = \"{dir}/snapshots\"\nsnapshot.every_steps = 1\ngate.min_spread = 0.0\n\
         gate.min_rank_share = 0.0\nserver.listen = \"{address}\"",
        dir = dir.display()
    );
    std::fs::write(&path, text).unwrap();
    Program::start(&["run", "--config", path.to_str().unwrap()], &dir.join("log"))
}

#[test]
fn a_server_and_its_snapshot_are_one_encoder_and_pixels_are_the_floor_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    // The classes mean nothing, so that which neighbours an image has decides of each.
    for index in 0..90u64 {
        let set = if index < 60 { "train" } else { "test" };
        let folder = dir.path().join(format!("{set}/class{}", index % 3));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{index}.png")), png(index, 12)).unwrap();
    }
    let address = format!("127.0.0.1:{}", free_port());
    let url = format!("http://{address}");
    let mut program = learning(dir.path(), &address);
    wait_for("an encoder to serve", || {
        program.assert_alive();
        let ready = format!("{url}/readyz");
        let status =
            Command::new("curl").args(["-sf", "-o", "/dev/null", &ready]).status().unwrap();
        status.success().then_some(())
    });
    let (train, test) = (place("train"), place("test"));
    let evaluate = |name: &str, encoder: &[&str]| {
        let predictions = place(&format!("{name}.jsonl"));
        let args = [encoder, &["--predictions", &predictions]].concat();
        let report = evaluated([&train, &test], &dir.path().join(format!("{name}.json")), &args);
        (report, std::fs::read_to_string(predictions).unwrap())
    };
    let (live, told_live) = evaluate("live", &["--url", &url]);
    assert!(program.terminate().success(), "{}", program.log());

    let version = live["version"].as_str().unwrap();
    let snapshot = place(&format!("snapshots/{version}.safetensors"));
    let (kept, told) = evaluate("kept", &["--snapshot", &snapshot, "--floors"]);
    for figure in ["version", "knn", "confusion", "dim", "images_train", "images_test"] {
        assert_eq!(live[figure], kept[figure], "{figure}");
    }
    // Queries come back at unit length, and rounded once more by it.
    let ranks = [&live, &kept].map(|report| report["rankme"].as_f64().unwrap());
    assert!((ranks[0] / ranks[1] - 1.0).abs() < 1e-3, "{ranks:?}");
    assert_eq!(by_neighbours(&told_live), by_neighbours(&told));

    let (pixels, told_by_pixels) = evaluate("pixels", &["--pixels"]);
    let floor = &kept["floors"][0];
    assert_eq!(floor["name"], "pixels");
    for figure in ["version", "knn", "linear"] {
        assert_eq!(pixels[figure], floor[figure], "{figure}");
    }
    assert!((0.0..=1.0).contains(&pixels["knn"].as_f64().unwrap()), "{pixels}");
    assert_ne!(by_neighbours(&told_by_pixels), by_neighbours(&told), "they are no encoder");
}
