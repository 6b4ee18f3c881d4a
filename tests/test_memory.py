"""The memory estimate counts at least what an episode is known to keep, and grows with scenes and canvas."""

from canvit_gym.backbone.load import load_backbone
from experiments.memory import NUM_CLASSES, peak_bytes, random_backbone, table


def test_peaks_hold_what_an_episode_keeps() -> None:
    model = load_backbone("nano", device="cpu").pretrained
    for grid in (8, 16):
        backbone = random_backbone(model, grid=grid, precision="float32")
        one, three = (peak_bytes(backbone, num=num) for num in (1, 3))
        canvas = 4 * (model.canvit.config.num_canvas_registers + grid**2) * model.canvit.canvas_dim
        image, readings = 3 * backbone.scene_size_px**2, 4 * NUM_CLASSES * grid**2
        assert (three - one) / 2 > canvas + image + readings
        assert one > canvas + image + readings


def test_the_table_rounds_down() -> None:
    scenes = {"24": 1299, "80": 87, "141": 7}
    row = dict(canvas_grid=32, precision="bfloat16", mb_per_scene=40.4, fixed_mb=1.0, scenes=scenes)
    assert table([row]).splitlines()[-1] == "| 32 x 32 | bfloat16 | 40 | 1,200 | 87 | 7 |"
