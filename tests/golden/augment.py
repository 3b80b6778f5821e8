#!/usr/bin/env python3
"""Makes augment.json: what torchvision's v2 transforms do to small images.

    python -m venv VENV && VENV/bin/pip install torch==2.8.0 torchvision==0.23.0 numpy
    VENV/bin/python tests/golden/augment.py > tests/golden/augment.json

Images are [H, W, C] bytes; results that torchvision computes in floating point are [C, H, W] in
0..1, rounded to six digits; resized ones are [H, W, C] bytes.
"""

import json
import sys

import torch
import torchvision
from torchvision.transforms.v2 import functional as F
from torchvision.transforms.v2 import InterpolationMode

assert torch.__version__.split("+")[0] == "2.8.0", torch.__version__
assert torchvision.__version__.split("+")[0] == "0.23.0", torchvision.__version__

WIDTH, HEIGHT, SIDE = 12, 10, 10
BILINEAR = InterpolationMode.BILINEAR


def picture(height, width, seed):
    """Smooth colour under noise, with a black, a white and a grey pixel: [C, H, W] bytes."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.linspace(0, 3, height)[:, None]
    x = torch.linspace(0, 4, width)[None, :]
    smooth = torch.stack([torch.sin(x + y), torch.cos(x - y), torch.sin(2 * x) * torch.cos(y)])
    noise = torch.rand(3, height, width, generator=generator)
    image = ((0.35 * smooth + 0.5) * 0.7 + 0.3 * noise).mul(255).round().to(torch.uint8)
    image[:, 0, 0], image[:, 0, 1], image[:, 1, 0] = 0, 255, 128
    return image


def interleaved(image):
    return image.permute(1, 2, 0).flatten().tolist()


def planar(image):
    return [round(value, 6) for value in image.flatten().tolist()]


def rotate_reflected(image, degrees):
    """Rotation whose corners show the reflected image: pad, turn, cut the middle out."""
    margin = SIDE - 1
    padded = F.pad(image, [margin] * 4, padding_mode="reflect")
    return F.center_crop(F.rotate(padded, degrees, interpolation=BILINEAR), [SIDE, SIDE])


def main():
    square = picture(SIDE, SIDE, seed=1)
    wide = picture(HEIGHT, WIDTH, seed=2)
    tall = wide.transpose(1, 2)
    image = F.to_dtype(square, torch.float32, scale=True)
    operations = [
        ("brightness", [0.4], lambda f: F.adjust_brightness(image, f)),
        ("brightness", [1.7], lambda f: F.adjust_brightness(image, f)),
        ("contrast", [0.4], lambda f: F.adjust_contrast(image, f)),
        ("contrast", [1.7], lambda f: F.adjust_contrast(image, f)),
        ("saturation", [0.4], lambda f: F.adjust_saturation(image, f)),
        ("saturation", [1.7], lambda f: F.adjust_saturation(image, f)),
        ("hue", [-0.37], lambda t: F.adjust_hue(image, t)),
        ("hue", [0.1], lambda t: F.adjust_hue(image, t)),
        ("greyscale", [], lambda: F.rgb_to_grayscale(image, num_output_channels=3)),
        ("solarise", [0.5], lambda t: F.solarize(image, t)),
        ("blur", [2, 0.6], lambda r, s: F.gaussian_blur(image, [2 * r + 1] * 2, [s, s])),
        ("blur", [4, 2.0], lambda r, s: F.gaussian_blur(image, [2 * r + 1] * 2, [s, s])),
        ("horizontal_flip", [], lambda: F.horizontal_flip(image)),
        ("vertical_flip", [], lambda: F.vertical_flip(image)),
        ("rotate", [90.0], lambda d: rotate_reflected(image, d)),
        ("rotate", [-33.0], lambda d: rotate_reflected(image, d)),
    ]
    # Left, top, width, height and the side of the result: smaller, larger, and a mixture.
    crops = [[1, 2, 9, 7, 5], [3, 1, 4, 5, 9], [0, 0, 12, 10, 11], [2, 0, 10, 10, 10]]
    middles = [("wide", wide, 6), ("tall", tall, 6), ("wide", wide, 15), ("tall", tall, 10)]

    def cropped(left, top, width, height, side):
        size = [side, side]
        return F.resized_crop(wide, top, left, height, width, size, BILINEAR, antialias=True)

    def middle(source, side):
        return F.center_crop(F.resize(source, [side], BILINEAR, antialias=True), [side, side])

    json.dump(
        {
            "made_by": "tests/golden/augment.py, torch 2.8.0, torchvision 0.23.0",
            "square": interleaved(square),
            "wide": interleaved(wide),
            "tall": interleaved(tall),
            "operations": [
                {"name": name, "arguments": arguments, "result": planar(run(*arguments))}
                for name, arguments, run in operations
            ],
            "crops": [
                {"region": crop[:4], "side_px": crop[4], "result": interleaved(cropped(*crop))}
                for crop in crops
            ],
            "middles": [
                {"source": name, "side_px": side, "result": interleaved(middle(source, side))}
                for name, source, side in middles
            ],
        },
        sys.stdout,
        separators=(",", ":"),
    )
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
