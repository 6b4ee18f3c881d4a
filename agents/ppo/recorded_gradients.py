"""Losses and gradients of PPO's minibatches as a CUDA graph.

The networks are small: launching their kernels one by one takes the host several times as long as the GPU takes to run
them. A graph launches them all at once. The optimizer's step stays outside, so that its state, its learning rate and
what is saved of it are SB3's.
"""

import warnings

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples
from torch import Tensor

from agents.finite import GradientWatch, add_checks, checked_at_the_end
from agents.ppo.update import Coefficients, minibatch_gradients
from canvit_gym.backbone.compilation import RecordedGraph, first_line

_COLUMNS = ("actions", "old_values", "old_log_prob", "advantages", "returns")


class RecordedGradients:
    """Does what `minibatch_gradients` does, for minibatches of one size as a graph; other sizes take it itself.

    The graph belongs to the parameters' tensors, into which it computes gradients, and is recorded with the first
    minibatch. If it cannot be recorded there is one warning, and all minibatches take `minibatch_gradients`. On a CPU
    there is no graph, but the same code otherwise (for tests).
    """

    def __init__(self, watch: GradientWatch) -> None:
        """watch: that of the model's gradients, whose sums become part of the graph."""
        self._watch = watch
        self.ran = "never"
        """How the last minibatch ran: "never" (none yet), "cuda graph" or "eager"."""
        self._recorded: _Recorded | None = None
        self._failed = False

    def __call__(self, model: PPO, batch: DictRolloutBufferSamples, coefficients: Coefficients) -> Tensor:
        if self._recorded is None and not self._failed:
            try:
                self._recorded = _Recorded(model, self._watch, batch, coefficients)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._failed = True
                warnings.warn(f"PPO's minibatches run without a CUDA graph: {first_line(error)}", stacklevel=2)
        if self._recorded is None or not self._recorded.fits(batch, coefficients):
            self.ran = "eager"
            return minibatch_gradients(model, batch, coefficients)
        self.ran = "cuda graph" if self._recorded.is_graph else "eager"
        return self._recorded(batch, coefficients)


class _Recorded:
    """A graph and the tensors that it reads and writes."""

    def __init__(
        self, model: PPO, watch: GradientWatch, batch: DictRolloutBufferSamples, coefficients: Coefficients
    ) -> None:
        device = model.device
        self._model, self._watch = model, watch
        self._given = {name: value.clone() for name, value in _tensors_of(batch).items()}
        held = (None if value is None else torch.tensor(value, device=device) for value in coefficients)
        self._coefficients = Coefficients(*held)
        self._parameters = [p for p in model.policy.parameters() if p.requires_grad]
        self._checked: tuple[str, ...] = ()
        on_gpu = device.type == "cuda"
        self._graph = RecordedGraph(self._run, tuple(self._given.values())) if on_gpu else None
        self._gradients = [parameter.grad for parameter in self._parameters]

    @property
    def is_graph(self) -> bool:
        return self._graph is not None

    def fits(self, batch: DictRolloutBufferSamples, coefficients: Coefficients) -> bool:
        """Whether a minibatch has the tensors that were recorded."""
        given = _tensors_of(batch)
        return (coefficients.clip_value is None) == (self._coefficients.clip_value is None) and all(
            (given[name].shape, given[name].dtype) == (held.shape, held.dtype) for name, held in self._given.items()
        )

    def __call__(self, batch: DictRolloutBufferSamples, coefficients: Coefficients) -> Tensor:
        for name, value in _tensors_of(batch).items():
            self._given[name].copy_(value)
        for held, value in zip(self._coefficients, coefficients, strict=True):
            if isinstance(held, Tensor):
                held.fill_(value)
        if self._graph is None:
            statistics, sums = self._run()
        else:
            statistics, sums = (output.clone() for output in self._graph.replay())
            for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
                parameter.grad = gradient  # eager minibatches of another size replace it
        add_checks(self._checked, sums)
        return statistics

    def _run(self, *_: Tensor) -> tuple[Tensor, Tensor]:
        """(statistics [6], sums to check), of what is held."""
        given = dict(self._given)
        columns = {name: given.pop(name) for name in _COLUMNS}
        with checked_at_the_end() as checks:
            batch = DictRolloutBufferSamples(observations=given, **columns)
            statistics = minibatch_gradients(self._model, batch, self._coefficients)
            self._watch.check()  # here: a replay does not call the hooks that collect sums
            self._checked = checks.names
            return statistics, checks.sums()


def _tensors_of(batch: DictRolloutBufferSamples) -> dict[str, Tensor]:
    return dict(batch.observations) | {name: getattr(batch, name) for name in _COLUMNS}
