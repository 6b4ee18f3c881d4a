"""Hand-coded policies and ceilings by name, with arguments: "coarse_to_fine", "raster(scale=(0.5, 0.25))".

A policy is its file and one entry of `POLICY_SPECS`. Policies of your own are entered with `register_policy`.
"""

import ast
import difflib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from canvit_pytorch.policies import PolicyName

from canvit_gym.assembly import build_backbone, task_kind
from canvit_gym.checks import integer
from canvit_gym.config import EnvConfig
from canvit_gym.policies import dependency, learned_order
from canvit_gym.policies.dependency import build_dependency_rank
from canvit_gym.policies.entropy import EntropyGreedy, QuadtreeBeam, build_entropy_greedy, build_quadtree_beam
from canvit_gym.policies.error_locator import ErrorLocator, build_error_locator
from canvit_gym.policies.fixed_sequence import BestFixedSequence, build_best_fixed_sequence
from canvit_gym.policies.goal import (
    GoalEntropy,
    GoalLocator,
    GoalProbability,
    build_goal_entropy,
    build_goal_locator,
    build_goal_probability,
)
from canvit_gym.policies.item_probability import ItemProbability, build_item_probability
from canvit_gym.policies.learned_order import build_learned_order
from canvit_gym.policies.locator import BoxLocator, WindowLocator, build_box_locator, build_window_locator
from canvit_gym.policies.oracle import GreedyOracle, build_greedy_oracle, build_jittered_oracle, jittered_oracle
from canvit_gym.policies.orders import (
    CENTER_OUT,
    RASTER,
    RandomOrder,
    build_center_out,
    build_random_order,
    build_raster_order,
)
from canvit_gym.policies.paper import build_paper, paper_info
from canvit_gym.policies.protocol import GlimpsePolicy, PolicyInfo, check_supported, supported_tasks
from canvit_gym.policies.released import RELEASED_NAME
from canvit_gym.policies.saliency import SpectralResidualSaliency, build_saliency
from canvit_gym.policies.sequences import build_center, build_raster, center, raster
from canvit_gym.policies.spec import Context, PolicySpec
from canvit_gym.policies.table import OnTable, fixed_table, takes_first_glimpse

POLICY_SPECS: dict[str, PolicySpec] = {
    **{name: PolicySpec(paper_info(name), partial(build_paper, name)) for name in get_args(PolicyName)},
    "center": PolicySpec(center().info, build_center, by_default=False),
    "raster": PolicySpec(raster().info, build_raster, by_default=False),
    "best_fixed_sequence": PolicySpec(BestFixedSequence.info, build_best_fixed_sequence),
    "saliency": PolicySpec(SpectralResidualSaliency.info, build_saliency),
    "entropy_greedy": PolicySpec(EntropyGreedy.info, build_entropy_greedy),
    "item_probability": PolicySpec(ItemProbability.info, build_item_probability, by_default=False),
    "quadtree_beam": PolicySpec(QuadtreeBeam.info, build_quadtree_beam),
    "goal_probability": PolicySpec(GoalProbability.info, build_goal_probability, by_default=False),
    "goal_entropy": PolicySpec(GoalEntropy.info, build_goal_entropy, by_default=False),
    "goal_locator": PolicySpec(GoalLocator.info, build_goal_locator, by_default=False),
    "raster_order": PolicySpec(RASTER, build_raster_order, by_default=False),
    "center_out": PolicySpec(CENTER_OUT, build_center_out, by_default=False),
    "random_order": PolicySpec(RandomOrder.info, build_random_order, by_default=False),
    "dependency_rank": PolicySpec(dependency.INFO, build_dependency_rank, by_default=False),
    "learned_order": PolicySpec(learned_order.INFO, build_learned_order, by_default=False),
    "greedy_oracle": PolicySpec(GreedyOracle().info, build_greedy_oracle),
    "jittered_oracle": PolicySpec(jittered_oracle(GreedyOracle()).info, build_jittered_oracle, by_default=False),
    "box_locator": PolicySpec(BoxLocator.info, build_box_locator, by_default=False),
    "window_locator": PolicySpec(WindowLocator.info, build_window_locator, by_default=False),
    "error_locator": PolicySpec(ErrorLocator.info, build_error_locator, by_default=False),
}
"""Name -> policy, built in and registered."""

POLICY_NAMES = tuple(POLICY_SPECS)
"""Of the policies that are built in."""


def register_policy(name: str, build: Callable[..., GlimpsePolicy], info: PolicyInfo) -> None:
    """Enter a policy of your own: `make_policy`, the benchmark and evaluation then know it by name.

    build: `(context, *, ...) -> policy`, with a `Context` (the environment's config and the number of glimpses). Its
    keyword-only parameters are the arguments that a spec string may give: "name(parameter=value)".
    info: what the policy says about itself with its default arguments.

    Raises:
        ValueError: the name is taken, is no identifier, or differs from `info.name`.

    >>> import numpy as np
    >>> class LookHere:
    ...     def __init__(self, row, col):
    ...         self.row, self.col = row, col
    ...         self.info = info
    ...     def reset(self, seen, *, seed): ...
    ...     def viewpoints(self, t, seen):
    ...         return np.tile(np.float32([self.row, self.col, 0.5]), (seen.num, 1))
    ...     def flops_per_decision(self, seen):
    ...         return 0
    >>> info = PolicyInfo(name="look_here", paper_name="look here", description="One place.", deterministic=True)
    >>> register_policy("look_here", lambda context, *, row=0.0, col=0.0: LookHere(row, col), info)
    >>> config = EnvConfig(split="test", num_scenes=4, device="cpu")
    >>> make_policy("look_here(row=0.5)", config=config, num_glimpses=5).info.name
    'look_here(row=0.5)'
    >>> del POLICY_SPECS["look_here"]
    """
    if not name.isidentifier():
        raise ValueError(f"a policy's name must be an identifier (letters, digits, underscores), got {name!r}")
    if name in POLICY_SPECS:
        raise ValueError(f"there is already a policy {name!r}; choose a name other than {', '.join(POLICY_SPECS)}")
    if info.name != name:
        raise ValueError(f"the policy is registered as {name!r}, but its info.name is {info.name!r}: make them equal")
    POLICY_SPECS[name] = PolicySpec(info, build, by_default=False)


def policies_table() -> str:
    """A Markdown table of all policies, for the documentation."""
    lines = ["| policy | what it does | tasks | arguments |", "| --- | --- | --- | --- |"]
    for name, spec in sorted(POLICY_SPECS.items(), key=lambda item: item[1].info.uses_labels):
        arguments = ", ".join(f"`{key}={value!r}`" for key, value in spec.arguments.items())
        only = "Only with `revisit=False`. " if spec.info.needs_table else ""
        what = f"{'Ceiling. ' if spec.info.uses_labels else ''}{only}{spec.info.description}"
        lines.append(f"| `{name}` | {what} | {', '.join(supported_tasks(spec.info))} | {arguments} |")
    return "\n".join(lines)


def make_policy(spec: str, *, config: EnvConfig, num_glimpses: int, progress: bool = False) -> GlimpsePolicy:
    """Make a hand-coded policy from a spec string, for episodes of up to num_glimpses in environment `config`.

    With arguments, the policy's name is the spec string itself, so that tables distinguish variants.

    Raises:
        ValueError: an unknown policy or argument, a bad value, or a policy that does not support the environment.

    >>> config = EnvConfig(split="test", num_scenes=4, device="cpu")
    >>> make_policy("center(scale=0.4)", config=config, num_glimpses=5).info.description
    'The full scene, then repeated central crops of scale 0.4.'
    """
    name, arguments = parse_spec(spec)
    integer(1)("num_glimpses", num_glimpses)
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
    if (table := fixed_table(config)) is not None:
        return OnTable(policy, table, first_is_given=takes_first_glimpse(config))
    return policy


def is_trained(name: str) -> bool:
    """Whether a policy is named as `load_policy` takes it (a directory, "ENVIRONMENT/ALGORITHM", or the name of a
    released one), not by a spec.

    A directory that exists is one whatever its name, such as the "run(1)" that a download made.

    >>> [is_trained(name) for name in ("FashionSearch-v0/ppo", "runs/nowhere", "center(scale=1/2)", "random")]
    [True, True, False, False]
    """
    if RELEASED_NAME.fullmatch(name) or Path(name).expanduser().is_dir():
        return True
    return "(" not in name and "/" in name


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """ "name(key=value, ...)" -> (name, arguments), checked against the registry; values are Python literals.

    Raises:
        ValueError: the string does not have this form, or an unknown policy or argument.

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
        arguments: dict[str, Any] = {}
        for keyword in call.keywords if call else ():
            if keyword.arg in arguments:
                raise ValueError(f"{keyword.arg} is given twice")
            arguments[str(keyword.arg)] = ast.literal_eval(keyword.value)
    except (SyntaxError, ValueError, TypeError) as error:
        raise ValueError(f"cannot read policy {spec!r}: {form}; {error}") from error
    name = named.id
    if name not in POLICY_SPECS:
        close = difflib.get_close_matches(name, POLICY_SPECS, n=1)
        hint = f"did you mean {close[0]!r}? There" if close else "there"
        raise ValueError(
            f"unknown policy {name!r}; {hint} are: {', '.join(POLICY_SPECS)}. "
            "Learned policies are loaded with canvit_gym.policies.load_policy"
        )
    known = POLICY_SPECS[name].arguments
    if unknown := sorted(set(arguments) - set(known)):
        there = f"it takes {', '.join(f'{k}={v!r}' for k, v in known.items())}" if known else "it takes none"
        raise ValueError(f"policy {name!r} has no argument {', '.join(unknown)}; {there}")
    return name, arguments
