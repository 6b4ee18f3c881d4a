"""The benchmark end to end at a tiny size: what it evaluates, that it resumes exactly, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from datasets import classification_probe
from datasets import tiny as tiny_files
from PIL import Image
from safetensors.torch import load_file, save_file
from untrained import save_untrained

from canvit_gym.backbone.hub import asset_dir
from canvit_gym.backbone.load import Backbone
from canvit_gym.benchmark import runner
from canvit_gym.benchmark.records import MANIFEST, RECORDS, RESULTS, load_benchmark, policy_key
from canvit_gym.benchmark.report import MARKDOWN, REPORT, SCENES
from canvit_gym.benchmark.runner import BenchmarkConfig
from canvit_gym.command_line import env_config
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import Evaluation, evaluate
from canvit_gym.perturbations import PERTURBATIONS
from canvit_gym.play.recording import Played, Recorder
from canvit_gym.play.rivals import make_rival
from canvit_gym.policies import make_policy
from canvit_gym.policies.learned import RECORD, LearnedPolicy
from canvit_gym.replay import replay
from canvit_gym.scenes.datasets import suite_ids
from canvit_gym.suite.command import SuiteConfig, wanted_of

NUM_SCENES, BUDGET, ORACLE_SCENES = 10, 3, 6
POLICIES = (
    "coarse_to_fine", "entropy_coarse_to_fine", "center(scale=0.55)", "best_fixed_sequence(num_scenes=8)",
    "greedy_oracle(max_candidates=3)",
)  # fmt: skip

Run = Callable[..., Path]


def save_run(directory: Path, *, seed: int, **kwargs: Any) -> Path:
    """A run directory with a best policy that sees and does something else than the environment's defaults."""
    config = EnvConfig(device="cpu", grid_centers=4, canvas_size=4, budget=BUDGET, **kwargs)
    save_untrained(directory / "best", config, seed=seed)
    return directory


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("runs")
    return "ppo=" + ",".join(str(save_run(root / f"seed{seed}", seed=seed)) for seed in (0, 1))


def tiny_config(output: Path, learned: str) -> BenchmarkConfig:
    return BenchmarkConfig(
        output=output,
        policies=POLICIES,
        learned=(learned,),
        budget=BUDGET,
        seeds=2,
        num_scenes=NUM_SCENES,
        oracle_scenes=ORACLE_SCENES,
        batch_size=4,
        device="cpu",
        progress=False,
    )


@pytest.fixture
def tiny(learned: str) -> BenchmarkConfig:
    return tiny_config(Path("unset"), learned)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, learned: str) -> Path:
    """The output of a benchmark that ran through."""
    output = tmp_path_factory.mktemp("benchmark") / "whole"
    runner.benchmark(tiny_config(output, learned))
    return output


def numbers(output: Path) -> dict[str, Any]:
    """All that does not tell when and by which command it was made."""
    record = json.loads((output / RESULTS).read_text())
    return {name: value for name, value in record.items() if name != "provenance"}


def test_every_policy_and_seed_is_there(whole: Path) -> None:
    record = json.loads((whole / RESULTS).read_text())
    assert list(record["policies"]) == [
        "C2F", "EG-C2F", "center 0.55", "best fixed sequence", "greedy oracle (uses labels)", "ppo", "ppo, sampled",
    ]  # fmt: skip
    assert record["seeds"]["C2F"] == [[0, 1]], "random order: one evaluation per seed"
    assert record["seeds"]["EG-C2F"] == [[0]]
    assert record["seeds"]["ppo"] == [[0], [0]] and record["policies"]["ppo"]["num_runs"] == 2
    assert record["seeds"]["ppo, sampled"] == [[0], [0]], "two training runs share the two seeds"
    assert record["policies"]["greedy oracle (uses labels)"]["num_scenes"] == ORACLE_SCENES
    assert record["oracle"]["num_scenes"] == ORACLE_SCENES and record["num_scenes"] == NUM_SCENES
    assert record["reference"] == "C2F" and "minus_reference" in record["policies"]["ppo"]
    provenance = record["provenance"]
    assert provenance["versions"]["canvit-pytorch"] and provenance["command"] and provenance["machine"]["cores"]
    assert {"backbone_sha256", "probe_sha256"} <= set(record["identity"])
    assert all(len(run["weights_sha256"]) == 64 for run in record["training"]["ppo"])
    assert record["warnings"] and "2 training runs" in record["warnings"][0]


def folder_config(output: Path, **changes: Any) -> BenchmarkConfig:
    """A benchmark on files, of which a smaller number is spread over the split."""
    given = {"root": str(tiny_files("image-folder")), "probe": str(classification_probe(3)), "workers": 0}
    config = BenchmarkConfig(
        output=output, env="CanViT/ImageFolder-v0", env_kwargs=json.dumps({"checkpoint": "nano", **given}),
        policies=("coarse_to_fine", "greedy_oracle(max_candidates=2)"), split="validation", budget=BUDGET,
        seeds=1, oracle_scenes=3, batch_size=4, device="cpu", progress=False,
    )  # fmt: skip
    return replace(config, **changes)


def test_ceilings_and_others_are_paired_on_the_same_files(tmp_path: Path) -> None:
    runner.benchmark(folder_config(tmp_path / "out"))
    benchmark = load_benchmark(tmp_path / "out")
    c2f, oracle = (entry.first for entry in benchmark.entries)
    assert len(c2f.scene) == 12 and oracle.scene.tolist() == [2, 6, 10], "spread over the classes"
    # After the first glimpse, of the whole scene, both have read the same.
    np.testing.assert_allclose(oracle.loss[:, 0], c2f.on(oracle.scene).loss[:, 0], rtol=1e-4)
    found = json.loads((tmp_path / "out" / RESULTS).read_text())["oracle"]["policies"]
    first = [found[entry.label]["cross_entropy"]["value"][0] for entry in benchmark.entries]
    assert first[0] == pytest.approx(first[1], rel=1e-4)
    header, *rows = [line.split(",") for line in (tmp_path / "out" / SCENES).read_text().splitlines()]
    column = header.index(f"{benchmark.entries[1].label} cross-entropy")
    assert [row[0] for row in rows if row[column]] == ["2", "6", "10"]


def test_numbers_are_those_of_a_plain_evaluation(whole: Path) -> None:
    config = EnvConfig(split="test", num_scenes=NUM_SCENES, budget=BUDGET, device="cpu")
    policies = json.loads((whole / RESULTS).read_text())["policies"]
    for spec, label in (("entropy_coarse_to_fine", "EG-C2F"), ("center(scale=0.55)", "center 0.55")):
        result = evaluate(make_policy(spec, config=config, num_glimpses=BUDGET), config=config, batch_size=4)
        np.testing.assert_allclose(policies[label]["score"]["value"], result.score(), rtol=1e-5)
        np.testing.assert_array_equal(policies[label]["gflops"], result.gflops)
    both = [
        evaluate(make_policy("coarse_to_fine", config=config, num_glimpses=BUDGET), config=config, seed=s, batch_size=4)
        for s in (0, 1)
    ]
    np.testing.assert_allclose(policies["C2F"]["score"]["value"], np.mean([r.score() for r in both], axis=0), rtol=1e-5)


def test_pictures_show_what_was_recorded(whole: Path) -> None:
    index = json.loads((whole / "gallery" / "gallery.json").read_text())
    assert index["policy"] == "ppo" and index["reference"] == "C2F" and index["num_scenes"] == ORACLE_SCENES
    assert {shown["kind"] for shown in index["pictures"]} == {"best", "median", "worst"}
    gains = {kind: [s["gain"] for s in index["pictures"] if s["kind"] == kind] for kind in ("best", "median", "worst")}
    assert min(gains["best"]) >= max(gains["median"]) >= min(gains["median"]) >= max(gains["worst"])
    for shown in index["pictures"]:
        pixels = np.asarray(Image.open(whole / "gallery" / shown["file"]).convert("RGB"))
        assert pixels.shape[0] > 400 and pixels.std() > 10
    text = (whole / REPORT).read_text()
    assert text.count("data:image/webp") == len(index["pictures"]) and (whole / MARKDOWN).is_file()
    assert len((whole / SCENES).read_text().splitlines()) == NUM_SCENES + 1


def test_replayed_viewpoints_give_the_recorded_readings(whole: Path) -> None:
    record = load_benchmark(whole).reference.first
    config = EnvConfig(split="test", num_scenes=NUM_SCENES, budget=BUDGET, device="cpu")
    rows = np.array([7, 2])
    for row, moments in zip(rows, replay(record.viewpoints[rows], rows, config=config), strict=True):
        found = [moment.view.score_curve[t + 1] for t, moment in enumerate(moments)]
        assert found == pytest.approx(record.scene_score()[row], abs=1e-3)


class Interrupting:
    """A policy whose evaluation is interrupted on its second batch."""

    def __init__(self, policy: Any) -> None:
        self._policy, self.info, self._batches = policy, policy.info, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def reset(self, episodes: Any, *, seed: int) -> None:
        self._batches += 1
        if self._batches == 2:
            raise KeyboardInterrupt
        self._policy.reset(episodes, seed=seed)


def test_interrupted_benchmark_goes_on_and_ends_the_same(
    tiny: BenchmarkConfig, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(tiny, output=tmp_path / "resumed")
    with monkeypatch.context() as interrupted:
        interrupted.setattr(
            runner,
            "make_policy",
            lambda spec, **kwargs: (Interrupting if spec.startswith("center") else (lambda p: p))(
                make_policy(spec, **kwargs)
            ),
        )
        with pytest.raises(KeyboardInterrupt):
            runner.benchmark(config)
    done = {path.name: path.stat().st_mtime_ns for path in (config.output / RECORDS).iterdir()}
    assert len(done) == 3, "C2F twice, EG-C2F; nothing half-written"
    runner.benchmark(config)
    after = {path.name: path.stat().st_mtime_ns for path in (config.output / RECORDS).iterdir()}
    assert done.items() <= after.items(), "what was there is not computed again"
    assert numbers(config.output) == numbers(whole)
    assert set(after) == {path.name for path in (whole / RECORDS).iterdir()}


def test_same_command_again_evaluates_nothing(
    tiny: BenchmarkConfig, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = numbers(whole)

    def nothing(*_: Any, **__: Any) -> None:
        raise AssertionError("all records are there")

    monkeypatch.setattr(runner, "evaluate", nothing)
    runner.benchmark(replace(tiny, output=whole))
    assert numbers(whole) == before


def test_other_code_or_weights_are_evaluated_anew(
    tiny: BenchmarkConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record is known by all that decides it: other training weights under the same name give another one."""
    run = save_run(tmp_path / "mine", seed=0)
    config = replace(
        tiny, output=tmp_path / "out", policies=("coarse_to_fine", str(run)), learned=(), seeds=1, num_scenes=4
    )
    for after in ("draw_gallery", "write_report"):  # what follows the evaluations is not what this is about
        monkeypatch.setattr(runner, after, lambda *_, **__: tmp_path)
    runner.benchmark(config)
    first = {path.name for path in (config.output / RECORDS).iterdir()}
    assert sorted(name.rsplit("-", 1)[0] for name in first) == [
        "coarse_to_fine-seed0", "mine-run0-seed0", "mine_sampled-run0-seed0",
    ]  # fmt: skip
    save_run(run, seed=5)
    runner.benchmark(config)
    second = {path.name for path in (config.output / RECORDS).iterdir()}
    assert len(second) == 3 and len(first & second) == 1, "the hand-coded one is kept, the others are replaced"
    monkeypatch.setattr(runner, "code_sha256", lambda: "other code")
    runner.benchmark(config)
    third = {path.name for path in (config.output / RECORDS).iterdir()}
    assert len(third) == 3 and not second & third


def test_default_policies_leave_out_what_does_not_fit(tiny: BenchmarkConfig, tmp_path: Path) -> None:
    env_id = "CanViT/FashionClassification-v0"
    config = replace(tiny, output=tmp_path / "out", policies=None, learned=(), env=env_id)
    env = replace(env_config(env_id, {}), split="test", num_scenes=4, budget=BUDGET, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "make_policy", _without_search)
        planned = runner.plan(config, env)
    specs = [entry.spec for entry in planned.entries]
    assert "coarse_to_fine" in specs and "entropy_greedy" not in specs
    skill = suite_ids()[env_id]
    assert {*skill.opponents, skill.ceiling} <= {*specs}, "with the scales that the suite found"
    assert planned.left_out == [
        "Left out (needs a segmentation probe): entropy_coarse_to_fine, entropy_greedy, quadtree_beam."
    ]


def test_a_canvas_that_does_not_fit_is_a_reason_of_its_own() -> None:
    backbone = cast(Backbone, SimpleNamespace(canvas_grid=20))
    specs = ("coarse_to_fine", "entropy_coarse_to_fine", "quadtree_beam")
    supported, left_out = runner._supported(specs, "segmentation", backbone)
    assert supported == ("coarse_to_fine",)
    assert left_out == [
        "Left out (for canvas grids that are a power of two, not 20): entropy_coarse_to_fine, quadtree_beam."
    ]


def _without_search(spec: str, **kwargs: Any) -> Any:
    return make_policy("coarse_to_fine" if spec == "best_fixed_sequence" else spec, **kwargs)


def test_left_out_policies_are_told_in_the_report(
    tiny: BenchmarkConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "DEFAULT_POLICIES", ("coarse_to_fine", "quadtree_beam"))
    config = replace(
        tiny, output=tmp_path / "out", policies=None, learned=(), env="CanViT/FashionClassification-v0", num_scenes=4
    )
    report = runner.benchmark(config)
    assert "<p>Left out (needs a segmentation probe): quadtree_beam.</p>" in report.read_text()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown policy": ({"policies": ("coarse_to_fin",)}, "did you mean 'coarse_to_fine'"),
    "unknown argument": ({"policies": ("center(size=1)",)}, "no argument size; it takes scale"),
    "unsupported task": (
        {"policies": ("coarse_to_fine", "entropy_greedy"), "env": "CanViT/FashionClassification-v0"},
        "needs a segmentation probe, which the task classification does not have; choose another policy",
    ),
    "no policies": ({"policies": ()}, "no policies to benchmark: name some with --policies"),
    "policy twice": ({"policies": ("coarse_to_fine", "coarse_to_fine")}, "given twice"),
    "reference is not there": ({"policies": ("random",)}, "reference 'coarse_to_fine' is not among the policies"),
    "reference uses labels": (
        {"policies": ("greedy_oracle(max_candidates=2)",), "reference": "greedy_oracle(max_candidates=2)"},
        "uses labels",
    ),
    "no scenes": ({"num_scenes": 0}, "num_scenes must be .*>= 1, got 0"),
    "no oracle scenes": ({"oracle_scenes": 0}, "--oracle-scenes must be an integer >= 1"),
    "no seeds": ({"seeds": 0}, "--seeds must be an integer >= 1"),
    "no batch": ({"batch_size": 0}, "--batch-size must be an integer >= 1"),
    "no budget": ({"budget": 0}, "budget must be .*>= 1"),
    "unknown environment": ({"env": "CanViT/Moon-v0"}, "unknown environment 'CanViT/Moon-v0'; there are"),
    "bad JSON": ({"env_kwargs": "{"}, "--env-kwargs must be a JSON object"),
    "learned without name": ({"learned": ("runs/a,runs/b",)}, "--learned takes name=directory,directory"),
    "no such directory": ({"policies": ("coarse_to_fine", "runs/nowhere/best")}, "no directory runs.nowhere.best"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(tiny: BenchmarkConfig, tmp_path: Path, case: str) -> None:
    changed, message = BAD[case]
    config = replace(tiny, **{"output": tmp_path / "out", "policies": ("coarse_to_fine",), "learned": (), **changed})
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        runner.benchmark(config)
    assert not list((tmp_path / "out").glob("records/*")), "nothing is evaluated before all is known to be right"


def test_gallery_policy_must_be_there(tiny: BenchmarkConfig, whole: Path, tmp_path: Path) -> None:
    alone = replace(tiny, output=tmp_path, policies=("coarse_to_fine",), learned=(), gallery_policy="Nobody")
    with pytest.raises(ValueError, match="'Nobody' is not in this benchmark; there are: none beside the reference"):
        runner.benchmark(alone)
    assert not list(tmp_path.iterdir()), "nothing was evaluated"
    with pytest.raises(ValueError, match=r"gallery policy 'Nobody' is not in this benchmark; there are: EG-C2F"):
        runner.benchmark(replace(tiny, output=whole, gallery_policy="Nobody"))
    with pytest.raises(ValueError, match="is the reference: choose another"):
        runner.benchmark(replace(tiny, output=whole, gallery_policy="C2F"))


def test_a_directory_with_brackets_is_a_policy_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_run(tmp_path / "run(1)", seed=0)
    monkeypatch.chdir(tmp_path)
    env = EnvConfig(split="test", num_scenes=4, device="cpu", budget=BUDGET)
    for name in ("run(1)", str(tmp_path / "run(1)")):
        assert isinstance(runner.evaluable(name, env).policy, LearnedPolicy)
        assert isinstance(make_rival(name, env).policy, LearnedPolicy)
        suite = SuiteConfig(output=tmp_path / "out", policies=(name,), device="cpu")
        assert wanted_of(suite).policies == (name,)


def test_run_of_another_environment_is_refused(tiny: BenchmarkConfig, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", seed=0)
    config = replace(tiny, output=tmp_path / "out", learned=(), env="CanViT/FashionClassification-v0")
    with pytest.raises(ValueError, match=r"trained on .*'fashion-segmentation'.*this benchmark is on"):
        runner.benchmark(replace(config, policies=("coarse_to_fine", str(run))))


def test_run_of_another_checkpoint_is_refused(tiny: BenchmarkConfig, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", seed=0)
    path = run / "best" / RECORD
    record = json.loads(path.read_text())
    record["inputs"]["backbone_sha256"] = "0" * 64
    path.write_text(json.dumps(record))
    config = replace(tiny, output=tmp_path / "out", learned=(f"mine={run}",), policies=("coarse_to_fine",))
    with pytest.raises(ValueError, match=r"the backbone: trained on sha256 0000"):
        runner.benchmark(config)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"num_scenes": 12}, "num_scenes: 10 there, 12 now"),
        ({"budget": 4}, "config.budget: 3 there, 4 now"),
        ({"split": "validation"}, "config.split: 'test' there, 'validation' now"),
        ({"env": "CanViT/FashionClassification-v0", "learned": ()}, "probe_sha256"),
    ],
)
def test_directory_of_another_benchmark_is_refused(
    tiny: BenchmarkConfig, whole: Path, changed: dict[str, Any], field: str
) -> None:
    before = (whole / MANIFEST).read_bytes()
    with pytest.raises(ValueError, match=f"records of another benchmark.*{field}.*another --output"):
        runner.benchmark(replace(tiny, output=whole, **changed))
    assert (whole / MANIFEST).read_bytes() == before


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenes as a person may have played them."""
    path = tmp_path_factory.mktemp("played") / "human.npz"
    config = EnvConfig(split="test", num_scenes=NUM_SCENES, budget=BUDGET, device="cpu")
    recorder = Recorder(path, config, num_scenes=NUM_SCENES)
    for scene in (4, 1, 2):
        viewpoints = np.array([(0, 0, 1), (-0.5, 0.5, 0.5), (0.5, 0.5, 0.25)], dtype=np.float32)
        recorder.add(Played(scene=scene, viewpoints=viewpoints, seconds=(0, 1.5, 2)))
    return path


def test_people_are_compared_on_the_scenes_that_they_played(played: Path, tmp_path: Path) -> None:
    config = BenchmarkConfig(
        output=tmp_path / "out", policies=("coarse_to_fine", "center(scale=0.55)"), also=(f"human={played}",),
        budget=BUDGET, num_scenes=NUM_SCENES, device="cpu", progress=False,
    )  # fmt: skip
    report = runner.benchmark(config).read_text()
    assert "People: human" in report and "intervals over scenes, which are too narrow with so few" in report
    done = load_benchmark(tmp_path / "out")
    (people,) = json.loads((tmp_path / "out" / RESULTS).read_text())["people"]
    assert people["label"] == "human" and people["num_scenes"] == 3
    human, center = done.people[0].first, done.entries[1]
    expected = human.score()[-1] - center.first.score(human.scene)[-1]
    difference = people["policies"][center.label]["people_minus"]["score"]
    assert difference["value"][-1] == pytest.approx(expected, abs=1e-5)
    low, high = (bound[-1] for bound in difference["interval"])
    assert low <= difference["value"][-1] <= high and low < high


def test_people_on_other_files_are_refused(tmp_path: Path) -> None:
    config = folder_config(tmp_path / "out", policies=("coarse_to_fine",), also=(f"human={tmp_path / 'human.npz'}",))
    few = replace(config.env_config(), num_scenes=6)
    recorder = Recorder(tmp_path / "human.npz", few, num_scenes=6)
    viewpoints = np.tile(np.array([0, 0, 1], dtype=np.float32), (BUDGET, 1))
    recorder.add(Played(scene=1, viewpoints=viewpoints, seconds=(0, 1, 1)))
    with pytest.raises(ValueError, match=r"something else than this benchmark is on: scenes: '.*6 of 12' there"):
        runner.benchmark(config)
    assert runner.benchmark(replace(config, num_scenes=6)).is_file()


def test_records_of_policies_are_not_people(played: Path, tmp_path: Path) -> None:
    config = EnvConfig(split="test", num_scenes=NUM_SCENES, budget=BUDGET, device="cpu")
    policy = make_policy("center", config=config, num_glimpses=BUDGET)
    evaluate(policy, config=config, perturbations=[PERTURBATIONS["darker"]]).save(tmp_path / "policy.npz")
    record = Evaluation.load(played)
    perturbed = record.record | {"perturbations": [PERTURBATIONS["darker"].record()]}
    replace(record, record=perturbed).save(tmp_path / "perturbed.npz")
    for name, words in (
        ("policy", "record of a policy, 'center', not of people: name a file that canvit-gym play --record"),
        ("perturbed", r"recorded under perturbations \(brightness\)"),
    ):
        benchmarked = BenchmarkConfig(
            output=tmp_path / "out", policies=("coarse_to_fine",), also=(f"human={tmp_path / name}.npz",),
            budget=BUDGET, num_scenes=NUM_SCENES, device="cpu", progress=False,
        )  # fmt: skip
        with pytest.raises(ValueError, match=words):
            runner.benchmark(benchmarked)


def test_people_of_something_else_are_refused(played: Path, tmp_path: Path) -> None:
    config = BenchmarkConfig(
        output=tmp_path / "out", policies=("coarse_to_fine",), also=(f"human={played}",), budget=BUDGET + 1,
        num_scenes=NUM_SCENES, device="cpu", progress=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="something else than this benchmark is on: budget: 3 there, 4 here"):
        runner.benchmark(config)
    with pytest.raises(FileNotFoundError, match="no evaluation at"):
        runner.benchmark(replace(config, also=("human=nothing.npz",)))
    with pytest.raises(ValueError, match="none of the benchmark's scenes"):
        runner.benchmark(replace(config, budget=BUDGET, num_scenes=1))


@pytest.mark.parametrize(("name", "value"), [("canvas_grid", 8), ("precision", "bfloat16"), ("scene_size_px", 64)])
def test_people_of_another_canvas_are_refused(played: Path, tmp_path: Path, name: str, value: object) -> None:
    """The same weights read the same viewpoints otherwise."""
    record = Evaluation.load(played)
    checkpoint = record.record["checkpoint"] | {name: value}
    replace(record, record=record.record | {"checkpoint": checkpoint}).save(tmp_path / "other.npz")
    config = BenchmarkConfig(
        output=tmp_path / "out", policies=("coarse_to_fine",), also=(f"human={tmp_path / 'other.npz'}",),
        budget=BUDGET, num_scenes=NUM_SCENES, device="cpu", progress=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match=f"than this benchmark is on: {name}: {value!r} there, .* here. Choose the"):
        runner.benchmark(config)


def test_records_depend_on_the_probe_that_a_policy_reads(tmp_path: Path) -> None:
    probe = tmp_path / "probe"
    shutil.copytree(asset_dir("nano-segmentation-probe"), probe)
    spec = f"item_probability(probe={str(probe)!r})"
    before, shipped = policy_key(spec), policy_key("item_probability")
    assert before["probe_sha256"] == shipped["probe_sha256"]
    weights = load_file(probe / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, probe / "model.safetensors")
    assert policy_key(spec) != before
