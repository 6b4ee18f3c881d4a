"""Choosing variants of a policy on other scenes than those reported on."""

from dataclasses import replace

import pytest

from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import evaluate
from canvit_gym.policies import make_policy
from canvit_gym.tuning import tune, window_variants

CONFIG = EnvConfig(split="test", num_scenes=4, device="cpu", budget=3)
SPECS = ("center(scale=0.99)", *window_variants("entropy_greedy", scales=(0.5, 0.1), centers=4))


@pytest.mark.parametrize("by_area", [False, True])
def test_the_best_on_validation_scenes_is_chosen(by_area: bool) -> None:
    tuned = tune(SPECS, config=CONFIG, num_scenes=12, by_area=by_area)
    validation = replace(CONFIG, split="validation", num_scenes=12)
    for spec in SPECS:
        result = evaluate(make_policy(spec, config=validation, num_glimpses=3), config=validation)
        assert tuned.scores[spec] == (result.area_under_curve() if by_area else result.score()[-1])
    assert tuned.scores[tuned.best] == max(tuned.scores.values()) and tuned.best != SPECS[0]


def test_tuning_on_what_is_reported_is_refused() -> None:
    with pytest.raises(ValueError, match="the environment's own split is 'test'"):
        tune(SPECS, config=CONFIG, split="test")
    with pytest.raises(ValueError, match="no policies to choose from"):
        tune((), config=CONFIG)
