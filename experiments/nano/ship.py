"""Install a pretrained nano and its probes as the package's assets, measure them, and write their model card.

    python -m experiments.nano.ship --model-dir runs/nano/model --probes-dir runs/probes --teacher-dir runs/teacher

A model is only installed if it is better than the shipped one, on validation scenes of segmentation and classification
under C2F: mIoU and top-1 after 21 glimpses are both higher, and the 95% intervals of both differences (paired, over
scenes) are above zero; neither is lower after 5 glimpses; and neither falls, with more glimpses, further below its own
best than the shipped model's does or than 0.25 points. Otherwise the assets stay as they are, and the command fails and
says why. Results that depend on the shipped model have to be measured again after a new one is installed.

The measurements are on test scenes, with canvit-pytorch's own policies: C2F over 21 glimpses, the greedy oracle over 5
(on the first --oracle-scenes scenes, with C2F on the same ones), classification under C2F, and the passive teacher as
the ceiling.
"""

import json
import shutil
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from canvit_pytorch.policies import POLICIES
from numpy.typing import NDArray

from canvit_gym.atomic import replacing, replacing_files
from canvit_gym.backbone.hub import asset_dir
from canvit_gym.backbone.load import load_backbone
from canvit_gym.backbone.nano_teacher import TEACHER_WEIGHTS
from canvit_gym.command_line import run_command
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import Evaluation, evaluate, score_statistic
from canvit_gym.policies import GreedyOracle, PaperPolicy
from canvit_gym.provenance import plain, provenance
from canvit_gym.statistics import paired_difference
from experiments.nano.metrics import FALL_POINTS, largest_fall
from experiments.nano.mixture import MIXTURES, SINGLE
from experiments.nano.pretrain import PretrainingConfig
from experiments.nano.teacher import TeacherConfig

LONG, SHORT = 21, 5
"""Numbers of glimpses: C2F's three quadtree levels, and the environments' default budget."""

DIGITS = 6
"""Decimals of measured numbers in the metrics file: the card rounds them once, as every other result is rounded."""

GOALS = {
    "C2F rises from glimpse 1 to 5 by >= 6 points": 6.0,
    "C2F does not fall from glimpse 5 to 21 (change)": 0.0,
    "oracle's gain by glimpse 5 is >= 2 times C2F's": 2.0,
    "C2F at 21 >= 0.80 of the teacher": 0.8,
    "C2F top-1 at 21 >= 80": 80.0,
}
"""The goals for nano, with the smallest number that meets each."""

EARLIER: dict[str, Any] = {
    "mixture": "pair",
    "long_share": 0.0,
    "rollouts": ["full_then_random", "random"],
}
"""The values that these settings had in effect in runs recorded before the settings existed."""

NOT_TOLD = (
    "run_dir",
    "teacher_dir",
    "init_from",
    "save_every",
    "validate_every",
    "validation_scenes",
    "validation_glimpses",
    "test_scenes",
    "minutes",
    "compile",
    "device",
)
"""Settings that the card's commands leave out: they name directories, or change no weight."""


@dataclass(frozen=True)
class ShippingConfig:
    model_dir: Path
    """`model/` of a run of experiments.nano.pretrain."""
    probes_dir: Path
    """Output directory of canvit_gym.probes.fit."""
    teacher_dir: Path | None = None
    """Run directory of the teacher that the model learned from, to be installed with it. None: the shipped one."""
    compare_scenes: int = 1000
    """Validation scenes of each flavour on which the model is compared with the shipped one."""
    oracle_scenes: int = 200
    seed: int = 0


def install(source: Path, destination: Path) -> None:
    with replacing_files(destination) as staged:
        for name in ("config.json", "model.safetensors", "training.json"):
            if (source / name).exists():
                shutil.copyfile(source / name, staged / name)
    (destination / "README.md").unlink(missing_ok=True)  # the card of an earlier model


def probes_of(config: ShippingConfig) -> dict[str, Path]:
    """Kind -> the directory of the probe that was fitted on the model.

    Raises:
        FileNotFoundError: one is missing. With the shipped one the new model's features would be misread.
    """
    found = {kind: config.probes_dir / f"{kind}-probe" for kind in ("segmentation", "classification", "odd")}
    if missing := [str(path) for path in found.values() if not path.is_dir()]:
        raise FileNotFoundError(
            f"there is no {', '.join(missing)}: fit the probes on this model first (canvit-gym fit-probe --checkpoint "
            f"{config.model_dir}; for FashionOdd also --env CanViT/FashionOdd-v0 --reads recurrent_cls)"
        )
    return found


@dataclass(frozen=True)
class Comparison:
    """A candidate and the shipped model: C2F on the same validation scenes of one flavour."""

    name: str
    shipped: list[float]  # in %, after each glimpse
    candidate: list[float]
    difference: tuple[float, float, float]
    """After the last glimpse, candidate minus shipped in points: estimate and 95% interval."""

    def reasons(self) -> list[str]:
        """The reasons why the candidate is not better; empty if it is."""
        estimate, low, high = self.difference
        found = []
        if low <= 0:
            found.append(
                f"{self.name} after {len(self.candidate)} glimpses is {estimate:+.2f} points "
                f"(95 % interval {low:+.2f} to {high:+.2f}): not clearly higher"
            )
        short = min(SHORT, len(self.candidate)) - 1
        if self.candidate[short] < self.shipped[short]:
            ours, theirs = self.candidate[short], self.shipped[short]
            found.append(f"{self.name} after {short + 1} glimpses is {ours:.2f}, below {theirs:.2f}")
        allowed = max(FALL_POINTS, largest_fall(self.shipped))
        if (fall := largest_fall(self.candidate)) > allowed:
            found.append(f"{self.name} falls by {fall:.2f} points with more glimpses; at most {allowed:.2f} would do")
        return found


def compare(config: ShippingConfig) -> list[Comparison]:
    """Compare the candidate with the shipped model, each with its own probes."""
    comparisons = []
    for kind, name in (("segmentation", "mIoU"), ("classification", "top-1")):
        shipped = EnvConfig(dataset=f"fashion-{kind}", split="validation", num_scenes=config.compare_scenes)
        candidate = replace(shipped, checkpoint=str(config.model_dir), probe=str(config.probes_dir / f"{kind}-probe"))
        policy = PaperPolicy("coarse_to_fine", num_glimpses=LONG)
        ours, theirs = (
            evaluate(policy, config=env, num_glimpses=LONG, seed=config.seed, progress=f"C2F, {kind}, {which}")
            for which, env in (("candidate", candidate), ("shipped", shipped))
        )
        estimate = paired_difference(score_statistic([ours]), score_statistic([theirs]))
        value, low, high = (round(100 * bound, DIGITS) for bound in estimate.at(-1).values())
        comparisons.append(Comparison(name, percent(theirs), percent(ours), (value, low, high)))
    return comparisons


def percent(result: Evaluation) -> list[float]:
    return _rounded(100 * result.score())


def _rounded(values: NDArray[np.floating]) -> list[float]:
    return [round(value, DIGITS) for value in values.tolist()]


def measure(config: ShippingConfig, teacher: dict[str, float]) -> dict[str, Any]:
    segmentation = EnvConfig(dataset="fashion-segmentation", split="test")
    classification = EnvConfig(dataset="fashion-classification", split="test")
    few = EnvConfig(dataset="fashion-segmentation", split="test", num_scenes=config.oracle_scenes)

    def c2f(env: EnvConfig, glimpses: int) -> Evaluation:
        policy = PaperPolicy("coarse_to_fine", num_glimpses=glimpses)
        return evaluate(policy, config=env, num_glimpses=glimpses, seed=config.seed, progress=f"C2F, {env.dataset}")

    def paper(name: Any) -> list[float]:
        policy = PaperPolicy(name, num_glimpses=SHORT)
        return percent(evaluate(policy, config=segmentation, num_glimpses=SHORT, seed=config.seed, progress=name))

    long = c2f(segmentation, LONG)
    oracle = evaluate(GreedyOracle(), config=few, num_glimpses=SHORT, progress="greedy oracle")
    curve, top1 = percent(long), percent(c2f(classification, LONG))
    oracle_curve, c2f_few = percent(oracle), percent(c2f(few, SHORT))
    teacher_miou, teacher_top1 = _rounded(100 * np.array([teacher["test_miou"], teacher["test_top1"]]))
    reached = (
        curve[4] - curve[0],
        curve[20] - curve[4],
        (oracle_curve[-1] - oracle_curve[0]) / (c2f_few[-1] - c2f_few[0]),
        curve[20] / teacher_miou,
        top1[20],
    )
    return dict(
        c2f_miou=curve,
        c2f_cross_entropy=_rounded(long.mean_loss()),
        c2f_top1=top1,
        others_miou_5={name: paper(name) for name in ("random", "full_then_random", "entropy_coarse_to_fine")},
        oracle_miou=oracle_curve,
        c2f_miou_on_oracle_scenes=c2f_few,
        teacher_miou=teacher_miou,
        teacher_top1=teacher_top1,
        goals=dict(zip(GOALS, _rounded(np.array(reached)), strict=True)),
    )


def verdict(goal: str, value: float) -> str:
    return "met" if value >= GOALS[goal] else "missed"


def setting(training: dict[str, Any], name: str) -> Any:
    """A setting of a run, however old its record is."""
    return training["config"].get(name, EARLIER.get(name))


def single_share(training: dict[str, Any]) -> float:
    """The share of the finish's scenes that have one item."""
    if (given := setting(training, "finish_classification_share")) is not None:
        return given
    return next(part.share for part in MIXTURES[setting(training, "mixture")] if part.flavour == SINGLE)


def rollouts(training: dict[str, Any]) -> str:
    """The viewing policies, by their names in the paper."""
    *others, last = (POLICIES[name].paper_name for name in setting(training, "rollouts"))
    return f"{', '.join(others)} and {last}" if others else last


def scenes_trained_on(training: dict[str, Any]) -> str:
    """The scenes that the last run was trained on."""
    scenes = training.get("scenes")
    if scenes is None:  # recorded before mixtures existed
        config = training["config"]
        return f"{config['num_segmentation']} segmentation and {config['num_classification']} classification\n  scenes"
    counts = ", ".join(f"{entry['scenes']} {flavour} ({entry['share']:.0%})" for flavour, entry in scenes.items())
    return f"{counts}\n  scenes"


def stages(training: dict[str, Any]) -> str:
    """A line for each run that the weights went through, in order."""
    earlier = training.get("continues")
    config = training["config"]
    parts = {
        f"{config['token_steps']} steps of glimpse-stream learning": config["token_steps"],
        f"{config['steps']} steps of passive-to-active dense distillation by canvit-pytorch's training step, "
        f"batch {config['batch_size']}": config["steps"],
        f"{training['steps'] - config['steps']} steps on the cross-entropy of class shares, "
        f"batch {config['finish_batch_size']}": training["steps"] - config["steps"],
    }
    done = "; ".join(what for what, count in parts.items() if count)
    if share := config.get("finish_item_share"):
        done += f", {single_share(training):.0%} of its scenes with one item and {share:.0%} of its glimpses after "
        done += "the first around items"
    starts = len(training["starts"])
    optimizers = f"AdamW at {config['peak_lr']}"
    if muon_lr := config.get("muon_lr"):
        optimizers += f" (the matrices of the blocks by Muon at {muon_lr})"
    line = (
        f"  - {'From those weights: ' if earlier else ''}{done}; {rollouts(training)} rollouts in turn, "
        f"{training['glimpses']:,} glimpses, {optimizers}, seed {config['seed']}, "
        f"{training['seconds'] / 60:.0f} minutes"
        + (f" (started {starts} times, some with other settings)." if starts > 1 else ".")
    )
    line = fill(line, 118, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return f"{stages(earlier)}\n{line}" if earlier else line


def options(config: type, recorded: dict[str, Any]) -> list[str]:
    """The settings of a run that differ from the defaults, as options of its command."""
    parts = []
    for field in fields(config):
        value = recorded.get(field.name, EARLIER.get(field.name, field.default))
        text = " ".join(value) if isinstance(value, list | tuple) else value
        default = " ".join(field.default) if isinstance(field.default, tuple) else field.default
        if field.name not in NOT_TOLD and text != default:
            parts.append(f"--{field.name.replace('_', '-')} {text}")
    return parts


def teacher_command(teacher: dict[str, Any]) -> str:
    parts = options(TeacherConfig, teacher["config"])
    return " ".join(["python -m experiments.nano.teacher --run-dir runs/teacher", *parts])


def commands(training: dict[str, Any]) -> list[str]:
    """A command for each run that the weights went through, in order, with options that differ from the defaults."""
    earlier = commands(training["continues"]) if "continues" in training else []
    parts = [f"python -m experiments.nano.pretrain --run-dir {run_dir(len(earlier))} --teacher-dir runs/teacher"]
    if earlier:
        parts.append(f"--init-from {run_dir(len(earlier) - 1)}/model")
    parts += options(PretrainingConfig, training["config"])
    # No-break spaces keep an option and its value on the same line while lines are filled.
    whole = " ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts)
    lines = fill(whole, 108, break_long_words=False, break_on_hyphens=False).replace("\N{NO-BREAK SPACE}", " ")
    return [*earlier, lines.replace("\n", " \\\n          ")]


def commands_note(training: dict[str, Any]) -> str:
    """What the commands do not show; empty if every run kept the settings that it began with."""
    run: dict[str, Any] | None = training
    while run is not None and len(run["starts"]) == 1:
        run = run.get("continues")
    if run is None:
        return ""
    return (
        ", with the last settings of each run. They do not reproduce a run that was started again with other\n"
        "  settings or ended early; the recipe has the steps that were taken"
    )


def run_dir(number: int) -> str:
    return f"runs/nano_{number + 1}"


def card(record: dict[str, Any]) -> str:
    training, metrics, made = record["training"], record["metrics"], record["provenance"]
    shown = (1, 2, 3, 4, 5, 9, 13, 17, 21)
    header = " | ".join(str(t) for t in shown)

    def row(name: str, curve: list[float]) -> str:
        return f"| {name} | " + " | ".join(f"{curve[t - 1]:.1f}" if t <= len(curve) else "" for t in shown) + " |"

    goals = "\n".join(f"| {goal} | {value:.4g} | {verdict(goal, value)} |" for goal, value in metrics["goals"].items())
    teacher = training["teacher"]
    runs = commands(training)
    data = scenes_trained_on(training)
    data += " of FashionScenes' training split (Fashion-MNIST sprites, MIT licence, Zalando SE)."
    last, pretrain = run_dir(len(runs) - 1), "\n      ".join(runs)
    return f"""---
library_name: canvit-pytorch
license: mit
---

# nano

A CanViT of {record["parameters"] / 1e6:.2f} million parameters for 128 px scenes: 32 px glimpses, a 16 x 16 canvas
of 128 channels. It ships with canvit_gym so that its environments run without a network or a GPU; it knows
FashionScenes and nothing else.

- **Data**: {data}
- **Teacher**: a passive convolutional network at full resolution (`experiments/nano/teacher.py`),
  {teacher["config"]["steps"]} steps, {teacher["seconds"] / 60:.0f} minutes.
- **Recipe** (`experiments/nano/pretrain.py`; `training.json` has every setting and start):
{stages(training)}
- **Probes**: `canvit_gym/probes/fit.py` on the frozen model.
- **Made with**: torch {training["torch"]}, canvit-pytorch {made["versions"]["canvit-pytorch"]},
  on {made["machine"]["cpu"]} ({made["machine"]["cores"]} cores).
- **Commands**{commands_note(training)}:

      {teacher_command(teacher)}
      {pretrain}
      canvit-gym fit-probe --checkpoint {last}/model --output-dir runs/probes
      python -m experiments.nano.ship --model-dir {last}/model --probes-dir runs/probes

## On test scenes

1,000 scenes of each flavour; the oracle, and C2F beside it, on the first {record["oracle_scenes"]}.

| after glimpse | {header} |
| --- {"| --- " * len(shown)}|
{row("C2F, mIoU %", metrics["c2f_miou"])}
{row("EG-C2F, mIoU %", metrics["others_miou_5"]["entropy_coarse_to_fine"])}
{row("F-IID, mIoU %", metrics["others_miou_5"]["full_then_random"])}
{row("R-IID, mIoU %", metrics["others_miou_5"]["random"])}
{row("greedy oracle over 74 candidates, mIoU %", metrics["oracle_miou"])}
{row("C2F on the oracle's scenes, mIoU %", metrics["c2f_miou_on_oracle_scenes"])}
{row("C2F, top-1 %", metrics["c2f_top1"])}

The passive teacher reaches {metrics["teacher_miou"]:.1f} mIoU and {metrics["teacher_top1"]:.1f} % top-1.

| goal | reached | verdict |
| --- | --- | --- |
{goals}
{better_than_before(record.get("comparison"))}"""


def better_than_before(comparison: list[dict[str, Any]] | None) -> str:
    """How the model was better than the previous one; empty for a model installed before this was required."""
    if comparison is None:
        return ""
    lines = []
    for entry in comparison:
        value, low, high = entry["difference"]
        lines.append(
            f"- {entry['name']}: {entry['candidate'][-1]:.2f} after {len(entry['candidate'])} glimpses, "
            f"{value:+.2f} ({low:+.2f} to {high:+.2f}); largest fall {largest_fall(entry['candidate']):.2f}"
        )
    return (
        "\n## Against the model that it replaced\n\nC2F on validation scenes, points in % with 95 % intervals "
        "(`experiments/nano/ship.py` has the rule):\n\n" + "\n".join(lines) + "\n"
    )


def main(config: ShippingConfig) -> None:
    """Compare, install, measure, and write the card.

    Raises:
        ValueError: the model is not better than the shipped one.
        FileNotFoundError: a probe is missing.
    """
    began = time.monotonic()
    probes = probes_of(config)
    comparison = compare(config)
    if reasons := [reason for entry in comparison for reason in entry.reasons()]:
        raise ValueError("not shipped, and nothing was changed:\n" + "\n".join(reasons))
    install(config.model_dir, asset_dir("nano"))
    for kind, probe in probes.items():
        install(probe, asset_dir(f"nano-{kind}-probe"))
    if config.teacher_dir is not None:
        with replacing(asset_dir("nano-teacher") / TEACHER_WEIGHTS) as partial:
            shutil.copyfile(config.teacher_dir / TEACHER_WEIGHTS, partial)
    training = plain(json.loads((config.model_dir / "training.json").read_text(encoding="utf-8")))
    (asset_dir("nano") / "training.json").write_text(json.dumps(training, indent=2) + "\n", encoding="utf-8")
    backbone = load_backbone("nano", device="cpu")
    record = dict(
        training=training,
        parameters=sum(p.numel() for p in backbone.pretrained.parameters()),
        sha256=backbone.sha256,
        oracle_scenes=config.oracle_scenes,
        metrics=measure(config, training["teacher"]),
        comparison=[asdict(entry) for entry in comparison],
        provenance=provenance(),
        seconds=time.monotonic() - began,
    )
    (asset_dir("nano") / "metrics.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (asset_dir("nano") / "README.md").write_text(card(record), encoding="utf-8")
    for goal, value in record["metrics"]["goals"].items():
        print(f"{goal}: {value:.4g}, {verdict(goal, value)}")


if __name__ == "__main__":
    run_command(main, ShippingConfig, description=__doc__)
