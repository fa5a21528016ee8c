"""Fine-tuning a Stable Diffusion folder, end to end, and what a user sees who erred."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_configs import recipe

from zsnr_jax import architectures, diffusers_io, modes, random_folder, safetensors_files
from zsnr_jax.data import encode, scenes
from zsnr_jax.errors import UsageError
from zsnr_jax.files import read_rows

ROOT = Path(__file__).parents[1]
FOUR = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
SHORT = [
    "--config.train.sample_every=0",
    *[f"--config.train.{name}=5" for name in ("num_steps", "log_every", "save_every")],
]
ONE_RESOLUTION = {  # compiles in half the time
    "unet": {"block_out_channels": [32], "attention_head_dim": 2,
             "down_block_types": ["CrossAttnDownBlock2D"],
             "up_block_types": ["CrossAttnUpBlock2D"]},
    "vae": {"block_out_channels": [32], "down_block_types": ["DownEncoderBlock2D"],
            "up_block_types": ["UpDecoderBlock2D"]},
    "text_encoder": {"num_hidden_layers": 1},
}  # fmt: skip
random_folder.SIZES["one resolution"] = {
    name: config | ONE_RESOLUTION[name] for name, config in architectures.TINY.items()
}


def run(sd: Path, workdir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """python -m zsnr_jax.main on the folder, by four devices."""
    folders = [f"--config.pretrained={sd / 'tiny'}", f"--config.dataset.latents={sd / 'latents'}"]
    return subprocess.run(
        [sys.executable, "-m", "zsnr_jax.main", "--config=configs/sd_tiny.py:smoke",
         f"--workdir={workdir}", *folders, *SHORT, *arguments],
        cwd=ROOT, env=os.environ | {"XLA_FLAGS": FOUR}, timeout=500, text=True,
        capture_output=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def sd(tmp_path_factory) -> Path:
    """A folder of random weights, and captioned pictures as latents."""
    folder = tmp_path_factory.mktemp("sd")
    random_folder.write_folder(folder / "tiny", "one resolution")
    scenes.main([f"--out={folder / 'scenes'}", "--num=40", "--size=8", "--per_shard=32"])
    encode.main([f"--pretrained={folder / 'tiny'}", f"--source={folder / 'scenes'}",
                 f"--out={folder / 'latents'}", "--image_size=8"])  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def trained(sd: Path) -> Path:
    """A finished run by pmap."""
    done = run(sd, sd / "run")
    assert done.returncode == 0, done.stderr
    assert "was trained for eps-prediction on the scaled_linear schedule without" in done.stdout
    return sd / "run"


@pytest.fixture(scope="module")
def in_slices(sd: Path) -> Path:
    """The same run, imported first and then trained by fsdp."""
    assert run(sd, sd / "sliced", "--mode=import").returncode == 0
    done = run(sd, sd / "sliced", "--config.parallel.mode=fsdp", "--config.parallel.mesh=2,2")
    assert done.returncode == 0, done.stderr
    return sd / "sliced"


def test_a_run_leaves_pictures_scores_and_where_its_weights_came_from(sd: Path, trained: Path):
    results = json.loads((trained / "results.json").read_text())
    assert results["step"] == 5 and results["num_samples"] == 16
    assert set(results["metrics"]) >= {"brightness/std_ratio", "guided/overexposed"}
    assert results["pretrained"] == diffusers_io.digests(sd / "tiny")
    for name in ("guided", "data", "contact_sheet"):
        assert np.ptp(np.asarray(Image.open(trained / "samples" / f"{name}.png"))) > 0
    drawn = np.load(trained / "samples" / "samples.npz")
    assert drawn["images"].shape == (16, 8, 8, 3)
    assert drawn["prompts"][0] == drawn["prompts"][8] == "solid black background"
    assert "solid black background" in (trained / "report.html").read_text()


def test_by_fsdp_it_learns_the_same(trained: Path, in_slices: Path) -> None:
    rows = [read_rows(folder / "metrics.jsonl") for folder in (trained, in_slices)]
    for mine, theirs in zip(*rows, strict=True):
        for name in ("loss", "grad_norm", "loss_at_T"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3), (mine["step"], name)
    pictures = [
        np.load(folder / "samples" / "samples.npz")["images"].astype(int)
        for folder in (trained, in_slices)
    ]
    assert np.abs(pictures[0] - pictures[1]).mean() < 1


def test_a_checkpoint_of_either_mode_is_exported_for_torch(sd: Path, in_slices: Path) -> None:
    done = run(sd, in_slices, "--mode=export")  # by pmap, what fsdp has written
    assert done.returncode == 0, done.stderr
    theirs, ours = sd / "tiny", in_slices / "diffusers"
    scheduler = json.loads((ours / "scheduler" / "scheduler_config.json").read_text())
    fixed = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction",
             "timestep_spacing": "trailing", "set_alpha_to_one": True}  # fmt: skip
    assert {key: scheduler[key] for key in fixed} == fixed
    for file in sorted(path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file()):
        changed = file.parts[0] in ("scheduler", "model_index.json")
        changed |= file == Path("unet/diffusion_pytorch_model.safetensors")
        assert ((theirs / file).read_bytes() != (ours / file).read_bytes()) == changed, file
    stem = diffusers_io.weight_stem("unet")
    before, after = (safetensors_files.load(folder / "unet", stem) for folder in (theirs, ours))
    assert {name: x.shape for name, x in before.items()} == {n: x.shape for n, x in after.items()}
    again = run(sd, in_slices, "--mode=export")
    assert "exists: export into a folder that does not" in sentence(again)


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence a user sees; no traceback, and a non-zero exit."""
    assert done.returncode not in (0, None)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


MISTAKES = {
    "no latents": ({"dataset.latents": ""}, "needs config.dataset.latents"),
    "no such latents": ({"dataset.latents": "/nowhere"}, "/nowhere/dataset.json"),
    "no such folder": ({"pretrained": "/nowhere"}, "/nowhere/model_index.json"),
    "latents without a folder": ({"pretrained": ""}, "is of runs on latents"),
    "size": ({"dataset.image_size": 64}, "are of 8 pixels: set it to 0"),
    "mesh": ({"parallel.mode": "fsdp", "parallel.mesh": (2, 8)}, "of 16 devices"),
    "mesh of pmap": ({"parallel.mesh": (1, 4)}, "is of fsdp"),
    "mode": ({"parallel.mode": "fdsp"}, "choose pmap or fsdp"),
    "accumulate": ({"train.accumulate": 3}, "does not divide the 16 rows"),
    "leak": ({"sampler.start": "signal_leak"}, "is of runs on images"),
    "prompts": ({"evaluation.prompts": "/nowhere.txt"}, "/nowhere.txt cannot be read"),
    "inception": ({"evaluation.inception": "/nowhere"}, "convert it once by python -c"),
    "clip": ({"evaluation.clip": "/nowhere"}, "there is no /nowhere/config.json"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_before_anything_is_written(
    mistake: str, sd: Path, tmp_path: Path
) -> None:
    settings, message = MISTAKES[mistake]
    config = recipe("sd_tiny", "smoke")
    folders = {"pretrained": str(sd / "tiny"), "dataset.latents": str(sd / "latents")}
    config.update_from_flattened_dict(folders | settings)
    with pytest.raises(UsageError, match=re.escape(message)):
        modes.train(config, tmp_path / "run", "")
    assert not (tmp_path / "run").exists()


def test_latents_of_another_autoencoder_are_refused(sd: Path, tmp_path: Path) -> None:
    random_folder.write_folder(tmp_path / "other", "one resolution", seed=1)
    done = run(sd, tmp_path / "run", f"--config.pretrained={tmp_path / 'other'}")
    assert "was encoded with another autoencoder" in sentence(done)


def test_a_prompt_that_is_too_long_is_cut_with_a_warning(
    sd: Path, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("a red disc\n" + "black " * 200 + "\n")
    done = run(sd, trained, "--mode=sample", f"--config.evaluation.prompts={tmp_path}/prompts.txt",
               "--config.evaluation.num_samples=2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "warning: prompt 2, and 0 more, are longer than 77 tokens" in done.stderr
