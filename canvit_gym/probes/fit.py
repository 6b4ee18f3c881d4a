"""Fit linear probes on a frozen backbone: SegmentationProbe on the canvas, a linear classifier on the CLS token.

    canvit-gym fit-probe --env CanViT/ImageFolder-v0 --root photos --output-dir runs/photos-probe
    canvit-gym fit-probe --checkpoint runs/nano/model --output-dir runs/probes

With --env it fits one probe on that environment's training scenes, and the directory is a value for the environment's
`probe`. Without --env it fits both probes of FashionScenes, in segmentation-probe/ and classification-probe/.

States come from random viewpoints (F-IID and R-IID in turn) with equal weight for all time steps, so that the probe
does not favour any policy. The probe with the least validation loss is kept. The fit ends early if the loss has not
fallen for --patience validations. The classifier reads the pretraining readout of the recurrent CLS token, so that
CanViTForImageClassification.from_pretrained_with_probe can fuse it into one linear map of that token.

Run the same command again to continue an interrupted fit. The probe's directory then contains model.safetensors,
training.json (settings, data, provenance, metrics) and README.md, the model card; that of a segmentation probe also
contains config.json.
"""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from canvit_pytorch.episode import run_episode
from canvit_pytorch.policies import make_policy
from canvit_pytorch.preprocess import imagenet_normalize
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from canvit_gym import ENVIRONMENTS
from canvit_gym.assembly import build_backbone, build_scenes, task_kind
from canvit_gym.atomic import replacing, write_text
from canvit_gym.backbone.hub import CHECKPOINTS
from canvit_gym.backbone.load import Backbone
from canvit_gym.checks import check_options, finite, integer, optional
from canvit_gym.command_line import GOES_ON, PROGRAM, env_config, json_object, output_directory, run_command
from canvit_gym.config import EnvConfig, config_from_kwargs
from canvit_gym.evaluation import Evaluation, evaluate
from canvit_gym.policies import PaperPolicy
from canvit_gym.probes.card import card
from canvit_gym.probes.heads import ClassificationHead, Head, RecurrentClsHead, SegmentationHead
from canvit_gym.provenance import plain, provenance, strip_record
from canvit_gym.scenes.datasets import DATASETS
from canvit_gym.scenes.files import spread
from canvit_gym.scenes.source import SceneBatch, SceneSource, StreamedSource, closing_sources, load_scenes
from canvit_gym.seeding import seeded
from canvit_gym.tasks import TASKS
from canvit_gym.tasks.task import TRAINING_RECORD

log = logging.getLogger(__name__)

FASHION = ("CanViT/FashionSegmentation-v0", "CanViT/FashionClassification-v0")
STATE = "fit_state.pt"
FREQUENCY_SCENES = 1024
"""Number of scenes on which class frequencies are counted."""
WEIGHT_RANGE = (0.1, 10.0)


@dataclass(frozen=True)
class ProbeConfig:
    output_dir: Path
    """Directory of the probe, or without --env the parent directory of both probes."""
    env: str | None = None
    """Id of the environment on whose scenes to fit. None: both environments of FashionScenes."""
    root: Path | None = None
    """Directory of the environment's data set."""
    checkpoint: str | None = None
    """A name (listed above), a Hub id org/name, or a directory. None: that of the environment."""
    revision: str | None = None
    """Branch, tag or commit of a Hub checkpoint."""
    canvas_grid: int | None = None
    """Side of the canvas in cells. None: as in pretraining (nano 16, CanViT-B 32)."""
    scene_size_px: int | None = None
    """Size that scenes are resized to. None: as in pretraining (nano 128, CanViT-B 512)."""
    env_kwargs: str = "{}"
    """Further keyword arguments of the environment, as JSON. With '{"tuning_scenes": 500}' the fit is validated on
    scenes held out of the training split, for data sets whose validation split is used to report results."""
    num_scenes: int | None = None
    """Number of training scenes. None: all (FashionScenes: 8192)."""
    steps: int = 450
    batch_size: int = 64
    """Scenes per step, each with num_glimpses states. With 64 x 64 canvases of CanViT-B, 16 need about 20 GB."""
    num_glimpses: int = 8
    """Length of each rollout; each of its states is a training example."""
    peak_lr: float = 2e-2
    weight_decay: float = 1e-3
    item_weight: float = 4.0
    """Weight of the items in FashionSegmentation's cross-entropy; background weighs 1."""
    item_bonus: float = 0.6
    """Nats added to the items' logits of FashionSegmentation after the fit (logit adjustment, Menon et al. 2021),
    because uncertain cells that are lost to the background cost more in mIoU than in cross-entropy."""
    class_balance: float | None = None
    """Classes have weight frequency^-class_balance. None: 0.5 in segmentation, because mIoU counts rare classes as much
    as common ones (FashionSegmentation: item_weight and item_bonus), and 0 in classification."""
    reads: Literal["teacher_cls", "recurrent_cls"] = "teacher_cls"
    """In classification: the teacher's CLS token as predicted in pretraining, or the recurrent CLS token itself, which
    also contains what the teacher does not predict, such as the number of items of a class."""
    validate_every: int = 100
    patience: int = 5
    """Validations without a new best after which the fit ends."""
    validation_scenes: int = 512
    """The largest number of validation scenes, evenly spread over the split."""
    seed: int = 0
    device: str = "auto"


@lru_cache(maxsize=2)
def _pass(seed: int, number: int, num_scenes: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, number]).permutation(num_scenes)


def training_scenes(step: int, *, num_scenes: int, batch_size: int, seed: int) -> NDArray[np.int64]:
    """The scenes of a step, in passes without replacement. It only depends on its arguments, so that a fit can
    resume."""
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    passes = positions // num_scenes
    parts = [_pass(seed, int(p), num_scenes)[positions[passes == p] % num_scenes] for p in np.unique(passes)]
    return np.concatenate(parts)


def _loaded(scenes: SceneSource, batches: list[NDArray[np.int64]]) -> Iterator[tuple[int, SceneBatch]]:
    """(number, scenes) of each batch, without scenes that are left out as unreadable; the next batch is prefetched."""
    streamed = scenes if isinstance(scenes, StreamedSource) else None
    for i, chosen in enumerate(batches):
        if streamed is not None and streamed.skips_unreadable:
            chosen = chosen[streamed.readable(chosen)]
        if not len(chosen):
            continue
        loaded = load_scenes(scenes, chosen)
        if streamed is not None and i + 1 < len(batches):
            streamed.prefetch(batches[i + 1])
        yield i, loaded


@dataclass(frozen=True)
class Rollouts:
    """The states of a head's frozen backbone along random viewpoints, one rollout per batch of scenes."""

    backbone: Backbone
    head: Head
    scenes: SceneSource
    num_glimpses: int
    seed: int

    def __call__(self, batches: list[NDArray[np.int64]], *, first: int = 0) -> Iterator[tuple[Tensor, Tensor, int]]:
        """(features [T * B, ...], target [B, ...], B) for each batch; batch i is rollout number `first` + i of the
        seed."""
        for i, batch in _loaded(self.scenes, batches):
            images = imagenet_normalize(batch.images.to(self.backbone.device).float() / 255)
            features = self._features(images, first + i)
            yield features, self.head.target(batch.labels), len(batch.labels)

    @torch.no_grad()
    def _features(self, images: Tensor, number: int) -> Tensor:
        backbone = self.backbone
        seed = int(np.random.default_rng([self.seed, number]).integers(2**62))
        with seeded(seed, backbone.device), backbone.autocast():
            policy = make_policy(
                ("full_then_random", "random")[number % 2],
                batch_size=len(images),
                device=backbone.device,
                num_glimpses=self.num_glimpses,
                canvas_grid_size=backbone.canvas_grid,
            )
            rollout = run_episode(
                canvit=backbone.canvit,
                images=images,
                policy=policy,
                num_glimpses=self.num_glimpses,
                glimpse_size_px=backbone.glimpse_size_px,
                initial_state=backbone.init_state(len(images)),
            )
        return torch.cat([self.head.features(step.state) for step in rollout])


def class_weights(scenes: SceneSource, *, balance: float) -> Tensor:
    """[K] frequency^-balance within WEIGHT_RANGE, normalized so that labels have weight 1 on average."""
    if balance == 0:
        return torch.ones(len(scenes.classes))
    counts = np.zeros(max(256, len(scenes.classes)))
    chosen = spread(FREQUENCY_SCENES, len(scenes))
    batches = np.array_split(chosen, -(-len(chosen) // 64))
    loaded = _loaded(scenes, batches)
    for _, batch in tqdm(loaded, total=len(batches), desc="class frequencies", mininterval=5):
        counts += np.bincount(batch.labels.numpy().ravel(), minlength=len(counts))
    counts = counts[: len(scenes.classes)]  # without pixels that have no label
    frequency = (counts + 1) / (counts + 1).sum()
    weights = np.clip((frequency * len(frequency)) ** -balance, *WEIGHT_RANGE)
    return torch.from_numpy(weights / (frequency * weights).sum()).float()


def make_head(config: ProbeConfig, env: EnvConfig, backbone: Backbone, scenes: SceneSource) -> Head:
    dense = TASKS[task_kind(env.dataset)].kind.reads_canvas
    if not dense and backbone.is_finetuned:
        raise ValueError(
            f"checkpoint {backbone.name!r} is fine-tuned and holds its own classifier, beside which no probe can be "
            "used: fit the probe on a pretrained checkpoint, such as 'flagship'"
        )
    known = DATASETS[env.dataset].probe_fit
    favours_items = known.items_on_background and config.class_balance is None
    if favours_items:
        weights = torch.full((len(scenes.classes),), config.item_weight)
        weights[0] = 1.0
    else:
        balance = config.class_balance if config.class_balance is not None else 0.5 * dense
        weights = class_weights(scenes, balance=balance)
    with seeded(config.seed, backbone.device):
        if dense:
            return SegmentationHead(backbone, weights, bonus=config.item_bonus if favours_items else 0.0)
        if config.reads == "recurrent_cls":
            return RecurrentClsHead(backbone, weights)
        return ClassificationHead(backbone, weights, reads_log_odds=known.classes_in_teacher)


@dataclass
class Progress:
    """The progress of a fit, from which an interrupted one continues."""

    step: int = 0
    best: float = float("inf")
    best_step: int = 0
    best_module: dict[str, Tensor] | None = None
    history: tuple[tuple[int, float], ...] = ()
    """(step, validation loss)"""
    seconds: float = 0.0

    def exhausted(self, config: ProbeConfig) -> bool:
        since = [step for step, _ in self.history if step > self.best_step]
        return self.step >= config.steps or len(since) >= config.patience


def fit(
    head: Head,
    backbone: Backbone,
    config: ProbeConfig,
    *,
    training: SceneSource,
    validation: SceneSource,
    state_file: Path,
    settings: dict[str, Any],
    name: str,
) -> Progress:
    """Train `head.module` in place, and restore its weights of the least validation loss."""
    module = head.module
    optimizer = torch.optim.AdamW(module.parameters(), lr=config.peak_lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=config.peak_lr, total_steps=config.steps)
    progress = Progress()
    if state_file.exists():
        state = torch.load(state_file, map_location=backbone.device, weights_only=True)
        if state["settings"] != settings:
            raise ValueError(
                f"{state_file} is from an interrupted fit with other settings or data: pass the same options to "
                "continue it, remove the file to begin again, or choose another --output-dir"
            )
        for part, key in ((module, "module"), (optimizer, "optimizer"), (schedule, "schedule")):
            part.load_state_dict(state[key])
        progress = Progress(**state["progress"])
        log.info("%s: resuming at step %d", name, progress.step)
    chosen = spread(config.validation_scenes, len(validation))
    held_out = np.array_split(chosen, -(-len(chosen) // config.batch_size))
    rollouts = Rollouts(backbone, head, training, config.num_glimpses, config.seed)
    validations = Rollouts(backbone, head, validation, config.num_glimpses, config.seed)

    def validation_loss() -> float:
        module.eval()
        with torch.no_grad():
            losses = [(head.loss(features, target).item(), count) for features, target, count in validations(held_out)]
        if not losses:
            raise ValueError(f"none of the {len(chosen)} validation scenes of {validation.name} can be read")
        values, counts = zip(*losses, strict=True)
        return float(np.average(values, weights=counts))

    began = time.monotonic() - progress.seconds
    batch = dict(num_scenes=len(training), batch_size=config.batch_size, seed=config.seed)
    bar = tqdm(total=config.steps, initial=progress.step, desc=name, unit="step", mininterval=5)
    with bar:
        while not progress.exhausted(config):
            until = min(config.steps, (progress.step // config.validate_every + 1) * config.validate_every)
            batches = [training_scenes(step, **batch) for step in range(progress.step, until)]
            for features, target, _ in rollouts(batches, first=progress.step):
                module.train()
                optimizer.zero_grad(set_to_none=True)
                head.loss(features, target).backward()
                optimizer.step()
                schedule.step()
                bar.update()
            progress.step = until
            loss = validation_loss()
            if not np.isfinite(loss):
                raise FloatingPointError(
                    f"{name}: the validation loss is {loss} after step {until}. Use a smaller --peak-lr than "
                    f"{config.peak_lr}."
                )
            progress.history += ((until, loss),)
            if loss < progress.best:
                progress.best, progress.best_step = loss, until
                progress.best_module = {key: value.clone() for key, value in module.state_dict().items()}
            progress.seconds = time.monotonic() - began
            bar.set_postfix(validation_loss=f"{loss:.4f}", best=f"{progress.best:.4f}")
            log.info("%s, step %d: validation loss %.4f", name, until, loss)
            _save_state(state_file, module, optimizer, schedule, progress, settings)
    assert progress.best_module is not None, "a fit has at least one step"
    module.load_state_dict(progress.best_module)
    module.eval()
    return progress


def _save_state(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    progress: Progress,
    settings: dict[str, Any],
) -> None:
    state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    with replacing(path) as partial:
        torch.save({**state, "progress": vars(progress), "settings": settings}, partial)


def environment_of(config: ProbeConfig, env_id: str) -> EnvConfig:
    """The environment to fit a probe for, which may already have one."""
    more = json_object(config.env_kwargs, option="--env-kwargs")
    given = {
        name: value
        for name in ("checkpoint", "revision", "canvas_grid", "scene_size_px", "device", "num_scenes")
        if (value := getattr(config, name)) is not None
    }
    if config.root is not None:
        given["root"] = str(config.root)
    return env_config(env_id, {**given, **more, "split": "training"})


def fit_env(config: ProbeConfig, env_id: str, directory: Path) -> Path:
    """Fit a probe for an environment, measure it on validation scenes, and write it to `directory` with its card."""
    counts = ("steps", "batch_size", "num_glimpses", "validate_every", "patience", "validation_scenes")
    check_options(config, integer(1), *counts)
    numbers = ("peak_lr", "weight_decay", "item_weight", "item_bonus", "class_balance")
    check_options(config, optional(finite()), *numbers)
    check_options(config, integer(0), "seed")
    env = environment_of(config, env_id)
    if not TASKS[task_kind(env.dataset)].kind.has_probe:
        raise ValueError(
            f"the task {task_kind(env.dataset)} of {env_id} is read without a probe: there is nothing to fit"
        )
    directory = output_directory(directory, option="--output-dir")
    held_out = replace(env, split=env.choosing_split, num_scenes=None)
    training, validation = build_scenes(env), build_scenes(held_out)  # a wrong root is told before any download
    backbone = build_backbone(env)
    if training.scene_size_px != backbone.scene_size_px:
        raise ValueError(
            f"the scenes of {env_id} have {training.scene_size_px} px, but checkpoint {backbone.name!r} expects "
            f"{backbone.scene_size_px}: pass --scene-size-px {training.scene_size_px}"
        )
    shown = plain(asdict(config)) | {"checkpoint": backbone.source.record["name"]}
    settings = {
        "config": shown,
        "env": env_id,
        "checkpoint_sha256": backbone.sha256,
        "scenes": {"training": training.fingerprint, "validation": validation.fingerprint},
    }
    state_file = directory / STATE
    with closing_sources(training, validation):
        head = make_head(config, env, backbone, training)
        progress = fit(
            head,
            backbone,
            config,
            training=training,
            validation=validation,
            state_file=state_file,
            settings=settings,
            name=f"{task_kind(env.dataset)} probe",
        )
    head.save(directory)
    record: dict[str, Any] = dict(
        **settings,
        checkpoint=backbone.record,
        reads="canvas" if TASKS[task_kind(env.dataset)].kind.reads_canvas else "recurrent CLS token",
        canvas_grid=backbone.canvas_grid,
        data={"training": training.name, "validation": validation.name},
        classes=list(training.classes),
        validation_loss=progress.best,
        best_step=progress.best_step,
        validations=[list(entry) for entry in progress.history],
        seconds=round(progress.seconds, 1),
        torch=torch.__version__,
        provenance=provenance(),
    )
    record = strip_record(record)
    _write_record(directory, record)
    measured = measure(replace(held_out, probe=str(directory)), config, num_scenes=len(validation))
    record["metrics"] = {
        "policy": "coarse_to_fine",
        "metric": measured.metric,
        "scenes": len(measured.scene),
        "score": [round(100 * value, 2) for value in measured.score().tolist()],
        "cross_entropy": [round(value, 4) for value in measured.mean_loss().tolist()],
    }
    _write_record(directory, record)
    write_text(directory / "README.md", card(record))
    state_file.unlink(missing_ok=True)
    log.info("%s of coarse_to_fine after each glimpse: %s", measured.metric, record["metrics"]["score"])
    return directory


def measure(env: EnvConfig, config: ProbeConfig, *, num_scenes: int) -> Evaluation:
    """Evaluate C2F on validation scenes with the probe, loaded as environments load it."""
    few = replace(env, num_scenes=min(num_scenes, config.validation_scenes))
    policy = PaperPolicy("coarse_to_fine", num_glimpses=config.num_glimpses)
    return evaluate(
        policy,
        config=few,
        num_glimpses=config.num_glimpses,
        batch_size=config.batch_size,
        seed=config.seed,
        progress="C2F on validation scenes",
    )


def _write_record(directory: Path, record: dict[str, Any]) -> None:
    write_text(directory / TRAINING_RECORD, json.dumps(record, indent=2) + "\n")


def main(config: ProbeConfig) -> None:
    if config.env is not None:
        print(f"Probe: {fit_env(config, config.env, config.output_dir)}")
        return
    for env_id in FASHION:
        kind = task_kind(config_from_kwargs(dict(ENVIRONMENTS[env_id])).dataset)
        print(f"Probe: {fit_env(config, env_id, config.output_dir / f'{kind}-probe')}")


def command_line(arguments: Sequence[str]) -> None:
    """`canvit-gym fit-probe`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    names = f"Checkpoints by name: nano, {', '.join(CHECKPOINTS)}."
    run_command(
        main,
        ProbeConfig,
        description=f"{__doc__}\n{names}",
        arguments=arguments,
        prog=f"{PROGRAM} fit-probe",
        if_interrupted=GOES_ON,
    )
