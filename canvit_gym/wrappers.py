"""Vector wrappers of our own. Rewards are [num_envs] arrays; a step's index counts the agent's steps in its episode."""

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray


class RunningMoments:
    """Count, mean and spread of all values so far, by group 0, 1, ...; there are as many groups as were seen.

    Attributes:
        count, mean, squares: [groups] each; `squares` sums the squared deviations from the mean.
    """

    def __init__(self, num_groups: int = 0) -> None:
        self.count = np.zeros(num_groups, dtype=np.int64)
        self.mean = np.zeros(num_groups)
        self.squares = np.zeros(num_groups)

    @property
    def var(self) -> NDArray[np.float64]:
        """[groups] population variances; 0 for a group without values."""
        return self.squares / np.maximum(self.count, 1)

    def update(self, groups: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Merge values [N] of groups [N] (Chan et al. 1979)."""
        if (missing := int(groups.max(initial=-1)) + 1 - len(self.count)) > 0:
            self.count = np.concatenate([self.count, np.zeros(missing, dtype=np.int64)])
            self.mean = np.concatenate([self.mean, np.zeros(missing)])
            self.squares = np.concatenate([self.squares, np.zeros(missing)])
        for group in np.unique(groups):
            new = values[groups == group].astype(np.float64)
            old, total = self.count[group], self.count[group] + len(new)
            delta = new.mean() - self.mean[group]
            self.mean[group] += delta * len(new) / total
            self.squares[group] += ((new - new.mean()) ** 2).sum() + delta**2 * old * len(new) / total
            self.count[group] = total


class NormalizeRewardPerStep(VectorWrapper):
    """Standardize rewards with a running mean and standard deviation for every step of the episode.

    The second glimpse of a scene gains more than the fifth, and the variance between scenes is mostly how hard
    they are; one scale for all would let the early steps drown the late ones.

    A step that only resets an environment (NEXT_STEP) pays 0 before and after, and is not counted. Subtracting
    the mean changes nothing in which action is best as long as all episodes are equally long; where the agent
    may stop early (`allow_stop`), pass `center=False`, or each further glimpse would seem worth nothing.

    Attributes:
        count, mean, var: [steps seen so far] each; `var` is the population variance.
        update_statistics: set it to False to freeze them, in an evaluation for example.

    >>> import gymnasium as gym
    >>> import canvit_gym
    >>> from canvit_gym.wrappers import NormalizeRewardPerStep
    >>> envs = gym.make_vec("CanViT/FashionSegmentation-v0", num_envs=4, num_scenes=16, budget=3)
    >>> envs = NormalizeRewardPerStep(envs)
    >>> observation, info = envs.reset(seed=0)
    >>> observation, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
    >>> bool(abs(reward.mean()) < 1e-6), envs.count.tolist()
    (True, [4])
    >>> envs.close()
    """

    def __init__(self, env: VectorEnv[Any, Any, NDArray[Any]], *, center: bool = True, epsilon: float = 1e-8) -> None:
        super().__init__(env)
        if not 0 < epsilon < float("inf"):
            raise ValueError(f"epsilon must be a finite number > 0, got {epsilon!r}")
        mode = env.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise ValueError(
                f"{env} does not say how it resets: metadata['autoreset_mode'] must be a "
                f"gymnasium.vector.AutoresetMode, got {mode!r}"
            )
        self._mode = mode
        self._center = center
        self._epsilon = epsilon
        self._step = np.zeros(self.num_envs, dtype=np.int64)
        self._ended = np.zeros(self.num_envs, dtype=np.bool_)
        self._moments = RunningMoments()
        self.update_statistics = True

    @property
    def count(self) -> NDArray[np.int64]:
        return self._moments.count

    @property
    def mean(self) -> NDArray[np.float64]:
        return self._moments.mean

    @property
    def var(self) -> NDArray[np.float64]:
        return self._moments.var

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset; statistics stay."""
        rows = np.ones(self.num_envs, dtype=np.bool_)
        if options is not None and "reset_mask" in options:
            rows = np.array(options["reset_mask"], dtype=np.bool_)  # before: Gymnasium's environments pop it
        result = self.env.reset(seed=seed, options=options)
        self._step[rows] = 0
        self._ended[rows] = False
        return result

    def step(self, actions: Any) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Step, with standardized rewards."""
        observation, rewards, terminated, truncated, info = self.env.step(actions)
        acted = ~self._ended if self._mode == AutoresetMode.NEXT_STEP else np.ones(self.num_envs, dtype=np.bool_)
        if self.update_statistics:
            self._moments.update(self._step[acted], np.asarray(rewards, dtype=np.float64)[acted])
        rewards = np.where(acted, self._standardized(np.asarray(rewards, dtype=np.float64)), rewards)

        ended = np.logical_or(terminated, truncated)
        self._step = np.where(acted, self._step + 1, 0)
        if self._mode == AutoresetMode.SAME_STEP:
            self._step[ended] = 0
        else:
            self._ended = ended
        return observation, rewards, terminated, truncated, info

    def _standardized(self, rewards: NDArray[np.float64]) -> NDArray[np.float64]:
        """A step with fewer than two rewards behind it has no scale yet: its rewards stay as they are."""
        known = self._step < len(self.count)
        step = np.where(known, self._step, 0)
        known &= self.count[step] >= 2 if len(self.count) else False
        if not known.any():
            return rewards
        centered = rewards - self.mean[step] if self._center else rewards
        return np.where(known, centered / np.sqrt(self.var[step] + self._epsilon), rewards)
