"""Probes fitted on a user's folder: they learn, resume, stop, ignore what has no label, and environments read them."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from canvit_pytorch import CanViTForImageClassification, RecurrentState
from datasets import FOLDER_CLASSES, SEGMENTATION_CLASSES, tiny, write_image_folder
from safetensors.torch import load_file

from canvit_gym.backbone.load import Backbone, load_backbone
from canvit_gym.probes import fit
from canvit_gym.probes.fit import ProbeConfig, class_weights, fit_env, training_scenes
from canvit_gym.probes.heads import ClassificationHead, SegmentationHead
from canvit_gym.scenes.files import FileScenes
from canvit_gym.scenes.prepared import FashionScenes
from canvit_gym.scenes.source import SceneBatch

SEGMENTATION, CLASSIFICATION = "CanViT/SegmentationFolder-v0", "CanViT/ImageFolder-v0"
ROOTS = {SEGMENTATION: tiny("segmentation-folder"), CLASSIFICATION: tiny("image-folder")}


def tiny_fit(env: str, directory: Path, **changes: Any) -> ProbeConfig:
    given = dict(
        env=env, root=ROOTS[env], output_dir=directory, steps=6, batch_size=4, num_glimpses=2, validate_every=2,
        env_kwargs='{"workers": 0}', device="cpu",
    )  # fmt: skip
    return ProbeConfig(**{**given, **changes})


def record_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "training.json").read_text())


@pytest.fixture(scope="module", params=[SEGMENTATION, CLASSIFICATION])
def fitted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """(environment id, directory of a probe fitted on its tiny data set)"""
    directory = tmp_path_factory.mktemp("probe")
    fit.main(tiny_fit(request.param, directory, steps=30, validate_every=10))
    yield request.param, directory


def test_a_fit_learns_and_tells_how(fitted: tuple[str, Path]) -> None:
    env_id, directory = fitted
    record = record_of(directory)
    classes = SEGMENTATION_CLASSES if env_id == SEGMENTATION else FOLDER_CLASSES
    assert record["classes"] == list(classes) and record["env"] == env_id
    assert record["validation_loss"] == min(loss for _, loss in record["validations"])
    if env_id == SEGMENTATION:
        assert record["validation_loss"] < 0.9 * np.log(len(classes))
    assert len(record["metrics"]["score"]) == 2 and record["metrics"]["scenes"] > 2
    assert any(entry["name"] == "nano" for entry in record["provenance"]["loaded"])
    card = (directory / "README.md").read_text()
    assert all(name in card for name in classes) and env_id in card and "| after glimpse | 1 | 2 |" in card
    assert str(ROOTS[env_id]) not in json.dumps(record["config"]), "the machine's directories are not part of it"
    assert not (directory / fit.STATE).exists()


def test_an_environment_reads_it(fitted: tuple[str, Path]) -> None:
    env_id, directory = fitted
    env = gym.make(env_id, root=str(ROOTS[env_id]), probe=str(directory), split="test", device="cpu")
    _, info = env.reset(seed=0)
    *_, after = env.step(env.action_space.sample())
    assert np.isfinite([info["loss"], after["loss"]]).all()
    assert env.unwrapped.provenance["probe"]["name"] == directory.name  # pyright: ignore[reportAttributeAccessIssue]
    env.close()


def test_the_fused_classifier_is_the_one_fitted(tmp_path: Path) -> None:
    """Standardization is taken back in the file, and undone again by canvit-pytorch's fusion."""
    backbone = load_backbone("nano", device="cpu")
    head = ClassificationHead(backbone, torch.ones(5), reads_log_odds=False)
    torch.manual_seed(0)
    torch.nn.init.normal_(head.module.weight)
    torch.nn.init.normal_(head.module.bias)
    head.save(tmp_path)
    fused = CanViTForImageClassification.from_pretrained_with_probe(
        pretrained_repo=str(backbone.source.directory), probe_repo=str(tmp_path)
    ).eval()
    state = RecurrentState(canvas=torch.zeros(3, 1, 1), recurrent_cls=torch.randn(3, 1, backbone.canvit.backbone_dim))
    with torch.no_grad():
        expected = head.module(head.features(state))
        torch.testing.assert_close(fused.classify(state.recurrent_cls), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("env_id", [SEGMENTATION, CLASSIFICATION])
def test_an_interrupted_fit_goes_on_to_the_bit(env_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit.main(tiny_fit(env_id, tmp_path / "whole"))
    calls, rollout = 0, fit.run_episode

    def interrupted(**kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 10:
            raise KeyboardInterrupt
        return rollout(**kwargs)

    monkeypatch.setattr(fit, "run_episode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit.main(tiny_fit(env_id, tmp_path / "parts"))
    assert (tmp_path / "parts" / fit.STATE).exists() and not (tmp_path / "parts" / "training.json").exists()
    with pytest.raises(ValueError, match="interrupted fit with other settings"):
        fit.main(tiny_fit(env_id, tmp_path / "parts", peak_lr=0.1))
    with monkeypatch.context() as other, pytest.raises(ValueError, match="other settings or data"):
        for source in (FashionScenes, FileScenes):
            other.setattr(source, "fingerprint", "another folder of the same size and classes")
        fit.main(tiny_fit(env_id, tmp_path / "parts"))
    fit.main(tiny_fit(env_id, tmp_path / "parts"))
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    told = ("validations", "validation_loss", "metrics")
    assert [record_of(tmp_path / "whole")[key] for key in told] == [record_of(tmp_path / "parts")[key] for key in told]


def test_record_and_card_name_no_directory_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = ROOTS[CLASSIFICATION]
    options = json.dumps({"workers": 0, "root": str(root)})
    arguments = ["--env-kwargs", options, f"--output-dir={tmp_path / 'probe'}"]
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python", "/home/ann lee/bin/canvit-gym", "fit-probe", *arguments])
    fit.main(tiny_fit(CLASSIFICATION, tmp_path / "probe", steps=1, env_kwargs=options))
    record, card = (tmp_path / "probe" / "training.json", tmp_path / "probe" / "README.md")
    for text in (record.read_text(), card.read_text()):
        assert not any(where in text for where in ("ann lee", str(tmp_path), str(root.parent)))
    assert "canvit-gym fit-probe" in card.read_text()
    assert json.loads(record_of(tmp_path / "probe")["config"]["env_kwargs"]) == {"workers": 0, "root": root.name}


def test_a_fit_ends_where_it_gets_no_better(tmp_path: Path) -> None:
    config = tiny_fit(CLASSIFICATION, tmp_path, steps=20, validate_every=2, patience=2, peak_lr=1e-30, weight_decay=0.0)
    fit.main(config)
    assert [step for step, _ in record_of(tmp_path)["validations"]] == [2, 4, 6]
    assert record_of(tmp_path)["best_step"] == 2


def test_a_fit_that_diverges_says_so(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"Use a smaller --peak-lr than 1e\+30"):
        fit.main(tiny_fit(SEGMENTATION, tmp_path, peak_lr=1e30))


@pytest.mark.filterwarnings("ignore:scene .* is left out")
def test_no_validation_scene_that_can_be_read(tmp_path: Path) -> None:
    root = write_image_folder(tmp_path / "damaged")
    for path in (root / "val").glob("*/*"):
        path.write_bytes(b"")
    config = tiny_fit(CLASSIFICATION, tmp_path / "probe", root=root, env_kwargs='{"workers": 0, "unreadable": "skip"}')
    with pytest.raises(ValueError, match=r"none of the \d+ validation scenes of .* can be read"):
        fit.main(config)


def test_pixels_without_a_label_do_not_count() -> None:
    """Neither in the value of the loss nor in its gradient; nor does a batch without any label break it."""
    backbone = load_backbone("nano", device="cpu")
    head = SegmentationHead(backbone, torch.tensor([1.0, 3.0, 2.0]))
    grid, size = backbone.canvas_grid, backbone.scene_size_px
    torch.manual_seed(0)
    features = torch.randn(4, grid, grid, backbone.canvit.canvas_dim)
    labels = torch.randint(3, (2, size, size), dtype=torch.uint8)
    labels[:, : size // 2] = 255
    head.module.eval()
    before = head.loss(features, head.target(labels)).item()
    changed = features.clone()
    changed[:, : grid // 2] = 7.0
    assert head.loss(changed, head.target(labels)).item() == pytest.approx(before, rel=1e-6)
    assert head.loss(torch.randn_like(features), head.target(labels)).item() != pytest.approx(before, rel=1e-5)
    assert head.loss(features, head.target(torch.full_like(labels, 255))).item() == 0
    # A cell half labeled reads as the labeled half: what is not labeled is no class of its own.
    cell = size // grid
    half, full = torch.full_like(labels, 255), torch.full_like(labels, 255)
    half[:, :cell, : cell // 2], full[:, :cell, :cell] = 1, 1
    assert head.loss(features, head.target(half)).item() == pytest.approx(head.loss(features, head.target(full)).item())


class Unbalanced:
    """Nine pixels of class 0 to one of class 1, none of class 2; some without a label."""

    name, classes, scene_size_px = "unbalanced", ("often", "rarely", "never"), 10

    def __len__(self) -> int:
        return 4

    def load(self, indices: Any) -> SceneBatch:
        labels = torch.zeros(len(indices), 10, 10, dtype=torch.uint8)
        labels[:, 0] = 1
        labels[:, 5] = 255
        return SceneBatch(images=torch.zeros(len(indices), 3, 10, 10, dtype=torch.uint8), labels=labels)


def test_rare_classes_weigh_more() -> None:
    often, rarely, never = class_weights(Unbalanced(), balance=0.5).tolist()
    assert rarely / often == pytest.approx((321 / 41) ** 0.5, rel=1e-3)
    assert (often * 321 + rarely * 41 + never) / 363 == pytest.approx(1, rel=1e-3)
    assert rarely < never < np.inf
    assert class_weights(Unbalanced(), balance=0).tolist() == [1, 1, 1]


def test_training_passes_hold_each_scene_once() -> None:
    steps = np.concatenate([training_scenes(step, num_scenes=7, batch_size=3, seed=0) for step in range(7)])
    assert all(sorted(part) == list(range(7)) for part in steps.reshape(3, 7))
    assert not np.array_equal(steps[:7], steps[7:14])


def test_what_a_fit_is_told_wrong(tmp_path: Path) -> None:
    config = tiny_fit(SEGMENTATION, tmp_path)
    for changes, message in (
        ({"env": "CanViT/Nothing-v0"}, "unknown environment 'CanViT/Nothing-v0'; there are: CanViT/Fashion"),
        ({"env_kwargs": "[]"}, "--env-kwargs must be a JSON object"),
        ({"steps": 0}, "--steps must be an integer >= 1, got 0"),
        ({"seed": -1}, "--seed must be an integer >= 0, got -1"),
        ({"class_balance": float("nan")}, "--class-balance must be a finite number.*, got nan"),
        ({"root": None}, "pass root=directory"),
    ):
        changed = replace(config, **changes)
        with pytest.raises(ValueError, match=message):
            fit_env(changed, changed.env or "", tmp_path)


def test_fashion_scenes_and_a_backbone_of_another_size(tmp_path: Path) -> None:
    config = ProbeConfig(output_dir=tmp_path, env="CanViT/FashionSegmentation-v0", scene_size_px=256, device="cpu")
    with pytest.raises(ValueError, match=r"have 128 px, but checkpoint 'nano' expects 256: pass --scene-size-px 128"):
        fit.main(config)


def test_items_of_fashion_scenes_gain_a_bonus_in_what_is_saved(tmp_path: Path) -> None:
    """Over background alone, in the file alone; a user's classes gain none."""
    backbone = load_backbone("nano", device="cpu")
    scenes: Any = Unbalanced()
    config = ProbeConfig(output_dir=tmp_path, item_bonus=0.25, device="cpu")
    bias: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for env_id, fitting in (
        ("CanViT/FashionSegmentation-v0", config),
        (SEGMENTATION, tiny_fit(SEGMENTATION, tmp_path)),
    ):
        env = fit.environment_of(fitting, env_id)
        head: Any = fit.make_head(fitting, env, backbone, scenes)
        head.save(tmp_path)
        bias[env_id] = head.module.conv.bias.detach(), load_file(tmp_path / "model.safetensors")["conv.bias"]
    before, after = bias["CanViT/FashionSegmentation-v0"]
    torch.testing.assert_close(after - before, torch.tensor([-0.25, 0, 0]))
    assert torch.equal(*bias[SEGMENTATION])


def test_heads_are_deterministic(tmp_path: Path) -> None:
    backbone: Backbone = load_backbone("nano", device="cpu")
    torch.manual_seed(0)
    state = torch.get_rng_state()
    config = tiny_fit(SEGMENTATION, tmp_path)
    env = fit.environment_of(config, SEGMENTATION)
    heads = [fit.make_head(config, env, backbone, Unbalanced()) for _ in range(2)]
    one, other = (head.module.state_dict() for head in heads)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert torch.equal(torch.get_rng_state(), state)
