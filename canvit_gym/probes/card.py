"""The model card that `canvit-gym fit-probe` writes."""

from typing import Any

from canvit_gym.escaping import markdown, markdown_code

SHOWN_CLASSES = 40


def card(record: dict[str, Any]) -> str:
    """The README.md of a probe's directory, from its training.json."""
    checkpoint, metrics, config = record["checkpoint"], record["metrics"], record["config"]
    where = checkpoint["repo"] or checkpoint["name"]
    revision = f" at revision {checkpoint['revision']}" if checkpoint["revision"] else ""
    classes = record["classes"]
    listed = ", ".join(map(markdown, classes[:SHOWN_CLASSES])) + (" …" if len(classes) > SHOWN_CLASSES else "")
    steps = record["validations"][-1][0]
    header = " | ".join(str(t + 1) for t in range(len(metrics["score"])))

    def row(name: str, values: list[float], digits: int) -> str:
        return f"| {name} | " + " | ".join(f"{value:.{digits}f}" for value in values) + " |"

    keywords = f"checkpoint={checkpoint['name']!r}, probe=<this directory>"
    if checkpoint["revision"]:
        keywords += f", revision={checkpoint['revision']!r}"
    if config.get("canvas_grid"):
        keywords += f", canvas_grid={config['canvas_grid']}"
    if config.get("scene_size_px"):
        keywords += f", scene_size_px={config['scene_size_px']}"
    return f"""---
library_name: canvit-pytorch
tags: [canvit, linear-probe]
---

# A linear probe on {where}

Reads the {record["reads"]} of the frozen {where}{revision}
(sha256 {record["checkpoint_sha256"]}), {checkpoint["canvas_grid"]} x {checkpoint["canvas_grid"]} canvas, scenes of
{checkpoint["scene_size_px"]} px, glimpses of {checkpoint["glimpse_size_px"]} px.

- **Data**: {markdown(record["data"]["training"])}; validated on {markdown(record["data"]["validation"])}.
- **Classes** ({len(classes)}): {listed}.
- **Recipe**: `canvit-gym fit-probe`: {steps} steps (kept: step {record["best_step"]}) of {config["batch_size"]}
  scenes, {config["num_glimpses"]} random glimpses each (F-IID and R-IID in turn), every state an example; AdamW, peak
  learning rate {config["peak_lr"]}, weight decay {config["weight_decay"]}, seed {config["seed"]};
  {record["seconds"] / 60:.1f} minutes.
- **Command**: {markdown_code(record["provenance"]["command"])}
- **Made with**: torch {record["torch"]}, canvit-pytorch {record["provenance"]["versions"]["canvit-pytorch"]}.

    gym.make("{record["env"]}", {keywords}, ...)

## On {metrics["scenes"]} validation scenes, under C2F

| after glimpse | {header} |
| --- {"| --- " * len(metrics["score"])}|
{row(metrics["metric"] + " %", metrics["score"], 1)}
{row("cross-entropy, nats", metrics["cross_entropy"], 3)}

The step of the probe was chosen on these scenes: expect slightly lower scores on others.
"""
