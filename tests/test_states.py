"""States of rows advanced in any order are what a plain table of states holds."""

import numpy as np
import torch
from canvit_pytorch import RecurrentState
from hypothesis import given, settings
from hypothesis import strategies as st

from canvit_gym.states import States

NUM = 5


def initial(num: int) -> RecurrentState:
    return RecurrentState(
        canvas=torch.full((num, 3, 2), -1.0), recurrent_cls=torch.full((1, 1, 2), -1.0).expand(num, 1, 2)
    )


rows = st.lists(st.integers(0, NUM - 1), min_size=1, max_size=NUM, unique=True).map(sorted)
operations = st.lists(st.tuples(st.sampled_from(["advance", "restart", "look at all"]), rows), max_size=25)


@settings(max_examples=200, deadline=None)
@given(operations)
def test_any_order_of_operations(sequence: list[tuple[str, list[int]]]) -> None:
    states, expected = States(NUM, initial), torch.full((NUM,), -1.0)
    for step, (operation, chosen) in enumerate(sequence):
        some = np.array(chosen)
        if operation == "restart":
            states.restart(some)
            expected[some] = -1.0
        elif operation == "advance":
            before = states.take(some)
            assert torch.equal(before.canvas, expected[some].view(-1, 1, 1).expand(-1, 3, 2))
            assert torch.equal(before.recurrent_cls, expected[some].view(-1, 1, 1).expand(-1, 1, 2))
            after = 100.0 * (step + 1) + torch.arange(len(some))
            shape = after.view(-1, 1, 1)
            states.put(some, RecurrentState(canvas=shape.repeat(1, 3, 2), recurrent_cls=shape.repeat(1, 1, 2)))
            expected[some] = after
        else:
            assert torch.equal(states.whole().canvas[:, 0, 0], expected)
            assert torch.equal(states.whole().recurrent_cls[:, 0, 0], expected)
    assert torch.equal(states.whole().canvas[:, 0, 0], expected)


def test_a_whole_batch_is_not_copied() -> None:
    states = States(NUM, initial)
    everything = np.arange(NUM)
    state = RecurrentState(canvas=torch.rand(NUM, 3, 2), recurrent_cls=torch.rand(NUM, 1, 2))
    states.put(everything, state)
    assert states.take(everything).canvas is state.canvas
    assert states.whole().canvas is state.canvas
