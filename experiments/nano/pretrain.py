"""Pretrain nano: passive-to-active dense distillation on FashionScenes, by canvit-pytorch's own training step.

    python -m experiments.nano.teacher --run-dir runs/teacher
    python -m experiments.nano.pretrain --run-dir runs/nano --teacher-dir runs/teacher

First the glimpse stream learns alone (--token-steps): from single random glimpses its patch tokens predict the
teacher's features under each patch, and the recurrent CLS token those of the scene. That costs no canvas and
spares the long plateau in which neither what to write nor where to write it is known.

Then each step rolls one viewing policy out (F-IID and R-IID in turn) over a batch of scenes and, after every
glimpse, asks the canvas for the teacher's cell features and the recurrent CLS token for its scene features.
Rollouts grow over the run (the chance to stop after a chunk of two glimpses falls from 1/2 to 1/5), so that
early updates are many and the final model has seen canvases of 20 glimpses and more, without which reading
decays as glimpses accumulate.

Last (--finish-steps) the same rollouts are trained on the cross-entropy of the class shares themselves, half of
them the teacher's and half the labels' (experiments/nano/finishing.py).

Resumes from the run directory after an interruption, and continues with a larger --finish-steps.
Batches, rollout lengths and viewpoints are functions of (seed, step): a resumed run equals an
uninterrupted one.
"""

import json
import logging
import random
import time
from collections.abc import Callable
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
from canvit_pytorch.model.readout import LinearReadout
from canvit_pytorch.policies import PolicyName, make_policy, random_viewpoints
from canvit_pytorch.pretrain.loss import DistillationTargets
from canvit_pytorch.pretrain.step import training_step
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from canvit_gym.atomic import replacing
from canvit_gym.backbone.memory import keep_freed_memory
from canvit_gym.backbone.nano import NANO_CANVAS_GRID, NANO_GLIMPSE_SIZE_PX, nano_config
from canvit_gym.backbone.nano_teacher import TEACHER_DIM, TEACHER_WEIGHTS, PassiveTeacher, load_nano_teacher
from canvit_gym.command_line import GOES_ON, run_command
from canvit_gym.provenance import plain
from canvit_gym.scenes.prepared import FashionScenes
from experiments.nano.finishing import FinishScenes, finishing_step
from experiments.nano.teacher import MixedScenes, normalized

log = logging.getLogger(__name__)

ROLLOUTS: tuple[PolicyName, ...] = ("full_then_random", "random")


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
    finish_stop_probability: float = 0.25
    finish_classification_share: float = 0.25
    """Of the finish's scenes, those with one item."""
    finish_item_share: float = 0.0
    """Of the finish's glimpses after the first, those drawn around items instead of anywhere."""
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
    """Of its peak, at the end of the finish."""
    warmup_steps: int = 100
    weight_decay: float = 0.02
    grad_clip_norm: float = 1.0
    chunk_glimpses: int = 2
    """Gradients flow through chunks of this many glimpses (truncated backpropagation through time)."""
    first_stop_probability: float = 0.5
    last_stop_probability: float = 0.2
    standardizer_scenes: int = 2048
    """Scenes that the statistics of the teacher's features are taken from."""
    num_segmentation: int = 24576
    num_classification: int = 12288
    seed: int = 0
    save_every: int = 200
    validate_every: int = 600
    validation_scenes: int = 256
    compile: bool = True
    """torch.compile the model: 1.4 times faster on two cores, after a minute of compiling."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"


def make_optimizers(config: PretrainingConfig, model: CanViTForPretraining) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters, or Muon for the matrices of the backbone's blocks and AdamW for the others."""
    adamw = partial(torch.optim.AdamW, lr=config.peak_lr, betas=(0.9, 0.98), weight_decay=config.weight_decay)
    if config.muon_lr is None:
        return [adamw(model.parameters())]
    matrices = [p for p in model.canvit.backbone.blocks.parameters() if p.ndim == 2]
    by_muon = {id(p) for p in matrices}
    muon = torch.optim.Muon(
        matrices, lr=config.muon_lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [adamw([p for p in model.parameters() if id(p) not in by_muon]), muon]


def restore_optimizers(optimizers: list[torch.optim.Optimizer], states: list[dict[str, Any]]) -> None:
    """Their moments from a saved state; rates and weight decay stay those of the settings it is resumed with.

    Raises:
        ValueError: a state of other optimizers.
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


def rate_of_peak(config: PretrainingConfig, step: int) -> float:
    """The learning rate as a share of its peak: warm-up, constant while distilling, then a linear fall.

    `step` counts both phases.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = max(step - config.steps, 0) / max(config.finish_steps, 1)
    return 1 - (1 - config.final_lr_fraction) * progress


def stop_probability(config: PretrainingConfig, step: int) -> float:
    """Falls over the first three quarters of the run, then stays."""
    progress = min(step / (0.75 * config.steps), 1.0)
    return config.first_stop_probability + progress * (config.last_stop_probability - config.first_stop_probability)


def seed_step(seed: int, step: int) -> None:
    """canvit-pytorch's step draws from Python's and PyTorch's global generators."""
    entropy = int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0])
    random.seed(entropy)
    torch.manual_seed(entropy % 2**63)


@torch.no_grad()
def fit_standardizers(
    config: PretrainingConfig,
    model: CanViTForPretraining,
    teacher: PassiveTeacher,
    scenes: MixedScenes,
    device: torch.device,
) -> None:
    patches, cls = [], []
    for step in range(config.standardizer_scenes // scenes.batch_size):
        features = teacher(normalized(scenes.batch(step)[0].to(device)))
        patches.append(features.patches)
        cls.append(features.cls.unsqueeze(1))
    # FashionScenes look the same everywhere, and a class is in a given corner cell in few scenes of a thousand:
    # statistics pooled over positions, where per-position ones would turn those few into outliers.
    pooled = torch.cat(patches).flatten(0, 1).unsqueeze(1)
    model.teacher_patch_standardizer.fit(pooled.expand(-1, NANO_CANVAS_GRID**2, -1))
    model.teacher_cls_standardizer.fit(torch.cat(cls))


@torch.inference_mode()
def validate(
    model: CanViTForPretraining, *, num_glimpses: int, num_scenes: int, device: torch.device
) -> dict[str, Any]:
    """C2F on validation scenes, read through the pretraining readouts: mIoU and top-1 after every glimpse."""
    model.eval()
    torch.manual_seed(0)
    results: dict[str, Any] = {}
    mious = [MeanIoU(device=device, num_classes=TEACHER_DIM) for _ in range(num_glimpses)]
    correct = [0] * num_glimpses
    for flavour in ("segmentation", "classification"):
        source = FashionScenes(flavour, "validation", 512)
        for indices in np.array_split(np.arange(num_scenes), -(-num_scenes // 64)):
            batch = source.load(indices)
            images, size = normalized(batch.images.to(device)), len(indices)
            policy = make_policy(
                "coarse_to_fine",
                batch_size=size,
                device=device,
                num_glimpses=num_glimpses,
                canvas_grid_size=NANO_CANVAS_GRID,
            )
            steps = run_episode(
                canvit=model.canvit,
                images=images,
                policy=policy,
                num_glimpses=num_glimpses,
                glimpse_size_px=NANO_GLIMPSE_SIZE_PX,
                initial_state=model.init_state(batch_size=size, canvas_grid_size=NANO_CANVAS_GRID),
            )
            for step in steps:
                if flavour == "segmentation":
                    features = model.teacher_patch_standardizer.destandardize(
                        model.predict_teacher_patches(step.state.canvas)
                    )
                    logits = features.transpose(1, 2).unflatten(2, (NANO_CANVAS_GRID, NANO_CANVAS_GRID))
                    up = F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)
                    mious[step.t].update(up.argmax(dim=1), batch.labels.to(device).long())
                else:
                    cls = model.predict_teacher_cls(step.state.recurrent_cls).unsqueeze(1)
                    scene = model.teacher_cls_standardizer.destandardize(cls)[:, 0, 1:]
                    correct[step.t] += int((scene.argmax(dim=1).cpu() == batch.labels).sum())
    results["c2f_miou"] = [round(100 * m.compute(), 2) for m in mious]
    results["c2f_top1"] = [round(100 * c / num_scenes, 2) for c in correct]
    return results


def train_tokens(
    config: PretrainingConfig,
    model: CanViTForPretraining,
    teacher: PassiveTeacher,
    scenes: MixedScenes,
    writer: SummaryWriter,
    device: torch.device,
) -> None:
    """Teach the glimpse stream what a patch shows, by a linear readout that is thrown away afterwards."""
    readout = LinearReadout(model.canvit.backbone_dim, TEACHER_DIM).to(device)
    optimizer = torch.optim.AdamW([*model.parameters(), *readout.parameters()], lr=config.peak_lr, betas=(0.9, 0.98))
    glimpse_grid = NANO_GLIMPSE_SIZE_PX // model.canvit.patch_size
    model.train()
    for step in tqdm(range(config.token_steps), desc="nano, glimpse stream", mininterval=10):
        progress = step / config.token_steps
        for group in optimizer.param_groups:
            group["lr"] = config.peak_lr * min((step + 1) / config.warmup_steps, 1.5 * (1 - progress), 1)
        # Batches after those of the rollouts, so that the two phases share none.
        images = normalized(scenes.batch(config.steps + step)[0].to(device))
        with torch.no_grad():
            features = teacher(images)
        targets = DistillationTargets.standardize(model, patches=features.patches, cls=features.cls)
        seed_step(config.seed, config.steps + step)
        repeated = images.repeat(config.token_glimpses, 1, 1, 1)
        viewpoint = random_viewpoints(batch_size=len(repeated), device=device)
        glimpse = sample_at_viewpoint(spatial=repeated, viewpoint=viewpoint, glimpse_size_px=NANO_GLIMPSE_SIZE_PX)
        state = model.init_state(batch_size=len(repeated), canvas_grid_size=1)
        output = model(glimpse=glimpse, state=state, viewpoint=viewpoint)
        cells = targets.patches.transpose(1, 2).unflatten(2, (NANO_CANVAS_GRID, NANO_CANVAS_GRID))
        under_glimpse = sample_at_viewpoint(
            spatial=cells.repeat(config.token_glimpses, 1, 1, 1),
            viewpoint=viewpoint,
            glimpse_size_px=NANO_CANVAS_GRID,
        )
        wanted = F.avg_pool2d(under_glimpse, NANO_CANVAS_GRID // glimpse_grid).flatten(2).transpose(1, 2)
        token_loss = F.mse_loss(readout(output.glimpse_patches), wanted)
        scene_loss = F.mse_loss(
            model.predict_teacher_cls(output.state.recurrent_cls), targets.cls.repeat(config.token_glimpses, 1)
        )
        optimizer.zero_grad(set_to_none=True)
        (token_loss + scene_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip_norm)
        optimizer.step()
        if step % 50 == 0:
            writer.add_scalar("tokens/patch_loss", token_loss.item(), step)
            writer.add_scalar("tokens/cls_loss", scene_loss.item(), step)
            writer.add_scalar("tokens/patch_variance", wanted.var().item(), step)


def record_start(config: PretrainingConfig, *, step: int) -> None:
    """Every start of a run with its settings: what a resumed run was really trained with."""
    entry = dict(step=step, config=plain(asdict(config)))
    with (config.run_dir / "starts.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")


def train(config: PretrainingConfig) -> None:
    """
    Raises:
        ValueError: settings that contradict each other, or those of the run that is resumed.
        FloatingPointError: a gradient that is no number; the last good state is kept.
    """
    if config.init_from is not None and config.token_steps:
        raise ValueError(
            f"the weights of --init-from have learned their tokens: pass --token-steps 0 (got {config.token_steps})"
        )
    device = torch.device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    config.run_dir.mkdir(parents=True, exist_ok=True)
    scenes = MixedScenes(
        num_segmentation=config.num_segmentation,
        num_classification=config.num_classification,
        batch_size=config.batch_size,
        seed=config.seed + 1,
    )
    teacher = load_nano_teacher(config.teacher_dir / TEACHER_WEIGHTS, device).to(
        memory_format=cast(Any, torch.channels_last)
    )
    finish_scenes = None
    if config.finish_steps:
        mixed = MixedScenes(
            num_segmentation=config.num_segmentation,
            num_classification=config.num_classification,
            batch_size=config.finish_batch_size,
            seed=config.seed + 2,
            classification_share=config.finish_classification_share,
        )
        finish_scenes = FinishScenes(mixed, teacher=teacher, device=device)
    torch.manual_seed(config.seed)
    model = CanViTForPretraining(
        canvit_config=nano_config(), teacher_dim=TEACHER_DIM, teacher_patch_grid=NANO_CANVAS_GRID
    ).to(device)
    optimizers = make_optimizers(config, model)
    checkpoint, start, seconds, glimpses = config.run_dir / "state.pt", 0, 0.0, 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        restore_optimizers(optimizers, state["optimizers"])
        start, seconds, glimpses = state["step"], state["seconds"], state["glimpses"]
        log.info("Resuming at step %d", start)
        writer = SummaryWriter(str(config.run_dir))
    else:
        writer = SummaryWriter(str(config.run_dir))
        started = time.monotonic()
        if config.init_from is not None:
            model.load_state_dict(CanViTForPretraining.from_pretrained(str(config.init_from)).state_dict())
        else:
            fit_standardizers(config, model, teacher, scenes, device)
            train_tokens(config, model, teacher, scenes, writer, device)
        seconds = time.monotonic() - started
        _save_state(checkpoint, model, optimizers, step=0, seconds=seconds, glimpses=0)

    forward: Callable[..., Any] = model.canvit.forward
    if config.compile:
        model.canvit.forward = torch.compile(forward, dynamic=False)  # type: ignore[method-assign]

    record_start(config, step=start)
    began = time.monotonic() - seconds
    last = config.steps + config.finish_steps
    bar = tqdm(range(start, last), initial=start, total=last, desc="nano", mininterval=10)
    for step in bar:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * rate_of_peak(config, step)
        seed_step(config.seed, step)
        model.train()
        policy_name = ROLLOUTS[step % len(ROLLOUTS)]
        if finish_scenes is not None and step >= config.steps:
            losses, num_glimpses = finishing_step(
                model,
                finish_scenes.batch(step),
                policy_name=policy_name,
                item_share=config.finish_item_share,
                item_weight=config.item_weight,
                class_weight=config.class_weight,
                chunk_glimpses=config.chunk_glimpses,
                stop_probability=config.finish_stop_probability,
            )
            loss, logged, batch_size = losses["cells"], {policy_name: losses}, config.finish_batch_size
        else:
            images = normalized(scenes.batch(step)[0].to(device))
            with torch.no_grad():
                features = teacher(images)
            targets = DistillationTargets.standardize(model, patches=features.patches, cls=features.cls)
            metrics = training_step(
                model=model,
                images=images,
                targets=targets,
                rollout_policies=(policy_name,),
                tbptt_chunk_glimpses=config.chunk_glimpses,
                stop_probability=stop_probability(config, step),
                glimpse_size_px=NANO_GLIMPSE_SIZE_PX,
                canvas_grid_size=NANO_CANVAS_GRID,
                enable_teacher_patch_loss=True,
                enable_teacher_cls_loss=True,
                autocast=torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"),
            )
            loss, num_glimpses, logged = metrics.loss, metrics.num_glimpses, metrics.by_policy
            batch_size = config.batch_size
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"gradient norm is {norm.item()} at step {step}; the last good state is in {checkpoint}"
            )
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        glimpses += num_glimpses * batch_size
        if step % 50 < len(ROLLOUTS):
            for name, entries in logged.items():
                for key, value in entries.items():
                    writer.add_scalar(f"{name}/{key}", value.item(), step)
            writer.add_scalar("train/grad_norm", norm.item(), step)
            writer.add_scalar("train/glimpses", glimpses, step)
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if (step + 1) % config.validate_every == 0 or step + 1 == last:
            model.canvit.forward = forward  # type: ignore[method-assign]
            results = validate(model, num_glimpses=21, num_scenes=config.validation_scenes, device=device)
            if config.compile:
                model.canvit.forward = torch.compile(forward, dynamic=False)  # type: ignore[method-assign]
            log.info("step %d, %d glimpses, %.0f s: %s", step + 1, glimpses, time.monotonic() - began, results)
            for key, curve in results.items():
                for t in (1, 5, 21):
                    writer.add_scalar(f"validation/{key}_glimpse_{t}", curve[t - 1], step + 1)
            _save(model, config, steps=step + 1, glimpses=glimpses, seconds=time.monotonic() - began, results=results)
        # The state comes last: a run interrupted before it repeats the validation, and no model is left unwritten.
        if (step + 1) % config.save_every == 0 or step + 1 == last:
            seconds = time.monotonic() - began
            _save_state(checkpoint, model, optimizers, step=step + 1, seconds=seconds, glimpses=glimpses)


def _save_state(
    path: Path, model: CanViTForPretraining, optimizers: list[torch.optim.Optimizer], **progress: float
) -> None:
    """What a resumed run needs, written whole or not at all."""
    states = [optimizer.state_dict() for optimizer in optimizers]
    with replacing(path) as partial:
        torch.save(dict(model=model.state_dict(), optimizers=states, **progress), partial)


def _save(model: Any, config: PretrainingConfig, *, results: dict[str, Any], **progress: float) -> None:
    """The model as canvit-pytorch's from_pretrained reads it, with what produced it."""
    compiled = model.canvit.__dict__.pop("forward", None)
    model.save_pretrained(config.run_dir / "model")
    if compiled is not None:
        model.canvit.forward = compiled
    teacher = json.loads((config.teacher_dir / "teacher.json").read_text(encoding="utf-8"))
    record: dict[str, Any] = dict(
        config=plain(asdict(config)),
        starts=[
            json.loads(line) for line in (config.run_dir / "starts.jsonl").read_text(encoding="utf-8").splitlines()
        ],
        teacher=teacher,
        **progress,
        validation=results,
        torch=torch.__version__,
    )
    if config.init_from is not None and (earlier := config.init_from / "training.json").exists():
        record["continues"] = json.loads(earlier.read_text(encoding="utf-8"))
    (config.run_dir / "model" / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    run_command(train, PretrainingConfig, description=__doc__, if_interrupted=GOES_ON)
