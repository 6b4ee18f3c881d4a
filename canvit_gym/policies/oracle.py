"""Ceilings that try out every candidate viewpoint and take the one after which the true loss is lowest."""

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from canvit_gym.actions import DiscreteActions, grid_viewpoints
from canvit_gym.assembly import build_actions
from canvit_gym.checks import integer
from canvit_gym.policies.flops import trial_flops
from canvit_gym.policies.jitter import Jittered
from canvit_gym.policies.label_split import Half, check_half, half_truth
from canvit_gym.policies.protocol import PolicyInfo, check_supported
from canvit_gym.policies.seen import Seen, with_truth
from canvit_gym.policies.spec import Context
from canvit_gym.policies.table import best_allowed, fixed_table
from canvit_gym.viewpoints import FULL_SCENE


def oracle_candidates() -> NDArray[np.float32]:
    """74 viewpoints: 5 x 5 centers at scale 1/2 and 7 x 7 at scale 1/4."""
    return np.concatenate([grid_viewpoints(scales=(0.5,), centers=5), grid_viewpoints(scales=(0.25,), centers=7)])


class GreedyOracle:
    """The full scene, then at each glimpse the candidate after which the loss, or another potential, is best.

    It looks one step ahead: a sequence that gains more in the end may exist. Costs one forward pass per candidate and
    glimpse.

    candidates: the table [A, 3] to choose from; default: `oracle_candidates()`.
    max_candidates: try only this many of them, a random subset drawn once, the same for every scene and glimpse.
    potential: the criterion: "loss" (lowest is best) or another potential of the task (highest is best).
    half, block: choose by the loss on one half of the labelled pixels, a checkerboard of squares of block x block
        canvas cells (see `canvit_gym.policies.label_split`).
    """

    def __init__(
        self,
        candidates: NDArray[np.float32] | None = None,
        *,
        max_candidates: int | None = None,
        potential: str = "loss",
        half: Half | None = None,
        block: int = 1,
        progress: bool = False,
    ) -> None:
        candidates = oracle_candidates() if candidates is None else candidates
        if max_candidates is not None:
            integer(1)("max_candidates", max_candidates)
            if max_candidates < len(candidates):
                chosen = np.random.default_rng(0).choice(len(candidates), max_candidates, replace=False)
                candidates = candidates[np.sort(chosen)]
        if half is not None:
            check_half(half, block)
        self.candidates = candidates
        self._potential = potential
        self._half: Half | None = half
        self._block = block
        self._progress = progress
        on_half = f" on the {half} half of the pixels (squares of {block} cells)" if half else ""
        self.info = PolicyInfo(
            name=f"greedy_oracle_{half}_half" if half else "greedy_oracle",
            paper_name=f"greedy oracle{', ' + half + ' half' if half else ''} (uses labels)",
            description=f"A ceiling that uses the labels: the best of {len(candidates)} candidates by the true "
            f"{potential} after the glimpse{on_half}.",
            deterministic=True,
            uses_labels=True,
            tasks=("segmentation",) if half else None,
        )

    def reset(self, seen: Seen, *, seed: int) -> None:
        full = with_truth(seen)
        seen.task.require_potential(self._potential, wanted_by=f"policy {self.info.name!r}")
        self._truth = half_truth(full, self._half, block=self._block) if self._half else full.truth
        check_supported(self.info, seen.task.name, seen.canvas_grid)

    def viewpoints(self, t: int, seen: Seen) -> NDArray[np.float32]:
        if t == 0:
            return np.tile(FULL_SCENE, (seen.num, 1))
        potential = seen.task.potentials[self._potential]
        bar = tqdm(
            total=len(self.candidates),
            desc=f"{self.info.name}, {seen.num} scenes, glimpse {t + 1} of {seen.budget}",
            unit="candidate",
            leave=False,
            disable=None if self._progress else True,
        )
        with bar:
            found = with_truth(seen).outcomes_after(
                self.candidates, measure=potential.measure, truth=self._truth, progress=bar
            )
        worth = -found.T if potential.less_is_better else found.T
        return self.candidates[best_allowed(torch.from_numpy(worth), self.candidates, seen)]

    def flops_per_decision(self, seen: Seen) -> int:
        return len(self.candidates) * trial_flops(seen)


def jittered_oracle(oracle: GreedyOracle, *, cells: float = 0.5) -> Jittered:
    """`oracle` with glimpses up to `cells` canvas cells off: it can choose a place, but not its exact pixels."""
    policy = Jittered(oracle, cells=cells)
    policy.info = replace(policy.info, name="jittered_oracle", paper_name="jittered oracle (uses labels)")
    return policy


def build_greedy_oracle(
    context: Context,
    *,
    candidates: Literal["default", "actions"] = "default",
    max_candidates: int | None = None,
    potential: str = "loss",
    half: Half | None = None,
    block: int = 1,
) -> GreedyOracle:
    """Over `oracle_candidates()`, or over the environment's own discrete actions (with revisit=False, always those)."""
    if candidates not in ("default", "actions"):
        raise ValueError(f"candidates must be 'default' or 'actions', got {candidates!r}")
    table = fixed_table(context.config)
    if candidates == "actions":
        actions = build_actions(context.config)
        if not isinstance(actions, DiscreteActions):
            raise ValueError(
                f"candidates='actions' needs discrete actions, but the environment's are {context.config.action!r}; "
                "use action='grid' or 'quadtree', or the default candidates"
            )
        table = actions.viewpoints
    return GreedyOracle(
        table,
        max_candidates=max_candidates,
        potential=potential,
        half=half,
        block=block,
        progress=context.progress,
    )


def build_jittered_oracle(
    context: Context,
    *,
    cells: float = 0.5,
    candidates: Literal["default", "actions"] = "default",
    max_candidates: int | None = None,
) -> Jittered:
    return jittered_oracle(
        build_greedy_oracle(context, candidates=candidates, max_candidates=max_candidates), cells=cells
    )
