"""One row: selfstream learns from a real Kafka topic for the row's time, then tells images it never saw."""

import copy
import hashlib
import json
import signal
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

import streams

ROOT = Path(__file__).resolve().parents[2]


class Broker:
    """A Kafka broker for as long as the context lasts; a topic of it per run."""

    def __init__(self, folder):
        self.folder = folder

    def call(self, *arguments):
        command = [ROOT / "scripts/kafka/broker", *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    def __enter__(self):
        self.address = self.call("start", self.folder).split()[-1]
        return self

    def __exit__(self, *_):
        self.call("stop", self.folder)


class Data:
    """The collections, and the tars that are made of them, kept in `folder`."""

    def __init__(self, images, folder):
        self.images, self.folder, self.opened = Path(images), Path(folder), {}
        self.folder.mkdir(parents=True, exist_ok=True)

    def files(self, protocol):
        names = ("pacs128-train.tar", "pacs128-test.tar") if protocol.startswith("C") else (
            "cifar10-train-20k.tar.xz", "cifar10-test-4k.tar.xz")
        return [self.images / name for name in names]

    def open(self, path):
        if path not in self.opened:
            self.opened[path] = streams.Images(path)
        return self.opened[path]

    def tar(self, name, members):
        """The tar called `name`; `members` is called to make it."""
        path = self.folder / f"{name}.tar"
        if not path.exists():
            streams.write(path.with_suffix(".new"), members())
            path.with_suffix(".new").rename(path)
        return path

    def collections(self, row, seed):
        """Tars to stream, to compare with, and to tell."""
        train, test = self.files(row.protocol)
        images = self.open(train)
        streamed, told = streams.split(images.names(), row.told_on)
        stream = self.tar(f"{row.protocol} {row.told_on} {seed}",
                          lambda: streams.members(row.protocol, images, streamed, seed))
        if told is None:
            return stream, train, test
        pairs = {"reference": streamed, "held-out": told}
        made = {name: self.tar(f"CIFAR {name}", lambda names=names: (
            (n, images.bytes[n]) for n in names)) for name, names in pairs.items()}
        return stream, made["reference"], made["held-out"]


def toml(sections):
    lines = [f"{key} = {json.dumps(value)}" for key, value in sections.items() if not isinstance(value, dict)]
    for name, keys in sections.items():
        if not isinstance(keys, dict):
            continue
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    return "\n".join(lines) + "\n"


def settings(row, seed, broker, topic, folder):
    merged = copy.deepcopy(row.settings)
    ours = {
        "run": {"seed": seed},
        "kafka": {"brokers": broker.address, "topics": [topic], "group": topic},
        "snapshot": {"every": f"{row.seconds // 20}s", "every_steps": 1_000_000, "keep": 100,
                     "dir": str(folder / "snapshots")},
        "checkpoint": {"dir": str(folder / "checkpoints")},
        "server": {"listen": "127.0.0.1:0"},
    }
    for section, keys in ours.items():
        merged.setdefault(section, {}).update(keys)
    return toml(merged)


def learn(program, row, seed, stream, broker, folder):
    """Runs the learner beside a producer that spreads the stream evenly over the row's time."""
    topic = f"learning-{hashlib.sha256(f'{time.time_ns()}'.encode()).hexdigest()[:12]}"
    config, summary = folder / "run.toml", folder / "summary.json"
    config.write_text(settings(row, seed, broker, topic, folder))
    with tarfile.open(stream) as tar:
        rate = sum(1 for _ in tar) / row.seconds
    produce = [program, "produce", "--brokers", broker.address, "--topic", topic, "--rate", f"{rate}",
               "--labels-from-folders", str(stream)]
    with open(folder / "run.log", "w") as log:
        began = time.time()
        producer = subprocess.Popen(produce, stdout=log, stderr=log)
        learner = subprocess.Popen([program, "run", "--config", config, "--summary", summary],
                                   stdout=log, stderr=log)
        try:
            status = learner.wait(row.seconds)
            raise RuntimeError(f"the learner ended by itself with {status}: see {log.name}")
        except subprocess.TimeoutExpired:
            learner.send_signal(signal.SIGTERM)
            if learner.wait(120) != 0:
                raise RuntimeError(f"the learner ended with {learner.returncode}: see {log.name}")
        finally:
            for process in (producer, learner):
                if process.poll() is None:
                    process.kill()
                    process.wait()
    return json.loads(summary.read_text()), began


def hexadecimal(right):
    """Which images were told right, as a number whose first bit is the first image."""
    bits = "".join("1" if told else "0" for told in right)
    return f"{int('1' + bits, 2):x}"  # a one in front keeps leading zeros


def hits(lines, probe):
    return hexadecimal(line[probe] == line["class"] for line in lines)


def evaluate(program, encoder, reference, told, folder, beside=()):
    """The report and the predictions of what the arguments `encoder` name."""
    report, predictions = folder / "report.json", folder / "predictions.jsonl"
    command = [program, "evaluate", "--train", reference, "--test", told, *encoder,
               "--json", report, "--predictions", predictions, *beside]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in predictions.read_text().splitlines()]
    return json.loads(report.read_text()), lines


def snapshots_over_time(folder, began, row, parts):
    """The snapshot that served at the end of each of `parts` equal parts of the run."""
    lines = (folder / "snapshots/history.jsonl").read_text().splitlines()
    published = [line for line in map(json.loads, lines) if line.get("version")]
    ends = [began + row.seconds * (part + 1) / parts for part in range(parts)]
    versions = []
    for end in ends[:-1]:
        before = [line["version"] for line in published if line["time_ms"] / 1e3 <= end]
        if not before:
            raise RuntimeError("no snapshot was published in a part of the run")
        versions.append(before[-1])
    versions.append(published[-1]["version"])
    return [folder / "snapshots" / f"{version}.safetensors" for version in versions]


def forgetting(program, row, seed, data, reference, told, folder, began):
    """Accuracy of each pair of classes after each pair has been learned (Chaudhry et al. 2018, arXiv
    1801.10112, equation 3): how far a pair has fallen from its best."""
    names = data.open(data.files(row.protocol)[0]).names()
    pairs = streams.pairs_of_classes(names, seed)
    table = []
    for snapshot in snapshots_over_time(folder, began, row, len(pairs)):
        _, lines = evaluate(program, ["--snapshot", snapshot], reference, told, folder)
        of = lambda pair: [line["knn"] == line["class"] for line in lines if line["class"] in pair]
        table.append([float(np.mean(of(pair))) for pair in pairs])
    table = np.array(table)  # [after pair, of pair]
    learned = [table[after, :after + 1].mean() for after in range(len(pairs))]
    fallen = [table[pair:-1, pair].max() - table[-1, pair] for pair in range(len(pairs) - 1)]
    return {"average": float(np.mean(learned)), "forgetting": float(np.mean(fallen))}


def by_domain(program, row, data, folder, began):
    """Leave-one-out kNN over all images of a domain, for each domain, after each domain's part."""
    files = {}
    for path in data.files(row.protocol):
        images = data.open(path)
        for name in images.names():
            place = folder / "images" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(images.bytes[name])
            files.setdefault(name.split("/")[0], []).append(place)
    domains = list(files)
    table = []
    for snapshot in snapshots_over_time(folder, began, row, len(domains)):
        right = [leave_one_out(program, snapshot, files[domain]) for domain in domains]
        table.append([float(images.mean()) for images in right])
    return {"domains": domains, "knn": table, "hits": [hexadecimal(images) for images in right]}


def leave_one_out(program, snapshot, files, neighbours=20, temperature=0.1):
    """Which of `files` are told right by the others, `[files]`."""
    command = [program, "embed", "--snapshot", snapshot, *files]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    x = np.array([json.loads(line)["embedding"] for line in out.splitlines()])
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    classes, labels = np.unique([streams.label(str(file)) for file in files], return_inverse=True)
    similarity = x @ x.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argsort(-similarity, axis=1)[:, :neighbours]
    votes = np.zeros((len(files), len(classes)))
    for column in nearest.T:
        weights = np.exp(similarity[np.arange(len(files)), column] / temperature)
        votes[np.arange(len(files)), labels[column]] += weights
    return votes.argmax(1) == labels


def told_figures(report, lines):
    return {"knn": report["knn"], "linear": report["linear"], "rankme": report["rankme"],
            "knn_hits": hits(lines, "knn"), "linear_hits": hits(lines, "linear")}


def without_stream(program, row, seed, data, encoder, beside=()):
    """The report and the predictions of `encoder`, which needs no stream."""
    _, reference, told = data.collections(row, seed)
    with tempfile.TemporaryDirectory(prefix="learning-") as folder:
        folder = Path(folder)
        config = folder / "run.toml"
        config.write_text(toml({"run": {"seed": seed}, **row.settings}))
        return evaluate(program, [f"--{encoder}", "--config", config], reference, told, folder, beside)


def floor(program, row, seed, data):
    """What raw pixels or an encoder that has not learned come to."""
    report, lines = without_stream(program, row, seed, data, row.side)
    return {"steps": 0, "images_learned": 0, **told_figures(report, lines)}


def supervised(program, row, seed, data):
    """What the encoder comes to that is trained with the labels of the images that others are told by."""
    report, _ = without_stream(program, row, seed, data, "untrained", ["--supervised", str(row.seconds)])
    return {key: report["supervised"][key] for key in ("steps", "knn", "linear", "accuracy")}


def selfstream(program, row, seed, data, broker):
    """The measurement of one row and seed."""
    stream, reference, told = data.collections(row, seed)
    with tempfile.TemporaryDirectory(prefix="learning-") as folder:
        folder = Path(folder)
        summary, began = learn(program, row, seed, stream, broker, folder)
        encoder = ["--snapshot", folder / "snapshots"]
        report, lines = evaluate(program, encoder, reference, told, folder)
        found = {"steps": summary["steps"], "images_learned": summary["images_learned"],
                 **told_figures(report, lines)}
        if row.protocol == "B":
            found["classes"] = forgetting(program, row, seed, data, reference, told, folder, began)
        if row.protocol.startswith("C"):
            found["domains"] = by_domain(program, row, data, folder, began)
        return found
