"""What the oracle's lead is made of: locators, halves, shares."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from untrained import save_untrained

from canvit_gym.benchmark.comparison import clearly_ahead
from canvit_gym.command_line import env_config
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import Evaluation, evaluate
from canvit_gym.policies import BoxLocator, WindowLocator, make_policy
from canvit_gym.policies.learned import load_policy
from canvit_gym.scenes.fashion import SCENE_SIZE_PX, generate_scene
from experiments.studies.headroom import HeadroomConfig, page, study

ENV = {"num_scenes": 12, "device": "cpu", "budget": 3, "grid_centers": 3, "grid_scales": [0.5]}


def untrained(directory: Path, env_id: str, *, seed: int) -> Path:
    return save_untrained(directory, env_config(env_id, ENV), env_id=env_id, seed=seed)


def test_a_box_locator_looks_at_the_items() -> None:
    config = EnvConfig(split="validation", num_scenes=5, device="cpu", budget=7)
    result = evaluate(BoxLocator(factor=1.25, jitter=0), config=config)
    for index, viewpoints in enumerate(result.viewpoints):
        items = generate_scene("segmentation", "validation", index).items
        assert (viewpoints[0] == [0, 0, 1]).all()
        seen = []
        for row, col, scale in viewpoints[1:]:
            corners = [((row - scale), (col - scale)), ((row + scale), (col + scale))]
            (top, left), (bottom, right) = [
                ((a + 1) * SCENE_SIZE_PX / 2, (b + 1) * SCENE_SIZE_PX / 2) for a, b in corners
            ]
            assert row - scale >= -1 and row + scale <= 1 + 1e-6
            inside = [
                n
                for n, (_, y, x, side) in enumerate(items)
                if top <= y + 1e-3 and left <= x + 1e-3 and bottom >= y + side - 1e-3 and right >= x + side - 1e-3
            ]
            assert inside, "a window of 1.25 times an item's side holds the item"
            seen += inside
        assert set(seen) == set(range(len(items)))  # at most five, and six glimpses


def test_jitter_is_a_function_of_scene_and_seed() -> None:
    config = EnvConfig(split="validation", num_scenes=6, device="cpu", budget=3)
    locator = BoxLocator(factor=1.0, jitter=0.2)
    once, again = (evaluate(locator, config=config, batch_size=size).viewpoints for size in (6, 4))
    assert (once == again).all()
    assert (evaluate(locator, config=config, seed=1).viewpoints[:, 1:] != once[:, 1:]).any()


def test_a_window_locator_covers_what_is_largest() -> None:
    config = EnvConfig(split="validation", num_scenes=6, device="cpu", budget=2)
    result = evaluate(WindowLocator(scale=0.5), config=config)
    covered = []
    for index, (row, col, scale) in enumerate(result.viewpoints[:, 1]):
        items = generate_scene("segmentation", "validation", index).labels > 0
        low, high = (int((c - scale + 1) * SCENE_SIZE_PX / 2) for c in (row, col))
        side = int(scale * SCENE_SIZE_PX)
        covered.append(items[low : low + side, high : high + side].sum() / items.sum())
    assert np.mean(covered) > 0.4  # a quarter of the scene


@pytest.mark.parametrize("env_id", ["CanViT/FashionSegmentation-v0", "CanViT/FashionClassification-v0"])
def test_the_study(tmp_path: Path, env_id: str) -> None:
    learned = tuple(untrained(tmp_path / str(seed), env_id, seed=seed) for seed in (0, 1))
    config = HeadroomConfig(
        learned=learned, warm_started=learned, env=env_id, baselines=("coarse_to_fine", "center"), num_scenes=12,
        oracle_scenes=8, tuning_scenes=4, blocks=(1,), results_dir=tmp_path,
    )  # fmt: skip
    result = study(config)
    rows = result["policies"]
    assert result["baseline"] in rows and len(rows) == 9
    assert rows["warm start alone"] == {key: rows["learned"][key] for key in rows["warm start alone"]}
    assert len(rows["learned"]["score_of_seed"]) == 2
    # The same policies: paired by seed, there is nothing between them.
    assert rows["learned"]["score_minus_warm_start"] == rows["learned"]["loss_minus_warm_start"]
    assert set(rows["learned"]["score_minus_warm_start"].values()) == {0.0}
    assert set(result["on_validation"]["baseline"]) == {"coarse_to_fine", "center"}
    assert result["baseline"] == max(result["on_validation"]["baseline"].items(), key=lambda item: item[1])[0]
    assert len(result["on_validation"]["locator"]) == (11 if env_id == "CanViT/FashionSegmentation-v0" else 8)
    assert rows["greedy oracle"]["loss_minus_baseline"]["value"] < 0  # it chooses by the loss
    assert rows["greedy oracle"]["loss"]["value"] <= rows["jittered oracle"]["loss"]["value"]
    for ceiling, name in (("oracle", "greedy oracle"), ("jittered", "jittered oracle")):
        lead = rows[name]["loss_minus_baseline"]
        told = f"share_of_{ceiling}_loss" in rows["learned, jittered"]
        assert told == clearly_ahead(lead["low"], lead["high"], higher_is_better=False)
        if told:  # a lead on all scenes over one on some
            share = rows["learned"][f"share_of_{ceiling}_loss"]["value"]
            assert share == pytest.approx(rows["learned"]["loss_minus_baseline"]["value"] / lead["value"])
    of_few, jittered = rows["learned on the oracles' scenes"], rows["learned, jittered"]
    assert of_few["num_scenes"] == jittered["num_scenes"] == 8
    again = [evaluate(load_policy(each, config=on(env_id, 8)), config=on(env_id, 8)).score()[-1] for each in learned]
    np.testing.assert_allclose(of_few["score_of_seed"], again)
    few = evaluate_again(result["baseline"], env_id)
    np.testing.assert_allclose(rows[result["baseline"]]["score"]["value"], few.score()[-1])
    assert len(result["halves"]) == (env_id == "CanViT/FashionSegmentation-v0")
    for half in result["halves"]:
        assert half["lead_on_own_half"]["value"] >= half["lead_on_other_half"]["value"]
    json.dumps(result)
    assert f"| {result['baseline']} |" in page(result)


def on(env_id: str, num_scenes: int) -> EnvConfig:
    return replace(env_config(env_id, ENV), split="test", num_scenes=num_scenes)


def evaluate_again(spec: str, env_id: str) -> Evaluation:
    config = on(env_id, 12)
    return evaluate(make_policy(spec, config=config, num_glimpses=3), config=config)


def test_policies_of_another_data_set_are_refused(tmp_path: Path) -> None:
    directory = untrained(tmp_path / "policy", "CanViT/FashionSegmentation-v0", seed=0)
    with pytest.raises(ValueError, match="the learned policies are of fashion-segmentation"):
        study(HeadroomConfig(learned=(directory,), env="CanViT/FashionClassification-v0"))


def test_every_learned_policy_needs_its_warm_start(tmp_path: Path) -> None:
    directory = untrained(tmp_path / "policy", "CanViT/FashionSegmentation-v0", seed=0)
    with pytest.raises(ValueError, match="got 1 --warm-started for 2 --learned"):
        study(HeadroomConfig(learned=(directory, directory), warm_started=(directory,)))
