"""Collect transitions with TorchRL, from one environment or from many in one batched forward pass.

    pip install torchrl
    python examples/torchrl_rollout.py --num-envs 16 --steps 64

TorchRL's GymEnv takes an id as it is. GymWrapper takes a native vector environment, whose scenes share each forward
pass of the backbone; it must be made with autoreset_mode="same_step" or "disabled". Rollouts are TensorDicts.
"""

import argparse
import json

import gymnasium as gym
from torchrl.envs import GymEnv, GymWrapper

import canvit_gym  # noqa: F401  (registers the ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CanViT/FashionSegmentation-v0")
    parser.add_argument("--env-kwargs", type=json.loads, default={}, help="JSON")
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    one = GymEnv(args.env, **args.env_kwargs)
    one.set_seed(args.seed)
    episode = one.rollout(max_steps=1000)
    print(f"an episode of random viewpoints: {len(episode)} steps, return {episode['next', 'reward'].sum():+.4f}")

    envs = GymWrapper(
        gym.make_vec(args.env, num_envs=args.num_envs, autoreset_mode="same_step", **args.env_kwargs),
    )
    envs.set_seed(args.seed)
    batch = envs.rollout(args.steps, break_when_any_done=False)
    ended = batch["next", "done"].sum()
    print(f"{args.num_envs} environments: {tuple(batch.batch_size)} transitions, {ended} episodes ended, mean reward "
          f"{batch['next', 'reward'].mean():+.5f}")  # fmt: skip
    for key in sorted(set(batch.keys()) & set(envs.observation_spec.keys())):
        print(f"{key:12} {tuple(batch[key].shape)} {batch[key].dtype}")


if __name__ == "__main__":
    main()
