//! Labels on a topic: what they say of the encoder, while it learns and after.

use crate::harness::{
    Message, Program, brokers, create_topic, produce, small_config, unique, wait_for,
};
use crate::scrape::{get, metric};
use selfstream::learner::history;
use std::path::Path;
use std::process::Command;

const CLASSES: [&str; 3] = ["red", "green", "blue"];
/// Labelled images of each class.
const SHADES: u8 = 40;

/// A PNG of one colour: a shade of the class.
fn plain(class: usize, shade: u8) -> Vec<u8> {
    let mut colour = [20; 3];
    colour[class] = 150 + shade;
    let mut bytes = std::io::Cursor::new(vec![]);
    let image = image::RgbImage::from_pixel(12, 12, image::Rgb(colour));
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// A run that looks at labels; returns its address, too.
fn start(brokers: &str, topic: &str, dir: &Path) -> (Program, String) {
    let config = dir.join("config.toml");
    let text = small_config(brokers, topic, dir).replace(
        "snapshot.every_steps = 20",
        &format!(
            "snapshot.every_steps = 5\nsnapshot.dir = \"{}/snapshots\"\nprequential.enabled = true",
            dir.display()
        ),
    );
    let address = text.split("listen = \"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    std::fs::write(&config, &text).unwrap();
    let args = ["run", "--config", config.to_str().unwrap()];
    (Program::start(&args, &dir.join("log")), address)
}

/// Runs the program to its end.
fn selfstream(args: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_selfstream")).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn labelled_records_are_told_as_they_arrive_and_how_well_is_shown_and_kept() {
    let Some(brokers) = brokers() else { return };
    let topic = unique("prequential");
    create_topic(&brokers, &topic, 1);
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (mut program, address) = start(&brokers, &topic, dir.path());
    // Nobody is asked to tell these, which have no label.
    let unlabelled = (0..60).flat_map(|shade| [0, 1, 2].map(|class| plain(class, shade)));
    let message = |value| Message { partition: 0, value, content_type: None };
    produce(&brokers, &topic, unlabelled.map(message));
    wait_for("an encoder to serve", || {
        program.assert_alive();
        get(&format!("http://{address}/readyz"))
    });

    for (class, name) in CLASSES.iter().enumerate() {
        let folder = dir.path().join("labelled").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        for shade in 0..SHADES {
            std::fs::write(folder.join(format!("{shade}.png")), plain(class, shade)).unwrap();
        }
    }
    let labelled = place("labelled");
    let to = ["--brokers", &brokers, "--topic", &topic, "--shuffle", "1", "--labels-from-folders"];
    selfstream(&[&["produce", &labelled], &to[..]].concat());
    // The first has nothing to be compared with.
    let n_told = CLASSES.len() * usize::from(SHADES) - 1;
    let metrics = format!("http://{address}/metrics");
    wait_for("all labelled images to be told", || {
        program.assert_alive();
        let n_images = metric(&get(&metrics)?, "selfstream_prequential_images_total");
        (n_images == Some(n_told as f64)).then_some(())
    });
    let shown = metric(&get(&metrics).unwrap(), "selfstream_prequential_knn_ratio").unwrap();
    println!("prequential kNN {shown:.3} over {n_told} images");
    // Chance is a third; .6 is more than six standard errors above it.
    assert!((0.6..=1.0).contains(&shown), "{shown}");
    assert!(program.terminate().success(), "{}", program.log());

    let snapshots = place("snapshots");
    let history = history::read(&Path::new(&snapshots).join(history::FILE_NAME)).unwrap();
    assert_eq!(history[0].accuracy, None, "an image without a label was told");
    let kept = history.last().unwrap().accuracy.unwrap();
    // The last image is counted just before its answer is.
    assert!((kept - shown).abs() <= 1.0 / n_told as f64, "{kept} was kept, {shown} shown");
    let page = place("page.html");
    let images = ["--train", &labelled, "--test", &labelled];
    let of = ["--snapshot", &snapshots, "--report", &page];
    selfstream(&[&["evaluate"], &images[..], &of].concat());
    assert!(std::fs::read_to_string(page).unwrap().contains("Prequential kNN accuracy"));
}
