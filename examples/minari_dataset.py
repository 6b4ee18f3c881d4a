"""Record episodes as a Minari dataset for offline learning, and read it back.

    pip install "minari[create,hdf5]"
    python examples/minari_dataset.py --dataset canvit/fashion-random-v0 --episodes 100

Minari keeps datasets in ~/.minari, or in $MINARI_DATASETS_PATH if it is set. Compact observations keep them small: less
than 2 kB per step instead of 35 kB for the default maps. --policy takes whatever
canvit_gym.policies.learned.load_policy takes, for example a run of agents.train. Without it, viewpoints are random.
"""

import argparse
import json

import gymnasium as gym
import minari
import numpy as np

import canvit_gym  # noqa: F401  (registers the ids)
from canvit_gym.policies.learned import load_policy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="canvit/fashion-random-v0", help="the name to keep it under")
    parser.add_argument("--env", default="CanViT/FashionClassification-v0")
    parser.add_argument("--env-kwargs", type=json.loads, default={"observation_preset": "compact"}, help="JSON")
    parser.add_argument("--policy", help="a trained policy, made for its own environment; by default a random one")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    policy, kwargs = None, args.env_kwargs
    if args.policy:
        policy = load_policy(args.policy)
        kwargs = policy.record.env.to_json()
    # "canvit_gym:" is stored with the data, so that the ids are registered when the environment is recovered.
    env = minari.DataCollector(gym.make(f"canvit_gym:{args.env}", **kwargs), record_infos=True)
    env.action_space.seed(args.seed)
    for episode in range(args.episodes):
        observation, _ = env.reset(seed=args.seed if episode == 0 else None)
        ended = False
        while not ended:
            action = env.action_space.sample() if policy is None else policy.predict(observation)[0]
            observation, _, terminated, truncated, _ = env.step(action)
            ended = terminated or truncated
    name = "random" if policy is None else policy.record.algorithm
    env.create_dataset(args.dataset, algorithm_name=name, description=f"{args.env}, viewpoints by: {name}")
    env.close()

    dataset = minari.load_dataset(args.dataset)
    episodes = list(dataset.iterate_episodes())
    for key, value in episodes[0].observations.items():
        print(f"{key:12} {value.shape[1:]} {value.dtype}")
    returns = np.mean([episode.rewards.sum() for episode in episodes])
    print(f"{dataset.total_episodes} episodes, {dataset.total_steps} steps, mean return {returns:+.4f}")


if __name__ == "__main__":
    main()
