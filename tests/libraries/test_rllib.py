"""RLlib trains on the ids, and what it learned is evaluated without it. Run by scripts/test_libraries.sh."""

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

pytest.importorskip("ray")

from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

import canvit_gym
from canvit_gym.config import config_from_kwargs

EXAMPLE = Path(__file__).parents[2] / "examples" / "rllib_ppo.py"
SMALL = '{"num_scenes": 64, "device": "cpu"}'


@pytest.mark.parametrize("mode", ["sync", "vector_entry_point"])
def test_runners_share_the_scenes_out(mode: str) -> None:
    spec = spec_from_file_location("rllib_ppo", EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = module_from_spec(spec)
    sys.modules["rllib_ppo"] = example  # Ray pickles what is in it by name
    spec.loader.exec_module(example)
    kwargs = '{"num_scenes": 16, "device": "cpu", "split": "validation"}'
    args = example.parse(["--num-envs", "2", "--vectorize-mode", mode, "--env-kwargs", kwargs])
    config = example.ppo(args, config_from_kwargs({**canvit_gym.ENVIRONMENTS[args.env], **args.env_kwargs}))
    seen = []
    for worker_index in (1, 2):
        runner = SingleAgentEnvRunner(config=config, worker_index=worker_index, num_workers=2)
        for _ in range(4):
            _, infos = runner.env.reset()
            seen += [info["scene"] for info in infos]
        runner.stop()
    assert sorted(seen) == list(range(16))


def test_two_runners_train_a_policy_that_evaluates(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE), "--num-envs", "2", "--batch", "64", "--iterations", "1"]
    command += ["--num-env-runners", "2", "--env-kwargs", SMALL, "--output", str(tmp_path / "policy")]
    subprocess.run(command, check=True, timeout=600)

    from canvit_gym.evaluation import evaluate
    from canvit_gym.policies.learned import load_policy

    policy = load_policy(tmp_path / "policy")
    assert policy.record.algorithm == "RLlib PPO"
    assert evaluate(policy, config=policy.record.env).score().shape == (5,)
