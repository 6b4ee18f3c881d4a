"""Pretrain nano: passive-to-active dense distillation on FashionScenes, by canvit-pytorch's own training step.

    python -m experiments.nano.teacher --run-dir runs/teacher
    python -m experiments.nano.pretrain --run-dir runs/nano --teacher-dir runs/teacher

First the glimpse stream learns alone (--token-steps): from single random glimpses its patch tokens predict the
teacher's features under each patch, and the recurrent CLS token predicts those of the scene. This needs no canvas and
avoids the long plateau in which the model knows neither what to write nor where.

Then each step rolls out one viewing policy (F-IID, R-IID and C2F in turn) over a batch of scenes. After every glimpse,
the canvas has to predict the teacher's cell features, and the recurrent CLS token its scene features. Rollouts grow
over the run: the probability of stopping after a chunk of two glimpses falls from 1/2 to 1/5. Early updates are
therefore frequent, and the final model has seen canvases of 20 glimpses and more, without which scores fall as glimpses
accumulate. A share of the steps (--long-share) has long rollouts throughout.

Last (--finish-steps) the same rollouts are trained on the cross-entropy of the class shares themselves; a target is
half the teacher's prediction and half the labels (experiments/nano/finishing.py).

The scenes are a mixture of the suite's flavours (experiments/nano/mixture.py).

Resumes from the run directory after an interruption, in any phase, and continues with a larger --finish-steps.
--minutes limits the time of this start; the run can be resumed afterwards. Batches, rollout lengths and viewpoints are
functions of (seed, step), so no random generator has to be saved and a resumed run equals an uninterrupted one. (Except
with --finish-minutes, where the learning rate and the last step depend on the clock.)
"""

import json
import logging
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from canvit_pytorch import CanViTForPretraining, sample_at_viewpoint
from canvit_pytorch.benchmarks.ade20k import MeanIoU
from canvit_pytorch.episode import run_episode
from canvit_pytorch.model.canvit import CanViTOutput, RecurrentState
from canvit_pytorch.model.readout import LinearReadout
from canvit_pytorch.policies import PolicyName, make_policy, random_viewpoints
from canvit_pytorch.pretrain.loss import DistillationTargets
from canvit_pytorch.pretrain.step import training_step
from canvit_pytorch.viewpoint import Viewpoint
from torch import Tensor
from tqdm import tqdm

from canvit_gym.atomic import replacing, replacing_files, write_text
from canvit_gym.backbone.compilation import TrainedFunction
from canvit_gym.backbone.hub import asset_dir
from canvit_gym.backbone.memory import keep_freed_memory
from canvit_gym.backbone.nano import NANO_CANVAS_GRID, NANO_GLIMPSE_SIZE_PX, nano_config
from canvit_gym.backbone.nano_teacher import TEACHER_DIM, TEACHER_WEIGHTS, PassiveTeacher, load_nano_teacher
from canvit_gym.checks import check_options, integer
from canvit_gym.command_line import GOES_ON, run_command
from canvit_gym.provenance import plain
from canvit_gym.scenes.fashion import FLAVOURS, Split
from canvit_gym.scenes.prepared import FashionScenes
from experiments.nano.finishing import FinishGlimpse, finishing_step
from experiments.nano.mixture import SINGLE, TrainingBatch, TrainingScenes, batch_counts, mixture, normalized
from experiments.nano.running import (
    Budget,
    Compile,
    GradientCheck,
    Precision,
    Writer,
    autocast_for,
    resolve_precision,
    tensorboard,
)

log = logging.getLogger(__name__)

ROLLOUTS: tuple[PolicyName, ...] = ("full_then_random", "random", "coarse_to_fine")
"""Viewing policies of the rollouts, in turn."""

LOG_EVERY = 50
SHIPPED_TEACHER_RECORD = Path(__file__).parents[1] / "results" / "teacher" / "teacher.json"


@dataclass(frozen=True)
class PretrainingConfig:
    run_dir: Path
    """Checkpoints, TensorBoard log and the final model go here."""
    teacher_dir: Path
    """Run directory of experiments.nano.teacher, or canvit_gym/assets/nano-teacher."""
    init_from: Path | None = None
    """Begin with this model directory's weights, such as canvit_gym/assets/nano, instead of from scratch; they have
    learned their tokens, so that --token-steps must be 0."""
    token_steps: int = 1_500
    """Steps of glimpse-stream learning before the rollouts."""
    token_glimpses: int = 4
    """Random glimpses per scene in such a step."""
    steps: int = 1_400
    """Distillation steps, at a constant learning rate."""
    finish_steps: int = 1_600
    """Steps on the cross-entropy, over which the learning rate falls linearly."""
    finish_batch_size: int = 48
    finish_minutes: float | None = None
    """Training time of the finish over all starts, in place of --finish-steps: the learning rate falls to its end."""
    finish_stop_probability: float = 0.25
    finish_classification_share: float | None = None
    """Share of scenes with one item in the finish. None: as the mixture declares."""
    finish_item_share: float = 0.0
    """Share of glimpses after the first that are drawn around items in the finish, instead of anywhere."""
    finish_teacher_share: float = 0.5
    """Weight of the teacher's targets in the finish; the rest is the labels'."""
    class_weight: float = 0.0
    """In the finish: of the cross-entropy of a single item's class."""
    item_weight: float = 4.0
    """Weight of a cell that an item covers; background weighs 1."""
    batch_size: int = 64
    peak_lr: float = 2e-3
    muon_lr: float | None = None
    """Learn the matrices of the backbone's blocks by Muon (https://kellerjordan.github.io/posts/muon), with this peak
    rate in the units of AdamW's. None: everything by AdamW."""
    final_lr_fraction: float = 0.02
    """Learning rate at the end of the finish, as a share of its peak."""
    warmup_steps: int = 100
    weight_decay: float = 0.02
    grad_clip_norm: float = 1.0
    chunk_glimpses: int = 2
    """Gradients flow through chunks of this many glimpses (truncated backpropagation through time)."""
    first_stop_probability: float = 0.5
    last_stop_probability: float = 0.2
    long_share: float = 0.125
    """Of the steps of both phases, those whose rollouts are long: 20 glimpses on average, so that reading does not fall
    as glimpses accumulate."""
    long_stop_probability: float = 0.1
    rollouts: tuple[PolicyName, ...] = ROLLOUTS
    """Viewing policies, in turn."""
    standardizer_scenes: int = 2048
    """Scenes that the statistics of the teacher's features are taken from."""
    mixture: str = "suite"
    """Which scenes to train on: a name in experiments.nano.mixture."""
    max_scenes: int | None = None
    """Training scenes of each flavour, at most. None: as the mixture declares."""
    seed: int = 0
    minutes: float | None = None
    """End this start after this many minutes and save the state to continue from. None: train to the end."""
    save_every: int = 200
    validate_every: int = 600
    validation_scenes: int = 256
    validation_glimpses: int = 21
    precision: Precision = "auto"
    """Precision of forward passes. auto: bf16 on a GPU (TF32 if it has none), float32 on a CPU."""
    compile: Compile = "auto"
    """auto: torch.compile, 1.4 times faster on two cores, after a minute of compiling. What ran is in training.json."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"


def make_optimizers(config: PretrainingConfig, model: CanViTForPretraining) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters, or Muon for the matrices of the backbone's blocks and AdamW for the others."""
    adamw = partial(
        torch.optim.AdamW,
        lr=config.peak_lr,
        betas=(0.9, 0.98),
        weight_decay=config.weight_decay,
        fused=torch.device(config.device).type == "cuda",
    )
    if config.muon_lr is None:
        return [adamw(model.parameters())]
    matrices = [p for p in model.canvit.backbone.blocks.parameters() if p.ndim == 2]
    by_muon = {id(p) for p in matrices}
    muon = torch.optim.Muon(
        matrices, lr=config.muon_lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [adamw([p for p in model.parameters() if id(p) not in by_muon]), muon]


def restore_optimizers(optimizers: list[torch.optim.Optimizer], states: list[dict[str, Any]]) -> None:
    """Restore the optimizers' moments from a saved state. Learning rates and weight decay follow the current settings.

    Raises:
        ValueError: the state is of other optimizers.
    """
    if len(states) != len(optimizers):
        ours, theirs = ("with" if number == 2 else "without" for number in (len(optimizers), len(states)))
        raise ValueError(
            f"the run was begun {theirs} --muon-lr and is resumed {ours} it: give the same, or another --run-dir"
        )
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(state)
        for group in optimizer.param_groups:
            group["weight_decay"] = optimizer.defaults["weight_decay"]


def finish_progress(config: PretrainingConfig, step: int, finish_seconds: float) -> float:
    """Progress of the finish: 0 before it, 1 at its end. `step` counts both phases of rollouts."""
    if step < config.steps:
        return 0.0
    if config.finish_minutes is not None:
        return min(finish_seconds / (60 * config.finish_minutes), 1.0)
    return min((step - config.steps) / config.finish_steps, 1.0) if config.finish_steps else 1.0


def rate_of_peak(config: PretrainingConfig, step: int, finish_seconds: float = 0.0) -> float:
    """The learning rate as a share of its peak: a warm-up, constant during distillation, then a linear fall."""
    warm = min((step + 1) / config.warmup_steps, 1.0) if config.warmup_steps else 1.0
    return warm * (1 - (1 - config.final_lr_fraction) * finish_progress(config, step, finish_seconds))


def stop_probability(config: PretrainingConfig, step: int) -> float:
    """The stop probability in distillation: it falls over the first three quarters of the run, then stays constant."""
    progress = min(step / (0.75 * config.steps), 1.0)
    return config.first_stop_probability + progress * (config.last_stop_probability - config.first_stop_probability)


def seed_step(seed: int, step: int) -> None:
    """Seed the global generators of Python and PyTorch, which canvit-pytorch's step uses."""
    entropy = int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0])
    random.seed(entropy)
    torch.manual_seed(entropy % 2**63)


@torch.no_grad()
def fit_standardizers(
    config: PretrainingConfig,
    model: CanViTForPretraining,
    scenes: TrainingScenes,
) -> None:
    patches, cls = [], []
    for step in range(-(-config.standardizer_scenes // config.batch_size)):
        features = scenes.batch(step, batch_size=config.batch_size, seed=config.seed + 1).teacher
        assert features is not None
        patches.append(features.patches)
        cls.append(features.cls.unsqueeze(1))
    # Statistics are pooled over positions. FashionScenes look the same everywhere, but a class is in a given corner
    # cell in only a few of a thousand scenes, which per-position statistics would turn into outliers.
    pooled = torch.cat(patches).flatten(0, 1).unsqueeze(1)
    model.teacher_patch_standardizer.fit(pooled.expand(-1, NANO_CANVAS_GRID**2, -1))
    model.teacher_cls_standardizer.fit(torch.cat(cls))


@torch.inference_mode()
def validate(
    model: CanViTForPretraining,
    *,
    flavours: tuple[str, ...] = ("segmentation", SINGLE),
    split: Split = "validation",
    num_glimpses: int,
    num_scenes: int,
    device: torch.device,
    autocast: torch.autocast | None = None,
) -> dict[str, Any]:
    """Evaluate C2F on held-out scenes with the pretraining readouts, in % after every glimpse: accuracy on scenes with
    one item ("c2f_top1"), mIoU on other scenes with label maps ("c2f_miou" for segmentation, "c2f_miou_crowd", ...).
    """
    model.eval()
    torch.manual_seed(0)
    results: dict[str, Any] = {}
    for flavour in flavours:
        if flavour != SINGLE and FLAVOURS[flavour].labels != "maps":
            continue
        source = FashionScenes(flavour, split, num_scenes)
        mious = [MeanIoU(device=device, num_classes=TEACHER_DIM) for _ in range(num_glimpses)]
        correct = torch.zeros(num_glimpses, dtype=torch.int64, device=device)
        for indices in np.array_split(np.arange(num_scenes), -(-num_scenes // 64)):
            batch = source.load(indices)
            images, size = normalized(batch.images.to(device)), len(indices)
            labels = batch.labels.to(device).long()
            policy = make_policy(
                "coarse_to_fine",
                batch_size=size,
                device=device,
                num_glimpses=num_glimpses,
                canvas_grid_size=NANO_CANVAS_GRID,
            )
            with autocast or nullcontext():
                steps = run_episode(
                    canvit=model.canvit,
                    images=images,
                    policy=policy,
                    num_glimpses=num_glimpses,
                    glimpse_size_px=NANO_GLIMPSE_SIZE_PX,
                    initial_state=model.init_state(batch_size=size, canvas_grid_size=NANO_CANVAS_GRID),
                )
            for step in steps:
                if flavour == SINGLE:
                    cls = model.predict_teacher_cls(step.state.recurrent_cls.float()).unsqueeze(1)
                    scene = model.teacher_cls_standardizer.destandardize(cls)[:, 0, 1:]
                    correct[step.t] += (scene.argmax(dim=1) == labels).sum()
                else:
                    features = model.teacher_patch_standardizer.destandardize(
                        model.predict_teacher_patches(step.state.canvas.float())
                    )
                    logits = features.transpose(1, 2).unflatten(2, (NANO_CANVAS_GRID, NANO_CANVAS_GRID))
                    up = F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)
                    mious[step.t].update(up.argmax(dim=1), labels)
        if flavour == SINGLE:
            results["c2f_top1"] = [round(100 * c / num_scenes, 2) for c in correct.tolist()]
        else:
            name = "c2f_miou" if flavour == "segmentation" else f"c2f_miou_{flavour}"
            results[name] = [round(100 * m.compute(), 2) for m in mious]
    return results


@dataclass
class Progress:
    """The progress of a run."""

    token_step: int = 0
    step: int = 0
    """Steps in both phases of rollouts."""
    glimpses: int = 0
    """Glimpses in rollouts."""
    seconds: float = 0.0
    """Seconds of training, over all starts."""
    finish_seconds: float = 0.0
    """Seconds of training in the finish, over all starts."""


class TokenPhase:
    """Teach the glimpse stream what a patch shows, with a linear readout that is discarded afterwards."""

    def __init__(self, config: PretrainingConfig, model: CanViTForPretraining, device: torch.device) -> None:
        self._config, self._model, self._device = config, model, device
        self.readout = LinearReadout(model.canvit.backbone_dim, TEACHER_DIM).to(device)
        self.optimizer = torch.optim.AdamW(
            [*model.parameters(), *self.readout.parameters()],
            lr=config.peak_lr,
            betas=(0.9, 0.98),
            fused=device.type == "cuda",
        )

    def step(
        self, step: int, scenes: TrainingScenes, *, autocast: torch.autocast, writer: Writer, check: GradientCheck
    ) -> None:
        config, model, repeats = self._config, self._model, self._config.token_glimpses
        progress = step / config.token_steps
        for group in self.optimizer.param_groups:
            group["lr"] = config.peak_lr * min((step + 1) / max(config.warmup_steps, 1), 1.5 * (1 - progress), 1)
        batch = scenes.batch(step, batch_size=config.batch_size, seed=config.seed + 3)
        targets = distillation_targets(model, batch)
        seed_step(config.seed + 3, step)
        repeated = batch.images.repeat(repeats, 1, 1, 1)
        viewpoint = random_viewpoints(batch_size=len(repeated), device=self._device)
        glimpse = sample_at_viewpoint(spatial=repeated, viewpoint=viewpoint, glimpse_size_px=NANO_GLIMPSE_SIZE_PX)
        state = model.init_state(batch_size=len(repeated), canvas_grid_size=1)
        cells = targets.patches.transpose(1, 2).unflatten(2, (NANO_CANVAS_GRID, NANO_CANVAS_GRID))
        under_glimpse = sample_at_viewpoint(
            spatial=cells.repeat(repeats, 1, 1, 1), viewpoint=viewpoint, glimpse_size_px=NANO_CANVAS_GRID
        )
        glimpse_grid = NANO_GLIMPSE_SIZE_PX // model.canvit.patch_size
        wanted = F.avg_pool2d(under_glimpse, NANO_CANVAS_GRID // glimpse_grid).flatten(2).transpose(1, 2)
        with autocast:
            output = model(glimpse=glimpse, state=state, viewpoint=viewpoint)
            tokens = self.readout(output.glimpse_patches)
            scene = model.predict_teacher_cls(output.state.recurrent_cls)
        token_loss = F.mse_loss(tokens.float(), wanted)
        scene_loss = F.mse_loss(scene.float(), targets.cls.repeat(repeats, 1))
        self.optimizer.zero_grad(set_to_none=True)
        (token_loss + scene_loss).backward()
        check.add(torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip_norm), step=step)
        self.optimizer.step()
        if step % LOG_EVERY == 0:
            writer.add_scalar("tokens/patch_loss", token_loss.item(), step)
            writer.add_scalar("tokens/cls_loss", scene_loss.item(), step)
            writer.add_scalar("tokens/patch_variance", wanted.var().item(), step)


def distillation_targets(model: CanViTForPretraining, batch: TrainingBatch) -> DistillationTargets:
    assert batch.teacher is not None, "the teacher has not seen the scenes: call add_teacher first"
    with torch.no_grad():
        return DistillationTargets.standardize(model, patches=batch.teacher.patches, cls=batch.teacher.cls)


class CompiledCanvit:
    """canvit-pytorch's own forward, compiled with torch.compile; it replaces the original within `in_place`."""

    def __init__(self, model: CanViTForPretraining, *, compile: Compile) -> None:
        self._canvit = model.canvit
        self._call = TrainedFunction(model.canvit.forward, name="canvit-pytorch's forward", compile=compile == "auto")

    @property
    def ran(self) -> str:
        return self._call.ran

    def _forward(self, *, glimpse: Tensor, state: RecurrentState, viewpoint: Viewpoint) -> CanViTOutput:
        # Make expanded tensors contiguous: compiled code depends on strides.
        return self._call(
            glimpse=glimpse,
            state=RecurrentState(canvas=state.canvas.contiguous(), recurrent_cls=state.recurrent_cls.contiguous()),
            viewpoint=Viewpoint(centers=viewpoint.centers.contiguous(), scales=viewpoint.scales.contiguous()),
        )

    @contextmanager
    def in_place(self) -> Iterator[None]:
        self._canvit.forward = self._forward  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self._canvit.forward


def record_start(config: PretrainingConfig, *, step: int) -> None:
    """Record every start of a run with its settings, so that it is known what a resumed run was trained with."""
    entry = dict(step=step, config=plain(asdict(config)))
    with (config.run_dir / "starts.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")


class Pretraining:
    """A run with its model, optimizers and scenes, resumed from the run directory if it has a state.

    Raises:
        ValueError: settings contradict each other or those of the resumed run.
    """

    def __init__(self, config: PretrainingConfig) -> None:
        _check(config)
        self.config, self.device = config, torch.device(config.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.precision = resolve_precision(config.precision, self.device)
        self.autocast = autocast_for(self.precision, self.device)
        config.run_dir.mkdir(parents=True, exist_ok=True)
        self.scenes = TrainingScenes(mixture(config.mixture, max_scenes=config.max_scenes), device=self.device)
        self.scenes.add_teacher(_load_teacher(config, self.device))
        self._finish_parts = mixture(
            config.mixture, max_scenes=config.max_scenes, single_share=config.finish_classification_share
        )
        torch.manual_seed(config.seed)
        self.model = CanViTForPretraining(
            canvit_config=nano_config(), teacher_dim=TEACHER_DIM, teacher_patch_grid=NANO_CANVAS_GRID
        ).to(self.device)
        self.optimizers = make_optimizers(config, self.model)
        self.tokens = TokenPhase(config, self.model, self.device) if config.token_steps else None
        self.compiled_canvit = CompiledCanvit(self.model, compile=config.compile)
        self.look = FinishGlimpse(self.model, compile=config.compile)
        self.state_file = config.run_dir / "state.pt"
        self.check = GradientCheck(self.device, state_file=self.state_file)
        self.progress = Progress()
        if self.state_file.exists():
            self._resume()
        elif config.init_from is not None:
            self.model.load_state_dict(CanViTForPretraining.from_pretrained(str(config.init_from)).state_dict())
        else:
            fit_standardizers(config, self.model, self.scenes)
        self.writer = tensorboard(config.run_dir)
        record_start(config, step=self.progress.step)

    def _resume(self) -> None:
        state = torch.load(self.state_file, map_location=self.device, weights_only=True)
        self.progress = Progress(**state["progress"])
        self.model.load_state_dict(state["model"])
        if state["tokens"] is not None and self.tokens is not None:
            self.tokens.readout.load_state_dict(state["tokens"]["readout"])
            self.tokens.optimizer.load_state_dict(state["tokens"]["optimizer"])
        restore_optimizers(self.optimizers, state["optimizers"])
        log.info("Resuming at %s", self.where())

    def where(self) -> str:
        config, progress = self.config, self.progress
        if progress.token_step < config.token_steps:
            return f"step {progress.token_step} of {config.token_steps} of glimpse-stream learning"
        if progress.step < config.steps:
            return f"step {progress.step} of {config.steps} of distillation"
        if config.finish_minutes is not None:
            return f"minute {progress.finish_seconds / 60:.1f} of {config.finish_minutes:g} of the finish"
        return f"step {progress.step - config.steps} of {config.finish_steps} of the finish"

    @property
    def in_tokens(self) -> bool:
        return self.progress.token_step < self.config.token_steps

    @property
    def finished(self) -> bool:
        progress = self.progress
        done = finish_progress(self.config, progress.step, progress.finish_seconds) >= 1
        return not self.in_tokens and progress.step >= self.config.steps and done

    def advance(self) -> None:
        """Do one step of the current phase."""
        began, config, progress = time.monotonic(), self.config, self.progress
        finishing = not self.in_tokens and progress.step >= config.steps
        self.model.train()
        if self.in_tokens:
            assert self.tokens is not None
            self.tokens.step(
                progress.token_step, self.scenes, autocast=self.autocast, writer=self.writer, check=self.check
            )
            progress.token_step += 1
        else:
            self._roll_out()
        took = time.monotonic() - began
        progress.seconds += took
        progress.finish_seconds += took if finishing else 0.0

    def _roll_out(self) -> None:
        config, progress, step = self.config, self.progress, self.progress.step
        rate = rate_of_peak(config, step, progress.finish_seconds)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * rate
        finishing = step >= config.steps
        seed_step(config.seed, step)
        usual = config.finish_stop_probability if finishing else stop_probability(config, step)
        stop = config.long_stop_probability if random.random() < config.long_share else usual
        policy_name = config.rollouts[step % len(config.rollouts)]
        if finishing:
            batch_size = config.finish_batch_size
            batch = self.scenes.batch(step, batch_size=batch_size, seed=config.seed + 2, parts=self._finish_parts)
            losses, num_glimpses = finishing_step(
                self.model,
                batch,
                look=self.look,
                policy_name=policy_name,
                item_share=config.finish_item_share,
                item_weight=config.item_weight,
                class_weight=config.class_weight,
                teacher_share=config.finish_teacher_share,
                chunk_glimpses=config.chunk_glimpses,
                stop_probability=stop,
                autocast=self.autocast,
            )
            logged = {policy_name: losses}
        else:
            batch_size = config.batch_size
            batch = self.scenes.batch(step, batch_size=batch_size, seed=config.seed + 1)
            with self.compiled_canvit.in_place():
                metrics = training_step(
                    model=self.model,
                    images=batch.images,
                    targets=distillation_targets(self.model, batch),
                    rollout_policies=(policy_name,),
                    tbptt_chunk_glimpses=config.chunk_glimpses,
                    stop_probability=stop,
                    glimpse_size_px=NANO_GLIMPSE_SIZE_PX,
                    canvas_grid_size=NANO_CANVAS_GRID,
                    enable_teacher_patch_loss=True,
                    enable_teacher_cls_loss=True,
                    autocast=self.autocast,
                )
            num_glimpses, logged = metrics.num_glimpses, metrics.by_policy
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip_norm)
        self.check.add(norm, step=step)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.glimpses += num_glimpses * batch_size
        if step % LOG_EVERY < len(config.rollouts):
            for name, entries in logged.items():
                for key, value in entries.items():
                    self.writer.add_scalar(f"{name}/{key}", value.item(), step)
            self.writer.add_scalar("train/grad_norm", norm.item(), step)
            self.writer.add_scalar("train/glimpses", progress.glimpses, step)

    def validate(self) -> None:
        """Evaluate the model and save it, with its provenance, in the format of canvit-pytorch's from_pretrained."""
        self.check.read(step=self.progress.step)
        config = self.config
        results = validate(
            self.model,
            flavours=tuple(part.flavour for part in self.scenes.parts),
            num_glimpses=config.validation_glimpses,
            num_scenes=config.validation_scenes,
            device=self.device,
            autocast=self.autocast,
        )
        log.info("%s, %d glimpses, %.0f s: %s", self.where(), self.progress.glimpses, self.progress.seconds, results)
        for key, curve in results.items():
            for t in sorted({1, min(5, len(curve)), len(curve)}):
                self.writer.add_scalar(f"validation/{key}_glimpse_{t}", curve[t - 1], self.progress.step)
        with replacing_files(config.run_dir / "model") as partial:
            self.model.save_pretrained(partial)
        write_text(config.run_dir / "model" / "training.json", json.dumps(self.record(results), indent=2) + "\n")

    def record(self, results: dict[str, Any]) -> dict[str, Any]:
        config, progress = self.config, self.progress
        starts = (config.run_dir / "starts.jsonl").read_text(encoding="utf-8").splitlines()
        record: dict[str, Any] = dict(
            config=plain(asdict(config)),
            starts=[json.loads(line) for line in starts],
            teacher=teacher_record(config.teacher_dir),
            scenes=self.scenes.describe(),
            steps=progress.step,
            glimpses=progress.glimpses,
            seconds=progress.seconds,
            ran=dict(
                device=torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type,
                precision=self.precision,
                distillation=self.compiled_canvit.ran,
                finish=self.look.ran,
                scenes_on_device=self.scenes.resident,
            ),
            validation=results,
            torch=torch.__version__,
        )
        if config.init_from is not None and (earlier := config.init_from / "training.json").exists():
            record["continues"] = json.loads(earlier.read_text(encoding="utf-8"))
        return record

    def save(self) -> None:
        """Atomically write what a resumed run needs."""
        self.check.read(step=self.progress.step)
        tokens = None
        if self.tokens is not None and self.in_tokens:
            tokens = dict(readout=self.tokens.readout.state_dict(), optimizer=self.tokens.optimizer.state_dict())
        state = dict(
            progress=asdict(self.progress),
            model=self.model.state_dict(),
            optimizers=[optimizer.state_dict() for optimizer in self.optimizers],
            tokens=tokens,
        )
        with replacing(self.state_file) as partial:
            torch.save(state, partial)


def teacher_record(teacher_dir: Path) -> dict[str, Any]:
    """Settings and scores of a teacher, which may be the shipped one."""
    path = teacher_dir / "teacher.json"
    if not path.exists() and teacher_dir.resolve() == asset_dir("nano-teacher").resolve():
        path = SHIPPED_TEACHER_RECORD
    return json.loads(path.read_text(encoding="utf-8"))


def train(config: PretrainingConfig) -> bool:
    """Returns whether the run is finished: False if --minutes ended this start earlier.

    Raises:
        ValueError: settings contradict each other or those of the resumed run.
        FloatingPointError: a gradient is not finite; the last good state is kept.
    """
    budget = Budget(config.minutes)
    run = Pretraining(config)
    if not run.state_file.exists():
        run.save()
    bar = tqdm(desc="nano", unit="step", initial=run.progress.token_step + run.progress.step, mininterval=10)
    with bar:
        while not run.finished and not budget.spent:
            run.advance()
            bar.update()
            done = run.progress.step if not run.in_tokens else run.progress.token_step
            if not run.in_tokens and (done % config.validate_every == 0) and done and not run.finished:
                run.validate()
            # The state comes last: after an interruption before it, validation is repeated and the model is written.
            if done % config.save_every == 0:
                run.save()
    run.validate()
    run.save()
    if not run.finished:
        budget.say_goes_on(f"at {run.where()}")
    return run.finished


def _check(config: PretrainingConfig) -> None:
    check_options(config, integer(0), "token_steps", "steps", "finish_steps", "warmup_steps")
    check_options(
        config, integer(1), "token_glimpses", "chunk_glimpses", "standardizer_scenes", "save_every", "validate_every",
        "validation_scenes", "validation_glimpses",
    )  # fmt: skip
    if config.init_from is not None and config.token_steps:
        raise ValueError(
            f"the weights of --init-from have learned their tokens: pass --token-steps 0 (got {config.token_steps})"
        )
    if config.finish_minutes is not None and not config.finish_minutes > 0:
        raise ValueError(f"--finish-minutes must be positive, got {config.finish_minutes}")
    parts = mixture(config.mixture, max_scenes=config.max_scenes)
    for batch_size in (config.batch_size, config.finish_batch_size):
        batch_counts(parts, batch_size)  # raises before any work


def _load_teacher(config: PretrainingConfig, device: torch.device) -> PassiveTeacher:
    teacher = load_nano_teacher(config.teacher_dir / TEACHER_WEIGHTS, device)
    return teacher.to(memory_format=cast(Any, torch.channels_last))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    run_command(train, PretrainingConfig, description=__doc__, if_interrupted=GOES_ON)
