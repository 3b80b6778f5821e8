"""kNN and linear probe of encoders that learned in f32 and in bf16, at equal steps."""

import argparse
import json
import os
import statistics
import subprocess
import tarfile
import tempfile
from pathlib import Path

PRECISIONS = ("f32", "bf16")
SETTINGS = """
[run]
seed = {seed}
precision = "{precision}"
[input]
side_px = 32
[source]
kind = "folder"
[folder]
path = "{train}"
shuffle_seed = {seed}
[batch]
pace = "fixed"
steps_per_batch = {steps}
[checkpoint]
dir = "{folder}/checkpoints"
[snapshot]
dir = "{folder}/snapshots"
[server]
listen = "127.0.0.1:0"
"""


def measure(program, images, seed, precision, steps):
    """The scores of one encoder, and the steps it took."""
    train, test = images / "cifar10-train-20k.tar.xz", images / "cifar10-test-4k.tar.xz"
    with tempfile.TemporaryDirectory(prefix="precision-") as folder:
        config, summary = Path(folder) / "run.toml", Path(folder) / "summary.json"
        config.write_text(SETTINGS.format(**locals()))
        report = Path(folder) / "report.json"
        with tarfile.open(train) as tar:
            n_images = sum(member.isfile() for member in tar)
        for command in (["run", "--config", config, "--summary", summary, "--stop-after", str(n_images)],
                        ["evaluate", "--train", train, "--test", test,
                         "--snapshot", f"{folder}/snapshots", "--json", report]):
            done = subprocess.run([program, *command], capture_output=True, text=True)
            if done.returncode != 0:
                raise SystemExit(f"{command[0]} failed: {done.stderr[-2000:]}")
        told = json.loads(report.read_text())
        return {"seed": seed, "precision": precision, "steps": json.loads(summary.read_text())["steps"],
                "knn": told["knn"], "linear": told["linear"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps-per-batch", type=int, default=2)
    parser.add_argument("--json", metavar="FILE", help="write the rows too")
    arguments = parser.parse_args()
    images = Path(os.environ["SELFSTREAM_TEST_IMAGES"]).resolve()
    rows = []
    print("| seed | precision | steps | kNN | linear |\n|---|---|---|---|---|")
    for seed in range(arguments.seeds):
        for precision in PRECISIONS:
            row = measure(arguments.program, images, seed, precision, arguments.steps_per_batch)
            rows.append(row)
            print("| {seed} | {precision} | {steps} | {knn:.4f} | {linear:.4f} |".format(**row), flush=True)
            if arguments.json:
                Path(arguments.json).write_text(json.dumps(rows, indent=1))
    for score in ("knn", "linear"):
        of = {p: [row[score] for row in rows if row["precision"] == p] for p in PRECISIONS}
        differences = [bf16 - f32 for f32, bf16 in zip(of["f32"], of["bf16"])]
        print(f"{score}: bf16 less f32 {statistics.mean(differences):+.4f} in the mean of {len(differences)} seeds")


if __name__ == "__main__":
    main()
