"""What every command line of experiments does with mistakes and Ctrl-C."""

import subprocess
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from canvit_gym.command_line import GOES_ON, INTERRUPTED, env_config, json_object, run_command


@dataclass(frozen=True)
class Config:
    number: int = 1


def run(monkeypatch: pytest.MonkeyPatch, raised: BaseException | None, *arguments: str) -> None:
    def main(config: Config) -> None:
        assert config.number == 3
        if raised is not None:
            raise raised

    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    run_command(main, Config, description="A command.", if_interrupted=GOES_ON)


def test_what_a_user_can_mend_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, None, "--number", "3")
    with pytest.raises(SystemExit, match=r"^error: no such scene; choose another$"):
        run(monkeypatch, ValueError("no such scene; choose another"), "--number", "3")
    with pytest.raises(RuntimeError, match="a mistake of ours"):  # keeps its traceback
        run(monkeypatch, RuntimeError("a mistake of ours"), "--number", "3")


def test_an_interruption_says_what_is_lost(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, KeyboardInterrupt(), "--number", "3")
    assert ended.value.code == INTERRUPTED and capsys.readouterr().err == f"{GOES_ON}\n"


@pytest.mark.parametrize(
    ("module", "usage"),
    [
        ("experiments.demo", "usage: python -m experiments.demo "),
        ("experiments.throughput.__main__", "usage: python -m experiments.throughput "),
        (None, "usage: command "),
    ],
)
def test_help_is_of_the_command_that_was_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], module: str | None, usage: str
) -> None:
    started = ModuleType("__main__")
    started.__spec__ = None if module is None else ModuleSpec(module, loader=None)
    monkeypatch.setitem(sys.modules, "__main__", started)
    with pytest.raises(SystemExit):
        run(monkeypatch, None, "--help")
    assert usage in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("text", ["nonsense", "[1]", '"text"'])
def test_options_in_json_are_objects(text: str) -> None:
    assert json_object(None, option="--hyper") == {} and json_object('{"a": 1}', option="--hyper") == {"a": 1}
    with pytest.raises(ValueError, match="--hyper must be a JSON object such as"):
        json_object(text, option="--hyper")


def test_a_module_before_the_id_is_imported(tmp_path: Path) -> None:
    """By the console script too, from the working directory."""
    module = tmp_path / "my_scenes.py"
    module.write_text(
        """
from dataclasses import replace
import canvit_gym
from canvit_gym.scenes.datasets import DATASETS

fashion = DATASETS["fashion-segmentation"]
canvit_gym.register_dataset(replace(fashion, name="mine", env_id="Mine/Scenes-v0"))
""",
        encoding="utf-8",
    )
    command = [Path(sys.executable).with_name("canvit-gym"), "envs"]
    done = subprocess.run([*command, "my_scenes:Mine/Scenes-v0"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("my_scenes:Mine/Scenes-v0\n"), done.stderr
    done = subprocess.run([*command, "their_scenes:Mine/Scenes-v0"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "cannot import the module 'their_scenes'" in done.stderr


def test_unknown_environments_are_named() -> None:
    with pytest.raises(ValueError, match="unknown environment 'CanViT/Fashion'; there are: CanViT/"):
        env_config("CanViT/Fashion", {})
