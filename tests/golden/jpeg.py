#!/usr/bin/env python3
"""Makes jpeg.json: small JPEGs, and the pixels that torchvision (libjpeg-turbo) decodes them to.

    python -m venv VENV && VENV/bin/pip install torch==2.15.0 torchvision==0.29.2 pillow==13.0.0 numpy
    VENV/bin/python tests/golden/jpeg.py > tests/golden/jpeg.json

Files and pixels, [H, W, C] bytes, are in base64.
"""

import base64
import io
import json
import sys

import PIL
import torch
import torchvision
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

assert torch.__version__.split("+")[0] == "2.15.0", torch.__version__
assert torchvision.__version__.split("+")[0] == "0.29.2", torchvision.__version__
assert PIL.__version__ == "13.0.0", PIL.__version__

FULL, HALF_WIDTH, QUARTER = 0, 1, 2
# Width, height, mode, and how it is written.
CASES = [
    (37, 29, "RGB", {"subsampling": FULL, "quality": 90}),
    (37, 29, "RGB", {"subsampling": HALF_WIDTH, "quality": 90}),
    (37, 29, "RGB", {"subsampling": QUARTER, "quality": 90}),
    (37, 29, "L", {"quality": 90}),
    (32, 32, "RGB", {"subsampling": QUARTER, "quality": 30}),
    (33, 17, "RGB", {"subsampling": QUARTER, "quality": 100}),
    (17, 33, "RGB", {"subsampling": HALF_WIDTH, "quality": 100, "optimize": True}),
    (50, 20, "RGB", {"subsampling": QUARTER, "quality": 75, "restart_marker_blocks": 3}),
    (50, 40, "RGB", {"subsampling": FULL, "quality": 75, "restart_marker_rows": 1}),
    (5, 5, "RGB", {"subsampling": QUARTER, "quality": 95}),
    (64, 9, "RGB", {"subsampling": QUARTER, "quality": 1}),
]


def picture(width, height, seed):
    """Waves that leave the range of bytes, under noise: [H, W, 3] bytes."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.linspace(0, 5, height)[:, None]
    x = torch.linspace(0, 7, width)[None, :]
    waves = torch.stack([torch.sin(x + y), torch.cos(2 * x - y), torch.sin(3 * x) * torch.cos(y)], 2)
    noise = torch.rand(height, width, 3, generator=generator) - 0.5
    return (waves * 150 + noise * 60 + 128).round().clamp(0, 255).to(torch.uint8)


def case(seed, width, height, mode, how):
    image = Image.fromarray(picture(width, height, seed).numpy()).convert(mode)
    file = io.BytesIO()
    image.save(file, "jpeg", **how)
    data = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
    pixels = decode_jpeg(data, mode=ImageReadMode.RGB).permute(1, 2, 0).contiguous()
    return {
        "name": f"{width}x{height} {mode} {how}",
        "file": base64.b64encode(file.getvalue()).decode(),
        "width_px": width,
        "height_px": height,
        "rgb": base64.b64encode(pixels.numpy().tobytes()).decode(),
    }


def main():
    cases = [case(seed, *of) for seed, of in enumerate(CASES)]
    versions = "torch 2.15.0, torchvision 0.29.2, pillow 13.0.0"
    made_by = f"tests/golden/jpeg.py, {versions}"
    json.dump({"made_by": made_by, "cases": cases}, sys.stdout, separators=(",", ":"))
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
