#!/usr/bin/env python3
"""Makes objective.json: losses and gradients by the papers' formulas, on PyTorch's autograd in f64.

    python -m venv VENV && VENV/bin/pip install torch==2.15.0 numpy
    VENV/bin/python tests/golden/objective.py > tests/golden/objective.json

Each formula is written from its paper (or the authors' published code, where ours says so) on the
numbers of `src/objective/NAME.rs`'s pure function: projections, predictions, keys or logits. Inputs
are rounded to three digits first, so that f32 reads what f64 computed on (to 6e-8). A gradient of
`None` says that none must flow.
"""

import json
import sys

import torch
import torch.nn.functional as F

assert torch.__version__.split("+")[0] == "2.15.0", torch.__version__
torch.set_default_dtype(torch.float64)


def noise(seed, *shape, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).mul(1000).round() / 1000


def nt_xent(z, temperature):
    """arXiv 2002.05709, equation 1, a pair at a time."""
    n = len(z)
    total = 0.0
    for i in range(n):
        similarity = F.cosine_similarity(z[i][None], z, dim=1) / temperature
        others = torch.cat([similarity[:i], similarity[i + 1 :]])
        total = total - similarity[(i + n // 2) % n] + torch.logsumexp(others, 0)
    return total / n


def small_xent(small, large, temperature):
    """A small view finds each large view of its image among the other images' large views."""
    n = len(large) // 2
    total = 0.0
    for i, row in enumerate(small):
        similarity = F.cosine_similarity(row[None], large, dim=1) / temperature
        for own, other in [(i % n, i % n + n), (i % n + n, i % n)]:
            rest = torch.cat([similarity[:other], similarity[other + 1 :]])
            total = total - similarity[own] + torch.logsumexp(rest, 0)
    return total / (2 * len(small))


def byol(predictions, targets):
    """arXiv 2006.07733, equation 2, over all pairs of a view and another view's target."""
    targets = targets.detach().chunk(2)
    views = predictions.split(len(targets[0]))
    one_way = lambda p, z: 2 - 2 * (p * z).sum(1) / (p.norm(dim=1) * z.norm(dim=1))
    pairs = [(p, z) for v, p in enumerate(views) for t, z in enumerate(targets) if v != t]
    return 2 * torch.stack([one_way(p, z).mean() for p, z in pairs]).mean()


def moco(queries, keys, queue, temperature):
    """arXiv 1911.05722, algorithm 1."""
    q, k, queue = F.normalize(queries), F.normalize(keys.detach()), F.normalize(queue.detach())
    l_pos = torch.einsum("nc,nc->n", q, k)[:, None]
    l_neg = torch.einsum("nc,kc->nk", q, queue)
    logits = torch.cat([l_pos, l_neg], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


def moco_v3(queries, keys, temperature):
    """arXiv 2104.02057, algorithm 1's ctr."""
    q, k = F.normalize(queries), F.normalize(keys.detach())
    logits = q @ k.T / temperature
    return 2 * temperature * F.cross_entropy(logits, torch.arange(len(q)))


def vicreg(x, y, invariance, variance, covariance):
    """arXiv 2105.04906, algorithm 1, with the published code's means."""
    n, width = x.shape
    std = lambda z: torch.sqrt(z.var(dim=0) + 1e-4)
    std_loss = F.relu(1 - std(x)).mean() / 2 + F.relu(1 - std(y)).mean() / 2

    def off_diagonal(z):
        cov = torch.cov(z.T)
        return (cov - torch.diag(torch.diag(cov))).pow(2).sum() / width

    cov_loss = off_diagonal(x) + off_diagonal(y)
    return invariance * F.mse_loss(x, y) + variance * std_loss + covariance * cov_loss


def sigmoid(z, bias, temperature):
    """-log sigmoid(s (b - d^2 / tau)), pair by pair; cf. arXiv 2303.15343, equation in 3.2."""
    n = len(z)
    unit = F.normalize(z)
    total = 0.0
    for i in range(n):
        for j in range(n):
            if i != j:
                sign = 1 if abs(i - j) == n // 2 else -1
                squared = (unit[i] - unit[j]).pow(2).sum()
                total = total - F.logsigmoid(sign * (bias[0] - squared / temperature))
    return total / n


def rotation(logits):
    """arXiv 1803.07728, equations 2 and 3: images' views of one turn lie together."""
    labels = torch.arange(4).repeat_interleave(len(logits) // 4)
    return F.cross_entropy(logits, labels)


def instance(projections, own, others, temperature):
    """arXiv 1805.01978, equations 2 and 3, the own class beside all others."""
    v, own, others = F.normalize(projections), F.normalize(own), F.normalize(others)
    own, others = own.detach(), others.detach()
    logits = torch.cat([(v * own).sum(1, keepdim=True), v @ others.T], dim=1) / temperature
    return -torch.log(torch.softmax(logits, dim=1)[:, 0]).mean()


def emp(z, crops, invariance, epsilon_squared):
    """arXiv 2304.03977, equations 1 and 3, over lambda."""
    views = F.normalize(z).chunk(int(crops))
    mean = torch.stack(views).mean(0)
    agreement = torch.stack([F.cosine_similarity(view, mean).mean() for view in views]).mean()
    n, width = views[0].shape

    def rate(view):
        z = view.T  # [P, N]
        return torch.logdet(torch.eye(width) + width / (n * epsilon_squared) * z @ z.T) / 2

    return -agreement - torch.stack([rate(view) for view in views]).mean() / invariance


CASES = [
    ("simclr", nt_xent, [noise(1, 8, 5)], {"temperature": 0.2}),
    ("simclr", nt_xent, [noise(2, 12, 16)], {"temperature": 0.5}),
    ("simclr-small", small_xent, [noise(31, 9, 5), noise(32, 6, 5)], {"temperature": 0.2}),
    ("byol", byol, [noise(3, 8, 5), noise(4, 8, 5)], {}),
    ("byol", byol, [noise(33, 12, 5), noise(34, 6, 5)], {}),
    ("byol", byol, [noise(5, 6, 12, scale=3.0), noise(6, 6, 12, scale=0.1)], {}),
    ("moco", moco, [noise(7, 6, 5), noise(8, 6, 5), noise(9, 11, 5)], {"temperature": 0.2}),
    ("moco", moco, [noise(10, 4, 8), noise(11, 4, 8), noise(12, 32, 8)], {"temperature": 0.07}),
    ("moco-v3", moco_v3, [noise(13, 6, 5), noise(14, 6, 5)], {"temperature": 0.2}),
    ("moco-v3", moco_v3, [noise(15, 9, 8), noise(16, 9, 8)], {"temperature": 1.0}),
    (
        "vicreg",
        vicreg,
        [noise(17, 6, 5, scale=0.7), noise(18, 6, 5, scale=1.2)],
        {"invariance": 25.0, "variance": 25.0, "covariance": 1.0},
    ),
    (
        "vicreg",
        vicreg,
        [noise(19, 9, 12, scale=0.3), noise(20, 9, 12)],
        {"invariance": 1.0, "variance": 3.0, "covariance": 0.5},
    ),
    ("sigmoid", sigmoid, [noise(21, 8, 5), noise(22, 1)], {"temperature": 0.2}),
    ("sigmoid", sigmoid, [noise(23, 12, 8), noise(24, 1)], {"temperature": 1.5}),
    ("rotation", rotation, [noise(25, 12, 4)], {}),
    (
        "instance",
        instance,
        [noise(26, 6, 5), noise(27, 6, 5), noise(28, 9, 5)],
        {"temperature": 0.1},
    ),
    # Fewer images than coordinates, then more.
    ("emp", emp, [noise(29, 15, 8)], {"crops": 3, "invariance": 200.0, "epsilon_squared": 0.2}),
    ("emp", emp, [noise(30, 28, 4)], {"crops": 4, "invariance": 2.0, "epsilon_squared": 0.5}),
]


def case(name, formula, inputs, arguments):
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    loss = formula(*inputs, *arguments.values())
    loss.backward()
    return {
        "objective": name,
        "arguments": arguments,
        "inputs": [
            {
                "shape": list(tensor.shape),
                "values": tensor.flatten().tolist(),
                "gradient": None
                if tensor.grad is None
                else [float(f"{value:.9g}") for value in tensor.grad.flatten().tolist()],
            }
            for tensor in inputs
        ],
        "loss": float(f"{loss.item():.12g}"),
    }


def main():
    made_by = "tests/golden/objective.py, torch 2.15.0"
    cases = [case(*arguments) for arguments in CASES]
    json.dump({"made_by": made_by, "cases": cases}, sys.stdout, separators=(",", ":"))
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
