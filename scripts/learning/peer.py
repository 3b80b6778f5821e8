"""PyTorch's side: SimCLR, MoCo v2 or BYOL on a stream with uniform replay, at a wall-clock budget.

As a user of lightly would write it: a slim ResNet, batches of 64, lightly's losses, bfloat16 autocast where
that is faster on this processor, channels_last, SGD with momentum and a cosine to zero at the end. Views are made
for a whole batch by tensor operations, several times faster than image by image. Images arrive evenly
over the time, and each batch is drawn uniformly from those that have arrived.
"""

import argparse
import copy
import io
import json
import math
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import torch
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from lightly.models.utils import update_momentum
from PIL import Image
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pytorch_models import WIDTHS, Encoder  # noqa: E402 (lies one folder up)

MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1)
DEVIATION = torch.tensor([0.247, 0.243, 0.261]).view(1, 3, 1, 1)
GREY = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
BATCH, RATE, MOMENTUM, TEMPERATURE = 64, 0.06, 0.99, 0.2


def read(path):
    """Images `[N, 32, 32, 3]` and their labels."""
    images, labels = [], []
    with tarfile.open(path) as tar:
        for member in tar:
            if member.isfile():
                data = tar.extractfile(member).read()
                images.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
                labels.append(member.name.split("/")[-2])
    return np.stack(images), np.array(labels)


def tensor(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255)


def crop_and_flip(x, side_px):
    """A random resized crop of area .2 to 1, mirrored half of the time."""
    n = x.shape[0]
    size = torch.empty(n).uniform_(0.2, 1).sqrt()
    aspect = torch.exp(torch.empty(n).uniform_(math.log(3 / 4), math.log(4 / 3))).sqrt()
    width, height = (size * aspect).clamp(max=1), (size / aspect).clamp(max=1)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = width * ((torch.rand(n) < 0.5).float() * -2 + 1)
    theta[:, 0, 2] = (torch.rand(n) * 2 - 1) * (1 - width)
    theta[:, 1, 1] = height
    theta[:, 1, 2] = (torch.rand(n) * 2 - 1) * (1 - height)
    grid = F.affine_grid(theta, (n, 3, side_px, side_px), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False, padding_mode="reflection")


def jitter(x):
    """Brightness, contrast and saturation by up to .4, hue by up to .1, with probability .8."""
    n = x.shape[0]
    factor = lambda: torch.empty(n, 1, 1, 1).uniform_(0.6, 1.4)
    y = x * factor()
    mean = y.mean((1, 2, 3), keepdim=True)
    y = (y - mean) * factor() + mean
    grey = (y * GREY).sum(1, keepdim=True)
    y = (y - grey) * factor() + grey
    angle = torch.empty(n).uniform_(-0.1, 0.1) * 2 * math.pi
    turn = torch.zeros(n, 3, 3)
    turn[:, 0, 0] = 1
    turn[:, 1, 1], turn[:, 1, 2] = angle.cos(), -angle.sin()
    turn[:, 2, 1], turn[:, 2, 2] = angle.sin(), angle.cos()
    y = torch.einsum("nij,njhw->nihw", torch.linalg.inv(YIQ) @ turn @ YIQ, y)
    return torch.where(torch.rand(n, 1, 1, 1) < 0.8, y, x).clamp(0, 1)


def view(x, side_px):
    x = jitter(crop_and_flip(x, side_px))
    grey = (x * GREY).sum(1, keepdim=True).expand_as(x)
    x = torch.where(torch.rand(x.shape[0], 1, 1, 1) < 0.2, grey, x)
    return (x - MEAN) / DEVIATION


def head(inputs, hidden=512, outputs=128):
    return nn.Sequential(nn.Linear(inputs, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(),
                         nn.Linear(hidden, outputs))


class Method(nn.Module):
    """An encoder with its heads, its moving average and its loss."""

    def __init__(self, name):
        super().__init__()
        self.name = name
        self.encoder = Encoder(WIDTHS["slim-resnet"]).to(memory_format=torch.channels_last)
        self.projector, self.predictor = head(256), head(128)
        self.target = copy.deepcopy(nn.ModuleList([self.encoder, self.projector]))
        queue = (4096, 128) if name == "moco" else 0
        self.contrast = NTXentLoss(temperature=TEMPERATURE, memory_bank_size=queue)
        self.similarity = NegativeCosineSimilarity()

    def trained(self):
        parts = [self.encoder, self.projector] + ([self.predictor] if self.name == "byol" else [])
        return [parameter for part in parts for parameter in part.parameters()]

    def loss(self, views, precision):
        x = torch.cat(views).contiguous(memory_format=torch.channels_last)
        with precision:
            features = self.encoder(x)
        first, second = self.projector(features.float()).chunk(2)
        if self.name == "simclr":
            return self.contrast(first, second)
        with torch.no_grad():
            with precision:
                features = self.target[0](x)
            first_key, second_key = self.target[1](features.float()).chunk(2)
        if self.name == "moco":
            return (self.contrast(first, second_key) + self.contrast(second, first_key)) / 2
        first, second = self.predictor(torch.cat([first, second])).chunk(2)
        return (self.similarity(first, second_key) + self.similarity(second, first_key)) / 2

    def follow(self):
        if self.name != "simclr":
            update_momentum(self.encoder, self.target[0], m=MOMENTUM)
            update_momentum(self.projector, self.target[1], m=MOMENTUM)


def learn(method, images, side_px, seconds, precision):
    optimizer = torch.optim.SGD(method.trained(), lr=RATE, momentum=0.9, weight_decay=5e-4)
    began, steps = time.monotonic(), 0
    while (elapsed := time.monotonic() - began) < seconds:
        arrived = min(len(images), max(BATCH, int(len(images) * elapsed / seconds)))
        batch = tensor(images[np.random.randint(0, arrived, BATCH)])
        rate = RATE * min(1, (steps + 1) / 50) * 0.5 * (1 + math.cos(math.pi * elapsed / seconds))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = method.loss([view(batch, side_px), view(batch, side_px)], precision)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        method.follow()
        steps += 1
    return steps


def embed(encoder, images):
    encoder.eval()
    with torch.inference_mode():
        batches = [(tensor(images[i:i + 500]) - MEAN) / DEVIATION for i in range(0, len(images), 500)]
        return torch.cat([encoder(x.contiguous(memory_format=torch.channels_last)) for x in batches])


def knn(reference, labels, queries, neighbours=20, temperature=0.1):
    similarity = F.normalize(queries, dim=1) @ F.normalize(reference, dim=1).T
    nearest, which = similarity.topk(neighbours, 1)
    votes = torch.zeros(len(queries), int(labels.max()) + 1)
    return votes.scatter_add_(1, labels[which], (nearest / temperature).exp()).argmax(1)


def linear(reference, labels, queries, epochs=60):
    mean, deviation = reference.mean(0), reference.std(0) + 1e-6
    x = (reference - mean) / deviation
    layer = nn.Linear(x.shape[1], int(labels.max()) + 1)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2, weight_decay=1e-4)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - epoch / epochs)
        for batch in torch.randperm(len(x)).split(512):
            loss = F.cross_entropy(layer(x[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.inference_mode():
        return layer((queries - mean) / deviation).argmax(1)


def autocast(is_bfloat16):
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_bfloat16)


def is_faster_in_bfloat16(method, images, side_px):
    """Whether autocast makes a step shorter; a copy of `method` is asked, before the time begins."""
    batch = tensor(images[:BATCH])
    views = [view(batch, side_px), view(batch, side_px)]

    def step_seconds(is_bfloat16):
        trial, taken = copy.deepcopy(method), []
        for _ in range(4):
            began = time.monotonic()
            trial.loss(views, autocast(is_bfloat16)).backward()
            taken.append(time.monotonic() - began)
        return min(taken[1:])

    return step_seconds(True) < step_seconds(False)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("stream")
    parser.add_argument("reference")
    parser.add_argument("told")
    parser.add_argument("--method", choices=["simclr", "moco", "byol"], required=True)
    parser.add_argument("--side-share", type=float, default=1.0, help="side of the views, of that of the images")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)
    images, _ = read(args.stream)
    method = Method(args.method)
    side_px = round(images.shape[1] * args.side_share)
    is_bfloat16 = is_faster_in_bfloat16(method, images, side_px)
    steps = learn(method, images, side_px, args.seconds, autocast(is_bfloat16))
    (reference, names), (told, expected) = read(args.reference), read(args.told)
    classes = {name: index for index, name in enumerate(sorted(set(names)))}
    labels = torch.tensor([classes[name] for name in names])
    expected = torch.tensor([classes[name] for name in expected])
    reference, told = embed(method.encoder, reference), embed(method.encoder, told)
    found = {"steps": steps, "images_learned": len(images), "autocast": is_bfloat16}
    for name, probe in (("knn", knn), ("linear", linear)):
        # A clone, since tensors of inference mode take no part in training.
        right = probe(reference.clone(), labels, told.clone()) == expected
        found[name] = right.float().mean().item()
        found[f"{name}_hits"] = f"{int('1' + ''.join('01'[int(hit)] for hit in right), 2):x}"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
