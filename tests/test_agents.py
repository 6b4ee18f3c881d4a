"""Policies read the map, learn from it, and are kept without pickles."""

import json
import pickle
from dataclasses import replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices
from torch.utils._python_dispatch import TorchDispatchMode

from agents.algorithms import ALGORITHMS, load_hyperparameters
from agents.checks import ENCODER_CHECKS, OPTION_CHECKS, schedule
from agents.normalize import PerStepNormalize
from agents.ppo.algorithm import GlimpsePPO
from agents.ppo.callbacks import EntropyFloor, decision_index, normalized_entropy
from agents.ppo.policy import ViewpointPolicy
from agents.ppo.update import update
from canvit_gym.actions import ContinuousActions, DiscreteActions, grid_viewpoints, quadtree_viewpoints
from canvit_gym.assembly import build_actions
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import evaluate
from canvit_gym.observations import ObservationLayout
from canvit_gym.policies.heads import ViewpointHead, interpolation_matrix, window_matrix
from canvit_gym.policies.learned import LearnedPolicy, load_policy, save_policy
from canvit_gym.policies.networks import NETWORK_OPTIONS, ViewpointNetwork, action_options
from canvit_gym.policies.policy_record import PolicyRecord, describe_inputs
from canvit_gym.policies.trunks import Features, MapEncoder
from canvit_gym.sb3 import GlimpseVecEnv, make_sb3_env

SPACE = spaces.Dict(
    {
        "canvas": spaces.Box(-12, 12, (16, 8, 8)),
        "uncertainty": spaces.Box(0, 1, (1, 16, 16)),
        "acuity": spaces.Box(0, 1, (1, 16, 16)),
        "viewpoint": spaces.Box(-1, 1, (3,)),
        "time": spaces.Box(0, 1, (1,)),
    }
)
ACTIONS = {
    "grid": DiscreteActions(grid_viewpoints(scales=(0.5, 0.25), centers=5)),
    "quadtree": DiscreteActions(quadtree_viewpoints(levels=2), allow_stop=True),
    "continuous": ContinuousActions(allow_stop=True),
}


def make_policy(space: spaces.Dict, actions: Any, **kwargs: Any) -> ViewpointPolicy:
    torch.manual_seed(0)
    return ViewpointPolicy(space, actions.space, lambda _: 1e-3, **action_options(actions), **kwargs)


def observations(space: spaces.Dict, count: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {key: torch.rand(count, *(box.shape or ()), generator=generator) for key, box in space.items()}


def test_interpolation_is_bilinear_and_row_first() -> None:
    """A map that is linear in row and column is sampled exactly, away from the border."""
    size = 8
    cells = (2 * np.arange(size) + 1) / size - 1
    plane = torch.from_numpy(3 * cells[:, None] - cells[None, :]).float().flatten()
    centers = np.array([[0, 0], [0.3, -0.5], [-0.8, 0.1]], dtype=np.float32)
    sampled = interpolation_matrix(centers, size=size) @ plane
    np.testing.assert_allclose(sampled, 3 * centers[:, 0] - centers[:, 1], atol=1e-5)


def test_windows_sum_the_cells_they_cover() -> None:
    """Of ones: the window's area in cells, over the side of a scale-1/2 window; nothing from outside the window."""
    size, table = 8, np.array([[0, 0, 0.5], [-0.5, 0.5, 0.5], [0.3, 0.1, 0.2]], dtype=np.float32)
    sums = window_matrix(table, size=size)
    np.testing.assert_allclose(sums.sum(dim=1), (size * table[:, 2]) ** 2 / (size / 2), rtol=1e-5)
    top_right = sums[1].view(size, size)
    assert (top_right[:4, 4:] == 2 / size).all()
    assert top_right.sum() == top_right[:4, 4:].sum()


@pytest.mark.parametrize("shuffled", [False, True])
def test_logits_follow_the_table(shuffled: bool) -> None:
    """Whatever the order of the table: each row's logit comes from its own scale's map at its own center."""
    table = quadtree_viewpoints(levels=2)
    if shuffled:
        table = table[np.random.default_rng(0).permutation(len(table))]
    head = ViewpointHead(table, channels=4, grid=8, upsample=2, allow_stop=True)
    features = torch.randn(3, 4, 8, 8)
    with torch.no_grad():
        logits = head(Features(map=features, acuity=None))
        maps = torch.nn.functional.pixel_shuffle(head.score_maps(features), 2)
        bias = head.scale_bias(features.mean(dim=(2, 3)))
        scales = list(dict.fromkeys(table[:, 2].tolist()))
        for row, viewpoint in enumerate(table):
            index = scales.index(viewpoint[2].item())
            where = torch.tensor([[[[viewpoint[1], viewpoint[0]]]]]).expand(3, -1, -1, -1)
            sampled = torch.nn.functional.grid_sample(
                maps[:, index : index + 1], where, padding_mode="border", align_corners=False
            )
            torch.testing.assert_close(logits[:, row], sampled[:, 0, 0, 0] + bias[:, index])
        torch.testing.assert_close(logits[:, -1], bias[:, -1])
    assert logits.shape == (3, len(table) + 1)


@pytest.mark.parametrize("kind", ACTIONS)
def test_every_action_kind_acts_and_learns(kind: str) -> None:
    actions = ACTIONS[kind]
    policy = make_policy(SPACE, actions)
    given = observations(SPACE, 6)
    chosen, values, log_prob = policy(given)
    assert values.shape == (6, 1) and log_prob.shape == (6,)
    assert chosen.shape == (6, *(actions.space.shape or ()))
    _, log_prob, entropy = policy.evaluate_actions(given, chosen.detach())
    assert entropy is not None
    (log_prob.sum() + values.sum() + entropy.sum()).backward()
    silent = [name for name, p in policy.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent, silent
    with torch.no_grad():
        policy.action_net.get_submodule("output" if kind == "continuous" else "score_maps").weight.mul_(100)  # type: ignore[operator, union-attr]
    other = given | {"uncertainty": given["uncertainty"].flip(-1)}

    def parameters(given: dict[str, torch.Tensor]) -> torch.Tensor:
        inner = policy.get_distribution(given).distribution
        return inner.mode if kind == "continuous" else inner.logits  # type: ignore[union-attr]

    assert not torch.allclose(parameters(given), parameters(other), atol=1e-3)


@pytest.mark.parametrize("key", [*SPACE.spaces, "everything but time"])
def test_any_key_may_be_left_out(key: str) -> None:
    keep = ["time"] if key == "everything but time" else [k for k in SPACE.spaces if k != key]
    space = spaces.Dict({k: SPACE[k] for k in keep})
    actions, _, _ = make_policy(space, ACTIONS["grid"])(observations(space, 2))
    assert actions.shape == (2,)


def test_pixels_are_refused() -> None:
    space = spaces.Dict({**SPACE.spaces, "glimpse": spaces.Box(0, 255, (3, 32, 32), np.uint8)})
    with pytest.raises(ValueError, match="leave 'glimpse' out"):
        make_policy(space, ACTIONS["grid"])


class MarkedCell(VecEnv):
    """One-step episodes: one cell of `uncertainty` is marked; reward 1 for a viewpoint close to it."""

    def __init__(self, num_envs: int) -> None:
        self.render_mode = None
        self.table = grid_viewpoints(scales=(0.25,), centers=8)
        space = spaces.Dict({"uncertainty": spaces.Box(0, 1, (1, 16, 16)), "time": spaces.Box(0, 1, (1,))})
        super().__init__(num_envs, space, spaces.Discrete(len(self.table)))
        self.rng = np.random.default_rng(0)

    def reset(self) -> Any:
        self.target = self.rng.integers(len(self.table), size=self.num_envs)
        marked = np.zeros((self.num_envs, 1, 16, 16), dtype=np.float32)
        row, col = ((self.table[self.target, :2] + 1) * 8).astype(int).T
        marked[np.arange(self.num_envs), 0, row, col] = 1
        return {"uncertainty": marked, "time": np.ones((self.num_envs, 1), dtype=np.float32)}

    def step_async(self, actions: Any) -> None:
        self.chosen = actions

    def step_wait(self) -> Any:
        distance = np.abs(self.table[self.chosen, :2] - self.table[self.target, :2]).max(axis=1)
        rewards = (distance < 0.25).astype(np.float32)
        infos = [{"TimeLimit.truncated": False} for _ in rewards]
        return self.reset(), rewards, np.ones(self.num_envs, dtype=bool), infos

    def close(self) -> None: ...

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return [getattr(self, attr_name)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None: ...

    def env_method(self, method_name: str, *args: Any, **kwargs: Any) -> list[Any]:
        return []

    def env_is_wrapped(self, wrapper_class: Any, indices: VecEnvIndices = None) -> list[bool]:
        return [False] * self.num_envs


def ppo(env: VecEnv, actions: Any, **kwargs: Any) -> GlimpsePPO:
    defaults: dict[str, Any] = dict(n_steps=4, batch_size=64, n_epochs=4, gamma=0.0, learning_rate=3e-3, device="cpu")
    return GlimpsePPO(
        ViewpointPolicy,
        env,
        seed=0,
        policy_kwargs=action_options(actions) | {"channels": 16},
        **defaults | kwargs,
    )


def glimpse_envs(**kwargs: Any) -> GlimpseVecEnv:
    return make_sb3_env("CanViT/FashionSegmentation-v0", 4, num_scenes=14, device="cpu", budget=3, **kwargs)


def test_viewpoints_are_the_environments() -> None:
    """Taken from it where they are not given, and nothing else is accepted."""
    env = glimpse_envs(grid_scales=(0.5,), grid_centers=4, allow_stop=True, glimpse_cost=0.01)
    small: dict[str, Any] = {"channels": 8, "context_dim": 16, "blocks": 1}
    options: dict[str, Any] = dict(n_steps=4, batch_size=8, device="cpu")
    model = GlimpsePPO("ViewpointPolicy", env, policy_kwargs=small, **options)
    assert model.predict(env.reset(), deterministic=True)[0].shape == (4,)

    for other in ({"grid_scales": (0.3,)}, {"grid_scales": (0.5, 0.3)}, {"allow_stop": False, "glimpse_cost": 0.0}):
        kwargs: dict[str, Any] = {"grid_scales": (0.5,), "grid_centers": 4, "allow_stop": True, "glimpse_cost": 0.01}
        actions = glimpse_envs(**kwargs | other).glimpse_envs.actions
        with pytest.raises(ValueError, match="are not those of the environment: leave viewpoints"):
            GlimpsePPO("ViewpointPolicy", env, policy_kwargs=small | action_options(actions), **options)
    with pytest.raises(ValueError, match=r"16 viewpoints with allow_stop=False make 16 actions, .* has 17"):
        ViewpointPolicy(
            env.observation_space, env.action_space, lambda _: 1e-3,
            viewpoints=env.glimpse_envs.actions.viewpoints,  # type: ignore[arg-type, attr-defined]
        )  # fmt: skip


@pytest.mark.parametrize(
    "option",
    [{"net_arch": [8]}, {"activation_fn": torch.nn.ReLU}, {"ortho_init": False}, {"share_features_extractor": False}],
    ids=str,
)
def test_what_would_have_no_effect_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(option))}=.* has no effect on ViewpointPolicy"):
        make_policy(SPACE, ACTIONS["grid"], **option)


@pytest.mark.parametrize("kind", ACTIONS)
def test_tensors_are_predicted_on_like_arrays(kind: str) -> None:
    policy = make_policy(SPACE, ACTIONS[kind])
    batch = observations(SPACE, 5)
    for given in (batch, {key: value[0] for key, value in batch.items()}):
        tensors, _ = policy.predict(given, deterministic=True)  # type: ignore[arg-type]
        arrays, _ = policy.predict({key: value.numpy() for key, value in given.items()}, deterministic=True)
        np.testing.assert_array_equal(tensors, arrays)
    on_meta = {key: value.to("meta") for key, value in batch.items()}
    converted, is_batch = policy.to("meta").obs_to_tensor(on_meta)
    assert is_batch and all(value.device.type == "meta" for value in converted.values())  # type: ignore[union-attr]


def test_ppo_finds_the_marked_cell() -> None:
    env = MarkedCell(32)
    model = ppo(env, DiscreteActions(env.table))
    model.learn(8_000)
    observation = env.reset()
    chosen, _ = model.predict(observation, deterministic=True)
    env.step_async(chosen)
    assert env.step_wait()[1].mean() > 0.8  # about 0.1 by chance


@pytest.mark.parametrize(("total", "progress"), [(1, [1.0]), (128, [1.0]), (300, [1.0, 1 - 128 / 300, 1 - 256 / 300])])
def test_every_update_of_a_linear_schedule_learns(total: int, progress: list[float]) -> None:
    """Rollouts of 128 decisions: also where the total is less than one, or no multiple of them."""
    env = MarkedCell(32)
    model = ppo(env, DiscreteActions(env.table), learning_rate=schedule("learning_rate", "lin_0.01"))
    rates: list[float] = []
    optimizer = model.policy.optimizer
    optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    model.learn(total)
    np.testing.assert_allclose(rates[:: len(rates) // len(progress)], 0.01 * np.array(progress))


def test_a_gradient_that_is_not_finite_stops_before_the_parameters() -> None:
    env = MarkedCell(8)
    model = ppo(env, DiscreteActions(env.table), batch_size=32)
    head = model.policy.action_net.get_submodule("score_maps")
    head.weight.register_hook(lambda grad: torch.full_like(grad, float("nan")))  # type: ignore[operator, union-attr]
    before = {k: v.clone() for k, v in model.policy.state_dict().items()}
    with pytest.raises(FloatingPointError, match=r"gradient of action_net.score_maps.weight is not finite"):
        model.learn(32)
    assert all(torch.equal(v, before[k]) for k, v in model.policy.state_dict().items())


def filled() -> GlimpsePPO:
    """A PPO whose rollout is complete and not yet learned from."""
    env = MarkedCell(8)
    model = ppo(env, DiscreteActions(env.table), batch_size=32)
    train, model.train = model.train, lambda: None  # type: ignore[method-assign]
    model.learn(32)
    model.train = train  # type: ignore[method-assign]
    return model


class WaitsForTheDevice(TorchDispatchMode):
    """Counts what a GPU would be waited for: numbers that the host asks for, and copies to it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))


def test_an_update_checked_at_its_end_is_the_same_and_waits_for_nothing() -> None:
    models = [filled() for _ in range(2)]
    waits = []
    for model, late in zip(models, (False, True), strict=True):
        torch.manual_seed(0)
        np.random.seed(0)
        with WaitsForTheDevice() as mode:
            update(model, check_at_the_end=late)
        waits.append(mode.count)
    ours, theirs = (model.policy.state_dict() for model in models)
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    of_adam = 4 * sum(1 for _ in models[1].policy.parameters())  # it counts its steps on the host, on a GPU too
    assert waits[1] <= of_adam < waits[0]
    assert models[0].logger.name_to_value == models[1].logger.name_to_value


def test_an_update_checked_at_its_end_names_the_first_bad_number_and_gives_the_parameters_back() -> None:
    model = filled()
    head = model.policy.action_net.get_submodule("score_maps")
    head.weight.register_hook(lambda grad: torch.full_like(grad, float("nan")))  # type: ignore[operator, union-attr]
    before = {k: v.clone() for k, v in model.policy.state_dict().items()}
    with pytest.raises(FloatingPointError, match=r"^the gradient of action_net.score_maps.weight is not finite$"):
        update(model, check_at_the_end=True)
    assert all(torch.equal(v, before[k]) for k, v in model.policy.state_dict().items())


def test_a_compiled_policy_acts_and_learns_as_an_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # Traced as for the compiler, then run by PyTorch's own kernels: what a compiler makes of it takes a minute.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    eager, compiled = make_policy(SPACE, ACTIONS["grid"]), make_policy(SPACE, ACTIONS["grid"])
    compiled.compile_networks()
    assert (eager.ran, compiled.ran) == ("eager", "never")
    given = observations(SPACE, 6)
    results = []
    for policy in (eager, compiled):
        torch.manual_seed(0)
        with torch.no_grad():
            actions, values, log_prob = policy(given)
            last = policy.predict_values(given)
        evaluated = policy.evaluate_actions(given, actions)
        torch.stack([part.sum() for part in evaluated if part is not None]).sum().backward()
        gradients = [parameter.grad for parameter in policy.parameters()]
        results.append([actions, values, log_prob, last, *evaluated, *gradients])
    for ours, theirs in zip(*results, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs)
    assert compiled.ran == "compiled"


def test_a_policy_that_cannot_be_compiled_is_not_called_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        def call(*args: Any) -> Any:
            raise RuntimeError("no compiler")

        return call

    monkeypatch.setattr(torch, "compile", refuse)
    policy = make_policy(SPACE, ACTIONS["grid"])
    policy.compile_networks()
    with pytest.warns(UserWarning, match="the policy network cannot be compiled and runs eagerly: RuntimeError"):
        policy(observations(SPACE, 2))
    assert policy.ran == "eager: RuntimeError: no compiler"


def test_rewards_are_standardized_per_decision() -> None:
    class TwoStep(MarkedCell):
        """Decision 0 pays N(10, 1), decision 1 pays N(0, 5)."""

        def step_wait(self) -> Any:
            second = getattr(self, "second", np.zeros(self.num_envs, dtype=bool))
            noise = self.rng.standard_normal(self.num_envs)
            rewards = np.where(second, 5 * noise, 10 + noise).astype(np.float32)
            self.second = ~second
            return self.reset(), rewards, second, [{} for _ in rewards]

    for center in (True, False):
        env = PerStepNormalize(TwoStep(64), num_decisions=2, center=center)
        env.reset()
        rewards = np.stack([env.step(np.zeros(64, dtype=int))[1] for _ in range(100)])[20:]
        np.testing.assert_allclose(env.moments.mean, [10, 0], atol=0.3)
        np.testing.assert_allclose(np.sqrt(env.moments.squares / env.moments.count), [1, 5], rtol=0.05)
        for decision, mean in ((0, 0 if center else 5), (1, 0)):  # 10 deviations are clipped to 5
            assert rewards[decision::2].mean() == pytest.approx(mean, abs=0.1)
        assert rewards[1::2].std() == pytest.approx(1, rel=0.1)
        huge = np.full(64, 1e3, dtype=np.float32), np.ones(64, dtype=np.int64)
        assert (env.normalize(*huge) == 5).all()
        env.clip = None
        np.testing.assert_allclose(env.normalize(*huge), 1e3 / 5, rtol=0.1)
        other = PerStepNormalize(TwoStep(2), num_decisions=2)
        other.load_state_dict(env.state_dict())
        np.testing.assert_array_equal(other.moments.mean, env.moments.mean)


def test_entropy_is_one_for_uniform_distributions() -> None:
    discrete, box = spaces.Discrete(64), spaces.Box(-1, 1, (3,))
    assert normalized_entropy(np.full((4, 4), -np.log(64)), discrete) == pytest.approx(1)
    assert normalized_entropy(np.full((4, 4), -3 * np.log(2)), box) == pytest.approx(1)
    starts = np.array([[1, 1], [0, 1], [0, 0], [1, 0]])
    np.testing.assert_array_equal(decision_index(starts), [[0, 0], [1, 0], [2, 1], [0, 2]])
    with pytest.raises(ValueError, match="begins in the middle of episodes"):
        decision_index(starts[1:])


def test_entropy_floor_pushes_both_ways() -> None:
    env = MarkedCell(8)
    model = ppo(env, DiscreteActions(env.table), batch_size=32, ent_coef=0.01)
    with torch.no_grad():  # the fresh policy is nearly uniform; this one is not
        model.policy.get_parameter("action_net.score_maps.weight").mul_(300)
    for start, factor in ((1.0, 1.5), (0.0, 1 / 1.5)):
        model.ent_coef = 0.01
        model.learn(32, callback=EntropyFloor(start=start, end=start, low=1e-4, high=1, rate=1.5))
        assert model.ent_coef == pytest.approx(0.01 * factor)
    with pytest.raises(ValueError, match="end <= start"):
        EntropyFloor(start=0.1, end=0.5, low=1e-4, high=1, rate=1.5)


CONFIG = EnvConfig(split="validation", num_scenes=6, device="cpu", grid_centers=4, budget=3)


def saved(directory: Path, config: EnvConfig = CONFIG) -> LearnedPolicy:
    actions = build_actions(config)
    inputs = describe_inputs(config)
    torch.manual_seed(0)
    layout = ObservationLayout.from_json(inputs.layout)
    network = ViewpointNetwork(layout.space, actions.space, channels=8, **action_options(actions)).eval()
    record = PolicyRecord(
        env_id="CanViT/FashionSegmentation-v0", env=config, inputs=inputs, network={"channels": 8},
        hyperparameters={}, provenance={}, training={},
    )  # fmt: skip
    save_policy(directory, network, record)
    return LearnedPolicy(network, record)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"action": "continuous"},
        {"action": "quadtree", "allow_stop": True},
        {"first_glimpse": None},
        {"dataset": "fashion-classification"},
        {"observation_dtype": "float16", "observations": ("canvas", "cls")},
    ],
    ids=str,
)
def test_saved_policies_act_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    config = replace(CONFIG, **changes)
    policy = saved(tmp_path, config)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    loaded = load_policy(tmp_path, device="cpu")
    for deterministic in (True, False):
        results = [
            evaluate(LearnedPolicy(p.network, p.record, deterministic=deterministic), config=config)
            for p in (policy, loaded)
        ]
        assert np.array_equal(results[0].viewpoints, results[1].viewpoints)
    viewpoints = results[0].viewpoints
    if config.first_glimpse == "full":
        assert (viewpoints[:, 0] == (0, 0, 1)).all()
    assert (np.abs(viewpoints[..., :2]).max(axis=-1) <= 1 - viewpoints[..., 2] + 1e-6).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["policy.json", "policy.safetensors"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"canvas_size": 4}, r"observation layout: trained on canvas_size=8, found 4"),
        ({"observations": ("canvas", "time")}, r"observation layout: trained on keys="),
        ({"grid_centers": 8}, r"action space: trained on n=32, found 128"),
        ({"grid_scales": (0.5, 0.3)}, r"action space: trained on table_sha256="),
        ({"action": "continuous"}, r"action space: trained on kind='discrete', found 'continuous'"),
    ],
)
def test_another_environment_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    policy = saved(tmp_path)
    other = replace(CONFIG, **changes)
    with pytest.raises(ValueError, match=message):
        load_policy(tmp_path, config=other)
    if "layout" in message:
        with pytest.raises(ValueError, match=f"{message}|policy .learned. reads uncertainty"):
            evaluate(policy, config=other)


@pytest.mark.parametrize("what", ["backbone", "probe"])
def test_other_weights_are_refused(tmp_path: Path, what: str) -> None:
    saved(tmp_path)
    record = json.loads((tmp_path / "policy.json").read_text())
    record["inputs"][f"{what}_sha256"] = "0" * 64
    (tmp_path / "policy.json").write_text(json.dumps(record))
    found = getattr(describe_inputs(CONFIG), f"{what}_sha256")
    with pytest.raises(ValueError, match=f"{what}.*trained on sha256 {'0' * 64}, found {found}"):
        load_policy(tmp_path)


def test_damaged_policies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no policy\.safetensors"):
        load_policy(tmp_path)
    saved(tmp_path)
    (tmp_path / "policy.safetensors").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="does not hold the weights"):
        load_policy(tmp_path)


def test_a_pair_half_replaced_is_refused(tmp_path: Path) -> None:
    """Weights of one save and the record of another, as a process that dies between the two would leave."""
    saved(tmp_path)
    record = (tmp_path / "policy.json").read_bytes()
    policy = load_policy(tmp_path)
    with torch.no_grad():
        policy.network.get_parameter("value_net.net.2.bias").add_(1)
    save_policy(tmp_path, policy.network, policy.record)
    load_policy(tmp_path)
    (tmp_path / "policy.json").write_bytes(record)
    with pytest.raises(ValueError, match=r"does not hold the weights .* their sha256 is"):
        load_policy(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"env_id": "x"}'])
def test_a_damaged_record_is_named(tmp_path: Path, content: str) -> None:
    for name in ("policy.json", "policy.safetensors"):
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=r"policy\.json is damaged, or of another version .*train the policy again"):
        load_policy(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"max_grad_norm": -1}, "max_grad_norm must be a finite number >= 0, got -1"),
        ({"ent_coef": -1}, "ent_coef must be a finite number >= 0, got -1"),
        ({"target_kl": "x"}, "target_kl must be a finite number > 0, got 'x'"),
        ({"clip_reward": 0}, "clip_reward must be a finite number > 0, got 0"),
        ({"policy_kwargs": {"blocks": "x"}}, "policy_kwargs blocks must be an integer >= 0, got 'x'"),
        ({"gamma": "x"}, r"gamma must be a finite number in \[0, 1\], got 'x'"),
        ({"gae_lambda": 1.5}, r"gae_lambda must be a finite number in \[0, 1\], got 1.5"),
        ({"warm_start": None}, "warm_start must be an object of options, got None"),
        ({"policy_kwargs": {"channels": 0}}, "policy_kwargs channels must be an integer >= 1, got 0"),
        ({"policy_kwargs": {"network": ["conv"]}}, r"unknown .*policy_kwargs network \['conv'\]; choose one of conv"),
        ({"policy_kwargs": {"separable": "false"}}, "policy_kwargs separable must be True or False, got 'false'"),
        ({"policy_kwargs": {"mask_seen": 1}}, "policy_kwargs mask_seen must be True or False, got 1"),
        ({"policy_kwargs": {"inhibition": "x"}}, "policy_kwargs inhibition must be a finite number >= 0, got 'x'"),
        ({"policy_kwargs": {"prior": "goals"}}, "unknown .*policy_kwargs prior 'goals'; choose one of .*, detected"),
        ({"policy_kwargs": {"prior_weight": "x"}}, "policy_kwargs prior_weight must be a number, got 'x'"),
        ({"normalize_advantage": "no"}, "normalize_advantage must be True or False, got 'no'"),
        ({"learning_rate": True}, 'learning_rate must be a number > 0 or "lin_" followed by one .*, got True'),
        ({"learning_rate": "lin_x"}, "learning_rate must be a number > 0 .*, got 'lin_x'"),
        ({"entropy_floor": 3}, "entropy_floor must be null or contain start, .*; got 3"),
        ({"entropy_floor": {"start": "x"}}, "entropy_floor start must be a finite number >= 0, got 'x'"),
        ({"warm_start": {"vf_coef": "x"}}, "warm_start vf_coef must be a finite number >= 0, got 'x'"),
    ],
)
def test_bad_hyperparameters_are_named(overrides: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        load_hyperparameters("CanViT/FashionDistractors-v0", overrides)


@pytest.mark.parametrize("algo", sorted(ALGORITHMS))
def test_arguments_of_environments_are_a_mapping(algo: str) -> None:
    with pytest.raises(ValueError, match="env_kwargs must be an object of options, got None"):
        load_hyperparameters("CanViT/FashionDistractors-v0", {"env_kwargs": None}, algo=algo)


def test_every_option_of_a_network_has_a_check() -> None:
    assert set(OPTION_CHECKS) == set(NETWORK_OPTIONS) - {"viewpoints", "allow_stop"}
    assert set(ENCODER_CHECKS) == set(signature(MapEncoder).parameters) - {"observation_space"}


def test_hyperparameters() -> None:
    hyper = load_hyperparameters("CanViT/FashionDistractors-v0", {"n_epochs": 7, "policy_kwargs": {"blocks": 1}})
    assert hyper.n_epochs == 7
    own = {
        "network": "window", "channels": 32, "context_dim": 64, "upsample": 2, "inhibition": 0.06, "prior": "detected",
    }  # fmt: skip
    assert hyper.policy_kwargs == own | {"blocks": 1}
    assert [schedule("x", "lin_2e-3")(p) for p in (1.0, 0.5, 0.0, -0.2)] == [2e-3, 1e-3, 0, 0]
    with pytest.raises(ValueError, match=r"unknown hyperparameter 'n_epoch'; there are: .*n_epochs"):
        load_hyperparameters("CanViT/FashionDistractors-v0", {"n_epoch": 7})
    with pytest.raises(ValueError, match="batch_size must be at least 2 and divide"):
        load_hyperparameters("CanViT/FashionDistractors-v0", {"batch_size": 100})
    with pytest.raises(ValueError, match="unknown hyperparameter policy_kwargs width; there are: network, channels"):
        load_hyperparameters("CanViT/FashionDistractors-v0", {"policy_kwargs": {"width": 3}})
    with pytest.raises(ValueError, match="entropy_floor must be null or contain start"):
        load_hyperparameters("CanViT/FashionDistractors-v0", {"entropy_floor": {"begin": 3}})
    assert load_hyperparameters("CanViT/FashionDistractors-v0", {"entropy_floor": None}).entropy_floor is None
    with pytest.raises(ValueError, match="no entry for 'CanViT/Unknown-v0', which is not an environment"):
        load_hyperparameters("CanViT/Unknown-v0")
    with pytest.raises(ValueError, match=r'multiple of the 3 decisions.*"n_steps": 15'):
        hyper.check_fit(replace(CONFIG, budget=4))
