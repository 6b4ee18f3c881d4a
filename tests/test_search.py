"""FashionSearch: what a goal is, what pays for it, and who knows it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from canvit_gym.assembly import build_backbone, build_scenes, build_task
from canvit_gym.command_line import env_config
from canvit_gym.evaluation import evaluate
from canvit_gym.policies import make_policy
from canvit_gym.scenes.prepared import FashionScenes
from canvit_gym.scenes.source import LocatedSource
from canvit_gym.tasks.search import SearchTask
from canvit_gym.vector_env import GlimpseVectorEnv

MakeVec = Callable[..., GlimpseVectorEnv]

SEARCH = "CanViT/FashionSearch-v0"
CONFIG = replace(env_config(SEARCH, {}), split="test", num_scenes=8, device="cpu")


@pytest.fixture(scope="module")
def reading() -> tuple[SearchTask, torch.Tensor, dict[str, torch.Tensor]]:
    """(task, random logits, truth) of eight scenes."""
    backbone, scenes = build_backbone(CONFIG), build_scenes(CONFIG)
    task = cast(SearchTask, build_task(CONFIG, backbone, scenes.classes))
    batch = scenes.load(np.arange(8))
    assert task.goals is not None
    goal = task.goals.available(batch).argmax(axis=1)
    logits = torch.randn(8, len(scenes.classes), 16, 16, generator=torch.Generator().manual_seed(0))
    return task, logits, task.truth(batch, goal=goal)


def test_goals_are_classes_in_the_scene(make_vec: MakeVec) -> None:
    envs = make_vec(8, SEARCH)
    observation, info = envs.reset(seed=3)
    scenes = envs.scenes
    assert isinstance(scenes, LocatedSource)
    for scene, goal, shown in zip(info["scene"], info["goal"], observation["goal"], strict=True):
        assert goal in {item.label for item in scenes.items(int(scene))}
        assert shown.tolist() == np.eye(11)[goal].tolist()


def test_a_goal_can_be_set_and_one_that_is_not_there_is_refused(make_vec: MakeVec) -> None:
    envs = make_vec(1, SEARCH)
    assert isinstance(envs.scenes, LocatedSource)
    held = sorted({item.label for item in envs.scenes.items(3)})
    for goal in held:
        _, info = envs.reset(seed=0, options={"scene": 3, "goal": goal})
        assert info["goal"].tolist() == [goal]
    missing = next(goal for goal in range(1, 11) if goal not in held)
    with pytest.raises(ValueError, match=f"scene 3 does not hold the goal {missing}"):
        envs.reset(options={"scene": 3, "goal": missing})
    for bad in (11, -1, 1.5, "shirt", [1, 2]):
        with pytest.raises(ValueError, match="goal"):
            envs.reset(options={"scene": 3, "goal": cast(Any, bad)})


def test_a_goal_alone_finds_scenes_that_hold_it(make_vec: MakeVec) -> None:
    envs = make_vec(8, "CanViT/FashionSearch-v0")
    for seed in range(3):
        observation, info = envs.reset(seed=seed, options={"goal": 3})
        assert info["goal"].tolist() == [3] * 8 and len(set(info["scene"].tolist())) > 1
        again, info_again = envs.reset(seed=seed, options={"goal": 3})
        assert info_again["scene"].tolist() == info["scene"].tolist()
        assert np.array_equal(again["canvas"], observation["canvas"])
    few = make_vec(1, "CanViT/FashionSearch-v0", num_scenes=1)
    _, info = few.reset(seed=0)
    held = {item.label for item in few.scenes.items(0)}  # pyright: ignore[reportAttributeAccessIssue]
    missing = next(goal for goal in range(1, 11) if goal not in held)
    with pytest.raises(ValueError, match=r"no scene of FashionScenes .* holds .*: ask for another goal"):
        few.reset(options={"goal": missing})


def test_the_score_is_the_iou_of_the_goal(reading: tuple[SearchTask, torch.Tensor, dict[str, torch.Tensor]]) -> None:
    task, logits, truth = reading
    read = F.interpolate(logits, size=(128, 128), mode="bilinear", align_corners=False).argmax(dim=1)
    for scene in range(8):
        one, other = read[scene] == truth["goal"][scene], truth["labels"][scene] == truth["goal"][scene]
        expected = (one & other).sum() / (one | other).sum()
        assert task.score(logits, truth)[scene] == pytest.approx(expected.item())
    assert torch.equal(task.count(logits, truth)["value"], task.score(logits, truth))


def test_the_loss_weighs_item_and_rest_alike(reading: tuple[SearchTask, torch.Tensor, dict[str, torch.Tensor]]) -> None:
    task, logits, truth = reading
    probability = logits.softmax(dim=1)
    for scene in range(8):
        goal = int(truth["goal"][scene])
        p, share = probability[scene, goal], truth["shares"][scene, goal]
        expected = -(share * p.log()).sum() / share.sum() - ((1 - share) * (1 - p).log()).sum() / (1 - share).sum()
        assert task.loss(logits, truth)[scene] == pytest.approx(expected.item() / 2, rel=1e-4)


def test_a_perfect_reading_is_rewarded(reading: tuple[SearchTask, torch.Tensor, dict[str, torch.Tensor]]) -> None:
    task, logits, truth = reading
    perfect = (truth["shares"] + 1e-3).log()
    for potential in (task.score, task.soft_score):
        assert (potential(perfect, truth) > potential(logits, truth)).all()
    assert (task.loss(perfect, truth) < task.loss(logits, truth)).all()
    certain = torch.full_like(logits, -1e4)
    certain[:, 0] = 1e4  # all background, with logits that no float32 probability tells from 1
    assert torch.isfinite(task.loss(certain, truth)).all()


def test_knowing_the_goal_and_its_place_helps() -> None:
    config = replace(CONFIG, split="validation", num_scenes=48)
    scores = {
        spec: evaluate(make_policy(spec, config=config, num_glimpses=3), config=config, num_glimpses=3).score()[-1]
        for spec in ("entropy_greedy(scale=0.25)", "goal_probability(scale=0.25)", "goal_locator")
    }
    assert list(scores.values()) == sorted(scores.values()), scores


@pytest.mark.parametrize(
    ("name", "sought"), [("goal_locator", "item of its goal's class"), ("box_locator", "item to look at")]
)
def test_a_locator_names_the_scene_in_which_there_is_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str, sought: str
) -> None:
    items = FashionScenes.items
    monkeypatch.setattr(FashionScenes, "items", lambda self, index: () if index == 2 else items(self, index))
    with pytest.raises(ValueError, match=f"scene 2 holds no {sought}; use scenes that do, or another ceiling"):
        evaluate(make_policy(name, config=CONFIG, num_glimpses=2), config=CONFIG, num_glimpses=2)


@pytest.mark.parametrize("name", ["goal_probability", "goal_entropy", "goal_locator"])
def test_policies_that_need_a_goal_refuse_tasks_without(name: str) -> None:
    config = replace(env_config("CanViT/FashionSegmentation-v0", {}), num_scenes=4, device="cpu")
    with pytest.raises(ValueError, match="choose another policy"):
        make_policy(name, config=config, num_glimpses=3)
