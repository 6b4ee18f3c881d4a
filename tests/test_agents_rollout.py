"""The rollout buffer of tensors: stock SB3's numbers, on the device, in less memory."""

from typing import Any, cast

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecMonitor

from agents.ppo.algorithm import GlimpsePPO
from agents.ppo.policy import ViewpointPolicy
from agents.ppo.recorded_gradients import RecordedGradients
from agents.ppo.rollout import TensorRolloutBuffer
from canvit_gym.policies.networks import action_options
from canvit_gym.sb3 import GlimpseVecEnv, make_sb3_env

SEGMENTATION = "CanViT/FashionSegmentation-v0"
NUM, STEPS = 4, 6
ENV_KWARGS: dict[str, Any] = dict(num_scenes=14, device="cpu", budget=4, grid_centers=4)


def model(tensors: Any, *, action: str = "grid", algorithm: type[PPO] = PPO, **changes: Any) -> PPO:
    env = make_sb3_env(SEGMENTATION, NUM, tensors=tensors, action=action, **ENV_KWARGS)
    options: dict[str, Any] = dict(n_steps=STEPS, batch_size=8, n_epochs=2, learning_rate=3e-3, seed=0, device="cpu")
    made = algorithm(
        ViewpointPolicy,
        VecMonitor(env),
        policy_kwargs=action_options(env.glimpse_envs.actions) | {"channels": 8, "context_dim": 16, "blocks": 1},
        rollout_buffer_class=DictRolloutBuffer if tensors is None else TensorRolloutBuffer,
        **options | changes,
    )
    made.set_logger(Logger(None, []))
    return made


class Episodes(BaseCallback):
    """(return, length) of every episode, and the returns PPO learned from."""

    def _on_training_start(self) -> None:
        self.episodes: list[tuple[float, int]] = []
        self.returns: list[Any] = []

    def _on_step(self) -> bool:
        ended = [info["episode"] for info in self.locals["infos"] if "episode" in info]
        self.episodes += [(float(episode["r"]), int(episode["l"])) for episode in ended]
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        self.returns.append((buffer.returns.copy(), buffer.log_probs.copy(), buffer.actions.copy()))


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize("action", ["grid", "continuous"])
def test_float32_gives_stock_numbers(action: str) -> None:
    """Two updates, minibatches that do not divide the rollout included: parameters and curves to the bit."""
    seen = Episodes(), Episodes()
    # One after the other: both draw from the global generators, which making a model seeds.
    stock, ours = (
        model(tensors, action=action, batch_size=10).learn(2 * STEPS * NUM, callback=callback)
        for tensors, callback in zip((None, "float32"), seen, strict=True)
    )
    for name, value in stock.policy.state_dict().items():
        assert torch.equal(value, ours.policy.state_dict()[name]), name
    assert seen[0].episodes == seen[1].episodes and len(seen[0].episodes) == 2 * STEPS * NUM // 3
    for theirs, own in zip(seen[0].returns, seen[1].returns, strict=True):
        for a, b in zip(theirs, own, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize(
    "changes", [{}, {"clip_range_vf": 0.2, "normalize_advantage": False, "ent_coef": 0.01}], ids=str
)
@pytest.mark.parametrize("action", ["grid", "continuous"])
def test_updates_are_stock_updates(action: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters to the bit, and the same statistics, fetched once."""
    told: list[dict[str, Any]] = []
    dumped = Logger.dump

    def dump(self: Logger, step: int = 0) -> None:
        told[-1] |= self.name_to_value
        dumped(self, step)

    monkeypatch.setattr(Logger, "dump", dump)
    made = []
    for algorithm in (PPO, GlimpsePPO):
        told.append({})
        options = dict(action=action, algorithm=algorithm, batch_size=10, learning_rate=lambda _: 3e-3, **changes)
        made.append(model("float32", **options).learn(2 * STEPS * NUM))
    stock, ours = made
    for name, value in stock.policy.state_dict().items():
        assert torch.equal(value, ours.policy.state_dict()[name]), name
    statistics = [{k: v for k, v in each.items() if k.startswith("train/")} for each in told]
    assert statistics[0].keys() == statistics[1].keys() and len(statistics[0]) >= 9
    assert statistics[1] == pytest.approx(statistics[0], rel=1e-5, abs=1e-7)


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize("action", ["grid", "continuous"])
@pytest.mark.parametrize("clip_range_vf", [None, 0.2])
def test_recorded_gradients_are_those_of_every_minibatch(action: str, clip_range_vf: float | None) -> None:
    """Without a graph, on a CPU: parameters to the bit, minibatches of another size included."""
    made = []
    for records in (False, True):
        options = dict(action=action, algorithm=GlimpsePPO, batch_size=10, clip_range_vf=clip_range_vf)
        made.append(cast(GlimpsePPO, model("float32", **options)))
        made[-1].recorded_gradients = RecordedGradients(made[-1].gradient_watch) if records else None
        made[-1].learn(2 * STEPS * NUM)
    plain, ours = (each.policy.state_dict() for each in made)
    assert all(torch.equal(plain[name], ours[name]) for name in plain)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_a_graph_of_gradients_learns_what_eager_minibatches_learn() -> None:
    made = []
    for records in (False, True):
        made.append(cast(GlimpsePPO, model("float32", algorithm=GlimpsePPO, batch_size=10, device="cuda")))
        made[-1].recorded_gradients = RecordedGradients(made[-1].gradient_watch) if records else None
        made[-1].learn(STEPS * NUM)  # one rollout: of two, the second would depend on rounding
    recorded = made[1].recorded_gradients
    assert recorded is not None and recorded.ran == "eager"  # the last minibatch is smaller
    assert recorded._recorded is not None and recorded._recorded.is_graph
    plain, ours = (each.policy.state_dict() for each in made)
    for name, value in plain.items():
        torch.testing.assert_close(ours[name], value, atol=1e-3, rtol=1e-3)


@pytest.mark.gpu
def test_a_policy_acts_from_a_graph_as_it_does_eagerly() -> None:
    ours = model("float32", algorithm=GlimpsePPO, device="cuda")
    policy = cast(ViewpointPolicy, ours.policy)
    assert ours.env is not None
    observation = policy.obs_to_tensor(ours.env.reset())[0]
    with torch.no_grad():
        eager = policy(observation, deterministic=True)
        policy.compile_networks()
        for _ in range(3):  # compiled, recorded, replayed
            graphed = policy(observation, deterministic=True)
    assert policy._graphed is not None and policy._graphed.how == "cuda graph"
    assert torch.equal(eager[0], graphed[0])
    for one, other in zip(eager[1:], graphed[1:], strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_recorded_gradients_name_the_first_bad_number() -> None:
    ours = cast(GlimpsePPO, model("float32", algorithm=GlimpsePPO))
    ours.recorded_gradients = RecordedGradients(ours.gradient_watch)
    head = next(ours.policy.action_net.parameters())
    head.register_hook(lambda gradient: torch.full_like(gradient, float("nan")))
    with pytest.raises(FloatingPointError, match=r"^the gradient of action_net\..* is not finite$"):
        ours.learn(STEPS * NUM)


def test_float16_learns_from_exactly_what_it_acted_on() -> None:
    ours = model("float16", learning_rate=1e-12, batch_size=STEPS * NUM)
    ours.learn(STEPS * NUM)
    buffer = ours.rollout_buffer
    assert isinstance(buffer, TensorRolloutBuffer)
    assert {key: value.dtype for key, value in buffer.tensors.items()} == {
        "canvas": torch.float16, "uncertainty": torch.float16, "acuity": torch.float16,
        "viewpoint": torch.float32, "time": torch.float32,
    }  # fmt: skip
    (batch,) = buffer.get()
    actions = batch.actions.long().flatten()
    _, log_prob, _ = ours.policy.evaluate_actions(batch.observations, actions)  # type: ignore[arg-type]
    torch.testing.assert_close(log_prob, batch.old_log_prob, atol=1e-5, rtol=0)


def test_half_the_memory_of_stock() -> None:
    sizes = []
    for tensors in (None, "float16"):
        learner = model(tensors, batch_size=24)
        learner.learn(STEPS * NUM)
        buffer = learner.rollout_buffer
        assert isinstance(buffer, DictRolloutBuffer)
        if isinstance(buffer, TensorRolloutBuffer):
            sizes.append(buffer.num_bytes)
        else:  # what it holds beyond the observations is the same
            sizes.append(sum(value.nbytes for value in buffer.observations.values()))
    assert sizes[1] < 0.52 * sizes[0], sizes


def test_storage_is_allocated_once() -> None:
    learner = model("float32", batch_size=24)
    learner.learn(STEPS * NUM)
    buffer = learner.rollout_buffer
    assert isinstance(buffer, TensorRolloutBuffer)
    where = {key: value.data_ptr() for key, value in buffer.tensors.items()}
    learner.learn(STEPS * NUM, reset_num_timesteps=False)
    assert where == {key: value.data_ptr() for key, value in buffer.tensors.items()}
    buffer.reset()
    with pytest.raises(RuntimeError, match="0 of 6 steps"):
        next(buffer.get())


def test_another_environment_is_stored_as_it_is() -> None:
    learner = model("float16", batch_size=24)
    learner.learn(STEPS * NUM)
    learner.set_env(VecMonitor(make_sb3_env(SEGMENTATION, NUM, tensors="float32", **ENV_KWARGS)))
    learner.learn(STEPS * NUM)
    buffer = learner.rollout_buffer
    assert isinstance(buffer, TensorRolloutBuffer)
    assert all(value.dtype == torch.float32 for value in buffer.tensors.values())
    learner.set_env(VecMonitor(make_sb3_env(SEGMENTATION, NUM, **ENV_KWARGS)))
    with pytest.raises(TypeError, match=r"'canvas' is a ndarray.* tensors='float16'"):
        learner.learn(STEPS * NUM)


def test_the_adapter_hands_out_tensors() -> None:
    arrays, tensors = (
        make_sb3_env(SEGMENTATION, 2, tensors=kind, num_scenes=8, device="cpu", budget=3) for kind in (None, "float32")
    )
    for env in (arrays, tensors):
        env.seed(3)
    observations: list[Any] = [arrays.reset(), tensors.reset()]
    for step in range(4):
        assert isinstance(observations[1]["canvas"], torch.Tensor)
        for key, value in observations[0].items():
            np.testing.assert_array_equal(value, observations[1][key].numpy())
        actions = np.array([step, 5 + step])
        stepped: list[Any] = [arrays.step(actions), tensors.step(actions)]
        observations = [stepped[0][0], stepped[1][0]]
        theirs, ours = stepped[0][1:], stepped[1][1:]
        np.testing.assert_array_equal(theirs[0], ours[0])
        np.testing.assert_array_equal(theirs[1], ours[1])
        for row in range(2):
            assert bool(ours[2][row]) == bool(ours[1][row]) and "terminal_observation" not in ours[2][row]
            for key, value in ours[2][row].items():
                np.testing.assert_array_equal(value, theirs[2][row][key])
    with pytest.raises(ValueError, match="'float32' or 'float16', got 'bfloat16'"):
        GlimpseVecEnv(arrays.envs, tensors="bfloat16")  # type: ignore[arg-type]
