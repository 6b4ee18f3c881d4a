"""A pool of episodes is made once, continued where it stopped, and holds the gains that the environment pays."""

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import assert_same_policies
from datasets import FOLDER_CLASSES, classification_probe, write_image_folder
from stable_baselines3.common.utils import set_random_seed

import agents.pool as pools
from agents.algorithms import load_hyperparameters
from agents.behaviours import TriedStep, follow_policy, mixture, take_best
from agents.monitor import Monitor
from agents.pool import PoolConfig, load_pool, split
from agents.ppo.warm_start import WarmStart
from agents.settings import TrainConfig, prepare
from agents.train import train
from agents.tried import TriedViewpoints, gains_of
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import evaluate
from canvit_gym.policies.registry import make_policy
from canvit_gym.scenes.folders import image_folder_files
from canvit_gym.vector_env import GlimpseVectorEnv

CONFIG = EnvConfig(num_scenes=16, device="cpu", budget=3, grid_scales=(0.5,), grid_centers=3)
EPISODES, NUM_ENVS = 8, 4
STATES = 2 * EPISODES
"""Of a block: an episode has two decisions."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pools, "BLOCK_EPISODES", EPISODES)
    monkeypatch.setattr(pools, "NUM_ENVS", NUM_ENVS)
    monkeypatch.setenv("CANVIT_GYM_CACHE", str(tmp_path))


def same(a: TriedViewpoints, b: TriedViewpoints) -> bool:
    others = all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("chosen", "gains", "rewards"))
    return others and all(torch.equal(value, b.observations[key]) for key, value in a.observations.items())


def blocks(root: Path) -> list[Path]:
    return sorted(root.glob("pools/*/block-*.safetensors"))


def test_a_pool_is_made_once_and_extended(tmp_path: Path) -> None:
    small = load_pool(CONFIG, states=STATES, candidates=4)
    (first,) = blocks(tmp_path)
    made = first.stat().st_mtime_ns
    large = load_pool(CONFIG, states=STATES + 1, candidates=4)  # whole episodes
    assert len(small) == STATES and len(large) == STATES + 2 and len(blocks(tmp_path)) == 2
    assert first.stat().st_mtime_ns == made
    assert same(small, large.first(STATES))
    assert torch.equal(large.after(STATES).gains, large.gains[STATES:])
    assert large.after(STATES).rewards.shape == (1, 2)


def test_who_makes_a_pool_draws_the_same_numbers_as_who_finds_it() -> None:
    drawn = []
    for _ in range(2):
        set_random_seed(5)
        load_pool(CONFIG, states=STATES, candidates=4)
        drawn.append((torch.rand(1).item(), np.random.rand(), random.random()))
    assert drawn[0] == drawn[1]


def scenes_shown(monkeypatch: pytest.MonkeyPatch, config: EnvConfig, *, states: int) -> list[int]:
    """The scenes of a pool's episodes."""
    shown: list[int] = []
    reset = GlimpseVectorEnv.reset

    def noting(self: GlimpseVectorEnv, **options: Any) -> Any:
        result = reset(self, **options)
        if options.get("options"):
            shown.extend(result[1]["scene"].tolist())
        return result

    with monkeypatch.context() as patch:
        patch.setattr(GlimpseVectorEnv, "reset", noting)
        load_pool(config, states=states, candidates=4)
    return shown


def test_blocks_show_different_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that episodes that are held out show none that was learned from."""
    assert sorted(scenes_shown(monkeypatch, CONFIG, states=2 * STATES)) == list(range(16))
    second_pass = scenes_shown(monkeypatch, CONFIG, states=3 * STATES)
    assert len(set(second_pass)) == len(second_pass) == EPISODES


def test_blocks_keep_to_the_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = scenes_shown(monkeypatch, replace(CONFIG, shard=(1, 2)), states=STATES)
    assert sorted(shown) == list(range(1, 16, 2))


@pytest.mark.filterwarnings("ignore:scene .* is left out")
def test_scenes_that_cannot_be_read_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others of the same block are shown twice, next to each other."""
    root = write_image_folder(tmp_path / "images", splits=("train", "val"))
    probe = str(classification_probe(len(FOLDER_CLASSES)))
    folder = {"dataset": "image-folder", "root": str(root), "probe": probe, "workers": 0, "unreadable": "skip"}
    config = replace(CONFIG, num_scenes=None, **folder)
    files = image_folder_files(root, "training").images
    for index in (1, 6, 9):
        Path(files[index]).write_bytes(b"")
    shown = scenes_shown(monkeypatch, config, states=STATES * 3)  # two passes over twelve scenes
    assert len(files) == 12 and len(shown) == 24 and set(shown) == set(range(12)) - {1, 6, 9}
    repeated = sum(one == other for one, other in itertools.pairwise(shown))
    assert repeated == 6


@pytest.mark.parametrize("change", [{"workers": 2}, {"track_score": True}])
def test_options_that_change_nothing_share_a_pool(tmp_path: Path, change: dict[str, Any]) -> None:
    load_pool(CONFIG, states=STATES, candidates=4)
    load_pool(replace(CONFIG, **change), states=STATES, candidates=4)
    assert len(list((tmp_path / "pools").iterdir())) == 1


def test_blocks_do_not_depend_on_where_it_was_interrupted(tmp_path: Path) -> None:
    whole = load_pool(CONFIG, states=2 * STATES, candidates=4)
    _, second = blocks(tmp_path)
    second.unlink()
    again = load_pool(CONFIG, states=2 * STATES, candidates=4)
    assert same(whole, again)
    assert not torch.equal(whole.gains[:STATES], whole.gains[STATES:])


def test_the_environment_pays_what_was_found() -> None:
    """With all viewpoints tried, the reward of the one that was taken is among the gains."""
    pool = load_pool(CONFIG, states=STATES, candidates=9)
    assert set(pool.chosen[0].tolist()) == set(range(9))
    paid = pool.rewards.flatten()[:, None]
    assert ((pool.gains - paid).abs().min(dim=1).values < 1e-5).all()
    taken_best = (paid[:, 0] - pool.gains.max(dim=1).values).abs() < 1e-5
    assert 0.1 < taken_best.float().mean() < 0.95


@pytest.mark.parametrize("change", [{"budget": 4}, {"grid_centers": 4}, {"reward": "soft_score_gain"}])
def test_another_environment_has_another_pool(tmp_path: Path, change: dict[str, Any]) -> None:
    load_pool(CONFIG, states=STATES, candidates=4)
    load_pool(replace(CONFIG, **change), states=STATES, candidates=4)
    assert len(list((tmp_path / "pools").iterdir())) == 2


def test_episodes_go_on_with_allowed_viewpoints() -> None:
    config = replace(CONFIG, action="quadtree", quadtree_levels=1, revisit=False, budget=5, first_glimpse=None)
    envs = GlimpseVectorEnv(NUM_ENVS, autoreset_mode="disabled", **vars(config))
    envs.reset(seed=0)
    rng = np.random.default_rng(0)
    behaviour = take_best(envs, rng)
    tried = np.arange(5)
    for _ in range(5):
        gains = gains_of(config.reward, envs.episodes, envs.actions.viewpoints).T  # type: ignore[attr-defined]
        looks = behaviour(TriedStep({}, tried, gains))
        allowed = envs.action_masks()
        assert allowed[np.arange(NUM_ENVS), looks].all()
        assert (looks == np.where(allowed, gains, -np.inf).argmax(axis=1)).all()
        envs.step(looks)
    envs.close()


def test_a_hand_coded_policy_is_followed() -> None:
    """Its viewpoints are in the table here, so episodes see what they do in an evaluation of the policy alone."""
    policy = make_policy("entropy_greedy(scale=0.5, centers=3)", config=CONFIG, num_glimpses=3)
    envs = GlimpseVectorEnv(16, autoreset_mode="disabled", **vars(CONFIG))
    envs.reset(seed=0, options={"scene": np.arange(16)})
    behaviour = follow_policy(policy, envs)
    for _ in range(2):
        looks = behaviour(TriedStep({}, np.arange(2), np.zeros((16, 2))))
        envs.step(looks)
    alone = evaluate(policy, config=CONFIG)
    order = np.argsort(alone.scene)
    np.testing.assert_allclose(envs.episodes.viewpoints, alone.viewpoints[order], atol=1e-6)
    envs.close()


def test_a_mixture_draws_for_every_state() -> None:
    rng = np.random.default_rng(0)
    parts = [lambda moment, value=value: np.full(10_000, value) for value in range(3)]
    drawn = mixture(parts, (0.5, 0.25, 0.25), rng)(TriedStep({}, np.arange(1), np.zeros((1, 1))))
    np.testing.assert_allclose(np.bincount(drawn) / 10_000, (0.5, 0.25, 0.25), atol=0.03)


def test_bad_pools(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use action='grid' or 'quadtree'"):
        load_pool(replace(CONFIG, action="continuous"), states=STATES, candidates=4)
    with pytest.raises(ValueError, match="fewer candidates"):
        load_pool(CONFIG, states=STATES, candidates=10)
    with pytest.raises(ValueError, match="candidates must be"):
        load_pool(CONFIG, states=STATES, candidates=1)
    with pytest.raises(ValueError, match="2 states is a single episode"):
        split(load_pool(CONFIG, states=1, candidates=4))
    (path,) = blocks(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="delete it"):
        load_pool(CONFIG, states=STATES, candidates=4)


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kwargs = '{"num_scenes": 16, "device": "cpu", "budget": 3}'
    with caplog.at_level("INFO"):
        pools.main(PoolConfig(env_kwargs=kwargs, states=STATES, progress=False))
    assert "16 states; gains differ by" in caplog.text
    assert len(blocks(tmp_path)) == 1


def test_ppo_begins_with_what_a_pool_teaches(tmp_path: Path) -> None:
    """All seeds learn from the same pool, which the first of them makes; the error is measured on other episodes."""
    found = []
    for seed in (0, 1):
        train(
            TrainConfig(
                run_dir=tmp_path / f"seed-{seed}", env="CanViT/FashionSegmentation-v0", seed=seed, eval_every=0,
                env_kwargs='{"num_scenes": 16, "device": "cpu", "budget": 3, "grid_centers": 3}', progress=False,
                total_timesteps=1, gaze_scenes=0, eval_scenes=2,
                hyper='{"warm_start": {"states": 32, "pool": true, "candidates": 4, "learning_rate": 0.003, '
                '"weight_decay": 0.1, "epochs": 2, "batch_size": 8}, "n_envs": 4, "n_steps": 2, "batch_size": 4, '
                '"policy_kwargs": {"prior": null}}',
            )
        )  # fmt: skip
        result = (tmp_path / f"seed-{seed}" / "result.json").read_text(encoding="utf-8")
        found.append(json.loads(result)["warm_start"])
    assert len(list((tmp_path / "pools").iterdir())) == 1
    for (record,) in found:
        assert record["states"] == 30 and np.isfinite(list(record.values())).all()
    assert found[0] != found[1]


def test_options_of_the_pool() -> None:
    with pytest.raises(ValueError, match="weight_decay"):
        WarmStart(weight_decay=-0.1)
    with pytest.raises(ValueError, match="warm_start pool"):
        WarmStart(pool="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("algo", ["q_regression", "dime"])
def test_learners_of_gains_begin_with_what_a_pool_teaches(tmp_path: Path, algo: str) -> None:
    env = {"num_scenes": 16, "device": "cpu", "budget": 3, "grid_centers": 3, "reward": "loss_reduction"}
    hyper = {
        "pool": {"states": 2 * STATES, "candidates": 8, "epochs": 30, "batch_size": 8, "weight_decay": 0.0},
        "n_envs": 4, "n_steps": 2, "batch_size": 8,
        "policy_kwargs": {"channels": 8, "context_dim": 16, "blocks": 1, "prior": None},
    }  # fmt: skip
    config = TrainConfig(
        run_dir=tmp_path / "run", algo=algo, env="CanViT/FashionSegmentation-v0", env_kwargs=json.dumps(env),
        hyper=json.dumps(hyper), total_timesteps=8, eval_every=0, eval_scenes=2, gaze_scenes=0, progress=False,
    )  # fmt: skip
    train(config)
    (record,) = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))["warm_start"]
    assert record["states"] == 30 and np.isfinite(record["explained"])
    plan = prepare(replace(config, run_dir=tmp_path / "other"))
    learner: Any = plan.algorithm.make(plan)
    pool = load_pool(plan.env, states=2 * STATES, candidates=8)
    before = learner._explained(pool, batch_size=8)
    learner.begin(progress=False)
    assert learner._explained(split(pool)[0], batch_size=8) > max(before, 0.1)
    learner.close()


def test_glimpses_of_a_pool_count() -> None:
    alone = {"pool": {"states": 100, "candidates": 4}, "policy_kwargs": {"prior": None}}
    hyper = load_hyperparameters("CanViT/FashionSegmentation-v0", alone, algo="q_regression")
    assert hyper.glimpses(7) == 507
    with pytest.raises(ValueError, match="unknown pool options rounds; there are: states"):
        load_hyperparameters("CanViT/FashionSegmentation-v0", {"pool": {"rounds": 1}}, algo="q_regression")


def test_a_pool_of_scores_is_refused() -> None:
    overrides = {"pool": {"states": 32, "candidates": 4}}
    hyper = load_hyperparameters("CanViT/FashionSegmentation-v0", overrides, algo="q_regression")
    with pytest.raises(ValueError, match="use reward='soft_score_gain', or no pool"):
        hyper.check_fit(replace(CONFIG, budget=5, reward="score_gain"))
    with pytest.raises(ValueError, match="fewer candidates"):
        hyper.check_fit(replace(CONFIG, budget=5, grid_centers=1))


@pytest.mark.parametrize("algo", ["ppo", "q_regression"])
def test_resumed_equals_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algo: str) -> None:
    """What was learned from the pool, and the moments of its gains, are in the training state."""
    of_pool = {"states": 2 * STATES, "candidates": 4, "epochs": 1, "batch_size": 8}
    hyper = {
        "n_envs": 4, "n_steps": 2, "batch_size": 4, "n_epochs": 1,
        "policy_kwargs": {"channels": 8, "context_dim": 16, "blocks": 1, "prior": None},
        **({"warm_start": of_pool | {"pool": True}} if algo == "ppo" else {"pool": of_pool}),
    }  # fmt: skip
    env = {"num_scenes": 16, "device": "cpu", "budget": 3, "grid_centers": 3, "reward": "loss_reduction"}
    whole = TrainConfig(
        run_dir=tmp_path / "whole", algo=algo, env="CanViT/FashionSegmentation-v0", env_kwargs=json.dumps(env),
        hyper=json.dumps(hyper), total_timesteps=32, eval_every=8, eval_scenes=2, gaze_scenes=0, checkpoint_every=8,
        progress=False,
    )  # fmt: skip
    assert not train(whole).interrupted
    broken = replace(whole, run_dir=tmp_path / "broken")
    stepped = Monitor.stepped

    def interrupt(self: Monitor, num_decisions: int) -> None:
        if self.learner.num_timesteps >= 16:
            raise KeyboardInterrupt
        stepped(self, num_decisions)

    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "stepped", interrupt)
        assert train(broken).interrupted
    assert not train(TrainConfig(broken.run_dir, resume=True, progress=False)).interrupted
    assert_same_policies(whole.run_dir, broken.run_dir, names=("last",))
