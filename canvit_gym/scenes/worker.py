"""Processes that decode scenes for `canvit_gym.scenes.workers`: `python -m canvit_gym.scenes.worker FD,FD,FD ...`.

This is a separate program, neither a fork of the training process (whose threads and CUDA context do not survive a
fork) nor a re-import of the user's main module. It imports what decoding needs, reads the decoder from standard input,
and forks once per argument. At that point it has a single thread, and the workers share the memory of the imports. An
argument has the file descriptors of a worker: the memory that it shares with the training process, and the pipes of
requests and answers. A worker ends when its pipe of requests is closed, however the training process ends.
"""

import mmap
import os
import pickle
import signal
import sys
from pathlib import Path

import numpy as np

from canvit_gym.scenes.decoding import Decoder


def serve(decoder: Decoder, *, shared: int, requests: int, answers: int) -> None:
    """Write each requested scene into the shared memory; answer with None, or the exception."""
    memory = np.frombuffer(mmap.mmap(shared, 0), dtype=np.uint8)
    pixels = 3 * decoder.size_px**2
    with os.fdopen(requests, "rb") as asked, os.fdopen(answers, "wb", buffering=0) as answer:
        answer.write(pickle.dumps(os.getpid()))
        while True:
            try:
                image, mask = pickle.load(asked)
            except EOFError:
                return
            error: Exception | None = None
            try:
                scene, labels = decoder.decode(Path(image), None if mask is None else Path(mask))
                memory[:pixels] = scene.numpy().reshape(-1)
                if labels is not None:
                    memory[pixels : pixels + labels.numel()] = labels.numpy().reshape(-1)
            except Exception as caught:
                error = caught
            answer.write(pickle.dumps(error))


def main(workers: list[tuple[int, int, int]]) -> None:
    """Fork the workers and wait for their end."""
    decoder = pickle.load(sys.stdin.buffer)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it was sent to all of them: the workers end, wait for them here
    for own in workers:
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            for descriptor in {fd for other in workers for fd in other} - set(own):
                os.close(descriptor)
            try:
                serve(decoder, shared=own[0], requests=own[1], answers=own[2])
            except BrokenPipeError:  # nobody is there to answer
                pass
            finally:
                os._exit(0)
    for descriptor in {fd for other in workers for fd in other}:
        os.close(descriptor)
    for _ in workers:
        os.wait()
    os._exit(0)  # immediately: there is nothing to finish, and another process waits for it


if __name__ == "__main__":
    main([tuple(int(fd) for fd in argument.split(",")) for argument in sys.argv[1:]])  # pyright: ignore
