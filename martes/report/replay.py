"""A policy at play, as pictures: GIF, MP4, or a window."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from martes.data import Schema, VectorEnv, Workspace
from martes.envs.batched.drawing import INK, PAPER
from martes.errors import ConfigError, MartesError, require
from martes.networks import Chain, TemporalModule, act
from martes.training.seeding import generator_of

Picture = UInt8[np.ndarray, "height width 3"]
FilmWriter = Callable[[Sequence[Picture], Path, float], None]

FRAMES_PER_SECOND = 6
_NARROWEST = 320
"""Pixels; smaller pictures are enlarged by a whole number, so that the strip below them can be read."""
_STRIP = 30
_HELD = 6
"""How often the last picture of an episode is shown."""


class Shot(NamedTuple):
    """A picture of what a team saw, and what its action there earned."""

    picture: Picture
    episode: int
    step: int
    """Both count from 1."""
    reward: float
    earned: float
    """The return of the episode so far; as the reward, summed over the team."""
    is_last: bool
    """Does the episode end here?"""


def shots(policy: TemporalModule, env: VectorEnv, steps: int, greedy: bool = True, seed: int = 0) -> Iterator[Shot]:
    """The first copy of `env` over `steps` steps, one by one."""
    actor = policy.part_for("action")
    schema = Schema.from_team(env.team).extended(**actor.fields())
    device = next((parameter.device for parameter in actor.parameters()), torch.device("cpu"))
    workspace = Workspace(schema, time=1, envs=env.num_envs, device=device)
    generator = None if greedy else generator_of(seed, "replay", device=device)
    chain, memory = Chain(env, actor), actor.initial_memory(env.num_envs)
    first = env.reset(seed)
    workspace.write(1, {**first.seen, "start": first.start})
    episode, step, earned = 1, 0, 0.0
    for _ in range(steps):
        picture = env.render()
        workspace.carry()
        workspace.memory = memory
        memory = act(chain, workspace, 0, 1, generator=generator)
        reward, is_last = float(workspace["reward"][0, 0].sum()), bool(workspace["cut"][0, 0])
        step, earned = step + 1, earned + reward
        yield Shot(picture, episode, step, reward, earned, is_last)
        if is_last:
            episode, step, earned = episode + 1, 0, 0.0


def replay_frames(
    policy: TemporalModule,
    env: VectorEnv,
    steps: int,
    greedy: bool = True,
    seed: int = 0,
    episodes: int | None = None,
) -> list[Picture]:
    """Pictures of `steps` steps of the first copy of `env`: its state, and below it what the action taken there earned.

    They end earlier where so many `episodes` have. The last picture of an episode is repeated a few times, so that one
    sees how it ended.
    """
    frames: list[Picture] = []
    for shot in shots(policy, env, steps, greedy, seed):
        if episodes is not None and shot.episode > episodes:
            break
        frames += [_captioned(shot)] * (_HELD if shot.is_last else 1)
    return frames


def _captioned(shot: Shot) -> Picture:
    text = f"episode {shot.episode}   step {shot.step}   reward {shot.reward:.2f}   return {shot.earned:.2f}"
    image = Image.fromarray(shot.picture)
    factor = max(1, -(-_NARROWEST // image.width))
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    sheet = Image.new("RGB", (image.width, image.height + _STRIP), PAPER)
    sheet.paste(image)
    draw = ImageDraw.Draw(sheet)
    size = 14.0
    while size > 6 and draw.textlength(text, ImageFont.load_default(size)) > image.width - 16:
        size -= 0.5
    draw.text((8, image.height + _STRIP / 2), text, fill=INK, font=ImageFont.load_default(size), anchor="lm")
    return np.asarray(sheet)


def film_writer(path: Path) -> FilmWriter:
    """What writes films of this name, by its suffix. Raises ConfigError for another suffix, MissingExtra."""
    writers: dict[str, FilmWriter] = {".gif": _save_gif, ".mp4": _save_mp4}
    suffix = path.suffix.lower()
    if suffix not in writers:
        raise ConfigError(f"cannot write a replay as {path.name!r}: end its name with {' or '.join(writers)}")
    if suffix == ".mp4":
        require("imageio_ffmpeg", "video")
    return writers[suffix]


def save_replay(frames: Sequence[Picture], path: Path, frames_per_second: float = FRAMES_PER_SECOND) -> Path:
    """The path of a GIF or an MP4 (by its suffix; MP4 needs the extra `video`) that shows the frames.

    Raises ConfigError for another suffix, MartesError where the file cannot be written.
    """
    writer = film_writer(path)
    if not frames:
        raise ConfigError(f"there is no frame to write to {path}: play at least one step")
    try:
        writer(frames, path, frames_per_second)
    except OSError as error:
        raise MartesError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _save_gif(frames: Sequence[Picture], path: Path, frames_per_second: float) -> None:
    # One palette for all, from pictures all over the film: colours do not flicker, and what stands still costs nothing.
    # The octree's colours survive Pillow's coarse search for the nearest one; those of the median cut drift.
    sampled = [frames[index] for index in np.linspace(0, len(frames) - 1, min(len(frames), 12)).astype(int)]
    palette = Image.fromarray(np.concatenate(sampled)).quantize(255, Image.Quantize.FASTOCTREE)
    first, *others = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    first.save(path, save_all=True, append_images=others, duration=round(1000 / frames_per_second), loop=0)


def _save_mp4(frames: Sequence[Picture], path: Path, frames_per_second: float) -> None:
    height, width = (-(-side // 2) * 2 for side in frames[0].shape[:2])  # the codec halves its colour planes
    padding = [(0, height - frames[0].shape[0]), (0, width - frames[0].shape[1]), (0, 0)]
    film = np.stack([np.pad(frame, padding, mode="edge") for frame in frames])
    writer = require("imageio.v3", "video")
    writer.imwrite(path, film, plugin="FFMPEG", fps=frames_per_second, macro_block_size=2)


def has_display() -> bool:
    """Is there a screen to open a window on?"""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def show_replay(frames: Sequence[Picture], title: str, frames_per_second: float = FRAMES_PER_SECOND) -> None:
    """Plays the frames in a window, over and over, until it is closed. Raises MartesError where none can be opened."""
    try:
        import tkinter

        from PIL import ImageTk
    except ImportError as error:
        raise MartesError(f"cannot open a window: this Python comes without tkinter ({error}). Write a GIF") from error
    try:
        window = tkinter.Tk()
    except tkinter.TclError as error:
        raise MartesError(f"cannot open a window: {error}. Write a GIF") from error
    window.title(title)
    label = tkinter.Label(window)
    label.pack()
    pictures = [ImageTk.PhotoImage(Image.fromarray(frame), master=window) for frame in frames]

    def turn(index: int) -> None:
        label.configure(image=pictures[index])
        window.after(round(1000 / frames_per_second), turn, (index + 1) % len(pictures))

    turn(0)
    window.mainloop()
