"""The benchmark's law: on the same scenes, checkpoint and probe, our numbers are those of canvit_pytorch.evaluate.

Its own tasks run here as its command line runs them, on data sets in ADE20K's and ImageNet's layouts and a randomly
initialized checkpoint with random probes, and `evaluate` beside them.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from canvit_pytorch import CanViTForPretraining
from canvit_pytorch.evaluate import config as protocol
from canvit_pytorch.policies import PolicyName
from datasets import classification_probe, tiny
from hub import enlivened, random_dinov3, random_probe

from canvit_gym.backbone.nano import nano_config
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import Evaluation, evaluate
from canvit_gym.policies import PaperPolicy, Seen

TEACHER_DIM = 24
SEED = 3
PAPER: list[PolicyName] = [
    "full_then_random",
    "random",
    "coarse_to_fine",
    "fine_to_coarse",
    "entropy_coarse_to_fine",
    "repeated_full_scene",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CanViT of nano's architecture with random weights, for scenes of 128 px."""
    path = tmp_path_factory.mktemp("checkpoint")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        model = CanViTForPretraining(canvit_config=nano_config(), teacher_dim=TEACHER_DIM, teacher_patch_grid=16)
        enlivened(model)
        model.teacher_cls_standardizer.fit(2 * torch.randn(8, 1, TEACHER_DIM) - 0.5)
        model.teacher_patch_standardizer.fit(torch.randn(4, 16**2, TEACHER_DIM) + 0.3)
        model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def ade20k_probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random, but with a bias for the classes that the images have: else hardly a pixel would be right."""
    path = tmp_path_factory.mktemp("probe")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(2)
        probe = random_probe(embed_dim=nano_config().canvas_dim, num_classes=150)
        assert probe.conv.bias is not None
        probe.conv.bias[[0, 3, 4, 12, 20, 76, 101, 149]] += 20
        probe.save_pretrained(path)
    return path


@pytest.fixture
def one_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """canvit-pytorch draws random viewpoints from the global generator, of which loading has drawn by then. From here
    on every batch begins with SEED."""
    make_policy = protocol.make_policy

    def seeded(*args: Any, **kwargs: Any) -> Any:
        torch.manual_seed(SEED)
        return make_policy(*args, **kwargs)

    monkeypatch.setattr(protocol, "make_policy", seeded)


def episode(name: PolicyName, num_glimpses: int) -> protocol.EpisodeConfig:
    return protocol.EpisodeConfig(policy=name, num_glimpses=num_glimpses, canvas_grid_size=16, glimpse_size_px=32)


class Reseeded(PaperPolicy):
    """With `one_seed`, so that both draw the same in every batch."""

    def reset(self, seen: Seen, *, seed: int) -> None:
        torch.manual_seed(seed)
        super().reset(seen, seed=seed)


def ours(name: PolicyName, num_glimpses: int, *, batch_size: int, **config: Any) -> Evaluation:
    return evaluate(
        Reseeded(name, num_glimpses=num_glimpses, random_stream="batch"),
        config=EnvConfig(split="validation", device="cpu", workers=0, **config),
        num_glimpses=num_glimpses,
        batch_size=batch_size,
        seed=SEED,
    )


@pytest.mark.parametrize("name", PAPER)
def test_ade20k_miou(
    checkpoint: Path,
    ade20k_probe: Path,
    one_seed: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: PolicyName,
) -> None:
    if importlib.util.find_spec("transformers") is None:
        # canvit-pytorch imports it for the DINOv3 baseline, which does not run here.
        absent = ModuleType("transformers")
        absent.AutoModel = absent.PreTrainedModel = object  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "transformers", absent)
    from canvit_pytorch.evaluate.tasks.ade20k_segmentation import ADE20kSegmentationCanViT

    root, num_glimpses, batch_size = tiny("ade20k"), 6, 4
    monkeypatch.setenv("ADE20K_ROOT", str(root))
    task = ADE20kSegmentationCanViT(
        output=tmp_path / "ade20k.pt",
        pretrained_repo=str(checkpoint),
        probe_repo=str(ade20k_probe),
        episode=episode(name, num_glimpses),
        scene_size_px=128,
        batch_size=batch_size,
        device="cpu",
        num_workers=0,
        amp=False,
    )
    saved = torch.load(task.run(), weights_only=False)
    expected = [saved["mious"][f"t{t}"] for t in range(num_glimpses)]
    result = ours(
        name,
        num_glimpses,
        batch_size=batch_size,
        dataset="ade20k",
        root=str(root),
        checkpoint=str(checkpoint),
        probe=str(ade20k_probe),
    )
    assert len(result.scene) == saved["metadata"]["n_images"] == 6
    # The probe is fused into one product: two float32 orders of the same sums, so that a pixel of a tie may differ.
    np.testing.assert_allclose(result.score(), expected, rtol=1e-4)
    assert min(expected) > 0.005 and len(set(expected)) > 1


@pytest.mark.parametrize("name", ["random", "coarse_to_fine"])
def test_reconstruction(
    checkpoint: Path, one_seed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: PolicyName
) -> None:
    """The cosine of standardized patch features, with a DINOv3 of the teacher's architecture and random weights."""
    pytest.importorskip("transformers")
    from canvit_pytorch.evaluate.tasks import reconstruction

    root, num_glimpses, batch_size = tiny("ade20k"), 5, 4
    teacher = random_dinov3(tmp_path / "teacher", width=TEACHER_DIM, patch_px=8)
    monkeypatch.setenv("ADE20K_ROOT", str(root))
    monkeypatch.setattr(reconstruction, "TEACHER_REPO", str(teacher))
    task = reconstruction.Reconstruction(
        output=tmp_path / "reconstruction.pt",
        pretrained_repo=str(checkpoint),
        episode=episode(name, num_glimpses),
        batch_size=batch_size,
        device="cpu",
        num_workers=0,
        amp=False,
    )
    saved = torch.load(task.run(), weights_only=False)
    expected = [row["scene_cos_norm"] for row in saved["per_timestep"]]
    result = ours(
        name,
        num_glimpses,
        batch_size=batch_size,
        dataset="unlabelled-folder",
        root=str(root / "images"),
        checkpoint=str(checkpoint),
        probe=str(teacher),
        observations=("time",),
    )
    assert len(result.scene) == saved["n_images"] == 6
    np.testing.assert_allclose(result.score(), expected, rtol=1e-4, atol=1e-6)
    assert len(set(expected)) > 1


def test_imagenet_predictions(
    checkpoint: Path, one_seed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The saved top-5 of a thousand images in as many class folders, with a probe fused as canvit-pytorch does."""
    from canvit_pytorch.evaluate.tasks.imagenet_classification import FrozenWithFusedProbe, ImageNetClassification

    root, probe, num_glimpses = tiny("imagenet1k"), classification_probe(1000, teacher_dim=TEACHER_DIM), 2
    name, batch_size = "full_then_random", 100
    monkeypatch.setenv("IMAGENET_VAL", str(root / "val"))
    task = ImageNetClassification(
        output=tmp_path / "imagenet.pt",
        classifier=FrozenWithFusedProbe(pretrained_repo=str(checkpoint), probe_repo=str(probe)),
        episode=episode(name, num_glimpses),
        scene_size_px=128,
        batch_size=batch_size,
        device="cpu",
        num_workers=0,
        amp=False,
    )
    saved = torch.load(task.run(), weights_only=False)
    right = saved["top_k_preds"] == saved["labels"][:, None, None]  # [N, T, 5]
    result = ours(
        name,
        num_glimpses,
        batch_size=batch_size,
        dataset="imagenet1k",
        root=str(root),
        checkpoint=str(checkpoint),
        probe=str(probe),
    )
    assert result.counts["rank"].shape == right.shape[:2] == (1000, num_glimpses)
    # The class of an image is at the same place among the five, or not among them.
    place = torch.where(right.any(dim=2), right.int().argmax(dim=2), 5).numpy()
    assert np.array_equal(np.minimum(result.counts["rank"], 5), place)
    np.testing.assert_allclose(result.score(), right[..., 0].double().mean(dim=0), atol=1e-9)
    np.testing.assert_allclose(result.share("top5"), right.any(dim=2).double().mean(dim=0), atol=1e-9)
    assert result.share("top5").max() > 0
