"""Scenes from files, streamed: the same scenes however many workers, damaged files told or left out, and the cache."""

import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import heed_interrupts, small
from datasets import (
    FOLDER_CLASSES,
    classification_probe,
    segmentation_probe,
    tiny,
    write_image_folder,
    write_segmentation_folder,
)

from canvit_gym import config_for, evaluation
from canvit_gym.assembly import build_scenes
from canvit_gym.config import EnvConfig
from canvit_gym.episodes import EpisodeBatch
from canvit_gym.evaluation import evaluate
from canvit_gym.policies.fixed_sequence import searched_on
from canvit_gym.policies.paper import PaperPolicy
from canvit_gym.policies.policy_record import describe_inputs
from canvit_gym.scenes.cache import CachedFileScenes
from canvit_gym.scenes.decoding import CroppedImage, SqueezedMask
from canvit_gym.scenes.files import FileScenes, SceneFiles
from canvit_gym.scenes.folders import image_folder_files, segmentation_folder_files
from canvit_gym.scenes.sampler import SceneSampler, batches_ahead, next_scenes
from canvit_gym.scenes.source import SceneSource, closing_sources
from canvit_gym.scenes.workers import automatic_workers
from canvit_gym.vector_env import GlimpseVectorEnv

SIZE_PX = 32
SEGMENTATION = "CanViT/SegmentationFolder-v0"


@pytest.fixture(scope="module")
def files() -> SceneFiles:
    return image_folder_files(tiny("image-folder"), "training")  # 12 scenes


@pytest.fixture
def streamed() -> Iterator[Any]:
    """FileScenes with workers, closed after the test."""
    made: list[FileScenes] = []

    def make(files: SceneFiles, *, workers: int = 1, **kwargs: Any) -> FileScenes:
        decoder = CroppedImage(SIZE_PX) if isinstance(files.truth, np.ndarray) else SqueezedMask(SIZE_PX, 3)
        made.append(FileScenes(files, decoder, workers=workers, **kwargs))
        return made[-1]

    yield make
    for source in made:
        source.close()


def is_zombie(process_id: int) -> bool:
    """Whether a process has ended and nobody has asked how: in a container the first process may never ask."""
    try:
        status = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] == "Z"


def alive(process_id: int) -> bool:
    """Whether there is such a process, a zombie included."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def await_all(source: FileScenes) -> None:
    """Until everything announced is ready."""
    for future in source._ahead.values():
        future.exception(timeout=120)


def damage(path: Path, kind: str) -> None:
    data = path.read_bytes()
    match kind:
        case "truncated":
            path.write_bytes(data[: len(data) // 2])
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("no image at all", encoding="utf-8")
        case "missing":
            path.unlink()


class TestWorkers:
    def test_they_decode_what_the_process_itself_decodes(self, files: SceneFiles, streamed: Any) -> None:
        here, ahead = streamed(files, workers=0), streamed(files, workers=2)
        everything = np.arange(len(files))
        ahead.prefetch(everything)
        for indices in (everything[:5], everything[5:], np.array([3, 3, 0])):
            one, other = here.load(indices), ahead.load(indices)
            assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
            assert one.images.shape == (len(indices), 3, SIZE_PX, SIZE_PX) and one.labels.dtype == torch.int64

    def test_the_workers_did_the_work(self, streamed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """With time enough everything announced is ready: nothing is left to decode in this process."""
        segmentation = segmentation_folder_files(tiny("segmentation-folder"), "training")
        expected = streamed(segmentation, workers=0).load(np.arange(5))
        source = streamed(segmentation)
        source.prefetch(np.arange(5))
        await_all(source)
        monkeypatch.setattr(SqueezedMask, "decode", None)
        batch = source.load(np.arange(5))
        assert torch.equal(batch.images, expected.images) and torch.equal(batch.labels, expected.labels)
        assert not source._ahead

    def test_a_new_hint_replaces_the_last(self, files: SceneFiles, streamed: Any) -> None:
        source = streamed(files)
        source.prefetch(np.arange(6))
        source.prefetch(np.array([4, 9, 4]))
        assert sorted(source._ahead) == [4, 9]

    def test_no_process_is_left_when_closed(self, files: SceneFiles, streamed: Any) -> None:
        source = streamed(files, workers=2)
        source.prefetch(np.arange(12))
        await_all(source)
        ids = source._pool.process_ids
        assert len(ids) >= 2 and all(alive(process_id) for process_id in ids)
        source.close()
        assert not any(alive(process_id) for process_id in ids)
        source.close()
        assert len(source.load(np.arange(3)).images) == 3  # on its own

    def test_closing_an_environment_ends_its_workers(self) -> None:
        envs = gym.make_vec(SEGMENTATION, num_envs=2, **{**small(SEGMENTATION), "workers": 1})
        envs.reset(seed=0)
        ids = envs.unwrapped.scenes._pool.process_ids  # pyright: ignore[reportAttributeAccessIssue]
        envs.close()
        assert not any(alive(process_id) for process_id in ids)

    def test_a_constructor_that_raises_leaves_no_process(self) -> None:
        """Even while the exception, which refers to the environment, is kept. Closing again is silent."""
        ids: list[int] = []

        class StartsWorkers(GlimpseVectorEnv):
            def _assemble(self) -> None:
                assert isinstance(self.scenes, FileScenes)
                self.scenes.prefetch(np.arange(2))
                assert self.scenes._pool is not None
                ids.extend(self.scenes._pool.process_ids)
                super()._assemble()

        kwargs = {**small(SEGMENTATION), "dataset": "segmentation-folder", "probe": "no-such-probe", "workers": 1}
        with pytest.raises(FileNotFoundError, match="no-such-probe") as kept:
            StartsWorkers(2, **kwargs)
        assert kept.tb is not None
        assert ids and not any(alive(process_id) for process_id in ids)
        GlimpseVectorEnv.__new__(GlimpseVectorEnv).close()  # as Gymnasium 1.2.2 does when an object is forgotten

    @pytest.mark.parametrize("fails", ["before", "during"])
    def test_an_evaluation_that_fails_leaves_no_process(self, fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Be it for its arguments, or at a glimpse."""
        ids: list[int] = []

        def building(config: EnvConfig) -> SceneSource:
            source = build_scenes(config)
            assert isinstance(source, FileScenes)
            source.prefetch(np.arange(2))
            assert source._pool is not None
            ids.extend(source._pool.process_ids)
            return source

        def fail(t: int, episodes: EpisodeBatch) -> None:
            raise InterruptedError(t)

        monkeypatch.setattr(evaluation, "build_scenes", building)
        config = config_for(SEGMENTATION, **{**small(SEGMENTATION), "workers": 1})
        options: dict[str, Any] = {"batch_size": 0} if fails == "before" else {"on_glimpse": fail}
        with pytest.raises((ValueError, InterruptedError)) as kept:
            evaluate(PaperPolicy("coarse_to_fine", num_glimpses=2), config=config, num_glimpses=2, **options)
        assert kept.type is (ValueError if fails == "before" else InterruptedError)
        assert ids and not any(alive(process_id) for process_id in ids)

    def test_forgetting_a_source_ends_its_workers(self, files: SceneFiles) -> None:
        source = FileScenes(files, CroppedImage(SIZE_PX), workers=1)
        source.prefetch(np.arange(4))
        assert source._pool is not None
        ids = source._pool.process_ids
        del source
        assert not any(alive(process_id) for process_id in ids)

    def test_a_worker_that_is_killed_is_reported(self, files: SceneFiles, streamed: Any) -> None:
        source = streamed(files)
        source.prefetch(np.arange(12))
        await_all(source)
        source.load(np.arange(12))
        os.kill(source._pool.process_ids[1], signal.SIGKILL)
        source.prefetch(np.arange(12))
        await_all(source)
        with pytest.raises(RuntimeError, match=r"a worker process ended while decoding .*pass fewer workers"):
            source.load(np.arange(12))

    def test_a_single_environment_uses_none_unasked(self) -> None:
        kwargs = {**small(SEGMENTATION), "workers": None}
        env = gym.make(SEGMENTATION, **kwargs)
        assert env.unwrapped.envs.scenes.workers == 0  # pyright: ignore[reportAttributeAccessIssue]
        envs = gym.make_vec(SEGMENTATION, num_envs=2, **kwargs)
        assert envs.unwrapped.scenes.workers >= 1  # pyright: ignore[reportAttributeAccessIssue]
        env.close()
        envs.close()

    def test_a_system_that_cannot_fork(self, files: SceneFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        """As Windows is: none unasked, and words where they are asked for."""
        monkeypatch.delattr(os, "fork")
        assert automatic_workers() == 0
        with pytest.raises(OSError, match=r"workers=2: this system cannot fork .*Pass workers=0, and cache=True"):
            FileScenes(files, CroppedImage(SIZE_PX), workers=2).prefetch(np.arange(2))

    @pytest.mark.parametrize("end", ["return", "interrupt", "kill"])
    def test_a_program_that_does_not_close_ends(self, end: str, tmp_path: Path) -> None:
        """Without a hang and without a process left, and without a guard around its main module."""
        program = tmp_path / "program.py"
        program.write_text(
            "import os, signal, time, numpy as np\n"
            "from pathlib import Path\n"
            "from canvit_gym.scenes.decoding import CroppedImage\n"
            "from canvit_gym.scenes.files import FileScenes\n"
            "from canvit_gym.scenes.folders import image_folder_files\n"
            f"files = image_folder_files(Path({str(tiny('image-folder'))!r}), 'training')\n"
            "source = FileScenes(files, CroppedImage(32), workers=1)\n"
            "source.prefetch(np.arange(12))\n"
            "source.load(np.arange(2))\n"
            "print(*source._pool.process_ids, flush=True)\n"
            + {
                "return": "",
                "interrupt": "os.killpg(os.getpgid(0), signal.SIGINT); time.sleep(60)",  # as Ctrl-C does
                "kill": "os.kill(os.getpid(), signal.SIGKILL)",
            }[end]
        )
        # Packages may have come by $PYTHONPATH, so it is added to, not replaced.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
        done = subprocess.run(
            [sys.executable, str(program)],
            capture_output=True,
            text=True,
            timeout=120,
            start_new_session=True,
            env=environment,
            preexec_fn=heed_interrupts,
        )
        assert done.returncode == {"return": 0, "interrupt": -2, "kill": -9}[end], done.stderr
        assert ("KeyboardInterrupt" in done.stderr) == (end == "interrupt")
        deadline = time.monotonic() + 30
        # Its end is noticed when the pipe is closed.
        while any(alive(int(word)) and not is_zombie(int(word)) for word in done.stdout.split()):
            assert time.monotonic() < deadline, "a worker outlives the program"
            time.sleep(0.05)


class TestOrder:
    @pytest.mark.parametrize("first_glimpse", ["full", "random"])
    def test_workers_change_nothing(self, first_glimpse: str) -> None:
        def rollout(workers: int) -> list[Any]:
            own = {"workers": workers, "first_glimpse": first_glimpse, "allow_stop": True, "budget": 3}
            envs = GlimpseVectorEnv(3, dataset="segmentation-folder", **small(SEGMENTATION) | own)
            envs.action_space.seed(1)
            results: list[Any] = [envs.reset(seed=7)[1]["scene"].tolist()]
            for step in range(12):
                if step == 8:
                    results.append(envs.reset(options={"scene": [4, 4, 0]})[1]["loss"].tolist())
                if step == 10:
                    results.append(envs.reset(seed=7)[1]["scene"].tolist())
                _, rewards, *_, info = envs.step(envs.action_space.sample())
                results.append((rewards.tolist(), info["scene"].tolist()))
            envs.close()
            return results

        assert rollout(0) == rollout(1)

    def test_a_pass_holds_every_scene_once(self, files: SceneFiles, streamed: Any) -> None:
        for workers in (0, 1):
            order, rng = SceneSampler(num_scenes=12, shard=(0, 1), shuffle=True), np.random.default_rng(0)
            source = streamed(files, workers=workers)
            taken = []
            for count in (5, 1, 3, 7, 2, 6, 12):
                chosen = next_scenes(order, source, count=count, ahead=8, rng=rng)
                source.load(chosen)
                taken += chosen.tolist()
            assert [sorted(taken[start : start + 12]) for start in (0, 12, 24)] == [list(range(12))] * 3

    def test_generated_scenes_draw_nothing_ahead(self) -> None:
        """What a seed gave before there were files, it gives still."""
        fashion = build_scenes(EnvConfig(num_scenes=4, device="cpu"))
        order, rng = SceneSampler(num_scenes=4, shard=(0, 1), shuffle=True), np.random.default_rng(0)
        first = next_scenes(order, fashion, count=3, ahead=100, rng=rng)
        other = np.random.default_rng(0)
        assert first.tolist() == other.permutation(4)[:3].tolist()
        assert rng.bit_generator.state == other.bit_generator.state

    @pytest.mark.parametrize("workers", [0, 1])
    def test_batches_in_order(self, files: SceneFiles, streamed: Any, workers: int) -> None:
        source = streamed(files, workers=workers)
        batches = list(batches_ahead(source, np.arange(12), batch_size=5))
        assert [batch.tolist() for batch in batches] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
        fashion = build_scenes(EnvConfig(num_scenes=4, device="cpu"))
        assert [len(batch) for batch in batches_ahead(fashion, np.arange(4), batch_size=3)] == [3, 1]


class TestUnreadable:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        return write_image_folder(tmp_path / "pets", splits=(), per_class=4)

    @pytest.fixture
    def damaged(self, root: Path) -> SceneFiles:
        """Twelve scenes in all; 1, 6 and 9 cannot be read."""
        whole = image_folder_files(write_image_folder(root.parent / "split", splits=("train", "val")), "training")
        for index, kind in ((1, "truncated"), (6, "empty"), (9, "text")):
            damage(whole.images[index], kind)
        return whole

    @pytest.mark.parametrize("workers", [0, 1])
    @pytest.mark.parametrize(
        ("kind", "told"),
        [
            ("truncated", "truncated|broken|Truncated"),
            ("empty", "the file is empty"),
            ("text", "cannot identify image file"),
            ("missing", "No such file"),
        ],
    )
    def test_a_damaged_file_stops_the_run(
        self, tmp_path: Path, streamed: Any, workers: int, kind: str, told: str
    ) -> None:
        files = image_folder_files(write_image_folder(tmp_path / "pets"), "training")
        source = streamed(files, workers=workers)
        for index in (0, 1):  # a JPEG and a PNG
            damage(files.images[index], kind)
            source.prefetch(np.array([index]))
            if workers:
                source._ahead[index].exception(timeout=60)
            name = files.images[index].name
            with pytest.raises(OSError, match=rf'cannot read .*{name}: .*({told}).*Repair .*pass unreadable="skip"'):
                source.load(np.array([2, index]))
            assert len(source.load(np.array([2])).images) == 1

    def test_a_damaged_mask_does_too(self, tmp_path: Path, streamed: Any) -> None:
        root = write_segmentation_folder(tmp_path / "land")
        damage(root / "masks/train/scene_3.png", "truncated")
        source = streamed(segmentation_folder_files(root, "training"), workers=0)
        with pytest.raises(OSError, match=r"cannot read .*masks/train/scene_3\.png"):
            source.load(np.arange(5))

    @pytest.mark.parametrize("workers", [0, 1])
    def test_or_is_left_out_by_request(self, damaged: SceneFiles, streamed: Any, workers: int) -> None:
        source = streamed(damaged, workers=workers, skip_unreadable=True)
        order, rng = SceneSampler(num_scenes=12, shard=(0, 1), shuffle=True), np.random.default_rng(0)
        taken: list[int] = []
        with pytest.warns(RuntimeWarning, match="is left out: cannot read") as caught:
            for count in (4, 4, 5, 5, 9):
                chosen = next_scenes(order, source, count=count, ahead=6, rng=rng)
                assert len(source.load(chosen).images) == count
                taken += chosen.tolist()
        readable = sorted(set(range(12)) - {1, 6, 9})
        assert [sorted(taken[start : start + 9]) for start in (0, 9, 18)] == [readable] * 3
        assert sorted(source.unreadable) == [1, 6, 9]
        messages = [str(warning.message) for warning in caught]
        assert len(messages) == 3 and "3 left out so far" in messages[-1]
        assert all(any(str(damaged.images[index]) in message for message in messages) for index in (1, 6, 9))

    @pytest.mark.filterwarnings("ignore:scene .* is left out")
    def test_what_is_known_to_be_damaged_changes_no_order(self, damaged: SceneFiles, streamed: Any) -> None:
        source = streamed(damaged, workers=0, skip_unreadable=True)
        runs = []
        for _ in range(2):
            order, rng = SceneSampler(num_scenes=12, shard=(0, 1), shuffle=True), np.random.default_rng(4)
            runs.append([next_scenes(order, source, count=5, ahead=6, rng=rng).tolist() for _ in range(5)])
        assert runs[0] == runs[1]

    @pytest.mark.filterwarnings("ignore:scene .* is left out")
    def test_an_exact_pass_goes_on_without_them(self, damaged: SceneFiles, streamed: Any) -> None:
        source = streamed(damaged, workers=1, skip_unreadable=True)
        batches = [batch.tolist() for batch in batches_ahead(source, np.arange(12), batch_size=4)]
        assert batches == [[0, 2, 3, 4], [5, 7, 8, 10], [11]]

    @pytest.mark.filterwarnings("ignore:scene .* is left out")
    def test_a_scene_asked_for_by_its_index_is_not_replaced(self, damaged: SceneFiles) -> None:
        envs = self._envs(damaged.root, unreadable="skip")
        envs.reset(seed=0)
        with pytest.raises(OSError, match="cannot read"):
            envs.reset(options={"scene": [0, 1]})
        _, info = envs.reset(options={"scene": [0, 2]})
        assert info["scene"].tolist() == [0, 2]
        envs.close()

    @pytest.mark.filterwarnings("ignore:scene .* is left out")
    def test_an_environment_goes_on(self, damaged: SceneFiles) -> None:
        envs = self._envs(damaged.root, unreadable="skip", budget=2)
        _, info = envs.reset(seed=0)
        seen = Counter(info["scene"].tolist())
        for _ in range(17):
            *_, info = envs.step(envs.action_space.sample())
            seen.update(info["scene"].tolist())
        assert set(seen) == set(range(12)) - {1, 6, 9}
        envs.close()

    def test_an_environment_stops(self, damaged: SceneFiles) -> None:
        envs = self._envs(damaged.root)
        with pytest.raises(OSError, match=r'cannot read .*Repair or remove it, or pass unreadable="skip"'):
            envs.reset(seed=0)
            for _ in range(40):
                envs.step(envs.action_space.sample())
        envs.close()

    @staticmethod
    def _envs(root: Path, **kwargs: Any) -> GlimpseVectorEnv:
        probe = str(classification_probe(len(FOLDER_CLASSES)))
        return GlimpseVectorEnv(
            2, dataset="image-folder", root=str(root), probe=probe, device="cpu", workers=0, **kwargs
        )

    @pytest.mark.filterwarnings("ignore:scene .* is left out")
    def test_nothing_readable(self, damaged: SceneFiles, streamed: Any) -> None:
        few = damaged.subset(np.array([1, 6, 9]), "damaged")
        source = streamed(few, workers=0, skip_unreadable=True)
        order = SceneSampler(num_scenes=3, shard=(0, 1), shuffle=True)
        with pytest.raises(OSError, match="none of the 3 scenes of damaged, 3 scenes can be read"):
            next_scenes(order, source, count=2, ahead=2, rng=np.random.default_rng(0))


class TestCache:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        return write_segmentation_folder(tmp_path / "land", splits=("train", "val"), per_split=7)

    @staticmethod
    def cached(root: Path, *, size_px: int = SIZE_PX, **kwargs: Any) -> CachedFileScenes:
        files = segmentation_folder_files(root, "training")
        decoder = SqueezedMask(size_px, len(files.classes))
        return CachedFileScenes(files, decoder, directory=root.parent / "cache", **kwargs)

    @staticmethod
    def decoding(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        """The images decoded in this process from now on."""
        decoded: list[Path] = []
        original = SqueezedMask.decode

        def decode(self: SqueezedMask, image: Path, mask: Path | None) -> Any:
            decoded.append(image)
            return original(self, image, mask)

        monkeypatch.setattr(SqueezedMask, "decode", decode)
        return decoded

    @pytest.mark.parametrize("workers", [0, 1])
    def test_it_holds_what_the_files_hold(self, root: Path, workers: int, streamed: Any) -> None:
        source = self.cached(root, workers=workers)
        indices = np.array([6, 0, 3, 3])
        source.prefetch(indices)
        one, other = source.load(indices), streamed(source.files, workers=0).load(indices)
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
        one.images.zero_()
        assert torch.equal(source.load(indices).images, other.images)
        assert (source.name, source.classes, len(source)) == (
            "segmentation folder land, training, 7 scenes",
            *[source.files.classes, 7],
        )

    def test_a_load_copies_its_scenes_and_no_others(self, tmp_path: Path) -> None:
        root = write_segmentation_folder(tmp_path / "land", splits=("train", "val"), per_split=60)
        source = self.cached(root)
        source.load(np.arange(1))
        tracemalloc.start()
        source.load(np.arange(1))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < source.path.stat().st_size / 10

    def test_a_closed_source_loads_on(self, root: Path) -> None:
        source = self.cached(root)
        source.prefetch(np.arange(3))
        before = source.load(np.arange(3))
        source.close()
        source.prefetch(np.arange(3))
        assert torch.equal(source.load(np.arange(3)).images, before.images)
        source.close()

    @pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the operating system takes no hints")
    def test_a_record_is_hinted_at_once(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        hinted: list[int] = []
        monkeypatch.setattr(os, "posix_fadvise", lambda file, offset, size, advice: hinted.append(offset // size))
        source = self.cached(root)
        source.prefetch(np.array([2, 0, 2]))
        source.prefetch(np.array([0, 4, 6]))
        source._hints.submit(int).result(timeout=30)  # hints are given in order
        assert hinted == [2, 0, 4, 6]

    def test_classes_need_no_map(self, tmp_path: Path, files: SceneFiles, streamed: Any) -> None:
        source = CachedFileScenes(files, CroppedImage(SIZE_PX), directory=tmp_path)
        one, other = source.load(np.arange(12)), streamed(files, workers=0).load(np.arange(12))
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
        assert source.path.stat().st_size == 12 * (3 * SIZE_PX**2 + 8 + 4)

    def test_it_is_built_once(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = self.cached(root)
        decoded = self.decoding(monkeypatch)
        assert self.cached(root).path == first.path and not decoded

    def test_a_changed_file_is_decoded_again_and_no_other(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        before = self.cached(root).load(np.arange(7))
        shutil.copy(root / "images/train/scene_5.jpg", root / "images/train/scene_2.jpg")
        shutil.copy(root / "masks/train/scene_5.png", root / "masks/train/scene_2.png")
        decoded = self.decoding(monkeypatch)
        after = self.cached(root).load(np.arange(7))
        assert [path.name for path in decoded] == ["scene_2.jpg"]
        assert torch.equal(after.images[2], before.images[5]) and torch.equal(after.labels[2], before.labels[5])
        assert torch.equal(after.images[3:], before.images[3:])
        assert "land, training has changed since it was cached" in caplog.text

    @pytest.mark.parametrize("change", ["added", "removed"])
    def test_a_changed_list_of_files_makes_a_new_cache(
        self, root: Path, change: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        old = self.cached(root).path
        if change == "added":
            for folder, suffix in (("images", "jpg"), ("masks", "png")):
                shutil.copy(root / f"{folder}/train/scene_0.{suffix}", root / f"{folder}/train/scene_00.{suffix}")
        else:
            for name in ("images/train/scene_0.jpg", "masks/train/scene_0.png"):
                (root / name).unlink()
        source = self.cached(root)
        assert len(source) == (8 if change == "added" else 6) and source.path != old and not old.exists()
        assert "the list of files" in caplog.text

    def test_sizes_and_splits_do_not_meet(self, root: Path) -> None:
        one, other = self.cached(root), self.cached(root, size_px=16)
        assert one.path.exists() and other.path.exists() and one.path != other.path
        assert other.load(np.arange(2)).images.shape == (2, 3, 16, 16)

    def test_values_of_masks_do_not_meet(self, root: Path) -> None:
        """Two environments on the same files, in turn: each finds its own cache again."""
        same = {"dataset": "segmentation-folder", "root": str(root), "cache": str(root.parent / "cache"), "workers": 0}
        meanings: list[Any] = [None, {"0": "ground", "1": "square", "2": "disc", "255": None}]
        paths = []
        for values in (*meanings, *meanings):
            with closing_sources(scenes := build_scenes(EnvConfig(**same, mask_values=values))):
                assert isinstance(scenes, CachedFileScenes)
                paths.append((scenes.path, scenes.path.stat().st_mtime_ns))
        assert paths[:2] == paths[2:] and paths[0] != paths[1]

    def test_what_only_asks_for_classes_caches_nothing(self, root: Path) -> None:
        config = EnvConfig(
            dataset="segmentation-folder", root=str(root), cache=str(root.parent / "cache"), workers=0, device="cpu",
            probe=str(segmentation_probe(3)),
        )  # fmt: skip
        describe_inputs(config)
        searched_on(config)
        assert not (root.parent / "cache").exists()

    def test_a_build_that_is_killed_goes_on_where_it_stopped(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = (
            "import os, signal, sys\n"
            "from pathlib import Path\n"
            "import canvit_gym.scenes.cache as cache\n"
            "from canvit_gym.scenes.decoding import SqueezedMask\n"
            "from canvit_gym.scenes.folders import segmentation_folder_files\n"
            "cache._SYNC_EVERY = 2\n"
            "original, count = SqueezedMask.decode, [0]\n"
            "def decode(self, image, mask):\n"
            "    count[0] += 1\n"
            "    if count[0] == 6: os.kill(os.getpid(), signal.SIGKILL)\n"
            "    return original(self, image, mask)\n"
            "SqueezedMask.decode = decode\n"
            f"files = segmentation_folder_files(Path({str(root)!r}), 'training')\n"
            f"cache.CachedFileScenes(files, SqueezedMask({SIZE_PX}, 3), directory=Path({str(tmp_path / 'cache')!r}))\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120)
        assert done.returncode == -9, done.stderr
        assert not list((tmp_path / "cache").glob("*.bin"))
        decoded = self.decoding(monkeypatch)
        source = self.cached(root)
        assert [path.name for path in decoded] == ["scene_4.jpg", "scene_5.jpg", "scene_6.jpg"]
        expected = FileScenes(source.files, SqueezedMask(SIZE_PX, 3)).load(np.arange(7))
        assert torch.equal(source.load(np.arange(7)).images, expected.images)
        assert [path.suffix for path in sorted((tmp_path / "cache").iterdir())] == [".bin", ".lock"]

    def test_an_unreadable_file_stops_the_build_which_goes_on_when_it_is_repaired(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = root / "images/train/scene_4.jpg"
        good = path.read_bytes()
        damage(path, "truncated")
        with pytest.raises(OSError, match=r'cannot read .*scene_4\.jpg.*pass unreadable="skip"'):
            self.cached(root)
        path.write_bytes(good)
        decoded = self.decoding(monkeypatch)
        self.cached(root)
        assert [path.name for path in decoded] == ["scene_4.jpg", "scene_5.jpg", "scene_6.jpg"]

    @pytest.mark.parametrize("workers", [0, 1])
    def test_or_is_left_out_by_request(self, root: Path, workers: int) -> None:
        damage(root / "images/train/scene_4.jpg", "empty")
        for _ in range(2):  # built, then opened
            with pytest.warns(RuntimeWarning, match=r"scene 4 is left out: cannot read .*scene_4\.jpg"):
                source = self.cached(root, skip_unreadable=True, workers=workers)
            assert source.readable(np.arange(7)).tolist() == [True] * 4 + [False] + [True] * 2
        with pytest.raises(
            OSError, match=r"scene 4: cannot read .*are left out, as unreadable='skip' asks: choose another"
        ):
            source.load(np.array([4]))
        with pytest.raises(OSError, match=r"cannot read .*scene_4\.jpg"):
            self.cached(root)

    def test_a_place_that_cannot_be_written(self, root: Path) -> None:
        (root.parent / "cache").write_text("a file")
        with pytest.raises(OSError, match=r"cannot cache segmentation folder land.*It needs 0 MiB.*cache=directory"):
            self.cached(root)

    def test_too_little_room(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))  # pyright: ignore
        with pytest.raises(OSError, match="only 0 MiB are free"):
            self.cached(root)

    def test_a_damaged_scene_is_noticed_and_made_anew(self, root: Path) -> None:
        """As a torn write leaves it: the stamps say that all is there, and a record holds zeros."""
        source = self.cached(root)
        expected = source.load(np.arange(7))
        record = source.path.stat().st_size // 7
        with source.path.open("r+b") as file:
            file.seek(3 * record)
            file.write(bytes(100))
        again = self.cached(root)
        again.load(np.array([0, 1, 2]))
        with pytest.raises(OSError, match=r"scene 3 in .*\.bin is damaged: .*has been removed; run again"):
            again.load(np.array([2, 3]))
        assert torch.equal(self.cached(root).load(np.arange(7)).images, expected.images)

    def test_another_process_changes_nothing_under_a_running_one(self, root: Path) -> None:
        running = self.cached(root)
        before = running.load(np.arange(2))
        shutil.copy(root / "images/train/scene_5.jpg", root / "images/train/scene_2.jpg")
        shutil.copy(root / "masks/train/scene_5.png", root / "masks/train/scene_2.png")
        refreshed = self.cached(root)
        assert refreshed.path != running.path and not running.path.exists()
        after, (old, new) = refreshed.load(np.arange(7)), (running.load(np.arange(7)), refreshed.load(np.arange(7)))
        assert torch.equal(old.images[:2], before.images) and torch.equal(after.images, new.images)
        assert not torch.equal(old.images[2], new.images[2]) and torch.equal(new.images[2], new.images[5])
        running.prefetch(np.arange(7))
        running.close()
        assert torch.equal(running.load(np.arange(7)).images, old.images)

    def test_nothing_stays_of_builds_that_were_killed(self, root: Path) -> None:
        directory = root.parent / "cache"
        path = self.cached(root).path
        family = path.stem.rpartition("-")[0]
        (directory / f"{family}-01234567.partial").write_bytes(b"a killed build's")
        (directory / f"{family.rpartition('-')[0]}-0123456789ab-01234567.partial").write_bytes(b"of another list")
        (root / "images/train/scene_0.jpg").touch()
        self.cached(root)
        assert sorted(entry.suffix for entry in directory.iterdir()) == [".bin", ".lock"]

    def test_two_processes_build_one(self, root: Path) -> None:
        program = (
            "from pathlib import Path\n"
            "from canvit_gym.scenes.cache import CachedFileScenes\n"
            "from canvit_gym.scenes.decoding import SqueezedMask\n"
            "from canvit_gym.scenes.folders import segmentation_folder_files\n"
            f"files = segmentation_folder_files(Path({str(root)!r}), 'training')\n"
            f"source = CachedFileScenes(files, SqueezedMask(32, 3), directory=Path({str(root.parent / 'cache')!r}))\n"
            "print(source.path)\n"
        )
        running = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for _ in range(2)]
        paths = {process.communicate(timeout=120)[0] for process in running}
        assert len(paths) == 1 and all(process.returncode == 0 for process in running)

    def test_environments_take_it(self, tmp_path: Path) -> None:
        kwargs = {**small(SEGMENTATION), "budget": 2}
        results = []
        for cache in (False, str(tmp_path)):
            envs = GlimpseVectorEnv(2, dataset="segmentation-folder", cache=cache, **kwargs)
            envs.action_space.seed(0)
            _, info = envs.reset(seed=1)
            results.append([info["scene"].tolist(), info["loss"].tolist()])
            for _ in range(4):
                _, rewards, *_, info = envs.step(envs.action_space.sample())
                results[-1] += [rewards.tolist(), info["scene"].tolist()]
            envs.close()
        assert results[0] == results[1]
        assert len(list(tmp_path.glob("*.bin"))) == 1


def test_scenes_that_are_chosen_are_announced_and_nothing_is_drawn_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = str(classification_probe(len(FOLDER_CLASSES)))
    envs = GlimpseVectorEnv(
        2, dataset="image-folder", root=str(tiny("image-folder")), probe=probe, device="cpu", workers=0
    )
    assert isinstance(envs.scenes, FileScenes)
    announced: list[list[int]] = []
    monkeypatch.setattr(envs.scenes, "prefetch", lambda indices: announced.append(indices.tolist()))
    envs.reset(seed=3, options={"scene": [5, 1]})
    assert announced == [[5, 1]], "no pass has been drawn"
    envs.reset()
    known, state = announced[-1][2:], envs.np_random.bit_generator.state
    envs.reset(options={"scene": 7})
    assert len(known) == 4 and announced[-1] == [7, 7, *known]
    assert envs.np_random.bit_generator.state == state
    assert envs.reset()[1]["scene"].tolist() == known[:2]
    envs.close()
