"""Trained policies in plain PyTorch: saved, loaded, and used through the same protocol as hand-coded ones.

A policy on disk is a directory with `policy.safetensors` (weights) and `policy.json` (PolicyRecord); nothing is
unpickled, and no RL library is needed.

>>> from canvit_gym.policies.learned import load_policy
>>> policy = load_policy("runs/mine")  # doctest: +SKIP
>>> action, _ = policy.predict(observation)  # doctest: +SKIP
"""

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from canvit_pytorch.project import HUB_ORGANIZATION
from gymnasium import spaces
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.utils.flop_counter import FlopCounterMode

from canvit_gym.actions import DiscreteActions
from canvit_gym.assembly import build_actions, build_backbone, task_kind
from canvit_gym.atomic import write_bytes, write_json
from canvit_gym.backbone.hub import asset_dir, find_repository, hub_root
from canvit_gym.backbone.load import resolve_device
from canvit_gym.config import EnvConfig
from canvit_gym.dtypes import float32_by_default
from canvit_gym.observations import ObservationLayout
from canvit_gym.policies.distributions import ActionDistribution, most_likely
from canvit_gym.policies.flops import probe_flops
from canvit_gym.policies.networks import (
    NETWORK_CLASSES,
    HasDistribution,
    HasMemory,
    HasValues,
    Memory,
    action_options,
)
from canvit_gym.policies.policy_record import (
    Inputs,
    PolicyRecord,
    as_trained,
    describe_inputs,
    describe_layout,
    reads_probe,
    require_same,
)
from canvit_gym.policies.protocol import PolicyInfo, check_supported
from canvit_gym.policies.released import (
    CONFIG,
    RELEASED_NAME,
    ReleasedPolicy,
    is_released,
    load_released,
    require_same_table,
)
from canvit_gym.policies.released import WEIGHTS as RELEASED_WEIGHTS
from canvit_gym.policies.seen import Seen
from canvit_gym.policies.streams import scene_seeds, scene_uniforms
from canvit_gym.seeding import seeded
from canvit_gym.tasks import TASKS
from canvit_gym.viewpoints import FirstGlimpse, first_viewpoints

WEIGHTS, RECORD = "policy.safetensors", "policy.json"
SHIPPED = "policies"
"""The assets directory of shipped policies: one directory per environment, and in it one per algorithm."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w-]*(?<!-v\d)/\w[\w.-]*")
"""A repository "user/name" of the Hub; "Environment-v0/algorithm" is a shipped policy's name."""

_STOPS = 1 << 20
"""Added to t for the random numbers that decide about stops: no episode has as many glimpses."""

Observation = Mapping[str, Any]


class LearnedPolicy:
    """A trained network with its record, as a GlimpsePolicy.

    The network has `distribution(observation)` or `values(observation)` (see canvit_gym.policies.networks). Glimpse 0
    is the one that its environment takes before the agent acts, if it takes one. Evaluation takes a fixed number of
    glimpses, so a policy that may stop chooses among its viewpoints only. Samples depend only on (seed, scene, t) and
    on what the policy sees.

    Raises:
        ValueError: deterministic=False with a network that has values but no distribution.
    """

    def __init__(self, network: nn.Module, record: PolicyRecord, *, deterministic: bool = True) -> None:
        if not deterministic and not hasattr(network, "distribution"):
            raise ValueError(_no_probabilities(f"a policy of {record.algorithm}"))
        self.network, self.record, self.deterministic = network, record, deterministic
        self.actions = build_actions(record.env)
        layout = record.inputs.layout
        keys = tuple(layout["keys"])
        what = f"{record.algorithm}'s warm start" if record.training.get("num_timesteps") == 0 else record.algorithm
        trained = "" if record.training.get("num_timesteps") == 0 else " trained"
        chosen = "most likely viewpoint" if hasattr(network, "distribution") else "viewpoint of highest value"
        self.info = PolicyInfo(
            name="learned",
            paper_name=record.algorithm,
            description=f"{what}{trained} on {record.env_id}, {chosen if deterministic else 'sampled viewpoints'}",
            deterministic=deterministic and record.env.first_glimpse != "random",
            needs_segmentation_probe=reads_probe(layout) and len(layout["uncertainty_shape"]) > 1,
            tasks=read_alike(task_kind(record.env.dataset)),
            observations=keys,
        )
        self._network_flops: int | None = None
        self._memory: Memory | None = None

    @property
    def can_sample(self) -> bool:
        """Whether the network has probabilities, and not only values."""
        return hasattr(self.network, "distribution")

    def sampling(self) -> "LearnedPolicy":
        """The same policy with sampled viewpoints."""
        return LearnedPolicy(self.network, self.record, deterministic=False)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def reset(self, seen: Seen, *, seed: int) -> None:
        check_supported(self.info, seen.task.name, seen.backbone.canvas_grid)
        found = Inputs(
            backbone_sha256=seen.backbone.sha256,
            probe_sha256=seen.task.probe_sha256,
            layout=describe_layout(seen.layout),
            actions=self.record.inputs.actions,
        )
        require_same(self.record.inputs, found, who=f"the policy trained on {self.record.env_id}")
        self._seed, self._memory = seed, None

    @torch.no_grad()
    def viewpoints(self, t: int, seen: Seen) -> NDArray[np.float32]:
        first = self.record.env.first_glimpse
        if t == 0 and first is not None:
            return self._first_viewpoints(first, seen)
        observation = {key: value.to(self.device) for key, value in seen.observe().items()}
        if isinstance(self.actions, DiscreteActions):
            chosen = self._rows(observation, t, seen)
        elif self.deterministic:
            chosen = self.act(observation)
        else:
            chosen = self._sampled(observation, t, seen)
        return self.actions.decode(chosen)[0]

    @torch.no_grad()
    def wants_to_stop(self, t: int, seen: Seen) -> NDArray[np.bool_]:
        """[B]: whether it would stop after glimpse t, given the choice among that and all that is allowed.

        Sampled stops are drawn apart from the viewpoints, and like these depend only on (seed, scene, t) and on what
        the policy sees. `reset` comes first.
        """
        if not self.actions.allow_stop:
            return np.zeros(seen.num, dtype=np.bool_)
        observation = {key: value.to(self.device) for key, value in seen.observe().items()}
        if not isinstance(self.actions, DiscreteActions):
            chosen = self.act(observation) if self.deterministic else self._sampled(observation, _STOPS + t, seen)
            return self.actions.decode(chosen)[1]
        allowed = torch.from_numpy(seen.allowed(self.actions.viewpoints)).to(self.device)
        allowed = F.pad(allowed, (0, 1), value=True)  # to stop is the last action
        if self.deterministic:
            chosen, _ = self._act(observation, self._memory, deterministic=True, allowed=allowed)
            return self.actions.decode(chosen)[1]
        distribution, _ = self._distribution(observation, self._memory)
        assert isinstance(distribution, Categorical), distribution
        probabilities = distribution.logits.double().masked_fill(~allowed, -torch.inf).softmax(dim=1).cpu().numpy()
        return scene_uniforms(self._seed, seen.scene, _STOPS + t) < probabilities[:, -1]

    def act(self, observation: dict[str, Tensor], *, deterministic: bool = True) -> NDArray[Any]:
        """[B, ...] actions, `stop` included if the policy has it; samples use PyTorch's global generator.

        A policy with a memory acts on the memory of its earlier `viewpoints` and leaves it unchanged.
        """
        return self._act(observation, self._memory, deterministic=deterministic)[0]

    @torch.no_grad()
    def _act(
        self,
        observation: dict[str, Tensor],
        memory: Memory | None,
        *,
        deterministic: bool,
        allowed: Tensor | None = None,
    ) -> tuple[NDArray[Any], Memory | None]:
        """allowed: [B, A] actions that may be taken; None: all."""
        if not hasattr(self.network, "distribution"):
            if not deterministic:
                raise ValueError(f"a policy of {self.record.algorithm} has no distribution: use deterministic=True")
            values = cast(HasValues, self.network).values(observation)
            values = values if allowed is None else values.masked_fill(~allowed, -torch.inf)
            return values.argmax(dim=1).cpu().numpy(), None
        distribution, memory = self._distribution(observation, memory)
        if isinstance(distribution, Categorical):
            if allowed is not None:
                distribution = Categorical(logits=distribution.logits.masked_fill(~allowed, -torch.inf))
            if not deterministic:
                return distribution.sample().cpu().numpy(), memory
            return most_likely(distribution.probs, allow_stop=self.actions.allow_stop).cpu().numpy(), memory
        chosen = distribution.mode if deterministic else distribution.sample()
        return np.clip(chosen.cpu().numpy(), -1, 1), memory  # a Gaussian is unbounded

    def _distribution(
        self, observation: dict[str, Tensor], memory: Memory | None
    ) -> tuple[ActionDistribution, Memory | None]:
        """The distribution, and the memory for the next decision; None for a policy without a memory."""
        if self._remembers:
            return cast(HasMemory, self.network).remember(observation, memory)
        return cast(HasDistribution, self.network).distribution(observation), None

    @property
    def _remembers(self) -> bool:
        return hasattr(self.network, "remember")

    def predict(
        self,
        observation: Observation,
        state: tuple[NDArray[np.float32], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
        action_masks: NDArray[np.bool_] | None = None,
    ) -> tuple[Any, tuple[NDArray[np.float32], ...] | None]:
        """The action for an observation of gym.make, or [N, ...] actions for one of gym.make_vec, like SB3's `predict`.

        For a policy with a memory, pass the state that the last call returned (None: all episodes begin) and, as
        `episode_start`, which episodes have begun since. `action_masks`, as in sb3-contrib, are the actions that may
        be taken, if an environment forbids some: `info["action_mask"]` or `env.unwrapped.action_masks()`.

        Raises:
            KeyError: the observation lacks a key that the policy reads.
            ValueError: the shape of a key is not the one the policy was trained on, or masks for continuous actions.
        """
        space = cast(spaces.Dict, self.observation_space)
        if missing := [key for key in space.spaces if key not in observation]:
            keys = list(space.spaces)
            raise KeyError(
                f"the policy trained on {self.record.env_id} reads {', '.join(missing)}, which the observation lacks: "
                f"make the environment with observations={keys} (policy.record.env has all of its keyword arguments)"
            )
        given = {key: torch.as_tensor(np.asarray(observation[key])).to(self.device) for key in space.spaces}
        single = all(value.ndim == len(space[key].shape or ()) for key, value in given.items())
        given = {key: value[None] for key, value in given.items()} if single else given
        for key, value in given.items():
            if tuple(value.shape[1:]) != space[key].shape:
                raise ValueError(
                    f"observation {key!r} has shape {tuple(value.shape)}, but the policy was trained on "
                    f"{space[key].shape}: make the environment with the keyword arguments of policy.record.env"
                )
        memory = None if state is None else self._memory_of(state, episode_start)
        allowed = None if action_masks is None else self._allowed(action_masks, len(next(iter(given.values()))))
        actions, memory = self._act(given, memory, deterministic=deterministic, allowed=allowed)
        state = None if memory is None else tuple(part.cpu().numpy() for part in memory)
        if not single:
            return actions, state
        return actions[0] if actions.ndim > 1 else int(actions[0]), state

    def _memory_of(self, state: tuple[NDArray[np.float32], ...], episode_start: NDArray[np.bool_] | None) -> Memory:
        parts = [torch.as_tensor(part).to(self.device) for part in state]
        if episode_start is None:
            return tuple(parts)
        goes_on = ~torch.as_tensor(np.atleast_1d(episode_start)).bool().to(self.device)
        return tuple(part * goes_on[:, None] for part in parts)

    def _allowed(self, action_masks: NDArray[np.bool_], num: int) -> Tensor:
        """[num, A]"""
        count = self.actions.space.n if isinstance(self.actions.space, spaces.Discrete) else 0
        masks = np.atleast_2d(np.asarray(action_masks, dtype=np.bool_))
        if masks.shape != (num, count):
            raise ValueError(f"action_masks must be [{num}, {count}] for {self.actions.space}, got {masks.shape}")
        return torch.from_numpy(masks).to(self.device)

    @property
    def observation_space(self) -> spaces.Space:
        """The observation space of a single environment."""
        return ObservationLayout.from_json(self.record.inputs.layout).space

    def flops_per_decision(self, seen: Seen) -> int:
        """Those of the network, counted once by PyTorch, and those of the probe if what it says is observed."""
        if self._network_flops is None:
            observation = {key: value[:1].to(self.device) for key, value in seen.observe().items()}
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                self._act(observation, None, deterministic=True)
            self._network_flops = counter.get_total_flops()
        return self._network_flops + (probe_flops(seen) if reads_probe(self.record.inputs.layout) else 0)

    def _first_viewpoints(self, first: FirstGlimpse, seen: Seen) -> NDArray[np.float32]:
        if first != "random":
            return first_viewpoints(first, seen.num)
        drawn = []
        for scene_seed in scene_seeds(self._seed, seen.scene):
            with seeded(scene_seed, torch.device("cpu")):
                drawn.append(first_viewpoints(first, 1))
        return np.concatenate(drawn)

    def _rows(self, observation: dict[str, Tensor], t: int, seen: Seen) -> NDArray[np.int64]:
        """[B] rows of the table of viewpoints; `stop`, the last action if there is one, is never chosen."""
        assert isinstance(self.actions, DiscreteActions)
        count = len(self.actions.viewpoints)
        allowed = torch.from_numpy(seen.allowed(self.actions.viewpoints)).to(self.device)
        if not hasattr(self.network, "distribution"):
            values = cast(HasValues, self.network).values(observation)[:, :count]
            return values.masked_fill(~allowed, -torch.inf).argmax(dim=1).cpu().numpy()
        distribution, self._memory = self._distribution(observation, self._memory)
        assert isinstance(distribution, Categorical), distribution
        if allowed.all():
            probabilities = distribution.probs[:, :count].double().cpu().numpy()
        else:  # masks logits, not probabilities: these may underflow where all that is allowed is very unlikely
            left = distribution.logits[:, :count].double().masked_fill(~allowed, -torch.inf)
            probabilities = left.softmax(dim=1).cpu().numpy()
        if self.deterministic:
            return probabilities.argmax(axis=1)
        cumulative = probabilities.cumsum(axis=1)
        below = cumulative[:, :-1] <= scene_uniforms(self._seed, seen.scene, t)[:, None] * cumulative[:, -1:]
        return below.sum(axis=1)

    def _sampled(self, observation: dict[str, Tensor], t: int, seen: Seen) -> NDArray[Any]:
        """[B, d] continuous actions, whatever the distribution: one row at a time, each with its scene's seed."""
        rows = []
        for row, scene_seed in enumerate(scene_seeds(self._seed, seen.scene, t)):
            with seeded(scene_seed, self.device):
                rows.append(self.act({k: v[row : row + 1] for k, v in observation.items()}, deterministic=False))
        return np.concatenate(rows)


def _no_probabilities(who: str) -> str:
    return f"{who} knows what viewpoints are worth, not how likely they are: use deterministic=True"


def read_alike(task_name: str) -> tuple[str, ...]:
    """The task and all others whose readings have the same shape: a policy of one can be evaluated on the others."""
    reading = TASKS[task_name].kind.reading_shape
    others = (name for name, task in TASKS.items() if name != task_name and task.kind.reading_shape == reading)
    return (task_name, *others)


def save_policy(directory: Path, network: nn.Module, record: PolicyRecord) -> None:
    """Save weights and record in `directory`, which is created if missing; existing files are replaced."""
    directory = Path(directory).expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    weights = save({key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()})
    record = replace(record, weights_sha256=hashlib.sha256(weights).hexdigest())
    write_bytes(directory / WEIGHTS, weights)
    write_json(directory / RECORD, record.to_json())


def policy_directory(source: str | Path) -> Path:
    """The directory of a policy: one on disk, the best policy of a run directory, a shipped one, or one from the Hub.

    Shipped policies are named "ENVIRONMENT/ALGORITHM", such as "FashionSearch-v0/ppo"; those of the Hub "user/name".
    Of those that CanViT's authors released it is in their own layout, see canvit_gym.policies.released.

    Raises:
        FileNotFoundError: none of these.
    """
    if (released := _released_directory(source)) is not None:
        return released
    directory = Path(source).expanduser()
    if (directory / RECORD).is_file() or (directory / WEIGHTS).is_file():
        return directory
    if (directory / "best" / RECORD).is_file():
        return directory / "best"
    if directory.is_dir():
        raise FileNotFoundError(
            f"{directory} has no {WEIGHTS}. A policy is a directory with {WEIGHTS} and {RECORD}, such as the best/ and "
            "last/ that training (python -m agents.train) leaves in its run directory."
        )
    name, shipped = str(source).removeprefix("CanViT/"), shipped_policies()
    if name in shipped:
        return shipped[name]
    if _HUB_ID.fullmatch(str(source)):
        return find_repository("policy", str(source), (WEIGHTS, RECORD))
    close = difflib.get_close_matches(name, shipped, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise FileNotFoundError(
        f"there is no directory {directory}, and no shipped policy of that name; {hint}"
        f"shipped are: {', '.join(shipped) or 'none'}. Train one with python -m agents.train (from a clone)."
    )


def shipped_policies() -> dict[str, Path]:
    """Name -> directory of every policy in this package's assets."""
    root = asset_dir(SHIPPED)
    found = sorted(path.parent for path in root.glob(f"*/*/{RECORD}"))
    return {f"{path.parent.name}/{path.name}": path for path in found}


def load_record(directory: str | Path) -> PolicyRecord:
    """
    Raises:
        FileNotFoundError: no policy there.
        ValueError: its record is damaged, or it was released by CanViT's authors, without one.
    """
    directory = policy_directory(directory)
    if is_released(directory):
        raise ValueError(
            f"the policy in {directory} was released by CanViT's authors and has no {RECORD}: use it by itself, with "
            "load_policy, canvit-gym evaluate, benchmark or play"
        )
    for name in (WEIGHTS, RECORD):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory} has no {name}: a policy is a directory with {WEIGHTS} and {RECORD}")
    path = directory / RECORD
    try:
        return PolicyRecord.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged, or of another version ({error}): put the intact file in its place, or train the "
            "policy again"
        ) from error


def load_policy(
    source: str | Path, *, config: EnvConfig | None = None, device: str | None = None, deterministic: bool = True
) -> LearnedPolicy:
    """A trained policy, ready to act.

    `source` is a directory, a run directory (its best policy), a shipped policy's name such as "FashionSearch-v0/ppo",
    or a repository "user/name" of the Hugging Face Hub (canvit_gym.publish.push_policy). The policy is checked against
    `config`, the environment it will be used in (None: the one it was trained on, with the checkpoints as they are
    now).

    The policies that CanViT's authors released load by their names, such as
    "canvit/qpolicy-ade20k-c64-t5-qband-2026-07-04-s0". For these a canvit_gym.policies.released.ReleasedPolicy comes
    back, whatever the return type says: it is evaluated like any other policy, but reads the canvas itself, knows only
    what viewpoints are worth, and has neither `predict` nor a `record`.

    Raises:
        FileNotFoundError: no policy there.
        ValueError: the environment's backbone, probe, observation layout or action space differs from the one it was
            trained on, the weights do not fit the record, or deterministic=False and the policy has values, but no
            probabilities.
    """
    directory = policy_directory(source)
    if is_released(directory):
        if not deterministic:
            raise ValueError(_no_probabilities(str(source)))
        policy = load_released(directory, name=str(source), device=resolve_device(device or "auto"))
        if config is not None:
            require_same_table(policy, build_actions(config))
        return cast(LearnedPolicy, policy)  # as the docstring says; with a union all callers would have to tell apart
    record = load_record(directory)
    wanted = record.env if config is None else config
    require_same(record.inputs, describe_inputs(wanted), who=f"the policy in {directory}")
    with seeded(0, torch.device("cpu")):  # leaves the caller's random generators unchanged
        network = make_network(record, wanted)
    _load_weights(network, directory, record)
    network.eval().to(resolve_device(wanted.device if device is None else device))
    return LearnedPolicy(network, record, deterministic=deterministic)


def load_as_trained(
    source: str | Path, env: EnvConfig, *, deterministic: bool = True
) -> tuple[LearnedPolicy, EnvConfig]:
    """A trained policy, and the environment with the observations and actions that it was trained with.

    Raises:
        FileNotFoundError, ValueError: as in load_policy.
    """
    directory = policy_directory(source)
    if not is_released(directory):
        own = as_trained(env, load_record(directory))
        return load_policy(directory, config=own, deterministic=deterministic), own
    policy = load_policy(source, device=env.device, deterministic=deterministic)
    assert isinstance(policy, ReleasedPolicy)
    policy.require_supported(task_kind(env.dataset), build_backbone(env))
    return policy, replace(env, **policy.env_keywords)


def weights_sha256(directory: Path) -> str:
    """The hash of the weights in a policy's directory, as `policy_directory` returns it."""
    name = RELEASED_WEIGHTS if is_released(directory) else WEIGHTS
    return hashlib.sha256((directory / name).read_bytes()).hexdigest()


def _released_directory(source: str | Path) -> Path | None:
    """The directory of a released policy, if `source` names one or is its directory."""
    directory, name = Path(source).expanduser(), str(source)
    if directory.is_dir():
        return directory if is_released(directory) else None
    if not RELEASED_NAME.fullmatch(name):
        return None
    below_root = Path(hub_root()) / name.removeprefix(f"{HUB_ORGANIZATION}/")
    return below_root if below_root.is_dir() else find_repository("policy", name, (CONFIG, RELEASED_WEIGHTS))


@float32_by_default()
def make_network(record: PolicyRecord, config: EnvConfig) -> nn.Module:
    """An untrained network with the record's class and options, for the spaces of `config`.

    Raises:
        ValueError: a class that this version does not know.
    """
    if record.network_class not in NETWORK_CLASSES:
        raise ValueError(
            f"this policy's network is a {record.network_class}, which this version of canvit_gym does not know; it "
            f"knows {', '.join(NETWORK_CLASSES)}. Update canvit_gym."
        )
    actions = build_actions(config)
    layout = ObservationLayout.from_json(record.inputs.layout)
    options = {**action_options(actions), **record.network}
    return NETWORK_CLASSES[record.network_class](layout.space, actions.space, **options)


def _load_weights(network: nn.Module, directory: Path, record: PolicyRecord) -> None:
    try:
        content = (directory / WEIGHTS).read_bytes()
        network.load_state_dict(load(content))
        if record.weights_sha256 not in (None, found := hashlib.sha256(content).hexdigest()):
            raise ValueError(f"their sha256 is {found}, not {record.weights_sha256}")
        for name, parameter in network.state_dict().items():
            if not parameter.isfinite().all():
                raise ValueError(f"{name} holds a number that is not finite")
    except (RuntimeError, SafetensorError, ValueError) as error:
        raise ValueError(
            f"{directory / WEIGHTS} does not hold the weights that {RECORD} beside it describes: {error}. "
            "Copy the two files together, or train the policy again."
        ) from error
