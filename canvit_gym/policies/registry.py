"""Hand-coded policies by name, with arguments: "coarse_to_fine", "center(scale=0.55)", "raster(scale=(0.5, 0.25))"."""

import ast
import difflib
import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from canvit_pytorch.policies import PolicyName

from canvit_gym.actions import DiscreteActions
from canvit_gym.assembly import build_actions, build_backbone, build_scenes, task_kind
from canvit_gym.config import EnvConfig
from canvit_gym.policies.entropy import EntropyGreedy, QuadtreeBeam
from canvit_gym.policies.fixed_sequence import (
    BestFixedSequence,
    FixedSequence,
    candidates_sha256,
    search_config,
    search_fixed_sequence,
    searched_on,
)
from canvit_gym.policies.label_split import Half
from canvit_gym.policies.oracle import GreedyOracle, oracle_candidates
from canvit_gym.policies.paper import PaperPolicy, RandomStream, paper_info
from canvit_gym.policies.protocol import GlimpsePolicy, PolicyInfo, check_supported
from canvit_gym.policies.saliency import SpectralResidualSaliency
from canvit_gym.policies.sequences import CycledViewpoints, Scales, center, raster
from canvit_gym.scenes.prepared import cache_dir


@dataclass(frozen=True)
class Context:
    """What a policy is made for."""

    config: EnvConfig
    num_glimpses: int
    progress: bool


@dataclass(frozen=True)
class PolicySpec:
    """A policy by name: what it says about itself with its default arguments, and how it is made.

    The keyword-only parameters of `build` are the arguments that a spec string may give.
    """

    info: PolicyInfo
    build: Callable[..., GlimpsePolicy]

    @property
    def arguments(self) -> dict[str, Any]:
        """Name -> default."""
        parameters = inspect.signature(self.build).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _paper(name: PolicyName, context: Context, *, random_stream: RandomStream = "scene") -> PaperPolicy:
    return PaperPolicy(name, num_glimpses=context.num_glimpses, random_stream=random_stream)


def _center(context: Context, *, scale: Scales = 0.55) -> CycledViewpoints:
    return center(scale)


def _raster(context: Context, *, scale: Scales = 0.25) -> CycledViewpoints:
    return raster(scale)


def _best_fixed_sequence(context: Context, *, num_scenes: int = 256, path: str | None = None) -> BestFixedSequence:
    """From `path`; else from the cache; else searched now and cached, glimpse by glimpse."""
    config, num_glimpses = context.config, context.num_glimpses
    if path is not None:
        sequence = FixedSequence.load(Path(path))
        sequence.require_same(searched_on(config))
        if len(sequence.viewpoints) < num_glimpses:
            raise ValueError(
                f"the fixed sequence in {path} has {len(sequence.viewpoints)} glimpses, but {num_glimpses} are asked "
                f"for: search one with num_glimpses={num_glimpses}"
            )
        return BestFixedSequence(sequence)
    training = replace(search_config(config, num_scenes), cache=False)  # to tell scenes apart, none are decoded
    scenes = build_scenes(training, batched=False).fingerprint
    key = [asdict(searched_on(config)), scenes, candidates_sha256(oracle_candidates())]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    cached = cache_dir() / "fixed_sequences" / f"{config.dataset}-{digest}.json"
    known = FixedSequence.load(cached) if cached.is_file() else None
    if known is None or len(known.viewpoints) < num_glimpses:
        known = search_fixed_sequence(
            config,
            num_glimpses,
            num_scenes,
            progress=context.progress,
            known=known,
            on_glimpse=lambda found: found.save(cached),
        )
    return BestFixedSequence(known)


def _saliency(context: Context, *, scale: Scales = 0.5, centers: int = 16) -> SpectralResidualSaliency:
    return SpectralResidualSaliency(scale=scale, centers=centers)


def _entropy_greedy(context: Context, *, scale: Scales | None = None, centers: int | None = None) -> EntropyGreedy:
    """By default over the scales and centers of the environment's grid actions."""
    config = context.config
    return EntropyGreedy(
        scale=config.grid_scales if scale is None else scale,
        centers=config.grid_centers if centers is None else centers,
    )


def _quadtree_beam(context: Context, *, width: int = 2, levels: int = 2) -> QuadtreeBeam:
    return QuadtreeBeam(num_glimpses=context.num_glimpses, width=width, levels=levels)


def _greedy_oracle(
    context: Context,
    *,
    candidates: Literal["default", "actions"] = "default",
    max_candidates: int | None = None,
    half: Half | None = None,
    block: int = 1,
) -> GreedyOracle:
    """Over `oracle_candidates()`, or over the environment's own discrete actions."""
    if candidates not in ("default", "actions"):
        raise ValueError(f"candidates must be 'default' or 'actions', got {candidates!r}")
    table = None
    if candidates == "actions":
        actions = build_actions(context.config)
        if not isinstance(actions, DiscreteActions):
            raise ValueError(
                f"candidates='actions' needs discrete actions, but the environment's are {context.config.action!r}; "
                "use action='grid' or 'quadtree', or the default candidates"
            )
        table = actions.viewpoints
    return GreedyOracle(table, max_candidates=max_candidates, half=half, block=block, progress=context.progress)


POLICY_SPECS: dict[str, PolicySpec] = {
    **{name: PolicySpec(paper_info(name), partial(_paper, name)) for name in get_args(PolicyName)},
    "center": PolicySpec(center().info, _center),
    "raster": PolicySpec(raster().info, _raster),
    "best_fixed_sequence": PolicySpec(BestFixedSequence.info, _best_fixed_sequence),
    "saliency": PolicySpec(SpectralResidualSaliency.info, _saliency),
    "entropy_greedy": PolicySpec(EntropyGreedy.info, _entropy_greedy),
    "quadtree_beam": PolicySpec(QuadtreeBeam.info, _quadtree_beam),
    "greedy_oracle": PolicySpec(GreedyOracle().info, _greedy_oracle),
}
POLICY_NAMES = tuple(POLICY_SPECS)


def make_policy(spec: str, *, config: EnvConfig, num_glimpses: int, progress: bool = False) -> GlimpsePolicy:
    """The hand-coded policy that a spec string names, for episodes of up to num_glimpses in environment `config`.

    With arguments, the policy's name is the spec string as given: tables tell variants apart.

    Raises:
        ValueError: an unknown policy or argument, a bad value, or a policy that does not support the environment.

    >>> config = EnvConfig(split="test", num_scenes=4, device="cpu")
    >>> make_policy("center(scale=0.4)", config=config, num_glimpses=5).info.description
    'The full scene, then central crops of scale 0.4 again and again.'
    """
    name, arguments = parse_spec(spec)
    if num_glimpses < 1:
        raise ValueError(f"num_glimpses must be at least 1, got {num_glimpses}")
    policy_spec = POLICY_SPECS[name]
    task, canvas_grid = task_kind(config.dataset), build_backbone(config).canvas_grid
    check_supported(policy_spec.info, task, canvas_grid)
    try:
        policy: Any = policy_spec.build(Context(config, num_glimpses, progress), **arguments)
    except TypeError as error:
        raise ValueError(f"bad argument in {spec!r}: {error}") from error
    if arguments:
        policy.info = replace(policy.info, name=spec.strip())
    check_supported(policy.info, task, canvas_grid)
    return policy


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """ "name(key=value, ...)" -> (name, arguments), checked against the registry; values are Python literals.

    Raises:
        ValueError: not of this form, or an unknown policy or argument.

    >>> parse_spec("raster(scale=(0.5, 0.25))")
    ('raster', {'scale': (0.5, 0.25)})
    """
    form = "a policy is a name, or a name with arguments such as center(scale=0.55)"
    try:
        tree = ast.parse(spec.strip(), mode="eval").body
        call = tree if isinstance(tree, ast.Call) else None
        named = call.func if call else tree
        if not isinstance(named, ast.Name) or (call and call.args) or (call and any(not k.arg for k in call.keywords)):
            raise ValueError("arguments are key=value pairs")
        arguments = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords} if call else {}
    except (SyntaxError, ValueError, TypeError) as error:
        raise ValueError(f"cannot read policy {spec!r}: {form}; {error}") from error
    name = named.id
    if name not in POLICY_SPECS:
        close = difflib.get_close_matches(name, POLICY_NAMES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(
            f"unknown policy {name!r}; {hint}There are: {', '.join(POLICY_NAMES)}. "
            "Learned policies are loaded with agents.learned.load_learned"
        )
    known = POLICY_SPECS[name].arguments
    if unknown := sorted(set(arguments) - set(known)):
        there = f"it takes {', '.join(f'{k}={v!r}' for k, v in known.items())}" if known else "it takes none"
        raise ValueError(f"policy {name!r} has no argument {', '.join(unknown)}; {there}")
    return name, arguments
