"""PyTorch's side of bench-vs-pytorch, and the loop that runs both sides round about.

Both do the same work on random images of 32 px: `train` is forward, backward and an SGD step with
momentum of the encoder in f32; `embed` is the forward pass in evaluation mode. PyTorch runs in each of
its modes that applies (memory layout, traced and frozen for embedding), and its fastest median counts.
"""

import argparse
import json
import statistics
import subprocess
import time

import torch
from torch import nn
from torch.nn import functional as F

SIDE_PX = 32
WIDTHS = {"slim-resnet": [32, 64, 128, 256], "resnet18": [64, 128, 256, 512]}
WORKS = [("train", "slim-resnet", 128), ("train", "resnet18", 128), ("train", "vit-tiny-patch4", 128),
         ("embed", "slim-resnet", 1), ("embed", "slim-resnet", 64), ("embed", "resnet18", 1),
         ("embed", "resnet18", 64), ("embed", "vit-tiny-patch4", 1), ("embed", "vit-tiny-patch4", 64)]


class Block(nn.Module):
    """A basic block of a residual network."""

    def __init__(self, channels, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Identity()
        if stride != 1 or channels != width:
            convolution = nn.Conv2d(channels, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(width))

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x), inplace=True)


class TransformerBlock(nn.Module):
    """Attention, then a perceptron, each of the normalised input and added to it."""

    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.joined, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.heads = heads

    def forward(self, x):
        images, tokens, width = x.shape
        joined = self.joined(self.norm1(x)).view(images, tokens, 3, self.heads, width // self.heads)
        queries, keys, values = joined.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        x = x + self.output(mixed.transpose(1, 2).reshape(images, tokens, width))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """ViT-Tiny over patches of 4 px, its features the mean over them."""

    WIDTH, DEPTH, HEADS, PATCH_PX = 192, 12, 3, 4

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, self.WIDTH, self.PATCH_PX, self.PATCH_PX)
        positions = torch.randn(1, (SIDE_PX // self.PATCH_PX) ** 2, self.WIDTH)
        self.register_buffer("positions", positions)
        blocks = (TransformerBlock(self.WIDTH, self.HEADS) for _ in range(self.DEPTH))
        self.blocks = nn.Sequential(*blocks, nn.LayerNorm(self.WIDTH, 1e-6))

    def forward(self, x):
        patches = self.patches(x).flatten(2).transpose(1, 2)
        return self.blocks(patches + self.positions).mean(1)


class Encoder(nn.Module):
    """ResNet-18's shape with a stem for small images."""

    def __init__(self, widths):
        super().__init__()
        layers = [nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]),
                  nn.ReLU(inplace=True)]
        channels = widths[0]
        for stage, width in enumerate(widths):
            for block in range(2):
                layers.append(Block(channels, width, 2 if stage and not block else 1))
                channels = width
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x).mean((2, 3))


def build(encoder):
    return Transformer() if encoder not in WIDTHS else Encoder(WIDTHS[encoder])


def training(encoder, n_images, layout):
    encoder = build(encoder).to(memory_format=layout)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4)
    images = torch.randn(n_images, 3, SIDE_PX, SIDE_PX).contiguous(memory_format=layout)
    with torch.no_grad():
        pull = torch.randn_like(encoder(images))

    def work():
        optimizer.zero_grad()
        encoder(images).backward(pull)
        optimizer.step()
    return work


def embedding(encoder, n_images, layout, frozen):
    encoder = build(encoder).to(memory_format=layout).eval()
    images = torch.randn(n_images, 3, SIDE_PX, SIDE_PX).contiguous(memory_format=layout)
    if frozen:  # folds the norms into the convolutions, as we do
        with torch.no_grad():
            encoder = torch.jit.optimize_for_inference(torch.jit.trace(encoder, images))

    def work():
        with torch.inference_mode():
            encoder(images)
    return work


def peers(work, encoder, n_images):
    """PyTorch's modes for one kind of work, by name."""
    layouts = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
    if work == "train":
        return {name: training(encoder, n_images, layout) for name, layout in layouts.items()}
    return {f"{name}{', frozen' * frozen}": embedding(encoder, n_images, layout, frozen)
            for name, layout in layouts.items() for frozen in (False, True)}


def milliseconds(work):
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def compare(ours, work, encoder, n_images, threads, rounds):
    """Rounds of every side in turn, after one that warms up; the row of the table."""
    torch.set_num_threads(threads)
    modes = peers(work, encoder, n_images)

    def our_round():
        ours.stdin.write(f"{work} {encoder} {n_images} {threads}\n")
        ours.stdin.flush()
        return float(ours.stdout.readline())
    times = {"ours": [], **{name: [] for name in modes}}
    for _ in range(rounds + 1):
        times["ours"].append(our_round())
        for name, mode in modes.items():
            times[name].append(milliseconds(mode))
    medians = {name: statistics.median(all_[1:]) for name, all_ in times.items()}
    mode = min(modes, key=medians.get)
    mine, peer = medians["ours"], medians[mode]
    return {"work": f"{work} {encoder}, {n_images} images", "threads": threads, "ours": mine,
            "peer": peer, "unit": "ms", "ratio": peer / mine, "mode": mode, "rounds": rounds}


def processor():
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ours", help="our executable")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 7")
    arguments = parser.parse_args()
    ours = subprocess.Popen([arguments.ours], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            text=True)
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"{processor()}, {capability}; PyTorch {torch.__version__}; medians in ms\n")
    print("| work | threads | ours | PyTorch | ratio | its fastest mode |")
    print("|---|---|---|---|---|---|")
    rows = []
    for work, encoder, n_images in WORKS:
        for threads in (1, 2):
            rounds = (3 if arguments.quick else 7) * (1 if work == "train" else 3)
            row = compare(ours, work, encoder, n_images, threads, rounds)
            rows.append(row)
            print(f"| {row['work']} | {threads} | {row['ours']:.4g} | {row['peer']:.4g} | "
                  f"{row['ratio']:.2f} | {row['mode']} |", flush=True)
    ours.stdin.close()
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as out:
            json.dump(rows, out, indent=1)
    if ours.wait() != 0:
        raise SystemExit("our side failed")


if __name__ == "__main__":
    main()
