"""PPO on many machines with Ray RLlib: each runner steps its own scenes, and the learner trains our spatial network.

    pip install "ray[rllib]>=2.60,<3"     # it pins gymnasium 1.2.2, which canvit_gym takes too
    python examples/rllib_ppo.py --num-env-runners 2 --iterations 20 --output runs/rllib
    canvit-gym evaluate --env CanViT/FashionClassification-v0 --policy runs/rllib

On a cluster, start Ray (`ray start --head`, `ray start --address=...`) and pass --address auto; nothing else differs. A
runner steps all of its scenes in one batched forward pass, through the id's vector entry point, and each runner has its
own scenes (`canvit_gym.share_scenes`). --seeds trains several seeds with Ray Tune, and saves a policy of each below
--output.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import tune
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_LEARNER_GROUP, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule

import canvit_gym
from canvit_gym.assembly import build_actions
from canvit_gym.config import EnvConfig, config_from_kwargs
from canvit_gym.policies.learned import save_policy
from canvit_gym.policies.networks import ViewpointNetwork, action_options
from canvit_gym.policies.policy_record import PolicyRecord, describe_inputs

NETWORK: dict[str, Any] = {"network": "window", "channels": 32, "context_dim": 64, "blocks": 3, "inhibition": 0.06}
KEYS = ["canvas", "uncertainty", "acuity", "viewpoint", "gaze", "time"]


class GlimpseModule(TorchRLModule, ValueFunctionAPI):
    """canvit_gym's network with RLlib's interface: from a dict of observations to logits and a value."""

    def setup(self) -> None:
        actions = build_actions(config_from_kwargs(self.model_config["env"]))
        self.network = ViewpointNetwork(self.observation_space, self.action_space, **NETWORK, **action_options(actions))

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        features = self.network.features_extractor(batch[Columns.OBS])
        return {Columns.ACTION_DIST_INPUTS: self.network.action_net(features), "features": features}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self._forward(batch)

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> torch.Tensor:
        return self.network.value_net(self.network.features_extractor(batch[Columns.OBS])).squeeze(-1)


def ppo(args: argparse.Namespace, config: EnvConfig) -> PPOConfig:
    """RLlib's PPO with the settings of agents/hyperparameters/ppo.yml, as far as RLlib has them."""
    return (
        PPOConfig()
        .environment(f"canvit_gym:{args.env}", env_config=args.env_kwargs)  # the prefix lets runners register the ids
        .env_runners(
            num_env_runners=args.num_env_runners,
            num_envs_per_env_runner=args.num_envs,
            gym_env_vectorize_mode=args.vectorize_mode,
        )
        .callbacks(on_environment_created=canvit_gym.share_scenes)
        .learners(num_learners=0)
        .rl_module(rl_module_spec=RLModuleSpec(module_class=GlimpseModule, model_config={"env": config.to_json()}))
        .training(
            train_batch_size_per_learner=args.batch,
            minibatch_size=min(256, args.batch),
            num_epochs=3,
            lr=1e-3,
            gamma=0.5,
            lambda_=0.95,
            clip_param=0.2,
            entropy_coeff=0.003,
            vf_loss_coeff=0.5,
            use_kl_loss=False,
            grad_clip=0.5,
        )
        .debugging(seed=args.seed)
    )


def save(
    module: GlimpseModule, directory: Path, args: argparse.Namespace, config: EnvConfig, *, decisions: int, seed: int
) -> None:
    """Save the policy in canvit_gym's format: `canvit-gym evaluate --policy` loads it without Ray."""
    record = PolicyRecord(
        env_id=args.env,
        env=config,
        inputs=describe_inputs(config),
        network=NETWORK,
        hyperparameters={"iterations": args.iterations, "train_batch_size": args.batch},
        provenance={"ray": ray.__version__},
        training={"num_timesteps": decisions, "seed": seed},
        algorithm="RLlib PPO",
    )
    save_policy(directory, module.network, record)
    print(f"saved to {directory}")


def train_seeds(args: argparse.Namespace, config: EnvConfig) -> None:
    search = ppo(args, config)
    search.seed = tune.grid_search(list(range(args.seeds)))
    run = tune.RunConfig(
        stop={"training_iteration": args.iterations}, checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True)
    )
    for result in tune.Tuner("PPO", param_space=search, run_config=run).fit():
        if result.error is not None:
            raise result.error
        path = Path(result.checkpoint.path, COMPONENT_LEARNER_GROUP, COMPONENT_LEARNER, COMPONENT_RL_MODULE)
        module = RLModule.from_checkpoint(path / DEFAULT_MODULE_ID)
        found, seed = result.metrics["env_runners"], result.config["seed"]
        decisions = int(found["num_env_steps_sampled_lifetime"])
        print(f"seed {seed}: {decisions:,} decisions, mean return {found.get('episode_return_mean', np.nan):+.4f}")
        save(module, args.output / f"seed{seed}", args, config, decisions=decisions, seed=seed)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CanViT/FashionClassification-v0")
    parser.add_argument("--env-kwargs", type=json.loads, default={}, help="JSON")
    parser.add_argument("--num-env-runners", type=int, default=2)
    parser.add_argument("--num-envs", type=int, default=16, help="environments of each runner")
    parser.add_argument(
        "--vectorize-mode", default="vector_entry_point", help="or sync, async: a model per environment"
    )
    parser.add_argument("--batch", type=int, default=1024, help="decisions per iteration")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        help="more than one: side by side with Ray Tune. Each takes a core per runner, and one more",
    )
    parser.add_argument("--address", default=None, help="of a Ray cluster; by default Ray runs on this machine alone")
    parser.add_argument("--output", type=Path, default=Path("runs/rllib"))
    args = parser.parse_args(arguments)
    args.env_kwargs = {"observations": KEYS, "grid_scales": [0.34], "grid_centers": 24, **args.env_kwargs}
    args.output = args.output.expanduser()
    return args


def main() -> None:
    args = parse()
    config = config_from_kwargs({**canvit_gym.ENVIRONMENTS[args.env], **args.env_kwargs})
    ray.init(address=args.address, include_dashboard=False)
    if args.seeds > 1:
        train_seeds(args, config)
        return
    algorithm = ppo(args, config).build_algo()
    began, decisions = time.perf_counter(), 0
    for iteration in range(args.iterations):
        found = algorithm.train()
        decisions = int(found["env_runners"]["num_env_steps_sampled_lifetime"])
        rate = decisions / (time.perf_counter() - began)
        mean = found["env_runners"].get("episode_return_mean", np.nan)
        print(
            f"{iteration + 1:3} {decisions:7,} decisions, mean return {mean:+.4f}, {rate:,.0f} decisions/s", flush=True
        )
    save(algorithm.get_module(), args.output, args, config, decisions=decisions, seed=args.seed)
    algorithm.stop()


if __name__ == "__main__":
    main()
