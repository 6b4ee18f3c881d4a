"""Functions of tensors through torch.compile and CUDA graphs, and a count of what actually ran.

If compiling a function fails, it runs eagerly, after one warning, and reports "eager" for every call. On a GPU a call
may also be recorded as a CUDA graph, whose replay launches all of its kernels at once.

Memory of graphs: all graphs of a process share one pool, so that their intermediate values take as much as the largest
graph needs; each also holds its inputs and outputs. Backbone.step records at most `MAX_GRAPHS`, for the first numbers
of scenes that it is called with (other numbers run compiled), and a batch of episodes records one, for all its scenes.
So do PPO's network, for rollouts, and its minibatches (agents.ppo.recorded_gradients).
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

from canvit_gym.cuda_streams import side_streams

log = logging.getLogger("canvit_gym")

Precision = Literal["float32", "bfloat16"]
How = Literal["eager", "compiled", "cuda graph"]
Function = Callable[..., tuple[Tensor, ...]]
"""From tensors whose first dimension indexes scenes, to such tensors."""

MOST_SECONDS = {"cpu": 60, "cuda": 60}
"""The longest compilation with idle CPU cores: nano's step on a CPU takes 52 s on one core, less on two."""
MAX_STATIC_SIZES = 3
"""On a GPU, how many numbers of scenes are compiled for as constants; later ones run code for any number."""
MAX_GRAPHS = 4


class Ran(NamedTuple):
    """How a step ran."""

    how: How
    precision: Precision


def precision_on(device: torch.device) -> Precision:
    """The precision of matrix products in the current context."""
    autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.bfloat16
    return "bfloat16" if autocast else "float32"


class CompiledFunction:
    """A function through torch.compile, compiled at the first call; eager from then on if that fails.

    any_number: one compilation serves every number of scenes above one; otherwise each number gets its own.
    """

    def __init__(self, function: Function, *, name: str, any_number: bool) -> None:
        self._function = function
        self.name = name
        self._any_number = any_number
        self._compiled: dict[int | None, Function] = {}  # by number of scenes; None: any above one
        self._failed = False
        self.seconds = 0.0
        """Time spent on compilation so far."""
        self.how: How = "eager"
        """How the last call ran."""

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        self.how = "eager"
        if self._failed or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
            return self._function(*tensors)
        # Code is compiled for given strides: expanded or sliced tensors would each be another case.
        tensors = tuple(tensor.contiguous() for tensor in tensors)
        case = self._case(tensors[0])
        if case in self._compiled:
            return self._run(case, tensors)
        began = time.perf_counter()
        device = tensors[0].device.type
        log.warning("compiling %s for %s, at most %d s with idle CPU cores", self.name, device, MOST_SECONDS[device])
        dynamic = None if case is None else False
        self._compiled[case] = torch.compile(_with_own_code(self._function), fullgraph=True, dynamic=dynamic)
        result = self._run(case, tensors)
        if not self._failed:
            self.seconds += time.perf_counter() - began
            log.warning("compiled %s in %.0f s", self.name, time.perf_counter() - began)
        return result

    def compiled_for(self, tensors: tuple[Tensor, ...]) -> Function:
        """The compiled function that a call with these tensors ran."""
        return self._compiled[self._case(tensors[0])]

    def _case(self, first: Tensor) -> int | None:
        num = len(first)
        if num == 1 or num in self._compiled:  # the compiler always specializes on sizes of 1
            return num
        if self._any_number and first.device.type == "cpu":
            return None
        static = sum(case is not None and case > 1 for case in self._compiled)
        return num if static < MAX_STATIC_SIZES or not self._any_number else None

    def _run(self, case: int | None, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if case is None:
            for tensor in tensors:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        try:
            result = self._compiled[case](*tensors)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever the compiler and the tools it calls may raise
            self._failed = True
            warnings.warn(
                f"{self.name} cannot be compiled and runs eagerly: {type(error).__name__}: {first_line(error)}. On a "
                "CPU torch.compile needs a C++ compiler (g++, or another in $CXX); leave compile=True out otherwise.",
                stacklevel=3,
            )
            return self._function(*tensors)
        self.how = "compiled"
        return result


@cache
def _keeper_of_the_pool(device: torch.device) -> torch.cuda.CUDAGraph:
    """A small graph whose pool all others share. PyTorch frees a pool with its last graph, and fails if the pool is
    used once more: this graph is never freed.
    """
    graph = torch.cuda.CUDAGraph()
    stream = side_streams(device).recording
    with torch.cuda.device(device), torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        torch.zeros(1, device=device)
    return graph


class RecordedGraph:
    """One call of a function on a GPU, recorded: `replay` reads the same inputs again and writes the same outputs.

    inputs: tensors that stay where they are; write into them before a replay. The next replay of any graph of this
    process may overwrite the outputs: copy them first.
    """

    def __init__(self, function: Function, inputs: tuple[Tensor, ...]) -> None:
        device = inputs[0].device
        self.inputs = inputs  # kept, so that their memory is not freed
        # Libraries allocate their workspaces in the first call on a stream, which must not happen while recording.
        # PyTorch needs a stream other than the default one.
        side = side_streams(device).recording
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            function(*inputs)
        torch.cuda.current_stream(device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may keep using the GPU meanwhile, such as one that pins scenes.
        pool = _keeper_of_the_pool(device).pool()
        with torch.cuda.graph(self._graph, pool=pool, stream=side, capture_error_mode="thread_local"):
            self.outputs = function(*inputs)

    def replay(self) -> tuple[Tensor, ...]:
        self._graph.replay()
        return self.outputs


def record(function: CompiledFunction, inputs: tuple[Tensor, ...]) -> RecordedGraph | None:
    """A graph of the function compiled for these inputs; None, after a warning, if it cannot be recorded."""
    try:
        return RecordedGraph(function.compiled_for(inputs), inputs)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        warnings.warn(f"{function.name} runs compiled, without a CUDA graph: {first_line(error)}", stacklevel=3)
        return None


class GraphedFunction:
    """A compiled function whose calls of at most `up_to` scenes are recorded, on a GPU.

    Inputs are copied into those of the graph, and outputs out of it.
    """

    def __init__(self, function: CompiledFunction, *, up_to: int) -> None:
        self.function = function
        self._up_to = up_to
        self._graphs: dict[tuple[Any, ...], RecordedGraph | None] = {}
        self.how: How = "eager"
        """How the last call ran."""

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        key = (precision_on(tensors[0].device), *((tensor.shape, tensor.dtype) for tensor in tensors))
        graph = self._graphs.get(key)
        if graph is None:
            result = self.function(*tensors)
            self.how = self.function.how
            if self._is_recorded(tensors) and key not in self._graphs and len(self._graphs) < MAX_GRAPHS:
                with torch.inference_mode(False):  # or they could not be written outside of inference mode
                    inputs = tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors)
                _copy(tensors, inputs)
                self._graphs[key] = record(self.function, inputs)
            return result
        _copy(tensors, graph.inputs)
        self.how = "cuda graph"
        return tuple(output.clone() for output in graph.replay())

    def _is_recorded(self, tensors: tuple[Tensor, ...]) -> bool:
        return self.how == "compiled" and tensors[0].device.type == "cuda" and len(tensors[0]) <= self._up_to


def _copy(sources: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)


class TrainedFunction:
    """A function that is trained, through torch.compile with its gradients; eager from then on, after a warning, if
    that fails.

    It is compiled once for every shape, with and without gradients, at the first such call.
    """

    def __init__(self, function: Callable[..., Any], *, name: str, compile: bool) -> None:
        self._function, self.name = function, name
        # One graph or an error: a function with graph breaks would also be reported as compiled.
        self._compiled = torch.compile(function, fullgraph=True, dynamic=False) if compile else None
        self.ran = "never"
        """How the calls so far ran: "never" (none yet), "compiled", "eager", or "eager: " and the reason."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._compiled is None:
            if self.ran == "never":
                self.ran = "eager"
            return self._function(*args, **kwargs)
        try:
            result = self._compiled(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever the compiler and the tools it calls may raise
            self._compiled = None
            self.ran = f"eager: {type(error).__name__}: {first_line(error)}"
            warnings.warn(f"{self.name} cannot be compiled and runs eagerly: {self.ran[7:]}", stacklevel=2)
            return self._function(*args, **kwargs)
        self.ran = "compiled"
        return result


def _with_own_code(function: Function) -> Function:
    """torch.compile counts and limits compilations by code object, so every compilation gets its own."""

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        return function(*tensors)

    return FunctionType(call.__code__.replace(), call.__globals__, call.__name__, None, call.__closure__)


def first_line(error: Exception) -> str:
    """Of its message, for a warning: compilers' messages are long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "no message"
