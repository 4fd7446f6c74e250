"""The identity-initialised ReLU network reads a handwritten digit one pixel a step, and says at the end which it was.

The recurrent map begins as the identity: what was read stays, until learning has found what to forget.
Source: Le, Jaitly and Hinton 2015, sections 2 and 4.2, there with 784 pixels. Those of scikit-learn have 64; a second
argument, the side of the picture, draws them larger: `150 28` reads 784.
"""

import sys

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from martes.networks import TemporalModule

SIZE = 100


class IdentityRNN(TemporalModule):
    """h' = relu(W x + U h + b), U the identity at first; logits are a map of h."""

    reads, writes = ("pixel",), ("logits",)

    def __init__(self):
        super().__init__()
        self.inward, self.recurrent = nn.Linear(1, SIZE), nn.Linear(SIZE, SIZE, bias=False)
        self.outward = nn.Linear(SIZE, 10)
        nn.init.normal_(self.inward.weight, std=0.1)
        nn.init.zeros_(self.inward.bias)
        nn.init.eye_(self.recurrent.weight)

    def initial_memory(self, envs):
        """Nothing read yet."""
        return torch.zeros(envs, SIZE)

    def step(self, inputs, memory):
        """One pixel read: the loop over time is the library's."""
        memory = torch.relu(self.inward(inputs["pixel"]) + self.recurrent(memory))
        return {"logits": self.outward(memory)}, memory


def read(network, digits):
    """Logits [digit 10] after the last pixel of `digits` [digit pixel]."""
    pixels = digits.T.unsqueeze(2)  # time env 1
    start = torch.zeros(pixels.shape[:2], dtype=torch.bool)
    return network.sequence({"pixel": pixels}, network.initial_memory(len(digits)), start)[0]["logits"][-1]


def drawn(digits, side):
    """Pictures [digit pixel] of side x side, from those of 8 x 8."""
    if side == 8:
        return digits
    larger = functional.interpolate(digits.view(-1, 1, 8, 8), (side, side), mode="bilinear", antialias=True)
    return larger.flatten(1)


def main(epochs=150, side=8):
    """Learns from 1437 digits, is tested on 360 others."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    chance = np.random.default_rng(0)
    digits, labels = (torch.as_tensor(each) for each in load_digits(return_X_y=True))
    digits = drawn(digits.float() / 16, side)
    taught, tested = torch.as_tensor(chance.permutation(len(digits))).split((1437, 360))
    network = IdentityRNN()
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, epochs)
    for _ in range(epochs):
        for part in taught[torch.randperm(len(taught))].tensor_split(15):
            loss = functional.cross_entropy(read(network, digits[part]), labels[part])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
        schedule.step()
    with torch.no_grad():
        right = read(network, digits[tested]).argmax(1) == labels[tested]
    print(f"accuracy after {side * side} steps of one pixel: {right.float().mean():.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
