"""Evaluate the policy between updates, write policies and training states, and show a progress bar."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
from stable_baselines3.common.logger import Image as TensorBoardImage
from stable_baselines3.common.logger import Logger
from tqdm import tqdm

from agents.clock import RunClock
from agents.learner import Learner, State
from agents.run_directory import STATE
from agents.settings import Plan
from agents.training_state import preserved_random_state, save_state
from agents.validation import Headroom, fixation_picture, gaze_strips, headroom
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import Evaluation, evaluate
from canvit_gym.policies.learned import LearnedPolicy, save_policy
from canvit_gym.policies.policy_record import PolicyRecord
from canvit_gym.stopping import Stops, stops
from canvit_gym.suite.payoff import payoff_of

HEADROOM, WARM_START = "headroom.json", "warm_start"


def merit(evaluation: dict[str, Any], env: EnvConfig) -> float:
    """The number by which the best policy is chosen, larger is better: minus what the environment's payoff
    (canvit_gym.suite.payoff) makes of the loss curve or, if the agent may stop, the worth of its stops (Stops.worth).
    """
    if "at_stop" in evaluation:
        return evaluation["at_stop"]["worth"]
    return -payoff_of(env).of_curve(np.array(evaluation["loss"]))


class Monitor:
    """Evaluation, snapshots and checkpoints between updates, and the progress bar."""

    def __init__(self, plan: Plan, learner: Learner, record: PolicyRecord, logger: Logger, clock: RunClock) -> None:
        self.plan, self.learner, self.record, self.logger, self.clock = plan, learner, record, logger, clock
        self.settings, self.env, self.run_dir = plan.settings, plan.env, plan.run_dir
        self.evaluations: list[dict[str, Any]] = []
        self.warm_start: list[dict[str, float]] = []
        self.snapshot: State | None = None
        """The state after the last complete update or, for learners with large states, the last one written."""
        self.saved_at = -1
        self.bar: tqdm[Any] | None = None
        self._unsaved_evaluation = False
        self._headroom: Headroom | None = None

    def resume_from(self, state: State) -> None:
        self.evaluations = json.loads(state["evaluations"])
        self.warm_start = json.loads(state.get("warm_start", "[]"))
        self.snapshot, self.saved_at = state, state["num_timesteps"]
        self.clock.resume_at(self.saved_at)

    def open_bar(self) -> None:
        self.bar = tqdm(
            total=self.settings.total_timesteps,
            initial=self.learner.num_timesteps,
            desc="Training",
            unit="decision",
            unit_scale=True,
            mininterval=0.5,
            disable=None if self.plan.progress else True,
        )

    def close_bar(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def stepped(self, num_decisions: int) -> None:
        if self.bar is not None:
            self.bar.update(num_decisions)

    def between_updates(self) -> None:
        self._between_updates(finished=False)

    def finished(self) -> None:
        """Call after the last update."""
        self._between_updates(finished=True)
        self.logger.dump(self.learner.num_timesteps)

    def _between_updates(self, *, finished: bool) -> None:
        now = self.learner.num_timesteps
        self._show_progress()
        every = self.settings.checkpoint_every
        writes = finished or self.saved_at < 0 or now // every > self.saved_at // every
        if writes or self.learner.captures_every_update:
            self.snapshot = self.learner.capture() | {
                "warm_start": json.dumps(self.warm_start),
                "evaluations": json.dumps(self.evaluations),
            }
        every = self.settings.eval_every
        last = self.evaluations[-1]["num_timesteps"] if self.evaluations else 0
        warm = now == 0 and bool(self.warm_start)
        if warm:
            self._save_policy(WARM_START)
        if self.saved_at < 0:  # a warm start took minutes, so save it before anything else can fail
            self.save()
        if every and ((warm and not self.evaluations) or now // every > last // every or (finished and now > last)):
            self.clock.note(now)
            self._evaluate()
            self._unsaved_evaluation |= self._note_evaluations()
        if writes:
            self.save()

    def _note_evaluations(self) -> bool:
        """Add the evaluations to the snapshot if it was taken after the current update. Returns whether it was."""
        if self.snapshot is None or self.snapshot["num_timesteps"] != self.learner.num_timesteps:
            return False
        self.snapshot["evaluations"] = json.dumps(self.evaluations)
        return True

    def save(self) -> None:
        """Write the snapshot and its policy to disk."""
        snapshot = self.snapshot
        if snapshot is None:
            return
        at = snapshot["num_timesteps"]
        if self.saved_at == at and not self._unsaved_evaluation and (self.run_dir / "last").exists():
            return
        self.learner.restore_network(snapshot)  # Ctrl-C may have interrupted an update
        self._save_policy("last", num_timesteps=at)
        save_state(self.run_dir / STATE, snapshot)
        self.clock.note(at)
        self.saved_at, self._unsaved_evaluation = at, False

    def _save_policy(self, name: str, *, num_timesteps: int | None = None) -> None:
        """Save the current policy; its record says `num_timesteps`, or the current number of decisions."""
        now = self.learner.num_timesteps if num_timesteps is None else num_timesteps
        save_policy(self.run_dir / name, self.learner.network, self._record(now))

    def _record(self, num_timesteps: int) -> PolicyRecord:
        evaluations = [e for e in self.evaluations if e["num_timesteps"] == num_timesteps]
        validation = evaluations[-1] if evaluations else None
        training = {"num_timesteps": num_timesteps, "seed": self.settings.seed, "validation": validation}
        return replace(self.record, training=training)

    def _evaluate(self) -> None:
        """Evaluate the most likely viewpoints on the scenes to choose by. Saves the policy if it is the best so far."""
        network = self.learner.network.eval()
        validation = replace(
            self.env, split=self.env.choosing_split, num_scenes=self.settings.eval_scenes, shard=(0, 1)
        )
        learned = LearnedPolicy(network, self.record)
        with preserved_random_state():
            found = stops(learned, validation) if self.env.allow_stop else None
            result = found.evaluation if found is not None else evaluate(learned, config=validation)
            self._show_gaze(learned, validation, result)
            self._record_headroom(validation, result)
        entry = self._entry(result, found)
        is_best = all(merit(entry, self.env) > merit(other, self.env) for other in self.evaluations)
        self.evaluations.append(entry)
        self._tell(entry)
        if is_best:
            self._save_policy("best")

    def _entry(self, result: Evaluation, found: Stops | None) -> dict[str, Any]:
        score, loss = result.score().tolist(), result.mean_loss().tolist()
        entry = {"num_timesteps": self.learner.num_timesteps, "metric": result.metric, "score": score, "loss": loss}
        if found is None:
            return entry
        at_stop = {"score": found.score(), "loss": found.loss(), "glimpses": found.mean_glimpses}
        return entry | {"at_stop": at_stop | {"worth": found.worth(self.env)}}

    def _tell(self, entry: dict[str, Any]) -> None:
        """Log the entry to TensorBoard and above the progress bar."""
        metric, score, loss, at_stop = entry["metric"], entry["score"], entry["loss"], entry.get("at_stop")
        for t in range(len(score)):
            self.logger.record(f"eval/{metric}_glimpse_{t + 1}", score[t])
            self.logger.record(f"eval/loss_glimpse_{t + 1}", loss[t])
        last_score, last_loss, when = score[-1], loss[-1], f"after glimpse {len(score)}"
        if at_stop is not None:
            for name, value in at_stop.items():
                self.logger.record(f"eval/{metric if name == 'score' else name}_at_stop", value)
            last_score, last_loss = at_stop["score"], at_stop["loss"]
            when = f"at the stop, after {at_stop['glimpses']:.2f} glimpses"
        self.logger.dump(self.learner.num_timesteps)
        if self.bar is not None:
            self.bar.write(
                f"{self.learner.num_timesteps:>9,} decisions: validation {metric} {100 * last_score:.2f} %, "
                f"loss {last_loss:.4f} {when}"
            )

    def _show_gaze(self, policy: LearnedPolicy, validation: EnvConfig, result: Evaluation) -> None:
        if not self.settings.gaze_scenes:
            return
        pictures = {
            "fixations": fixation_picture(result.viewpoints),
            "gaze": gaze_strips(policy, validation, scenes=result.scene[: self.settings.gaze_scenes]),
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
        if self.bar is not None:
            shown = {k: f"{v:.3f}" for k, v in self.learner.status.items() if v is not None}
            self.bar.set_postfix(shown, refresh=False)
