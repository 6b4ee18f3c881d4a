"""Train a PPO agent to choose viewpoints.

    python -m experiments.train --env CanViT/FashionSegmentation-v0 --run-dir runs/segmentation
    python -m experiments.train --run-dir runs/segmentation --resume

A run directory holds best/, last/ and, where there was a warm start, warm_start/ (policies: see agents.checkpoint),
config.json, provenance.json (one entry per start), training_state.pt (what --resume goes on from), tensorboard/,
headroom.json where that is asked for and, once finished, result.json. The best policy is the one with the least
validation loss after the last glimpse.

Ctrl-C saves the state after the last complete update. A resumed run equals an uninterrupted one, to the bit on the
CPU. Numbers of decisions count one per environment and step: a rollout of 64 environments and 8 steps has 512.
"""

import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Image as TensorBoardImage
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import canvit_gym
from agents.callbacks import EntropyFloor, ViewpointStatistics
from agents.checkpoint import load_record, replace_file, save_policy
from agents.hyperparameters import (
    Hyperparameters,
    check_fit,
    load_hyperparameters,
    num_decisions,
    schedule,
)
from agents.learned import LearnedPolicy
from agents.normalize import PerStepNormalize
from agents.policy import ViewpointPolicy, policy_kwargs_for
from agents.ppo import GlimpsePPO
from agents.record import PolicyRecord, describe_inputs, require_same
from agents.rollout import TensorRolloutBuffer
from agents.training_state import (
    State,
    begin_episodes,
    capture,
    load_state,
    preserved_random_state,
    restore,
    save_state,
)
from agents.warm_start import WarmStart, discounted_returns, warm_start
from canvit_gym.backbone.load import resolve_device
from canvit_gym.config import EnvConfig, build_actions, config_from_kwargs
from canvit_gym.evaluation import Evaluation, evaluate
from canvit_gym.sb3 import GlimpseVecEnv, make_sb3_env
from experiments.provenance import provenance
from experiments.validation import Headroom, fixation_picture, gaze_strips, headroom

log = logging.getLogger(__name__)

DEFAULT_ENV = "CanViT/FashionSegmentation-v0"

CONFIG, PROVENANCE, STATE, RESULT = "config.json", "provenance.json", "training_state.pt", "result.json"
HEADROOM = "headroom.json"
WARM_START = "warm_start"


@dataclass(frozen=True)
class TrainConfig:
    """What is None was not given: a new run takes the default, a resumed one its own value."""

    run_dir: Path
    """Policies, logs and the training state go here."""
    env: str | None = None
    """Environment id. None: CanViT/FashionSegmentation-v0."""
    env_kwargs: str | None = None
    """Keyword arguments of the environment, as JSON: '{"action": "continuous"}'. None: {}."""
    total_timesteps: int | None = None
    """Decisions to train for; the last rollout is completed. None: as in agents/hyperparameters.yml."""
    seed: int | None = None
    """None: 0."""
    hyper: str | None = None
    """Overrides of agents/hyperparameters.yml, as JSON: '{"n_epochs": 4, "learning_rate": "lin_5e-4"}'. None: {}."""
    warm_start_states: int | None = None
    """Training states in which viewpoints are tried with the labels, for a warm start (agents.warm_start), before PPO.
    None: as in agents/hyperparameters.yml."""
    eval_every: int | None = None
    """Decisions between evaluations on validation scenes (and one after a warm start, and at the end). 0: never. None:
    20,000."""
    eval_scenes: int | None = None
    """Validation scenes to evaluate on. None: all."""
    headroom_scenes: int | None = None
    """Validation scenes on which the share of headroom is told in TensorBoard (experiments.validation). 0: none.
    None: 0, for the oracle costs a forward per viewpoint and glimpse."""
    gaze_scenes: int | None = None
    """Validation scenes drawn in TensorBoard at every evaluation, with heat maps of the fixations of all. 0: none.
    None: 4."""
    checkpoint_every: int | None = None
    """Decisions between saved training states. Ctrl-C saves one in any case. None: 20,000."""
    resume: bool = False
    """Go on with the run in run_dir, with its settings; a larger --total-timesteps extends it."""
    progress: bool = True


@dataclass(frozen=True)
class TrainResult:
    run_dir: Path
    num_timesteps: int
    interrupted: bool
    """By Ctrl-C or a callback; go on with resume=True."""
    best_policy_dir: Path
    last_policy_dir: Path
    evaluations: list[dict[str, Any]]
    """In order: num_timesteps, score and loss after every glimpse."""


@dataclass(frozen=True)
class Settings:
    """What decides the outcome of a run and what is told of it; recorded in config.json."""

    env: str
    env_kwargs: dict[str, Any]
    total_timesteps: int
    seed: int
    hyper: dict[str, Any]
    eval_every: int
    eval_scenes: int | None
    headroom_scenes: int = 0
    gaze_scenes: int = 4
    checkpoint_every: int = 20_000
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    """All of them, as resolved when the run began: a resumed run does not follow later edits of the file."""


def json_object(text: str | None, *, option: str) -> dict[str, Any]:
    """The option's value; empty where it was not given."""
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{option} must be a JSON object such as '{{\"seed\": 1}}', got {text!r}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{option} must be a JSON object such as '{{\"seed\": 1}}', got {text!r}")
    return value


def env_config(env_id: str, env_kwargs: dict[str, Any]) -> EnvConfig:
    """The configuration of a registered id with keyword arguments.

    Raises:
        ValueError: unknown id, or a bad value. TypeError: unknown keyword.
    """
    if env_id not in canvit_gym.ENVIRONMENTS:
        raise ValueError(f"unknown environment {env_id!r}; there are: {', '.join(canvit_gym.ENVIRONMENTS)}")
    return config_from_kwargs({**gym.spec(env_id).kwargs, **env_kwargs})


def make_training_env(env_id: str, config: EnvConfig, hyper: Hyperparameters, env_kwargs: dict[str, Any]) -> VecEnv:
    """GlimpseVecEnv, VecMonitor (returns as the environment pays them), PerStepNormalize."""
    envs = VecMonitor(make_sb3_env(env_id, hyper.n_envs, tensors=hyper.rollout_tensors, **env_kwargs))
    if hyper.normalize_reward is None:
        return envs
    if hyper.normalize_reward == "pooled":
        return PerStepNormalize(envs, num_decisions=1, center=False)
    return PerStepNormalize(envs, num_decisions=num_decisions(config), center=not config.allow_stop)


def _ppo_arguments(hyper: Hyperparameters) -> dict[str, Any]:
    """Stable-Baselines3's own: those that have nothing to do with networks, rollouts or devices."""
    return dict(
        learning_rate=schedule(hyper.learning_rate, name="learning_rate"),
        n_steps=hyper.n_steps,
        batch_size=hyper.batch_size,
        n_epochs=hyper.n_epochs,
        gamma=hyper.gamma,
        gae_lambda=hyper.gae_lambda,
        clip_range=schedule(hyper.clip_range, name="clip_range"),
        normalize_advantage=hyper.normalize_advantage,
        ent_coef=hyper.ent_coef,
        vf_coef=hyper.vf_coef,
        max_grad_norm=hyper.max_grad_norm,
        target_kl=hyper.target_kl,
    )


def make_model(env: VecEnv, config: EnvConfig, hyper: Hyperparameters, *, seed: int) -> GlimpsePPO:
    glimpse_env = env.unwrapped
    assert isinstance(glimpse_env, GlimpseVecEnv)
    return GlimpsePPO(
        ViewpointPolicy,
        env,
        **_ppo_arguments(hyper),
        policy_kwargs={**policy_kwargs_for(glimpse_env.glimpse_envs.actions), **hyper.policy_kwargs},
        rollout_buffer_class=None if hyper.rollout_tensors is None else TensorRolloutBuffer,
        seed=seed,
        device=resolve_device(config.device),
    )


def warmed_up(
    model: GlimpsePPO, config: EnvConfig, hyper: Hyperparameters, *, seed: int, progress: bool
) -> list[dict[str, float]]:
    """The warm start that the hyperparameters ask for, if any; what it found, round by round."""
    options = WarmStart(**hyper.warm_start)
    if not options.states:
        return []
    assert isinstance(model.policy, ViewpointPolicy)
    with preserved_random_state():
        return warm_start(
            model.policy,
            config=config,
            options=options,
            returns_of=partial(
                discounted_returns, gamma=hyper.gamma, normalize=hyper.normalize_reward, center=not config.allow_stop
            ),
            num_envs=hyper.n_envs,
            seed=seed,
            progress=progress,
        )


def _throughput_hyperparameters(env_id: str, *, num_envs: int, env_kwargs: dict[str, Any]) -> Hyperparameters:
    """Those of the file with `num_envs` scenes, and the environment's keyword arguments merged in."""
    hyper = load_hyperparameters(env_id)
    return replace(
        hyper,
        n_envs=num_envs,
        batch_size=min(hyper.batch_size, num_envs * hyper.n_steps),
        env_kwargs={**hyper.env_kwargs, **env_kwargs},
    )


def ppo_for_throughput(
    env_id: str, *, num_envs: int, env_kwargs: dict[str, Any], overrides: dict[str, Any] | None = None
) -> GlimpsePPO:
    """The model that `train` makes, with `num_envs` scenes, ready to learn, logging nowhere."""
    hyper = _throughput_hyperparameters(env_id, num_envs=num_envs, env_kwargs=env_kwargs)
    hyper = replace(hyper, **overrides or {})
    config = env_config(env_id, hyper.env_kwargs)
    check_fit(hyper, config)
    model = make_model(make_training_env(env_id, config, hyper, hyper.env_kwargs), config, hyper, seed=0)
    model.set_logger(Logger(None, []))
    return model


def stock_ppo_for_throughput(
    env_id: str, *, num_envs: int, env_kwargs: dict[str, Any], policy: Literal["MultiInputPolicy", "ViewpointPolicy"]
) -> PPO:
    """What ppo_for_throughput is measured against: stable-baselines3's PPO and DictRolloutBuffer, on the same
    environment with the same hyperparameters, with its own policy or with ours.
    """
    hyper = _throughput_hyperparameters(env_id, num_envs=num_envs, env_kwargs=env_kwargs)
    envs = make_sb3_env(env_id, num_envs, **hyper.env_kwargs)
    ours = {**policy_kwargs_for(envs.glimpse_envs.actions), **hyper.policy_kwargs}
    model = PPO(
        policy if policy == "MultiInputPolicy" else ViewpointPolicy,
        VecMonitor(envs),
        **_ppo_arguments(hyper),
        policy_kwargs={} if policy == "MultiInputPolicy" else ours,
        rollout_buffer_class=DictRolloutBuffer,
        seed=0,
        device=resolve_device(envs.glimpse_envs.config.device),
    )
    model.set_logger(Logger(None, []))
    return model


class Run(BaseCallback):
    """What happens between updates: evaluation, snapshots, checkpoints. And the progress bar."""

    def __init__(self, config: TrainConfig, settings: Settings, env: EnvConfig, record: PolicyRecord) -> None:
        super().__init__()
        self.config, self.settings, self.env, self.record = config, settings, env, record
        self.evaluations: list[dict[str, Any]] = []
        self.warm_start: list[dict[str, float]] = []
        self.snapshot: State | None = None
        """The state after the last complete update."""
        self.saved_at = -1
        self.bar: tqdm[Any] | None = None
        self._headroom: Headroom | None = None

    @property
    def run_dir(self) -> Path:
        return self.config.run_dir

    def resume_from(self, state: State) -> None:
        self.evaluations = json.loads(state["evaluations"])
        self.warm_start = json.loads(state.get("warm_start", "[]"))
        self.saved_at = state["num_timesteps"]

    def _on_training_start(self) -> None:
        self.bar = tqdm(
            total=self.settings.total_timesteps,
            initial=self.model.num_timesteps,
            desc="Training",
            unit="decision",
            unit_scale=True,
            mininterval=0.5,
            disable=None if self.config.progress else True,
        )

    def _on_step(self) -> bool:
        if self.bar is not None:
            self.bar.update(self.training_env.num_envs)
        return True

    def _on_rollout_start(self) -> None:
        self._between_updates(finished=False)

    def _on_training_end(self) -> None:
        if self.model.num_timesteps >= self.settings.total_timesteps:  # else a callback ended it within a rollout
            self._between_updates(finished=True)

    def _between_updates(self, *, finished: bool) -> None:
        assert isinstance(self.model, GlimpsePPO)
        now = self.model.num_timesteps
        self._show_progress()
        self.snapshot = capture(self.model) | {
            "evaluations": json.dumps(self.evaluations),
            "warm_start": json.dumps(self.warm_start),
        }
        every = self.settings.eval_every
        last = self.evaluations[-1]["num_timesteps"] if self.evaluations else 0
        warm = now == 0 and bool(self.warm_start)
        if warm:
            self._save_policy(WARM_START)
        if every and ((warm and not self.evaluations) or now // every > last // every or (finished and now > last)):
            self._evaluate()
            self.snapshot["evaluations"] = json.dumps(self.evaluations)
        if (
            finished
            or self.saved_at < 0
            or now // self.settings.checkpoint_every > self.saved_at // self.settings.checkpoint_every
        ):
            self.save()
        if finished:
            self.logger.dump(now)

    def save(self) -> None:
        """The snapshot and its policy, to disk."""
        if self.snapshot is None or (
            self.saved_at == self.snapshot["num_timesteps"] and (self.run_dir / "last").exists()
        ):
            return
        self.model.policy.load_state_dict(self.snapshot["policy"])  # Ctrl-C may have come within an update
        self._save_policy("last", num_timesteps=self.snapshot["num_timesteps"])
        save_state(self.run_dir / STATE, self.snapshot)
        self.saved_at = self.snapshot["num_timesteps"]

    def _save_policy(self, name: str, *, num_timesteps: int | None = None) -> None:
        """The policy as it is, of now or of `num_timesteps`."""
        policy = self.model.policy
        assert isinstance(policy, ViewpointPolicy)
        now = self.num_timesteps if num_timesteps is None else num_timesteps
        save_policy(self.run_dir / name, policy, self._record(now))

    def _record(self, num_timesteps: int) -> PolicyRecord:
        evaluations = [e for e in self.evaluations if e["num_timesteps"] == num_timesteps]
        validation = evaluations[-1] if evaluations else None
        return replace(self.record, training={"num_timesteps": num_timesteps, "validation": validation})

    def _evaluate(self) -> None:
        """Every validation scene once, with the most likely viewpoints; keeps the policy if best so far."""
        policy = self.model.policy
        assert isinstance(policy, ViewpointPolicy)
        policy.set_training_mode(False)
        policy.record = self.record
        validation = replace(self.env, split="validation", num_scenes=self.settings.eval_scenes, shard=(0, 1))
        learned = LearnedPolicy(policy)
        with preserved_random_state():
            result = evaluate(learned, config=validation)
            self._show_gaze(learned, validation, result)
            self._record_headroom(validation, result)
        score, loss = result.score(), result.mean_loss()
        best = min((e["loss"][-1] for e in self.evaluations), default=float("inf"))
        self.evaluations.append(
            {
                "num_timesteps": self.num_timesteps,
                "metric": result.metric,
                "score": score.tolist(),
                "loss": loss.tolist(),
            }
        )
        for t in range(len(score)):
            self.logger.record(f"eval/{result.metric}_glimpse_{t + 1}", float(score[t]))
            self.logger.record(f"eval/loss_glimpse_{t + 1}", float(loss[t]))
        self.logger.dump(self.num_timesteps)
        if loss[-1] < best:
            self._save_policy("best")
        if self.bar is not None:
            self.bar.write(
                f"{self.num_timesteps:>9,} decisions: validation {result.metric} {100 * score[-1]:.2f} %, "
                f"loss {loss[-1]:.4f} after glimpse {len(score)}"
            )

    def _show_gaze(self, policy: LearnedPolicy, validation: EnvConfig, result: Evaluation) -> None:
        if not self.settings.gaze_scenes:
            return
        count = min(self.settings.gaze_scenes, len(result.scene))
        pictures = {
            "fixations": fixation_picture(result.viewpoints),
            "gaze": gaze_strips(policy, validation, num_scenes=count),
        }
        for name, picture in pictures.items():
            self.logger.record(
                f"eval/{name}", TensorBoardImage(picture, "HWC"), exclude=("stdout", "log", "json", "csv")
            )

    def _record_headroom(self, validation: EnvConfig, result: Evaluation) -> None:
        if not self.settings.headroom_scenes:
            return
        if self._headroom is None:
            count = min(self.settings.headroom_scenes, len(result.scene))
            self._headroom = headroom(validation, count, path=self.run_dir / HEADROOM)
        for t, share in enumerate(self._headroom.share(result)):
            if np.isfinite(share):
                self.logger.record(f"eval/headroom_share_glimpse_{t + 1}", float(share))

    def _show_progress(self) -> None:
        assert isinstance(self.model, GlimpsePPO)
        if self.bar is None or self.model.ep_info_buffer is None:
            return
        returns = [info["r"] for info in self.model.ep_info_buffer]
        values = {"reward": np.mean(returns) if returns else None} | {
            short: self.logger.name_to_value.get(name)
            for short, name in (("entropy", "rollout/entropy"), ("loss", "train/loss"))
        }
        self.bar.set_postfix({k: f"{v:.3f}" for k, v in values.items() if v is not None}, refresh=False)


def _prepare(config: TrainConfig) -> tuple[Settings, State | None]:
    """The run's settings, and the state to resume from. Refuses what is wrong before touching anything."""
    least_values = {
        "total_timesteps": 1, "eval_every": 0, "eval_scenes": 1, "checkpoint_every": 1, "headroom_scenes": 0,
        "gaze_scenes": 0, "warm_start_states": 0,
    }  # fmt: skip
    for name, least in least_values.items():
        value = getattr(config, name)
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    run_dir = config.run_dir
    begun, finished = (run_dir / CONFIG).exists(), (run_dir / RESULT).exists()
    if not config.resume:
        if finished:
            done = json.loads((run_dir / RESULT).read_text())["num_timesteps"]
            raise FileExistsError(
                f"{run_dir} holds a finished run of {done:,} decisions. Choose another run directory, or "
                f"extend this run with --resume and --total-timesteps above {done}."
            )
        if begun:
            raise FileExistsError(
                f"{run_dir} holds an unfinished run. Go on with it with --resume, or choose another run directory."
            )
        return _fresh_settings(config), None
    if not begun:
        raise FileNotFoundError(
            f"{run_dir} holds no run to resume: {CONFIG} is missing. Leave out --resume to begin one."
        )
    settings = _resumed_settings(config, Settings(**json.loads((run_dir / CONFIG).read_text())))
    state = load_state(run_dir / STATE) if (run_dir / STATE).exists() else None
    if state is not None and finished and state["num_timesteps"] >= settings.total_timesteps:
        raise ValueError(
            f"{run_dir} holds a finished run of {state['num_timesteps']:,} decisions: to extend it, ask for "
            f"--total-timesteps above {state['num_timesteps']} (got {settings.total_timesteps})"
        )
    return settings, state


def _fresh_settings(config: TrainConfig) -> Settings:
    env_kwargs = json_object(config.env_kwargs, option="--env-kwargs")
    overrides = _overrides(config)
    env_id = DEFAULT_ENV if config.env is None else config.env
    env_config(env_id, env_kwargs)  # an unknown id is named before the lack of hyperparameters for it
    hyper = load_hyperparameters(env_id, overrides)
    env = env_config(env_id, {**hyper.env_kwargs, **env_kwargs})
    if env.split != "training":
        raise ValueError(
            f"agents train on split='training', got {env.split!r}: validation scenes choose the best "
            "policy, and test scenes are for experiments that compare policies"
        )
    check_fit(hyper, env)
    return Settings(
        env=env_id,
        env_kwargs=env_kwargs,
        total_timesteps=hyper.total_timesteps if config.total_timesteps is None else config.total_timesteps,
        seed=0 if config.seed is None else config.seed,
        hyper=overrides,
        eval_every=20_000 if config.eval_every is None else config.eval_every,
        eval_scenes=config.eval_scenes,
        hyperparameters=hyper.to_json(),
        **_told(config),
    )


def _told(config: TrainConfig) -> dict[str, int]:
    """What was asked for of the settings that leave the outcome as it is."""
    asked = {name: getattr(config, name) for name in ("headroom_scenes", "gaze_scenes", "checkpoint_every")}
    return {name: value for name, value in asked.items() if value is not None}


def _overrides(config: TrainConfig) -> dict[str, Any]:
    """--hyper, with what has an option of its own."""
    overrides = json_object(config.hyper, option="--hyper")
    if config.warm_start_states is not None:
        overrides["warm_start"] = {**overrides.get("warm_start", {}), "states": config.warm_start_states}
    return overrides


def _resumed_settings(config: TrainConfig, saved: Settings) -> Settings:
    """The run's own. What was asked for must agree with those that decide the outcome, but for the number of
    decisions.
    """
    for name in ("env", "env_kwargs", "seed", "hyper", "eval_every", "eval_scenes"):
        asked, own = getattr(config, name), getattr(saved, name)
        if name == "hyper" and (asked is not None or config.warm_start_states is not None):
            asked = _overrides(config)
        elif asked is not None and isinstance(own, dict):
            asked = json_object(asked, option="--" + name.replace("_", "-"))
        if asked is not None and asked != own:
            raise ValueError(
                f"the run in {config.run_dir} was begun with {name}={own!r}, not {asked!r}: leave it out to go on "
                "with that run, or choose another run directory"
            )
    return replace(saved, total_timesteps=config.total_timesteps or saved.total_timesteps, **_told(config))


@contextmanager
def _writing_to(run_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cannot write to the run directory {run_dir}: {error.strerror or error}. Choose another with --run-dir."
        ) from error


def _check_writable(run_dir: Path) -> None:
    """Before anything slow; leaves the directory, made where missing, as a new run may find it."""
    with _writing_to(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=run_dir).close()


def _begin_run_dir(run_dir: Path, settings: Settings, origin: dict[str, Any]) -> None:
    with _writing_to(run_dir):
        previous = json.loads((run_dir / PROVENANCE).read_text()) if (run_dir / PROVENANCE).exists() else []
        replace_file(run_dir / PROVENANCE, (json.dumps([*previous, origin], indent=2) + "\n").encode())
        replace_file(run_dir / CONFIG, (json.dumps(asdict(settings), indent=2) + "\n").encode())
        (run_dir / RESULT).unlink(missing_ok=True)


def train(config: TrainConfig, *, callbacks: Sequence[BaseCallback] = ()) -> TrainResult:
    """Train, or go on training. `callbacks` are SB3's, called after this function's own.

    Raises:
        FileExistsError, FileNotFoundError, OSError: the run directory holds a run (or none, to resume), or cannot be
            written.
        ValueError, TypeError: unknown environment, keyword or hyperparameter, bad values, or a damaged state.
        FloatingPointError: a NaN or an infinity; the last checkpoint is kept.
    """
    settings, state = _prepare(config)
    hyper = Hyperparameters(**settings.hyperparameters)
    env_kwargs = {**hyper.env_kwargs, **settings.env_kwargs}
    env_cfg = env_config(settings.env, env_kwargs)
    check_fit(hyper, env_cfg)
    run_dir = config.run_dir
    _check_writable(run_dir)
    record = PolicyRecord(
        env_id=settings.env,
        env=env_cfg,
        inputs=describe_inputs(env_cfg),
        network=hyper.policy_kwargs,
        hyperparameters=settings.hyperparameters,
        provenance=provenance(),
        training={},
    )
    if state is not None:
        begun = load_record(run_dir / "last").inputs
        require_same(begun, record.inputs, who=f"the run in {run_dir}", learning=True)
    env = make_training_env(settings.env, env_cfg, hyper, env_kwargs)
    model = make_model(env, env_cfg, hyper, seed=settings.seed)
    run = Run(config, settings, env_cfg, record)
    if state is None:
        run.warm_start = warmed_up(model, env_cfg, hyper, seed=settings.seed, progress=config.progress)
        begin_episodes(model)
    else:
        restore(model, state)
        run.resume_from(state)
    # Only now: a run that cannot be built leaves a directory in which the corrected command may begin.
    _begin_run_dir(run_dir, settings, record.provenance)
    folder = str(run_dir / "tensorboard")
    board = TensorBoardOutputFormat(folder)
    if state is not None:  # what came after the state was lost with the process: TensorBoard shall not show it twice
        board.writer.close()
        board.writer = SummaryWriter(folder, purge_step=model.num_timesteps + 1)
    model.set_logger(Logger(folder, [board]))
    learning: list[BaseCallback] = [run, ViewpointStatistics(build_actions(env_cfg))]
    if hyper.entropy_floor is not None:
        learning.append(EntropyFloor(**hyper.entropy_floor))

    began, interrupted = time.monotonic(), False
    try:
        # SB3 counts from num_timesteps on, so that total_timesteps is what remains.
        remaining = settings.total_timesteps - model.num_timesteps
        model.learn(remaining, callback=[*learning, *callbacks], reset_num_timesteps=False)
        interrupted = model.num_timesteps < settings.total_timesteps  # a callback said so
    except KeyboardInterrupt:
        interrupted = True
    except FloatingPointError as error:
        raise FloatingPointError(
            f"training stopped at decision {model.num_timesteps:,}, optimizer epoch {model._n_updates}: {error}. The "
            f"last good checkpoint, of decision {max(run.saved_at, 0):,}, is kept in {run_dir} ({STATE} and last/). A "
            "smaller learning_rate or max_grad_norm may help: begin a new run with --hyper."
        ) from error
    finally:
        if run.bar is not None:
            run.bar.close()
        model.logger.close()
        env.close()
    if interrupted:
        run.save()
    last, best = run_dir / "last", run_dir / "best"
    done = run.snapshot["num_timesteps"] if run.snapshot is not None else model.num_timesteps
    result = TrainResult(
        run_dir=run_dir,
        num_timesteps=done,
        interrupted=interrupted,
        best_policy_dir=best if best.exists() else last,
        last_policy_dir=last,
        evaluations=run.evaluations,
    )
    if not interrupted:
        summary = {"num_timesteps": done, "seconds": time.monotonic() - began, "evaluations": run.evaluations}
        summary |= {"warm_start": run.warm_start} if run.warm_start else {}
        replace_file(run_dir / RESULT, (json.dumps(summary, indent=2) + "\n").encode())
    return result


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = tyro.cli(TrainConfig, description=__doc__)
    try:
        result = train(config)
    except (OSError, ValueError, TypeError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted before the first rollout: nothing is saved, the same command begins again.")
    if result.interrupted:
        log.info(
            "Interrupted after %s decisions; all but the update that was under way is in %s. Go on with:\n"
            "  python -m experiments.train --run-dir %s --resume",
            f"{result.num_timesteps:,}", result.run_dir, result.run_dir,
        )  # fmt: skip
        sys.exit(130)
    log.info("Best policy: %s. TensorBoard: tensorboard --logdir %s", result.best_policy_dir, result.run_dir)


if __name__ == "__main__":
    main()
