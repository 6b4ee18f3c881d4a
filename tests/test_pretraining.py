"""Teacher, nano and probes train, resume to the bit, and are read back by canvit-pytorch; all at a tiny size."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from canvit_pytorch import CanViTForImageClassification, CanViTForPretraining, CanViTForSemanticSegmentation
from safetensors.torch import load_file

from canvit_gym.backbone.compilation import TrainedFunction
from canvit_gym.backbone.hub import asset_dir
from canvit_gym.backbone.nano import NANO_CANVAS_GRID, nano_config
from canvit_gym.backbone.nano_teacher import TEACHER_DIM, TEACHER_WEIGHTS, load_nano_teacher
from canvit_gym.evaluation import Evaluation
from canvit_gym.probes import fit
from canvit_gym.scenes.fashion import FLAVOURS
from experiments.nano import finishing, gpu_run, metrics, mixture, pretrain, running, ship, teacher

TINY: dict[str, Any] = dict(max_scenes=8, batch_size=6, device="cpu")


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("teacher")
    teacher.train(teacher.TeacherConfig(run_dir=run_dir, steps=2, validation_scenes=8, test_scenes=8, **TINY))
    return run_dir


def nano_run(run_dir: Path, teacher_dir: Path, *, save_every: int = 1) -> pretrain.PretrainingConfig:
    return pretrain.PretrainingConfig(
        run_dir=run_dir,
        teacher_dir=teacher_dir,
        token_steps=2,
        steps=2,
        finish_steps=2,
        finish_batch_size=6,
        save_every=save_every,
        validate_every=100,
        validation_scenes=2,
        validation_glimpses=2,
        standardizer_scenes=6,
        long_share=0.0,
        compile="off",
        **TINY,
    )


@pytest.fixture(scope="module")
def nano_dir(tmp_path_factory: pytest.TempPathFactory, teacher_dir: Path) -> Path:
    run_dir = tmp_path_factory.mktemp("nano")
    pretrain.train(nano_run(run_dir, teacher_dir))
    return run_dir


def end_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """--minutes are over after so many steps of a start."""
    advance, taken = pretrain.Pretraining.advance, 0

    def counted(run: pretrain.Pretraining) -> None:
        nonlocal taken
        advance(run)
        taken += 1

    monkeypatch.setattr(pretrain.Pretraining, "advance", counted)
    monkeypatch.setattr(running.Budget, "spent", property(lambda budget: taken >= steps))


@pytest.mark.parametrize("kept", [1, 3, 5])
def test_pretraining_interrupted_in_any_phase_resumes_to_the_bit(
    nano_dir: Path, teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    config = nano_run(tmp_path, teacher_dir)
    advance, taken = pretrain.Pretraining.advance, 0

    def interrupted(run: pretrain.Pretraining) -> None:
        nonlocal taken
        if taken == kept:
            raise KeyboardInterrupt
        advance(run)
        taken += 1

    with monkeypatch.context() as patch:
        patch.setattr(pretrain.Pretraining, "advance", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pretrain.train(config)
    assert pretrain.train(config)
    assert_same_weights(tmp_path, nano_dir)


@pytest.mark.parametrize(
    ("steps", "where"), [(1, "step 1 of 2 of glimpse-stream learning"), (3, "step 1 of 2 of dist")]
)
def test_minutes_end_a_start_and_the_same_command_goes_on(
    nano_dir: Path,
    teacher_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    steps: int,
    where: str,
) -> None:
    caplog.set_level("INFO")
    config = replace(nano_run(tmp_path, teacher_dir, save_every=100), minutes=1.0)
    with monkeypatch.context() as patch:
        end_after(patch, steps)
        assert not pretrain.train(config)
    assert f"1.0 minutes are over at {where}" in caplog.text and "run the same command to continue" in caplog.text
    assert pretrain.train(config)
    assert_same_weights(tmp_path, nano_dir)


def test_pretraining_with_muon_resumes_to_the_bit(
    teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(nano_run(tmp_path / "whole", teacher_dir), token_steps=0, steps=0, muon_lr=1e-3)
    pretrain.train(config)
    config = replace(config, run_dir=tmp_path / "parts")
    with monkeypatch.context() as patch:
        end_after(patch, 1)
        assert not pretrain.train(config)
    assert pretrain.train(config)
    assert_same_weights(tmp_path / "parts", tmp_path / "whole")


def test_minutes_are_those_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(running.time, "monotonic", lambda: now)
    budget, endless = running.Budget(2.0), running.Budget(None)
    now = 119.0
    assert not budget.spent
    now = 120.0
    assert budget.spent and not endless.spent
    with pytest.raises(ValueError, match="--minutes must be positive, got 0"):
        running.Budget(0)


def test_the_teacher_ends_after_its_minutes_and_resumes_to_the_bit(
    teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = teacher.TeacherConfig(run_dir=tmp_path, steps=2, validation_scenes=8, test_scenes=8, **TINY)
    with monkeypatch.context() as patch:
        patch.setattr(running.Budget, "spent", True)
        assert teacher.train(config) is None and not (tmp_path / "teacher.json").exists()
    assert teacher.train(config) is not None
    ours, theirs = (load_file(d / TEACHER_WEIGHTS) for d in (tmp_path, teacher_dir))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = (load_file(d / "model" / "model.safetensors") for d in (one, other))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_the_learning_rate_follows_the_minutes_of_the_finish_over_all_starts() -> None:
    config = pretrain.PretrainingConfig(
        run_dir=Path("x"), teacher_dir=Path("y"), warmup_steps=0, steps=10, finish_minutes=2.0
    )
    rates = [pretrain.rate_of_peak(config, step, seconds) for step, seconds in ((9, 0), (10, 0), (70, 60), (99, 120))]
    assert rates == pytest.approx([1, 1, 0.51, 0.02])


def test_a_finish_of_minutes_ends_when_they_are_trained(
    teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(nano_run(tmp_path, teacher_dir), token_steps=0, steps=0, finish_minutes=1e-3, finish_steps=0)
    assert pretrain.train(config)
    record = json.loads((tmp_path / "model" / "training.json").read_text())
    assert record["steps"] >= 1 and record["seconds"] >= 0.06
    assert record["ran"] == dict(
        device="cpu", precision="float32", distillation="never", finish="eager", scenes_on_device=False
    )
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["progress"]["finish_seconds"] >= 0.06


def test_bf16_trains_in_both_phases_on_a_cpu(nano_dir: Path, teacher_dir: Path, tmp_path: Path) -> None:
    pretrain.train(replace(nano_run(tmp_path, teacher_dir), precision="bf16"))
    ours, theirs = (load_file(d / "model" / "model.safetensors") for d in (tmp_path, nano_dir))
    learned = [k for k in ours if "standardizer" not in k]
    assert all(ours[k].dtype == torch.float32 and ours[k].isfinite().all() for k in learned)
    assert any(not torch.equal(ours[k], theirs[k]) for k in learned)
    assert all((ours[k] - theirs[k]).abs().max() < 0.05 for k in learned), "as float32, but for rounding"
    assert json.loads((tmp_path / "model" / "training.json").read_text())["ran"]["precision"] == "bf16"


def test_the_number_format_is_chosen_by_device() -> None:
    assert running.resolve_precision("auto", torch.device("cpu")) == "float32"
    assert running.resolve_precision("bf16", torch.device("cpu")) == "bf16"
    with pytest.raises(ValueError, match="tf32 is a format of NVIDIA GPUs, and the device is cpu"):
        running.resolve_precision("tf32", torch.device("cpu"))


def test_what_cannot_be_compiled_runs_eagerly_and_is_not_called_compiled() -> None:
    def breaks(x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return x + 1

    call = TrainedFunction(breaks, name="this", compile=True)
    with pytest.warns(UserWarning, match="this cannot be compiled and runs eagerly"):
        assert call(torch.zeros(1)) == 1
    assert call(torch.zeros(1)) == 1 and call.ran.startswith("eager: ")


@pytest.mark.parametrize("muon_lr", [None, 1e-3])
def test_a_resumed_run_learns_at_the_rates_it_is_resumed_with(
    teacher_dir: Path, tmp_path: Path, muon_lr: float | None
) -> None:
    config = replace(nano_run(tmp_path, teacher_dir), finish_steps=1, muon_lr=muon_lr)
    pretrain.train(config)
    before = load_file(tmp_path / "model" / "model.safetensors")
    pretrain.train(replace(config, finish_steps=2, peak_lr=0, muon_lr=None if muon_lr is None else 0))
    after = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(after[k], before[k]) for k in before), "without a learning rate nothing moves"


def test_pretraining_goes_on_from_a_shipped_model(nano_dir: Path, teacher_dir: Path, tmp_path: Path) -> None:
    config = replace(
        nano_run(tmp_path, teacher_dir), init_from=nano_dir / "model", token_steps=0, steps=0, finish_steps=1, peak_lr=0
    )
    pretrain.train(config)
    ours, theirs = (load_file(d / "model" / "model.safetensors") for d in (tmp_path, nano_dir))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs), "without a learning rate nothing moves"


def test_settings_that_contradict_are_refused(nano_dir: Path, teacher_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pass --token-steps 0 \(got 2\)"):
        pretrain.train(replace(nano_run(tmp_path, teacher_dir), init_from=nano_dir / "model"))
    assert not list(tmp_path.iterdir())


def test_counts_are_checked_before_any_work(teacher_dir: Path, tmp_path: Path) -> None:
    for name, least in (("save_every", 1), ("validate_every", 1), ("validation_scenes", 1), ("steps", 0)):
        bad = replace(nano_run(tmp_path / "nano", teacher_dir), **{name: least - 1})
        with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} must be an integer >= {least}, got"):
            pretrain.train(bad)
    with pytest.raises(ValueError, match="--save-every must be an integer >= 1, got 0"):
        teacher.train(teacher.TeacherConfig(run_dir=tmp_path / "teacher", save_every=0, **TINY))
    assert not list(tmp_path.iterdir())


def test_a_state_is_resumed_with_the_optimizers_it_is_of_and_the_weight_decay_asked_for() -> None:
    parameter = [torch.nn.Parameter(torch.zeros(2, 2))]
    saved = torch.optim.AdamW(parameter, weight_decay=0.02).state_dict()
    optimizer = torch.optim.AdamW(parameter, weight_decay=0.3)
    pretrain.restore_optimizers([optimizer], [saved])
    assert optimizer.param_groups[0]["weight_decay"] == 0.3
    with pytest.raises(ValueError, match="begun without --muon-lr and is resumed with it"):
        pretrain.restore_optimizers([optimizer, torch.optim.Muon(parameter)], [saved])


def test_pretraining_without_scenes_of_one_item_finishes(teacher_dir: Path, tmp_path: Path) -> None:
    # Without distillation, so that the finish has the first steps, which are logged.
    pretrain.train(replace(nano_run(tmp_path, teacher_dir), steps=0, finish_classification_share=0))
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_non_finite_gradients_stop_the_run_and_keep_the_last_state(
    teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *a, **k: torch.tensor(float("nan")))
    with pytest.raises(FloatingPointError, match=r"step 0.*last good state"):
        pretrain.train(nano_run(tmp_path, teacher_dir))
    assert (tmp_path / "state.pt").exists()


def test_probes_are_read_by_canvit_pytorch(nano_dir: Path, tmp_path: Path) -> None:
    checkpoint = str(nano_dir / "model")
    fit.main(
        fit.ProbeConfig(
            output_dir=tmp_path,
            checkpoint=checkpoint,
            num_scenes=16,
            steps=2,
            batch_size=4,
            num_glimpses=2,
            validate_every=1,
            validation_scenes=8,
            device="cpu",
        )
    )
    segmentation = CanViTForSemanticSegmentation.from_pretrained_with_probe(
        pretrained_repo=checkpoint, probe_repo=str(tmp_path / "segmentation-probe")
    )
    classification = CanViTForImageClassification.from_pretrained_with_probe(
        pretrained_repo=checkpoint, probe_repo=str(tmp_path / "classification-probe")
    )
    assert segmentation.num_classes == 11 and classification.n_classes == 10


def test_rollouts_lengthen_and_the_learning_rate_falls() -> None:
    config = pretrain.PretrainingConfig(run_dir=Path("x"), teacher_dir=Path("y"), steps=1000, finish_steps=500)
    stops = [pretrain.stop_probability(config, step) for step in (0, 300, 750, 999)]
    assert stops == sorted(stops, reverse=True) and stops[0] == 0.5 and stops[-1] == pytest.approx(0.2)
    rates = [pretrain.rate_of_peak(config, step) for step in (999, 1200, 1499)]
    assert rates == sorted(rates, reverse=True) and rates[0] == 1 > 10 * rates[-1] > 0


def test_muon_learns_the_matrices_of_the_blocks_and_adamw_the_rest(teacher_dir: Path, tmp_path: Path) -> None:
    config = replace(nano_run(tmp_path, teacher_dir), token_steps=0, steps=0, peak_lr=0, muon_lr=1e-3)
    torch.manual_seed(config.seed)
    before = CanViTForPretraining(
        canvit_config=nano_config(), teacher_dim=TEACHER_DIM, teacher_patch_grid=NANO_CANVAS_GRID
    ).state_dict()
    pretrain.train(config)
    after = load_file(tmp_path / "model" / "model.safetensors")
    matrices = {k for k, v in before.items() if k.startswith("canvit.backbone.blocks.") and v.ndim == 2}
    learned = {k for k, v in before.items() if "standardizer" not in k and not torch.equal(v, after[k])}
    assert len(matrices) >= 8 and learned == matrices, "AdamW has no learning rate here"


def test_glimpses_around_items_lie_inside_the_scene_and_show_the_item() -> None:
    cells = torch.randint(NANO_CANVAS_GRID**2, (256,))
    viewpoint = finishing.item_viewpoints(torch.eye(NANO_CANVAS_GRID**2)[cells])
    low, high = finishing.ITEM_SCALES
    assert (viewpoint.scales >= low).all() and (viewpoint.scales <= high).all()
    assert (viewpoint.centers.abs() <= 1 - viewpoint.scales.unsqueeze(1) + 1e-6).all()
    rows_and_cols = torch.stack([cells // NANO_CANVAS_GRID, cells % NANO_CANVAS_GRID], dim=1)
    middle = 2 * (rows_and_cols + 0.5) / NANO_CANVAS_GRID - 1
    reach = viewpoint.scales + 1 / NANO_CANVAS_GRID
    assert ((viewpoint.centers - middle).abs() <= reach.unsqueeze(1) + 1e-6).all()


def test_a_share_of_random_viewpoints_moves_to_items() -> None:
    shares = torch.zeros(4000, NANO_CANVAS_GRID**2)
    shares[:, 0] = 1  # the top left cell
    for wanted in (0.0, 0.4, 1.0):
        viewpoint = finishing.mixed_viewpoints(shares, item_share=wanted)
        low, high = finishing.ITEM_SCALES
        corner = (viewpoint.centers <= -1 + viewpoint.scales.unsqueeze(1) + 2 / NANO_CANVAS_GRID).all(dim=1)
        moved = corner & (viewpoint.scales >= low) & (viewpoint.scales <= high)
        assert moved.float().mean() == pytest.approx(wanted, abs=0.06)


@pytest.fixture(scope="module")
def scenes(teacher_dir: Path) -> mixture.TrainingScenes:
    made = mixture.TrainingScenes(mixture.mixture("suite", max_scenes=8), device=torch.device("cpu"))
    made.add_teacher(load_nano_teacher(teacher_dir / TEACHER_WEIGHTS, torch.device("cpu")))
    return made


def test_a_batch_has_every_flavour_of_the_suite_in_its_share(scenes: mixture.TrainingScenes) -> None:
    assert {part.flavour for part in scenes.parts} == set(FLAVOURS)
    assert sum(part.share for part in mixture.MIXTURES["suite"]) == pytest.approx(1)
    assert mixture.batch_counts(scenes.parts, 6) == (1,) * 6
    counts = mixture.batch_counts(scenes.parts, 1024)
    assert sum(counts) == 1024
    assert all(abs(count - 1024 * part.share) < 1 for count, part in zip(counts, scenes.parts, strict=True))
    batch, (picked, mirrored) = scenes.batch(3, batch_size=24, seed=5), scenes.picks(3, counts=(4,) * 6, seed=5)
    assert len(batch.images) == len(picked) == len(mirrored) == 24
    assert set(picked // 8) == set(range(6)), "so many of each flavour"
    assert batch.num_single == 6 and (batch.present[-6:, 1:].sum(dim=1) == 1).all() and not batch.present[-6:, 0].any()
    with pytest.raises(ValueError, match=r"batches of 5 cannot hold a scene of each of segmentation, .*at least 6"):
        mixture.batch_counts(scenes.parts, 5)
    with pytest.raises(ValueError, match="unknown mixture 'all'; choose one of suite, pair"):
        mixture.mixture("all")
    share = {part.flavour: part.share for part in mixture.mixture("suite", single_share=0.4)}
    assert share["classification"] == 0.4 and sum(share.values()) == pytest.approx(1)


def test_a_batch_is_of_its_scenes_mirrored_with_their_targets(scenes: mixture.TrainingScenes) -> None:
    counts = mixture.batch_counts(scenes.parts, 12)
    picked, mirrored = scenes.picks(0, counts=counts, seed=1)
    assert set(mirrored) == {False, True}
    batch = scenes.batch(0, batch_size=12, seed=1)
    for row, (scene, flip) in enumerate(zip(picked, mirrored, strict=True)):
        source = scenes.sources[scene // 8]
        images, labels = source.load_with_maps(np.array([scene % 8]))
        if flip:
            images, labels = images.flip(-1), labels.flip(-1)
        assert torch.equal(batch.images[row], mixture.normalized(images)[0])
        shares = torch.nn.functional.one_hot(labels[0].long(), TEACHER_DIM).view(16, 8, 16, 8, -1).float().mean((1, 3))
        assert torch.equal(batch.shares[row], shares.flatten(0, 1))
        present = torch.unique(labels[labels > 0]).tolist()
        assert batch.present[row].nonzero().flatten().tolist() == [0] * (len(present) > 1) + present
    assert batch.teacher is not None
    assert torch.allclose(batch.teacher.patches.softmax(dim=2).sum(dim=2), torch.ones(12, NANO_CANVAS_GRID**2))
    targets = finishing.FinishTargets.of(batch, item_weight=4.0, teacher_share=0.5)
    assert (targets.cells >= batch.shares / 2 - 1e-6).all(), "half of a target is the labels'"
    assert targets.weight.mean() == pytest.approx(1) and len(targets.classes) == batch.num_single == counts[-1]


def test_a_share_of_the_rollouts_is_long(teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def recorded(model: object, batch: object, *, stop_probability: float, **settings: object) -> object:
        asked.append(stop_probability)
        return {"cells": torch.zeros(())}, 2

    monkeypatch.setattr(pretrain, "finishing_step", recorded)
    config = replace(nano_run(tmp_path, teacher_dir, save_every=1000), token_steps=0, steps=0, finish_steps=60)
    pretrain.train(replace(config, long_share=0.25, finish_stop_probability=0.4))
    assert set(asked) == {0.1, 0.4} and 5 <= asked.count(0.1) <= 25


def test_reading_tells_the_share_of_the_teacher_and_whether_it_falls() -> None:
    curves = dict(c2f_miou=[30.0, 45.0, 44.9, 50.0], c2f_top1=[50.0, 70.0, 69.0, 71.0])
    told = metrics.reading(curves, dict(miou=0.625, top1=0.8))
    assert told["c2f_miou"] == dict(
        glimpses=4, last=50.0, teacher=62.5, share_of_teacher=0.8, largest_fall=0.1, falls=False
    )
    assert told["c2f_top1"]["falls"] and told["c2f_top1"]["largest_fall"] == 1.0


def test_a_model_is_shipped_only_where_it_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = [40.0] * 4 + [46.0] * 16 + [49.0]
    better = [41.0] * 4 + [47.0] * 16 + [55.0]
    assert ship.Comparison("mIoU", shipped, better, (6.0, 4.0, 8.0)).reasons() == []
    (reason,) = ship.Comparison("mIoU", shipped, better, (6.0, -0.5, 8.0)).reasons()
    assert reason == "mIoU after 21 glimpses is +6.00 points (95 % interval -0.50 to +8.00): not clearly higher"
    (reason,) = ship.Comparison("mIoU", shipped, [41.0] * 20 + [55.0], (6.0, 4.0, 8.0)).reasons()
    assert reason == "mIoU after 5 glimpses is 41.00, below 46.00"
    (reason,) = ship.Comparison("mIoU", shipped, [47.0] * 19 + [57.0, 55.0], (6.0, 4.0, 8.0)).reasons()
    assert reason == "mIoU falls by 2.00 points with more glimpses; at most 0.25 would do"


def test_the_shipped_model_is_no_better_than_itself_and_nothing_is_changed(tmp_path: Path) -> None:
    for kind in ("segmentation", "classification"):
        shutil.copytree(asset_dir(f"nano-{kind}-probe"), tmp_path / f"{kind}-probe")
    before = {path: path.stat().st_mtime_ns for path in asset_dir("nano").iterdir()}
    config = ship.ShippingConfig(model_dir=asset_dir("nano"), probes_dir=tmp_path, compare_scenes=8)
    with pytest.raises(FileNotFoundError, match=r"there is no .*odd-probe: fit the probes on this model first"):
        ship.main(config)
    shutil.copytree(asset_dir("nano-odd-probe"), tmp_path / "odd-probe")
    with pytest.raises(ValueError, match=r"not shipped, and nothing was changed:\nmIoU after 21 .* not clearly higher"):
        ship.main(config)
    assert before == {path: path.stat().st_mtime_ns for path in asset_dir("nano").iterdir()}


def test_one_command_trains_on_from_a_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Teacher, nano, probes and metrics at a tiny size; the second call goes on from what the first one left."""
    settings: dict[str, Any] = dict(
        max_scenes=8, batch_size=6, teacher_batch_size=6, teacher_steps=2, finish_minutes=0.002
    )
    settings |= dict(probe_steps=1, probe_scenes=16, measured_scenes=4, glimpses=2, compile="off", device="cpu")
    first, second = tmp_path / "first", tmp_path / "second"
    with monkeypatch.context() as patch:
        patch.setattr(running.Budget, "spent", True)
        gpu_run.main(gpu_run.GpuRunConfig(state_dir=first, **settings))
    assert {path.name for path in first.iterdir()} == {"run.tar", "teacher_state.pt", "metrics.json"}
    assert json.loads((first / "metrics.json").read_text())["state"] == "the teacher is in training"

    environment = os.environ | {"DEVICE": "cpu", "MINUTES": "4", "PYTHON": sys.executable, "OUT": str(second)}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items() if name != "device"]
    command = ["bash", str(Path(gpu_run.__file__).with_name("gpu_run.sh")), str(first), *options]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    left = {path.name: path.stat().st_size for path in second.rglob("*") if path.is_file()}
    assert set(left) == {"run.tar", "nano_state.pt", "metrics.json", "log.txt"}
    assert max(left.values()) <= 16 * 2**20
    result = json.loads((second / "metrics.json").read_text())
    assert result["state"] == "all is done" and "all is done" in (second / "log.txt").read_text()
    assert set(result["reading"]) == {"c2f_miou", "c2f_top1"} and len(result["probes"]["c2f_miou"]) == 2
    with tarfile.open(second / "run.tar") as archive:
        names = archive.getnames()
    wanted = ["teacher/model.safetensors", "nano/model/model.safetensors"]
    wanted += [f"probes/{kind}-probe/model.safetensors" for kind in ("segmentation", "classification", "odd")]
    assert set(wanted) <= set(names)


def test_the_card_is_of_the_committed_metrics() -> None:
    record = json.loads((asset_dir("nano") / "metrics.json").read_text())
    card = ship.card(record)
    assert card == (asset_dir("nano") / "README.md").read_text()
    assert "| C2F top-1 at 21 >= 80 | 73.7 | missed |" in card and "| 13.07 | met |" in card
    assert set(record["metrics"]["goals"]) == set(ship.GOALS)


def test_the_card_says_where_its_commands_do_not_reproduce_the_weights() -> None:
    once = {"starts": [{}]}
    assert ship.commands_note({**once, "continues": once}) == ""
    for restarted in ({**once, "continues": {"starts": [{}, {}]}}, {"starts": [{}, {}], "continues": once}):
        assert "They do not reproduce a run that was started again" in ship.commands_note(restarted)


@pytest.mark.parametrize("score", [0.4225304, 0.6144672, 0.3349999])
def test_measured_numbers_are_rounded_once(score: float) -> None:
    class Measured:
        def score(self) -> np.ndarray:
            return np.array([score])

    (kept,) = ship.percent(cast(Evaluation, Measured()))
    assert f"{kept:.1f}" == f"{100 * score:.1f}"


def test_the_card_tells_a_command_for_every_run_of_the_weights() -> None:
    first = {"config": {"steps": 7}}
    second = {"config": {"token_steps": 0, "seed": 2, "device": "mps"}, "continues": first}
    defaults = " --run-dir runs/nano_{} --teacher-dir runs/teacher"
    pair = " --long-share 0.0 --rollouts full_then_random random --mixture pair"
    started, continued = (line.replace(" \\\n          ", " ") for line in ship.commands(second))
    assert started == "python -m experiments.nano.pretrain" + defaults.format(1) + " --steps 7" + pair
    assert continued.endswith(
        defaults.format(2) + " --init-from runs/nano_1/model --token-steps 0" + pair + " --seed 2"
    )
