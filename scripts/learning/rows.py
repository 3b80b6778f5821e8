"""The rows of docs/LEARNING.md: what is run on which stream for how long.

To add a row: one line in ROWS. A row's name and settings are what its measurements are kept under, so a
row whose settings change is measured anew.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    name: str
    """One of streams.PROTOCOLS."""
    protocol: str
    seconds: int
    """Settings over config/default.toml, by section; of a peer's row, arguments of peer.py."""
    settings: dict = field(default_factory=dict)
    """"selfstream", or "pytorch" (peer.py)."""
    side: str = "selfstream"
    """What it is told on: "test" images, or images held out of the training ones, for choosing."""
    told_on: str = "test"
    """More arguments of `selfstream evaluate`, for the first seed."""
    beside: tuple = ()


# The rate falls to zero where the run is declared to end; the images are of 32 px.
def declared(seconds, **sections):
    settings = {"learner.schedule": {"end_after": f"{seconds}s"}, **sections}
    return {"input": {"side_px": 32}, **settings}


def objective(kind, **keys):
    return {"objective": {"kind": kind, **keys}}


def headline(name, protocol="A", beside=(), **sections):
    return Row(name, protocol, 600, declared(600, **sections), beside=beside)


def sweep(name, protocol="A", **sections):
    return Row(name, protocol, 180, declared(180, **sections), told_on="held-out")


OBJECTIVES = ["simclr", "moco", "moco-v3", "byol", "sigmoid", "rotation", "instance", "vicreg", "emp"]
VIT = {"encoder": {"architecture": "vit-tiny-patch4"},
       "learner.optimizer": {"kind": "adamw"}}
VIT_RATE = {"learning_rate": 0.001, "warmup_steps": 50}

ROWS = [
    # Protocol A beside PyTorch, at equal wall-clock.
    headline("A simclr", beside=("--floors", "--supervised", "600"), **objective("simclr")),
    *(headline(f"A {kind}", **objective(kind)) for kind in OBJECTIVES[1:]),
    *(Row(f"A {method} of PyTorch", "A", 600, {"method": method}, side="pytorch")
      for method in ["simclr", "moco", "byol"]),
    Row("A simclr, no declared end", "A", 600, {"input": {"side_px": 32}}),
    Row("A simclr, vit-tiny-patch4", "A", 600,
        {**declared(600, **VIT), "learner.schedule": {"end_after": "600s", **VIT_RATE}}),
    # Streams that are not shuffled, not clean, or repeat themselves.
    *(headline(f"B replay {policy}", "B", replay={"policy": policy})
      for policy in ["none", "fifo", "reservoir"]),
    Row("C drift", "C", 600, declared(600, input={"side_px": 48})),
    Row("C shuffled", "C shuffled", 600, declared(600, input={"side_px": 48})),
    headline("D bursts", "D"),
    headline("E dirty", "E"),
    # Sweeps: what the defaults were chosen by, on held-out training images.
    *(sweep(f"sweep {kind}", **objective(kind)) for kind in OBJECTIVES),
    *(sweep(f"sweep simclr, views of {share} of the side", augment={"side_share": share})
      for share in [0.625, 0.75, 1.0]),
    *(sweep(f"sweep simclr, rate {rate}",
            **{"learner.schedule": {"end_after": "180s", "learning_rate": rate}})
      for rate in [0.03, 0.12]),
    *(sweep(f"sweep simclr, jitter {strength}", augment={"jitter_strength": strength})
      for strength in [0.25, 1.0]),
    *(sweep(f"sweep simclr, crops from {least} of the area", augment={"crop_area": [least, 1.0]})
      for least in [0.08, 0.35]),
    *(sweep(f"sweep simclr, batch of {images}", batch={"images": images}) for images in [32, 128]),
    *(sweep(f"sweep simclr, temperature {value}", **objective("simclr", temperature=value))
      for value in [0.1, 0.5]),
    *(sweep(f"sweep {kind}, 4 small views",
            **{"objective": {"kind": kind}, "objective.small_views": {"count": 4, "side_px": 8}})
      for kind in ["simclr", "byol"]),
    Row("sweep simclr, vit-tiny-patch4", "A", 180,
        {**declared(180, **VIT), "learner.schedule": {"end_after": "180s", **VIT_RATE}},
        told_on="held-out"),
]
