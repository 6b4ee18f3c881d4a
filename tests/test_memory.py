"""The memory estimate against what an episode is known to keep, from below and from above."""

import pytest
from canvit_pytorch import CanViTForPretraining

from canvit_gym.backbone.load import load_backbone
from experiments.studies.memory import BATCHES, GRIDS, NUM_CLASSES, peak_bytes, random_backbone, table


@pytest.fixture(scope="module")
def nano() -> CanViTForPretraining:
    model = load_backbone("nano", device="cpu").pretrained
    assert model is not None
    return model


@pytest.mark.parametrize("grid", GRIDS)
def test_a_scene_adds_what_its_episode_keeps_and_less_than_that_again(nano: CanViTForPretraining, grid: int) -> None:
    backbone = random_backbone(nano, grid=grid, precision="float32")
    one, three = (peak_bytes(backbone, num=num) for num in BATCHES)
    image_and_labels = (3 * 4 + 1) * backbone.scene_size_px**2
    canvas = 4 * (nano.canvit.config.num_canvas_registers + grid**2) * nano.canvit.canvas_dim
    logits, shares = (4 * NUM_CLASSES * grid**2 for _ in range(2))
    kept = image_and_labels + canvas + logits + shares
    assert kept < (three - one) / 2 < 2 * kept


def test_where_the_canvas_is_small_the_peak_is_the_scenes_arrival(nano: CanViTForPretraining) -> None:
    """Pixels and labels as they come, the normalized image, and the copy that it is computed in."""
    backbone = random_backbone(nano, grid=8, precision="float32")
    bytes_per_pixel = 3 + 1 + 3 * 4 + 3 * 4
    assert peak_bytes(backbone, num=1) == pytest.approx(bytes_per_pixel * backbone.scene_size_px**2, rel=0.01)


def test_the_table_rounds_down() -> None:
    scenes = {"24": 1299, "80": 87, "141": 7}
    row = dict(canvas_grid=32, precision="bfloat16", mb_per_scene=40.4, fixed_mb=1.0, scenes=scenes)
    assert table([row]).splitlines()[-1] == "| 32 x 32 | bfloat16 | 40 | 1,200 | 87 | 7 |"
