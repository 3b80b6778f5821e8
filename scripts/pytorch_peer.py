"""PyTorch's side of bench-vs-pytorch, and the loop that runs both sides round about.

Both do the same work: `train` is forward, backward and an SGD step with momentum of the encoder in
f32 on random images of 32 px; `embed` is the forward pass in evaluation mode; `views` makes two views
of an image of that side by SimCLR's augmentation, `decode-views` decodes a JPEG of 500 x 375 for them.
PyTorch runs in each of its modes that applies (memory layout, traced and frozen for embedding), and its
fastest median counts; views are torchvision's, of uint8 tensors.
"""

import argparse
import json
import multiprocessing
import statistics
import subprocess
import tempfile
import time

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.io import decode_jpeg, encode_jpeg
from torchvision.transforms import v2

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


VIEW_PAIRS = 20
# Side of the views; height and width of the JPEG.
VIEWS = [("views", 32, (32, 32)), ("decode-views", 224, (375, 500))]


def photo(height, width):
    """Smooth waves under a little noise, about as hard to compress as a photo."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [(at / period).sin() * 90 + 128 for at, period in ((x, 23), (y, 31), (x + y, 47))]
    pixels = torch.stack(waves) + torch.randint(0, 16, (3, height, width))
    return encode_jpeg(pixels.clamp(0, 255).to(torch.uint8), quality=85)


def making_views(jpeg, side_px, is_decoded_anew):
    blur = [v2.RandomApply([v2.GaussianBlur(side_px // 20 * 2 + 1, (0.1, 2.0))], 0.5)]
    transform = v2.Compose([
        v2.RandomResizedCrop(side_px, scale=(0.2, 1.0), antialias=True),
        v2.RandomHorizontalFlip(), v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
        v2.RandomGrayscale(0.2), *(blur if side_px >= 64 else []),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
    decoded = decode_jpeg(jpeg)

    def work():
        for _ in range(VIEW_PAIRS):
            pixels = decode_jpeg(jpeg) if is_decoded_anew else decoded
            transform(pixels), transform(pixels)
    return work


def status_kib(name):
    with open("/proc/self/status", encoding="utf-8") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name))


def memory_kib(encoder, n_images):
    """The peak of three training steps over what the process holds with the encoder loaded."""
    loaded = build(encoder)
    held = status_kib("VmRSS")
    with open("/proc/self/clear_refs", "w", encoding="utf-8") as peak:
        peak.write("5")
    step = training(encoder, n_images, torch.channels_last)
    for _ in range(3):
        step()
    del loaded
    return status_kib("VmHWM") - held


def compare_memory(executable, encoder, n_images):
    """Each side in a process of its own; the row of the table."""
    ours = subprocess.run([executable], input=f"memory {encoder} {n_images}\n", text=True,
                          capture_output=True, check=True)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peer = pool.apply(memory_kib, (encoder, n_images)) / 1024
    mine = float(ours.stdout) / 1024
    return {"work": f"memory of train {encoder}, {n_images} images", "threads": 1, "ours": mine,
            "peer": peer, "unit": "MiB", "ratio": peer / mine, "mode": "channels_last"}


def milliseconds(work):
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def compare(ours, line, modes, rounds):
    """Rounds of our `line` and of every mode in turn, after one that warms up; the medians."""
    def our_round():
        ours.stdin.write(line + "\n")
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
    return {"ours": mine, "peer": peer, "unit": "ms", "ratio": peer / mine, "mode": mode,
            "rounds": rounds}


def rows(executable, ours, quick):
    """The rows of the table, as they are measured."""
    few = 3 if quick else 7
    for work, encoder, n_images in WORKS:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            rounds = few * (1 if work == "train" else 3)
            line = f"{work} {encoder} {n_images} {threads}"
            measured = compare(ours, line, peers(work, encoder, n_images), rounds)
            yield {"work": f"{work} {encoder}, {n_images} images", "threads": threads, **measured}
    torch.set_num_threads(1)
    for work, side_px, size in VIEWS:
        with tempfile.NamedTemporaryFile(suffix=".jpg") as file:
            jpeg = photo(*size)
            file.write(bytes(jpeg.tolist()))
            file.flush()
            modes = {"torchvision": making_views(jpeg, side_px, work != "views")}
            measured = compare(ours, f"{work} {file.name} {side_px} 1", modes, few * 3)
            yield {"work": f"{VIEW_PAIRS} x {work}, {side_px} px", "threads": 1, **measured}
    for work, encoder, n_images in WORKS:
        if work == "train":
            yield compare_memory(executable, encoder, n_images)


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
    print(f"{processor()}, {capability}; PyTorch {torch.__version__}; medians in ms (memory in MiB)\n")
    print("| work | threads | ours | PyTorch | ratio | its fastest mode |")
    print("|---|---|---|---|---|---|")
    table = []
    for row in rows(arguments.ours, ours, arguments.quick):
        table.append(row)
        print(f"| {row['work']} | {row['threads']} | {row['ours']:.4g} | {row['peer']:.4g} | "
              f"{row['ratio']:.2f} | {row['mode']} |", flush=True)
    ours.stdin.close()
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as out:
            json.dump(table, out, indent=1)
    if ours.wait() != 0:
        raise SystemExit("our side failed")


if __name__ == "__main__":
    main()
