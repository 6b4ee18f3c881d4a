"""examples/ppo_single_file.py, the file to copy: it trains, evaluates, and sums windows as the library does."""

from functools import partial
from types import ModuleType

import numpy as np
import pytest
import torch

from canvit_gym.policies.heads import window_matrix
from experiments.examples.compare_single_file import single_file

SMALL = ["--num-envs", "4", "--episodes", "1", "--decisions", "32", "--minibatch", "8", "--device", "cpu"]


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return single_file()


def test_it_trains_and_evaluates(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "make", partial(module.make, num_scenes=16))
    args = module.parse(SMALL)
    network = module.train(args)
    assert capsys.readouterr().out.count("decisions, loss after the last glimpse") == 2
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    score, loss = module.evaluate(network, args, split="validation", num_scenes=16)
    assert 0 <= score <= 1 and loss > 0


def test_logits_and_values(module: ModuleType) -> None:
    args = module.parse(SMALL)
    envs = module.make(args, 3, num_scenes=8)
    table = envs.unwrapped.actions.viewpoints
    network = module.Network(envs.single_observation_space, table)
    torch.testing.assert_close(network.windows, window_matrix(table, size=16), atol=1e-5, rtol=0)
    observation, _ = envs.reset(seed=0)
    envs.action_space.seed(0)
    action = envs.action_space.sample()
    observation, *_ = envs.step(action)
    logits, value = network(module.tensors(observation, torch.device("cpu")))
    assert logits.shape == (3, len(table)) and value.shape == (3,)
    near = np.abs(table[None, :, :2] - table[action, None, :2]).max(axis=2) <= 0.06  # what was looked at, and beside it
    np.testing.assert_array_equal((logits < -1e7).numpy(), near)
    envs.close()
