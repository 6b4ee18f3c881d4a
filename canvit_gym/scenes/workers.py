"""Worker processes that decode scenes in advance.

The processes run a separate program (see canvit_gym.scenes.worker). Each has a thread here, which sends it one scene at
a time and copies the result from the shared memory. Requested scenes are futures: whoever needs a scene that no worker
has begun can cancel it and decode the scene itself.
"""

import contextlib
import mmap
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from canvit_gym.scenes.decoding import Decoder

Pixels = tuple[Tensor, Tensor | None]

_PATIENCE_S = 5.0
"""How long workers may take to end before they are killed."""


def cpu_cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def automatic_workers() -> int:
    """One less than the number of CPU cores, for the process that steps the environments; between 1 and 8.

    0 where processes cannot be forked, as on Windows: scenes are then decoded in this process, or read from a cache.
    """
    if not hasattr(os, "fork"):
        return 0
    return min(max(cpu_cores() - 1, 1), 8)


class _Worker:
    """This process's end of a worker: two pipes, and the memory into which the worker writes scenes."""

    def __init__(self, decoder: Decoder) -> None:
        self._size_px, self._is_dense = decoder.size_px, decoder.is_dense
        self.process_id = 0
        """0 until it has started."""
        num_bytes = (3 + decoder.is_dense) * decoder.size_px**2
        shared = Path("/dev/shm")
        with tempfile.TemporaryFile(dir=shared if os.access(shared, os.W_OK) else None) as file:
            try:
                file.write(
                    bytes(num_bytes)
                )  # not ftruncate: a full device raises an error here instead of a SIGBUS later
                file.flush()
            except OSError as error:
                raise OSError(
                    f"no shared memory for a worker process ({num_bytes} bytes): {error.strerror}. "
                    "Make room in /dev/shm, or pass fewer workers (workers=0 decodes in this process)."
                ) from error
            self._memory = torch.frombuffer(mmap.mmap(file.fileno(), num_bytes), dtype=torch.uint8)
            shared_there = os.dup(file.fileno())
        requests_there, requests = os.pipe()
        answers, answers_there = os.pipe()
        self.descriptors_there = (shared_there, requests_there, answers_there)
        """What the worker inherits."""
        self._requests = os.fdopen(requests, "wb", buffering=0)
        self._answers = os.fdopen(answers, "rb")

    def await_start(self) -> None:
        """Wait until the process has started. If it fails to start, `decode` raises an error."""
        with contextlib.suppress(EOFError):
            self.process_id = pickle.load(self._answers)

    def decode(self, image: Path, mask: Path | None) -> Pixels:
        try:
            self._requests.write(pickle.dumps((str(image), None if mask is None else str(mask))))
            error = pickle.load(self._answers)
        except (BrokenPipeError, EOFError) as gone:
            raise RuntimeError(
                f"a worker process ended while decoding {image}. If the machine is short of memory, pass "
                "fewer workers; workers=0 decodes in this process."
            ) from gone
        if error is not None:
            raise error
        size = self._size_px
        pixels = self._memory[: 3 * size**2].clone().view(3, size, size)
        labels = self._memory[3 * size**2 :].clone().view(size, size) if self._is_dense else None
        return pixels, labels

    def hang_up(self) -> None:
        """Close the pipe of requests, which ends an idle worker."""
        self._requests.close()
        self._answers.close()


def _end(executor: ThreadPoolExecutor, workers: list[_Worker], program: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGTERM)  # they have nothing to finish
    executor.shutdown(wait=True, cancel_futures=True)
    for worker in workers:
        worker.hang_up()
    try:
        program.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        program.wait()


class DecodingPool:
    """`count` processes, which end with `close`, with the program, or with the last reference to the pool."""

    def __init__(self, decoder: Decoder, count: int) -> None:
        if not hasattr(os, "fork"):
            raise OSError(
                f"workers={count}: this system cannot fork the processes that decode scenes. Pass workers=0, and "
                "cache=True where decoding takes long."
            )
        self._workers = [_Worker(decoder) for _ in range(count)]
        inherited = [fd for worker in self._workers for fd in worker.descriptors_there]
        paths = [path or os.getcwd() for path in sys.path]
        arguments = [",".join(str(fd) for fd in worker.descriptors_there) for worker in self._workers]
        try:
            program = subprocess.Popen(
                [sys.executable, "-m", "canvit_gym.scenes.worker", *arguments],
                stdin=subprocess.PIPE,
                pass_fds=inherited,
                # One thread each: the parallelism is in the processes.
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,  # Ctrl-C is for this process, which then ends its workers
            )
        finally:
            for descriptor in inherited:
                os.close(descriptor)
        assert program.stdin is not None
        with contextlib.suppress(BrokenPipeError), program.stdin as stdin:
            pickle.dump(decoder, stdin)
        waiting, own = list(self._workers), threading.local()
        self._own = own
        self._program = program

        def adopt() -> None:
            own.worker = waiting.pop()  # list.pop is atomic
            # A thread that is not ready takes nothing, so that urgent scenes are decoded elsewhere.
            own.worker.await_start()

        self._executor = ThreadPoolExecutor(count, thread_name_prefix="canvit_gym-decoding", initializer=adopt)
        self.close = weakref.finalize(self, _end, self._executor, self._workers, program)

    @property
    def process_ids(self) -> list[int]:
        """Process ids of the program and of the workers that have started."""
        return [self._program.pid, *(worker.process_id for worker in self._workers if worker.process_id)]

    def submit(self, image: Path, mask: Path | None) -> Future[Pixels]:
        own = self._own
        return self._executor.submit(lambda: own.worker.decode(image, mask))
