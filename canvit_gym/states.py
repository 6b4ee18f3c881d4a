"""The backbone's states of N concurrent episodes, any rows of which can be advanced.

Canvases are large, so copies are expensive. States stay in the tensors that a forward returned and are only gathered
when the next forward needs other rows. Initial states are only written into gathered tensors.
"""

from collections.abc import Callable

import numpy as np
import torch
from canvit_pytorch import RecurrentState
from numpy.typing import NDArray
from torch import Tensor

Rows = NDArray[np.int64]

_INITIAL = -1


def index_of(rows: Rows, like: Tensor) -> Tensor:
    """Rows as a tensor on the device of `like`: indexing with it is twice as fast as with the array."""
    return torch.from_numpy(rows).to(like.device, non_blocking=True)


class States:
    """Canvases [N, num_registers + G*G, D] and recurrent CLS tokens [N, 1, D_b], by row."""

    def __init__(self, num: int, init_state: Callable[[int], RecurrentState]) -> None:
        """init_state: number of scenes -> their state before any glimpse."""
        self._num = num
        self._init_state = init_state
        # Most rows are in the first part; those that the last forward left out are in the second.
        self._parts: list[RecurrentState] = []
        self._part = np.full(num, _INITIAL)
        self._slot = np.zeros(num, dtype=np.int64)  # the row's place in its part
        self._room: Tensor | None = None  # for gathered canvases

    def restart(self, rows: Rows) -> None:
        """Set rows to the initial state."""
        self._part[rows] = _INITIAL

    def whole(self) -> RecurrentState:
        """All states in order. Valid until the next call of another method."""
        if not self._in_order():
            self.put(np.arange(self._num), self._gather(np.arange(self._num), room=None))
        return self._parts[0]

    def take(self, rows: Rows) -> RecurrentState:
        """The states of rows [n], for a forward. Do not keep them."""
        if (self._part[rows] == _INITIAL).all():
            return self._init_state(len(rows))
        if len(rows) == self._num and self._in_order():
            return self._parts[0]
        if self._room is None:
            self._room = torch.empty_like(self._parts[0].canvas[:1].expand(self._num, -1, -1))
        # Reuse memory: allocating this much costs more than the copy.
        return self._gather(rows, room=self._room[: len(rows)])

    def put(self, rows: Rows, state: RecurrentState) -> None:
        """Set the states of rows (ascending). `state` is kept without a copy if these are most rows."""
        if 2 * len(rows) <= self._num:
            # init_state may expand one token over its rows; writing to some of them needs separate memory.
            whole, index = self.whole(), index_of(rows, state.canvas)
            whole.canvas[index], whole.recurrent_cls[index] = state.canvas, state.recurrent_cls
            return
        parts = [RecurrentState(canvas=state.canvas, recurrent_cls=state.recurrent_cls.contiguous())]
        if len(rows) == self._num:
            self._parts, self._part[:], self._slot[:] = parts, 0, rows
            return
        others = np.setdiff1d(np.arange(self._num), rows)
        others = others[self._part[others] != _INITIAL]
        if others.size:
            parts.append(self._gather(others, room=None))
        self._parts = parts
        for number, members in enumerate((rows, others)):
            self._part[members] = number
            self._slot[members] = np.arange(len(members))

    def _in_order(self) -> bool:
        return not self._part.any() and bool((self._slot == np.arange(self._num)).all())

    def _gather(self, rows: Rows, *, room: Tensor | None) -> RecurrentState:
        """Copies of the states of rows, with canvases in `room` if it is given."""
        part = self._part[rows]
        if (part == _INITIAL).all():
            return _owned(self._init_state(len(rows)))
        first = self._parts[0]
        index = index_of(np.where(part == 0, self._slot[rows], 0), first.canvas)
        canvas = torch.index_select(first.canvas, 0, index, out=room)
        recurrent_cls = first.recurrent_cls.index_select(0, index)
        for number in (_INITIAL, 1):
            if (members := np.flatnonzero(part == number)).size:
                here = self._init_state(1) if number == _INITIAL else self._rows_of_second(rows[members])
                at = index_of(members, canvas)
                canvas[at], recurrent_cls[at] = here.canvas, here.recurrent_cls
        return RecurrentState(canvas=canvas, recurrent_cls=recurrent_cls)

    def _rows_of_second(self, rows: Rows) -> RecurrentState:
        second = self._parts[1]
        index = index_of(self._slot[rows], second.canvas)
        return RecurrentState(canvas=second.canvas[index], recurrent_cls=second.recurrent_cls[index])


class FixedStates:
    """As States, in tensors that never move: what a CUDA graph reads."""

    def __init__(self, num: int, init_state: Callable[[int], RecurrentState]) -> None:
        self._num = num
        self._init_state = init_state
        with torch.inference_mode():  # as what steps return: to a compiler it would be another kind of tensor
            state = init_state(num)
            canvas, recurrent_cls = (
                tensor.clone(memory_format=torch.contiguous_format) for tensor in (state.canvas, state.recurrent_cls)
            )
        self._state = RecurrentState(canvas=canvas, recurrent_cls=recurrent_cls)

    def restart(self, rows: Rows) -> None:
        """Set rows to the initial state."""
        self.put(rows, self._init_state(1))

    def whole(self) -> RecurrentState:
        """All states in order: always the same tensors."""
        return self._state

    def take(self, rows: Rows) -> RecurrentState:
        """The states of rows [n]."""
        return _rows_of(self._state, index_of(rows, self._state.canvas))

    def put(self, rows: Rows, state: RecurrentState) -> None:
        """Copy `state`, of all rows or one for all of them, into rows."""
        parts = ((self._state.canvas, state.canvas), (self._state.recurrent_cls, state.recurrent_cls))
        for held, given in parts:
            if len(rows) == self._num:
                held.copy_(given)
            else:
                held[index_of(rows, held)] = given


def _rows_of(state: RecurrentState, index: Tensor) -> RecurrentState:
    return RecurrentState(canvas=state.canvas[index], recurrent_cls=state.recurrent_cls[index])


def _owned(state: RecurrentState) -> RecurrentState:
    return RecurrentState(canvas=state.canvas.contiguous(), recurrent_cls=state.recurrent_cls.contiguous())
