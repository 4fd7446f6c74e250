import os
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from martes.algorithms.ppo import PPO
from martes.envs.batched.engine import BatchedEnv
from martes.envs.catalogue import make_env
from martes.errors import ConfigError, MartesError, MissingExtra
from martes.report import has_display, replay_frames, save_replay, show_replay
from martes.report.chance import UniformPolicy
from martes.report.replay import shots
from martes.training.evaluate import evaluate


def policy_of(env, **config):
    return PPO(**config).learner(env.team, torch.Generator().manual_seed(0)).policy


@pytest.fixture(scope="module")
def film():
    """Two episodes of spread."""
    env = make_env("mpe-spread", 1)
    return replay_frames(policy_of(env), env, 50, seed=3)


def test_shots_count_steps_and_add_up_rewards_episode_by_episode():
    env = make_env("mpe-spread", 2)
    found = list(shots(policy_of(env), env, 60))
    assert [shot.step for shot in found] == [*range(1, 26), *range(1, 26), *range(1, 11)]
    assert [shot.episode for shot in found] == [1] * 25 + [2] * 25 + [3] * 10
    assert [index for index, shot in enumerate(found) if shot.is_last] == [24, 49]
    assert found[24].earned == pytest.approx(sum(shot.reward for shot in found[:25]))
    assert found[25].earned == found[25].reward


def test_the_games_shown_are_those_that_an_evaluation_of_the_same_seed_scores():
    env = make_env("mpe-spread", 1)
    policy = policy_of(env)
    shown = [shot.earned for shot in shots(policy, env, 75, seed=5) if shot.is_last]
    assert shown == pytest.approx(evaluate(policy, env, 3, seed=5).returns.tolist(), rel=1e-5)


def test_memory_is_carried_from_shot_to_shot():
    env = make_env("memory-cue", 1)
    policy = policy_of(env, network=PPO().network.__class__(memory="gru"))
    steps = 2 * (env.team.episode_limit or 20)
    shown = [shot.earned for shot in shots(policy, env, steps, seed=1) if shot.is_last]
    assert shown and shown == pytest.approx(evaluate(policy, env, len(shown), seed=1).returns.tolist())


def test_a_sampled_replay_differs_from_a_greedy_one_and_repeats_with_its_seed():
    env = make_env("mpe-spread", 1)
    policy = UniformPolicy(env.team)
    first, again, greedy = ([shot.reward for shot in shots(policy, env, 10, way, 1)] for way in (False, False, True))
    assert first == again != greedy


def test_frames_show_the_picture_above_a_strip_and_hold_the_end_of_an_episode(film):
    assert len(film) == 50 + 2 * 5 and {frame.shape for frame in film} == {(430, 400, 3)}
    assert all((film[24] == frame).all() for frame in film[25:30]) and (film[30] != film[29]).any()
    env = make_env("mpe-spread", 1)
    env.reset(3)
    assert (film[0][:400] == env.render()).all(), "the first picture is what the team saw first"
    strips = [frame[400:] for frame in film[:25]]
    assert all((strip < 100).any() for strip in strips), "there is text"
    assert all((one != two).any() for one, two in pairwise(strips)), "and it changes"


def test_small_pictures_are_enlarged_so_that_the_strip_can_be_read():
    class Tiny(BatchedEnv):
        def render(self, index=0):
            return np.zeros((5, 7, 3), np.uint8)

    env = Tiny(make_env("climbing", 1).game, 1)
    frame = replay_frames(UniformPolicy(env.team), env, 1)[0]
    assert frame.shape == (46 * 5 + 30, 46 * 7, 3) and (frame[: 46 * 5] == 0).all()


def test_a_gif_of_two_episodes_is_small_and_reads_back(film, tmp_path):
    path = save_replay(film, tmp_path / "replay.gif", frames_per_second=10)
    assert path.stat().st_size < 1_000_000
    with Image.open(path) as image:
        assert image.size == (400, 430) and image.info["loop"] == 0
        lasts, shown = [], []
        for index in range(image.n_frames):
            image.seek(index)
            lasts.append(image.info["duration"])
            shown.append(np.asarray(image.convert("RGB")).astype(int))
    assert sum(lasts) == 100 * len(film) and lasts.count(600) == 2, "equal pictures became one that lasts longer"
    distinct = [frame for index, frame in enumerate(film) if index == 0 or (frame != film[index - 1]).any()]
    assert len(shown) == len(distinct)
    assert max(np.abs(one - two).mean() for one, two in zip(shown, distinct, strict=True)) < 1


@pytest.mark.extras
def test_an_mp4_reads_back(film, tmp_path):
    import imageio.v3 as iio

    odd = [frame[:-1, :-1] for frame in film]
    path = save_replay(odd, tmp_path / "replay.mp4")
    frames = iio.imread(path, plugin="FFMPEG")
    assert frames.shape == (60, 430, 400, 3)
    assert np.abs(frames[0][:429, :399].astype(int) - odd[0]).mean() < 4
    assert iio.immeta(path, plugin="FFMPEG")["fps"] == 6


def test_without_imageio_the_error_says_what_to_install(film, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(MissingExtra, match=r"pip install 'martes\[video\]'"):
        save_replay(film, tmp_path / "replay.mp4")


def test_other_formats_and_empty_films_are_refused(film, tmp_path):
    with pytest.raises(ConfigError, match=r"'replay\.webp': end its name with \.gif or \.mp4"):
        save_replay(film, tmp_path / "replay.webp")
    with pytest.raises(ConfigError, match="no frame"):
        save_replay([], tmp_path / "replay.gif")


def test_a_folder_that_is_not_there_is_one_clear_error(film, tmp_path):
    with pytest.raises(MartesError, match=r"cannot write.*No such file"):
        save_replay(film, tmp_path / "nowhere/replay.gif")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always a screen")
def test_without_a_screen_there_is_no_window_but_an_error_that_says_what_to_do(film, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert not has_display()
    with pytest.raises(MartesError, match="Write a GIF"):
        show_replay(film, "title")
    monkeypatch.setitem(os.environ, "DISPLAY", ":0")
    assert has_display()
