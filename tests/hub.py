"""A local directory laid out like CanViT's Hub organization, with randomly initialized models of ViT-S size.

`hub_root` points $CANVIT_HUB_ROOT to it for the rest of the session. It holds the flagship (scenes of 512 px, a
32 x 32 canvas of 64 channels, glimpses of 128 px), the classifier fine-tuned on ImageNet-1k, the ImageNet-1k
probe of the teacher, and the flagship's ADE20K probes at `ADE20K_GRIDS`. What is in no probe's name, such as the
weights, is random: the numbers mean nothing, but two ways to compute them must agree.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from canvit_core.config import CanViTConfig
from canvit_pytorch import (
    CanViT,
    CanViTForImageClassification,
    CanViTForPretraining,
    RecurrentState,
    SegmentationProbe,
    sample_at_viewpoint,
)
from canvit_pytorch.hub import repos
from canvit_pytorch.model.backbone.vit import LayerScale
from canvit_pytorch.model.readout import LinearReadout
from canvit_pytorch.policies import make_policy
from safetensors.torch import save_file
from torch import Tensor, nn

HUB_CONFIG = CanViTConfig(backbone_name="vits16", canvas_num_heads=2, canvas_head_dim=32)
TEACHER_DIM = 24
ADE20K_GRIDS = (8, 32, 64)
"""Canvas grids that `hub_root` has probes for, at scenes of 512 px. The paper has more of them."""


def repo_dir(root: Path, repo: str) -> Path:
    """Where a repository of canvit_pytorch.hub.repos lies under `root`."""
    return root / Path(repo).name


def ade20k_probe_dir(root: Path, grid: int, *, scene_size_px: int = 512) -> Path:
    return repo_dir(root, repos.released_ade20k_probe("in21k", scene_size_px=scene_size_px, canvas_grid_size=grid))


def random_dinov3(directory: Path, *, width: int, patch_px: int) -> Path:
    """A DINOv3 of one block, as transformers saves it."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = DINOv3ViTConfig(
            hidden_size=width, intermediate_size=2 * width, num_hidden_layers=1, num_attention_heads=2,
            patch_size=patch_px, num_register_tokens=4,
        )  # fmt: skip
        DINOv3ViTModel(config).save_pretrained(directory)
    return directory


def enlivened(model: CanViTForPretraining) -> None:
    """A random CanViT hardly sees its glimpse, at its initial LayerScale of 1e-5, nor where on the canvas it belongs:
    every cell would be read as the same class."""
    for module in model.modules():
        if isinstance(module, LayerScale):
            nn.init.constant_(module.gamma, 0.2)
    for write in model.canvit.canvas_writes:
        write.get_submodule("k_map").get_parameter("weight").mul_(8)


@torch.no_grad()
def seen(canvit: CanViT, *, grid: int) -> RecurrentState:
    """States after two glimpses of patterns, to center random readouts on: else they read one class everywhere."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(4, 3, 8, 8, generator=generator)
    scenes = 2 * F.interpolate(coarse, size=(256, 256), mode="nearest")
    state = canvit.init_state(batch_size=4, canvas_grid_size=grid)
    for t in range(2):
        policy = make_policy(
            "coarse_to_fine", batch_size=4, device=scenes.device, num_glimpses=2, canvas_grid_size=grid
        )
        viewpoint = policy.step(t, state)
        glimpse = sample_at_viewpoint(spatial=scenes, viewpoint=viewpoint, glimpse_size_px=128)
        state = canvit(glimpse=glimpse, state=state, viewpoint=viewpoint).state
    return state


@torch.no_grad()
def center(readout: LinearReadout, features: Tensor) -> None:
    """Outputs of mean 0 and deviation 1 over features [B, D]."""
    outputs = readout(features)
    readout.proj.weight /= outputs.std(dim=0).unsqueeze(1)
    readout.proj.bias.copy_((readout.proj.bias - outputs.mean(dim=0)) / outputs.std(dim=0))


def random_probe(*, embed_dim: int, num_classes: int, features: Tensor | None = None) -> SegmentationProbe:
    """A probe whose normalization statistics are those of `features` [B, G, G, D] (default: no one's)."""
    probe = SegmentationProbe(embed_dim=embed_dim, num_classes=num_classes, dropout=0.1, use_ln=True)
    nn.init.normal_(probe.conv.weight, std=0.2)
    assert probe.bn.running_mean is not None and probe.bn.running_var is not None
    nn.init.normal_(probe.bn.running_mean, std=0.1)
    nn.init.uniform_(probe.bn.running_var, 0.5, 2.0)
    if features is not None:
        normalized = probe.ln(features).flatten(0, 2)
        probe.bn.running_mean.copy_(normalized.mean(dim=0))
        probe.bn.running_var.copy_(normalized.var(dim=0))
    return probe


def build_hub(root: Path) -> None:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        flagship = CanViTForPretraining(canvit_config=HUB_CONFIG, teacher_dim=TEACHER_DIM, teacher_patch_grid=32)
        enlivened(flagship)
        flagship.teacher_patch_standardizer.fit(torch.randn(4, 32**2, TEACHER_DIM) + 0.3)
        flagship.teacher_cls_standardizer.fit(2 * torch.randn(8, 1, TEACHER_DIM) - 0.5)
        states = {grid: seen(flagship.canvit, grid=grid) for grid in ADE20K_GRIDS}
        center(flagship.teacher_cls_readout, states[32].recurrent_cls[:, 0])
        flagship.save_pretrained(repo_dir(root, repos.FLAGSHIP))

        finetuned = CanViTForImageClassification(canvit_config=HUB_CONFIG, n_classes=1000)
        finetuned.canvit.load_state_dict(flagship.canvit.state_dict())
        nn.init.normal_(finetuned.canvit.init_recurrent_cls)  # other weights than the flagship's
        center(finetuned.readout, seen(finetuned.canvit, grid=32).recurrent_cls[:, 0])
        finetuned.save_pretrained(repo_dir(root, repos.FINETUNED_IN1K))

        teacher_probe = repo_dir(root, repos.DINOV3_VITB16_IN1K_PROBE)
        teacher_probe.mkdir(parents=True)
        weights = {"weight": 0.3 * torch.randn(1000, TEACHER_DIM), "bias": 0.1 * torch.randn(1000)}
        save_file(weights, teacher_probe / "model.safetensors")

        for grid in ADE20K_GRIDS:
            features = flagship.canvit.canvas_patch_grid(states[grid].canvas)
            probe = random_probe(embed_dim=HUB_CONFIG.canvas_dim, num_classes=150, features=features)
            probe.save_pretrained(ade20k_probe_dir(root, grid))


@pytest.fixture(scope="session")
def hub_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """$CANVIT_HUB_ROOT, see this module. Set for the rest of the session: a test of the real Hub deletes it."""
    root = tmp_path_factory.mktemp("hub")
    build_hub(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CANVIT_HUB_ROOT", str(root))
        yield root
