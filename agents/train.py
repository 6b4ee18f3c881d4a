"""Train a PPO agent to choose viewpoints.

    python -m agents.train --env CanViT/FashionSegmentation-v0 --run-dir runs/segmentation
    python -m agents.train --run-dir runs/segmentation --resume

A run directory holds best/, last/ and, where there was a warm start, warm_start/ (policies, which
canvit_gym.policies.load_policy loads), config.json, provenance.json (one entry per start), training_state.pt (what
--resume goes on from), tensorboard/, headroom.json where that is asked for and, once finished, result.json. The best
policy is the one with the least validation loss after the last glimpse; of agents that may stop, the one whose stops
are worth most, the cost of glimpses included.

Ctrl-C saves the state after the last complete update. A resumed run equals an uninterrupted one, to the bit on the
CPU with as many threads. Numbers of decisions count one per environment and step: a rollout of 64 environments and 8
steps has 512.
"""

import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from torch.utils.tensorboard import SummaryWriter

from agents.monitor import Run
from agents.ppo.callbacks import EntropyFloor, ViewpointStatistics
from agents.ppo.hyperparameters import Hyperparameters, check_fit
from agents.ppo.model import make_model, make_training_env, warmed_up
from agents.settings import CONFIG, RESULT, STATE, Settings, TrainConfig, prepare
from agents.training_state import begin_episodes, restore
from canvit_gym.assembly import build_actions
from canvit_gym.atomic import write_json
from canvit_gym.command_line import INTERRUPTED, env_config, run_command
from canvit_gym.policies.learned import load_record
from canvit_gym.policies.record import PolicyRecord, describe_inputs, require_same
from canvit_gym.provenance import provenance

log = logging.getLogger(__name__)

PROVENANCE = "provenance.json"


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
        previous = (
            json.loads((run_dir / PROVENANCE).read_text(encoding="utf-8")) if (run_dir / PROVENANCE).exists() else []
        )
        write_json(run_dir / PROVENANCE, [*previous, origin])
        write_json(run_dir / CONFIG, asdict(settings))
        (run_dir / RESULT).unlink(missing_ok=True)


def train(config: TrainConfig, *, callbacks: Sequence[BaseCallback] = ()) -> TrainResult:
    """Train, or go on training. `callbacks` are SB3's, called after this function's own.

    Raises:
        FileExistsError, FileNotFoundError, OSError: the run directory holds a run (or none, to resume), or cannot be
            written.
        ValueError, TypeError: unknown environment, keyword or hyperparameter, bad values, or a damaged state.
        FloatingPointError: a NaN or an infinity; the last checkpoint is kept.
    """
    settings, state = prepare(config)
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
        hyperparameters=settings.hyperparameters | {"total_timesteps": settings.total_timesteps},
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
    # Only now: a run that cannot be built, or a warm start cut short, leaves a directory in which a command may begin.
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
        interrupted = not run.finished  # a callback said so
    except KeyboardInterrupt:
        interrupted = True
    except FloatingPointError as error:
        kept = f"The last good checkpoint, of decision {run.saved_at:,}, is kept in {run_dir} ({STATE} and last/)."
        raise FloatingPointError(
            f"training stopped at decision {model.num_timesteps:,}, optimizer epoch {model._n_updates}: {error}. "
            f"{kept if run.saved_at >= 0 else 'Nothing was saved yet.'} A smaller learning_rate or max_grad_norm may "
            "help: begin a new run with --hyper."
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
        write_json(run_dir / RESULT, summary)
    return result


def main(config: TrainConfig) -> None:
    go_on = f"Go on with:\n  python -m agents.train --run-dir {config.run_dir} --resume"
    try:
        result = train(config)
    except KeyboardInterrupt:  # while it began, or a second one while it saved
        if not (config.run_dir / CONFIG).exists():
            raise
        log.info("Interrupted; what was saved before is in %s. %s", config.run_dir, go_on)
        sys.exit(INTERRUPTED)
    if result.interrupted:
        log.info(
            "Interrupted after %s decisions; all but the update that was under way is in %s. %s",
            f"{result.num_timesteps:,}", result.run_dir, go_on,
        )  # fmt: skip
        sys.exit(INTERRUPTED)
    log.info("Best policy: %s. TensorBoard: tensorboard --logdir %s", result.best_policy_dir, result.run_dir)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_command(
        main,
        TrainConfig,
        description=__doc__,
        if_interrupted="Interrupted before the first rollout: nothing is saved, the same command begins again.",
    )
