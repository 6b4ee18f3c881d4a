"""Train an agent to choose viewpoints.

    python -m agents.train --algo ppo --env CanViT/FashionSegmentation-v0 --run-dir runs/segmentation
    python -m agents.train --run-dir runs/segmentation --resume

A run directory contains best/, last/ and, after a warm start, warm_start/ (policies, for
canvit_gym.policies.load_policy), config.json, provenance.json (an entry per start), training_state.pt (for --resume),
clock.json (how long it took), tensorboard/, headroom.json with --headroom-scenes and, when finished, result.json. The
best policy is the one with the lowest validation loss after the last glimpse. If it pays to know more early
(canvit_gym.suite.payoff), the loss is averaged over glimpses. If the agent may stop, the best policy is the one whose
stops are worth most, minus the cost of glimpses.

Ctrl-C saves the state after the last complete update. A resumed run is bitwise identical to an uninterrupted one on the
CPU with the same number of threads. Decisions are counted per environment and step: a rollout of 64 environments and 8
steps has 512.
"""

import json
import logging
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from torch.utils.tensorboard import SummaryWriter

from agents.clock import RunClock
from agents.learner import TellsHowItRan
from agents.monitor import Monitor
from agents.run_directory import CONFIG, PROVENANCE, RESULT, STATE, claimed, writing_to
from agents.settings import Plan, Settings, TrainConfig, prepare
from canvit_gym.atomic import write_json
from canvit_gym.command_line import INTERRUPTED, run_command
from canvit_gym.policies.learned import load_record
from canvit_gym.policies.policy_record import PolicyRecord, describe_inputs, require_same
from canvit_gym.provenance import provenance

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    run_dir: Path
    num_timesteps: int
    interrupted: bool
    """Whether Ctrl-C or a callback ended training; continue with resume=True."""
    best_policy_dir: Path
    last_policy_dir: Path
    evaluations: list[dict[str, Any]]
    """In order, each with num_timesteps, and score and loss after every glimpse."""


def train(config: TrainConfig, *, callbacks: Sequence[BaseCallback] = ()) -> TrainResult:
    """Begin or resume a run. `callbacks` are called after the learner's own, for learners of Stable-Baselines3.

    Raises:
        FileExistsError, FileNotFoundError, OSError: the run directory already contains a run (or none to resume),
            cannot be written to, or is in use by another process.
        ValueError, TypeError: unknown algorithm, environment, keyword or hyperparameter, bad values, or a damaged
            state.
        FloatingPointError: a NaN or an infinity; the last checkpoint is kept.
    """
    run_dir = config.run_dir.expanduser()
    if not (config.resume and (run_dir / CONFIG).exists()):
        prepare(config)  # bad options are told before a directory is made
    with claimed(run_dir):
        return _train(prepare(config), callbacks)


def _train(plan: Plan, callbacks: Sequence[BaseCallback]) -> TrainResult:
    settings, run_dir, state = plan.settings, plan.run_dir, plan.state
    plan = replace(plan, state=None)  # which the learner keeps
    clock = RunClock(run_dir)
    inputs = describe_inputs(plan.env)
    if state is not None:
        begun = load_record(run_dir / "last").inputs
        require_same(begun, inputs, who=f"the run in {run_dir}", learning=True)
    learner = plan.algorithm.make(plan)
    with ExitStack() as used:  # agents.matrix goes on with other runs after an error
        used.callback(learner.close)
        record = PolicyRecord(
            env_id=settings.env,
            env=plan.env,
            inputs=inputs,
            network=learner.network_options,
            hyperparameters=settings.hyperparameters | {"total_timesteps": settings.total_timesteps},
            provenance=provenance(),
            training={},
            algorithm=plan.algorithm.title,
            network_class=learner.network_class,
        )
        warm_start: list[dict[str, float]] = []
        if state is None:
            warm_start = learner.begin(progress=plan.progress)
        else:
            learner.restore(state)
        # Only now, so that after a failed start or an interrupted warm start the same command can begin again.
        _begin_run_dir(run_dir, settings, record.provenance)
        logger = _logger(run_dir, purge_from=None if state is None else learner.num_timesteps + 1)
        used.callback(logger.close)
        learner.set_logger(logger)
        monitor = Monitor(plan, learner, record, logger, clock)
        used.callback(monitor.close_bar)
        monitor.warm_start = warm_start
        if state is not None:
            monitor.resume_from(state)
            del state  # the monitor's until the next one, and no longer: it may hold a replay buffer

        interrupted = False
        try:
            monitor.open_bar()
            if learner.learn(settings.total_timesteps, monitor, callbacks=callbacks):
                monitor.finished()
            else:  # by a callback
                interrupted = True
        except KeyboardInterrupt:
            interrupted = True
        except FloatingPointError as error:
            kept = f"The last good checkpoint, of decision {monitor.saved_at:,}, is in {run_dir} ({STATE} and last/)."
            raise FloatingPointError(
                f"training stopped at decision {learner.num_timesteps:,}: {error}. "
                f"{kept if monitor.saved_at >= 0 else 'Nothing was saved yet.'} A smaller learning_rate or "
                "max_grad_norm may help: begin a new run with --hyper."
            ) from error
    if interrupted:
        monitor.save()
    last, best = run_dir / "last", run_dir / "best"
    done = monitor.snapshot["num_timesteps"] if monitor.snapshot is not None else learner.num_timesteps
    result = TrainResult(
        run_dir=run_dir,
        num_timesteps=done,
        interrupted=interrupted,
        best_policy_dir=best if best.exists() else last,
        last_policy_dir=last,
        evaluations=monitor.evaluations,
    )
    if not interrupted:
        summary = {"num_timesteps": done, "seconds": clock.seconds, "evaluations": monitor.evaluations}
        summary |= {"warm_start": monitor.warm_start} if monitor.warm_start else {}
        summary |= {"ran": learner.ran} if isinstance(learner, TellsHowItRan) else {}
        write_json(run_dir / RESULT, summary)
    return result


def _begin_run_dir(run_dir: Path, settings: Settings, origin: dict[str, Any]) -> None:
    with writing_to(run_dir):
        path = run_dir / PROVENANCE
        previous = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        write_json(path, [*previous, origin])
        write_json(run_dir / CONFIG, asdict(settings))
        (run_dir / RESULT).unlink(missing_ok=True)


def _logger(run_dir: Path, *, purge_from: int | None) -> Logger:
    """A logger to TensorBoard. Entries after the state of a resumed run are purged, so that they are not shown
    twice."""
    folder = str(run_dir / "tensorboard")
    board = TensorBoardOutputFormat(folder)
    if purge_from is not None:
        board.writer.close()
        board.writer = SummaryWriter(folder, purge_step=purge_from)
    return Logger(folder, [board])


def main(config: TrainConfig) -> None:
    command = ["python", "-m", "agents.train", "--run-dir", str(config.run_dir.expanduser()), "--resume"]
    go_on = f"Continue with:\n  {shlex.join(command)}"
    try:
        result = train(config)
    except KeyboardInterrupt:  # at the beginning, or a second one while saving
        if not (config.run_dir.expanduser() / CONFIG).exists():
            raise
        log.info("Interrupted; the last saved state is in %s. %s", config.run_dir, go_on)
        sys.exit(INTERRUPTED)
    if result.interrupted:
        log.info(
            "Interrupted after %s decisions; the last saved state is in %s. %s",
            f"{result.num_timesteps:,}", result.run_dir, go_on,
        )  # fmt: skip
        sys.exit(INTERRUPTED)
    board = shlex.join(["tensorboard", "--logdir", str(result.run_dir)])
    log.info("Best policy: %s. TensorBoard: %s", result.best_policy_dir, board)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_command(
        main,
        TrainConfig,
        description=__doc__,
        if_interrupted="Interrupted before the first rollout: nothing was saved, run the same command again.",
    )
