#!/usr/bin/env python3
"""Makes pretrained.json: what torchvision's and timm's models make of two images, on weights that a
formula gives, so that no weights need to be kept.

    python -m venv VENV && VENV/bin/pip install torch==2.15.0 torchvision==0.29.2 timm==1.0.31
    VENV/bin/python tests/golden/pretrained.py > tests/golden/pretrained.json

The tests of `src/encoder/pretrained.rs` make the same numbers (`noise`, `filled`) under the names and
shapes that are listed here, and hold our encoders to these outputs.
"""

import json
import math
import sys

import numpy
import timm
import torch
import torchvision

assert torch.__version__.split("+")[0] == "2.15.0", torch.__version__
assert torchvision.__version__.split("+")[0] == "0.29.2", torchvision.__version__
assert timm.__version__ == "1.0.31", timm.__version__

IMAGES = 2
FEATURES = 48


def numbers(offset, length):
    """Whole numbers mixed in 32 bits, as shares of 2^31 less 1: the same anywhere."""
    x = numpy.arange(length, dtype=numpy.uint32) * numpy.uint32(2654435761) + numpy.uint32(offset)
    x ^= x >> numpy.uint32(15)
    x *= numpy.uint32(2246822519)
    x ^= x >> numpy.uint32(13)
    return x.astype(numpy.float64) / 2.0**31 - 1.0


def fill(name, tensor):
    noise = numbers(sum(name.encode()), tensor.numel()).reshape(tuple(tensor.shape))
    what = name.rsplit(".", 1)[-1]
    if tensor.dim() == 0:
        middle, width = 0.0, 0.0
    elif name in ("cls_token", "pos_embed"):
        middle, width = 0.0, 0.5
    elif tensor.dim() == 1:
        middle, width = {"weight": (1.0, 0.2), "running_var": (1.0, 0.5)}.get(what, (0.0, 0.1))
    else:
        middle, width = 0.0, math.sqrt(6.0 / math.prod(tensor.shape[1:]))
    values = numpy.asarray(middle + width * noise, dtype=numpy.float32)
    return torch.from_numpy(values).to(tensor.dtype)


def case(architecture, model, side_px):
    state = {name: fill(name, tensor) for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    model.eval()
    images = numbers(0, IMAGES * side_px * side_px * 3).reshape(IMAGES, side_px, side_px, 3)
    images = torch.from_numpy(images.astype(numpy.float32)).permute(0, 3, 1, 2)
    # In f64: what differs is our rounding alone.
    with torch.no_grad():
        features = model.double()(images.double())
    return {
        "architecture": architecture,
        "side_px": side_px,
        "tensors": [[name, list(tensor.shape)] for name, tensor in state.items()],
        "features": [[float(f"{v:.7g}") for v in row[:FEATURES]] for row in features.tolist()],
    }


def resnet(build):
    model = build(weights=None)
    # The features are what the classifier reads; its weights stay in the list.
    forward = torch.nn.Module.register_forward_pre_hook
    kept = {}
    forward(model.fc, lambda module, inputs: kept.update(features=inputs[0]))

    class Features(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, images):
            self.inner(images)
            return kept["features"]

        def state_dict(self):
            return self.inner.state_dict()

        def load_state_dict(self, state):
            return self.inner.load_state_dict(state)

    return Features()


def main():
    vit = lambda name: timm.create_model(name, pretrained=False, num_classes=0)
    cases = [
        case("resnet18-imagenet", resnet(torchvision.models.resnet18), 64),
        case("resnet50-imagenet", resnet(torchvision.models.resnet50), 64),
        case("vit-tiny-patch16-grid14", vit("vit_tiny_patch16_224"), 224),
        case("vit-small-patch16-grid14", vit("vit_small_patch16_224.dino"), 224),
    ]
    made_by = "tests/golden/pretrained.py, torch 2.15.0, torchvision 0.29.2, timm 1.0.31"
    json.dump({"made_by": made_by, "cases": cases}, sys.stdout, separators=(",", ":"))
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
