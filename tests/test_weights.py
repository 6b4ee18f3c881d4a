"""Weights that others made: sizes that the config only claims, and weights that are not finite, are refused."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from canvit_pytorch import SegmentationProbe
from safetensors.torch import load_file, save_file

from canvit_gym.backbone.hub import asset_dir
from canvit_gym.backbone.load import load_backbone
from canvit_gym.scenes.fashion import CLASSES
from canvit_gym.tasks.classification import load_classifier
from canvit_gym.tasks.segmentation import load_probe


@pytest.fixture
def nano(tmp_path: Path) -> Path:
    return Path(shutil.copytree(asset_dir("nano"), tmp_path / "nano"))


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    return Path(shutil.copytree(asset_dir("nano-segmentation-probe"), tmp_path / "probe"))


def declare(directory: Path, where: str, value: Any) -> None:
    """Change an entry of config.json."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    *groups, name = where.split(".")
    entry = config
    for group in groups:
        entry = entry.setdefault(group, {})
    entry[name] = value
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")


def spoil(directory: Path, value: float) -> None:
    weights = load_file(directory / "model.safetensors")
    name = next(name for name, tensor in weights.items() if tensor.is_floating_point() and tensor.numel() > 1)
    weights[name].view(-1)[1] = value
    save_file(weights, directory / "model.safetensors")


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        ("teacher_dim", 10**9, "says teacher_dim=1000000000, but there are 8\\d+ weights in all"),
        ("teacher_patch_grid", 10**9, "says teacher_patch_grid=1000000000"),
        (
            "teacher_patch_grid",
            900,
            r"makes teacher_patch_standardizer\.mean \[810000, 11\], but the weights",
        ),
        ("canvit_config.canvas_head_dim", 10**9, "says canvas_head_dim=1000000000"),
        ("canvit_config.num_canvas_registers", 200_000, r"makes .*registers \[1, 200000, 128\], but the weights hold"),
        ("training.scene_size_px", 10**9, "records a canvas of 16 cells, scenes of 1000000000 px.* which cannot be"),
        ("training.glimpse_size_px", 0, "glimpses of 0 px, which cannot be"),
    ],
)
def test_sizes_of_a_checkpoint(nano: Path, where: str, value: int, told: str) -> None:
    declare(nano, where, value)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=told) as caught:
        load_backbone(str(nano), device="cpu")
    assert str(nano) in str(caught.value)
    assert time.perf_counter() - start < 10, "nothing of that size was made"


@pytest.mark.parametrize(("where", "value"), [("embed_dim", 10**9), ("num_classes", 10**9), ("num_classes", 300)])
def test_sizes_of_a_probe(probe: Path, where: str, value: int) -> None:
    declare(probe, where, value)
    with pytest.raises(ValueError, match=r"probe .* is not a SegmentationProbe of canvit-pytorch: its config\.json"):
        load_probe(str(probe), load_backbone(device="cpu"), classes=("a", "b"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(nano: Path, probe: Path, tmp_path: Path, value: float) -> None:
    backbone = load_backbone(device="cpu")
    for directory in (nano, probe):
        spoil(directory, value)
    with pytest.raises(ValueError, match="holds NaN or infinite weights"):
        load_backbone(str(nano), device="cpu")
    with pytest.raises(ValueError, match="holds NaN or infinite weights"):
        load_probe(str(probe), backbone, classes=CLASSES)
    classifier = Path(shutil.copytree(asset_dir("nano-classification-probe"), tmp_path / "classifier"))
    spoil(classifier, value)
    with pytest.raises(ValueError, match=r"does not fit checkpoint 'nano': .*holds NaN or infinite weights"):
        load_classifier(str(classifier), backbone, classes=CLASSES)


def test_a_probe_of_half_precision_is_read(tmp_path: Path) -> None:
    probe = SegmentationProbe(embed_dim=128, num_classes=2, dropout=0.0, use_ln=True)
    probe.half().save_pretrained(tmp_path / "half")
    loaded, _ = load_probe(str(tmp_path / "half"), load_backbone(device="cpu"), classes=("a", "b"))
    assert {tensor.dtype for tensor in loaded.state_dict().values() if tensor.is_floating_point()} == {torch.float32}
