"""Tasks, potentials, rewards and goals as entries of their tables: nothing else has to know of a new one."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL
from numpy.typing import NDArray
from torch import Tensor

from canvit_gym.backbone.load import Backbone
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import Evaluation, evaluate, score_statistic
from canvit_gym.observations import OBSERVATIONS, ObservationLayout
from canvit_gym.policies import PaperPolicy
from canvit_gym.rendering import draw_frame
from canvit_gym.rewards import REWARDS, Reward, step_reward
from canvit_gym.scenes.datasets import DATASETS
from canvit_gym.scenes.source import SceneBatch
from canvit_gym.statistics import area_under_curve, bootstrap_interval
from canvit_gym.tasks import TASKS, TaskSpec, metric_named
from canvit_gym.tasks.goals import ClassGoals, choose_goals, goal_uniforms
from canvit_gym.tasks.metric import MeanMetric
from canvit_gym.tasks.segmentation import SegmentationTask, segmentation_parts
from canvit_gym.tasks.task import Truth, potential
from canvit_gym.testing import check_vector_env
from canvit_gym.vector_env import GlimpseVectorEnv

MakeVec = Callable[..., GlimpseVectorEnv]
KEYS = ("canvas", "uncertainty", "time", "goal")


class Find(SegmentationTask):
    """Read one class, the goal: a task as a user would add it."""

    name = "find"
    metric = MeanMetric("found", doc="The mean share of the goal's cells that are read as it.")

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.goals = ClassGoals(self.classes)

    def truth(
        self,
        scenes: SceneBatch,
        *,
        goal: NDArray[Any] | None = None,
        potentials: Collection[str] = (),
        counted: bool = False,
    ) -> dict[str, Tensor]:
        assert goal is not None
        return super().truth(scenes) | {"goal": torch.from_numpy(goal).to(self.backbone.device)}

    @potential("L", "cross-entropy of the goal's cells, nats", less_is_better=True)
    def loss(self, logits: Tensor, truth: Truth) -> Tensor:
        shares = self._of_goal(truth["shares"], truth)
        return -(shares * self._of_goal(F.log_softmax(logits, dim=1), truth)).sum(dim=(1, 2)) / shares.sum(dim=(1, 2))

    @potential("S", "the share of the goal's cells that are read as it")
    def score(self, logits: Tensor, truth: Truth) -> Tensor:
        shares = self._of_goal(truth["shares"], truth)
        read = (logits.argmax(dim=1) == truth["goal"].view(-1, 1, 1)).float()
        return (shares * read).sum(dim=(1, 2)) / shares.sum(dim=(1, 2))

    @potential("M", "the highest probability of the goal anywhere")
    def peak(self, logits: Tensor, truth: Truth) -> Tensor:
        return self._of_goal(logits.softmax(dim=1), truth).amax(dim=(1, 2))

    def count(self, logits: Tensor, truth: Truth) -> dict[str, Tensor]:
        return {"value": self.score(logits, truth)}

    def _of_goal(self, maps: Tensor, truth: Truth) -> Tensor:
        """[B, K, G, G] -> [B, G, G]"""
        return maps[torch.arange(len(maps)), truth["goal"]]


def build_find(config: EnvConfig, backbone: Backbone, classes: tuple[str, ...]) -> Find:
    return Find(backbone=backbone, classes=classes, **segmentation_parts(config, backbone, classes))


@pytest.fixture
def find(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeVec]:
    """Environments of the task, of which the tables know."""
    monkeypatch.setitem(TASKS, "find", TaskSpec(kind=Find, build=build_find, source="every cell", doc="Find a class."))
    monkeypatch.setitem(REWARDS, "peak_gain", Reward("peak", lambda step: step.after - step.before, "{M} gained"))
    dataset = DATASETS["fashion-segmentation"]
    monkeypatch.setitem(DATASETS, dataset.name, replace(dataset, task="find"))
    made: list[GlimpseVectorEnv] = []

    def make(num_envs: int = 4, **kwargs: Any) -> GlimpseVectorEnv:
        made.append(GlimpseVectorEnv(num_envs, **{**SMALL, "observations": KEYS, **kwargs}))
        return made[-1]

    yield make
    for envs in made:
        envs.close()


@pytest.mark.parametrize("mode", ["next_step", "same_step", "disabled"])
def test_an_environment_of_a_new_task_keeps_the_contract(find: MakeVec, mode: str) -> None:
    check_vector_env(find(3, autoreset_mode=mode, budget=3))


def test_goals_are_in_their_scenes_and_shown(find: MakeVec) -> None:
    envs = find(8)
    observation, info = envs.reset(seed=3)
    labels = envs.scenes.load(info["scene"]).labels.flatten(1).numpy()
    assert all(goal in labels[row] and goal != 0 for row, goal in enumerate(info["goal"]))
    assert np.array_equal(observation["goal"], np.eye(11, dtype=np.float32)[info["goal"]])
    assert np.array_equal(envs.reset(seed=3)[1]["goal"], info["goal"])
    goals = [envs.reset(options={"scene": 0})[1]["goal"] for _ in range(4)]
    assert len(np.unique(goals)) > 1, "one scene can be asked for any of its items"


def test_goals_can_be_given(find: MakeVec) -> None:
    envs = find(2)
    available = ClassGoals(envs.scenes.classes).available(envs.scenes.load(np.array([5])))[0]
    there, missing = np.flatnonzero(available), np.flatnonzero(~available)
    for goal in (int(there[0]), there[[0, -1]]):
        _, info = envs.reset(options={"scene": 5, "goal": goal})
        assert np.array_equal(info["goal"], np.broadcast_to(goal, 2))
    with pytest.raises(ValueError, match=rf"scene 5 does not hold the goal {missing[1]} .*; it holds {there[0]} "):
        envs.reset(options={"scene": 5, "goal": int(missing[1])})
    for bad in (11, -1, 0.5, "bag", [1, 2, 3], [[1], [2, 3]]):
        with pytest.raises(ValueError, match=r"options\['goal'\] must be one goal or 2 of them"):
            envs.reset(options={"goal": bad})


def test_a_task_without_goals_is_asked_for_none(make_vec: MakeVec) -> None:
    envs = make_vec(2)
    with pytest.raises(ValueError, match="goal-conditioned tasks, which segmentation is not"):
        envs.reset(options={"goal": 1})
    with pytest.raises(ValueError, match="has no goals"):
        make_vec(2, observations=["goal"])


def test_a_new_potential_pays_by_a_new_entry(find: MakeVec) -> None:
    envs = find(4, reward="peak_gain", autoreset_mode="disabled")
    _, info = envs.reset(seed=0)
    for _ in range(4):
        before = info["peak"]
        _, rewards, *_, info = envs.step(envs.action_space.sample())
        np.testing.assert_allclose(rewards, info["peak"] - before, atol=1e-6)
    assert info["peak_curve"].shape == (4, 5)


def test_a_reward_that_the_task_cannot_pay_is_refused(make_vec: MakeVec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REWARDS, "peak_gain", Reward("peak", lambda step: step.after - step.before, "{M} gained"))
    with pytest.raises(ValueError, match=r"reward='peak_gain' needs the potential 'peak'.* measures loss, score, soft"):
        make_vec(2, reward="peak_gain")


def test_evaluations_ask_for_the_same_goals_whatever_the_batch(find: MakeVec, tmp_path: Path) -> None:
    config = EnvConfig(**{**SMALL, "split": "validation"})
    policy = PaperPolicy("coarse_to_fine", num_glimpses=3)
    whole, parts = (evaluate(policy, config=config, num_glimpses=3, batch_size=size) for size in (16, 5))
    assert whole.goal is not None and np.array_equal(whole.goal, parts.goal)
    np.testing.assert_allclose(whole.score(), parts.score(), atol=1e-3)
    assert whole.metric == "found" and metric_named("found") is Find.metric
    whole.save(tmp_path / "find.npz")
    loaded = Evaluation.load(tmp_path / "find.npz")
    assert np.array_equal(loaded.goal, whole.goal) and np.array_equal(loaded.counts["value"], whole.counts["value"])
    interval = bootstrap_interval(score_statistic([loaded, whole]), resamples=20)
    np.testing.assert_allclose(interval.value, whole.score(), rtol=1e-6)


def test_a_frame_says_what_is_looked_for(find: MakeVec) -> None:
    envs = find(1)
    _, info = envs.reset(seed=0)
    view = envs.view(0)
    assert view.goal == envs.scenes.classes[info["goal"][0]] and view.metric.name == "found"
    assert (draw_frame(view) != draw_frame(replace(view, goal="nothing"))).any()


def test_goals_are_drawn_evenly_among_those_there() -> None:
    available = np.array([[False, True, False, True], [False] * 4])
    drawn = choose_goals(available.repeat(1000, axis=0), np.tile(np.linspace(0, 1, 1000, endpoint=False), 2))
    assert np.bincount(drawn[:1000], minlength=4).tolist() == [0, 500, 0, 500]
    assert np.bincount(drawn[1000:], minlength=4).tolist() == [250] * 4
    uniform = goal_uniforms(np.arange(10_000))
    assert uniform.min() >= 0 and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.01


@pytest.mark.parametrize("first_glimpse", ["full", None])
@pytest.mark.parametrize("stops_at", [None, 2])
def test_the_return_of_score_area_is_the_area_under_the_curve(
    make_vec: MakeVec, stops_at: int | None, first_glimpse: str | None
) -> None:
    envs = make_vec(6, reward="score_area", autoreset_mode="disabled", first_glimpse=first_glimpse, allow_stop=True)
    envs.reset(seed=0)
    total, terminated, info, step = np.zeros(6), np.zeros(6, dtype=bool), {}, 0
    while not terminated.any():
        actions = np.full(6, 512) if step == stops_at else envs.action_space.sample() % 512
        _, rewards, terminated, _, info = envs.step(actions)
        total, step = total + rewards, step + 1
    np.testing.assert_allclose(total, area_under_curve(info["score_curve"]), atol=1e-6)


def test_every_reward_says_what_it_pays() -> None:
    for spec in TASKS.values():
        symbols = {symbol: symbol for symbol, _ in spec.potentials.values()}
        for reward in REWARDS.values():
            assert reward.potential in spec.potentials
            assert reward.doc.format(**symbols)
    value = step_reward("relative_loss_reduction", np.array([0.01]), np.array([0.02]))
    assert value.dtype == np.float64 and value[0] == pytest.approx(-0.2)


def test_layouts_of_version_0_1_still_load() -> None:
    old = {
        "keys": ["canvas", "uncertainty"], "canvas_size": 8, "map_size": 16, "dtype": "float32", "canvas_dim": 128,
        "backbone_dim": 128, "canvas_grid": 16, "glimpse_size_px": 32,
    }  # fmt: skip
    for is_dense, shape in ((True, (1, 16, 16)), (False, (1,))):
        layout = ObservationLayout.from_json({**old, "is_dense": is_dense})
        assert layout.uncertainty_shape == shape and layout.goal_shape is None
        assert ObservationLayout.from_json(layout.to_json()) == layout
        assert layout.space["uncertainty"].shape == shape


def test_every_observation_has_a_row_of_documentation() -> None:
    for key in OBSERVATIONS.values():
        assert all(isinstance(text, str) and text for text in (key.shape, key.range, key.meaning))


class TestActionMasks:
    def test_everything_is_allowed_by_default(self, make_vec: MakeVec) -> None:
        envs = make_vec(3, allow_stop=True)
        _, info = envs.reset(seed=0)
        assert info["action_mask"].shape == (3, 513) and info["action_mask"].dtype == np.int8
        assert info["action_mask"].all() and envs.action_masks().dtype == np.bool_ and envs.action_masks().all()

    @pytest.mark.parametrize("mode", ["next_step", "same_step", "disabled"])
    def test_environments_with_masks_keep_the_contract(self, make_vec: MakeVec, mode: str) -> None:
        check_vector_env(make_vec(3, action="quadtree", revisit=False, budget=6, autoreset_mode=mode))

    def test_a_viewpoint_is_taken_once(self, make_vec: MakeVec, make_one: Callable[..., Any]) -> None:
        envs = make_vec(2, action="quadtree", revisit=False, budget=9, allow_stop=True)
        _, info = envs.reset(seed=0)
        assert not info["action_mask"][:, 0].any(), "the full scene was the first glimpse"
        *_, info = envs.step(np.array([1, 7]))
        expected = np.ones((2, 22), dtype=bool)
        expected[:, 0] = expected[0, 1] = expected[1, 7] = False
        assert np.array_equal(envs.action_masks(), expected) and np.array_equal(info["action_mask"], expected)
        with pytest.raises(
            ValueError, match=r"action of environment 1 is 7, whose viewpoint was already taken.*action_mask"
        ):
            envs.step(np.array([2, 7]))
        env = make_one(action="quadtree", revisit=False, budget=9).unwrapped
        env.reset(seed=0)
        assert env.action_masks().shape == (21,) and env.action_masks().sum() == 20

    def test_an_order_of_all_tiles_ends_with_the_last(self, make_vec: MakeVec) -> None:
        envs = make_vec(4, action="quadtree", quadtree_levels=1, revisit=False, budget=5, autoreset_mode="disabled")
        _, info = envs.reset(seed=0)
        terminated = np.zeros(4, dtype=bool)
        while not terminated.any():
            masks = envs.action_masks()
            _, _, terminated, _, info = envs.step(masks.argmax(axis=1))
        assert terminated.all() and (info["glimpses"] == 5).all() and not envs.action_masks().any()
        with pytest.raises(ValueError, match="budget=6 asks for 5 viewpoints"):
            make_vec(2, action="quadtree", quadtree_levels=1, revisit=False, budget=6)

    def test_continuous_actions_have_no_masks(self, make_vec: MakeVec) -> None:
        envs = make_vec(2, action="continuous")
        _, info = envs.reset(seed=0)
        assert "action_mask" not in info
        with pytest.raises(TypeError, match="only discrete actions have masks, but action='continuous'"):
            envs.action_masks()
        with pytest.raises(ValueError, match="revisit=False needs a table"):
            make_vec(2, action="continuous", revisit=False)
