"""Policies, probes and checkpoints go to the Hub and come back: a local directory stands for it."""

import hashlib
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from untrained import save_untrained

from canvit_gym import publish
from canvit_gym.backbone.hub import asset_dir
from canvit_gym.config import EnvConfig
from canvit_gym.escaping import markdown_code
from canvit_gym.policies.learned import load_policy, policy_directory
from canvit_gym.publish import push_checkpoint, push_policy, push_probe
from canvit_gym.vector_env import GlimpseVectorEnv


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "hub"
    root.mkdir()
    monkeypatch.setenv("CANVIT_HUB_ROOT", str(root))
    return root


def test_a_policy_comes_back(hub: Path, tmp_path: Path) -> None:
    directory = save_untrained(tmp_path / "run", EnvConfig(num_scenes=8, device="cpu"))
    where = push_policy(directory, "somebody/looks-well")
    assert Path(where) == hub / "somebody" / "looks-well"
    assert sorted(path.name for path in Path(where).iterdir()) == ["README.md", "policy.json", "policy.safetensors"]
    card = (Path(where) / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: canvit-gym\n") and "- reinforcement-learning\n" in card

    policy, original = load_policy("somebody/looks-well"), load_policy(directory)
    envs = GlimpseVectorEnv(3, **policy.record.env.to_json() | {"num_scenes": 8})
    observation, _ = envs.reset(seed=0)
    np.testing.assert_array_equal(policy.predict(observation)[0], original.predict(observation)[0])
    envs.close()


def test_published_policies_name_no_directory_of_the_machine(hub: Path, tmp_path: Path) -> None:
    directory = save_untrained(tmp_path / "run", EnvConfig(num_scenes=8, device="cpu"))
    path = directory / "policy.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    home = "/home/ann lee"
    record["env"] |= {"root": f"{home}/ade20k", "cache": f"{home}/scenes", "probe": f"{home}/probe"}
    record["env"]["dataset"] = "ade20k"
    record["hyperparameters"] = {"env_kwargs": {"root": f"{home}/ade20k"}, "learning_rate": "lin_1e-3"}
    command = ["python", f"{home}/train.py", "--run-dir", f"{home}/runs/1", f"--log={home}/log", "--seed", "3"]
    command += ["--env-kwargs", json.dumps({"root": f"{home}/ade20k", "budget": 5})]
    loaded = [{"kind": "probe", "name": f"{home}/probe", "repo": "canvit/probe", "revision": None}]
    record["provenance"] = {"command": shlex.join(command), "loaded": loaded, "versions": {"torch": "2"}}
    path.write_text(json.dumps(record), encoding="utf-8")

    where = Path(push_policy(directory, "somebody/private"))
    assert not any("ann lee" in (where / name).read_text(encoding="utf-8") for name in ("policy.json", "README.md"))
    pushed = json.loads((where / "policy.json").read_text(encoding="utf-8"))
    assert [pushed["env"][name] for name in ("root", "cache", "probe", "budget")] == ["ade20k", False, "probe", 5]
    assert pushed["provenance"]["loaded"] == [loaded[0] | {"name": "probe"}]
    kept = ["python", "train.py", "--run-dir", "1", "--log=log", "--seed", "3", "--env-kwargs"]
    assert shlex.split(pushed["provenance"]["command"]) == [*kept, '{"root": "ade20k", "budget": 5}']
    assert pushed["weights_sha256"] == record["weights_sha256"] and pushed["inputs"] == record["inputs"]
    assert json.loads(path.read_text(encoding="utf-8")) == record  # one's own stays as it is


def test_probes_and_checkpoints_come_back(hub: Path) -> None:
    push_checkpoint(asset_dir("nano"), "somebody/small")
    push_probe(asset_dir("nano-segmentation-probe"), "somebody/small-probe")
    envs = GlimpseVectorEnv(
        2,
        checkpoint="somebody/small",
        probe="somebody/small-probe",
        num_scenes=8,
        device="cpu",
    )
    envs.reset(seed=0)
    for kind, name in (("checkpoint", "nano"), ("probe", "nano-segmentation-probe")):
        weights = (asset_dir(name) / "model.safetensors").read_bytes()
        assert envs.provenance[kind]["sha256"] == hashlib.sha256(weights).hexdigest()
    envs.close()


def test_published_probes_name_no_directory_of_the_machine(hub: Path, tmp_path: Path) -> None:
    """Also those that an earlier version fitted, whose card quotes the command as it was."""
    probe = tmp_path / "probe"
    shutil.copytree(asset_dir("nano-segmentation-probe"), probe)
    command = shlex.join(["python", "/home/ann lee/bin/canvit-gym", "fit-probe", "--output-dir", "/home/ann lee/probe"])
    record = json.loads((probe / "training.json").read_text(encoding="utf-8"))
    record["provenance"]["command"] = command
    record["config"]["env_kwargs"] = '{"root": "/home/ann lee/photos"}'
    record["classes"][1] = "/class"
    (probe / "training.json").write_text(json.dumps(record), encoding="utf-8")
    (probe / "README.md").write_text(f"# Mine\n\n- **Command**: {markdown_code(command)}\n", encoding="utf-8")

    where = Path(push_probe(probe, "somebody/private-probe"))
    for path in probe.iterdir():
        pushed = where / path.name
        if path.suffix == ".safetensors" or path.name == "config.json":
            assert pushed.read_bytes() == path.read_bytes()
        else:
            assert "ann lee" not in pushed.read_text(encoding="utf-8")
    stripped = "python canvit-gym fit-probe --output-dir probe"
    assert f"- **Command**: `{stripped}`\n" in (where / "README.md").read_text(encoding="utf-8")
    record["provenance"]["command"] = stripped
    record["config"]["env_kwargs"] = '{"root": "photos"}'
    assert json.loads((where / "training.json").read_text(encoding="utf-8")) == record

    untouched = asset_dir("nano-segmentation-probe")
    where = Path(push_probe(untouched, "somebody/shipped-probe"))
    assert (where / "training.json").read_bytes() == (untouched / "training.json").read_bytes()


@pytest.mark.parametrize("repo", ["name", "a/b/c", "/name", "user/", "../name"])
def test_malformed_repositories_are_refused(repo: str, tmp_path: Path, hub: Path) -> None:
    directory = save_untrained(tmp_path / "run", EnvConfig(num_scenes=8, device="cpu"))
    with pytest.raises(ValueError, match="repo must be 'user/name'"):
        push_policy(directory, repo)


def test_what_is_no_policy_is_refused(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no policy\.safetensors"):
        push_policy(tmp_path, "somebody/nothing")
    with pytest.raises(FileNotFoundError, match="a probe is a directory as save_pretrained writes it"):
        push_probe(tmp_path, "somebody/nothing")
    (hub / "somebody" / "half").mkdir(parents=True)
    (hub / "somebody" / "half" / "policy.json").write_text(json.dumps({}))
    with pytest.raises(FileNotFoundError, match=r"policy 'somebody/half': .* has no policy.safetensors"):
        policy_directory("somebody/half")
    with pytest.raises(FileNotFoundError, match="no shipped policy of that name"):
        policy_directory("FashionNothing-v0/ppo")


class _Recorder:
    """In place of the Hub's API."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __call__(self) -> "_Recorder":
        return self

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


def test_what_is_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights as they are; record and card only as they were written for others."""
    monkeypatch.delenv("CANVIT_HUB_ROOT", raising=False)
    hub = _Recorder()
    monkeypatch.setattr(publish, "HfApi", hub)
    directory = save_untrained(tmp_path / "run", EnvConfig(num_scenes=8, device="cpu"))
    push_policy(directory, "somebody/looks-well", private=True)
    (begun, where, options), *uploads, (last, _, folder) = hub.calls
    assert (begun, where, options) == ("create_repo", ("somebody/looks-well",), {"private": True, "exist_ok": True})
    assert {call[0] for call in uploads} == {"upload_file"} and last == "upload_folder"
    written = {options["path_in_repo"]: options["path_or_fileobj"].decode() for _, _, options in uploads}
    assert sorted(written) == ["README.md", "policy.json"]
    assert str(tmp_path) not in "".join(written.values())
    assert folder["folder_path"] == directory and folder["allow_patterns"] == ["policy.safetensors"]
