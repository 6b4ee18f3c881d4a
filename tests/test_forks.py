"""Environments in forked processes, as Gymnasium's AsyncVectorEnv makes them by default."""

import os
import subprocess
import sys

ASYNC = """
import gymnasium as gym, torch
import canvit_gym

def take(environment):
    environment.reset(seed=0)
    return environment.step(environment.action_space.sample())

if __name__ == "__main__":
    assert torch.get_num_threads() == 2
    kwargs = {"num_scenes": 16, "split": "test", "device": "cpu"}
    take(gym.make("CanViT/FashionSegmentation-v0", **kwargs))  # two threads now exist
    envs = gym.make_vec("CanViT/FashionSegmentation-v0", num_envs=2, vectorization_mode="async",
                        vector_kwargs={"context": "fork"}, **kwargs)
    try:
        envs.reset_async(seed=0)
        info = envs.reset_wait(timeout=60)[1]
        envs.step_async(envs.action_space.sample())
        rewards = envs.step_wait(timeout=60)[1]
    finally:
        envs.close(terminate=True)
    assert torch.get_num_threads() == 2, "this process keeps its threads"
    print(info["glimpses"].tolist(), rewards.shape)
"""


def test_async_environments_do_not_wait_for_threads_that_a_fork_leaves_behind() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", ASYNC]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[1, 1] (2,)"
