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
from canvit_gym.evaluation import Evaluation
from canvit_gym.policies.learned import load_policy

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


@pytest.mark.parametrize("seeds", [1, 2])
def test_it_trains_policies_that_evaluate(tmp_path: Path, seeds: int) -> None:
    """One seed with two runners, and two seeds with Ray Tune, one after another if there are only two cores."""
    runs, saved = tmp_path / "runs", tmp_path / "test.npz"
    train = [str(EXAMPLE), "--num-envs", "2", "--batch", "64", "--iterations", "1", "--env-kwargs", SMALL]
    train += ["--num-env-runners", str(3 - seeds), "--seeds", str(seeds), "--output", str(runs)]
    policy = runs if seeds == 1 else runs / "seed1"
    evaluate = ["-m", "canvit_gym.cli", "evaluate", "--env", "CanViT/FashionClassification-v0"]
    evaluate += ["--policy", str(policy), "--num-scenes", "8", "--device", "cpu", "--output", str(saved)]
    for arguments in (train, evaluate):
        subprocess.run([sys.executable, *arguments], check=True, timeout=600)

    assert load_policy(policy).record.algorithm == "RLlib PPO"
    found = Evaluation.load(saved)
    assert found.loss.shape == (8, 5) and found.record["policy"]["paper_name"] == "RLlib PPO"
