"""Checkpoints and probes by name: what is loaded is canvit-pytorch's own, to the bit; errors say what to type."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from canvit_pytorch import (
    CanViTForImageClassification,
    CanViTForPretraining,
    CanViTForSemanticSegmentation,
    RecurrentState,
    SegmentationProbe,
    Viewpoint,
)
from canvit_pytorch.hub import repos
from canvit_pytorch.pretrain.ablations import ABLATIONS
from datasets import tiny
from hub import ADE20K_GRIDS, HUB_CONFIG, TEACHER_DIM, ade20k_probe_dir, random_probe, repo_dir
from huggingface_hub import constants
from safetensors.torch import save_file

from canvit_gym.assembly import build_backbone, build_task
from canvit_gym.backbone.hub import CHECKPOINTS, PROBES, asset_dir, hub_root, locate, used_sources
from canvit_gym.backbone.load import load_backbone, resolve_device
from canvit_gym.config import EnvConfig
from canvit_gym.policies import load_policy
from canvit_gym.scenes.fashion import CLASSES as ITEM_CLASSES
from canvit_gym.tasks.classification import ClassificationTask, load_classifier
from canvit_gym.tasks.segmentation import SegmentationTask, class_counts_on_device, class_counts_on_host, load_probe
from canvit_gym.vector_env import GlimpseVectorEnv

Files = tuple[str, ...]
BOTH: Files = ("config.json", "model.safetensors")
ADE20K_CLASSES = tuple(f"class {k}" for k in range(150))
IN1K_CLASSES = tuple(f"class {k}" for k in range(1000))


def ade20k(**kwargs: Any) -> EnvConfig:
    given = {"dataset": "ade20k", "checkpoint": "flagship", "root": str(tiny("ade20k")), "device": "cpu", **kwargs}
    return EnvConfig(**given)


def some_state(model: Any, *, grid: int) -> RecurrentState:
    """After a glimpse of noise by the model itself."""
    generator = torch.Generator().manual_seed(0)
    glimpse = torch.randn(2, 3, 8, 8, generator=generator).repeat_interleave(16, 2).repeat_interleave(16, 3)
    viewpoint = Viewpoint.full_scene(batch_size=2, device=glimpse.device)
    with torch.no_grad():
        state = model.canvit.init_state(batch_size=2, canvas_grid_size=grid)
        return model.canvit(glimpse=glimpse, state=state, viewpoint=viewpoint).state


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, others = one.state_dict(), other.state_dict()
    return mine.keys() == others.keys() and all(torch.equal(mine[key], others[key]) for key in mine)


# Names ----------------------------------------------------------------------------------------------------------------

EVERY_NAME = {
    "flagship": repos.FLAGSHIP,
    "pretrained-in21k": repos.PRETRAINED["in21k"],
    "pretrained-in1k": repos.PRETRAINED["in1k"],
    "finetuned-in1k": repos.FINETUNED_IN1K,
    "finetuned-in1k-nnx-in21k": repos.FINETUNED_IN1K_NNX["in21k"],
    "finetuned-in1k-nnx-in1k": repos.FINETUNED_IN1K_NNX["in1k"],
    **{f"abl-{slug}": ablation.released_repo for slug, ablation in ABLATIONS.items()},
}


def test_every_released_checkpoint_has_a_name() -> None:
    assert {name: Path(repo).name for name, repo in EVERY_NAME.items()} == CHECKPOINTS
    assert Path(repos.DINOV3_VITB16_IN1K_PROBE).name in PROBES.values()


def test_an_empty_hub_root_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANVIT_HUB_ROOT", "")
    assert hub_root() == "canvit"


@pytest.mark.parametrize("name", EVERY_NAME)
@pytest.mark.parametrize("spelling", ["short", "repository", "Hub id"])
def test_names_resolve_below_the_hub_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, spelling: str
) -> None:
    monkeypatch.setenv("CANVIT_HUB_ROOT", f"{tmp_path}/")
    directory = repo_dir(tmp_path, EVERY_NAME[name])
    directory.mkdir()
    for file in BOTH:
        (directory / file).write_bytes(b"")
    asked = {"short": name, "repository": directory.name, "Hub id": f"canvit/{directory.name}"}[spelling]
    assert locate("checkpoint", asked, files=BOTH).directory == directory


@pytest.mark.parametrize("spelling", ["flagship", "repository", "Hub id", "directory"])
def test_the_flagship_is_canvit_pytorchs(hub_root: Path, spelling: str) -> None:
    directory = repo_dir(hub_root, repos.FLAGSHIP)
    names = {"repository": directory.name, "Hub id": f"canvit/{directory.name}", "directory": str(directory)}
    backbone = load_backbone(names.get(spelling, spelling), device="cpu")
    assert same_weights(backbone.pretrained, CanViTForPretraining.from_pretrained(str(directory)))
    assert not backbone.model.training and not any(p.requires_grad for p in backbone.model.parameters())
    assert (backbone.scene_size_px, backbone.canvas_grid, backbone.glimpse_size_px) == (512, 32, 128)


def test_a_backbone_is_loaded_once_whatever_its_geometry(hub_root: Path) -> None:
    usual = load_backbone("flagship", device="cpu")
    assert load_backbone("flagship", device="cpu") is usual
    for grid, size in ((8, 512), (64, 512), (64, 1024)):
        other = load_backbone("flagship", device="cpu", canvas_grid=grid, scene_size_px=size, precision="bfloat16")
        assert other.model is usual.model
        assert (other.scene_size_px, other.canvas_grid, other.glimpse_size_px) == (size, grid, 128)
        assert other.init_state(1).canvas.shape[1] == grid**2 + HUB_CONFIG.num_canvas_registers


def test_a_recorded_geometry_is_used(hub_root: Path, tmp_path: Path) -> None:
    """canvit-pytorch's publishing writes it into config.json; a fine-tuned checkpoint has no other trace of it."""
    directory = Path(shutil.copytree(repo_dir(hub_root, repos.FINETUNED_IN1K), tmp_path / "finetuned"))
    assert load_backbone(str(directory), device="cpu").geometry == load_backbone("flagship", device="cpu").geometry
    config = json.loads((directory / "config.json").read_text())
    training = {"scene_size_px": 256, "glimpse_size_px": 96, "canvas_grid_size": 16}
    (directory / "config.json").write_text(json.dumps(config | {"training": training}))
    (directory / "model.safetensors").touch()
    geometry = load_backbone(str(directory), device="cpu").geometry
    assert (geometry.scene_size_px, geometry.glimpse_size_px, geometry.canvas_grid) == (256, 96, 16)


# Probes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", ADE20K_GRIDS)
def test_the_released_ade20k_probe_of_a_canvas_reads_as_in_canvit_pytorch(hub_root: Path, grid: int) -> None:
    config = ade20k(canvas_grid=grid)
    backbone = build_backbone(config)
    task = build_task(config, backbone, ADE20K_CLASSES)
    assert isinstance(task, SegmentationTask)
    expected = CanViTForSemanticSegmentation.from_pretrained_with_probe(
        pretrained_repo=str(repo_dir(hub_root, repos.FLAGSHIP)), probe_repo=str(ade20k_probe_dir(hub_root, grid))
    ).eval()
    state, wanted = some_state(task.model, grid=grid), some_state(expected, grid=grid)
    assert torch.equal(state.canvas, wanted.canvas)
    with torch.no_grad():
        logits = expected.logits(wanted.canvas)
        assert torch.equal(task.model.logits(state.canvas), logits)
        torch.testing.assert_close(task.read(state), logits, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(expected.train().logits(wanted.canvas), logits, atol=1e-2), "train mode would differ"
    assert len(logits.argmax(dim=1).unique()) > 3


def test_frozen_and_fine_tuned_classifiers_are_canvit_pytorchs(hub_root: Path) -> None:
    frozen = CanViTForImageClassification.from_pretrained_with_probe(
        pretrained_repo=str(repo_dir(hub_root, repos.FLAGSHIP)),
        probe_repo=str(repo_dir(hub_root, repos.DINOV3_VITB16_IN1K_PROBE)),
    ).eval()
    tuned = CanViTForImageClassification.from_pretrained(str(repo_dir(hub_root, repos.FINETUNED_IN1K))).eval()
    readings = []
    for checkpoint, expected in (("flagship", frozen), ("finetuned-in1k", tuned)):
        config = EnvConfig(dataset="imagenet1k", checkpoint=checkpoint, root=str(tiny("imagenet1k")), device="cpu")
        backbone = build_backbone(config)
        task = build_task(config, backbone, IN1K_CLASSES)
        assert isinstance(task, ClassificationTask)
        assert task.model.canvit is backbone.canvit
        state, wanted = some_state(task.model, grid=32), some_state(expected, grid=32)
        with torch.no_grad():
            readings.append(expected.classify(wanted.recurrent_cls))
            assert torch.equal(task.read(state), readings[-1])
    assert not torch.allclose(*readings)


def test_probes_are_loaded_once_and_again_where_they_changed(tmp_path: Path) -> None:
    backbone = load_backbone("nano", device="cpu")
    classes = ("a", "b", "c")
    random_probe(embed_dim=backbone.canvit.canvas_dim, num_classes=3).save_pretrained(tmp_path)
    first, source = load_probe(str(tmp_path), backbone, classes=classes)
    assert load_probe(str(tmp_path), backbone, classes=classes)[0] is first
    random_probe(embed_dim=backbone.canvit.canvas_dim, num_classes=3).save_pretrained(tmp_path)
    second, other = load_probe(str(tmp_path), backbone, classes=classes)
    assert not same_weights(first, second) and source.sha256 != other.sha256
    fused = [load_classifier("nano-classification-probe", backbone, classes=ITEM_CLASSES)[0] for _ in range(2)]
    assert fused[0] is fused[1]


def test_environments_tell_what_they_loaded(hub_root: Path) -> None:
    """Name, repository, revision, hash and geometry, as JSON; and so does whatever records its process."""
    envs = GlimpseVectorEnv(1, **ade20k(canvas_grid=8, num_scenes=2, workers=0).to_json())
    told = json.loads(json.dumps(envs.provenance))
    envs.close()
    assert told["checkpoint"]["name"] == "flagship" and told["checkpoint"]["canvas_grid"] == 8
    assert told["probe"]["name"] == ade20k_probe_dir(hub_root, 8).name
    assert len(told["checkpoint"]["sha256"]) == len(told["probe"]["sha256"]) == 64
    assert str(hub_root) not in json.dumps(told), "no directory of this machine"
    used = used_sources()
    assert any(entry["sha256"] == told["checkpoint"]["sha256"] for entry in used)
    assert any(entry["sha256"] == told["probe"]["sha256"] and entry["kind"] == "probe" for entry in used)


@pytest.mark.parametrize("grid", [1, 4, 5, 7, 12, 24])
def test_class_counts(grid: int) -> None:
    """Each pixel counts in the cell that holds its center, also where cells are no whole number of pixels."""
    rng = np.random.default_rng(grid)
    labels = rng.integers(0, 5, size=(3, 24, 24)).astype(np.uint8)
    labels[labels == 4] = 255
    expected = np.zeros((3, 3, grid, grid))
    for scene, row, col in np.ndindex(3, 24, 24):
        if labels[scene, row, col] < 3:
            cell = int((row + 0.5) * grid / 24), int((col + 0.5) * grid / 24)
            expected[scene, labels[scene, row, col], *cell] += 1
    for count in (class_counts_on_host, class_counts_on_device):
        np.testing.assert_array_equal(count(torch.from_numpy(labels), num_classes=3, grid=grid).numpy(), expected)


# What cannot be loaded ------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_the_old_format(tmp_path: Path) -> None:
    old = {"backbone_name": "dinov3_vitb16", "model_config": {"teacher_dim": 768}, "canvas_patch_grid_sizes": [32]}
    (tmp_path / "config.json").write_text(json.dumps(old))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=rf"canvit-pytorch 0\.1.*\n.*python -m canvit_pytorch\.legacy {tmp_path} NEW"):
        load_backbone(str(tmp_path), device="cpu")


def test_a_probe_for_a_checkpoint(hub_root: Path) -> None:
    with pytest.raises(ValueError, match="is a segmentation probe, not a CanViT: pass it as probe="):
        load_backbone(str(ade20k_probe_dir(hub_root, 8)), device="cpu")


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(
        FileNotFoundError, match=r"'flagshipp' is neither .*Released names: nano, flagship, .*abl-vit-s"
    ):
        load_backbone("flagshipp", device="cpu")


def test_a_hub_root_without_the_repository(hub_root: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"CANVIT_HUB_ROOT=.* has no directory canvitb16-abl-vit-s.*hf download"
    ):
        load_backbone("abl-vit-s", device="cpu")


def test_a_hub_root_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANVIT_HUB_ROOT", "/nowhere/hub")
    with pytest.raises(FileNotFoundError, match=r"\$CANVIT_HUB_ROOT=/nowhere/hub is not a directory"):
        load_backbone("flagship", device="cpu")


@pytest.mark.parametrize("root", ["~/no_such_hub", "./hub", "hub/models", "../hub"])
def test_a_hub_root_spelled_as_a_path_is_no_organization(monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    monkeypatch.setenv("CANVIT_HUB_ROOT", root)
    told = re.escape(f"$CANVIT_HUB_ROOT={os.path.expanduser(root)} is not a directory")
    with pytest.raises(FileNotFoundError, match=rf"{told}.* Unset it"):
        load_backbone("flagship", device="cpu")


@pytest.mark.parametrize("root", ["~/hub", "hub", "./hub"])
def test_a_hub_root_below_home_or_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, root: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CANVIT_HUB_ROOT", root)
    directory = tmp_path / "hub" / CHECKPOINTS["flagship"]
    directory.mkdir(parents=True)
    for file in BOTH:
        (directory / file).write_bytes(b"")
    assert locate("checkpoint", "flagship", files=BOTH).directory == directory


def test_a_hub_root_taken_for_an_organization_is_named(
    monkeypatch: pytest.MonkeyPatch, answering_hub: Callable[[str], None]
) -> None:
    monkeypatch.setenv("CANVIT_HUB_ROOT", "hub")
    answering_hub("RepoNotFound")
    told = r"\(\$CANVIT_HUB_ROOT=hub is no directory in .*, so it is taken for an organization"
    with pytest.raises(FileNotFoundError, match=rf"no repository hub/canvit.*{told}"):
        load_backbone("flagship", device="cpu")
    with pytest.raises(FileNotFoundError) as other:
        load_backbone("some/model", device="cpu")
    assert "CANVIT_HUB_ROOT=" not in str(other.value)


@pytest.mark.parametrize("name", ["nano", "flagship"])
def test_a_directory_has_no_revision(hub_root: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"has no revision 'v1'.*Leave revision out"):
        load_backbone(name, device="cpu", revision="v1")


def test_a_canvas_without_a_released_probe_lists_those_there_are(hub_root: Path) -> None:
    told = r"512 px on a 48 x 48 canvas.*scene_size_px=512 with canvas_grid=8 .*or 64; scene_size_px=1024.*fit-probe"
    with pytest.raises(ValueError, match=told):
        config = ade20k(canvas_grid=48)
        build_task(config, build_backbone(config), ADE20K_CLASSES)


@pytest.mark.parametrize(
    ("checkpoint", "message"), [("nano", "has no released ADE20K probe: fit"), ("finetuned-in1k", "'flag")]
)
def test_a_checkpoint_without_ade20k_probes(hub_root: Path, checkpoint: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config = ade20k(checkpoint=checkpoint)
        build_task(config, build_backbone(config), ADE20K_CLASSES)


def test_probes_of_another_width(hub_root: Path, tmp_path: Path) -> None:
    flagship = load_backbone("flagship", device="cpu")
    SegmentationProbe(embed_dim=1024, num_classes=150, dropout=0.1, use_ln=True).save_pretrained(tmp_path / "wide")
    with pytest.raises(
        ValueError, match=r"reads 1024 channels, but the canvas of checkpoint 'flagship' has 64.*fit-probe"
    ):
        load_probe(str(tmp_path / "wide"), flagship, classes=ADE20K_CLASSES)
    save_file({"weight": torch.zeros(5, 768), "bias": torch.zeros(5)}, tmp_path / "model.safetensors")
    message = rf"does not fit checkpoint 'flagship'.*weight \[5, 768\].*\[classes, {TEACHER_DIM}\].*fit-probe"
    with pytest.raises(ValueError, match=message):
        load_classifier(str(tmp_path), flagship, classes=IN1K_CLASSES[:5])


def test_a_probe_of_another_number_of_classes(hub_root: Path) -> None:
    flagship = load_backbone("flagship", device="cpu")
    with pytest.raises(ValueError, match=r"distinguishes 1000 classes, but the scenes have 3.*fit-probe"):
        load_classifier("dinov3-vitb16-in1k", flagship, classes=("a", "b", "c"))
    with pytest.raises(ValueError, match=r"'finetuned-in1k' distinguishes 1000 classes, but the scenes have 3"):
        load_classifier(None, load_backbone("finetuned-in1k", device="cpu"), classes=("a", "b", "c"))


def test_a_probe_for_a_fine_tuned_checkpoint(hub_root: Path) -> None:
    with pytest.raises(ValueError, match="fine-tuned and holds its own classifier: leave probe out"):
        load_classifier("dinov3-vitb16-in1k", load_backbone("finetuned-in1k", device="cpu"), classes=IN1K_CLASSES)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"classes": ["a", "c", "b"]}, "its class 1 is 'c', that of the scenes 'b'"),
        ({"checkpoint_sha256": "0" * 64}, "was fitted on another checkpoint .*000000000000.* 'nano'"),
        ({"canvas_grid": 32}, "canvas grid of 32, but this one is 16. Use canvas_grid=32"),
        ({"classes": ["a", "b"]}, "training.json names 2 classes, but probe .* distinguishes 3. Put the intact file"),
        ({"classes": 3}, "training.json: 'classes' is 3, as canvit_gym.probes.fit never writes it. Put the intact"),
        ({"checkpoint_sha256": 0}, "training.json: 'checkpoint_sha256' is 0, as .* never writes it"),
    ],
)
def test_a_probe_that_says_it_is_for_something_else(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    random_probe(embed_dim=128, num_classes=3).save_pretrained(tmp_path)
    backbone = load_backbone("nano", device="cpu")
    load_probe(str(tmp_path), backbone, classes=("a", "b", "c"))
    (tmp_path / "training.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message):
        load_probe(str(tmp_path), backbone, classes=("a", "b", "c"))


def test_nanos_probes_are_for_nanos_canvas() -> None:
    with pytest.raises(
        ValueError, match=r"no segmentation probe .* 8 x 8 canvas.*checkpoint='nano' with canvas_grid=16"
    ):
        config = EnvConfig(canvas_grid=8, device="cpu")
        build_task(config, build_backbone(config), tuple("abcdefghijk"))


def test_a_scene_smaller_than_a_glimpse() -> None:
    with pytest.raises(ValueError, match=r"scene_size_px=16 is smaller than a glimpse of checkpoint 'nano' .32 px"):
        load_backbone("nano", device="cpu", scene_size_px=16)


# The Hub, without the Hub ---------------------------------------------------------------------------------------------


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no way out of this machine."""
    monkeypatch.delenv("CANVIT_HUB_ROOT", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def fill(cache: Path, repo: str, *, source: Path, commit: str) -> Path:
    """A repository as huggingface_hub caches it."""
    entry = cache / f"models--{repo.replace('/', '--')}"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text(commit)
    return Path(shutil.copytree(source, entry / "snapshots" / commit))


def test_neither_network_nor_cache(hub_cache: Path) -> None:
    message = (
        rf"'flagship' \(canvit/.*\) is not in the Hub's cache \({hub_cache}\).*HF_HUB_OFFLINE is set: unset it.*"
        r"hf download canvit/\S+ config.json model.safetensors.*\$CANVIT_HUB_ROOT.*'nano' needs no download"
    )
    with pytest.raises(FileNotFoundError, match=message):
        load_backbone("flagship", device="cpu")
    with pytest.raises(FileNotFoundError, match=r"^there is no directory runs/model, and checkpoint '.*' is not"):
        load_backbone("runs/model", device="cpu")


@pytest.mark.parametrize("host", ["http://nowhere.invalid", "http://127.0.0.1:9"])  # no such name; nobody listens
def test_a_hub_out_of_reach_is_tried_once(hub_cache: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """Above all for a run directory that was mistyped, and looks like a Hub id."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", host)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", host + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"waits for {seconds} s to try again"))
    told = r"^there is no directory runs/nothing, and policy 'runs/nothing' is not .*cannot be reached \(\[Errno .*\]"
    with pytest.raises(FileNotFoundError, match=told):
        load_policy("runs/nothing")


def test_the_cache_needs_no_network_and_tells_the_commit(hub_cache: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    fill(hub_cache, "someone/nano", source=asset_dir("nano"), commit=commit)
    backbone = load_backbone("someone/nano", device="cpu")
    assert backbone.record["repo"] == "someone/nano" and backbone.record["revision"] == commit
    assert backbone.sha256 == load_backbone("nano", device="cpu").sha256
    assert load_backbone("someone/nano", device="cpu", revision=commit).source.revision == commit
    with pytest.raises(FileNotFoundError, match="hf download someone/nano --revision v2 "):
        load_backbone("someone/nano", device="cpu", revision="v2")


@pytest.fixture
def answering_hub(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """A server in the Hub's place that answers every request with one of the Hub's errors."""
    said = {"error": ""}

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", said["error"])
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    yield lambda error: said.update(error=error)
    server.shutdown()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("RepoNotFound", r"'some/model': the Hub has no repository some/model, or it needs a login.*Released names"),
        ("RevisionNotFound", r"has no revision 'v9'. Give a branch, tag or commit"),
        ("EntryNotFound", r"lacks one of config.json and model.safetensors; it is no checkpoint"),
    ],
)
def test_what_the_hub_has_not(answering_hub: Callable[[str], None], error: str, message: str) -> None:
    answering_hub(error)
    with pytest.raises(FileNotFoundError, match=message):
        load_backbone("some/model", device="cpu", revision="v9")


def test_a_default_device_that_is_not_the_cpu() -> None:
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=r"default device of PyTorch is 'meta'.*device='cpu' instead"),
    ):
        GlimpseVectorEnv(1, device="cpu")


def test_a_gpu_has_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is loaded once is kept by device: "cuda" is one of those with a number."""
    for name, value in (("is_available", True), ("device_count", 2), ("current_device", 1)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    named = {name: resolve_device(name) for name in ("auto", "cuda", "cuda:1", "cuda:0", "cpu")}
    assert named["auto"] == named["cuda"] == named["cuda:1"] == torch.device("cuda", 1)
    assert named["cuda:0"] == torch.device("cuda", 0) and named["cpu"] == torch.device("cpu")
