"""The phases of bench-serving: two runs of selfstream, and requests to them.

The first run learns from the topic and, at pace "fill", goes on from replay; phases without and with
requests alternate in it. The second begins from the first one's checkpoint on a topic without messages,
so that it serves the same encoder and learns nothing. Requests leave on a fixed schedule, one image each on
a kept connection; a time counts from when its request was due, so that waiting behind a slow one counts too.
"""

import argparse
import contextlib
import http.client
import json
import os
import queue
import re
import signal
import statistics
import subprocess
import tarfile
import threading
import time
from pathlib import Path

SUFFIXES = (".jpg", ".jpeg", ".png")
# Connections, so that a slow answer does not hold up the next request.
CONNECTIONS = 8
READY_SECONDS = 300


def some_images(path, n):
    """The first `n` images of a folder or tar, by name."""
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        return [file.read_bytes() for file in files[:n]]
    with tarfile.open(path) as archive:
        members = sorted((m for m in archive if m.name.lower().endswith(SUFFIXES)), key=lambda m: m.name)
        return [archive.extractfile(member).read() for member in members[:n]]


class Server:
    """A running selfstream."""

    def __init__(self, binary, brokers, scratch, topic, pace, config):
        self.log = open(Path(scratch) / f"{topic}.log", "wb")
        text = Path(config).read_text(encoding="utf-8") if config else ""
        (Path(scratch) / "config.toml").write_text(text, encoding="utf-8")
        settings = {"KAFKA__BROKERS": brokers, "KAFKA__TOPICS": f'["{topic}"]', "BATCH__PACE": pace,
                    "CHECKPOINT__DIR": str(Path(scratch) / "checkpoints"), "SERVER__LISTEN": "127.0.0.1:0"}
        environment = {**os.environ, **{f"SELFSTREAM__{key}": value for key, value in settings.items()}}
        self.process = subprocess.Popen([binary, "run", "--config", str(Path(scratch) / "config.toml")],
                                        env=environment, stderr=self.log, stdout=self.log)
        self.port = self.wait(self.find_port)
        self.wait(lambda: self.get("/readyz")[0] == 200)

    def wait(self, condition):
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError, http.client.HTTPException):
                if value := condition():
                    return value
            time.sleep(0.2)
        raise SystemExit(f"selfstream is not ready:\n{Path(self.log.name).read_text(errors='replace')[-3000:]}")

    def find_port(self):
        for line in Path(self.log.name).read_text(errors="replace").splitlines():
            if "listening" in line and (found := re.search(r"127\.0\.0\.1:(\d+)", line)):
                return int(found[1])
        return None

    def get(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def steps(self):
        lines = self.get("/metrics")[1].splitlines()
        return next((float(line.split()[1]) for line in lines if line.startswith("selfstream_steps_total")), 0.0)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=120)
        self.log.close()


def ask(port, images, rate, seconds):
    """Sends requests at `rate` for so long; the milliseconds of each, or None where it failed."""
    due, times = queue.SimpleQueue(), []

    def client():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while (job := due.get()) is not None:
            at, image = job
            try:
                connection.request("POST", "/v1/embeddings", image, {"content-type": "application/octet-stream"})
                answer = connection.getresponse()
                answer.read()
                times.append((time.perf_counter() - at) * 1e3 if answer.status == 200 else None)
            except (OSError, http.client.HTTPException):
                times.append(None)
                connection.close()

    clients = [threading.Thread(target=client) for _ in range(CONNECTIONS)]
    for one in clients:
        one.start()
    began = time.perf_counter()
    for index in range(int(rate * seconds)):
        at = began + index / rate
        time.sleep(max(0.0, at - time.perf_counter()))
        due.put((at, images[index % len(images)]))
    for _ in clients:
        due.put(None)
    for one in clients:
        one.join()
    return times


def percentiles(times):
    answered = sorted(time for time in times if time is not None)
    if len(answered) < 2:
        raise SystemExit("the requests failed")
    cuts = statistics.quantiles(answered, n=100, method="inclusive")
    return {"p50_ms": cuts[49], "p99_ms": cuts[98], "requests": len(times), "failed": len(times) - len(answered)}


def steps_a_second(server, work):
    """What `work` returns, and how fast steps were taken meanwhile."""
    before, began = server.steps(), time.perf_counter()
    result = work()
    return result, (server.steps() - before) / (time.perf_counter() - began)


def measure(arguments):
    images = some_images(arguments.images, 64)
    rounds = {"alone": [], "asked": []}
    in_training = []
    server = Server(arguments.binary, arguments.brokers, arguments.scratch, "images", "fill", arguments.config)
    try:
        ask(server.port, images, arguments.rate, 2)
        for _ in range(arguments.rounds):
            _, rate = steps_a_second(server, lambda: time.sleep(arguments.seconds))
            rounds["alone"].append(rate)
            times, rate = steps_a_second(
                server, lambda: ask(server.port, images, arguments.rate, arguments.seconds))
            rounds["asked"].append(rate)
            in_training += times
    finally:
        server.stop()
    server = Server(arguments.binary, arguments.brokers, arguments.scratch, "nothing", "fixed", arguments.config)
    try:
        ask(server.port, images, arguments.rate, 2)
        idle = ask(server.port, images, arguments.rate, arguments.seconds * arguments.rounds)
        learned = server.steps()
    finally:
        server.stop()
    return rounds, in_training, idle, learned


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("binary", "images", "brokers", "scratch"):
        parser.add_argument(name)
    parser.add_argument("--config", metavar="FILE", help="settings to add")
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=30.0, help="of a phase")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    rounds, in_training, idle, _ = measure(arguments)
    alone, asked = (statistics.median(rounds[name]) for name in ("alone", "asked"))
    result = {"rate": arguments.rate, "steps_a_second": {"alone": alone, "asked": asked, "rounds": rounds},
              "lost": 1 - asked / alone, "idle": percentiles(idle), "training": percentiles(in_training)}
    print(f"{arguments.rate:g} one-image requests a second, {arguments.rounds} rounds of {arguments.seconds:g} s, "
          f"{os.cpu_count()} cores\n")
    print("| | steps a second | p50, ms | p99, ms | requests | failed |")
    print("|---|---|---|---|---|---|")
    print(f"| learning alone | {alone:.3f} | | | | |")
    for name, rate, of in (("learning and asked", f"{asked:.3f}", result["training"]),
                           ("asked alone", "", result["idle"])):
        print(f"| {name} | {rate} | {of['p50_ms']:.2f} | {of['p99_ms']:.2f} | {of['requests']} | {of['failed']} |")
    print(f"\ntraining lost {100 * result['lost']:.1f} %; "
          f"p99 is {result['training']['p99_ms'] / result['idle']['p99_ms']:.2f} times that of an idle server")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as out:
            json.dump(result, out, indent=1)


if __name__ == "__main__":
    main()
