"""Algorithms x environments x seeds: trained, tested, told and shipped; what is there already is not done again."""

import gc
import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import edit_json
from stable_baselines3.common.buffers import DictReplayBuffer
from test_train import tiny

from agents import matrix, outcomes, report, ship, train_once
from agents.algorithms import ALGORITHMS, load_hyperparameters
from agents.clock import read_times
from agents.finished_runs import find_runs, require_alike
from agents.matrix import MatrixConfig
from agents.monitor import merit
from agents.outcomes import of_hand_coded, pays_of_curve
from agents.report import ReportConfig
from agents.reported import load_reported
from agents.run_directory import without_root
from agents.settings import TrainConfig
from agents.ship import ShipConfig
from agents.train import train
from canvit_gym.command_line import env_config
from canvit_gym.policies.learned import load_policy, shipped_policies
from canvit_gym.provenance import provenance
from canvit_gym.scenes.datasets import DATASETS
from canvit_gym.statistics import area_under_curve
from canvit_gym.stopping import WHEN_RIGHT, at_confidence, named, stops_when_right
from canvit_gym.suite.payoff import payoff_of, stacked
from canvit_gym.tasks import metric_named

CLASSIFICATION, ORDER, STOP = (f"CanViT/Fashion{name}-v0" for name in ("Classification", "Order", "Stop"))
HYPER: dict[str, Any] = {
    "n_envs": 4, "n_steps": 8, "batch_size": 16, "n_epochs": 1,
    "policy_kwargs": {"channels": 8, "context_dim": 16, "blocks": 1, "prior": None},
}  # fmt: skip
TEST_SCENES = 12


def matrix_config(run_dir: Path, **changes: Any) -> MatrixConfig:
    defaults: dict[str, Any] = dict(
        algos=("ppo", "q_regression"), envs=(CLASSIFICATION,), seeds=(0, 1), total_timesteps=64,
        hyper=json.dumps(HYPER), env_kwargs=json.dumps({"num_scenes": 12, "device": "cpu"}), eval_scenes=6,
        test_scenes=TEST_SCENES, progress=False,
    )  # fmt: skip
    return MatrixConfig(run_dir, **defaults | changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("matrix")
    matrix.main(matrix_config(root))
    matrix.main(matrix_config(root, algos=("sac",), envs=(ORDER,), seeds=(0,), hyper="{}"))
    return root


def test_two_processes_share_the_runs(tmp_path: Path) -> None:
    """And one's failure is told when the other has done the rest."""
    directories = [tmp_path / "ppo/FashionClassification-v0" / f"seed-{seed}" for seed in (0, 1)]
    directories[1].mkdir(parents=True)
    (directories[1] / "test").touch()  # where a directory belongs
    with pytest.raises(ChildProcessError, match=r"[12] of 2 processes failed, with exit codes"):
        matrix.main(matrix_config(tmp_path, algos=("ppo",), processes=2))
    starts = [json.loads((one / "provenance.json").read_text(encoding="utf-8")) for one in directories]
    assert [len(of_run) for of_run in starts] == [1, 1]
    assert {one["command"] for (one,) in starts} == {provenance()["command"]}
    assert list((directories[0] / "test").glob("*.npz"))
    with pytest.raises(ValueError, match="processes must be an integer >= 1, got 0"):
        matrix_config(tmp_path, processes=0)


def test_runs_are_trained_and_tested_once(trained: Path) -> None:
    runs = sorted(path.relative_to(trained).parent for path in trained.glob("*/*/*/result.json"))
    names = [Path(algo) / "FashionClassification-v0" / f"seed-{s}" for algo in ("ppo", "q_regression") for s in (0, 1)]
    assert runs == names
    files = {path: path.stat().st_mtime_ns for path in trained.rglob("*.npz")}
    assert len(files) == 2 * 2 + 2  # values are not sampled from
    matrix.main(matrix_config(trained))
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*.npz")} == files


@pytest.mark.parametrize(
    ("changes", "differing"),
    [({"eval_every": 16}, "eval_every"), ({"total_timesteps": 128}, "eval_every, total_timesteps"),
     ({"hyper": json.dumps(HYPER | {"gamma": 0.9})}, "gamma")],
)  # fmt: skip
def test_runs_of_other_settings_are_not_taken_for_these(trained: Path, changes: dict[str, Any], differing: str) -> None:
    with pytest.raises(ValueError, match=rf"seed-0 holds a run with other settings \({differing}\): delete it"):
        matrix.main(matrix_config(trained, algos=("ppo",), **changes))


def test_decisions_have_an_option_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pass --total-timesteps"):
        matrix.main(matrix_config(tmp_path, hyper=json.dumps(HYPER | {"total_timesteps": 64})))


def test_no_replay_buffer_outlives_its_run(tmp_path: Path) -> None:
    small = {"learning_starts": 16, "batch_size": 8, "buffer_size": 256, "n_envs": 4, "train_freq": 4}
    config = matrix_config(tmp_path, algos=("dqn",), seeds=(0, 1), hyper=json.dumps(small))
    gc.disable()
    try:
        matrix.main(config)
        assert len(list(tmp_path.rglob("result.json"))) == 2
        assert not [one for one in gc.get_objects() if type(one) is DictReplayBuffer]
    finally:
        gc.enable()


def test_what_does_not_fit_is_recorded_and_the_others_go_on(trained: Path) -> None:
    failed = json.loads((trained / "sac/FashionOrder-v0/seed-0/failed.json").read_text())
    assert "revisit=False" in failed["error"] and failed["algo"] == "sac"


def test_budgets_are_of_glimpses() -> None:
    ppo = load_hyperparameters(CLASSIFICATION)
    budget = ppo.glimpses(ppo.total_timesteps)
    assert matrix.decisions("ppo", CLASSIFICATION, {}) == ppo.total_timesteps
    assert matrix.decisions("q_regression", CLASSIFICATION, {}) == budget
    cloning = load_hyperparameters(CLASSIFICATION, algo="oracle_cloning")
    assert matrix.decisions("oracle_cloning", CLASSIFICATION, {}) == budget // (cloning.candidates + 1)
    with pytest.raises(ValueError, match=r"warm start of ppo takes 900,000 glimpses, and the budget of .* is 81,920"):
        matrix.decisions(
            "ppo",
            CLASSIFICATION,
            {"warm_start": {"states": 100_000, "candidates": 8}, "policy_kwargs": {"prior": None}},
        )


NO_ORDER = {"oracle_cloning", "dqn", "sac", "tqc", "crossq", "recurrent_ppo"}
"""Learners without masks, or with continuous actions only."""


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize("env_id", matrix.EMBEDDED)
def test_every_learner_has_an_entry_that_fits_every_environment(algo: str, env_id: str) -> None:
    """With the id's own table where its viewpoints are fixed, the goal where there is one, and glimpses left to learn
    with."""
    hyper = load_hyperparameters(env_id, {}, algo=algo)
    if env_id == ORDER and algo in NO_ORDER:
        with pytest.raises(ValueError, match="revisit=False"):
            hyper.check_fit(env_config(env_id, hyper.env_kwargs))
        return
    env = env_config(env_id, hyper.env_kwargs)
    hyper.check_fit(env)
    assert matrix.decisions(algo, env_id, {}) >= 1024  # an oracle takes nine glimpses a decision
    assert ("goal" in env.observations) == ("goal" in env_config(env_id, {}).observations)
    if not env.revisit:
        assert env.action == env_config(env_id, {}).action


def test_another_table_of_fixed_viewpoints_is_not_tested(trained: Path) -> None:
    """With revisit=False the viewpoints are the task."""
    policy = load_policy(trained / "ppo/FashionClassification-v0/seed-0/best")
    assert matrix.environment_to_test(CLASSIFICATION, policy, None).split == "test"
    with pytest.raises(ValueError, match="another table of viewpoints than CanViT/FashionOrder-v0"):
        matrix.environment_to_test(ORDER, policy, None)


def test_the_report_tells_what_the_files_hold(trained: Path, tmp_path: Path) -> None:
    config = ReportConfig(trained, output_dir=tmp_path, test_scenes=TEST_SCENES)
    report.main(config)
    result = json.loads((tmp_path / "FashionClassification-v0.json").read_text())
    assert set(result["algorithms"]) == {"ppo", "q_regression"} and result["test_scenes"] == TEST_SCENES
    runs = find_runs(trained, TEST_SCENES)[CLASSIFICATION]
    for algo, entry in result["algorithms"].items():
        scores = [run.evaluations["deterministic"].score()[-1] for run in runs[algo]]
        assert entry["value"]["value"] == pytest.approx(np.mean(scores))  # of two runs none is left out
        assert [run["values"]["deterministic"] for run in entry["runs"]] == pytest.approx(scores)
        assert entry["minus_opponent"]["value"] == pytest.approx(np.mean(scores) - result["opponent"]["value"]["value"])
        assert entry["runs"][0]["validation"]["decisions"] == [32, 64]
        assert str(trained) not in json.dumps(entry) and "--run-dir" not in entry["provenance"]
    assert result["algorithms"]["ppo"]["better_than_ppo"] is None
    text = (tmp_path / "README.md").read_text()
    assert "| PPO | 2 |" in text and "| Q-regression | 2 |" in text and "item_probability" in text
    # Numbers of environments whose runs are elsewhere stay.
    (tmp_path / "FashionAbsent-v0.json").write_text(json.dumps(result | {"env": "CanViT/FashionAbsent-v0"}))
    report.main(config)
    assert "## FashionAbsent-v0" in (tmp_path / "README.md").read_text()


def test_the_overview_has_every_algorithm_and_environment() -> None:
    def entry(title: str, gain: float, seeds: int) -> dict[str, Any]:
        near = {"value": gain, "low": gain - 0.01, "high": gain + 0.01}
        runs = [{"decisions_to_90": None}] * seeds
        return {"algo": title, "title": title, "minus_opponent": near, "value": near, "runs": runs} | {
            "share_of_headroom": near
        }

    results = [
        {"env": "CanViT/FashionOne-v0", "algorithms": {"A": entry("A", 0.02, 5), "B": entry("B", 0.03, 1)}},
        {"env": "CanViT/FashionTwo-v0", "algorithms": {"A": entry("A", -0.01, 3)}},
    ]
    lines = report.overview(results)
    assert "| algorithm | One | Two |" in lines
    # Where B is missing it counts as A does.
    assert [line for line in lines if line.startswith(("| A", "| B"))] == [
        "| B | **+3.0** (1) |  |",
        "| A | **+2.0** (5) | -1.0 (3) |",
    ]
    assert "| FashionOne-v0 | A (5) |" in "\n".join(report.summary(results)), (
        "B has too few seeds to be called the best"
    )


def test_runs_outside_of_the_suite_are_left_out(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is evaluated; from any working directory."""
    monkeypatch.chdir(tmp_path)
    root, outside = tmp_path / "runs", "CanViT/ADE20K-v0"
    other = root / "ppo" / "ADE20K-v0" / "seed-0"
    other.mkdir(parents=True)
    for name, content in (("config.json", {"env": outside}), ("result.json", {})):
        (other / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"only holds runs of {outside}, which the suite has no opponent.*--learned"):
        report.main(ReportConfig(root, output_dir=tmp_path / "out"))
    shutil.copytree(trained / "ppo" / "FashionClassification-v0", root / "ppo" / "FashionClassification-v0")
    report.main(ReportConfig(root, output_dir=tmp_path / "out", test_scenes=TEST_SCENES))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md",
        "learning.svg",
        "FashionClassification-v0.json",
        "FashionClassification-v0.npz",
    }
    assert f"Left out, being outside of the suite: {outside}." in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"eval_every": 0, "seed": 7}, "seed-7 was trained without validation .eval_every=0.: it has no best policy"),
        ({}, r"ppo on CanViT/FashionClassification-v0 has seeds \[0, 0\]: every seed may be there once"),
    ],
)
def test_runs_that_cannot_be_reported(trained: Path, tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    of_ppo = tmp_path / "ppo" / "FashionClassification-v0"
    for name in ("seed-0", "seed-7"):
        shutil.copytree(trained / "ppo" / "FashionClassification-v0" / "seed-0", of_ppo / name)
    edit_json(of_ppo / "seed-7" / "config.json", **changes)
    with pytest.raises(ValueError, match=told):
        find_runs(tmp_path, TEST_SCENES)


@pytest.mark.parametrize("path", sorted(report.TRAINED.glob("*-v*.json")), ids=lambda path: path.stem)
def test_policies_are_compared_with_those_of_the_suite(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    skill = report.skill_of(result["env"])
    assert skill is not None
    wanted = result["opponent"]["name"], result["ceiling"]["name"], tuple(result.get("locators", {}))
    opponent, ceiling, locators = report.compared_with(skill, allow_stop=env_config(result["env"], {}).allow_stop)
    assert (named(*opponent), named(*ceiling), tuple(named(*one) for one in locators)) == wanted


@pytest.mark.parametrize("path", sorted(report.TRAINED.glob("*-v*.npz")), ids=lambda path: path.stem)
def test_the_values_of_runs_are_those_of_their_counts(path: Path) -> None:
    result = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    scenes = json.loads(str(np.load(path)["header"]))["scenes"]
    metric, payoff = metric_named(result["metric"]), payoff_of(env_config(result["env"], {}))
    assert scenes["num_scenes"] == result["test_scenes"] and scenes["pays"] == result["pays"] == payoff.name
    for algo, one in load_reported(path, result["algorithms"], scenes=scenes).items():
        assert one.runs == result["algorithms"][algo]["runs"]
        for run, counts in zip(one.runs, one.counts, strict=True):
            for how, value in run["values"].items():
                statistic = payoff.of_counts(metric, stacked([counts[how]]))
                found = statistic(np.ones((1, 1)), np.ones((1, result["test_scenes"])))
                assert found[0, 0] == pytest.approx(value, abs=1e-9)


def test_estimates_may_be_infinite() -> None:
    assert report.shown({"value": 0.5, "low": None, "high": None}, signed=True) == "+50.0 [-∞, ∞]"
    assert report.shown({"value": None, "low": 0.25, "high": 1.0}, digits=2, factor=1) == "? [0.25, 1.00]"
    assert report.shown(None) == ""


def test_runs_that_differ_are_not_averaged(trained: Path, tmp_path: Path) -> None:
    one, other = (run.config for run in find_runs(trained, TEST_SCENES, algo="ppo")[CLASSIFICATION]["ppo"])

    def check(changed: dict[str, Any]) -> None:
        require_alike({"here": one, "there": other | changed}, cure="move one")

    with pytest.raises(ValueError, match=r"here and there differ in total_timesteps: 64 and 96.*move one"):
        check({"total_timesteps": 96})
    with pytest.raises(ValueError, match="differ in eval_every"):
        check({"eval_every": 7})
    newer = {key: value for key, value in other["hyperparameters"].items() if key != "compile_policy"}
    check({"hyperparameters": newer})
    check({"hyperparameters": other["hyperparameters"] | {"total_timesteps": 1}})  # of the entry, not of the run
    with pytest.raises(ValueError, match=r"eval_every must be an integer >= 1, got 0"):
        MatrixConfig(tmp_path, eval_every=0)
    with pytest.raises(FileNotFoundError, match="holds no finished run"):
        report.main(ReportConfig(tmp_path))


def reported(root: Path, out: Path, **options: Any) -> dict[str, Any]:
    """The numbers of a report of the runs in `root` on FashionClassification."""
    report.main(ReportConfig(root, output_dir=out, test_scenes=TEST_SCENES, **options))
    return json.loads((out / "FashionClassification-v0.json").read_text())


def test_earlier_runs_stay_in_the_report_without_their_directories(trained: Path, tmp_path: Path) -> None:
    """As if all had been reported at once; a new run replaces an earlier one of its seed."""

    def runs(name: str, *directories: str) -> Path:
        for each in directories:
            shutil.copytree(trained / each, tmp_path / name / each)
        return tmp_path / name

    ppo, values = "ppo/FashionClassification-v0/seed-", "q_regression/FashionClassification-v0/seed-"
    whole = reported(trained, tmp_path / "whole")
    for name in ("first", "second"):
        shutil.copytree(trained / "hand_coded", tmp_path / name / "hand_coded")
    reported(runs("first", f"{ppo}0", f"{ppo}1", f"{values}1"), tmp_path / "pooled")
    second = runs("second", f"{values}0", f"{values}1")
    in_two = reported(second, tmp_path / "pooled")
    assert in_two["algorithms"] == whole["algorithms"]
    assert in_two["algorithms"]["q_regression"]["better_than_ppo"] is not None
    assert reported(second, tmp_path / "pooled", drop=("ppo",))["algorithms"].keys() == {"q_regression"}

    edit_json(second / f"{values}0" / "config.json", eval_every=16)
    shutil.rmtree(second / f"{values}1")
    with pytest.raises(ValueError, match=r"runs of q_regression in .*differ in eval_every: .*--drop q_regression"):
        reported(second, tmp_path / "pooled")
    dropped = reported(second, tmp_path / "pooled", drop=("q_regression",))
    assert [run["seed"] for run in dropped["algorithms"]["q_regression"]["runs"]] == [0]


def test_earlier_runs_are_compared_again_with_another_opponent(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if they had been reported now, without their directories."""

    before = reported(trained, tmp_path / "again")
    spec = DATASETS["fashion-classification"]
    assert spec.skill is not None
    skill = replace(spec.skill, opponents=("center", *spec.skill.opponents))
    monkeypatch.setitem(DATASETS, spec.name, replace(spec, skill=skill))
    with pytest.raises(FileNotFoundError, match="holds no finished run"):
        reported(tmp_path / "none", tmp_path / "again")
    again = reported(tmp_path / "none", tmp_path / "again", again=("CanViT/FashionClassification-v0",))
    assert again["opponent"]["name"] == "center" != before["opponent"]["name"]
    now = reported(trained, tmp_path / "now")
    assert again["algorithms"] == now["algorithms"] != before["algorithms"]
    with pytest.raises(FileNotFoundError, match=r"--again CanViT/FashionOdd-v0: there is no .*FashionOdd-v0\.json"):
        reported(trained, tmp_path / "again", again=("CanViT/FashionOdd-v0",))


def test_earlier_runs_of_other_scenes_are_refused(trained: Path, tmp_path: Path) -> None:
    config = ReportConfig(trained, output_dir=tmp_path, test_scenes=TEST_SCENES)
    report.main(config)
    with pytest.raises(ValueError, match=r"counts with another .*num_scenes.*--drop ppo q_regression"):
        report.main(replace(config, test_scenes=4))
    counts = tmp_path / "FashionClassification-v0.npz"
    whole = counts.read_bytes()
    counts.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"is damaged.*--drop ppo q_regression"):
        report.main(config)
    report.main(replace(config, drop=("ppo", "q_regression")))
    assert counts.read_bytes() != whole[: len(whole) // 2]


def test_earlier_runs_without_counts_stay_as_they_were(trained: Path, tmp_path: Path) -> None:
    """Unless there are new ones: the two cannot be averaged."""
    config = ReportConfig(trained, output_dir=tmp_path, test_scenes=TEST_SCENES)
    report.main(config)
    counts, numbers = tmp_path / "FashionClassification-v0.npz", tmp_path / "FashionClassification-v0.json"
    before = json.loads(numbers.read_text())["algorithms"]
    counts.unlink()
    with pytest.raises(ValueError, match=r"runs of ppo, q_regression on .*their counts were not kept.*--drop ppo q_r"):
        report.main(config)
    ppo = tmp_path / "runs"
    for name in ("ppo/FashionClassification-v0", "hand_coded"):
        shutil.copytree(trained / name, ppo / name)
    config = replace(config, run_dir=ppo, drop=("ppo",))
    with pytest.raises(ValueError, match=r"were tested on 12 scenes, the new ones on 4.*--drop q_regression"):
        report.main(replace(config, test_scenes=4))
    whole = numbers.read_text()
    numbers.write_text(whole.replace("item_probability(scale=(0.34, 0.24))", "saliency(scale=0.3)"))
    with pytest.raises(ValueError, match=r"were compared with saliency\(scale=0.3\) and .*--drop q_regression"):
        report.main(config)
    opponent = json.loads(whole)["opponent"]["value"]["value"]
    numbers.write_text(whole.replace(f'"value": {opponent}', f'"value": {opponent - 0.05}'))
    with pytest.raises(ValueError, match=rf"opponent .* scored {100 * opponent - 5:.2f}, now .*--drop q_regression"):
        report.main(config)
    numbers.write_text(whole)
    report.main(config)
    after = json.loads(numbers.read_text())["algorithms"]
    assert after["q_regression"] == before["q_regression"] | {"better_than_ppo": None}
    assert after["ppo"] == before["ppo"] and counts.is_file()


def test_the_best_seed_by_validation_is_shipped(trained: Path, tmp_path: Path) -> None:
    config = ShipConfig(trained, CLASSIFICATION, output_dir=tmp_path, test_scenes=TEST_SCENES)
    target = ship.ship(config)
    assert target == tmp_path / "FashionClassification-v0" / "ppo"
    policy = load_policy(target)
    runs = find_runs(trained, TEST_SCENES, algo="ppo")[CLASSIFICATION]["ppo"]
    merits = [max(merit(e, policy.record.env) for e in run.result["evaluations"]) for run in runs]
    assert policy.record.training["seed"] == int(np.argmax(merits))
    tested = policy.record.training["test"]
    assert tested["seeds"] == [0, 1] and len(tested["sampled"]) == 2
    card = (target / "README.md").read_text()
    assert "# PPO on CanViT/FashionClassification-v0" in card and '"sampled"' in card and "torch" in card
    assert str(trained) not in (target / "policy.json").read_text() + card
    with pytest.raises(FileNotFoundError, match="holds no finished run"):
        ship.ship(replace(config, algo="dqn"))


def test_where_stopping_pays_glimpses_cost(tmp_path: Path) -> None:
    env = replace(env_config(STOP, {"device": "cpu", "budget": 3}), split="test", num_scenes=8)
    at = at_confidence(0.4)
    stopping, always = (
        of_hand_coded("item_probability", env, stop=at, directory=tmp_path),
        of_hand_coded("item_probability", env, directory=tmp_path),
    )
    assert stopping.stops is not None and always.stops is not None and (always.stops == 3).all()
    right = stopping.scene_score()[np.arange(8), stopping.stops - 1]
    assert payoff_of(env).value(stopping) == pytest.approx((right - 0.02 * (stopping.stops - 1)).mean())
    told = of_hand_coded("item_probability", env, stop=WHEN_RIGHT, directory=tmp_path)
    assert payoff_of(env).value(told) >= payoff_of(env).value(stopping)
    np.testing.assert_array_equal(told.stops, stops_when_right(always.scene_score()))
    again = of_hand_coded("item_probability", env, stop=at, directory=tmp_path)
    np.testing.assert_array_equal(again.stops, stopping.stops)  # read from the files
    entry = {"score": [0.1, 0.2, 0.3], "at_stop": {"score": 0.25, "glimpses": 2.0}}
    assert pays_of_curve(env, entry) == pytest.approx(0.23)


def test_evaluations_of_other_code_or_scenes_are_not_read(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor those of other weights: an extended run may have another best policy."""
    run_dir = trained / "ppo/FashionClassification-v0/seed-0"
    env = replace(env_config(CLASSIFICATION, {"device": "cpu"}), split="test", num_scenes=4)

    def kept() -> int:
        of_hand_coded("random", env, directory=run_dir / "hand_coded")
        matrix.tested(run_dir, num_scenes=4)
        return len(list(run_dir.rglob("*-4-*.npz")))

    assert kept() == kept() == 3
    monkeypatch.setattr(outcomes, "code_sha256", lambda: "of other code")
    assert kept() == kept() == 6
    env = replace(env, budget=env.budget + 1)
    assert kept() == 7


def test_evaluations_of_another_machine_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those on another device or with another torch, but not those of another canvit-pytorch."""
    env = replace(env_config(CLASSIFICATION, {"device": "cpu"}), split="test", num_scenes=4)
    here = outcomes.identity(env, env.dataset)
    for there, files in (
        (here, 1),
        (here | {"device": "cuda"}, 1),
        (here | {"versions": here["versions"] | {"torch": "2.11.0"}}, 1),
        (here | {"versions": here["versions"] | {"canvit-pytorch": "0.2.0"}}, 2),
    ):
        monkeypatch.setattr(outcomes, "identity", lambda *_, of=there: of)
        found = of_hand_coded("random", env, directory=tmp_path)
        assert len(list(tmp_path.glob("*.npz"))) == files
    assert found.record["device"] == "cpu"


def test_where_order_pays_the_curve_counts() -> None:
    env, entry = env_config(ORDER, {}), {"score": [0.1, 0.2, 0.4], "loss": [3.0, 1.0, 1.0]}
    assert pays_of_curve(env, entry) == pytest.approx(area_under_curve(entry["score"]))
    assert merit(entry, env) == pytest.approx(-1.5)
    assert merit(entry, env_config("CanViT/FashionSegmentation-v0", {"revisit": False})) == -1.0


def test_clocks_go_on_where_a_run_does(tmp_path: Path) -> None:
    train(tiny(tmp_path, updates=2))
    first = read_times(tmp_path / "clock.json")
    train(tiny(tmp_path, updates=4, resume=True))
    times = read_times(tmp_path / "clock.json")
    assert first is not None and times is not None
    assert times["num_timesteps"] == [0, 32, 64] and times["seconds"][:2] == first["seconds"]
    for name in ("seconds", "processor_seconds"):
        assert times[name] == sorted(times[name]) and times[name][2] > times[name][1] > 0


def test_clocks_count_what_a_saved_state_has_learned(tmp_path: Path) -> None:
    """Also without an evaluation, as after Ctrl-C."""
    train(tiny(tmp_path, updates=3, eval_every=0))
    times = read_times(tmp_path / "clock.json")
    assert times is not None and times["num_timesteps"][-1] == 48


def test_commands_are_printed_without_directories(tmp_path: Path) -> None:
    command = f"python -m agents.train --run-dir={tmp_path}/ppo --seed 0"
    assert without_root(command, tmp_path) == "python -m agents.train --run-dir=runs/ppo --seed 0"
    assert without_root("python -m agents.matrix --run-dir . --algos ppo", Path()) == (
        "python -m agents.matrix --run-dir runs --algos ppo"
    )


def test_a_failed_run_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the processes of one command; the next command tries it again."""
    tried: list[int] = []

    def fails(config: TrainConfig) -> bool:
        assert config.seed is not None
        tried.append(config.seed)
        raise FloatingPointError("the loss is nan")

    monkeypatch.setattr(matrix, "complete", fails)
    config = matrix_config(tmp_path, algos=("ppo",), processes=2)
    began = time.time() - 1
    for share in (0, 1):
        matrix._work(config, share=share, began=began)
    assert tried == [0, 1]
    matrix._work(config)
    assert tried == [0, 1, 0, 1]


def test_a_run_that_another_process_just_began_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begun(config: TrainConfig) -> None:
        raise FileExistsError("it contains an unfinished run")

    monkeypatch.setattr(train_once, "train", begun)
    matrix._work(matrix_config(tmp_path))
    assert not list(tmp_path.rglob("failed.json"))


def test_the_pages_count_the_runs_of_ppo_without_an_update() -> None:
    root = report.TRAINED.parents[1]
    results = [json.loads(path.read_text(encoding="utf-8")) for path in report.TRAINED.glob("*-v*.json")]
    kept_at = {each["env"]: [run["best_at"] for run in each["algorithms"]["ppo"]["runs"]] for each in results}
    starts = {env_id.removeprefix("CanViT/Fashion").removesuffix("-v0"): n.count(0) for env_id, n in kept_at.items()}
    told = f"In {sum(starts.values())} of the {sum(map(len, kept_at.values()))} runs "
    findings, readme = ((root / page).read_text(encoding="utf-8") for page in ("docs/findings.md", "README.md"))
    assert told in findings and told in readme
    sentence = findings.partition(told)[2].partition(".")[0]
    assert {env: int(number) for number, env in re.findall(r"(\d) (?:of 5 runs )?on (\w+)", sentence)} == {
        env: number for env, number in starts.items() if number
    }
    assert all(load_policy(name).record.training["num_timesteps"] for name in shipped_policies() if "/ppo" in name)


def test_the_findings_hold_the_numbers_of_the_files() -> None:
    findings = (Path(__file__).parents[1] / "docs" / "findings.md").read_text(encoding="utf-8")
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(report.TRAINED.glob("*-v*.json"))]
    for line in report.overview(results):
        assert not line.startswith("|") or line in findings
    for result in results:
        ppo = result["algorithms"]["ppo"]
        for key, signed in (("value", False), ("minus_opponent", True), ("sampled", False)):
            assert report.shown(ppo[key], signed=signed) in findings, (result["env"], key)
    assert report.page(results) == (report.TRAINED / "README.md").read_text(encoding="utf-8")
