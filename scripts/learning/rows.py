"""The rows of docs/LEARNING.md: what is run on which stream for how long.

To add a row: one line in ROWS. A row's name and settings are what its measurements are kept under, so a
row whose settings change is measured anew. Defaults that it does not set are not in its key: whoever changes one
removes the lines of rows.jsonl that it changes.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    name: str
    """One of streams.PROTOCOLS."""
    protocol: str
    seconds: int
    """Settings over config/default.toml, a dictionary for each section; of a peer's row, arguments of peer.py."""
    settings: dict = field(default_factory=dict)
    """"selfstream"; "pytorch" (peer.py); "supervised" (the same encoder trained with the labels of the images, all
    of them at hand from the start); or "pixels" and "untrained", which learn nothing."""
    side: str = "selfstream"
    """What it is told on: "test" images, or images held out of the training ones, for choosing."""
    told_on: str = "test"


# The rate falls to zero where the run is declared to end; the images are of 32 px.
def declared(seconds, **sections):
    settings = {"learner.schedule": {"end_after": f"{seconds}s"}, **sections}
    return {"input": {"side_px": 32}, **settings}


def objective(kind, **keys):
    return {"objective": {"kind": kind, **keys}}


def minutes(name, n, protocol="A", side="selfstream", **sections):
    return Row(name, protocol, 60 * n, declared(60 * n, **sections), side)


def pytorch(name, n, method, **settings):
    return Row(name, "A", 60 * n, {"method": method, **settings}, side="pytorch")


def sweep(name, protocol="A", **sections):
    return Row(name, protocol, 180, declared(180, **sections), told_on="held-out")


OBJECTIVES = ["simclr", "moco", "byol", "moco-v3", "sigmoid", "rotation", "instance", "vicreg", "emp"]
MASKED = {"learner": {"near_duplicates": "mask"}, "replay": {"duplicate_window": 1000}}
ALIGNED = {"learner.alignment": {"weight": 1.0, "refresh_steps": 200}}
# Most of a batch is replay, and what comes faster than that is sampled.
SAMPLED = {"batch": {"pace": "fixed", "steps_per_batch": 4}, "kafka": {"lag_target_records": 1000}}


def vit(name, seconds, patch_px, told_on, **sections):
    schedule = {"end_after": f"{seconds}s", "learning_rate": 0.001, "warmup_steps": 50}
    settings = {"encoder": {"architecture": f"vit-tiny-patch{patch_px}"}, "learner.optimizer": {"kind": "adamw"},
                **sections, "learner.schedule": schedule}
    return Row(name, "A", seconds, {"input": {"side_px": 32}, **settings}, told_on=told_on)


ROWS = [
    # Protocol A beside PyTorch, at equal wall-clock.
    minutes("A simclr", 3, **objective("simclr")),
    pytorch("A simclr of PyTorch", 3, "simclr"),
    pytorch("A simclr of PyTorch, views of half the side", 3, "simclr", **{"side-share": 0.5}),
    minutes("A moco", 3, **objective("moco")),
    pytorch("A moco of PyTorch", 3, "moco"),
    minutes("A byol", 3, **objective("byol")),
    pytorch("A byol of PyTorch", 3, "byol"),
    *(minutes(f"A {kind}", 3, **objective(kind)) for kind in OBJECTIVES[3:]),
    *(Row(f"A {floor}", "A", 0, {"input": {"side_px": 32}}, side=floor)
      for floor in ["pixels", "untrained"]),
    minutes("A supervised", 3, side="supervised"),
    # What a user who declares no end gets.
    Row("A sigmoid, no declared end", "A", 180, {"input": {"side_px": 32}, **objective("sigmoid")}),
    # What they come to in longer: three minutes are too few for some, here and in PyTorch.
    *(minutes(f"A {kind}, 10 minutes", 10, **objective(kind)) for kind in OBJECTIVES),
    *(pytorch(f"A {method} of PyTorch, 10 minutes", 10, method) for method in ["simclr", "moco", "byol"]),
    minutes("A supervised, 10 minutes", 10, side="supervised"),
    minutes("A preset balanced, 10 minutes", 10, preset="balanced"),
    vit("A sigmoid, vit-tiny-patch8, 10 minutes", 600, 8, "test", **objective("sigmoid")),
    # Streams that are not shuffled, not clean, or repeat themselves.
    *(minutes(f"B replay {policy}", 3, "B", replay={"policy": policy}, **objective("sigmoid"))
      for policy in ["none", "fifo", "reservoir", "min-red", "centroid"]),
    # All of the stream fits into the default buffer, where the policies keep the same; a tenth fits into this one.
    *(minutes(f"B replay {policy}, 2 MB", 3, "B", replay={"policy": policy, "max_bytes": 2_000_000},
              **objective("sigmoid"))
      for policy in ["fifo", "reservoir", "min-red", "centroid"]),
    minutes("B replay reservoir, aligned", 3, "B", replay={"policy": "reservoir"}, **objective("sigmoid"), **ALIGNED),
    minutes("C drift", 3, "C", input={"side_px": 48}, **objective("sigmoid")),
    minutes("C shuffled", 3, "C shuffled", input={"side_px": 48}, **objective("sigmoid")),
    minutes("D bursts", 3, "D", **objective("sigmoid")),
    minutes("D bursts, preset camera", 3, "D", preset="camera", **objective("sigmoid")),
    minutes("E dirty", 3, "E", **objective("sigmoid")),
    # Sweeps: what the defaults were chosen by, on held-out training images.
    *(sweep(f"sweep {kind}", **objective(kind)) for kind in OBJECTIVES),
    *(sweep(f"sweep {kind}, views of {share} of the side", **objective(kind), augment={"side_share": share})
      for kind in ["simclr", "sigmoid"] for share in [0.625, 0.75, 1.0]),
    sweep("sweep simclr, rate 0.12", **objective("simclr"),
          **{"learner.schedule": {"end_after": "180s", "learning_rate": 0.12}}),
    sweep("sweep simclr, jitter 1.0", **objective("simclr"), augment={"jitter_strength": 1.0}),
    *(sweep(f"sweep sigmoid, rate {rate}", **objective("sigmoid"),
            **{"learner.schedule": {"end_after": "180s", "learning_rate": rate}})
      for rate in [0.03, 0.12]),
    *(sweep(f"sweep sigmoid, jitter {strength}", **objective("sigmoid"), augment={"jitter_strength": strength})
      for strength in [0.25, 1.0]),
    *(sweep(f"sweep sigmoid, resnet18, jitter {strength}", **objective("sigmoid"),
            encoder={"architecture": "resnet18"}, augment={"jitter_strength": strength})
      for strength in [0.25, 0.5, 1.0]),
    *(sweep(f"sweep sigmoid, crops from {least} of the area", **objective("sigmoid"),
            augment={"crop_area": [least, 1.0]})
      for least in [0.08, 0.35]),
    *(sweep(f"sweep sigmoid, batch of {images}", **objective("sigmoid"), batch={"images": images})
      for images in [32, 128]),
    *(sweep(f"sweep {kind}, temperature {value}", **objective(kind, temperature=value))
      for kind in ["sigmoid", "simclr"] for value in [0.1, 0.5]),
    *(sweep(f"sweep {kind}, 4 small views",
            **{"objective": {"kind": kind}, "objective.small_views": {"count": 4, "side_px": 8}})
      for kind in ["simclr", "byol"]),
    *(sweep(f"sweep byol, momentum {momentum}", **objective("byol", momentum=momentum))
      for momentum in [0.9, 0.96]),
    *(sweep(f"sweep byol, rate {rate}", **objective("byol"),
            **{"learner.schedule": {"end_after": "180s", "learning_rate": rate}})
      for rate in [0.02, 0.2]),
    # SGD's rate sees the size of a loss, not only how its terms weigh against each other.
    *(sweep(f"sweep vicreg, weights {i}, {v}, {c}", **objective("vicreg", invariance=i, variance=v, covariance=c))
      for i, v, c in [(25.0, 25.0, 1.0), (1.0, 1.0, 0.04), (5.0, 5.0, 1.0), (5.0, 5.0, 0.04), (8.0, 64.0, 0.32)]),
    sweep("sweep emp, invariance 200.0", **objective("emp", invariance=200.0)),
    sweep("sweep emp, 8 crops of 32 images", batch={"images": 32}, **objective("emp", crops=8)),
    # Streams that repeat themselves: what keeps near-duplicates from being each other's negatives.
    *(sweep(f"sweep sigmoid, bursts{what}", "D", **objective("sigmoid"), **settings)
      for what, settings in {"": {}, ", masked": MASKED, ", masked, a quarter fresh": {**MASKED, **SAMPLED}}.items()),
    *(vit(f"sweep sigmoid, vit-tiny-patch{px}", 180, px, "held-out", **objective("sigmoid")) for px in [4, 8]),
]
