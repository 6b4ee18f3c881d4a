"""FashionScenes: a scene is a pure function of its key, its labels are exact, and its cache holds nothing half-made."""

import hashlib
import itertools
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from canvit_pytorch.benchmarks.ade20k import MeanIoU

from canvit_gym.assembly import build_scenes
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import evaluate
from canvit_gym.policies import make_policy
from canvit_gym.scenes import prepared
from canvit_gym.scenes.datasets import DATASETS
from canvit_gym.scenes.fashion import (
    CLASSES,
    FLAVOURS,
    SCENE_SIZE_PX,
    SEGMENTATION_CLASSES,
    FashionScene,
    Flavour,
    Split,
    crowd,
    distractors,
    drawing,
    generate_scene,
    load_sprites,
    search,
    twice,
)
from canvit_gym.scenes.prepared import DEFAULT_NUM_SCENES, FashionScenes, cache_dir
from canvit_gym.scenes.sampler import SceneSampler

SPLITS: tuple[Split, ...] = get_args(Split)
GOLDEN_INDICES = (0, 1, 12345)


def digest(scene: FashionScene) -> str:
    return hashlib.sha256(scene.image.tobytes() + scene.labels.tobytes()).hexdigest()[:16]


GOLDEN: dict[tuple[str, str], tuple[str, ...]] = {
    ("segmentation", "training"): ("c20818045586c5f3", "97140d47ba9ec7b9", "92832c19f0b7f054"),
    ("segmentation", "validation"): ("8f5cb806d2a8dca3", "2819556318bf51b6", "d421034dafffbd52"),
    ("segmentation", "test"): ("090fd1f976b3c84c", "de19c1cab2ded9c5", "80da239a70376d38"),
    ("classification", "training"): ("75af96ad1b583de2", "a70c97b553d02e48", "560f62444a5cf657"),
    ("classification", "validation"): ("481c78160f797e3b", "7add84a8225b03b2", "fad96307ac51a150"),
    ("classification", "test"): ("f15fd02cdb30fe7a", "bc82e1c465459947", "793613ac39a36db5"),
    ("crowd", "training"): ("f21fee8680c4dd1e", "aeecc58689139739", "6bd71aaf9f9ce523"),
    ("crowd", "validation"): ("713e0f789952e478", "2036cecc107aad0e", "97aafa5f1a3b0cb2"),
    ("crowd", "test"): ("6d50c7f180354fdf", "9a8dc476abfc5886", "bb4b9eab54cb8a16"),
    ("distractors", "training"): ("c3de75504e0e9a2f", "5a79b3c41d8edf3b", "131a3efb8a0b8662"),
    ("distractors", "validation"): ("03981bf4bcac209e", "7cd9c6139ee3b088", "9f919037cd3f2dc7"),
    ("distractors", "test"): ("97d76df5615f68cd", "3d4c9b7ba6aa1a59", "c5ed220e2a3f79e1"),
    ("search", "training"): ("51986bf177b86650", "d8206404b2f065ca", "a7141fd56214e6e2"),
    ("search", "validation"): ("7690ba66bf321341", "d212258fbba4e7df", "89820359971622f0"),
    ("search", "test"): ("89fb9c0599b3efa7", "0710dc5e781c2f70", "c3440a9a3b440af0"),
    ("twice", "training"): ("077106e4f75f8656", "43ca05d7ca9fe284", "2b8dda185ecb46b3"),
    ("twice", "validation"): ("e3eb06b0399835c9", "df06053444b11277", "9cc64c0765423300"),
    ("twice", "test"): ("a69005ce4614a793", "4fb6e21bb1be24a5", "8bf9f8eb46ae08d0"),
}
"""SHA-256 of pixels and labels. A change here moves every prepared scene: raise GENERATOR_VERSION with it."""


@pytest.mark.parametrize(("flavour", "split"), list(itertools.product(FLAVOURS, SPLITS)))
def test_golden_pixels(flavour: Flavour, split: Split) -> None:
    assert tuple(digest(generate_scene(flavour, split, k)) for k in GOLDEN_INDICES) == GOLDEN[flavour, split]


def test_pixels_do_not_depend_on_the_order() -> None:
    forward = [digest(generate_scene("segmentation", "test", k)) for k in range(6)]
    backward = [digest(generate_scene("segmentation", "test", k)) for k in reversed(range(6))]
    assert forward == backward[::-1]
    assert len(set(forward)) == 6


def test_pixels_are_the_same_in_a_fresh_process() -> None:
    program = (
        "import hashlib\nfrom canvit_gym.scenes.fashion import generate_scene\n"
        "s = generate_scene('segmentation', 'test', 7)\n"
        "print(hashlib.sha256(s.image.tobytes() + s.labels.tobytes()).hexdigest()[:16])"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == digest(generate_scene("segmentation", "test", 7))


def test_flavours_and_splits_are_different_scenes() -> None:
    keys = itertools.product(FLAVOURS, SPLITS)
    assert len({digest(generate_scene(flavour, split, 0)) for flavour, split in keys}) == 3 * len(FLAVOURS)


def test_no_sprite_is_in_two_splits() -> None:
    seen = {split: {sprite.tobytes() for sprite in load_sprites(split).reshape(-1, 28, 28)} for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not seen[one] & seen[other], (one, other)
    assert all(load_sprites(split).shape[0] == len(CLASSES) for split in SPLITS)


def test_assets_stay_small() -> None:
    assets = Path(prepared.__file__).parents[1] / "assets"
    assert (assets / "fashion_sprites.npz").stat().st_size <= 15e6


def _silhouettes(sprites: np.ndarray, side: int) -> torch.Tensor:
    """[n, side, side] coverage in [0, 1] by PyTorch's bilinear resize, which shares no code with the generator."""
    masks = torch.from_numpy(sprites > 0).float().unsqueeze(1)
    return F.interpolate(masks, size=(side, side), mode="bilinear", align_corners=False)[:, 0]


@pytest.mark.parametrize(
    ("flavour", "split", "index"),
    [("segmentation", "test", 3), ("classification", "validation", 5), ("twice", "test", 1), ("search", "training", 2)],
)
def test_labels_are_the_items_exact_silhouettes(flavour: Flavour, split: Split, index: int) -> None:
    """Every labelled pixel belongs to an item, and each item's shape is that of one sprite of its class and split."""
    scene = generate_scene(flavour, split, index)
    covered = np.zeros_like(scene.labels, dtype=bool)
    for label, top, left, side in scene.items:
        inside = scene.labels[top : top + side, left : left + side]
        assert set(np.unique(inside)) == {0, label}
        covered[top : top + side, left : left + side] = True
        sprites = load_sprites(split)[label - 1]
        candidates = _silhouettes(np.concatenate([sprites, sprites[:, :, ::-1]]), side)
        # Coverage of exactly one half may round either way.
        certain = (candidates - 0.5).abs() > 0.02
        wrong = ((candidates >= 0.5) != torch.from_numpy(inside == label)) & certain
        assert wrong.flatten(1).sum(dim=1).min() == 0, f"no {CLASSES[label - 1]} of {split} has this shape"
    assert not scene.labels[~covered].any()


NUM_ITEMS: dict[Flavour, set[int]] = {
    "segmentation": {2, 3, 4, 5},  # a third may find no room
    "classification": {1},
    "crowd": set(range(7, 11)),
    "distractors": {1, 2},
    "search": set(range(5, 10)),
    "twice": {3, 4},
}
SIZES_PX: dict[Flavour, tuple[int, ...]] = {
    "segmentation": drawing.ITEM_SIZES_PX,
    "classification": drawing.ITEM_SIZES_PX,
    "crowd": crowd.ITEM_SIZES_PX,
    "distractors": distractors.ITEM_SIZES_PX,
    "search": search.ITEM_SIZES_PX,
    "twice": twice.ITEM_SIZES_PX,
}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_items_do_not_overlap_and_lie_inside(flavour: Flavour) -> None:
    counts = set()
    for index in range(100):
        items = generate_scene(flavour, "validation", index).items
        counts.add(len(items))
        for label, top, left, side in items:
            assert 1 <= label <= len(CLASSES) and side in SIZES_PX[flavour]
            assert 0 <= top <= SCENE_SIZE_PX - side and 0 <= left <= SCENE_SIZE_PX - side
        for (_, t, x, s), (_, t2, x2, s2) in itertools.combinations(items, 2):
            assert t + s <= t2 or t2 + s2 <= t or x + s <= x2 or x2 + s2 <= x
    assert counts <= NUM_ITEMS[flavour] and (len(counts) > 1 or max(NUM_ITEMS[flavour]) in counts)


def test_searched_items_are_of_different_classes() -> None:
    for index in range(50):
        labels = [label for label, *_ in generate_scene("search", "validation", index).items]
        assert len(set(labels)) == len(labels)


def test_one_class_is_there_twice() -> None:
    for index in range(200):
        scene = generate_scene("twice", "validation", index)
        numbers = np.bincount([label - 1 for label, *_ in scene.items], minlength=len(CLASSES))
        assert np.flatnonzero(numbers == 2).tolist() == [scene.class_index] and numbers.max() == 2


def test_look_alikes_are_background() -> None:
    """A scene of distractors holds several, and only the whole items are labelled."""
    scenes = [generate_scene("distractors", "validation", k) for k in range(20)]
    for scene in scenes:
        inside = np.zeros_like(scene.labels, dtype=bool)
        for _, top, left, side in scene.items:
            inside[top : top + side, left : left + side] = True
        assert not scene.labels[~inside].any() and (scene.labels > 0).mean() < 0.2


def test_classes_are_equally_frequent() -> None:
    labels = [generate_scene("classification", "validation", k).class_index for k in range(400)]
    counts = np.bincount(labels, minlength=len(CLASSES))
    assert counts.min() >= 20 and counts.max() <= 65, counts


def test_true_labels_at_canvas_resolution_reach_the_ceiling() -> None:
    """What a perfect reader of 16 x 16 cells scores: cell shares, upsampled bilinearly, then argmax."""
    scenes = FashionScenes("segmentation", "validation", 64)
    labels = scenes.load(np.arange(64)).labels.long()
    num_classes = len(SEGMENTATION_CLASSES)
    shares = F.avg_pool2d(F.one_hot(labels, num_classes).permute(0, 3, 1, 2).float(), SCENE_SIZE_PX // 16)
    read = F.interpolate(shares, size=labels.shape[1:], mode="bilinear", align_corners=False).argmax(dim=1)
    miou = MeanIoU(device=torch.device("cpu"), num_classes=num_classes)
    miou.update(read, labels)
    assert miou.compute() >= 0.75


def test_generating_keeps_up() -> None:
    """About 800 scenes a second on one core; a tenth of that means that something is badly wrong."""
    start = time.process_time()
    for index in range(40):
        generate_scene("segmentation", "training", index)
    assert 40 / (time.process_time() - start) > 80


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_prepared_scenes_are_the_generators(flavour: Flavour) -> None:
    scenes = FashionScenes(flavour, "validation", 16)
    wanted = np.array([5, 0, 5, 15])
    batch, (images, maps) = scenes.load(wanted), scenes.load_with_maps(wanted)
    for row, index in enumerate(wanted):
        scene = generate_scene(flavour, "validation", int(index))
        assert np.array_equal(batch.images[row].permute(1, 2, 0).numpy(), scene.image)
        assert torch.equal(images[row], batch.images[row])
        assert np.array_equal(maps[row].numpy(), scene.labels)
        truth = scene.labels if FLAVOURS[flavour].labels == "maps" else scene.class_index
        assert np.array_equal(batch.labels[row].numpy(), truth)


def test_scenes_may_begin_later(empty_cache: Path) -> None:
    FashionScenes("search", "training", 4)  # whose file must not serve for others
    all_of_them, later = FashionScenes("search", "training", 10), FashionScenes("search", "training", 4, first=6)
    whole, part = (source.load(np.arange(len(source))) for source in (all_of_them, later))
    assert torch.equal(part.images, whole.images[6:]) and torch.equal(part.labels, whole.labels[6:])
    assert later.items(1) == all_of_them.items(7)
    assert later.fingerprint != FashionScenes("search", "training", 4).fingerprint


@pytest.mark.parametrize("name", ["fashion-segmentation", "fashion-classification", "fashion-stop"])
def test_environments_train_on_scenes_that_nano_does_not_know(name: str, empty_cache: Path) -> None:
    config = EnvConfig(dataset=name, split="training", num_scenes=2)
    flavour = "segmentation" if name == "fashion-segmentation" else "classification"
    scenes = build_scenes(config).load(np.array([1]))
    first_unknown = 24_576  # canvit_gym/assets/nano/README.md: the number of training scenes
    assert np.array_equal(
        scenes.images[0].permute(1, 2, 0).numpy(), generate_scene(flavour, "training", first_unknown + 1).image
    )


def test_nano_knows_the_scenes_before_them_by_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise there were no reason to leave them out."""

    def read_at_first_glance(split: Split) -> float:
        config = EnvConfig(dataset="fashion-classification", split=split, num_scenes=300)
        policy = make_policy("coarse_to_fine", config=config, num_glimpses=1)
        return float(evaluate(policy, config=config, num_glimpses=1).score()[0])

    fresh, held_out = read_at_first_glance("training"), read_at_first_glance("validation")
    from_the_start = replace(
        DATASETS["fashion-classification"],
        make_scenes=lambda request: FashionScenes("classification", "training", request.num_scenes or 1),
    )
    monkeypatch.setitem(DATASETS, "fashion-classification", from_the_start)
    known = read_at_first_glance("training")
    assert abs(fresh - held_out) < 0.1, (fresh, held_out)  # standard error: 0.04
    assert known > fresh + 0.08, (known, fresh)


def test_loaded_scenes_are_fresh_memory() -> None:
    scenes = FashionScenes("segmentation", "validation", 16)
    batch = scenes.load(np.array([0]))
    before = batch.images.clone()
    batch.images.zero_()
    assert torch.equal(scenes.load(np.array([0])).images, before)


def test_splits_have_default_sizes() -> None:
    assert set(DEFAULT_NUM_SCENES) == set(SPLITS)


def test_an_interrupted_preparation_leaves_nothing(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(flavour: Flavour, split: Split, index: int) -> FashionScene:
        if index == 5:
            raise KeyboardInterrupt
        return generate_scene(flavour, split, index)

    monkeypatch.setattr(prepared, "generate_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        FashionScenes("segmentation", "training", 8)
    assert list(empty_cache.iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setenv("CANVIT_GYM_CACHE", str(empty_cache))
    assert len(FashionScenes("segmentation", "training", 8)) == 8


def test_a_killed_preparation_leaves_no_file_of_the_final_name(empty_cache: Path) -> None:
    program = "from canvit_gym.scenes.prepared import FashionScenes; FashionScenes('segmentation', 'training', 100_000)"
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not list(empty_cache.glob("*.partial")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not list(empty_cache.glob("*.scenes"))


def test_a_file_cut_short_is_prepared_anew(empty_cache: Path) -> None:
    FashionScenes("segmentation", "training", 4)
    (path,) = empty_cache.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    scenes = FashionScenes("segmentation", "training", 4)
    scene = generate_scene("segmentation", "training", 3)
    assert np.array_equal(scenes.load(np.array([3])).images[0].permute(1, 2, 0).numpy(), scene.image)


@pytest.mark.parametrize("load", ["load", "load_with_maps"])
def test_a_damaged_scene_is_noticed_and_made_anew(empty_cache: Path, load: str) -> None:
    FashionScenes("segmentation", "training", 6)
    (path,) = empty_cache.iterdir()
    with path.open("r+b") as file:
        file.seek(4 * 65_537 + 4096)
        file.write(bytes(4096))  # a page that never reached the disk
    scenes = FashionScenes("segmentation", "training", 6)
    getattr(scenes, load)(np.arange(4))
    with pytest.raises(OSError, match=r"scene 4 in .*\.scenes is damaged: .*has been removed; run again"):
        getattr(scenes, load)(np.array([3, 4]))
    assert not path.exists()
    scene = generate_scene("segmentation", "training", 4)
    again = FashionScenes("segmentation", "training", 6).load(np.array([4]))
    assert np.array_equal(again.images[0].permute(1, 2, 0).numpy(), scene.image)


def test_nothing_stays_of_preparations_that_were_killed(empty_cache: Path) -> None:
    empty_cache.mkdir()
    stale, live = (empty_cache / f"fashion-v1-segmentation-test-9.{name}.partial" for name in ("1-a", "2-b"))
    for path in (stale, live):
        path.write_bytes(b"half of it")
    hour_ago = time.time() - 3600
    os.utime(stale, (hour_ago, hour_ago))
    (empty_cache / "mine.partial").write_bytes(b"not of this package")
    os.utime(empty_cache / "mine.partial", (hour_ago, hour_ago))
    FashionScenes("classification", "test", 2)
    assert not stale.exists() and live.exists() and (empty_cache / "mine.partial").exists()


def test_a_user_without_a_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CANVIT_GYM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(OSError, match=r"no home directory .*: set \$CANVIT_GYM_CACHE to a writable directory"):
        FashionScenes("classification", "test", 2)


def test_a_system_without_fchmod(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Windows is."""
    for name in ("fchmod", "pread", "pwrite"):
        monkeypatch.delattr(os, name)
    assert len(FashionScenes("classification", "test", 2)) == 2


def test_concurrent_preparations_agree(empty_cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        sources = list(pool.map(lambda _: FashionScenes("classification", "test", 12), range(4)))
    first = sources[0].load(np.arange(12))
    assert all(torch.equal(source.load(np.arange(12)).images, first.images) for source in sources[1:])
    assert [path.suffix for path in empty_cache.iterdir()] == [".scenes"]


def test_names_in_the_cache_carry_version_and_key(empty_cache: Path) -> None:
    FashionScenes("classification", "test", 2)
    assert [path.name for path in empty_cache.iterdir()] == ["fashion-v1-classification-test-2.scenes"]


def test_a_full_disk_is_named_and_leaves_nothing(empty_cache: Path) -> None:
    resource = pytest.importorskip("resource")
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "from canvit_gym.scenes.prepared import FashionScenes\n"
        "try: FashionScenes('segmentation', 'training', 8)\n"
        "except OSError as error: print(error)"
    )
    assert resource is not None
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ, check=True)
    assert "CANVIT_GYM_CACHE" in out.stdout and "room" in out.stdout
    assert list(empty_cache.iterdir()) == []


class TestOrder:
    def test_a_pass_holds_every_scene_once(self) -> None:
        order = SceneSampler(num_scenes=10, shard=(0, 1), shuffle=True)
        rng = np.random.default_rng(0)
        taken = np.concatenate([order.take(count, rng) for count in (3, 4, 3, 7, 3)])
        assert sorted(taken[:10]) == sorted(taken[10:]) == list(range(10))
        assert list(taken[:10]) != list(taken[10:])

    def test_without_shuffling_scenes_come_in_order(self) -> None:
        order = SceneSampler(num_scenes=3, shard=(0, 1), shuffle=False)
        assert order.take(7, np.random.default_rng(0)).tolist() == [0, 1, 2, 0, 1, 2, 0]

    @pytest.mark.parametrize(("num_scenes", "count"), [(10, 3), (7, 7), (16, 1)])
    def test_shards_are_disjoint_and_cover(self, num_scenes: int, count: int) -> None:
        shards = []
        for index in range(count):
            order = SceneSampler(num_scenes=num_scenes, shard=(index, count), shuffle=True)
            size = len(range(index, num_scenes, count))
            shards.append(order.take(size, np.random.default_rng(index)).tolist())
        assert sorted(itertools.chain(*shards)) == list(range(num_scenes))


def test_a_cache_below_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CANVIT_GYM_CACHE", "~/scenes")
    assert cache_dir() == tmp_path / "scenes"
