"""Hyperparameters are searched alike for every algorithm, and a search goes on where it was interrupted."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from agents import tune
from agents.algorithms import ALGORITHMS, load_hyperparameters
from agents.settings import TrainConfig
from agents.tune import TuneConfig, overrides, search_space, untuned

CLASSIFICATION = "CanViT/FashionClassification-v0"
HYPER: dict[str, Any] = {
    "n_envs": 4, "n_steps": 8, "batch_size": 16, "n_epochs": 1,
    "policy_kwargs": {"channels": 8, "context_dim": 16, "blocks": 1, "prior": None},
}  # fmt: skip
SPACE = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True, "linear_schedule": True}, "n_epochs": [1, 2]}


def tune_config(run_dir: Path, **changes: Any) -> TuneConfig:
    defaults: dict[str, Any] = dict(
        algos=("ppo",), envs=(CLASSIFICATION,), trials=2, total_timesteps=32, hyper=json.dumps(HYPER),
        env_kwargs=json.dumps({"num_scenes": 12, "device": "cpu"}), eval_scenes=6, progress=False,
    )  # fmt: skip
    return TuneConfig(run_dir, **defaults | changes)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_declares_its_space(algo: str) -> None:
    """Every value of it, at the ends of ranges too, makes hyperparameters."""
    space, entry = search_space(algo), load_hyperparameters(CLASSIFICATION, algo=algo).to_json()
    ends = {name: v if isinstance(v, list) else [v["low"], v["high"]] for name, v in space.items()}
    for place in range(max(map(len, ends.values()))):
        params = {name: values[min(place, len(values) - 1)] for name, values in ends.items()}
        load_hyperparameters(CLASSIFICATION, overrides(params, space, entry), algo=algo)
    assert "learning_rate" in untuned(space, entry)


def test_values_come_from_the_entry_and_go_into_it() -> None:
    space = SPACE | {"policy_kwargs.channels": [8, 16], "gamma": {"low": 0.5, "high": 0.9}}
    entry = load_hyperparameters(CLASSIFICATION, HYPER | {"gamma": 1.0}).to_json()
    assert untuned(space, entry) == {"learning_rate": 4e-4, "n_epochs": 1, "policy_kwargs.channels": 8}
    changed = overrides({"learning_rate": 0.00123456789, "policy_kwargs.channels": 16}, space, entry)
    assert changed["learning_rate"] == "lin_0.00123457"
    assert changed["policy_kwargs"] == entry["policy_kwargs"] | {"channels": 16}
    assert entry["policy_kwargs"]["channels"] == 8


def test_an_interrupted_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "search_space", lambda algo: SPACE)
    trained: list[Path] = []

    def interrupted(config: TrainConfig) -> Any:
        if len(trained) == 1:
            trained.append(config.run_dir)
            raise KeyboardInterrupt
        trained.append(config.run_dir)
        return train(config)

    train = tune.train
    monkeypatch.setattr(tune, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune.main(tune_config(tmp_path))
    tune.main(tune_config(tmp_path))
    directory = tmp_path / "ppo" / "FashionClassification-v0"
    assert trained == [directory / f"trial-{number}" / "seed-1000" for number in (0, 1, 1)]
    told = json.loads((directory / "trials.json").read_text())
    assert [trial["state"] for trial in told["trials"]] == ["complete", "complete"]
    assert told["trials"][0]["hyper"] == {"learning_rate": "lin_0.0004", "n_epochs": 1}  # untuned
    best = yaml.safe_load((directory / "best.yml").read_text())[CLASSIFICATION]
    hyper = load_hyperparameters(CLASSIFICATION, best)
    assert hyper.policy_kwargs["channels"] == 8
    tune.main(tune_config(tmp_path))
    assert len(trained) == 3  # nothing is missing
    with pytest.raises(ValueError, match="begun with other total_timesteps"):
        tune.main(tune_config(tmp_path, total_timesteps=64))


def test_a_trial_that_ended_while_values_were_suggested_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "search_space", lambda algo: SPACE)

    def killed(trial: Any, space: dict[str, Any]) -> Any:
        trial.suggest_categorical("n_epochs", space["n_epochs"])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tune, "suggested", killed)
        tune.main(tune_config(tmp_path))
    tune.main(tune_config(tmp_path))
    told = json.loads((tmp_path / "ppo/FashionClassification-v0/trials.json").read_text())["trials"]
    assert [(trial["number"], trial["state"]) for trial in told] == [(1, "complete"), (2, "complete")]
    assert told[0]["hyper"] == {"learning_rate": "lin_0.0004", "n_epochs": 1}  # the untuned one, in its place


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env_kwargs": '{"reward": "gold"}'}, "unknown reward 'gold'"),
        ({"eval_scenes": 0}, "eval_scenes must be an integer >= 1, got 0"),
        ({"total_timesteps": 0}, "total_timesteps must be an integer >= 1, got 0"),
    ],
)
def test_what_no_trial_accepts_begins_no_search(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tune.main(tune_config(tmp_path, **changes))
    assert not list(tmp_path.iterdir())


def test_trials_that_contradict_themselves_have_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "search_space", lambda algo: {"batch_size": [7]})
    with pytest.raises(ValueError, match=r"no trial of .* went through"):
        tune.main(tune_config(tmp_path, trials=1))
    told = json.loads((tmp_path / "ppo/FashionClassification-v0/trials.json").read_text())
    assert [trial["state"] for trial in told["trials"]] == ["fail"]


def test_a_finished_search_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "search_space", lambda algo: SPACE)
    tune.main(tune_config(tmp_path / "runs"))
    results = tmp_path / "results"
    tune.main(tune_config(tmp_path / "runs", results_dir=results))  # no trial is missing
    kept = json.loads((results / "ppo-FashionClassification-v0.json").read_text(encoding="utf-8"))
    assert len(kept["trials"]) == 2 and kept["seeds"] == [1000]
    page = (results / "README.md").read_text(encoding="utf-8")
    values = ", ".join(f"{100 * trial['value']:.1f}" for trial in kept["trials"])
    assert f"| ppo | FashionClassification-v0 | 32, 6 | {values} |" in page
