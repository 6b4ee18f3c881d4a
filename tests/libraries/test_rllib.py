"""RLlib trains on the ids, and what it learned is evaluated without it. Run by scripts/test_libraries.sh."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray")

EXAMPLE = Path(__file__).parents[2] / "examples" / "rllib_ppo.py"
SMALL = '{"num_scenes": 64, "device": "cpu"}'


def test_two_runners_train_a_policy_that_evaluates(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE), "--num-envs", "2", "--batch", "64", "--iterations", "1"]
    command += ["--num-env-runners", "2", "--env-kwargs", SMALL, "--output", str(tmp_path / "policy")]
    subprocess.run(command, check=True, timeout=600)

    from canvit_gym.evaluation import evaluate
    from canvit_gym.policies.learned import load_policy

    policy = load_policy(tmp_path / "policy")
    assert policy.record.algorithm == "RLlib PPO"
    assert evaluate(policy, config=policy.record.env).score().shape == (5,)
