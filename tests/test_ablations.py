"""Ablations: one change each, resumable, and a report of what is finished."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.callbacks import BaseCallback

from agents import train_once
from agents.settings import TrainConfig
from agents.train import TrainResult
from experiments.studies import ablations
from experiments.studies.ablations import (
    VARIANTS,
    AblationConfig,
    ablate,
    chosen_variants,
    resolved,
    runs_of,
    settings_of,
)

ENV_KWARGS: dict[str, Any] = {"device": "cpu", "budget": 3, "grid_centers": 4}
HYPER: dict[str, Any] = {
    "n_envs": 4, "n_steps": 4, "batch_size": 8, "n_epochs": 1,
    "policy_kwargs": {"channels": 8, "context_dim": 16, "blocks": 1, "prior": None}, "warm_start": {"states": 0},
}  # fmt: skip


def tiny(tmp_path: Path, **changes: Any) -> AblationConfig:
    defaults: dict[str, Any] = dict(
        variants=("gamma=0.5", "without acuity"), seeds=1, decisions=16, num_scenes=14, eval_scenes=6,
        hyper=json.dumps(HYPER), env_kwargs=json.dumps(ENV_KWARGS), runs_dir=tmp_path / "runs",
        results_dir=tmp_path / "results", progress=False,
    )  # fmt: skip
    return AblationConfig(**defaults | changes)


@pytest.mark.parametrize("env", ["CanViT/FashionSegmentation-v0", "CanViT/FashionClassification-v0"])
def test_every_variant_changes_one_thing(env: str) -> None:
    config = AblationConfig(env=env)
    base = json.loads(resolved(config, "base"))
    names = chosen_variants(config)
    assert names[0] == "base" and len(names) > 20
    assert len({resolved(config, name) for name in names}) == len(names)  # no two are the same
    for name in names[1:]:
        changed = json.loads(resolved(config, name))
        env_kwargs = {k for k, v in changed["env_kwargs"].items() if base["env_kwargs"][k] != v}
        hyper = {k for k, v in changed.items() if k != "env_kwargs" and base[k] != v}
        both = {  # with what a change cannot be without
            "without gaze": {"observations", "policy_kwargs"},
            "warm_start=16384": {"warm_start", "learning_rate"},
            "action=gaussian": {"action", "min_scale"},
            "action=tanh_gaussian": {"action", "min_scale", "policy_kwargs"},
            "action=beta": {"action", "min_scale", "policy_kwargs"},
        }
        if VARIANTS[name].group == "entropy":  # a floor moves the coefficient: without one, or another
            assert env_kwargs | hyper <= {"entropy_floor", "ent_coef"}, name
        else:
            assert len(env_kwargs) + len(hyper) == 1 or env_kwargs | hyper == both.get(name), name
    # The base under another name is left out.
    own, other = ("1.0", "0.5") if base["gamma"] == 1 else ("0.5", "1.0")
    assert f"gamma={own}" not in names and f"gamma={other}" in names
    assert f"gamma={own}" in chosen_variants(replace(config, hyper=f'{{"gamma": {other}}}'))


def test_observation_keys() -> None:
    config = AblationConfig()
    without = settings_of(config, "without canvas")[0]["observations"]
    assert without == ["uncertainty", "acuity", "viewpoint", "gaze", "time"]
    assert settings_of(config, "with cls")[0]["observations"][-1] == "cls"
    env_kwargs, hyper = settings_of(config, "without gaze")  # which inhibition of return reads
    assert "gaze" not in env_kwargs["observations"]
    assert hyper["policy_kwargs"] == {"prior": None, "learned_stop": False, "inhibition": None}


def test_single_scenes_of_a_classification_are_told_by_their_cross_entropy(tmp_path: Path) -> None:
    config = tiny(tmp_path, env="CanViT/FashionClassification-v0", variants=("base",))
    assert ablate(config)
    result = json.loads((tmp_path / "results" / "FashionClassification-v0.json").read_text())
    told = result["variants"]["base"]["deterministic"]
    assert told["per_scene_iqm"]["value"][-1] < 0
    assert "IQM of the scenes' cross-entropy" in (tmp_path / "results" / "FashionClassification-v0.md").read_text()


def test_runs_are_finished_once_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(tmp_path)
    trained: list[Path] = []

    def counted(run: TrainConfig) -> TrainResult:
        trained.append(run.run_dir)
        return train(run)

    train = train_once.train
    monkeypatch.setattr(train_once, "train", counted)
    assert ablate(replace(config, shard=(1, 2)))
    assert [path.parent.name for path in trained] == ["gamma=0.5"]
    partial = json.loads((tmp_path / "results" / "FashionSegmentation-v0.json").read_text())
    assert (
        list(partial["variants"]) == ["gamma=0.5"]
        and "score_minus_base" not in partial["variants"]["gamma=0.5"]["sampled"]
    )
    assert ablate(config) and len(trained) == 3
    assert ablate(config) and len(trained) == 3
    result = json.loads((tmp_path / "results" / "FashionSegmentation-v0.json").read_text())
    assert list(result["variants"]) == ["base", "gamma=0.5", "without acuity"]
    entry = result["variants"]["without acuity"]
    assert entry["env_kwargs"]["observations"] == ["canvas", "uncertainty", "viewpoint", "gaze", "time"]
    for how in ("deterministic", "sampled"):
        assert len(entry[how]["score_of_seed"]) == 1 and len(entry[how]["score_of_seed"][0]) == 3
        difference = entry[how]["score_minus_base"]
        assert difference["low"][-1] <= difference["value"][-1] <= difference["high"][-1]
    assert difference["value"][0] == 0  # the first glimpse is everyone's
    text = (tmp_path / "results" / "FashionSegmentation-v0.md").read_text()
    assert text.count("\n| ") == 5 and "| discount | gamma=0.5 |" in text
    assert str(tmp_path) not in json.dumps(result["config"])

    other = tiny(tmp_path, hyper=json.dumps(HYPER | {"n_epochs": 2}))
    with pytest.raises(ValueError, match=r"other settings \(n_epochs\): delete it, or choose another directory"):
        ablate(other)

    path = trained[0] / "last" / "policy.json"
    record = json.loads(path.read_text())
    record["inputs"]["probe_sha256"] = "0" * 64
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="differs in the probe behind the rewards: trained on sha256 0000"):
        ablate(replace(config, seeds=2))
    assert len(trained) == 3, "refused before anything else is trained"


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(tmp_path, variants=("base",), decisions=32)
    (run,) = runs_of(config)

    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps < 24

    half = train_once.train(run.config, callbacks=[Stop()])
    assert half.interrupted and half.num_timesteps == 16
    resumed: list[bool] = []
    train = train_once.train
    monkeypatch.setattr(train_once, "train", lambda run: (resumed.append(run.resume), train(run))[1])
    assert ablate(config) and resumed == [True]
    assert json.loads((run.directory / "result.json").read_text())["num_timesteps"] == 32


def test_list_tells_how_long_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ablations.print_list(tiny(tmp_path))
    text = capsys.readouterr().out
    assert "gamma=0.5" in text and "0 of 1 seeds finished" in text and "3 runs of 16 decisions at" in text


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown variants gamma=2; there are: base"):
        ablate(tiny(tmp_path, variants=("gamma=2",)))
    with pytest.raises(ValueError, match=r"shard \(i, n\)"):
        ablate(tiny(tmp_path, shard=(2, 2)))
