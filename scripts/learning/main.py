"""Runs the rows that are not measured yet, one at a time, and writes docs/LEARNING.md."""

import argparse
import datetime
import fnmatch
import hashlib
import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path

import measure
import report
from rows import ROWS

KEPT = measure.ROOT / "docs/learning/rows.jsonl"


def key(row):
    """Names a row with its settings."""
    text = json.dumps(asdict(row), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read():
    return [json.loads(line) for line in KEPT.read_text().splitlines()] if KEPT.exists() else []


def measured():
    current = {key(row) for row in ROWS}
    return [line for line in read() if line["key"] in current]


def processor():
    """Its name with family and model, since virtual machines call several kinds by one name."""
    fields = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    name, family, model = (fields.get(key, "?") for key in ("model name", "cpu family", "model"))
    return f"{name}, family {family} model {model}, {len(os.sched_getaffinity(0))} cores"


def commit():
    command = ["git", "-C", measure.ROOT, "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.strip()


def pytorch(row, seed, data):
    install = [measure.ROOT / "scripts/bench-learning", "--install-peer"]
    python = subprocess.run(install, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]
    stream, reference, told = data.collections(row, seed)
    peer = [python, measure.ROOT / "scripts/learning/peer.py", stream, reference, told,
            "--seconds", str(row.seconds), "--seed", str(seed)]
    for name, value in row.settings.items():
        peer += [f"--{name}", str(value)]
    out = subprocess.run(peer, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(prog="bench-learning")
    parser.add_argument("--target", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--rows", nargs="+", metavar="PATTERN", default=["*"],
                        help="rows whose name matches one of these, such as 'A *'")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="SEED", default=[0, 1, 2])
    parser.add_argument("--list", action="store_true", help="list the rows and what is measured")
    parser.add_argument("--table", action="store_true", help="only write the tables anew")
    args = parser.parse_args()
    chosen = [row for row in ROWS if any(fnmatch.fnmatch(row.name, p) for p in args.rows)]
    done = {(line["key"], line["seed"]) for line in measured()}
    if args.list:
        for row in chosen:
            seeds = [seed for seed in args.seeds if (key(row), seed) in done]
            print(f"{row.name}: {row.seconds} s, protocol {row.protocol}, measured seeds {seeds}")
        current = measured()
        for line in read():
            if line not in current:
                print(f"{line['row']}, seed {line['seed']}: kept under settings that no row has")
        return
    due = [(row, seed) for seed in args.seeds for row in chosen
           if (key(row), seed) not in done and not args.table]
    if due:
        data = measure.Data(os.environ["SELFSTREAM_TEST_IMAGES"], args.target / "tmp/learning-streams")
        with measure.Broker(args.target / "tmp/learning-broker") as broker:
            for row, seed in due:
                print(f"{row.name}, seed {seed}: {row.seconds} s ...", flush=True)
                program = args.target / "release/selfstream"
                if row.side == "pytorch":
                    found = pytorch(row, seed, data)
                elif row.side == "selfstream":
                    found = measure.selfstream(program, row, seed, data, broker)
                elif row.side == "supervised":
                    found = measure.supervised(program, row, seed, data)
                else:
                    found = measure.floor(program, row, seed, data)
                line = {"row": row.name, "key": key(row), "seed": seed, **found,
                        "date": datetime.date.today().isoformat(), "commit": commit(),
                        "processor": processor()}
                KEPT.parent.mkdir(exist_ok=True)
                with open(KEPT, "a") as kept:
                    kept.write(json.dumps(line) + "\n")
                print(f"    kNN {found['knn']:.4f}, linear {found['linear']:.4f}", flush=True)
    report.write(measured())


if __name__ == "__main__":
    main()
