"""The throughput and scaling scripts at tiny sizes: what they count is right, and what they say is complete."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from canvit_pytorch.model.backbone.vit import PatchEmbed
from torch.nn.modules.module import register_module_forward_hook

from canvit_gym.assembly import build_backbone
from canvit_gym.backbone.load import Backbone
from experiments.studies import scaling
from experiments.throughput import __main__ as throughput
from experiments.throughput import gpu_report, ppo_throughput
from experiments.throughput.contestants import CONTESTANTS, Job, Run
from experiments.throughput.models import SHARED_DIRECTORY, env_kwargs_of
from experiments.throughput.peak_memory import peak_of_allocations
from experiments.throughput.stages import STAGES, shares
from experiments.throughput.what_ran import fallback, label
from experiments.throughput.workers import busy_note, ratio, started

JOB = Job("run_episode", num_envs=4, budget=3, num_scenes=8, rounds=2)
WITH_BACKBONE = [name for name in CONTESTANTS if name != "vector env without a backbone"]


def counted(run: Run) -> tuple[int, int]:
    """(glimpses a run says it took, scenes that went forward through a CanViT, of whichever Backbone or none)."""
    forwarded = 0

    def count(module: torch.nn.Module, arguments: Any, output: Any) -> None:
        nonlocal forwarded
        if isinstance(module, PatchEmbed):  # the first layer of every forward, canvit-pytorch's and ours
            forwarded += len(output)

    with register_module_forward_hook(count):
        return run(), forwarded


@pytest.mark.parametrize("name", WITH_BACKBONE)
def test_glimpses_are_counted_as_they_are_taken(name: str) -> None:
    run = CONTESTANTS[name](replace(JOB, contestant=name))
    run()
    said, forwarded = counted(run)
    assert said == forwarded > 0


def test_a_backbone_that_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backbone, "step", Backbone.step)  # put back afterwards
    assert counted(CONTESTANTS["vector env without a backbone"](JOB)) == (2 * 4 * 3, 0)


def test_shares_add_up() -> None:
    run = CONTESTANTS["vector env"](replace(JOB, contestant="vector env"))
    step = Backbone.step
    found = shares(run, torch.device("cpu"), repeats=2)
    assert Backbone.step is step, "the clock is still installed"
    assert sum(found.values()) == pytest.approx(1)
    assert set(found) > set(STAGES) and all(0 < found[stage] < 1 for stage in STAGES)
    assert max(found, key=lambda stage: found[stage]) == "backbone"


def test_a_busy_machine_is_told() -> None:
    assert busy_note((0.1, 3.0, 3.0)) == []
    assert "load average 2.5" in busy_note((2.5, 0.0, 0.0))[0]


def test_ratios_are_of_the_same_turn() -> None:
    assert ratio([10, 5, 20], [20, 10, 40]) == 0.5


def test_random_weights_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SHARED_DIRECTORY, str(tmp_path))
    env_kwargs_of.__globals__["_saved"].cache_clear()
    kwargs = env_kwargs_of("nano", 8)
    written = Path(kwargs["probe"]) / "model.safetensors"
    stamp = written.stat().st_mtime_ns
    env_kwargs_of.__globals__["_saved"].cache_clear()
    assert env_kwargs_of("nano", 8) == kwargs and written.stat().st_mtime_ns == stamp
    job = replace(JOB, contestant="vector env", canvas_grid=8)
    assert CONTESTANTS["vector env"](job)() == 24
    assert env_kwargs_of("nano", 16) == {}


SPEAKS = """
import json, sys
print(json.dumps({"seconds_to_start": 0.5, "threads": 1}), flush=True)
for line in sys.stdin:
    if line.strip() == "memory":
        print(json.dumps({"peak_mib": 7}), flush=True)
    elif line.strip() == "ran":
        print(json.dumps(json.loads(sys.argv[2])), flush=True)
    elif line.strip() == "stages":
        print(json.dumps({"backbone": 0.75, "Python": 0.25}), flush=True)
    else:
        print(json.dumps({"glimpses": 10, "seconds": float(sys.argv[1])}), flush=True)
"""


def test_a_process_answers() -> None:
    with started({"vector env": replace(JOB, contestant="vector env")}) as (workers, said):
        assert said["vector env"]["seconds_to_start"] > 0
        answer = workers["vector env"].ask("run")
        assert answer["glimpses"] == 24 and answer["seconds"] > 0
        assert workers["vector env"].ask("memory")["peak_mib"] > 10


def test_a_process_that_fails_is_told() -> None:
    with pytest.raises(RuntimeError, match="ended with status 3"), started({"bad": [sys.executable, "-c", "exit(3)"]}):
        pass


def test_record_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole script, with processes that only speak the protocol: run_episode takes 2 s a run, all others 1 s."""

    def speaker(job: Job) -> Any:
        from experiments.throughput.workers import Worker

        seconds = "2" if job.contestant == "run_episode" else "1"
        ran = {f"{'compiled' if job.compile else 'eager'}, {job.precision}": 3}
        return Worker([sys.executable, "-c", SPEAKS, seconds, json.dumps(ran)], {})

    monkeypatch.setattr("experiments.throughput.workers.worker_of", speaker)
    monkeypatch.setattr(throughput, "SIZES", {"nano": 2})
    monkeypatch.setattr(throughput, "BATCHES", (1, 4))
    monkeypatch.setattr("experiments.throughput.agreement.SETTINGS", {"bfloat16": {"precision": "bfloat16"}})
    # main() leaves the variable set for the processes it starts
    monkeypatch.setenv(SHARED_DIRECTORY, str(tmp_path))
    output = tmp_path / "cpu.json"
    throughput.main(throughput.ThroughputConfig(num_envs=4, num_scenes=8, repeats=2, device="cpu", output=output))
    record = json.loads(output.read_text())
    assert {"config", "layers", "latency", "sizes", "overhead", "provenance", "load_before"} <= record.keys()
    assert set(record["layers"]["contestants"]) >= {"run_episode", "vector env, compiled", "PPO end to end"}
    assert 0 < record["agreement"]["bfloat16"]["canvas_error"] < 0.2
    text = output.with_suffix(".md").read_text()
    assert text == capsys.readouterr().out
    assert "| vector env | 10 | 2.00 | 2.00 | 7 | 0 |" in text
    assert "| run_episode | 5 | 1.00 | 1.00 | 7 | 0 |" in text
    assert "| run_episode | 200.0 | 800.0 |" in text, "milliseconds a step at batches of 1 and 4"
    assert "| nano | 32 | 2 | 5.0 | 10.0 | 2.00 | 7 |" in text


def test_scaling(tmp_path: Path) -> None:
    config = scaling.ScalingConfig(num_envs=2, num_scenes=8, repeats=1, device="cpu", largest=16, output=tmp_path / "s")
    scaling.main(config)
    record = json.loads((tmp_path / "s.json").read_text())
    sizes = {axis["title"]: axis["sizes"] for axis in record["axes"]}
    assert sizes == {
        "scenes per batch": [1, 2, 4, 8, 16],
        "budget": [2, 3, 5, 9],
        "canvas": [64, 256],
        "pooled observation": [1, 4, 16, 64, 256],
    }
    assert all(cost > 0 for axis in record["axes"] for cost in axis["milliseconds"])
    assert (tmp_path / "s.png").stat().st_size > 10_000
    assert (tmp_path / "s.md").read_text().count("Exponent at the end") == 4


def test_exponents_are_of_the_largest_sizes() -> None:
    assert scaling.exponent([1, 2, 4, 8], [50.0, 6.0, 24.0, 96.0]) == pytest.approx(2)


def test_gpu_report_runs_without_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = gpu_report.GPUReportConfig(dry_run=True, repeats=1, compile=False, output=tmp_path / "gpu")
    gpu_report.main(config)
    record = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert set(record["sections"]) == set(gpu_report.SECTIONS) == set(record["section_seconds"])
    assert not record["left_out"] and not record["failed"] and not record["fallbacks"]
    sections = record["sections"]
    loops = sections["loops"]["rows"]
    assert loops["canvit-pytorch, eager"]["ratio"] == 1
    assert set(loops["Backbone.step, eager"]["ran"]) == {"eager, bfloat16"}
    assert sections["latency"]["num_envs"] == 1 and sections["canvas 64"]["canvas_grid"] == 32
    ppo = sections["ppo"]
    assert 0 < ppo["share_in_backbone"] < ppo["share_in_steps"] < 1 > ppo["share_in_update"] > 0
    kernels = sections["kernels"]
    assert sum(kernels["by_kind"].values()) == pytest.approx(kernels["milliseconds"])
    assert {"matrix products", "other"} <= set(kernels["by_kind"])
    memory = sections["memory"]
    assert all(0 < row["mb_per_scene"] < 100 and row["peak_mb"][0] < row["peak_mb"][1] for row in memory)
    assert 0 < sections["agreement"]["ours"] < 1e-2
    text = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert text == capsys.readouterr().out and "| Backbone.step, eager |" in text


def test_how_many_scenes_fit() -> None:
    row = {"mb_per_scene": 10.0, "fixed_mb": 250.0}
    assert gpu_report.scenes_that_fit(row, 24) == 2_000  # (22,500 * 0.9 - 250) / 10, rounded down to two digits
    assert gpu_report.scenes_that_fit({**row, "mb_per_scene": 3000.0}, 24) == 6


def test_a_peak_counts_what_is_alive_at_once() -> None:
    def run() -> None:
        for _ in range(3):
            one = torch.zeros(250_000)
            del one
        both = [torch.zeros(250_000), torch.zeros(500_000)]
        del both

    assert peak_of_allocations(run) == pytest.approx(3_000_000, rel=0.01)


def test_gpu_report_leaves_out_what_is_late_and_measures_what_is_asked(tmp_path: Path) -> None:
    dry = dict(dry_run=True, repeats=1, compile=False)
    gpu_report.main(gpu_report.GPUReportConfig(**dry, deadline_s=0, output=tmp_path / "late"))  # type: ignore[arg-type]
    assert "Left out for lack of time: " in (tmp_path / "late.md").read_text(encoding="utf-8")
    gpu_report.main(gpu_report.GPUReportConfig(**dry, only=("chip",), output=tmp_path / "chip"))  # type: ignore[arg-type]
    assert set(json.loads((tmp_path / "chip.json").read_text(encoding="utf-8"))["sections"]) == {"chip"}
    with pytest.raises(ValueError, match="unknown sections chips; there are: chip, loops"):
        gpu_report.GPUReportConfig(only=("chips",))
    if not torch.cuda.is_available():
        with pytest.raises(OSError, match="run with --dry-run"):
            gpu_report.main(gpu_report.GPUReportConfig())


def test_gpu_report_fails_in_the_end_where_a_section_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the other sections, and with what they found written."""

    def broken(setting: gpu_report.Setting) -> Any:
        raise RuntimeError("out of luck")

    monkeypatch.setitem(gpu_report.SECTIONS, "loops", (broken, gpu_report.format_rows))
    config = gpu_report.GPUReportConfig(
        dry_run=True, only=("loops", "agreement"), compile=False, output=tmp_path / "gpu"
    )
    with pytest.raises(SystemExit, match="1"):
        gpu_report.main(config)
    text = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "**loops failed: RuntimeError: out of luck**" in text and "Relative error" in text


def test_gpu_report_names_what_fell_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler today")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: refuse)
    config = gpu_report.GPUReportConfig(dry_run=True, repeats=1, only=("loops",), output=tmp_path / "gpu")
    build_backbone(gpu_report.Setting(config).compiled.config()).__dict__.pop("_compiled_step", None)
    with pytest.raises(SystemExit, match="1"), pytest.warns(UserWarning, match="no compiler today"):
        gpu_report.main(config)
    text = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "| **Backbone.step, compiled: FELL BACK, ran eager** |" in text and "**What fell back:**" in text
    build_backbone(gpu_report.Setting(config).compiled.config()).__dict__.pop("_compiled_step", None)


@pytest.mark.parametrize(
    ("changes", "ran", "instead"),
    [
        ({}, {"eager, float32": 9}, None),
        ({}, {}, "no step of its backbone"),
        ({"precision": "bfloat16"}, {"eager, float32": 9}, "float32"),
        ({"compile": True}, {"eager, float32": 1, "compiled, float32": 8}, "eager"),
        ({"compile": True}, {"compiled, float32": 8}, None),
        (
            {"compile": True, "device": "auto"},
            {"compiled, float32": 8},
            "compiled, without a CUDA graph" if torch.cuda.is_available() else None,
        ),
        ({"compile": True, "device": "cuda"}, {"compiled, float32": 8}, "compiled, without a CUDA graph"),
        ({"compile": True, "device": "cuda"}, {"compiled, float32": 1, "cuda graph, float32": 8}, None),
        ({"contestant": "run_episode", "compile": True}, {}, None),
        (
            {"contestant": "Backbone.step loop", "num_envs": 64, "compile": True, "device": "cuda"},
            {"compiled, float32": 8},
            None,
        ),
    ],
)
def test_a_label_never_claims_what_did_not_run(
    changes: dict[str, Any], ran: dict[str, int], instead: str | None
) -> None:
    job = replace(JOB, **{"contestant": "vector env", **changes})
    assert fallback(job, ran) == instead
    assert ("FELL BACK" in label("it", job, ran)) == (instead is not None)


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "matrix products"),
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_bias_TNT", "matrix products"),
        ("void pytorch_flash::flash_fwd_kernel<...>", "attention"),
        ("triton_red_fused__to_copy_add_native_layer_norm_7", "fused loops"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("void at::native::grid_sampler_2d_kernel<float, int>", "other"),
    ],
)
def test_kinds_of_kernels(kernel: str, kind: str) -> None:
    assert gpu_report.kind_of(kernel) == kind


def test_large_scenes_come_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SHARED_DIRECTORY, str(tmp_path))
    monkeypatch.setattr("experiments.throughput.models.LARGE_SCENES", 8)
    for made in ("_saved", "_large_scenes"):
        env_kwargs_of.__globals__[made].cache_clear()
    job = replace(JOB, contestant="vector env", large_scenes=True, num_envs=2)
    assert CONTESTANTS["vector env"](job)() == 12
    backbone = build_backbone(job.config())
    assert (backbone.scene_size_px, backbone.canvas_grid) == (512, 16)
    for made in ("_saved", "_large_scenes"):
        env_kwargs_of.__globals__[made].cache_clear()


def test_ap_gym_is_asked_for_before_anything_is_measured() -> None:
    config = throughput.ThroughputConfig(ap_gym_python=Path(sys.executable), device="cpu")
    with pytest.raises(OSError, match=r"cannot import ap_gym.*pip install ap-gym==0\.7\.1 pillow aiohttp"):
        throughput.main(config)
    assert "MALLOC_PERTURB_" not in os.environ


def _measured(*_: Any, **__: Any) -> Any:
    raise AssertionError("measured")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_envs": 0}, "num_envs must be an integer >= 1, got 0"),
        ({"budget": 1}, "budget must be an integer >= 2, got 1"),
        ({"repeats": 0}, "repeats must be an integer >= 1, got 0"),
        ({"rounds": 0}, "rounds must be an integer >= 1, got 0"),
        ({"threads": 0}, "threads must be an integer >= 1, got 0"),
        ({"device": "gpu"}, "'gpu'.*'cpu'"),
        ({"output": Path("/dev/null/cpu.json")}, "--output /dev/null cannot be written to"),
    ],
)
def test_bad_options_are_named_before_anything_is_measured(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "sections", _measured)
    with pytest.raises((ValueError, OSError), match=message):
        throughput.main(throughput.ThroughputConfig(**{"device": "cpu", "num_scenes": 8} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 0}, "repeats must be an integer >= 1, got 0"),
        ({"rollouts": 0}, "rollouts must be an integer >= 1, got 0"),
        ({"env": "CanViT/Unknown-v0"}, "no entry for 'CanViT/Unknown-v0', which is not an environment"),
        ({"hyper": '{"n_epoch": 1}'}, "unknown hyperparameter 'n_epoch'"),
        ({"env_kwargs": '{"scenes": 1}'}, "unknown environment keyword scenes"),
        ({"output": Path("/dev/null/ppo.json")}, "--output /dev/null cannot be written to"),
    ],
)
def test_bad_options_of_ppo_are_named_before_anything_is_measured(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ppo_throughput, "measured_apart", _measured)
    with pytest.raises((ValueError, TypeError, OSError), match=message):
        ppo_throughput.main(ppo_throughput.PPOThroughputConfig(**options))
