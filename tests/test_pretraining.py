"""Teacher, nano and probes train, resume to the bit, and are read back by canvit-pytorch; all at a tiny size."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from canvit_pytorch import CanViTForImageClassification, CanViTForSemanticSegmentation
from safetensors.torch import load_file

from experiments import fit_probe, pretrain_nano, teacher

TINY = dict(num_segmentation=32, num_classification=16, batch_size=4, device="cpu")


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("teacher")
    teacher.train(teacher.TeacherConfig(run_dir=run_dir, steps=2, validation_scenes=8, test_scenes=8, **TINY))
    return run_dir


def nano_run(run_dir: Path, teacher_dir: Path, *, save_every: int = 1) -> pretrain_nano.PretrainingConfig:
    return pretrain_nano.PretrainingConfig(
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
    pretrain_nano.train(nano_run(run_dir, teacher_dir))
    return run_dir


@pytest.mark.parametrize("phase", ["training_step", "finishing_step"])
def test_interrupted_pretraining_resumes_to_the_bit(
    nano_dir: Path, teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    step = getattr(pretrain_nano, phase)
    calls = 0

    def interrupted(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    monkeypatch.setattr(pretrain_nano, phase, interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain_nano.train(nano_run(tmp_path, teacher_dir))
    monkeypatch.undo()
    pretrain_nano.train(nano_run(tmp_path, teacher_dir))
    ours, theirs = (load_file(d / "model" / "model.safetensors") for d in (tmp_path, nano_dir))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_pretraining_goes_on_from_a_shipped_model(nano_dir: Path, teacher_dir: Path, tmp_path: Path) -> None:
    config = replace(nano_run(tmp_path, teacher_dir), init_from=nano_dir / "model", steps=0, finish_steps=1, peak_lr=0)
    pretrain_nano.train(config)
    ours, theirs = (load_file(d / "model" / "model.safetensors") for d in (tmp_path, nano_dir))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs), "without a learning rate nothing moves"


def test_non_finite_gradients_stop_the_run_and_keep_the_last_state(
    teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *a, **k: torch.tensor(float("nan")))
    with pytest.raises(FloatingPointError, match=r"step 0.*last good state"):
        pretrain_nano.train(nano_run(tmp_path, teacher_dir))
    assert (tmp_path / "state.pt").exists()


def test_probes_are_read_by_canvit_pytorch(nano_dir: Path, tmp_path: Path) -> None:
    checkpoint = str(nano_dir / "model")
    fit_probe.main(
        fit_probe.ProbeConfig(
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
    config = pretrain_nano.PretrainingConfig(run_dir=Path("x"), teacher_dir=Path("y"), steps=1000, finish_steps=500)
    stops = [pretrain_nano.stop_probability(config, step) for step in (0, 300, 750, 999)]
    assert stops == sorted(stops, reverse=True) and stops[0] == 0.5 and stops[-1] == pytest.approx(0.2)
    rates = [pretrain_nano.learning_rate(config, step) for step in (999, 1200, 1499)]
    assert rates == sorted(rates, reverse=True) and rates[0] == config.peak_lr > 10 * rates[-1] > 0
