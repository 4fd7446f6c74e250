"""A windowed transformer predicts the next character of a text that ships with Python: its own manual pages.

It learns from whole stretches of text at once, and writes with the same weights one character a step, from a ring of
keys and values.
"""

import sys
from pydoc_data.topics import topics

import torch
from torch.nn import functional

from martes.data import Vector
from martes.networks import Network
from martes.networks.predictors import Predictor

STRETCH, BATCH = 128, 32
NETWORK = Network(hidden=(64,), activation="gelu", memory="attention", memory_layers=2, memory_window=32)


def text_and_alphabet():
    """About 450,000 characters as numbers, and the characters that they stand for; rare ones are all `?`."""
    text = "\n".join(topics[name] for name in sorted(topics))
    text = "".join(each if each.isascii() and (each.isprintable() or each == "\n") else "?" for each in text)
    alphabet = sorted(set(text))
    return torch.tensor([alphabet.index(each) for each in text]), alphabet


def bits(logits, text):
    """Bits a character [...] that the text costs, each character being predicted by the logits before it."""
    return functional.cross_entropy(logits.flatten(0, 1), text.flatten(), reduction="none") / 0.6931


def pair_bits(taught, tested, count):
    """Bits a character of a model that knows how often each character followed each other."""
    pairs = torch.bincount(taught[:-1] * count + taught[1:], minlength=count**2).view(count, count) + 1.0
    chances = pairs / pairs.sum(1, keepdim=True)
    return -chances[tested[:-1], tested[1:]].log2().mean()


def written(predictor, opening, alphabet, length):
    """The opening, and what the model thinks comes after it."""
    memory, text = predictor.initial_memory(1), list(opening)
    there = torch.ones(1, 1, dtype=torch.bool)
    with torch.no_grad():
        for place in range(len(opening) + length - 1):
            letter = functional.one_hot(torch.tensor([[alphabet.index(text[place])]]), len(alphabet)).float()
            outputs, memory = predictor.step({"letter": letter, "agent_mask": there}, memory)
            if place + 1 >= len(opening):
                text.append(alphabet[torch.multinomial((outputs["prediction"] / 0.6).softmax(-1).flatten(), 1)])
    return "".join(text)


def main(steps=250):
    """Learns from nine tenths of the text, is tested on the rest."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    text, alphabet = text_and_alphabet()
    taught, tested = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    predictor = Predictor({"letter": Vector(len(alphabet))}, len(alphabet), NETWORK, torch.Generator().manual_seed(0))
    optimiser = torch.optim.Adam(predictor.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, steps)
    for step in range(1, steps + 1):
        places = torch.randint(len(taught) - STRETCH - 1, (BATCH,)) + torch.arange(STRETCH + 1)[:, None]  # time env
        part = taught[places]
        logits = predictor.predicted(functional.one_hot(part[:-1], len(alphabet)).float())
        loss = bits(logits, part[1:]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: {loss:.2f} bits a character")
    rows = tested[: len(tested) // 1000 * 1000].view(-1, 1000).T[:, :40]
    with torch.no_grad():
        logits = predictor.predicted(functional.one_hot(rows[:-1], len(alphabet)).float())
    print(written(predictor, "The class", alphabet, 200))
    print(f"bits a character of text it never saw: {bits(logits, rows[1:]).mean():.3f}")
    print(f"by the frequencies of pairs: {pair_bits(taught, tested, len(alphabet)):.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
