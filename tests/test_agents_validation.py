"""The headroom that trainings are held against."""

from pathlib import Path

import numpy as np
from datasets import classification_probe, tiny

from agents.validation import headroom
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import evaluate
from canvit_gym.policies import make_policy


def test_headroom_is_measured_on_scenes_of_the_evaluation(tmp_path: Path) -> None:
    validation = EnvConfig(
        dataset="image-folder", root=str(tiny("image-folder")), probe=str(classification_probe(3)), workers=0,
        split="validation", device="cpu", budget=2, grid_scales=(0.5,), grid_centers=2,
    )  # fmt: skip
    found = headroom(validation, 3, path=tmp_path / "headroom.json")
    assert found.indices == [2, 6, 10], "of all 12, of which the first four are of one class"
    assert headroom(validation, 3, path=tmp_path / "headroom.json") == found
    floor = evaluate(make_policy("coarse_to_fine", config=validation, num_glimpses=2), config=validation)
    assert floor.on(np.array(found.indices)).score().tolist() == found.floor
    share = found.share(floor)
    leads = np.array(found.ceiling) > np.array(found.floor)
    assert (share[leads] == 0).all() and np.isnan(share[~leads]).all()
