"""CanViT's step through torch.compile, for any number of scenes.

What is compiled is the twin of canvit_gym.backbone.twin, with three of its functions written so that PyTorch's compiler
makes fast kernels of them. As canvit-pytorch writes them, compilation makes a step slower on a CPU.
"""

import logging
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from canvit_pytorch import CanViT, RecurrentState, Viewpoint
from canvit_pytorch.model.rope import RoPE
from torch import Tensor

from canvit_gym.backbone.twin import GlimpseRope, glimpse_rope, rebound, twin_of

log = logging.getLogger("canvit_gym")

CUDA_GRAPH_SCENES = 16
"""Up to so many scenes at once, launching a step's kernels one by one takes longer than running them."""

CUDA_GRAPH_OPTIONS: dict[str, Any] = {
    "triton.cudagraphs": True,
    # A graph is recorded for every number of scenes; they are few.
    "triton.cudagraph_dynamic_shape_warn_limit": None,
}
EXPECTED_SECONDS = {"cpu": 30, "cuda": 60}
"""What a compilation takes on two CPU cores, or with a GPU."""

Step = Callable[[Tensor, RecurrentState, Viewpoint], RecurrentState]


# To the compiler this is one operation it cannot look into: it would otherwise compute sines within the loops of every
# attention, once per use and one number at a time.
@torch.library.custom_op("canvit_gym::glimpse_rope", mutates_args=())
def _glimpse_rope(positions: Tensor, periods: Tensor, num_prefix: int) -> tuple[Tensor, Tensor]:
    return glimpse_rope(positions, periods, num_prefix)


@_glimpse_rope.register_fake
def _(positions: Tensor, periods: Tensor, num_prefix: int) -> tuple[Tensor, Tensor]:
    num, tokens, _ = positions.shape
    sin = positions.new_empty(num, 1, num_prefix + tokens, 4 * periods.shape[0])
    return sin, torch.empty_like(sin)


def _rotate(x: Tensor, rope: RoPE) -> Tensor:
    """As canvit_gym.backbone.twin.rotate; its copies of halves would not become part of one loop."""
    halves, sin, cos = (t.unflatten(-1, (2, -1)) for t in (x.float(), rope.sin, rope.cos))
    return (halves * cos + halves.flip(-2) * sin).flatten(-2).to(x.dtype)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """On a CPU, the many canvas tokens' attention to the few of a glimpse with the scores' long side innermost."""
    if query.device.type != "cpu" or key.shape[2] >= query.shape[2]:
        return F.scaled_dot_product_attention(query, key, value)
    scores = torch.matmul(key * query.shape[-1] ** -0.5, query.transpose(2, 3))  # [B, heads, N_key, N_query]
    return torch.matmul(scores.softmax(dim=2).transpose(2, 3), value)


class _Case(NamedTuple):
    """What a compilation of its own is for; the number of scenes makes no other difference."""

    single: bool
    """One scene: the compiler specializes on sizes of 1."""
    graphs: bool
    """Through CUDA graphs."""


class CompiledStep:
    """Called as `Step`. Compiles at the first call; where that fails, every call is `eager`'s, after one warning."""

    def __init__(self, canvit: CanViT, *, canvas_grid: int, eager: Step, name: str) -> None:
        self._canvit = canvit
        self._canvas_grid = canvas_grid
        self._eager = eager
        self._name = name
        self._compiled: dict[_Case, Callable[..., tuple[Tensor, Tensor]]] = {}
        self._failed = False
        self.seconds = 0.0
        """What compilation has taken so far."""

    def __call__(self, glimpse: Tensor, state: RecurrentState, viewpoint: Viewpoint) -> RecurrentState:
        if self._failed:
            return self._eager(glimpse, state, viewpoint)
        num, device = len(glimpse), glimpse.device
        case = _Case(single=num == 1, graphs=device.type == "cuda" and num <= CUDA_GRAPH_SCENES)
        first = case not in self._compiled
        if first:
            self._compiled[case] = self._compile(device, case)
        # Strides are part of what is compiled for: those of a token expanded or cut out would be another case each.
        recurrent_cls = state.recurrent_cls
        if recurrent_cls.stride() != (recurrent_cls.shape[-1], recurrent_cls.shape[-1], 1):
            recurrent_cls = recurrent_cls.clone(memory_format=torch.contiguous_format)
        arguments = (glimpse, state.canvas, recurrent_cls, viewpoint.centers, viewpoint.scales)
        if not case.single:
            for argument in arguments:
                torch._dynamo.maybe_mark_dynamic(argument, 0)
        if not first:
            return self._run(case, arguments)
        began = time.perf_counter()
        log.warning("compiling %s for %s, about %d s", self._name, device.type, EXPECTED_SECONDS.get(device.type, 60))
        try:
            after = self._run(case, arguments)
        except Exception as error:  # whatever the compiler and the tools it calls may raise
            self._failed = True
            warnings.warn(
                f"{self._name} cannot be compiled and runs eagerly: {type(error).__name__}: {_first_line(error)}. On a "
                "CPU torch.compile needs a C++ compiler (g++, or another in $CXX); leave compile=True out otherwise.",
                stacklevel=2,
            )
            return self._eager(glimpse, state, viewpoint)
        self.seconds += time.perf_counter() - began
        log.warning("compiled %s in %.0f s", self._name, time.perf_counter() - began)
        return after

    def _run(self, case: _Case, arguments: tuple[Tensor, ...]) -> RecurrentState:
        if case.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        canvas, recurrent_cls = self._compiled[case](*arguments)
        if case.graphs:  # the graph's next replay writes into the same memory
            canvas, recurrent_cls = canvas.clone(), recurrent_cls.clone()
        return RecurrentState(canvas=canvas, recurrent_cls=recurrent_cls)

    def _compile(self, device: torch.device, case: _Case) -> Callable[..., tuple[Tensor, Tensor]]:
        twin = twin_of(
            self._canvit,
            canvas_grid=self._canvas_grid,
            device=device,
            rotate=_rotate,
            glimpse_rope=cast(GlimpseRope, _glimpse_rope),
            attend=_attend,
        )

        def step(
            glimpse: Tensor, canvas: Tensor, recurrent_cls: Tensor, centers: Tensor, scales: Tensor
        ) -> tuple[Tensor, Tensor]:
            state = RecurrentState(canvas=canvas, recurrent_cls=recurrent_cls)
            after = twin(glimpse=glimpse, state=state, viewpoint=Viewpoint(centers=centers, scales=scales)).state
            return after.canvas, after.recurrent_cls

        return torch.compile(rebound(step), options=CUDA_GRAPH_OPTIONS if case.graphs else None)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "no message"
