"""nano's teacher: a small convolutional network that sees the whole scene at full resolution, in one pass.

It takes the place of DINOv3 in CanViT's own pretraining. Its features are its class log-probabilities: per canvas
cell over background and the ten classes, and for the scene (the "CLS" features) the log-odds that it holds several
items and that it holds each class. experiments/nano/teacher.py trains it.
"""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from canvit_gym.scenes.fashion import SEGMENTATION_CLASSES

TEACHER_DIM = len(SEGMENTATION_CLASSES)
CELL_PX = 8
"""Side of a canvas cell in scene pixels: 128 px scenes, 16x16 canvas."""
LOG_PROB_FLOOR = -8.0
TEACHER_WEIGHTS = "model.safetensors"


class TeacherFeatures(NamedTuple):
    patches: Tensor  # [B, G*G, TEACHER_DIM], log-probabilities in [LOG_PROB_FLOOR, 0]
    cls: Tensor  # [B, TEACHER_DIM], log-odds in [LOG_PROB_FLOOR, -LOG_PROB_FLOOR]


class ResidualBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class PassiveTeacher(nn.Module):
    """ImageNet-normalized scenes [B, 3, 128, 128] -> logits per cell and per scene, in one pass."""

    def __init__(self, *, width: int = 96, num_blocks: int = 4) -> None:
        super().__init__()
        stem: list[nn.Module] = []
        channels = 3
        for out, kernel in ((width // 4, 5), (width // 2, 3), (width, 3)):
            stem += [nn.Conv2d(channels, out, kernel, stride=2, padding=kernel // 2, bias=False)]
            stem += [nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        self.trunk = nn.Sequential(*stem, *[ResidualBlock(width) for _ in range(num_blocks)])
        self.cell_head = nn.Conv2d(width, TEACHER_DIM, 1)
        self.scene_head = nn.Linear(2 * width, TEACHER_DIM)

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """([B, TEACHER_DIM, 16, 16], [B, TEACHER_DIM])."""
        features = self.trunk(images.contiguous(memory_format=torch.channels_last))
        pooled = torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1)
        return self.cell_head(features), self.scene_head(pooled)

    def forward(self, images: Tensor) -> TeacherFeatures:
        cells, scene = self.logits(images)
        log_probs = F.log_softmax(cells.float(), dim=1).clamp(min=LOG_PROB_FLOOR)
        return TeacherFeatures(
            patches=log_probs.flatten(2).transpose(1, 2).contiguous(),
            cls=scene.float().clamp(LOG_PROB_FLOOR, -LOG_PROB_FLOOR),
        )


def load_nano_teacher(weights: Path, device: torch.device) -> PassiveTeacher:
    """Frozen, in evaluation mode. `weights`: the safetensors file."""
    teacher = PassiveTeacher()
    teacher.load_state_dict(load_file(weights))
    return teacher.to(device).eval().requires_grad_(False)
