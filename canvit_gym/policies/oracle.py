"""The greedy oracle: tries every candidate viewpoint with the true loss and takes the best. A ceiling, not a policy."""

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from canvit_gym.actions import grid_viewpoints
from canvit_gym.episodes import EpisodeBatch
from canvit_gym.policies.flops import trial_flops
from canvit_gym.policies.label_split import Half, check_half, half_truth
from canvit_gym.policies.lookahead import outcomes_after
from canvit_gym.policies.protocol import PolicyInfo, check_supported
from canvit_gym.policies.sequences import check_count
from canvit_gym.viewpoints import FULL_SCENE


def oracle_candidates() -> NDArray[np.float32]:
    """74 viewpoints: 5 x 5 centers at scale 1/2 and 7 x 7 at scale 1/4."""
    return np.concatenate([grid_viewpoints(scales=(0.5,), centers=5), grid_viewpoints(scales=(0.25,), centers=7)])


class GreedyOracle:
    """The full scene, then at each glimpse the candidate after which the loss against the labels is lowest.

    One step ahead: a sequence that gains more in the end may exist. Costs one forward per candidate and glimpse.

    candidates: the table [A, 3] to choose from; default: `oracle_candidates()`.
    max_candidates: try only this many of them, a random subset drawn once, the same for every scene and glimpse.
    half, block: choose by the loss on one half of the labelled pixels, a checkerboard of squares of block x block
        canvas cells (see `canvit_gym.policies.label_split`).
    """

    def __init__(
        self,
        candidates: NDArray[np.float32] | None = None,
        *,
        max_candidates: int | None = None,
        half: Half | None = None,
        block: int = 1,
        progress: bool = False,
    ) -> None:
        candidates = oracle_candidates() if candidates is None else candidates
        if max_candidates is not None:
            check_count("max_candidates", max_candidates)
            if max_candidates < len(candidates):
                chosen = np.random.default_rng(0).choice(len(candidates), max_candidates, replace=False)
                candidates = candidates[np.sort(chosen)]
        if half is not None:
            check_half(half, block)
        self.candidates = candidates
        self._half: Half | None = half
        self._block = block
        self._progress = progress
        on_half = f" on the {half} half of the pixels (squares of {block} cells)" if half else ""
        self.info = PolicyInfo(
            name=f"greedy_oracle_{half}_half" if half else "greedy_oracle",
            paper_name=f"greedy oracle{', ' + half + ' half' if half else ''} (uses labels)",
            description=f"A ceiling that uses the labels: the best of {len(candidates)} candidates by the true loss "
            f"after the glimpse{on_half}.",
            deterministic=True,
            uses_labels=True,
            tasks=("segmentation",) if half else ("segmentation", "classification"),
        )

    def reset(self, episodes: EpisodeBatch, *, seed: int) -> None:
        self._truth = half_truth(episodes, self._half, block=self._block) if self._half else episodes.truth
        check_supported(self.info, episodes.task.name, episodes.backbone.canvas_grid)

    def viewpoints(self, t: int, episodes: EpisodeBatch) -> NDArray[np.float32]:
        if t == 0:
            return np.tile(FULL_SCENE, (episodes.num, 1))
        bar = tqdm(
            total=len(self.candidates),
            desc=f"{self.info.name}, {episodes.num} scenes, glimpse {t + 1} of {episodes.budget}",
            unit="candidate",
            leave=False,
            disable=None if self._progress else True,
        )
        with bar:
            losses = outcomes_after(episodes, self.candidates, truth=self._truth, progress=bar)
        return self.candidates[losses.argmin(axis=0)]

    def flops_per_decision(self, episodes: EpisodeBatch) -> int:
        return len(self.candidates) * trial_flops(episodes)
