"""The encoders of this project in PyTorch, for bench-vs-pytorch and bench-learning: same shapes, random weights."""

import torch
from torch import nn
from torch.nn import functional as F

SIDE_PX = 32
WIDTHS = {"slim-resnet": [32, 64, 128, 256], "resnet18": [64, 128, 256, 512]}


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
