"""Policies that use the goal: windows where it may be, and a ceiling that knows where it is."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from canvit_gym.assembly import task_kind
from canvit_gym.policies.greedy_windows import GreedyWindows, windows_of
from canvit_gym.policies.locator import BoxLocator
from canvit_gym.policies.protocol import PolicyInfo
from canvit_gym.policies.seen import Seen, with_truth
from canvit_gym.policies.sequences import Scales
from canvit_gym.policies.spec import Context
from canvit_gym.scenes.source import Item

GOAL_TASKS = ("search",)
"""Tasks whose goals are classes of a label map."""


class GoalWindows(GreedyWindows):
    """The full scene, then the window with the largest worth, by an amount computed from the goal's probability."""

    @abstractmethod
    def amount(self, probability: Tensor) -> Tensor:
        """[N, G, G], from the probability [N, G, G] that a cell is of the goal's class."""

    def reset(self, seen: Seen, *, seed: int) -> None:
        super().reset(seen, seed=seed)
        self._goal = _goal(seen).to(seen.device)

    def amounts(self, seen: Seen) -> Tensor:
        rows = torch.arange(seen.num, device=seen.device)
        return self.amount(seen.logits.softmax(dim=1)[rows, self._goal])


class GoalProbability(GoalWindows):
    """Where the goal's class is likely."""

    info = PolicyInfo(
        name="goal_probability",
        paper_name="goal-probability windows",
        description="The full scene, then the window that adds most resolution where the goal's class is likely.",
        deterministic=True,
        needs_segmentation_probe=True,
        tasks=GOAL_TASKS,
    )

    def amount(self, probability: Tensor) -> Tensor:
        return probability


class GoalEntropy(GoalWindows):
    """Where it is uncertain whether a cell is of the goal's class."""

    info = PolicyInfo(
        name="goal_entropy",
        paper_name="goal-entropy windows",
        description="The full scene, then the window that adds most resolution where it is uncertain whether cells are "
        "of the goal's class (entropy of yes or no).",
        deterministic=True,
        needs_segmentation_probe=True,
        tasks=GOAL_TASKS,
    )

    def amount(self, probability: Tensor) -> Tensor:
        return torch.special.entr(probability) + torch.special.entr(1 - probability)


class GoalLocator(BoxLocator):
    """BoxLocator for the items of the goal's class only."""

    info = PolicyInfo(
        name="goal_locator",
        paper_name="goal locator (told where the goal lies)",
        description="The full scene, then the items of the goal's class, the largest first: knows where they are, but "
        "not how they will be read.",
        deterministic=True,
        uses_labels=True,
        tasks=GOAL_TASKS,
    )

    sought = "item of its goal's class"

    def items_to_look_at(self, seen: Seen) -> Sequence[Sequence[Item]]:
        return [
            [item for item in items if item.label == goal]
            for items, goal in zip(with_truth(seen).items, _goal(seen).tolist(), strict=True)
        ]


def _goal(seen: Seen) -> Tensor:
    """[N] the goals. Raise ValueError if the task has none."""
    if seen.goal is None:
        raise ValueError(f"the task {seen.task.name} has no goals; {_ELSE}")
    return torch.from_numpy(seen.goal)


_ELSE = f"choose another policy, or an environment that has goals (tasks {', '.join(GOAL_TASKS)})"


def _require_goals(context: Context) -> None:
    task = task_kind(context.config.dataset)
    if task not in GOAL_TASKS:
        raise ValueError(f"the policy looks for a goal, but the task {task} has none; {_ELSE}")


def build_goal_probability(
    context: Context, *, scale: Scales | None = None, centers: int | None = None
) -> GoalProbability:
    """By default over the scales and centers of the environment's grid actions."""
    _require_goals(context)
    return GoalProbability(**windows_of(context, scale=scale, centers=centers))


def build_goal_entropy(context: Context, *, scale: Scales | None = None, centers: int | None = None) -> GoalEntropy:
    """By default over the scales and centers of the environment's grid actions."""
    _require_goals(context)
    return GoalEntropy(**windows_of(context, scale=scale, centers=centers))


def build_goal_locator(context: Context, *, factor: float = 1.25, jitter: float = 0.0) -> GoalLocator:
    _require_goals(context)
    return GoalLocator(factor=factor, jitter=jitter)
