"""Writes docs/LEARNING.md from the measured rows.

Differences are means over paired seeds; their intervals are a paired bootstrap over test images and seeds:
both sides of a difference are told on the same images, and each draw takes the same images and seeds of
both.
"""

import collections
import statistics
import string

import numpy as np

import measure
import streams
from rows import ROWS

PAGE = measure.ROOT / "docs/LEARNING.md"
DRAWS = 10_000

# Row, what it is set beside, which probe.
DIFFERENCES = [
    *((f"A {kind}{longer}", f"A {kind} of PyTorch{longer}", "knn")
      for longer in ("", ", 10 minutes") for kind in ("simclr", "moco", "byol")),
    ("A simclr", "A simclr of PyTorch, views of half the side", "knn"),
    ("A sigmoid", "A simclr", "knn"),
    ("A sigmoid, no declared end", "A sigmoid", "knn"),
    *((f"A {kind}{longer}", "A pixels", "knn")
      for longer in ("", ", 10 minutes") for kind in ("sigmoid", "instance", "vicreg", "emp")),
    *((f"A rotation{longer}", "A untrained", "knn") for longer in ("", ", 10 minutes")),
    *((f"B replay {policy}{budget}", "B replay none", "knn")
      for budget in ("", ", 2 MB") for policy in ("fifo", "reservoir", "min-red", "centroid")),
    ("B replay reservoir, aligned", "B replay reservoir", "knn"),
    ("C drift", "C shuffled", "domains"),
    ("D bursts", "A sigmoid", "knn"),
    ("D bursts, preset camera", "A sigmoid", "knn"),
    ("E dirty", "A sigmoid", "knn"),
]


def bits(hexadecimal):
    return np.array([bit == "1" for bit in f"{int(hexadecimal, 16):b}"[1:]], dtype=float)


def told(line, probe):
    """Which images were told right, `[images]`; of domains, so weighted that their mean is the domains'."""
    if probe != "domains":
        return bits(line[f"{probe}_hits"])
    domains = [bits(hits) for hits in line["domains"]["hits"]]
    n_images = sum(map(len, domains))
    return np.concatenate([hits * n_images / (len(domains) * len(hits)) for hits in domains])


def pairs(ours, theirs):
    """Measurements of one seed on one processor; what learns nothing is the same on any."""
    for line in ours:
        for other in theirs:
            alike = line["processor"] == other["processor"] or other["steps"] == 0
            if line["seed"] == other["seed"] and alike:
                yield line, other


def bootstrap(ours, theirs):
    """Mean difference and its 95 % interval, of `[seeds, images]` each."""
    difference = ours - theirs
    seeds, images = difference.shape
    rng = np.random.default_rng(0)
    # Images first: a mean over a draw of images is a product with its counts.
    counts = rng.multinomial(images, np.full(images, 1 / images), DRAWS) / images
    by_seed = counts @ difference.T  # [draws, seeds]
    drawn = rng.integers(0, seeds, (DRAWS, seeds))
    means = np.take_along_axis(by_seed, drawn, 1).mean(1)
    return difference.mean(), *np.percentile(means, [2.5, 97.5])


def spread(values):
    """Mean, and standard deviation over seeds where there are several."""
    mean = statistics.mean(values)
    return f"{mean:.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def letters(measured):
    """A letter for each processor that rows were measured on, in the order in which they were."""
    return dict(zip(dict.fromkeys(line["processor"] for line in measured), string.ascii_lowercase))


def rows_table(lines, prefix, letter):
    head = ["| row | seconds | seeds | on | steps | kNN | linear |", "|---|---|---|---|---|---|---|"]
    body = []
    for row in ROWS:
        found = lines[row.name]
        if row.name.startswith("sweep") != (prefix == "sweep") or not found:
            continue
        for name in sorted({line["processor"] for line in found}):
            of = lambda key: [line[key] for line in found if line["processor"] == name]
            steps = round(statistics.mean(of("steps")))
            body.append(f"| {row.name} | {row.seconds} | {len(of('knn'))} | {letter[name]} | {steps} "
                        f"| {spread(of('knn'))} | {spread(of('linear'))} |")
    return head + body if body else ["Nothing is measured yet."]


def differences_table(lines):
    head = ["| row | less | kNN | 95 % interval | seeds |", "|---|---|---|---|---|"]
    body = []
    for name, other, probe in DIFFERENCES:
        paired = list(pairs(lines[name], lines[other]))
        if paired:
            ours, theirs = (np.stack([told(line, probe) for line in side]) for side in zip(*paired))
            mean, low, high = bootstrap(ours, theirs)
            body.append(f"| {name} | {other} | {mean:+.3f} | {low:+.3f} to {high:+.3f} | {len(paired)} |")
    return head + body if body else ["Nothing is measured yet."]


def drift(lines):
    text = []
    for name in (row.name for row in ROWS if row.name.startswith("B ")):
        found = [line["classes"] for line in lines[name]]
        if found:
            average, fallen = ([run[key] for run in found] for key in ("average", "forgetting"))
            # A seed is an order of the classes, and some orders are harder.
            seeds = ("seed " if len(found) == 1 else "seeds ") + " ".join(str(line["seed"]) for line in lines[name])
            text.append(f"- {name}, {seeds}: average accuracy over the pairs learned so far "
                        f"{spread(average)}, forgetting {spread(fallen)}.")
    for name in ("C drift", "C shuffled"):
        found = [line["domains"] for line in lines[name]]
        if found:
            last = np.array([run["knn"][-1] for run in found]).mean(0)
            domains = ", ".join(f"{d} {v:.3f}" for d, v in zip(found[0]["domains"], last))
            text.append(f"- {name}: leave-one-out kNN at the end: {domains}; mean {last.mean():.3f}.")
    return text


def supervised(lines):
    """The encoder with labels, beside the linear probe of the best one without, of the same time."""
    for row in (row for row in ROWS if row.side == "supervised" and lines[row.name]):
        own = spread([line["accuracy"] for line in lines[row.name]])
        text = f"- {row.name}: {own} by its own classifier."
        without = row.name.replace("supervised", "sigmoid")
        paired = list(pairs(lines[without], lines[row.name]))
        # Where none ran on one machine, all beside all.
        both = paired or [(ours, theirs) for ours in lines[without] for theirs in lines[row.name]]
        if both:
            apart = statistics.mean(ours["linear"] - theirs["linear"] for ours, theirs in both)
            where = "" if paired else ", of other seeds or machines,"
            text += f" {without}'s linear probe{where} is {apart:+.3f} from its own."
        yield text


def write(measured):
    lines = collections.defaultdict(list)
    for line in measured:
        lines[line["row"]].append(line)
    letter = letters(measured)
    page = [
        "# Learning", "",
        "    SELFSTREAM_TEST_IMAGES=DIR scripts/bench-learning", "",
        "writes this page. It resumes where it stopped; `--list` says what is measured, `--rows 'A *'` chooses.",
        "Measured on:", "",
        *(f"- {letter[name]}: {name}" for name in letter), "",
        "Every run learns from a real Kafka topic, on which the images arrive evenly over its time, and is told",
        "by images that were never streamed: accuracy of kNN (20 neighbours, cosine) and of a linear probe.",
        "± is the standard deviation over seeds; how many steps a row came to says how busy the machine was beside it.",
        "",
        "| protocol | stream |", "|---|---|",
        *(f"| {name} | {text} |" for name, text in streams.PROTOCOLS.items()), "",
        "## Rows on test images", "", *rows_table(lines, "A", letter), "", *supervised(lines), *drift(lines), "",
        "## Differences", "",
        "Means over paired seeds, each pair run on one kind of processor; intervals are a paired bootstrap over test",
        "images and seeds. PyTorch's rows are `scripts/learning/peer.py`: lightly's losses, f32 or autocast, whichever is",
        "faster, and views of the whole side where their name says no other; ours are half as large by default. C is a",
        "mean over its domains.", "",
        *differences_table(lines), "",
        "## Sweeps", "",
        "On images held out of the training ones: what the defaults are chosen by.", "",
        *rows_table(lines, "sweep", letter), "",
    ]
    PAGE.write_text("\n".join(page))
