"""The law of DESIGN.md: the environment holds exactly the state that canvit_pytorch.episode.run_episode holds.

Bit for bit (torch.equal) on the CPU in float32, for the same scenes in the same batch.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from canvit_pytorch import RecurrentState, Viewpoint
from canvit_pytorch.episode import run_episode
from canvit_pytorch.policies import FixedSequence, PolicyName, make_policy
from canvit_pytorch.preprocess import imagenet_normalize
from conftest import ENV_IDS, each_id_with
from numpy.typing import NDArray

from canvit_gym.tasks.classification import ClassificationTask
from canvit_gym.tasks.segmentation import SegmentationTask
from canvit_gym.vector_env import GlimpseVectorEnv

MakeVec = Callable[..., GlimpseVectorEnv]
BUDGET = 5
NUM_ENVS = 6
NUM_SCENES = 16
ACTIONS: list[dict[str, Any]] = [
    {"action": "grid"},
    {"action": "grid", "grid_scales": (1.0, 0.3, 0.07), "grid_centers": 5},
    {"action": "continuous"},
    {"action": "quadtree", "quadtree_levels": 3},
]


def reference(
    envs: GlimpseVectorEnv, scenes: NDArray[np.int64], viewpoints: NDArray[np.float32]
) -> list[RecurrentState]:
    """run_episode's states on `scenes` [N] at `viewpoints` [T, N, 3]."""
    images = imagenet_normalize(envs.scenes.load(scenes).images.float() / 255)
    sequence = [viewpoint_of(row) for row in viewpoints]
    backbone = envs.backbone
    with torch.no_grad():
        steps = run_episode(
            canvit=backbone.canvit,
            images=images,
            policy=FixedSequence(sequence),
            num_glimpses=len(sequence),
            glimpse_size_px=backbone.glimpse_size_px,
            initial_state=backbone.canvit.init_state(batch_size=len(scenes), canvas_grid_size=backbone.canvas_grid),
        )
    return [step.state for step in steps]


def viewpoint_of(rows: NDArray[np.float32]) -> Viewpoint:
    table = torch.from_numpy(np.ascontiguousarray(rows))
    return Viewpoint(centers=table[:, :2].contiguous(), scales=table[:, 2].contiguous())


def clone(state: RecurrentState) -> RecurrentState:
    return RecurrentState(canvas=state.canvas.clone(), recurrent_cls=state.recurrent_cls.clone())


def same(one: RecurrentState, other: RecurrentState) -> bool:
    return torch.equal(one.canvas, other.canvas) and torch.equal(one.recurrent_cls, other.recurrent_cls)


def rollout(envs: GlimpseVectorEnv, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float32], list[RecurrentState]]:
    """(scenes, viewpoints [T, N, 3], states [T]) of one episode of random actions."""
    envs.action_space.seed(seed)
    _, info = envs.reset(seed=seed)
    scenes, viewpoints, states = info["scene"], [info["viewpoint"]], [clone(envs.state)]
    for _ in range(BUDGET - 1):
        *_, info = envs.step(envs.action_space.sample())
        viewpoints.append(info["viewpoint"])
        states.append(clone(envs.state))
    return scenes, np.stack(viewpoints), states


@pytest.mark.parametrize(("env_id", "actions"), each_id_with(ACTIONS))
def test_states_are_run_episodes(make_vec: MakeVec, env_id: str, actions: dict[str, Any]) -> None:
    envs = make_vec(NUM_ENVS, env_id, budget=BUDGET, autoreset_mode="disabled", **actions)
    scenes, viewpoints, states = rollout(envs, seed=1)
    expected = reference(envs, scenes, viewpoints)
    assert len(expected) == len(states) == BUDGET
    assert all(same(one, other) for one, other in zip(states, expected, strict=True))
    assert not torch.equal(states[0].canvas, states[1].canvas)


@pytest.mark.parametrize("first", ["random", [0.25, -0.5, 0.5]])
def test_first_glimpses_are_run_episodes(make_vec: MakeVec, first: Any) -> None:
    envs = make_vec(NUM_ENVS, budget=BUDGET, autoreset_mode="disabled", first_glimpse=first)
    scenes, viewpoints, states = rollout(envs, seed=2)
    expected = reference(envs, scenes, viewpoints)
    assert all(same(one, other) for one, other in zip(states, expected, strict=True))


def test_an_empty_canvas_is_canvit_pytorchs(make_vec: MakeVec) -> None:
    envs = make_vec(NUM_ENVS, first_glimpse=None)
    envs.reset(seed=0)
    canvit = envs.backbone.canvit
    with torch.no_grad():
        assert same(envs.state, canvit.init_state(batch_size=NUM_ENVS, canvas_grid_size=envs.backbone.canvas_grid))


def test_next_step_episodes_are_run_episodes(make_vec: MakeVec) -> None:
    """Episodes in a row, all of one length, so that the batch of a glimpse is the whole batch in each of them."""
    envs = make_vec(NUM_ENVS, budget=3)
    envs.action_space.seed(0)
    _, info = envs.reset(seed=3)
    for episode in range(3):
        scenes, viewpoints, states = info["scene"], [info["viewpoint"]], [clone(envs.state)]
        for _ in range(2):
            *_, info = envs.step(envs.action_space.sample())
            viewpoints.append(info["viewpoint"])
            states.append(clone(envs.state))
        assert (info["glimpses"] == 3).all()
        expected = reference(envs, scenes, np.stack(viewpoints))
        assert all(same(one, other) for one, other in zip(states, expected, strict=True)), episode
        _, rewards, _, _, info = envs.step(envs.action_space.sample())
        assert not rewards.any() and (info["glimpses"] == 1).all()


def test_same_step_episodes_are_run_episodes(make_vec: MakeVec) -> None:
    """The last state of an episode is replaced within the step, so its last reading is compared instead."""
    envs = make_vec(NUM_ENVS, budget=3, autoreset_mode="same_step")
    assert isinstance(envs.task, SegmentationTask)
    envs.action_space.seed(0)
    _, info = envs.reset(seed=3)
    for _ in range(3):
        scenes, viewpoints, states = info["scene"], [info["viewpoint"]], [clone(envs.state)]
        _, _, _, _, info = envs.step(envs.action_space.sample())
        viewpoints.append(info["viewpoint"])
        states.append(clone(envs.state))
        _, _, terminated, _, info = envs.step(envs.action_space.sample())
        assert terminated.all()
        viewpoints.append(info["final_info"]["viewpoint"])
        expected = reference(envs, scenes, np.stack(viewpoints))
        assert all(same(one, other) for one, other in zip(states, expected[:2], strict=True))
        truth = envs.task.truth(envs.scenes.load(scenes))
        loss = envs.task.loss(envs.task.read(expected[2]), truth)
        assert np.array_equal(info["final_info"]["loss"], loss.numpy())


PAPER: list[PolicyName] = ["coarse_to_fine", "fine_to_coarse", "entropy_coarse_to_fine", "repeated_full_scene"]


@pytest.mark.parametrize("kind", ["continuous", "quadtree"])
@pytest.mark.parametrize("name", PAPER)
def test_the_papers_policies_through_actions(make_vec: MakeVec, name: PolicyName, kind: str) -> None:
    """A policy chooses viewpoints from the environment's states, actions carry them, and nothing is lost on the way."""
    envs = make_vec(NUM_ENVS, budget=BUDGET, autoreset_mode="disabled", action=kind, first_glimpse=None)
    assert isinstance(envs.task, SegmentationTask)
    setup = {
        "batch_size": NUM_ENVS,
        "device": torch.device("cpu"),
        "num_glimpses": BUDGET,
        "canvas_grid_size": envs.backbone.canvas_grid,
        "canvas_logits": envs.task.model.logits,
    }
    torch.manual_seed(0)
    policy = make_policy(name, **setup)
    _, info = envs.reset(seed=4)
    scenes, states = info["scene"], []
    with torch.no_grad():
        for t in range(BUDGET):
            wanted = policy.step(t, envs.state)
            viewpoints = torch.cat([wanted.centers, wanted.scales.unsqueeze(1)], dim=1).numpy()
            *_, info = envs.step(envs.actions.encode(viewpoints))
            assert np.array_equal(info["viewpoint"], viewpoints)
            states.append(clone(envs.state))
        images = imagenet_normalize(envs.scenes.load(scenes).images.float() / 255)
        torch.manual_seed(0)
        steps = run_episode(
            canvit=envs.backbone.canvit,
            images=images,
            policy=make_policy(name, **setup),
            num_glimpses=BUDGET,
            glimpse_size_px=envs.backbone.glimpse_size_px,
            initial_state=envs.backbone.init_state(NUM_ENVS),
        )
    assert all(same(state, step.state) for state, step in zip(states, steps, strict=True))


def test_random_viewpoints_survive_continuous_actions(make_vec: MakeVec) -> None:
    """Arbitrary viewpoints go through encode and decode to within float32 rounding, not bit for bit."""
    envs = make_vec(NUM_ENVS, action="continuous", min_scale=0.05)
    torch.manual_seed(0)
    policy = make_policy("random", batch_size=512, device=torch.device("cpu"), num_glimpses=1, canvas_grid_size=16)
    wanted = policy.step(0, envs.backbone.init_state(1))
    viewpoints = torch.cat([wanted.centers, wanted.scales.unsqueeze(1)], dim=1).numpy()
    decoded, stop = envs.actions.decode(envs.actions.encode(viewpoints))
    np.testing.assert_allclose(decoded, viewpoints, atol=1e-6)
    assert not stop.any()


def test_the_fused_segmentation_probe_is_canvit_pytorchs(make_vec: MakeVec) -> None:
    envs = make_vec(NUM_ENVS)
    envs.reset(seed=0)
    assert isinstance(envs.task, SegmentationTask)
    with torch.no_grad():
        expected = envs.task.model.logits(envs.state.canvas)
        assert not envs.task.model.probe.training
        torch.testing.assert_close(envs.task.read(envs.state), expected, atol=1e-4, rtol=1e-4)
        assert expected.abs().max() > 0.1


def test_the_classifier_is_canvit_pytorchs(make_vec: MakeVec) -> None:
    envs = make_vec(NUM_ENVS, ENV_IDS[1])
    envs.reset(seed=0)
    assert isinstance(envs.task, ClassificationTask)
    with torch.no_grad():
        assert torch.equal(envs.task.read(envs.state), envs.task.model.classify(envs.state.recurrent_cls))


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_a_scene_alone_equals_the_scene_in_a_batch(make_vec: MakeVec, env_id: str) -> None:
    """To float32 tolerance, not bit for bit: matrix products of other shapes are split over other kernels and blocks,
    which add in another order. Nothing else couples the scenes of a batch: no operation crosses the batch axis."""
    batch = make_vec(8, env_id, budget=BUDGET, split="test", autoreset_mode="disabled", track_score=True)
    alone = make_vec(1, env_id, budget=BUDGET, split="test", autoreset_mode="disabled", track_score=True)
    batch.action_space.seed(0)
    actions = [batch.action_space.sample() for _ in range(BUDGET - 1)]
    first, begun = batch.reset(seed=0)
    together = [first]
    states, losses = [clone(batch.state)], []
    for action in actions:
        observation, *_, info = batch.step(action)
        together.append(observation)
        states.append(clone(batch.state))
        losses.append(info["loss"])
    for row in (0, 5):
        asked = {"goal": begun["goal"][row : row + 1]} if "goal" in begun else {}
        observation, _ = alone.reset(options={"scene": row, **asked})
        for t in range(BUDGET):
            torch.testing.assert_close(alone.state.canvas[0], states[t].canvas[row], atol=1e-4, rtol=1e-4)
            for key, value in observation.items():
                np.testing.assert_allclose(value[0], together[t][key][row], atol=1e-4, rtol=1e-4, err_msg=key)
            if t < BUDGET - 1:
                observation, *_, info = alone.step(actions[t][row : row + 1])
                np.testing.assert_allclose(info["loss"][0], losses[t][row], atol=1e-4, rtol=1e-4)


def test_uneven_episodes_keep_every_scenes_own_state(make_vec: MakeVec) -> None:
    """Scenes stop and are replaced at different times (NEXT_STEP); each still goes through its own states only."""
    envs = make_vec(4, budget=4, action="quadtree", allow_stop=True, split="test")
    rng = np.random.default_rng(0)
    stop = envs.single_action_space.n - 1  # pyright: ignore[reportAttributeAccessIssue]
    _, info = envs.reset(seed=0)
    paths: list[list[NDArray[np.float32]]] = [[view] for view in info["viewpoint"]]
    for _ in range(12):
        actions = rng.integers(stop, size=4)
        actions[rng.random(4) < 0.3] = stop
        _, _, terminated, _, following = envs.step(actions)
        for row in range(4):
            if following["scene"][row] != info["scene"][row]:
                paths[row] = []
            if following["glimpses"][row] > len(paths[row]):
                paths[row].append(following["viewpoint"][row])
            expected = reference(envs, following["scene"][row : row + 1], np.stack(paths[row])[:, None])[-1]
            torch.testing.assert_close(envs.state.canvas[row], expected.canvas[0], atol=1e-4, rtol=1e-4)
        info = following
        assert terminated.shape == (4,)
    assert len(set(info["glimpses"])) > 1, "the stops should have put the scenes out of step"
