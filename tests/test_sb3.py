"""The Stable-Baselines3 adapter says what the vector env says, in SB3's words."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from conftest import ENV_IDS
from gymnasium.wrappers.vector import NormalizeReward, RecordEpisodeStatistics
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack, VecMonitor, VecNormalize

from canvit_gym.sb3 import GlimpseVecEnv, make_sb3_env

SEGMENTATION = "CanViT/FashionSegmentation-v0"
KWARGS: dict[str, Any] = {"num_scenes": 16, "device": "cpu", "budget": 3}
NUM = 3


def adapter(env_id: str = SEGMENTATION, **kwargs: Any) -> GlimpseVecEnv:
    return make_sb3_env(env_id, NUM, **KWARGS | kwargs)


def vector(env_id: str = SEGMENTATION, **kwargs: Any) -> gym.vector.VectorEnv:
    return gym.make_vec(env_id, NUM, autoreset_mode="same_step", **KWARGS | kwargs)


def assert_same(a: Any, b: Any) -> None:
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.mark.parametrize("env_id", ENV_IDS)
@pytest.mark.parametrize(
    "kwargs", [{}, {"action": "continuous", "allow_stop": True, "revisit": True}], ids=["grid", "stop"]
)
def test_steps_are_those_of_the_vector_env(env_id: str, kwargs: dict[str, Any]) -> None:
    ours, theirs = adapter(env_id, **kwargs), vector(env_id, **kwargs)
    ours.seed(5)
    observation, info = theirs.reset(seed=5)
    assert_same(ours.reset(), observation)
    assert [i["scene"] for i in ours.reset_infos] == info["scene"].tolist()
    rng = np.random.default_rng(0)
    ended = 0
    for _ in range(6):
        if kwargs:
            actions = rng.uniform(-1, 1, (NUM, 4)).astype(np.float32)
        else:
            actions = rng.integers(theirs.single_action_space.n, size=NUM)  # type: ignore[attr-defined]
        observation, rewards, dones, infos = ours.step(actions)
        expected, paid, terminated, _, info = theirs.step(actions)
        assert_same(observation, expected)
        np.testing.assert_array_equal(rewards, paid.astype(np.float32))
        assert rewards.dtype == np.float32 and dones.dtype == np.bool_
        np.testing.assert_array_equal(dones, terminated)
        for row in range(NUM):
            assert infos[row]["TimeLimit.truncated"] is False
            source = info["final_info"] if terminated[row] else info
            np.testing.assert_array_equal(infos[row]["viewpoint"], source["viewpoint"][row])
            assert infos[row]["scene"] == source["scene"][row]
            assert infos[row]["loss"] == source["loss"][row]
            assert ("terminal_observation" in infos[row]) == ("loss_curve" in infos[row]) == terminated[row]
            if terminated[row]:
                ended += 1
                assert_same(infos[row]["terminal_observation"], info["final_obs"][row])
                assert ours.reset_infos[row]["scene"] == info["scene"][row]
                np.testing.assert_array_equal(infos[row]["loss_curve"], source["loss_curve"][row])
    assert ended >= NUM
    ours.close()


def test_truncated_episodes_are_told_from_terminated_ones() -> None:
    """So that learners bootstrap from the last observation of those alone that could have gone on."""
    ours, theirs = adapter(max_episode_steps=2, budget=5), vector(max_episode_steps=2, budget=5)
    ours.seed(5)
    ours.reset()
    theirs.reset(seed=5)
    for step in range(1, 5):
        actions = np.full(NUM, step)
        _, _, dones, infos = ours.step(actions)
        _, _, terminated, truncated, info = theirs.step(actions)
        assert dones.tolist() == truncated.tolist() == [step % 2 == 0] * NUM and not terminated.any()
        for row in range(NUM):
            assert infos[row]["TimeLimit.truncated"] is bool(truncated[row])
            assert ("terminal_observation" in infos[row]) == truncated[row]
            if truncated[row]:
                assert_same(infos[row]["terminal_observation"], info["final_obs"][row])
                assert infos[row]["glimpses"] == 3  # of 5
    spent = adapter(max_episode_steps=2)  # as many as the budget allows
    spent.reset()
    for _ in range(2):
        *_, dones, infos = spent.step(np.zeros(NUM, dtype=np.int64))
    assert dones.all() and not any(info["TimeLimit.truncated"] for info in infos)
    with pytest.raises(ValueError, match=r"max_episode_steps=2 truncates episodes.*leave out one of the two"):
        adapter(max_episode_steps=2, tensors="float32")


def test_wrappers_of_sb3() -> None:
    monitored = VecMonitor(adapter())
    envs = VecNormalize(VecFrameStack(monitored, 2), norm_obs_keys=["canvas"])
    observation = envs.reset()
    assert isinstance(observation, dict)
    assert observation["viewpoint"].shape == (NUM, 6)
    raw = np.zeros(NUM)
    episodes = []
    for _ in range(4):
        observation, _, dones, infos = envs.step(np.array([envs.action_space.sample() for _ in range(NUM)]))
        assert isinstance(observation, dict) and all(np.isfinite(v).all() for v in observation.values())
        raw += envs.get_original_reward()
        for row in np.flatnonzero(dones):
            episode = infos[row]["episode"]
            assert episode["l"] == 2
            assert episode["r"] == pytest.approx(raw[row], abs=1e-5)
            assert infos[row]["terminal_observation"]["viewpoint"].shape == (6,)
            raw[row] = 0
            episodes.append(episode)
    assert len(episodes) == 2 * NUM


def test_videos_have_the_speed_of_the_environment() -> None:
    envs = make_sb3_env("CanViT/FashionSegmentation-v0", 2, num_scenes=4, render_mode="rgb_array")
    assert envs.metadata["render_fps"] == envs.glimpse_envs.metadata["render_fps"] == 2
    envs.close()


def test_attributes_methods_and_options() -> None:
    envs = adapter()
    assert envs.get_attr("action_space") == [envs.action_space] * NUM
    assert [c.budget for c in envs.get_attr("config", indices=[0, 2])] == [3, 3]
    assert envs.has_attr("layout") and not envs.has_attr("no_such_thing")
    envs.set_attr("note", "hello")
    assert envs.get_attr("note", indices=1) == ["hello"]
    with pytest.raises(ValueError, match="one object"):
        envs.set_attr("note", "bye", indices=[0])
    assert envs.env_is_wrapped(gym.Wrapper) == [False] * NUM
    envs.set_options([{"scene": 4}, {"scene": 9}, {"scene": 1}])
    envs.reset()
    assert [info["scene"] for info in envs.reset_infos] == [4, 9, 1]
    assert sorted(envs.env_method("observation_tensors", indices=0)[0]) == sorted(envs.observation_space)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="call reset"):
        envs.env_method("reset")
    envs.set_options([{"scene": 4}, {}, {}])
    with pytest.raises(ValueError, match=r"environments \[1, 2\] have no scene"):
        envs.reset()
    with pytest.raises(ValueError, match=r"environments \[0\] have no goal"):
        envs.set_options([{"scene": 4}, {"scene": 4, "goal": 1}, {"goal": 1, "scene": 4}])
        envs.reset()
    envs.set_options({"colour": 1})
    with pytest.raises(ValueError, match="unknown reset option colour"):
        envs.reset()
    envs.reset()  # what was refused is not asked for again


def test_goals_are_reset_options() -> None:
    envs = adapter("CanViT/FashionSearch-v0")
    envs.reset()
    episodes = envs.glimpse_envs.episodes
    begun = [
        {"scene": int(scene), "goal": int(goal)} for scene, goal in zip(episodes.scene, episodes.goal, strict=True)
    ]
    for _ in range(3):  # without them, other goals would come
        envs.set_options(begun)
        observation = envs.reset()
        assert [{key: info[key] for key in ("scene", "goal")} for info in envs.reset_infos] == begun
        assert observation["goal"].argmax(axis=1).tolist() == [options["goal"] for options in begun]
    with pytest.raises(ValueError, match=r"options\['goal'\] is for goal-conditioned tasks"):
        plain = adapter()
        plain.set_options({"goal": 1})
        plain.reset()


def test_around_gymnasiums_wrappers() -> None:
    frozen = NormalizeReward(vector())
    envs = GlimpseVecEnv(RecordEpisodeStatistics(frozen))
    envs.reset()
    returns = np.zeros(NUM)
    for _ in range(2):
        _, rewards, dones, infos = envs.step(np.zeros(NUM, dtype=np.int64))
        returns += rewards
    assert dones.all()
    for row, info in enumerate(infos):
        assert info["episode"]["l"] == 2 and info["episode"]["r"] == pytest.approx(returns[row], abs=1e-5)
        assert "scene" in info and "terminal_observation" in info
    envs.set_attr("update_running_mean", False)
    assert frozen.update_running_mean is False and envs.get_attr("update_running_mean", indices=0) == [False]
    assert "update_running_mean" not in vars(envs.glimpse_envs)
    assert envs.env_is_wrapped(RecordEpisodeStatistics) == [True] * NUM  # type: ignore[arg-type]
    assert [config.budget for config in envs.get_attr("config")] == [3] * NUM


def test_a_window_gives_no_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    envs = adapter()
    monkeypatch.setattr(envs.glimpse_envs, "render", lambda: None)  # as render_mode="human" does
    assert envs.env_method("render") == [None] * NUM


def test_seed_decides_the_scenes() -> None:
    def scenes(seed: int) -> list[int]:
        envs = adapter()
        envs.seed(seed)
        envs.reset()
        return [info["scene"] for info in envs.reset_infos]

    assert scenes(1) == scenes(1) != scenes(2)


def test_refuses_other_autoreset_modes_and_environments() -> None:
    with pytest.raises(ValueError, match='autoreset_mode="same_step"'):
        GlimpseVecEnv(gym.make_vec(SEGMENTATION, 2, **KWARGS))
    with pytest.raises(TypeError, match="GlimpseVectorEnv"):
        GlimpseVecEnv(gym.make_vec("CartPole-v1", 2))


def test_render_tiles_the_frames() -> None:
    envs = adapter(render_mode="rgb_array")
    envs.reset()
    frames = envs.get_images()
    assert len(frames) == NUM and frames[0] is not None
    tiled = envs.render("rgb_array")
    assert tiled is not None and tiled.size >= NUM * frames[0].size
    np.testing.assert_array_equal(envs.env_method("render", indices=1)[0], frames[1])


@pytest.mark.parametrize("tensors", [None, "float32"])
def test_reset_infos_are_those_of_the_scenes_under_way(tensors: Any) -> None:
    """With stops, so that episodes end at different times."""
    envs = adapter(tensors=tensors, allow_stop=True)
    envs.seed(0)
    envs.reset()
    rng, ended = np.random.default_rng(1), 0
    for _ in range(12):
        actions = np.where(rng.random(NUM) < 0.3, 512, rng.integers(512, size=NUM))
        *_, dones, _ = envs.step(actions)
        ended += dones.sum()
        assert [info["scene"] for info in envs.reset_infos] == envs.glimpse_envs.episodes.scene.tolist()
        assert all(info["glimpses"] == 1 for info in envs.reset_infos)
    assert ended > NUM


@pytest.mark.parametrize("env_id", ["CartPole-v1", "MountainCar-v0"])
def test_environments_of_others_are_refused(env_id: str) -> None:
    """With a vector entry point of their own, or with none."""
    with pytest.raises(
        ValueError, match=rf"'{env_id}' is no environment of canvit_gym: use one of CanViT/Fashion.*make"
    ):
        make_sb3_env(env_id, 2)


def test_the_autoreset_mode_is_not_to_be_chosen() -> None:
    with pytest.raises(ValueError, match=r"autoreset_mode='same_step': SB3 needs 'same_step'.*leave it out"):
        adapter(autoreset_mode="same_step")


def test_an_id_may_name_its_module() -> None:
    assert adapter(f"canvit_gym:{SEGMENTATION}").num_envs == NUM


@pytest.mark.parametrize("native", [True, False])
def test_maskable_ppo_learns_within_the_masks(native: bool) -> None:
    """On the native adapter and on SB3's own vectorizer: a masked viewpoint would raise."""
    contrib = pytest.importorskip("sb3_contrib")
    kwargs: dict[str, Any] = dict(num_scenes=14, device="cpu", budget=4, grid_scales=(0.5,), grid_centers=2)
    kwargs |= {"revisit": False, "observations": ("acuity", "time")}
    env_id = "CanViT/FashionSegmentation-v0"
    if native:
        envs: Any = make_sb3_env(env_id, 3, **kwargs)
        envs.reset()
        envs.step(np.array([0, 1, 2]))
        masks = envs.env_method("action_masks")
        assert [mask.tolist().index(False) for mask in masks] == [0, 1, 2] and all(mask.sum() == 3 for mask in masks)
        assert [mask.tolist() for mask in envs.env_method("action_masks", indices=[2])] == [masks[2].tolist()]
    else:
        envs = make_vec_env(env_id, 3, env_kwargs=kwargs)
    model = contrib.MaskablePPO("MultiInputPolicy", envs, n_steps=6, batch_size=6, n_epochs=1, device="cpu", seed=0)
    model.learn(36)
    assert model.num_timesteps == 36
    envs.close()
