"""The console script: what it lists, what it refuses, and what it says then."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import FOLDER_CLASSES, classification_probe, tiny

import canvit_gym
from canvit_gym import cli
from canvit_gym.benchmark.single import EvaluateConfig
from canvit_gym.evaluation import Evaluation
from canvit_gym.policies.learned import shipped_policies
from canvit_gym.scenes.datasets import DATASETS


def ended(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str]:
    """(exit status or message, what is printed) of a command that ends the process."""
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    printed = capsys.readouterr()
    return end.value.code, printed.out + printed.err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        cli.main(arguments)
        shown = capsys.readouterr().out
        assert all(f"  {name} " in shown and command.summary in shown for name, command in cli.COMMANDS.items())
    cli.main(["--version"])
    assert capsys.readouterr().out == f"canvit-gym {canvit_gym.__version__}\n"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown = ended(capsys, name, "--help")
    assert code == 0 and f"usage: canvit-gym {name} " in " ".join(shown.split()) and len(shown) > 200


def test_help_shows_commands_over_several_lines_as_a_shell_takes_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--budget 5 \\\n" in ended(capsys, "benchmark", "--help")[1]


@pytest.mark.parametrize("name", ["evaluate", "benchmark", "play"])
def test_help_says_that_shipped_policies_have_names(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "FashionStop-v0/ppo" in shipped_policies() and "FashionStop-v0/ppo" in ended(capsys, name, "--help")[1]


@pytest.mark.parametrize("name", [name for name, command in cli.COMMANDS.items() if command.extra])
def test_a_command_without_its_extra_says_which(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail(f"imports {name}"))
    code, _ = ended(capsys, name, "--help")
    extra = cli.COMMANDS[name].extra
    assert str(code).startswith(f"error: canvit-gym {name} needs {cli.COMMANDS[name].needs[0]}")
    assert str(code).endswith(f"pip install 'canvit-gym[{extra}]'")


def test_every_extra_exists() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    for command in cli.COMMANDS.values():
        if command.extra:
            listed = text.partition(f"\n{command.extra} = [")[2].partition("\n]")[0]
            assert all(f'"{name}>=' in listed for name in command.needs), command


def test_environments_are_listed_with_their_data(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ADE20K_ROOT", str(tmp_path))
    monkeypatch.setenv("IMAGENET_ROOT", str(tmp_path / "none"))
    cli.main(["envs"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[::3] == list(canvit_gym.ENVIRONMENTS)
    data = dict(zip(lines[::3], lines[2::3], strict=True))
    assert data["CanViT/FashionSegmentation-v0"] == "    data: included in canvit_gym"
    assert data["CanViT/ADE20K-v0"] == f"    data: {tmp_path} ($ADE20K_ROOT): found"
    assert data["CanViT/ImageNet1k-v0"] == f"    data: {tmp_path / 'none'} ($IMAGENET_ROOT): NOT FOUND"
    assert data["CanViT/ImageFolder-v0"].startswith("    data: your own, pass root=: ")
    monkeypatch.delenv("ADE20K_ROOT")
    cli.main(["envs", "CanViT/ADE20K-v0"])
    shown = capsys.readouterr().out
    assert shown.count("\n") == 3 and "$ADE20K_ROOT is not set" in shown and DATASETS["ade20k"].page.headline in shown


def test_listing_loads_no_torch() -> None:
    code = "import sys; from canvit_gym import cli; cli.main(['envs']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_suites_ids_need_no_suite() -> None:
    code = (
        "import sys; from canvit_gym.scenes.datasets import suite_ids; assert len(suite_ids()) > 5; "
        "assert not {'torch', 'canvit_gym.suite', 'canvit_gym.benchmark'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


UNKNOWN = r"^error: unknown environment 'CanViT/Nowhere-v0'; there are: CanViT/"


@pytest.mark.parametrize(
    "arguments",
    [
        ("envs", "CanViT/Nowhere-v0"),
        ("benchmark", "--env", "CanViT/Nowhere-v0", "--output", "out"),
        ("evaluate", "--env", "CanViT/Nowhere-v0", "--policy", "center"),
        ("fit-probe", "--env", "CanViT/Nowhere-v0", "--output-dir", "out"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_unknown_ids_are_named(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=UNKNOWN):
        cli.main(arguments)
    assert not list(tmp_path.iterdir())


def test_unknown_commands_and_policies_are_named() -> None:
    with pytest.raises(SystemExit, match=r"^error: unknown command 'env'; there are: envs, "):
        cli.main(["env"])
    with pytest.raises(SystemExit, match=r"^error: unknown policy 'centre'"):
        cli.main(["evaluate", "--policy", "centre", "--device", "cpu", "--num-scenes", "2"])


SMALL = ("--num-scenes", "2", "--budget", "2", "--device", "cpu", "--no-progress")


@pytest.mark.parametrize(
    "arguments",
    [
        ("benchmark", *SMALL, "--policies", "center", "--reference", "center", "--output"),
        ("evaluate", *SMALL, "--policy", "center", "--output"),
        ("fit-probe", "--env", "CanViT/FashionSegmentation-v0", "--num-scenes", "2", "--output-dir"),
        ("report", "--results"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_an_output_that_cannot_be_written_is_an_error_in_a_line_before_any_work(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    for work in ("benchmark.single.evaluate", "benchmark.runner.evaluate", "probes.fit.run_episode"):
        monkeypatch.setattr(f"canvit_gym.{work}", lambda *a, **k: pytest.fail("worked"))
    with pytest.raises(SystemExit, match=r"^error: .*/file\b") as end:
        cli.main([*arguments, str(in_the_way / "inside")])
    assert "\n" not in str(end.value)


@pytest.mark.parametrize(
    "command",
    [("evaluate", "--policy=center", "--split=validation"), ("benchmark", "--split=validation"), ("fit-probe",)],
    ids=lambda c: c[0],
)
def test_missing_data_is_told_before_a_checkpoint_is_asked_for(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ADE20K_ROOT", raising=False)
    monkeypatch.setattr("canvit_gym.backbone.load.locate", lambda *a, **k: pytest.fail("located"))
    output = "--output-dir" if command == ("fit-probe",) else "--output"
    with pytest.raises(SystemExit, match=r"^error: ade20k needs its directory: pass root=directory"):
        cli.main([*command, "--env", "CanViT/ADE20K-v0", output, str(tmp_path / "out")])


def test_an_evaluation_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: --output .* is a directory: name a file in it, such as .*x\.npz"):
        cli.main(["evaluate", *SMALL, "--policy", "center", "--output", str(tmp_path)])


def test_a_tilde_is_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    cli.main(["evaluate", *SMALL, "--policy", "center", "--output", "~/one.npz"])
    assert (tmp_path / "home" / "one.npz").is_file()
    cli.main(["benchmark", *SMALL, "--policies", "center", "--reference", "center", "--output=~/all"])
    assert (tmp_path / "home" / "all" / "report.html").is_file() and not (tmp_path / "~").exists()
    cli.main(["report", "--results", "~/all"])


@pytest.mark.parametrize("command", [("evaluate", "--policy"), ("benchmark", "--reference=center", "--policies")])
def test_scenes_held_out_of_training_are_evaluated_on(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data that is given with --root, as to fit-probe."""
    more = {"checkpoint": "nano", "probe": str(classification_probe(len(FOLDER_CLASSES))), "workers": 0}
    arguments = (
        *command, "center", "--env", "CanViT/ImageFolder-v0", "--root", str(tiny("image-folder")), "--split", "tuning",
        "--budget", "2", "--device", "cpu", "--no-progress", "--output", str(tmp_path / "out"),
    )  # fmt: skip
    with pytest.raises(SystemExit, match=r"^error: split 'tuning' consists of held-out .*'\{\"tuning_scenes\": N\}'"):
        cli.main([*arguments, "--env-kwargs", json.dumps(more)])
    cli.main([*arguments, "--env-kwargs", json.dumps(more | {"tuning_scenes": 3})])
    capsys.readouterr()
    saved = next(path for path in (tmp_path / "out", *tmp_path.rglob("*.npz")) if path.is_file())
    found = Evaluation.load(saved)
    assert len(found.scene) == 3 and found.record["config"]["split"] == "tuning"


@pytest.mark.parametrize(
    ("options", "budget"),
    [({}, 4), ({"budget": 3}, 3), ({"env_kwargs": '{"budget": 6}'}, 6)],
)
def test_an_evaluation_has_the_glimpses_of_its_environment(options: dict[str, Any], budget: int) -> None:
    """FashionSearch's episodes have four."""
    assert EvaluateConfig(env="CanViT/FashionSearch-v0", policy="random", **options).env_config().budget == budget
