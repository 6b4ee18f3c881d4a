"""Functions of tensors through torch.compile and CUDA graphs, and a count of what really ran.

A compiled function never pretends: where compiling fails it runs eagerly, after one warning, and says "eager" of every
call. On a GPU a call may also be recorded as a CUDA graph, whose replay launches all of its kernels at once.

Memory of graphs: all of this process share one pool, so that their intermediate values take what the largest of them
needs; each holds its inputs and outputs besides. A function records at most `MAX_GRAPHS`, the first numbers of scenes
that it is called with; other numbers run compiled.
"""

import logging
import time
import warnings
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

log = logging.getLogger("canvit_gym")

Precision = Literal["float32", "bfloat16"]
How = Literal["eager", "compiled", "cuda graph"]
Function = Callable[..., tuple[Tensor, ...]]
"""Of tensors whose first dimension is the scenes, to such tensors."""

EXPECTED_SECONDS = {"cpu": 30, "cuda": 60}
"""What a compilation takes on two idle CPU cores, or with a GPU."""
MAX_STATIC_SIZES = 3
"""On a GPU so many numbers of scenes are compiled for as constants; what comes after runs code for any number."""
MAX_GRAPHS = 4
WARM_UP_CALLS = 3
"""Before recording: libraries allocate their workspaces in the first calls."""


class Ran(NamedTuple):
    """How a step ran."""

    how: How
    precision: Precision


def precision_on(device: torch.device) -> Precision:
    """What matrix products are computed in here and now."""
    autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.bfloat16
    return "bfloat16" if autocast else "float32"


class CompiledFunction:
    """A function through torch.compile, compiled at the first call; eager for good where that fails.

    any_number: one compilation serves every number of scenes above one; else each number gets its own.
    graph_up_to: calls of at most so many scenes are recorded as CUDA graphs, on a GPU.
    """

    def __init__(self, function: Function, *, name: str, any_number: bool, graph_up_to: float) -> None:
        self._function = function
        self._name = name
        self._any_number = any_number
        self._graph_up_to = graph_up_to
        self._compiled: dict[int | None, Function] = {}  # by number of scenes; None: any above one
        self._graphs: dict[tuple[Any, ...], RecordedGraph] = {}
        self._failed = False
        self._records = True
        self.seconds = 0.0
        """What compilation has taken so far."""
        self.how: How = "eager"
        """How the last call ran."""

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        self.how = "eager"
        if self._failed or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
            return self._function(*tensors)
        # Strides are part of what is compiled for: those of a tensor expanded or cut out would be another case each.
        tensors = tuple(tensor.contiguous() for tensor in tensors)
        case = self._case(tensors[0])
        if case in self._compiled:
            return self._run(case, tensors)
        began = time.perf_counter()
        device = tensors[0].device.type
        log.warning("compiling %s for %s, about %d s", self._name, device, EXPECTED_SECONDS[device])
        function = torch.compile(
            _with_own_code(self._function), fullgraph=True, dynamic=None if case is None else False
        )
        self._compiled[case] = function
        result = self._run(case, tensors)
        if not self._failed:
            self.seconds += time.perf_counter() - began
            log.warning("compiled %s in %.0f s", self._name, time.perf_counter() - began)
        return result

    def _case(self, first: Tensor) -> int | None:
        num = len(first)
        if num == 1 or num in self._compiled:  # the compiler specializes on sizes of 1 in any case
            return num
        if self._any_number and first.device.type == "cpu":
            return None
        static = sum(case is not None and case > 1 for case in self._compiled)
        return num if static < MAX_STATIC_SIZES or not self._any_number else None

    def _run(self, case: int | None, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        function = self._compiled[case]
        if case is None:
            for tensor in tensors:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        try:
            if self._is_recorded(tensors):
                result = self._replay(function, tensors)
                if result is not None:
                    self.how = "cuda graph"
                    return result
            result = function(*tensors)
        except Exception as error:  # whatever the compiler and the tools it calls may raise
            if isinstance(error, torch.OutOfMemoryError):
                raise
            self._failed = True
            self.how = "eager"
            warnings.warn(
                f"{self._name} cannot be compiled and runs eagerly: {type(error).__name__}: {_first_line(error)}. On a "
                "CPU torch.compile needs a C++ compiler (g++, or another in $CXX); leave compile=True out otherwise.",
                stacklevel=3,
            )
            return self._function(*tensors)
        self.how = "compiled"
        return result

    def _is_recorded(self, tensors: tuple[Tensor, ...]) -> bool:
        return self._records and tensors[0].device.type == "cuda" and len(tensors[0]) <= self._graph_up_to

    def _replay(self, function: Function, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """The outputs, from a graph; None where there is none."""
        key = (torch.is_autocast_enabled("cuda"), *((tensor.shape, tensor.dtype) for tensor in tensors))
        if key not in self._graphs:
            if len(self._graphs) == MAX_GRAPHS:
                return None
            function(*tensors)  # compiles; what that raises is not the graph's
            try:
                self._graphs[key] = RecordedGraph(function, tensors)
            except RuntimeError as error:
                self._records = False
                warnings.warn(f"{self._name} runs compiled, without a CUDA graph: {_first_line(error)}", stacklevel=5)
                return None
        return self._graphs[key].outputs_of(tensors)


@cache
def _graph_pool(device: torch.device) -> Any:
    with torch.cuda.device(device):
        return torch.cuda.graph_pool_handle()


class RecordedGraph:
    """One call of a function on a GPU, recorded: `inputs` are its arguments, `replay` writes its results to `outputs`.

    The next replay of any graph of this process may overwrite the outputs: copy them first.
    """

    def __init__(self, function: Function, example: tuple[Tensor, ...]) -> None:
        device = example[0].device
        with torch.inference_mode(False):  # or they could not be written outside of inference mode
            self.inputs = tuple(torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in example)
        self._load(example)
        # Recording allows no other work on its stream, so warming up has a stream of its own, as PyTorch asks for.
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_CALLS):
                function(*self.inputs)
        torch.cuda.current_stream(device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the GPU meanwhile, such as one that pins scenes.
        with torch.cuda.graph(self._graph, pool=_graph_pool(device), capture_error_mode="thread_local"):
            self.outputs = function(*self.inputs)

    def replay(self) -> None:
        self._graph.replay()

    def outputs_of(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Copies of the outputs for other inputs of the same shapes."""
        self._load(tensors)
        self.replay()
        return tuple(output.clone() for output in self.outputs)

    def _load(self, tensors: tuple[Tensor, ...]) -> None:
        for held, tensor in zip(self.inputs, tensors, strict=True):
            held.copy_(tensor)


def _with_own_code(function: Function) -> Function:
    """torch.compile counts what it compiled, and limits it, by code object: every compilation gets its own."""

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        return function(*tensors)

    return FunctionType(call.__code__.replace(), call.__globals__, call.__name__, None, call.__closure__)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "no message"
