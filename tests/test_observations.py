"""Observations: every key in its space, nothing computed that was not asked for, nothing told that was not seen."""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from canvit_pytorch import Viewpoint, sample_at_viewpoint
from conftest import ENV_IDS, each_id_with
from datasets import classification_probe
from torch.utils.flop_counter import FlopCounterMode

import canvit_gym
from canvit_gym import device_step as device_step_module
from canvit_gym import observations as observations_module
from canvit_gym import viewpoints as viewpoints_module
from canvit_gym.backbone.hub import asset_dir
from canvit_gym.command_line import env_config
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import evaluate
from canvit_gym.observations import (
    DEFAULT_KEYS,
    GAZE_LENGTH,
    OBSERVATIONS,
    FloatDtype,
    ObservationKey,
    sketch_directions,
    update_acuity,
)
from canvit_gym.policies import make_policy
from canvit_gym.policies.learned import load_record
from canvit_gym.policies.policy_record import as_trained
from canvit_gym.rewards import REWARDS
from canvit_gym.scenes.datasets import DATASETS
from canvit_gym.scenes.source import SceneBatch
from canvit_gym.tasks import TASKS, classification, segmentation
from canvit_gym.tasks.task import Task, declared_potentials
from canvit_gym.vector_env import GlimpseVectorEnv
from canvit_gym.viewpoints import to_viewpoint

MakeVec = Callable[..., GlimpseVectorEnv]
KEYS: tuple[ObservationKey, ...] = tuple(key for key in OBSERVATIONS if key != "goal")
SUBSETS = [KEYS, DEFAULT_KEYS, *((key,) for key in KEYS), ("cls", "time"), ("canvas", "glimpse")]


def trajectory(envs: GlimpseVectorEnv, *, seed: int = 0, steps: int = 6) -> list[dict[str, np.ndarray]]:
    envs.action_space.seed(seed)
    observations = [envs.reset(seed=seed)[0]]
    return observations + [envs.step(envs.action_space.sample())[0] for _ in range(steps)]


@pytest.mark.parametrize(("env_id", "keys", "dtype"), each_id_with(SUBSETS, get_args(FloatDtype)))
def test_any_subset_lies_in_its_space(
    make_vec: MakeVec, env_id: str, keys: tuple[ObservationKey, ...], dtype: str
) -> None:
    envs = make_vec(3, env_id, observations=keys, observation_dtype=dtype, first_glimpse=None, budget=3)
    for observation in trajectory(envs):
        assert set(observation) == set(keys)
        assert envs.observation_space.contains(observation)
        assert all(np.isfinite(value).all() for value in observation.values())
        assert all(value.dtype == (np.uint8 if key == "glimpse" else dtype) for key, value in observation.items())


@pytest.mark.parametrize(("canvas_size", "map_size"), [(1, 1), (2, 16), (16, 4), (8, None), (5, 7)])
def test_any_pooled_size(make_vec: MakeVec, canvas_size: int, map_size: int | None) -> None:
    """Pooled maps are means of the full ones; acuity is computed at the size asked for."""
    pooled = make_vec(3, canvas_size=canvas_size, map_size=map_size)
    full = make_vec(3, canvas_size=16, map_size=16)
    map_size = map_size or 16
    for small, large in zip(trajectory(pooled), trajectory(full), strict=True):
        assert pooled.observation_space.contains(small)
        for key, size in (("canvas", canvas_size), ("uncertainty", map_size)):
            expected = F.adaptive_avg_pool2d(torch.from_numpy(large[key]), size).numpy()
            np.testing.assert_allclose(small[key], expected, atol=1e-5, err_msg=key)
        assert small["acuity"].shape == (3, 1, map_size, map_size)


def test_canvas_is_the_layer_normalized_canvas(make_vec: MakeVec) -> None:
    envs = make_vec(3, canvas_size=16)
    observation, _ = envs.reset(seed=0)
    tokens = envs.state.canvas[:, -256:].float()
    expected = F.layer_norm(tokens, (tokens.shape[-1],)).transpose(1, 2).reshape(3, -1, 16, 16)
    np.testing.assert_allclose(observation["canvas"], expected.numpy(), atol=1e-6)


def test_cls_is_the_layer_normalized_recurrent_cls(make_vec: MakeVec) -> None:
    envs = make_vec(3, observations=["cls"])
    observation, _ = envs.reset(seed=0)
    token = envs.state.recurrent_cls[:, 0]
    np.testing.assert_allclose(observation["cls"], F.layer_norm(token, token.shape[-1:]).numpy(), atol=1e-6)


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_uncertainty_is_the_probes_entropy(make_vec: MakeVec, env_id: str) -> None:
    envs = make_vec(3, env_id)
    observation, _ = envs.reset(seed=0)
    logits = envs.episodes.logits
    assert logits is not None
    p = torch.softmax(logits.double(), dim=1)
    entropy = -(p * p.log()).sum(dim=1) / math.log(logits.shape[1])
    np.testing.assert_allclose(observation["uncertainty"][:, 0], entropy.numpy(), atol=1e-5)


def test_acuity_is_the_finest_scale_seen(make_vec: MakeVec) -> None:
    """Against the definition, cell by cell."""
    envs = make_vec(1, action="continuous", first_glimpse=None, budget=6, autoreset_mode="disabled")
    envs.action_space.seed(3)
    observation, _ = envs.reset(seed=0)
    assert not observation["acuity"].any()
    seen: list[np.ndarray] = []
    for _ in range(6):
        observation, *_, info = envs.step(envs.action_space.sample())
        seen.append(info["viewpoint"][0])
        expected = np.zeros((16, 16), dtype=np.float32)
        for i, j in itertools.product(range(16), repeat=2):
            center = np.array([(2 * i + 1) / 16 - 1, (2 * j + 1) / 16 - 1])
            scales = [v[2] for v in seen if np.abs(center - v[:2]).max() <= v[2]]
            expected[i, j] = min(scales, default=0)
        np.testing.assert_allclose(observation["acuity"][0, 0], expected)


def test_acuity_never_gets_coarser() -> None:
    fine = Viewpoint(centers=torch.zeros(1, 2), scales=torch.tensor([0.25]))
    coarse = Viewpoint(centers=torch.zeros(1, 2), scales=torch.tensor([1.0]))
    after = update_acuity(update_acuity(torch.zeros(1, 8, 8), fine), coarse)
    assert after[0, 4, 4] == 0.25 and after[0, 0, 0] == 1


def test_viewpoint_and_time(make_vec: MakeVec) -> None:
    envs = make_vec(3, budget=4, autoreset_mode="disabled")
    observation, info = envs.reset(seed=0)
    times = [observation["time"]]
    for _ in range(3):
        observation, *_, info = envs.step(envs.action_space.sample())
        assert np.array_equal(observation["viewpoint"], info["viewpoint"])
        times.append(observation["time"])
    np.testing.assert_allclose(np.stack(times)[:, :, 0], np.tile([[0.75], [0.5], [0.25], [0]], (1, 3)))


def test_gaze_is_the_last_viewpoints_newest_first(make_vec: MakeVec) -> None:
    envs = make_vec(3, observations=["viewpoint", "gaze"], budget=11, autoreset_mode="disabled")
    observation, _ = envs.reset(seed=0)
    seen = [observation["viewpoint"]]
    envs.action_space.seed(0)
    for _ in range(10):
        gaze = observation["gaze"].reshape(3, GAZE_LENGTH, 3)
        recent = seen[::-1][:GAZE_LENGTH]
        assert np.array_equal(gaze[:, : len(recent)], np.stack(recent, axis=1))
        assert not gaze[:, len(recent) :].any()
        observation, *_ = envs.step(envs.action_space.sample())
        seen.append(observation["viewpoint"])
    observation, _ = envs.reset(options={"reset_mask": np.array([False, True, False])})
    assert np.array_equal(observation["gaze"][1], np.append([0, 0, 1], np.zeros(3 * GAZE_LENGTH - 3)))
    assert np.array_equal(observation["gaze"][0, :3], seen[-1][0])


def test_before_the_first_glimpse_there_is_nothing_to_see(make_vec: MakeVec) -> None:
    envs = make_vec(3, first_glimpse=None, observations=KEYS)
    observation, info = envs.reset(seed=0)
    assert not observation["acuity"].any() and not observation["glimpse"].any()
    assert not observation["viewpoint"].any() and (observation["time"] == 1).all()
    assert (info["glimpses"] == 0).all()
    for key, value in observation.items():
        assert (value == value[0]).all(), f"{key} differs between scenes that have not been seen"


def test_glimpse_is_what_the_backbone_saw(make_vec: MakeVec) -> None:
    envs = make_vec(2, observations=["glimpse"])
    observation, info = envs.reset(seed=0)
    images = envs.scenes.load(info["scene"]).images.float()
    seen = sample_at_viewpoint(
        spatial=images, viewpoint=Viewpoint.full_scene(batch_size=2, device=None), glimpse_size_px=32
    )
    assert np.abs(observation["glimpse"].astype(float) - seen.numpy()).max() <= 1


class OtherLabels:
    """A scene source with the same pixels and other labels."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._source)

    def load(self, indices: np.ndarray) -> SceneBatch:
        batch, others = self._source.load(indices), self._source.load((indices + 1) % len(self))
        return SceneBatch(images=batch.images, labels=others.labels)


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
@pytest.mark.parametrize("env_id", ENV_IDS)
def test_observations_carry_no_label(make_vec: MakeVec, env_id: str, mode: str) -> None:
    """Under other labels all observations are identical, while the losses are not."""
    kwargs = {"observations": KEYS, "budget": 3, "autoreset_mode": mode, "track_score": True, "reward": "score_gain"}
    envs, relabelled = make_vec(4, env_id, **kwargs), make_vec(4, env_id, **kwargs)
    relabelled.episodes.scenes = OtherLabels(relabelled.scenes)  # pyright: ignore[reportAttributeAccessIssue]
    for one, other in zip(trajectory(envs, steps=8), trajectory(relabelled, steps=8), strict=True):
        for key in KEYS:
            assert np.array_equal(one[key], other[key]), key
    assert not np.array_equal(envs.episodes.potentials["loss"], relabelled.episodes.potentials["loss"])


class UnseenPixelsChanged(OtherLabels):
    """A scene source in which every pixel that `seen` [num_scenes, H, W] leaves out is another."""

    def __init__(self, source: Any, seen: torch.Tensor) -> None:
        super().__init__(source)
        self._seen = seen

    def load(self, indices: np.ndarray) -> SceneBatch:
        batch = self._source.load(indices)
        images = torch.where(self._seen[indices].unsqueeze(1), batch.images, 255 - batch.images)
        return SceneBatch(images=images, labels=batch.labels)


def test_pixels_that_no_glimpse_saw_change_nothing(make_vec: MakeVec) -> None:
    """The footprint of a glimpse is where its gradient with respect to the scene is not zero."""
    kwargs = {"observations": KEYS, "budget": 3, "autoreset_mode": "disabled", "first_glimpse": [0.5, 0.5, 0.25]}
    envs = make_vec(4, action="quadtree", **kwargs)
    envs.action_space.seed(0)
    actions = [np.array([9, 12, 20, 14]), np.array([7, 8, 20, 11])]
    expected, info = envs.reset(seed=0)
    scenes, viewpoints, observations = info["scene"], [info["viewpoint"]], [expected]
    for action in actions:
        observation, *_, info = envs.step(action)
        viewpoints.append(info["viewpoint"])
        observations.append(observation)
    footprint = torch.zeros(4, 1, 128, 128, requires_grad=True)
    for rows in viewpoints:
        table = torch.from_numpy(rows)
        viewpoint = Viewpoint(centers=table[:, :2].contiguous(), scales=table[:, 2].contiguous())
        sample_at_viewpoint(spatial=footprint, viewpoint=viewpoint, glimpse_size_px=32).sum().backward()
    assert footprint.grad is not None
    seen = torch.ones(16, 128, 128, dtype=torch.bool)
    seen[scenes] = footprint.grad[:, 0] != 0
    assert 0.05 < seen[scenes].float().mean() < 0.5

    changed = make_vec(4, action="quadtree", **kwargs)
    source = UnseenPixelsChanged(changed.scenes, seen)
    changed.episodes.scenes = source  # pyright: ignore[reportAttributeAccessIssue]
    assert not torch.equal(source.load(scenes).images, changed.scenes.load(scenes).images)
    again = [changed.reset(seed=0)[0]] + [changed.step(action)[0] for action in actions]
    for one, other in zip(observations, again, strict=True):
        for key in KEYS:
            assert np.array_equal(one[key], other[key]), key


def flops(envs: GlimpseVectorEnv) -> int:
    envs.reset(seed=0)
    action = envs.action_space.sample()
    with FlopCounterMode(display=False) as counter:
        envs.step(action)
    return counter.get_total_flops()


def test_a_step_is_one_forward_of_the_backbone(make_vec: MakeVec, monkeypatch: pytest.MonkeyPatch) -> None:
    """FLOPs of a step beside those of the bare forward: the probe on every cell is all that is added."""
    envs = make_vec(4)
    envs.reset(seed=0)
    images, state = torch.zeros(4, 3, 128, 128), envs.state
    viewpoint = Viewpoint.full_scene(batch_size=4, device=None)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        envs.backbone.step(envs.backbone.glimpse(images, viewpoint), state, viewpoint)
    probe = 2 * 4 * 256 * 128 * 11
    assert flops(envs) == counter.get_total_flops() + probe
    assert flops(make_vec(4, observations=["time"])) == flops(envs)


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_nothing_is_computed_for_keys_not_asked_for(
    make_vec: MakeVec, env_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every function behind a key is counted; the layer-normalized canvas is what a dense probe reads anyway."""
    calls: dict[str, int] = {}

    def counted(module: Any, name: str) -> None:
        original = getattr(module, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            calls[name] = calls.get(name, 0) + 1
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, wrapper)

    behind = {
        "canvas": "pooled_canvas",
        "uncertainty": "predictive_uncertainty",
        "acuity": "update_acuity",
        "glimpse": "to_uint8",
    }
    for module, names in (
        (device_step_module, ("pooled_canvas", "normalized_canvas")),
        (observations_module, ("update_acuity", "to_uint8")),
        (segmentation, ("predictive_uncertainty",)),
        (classification, ("predictive_uncertainty",)),
    ):
        for name in names:
            counted(module, name)
    reads_canvas = make_vec(2, env_id).task.reads_canvas
    for keys in [("time",), ("viewpoint", "cls"), *[(key,) for key in behind]]:
        calls.clear()
        envs = make_vec(2, env_id, observations=keys, autoreset_mode="disabled")
        envs.reset(seed=0)
        envs.step(envs.action_space.sample())
        expected = {behind[key]: 2 for key in keys if key in behind}
        if reads_canvas or "canvas" in keys:
            expected["normalized_canvas"] = 2
        assert calls == expected, keys


def count_measures(kind: type[Task], monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each potential of a kind of task is measured from now on, of environments made from now on."""
    counts = dict.fromkeys(declared_potentials(kind), 0)
    for name in counts:
        original = getattr(kind, name)

        @functools.wraps(original)
        def counted(*args: Any, name: str = name, original: Any = original) -> Any:
            counts[name] += 1
            return original(*args)

        monkeypatch.setattr(kind, name, counted)
    return counts


@pytest.mark.parametrize(("env_id", "reward"), each_id_with(list(REWARDS)))
def test_nothing_is_measured_that_nobody_asked_for(
    make_vec: MakeVec, env_id: str, reward: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segmentation's score upsamples to scene size, which costs as much as much of a step."""
    spec = TASKS[DATASETS[canvit_gym.ENVIRONMENTS[env_id]["dataset"]].task]
    counts = count_measures(spec.kind, monkeypatch)
    for track_score in (False, True):
        counts.update(dict.fromkeys(counts, 0))
        envs = make_vec(2, env_id, autoreset_mode="disabled", reward=reward, track_score=track_score)
        _, info = envs.reset(seed=0)
        envs.step(envs.action_space.sample())
        asked = {*spec.kind.in_every_info, REWARDS[reward].potential, *["score"] * track_score}
        assert counts == {name: 2 * (name in asked) for name in counts}
        assert {name for name in counts if name in info} == asked


def test_observation_tensors_are_the_observation(make_vec: MakeVec) -> None:
    envs = make_vec(2, observations=KEYS)
    observation, _ = envs.reset(seed=0)
    tensors = envs.observation_tensors()
    for key, value in tensors.items():
        assert np.array_equal(value.numpy(), observation[key])
        value.zero_()
    assert all(np.array_equal(value.numpy(), observation[key]) for key, value in envs.observation_tensors().items())


def test_the_grid_of_the_acuity_map_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    original = viewpoints_module.grid_coords
    monkeypatch.setattr(viewpoints_module, "grid_coords", lambda **kw: made.append(kw["size"]) or original(**kw))
    look = to_viewpoint(np.array([[0.1, -0.2, 0.5]], dtype=np.float32), torch.device("cpu"))
    with torch.inference_mode():
        first = update_acuity(torch.zeros(1, 13, 13), look)
    assert torch.equal(first, update_acuity(torch.zeros(1, 13, 13), look)) and made == [13]


class TestCompact:
    """observation_preset="compact": what fits a replay buffer."""

    @pytest.mark.parametrize("env_id", ENV_IDS)
    def test_a_step_is_less_than_two_kilobytes(self, env_id: str) -> None:
        with gym.make(env_id, num_scenes=4, device="cpu", observation_preset="compact") as env:
            observation, _ = env.reset(seed=0)
            assert sum(value.nbytes for value in observation.values()) < 2000
            assert env.observation_space.contains(observation)
            config = env.get_wrapper_attr("envs").config
            rebuilt = EnvConfig(**config.to_json())
            assert rebuilt == config

    def test_a_sketch_is_the_canvas_along_fixed_directions(self) -> None:
        env = gym.make(ENV_IDS[0], num_scenes=4, device="cpu", observations=["canvas", "sketch"])
        observation, _ = env.reset(seed=0)
        env.close()
        directions = sketch_directions(dim=128, device=torch.device("cpu")).numpy()
        np.testing.assert_allclose(directions @ directions.T, np.eye(8), atol=1e-6)
        expected = np.einsum("kd,dij->kij", directions, observation["canvas"])
        np.testing.assert_allclose(observation["sketch"], expected, atol=1e-4)

    @pytest.mark.parametrize("size", [16, 8])
    def test_a_reading_is_what_the_probe_thinks_of_every_class(self, make_vec: MakeVec, size: int) -> None:
        envs = make_vec(2, ENV_IDS[0], observations=["reading"], map_size=size)
        reading = envs.reset(seed=0)[0]["reading"]
        probabilities = envs.episodes.logits.softmax(dim=1)
        expected = F.avg_pool2d(probabilities, 16 // size).numpy()
        np.testing.assert_allclose(reading, expected, atol=1e-6)
        np.testing.assert_allclose(reading.sum(axis=1), 1, atol=1e-5)

    def test_a_reading_of_the_whole_scene_is_a_vector(self, make_vec: MakeVec) -> None:
        envs = make_vec(2, ENV_IDS[1], observations=["reading"])
        reading = envs.reset(seed=0)[0]["reading"]
        assert reading.shape == (2, 10)
        np.testing.assert_allclose(reading, envs.episodes.logits.softmax(dim=1).numpy(), atol=1e-6)

    @pytest.mark.parametrize("policy", ["random", "entropy_greedy"])
    def test_policies_that_read_fewer_keys(self, policy: str) -> None:
        """An evaluation computes only the keys that its policy reads, of the preset's sizes and dtype."""
        config = env_config(ENV_IDS[0], {"num_scenes": 4, "device": "cpu"})
        compact = replace(config, observation_preset="compact")
        one, other = (
            evaluate(make_policy(policy, config=c, num_glimpses=3), config=c, num_glimpses=3) for c in (config, compact)
        )
        np.testing.assert_array_equal(one.viewpoints, other.viewpoints)

    def test_a_policy_brings_its_own_observations(self) -> None:
        record = load_record(asset_dir("policies") / "FashionClassification-v0" / "ppo")
        config = env_config(record.env_id, {"observation_preset": "compact"})
        assert as_trained(config, record).observations == record.env.observations != config.observations

    def test_other_keys_keep_the_rest_of_a_preset(self) -> None:
        config = EnvConfig(observation_preset="compact").with_observations(("canvas",))
        assert (config.observations, config.canvas_size, config.observation_dtype) == (("canvas",), 8, "float16")

    def test_a_preset_and_something_else_is_refused(self) -> None:
        with pytest.raises(
            ValueError, match="observation_preset='compact' sets canvas_size, but canvas_size=4 was passed"
        ):
            EnvConfig(observation_preset="compact", canvas_size=4)
        with pytest.raises(ValueError, match="unknown observation_preset 'tiny'; choose one of compact"):
            EnvConfig(observation_preset="tiny")

    @pytest.mark.parametrize("passed", [{"observation_dtype": "float32"}, {"observations": list(DEFAULT_KEYS)}])
    def test_even_if_it_is_the_default(self, passed: dict[str, Any]) -> None:
        """Whoever passes it wants it."""
        with pytest.raises(ValueError, match=f"'compact' sets {next(iter(passed))}, but .* was passed as well"):
            gym.make(ENV_IDS[0], num_scenes=4, device="cpu", observation_preset="compact", **passed)

    def test_a_task_without_uncertainty_says_so(self, make_vec: MakeVec) -> None:
        """Not that the id's own observations were passed as well."""
        told = (
            "observation_preset='compact' does not fit this environment: observations include 'uncertainty', but this "
            "environment's task does not predict probabilities: leave it out. In place of the preset pass what it "
            r"stands for, with this change: observations=\['sketch', 'uncertainty', .*\], canvas_size=8, map_size=8"
        )
        with pytest.raises(ValueError, match=told):
            make_vec(1, "CanViT/ReconstructionFolder-v0", observation_preset="compact")
        keys = ["sketch", "acuity", "gaze", "time"]
        make_vec(1, "CanViT/ReconstructionFolder-v0", observations=keys, canvas_size=8, map_size=8)

    def test_a_canvas_that_is_too_small_is_named(self, make_vec: MakeVec) -> None:
        with pytest.raises(ValueError, match=r"'compact' does not fit .*canvas_size must lie in \[1, 4\]"):
            make_vec(1, ENV_IDS[1], observation_preset="compact", canvas_grid=4, probe=str(classification_probe(10)))
