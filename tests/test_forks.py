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


ALREADY = """
import os, threading
import torch
import canvit_gym  # makes no environment and loads no model

torch.set_num_threads(2)
torch.randn(400, 400) @ torch.randn(400, 400)  # a pool of threads that a fork leaves behind
child = os.fork()
if child == 0:
    torch.randn(400, 400) @ torch.randn(400, 400)
    os._exit(0)
print(os.waitpid(child, 0)[1], torch.get_num_threads())
"""


def test_nor_where_pytorch_computed_before_any_environment_was_made() -> None:
    done = subprocess.run([sys.executable, "-c", ALREADY], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["0", "2"], done.stderr


def test_importing_the_package_does_not_import_pytorch() -> None:
    program = "import os, sys, canvit_gym\nif os.fork() == 0: os._exit(0)\nos.wait()\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr
