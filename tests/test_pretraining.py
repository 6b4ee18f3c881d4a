"""Teacher, nano and probes train, resume to the bit, and are read back by canvit-pytorch; all at a tiny size."""

import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from canvit_pytorch import CanViTForImageClassification, CanViTForPretraining, CanViTForSemanticSegmentation
from safetensors.torch import load_file

from canvit_gym.backbone.hub import asset_dir
from canvit_gym.backbone.nano import NANO_CANVAS_GRID, nano_config
from canvit_gym.backbone.nano_teacher import TEACHER_DIM, load_nano_teacher
from canvit_gym.evaluation import Evaluation
from canvit_gym.probes import fit
from experiments.nano import finishing, pretrain, ship, teacher

TINY = dict(num_segmentation=32, num_classification=16, batch_size=4, device="cpu")


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
        finish_batch_size=4,
        save_every=save_every,
        validate_every=100,
        validation_scenes=4,
        standardizer_scenes=16,
        compile=False,
        **TINY,
    )


@pytest.fixture(scope="module")
def nano_dir(tmp_path_factory: pytest.TempPathFactory, teacher_dir: Path) -> Path:
    run_dir = tmp_path_factory.mktemp("nano")
    pretrain.train(nano_run(run_dir, teacher_dir))
    return run_dir


@pytest.mark.parametrize(
    ("phase", "muon_lr"), [("training_step", None), ("finishing_step", None), ("finishing_step", 1e-3)]
)
def test_interrupted_pretraining_resumes_to_the_bit(
    teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str, muon_lr: float | None
) -> None:
    config = replace(nano_run(tmp_path / "interrupted", teacher_dir), muon_lr=muon_lr)
    pretrain.train(replace(config, run_dir=tmp_path / "whole"))
    step = getattr(pretrain, phase)
    calls = 0

    def interrupted(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    monkeypatch.setattr(pretrain, phase, interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain.train(config)
    monkeypatch.undo()
    pretrain.train(config)
    ours, theirs = (load_file(tmp_path / d / "model" / "model.safetensors") for d in ("interrupted", "whole"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


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


def test_targets_are_mirrored_with_their_scenes(teacher_dir: Path) -> None:
    scenes = teacher.MixedScenes(
        num_segmentation=32, num_classification=16, batch_size=8, seed=3, classification_share=0.5
    )
    network = load_nano_teacher(teacher_dir / "model.safetensors", torch.device("cpu"))
    prepared = finishing.FinishScenes(scenes, teacher=network, device=torch.device("cpu"))
    mirrored = set()
    for step in range(8):
        batch, (images, labels) = prepared.batch(step), scenes.batch(step)
        assert torch.equal(batch.images, teacher.normalized(images)) and batch.num_classification == 4
        assert torch.allclose(batch.cells.sum(dim=2), torch.ones(8, NANO_CANVAS_GRID**2), atol=5e-3)
        labelled = teacher.cell_fractions(labels).flatten(2).transpose(1, 2)
        assert (batch.cells >= labelled / 2 - 1e-3).all(), "half of a target is the labels'"
        several = torch.tensor([True] * 4 + [False] * 4)
        assert (batch.scene >= teacher.scene_targets(labels, several=several) / 2 - 1e-3).all()
        mirrored.add(scenes.picks(step)[-1])
    assert mirrored == {False, True}


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
    started, continued = (line.replace(" \\\n          ", " ") for line in ship.commands(second))
    assert started == "python -m experiments.nano.pretrain" + defaults.format(1) + " --steps 7"
    assert continued.endswith(defaults.format(2) + " --init-from runs/nano_1/model --token-steps 0 --seed 2")
