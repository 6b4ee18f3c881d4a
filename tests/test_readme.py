"""What the README shows is so: its Python blocks run, and its commands take the options that it gives them.

The commands that experiments and the console script show in their own descriptions, and nano's card, are held to the
same.
"""

import ast
import importlib
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from canvit_gym import cli, command_line

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CARD = (ROOT / "canvit_gym/assets/nano/README.md").read_text()
DOCS = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)

FENCED = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?:^    .*\n|^\n(?=    ))+", flags=re.MULTILINE)
QUOTED = re.compile(r"`([^`]+)`")
SHOWN = re.compile(r"python -m (?:agents|experiments)\.|\bcanvit-gym [a-z]")
CONSOLE = re.compile(r"\bcanvit-gym (?=[a-z])")

RECORDER = r"""set -f; PATH=
python() { printf '%s\0' "$@"; printf '\n'; }
console() { command=$1; shift; printf '%s\0' -m "canvit-gym $command" "$@"; printf '\n'; }
"""
"""For a POSIX shell: it finds no program, takes patterns of file names as they are, and prints the arguments of every
call of `python` and of `console`, which stands for canvit-gym (functions have no hyphens in their names)."""
NOT_FOUND = 127
"""The exit status of a shell whose last command was another program."""


def prose(page: str) -> str:
    """A page in Markdown without its fenced and indented blocks."""
    return INDENTED.sub("", FENCED.sub("", page))


def shell_blocks(page: str) -> list[str]:
    """Those that show commands of experiments: fenced, indented or, also in cells of tables, in backquotes.

    In backquotes a module's name with options is a command too.
    """
    fenced = [body for language, body in FENCED.findall(page) if language != "python"]
    indented = INDENTED.findall(FENCED.sub("", page))
    quoted = [span.replace("\n", " ") for span in QUOTED.findall(prose(page))]
    quoted = [re.sub(r"^(?=(?:agents|experiments)\.\S+ -)", "python -m ", span) for span in quoted]
    quoted = [span for span in quoted if not re.fullmatch(r"canvit-gym [a-z-]+", span)]  # a mention
    return [block for block in (*fenced, *indented, *quoted) if SHOWN.search(block)]


def takes_options(name: str) -> bool:
    return "tyro" in cli.COMMANDS[name].needs


def commands(page: str) -> list[tuple[str, ...]]:
    """(module, argument, ...) of all that a page's commands run, as a shell passes them. None that ends in dots."""
    calls: list[list[str]] = []
    for block in shell_blocks(page):
        script = RECORDER + CONSOLE.sub("console ", block)
        done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode in (0, NOT_FOUND), f"{block}\n{done.stderr}"
        calls += [line.split("\0")[:-1] for line in done.stdout.split("\n")]
    ours = ("agents.", "experiments.", *(f"canvit-gym {name}" for name in cli.COMMANDS if takes_options(name)))
    calls = [call[1:] for call in calls if call[:1] == ["-m"] and call[1].startswith(ours)]
    return list(dict.fromkeys(tuple(call) for call in calls if call[-1] != "..."))


def descriptions() -> dict[str, str]:
    """What the modules of experiments that are commands say of themselves, by name."""
    found = {}
    for path in sorted(path for folder in ("agents", "experiments") for path in (ROOT / folder).rglob("*.py")):
        source = path.read_text()
        if 'if __name__ == "__main__":' in source and "    run_command(" in source:
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
            found[name] = f"{ast.get_docstring(ast.parse(source))}\n"
    for name, command in cli.COMMANDS.items():
        if takes_options(name):
            found[f"canvit-gym {name}"] = f"{importlib.import_module(command.module).__doc__}\n"
    return found


DESCRIPTIONS = descriptions()
PAGES = (README, CARD, *DOCS, *DESCRIPTIONS.values())


def run_as_main(module: str, run_command: Callable[..., None], *arguments: str) -> None:
    """`python -m module arguments`, or `canvit-gym command arguments`, with another `run_command`."""
    if module.startswith("canvit-gym "):
        name = cli.COMMANDS[module.removeprefix("canvit-gym ")].module
        with patch.object(importlib.import_module(name), "run_command", run_command):
            cli.main([module.removeprefix("canvit-gym "), *arguments])
        return
    with patch.object(command_line, "run_command", run_command), patch.object(sys, "argv", [module, *arguments]):
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def parse(module: str, *arguments: str) -> Any:
    """The configuration that a command begins with. None where it asks for help."""
    parsed: list[Any] = []
    run_command = command_line.run_command

    def only_parsed(main: Callable[[Any], object], config: type[Any], **rest: Any) -> None:
        run_command(parsed.append, config, **rest)

    try:
        run_as_main(module, only_parsed, *arguments)
    except SystemExit as ended:
        assert ended.code == 0, f"{module} refuses {arguments}"
        return None
    (config,) = parsed
    return config


def options(module: str) -> set[str]:
    configs: list[type[Any]] = []
    run_as_main(module, lambda main, config, **rest: configs.append(config))
    names = [field.name.replace("_", "-") for field in fields(configs[0])]
    return {f"--{name}" for name in names} | {f"--no-{name}" for name in names}  # the latter of booleans


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_block_runs(block: str) -> None:
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "a README example shows something"


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_readme_has_the_quick_start() -> None:
    assert len(BLOCKS) >= 2 and 'gym.make("CanViT/' in BLOCKS[0]


def test_commands_are_found_as_a_shell_passes_them() -> None:
    page = """
    for s in 0 1; do
        A=b python -m agents.train --seed $s \\
            --learned runs/seed*/best  # a remark
    done
    python -m agents.train ...

```sh
make no such thing
python -m experiments.studies.knowable
python -c "no experiment"
```
```python
python -m experiments.not_one
```
Beside them `experiments.studies.scaling
--largest 16` in a line, and `experiments.studies.scaling` alone.

| in | a cell |
| --- | --- |
| `python -m experiments.demo --env-kwargs '{"budget": 5}'` | |
"""
    assert sorted(commands(page)) == [
        ("agents.train", "--seed", "0", "--learned", "runs/seed*/best"),
        ("agents.train", "--seed", "1", "--learned", "runs/seed*/best"),
        ("experiments.demo", "--env-kwargs", '{"budget": 5}'),
        ("experiments.studies.knowable",),
        ("experiments.studies.scaling", "--largest", "16"),
    ]
    with pytest.raises(AssertionError, match=r"(?i)unterminated|unexpected EOF"):
        commands("    python -m agents.train --hyper '{}\n")


def test_every_command_shown_is_found() -> None:
    pages = (README, *DOCS)
    assert sum(len(SHOWN.findall(page)) for page in pages) > 20
    for page in pages:
        assert not SHOWN.search(QUOTED.sub("", prose(page)))
        assert {module for module, *_ in commands(page)} >= set(
            re.findall(r"python -m ((?:agents|experiments)\.[\w.]*\w)", page)
        )


of_modules_run_twice = pytest.mark.filterwarnings("ignore:.*found in sys.modules after import:RuntimeWarning")


@of_modules_run_twice
@pytest.mark.parametrize("command", dict.fromkeys(c for page in PAGES for c in commands(page)), ids=" ".join)
def test_commands_parse(command: tuple[str, ...]) -> None:
    config = parse(*command)
    env_id = getattr(config, "env", None)
    if env_id is not None and ":" not in env_id and hasattr(config, "env_kwargs"):  # with one: in the reader's module
        command_line.env_config(env_id, command_line.json_object(config.env_kwargs, option="--env-kwargs"))


@of_modules_run_twice
def test_options_told_in_sentences_exist() -> None:
    exist = {"--help"}.union(*map(options, DESCRIPTIONS))
    told = {option for page in PAGES for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", prose(page))}
    assert len(told) > 20 and not told - exist
