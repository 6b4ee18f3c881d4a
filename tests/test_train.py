"""Training runs: resumed ones equal uninterrupted ones, and nothing is lost or overwritten by mistake."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import heed_interrupts
from safetensors.torch import load_file
from stable_baselines3.common.callbacks import BaseCallback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.algorithms import ALGORITHMS
from agents.ppo.learner import PPOLearner
from agents.run_directory import claimed
from agents.settings import TrainConfig
from agents.train import main, train
from agents.training_state import capture_environments, load_state, restore_environments
from agents.validation import Headroom, fixation_maps, fixation_picture
from canvit_gym.command_line import run_command
from canvit_gym.evaluation import evaluate
from canvit_gym.policies.learned import load_policy, load_record
from canvit_gym.provenance import provenance
from canvit_gym.sb3 import GlimpseVecEnv, make_sb3_env
from canvit_gym.stopping import stops
from canvit_gym.vector_env import GlimpseVectorEnv
from experiments.throughput.ppo import ppo_for_throughput, stock_ppo_for_throughput

ENV_KWARGS: dict[str, Any] = {"num_scenes": 14, "device": "cpu", "budget": 3, "grid_centers": 4}
HYPER: dict[str, Any] = {
    "ent_coef": 0.003, "entropy_floor": {"start": 0.7, "end": 0.2, "low": 1e-4, "high": 0.05, "rate": 1.1},
    "n_envs": 4, "n_steps": 4, "batch_size": 8, "n_epochs": 2,
    "policy_kwargs": {"channels": 8, "context_dim": 16, "blocks": 1, "prior": None},
}  # fmt: skip
ROLLOUT = 16


def tiny(run_dir: Path, *, updates: int = 5, **changes: Any) -> TrainConfig:
    env_kwargs, hyper = ENV_KWARGS | changes.pop("env_kwargs", {}), HYPER | changes.pop("hyper", {})
    defaults: dict[str, Any] = dict(
        env_kwargs=json.dumps(env_kwargs), hyper=json.dumps(hyper), total_timesteps=updates * ROLLOUT,
        eval_every=2 * ROLLOUT, eval_scenes=4, checkpoint_every=2 * ROLLOUT, progress=False, gaze_scenes=0,
        warm_start_states=0,
    )  # fmt: skip
    return TrainConfig(run_dir, **defaults | changes)


def test_help_names_every_learner(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_command(main, TrainConfig, description=None, arguments=["--help"])
    told = capsys.readouterr().out.partition("--algo")[2].partition("--env")[0].replace("│", " ")
    assert f"{', '.join(ALGORITHMS)}. None: ppo." in " ".join(told.split())


class Interrupt(BaseCallback):
    """Ctrl-C (or another end) at a step; at=-1: while the update after the third rollout is under way."""

    def __init__(self, at: int, error: BaseException | None = None) -> None:
        super().__init__()
        self.at, self.error = at, error or KeyboardInterrupt()

    def _on_step(self) -> bool:
        if self.num_timesteps == self.at:
            raise self.error
        return True

    def _on_rollout_end(self) -> None:
        if self.at == -1 and self.num_timesteps == 3 * ROLLOUT:
            optimizer, updates = self.model.policy.optimizer, []

            def second_minibatch(*_: Any) -> None:
                updates.append(1)
                if len(updates) == 2:
                    raise self.error

            optimizer.register_step_post_hook(second_minibatch)


def assert_same_runs(a: Path, b: Path) -> None:
    for policy in ("last", "best"):
        ours, theirs = (load_file(run / policy / "policy.safetensors") for run in (a, b))
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert torch.equal(ours[name], theirs[name]), (policy, name)
    results = [json.loads((run / "result.json").read_text()) for run in (a, b)]
    assert results[0]["evaluations"] == results[1]["evaluations"]
    states = [torch.load(run / "training_state.pt", weights_only=True) for run in (a, b)]
    assert states[0]["ent_coef"] == states[1]["ent_coef"]
    assert states[0]["scenes"] == states[1]["scenes"]
    for name, value in states[0]["normalizer"].items():
        assert torch.equal(value, states[1]["normalizer"][name])


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grid": ({}, {}),
    "continuous": ({"action": "continuous"}, {"distribution": "tanh_gaussian"}),
    "beta": ({"action": "continuous"}, {"distribution": "beta"}),
    "stop": ({"allow_stop": True, "glimpse_cost": 0.01}, {"mask_seen": True}),
    "random first glimpse": ({"first_glimpse": "random"}, {"network": "pointer"}),
    "classification": ({}, {"network": "mlp"}),
    "search": ({}, {}),
}
"""Keyword arguments of the environment and of the policy."""
IDS = {"classification": "CanViT/FashionClassification-v0", "search": "CanViT/FashionSearch-v0"}
"""All others are of FashionSegmentation."""


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_equals_uninterrupted(tmp_path: Path, kind: str) -> None:
    """Ctrl-C in a rollout, then in an update, against a run that nothing disturbed, bit for bit."""
    env = IDS.get(kind, "CanViT/FashionSegmentation-v0")
    env_kwargs, policy_kwargs = KINDS[kind]
    hyper = {"policy_kwargs": HYPER["policy_kwargs"] | policy_kwargs}
    if kind == "beta":
        hyper |= {"rollout_tensors": None}
    whole = tiny(tmp_path / "whole", env=env, env_kwargs=env_kwargs, hyper=hyper)
    result = train(whole)
    assert not result.interrupted and result.num_timesteps == 5 * ROLLOUT
    broken = replace(whole, run_dir=tmp_path / "broken")
    result = train(broken, callbacks=[Interrupt(at=ROLLOUT + 8)])
    assert result.interrupted and result.num_timesteps == ROLLOUT
    # The run's settings are its own: none has to be repeated.
    resume = TrainConfig(broken.run_dir, resume=True, progress=False)
    result = train(resume, callbacks=[Interrupt(at=-1)])
    assert result.interrupted and result.num_timesteps == 2 * ROLLOUT
    assert load_policy(result.last_policy_dir).record.training["num_timesteps"] == 2 * ROLLOUT
    result = train(resume)
    assert not result.interrupted and result.num_timesteps == 5 * ROLLOUT
    assert_same_runs(whole.run_dir, broken.run_dir)


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    """No chance to save anything: what is on disk must do."""
    whole = tiny(tmp_path / "whole")
    train(whole)
    killed = replace(whole, run_dir=tmp_path / "killed")
    with pytest.raises(ZeroDivisionError):
        train(killed, callbacks=[Interrupt(at=3 * ROLLOUT + 4, error=ZeroDivisionError())])
    assert torch.load(killed.run_dir / "training_state.pt", weights_only=True)["num_timesteps"] == 2 * ROLLOUT
    train(TrainConfig(killed.run_dir, resume=True, progress=False))
    assert_same_runs(whole.run_dir, killed.run_dir)
    # Neither the pictures that were switched off appear, nor what was lost and came again a second time.
    board = EventAccumulator(str(killed.run_dir / "tensorboard")).Reload()
    assert not board.Tags()["images"]
    assert [event.step for event in board.Scalars("rollout/entropy")] == [k * ROLLOUT for k in range(1, 6)]


def test_states_of_earlier_versions_have_no_goals() -> None:
    """Their scenes are restored; goals are drawn anew, with a warning."""
    for env_id, told in (("CanViT/FashionSearch-v0", True), ("CanViT/FashionSegmentation-v0", False)):
        envs = make_sb3_env(env_id, 4, **ENV_KWARGS)
        envs.seed(3)
        envs.reset()
        scenes, state = envs.glimpse_envs.episodes.scene.tolist(), capture_environments(envs)
        assert (state.pop("goals", None) is not None) == told
        with warnings.catch_warnings(record=True) as caught:
            restore_environments(envs, state)
        assert any("left out the goals" in str(warning.message) for warning in caught) == told
        assert envs.glimpse_envs.episodes.scene.tolist() == scenes
        envs.close()


def test_sigkill_at_any_moment(tmp_path: Path) -> None:
    """Killed at once after its first checkpoint, wherever it is then; resumed, it is the run that was never killed."""
    whole = tiny(tmp_path / "whole", updates=24, eval_every=12 * ROLLOUT, checkpoint_every=ROLLOUT)
    train(whole)
    killed = replace(whole, run_dir=tmp_path / "killed")
    process = subprocess.Popen(command_line(killed), cwd=Path(__file__).parents[1], stderr=subprocess.PIPE, text=True)
    try:
        wait_for(killed.run_dir / "training_state.pt", process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    assert not (killed.run_dir / "result.json").exists()
    train(replace(killed, resume=True))
    assert_same_runs(whole.run_dir, killed.run_dir)


def test_evaluation_and_checkpoints_do_not_disturb_training(tmp_path: Path) -> None:
    runs = [
        train(tiny(tmp_path / "often", eval_every=ROLLOUT, checkpoint_every=ROLLOUT)),
        train(tiny(tmp_path / "never", eval_every=0, checkpoint_every=10**9)),
    ]
    often, never = (load_file(run.last_policy_dir / "policy.safetensors") for run in runs)
    assert all(torch.equal(often[name], never[name]) for name in often)
    assert [e["num_timesteps"] for e in runs[0].evaluations] == [ROLLOUT * k for k in range(1, 6)]
    assert runs[1].evaluations == [] and runs[1].best_policy_dir == runs[1].last_policy_dir


def test_a_finished_run(tmp_path: Path) -> None:
    """What it leaves, that it is not overwritten, and that it can be extended."""
    config = tiny(tmp_path / "run", updates=4)
    result = train(config)
    assert [e["num_timesteps"] for e in result.evaluations] == [2 * ROLLOUT, 4 * ROLLOUT]
    validation = replace(load_record(result.best_policy_dir).env, split="validation", num_scenes=4)
    again = evaluate(load_policy(result.best_policy_dir, config=validation), config=validation)
    best = min(result.evaluations, key=lambda e: e["loss"][-1])
    np.testing.assert_array_equal(again.mean_loss(), best["loss"])
    record = load_record(result.best_policy_dir)
    assert record.training == {"num_timesteps": best["num_timesteps"], "seed": 0, "validation": best}
    assert record.hyperparameters["total_timesteps"] == 4 * ROLLOUT
    assert record.hyperparameters["n_epochs"] == 2 and record.env.reward == "soft_score_gain"

    events = EventAccumulator(str(config.run_dir / "tensorboard")).Reload()
    tags = set(events.Tags()["scalars"])
    assert {
        "rollout/ep_rew_mean",
        "rollout/ep_len_mean",
        "train/loss",
        "train/approx_kl",
        "train/ent_coef",
    } <= tags
    assert {"time/fps", "eval/loss_glimpse_3", "eval/mIoU_glimpse_1"} <= tags
    assert {"viewpoint/entropy_t1", "viewpoint/entropy_t2", "viewpoint/mean_scale_t2"} <= tags
    assert "viewpoint/entropy_t3" not in tags
    assert 0.9 < events.Scalars("viewpoint/entropy_t1")[0].value <= 1.02

    before = (config.run_dir / "last" / "policy.safetensors").read_bytes()
    with pytest.raises(
        FileExistsError, match=r"contains a finished run of 64 decisions.*another run directory.*--resume"
    ):
        train(config)
    with pytest.raises(ValueError, match=r"finished run of 64 decisions.*--total-timesteps above 64"):
        train(replace(config, resume=True))
    with pytest.raises(ValueError, match=r"begun with seed=0, not 3"):
        train(replace(config, resume=True, seed=3, total_timesteps=96))
    with pytest.raises(ValueError, match=r"begun with eval_every=32, not 20000"):  # the default, but asked for
        train(TrainConfig(config.run_dir, resume=True, eval_every=20_000, total_timesteps=96))
    with pytest.raises(ValueError, match=r"begun with env_kwargs=\{.*, not \{\}"):
        train(TrainConfig(config.run_dir, resume=True, env_kwargs="{}", total_timesteps=96))
    assert (config.run_dir / "last" / "policy.safetensors").read_bytes() == before
    extended = train(TrainConfig(config.run_dir, resume=True, total_timesteps=6 * ROLLOUT, progress=False))
    assert extended.num_timesteps == 6 * ROLLOUT and len(extended.evaluations) == 3
    assert len(json.loads((config.run_dir / "provenance.json").read_text())) == 2


def test_an_unfinished_run_is_not_begun_again(tmp_path: Path) -> None:
    config = tiny(tmp_path / "run")
    train(config, callbacks=[Interrupt(at=ROLLOUT + 8)])
    with pytest.raises(FileExistsError, match=r"unfinished run.*--resume"):
        train(config)
    done = load_state(config.run_dir / "training_state.pt")["num_timesteps"]
    with pytest.raises(ValueError, match=rf"an unfinished run of {done} decisions.*--total-timesteps above {done}"):
        train(replace(config, resume=True, total_timesteps=done))  # would end it where it stands, and call it finished
    with pytest.raises(FileNotFoundError, match=r"no run to resume.*Leave out --resume"):
        train(replace(config, run_dir=tmp_path / "nothing", resume=True))


def test_a_run_that_cannot_be_built_does_not_block_the_corrected_one(tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", updates=1, eval_every=0)
    pixels = tiny(config.run_dir, updates=1, eval_every=0, env_kwargs={"observations": ["canvas", "gaze", "glimpse"]})
    with pytest.raises(ValueError, match="leave 'glimpse' out"):
        train(pixels)
    assert [path.name for path in config.run_dir.iterdir()] == ["run.lock"]
    assert train(config).num_timesteps == ROLLOUT


@pytest.mark.parametrize("content", ["truncated", "empty", "rubbish", "another"])
def test_a_damaged_state_is_named(tmp_path: Path, content: str) -> None:
    config = tiny(tmp_path / "run", updates=1, eval_every=0)
    train(config)
    path = config.run_dir / "training_state.pt"
    whole = path.read_bytes()
    if content == "another":
        torch.save(torch.zeros(2), path)
    else:
        path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "rubbish": b"rubbish" * 99}[content])
    resume = replace(config, resume=True, total_timesteps=2 * ROLLOUT)
    with pytest.raises(ValueError, match=r"training_state\.pt is damaged.*delete it \(and result.json.*and --resume"):
        train(resume)
    path.unlink()
    kept = {file: file.read_bytes() for file in config.run_dir.rglob("*") if file.is_file()}
    with pytest.raises(
        FileNotFoundError, match=r"finished run, and its training_state\.pt is gone.*delete result.json"
    ):
        train(resume)
    assert kept == {file: file.read_bytes() for file in config.run_dir.rglob("*") if file.is_file()}
    (config.run_dir / "result.json").unlink()
    assert train(resume).num_timesteps == 2 * ROLLOUT


@pytest.mark.parametrize("what", ["backbone", "probe"])
def test_a_run_is_not_resumed_on_another_checkpoint(tmp_path: Path, what: str) -> None:
    config = tiny(tmp_path / "run", updates=1, eval_every=0, env_kwargs={"observations": ["canvas", "gaze", "time"]})
    train(config)
    path = config.run_dir / "last" / "policy.json"
    record = json.loads(path.read_text())
    record["inputs"][f"{what}_sha256"] = "0" * 64
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=rf"the run in .* differs in the {what}.*trained on sha256 0000"):
        train(replace(config, resume=True, total_timesteps=2 * ROLLOUT))


def test_validation_does_not_follow_the_shard_of_training(tmp_path: Path) -> None:
    result = train(tiny(tmp_path / "run", updates=1, env_kwargs={"shard": [1, 2]}))
    trained = load_record(result.last_policy_dir).env
    assert trained.shard == (1, 2)
    validation = replace(trained, split="validation", num_scenes=4, shard=(0, 1))
    again = evaluate(load_policy(result.last_policy_dir, config=validation), config=validation)
    np.testing.assert_array_equal(again.mean_loss(), result.evaluations[-1]["loss"])


@pytest.mark.parametrize("kind", ["grid", "stop"])
@pytest.mark.parametrize("at", [ROLLOUT + 8, 2 * ROLLOUT - 4, 2 * ROLLOUT])
def test_a_callback_may_end_training(tmp_path: Path, at: int, kind: str) -> None:
    """Within a rollout, also the last one, also at its last step: the update that is missing is made on resuming."""

    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps < at

    total = 2 * ROLLOUT - 2  # reached within the last rollout
    whole = tiny(tmp_path / "whole", total_timesteps=total, env_kwargs=KINDS[kind][0])
    train(whole)
    config = replace(whole, run_dir=tmp_path / "run")
    result = train(config, callbacks=[Stop()])
    assert result.interrupted and result.num_timesteps == ROLLOUT
    assert not (config.run_dir / "result.json").exists()
    assert not train(TrainConfig(config.run_dir, resume=True, progress=False)).interrupted
    assert_same_runs(whole.run_dir, config.run_dir)


def test_agents_that_may_stop_are_judged_where_they_stop(tmp_path: Path) -> None:
    config = tiny(
        tmp_path / "run", updates=4, env_kwargs={"allow_stop": True, "glimpse_cost": 0.02, "reward": "score_gain"}
    )
    result = train(config)
    validation = replace(load_record(result.best_policy_dir).env, split="validation", num_scenes=4)
    best = max(result.evaluations, key=lambda e: e["at_stop"]["worth"])
    found = stops(load_policy(result.best_policy_dir, config=validation), validation)
    scores = found.evaluation.scene_score()[np.arange(4), found.glimpses - 1]
    assert best["at_stop"] == pytest.approx(
        {
            "score": found.score(),
            "loss": found.loss(),
            "glimpses": found.glimpses.mean(),
            "worth": scores.mean() - 0.02 * found.glimpses.mean(),
        },
        rel=1e-5,
    )
    tags = set(EventAccumulator(str(config.run_dir / "tensorboard")).Reload().Tags()["scalars"])
    assert {"eval/mIoU_at_stop", "eval/glimpses_at_stop", "eval/worth_at_stop", "viewpoint/stop_share_t1"} <= tags


def test_a_first_evaluation_that_fails_loses_no_warm_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise FloatingPointError("a reading is not finite")

    config = tiny(
        tmp_path / "run", warm_start_states=16, hyper={"warm_start": {"candidates": 3, "epochs": 1}}, updates=1
    )
    with monkeypatch.context() as patch:
        patch.setattr("agents.monitor.evaluate", fail)
        with pytest.raises(FloatingPointError, match="checkpoint, of decision 0, is in"):
            train(config)
    warm, last = (load_file(config.run_dir / name / "policy.safetensors") for name in ("warm_start", "last"))
    assert all(torch.equal(value, last[name]) for name, value in warm.items())
    resumed = train(TrainConfig(config.run_dir, resume=True, progress=False))
    whole = train(replace(config, run_dir=tmp_path / "whole"))
    assert resumed.evaluations == whole.evaluations
    assert_same_runs(config.run_dir, whole.run_dir)


def test_ctrl_c_while_a_run_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny(tmp_path / "run", updates=1, eval_every=0)
    with monkeypatch.context() as patch:
        patch.setattr("agents.train.TensorBoardOutputFormat", interrupt)
        with caplog.at_level("INFO"), pytest.raises(SystemExit) as exit_:
            main(config)
    assert exit_.value.code == 130 and f"--run-dir {config.run_dir} --resume" in caplog.text
    assert train(TrainConfig(config.run_dir, resume=True, progress=False)).num_timesteps == ROLLOUT
    with monkeypatch.context() as patch:
        patch.setattr("agents.ppo.learner.make_model", interrupt)
        with pytest.raises(KeyboardInterrupt):  # nothing is there yet: the same command begins again
            main(replace(config, run_dir=tmp_path / "another"))


@pytest.mark.parametrize("where", ["begin", "set_logger"])
def test_environments_are_closed_if_a_run_does_not_begin(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[PPOLearner] = []
    close = PPOLearner.close

    def fail(*_: Any, **__: Any) -> None:
        raise FloatingPointError("the detector's loss is not finite")

    def note(learner: PPOLearner) -> None:
        closed.append(learner)
        close(learner)

    monkeypatch.setattr(PPOLearner, where, fail)
    monkeypatch.setattr(PPOLearner, "close", note)
    with pytest.raises(FloatingPointError, match="detector"):
        train(tiny(tmp_path / "run"))
    assert len(closed) == 1


@pytest.mark.parametrize("algo", ["ppo", "q_regression", "oracle_cloning"])
def test_environments_are_closed_if_a_learner_cannot_be_made(
    tmp_path: Path, algo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[GlimpseVectorEnv] = []
    close = GlimpseVectorEnv.close
    monkeypatch.setattr(GlimpseVectorEnv, "close", lambda envs: [closed.append(envs), close(envs)])
    hyper: dict[str, Any] = {"n_envs": 2, "batch_size": 2, "policy_kwargs": {"inhibition": 0.1}}
    if algo != "oracle_cloning":
        hyper |= {"policy_kwargs": {"inhibition": 0.1, "prior": None}, "detection": None}
    env_kwargs = {"num_scenes": 8, "device": "cpu", "observations": ["canvas", "uncertainty", "time"]}
    config = TrainConfig(
        tmp_path / "run", algo=algo, env_kwargs=json.dumps(env_kwargs), hyper=json.dumps(hyper), progress=False
    )
    with pytest.raises(ValueError, match="inhibition of return needs `gaze`"):
        train(config)
    assert len(closed) == 1


def test_ctrl_c_in_the_last_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record of the run that goes on is that of one that nothing disturbed."""
    whole = tiny(tmp_path / "whole", updates=2)
    train(whole)
    cut = replace(whole, run_dir=tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr("agents.monitor.evaluate", interrupt)
        assert train(cut).interrupted
    assert not train(TrainConfig(cut.run_dir, resume=True, progress=False)).interrupted
    assert_same_runs(whole.run_dir, cut.run_dir)
    records = [load_record(run / "last").training for run in (whole.run_dir, cut.run_dir)]
    assert records[0] == records[1] and records[0]["validation"] is not None
    states = [load_state(run / "training_state.pt")["evaluations"] for run in (whole.run_dir, cut.run_dir)]
    assert states[0] == states[1] != "[]"


def test_ctrl_c_right_after_a_state_was_captured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(tmp_path / "run", updates=1)
    with monkeypatch.context() as patch:
        patch.setattr("agents.monitor.Monitor._note_evaluations", interrupt)
        assert train(config).interrupted
    assert not train(TrainConfig(config.run_dir, resume=True, progress=False)).interrupted


def test_a_run_directory_has_one_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claimed before anything slow: whoever comes meanwhile is told which process has it, with --resume or without."""
    config = tiny(tmp_path / "run", updates=1, eval_every=0)
    refused: list[str] = []

    def meanwhile(model: Any, *args: Any, **kwargs: Any) -> list[Any]:
        process = subprocess.run(command_line(config), capture_output=True, text=True, cwd=Path(__file__).parents[1])
        refused.append(process.stderr)
        with pytest.raises(BlockingIOError, match=rf"in use by process {os.getpid()} on .*Wait for it to end"):
            train(config)
        return []

    monkeypatch.setattr("agents.ppo.learner.warmed_up", meanwhile)
    assert not train(config).interrupted
    assert f"error: {config.run_dir} is in use by process {os.getpid()} on " in refused[0]
    assert "Traceback" not in refused[0]
    monkeypatch.undo()
    extended = replace(config, resume=True, total_timesteps=2 * ROLLOUT)
    with claimed(config.run_dir), pytest.raises(BlockingIOError, match="in use by process"):
        train(extended)
    assert not (config.run_dir / "owner.json").exists()
    assert train(extended).num_timesteps == 2 * ROLLOUT


def test_paths_as_people_write_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`~` is the home directory; a command to copy works where the path has spaces."""
    monkeypatch.setenv("HOME", str(tmp_path))
    config = tiny(Path("~/my runs/a"), updates=2, eval_every=0)
    with monkeypatch.context() as patch, caplog.at_level("INFO"), pytest.raises(SystemExit):
        patch.setattr("agents.train.Monitor.finished", interrupt)
        main(config)
    (command,) = [line for line in caplog.text.splitlines() if "--resume" in line]
    assert shlex.split(command)[3:] == ["--run-dir", str(tmp_path / "my runs" / "a"), "--resume"]
    assert load_policy("~/my runs/a/last").record.training["num_timesteps"] == ROLLOUT  # the last complete update


def interrupt(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def test_damaged_settings_are_named(tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", updates=1, eval_every=0)
    train(config)
    (config.run_dir / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged, or from another version .*another run directory"):
        train(TrainConfig(config.run_dir, resume=True))


@pytest.mark.parametrize("where", ["reward", "gradient"])
def test_nan_stops_and_keeps_the_last_checkpoint(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(tmp_path / "run")

    class Poison(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            if where == "gradient" and self.num_timesteps == 3 * ROLLOUT:
                bias = self.model.policy.get_parameter("value_net.net.2.bias")
                bias.register_hook(lambda grad: grad / 0)

    if where == "reward":
        step_wait = GlimpseVecEnv.step_wait
        steps: list[int] = []

        def poisoned(self: GlimpseVecEnv) -> Any:
            observation, rewards, dones, infos = step_wait(self)
            steps.append(1)
            return observation, rewards * (np.nan if len(steps) > 3 * ROLLOUT // 4 - 2 else 1), dones, infos

        monkeypatch.setattr(GlimpseVecEnv, "step_wait", poisoned)
    names = {"reward": "the environment's reward", "gradient": r"the gradient of value_net\.net\.2\.bias"}
    with pytest.raises(
        FloatingPointError,
        match=rf"stopped at decision 4.*{names[where]} is not finite.*of decision 32, is in",
    ):
        train(config, callbacks=[Poison()])
    assert torch.load(config.run_dir / "training_state.pt", weights_only=True)["num_timesteps"] == 2 * ROLLOUT
    weights = load_file(config.run_dir / "last" / "policy.safetensors")
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"env": "CanViT/Fashion-v0"}, ValueError, "unknown environment 'CanViT/Fashion-v0'; there are: "),
        ({"env": "CartPole-v1"}, ValueError, "unknown environment"),
        ({"algo": "pppo"}, ValueError, "unknown algorithm 'pppo'; did you mean 'ppo'"),
        ({"env_kwargs": {"colour": 1}}, TypeError, "unknown environment keyword colour; there are: "),
        ({"env_kwargs": {"split": "test"}}, ValueError, "agents train on split='training'"),
        ({"env_kwargs": {"budget": 4}}, ValueError, "n_steps must be a multiple of the 3 decisions"),
        (
            {"env_kwargs": {"revisit": False}, "hyper": {"policy_kwargs": {"inhibition": None}}},
            ValueError,
            "with revisit=False the environment does not allow viewpoints twice",
        ),
        ({"hyper": {"n_epoch": 1}}, ValueError, "unknown hyperparameter 'n_epoch'; there are: "),
        ({"hyper": {"learning_rate": "quick"}}, ValueError, "learning_rate must be a number > 0"),
        ({"total_timesteps": 0}, ValueError, "total_timesteps must be an integer >= 1, got 0"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be an integer >= 1, got 0"),
        ({"eval_scenes": 0}, ValueError, "eval_scenes must be an integer >= 1, got 0"),
        ({"seed": -1}, ValueError, "seed must be an integer >= 0, got -1"),
        (
            {"hyper": {"warm_start": None}, "warm_start_states": 8},
            ValueError,
            "warm_start must be an object of options, got None",
        ),
    ],
)
def test_bad_input(tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        train(tiny(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_json_options_must_be_objects(tmp_path: Path) -> None:
    for text in ("{action: continuous}", "3"):
        with pytest.raises(ValueError, match=r"--env-kwargs must be a JSON object"):
            train(TrainConfig(tmp_path / "run", env_kwargs=text))


def test_unwritable_run_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write to the run directory .*file/run.*--run-dir"):
        train(tiny(tmp_path / "file" / "run"))


def command_line(config: TrainConfig) -> list[str]:
    # One thread, as in this process: sums over more come out in another order.
    start = "import runpy, torch; torch.set_num_threads(1); runpy.run_module('agents.train', run_name='__main__')"
    command = [sys.executable, "-c", start, "--run-dir", str(config.run_dir), "--no-progress"]
    for name in (
        "env_kwargs", "hyper", "total_timesteps", "eval_every", "eval_scenes", "checkpoint_every", "gaze_scenes",
        "warm_start_states",
    ):  # fmt: skip
        command += [f"--{name.replace('_', '-')}", str(getattr(config, name))]
    return command


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"no {path.name}: {process.communicate()}")
        time.sleep(0.02)


def test_ctrl_c_on_the_command_line(tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", updates=100_000, eval_every=0)
    process = subprocess.Popen(
        command_line(config), stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1],
        preexec_fn=heed_interrupts,
    )  # fmt: skip
    try:
        wait_for(config.run_dir / "training_state.pt", process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert f"--run-dir {config.run_dir} --resume" in errors and "Traceback" not in errors
    load_policy(config.run_dir / "last")
    assert os.listdir(config.run_dir / "last")
    state = torch.load(config.run_dir / "training_state.pt", weights_only=True)
    result = train(
        TrainConfig(config.run_dir, resume=True, total_timesteps=state["num_timesteps"] + ROLLOUT, progress=False)
    )
    assert result.num_timesteps == state["num_timesteps"] + ROLLOUT and not result.interrupted


def test_the_model_for_throughput_learns() -> None:
    model = ppo_for_throughput("CanViT/FashionSegmentation-v0", num_envs=2, env_kwargs=ENV_KWARGS | {"budget": 5})
    rollout = model.n_steps * 2
    model.learn(rollout, reset_num_timesteps=False)
    assert model.num_timesteps == rollout


def test_tensorboard_shows_the_gaze_and_the_headroom(tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", updates=2, gaze_scenes=2, headroom_scenes=3)
    train(config)
    events = EventAccumulator(str(config.run_dir / "tensorboard")).Reload()
    assert events.Tags()["images"] == ["eval/fixations", "eval/gaze"]
    (gaze,) = events.Images("eval/gaze")
    assert gaze.width > gaze.height > 100
    known = json.loads((config.run_dir / "headroom.json").read_text())
    assert known["num_scenes"] == 3 and len(known["ceiling"]) == 3
    tags = [tag for tag in events.Tags()["scalars"] if "headroom" in tag]
    assert tags and "eval/headroom_share_glimpse_1" not in tags
    # On so few scenes the oracle may fall behind in mIoU; the share is what the scores say it is.
    validation = replace(load_record(config.run_dir / "last").env, split="validation", num_scenes=3)
    learned = load_policy(config.run_dir / "last", config=validation)
    share = Headroom(**known).share(evaluate(learned, config=validation))
    assert events.Scalars(tags[-1])[-1].value == pytest.approx(share[int(tags[-1][-1]) - 1], rel=1e-4)


def test_fixation_maps_count_crops() -> None:
    viewpoints = np.array([[[0, 0, 1], [-0.5, -0.5, 0.5]], [[0, 0, 1], [0.5, -0.5, 0.5]]], dtype=np.float32)
    maps = fixation_maps(viewpoints, size=4)
    np.testing.assert_array_equal(maps[0], np.ones((4, 4)))
    np.testing.assert_array_equal(maps[1], np.repeat([[0.5, 0.5, 0, 0]], 4, axis=0))
    assert fixation_picture(viewpoints).shape == (192, 384, 3)


@pytest.mark.parametrize("policy", ["MultiInputPolicy", "ViewpointPolicy"])
def test_what_throughput_is_measured_against_learns(policy: Any) -> None:
    model = stock_ppo_for_throughput(
        "CanViT/FashionSegmentation-v0", num_envs=2, env_kwargs=ENV_KWARGS | {"budget": 5}, policy=policy
    )
    model.learn(model.n_steps * 2, reset_num_timesteps=False)
    assert type(model.rollout_buffer).__name__ == "DictRolloutBuffer" and type(model).__name__ == "PPO"


def test_provenance_is_json() -> None:
    found = json.loads(json.dumps(provenance()))
    assert shlex.split(found["command"]) == ["python", *sys.orig_argv[1:]]
    assert found["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["machine"]["cores"] >= 1 and found["machine"]["cpu"]
