"""PPO on a glimpse environment in one file, using only torch, gymnasium and canvit_gym. Copy it and change it.

    python examples/ppo_single_file.py --env CanViT/FashionClassification-v0

In the order of the file: a network that scores viewpoints from maps; rollouts on the native vector environment, with
all tensors on one device; generalized advantage estimation (Schulman et al. 2016); the clipped surrogate objective
(Schulman et al. 2017); an exact evaluation of the most likely viewpoints on held-out scenes.

Differences from PPO for games: an episode ends when its budget is spent, so there is no bootstrapping at the end of a
rollout (rollouts hold whole episodes); the environment resets in the step after an episode's end (Gymnasium's NEXT_STEP
mode), and this step is left out of the batch; viewpoints near an earlier one are masked, since they show nothing new.
"""

import argparse
import time

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical

import canvit_gym  # noqa: F401  (registers the ids)

KEYS = ("canvas", "uncertainty", "acuity", "viewpoint", "gaze", "time")
UPSAMPLE = 2
"""How many times finer the map of scores is than the observed canvas."""


def initialized(layer: nn.Linear | nn.Conv2d, *, gain: float = 2**0.5) -> nn.Linear | nn.Conv2d:
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class Network(nn.Module):
    """Observation -> logits of every viewpoint of the action table, and a value.

    A small convolutional network makes a feature map with one cell per cell of the canvas. From it comes a finer map of
    what each place is worth. The logit of a viewpoint is the sum over the window that it would show, so overlapping
    windows share what they learn.
    """

    def __init__(self, space: gym.spaces.Dict, table: np.ndarray, *, channels: int = 32, inhibition: float = 0.06):
        super().__init__()
        shapes = {key: box.shape or () for key, box in space.items()}
        self.grid, self.inhibition = shapes["canvas"][-1], inhibition
        self.maps = [key for key, shape in shapes.items() if len(shape) == 3]
        self.vectors = [key for key, shape in shapes.items() if len(shape) == 1]
        folded = sum(shapes[key][0] * (shapes[key][-1] // self.grid) ** 2 for key in self.maps)
        self.project = initialized(nn.Conv2d(folded + 2, channels, 3, padding=1))
        vectors = sum(shapes[key][0] for key in self.vectors)
        self.context = nn.Sequential(initialized(nn.Linear(vectors + channels, 64)), nn.ReLU())
        self.convs = nn.ModuleList(initialized(nn.Conv2d(channels, channels, 3, padding=1)) for _ in range(3))
        self.modulate = nn.ModuleList(initialized(nn.Linear(64, 2 * channels), gain=0.1) for _ in range(3))
        scales, group = np.unique(table[:, 2], return_inverse=True)
        self.score = initialized(nn.Conv2d(channels, len(scales) * UPSAMPLE**2, 1), gain=0.01)
        self.scale_bias = initialized(nn.Linear(channels, len(scales)), gain=0.01)
        self.value = nn.Sequential(initialized(nn.Linear(channels, 64)), nn.ReLU(), initialized(nn.Linear(64, 1)))
        self.register_buffer("table", torch.from_numpy(table))  # [A, 3]: row, col, scale
        self.register_buffer("group", torch.from_numpy(group))  # [A]: which scale
        self.register_buffer("windows", self.window_sums(UPSAMPLE * self.grid))  # [A, side * side]
        centers = self.centers(self.grid)
        self.register_buffer("cells", torch.stack(torch.meshgrid(centers, centers, indexing="ij")))  # [2, g, g]

    @staticmethod
    def centers(side: int) -> Tensor:
        return torch.linspace(-1 + 1 / side, 1 - 1 / side, side)

    def window_sums(self, side: int) -> Tensor:
        """[A, side * side]: row a sums a flat map over window a; partly covered cells count in part."""
        half, centers = 1 / side, self.centers(side)
        low, high = self.table[:, :2] - self.table[:, 2:], self.table[:, :2] + self.table[:, 2:]  # [A, 2]
        overlap = torch.minimum(centers + half, high[..., None]) - torch.maximum(centers - half, low[..., None])
        rows, cols = (overlap.clamp(min=0) / (2 * half)).unbind(dim=1)  # [A, side] each
        return (rows[:, :, None] * cols[:, None, :]).flatten(1) / (side / 2)

    def forward(self, observation: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        maps = [F.pixel_unshuffle(observation[key], observation[key].shape[-1] // self.grid) for key in self.maps]
        x = F.relu(self.project(torch.cat([*maps, self.cells.expand(len(maps[0]), -1, -1, -1)], dim=1)))
        context = self.context(torch.cat([*(observation[key] for key in self.vectors), x.mean(dim=(2, 3))], dim=1))
        for conv, modulate in zip(self.convs, self.modulate, strict=True):
            gain, shift = modulate(context)[:, :, None, None].chunk(2, dim=1)
            x = x + F.relu(conv(x) * (1 + gain) + shift)
        pooled = x.mean(dim=(2, 3))
        scores = F.pixel_shuffle(self.score(x), UPSAMPLE).flatten(2) @ self.windows.T  # [B, scales, A]
        logits = (scores + self.scale_bias(pooled)[:, :, None])[:, self.group, torch.arange(len(self.group))]
        logits = logits.masked_fill(self.taken(observation["gaze"]), -1e8)
        return logits, self.value(pooled).squeeze(1)

    def taken(self, gaze: Tensor) -> Tensor:
        """[B, A]: viewpoints of the same scale within `inhibition` of one taken before."""
        near = (self.table - gaze.unflatten(1, (-1, 3))[:, :, None]).abs()  # [B, n, A, 3]
        return ((near[..., :2].amax(dim=3) <= self.inhibition + 1e-3) & (near[..., 2] <= 1e-3)).any(dim=1)


def make(args: argparse.Namespace, num_envs: int, **kwargs: object) -> gym.vector.VectorEnv:
    return gym.make_vec(
        args.env,
        num_envs=num_envs,
        observations=KEYS,
        grid_scales=(0.34,),
        grid_centers=24,
        device=str(args.device),
        **kwargs,
    )


def tensors(observation: dict[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    return {key: torch.from_numpy(value).to(device) for key, value in observation.items()}


def evaluate(network: Network, args: argparse.Namespace, *, split: str, num_scenes: int) -> tuple[float, float]:
    """(score, loss) after the last glimpse at the most likely viewpoints, on every scene of a split."""
    envs = make(args, 64, split=split, num_scenes=num_scenes, autoreset_mode="disabled", track_score=True)
    scores, losses = [], []
    for start in range(0, num_scenes, 64):
        scenes = np.minimum(np.arange(start, start + 64), num_scenes - 1)
        observation, _ = envs.reset(options={"scene": scenes})
        ended = np.zeros(64, dtype=bool)
        while not ended.any():
            with torch.no_grad():
                actions = network(tensors(observation, args.device))[0].argmax(dim=1)
            observation, _, ended, _, info = envs.step(actions.cpu().numpy())
        kept = min(64, num_scenes - start)
        scores.append(info["score"][:kept])
        losses.append(info["loss"][:kept])
    envs.close()
    return float(np.concatenate(scores).mean()), float(np.concatenate(losses).mean())


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CanViT/FashionClassification-v0")
    parser.add_argument("--decisions", type=int, default=81_920, help="glimpses that the agent chooses, in all")
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--episodes", type=int, default=4, help="per environment and rollout")
    parser.add_argument("--minibatch", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--gamma", type=float, default=0.5)
    parser.add_argument("--gae-lambda", type=float, default=0.95)
    parser.add_argument("--clip", type=float, default=0.2)
    parser.add_argument("--entropy", type=float, default=0.003, help="at the beginning; falls by a tenth per update")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", default="test", help="evaluated at the end")
    parser.add_argument("--num-scenes", type=int, default=1000, help="evaluated at the end")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


def train(args: argparse.Namespace) -> Network:
    torch.manual_seed(args.seed)
    envs = make(args, args.num_envs)
    table = envs.unwrapped.actions.viewpoints
    network = Network(envs.single_observation_space, table).to(args.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=args.learning_rate, eps=1e-5)
    observation, _ = envs.reset(seed=args.seed)
    current = tensors(observation, args.device)

    decisions, entropy, began = 0, args.entropy, time.perf_counter()
    every_reward: list[Tensor] = []
    while decisions < args.decisions:
        optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - decisions / args.decisions)
        # A rollout of whole episodes: all environments begin and end together, since all have the same budget.
        steps: list[dict[str, Tensor]] = []
        seen: list[dict[str, Tensor]] = []
        losses, ended_episodes = [], 0
        while ended_episodes < args.episodes:
            with torch.no_grad():
                logits, value = network(current)
            choice = Categorical(logits=logits)
            action = choice.sample()
            observation, reward, terminated, _, info = envs.step(action.cpu().numpy())
            done = torch.from_numpy(terminated).to(args.device)
            rewards = torch.from_numpy(reward).float().to(args.device)
            seen.append(current)
            steps.append(
                {"action": action, "log_prob": choice.log_prob(action), "value": value, "reward": rewards, "done": done}
            )
            current = tensors(observation, args.device)
            decisions += args.num_envs
            if terminated.all():
                ended_episodes += 1
                losses.append(info["loss"].mean())
                observation, *_ = envs.step(action.cpu().numpy())  # NEXT_STEP: this one only begins the next scenes
                current = tensors(observation, args.device)

        stacked = {key: torch.stack([step[key] for step in steps]) for key in steps[0]}  # [T, N]
        every_reward.append(stacked["reward"])
        reward_scaled = (stacked["reward"] / (torch.cat(every_reward).std() + 1e-8)).clamp(-5, 5)
        advantage, following, next_value = torch.zeros_like(reward_scaled), 0.0, 0.0
        for t in reversed(range(len(steps))):
            going_on = (~stacked["done"][t]).float()
            delta = reward_scaled[t] + args.gamma * next_value * going_on - stacked["value"][t]
            following = delta + args.gamma * args.gae_lambda * going_on * following
            advantage[t], next_value = following, stacked["value"][t]
        returns = (advantage + stacked["value"]).flatten()
        flat = {key: torch.cat([each[key] for each in seen]) for key in seen[0]}
        advantage, old, actions = advantage.flatten(), stacked["log_prob"].flatten(), stacked["action"].flatten()

        for _ in range(args.epochs):
            for index in torch.randperm(len(actions), device=args.device).split(args.minibatch):
                logits, value = network({key: values[index] for key, values in flat.items()})
                choice = Categorical(logits=logits)
                ratio = (choice.log_prob(actions[index]) - old[index]).exp()
                gain = advantage[index]
                gain = (gain - gain.mean()) / (gain.std() + 1e-8)
                surrogate = torch.minimum(ratio * gain, ratio.clamp(1 - args.clip, 1 + args.clip) * gain).mean()
                loss = -surrogate + 0.5 * F.mse_loss(value, returns[index]) - entropy * choice.entropy().mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 0.5)
                optimizer.step()
        entropy = max(entropy / 1.1, 1e-4)
        rate = decisions / (time.perf_counter() - began)
        print(f"{decisions:7,} decisions, loss after the last glimpse {np.mean(losses):.4f}, {rate:,.0f} decisions/s")

    envs.close()
    return network


def main() -> None:
    args = parse()
    network = train(args)
    score, loss = evaluate(network, args, split=args.split, num_scenes=args.num_scenes)
    print(f"{args.split}: score {100 * score:.1f} %, loss {loss:.4f} on {args.num_scenes} scenes")


if __name__ == "__main__":
    main()
