"""Measure ap_gym's image classification vector env, with the same protocol as experiments.throughput.worker.

This is a standalone script for a Python with ap_gym (`pip install ap-gym==0.7.1 pillow aiohttp`, half a gigabyte with
`datasets` and pyarrow), which need not have this package. Its job is {"scenes": FILE.npz, "num_envs": N, "budget": T,
"rounds": R, "glimpse_size_px": G}; the file contains images [n, H, W, 3] uint8 and labels [n].
"""

import json
import os
import sys
import time

import numpy as np
from ap_gym.envs.image import ImageClassificationDataset, ImagePerceptionConfig  # pyright: ignore[reportMissingImports]
from ap_gym.envs.image_classification import (  # pyright: ignore[reportMissingImports]
    ImageClassificationVectorEnv,
)


class Scenes(ImageClassificationDataset):
    def __init__(self, images, labels):
        self._images, self._labels = images, labels

    def _get_num_classes(self):
        return int(self._labels.max()) + 1

    def _get_num_channels(self):
        return 3

    def _get_length(self):
        return len(self._images)

    def _get_data_point_batch(self, idx):
        return self._images[idx], self._labels[idx]


def main():
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    job = json.loads(sys.argv[1])
    with np.load(job["scenes"]) as file:
        dataset = Scenes(file["images"], file["labels"])
    side = job["glimpse_size_px"]
    # An episode takes as many glimpses as ours: the reset takes the first one.
    config = ImagePerceptionConfig(dataset=dataset, sensor_size=(side, side), step_limit=job["budget"] - 1)
    envs = ImageClassificationVectorEnv(job["num_envs"], config)
    envs.reset(seed=0)
    rng = np.random.default_rng(0)
    prediction = np.zeros((job["num_envs"], dataset.num_classes), dtype=np.float32)

    def run():
        for _ in range(job["rounds"] * job["budget"]):
            action = rng.uniform(-1, 1, size=(job["num_envs"], 2)).astype(np.float32)
            envs.step({"action": action, "prediction": prediction})
        return job["rounds"] * job["budget"] * job["num_envs"]

    began = time.perf_counter()
    run()
    print(json.dumps({"seconds_to_start": time.perf_counter() - began, "threads": 1}), file=answers)
    for line in sys.stdin:
        assert line.strip() == "run", line
        began = time.perf_counter()
        glimpses = run()
        print(json.dumps({"glimpses": glimpses, "seconds": time.perf_counter() - began}), file=answers)
    envs.close()


if __name__ == "__main__":
    main()
