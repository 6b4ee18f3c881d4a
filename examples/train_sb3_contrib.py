"""Train with sb3-contrib: MaskablePPO where viewpoints are forbidden, or CrossQ on continuous viewpoints.

    pip install sb3-contrib
    python -m examples.train_sb3_contrib --algo maskable_ppo --decisions 20480
    python -m examples.train_sb3_contrib --algo crossq --decisions 20480

Run it in a clone, which has the features extractors (agents/extractors.py). On FashionOrder every tile may be looked at
once, and MaskablePPO finds the environment's `action_masks` by itself. Compact observations (less than 2 kB a step)
keep CrossQ's replay buffer small. `python -m agents.train` has both with tuned settings, resuming and records.
"""

import argparse
import json
from typing import Any

import numpy as np
from sb3_contrib import CrossQ, MaskablePPO
from stable_baselines3.common.vec_env import VecMonitor

from agents.extractors import FlatSpatialExtractor, FlattenObservations, SpatialExtractor
from canvit_gym.sb3 import make_sb3_env


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", choices=("maskable_ppo", "crossq"), default="maskable_ppo")
    parser.add_argument("--decisions", type=int, default=20_480)
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--env-kwargs", type=json.loads, default={}, help="JSON")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    model: Any
    if args.algo == "maskable_ppo":
        envs = VecMonitor(make_sb3_env("CanViT/FashionOrder-v0", args.num_envs, **args.env_kwargs))
        options = {"features_extractor_class": SpatialExtractor}
        model = MaskablePPO(
            "MultiInputPolicy", envs, n_steps=16, batch_size=64, gamma=1.0, policy_kwargs=options, seed=args.seed
        )
    else:
        kwargs = {"action": "continuous", "observation_preset": "compact"} | args.env_kwargs
        flat = FlattenObservations(make_sb3_env("CanViT/FashionSegmentation-v0", args.num_envs, **kwargs))
        envs = VecMonitor(flat)
        options = {
            "features_extractor_class": FlatSpatialExtractor,
            "features_extractor_kwargs": {"layout": flat.layout},
        }
        model = CrossQ("MlpPolicy", envs, buffer_size=20_000, gamma=0.5, policy_kwargs=options, seed=args.seed)
    model.learn(args.decisions)
    returns = [episode["r"] for episode in model.ep_info_buffer]
    print(f"{args.algo}: mean return of the last {len(returns)} episodes {np.mean(returns):+.4f}")


if __name__ == "__main__":
    main()
