"""The wheel by itself: built from the sdist, installed beside its declared dependencies alone, used from elsewhere."""

import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from datasets import tiny
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
POLICY = Path(__file__).parent / "data" / "policies-0.1.0" / "grid"
"""Trained with version 0.1.0."""
BENCHMARK_ONLY = ("matplotlib", "tyro")
NEVER = ("stable_baselines3", "tensorboard", "agents", "experiments")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(wheel, sdist): the wheel is built from the sdist, as `build` does it unasked."""
    output = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(output), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = output.glob("*.whl"), output.glob("*.tar.gz")
    return wheel, sdist


def distributions_of(requirements: Iterable[str], extra: str = "") -> dict[str, Distribution]:
    """The installed distributions that requirements name, and those that these need, by name."""
    found: dict[str, Distribution] = {}
    wanted = [(Requirement(text), extra) for text in requirements]
    while wanted:
        requirement, of_extra = wanted.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": of_extra}):
            continue
        name = requirement.name.lower().replace("_", "-")
        if name in found and not requirement.extras:
            continue
        found[name] = distribution(name)
        for of_this in ("", *requirement.extras):
            wanted += [(Requirement(text), of_this) for text in found[name].requires or []]
    return found


def borrow(distributions: dict[str, Distribution], site: Path) -> None:
    """Link what the distributions installed into another site-packages."""
    for installed in distributions.values():
        home = Path(str(installed.locate_file("")))
        for top in {path.parts[0] for path in installed.files or [] if path.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists() and (home / top).exists():
                (site / top).symlink_to(home / top)


class Bare:
    """A virtual environment with the wheel and what it declares."""

    def __init__(self, directory: Path, wheel: Path) -> None:
        self.bin = directory / "venv" / "bin"
        venv.create(directory / "venv", with_pip=False)
        command = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(self.bin / "python"),
            "install",
            "--no-deps",
            str(wheel),
        ]
        subprocess.run([*command, "--no-index", "--quiet", str(wheel)], check=True)
        self.elsewhere = directory / "elsewhere"
        self.elsewhere.mkdir()
        (self.site,) = (directory / "venv" / "lib").glob("python*/site-packages")
        (metadata,) = self.site.glob("canvit_gym-*.dist-info")
        self.requirements = Distribution.at(metadata).requires or []
        borrow(distributions_of(self.requirements), self.site)

    def add_extra(self, extra: str) -> None:
        borrow(distributions_of(self.requirements, extra), self.site)

    def run(self, *command: str, status: int = 0) -> str:
        """What it prints, run in a directory of its own without this checkout on the path."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COVERAGE"))}
        environment["OMP_NUM_THREADS"] = "1"
        program, *arguments = command
        done = subprocess.run(
            [str(self.bin / program), *arguments],
            cwd=self.elsewhere, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == status, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def importable(self, names: Iterable[str]) -> list[str]:
        code = f"import importlib.util as u; print([n for n in {tuple(names)!r} if u.find_spec(n)])"
        return json.loads(self.run("python", "-c", code).replace("'", '"'))


@pytest.fixture(scope="module")
def bare(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Bare:
    return Bare(tmp_path_factory.mktemp("bare"), built[0])


def test_the_wheel_holds_the_library_and_the_sdist_the_clone(built: tuple[Path, Path]) -> None:
    wheel, sdist = built
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"canvit_gym"}
    assert {"canvit_gym/py.typed", "canvit_gym/assets/nano/model.safetensors", "canvit_gym/cli.py"} <= set(names)
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "README.md", "LICENSE", "Makefile", "constraints.txt", "mkdocs.yml", "docs/index.md", "agents/train.py",
        "experiments/demo.py", "tests/test_wheel.py", "experiments/results/demo/gaze.png",
        "agents/trained/FashionStop-v0.json",
    } <= inside  # fmt: skip
    assert not [name for name in inside if name.startswith(("runs/", ".venv", ".cache"))]
    assert sdist.stat().st_size < 30e6 and wheel.stat().st_size < 20e6


def test_environments_run_without_extras(bare: Bare) -> None:
    assert bare.importable((*BENCHMARK_ONLY, *NEVER)) == []
    code = (
        "import gymnasium as gym, canvit_gym\n"
        "from canvit_gym.config import EnvConfig\n"
        "from canvit_gym.evaluation import evaluate\n"
        "from canvit_gym.policies import PaperPolicy\n"
        "env = gym.make('CanViT/FashionSegmentation-v0', num_scenes=8, device='cpu')\n"
        "env.reset(seed=0)\n"
        "print('reward', env.step(env.action_space.sample())[1])\n"
        "envs = gym.make_vec('CanViT/FashionClassification-v0', 2, num_scenes=8, device='cpu')\n"
        "envs.reset(seed=0); envs.step(envs.action_space.sample())\n"
        "config = EnvConfig(num_scenes=4, split='test', device='cpu', budget=2)\n"
        "print('score', evaluate(PaperPolicy('random', num_glimpses=2), config=config).score())\n"
        "print(canvit_gym.__file__, canvit_gym.__version__)\n"
    )
    told = bare.run("python", "-c", code)
    assert "reward" in told and "score [" in told and str(bare.site) in told


def test_commands_without_their_extra_say_which(bare: Bare) -> None:
    assert "CanViT/FashionSegmentation-v0" in bare.run("canvit-gym", "envs")
    for command in ("benchmark", "evaluate", "fit-probe"):
        told = bare.run("canvit-gym", command, "--help", status=1)
        assert f"error: canvit-gym {command} needs" in told and "pip install 'canvit-gym[benchmark]'" in told


def test_a_trained_policy_is_benchmarked_without_stable_baselines3(bare: Bare) -> None:
    bare.add_extra("benchmark")
    assert bare.importable((*BENCHMARK_ONLY, *NEVER)) == list(BENCHMARK_ONLY)
    told = bare.run(
        "canvit-gym", "benchmark", "--policies", "coarse_to_fine", "--learned", f"PPO={POLICY}", "--budget", "2",
        "--num-scenes", "6", "--seeds", "1", "--output", "report", "--device", "cpu", "--no-progress",
    )  # fmt: skip
    assert "Report: report/report.html" in told and (bare.elsewhere / "report" / "report.html").is_file()
    numbers = json.loads((bare.elsewhere / "report" / "results.json").read_text(encoding="utf-8"))
    assert {"C2F", "PPO", "PPO, sampled"} == set(numbers["policies"])
    told = bare.run(
        "canvit-gym", "evaluate", "--policy", str(POLICY), "--budget", "2", "--num-scenes", "4", "--device", "cpu",
    )  # fmt: skip
    assert "| mIoU % |" in told


def test_a_probe_is_fitted_and_read(bare: Bare) -> None:
    bare.add_extra("benchmark")
    bare.run(
        "canvit-gym", "fit-probe", "--env", "CanViT/ImageFolder-v0", "--root", str(tiny("image-folder")),
        "--output-dir", "probe", "--steps", "2", "--batch-size", "4", "--num-glimpses", "2", "--env-kwargs",
        '{"workers": 0}', "--device", "cpu",
    )  # fmt: skip
    kwargs = {"root": str(tiny("image-folder")), "probe": "probe", "workers": 0}
    told = bare.run(
        "canvit-gym", "evaluate", "--env", "CanViT/ImageFolder-v0", "--env-kwargs", json.dumps(kwargs), "--policy",
        "center(scale=0.5)", "--budget", "2", "--device", "cpu",
    )  # fmt: skip
    assert "| top-1 % |" in told
