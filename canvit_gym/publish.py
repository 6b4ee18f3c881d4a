"""Sharing policies, probes and checkpoints on the Hugging Face Hub: safetensors, JSON and a card, nothing pickled.

`load_policy("user/name")`, `probe="user/name"` and `checkpoint="user/name"` load what these functions push. If
$CANVIT_HUB_ROOT is a directory, it replaces the Hub in both directions.

Of directories of this machine, which may name a person, a published record holds the last name only.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from canvit_gym.backbone.hub import CONFIG, WEIGHTS
from canvit_gym.escaping import markdown_code
from canvit_gym.policies.learned import RECORD, load_record, policy_directory
from canvit_gym.policies.learned import WEIGHTS as POLICY_WEIGHTS
from canvit_gym.policies.policy_record import PolicyRecord
from canvit_gym.provenance import strip_command, strip_directories, strip_record

CARD = "README.md"


def push_policy(source: str | Path, repo: str, *, private: bool = False) -> str:
    """Publish a trained policy with a model card. Returns its address.

    source: a policy's directory, a run directory (its best policy) or a shipped policy's name.
    repo: "user/name".

    Raises:
        FileNotFoundError: no policy there.
        ValueError: a malformed repo.
    """
    directory = policy_directory(source)
    record = without_directories(load_record(directory))
    written = {RECORD: json.dumps(record.to_json(), indent=2) + "\n", CARD: policy_card(record, repo)}
    return _push(directory, repo, files=(POLICY_WEIGHTS,), written=written, private=private)


def without_directories(record: PolicyRecord) -> PolicyRecord:
    """The record without paths of the machine that trained the policy, and without its cache of scenes."""
    values = strip_directories(record.to_json())
    if isinstance(values["env"].get("cache"), str):
        values["env"]["cache"] = False
    if command := record.provenance.get("command"):
        values["provenance"]["command"] = strip_command(command)
    return PolicyRecord.from_json(values)


def push_probe(directory: str | Path, repo: str, *, private: bool = False) -> str:
    """Publish a probe from `canvit-gym fit-probe` with its card. Returns its address."""
    return _push_model("probe", directory, repo, private=private)


def push_checkpoint(directory: str | Path, repo: str, *, private: bool = False) -> str:
    """Publish a checkpoint from canvit-pytorch's `save_pretrained`. Returns its address."""
    return _push_model("checkpoint", directory, repo, private=private)


def policy_card(record: PolicyRecord, repo: str) -> str:
    """The model card, with the Hub's tags for reinforcement-learning models."""
    env_id = record.env_id
    recipe = json.dumps(record.hyperparameters, indent=1)
    training = json.dumps(record.training, indent=1)
    versions = ", ".join(f"{name} {version}" for name, version in record.provenance.get("versions", {}).items())
    return f"""---
library_name: canvit-gym
tags:
- {json.dumps(env_id)}
- {json.dumps(record.algorithm)}
- reinforcement-learning
- active-vision
- canvit
---

# {record.algorithm} on {env_id}

A glimpse policy of canvit_gym. Evaluate it, or act with it:

```sh
canvit-gym evaluate --env {env_id} --policy {repo}
```

```python
import gymnasium as gym
import canvit_gym
from canvit_gym.policies.learned import load_policy

policy = load_policy("{repo}")
env = gym.make("{env_id}", **policy.record.env.to_json())
observation, info = env.reset(seed=0)
action, _ = policy.predict(observation)
```

## Training

```json
{training}
```

## Hyperparameters

```json
{recipe}
```

Versions: {versions or "not recorded"}.
"""


def _push_model(kind: str, directory: str | Path, repo: str, *, private: bool) -> str:
    directory = Path(directory).expanduser()
    if not (directory / WEIGHTS).is_file():
        raise FileNotFoundError(f"{directory} has no {WEIGHTS}: a {kind} is a directory as save_pretrained writes it")
    files = [path.name for path in sorted(directory.iterdir()) if path.suffix in (".safetensors", ".json")]
    card = directory / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else f"# {repo}\n\nA {kind} for canvit_gym.\n"
    written: dict[str, str] = {}
    for name in files:
        if not name.endswith(".json") or name == CONFIG:  # sizes of the network, of which nothing may change
            continue
        record = json.loads((directory / name).read_text(encoding="utf-8"))
        if (stripped := strip_record(record)) != record:
            written[name] = json.dumps(stripped, indent=2) + "\n"
        for command in _commands(record):  # cards of earlier versions quote it as it was
            text = text.replace(markdown_code(command), markdown_code(strip_command(command)))
    copied = [name for name in files if name not in written]
    return _push(directory, repo, files=copied, written={**written, CARD: text}, private=private)


def _commands(record: Any) -> Iterator[str]:
    """The commands in a record, at any depth."""
    if isinstance(record, dict):
        if isinstance(command := record.get("command"), str):
            yield command
        for value in record.values():
            yield from _commands(value)


def _push(directory: Path, repo: str, *, files: Sequence[str], written: Mapping[str, str], private: bool) -> str:
    """files: names in the directory; written: name -> content of further files."""
    if repo.count("/") != 1 or not all(repo.split("/")) or any(part in (".", "..") for part in repo.split("/")):
        raise ValueError(f"repo must be 'user/name', got {repo!r}")
    if missing := [name for name in files if not (directory / name).is_file()]:
        raise FileNotFoundError(f"{directory} lacks {', '.join(missing)}")
    root = Path(os.environ.get("CANVIT_HUB_ROOT") or "").expanduser()
    if os.environ.get("CANVIT_HUB_ROOT") and root.is_dir():
        target = root / repo
        target.mkdir(parents=True, exist_ok=True)
        for name in files:
            shutil.copyfile(directory / name, target / name)
        for name, content in written.items():
            (target / name).write_text(content, encoding="utf-8")
        return str(target)
    api: Any = HfApi()
    url = api.create_repo(repo, private=private, exist_ok=True)
    for name, content in written.items():
        api.upload_file(path_or_fileobj=content.encode(), path_in_repo=name, repo_id=repo)
    api.upload_folder(folder_path=directory, repo_id=repo, allow_patterns=list(files))
    return str(url)
