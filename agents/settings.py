"""The settings of a run: chosen on the command line, saved in its directory, and reused when it is resumed."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from typing_extensions import Doc

from agents.algorithms import ALGORITHMS, DEFAULT, Algorithm, find_algorithm, load_hyperparameters
from agents.checks import mapping
from agents.run_directory import CONFIG, RESULT, STATE
from agents.training_state import State, load_state
from canvit_gym.checks import integer, optional
from canvit_gym.command_line import env_config, json_object
from canvit_gym.config import EnvConfig, override

DEFAULT_ENV = "CanViT/FashionSegmentation-v0"
DEFAULT_EVAL_EVERY = 20_000


@dataclass(frozen=True)
class TrainConfig:
    """None means not passed: a new run uses the default, a resumed one its own value."""

    run_dir: Path
    """Directory of policies, logs and the training state."""
    algo: Annotated[str | None, Doc(f"The learner: {', '.join(ALGORITHMS)}. None: {DEFAULT}.")] = None
    env: str | None = None
    """Environment id. None: CanViT/FashionSegmentation-v0."""
    env_kwargs: str | None = None
    """Keyword arguments of the environment, as JSON: '{"action": "continuous"}'. None: {}."""
    total_timesteps: int | None = None
    """Number of decisions; the last rollout is completed. None: as in agents/hyperparameters/ALGO.yml."""
    seed: int | None = None
    """None: 0."""
    hyper: str | None = None
    """Overrides of agents/hyperparameters/ALGO.yml, as JSON: '{"n_epochs": 4, "learning_rate": "lin_5e-4"}'.
    None: {}."""
    warm_start_states: int | None = None
    """Number of training states for a warm start before PPO, in which viewpoints are tried with the labels
    (agents.ppo.warm_start). None: as in agents/hyperparameters/ALGO.yml."""
    eval_every: int | None = None
    """Decisions between evaluations on validation scenes, or on held-out training scenes if `tuning_scenes` is among
    --env-kwargs. There is also one after a warm start, and one at the end. 0: never. None: 20,000."""
    eval_scenes: int | None = None
    """Number of validation scenes to evaluate on. None: all."""
    headroom_scenes: int | None = None
    """Number of validation scenes for the share of headroom in TensorBoard (agents.validation). The oracle costs a
    forward per viewpoint and glimpse. None: 0."""
    gaze_scenes: int | None = None
    """Number of validation scenes to draw in TensorBoard at every evaluation, with heat maps of all fixations. 0: no
    pictures. None: 4."""
    checkpoint_every: int | None = None
    """Decisions between saved training states. Ctrl-C saves one as well, unless states contain a replay buffer: then
    the last one counts. None: 20,000."""
    resume: bool = False
    """Continue the run in run_dir with its settings. A larger --total-timesteps extends it. Linear schedules (lin_x)
    then fall towards the new end, so an extended run differs from one that was begun with that number."""
    progress: bool = True


@dataclass(frozen=True)
class Settings:
    """Everything that determines the outcome of a run and its logs; saved in config.json."""

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
    """All hyperparameters as resolved when the run began, so that later edits of the file do not affect a resumed
    run."""
    algo: str = DEFAULT


@dataclass(frozen=True)
class Plan:
    """A run's resolved settings, from `prepare`."""

    run_dir: Path
    settings: Settings
    algorithm: Algorithm
    hyper: Any
    """An instance of algorithm.hyperparameters."""
    env: EnvConfig
    env_kwargs: dict[str, Any]
    """Keyword arguments from the hyperparameters and from the command line, together."""
    state: State | None
    """The state to resume from; None: begin a new run."""
    progress: bool

    @classmethod
    def of(cls, settings: Settings, *, run_dir: Path, state: State | None = None, progress: bool = False) -> "Plan":
        """
        Raises:
            ValueError, TypeError: unknown or bad values, or an environment that the algorithm cannot learn in.
        """
        algorithm = find_algorithm(settings.algo)
        hyper = algorithm.hyperparameters(**settings.hyperparameters)
        env_kwargs = override(hyper.env_kwargs, settings.env_kwargs)
        env = env_config(settings.env, env_kwargs)
        hyper.check_fit(env)
        return cls(run_dir, settings, algorithm, hyper, env, env_kwargs, state, progress)


def prepare(config: TrainConfig) -> Plan:
    """Check the options and resolve them into a plan, before anything is written."""
    least_values = {
        "total_timesteps": 1, "eval_every": 0, "eval_scenes": 1, "checkpoint_every": 1, "headroom_scenes": 0,
        "gaze_scenes": 0, "warm_start_states": 0, "seed": 0,
    }  # fmt: skip
    for name, least in least_values.items():
        optional(integer(least))(name, getattr(config, name))
    run_dir = config.run_dir.expanduser()
    begun, finished = (run_dir / CONFIG).exists(), (run_dir / RESULT).exists()
    if not config.resume:
        if finished:
            done = json.loads((run_dir / RESULT).read_text(encoding="utf-8"))["num_timesteps"]
            raise FileExistsError(
                f"{run_dir} contains a finished run of {done:,} decisions. Choose another run directory, or "
                f"extend this run with --resume and --total-timesteps above {done}."
            )
        if begun:
            raise FileExistsError(
                f"{run_dir} contains an unfinished run. Continue it with --resume, or choose another run directory."
            )
        return Plan.of(_fresh_settings(config), run_dir=run_dir, progress=config.progress)
    if not begun:
        raise FileNotFoundError(
            f"{run_dir} contains no run to resume: {CONFIG} is missing. Leave out --resume to begin one."
        )
    saved = _saved_settings(run_dir / CONFIG)
    settings = _resumed_settings(config, saved)
    state = load_state(run_dir / STATE) if (run_dir / STATE).exists() else None
    if finished and state is None:
        raise FileNotFoundError(
            f"{run_dir} contains a finished run, and its {STATE} is gone (agents.tune deletes those of its trials), so "
            "that it cannot be extended. Restore the file; or choose another run directory; or, to train it again "
            f"from the beginning with the same settings, delete {RESULT} and --resume"
        )
    asks_for_other = finished or settings.total_timesteps != saved.total_timesteps
    if state is not None and asks_for_other and state["num_timesteps"] >= settings.total_timesteps:
        done = state["num_timesteps"]
        raise ValueError(
            f"{run_dir} contains {'a finished' if finished else 'an unfinished'} run of {done:,} decisions: to extend "
            f"it, pass --total-timesteps above {done} (got {settings.total_timesteps})"
        )
    return Plan.of(settings, run_dir=run_dir, state=state, progress=config.progress)


def _saved_settings(path: Path) -> Settings:
    try:
        return Settings(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged, or from another version ({error}): restore the intact file, or choose another run "
            "directory"
        ) from error


def _fresh_settings(config: TrainConfig) -> Settings:
    env_kwargs = json_object(config.env_kwargs, option="--env-kwargs")
    overrides = _overrides(config)
    env_id = DEFAULT_ENV if config.env is None else config.env
    env_config(env_id, env_kwargs)  # report an unknown id before missing hyperparameters for it
    algo = DEFAULT if config.algo is None else config.algo
    hyper = load_hyperparameters(env_id, overrides, algo=algo)
    env = env_config(env_id, override(hyper.env_kwargs, env_kwargs))
    if env.split != "training":
        raise ValueError(
            f"agents train on split='training', got {env.split!r}: validation scenes choose the best "
            "policy, and test scenes are for experiments that compare policies"
        )
    return Settings(
        algo=algo,
        env=env_id,
        env_kwargs=env_kwargs,
        total_timesteps=hyper.total_timesteps if config.total_timesteps is None else config.total_timesteps,
        seed=0 if config.seed is None else config.seed,
        hyper=overrides,
        eval_every=DEFAULT_EVAL_EVERY if config.eval_every is None else config.eval_every,
        eval_scenes=config.eval_scenes,
        hyperparameters=hyper.to_json(),
        **_outcome_neutral(config),
    )


def _outcome_neutral(config: TrainConfig) -> dict[str, int]:
    """The passed options that do not affect the outcome."""
    asked = {name: getattr(config, name) for name in ("headroom_scenes", "gaze_scenes", "checkpoint_every")}
    return {name: value for name, value in asked.items() if value is not None}


def _overrides(config: TrainConfig) -> dict[str, Any]:
    """--hyper, together with hyperparameters that have their own option."""
    overrides = json_object(config.hyper, option="--hyper")
    if config.warm_start_states is not None:
        options = mapping("hyperparameter warm_start", overrides.get("warm_start", {}))
        overrides["warm_start"] = {**options, "states": config.warm_start_states}
    return overrides


def _resumed_settings(config: TrainConfig, saved: Settings) -> Settings:
    """The run's own settings. Options that affect the outcome must agree with them, except for the number of
    decisions."""
    for name in ("algo", "env", "env_kwargs", "seed", "hyper", "eval_every", "eval_scenes"):
        asked, own = getattr(config, name), getattr(saved, name)
        if name == "hyper" and (asked is not None or config.warm_start_states is not None):
            asked = _overrides(config)
        elif asked is not None and isinstance(own, dict):
            asked = json_object(asked, option="--" + name.replace("_", "-"))
        if asked is not None and asked != own:
            raise ValueError(
                f"the run in {config.run_dir} was begun with {name}={own!r}, not {asked!r}: leave it out to continue "
                "that run, or choose another run directory"
            )
    return replace(saved, total_timesteps=config.total_timesteps or saved.total_timesteps, **_outcome_neutral(config))
