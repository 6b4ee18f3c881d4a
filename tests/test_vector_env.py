"""GlimpseVectorEnv: the three autoreset modes with even and uneven episodes, scenes, first glimpses, freshness."""

from collections.abc import Callable
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import ENV_IDS, SMALL, each_id_with
from gymnasium.vector import AutoresetMode

from canvit_gym.backbone.load import Backbone
from canvit_gym.testing import check_vector_env
from canvit_gym.vector_env import GlimpseVectorEnv

MakeVec = Callable[..., GlimpseVectorEnv]
MODES = ["next_step", "same_step", "disabled"]
STOP = 21  # of the default quadtree's 21 tiles
STOPPING: dict[str, Any] = {"action": "quadtree", "allow_stop": True}


@pytest.mark.parametrize(("env_id", "mode", "first_glimpse"), each_id_with(MODES, ["full", "random", None]))
def test_our_checker_passes(make_vec: MakeVec, env_id: str, mode: str, first_glimpse: str | None) -> None:
    """With few actions, so that random ones stop often and the scenes end at different times."""
    kwargs: dict[str, Any] = {"budget": 4, "quadtree_levels": 0, **STOPPING}
    check_vector_env(make_vec(3, env_id, autoreset_mode=mode, first_glimpse=first_glimpse, **kwargs))


@pytest.mark.parametrize(
    "kwargs", [{}, {"action": "continuous", "allow_stop": True}, {"observations": ["glimpse", "cls"]}]
)
def test_our_checker_passes_through_make_vec(kwargs: dict[str, Any]) -> None:
    check_vector_env(gym.make_vec(ENV_IDS[0], num_envs=1, num_scenes=16, device="cpu", **kwargs))


class TestNextStep:
    def test_a_stopped_scene_is_replaced_while_the_others_go_on(self, make_vec: MakeVec) -> None:
        envs = make_vec(3, budget=5, **STOPPING)
        _, first = envs.reset(seed=0)
        _, _, terminated, _, info = envs.step(np.array([1, STOP, 2]))
        assert terminated.tolist() == [False, True, False]
        assert info["_loss_curve"].tolist() == [False, True, False]
        assert np.array_equal(info["scene"], first["scene"])
        observation, rewards, terminated, _, info = envs.step(np.array([3, 7, 4]))
        assert rewards[1] == 0 and not terminated.any()
        assert info["glimpses"].tolist() == [3, 1, 3]
        assert (info["scene"] == first["scene"]).tolist() == [True, False, True]
        assert observation["viewpoint"][1].tolist() == [0, 0, 1], "the first glimpse, not the action's"
        *_, info = envs.step(np.array([5, 7, 6]))
        assert info["glimpses"].tolist() == [4, 2, 4]

    def test_stopping_on_the_reset_step_does_nothing(self, make_vec: MakeVec) -> None:
        envs = make_vec(2, glimpse_cost=1.0, **STOPPING)
        envs.reset(seed=0)
        envs.step(np.array([STOP, 1]))
        _, rewards, terminated, _, info = envs.step(np.array([STOP, 1]))
        assert rewards[0] == 0 and not terminated[0] and info["glimpses"][0] == 1

    @pytest.mark.parametrize("junk", [np.nan, 99.0])
    def test_the_action_of_a_reset_step_may_be_anything(self, make_vec: MakeVec, junk: float) -> None:
        envs = make_vec(2, budget=2, action="continuous")
        envs.reset(seed=0)
        envs.step(np.zeros((2, 3)))
        _, rewards, *_ = envs.step(np.full((2, 3), junk))
        assert not rewards.any()

    def test_without_first_glimpse_the_reset_step_takes_none(self, make_vec: MakeVec) -> None:
        envs = make_vec(2, budget=1, first_glimpse=None)
        envs.reset(seed=0)
        _, _, terminated, _, _ = envs.step(np.array([1, 2]))
        assert terminated.all()
        observation, rewards, terminated, _, info = envs.step(np.array([1, 2]))
        assert not rewards.any() and not terminated.any() and not info["glimpses"].any()
        assert not observation["acuity"].any()

    def test_the_reset_step_shares_the_others_forward(self, make_vec: MakeVec, monkeypatch: pytest.MonkeyPatch) -> None:
        envs = make_vec(3, **STOPPING)
        calls: list[int] = []
        look = envs.episodes.step_rows

        def counted(rows: np.ndarray, viewpoints: np.ndarray) -> None:
            calls.append(len(rows))
            look(rows, viewpoints)

        monkeypatch.setattr(envs.episodes, "step_rows", counted)
        envs.reset(seed=0)
        envs.step(np.array([1, STOP, 2]))
        envs.step(np.array([1, 1, 2]))
        assert calls == [3, 2, 3]

    def test_a_reset_in_between_cancels_the_autoreset(self, make_vec: MakeVec) -> None:
        envs = make_vec(2, budget=2)
        envs.reset(seed=0)
        envs.step(np.array([0, 0]))
        envs.reset()
        *_, terminated, _, info = envs.step(np.array([1, 1]))
        assert terminated.all() and (info["glimpses"] == 2).all()


class TestSameStep:
    def test_ended_scenes_are_replaced_within_the_step(self, make_vec: MakeVec) -> None:
        kwargs: dict[str, Any] = {"track_score": True, **STOPPING}
        envs, twin = make_vec(3, autoreset_mode="same_step", **kwargs), make_vec(3, autoreset_mode="disabled", **kwargs)
        _, first = envs.reset(seed=0)
        twin.reset(seed=0)
        actions = np.array([1, STOP, 2])
        observation, rewards, terminated, _, info = envs.step(actions)
        last, expected_rewards, _, _, last_info = twin.step(actions)
        assert terminated.tolist() == [False, True, False]
        np.testing.assert_array_equal(rewards, expected_rewards)
        for key, value in last.items():
            assert np.array_equal(info["final_obs"][1][key], value[1]), key
        assert info["final_obs"][0] is None and info["final_obs"][2] is None
        assert info["_final_obs"].tolist() == info["_final_info"].tolist() == [False, True, False]
        for key in ("scene", "viewpoint", "glimpses", "loss", "score", "loss_curve", "score_curve"):
            assert info["final_info"][f"_{key}"].tolist() == [False, True, False]
            np.testing.assert_array_equal(info["final_info"][key][1], last_info[key][1])
        assert info["scene"][1] != first["scene"][1] and info["glimpses"].tolist() == [2, 1, 2]
        assert observation["viewpoint"][1].tolist() == [0, 0, 1]
        assert "loss_curve" not in info

    def test_it_is_two_forwards_and_the_second_for_the_ended_alone(
        self, make_vec: MakeVec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        envs = make_vec(3, budget=2, autoreset_mode="same_step", **STOPPING)
        calls: list[int] = []
        step = Backbone.step

        def counted(self: Backbone, glimpse: torch.Tensor, *rest: Any) -> Any:
            calls.append(len(glimpse))
            return step(self, glimpse, *rest)

        monkeypatch.setattr(Backbone, "step", counted)
        envs.reset(seed=0)
        envs.step(np.array([1, STOP, 2]))
        assert calls == [3, 2, 3]
        calls.clear()
        envs = make_vec(3, budget=3, autoreset_mode="same_step", **STOPPING)
        envs.reset(seed=0)
        envs.step(np.array([1, STOP, 2]))
        assert calls == [3, 2, 1]

    def test_no_final_keys_where_nothing_ended(self, make_vec: MakeVec) -> None:
        envs = make_vec(3, autoreset_mode="same_step")
        envs.reset(seed=0)
        assert "final_obs" not in envs.step(np.array([1, 2, 3]))[4]


class TestDisabled:
    def test_masked_resets_leave_the_others(self, make_vec: MakeVec) -> None:
        envs = make_vec(3, autoreset_mode="disabled", **STOPPING)
        envs.reset(seed=0)
        before, _, terminated, _, info = envs.step(np.array([STOP, 1, STOP]))
        canvas = envs.state.canvas.clone()
        with pytest.raises(RuntimeError, match=r"\[0, 2\] have ended.*reset_mask"):
            envs.step(np.array([1, 1, 1]))
        after, reset_info = envs.reset(options={"reset_mask": terminated})
        assert torch.equal(envs.state.canvas[1], canvas[1]) and not torch.equal(envs.state.canvas[0], canvas[0])
        for key, value in after.items():
            assert np.array_equal(value[1], before[key][1]), key
        assert reset_info["_scene"].tolist() == [True, False, True]
        assert reset_info["scene"][1] == info["scene"][1]
        *_, info = envs.step(np.array([1, 1, 1]))
        assert info["glimpses"].tolist() == [2, 3, 2]

    def test_running_episodes_can_be_reset_too(self, make_vec: MakeVec) -> None:
        envs = make_vec(3, autoreset_mode="disabled")
        envs.reset(seed=0)
        envs.step(np.array([1, 1, 1]))
        _, info = envs.reset(options={"reset_mask": np.array([False, True, False]), "scene": 11})
        assert info["glimpses"].tolist() == [2, 1, 2] and info["scene"][1] == 11

    def test_options_are_left_as_they_were(self, make_vec: MakeVec) -> None:
        """RecordEpisodeStatistics reads the mask after the environment has."""
        envs = make_vec(3, autoreset_mode="disabled")
        envs.reset(seed=0)
        options = {"reset_mask": np.array([True, False, False])}
        envs.reset(options=options)
        assert list(options) == ["reset_mask"]


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_modes_are_gymnasiums(make_vec: MakeVec, mode: AutoresetMode) -> None:
    assert make_vec(1, autoreset_mode=mode).metadata["autoreset_mode"] is mode
    assert make_vec(1, autoreset_mode=mode.name.lower()).metadata["autoreset_mode"] is mode
    assert GlimpseVectorEnv.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


class TestScenes:
    def seen(self, envs: GlimpseVectorEnv, episodes: int) -> list[int]:
        """The scenes of so many episodes, in the order they begin."""
        _, info = envs.reset(seed=0)
        scenes = info["scene"].tolist()
        while len(scenes) < episodes:
            *_, info = envs.step(envs.action_space.sample())
            if (info["glimpses"] == 1).all():
                scenes += info["scene"].tolist()
        return scenes[:episodes]

    def test_training_goes_through_all_scenes_before_any_comes_twice(self, make_vec: MakeVec) -> None:
        envs = make_vec(4, budget=2)
        scenes = self.seen(envs, 48)
        for start in (0, 16, 32):
            assert sorted(scenes[start : start + 16]) == list(range(16))
        assert scenes[:16] != scenes[16:32] and scenes[:16] != list(range(16))

    @pytest.mark.parametrize("split", ["validation", "test"])
    def test_evaluation_splits_come_in_order(self, make_vec: MakeVec, split: str) -> None:
        assert self.seen(make_vec(4, budget=2, split=split), 20) == [*range(16), *range(4)]

    def test_shards_are_disjoint_and_cover(self, make_vec: MakeVec) -> None:
        shards = [self.seen(make_vec(2, budget=2, shard=[i, 3], num_scenes=12), 4) for i in range(3)]
        assert sorted(scene for shard in shards for scene in shard) == list(range(12))

    @pytest.mark.parametrize("scene", [7, [3, 3, 15], np.array([0, 1, 2])])
    def test_options_pick_scenes(self, make_vec: MakeVec, scene: Any) -> None:
        envs = make_vec(3)
        _, info = envs.reset(seed=0, options={"scene": scene})
        assert np.array_equal(info["scene"], np.broadcast_to(scene, 3))

    def test_a_seed_restarts_and_no_seed_goes_on(self, make_vec: MakeVec) -> None:
        envs = make_vec(4)
        first = envs.reset(seed=1)[1]["scene"]
        second = envs.reset()[1]["scene"]
        assert set(first).isdisjoint(second)
        assert np.array_equal(envs.reset(seed=1)[1]["scene"], first)
        assert np.array_equal(envs.reset()[1]["scene"], second)
        assert not np.array_equal(envs.reset(seed=2)[1]["scene"], first)

    def test_a_seed_may_be_numpys(self, make_vec: MakeVec) -> None:
        one, other = make_vec(4), make_vec(4)
        seeds: tuple[Any, ...] = (3, np.int64(3))
        scenes = [envs.reset(seed=seed)[1]["scene"].tolist() for envs, seed in zip((one, other), seeds, strict=True)]
        assert scenes[0] == scenes[1]

    def test_unseeded_environments_differ(self, make_vec: MakeVec) -> None:
        drawn = {tuple(make_vec(8).reset()[1]["scene"].tolist()) for _ in range(3)}
        assert len(drawn) == 3


class TestFirstGlimpse:
    def test_full(self, make_vec: MakeVec) -> None:
        observation, info = make_vec(3).reset(seed=0)
        assert info["viewpoint"].tolist() == [[0, 0, 1]] * 3 and (observation["acuity"] == 1).all()

    def test_given(self, make_vec: MakeVec) -> None:
        _, info = make_vec(3, first_glimpse=(-0.5, 0.25, 0.5)).reset(seed=0)
        assert info["viewpoint"].tolist() == [[-0.5, 0.25, 0.5]] * 3

    def test_random_is_another_for_every_scene_and_the_same_for_a_seed(self, make_vec: MakeVec) -> None:
        envs = make_vec(8, first_glimpse="random", budget=2)
        first = envs.reset(seed=0)[1]["viewpoint"]
        assert len(np.unique(first, axis=0)) == 8
        assert (np.abs(first[:, :2]).max(axis=1) <= 1 - first[:, 2] + 1e-6).all()
        envs.step(envs.action_space.sample())
        replaced = envs.step(envs.action_space.sample())[4]["viewpoint"]
        assert not np.array_equal(first, replaced)
        assert np.array_equal(envs.reset(seed=0)[1]["viewpoint"], first)

    def test_none_leaves_it_to_the_agent(self, make_vec: MakeVec) -> None:
        envs = make_vec(3, first_glimpse=None, budget=2, autoreset_mode="disabled")
        _, info = envs.reset(seed=0)
        assert not info["glimpses"].any()
        assert np.isfinite(info["loss"]).all(), "the empty canvas is read too"
        assert not envs.step(envs.action_space.sample())[2].any()
        assert envs.step(envs.action_space.sample())[2].all()


def test_twins_with_one_seed_do_the_same(make_vec: MakeVec) -> None:
    twins = [make_vec(4, **STOPPING) for _ in range(2)]
    rng = np.random.default_rng(0)
    results = [envs.reset(seed=9)[0] for envs in twins]
    for _ in range(15):
        actions = rng.integers(STOP + 1, size=4)
        stepped = [envs.step(actions) for envs in twins]
        for i in (1, 2, 3):
            assert np.array_equal(cast(Any, stepped[0][i]), cast(Any, stepped[1][i]))
        results = [step[0] for step in stepped]
        assert all(np.array_equal(value, results[1][key]) for key, value in results[0].items())


def test_environments_share_one_backbone(make_vec: MakeVec) -> None:
    one, other = make_vec(2), make_vec(3, ENV_IDS[1])
    assert one.backbone is other.backbone
    assert not one.backbone.canvit.training
    assert not any(parameter.requires_grad for parameter in one.backbone.canvit.parameters())


def test_the_backbone_is_never_changed(make_vec: MakeVec) -> None:
    """Not its parameters, not the probe's statistics: frozen means frozen."""
    envs = make_vec(1, budget=2)
    modules = [envs.backbone.pretrained, envs.task.model]  # pyright: ignore[reportAttributeAccessIssue]
    before = [{k: v.clone() for k, v in module.state_dict().items()} for module in modules]
    envs.reset(seed=0)
    for _ in range(4):
        envs.step(envs.action_space.sample())
    for module, old in zip(modules, before, strict=True):
        assert all(torch.equal(value, old[key]) for key, value in module.state_dict().items())


def test_a_refused_action_loses_nothing(make_vec: MakeVec) -> None:
    """Bad input is refused before anything has moved."""
    envs, twin = make_vec(2, action="continuous"), make_vec(2, action="continuous")
    envs.reset(seed=0)
    twin.reset(seed=0)
    for bad in (np.full((2, 3), np.nan), np.zeros((2, 4)), np.full((2, 3), 2.0)):
        with pytest.raises(ValueError, match="action"):
            envs.step(bad)
    with pytest.raises(ValueError, match="scene"):
        envs.reset(options={"scene": 99})
    one, other = envs.step(np.zeros((2, 3))), twin.step(np.zeros((2, 3)))
    assert np.array_equal(one[1], other[1])
    assert all(np.array_equal(value, other[0][key]) for key, value in one[0].items())


def test_bfloat16_stays_close(make_vec: MakeVec) -> None:
    envs, reference = make_vec(2, precision="bfloat16", autoreset_mode="same_step", budget=2), make_vec(2, budget=2)
    observation, _ = envs.reset(seed=0)
    expected, _ = reference.reset(seed=0)
    assert envs.observation_space.contains(observation)
    assert np.abs(observation["canvas"] - expected["canvas"]).mean() < 0.1
    for _ in range(3):
        assert envs.observation_space.contains(envs.step(envs.action_space.sample())[0])


class TestMaxEpisodeSteps:
    """Gymnasium's own keyword: make_vec passes it on to a native vector environment."""

    def test_episodes_are_truncated(self) -> None:
        envs = gym.make_vec(ENV_IDS[0], num_envs=2, max_episode_steps=2, **SMALL)
        envs.reset(seed=0)
        ends = []
        for _ in range(4):
            _, _, terminated, truncated, _ = envs.step(np.zeros(2, dtype=np.int64))
            assert not terminated.any()
            ends.append(truncated.tolist())
        assert ends == [[False] * 2, [True] * 2, [False] * 2, [False] * 2]
        envs.close()

    def test_the_budget_ends_before_it(self, make_vec: MakeVec) -> None:
        envs = make_vec(2, budget=3, max_episode_steps=2)
        envs.reset(seed=0)
        envs.step(np.zeros(2, dtype=np.int64))
        _, _, terminated, truncated, _ = envs.step(np.zeros(2, dtype=np.int64))
        assert terminated.all() and not truncated.any()

    @pytest.mark.parametrize("reward", ["final_score", "score_area"])
    def test_truncated_episodes_pay_what_a_single_environment_pays(self, reward: str) -> None:
        """The end of an episode is not paid for where it is only cut off."""
        kwargs = SMALL | {"reward": reward, "budget": 5, "max_episode_steps": 2}
        env, envs = gym.make(ENV_IDS[0], **kwargs), gym.make_vec(ENV_IDS[0], num_envs=1, **kwargs)
        env.reset(options={"scene": 1}), envs.reset(options={"scene": 1})
        for action in (3, 40):
            _, single, *ends, _ = env.step(action)
            _, vector, *others, _ = envs.step(np.array([action]))
            assert single == pytest.approx(vector[0]) and ends == [end[0] for end in others]
        assert ends == [False, True]
        env.close(), envs.close()

    def test_same_step_replaces_what_is_truncated(self, make_vec: MakeVec) -> None:
        envs = make_vec(2, max_episode_steps=1, autoreset_mode="same_step")
        envs.reset(seed=0)
        _, _, terminated, truncated, info = envs.step(np.zeros(2, dtype=np.int64))
        assert truncated.all() and not terminated.any() and info["_final_obs"].all()
        assert info["glimpses"].tolist() == [1, 1]
