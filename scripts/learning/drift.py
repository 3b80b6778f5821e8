"""How soon changes of what arrives are told, and how many are told where nothing changes."""

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import measure

DOMAINS = ["photo", "art_painting", "cartoon", "sketch"]
# All of them, in no order.
ORDERS = random.Random(0).sample(list(itertools.permutations(DOMAINS)), 24)
SETTINGS = {
    "input": {"side_px": 32},
    "batch": {"pace": "fixed"},
    # Every image is looked at, so that images count and not time; the pin moves while changes are looked for.
    "drift": {"images_per_second": 100_000, "repin_after": "30s"},
    "snapshot": {"every": "10s"},
}


class Told(list):
    """Offsets at which a change was told."""

    passed_over = 0


def watch(program, broker, stream, n_images, folder, rate=None):
    """Learns `stream` to its end in `folder`, going on from the checkpoint there, and what was told meanwhile;
    without a rate of arrival nothing is watched."""
    topic = f"drift-{time.time_ns()}"
    config, journal, log = folder / "run.toml", folder / "journal.jsonl", folder / "run.log"
    journal.unlink(missing_ok=True)
    ours = {
        "run": {"log": "json", "journal": str(journal)},
        "kafka": {"brokers": broker.address, "topics": [topic], "group": topic},
        "checkpoint": {"dir": str(folder / "checkpoints")},
        "server": {"listen": "127.0.0.1:0"},
        "snapshot": {**SETTINGS["snapshot"], "dir": str(folder / "snapshots")},
        "drift": {**SETTINGS["drift"], "enabled": rate is not None},
    }
    config.write_text(measure.toml({**SETTINGS, **ours}))
    produce = [program, "produce", "--brokers", broker.address, "--topic", topic, str(stream)]
    if rate:
        produce += ["--rate", str(rate)]
    environment = {**os.environ, "RUST_LOG": "info,selfstream::drift=debug"}
    with open(log, "w") as out, open(folder / "produce.log", "w") as produced:
        producer = subprocess.Popen(produce, stdout=produced, stderr=produced)
        learner = subprocess.Popen([program, "run", "--config", config], stdout=out, stderr=out, env=environment)
        try:
            while n_done(journal) < n_images:
                if learner.poll() is not None or producer.poll():
                    raise RuntimeError(f"ended early: see {log.read_text()[-2000:]}")
                time.sleep(0.5)
            learner.send_signal(signal.SIGTERM)
            if learner.wait(120) != 0:
                raise RuntimeError(f"ended with {learner.returncode}: {log.read_text()[-2000:]}")
        finally:
            for process in (producer, learner):
                if process.poll() is None:
                    process.kill()
                    process.wait()
    return heard(log)


def n_done(journal):
    """Images that the journal names; its last line may be half written."""
    lines = journal.read_text().split("\n")[:-1] if journal.exists() else []
    return sum(len(names) for line in map(json.loads, lines) for names in line.values() if isinstance(names, list))


def heard(log):
    told = Told()
    for line in map(json.loads, log.read_text().splitlines()):
        if "what arrives has changed" in json.dumps(line):
            fields = line.get("fields", line)
            told.append(int(fields["origin"].rsplit("@", 1)[1]))
        told.passed_over += "passed over" in json.dumps(line)
    return told


def domains_in_order(data, order):
    """`(name, bytes)` of all of PACS, a domain after another, and where each but the first begins."""
    images = {}
    for path in data.files("C"):
        opened = data.open(path)
        images.update((name, opened.bytes[name]) for name in opened.names())
    rng = random.Random(order)
    domains = ORDERS[order % len(ORDERS)]
    names, changes = [], []
    for domain in domains:
        changes.append(len(names))
        of_domain = sorted(name for name in images if name.startswith(f"{domain}/"))
        names += rng.sample(of_domain, len(of_domain))
    return domains, [(name, images[name]) for name in names], changes[1:]


def lateness(told, changes, n_images):
    """Of each change how many images later it was told or None, and how much else was told."""
    late, rest = [], list(told)
    for begin, end in zip(changes, [*changes[1:], n_images]):
        first = next((at for at in rest if begin <= at < end), None)
        late.append(None if first is None else first - begin)
        if first is not None:
            rest.remove(first)
    return late, rest


def main():
    parser = argparse.ArgumentParser(prog="bench-drift")
    parser.add_argument("program", help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--orders", type=int, default=5)
    parser.add_argument("--shuffles", type=int, default=10)
    parser.add_argument("--rate", type=float, default=100.0, help="images a second that arrive (100)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    scratch = args.target / "tmp"
    data = measure.Data(os.environ["SELFSTREAM_TEST_IMAGES"], scratch / "drift-streams")
    cifar = data.files("A")[0]
    found = {"rate": args.rate, "orders": [], "shuffles": []}
    with measure.Broker(scratch / "drift-broker") as broker, tempfile.TemporaryDirectory() as begun:
        begun = Path(begun)
        n_cifar = len(data.open(cifar).names())
        watch(args.program, broker, shuffled(data, cifar, "first"), n_cifar, begun)

        def go_on(stream, n_images):
            with tempfile.TemporaryDirectory() as folder:
                shutil.copytree(begun / "checkpoints", Path(folder) / "checkpoints")
                return watch(args.program, broker, stream, n_images, Path(folder), args.rate)

        for order in range(args.orders):
            domains, members, changes = domains_in_order(data, order)
            told = go_on(data.tar(f"PACS order {order}", lambda: iter(members)), len(members))
            late, false = lateness(told, changes, len(members))
            found["orders"].append({"domains": domains, "late": late, "else": false,
                                    "passed_over": told.passed_over})
            print(f"{' > '.join(domains)}: told {late} images late; else at {false}; "
                  f"{told.passed_over} passed over", flush=True)
        for seed in range(args.shuffles):
            told = go_on(shuffled(data, cifar, seed), n_cifar)
            found["shuffles"].append({"told": list(told), "passed_over": told.passed_over})
            print(f"CIFAR-10, shuffle {seed}: told at {list(told)}; {told.passed_over} passed over", flush=True)
    late = [late for order in found["orders"] for late in order["late"]]
    if late and None not in late:
        print(f"{len(late)} changes: told {statistics.median(late)} images late in the median, {max(late)} at most")
    else:
        print(f"{late.count(None)} of {len(late)} changes were not told")
    print(f"{sum(len(s['told']) for s in found['shuffles'])} told of {args.shuffles} shuffles of {n_cifar} images")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def shuffled(data, path, seed):
    images = data.open(path)
    order = random.Random(f"shuffle {seed}").sample(images.names(), len(images.names()))
    return data.tar(f"CIFAR shuffled {seed}", lambda: ((name, images.bytes[name]) for name in order))


if __name__ == "__main__":
    main()
