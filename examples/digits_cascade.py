"""A cascade of spatial transformers: time is depth. Each step looks at a picture again, through a window it chose.

Handwritten digits (8x8, from scikit-learn) lie somewhere on a canvas four times as large. The first look takes in the
whole canvas, blurred; what it saw says where the next one looks. Source: Jaderberg et al. 2015, section 3 and 4.
"""

import sys

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from martes.networks import TemporalModule

DEPTH, CANVAS, GLIMPSE = 3, 16, 8


class Cascade(TemporalModule):
    """Logits of the ten digits after each look."""

    reads, writes = ("picture",), ("logits",)

    def __init__(self):
        super().__init__()
        first, second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        last = nn.Linear(32 * (GLIMPSE // 2) ** 2, 64)
        self.eye = nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.Flatten(), last, nn.ReLU())
        self.memory = nn.GRUCell(64 + 3, 64)
        self.where, self.what = nn.Linear(64, 3), nn.Linear(64, 10)
        nn.init.zeros_(self.where.weight)
        nn.init.zeros_(self.where.bias)

    def initial_memory(self, envs):
        """Nothing seen yet, and a window (zoom, x, y) over all of the canvas."""
        return {"hidden": torch.zeros(envs, 64), "window": torch.tensor([1.0, 0.0, 0.0]).repeat(envs, 1)}

    def step(self, inputs, memory):
        """One look: the loop over time, resets included, is the library's."""
        zoom, x, y = memory["window"].unbind(1)
        none = torch.zeros_like(zoom)
        affine = torch.stack((zoom, none, x, none, zoom, y), 1).view(-1, 2, 3)
        grid = functional.affine_grid(affine, [len(zoom), 1, GLIMPSE, GLIMPSE], align_corners=False)
        glimpse = functional.grid_sample(inputs["picture"], grid, align_corners=False)
        hidden = self.memory(torch.cat((self.eye(glimpse), memory["window"]), 1), memory["hidden"])
        window = memory["window"] + self.where(hidden)
        return {"logits": self.what(hidden)}, {"hidden": hidden, "window": window}


def scattered(digits, chance):
    """The digits, each at a random place of an empty canvas."""
    canvas = np.zeros((len(digits), CANVAS, CANVAS), np.float32)
    corners = chance.integers(CANVAS - 8 + 1, size=(len(digits), 2))
    for picture, digit, (x, y) in zip(canvas, digits, corners, strict=True):
        picture[y : y + 8, x : x + 8] = digit
    return torch.as_tensor(canvas)[:, None]


def looked(cascade, pictures):
    """Logits [depth picture digit]."""
    count = len(pictures)
    start = torch.zeros(DEPTH, count, dtype=torch.bool)
    seen = {"picture": pictures.expand(DEPTH, *pictures.shape)}  # the same at every step, stored once
    return cascade.sequence(seen, cascade.initial_memory(count), start)[0]["logits"]


def main(epochs=150):
    """Learns from 1437 digits, is tested on 360 others."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    chance = np.random.default_rng(0)
    digits, labels = load_digits(return_X_y=True)
    digits, labels = digits.reshape(-1, 8, 8).astype(np.float32) / 16, torch.as_tensor(labels)
    order = chance.permutation(len(digits))
    taught, tested = order[:1437], order[1437:]
    cascade = Cascade()
    optimiser = torch.optim.Adam(cascade.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, epochs)
    for _ in range(epochs):
        for part in np.array_split(chance.permutation(taught), 22):
            logits = looked(cascade, scattered(digits[part], chance))
            answer = labels[part].expand(DEPTH, -1)
            loss = functional.cross_entropy(logits.flatten(0, 1), answer.flatten())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        schedule.step()
    with torch.no_grad():
        right = looked(cascade, scattered(digits[tested], chance)).argmax(2) == labels[tested]
    for depth, share in enumerate(right.float().mean(1), start=1):
        print(f"accuracy after look {depth}: {share:.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
