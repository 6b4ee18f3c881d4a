"""Exact evaluation agrees with canvit-pytorch's own rollouts and metrics."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from canvit_pytorch import RecurrentState
from canvit_pytorch.benchmarks.ade20k import MeanIoU
from canvit_pytorch.episode import run_episode
from canvit_pytorch.flops import glimpse_flops, segmentation_probe_flops
from canvit_pytorch.policies import PolicyName, make_policy
from canvit_pytorch.preprocess import imagenet_normalize
from datasets import classification_probe, segmentation_probe, tiny

from canvit_gym import evaluation
from canvit_gym.assembly import build_backbone, build_scenes, build_task
from canvit_gym.config import EnvConfig
from canvit_gym.episodes import EpisodeBatch
from canvit_gym.evaluation import (
    Evaluation,
    evaluate,
    loss_statistic,
    record_views,
    require_same_scenes,
    score_statistic,
)
from canvit_gym.observations import ObservationKey
from canvit_gym.policies import GreedyOracle, PaperPolicy, PolicyInfo, Seen, oracle_candidates
from canvit_gym.scenes.prepared import FashionScenes
from canvit_gym.scenes.source import SceneBatch
from canvit_gym.seeding import seeded
from canvit_gym.statistics import bootstrap_interval
from canvit_gym.tasks.classification import ClassificationTask
from canvit_gym.tasks.segmentation import SegmentationTask

CONFIG = EnvConfig(split="validation", num_scenes=20, device="cpu")
CLASSIFICATION = replace(CONFIG, dataset="fashion-classification")
PAPER: list[PolicyName] = [
    "full_then_random",
    "random",
    "coarse_to_fine",
    "fine_to_coarse",
    "entropy_coarse_to_fine",
    "repeated_full_scene",
]


@pytest.mark.parametrize("name", PAPER)
def test_segmentation_numbers_are_canvit_pytorchs_own(name: PolicyName) -> None:
    """The same seed and batches, once through `evaluate`, once through run_episode, its probe and its MeanIoU."""
    batch_size, num_glimpses = 8, 6
    ours = evaluate(
        PaperPolicy(name, num_glimpses=num_glimpses, random_stream="batch"),
        config=CONFIG,
        num_glimpses=num_glimpses,
        batch_size=batch_size,
        seed=3,
    )
    backbone, scenes = build_backbone(CONFIG), build_scenes(CONFIG)
    task = build_task(CONFIG, backbone, scenes.classes)
    assert isinstance(task, SegmentationTask)
    mious = [MeanIoU(device=torch.device("cpu"), num_classes=len(task.classes)) for _ in range(num_glimpses)]
    viewpoints = []
    torch.manual_seed(3)
    with torch.no_grad():
        for indices in np.array_split(np.arange(20), [8, 16]):
            batch = scenes.load(indices)
            policy = make_policy(
                name,
                batch_size=len(indices),
                device=torch.device("cpu"),
                num_glimpses=num_glimpses,
                canvas_grid_size=16,
                canvas_logits=task.model.logits,
            )
            steps = run_episode(
                canvit=backbone.canvit,
                images=imagenet_normalize(batch.images.float() / 255),
                policy=policy,
                num_glimpses=num_glimpses,
                glimpse_size_px=32,
                initial_state=backbone.init_state(len(indices)),
            )
            for step in steps:
                logits = task.model.logits(step.state.canvas)
                up = F.interpolate(logits, size=(128, 128), mode="bilinear", align_corners=False)
                mious[step.t].update(up.argmax(dim=1), batch.labels.long())
            viewpoints.append(
                torch.stack([torch.cat([s.viewpoint.centers, s.viewpoint.scales[:, None]], 1) for s in steps], 1)
            )
    assert np.array_equal(ours.viewpoints, torch.cat(viewpoints).numpy())
    # Two float32 orders of the same sums: a pixel on a class border may change sides.
    np.testing.assert_allclose(ours.score(), [m.compute() for m in mious], atol=1e-4)


def test_classification_numbers_are_canvit_pytorchs_own() -> None:
    ours = evaluate(
        PaperPolicy("coarse_to_fine", num_glimpses=5, random_stream="batch"),
        config=CLASSIFICATION,
        batch_size=20,
        seed=1,
    )
    backbone, scenes = build_backbone(CLASSIFICATION), build_scenes(CLASSIFICATION)
    task = build_task(CLASSIFICATION, backbone, scenes.classes)
    assert isinstance(task, ClassificationTask)
    batch = scenes.load(np.arange(20))
    torch.manual_seed(1)
    with torch.no_grad():
        policy = make_policy(
            "coarse_to_fine", batch_size=20, device=torch.device("cpu"), num_glimpses=5, canvas_grid_size=16
        )
        steps = run_episode(
            canvit=backbone.canvit,
            images=imagenet_normalize(batch.images.float() / 255),
            policy=policy,
            num_glimpses=5,
            glimpse_size_px=32,
            initial_state=backbone.init_state(20),
        )
        logits = [task.model.classify(s.state.recurrent_cls) for s in steps]
    top1 = [(step.argmax(dim=1) == batch.labels).float().mean().item() for step in logits]
    loss = [F.cross_entropy(step, batch.labels).item() for step in logits]
    np.testing.assert_allclose(ours.score(), top1, atol=1e-6)
    np.testing.assert_allclose(ours.mean_loss(), loss, rtol=1e-5)


@pytest.mark.parametrize("config", [CONFIG, CLASSIFICATION], ids=["segmentation", "classification"])
def test_every_scene_once_in_order_and_whatever_the_batch_size(config: EnvConfig) -> None:
    """Viewpoints to the bit; losses and counts to float32 rounding: the same scene in a batch of 1, 7 and 64."""
    config = replace(config, num_scenes=65)
    policy = PaperPolicy("full_then_random", num_glimpses=2)
    whole, *others = (evaluate(policy, config=config, num_glimpses=2, batch_size=size, seed=5) for size in (64, 7, 1))
    assert whole.scene.tolist() == list(range(65))
    assert whole.loss.shape == (65, 2) and whole.viewpoints.shape == (65, 2, 3)
    for other in others:
        assert np.array_equal(other.scene, whole.scene) and np.array_equal(other.viewpoints, whole.viewpoints)
        assert np.array_equal(other.gflops, whole.gflops)
        np.testing.assert_allclose(other.loss, whole.loss, rtol=1e-3, atol=1e-5)
        # A pixel on the border of two classes may change sides; a scene's class does not.
        (name, *_) = whole.counts
        off = np.abs(other.counts[name].astype(int) - whole.counts[name])
        assert off.max() <= (3 if whole.metric == "mIoU" else 0)
        np.testing.assert_allclose(other.score(), whole.score(), atol=1e-4)


def test_the_shard_is_evaluated_and_no_more() -> None:
    shard = evaluate(
        PaperPolicy("coarse_to_fine", num_glimpses=2), config=replace(CONFIG, shard=(1, 8)), num_glimpses=2
    )
    whole = evaluate(PaperPolicy("coarse_to_fine", num_glimpses=2), config=CONFIG, num_glimpses=2)
    assert shard.scene.tolist() == [1, 9, 17]
    np.testing.assert_allclose(shard.loss, whole.loss[[1, 9, 17]], rtol=1e-3)


def test_what_is_derived_from_the_counts() -> None:
    result = evaluate(PaperPolicy("coarse_to_fine", num_glimpses=3), config=CONFIG, num_glimpses=3)
    task = build_task(CONFIG, build_backbone(CONFIG), build_scenes(CONFIG).classes)
    views = record_views(
        PaperPolicy("coarse_to_fine", num_glimpses=3), config=CONFIG, rows=np.array([4, 1]), num_glimpses=3
    )
    for row, scene in zip(views, (4, 1), strict=True):
        np.testing.assert_allclose([v.score_curve[t + 1] for t, v in enumerate(row)], result.scene_score()[scene], 1e-5)
    miou = result.score()
    assert result.area_under_curve() == pytest.approx((miou[0] / 2 + miou[1] + miou[2] / 2) / 2)
    assert {counts.dtype for counts in result.counts.values()} == {np.dtype(np.uint16)}
    assert result.record["policy"]["paper_name"] == "C2F" and result.record["probe"] == task.record
    with pytest.raises(ValueError, match="mIoU has no share 'top5'"):
        result.share("top5")


def test_top5_is_topks() -> None:
    readings = []
    result = evaluate(
        PaperPolicy("coarse_to_fine", num_glimpses=2),
        config=CLASSIFICATION,
        num_glimpses=2,
        on_glimpse=lambda t, episodes: readings.append((episodes.logits.clone(), episodes.truth["labels"])),  # type: ignore[union-attr]
    )
    for t, (logits, labels) in enumerate(readings):
        within = (logits.topk(5, dim=1).indices == labels[:, None]).any(dim=1).double().mean().item()
        assert result.share("top5")[t] == pytest.approx(within)
        assert result.score()[t] == pytest.approx((logits.argmax(dim=1) == labels).double().mean().item())
    assert (result.share("top5") >= result.score()).all() and result.share("top5").max() < 1


def test_flops_are_canvit_pytorchs_and_the_policys_own() -> None:
    config = replace(CONFIG, num_scenes=2)
    backbone = build_backbone(config)
    glimpse = glimpse_flops(backbone.canvit.config, glimpse_size_px=32, canvas_grid_size=16)
    probe = segmentation_probe_flops(grid_size=16, embed_dim=128, num_classes=11)
    plain, guided = (
        evaluate(PaperPolicy(name, num_glimpses=4), config=config, num_glimpses=4).gflops
        for name in ("coarse_to_fine", "entropy_coarse_to_fine")
    )
    np.testing.assert_allclose(plain, np.arange(1, 5) * glimpse / 1e9)
    np.testing.assert_allclose(guided, np.arange(1, 5) * (glimpse + probe) / 1e9)


class Fixed:
    """Looks at the whole scene, and says which observations it wants."""

    def __init__(self, *observations: ObservationKey) -> None:
        self.info = PolicyInfo(
            name="fixed", paper_name="fixed", description="", deterministic=True, observations=observations
        )
        self.observed: list[dict[str, torch.Tensor]] = []

    def reset(self, seen: Seen, *, seed: int) -> None:
        self.observed.clear()

    def viewpoints(self, t: int, seen: Seen) -> np.ndarray:
        if self.info.observations:
            self.observed.append(seen.observe())
        return np.tile(np.float32([0, 0, 1]), (seen.num, 1))

    def flops_per_decision(self, seen: Seen) -> int:
        return 0


def test_observations_are_computed_for_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    asking = Fixed("canvas", "acuity")
    evaluate(asking, config=CONFIG, num_glimpses=2)
    first, second = asking.observed
    assert set(first) == {"canvas", "acuity"} and first["canvas"].shape == (20, 128, 8, 8)
    assert not first["acuity"].any() and (second["acuity"] == 1).all()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("computed for nobody")

    behind = ("device_step.pooled_canvas", "observations.update_acuity", "tasks.segmentation.predictive_uncertainty")
    for name in behind:
        monkeypatch.setattr(f"canvit_gym.{name}", refuse)
    evaluate(Fixed(), config=CONFIG, num_glimpses=2)


def test_observations_that_the_environment_lacks_are_named() -> None:
    config = replace(CONFIG, observations=("time",))
    with pytest.raises(ValueError, match=r"policy 'fixed' reads canvas, but the environment's observations are .*it$"):
        evaluate(Fixed("canvas", "time"), config=config)


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (np.array([[0.5, 0.0, 1.0]] * 20), r"viewpoint 0, .*does not lie inside the scene"),
        (np.full((20, 3), np.nan), r"viewpoint 0, .*nan.*does not lie inside the scene"),
        (np.array([[0.0, 0.0, 1.0]]), "1 viewpoints for 20 scenes"),
        (np.zeros((20, 2)), r"viewpoints must be floats of shape \[N, 3\]"),
    ],
)
def test_viewpoints_that_no_backbone_takes_are_named(bad: np.ndarray, told: str) -> None:
    policy = Fixed()
    policy.viewpoints = lambda t, episodes: bad  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=f"policy 'fixed', glimpse 1: {told}"):
        evaluate(policy, config=CONFIG)


def test_viewpoints_may_be_float64() -> None:
    policy = Fixed()
    policy.viewpoints = lambda t, episodes: np.tile([0.0, 0.0, 1.0], (episodes.num, 1))  # type: ignore[method-assign]
    double, single = (evaluate(one, config=CONFIG, num_glimpses=1) for one in (policy, Fixed()))
    assert np.array_equal(double.loss, single.loss) and double.viewpoints.dtype == np.float32


def test_readings_that_are_not_finite_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    read = SegmentationTask.read

    def broken(self: SegmentationTask, state: RecurrentState, canvas_norm: torch.Tensor | None = None) -> torch.Tensor:
        logits = read(self, state, canvas_norm)
        calls.append(len(logits))
        if len(calls) == 4:  # the second batch's second glimpse
            logits[3, 5, 0, 0] = float("nan")
        return logits

    calls: list[int] = []
    monkeypatch.setattr(SegmentationTask, "read", broken)
    with pytest.raises(FloatingPointError, match=r"scene 11, glimpse 2 at \[0.0, 0.0, 1.0\].*checkpoint 'nano'"):
        evaluate(Fixed(), config=CONFIG, num_glimpses=2, batch_size=8)


@pytest.mark.parametrize("track_score", [False, True])
def test_an_environment_stops_at_a_reading_that_is_not_finite(
    monkeypatch: pytest.MonkeyPatch, track_score: bool
) -> None:
    envs = gym.make_vec(
        "CanViT/FashionSegmentation-v0", num_envs=3, num_scenes=8, device="cpu", track_score=track_score
    )
    envs.reset(seed=0)
    read = SegmentationTask.read
    monkeypatch.setattr(SegmentationTask, "read", lambda *args: read(*args) * float("nan"))
    with pytest.raises(FloatingPointError, match=r"scene \d+, glimpse 2 at .*the reading is not finite"):
        envs.step(envs.action_space.sample())


def test_scenes_without_any_label_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(Fixed(), config=CONFIG, num_glimpses=2, batch_size=4)
    load, empty = FashionScenes.load, [2, 5, 12, 13, 14, 15]

    def partly_labelled(self: FashionScenes, indices: Any) -> SceneBatch:
        batch = load(self, indices)
        labels = batch.labels.clone()
        labels[np.isin(indices, empty)] = 255
        return replace(batch, labels=labels)

    monkeypatch.setattr(FashionScenes, "load", partly_labelled)
    with pytest.warns(RuntimeWarning, match=r"scenes \[\d.*\] have no label and are left out"):
        partly = evaluate(Fixed(), config=CONFIG, num_glimpses=2, batch_size=4)
    rest = np.flatnonzero(~np.isin(whole.scene, empty))
    assert partly.scene.tolist() == whole.scene[rest].tolist()
    np.testing.assert_allclose(partly.loss, whole.loss[rest], atol=1e-5)
    with pytest.warns(RuntimeWarning), pytest.raises(ValueError, match=r"scenes \[2\] have no label or cannot be read"):
        record_views(Fixed(), config=CONFIG, rows=np.array([2, 3]), num_glimpses=1)
    empty.extend(range(20))
    with pytest.warns(RuntimeWarning), pytest.raises(ValueError, match="could be read and has a label"):
        evaluate(Fixed(), config=CONFIG, num_glimpses=2)


def test_batches_of_many_sizes_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenes without a label can leave batches of every size; each holds images and canvases."""
    now_open: set[int] = set()
    most = 0

    class Counted(EpisodeBatch):
        def __init__(self, **arguments: Any) -> None:
            nonlocal most
            super().__init__(**arguments)
            now_open.add(id(self))
            most = max(most, len(now_open))

        def close(self) -> None:
            super().close()
            now_open.discard(id(self))

    monkeypatch.setattr(evaluation, "EpisodeBatch", Counted)
    monkeypatch.setattr(evaluation, "_labelled", lambda episodes: episodes.scene % 7 > episodes.scene // 7)
    with pytest.warns(RuntimeWarning, match="have no label"):
        found = evaluate(Fixed(), config=CONFIG, num_glimpses=1, batch_size=7)
    assert found.scene.tolist() == [scene for scene in range(20) if scene % 7 > scene // 7]
    assert most == 2 and not now_open


@pytest.mark.parametrize("config", [CONFIG, CLASSIFICATION], ids=["segmentation", "classification"])
def test_a_saved_evaluation_is_the_evaluation(tmp_path: Path, config: EnvConfig) -> None:
    result = evaluate(PaperPolicy("random", num_glimpses=2), config=config, num_glimpses=2, seed=9)
    path = tmp_path / "deeper" / "random.npz"
    result.save(path)
    loaded = Evaluation.load(path)
    assert loaded == result and list(loaded.counts) == list(result.measure.counts)
    assert loaded.seed == 9 and loaded.metric == ("mIoU" if config is CONFIG else "top-1")
    assert loaded.record["config"] == json.loads(json.dumps(config.to_json()))
    assert "FashionScenes v" in loaded.record["scenes"] and loaded.record["versions"]["canvit-gym"]
    assert [p.name for p in path.parent.iterdir()] == ["random.npz"]


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "result.npz"
    with pytest.raises(FileNotFoundError, match="no evaluation at"):
        Evaluation.load(path)
    with pytest.raises(ValueError, match="is a directory: name the file in it"):  # not: delete it
        Evaluation.load(tmp_path)
    result = evaluate(Fixed(), config=replace(CONFIG, num_scenes=3), num_glimpses=2)
    result.save(path)
    whole = path.read_bytes()

    with np.load(path) as file:
        arrays = dict(file)
    header = json.loads(str(arrays["header"]))

    def rewritten(changes: dict[str, Any], **header_changes: Any) -> bytes:
        np.savez(path, **{**arrays, "header": np.array(json.dumps({**header, **header_changes})), **changes})
        return path.read_bytes()

    damaged = {
        "cut off": whole[: len(whole) // 2],
        "empty": b"",
        "a bit flipped": bytes(b ^ (i == len(whole) // 3) for i, b in enumerate(whole)),
        "not npz": b"PK rubbish",
        "a shape": rewritten({"loss": arrays["loss"][:, :1]}),
        "no header": rewritten({"header": np.array("[]")}),
        "another array": rewritten({"surprise": np.zeros(2)}),
        "pickled": rewritten({"scene": np.array([{}, 1], dtype=object)}),
    }
    for what, content in damaged.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged") as caught:
            Evaluation.load(path)
        assert "evaluate again" in str(caught.value), what
    path.write_bytes(rewritten({}, format=99))
    with pytest.raises(ValueError, match=r"has format 99, but this version of .* reads format 1: evaluate again"):
        Evaluation.load(path)


def test_an_interrupted_save_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = evaluate(Fixed(), config=replace(CONFIG, num_scenes=3), num_glimpses=2)

    def interrupted(file: Any, **_: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        result.save(tmp_path / "result.npz")
    assert not list(tmp_path.iterdir())


def test_statistics_of_evaluations() -> None:
    runs = [evaluate(PaperPolicy("random", num_glimpses=3), config=CONFIG, num_glimpses=3, seed=s) for s in range(3)]
    score, loss = (bootstrap_interval(f(runs), resamples=200) for f in (score_statistic, loss_statistic))
    np.testing.assert_allclose(score.value, np.mean([r.score() for r in runs], axis=0))
    np.testing.assert_allclose(loss.value, np.mean([r.mean_loss() for r in runs], axis=0), rtol=1e-6)
    assert (score.low < score.value).all() and (score.value < score.high).all()
    right = evaluate(Fixed(), config=CLASSIFICATION, num_glimpses=1)
    np.testing.assert_allclose(bootstrap_interval(score_statistic([right]), resamples=9).value, right.score())


def test_statistics_of_other_scenes_are_refused() -> None:
    one, other = (evaluate(Fixed(), config=replace(CONFIG, num_scenes=n), num_glimpses=1) for n in (3, 4))
    with pytest.raises(ValueError, match=r"not on the same scenes: 3 of .* and 4 of"):
        score_statistic([one, other])
    with pytest.raises(ValueError, match="evaluate the policy first"):
        loss_statistic([])


def test_some_of_the_scenes_are_those_of_all() -> None:
    folder = EnvConfig(
        dataset="image-folder", root=str(tiny("image-folder")), probe=str(classification_probe(3)), split="validation",
        workers=0, device="cpu",
    )  # fmt: skip
    for config, expected in ((folder, [2, 6, 10]), (CONFIG, [0, 1, 2]), (replace(CONFIG, shard=(1, 2)), [1, 3, 5])):
        some = evaluate(Fixed(), config=config, num_glimpses=1, max_scenes=3)
        whole = evaluate(Fixed(), config=config, num_glimpses=1)
        assert some.scene.tolist() == expected
        same = whole.on(some.scene)
        np.testing.assert_allclose(some.loss, same.loss, rtol=1e-4)
        assert score_statistic([some, same]).num_scenes == 3
    assert evaluate(Fixed(), config=CONFIG, num_glimpses=1, max_scenes=99).scene.tolist() == list(range(20))
    with pytest.raises(ValueError, match="max_scenes must be an integer >= 1, got 0"):
        evaluate(Fixed(), config=CONFIG, max_scenes=0)
    with pytest.raises(ValueError, match=r"scenes \[0\] are not among the 10"):
        whole.on(np.array([1, 0]))


def test_fewer_scenes_of_a_source_are_the_same_scenes_only_if_it_begins_with_them() -> None:
    few, many = (evaluate(Fixed(), config=replace(CONFIG, num_scenes=n), num_glimpses=1) for n in (3, 4))
    require_same_scenes([few, many.on(few.scene)])
    folder = EnvConfig(
        dataset="image-folder", root=str(tiny("image-folder")), probe=str(classification_probe(3)), split="validation",
        workers=0, device="cpu",
    )  # fmt: skip
    few, many = (evaluate(Fixed(), config=replace(folder, num_scenes=n), num_glimpses=1) for n in (3, None))
    with pytest.raises(ValueError, match=r"not on the same scenes: 3 of .*3 of 12, 3 scenes"):
        require_same_scenes([few, many.on(few.scene)])


@pytest.mark.parametrize("name", ["segmentation-folder", "image-folder"])
def test_other_files_of_the_same_name_and_number_are_other_scenes(tmp_path: Path, name: Any) -> None:
    probe = segmentation_probe(3) if name == "segmentation-folder" else classification_probe(3)

    def evaluated(where: str, change: bool = False) -> Evaluation:
        root = Path(shutil.copytree(tiny(name), tmp_path / where / "photos"))
        if change:
            with next(path for path in root.rglob("*.jpg") if "val" in path.parts).open("ab") as file:
                file.write(b"more")  # than the image
        config = EnvConfig(dataset=name, root=str(root), probe=str(probe), split="validation", workers=0, device="cpu")
        return evaluate(Fixed(), config=config, num_glimpses=1)

    first, copy, other = evaluated("a"), evaluated("b"), evaluated("c", change=True)
    assert loss_statistic([first, copy]) and first.record["scenes"] == other.record["scenes"]
    with pytest.raises(
        ValueError, match=r"not on the same scenes: both are on .*photos.*, but its files differ in names or sizes"
    ):
        loss_statistic([first, other])
    record = {key: value for key, value in other.record.items() if key != "scenes_sha256"}
    assert loss_statistic([first, replace(other, record=record)]), "as evaluations were saved before"


def test_a_policys_name_is_not_a_policy() -> None:
    calls: list[Any] = [evaluate, lambda policy, config: record_views(policy, config=config, rows=np.array([0]))]
    for call in calls:
        with pytest.raises(TypeError, match=r"must be a GlimpsePolicy, got 'coarse_to_fine': make one .*make_policy\("):
            call("coarse_to_fine", config=CONFIG)
        with pytest.raises(TypeError, match=r"must be a GlimpsePolicy, got <class .*Fixed'>: make one"):
            call(Fixed, config=CONFIG)
        with pytest.raises(TypeError, match=r"config must be an EnvConfig, got 'CanViT/.*: make one .*config_for\("):
            call(Fixed(), config="CanViT/FashionSearch-v0")


@pytest.mark.parametrize("rows", [[20], [0, -1], [0.0], [[1]]])
def test_views_of_scenes_that_there_are_not(rows: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"rows must be indices of scenes, \[n\] integers in \[0, 19\], got \["):
        record_views(Fixed(), config=CONFIG, rows=np.array(rows), num_glimpses=1)


def test_no_gpu_is_touched_for_work_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[object] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("get_rng_state", "set_rng_state", "manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, lambda *args, name=name: touched.append(name))
    before = torch.get_rng_state()
    policy = PaperPolicy("random", num_glimpses=2, random_stream="batch")
    one, again = (evaluate(policy, config=CONFIG, num_glimpses=2, seed=5) for _ in range(2))
    assert not touched
    assert np.array_equal(one.viewpoints, again.viewpoints) and torch.equal(before, torch.get_rng_state())


def test_on_a_gpu_its_own_generator_alone_is_seeded_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 1)
    calls: list[object] = []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: calls.append(("get", device)) or "state")
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: calls.append(("set", state, device)))
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: calls.append(("seed", seed)))
    monkeypatch.setattr(torch.cuda, "device", lambda device: calls.append(("on", device)) or nullcontext())
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: gpu)
    before = torch.get_rng_state()
    with seeded(7, gpu):
        drawn = torch.rand(3)
    assert calls == [("get", gpu), ("on", gpu), ("seed", 7), ("set", "state", gpu)]
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(3))


@pytest.mark.parametrize("name", ["segmentation-folder", "image-folder"])
def test_scenes_that_cannot_be_read_are_left_out_or_refused(tmp_path: Path, name: str) -> None:
    """Data sets on disk, streamed by a worker process: every scene but the damaged one, in order."""
    root = tmp_path / name
    shutil.copytree(tiny(cast(Any, name)), root)
    probe = segmentation_probe(3) if name == "segmentation-folder" else classification_probe(3)
    config = EnvConfig(
        dataset=cast(Any, name), root=str(root), split="validation", probe=str(probe), workers=1, device="cpu"
    )
    whole = evaluate(Fixed(), config=config, num_glimpses=2, batch_size=2)
    num_scenes = len(whole.scene)
    assert whole.scene.tolist() == list(range(num_scenes)) and num_scenes >= 4
    sorted((root / ("images" if name == "segmentation-folder" else ".") / "val").rglob("*.*"))[1].write_bytes(
        b"rubbish"
    )
    with pytest.raises(OSError, match="unreadable="):
        evaluate(Fixed(), config=config, num_glimpses=2, batch_size=2)
    with pytest.warns(RuntimeWarning, match="left out"):
        rest = evaluate(Fixed(), config=replace(config, unreadable="skip"), num_glimpses=2, batch_size=2)
    left = [i for i in range(num_scenes) if i != 1]
    assert rest.scene.tolist() == left
    np.testing.assert_allclose(rest.loss, whole.loss[left], rtol=1e-3)


@pytest.mark.parametrize("canvas_grid", [12, 9])
def test_canvas_grids_that_do_not_divide_the_scene(tmp_path: Path, canvas_grid: int) -> None:
    """Counted by upsampling everything: quads of whole pixels exist only where an even number of them fits a cell."""
    probe = segmentation_probe(11)
    config = replace(CONFIG, num_scenes=3, canvas_grid=canvas_grid, probe=str(probe))
    readings = []
    result = evaluate(
        Fixed(), config=config, num_glimpses=1, on_glimpse=lambda t, episodes: readings.append(episodes.logits)
    )
    labels = build_scenes(config).load(np.arange(3)).labels.long()
    up = F.interpolate(readings[0], size=(128, 128), mode="bilinear", align_corners=False).argmax(dim=1)
    miou = MeanIoU(device=torch.device("cpu"), num_classes=11)
    miou.update(up, labels)
    assert result.score()[0] == pytest.approx(miou.compute(), abs=1e-4)


def test_evaluation_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    evaluate(PaperPolicy("random", num_glimpses=5), config=replace(CONFIG, num_scenes=4))
    assert torch.equal(before, torch.get_rng_state())


def test_oracle_takes_the_candidate_with_the_lowest_loss_afterwards() -> None:
    """No other candidate for the second glimpse gives any scene a lower loss than the one that the oracle took."""
    config = replace(CONFIG, num_scenes=6)
    candidates = oracle_candidates()[::12]
    oracle = evaluate(GreedyOracle(candidates), config=config, num_glimpses=2)

    class Then(Fixed):
        """The full scene, then one viewpoint."""

        def __init__(self, viewpoint: np.ndarray) -> None:
            super().__init__()
            self.viewpoint = viewpoint

        def viewpoints(self, t: int, seen: Seen) -> np.ndarray:
            return np.tile(self.viewpoint, (seen.num, 1)) if t else super().viewpoints(t, seen)

    others = np.stack([evaluate(Then(c), config=config, num_glimpses=2).loss[:, 1] for c in candidates])
    np.testing.assert_allclose(oracle.loss[:, 1], others.min(axis=0), rtol=1e-4)
    assert others.max() > others.min()


def test_score_of_resampled_scenes() -> None:
    result = replace(
        evaluate(Fixed(), config=replace(CONFIG, num_scenes=2), num_glimpses=1),
        counts={"intersection": np.array([[[1, 0]], [[3, 2]]]), "union": np.array([[[2, 0]], [[3, 4]]])},
    )
    assert result.score()[0] == pytest.approx((4 / 5 + 2 / 4) / 2)
    assert result.score(np.array([0, 0]))[0] == pytest.approx(1 / 2)  # the absent class does not count
    assert result.scene_score()[:, 0] == pytest.approx([1 / 2, (1 + 2 / 4) / 2])


def test_views_for_pictures_are_those_scenes_after_every_glimpse() -> None:
    views = record_views(
        PaperPolicy("coarse_to_fine", num_glimpses=3), config=CONFIG, rows=np.array([1, 4]), num_glimpses=3
    )
    assert [[len(v.viewpoints) for v in scene] for scene in views] == [[1, 2, 3], [1, 2, 3]]
    batch = build_scenes(CONFIG).load(np.array([4]))
    assert np.array_equal(views[1][0].image, batch.images[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("bad", [dict(batch_size=0), dict(num_glimpses=0), dict(seed=-1)])
def test_bad_numbers_are_named(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"must be an integer >= 1, got|seed must be an integer >= 0, got -1"):
        evaluate(PaperPolicy("random", num_glimpses=5), config=CONFIG, **bad)  # type: ignore[arg-type]


def test_no_scenes_and_empty_shards_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"shard \(30, 40\) of 20 scenes is empty; use at most 20 shards"):
        evaluate(Fixed(), config=replace(CONFIG, shard=(30, 40)))
    monkeypatch.setattr(FashionScenes, "__len__", lambda self: 0)
    with pytest.raises(ValueError, match="has no scenes; choose another split"):
        evaluate(Fixed(), config=CONFIG)


def test_scenes_of_another_size_are_told() -> None:
    with pytest.raises(ValueError, match="'nano' expects scenes of 256 px, but those of fashion-segmentation have 128"):
        evaluate(Fixed(), config=replace(CONFIG, scene_size_px=256))


def test_entropy_policy_says_that_it_needs_a_segmentation_probe() -> None:
    with pytest.raises(ValueError, match="choose another policy"):
        evaluate(PaperPolicy("entropy_coarse_to_fine", num_glimpses=5), config=CLASSIFICATION)


def test_a_source_of_scenes_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One on disk lists all of its files."""
    made: list[EnvConfig] = []

    def counted(config: EnvConfig) -> Any:
        made.append(config)
        return build_scenes(config)

    monkeypatch.setattr(evaluation, "build_scenes", counted)
    evaluate(PaperPolicy("coarse_to_fine", num_glimpses=1), config=replace(CONFIG, num_scenes=4), num_glimpses=1)
    assert len(made) == 1
