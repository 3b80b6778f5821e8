#!/usr/bin/env python3
"""Makes monitor.json: label-free monitors of embeddings, by NumPy in f64.

    python -m venv VENV && VENV/bin/pip install numpy==2.4.6
    VENV/bin/python tests/golden/monitor.py > tests/golden/monitor.json

Formulas are those of src/gate/monitor/*.rs and of the papers named there.
"""

import json

import numpy as np


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def spread(rows):
    return np.sqrt(rows.shape[1]) * np.sqrt(np.mean(rows.var(axis=0)))


def alignment(views):
    pairs = [(v, w) for v in range(len(views)) for w in range(v + 1, len(views))]
    return np.mean([((views[v] - views[w]) ** 2).sum(axis=1) for v, w in pairs])


def uniformity(rows):
    squared = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)
    above = np.triu_indices(len(rows), 1)
    return np.log(np.exp(-2 * squared[above]).mean())


def rankme(rows):
    singular = np.linalg.svd(rows, compute_uv=False)
    shares = singular / singular.sum() + 1e-7
    return np.exp(-(shares * np.log(shares)).sum())


def alpha_req(rows):
    eigenvalues = np.linalg.eigvalsh(np.cov(rows.T))[::-1][:50]
    eigenvalues = eigenvalues[eigenvalues > 1e-9 * eigenvalues[0]]
    rank = np.arange(1, len(eigenvalues) + 1)
    # polyfit squares its weights.
    return -np.polyfit(np.log(rank), np.log(eigenvalues), 1, w=rank ** -0.5)[0]


def main():
    rng = np.random.default_rng(20261128)
    cases = []
    for n_images, dim, n_views, decay in [(24, 8, 2, 0.5), (10, 16, 3, 1.0), (40, 12, 2, 2.0)]:
        scale = np.arange(1, dim + 1) ** -decay
        images = rng.normal(size=(n_images, dim)) * scale + 0.3
        noise = 0.2 * rng.normal(size=(n_views, n_images, dim)) * scale
        views = np.round(images + noise, 4)
        units = [unit(view) for view in views]
        cases.append({
            "dim": dim, "views": [view.flatten().tolist() for view in views],
            "spread": spread(units[0]), "alignment": alignment(units),
            "uniformity": uniformity(units[0]), "rankme": rankme(units[0]),
            "alpha_req": alpha_req(units[0]),
        })
    print(json.dumps(cases))


if __name__ == "__main__":
    main()
