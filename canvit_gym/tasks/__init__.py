"""What is read from a scene, and how good the reading is: one module per task."""

TASKS: dict[str, None] = {"segmentation": None, "classification": None}
