"""Choosing between variants of a policy on scenes that no result is reported on.

A hand-coded opponent with windows of one's own choice is a weak one: the scales of windows matter more than what they
are compared by. `tune` tries variants on validation scenes and names the best; report its score on test scenes.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import evaluate
from canvit_gym.policies import make_policy

WINDOW_SCALES = (
    0.5, 0.4, 0.34, 0.3, 0.25, (0.5, 0.3), (0.5, 0.25), (0.4, 0.3), (0.4, 0.24), (0.4, 0.17), (0.34, 0.24),
    (0.34, 0.17), (0.34, 0.14), (0.3, 0.2),
)  # fmt: skip
"""Scales that `window_variants` tries: one, or a wide and a narrow one. A pair often beats both of its parts."""


@dataclass(frozen=True)
class Tuned:
    best: str
    """The spec of the best variant."""
    scores: Mapping[str, float]
    """By spec: the score after the last glimpse, or its area over glimpses."""


def tune(
    specs: Iterable[str],
    *,
    config: EnvConfig,
    split: str = "validation",
    num_scenes: int = 512,
    by_area: bool = False,
    progress: bool = False,
) -> Tuned:
    """The best of policies by name, in the environment `config` on scenes of another split. Of equals, the first.

    by_area: go by the area under the score's curve, not by the score after the last glimpse.

    Raises:
        ValueError: no specs, or the split that `config` itself has: what is tuned on it cannot be reported on it.

    >>> test = EnvConfig(split="test", device="cpu", budget=2)
    >>> tuned = tune(["center(scale=0.9)", "center(scale=0.5)"], config=test, num_scenes=8)
    >>> tuned.best in tuned.scores
    True
    """
    specs = tuple(specs)
    if not specs:
        raise ValueError("no policies to choose from: name some, such as window_variants('entropy_greedy')")
    if split == config.split and split != "training":
        raise ValueError(
            f"the environment's own split is {split!r}, and results on scenes that a policy was tuned on mean little: "
            "tune on another split"
        )
    tuning = replace(config, split=split, num_scenes=num_scenes, shard=(0, 1))
    scores: dict[str, float] = {}
    for spec in specs:
        policy = make_policy(spec, config=tuning, num_glimpses=tuning.budget, progress=progress)
        found = evaluate(policy, config=tuning, progress=f"{split}: {spec}" if progress else None)
        scores[spec] = found.area_under_curve() if by_area else float(found.score()[-1])
        assert math.isfinite(scores[spec]), (spec, scores[spec])
    return Tuned(best=max(scores, key=lambda spec: scores[spec]), scores=scores)


def window_variants(
    name: str, *, scales: Iterable[float | tuple[float, ...]] = WINDOW_SCALES, centers: int = 16
) -> tuple[str, ...]:
    """Specs of a policy that compares windows (entropy_greedy, goal_entropy, saliency, ...), one for every scale.

    >>> window_variants("entropy_greedy", scales=(0.5, (0.5, 0.25)))
    ('entropy_greedy(scale=0.5, centers=16)', 'entropy_greedy(scale=(0.5, 0.25), centers=16)')
    """
    return tuple(f"{name}(scale={scale!r}, centers={centers})" for scale in scales)
