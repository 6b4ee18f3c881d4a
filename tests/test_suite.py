"""`canvit-gym suite` at a tiny size: what it measures, that it goes on, what it shows and what it refuses."""

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

import numpy as np
import pytest
from untrained import save_untrained

import canvit_gym
from canvit_gym import cli
from canvit_gym.benchmark.records import NOT_EVALUATING, RECORDS
from canvit_gym.command_line import env_config
from canvit_gym.evaluation import Evaluation, evaluate
from canvit_gym.perturbations import PERTURBATIONS
from canvit_gym.policies import make_policy, search_fixed_sequence
from canvit_gym.policies.learned import load_record
from canvit_gym.scenes.datasets import DATASETS, suite_ids
from canvit_gym.statistics import area_under_curve, bootstrap_interval
from canvit_gym.stopping import (
    AT_RANDOM,
    OWN_ACTION,
    WHEN_RIGHT,
    at_confidence,
    at_random,
    evaluate_with_stops,
    stopped_return,
    stops_when_right,
)
from canvit_gym.suite import run
from canvit_gym.suite.command import MANIFEST, RESULTS, SuiteConfig, identity_of, run_suite, wanted_of
from canvit_gym.suite.numbers import BEST, radar_shares
from canvit_gym.suite.page import HTML, MARKDOWN, NO_SHARES, RADAR, write_pages
from canvit_gym.suite.payoff import payoff_of
from canvit_gym.suite.plan import make_plan, misfit, skills_table
from canvit_gym.suite.radar import radar_figure
from canvit_gym.suite.run import summary

CLASSIFICATION, STOP, ORDER, SEARCH = (
    f"CanViT/Fashion{name}-v0" for name in ("Classification", "Stop", "Order", "Search")
)
SHIPPED = "FashionClassification-v0/ppo"
NUM, FEW = 8, 5
HEADROOM = Path(__file__).parents[1] / "experiments" / "results" / "suite_headroom"
NASTY = "a<b>|_c_"
"""The name of a training run: markup of both kinds."""


@pytest.fixture(scope="module")
def stopping_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = env_config(STOP, {"device": "cpu", "grid_centers": 4, "canvas_size": 4})
    return save_untrained(tmp_path_factory.mktemp("runs") / NASTY, config, env_id=STOP)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, stopping_run: Path) -> SuiteConfig:
    """A suite that ran through."""
    made = SuiteConfig(
        output=tmp_path_factory.mktemp("suite") / "whole", envs=(CLASSIFICATION, STOP),
        policies=("saliency(scale=0.4)", SHIPPED, str(stopping_run)), perturbations=("dropped",),
        num_scenes=NUM, perturbed_scenes=FEW, seeds=2, workers=0, device="cpu", progress=False,
    )  # fmt: skip
    run_suite(made)
    return made


@pytest.fixture(scope="module")
def results(config: SuiteConfig) -> dict[str, Any]:
    return read(config)


def read(config: SuiteConfig) -> dict[str, Any]:
    """All that does not tell when and by which command it was made."""
    found = json.loads((config.output / RESULTS).read_text())
    return {name: value for name, value in found.items() if name != "provenance"}


def test_every_policy_is_there(results: dict[str, Any]) -> None:
    policies = {env_id: found["policies"] for env_id, found in results["environments"].items()}
    roles = {label: p["role"] for label, p in policies[CLASSIFICATION].items()}
    assert roles == {
        "random": "baseline", "saliency(scale=0.4)": "opponent", SHIPPED: "trained", NASTY: "transfer",
        "box_locator(factor=1.0, jitter=0.2)": "ceiling",
    }  # fmt: skip
    assert [label.rpartition(", ")[2] for label in policies[STOP]] == [
        "stops at random", "stops at confidence 0.8", "told when the reading is right", "stops by its own action",
    ]  # fmt: skip
    assert results["environments"][STOP]["misfits"] == {SHIPPED: "it has no stop action"}
    assert policies[CLASSIFICATION]["random"]["seeds"] == [0, 1]
    assert policies[CLASSIFICATION][SHIPPED]["seeds"] == [0]
    perturbed = {label for label, p in policies[CLASSIFICATION].items() if p["perturbed"]}
    assert perturbed == {"random", SHIPPED}, "the baseline, the best opponent (not asked for here), trained policies"
    assert results["perturbations"] == {"dropped": PERTURBATIONS["dropped"].effect}


def test_numbers_are_those_of_plain_evaluations(results: dict[str, Any]) -> None:
    policies = results["environments"][CLASSIFICATION]["policies"]
    env = env_config(CLASSIFICATION, {"split": "test", "num_scenes": NUM, "device": "cpu"})
    policy = make_policy("random", config=env, num_glimpses=env.budget)
    both = [evaluate(policy, config=env, seed=seed) for seed in (0, 1)]
    assert policies["random"]["score"]["value"] == pytest.approx(np.mean([e.score()[-1] for e in both]), rel=1e-5)
    few = replace(env, num_scenes=FEW)
    dropped = evaluate(policy, config=few, perturbations=[PERTURBATIONS["dropped"]]).score()[-1]
    found = policies["random"]["perturbed"]["dropped"]
    assert found["num_scenes"] == FEW and found["score"]["value"] == pytest.approx(dropped)
    assert found["difference"]["value"] == pytest.approx(dropped - both[0].first(FEW).score()[-1])

    stop = results["environments"][STOP]
    told = next(p for p in stop["policies"].values() if p["role"] == "ceiling")
    env = env_config(STOP, {"split": "test", "num_scenes": NUM, "device": "cpu"})
    scores = evaluate(make_policy(told["source"], config=env, num_glimpses=env.budget), config=env).scene_score()
    stops = stops_when_right(scores)
    assert told["score"]["value"] == pytest.approx(stopped_return(scores, stops, 0.02).mean(), rel=1e-5)
    assert told["glimpses"] == pytest.approx(stops.mean())
    random = next(p for p in stop["policies"].values() if p["role"] == "baseline")
    assert 1 < random["glimpses"] < env.budget


def test_perturbations_are_tried_on_some_of_the_same_scenes(config: SuiteConfig) -> None:
    lines = [line for part in make_plan(wanted_of(config)).parts for line in part.lines if line.perturbed]
    assert lines
    for line in lines:
        job = line.perturbed["dropped"]
        assert job.max_scenes == FEW and job.config == line.jobs[0].config and line.jobs[0].max_scenes is None
        assert job.num_glimpses == FEW * job.config.budget


def test_a_policy_of_another_file_has_another_record(config: SuiteConfig, tmp_path: Path) -> None:
    path = tmp_path / "sequence.json"
    spec = f"best_fixed_sequence(path={str(path)!r})"
    candidates = np.array([(0, 0, 1), (0.5, 0.5, 0.5), (-0.5, 0.5, 0.5)], dtype=np.float32)
    env = env_config(CLASSIFICATION, {"split": "test", "num_scenes": NUM, "device": "cpu"})
    found = search_fixed_sequence(env, env.budget, num_scenes=2, candidates=candidates)
    wanted = wanted_of(replace(config, envs=(CLASSIFICATION,), policies=(spec,), perturbations=("none",)))

    def record() -> Path:
        (line,) = [line for line in make_plan(wanted).parts[0].lines if line.role == "opponent"]
        return line.jobs[0].path

    found.save(path)
    before = record()
    assert before == record()
    replace(found, viewpoints=found.viewpoints[::-1]).save(path)
    assert before != record()
    path.unlink()
    with pytest.raises(FileNotFoundError, match="there is no file"):
        make_plan(wanted)


def test_random_stops_are_even() -> None:
    rule = at_random(seed=0)
    config = env_config(STOP, {"split": "test", "num_scenes": 4, "device": "cpu"})

    class Episodes:
        scene, num, budget = np.arange(900), 900, config.budget

    asked = np.stack([rule(t, Episodes()) for t in range(config.budget)])  # type: ignore[arg-type]
    counts = np.bincount(asked.argmax(axis=0), minlength=9)
    assert asked[-1].all() and counts.min() > 70 and counts.max() < 130


def test_stops_are_recorded_by_code_that_the_records_name() -> None:
    """All that decides what a record holds is in the hash that its key contains."""
    root = Path(canvit_gym.__file__).parent
    for function in (evaluate_with_stops, at_random, evaluate):
        path = Path(inspect.getfile(function)).relative_to(root).as_posix()
        assert not path.startswith(NOT_EVALUATING)


def test_ways_to_stop() -> None:
    env = env_config(STOP, {"split": "test", "num_scenes": 4, "device": "cpu", "budget": 3})
    policy = make_policy("random", config=env, num_glimpses=3)
    plain = evaluate(policy, config=env)
    expected = {
        WHEN_RIGHT: stops_when_right(plain.scene_score()), at_confidence(0): np.full(4, 1),
        at_confidence(np.inf): np.full(4, 3),
    }  # fmt: skip
    for stop, glimpses in expected.items():
        found = evaluate_with_stops(policy, stop=stop, config=env)
        assert found.stops is not None and found.stops.tolist() == glimpses.tolist()
        assert replace(found, stops=None) == plain
    assert evaluate_with_stops(policy, stop=AT_RANDOM, config=env, max_scenes=2).stops is not None
    with pytest.raises(ValueError, match=r"unknown way to stop 'when left'; choose .* or 'at confidence 0.5'"):
        evaluate_with_stops(policy, stop="when left", config=env)
    for nonsense in ("0.5", "at confidence nan", "at confidence high", 0.5):
        with pytest.raises(ValueError, match="unknown way to stop"):
            evaluate_with_stops(policy, stop=cast(str, nonsense), config=env)
    dense = env_config("CanViT/FashionSegmentation-v0", {"split": "test", "num_scenes": 4, "device": "cpu"})
    with pytest.raises(
        ValueError, match="only classifications have a confidence to stop at, not 'fashion-segmentation'"
    ):
        evaluate_with_stops(policy, stop=at_confidence(0.5), config=dense)
    assert at_confidence(0.9999999) == "at confidence 0.9999999"
    with pytest.raises(TypeError, match="only learned policies stop 'by its own action', not 'random'"):
        evaluate_with_stops(policy, stop=OWN_ACTION, config=env)


class _Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_pages_show_names_as_they_are_and_load_nothing(config: SuiteConfig) -> None:
    page = _Texts()
    page.feed((config.output / HTML).read_text())
    assert NASTY in page.text and "b" not in page.tags and "script" not in page.tags
    assert all(
        not (value or "").startswith(("http", "//")) for name, value in page.attributes if name in ("src", "href")
    )
    text = (config.output / MARKDOWN).read_text()
    assert r"a\<b>\|\_c\_" in text and "does not fit" in text
    assert "## FashionStop-v0: when to stop" in text and "### Under perturbations" in text


def test_shares_and_radar(config: SuiteConfig, results: dict[str, Any], tmp_path: Path) -> None:
    """With leads that are clear, as eight scenes hardly have: a ceiling at 0.9, a baseline at 0.5."""
    made = json.loads((config.output / RESULTS).read_text())
    policies = made["environments"][CLASSIFICATION]["policies"]
    for label, share in (("random", 0), ("saliency(scale=0.4)", 0.25), (SHIPPED, 1.2)):
        policies[label]["share"] = {"value": share, "interval": [share - 0.1, share + 0.1]}
    made["radar"] = {"saliency": {"fine detail": 0.25, "when to stop": -3.0}, NASTY: {"fine detail": 1.2}}
    write_pages(made, tmp_path)
    text = (tmp_path / MARKDOWN).read_text()
    assert "| saliency | 25 | −300 |" in text and "25 [15, 35]" in text and f"]({RADAR})" in text
    drawing = ElementTree.parse(tmp_path / RADAR)
    assert NASTY in "".join(drawing.getroot().itertext())
    assert "data:image/svg+xml;base64" in (tmp_path / HTML).read_text()
    write_pages(made | {"radar": {}}, tmp_path)
    for page in (MARKDOWN, HTML):
        assert "Shares at a glance" in (text := (tmp_path / page).read_text()) and NO_SHARES in text
    policies["saliency(scale=0.4)"]["share"]["value"] = 0.25
    made["environments"][CLASSIFICATION]["best_opponent"] = "saliency(scale=0.4)"
    assert radar_shares(made["environments"]) == {
        "ppo": {"fine detail": 1.2}, BEST: {"fine detail": 0.25}, "saliency": {"fine detail": 0.25},
    }  # fmt: skip
    skills = [skill.name for skill in suite_ids().values()]
    assert len(skills) == len(set(skills)) > 7
    assert "<svg" in radar_figure({"one": dict.fromkeys(skills, 0.5)}, skills)


def test_a_finished_suite_computes_nothing(
    config: SuiteConfig, results: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "evaluate", lambda *args, **kwargs: pytest.fail("evaluated again"))
    run_suite(config)
    assert read(config) == results


def test_an_interrupted_suite_goes_on_in_other_processes(
    config: SuiteConfig, results: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ctrl-C keeps what is done; what is missing is computed by a worker, to the same numbers; more may be added."""
    done: list[Path] = []
    do = run.do

    def interrupted(job: Any, *, batch_size: int) -> Evaluation:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(job.path)
        return do(job, batch_size=batch_size)

    # No trained policies and one environment: this is about what is kept.
    small = replace(
        config, output=tmp_path / "small", envs=(CLASSIFICATION,), policies=("saliency(scale=0.4)",), seeds=1,
        perturbations=("none",),
    )  # fmt: skip
    monkeypatch.setattr(run, "do", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_suite(small)
    monkeypatch.undo()
    kept = {path: path.stat().st_mtime_ns for path in done}
    assert len(list((small.output / RECORDS).rglob("*.npz"))) == 2 and not (small.output / RESULTS).exists()
    run_suite(replace(small, workers=1))
    assert {path: path.stat().st_mtime_ns for path in done} == kept
    one, other = (found["environments"][CLASSIFICATION]["policies"] for found in (read(small), results))
    assert one["saliency(scale=0.4)"]["score"] == other["saliency(scale=0.4)"]["score"]


OWN_MODULE = """
from dataclasses import dataclass, replace
import canvit_gym
from canvit_gym.perturbations import PERTURBATIONS, Brightness
from canvit_gym.scenes.datasets import DATASETS, Skill

class Dusk(Brightness):
    name = "dusk"

skill = Skill(name="mine", opponents=("saliency(scale=0.4)",), ceiling="box_locator(factor=1.0, jitter=0.2)")
spec = replace(DATASETS["fashion-classification"], name="garments", env_id="Mine/Garments-v0", skill=skill)
canvit_gym.register_dataset(spec)
PERTURBATIONS["dusk"] = Dusk(factor=0.2)
"""


def test_an_environment_and_a_perturbation_of_a_module_that_is_named(tmp_path: Path) -> None:
    """Also in the processes that evaluate."""
    (tmp_path / "mine.py").write_text(OWN_MODULE, encoding="utf-8")
    command = [
        sys.executable, "-m", "canvit_gym.cli", "suite", "--output", "suite", "--envs", "mine:Mine/Garments-v0",
        "--policies", "hand-coded", "--perturbations", "dusk", "--num-scenes", "4", "--perturbed-scenes", "2",
        "--seeds", "1", "--workers", "1", "--device", "cpu", "--no-progress",
    ]  # fmt: skip
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300, stdout=subprocess.DEVNULL)
    found = json.loads((tmp_path / "suite" / RESULTS).read_text(encoding="utf-8"))["environments"]
    assert list(found) == ["Mine/Garments-v0"]
    opponent = found["Mine/Garments-v0"]["policies"]["saliency(scale=0.4)"]
    assert list(opponent["perturbed"]) == ["dusk"]


Change = Callable[[SuiteConfig], SuiteConfig]


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda c: replace(c, envs=("CanViT/ADE20K-v0",)),
            "ADE20K-v0 is no environment of the suite; there are: CanViT/",
        ),
        (lambda c: replace(c, envs=(STOP, STOP)), f"--envs names {STOP} twice"),
        (lambda c: replace(c, policies=("centre",)), "unknown policy 'centre'"),
        (lambda c: replace(c, policies=("FashionNo-v0/ppo",)), "no shipped policy of that name"),
        (lambda c: replace(c, perturbations=("fog",)), "unknown perturbation 'fog'; there are: dropped"),
        (lambda c: replace(c, perturbations=("all", "noisy")), "takes 'all' alone, or names"),
        (lambda c: replace(c, num_scenes=0), "--num-scenes must be at least 1, got 0"),
        (lambda c: replace(c, seeds=0), "--seeds must be at least 1, got 0"),
        (lambda c: replace(c, workers=-1), "--workers must be at least 0, got -1"),
    ],
)
def test_bad_options_are_refused_before_any_work(config: SuiteConfig, change: Change, message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        wanted_of(change(config))


def test_errors_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    for arguments, message in (
        (("--output", "out", "--envs", "CanViT/Nowhere-v0"), "error: CanViT/Nowhere-v0 is no environment of the suite"),
        (("--output", "out", "--perturbations", "fog"), "error: unknown perturbation 'fog'"),
        (("--output", str(in_the_way)), "error: --output "),
    ):
        with pytest.raises(SystemExit, match=message) as end:
            cli.main(["suite", *arguments])
        assert "\n" not in str(end.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_records_of_another_suite_are_refused(config: SuiteConfig) -> None:
    before = (config.output / MANIFEST).read_text()
    with pytest.raises(ValueError, match="num_scenes: 8 there, 9 now"):
        run_suite(replace(config, num_scenes=9))
    assert (config.output / MANIFEST).read_text() == before
    (config.output / MANIFEST).write_text("{")
    try:
        with pytest.raises(ValueError, match="is damaged"):
            run_suite(config)
    finally:
        (config.output / MANIFEST).write_text(before)


def test_what_an_environment_pays() -> None:
    env = env_config(ORDER, {"split": "test", "num_scenes": 4, "device": "cpu"})
    found = evaluate(make_policy("random_order", config=env, num_glimpses=env.budget), config=env)
    area = bootstrap_interval(payoff_of(env).statistic([found]), resamples=2).value
    assert (
        area == pytest.approx(area_under_curve(found.score())) and payoff_of(env).name == "area under the score's curve"
    )
    elsewhere = env_config(
        "CanViT/FashionSegmentation-v0", {"revisit": False}
    )  # forbidding returns does not change what pays
    last = bootstrap_interval(payoff_of(elsewhere).statistic([found]), resamples=2).value
    assert last == pytest.approx(found.score()[-1])


def test_stops_are_kept_with_an_evaluation(config: SuiteConfig) -> None:
    path = next((config.output / RECORDS / "FashionStop-v0").glob("random*seed0-????????????.npz"))
    found = Evaluation.load(path)
    assert found.stops is not None and found.stops.shape == (NUM,) and found.stops.max() <= found.loss.shape[1]
    few = found.choose(np.array([3, 1]))
    assert few.stops is not None and few.stops.tolist() == found.stops[[3, 1]].tolist()
    paid = 100 * payoff_of(env_config(STOP, {})).value(found)
    assert (
        summary(found, env_config(STOP, {}))
        == f"top-1 {paid:.1f} %, score where the episode stops, minus 0.02 a glimpse"
    )


def test_misfits_are_told(stopping_run: Path) -> None:
    shipped, stopping = load_record(SHIPPED), load_record(stopping_run)
    assert misfit(shipped, env_config(CLASSIFICATION, {})) is None
    assert misfit(stopping, env_config(CLASSIFICATION, {})) is None
    assert misfit(shipped, env_config(STOP, {})) == "it has no stop action"
    assert "another table" in str(misfit(shipped, env_config(ORDER, {})))
    assert misfit(shipped, env_config(SEARCH, {})) == "the task is read in another shape"
    assert misfit(shipped, env_config("CanViT/FashionOdd-v0", {})) == "it sees what another probe reads"


def test_a_policy_that_sees_no_goal_may_search(tmp_path: Path) -> None:
    env = env_config("CanViT/FashionCrowd-v0", {"device": "cpu", "grid_centers": 4, "canvas_size": 4})
    directory = save_untrained(tmp_path / "crowd", env, env_id="CanViT/FashionCrowd-v0")
    search = env_config(SEARCH, {})
    assert misfit(load_record(directory), search) is None
    goal = env_config(SEARCH, {"device": "cpu", "grid_centers": 4, "canvas_size": 4})
    seeking = save_untrained(tmp_path / "search", goal, env_id=SEARCH)
    assert "goal" in str(misfit(load_record(seeking), env))
    config = SuiteConfig(
        output=tmp_path / "out", envs=(SEARCH,), policies=(str(directory),), perturbations=("none",), num_scenes=4,
        workers=0, device="cpu", progress=False,
    )  # fmt: skip
    (part,) = make_plan(wanted_of(config)).parts
    (line,) = [line for line in part.lines if line.role == "transfer"]
    assert run.do(line.jobs[0], batch_size=4).loss.shape == (4, part.config.budget)


@pytest.mark.parametrize("env_id", suite_ids())
def test_skills_name_what_the_study_chose(env_id: str) -> None:
    """The scales of the wheel's table are those that experiments/studies/suite_headroom.py found best."""
    path = HEADROOM / f"{env_id.rpartition('/')[2]}.json"
    study = json.loads(path.read_text(encoding="utf-8"))
    skill = suite_ids()[env_id]
    opponent, _, stops = study["opponent"].partition(", stops at confidence ")
    assert skill.opponents[0] == opponent and (skill.stop_confidence is None or f"{skill.stop_confidence:g}" == stops)
    ceiling, _, told = study["ceiling"].partition(", told when the reading is right")
    assert skill.ceiling == ceiling and skill.ceiling_stops_when_right == (", told" in study["ceiling"]) and not told
    told_where = study["on_training_scenes"]["ceilings"]
    assert skill.locator == (max(told_where, key=told_where.get) if skill.ceiling_stops_when_right else None)


def test_the_table_of_skills_distinguishes_every_policy() -> None:
    """FashionStop's ceiling looks where its best opponent does, and is told when to stop."""
    rows = [line.strip("| ").split(" | ") for line in skills_table().splitlines()[2:]]
    assert [row[0] for row in rows] == [env_id.removeprefix("CanViT/") for env_id in suite_ids()]
    for *_, baseline, ceiling, opponents in rows:
        names = [baseline, ceiling, *opponents.split("; ")]
        assert len(set(names)) == len(names), names
    _, _, baseline, ceiling, opponents = rows[-1]
    assert baseline == "`random, stops at random`" and ceiling.endswith(", told when the reading is right`")
    assert "`coarse_to_fine, stops at confidence 0.8`" in opponents


def test_every_skill_can_be_measured() -> None:
    for spec in DATASETS.values():
        if (skill := spec.skill) is not None:
            env = env_config(spec.env_id, {"split": "test", "num_scenes": 2, "device": "cpu"})
            for name in (skill.baseline, skill.ceiling, *skill.opponents):
                if name != "dependency_rank":  # searches training scenes
                    make_policy(name, config=env, num_glimpses=env.budget)
            assert env.allow_stop == (skill.stop_confidence is not None), spec.env_id


def test_identity_holds_no_directory(config: SuiteConfig) -> None:
    origin = {"versions": dict.fromkeys(("canvit-gym", "canvit-pytorch", "torch", "numpy"), "1")}
    assert set(identity_of(wanted_of(config), origin)) == {
        "split", "num_scenes", "perturbed_scenes", "device", "versions",
    }  # fmt: skip
