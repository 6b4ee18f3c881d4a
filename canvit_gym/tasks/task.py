"""What a task is: how a probe decodes a state, and how good the decoding is.

A reading is the probe's logits. The loss is a cross-entropy, dense and smooth; the score is what people
report (mIoU, accuracy). Both are per scene.
"""

from typing import Any, Protocol

from canvit_pytorch import RecurrentState
from torch import Tensor


class Task(Protocol):
    """Decodes the states of one frozen backbone with one frozen probe. `Truth` is a batch of scenes' labels."""

    name: str
    classes: tuple[str, ...]
    is_dense: bool
    """Whether readings are maps over the canvas."""
    probe_sha256: str

    def truth(self, labels: Tensor) -> dict[str, Tensor]:
        """A SceneBatch's labels -> named tensors [n, ...] on the device, whatever loss and score need."""
        ...

    def read(self, state: RecurrentState, canvas_norm: Tensor | None) -> Tensor:
        """The probe's float32 logits: [B, K, G, G] where dense, else [B, K].

        canvas_norm: the canvas patches [B, G*G, D] after a LayerNorm without affine, if the caller has them.
        """
        ...

    def loss(self, logits: Tensor, truth: dict[str, Tensor]) -> Tensor:
        """[B] cross-entropy in nats."""
        ...

    def score(self, logits: Tensor, truth: dict[str, Tensor]) -> Tensor:
        """[B] in [0, 1]: mIoU of each scene, or whether it is classified correctly."""
        ...

    def predict(self, logits: Tensor) -> Any:
        """Dense: [B, H, W] labels at scene size; else [B, K] probabilities."""
        ...
