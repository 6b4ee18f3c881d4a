"""The contestants of the measurements. A contestant is made for a job; each run returns the number of glimpses taken.

All of them use scenes of the validation split of FashionScenes, or images of 512 px on disk if the job asks for them,
in batches of `num_envs`, and take `budget` glimpses of each, the full scene first. Scenes are prepared before any clock
starts.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from canvit_pytorch import RecurrentState, Viewpoint
from canvit_pytorch.episode import run_episode
from canvit_pytorch.policies import make_policy as canvit_policy
from canvit_pytorch.preprocess import imagenet_normalize
from gymnasium.vector import SyncVectorEnv

import canvit_gym
from canvit_gym.assembly import build_backbone, build_scenes
from canvit_gym.backbone.load import Backbone, Precision
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import evaluate
from canvit_gym.policies import make_policy
from canvit_gym.sb3 import GlimpseVecEnv, make_sb3_env
from experiments.throughput.models import ModelSize, env_kwargs_of
from experiments.throughput.ppo import learn_rollouts, ppo_for_throughput

LARGE = "CanViT/SegmentationFolder-v0"
SEGMENTATION, CLASSIFICATION = "CanViT/FashionSegmentation-v0", "CanViT/FashionClassification-v0"


@dataclass(frozen=True)
class Job:
    """A contestant and its setting, as JSON values."""

    contestant: str
    model: ModelSize = "nano"
    canvas_grid: int = 16
    num_envs: int = 64
    budget: int = 5
    num_scenes: int = 512
    rounds: int = 2
    """Episodes of every environment in a run."""
    device: str = "cpu"
    precision: Precision = "float32"
    compile: bool = False
    canvas_size: int = 8
    large_scenes: bool = False
    """Scenes of 512 px with 150 classes, from files."""
    threads: int | None = None
    """PyTorch's threads. None: PyTorch's default."""
    own_memory: bool = True
    """Whether freed memory is kept (canvit_gym.backbone.memory). False: the allocator keeps its default settings."""

    def env_kwargs(self) -> dict[str, Any]:
        return {
            "split": "validation",
            "num_scenes": self.num_scenes,
            "budget": self.budget,
            "device": self.device,
            "precision": self.precision,
            "compile": self.compile,
            "canvas_size": self.canvas_size,
            **env_kwargs_of(self.model, self.canvas_grid, large_scenes=self.large_scenes),
        }

    def config(self) -> EnvConfig:
        return EnvConfig(**{**canvit_gym.ENVIRONMENTS[self.env_id], **self.env_kwargs()})

    @property
    def env_id(self) -> str:
        return LARGE if self.large_scenes else SEGMENTATION


Run = Callable[[], int]
"""Runs once and returns how many glimpses it took."""


def _bare_loop(job: Job, episode: Callable[[Backbone, torch.Tensor, Any], None]) -> Run:
    """Runs `episode` on normalized scenes that are already on the device, without any probe."""
    config = job.config()
    backbone, scenes = build_backbone(config), build_scenes(config)
    images = scenes.load(np.arange(job.num_envs) % len(scenes)).images.to(backbone.device)
    images = imagenet_normalize(images.float() / 255)

    def run() -> int:
        with torch.inference_mode(), backbone.autocast():
            for _ in range(job.rounds):
                policy = canvit_policy(
                    "full_then_random",
                    batch_size=job.num_envs,
                    device=backbone.device,
                    num_glimpses=job.budget,
                    canvas_grid_size=backbone.canvas_grid,
                )
                episode(backbone, images, policy)
        return job.rounds * job.num_envs * job.budget

    return run


def bare_loop(job: Job) -> Run:
    """canvit-pytorch's run_episode: its own code on its own model."""

    def episode(backbone: Backbone, images: torch.Tensor, policy: Any) -> None:
        run_episode(
            canvit=backbone.canvit,
            images=images,
            policy=policy,
            num_glimpses=job.budget,
            glimpse_size_px=backbone.glimpse_size_px,
            initial_state=backbone.init_state(job.num_envs),
        )

    return _bare_loop(job, episode)


def backbone_loop(job: Job) -> Run:
    """The same loop with Backbone.step."""

    def episode(backbone: Backbone, images: torch.Tensor, policy: Any) -> None:
        state = backbone.init_state(job.num_envs)
        for t in range(job.budget):
            viewpoint = policy.step(t, state)
            state = backbone.step(backbone.glimpse(images, viewpoint), state, viewpoint)

    return _bare_loop(job, episode)


def _steps(job: Job, envs: Any, *, stops: bool = False) -> Run:
    """NEXT_STEP autoreset: a step of all environments is one forward, whether it acts or resets."""
    envs.reset(seed=0)
    glimpse_actions = int(envs.single_action_space.n) - stops
    rng = np.random.default_rng(0)
    ended = np.zeros(job.num_envs, dtype=np.bool_)
    taken = np.ones(job.num_envs, dtype=np.int64)

    def run() -> int:
        nonlocal ended, taken
        glimpses = 0
        for _ in range(job.rounds * job.budget):
            actions = rng.integers(glimpse_actions, size=job.num_envs)
            if stops:
                actions[rng.random(job.num_envs) < 0.1] = glimpse_actions
            _, _, terminated, _, info = envs.step(actions)
            # An environment whose episode ended takes the first glimpse of its next scene; one that stops takes none.
            glimpses += int((ended | (info["glimpses"] != taken)).sum())
            ended, taken = terminated, info["glimpses"]
        return glimpses

    return run


def vector_env(job: Job) -> Run:
    return _steps(job, gym.make_vec(job.env_id, num_envs=job.num_envs, **job.env_kwargs()))


def vector_env_on_device(job: Job) -> Run:
    """Observations stay on the device, as for learners in the same process (canvit_gym.sb3)."""
    envs: Any = gym.make_vec(job.env_id, num_envs=job.num_envs, **job.env_kwargs())
    envs.unwrapped.on_device = True
    return _steps(job, envs)


def vector_env_early_stops(job: Job) -> Run:
    """A tenth of the environments stop at every step."""
    envs = gym.make_vec(job.env_id, num_envs=job.num_envs, allow_stop=True, **job.env_kwargs())
    return _steps(job, envs, stops=True)


def sb3_adapter(job: Job) -> Run:
    envs: GlimpseVecEnv = make_sb3_env(job.env_id, job.num_envs, **job.env_kwargs())
    envs.reset()
    rng = np.random.default_rng(0)

    def run() -> int:
        for _ in range(job.rounds * (job.budget - 1)):
            envs.step(rng.integers(envs.action_space.n, size=job.num_envs))  # type: ignore[attr-defined]
        # SAME_STEP: the last step of an episode takes two glimpses, its own and the next scene's first.
        return job.rounds * job.num_envs * job.budget

    return run


def ppo(job: Job) -> Run:
    """Rollouts and updates, with the hyperparameters of agents/hyperparameters/ppo.yml."""
    model = ppo_for_throughput(SEGMENTATION, num_envs=job.num_envs, env_kwargs=job.env_kwargs())

    def run() -> int:
        return learn_rollouts(model, 1) * job.budget // (job.budget - 1)

    return run


def evaluation(job: Job) -> Run:
    """C2F evaluated after every glimpse: mIoU counts, cross-entropy, records."""
    config = dataclasses.replace(job.config(), num_scenes=job.rounds * job.num_envs)

    def run() -> int:
        policy = make_policy("coarse_to_fine", config=config, num_glimpses=job.budget)
        evaluate(policy, config=config, num_glimpses=job.budget, batch_size=job.num_envs)
        return job.rounds * job.num_envs * job.budget

    return run


def single_envs(job: Job) -> Run:
    """Gymnasium's SyncVectorEnv over single environments: one forward per environment."""
    kwargs = job.env_kwargs()
    envs = SyncVectorEnv(canvit_gym.env_fns(SEGMENTATION, job.num_envs, disable_env_checker=True, **kwargs))
    return _steps(dataclasses.replace(job, rounds=1), envs)


def no_backbone(job: Job) -> Run:
    """The environment's own overhead, for classification with pixel glimpses: a step returns its input state."""

    def step(self: Backbone, glimpse: torch.Tensor, state: RecurrentState, viewpoint: Viewpoint) -> RecurrentState:
        return state

    Backbone.step = step  # type: ignore[method-assign]
    observations = ("glimpse", "viewpoint", "time")
    return _steps(
        job, gym.make_vec(CLASSIFICATION, num_envs=job.num_envs, observations=observations, **job.env_kwargs())
    )


CONTESTANTS: dict[str, Callable[[Job], Run]] = {
    "run_episode": bare_loop,
    "Backbone.step loop": backbone_loop,
    "vector env": vector_env,
    "vector env, observations on the device": vector_env_on_device,
    "vector env, early stops": vector_env_early_stops,
    "SB3 adapter": sb3_adapter,
    "PPO end to end": ppo,
    "exact evaluation": evaluation,
    "SyncVectorEnv of single envs": single_envs,
    "vector env without a backbone": no_backbone,
}

FOREIGN = frozenset({"run_episode", "vector env without a backbone"})
"""Contestants that do not use Backbone.step."""
