"""What a fine-tuned Stable Diffusion is worth: pictures of prompts, their scores, and the page.

Samples are guided, as the paper's are, and decoded. Their brightness stands beside that of the
data, decoded from the moments' means. FID, IS and the CLIP score need weights of other networks, in
files that the user gives; without them they are not measured, and it is said how to get them.

The paper's protocol (arXiv 2305.08891, section 5, Table 3): 10k captions of COCO 2014's validation
set, DDIM, S = 50, w = 7.5, no negative prompt. It leaves open, and here is chosen: captions are the
user's file, in its order; sample i starts from the noise of seed and i; pictures are 8-bit RGB, and
for FID resized to the size of the real images; the variant of FID is named with the number.
"""

import json
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zsnr_jax import files, parallel, plotting, report, results
from zsnr_jax.build import LatentRun
from zsnr_jax.evaluation import brightness, exposure, scores
from zsnr_jax.generate import to_uint8
from zsnr_jax.prompts import Prompt
from zsnr_jax.train.state import Params

_DATA_IMAGES = 512  # decoded to compare brightness with
_SHEET = 16  # prompts on the contact sheet
_EXPOSURE = (exposure.overexposed, exposure.contrast)


class Drawn(NamedTuple):
    """Guided samples and their prompts, where there are any; on the first host."""

    pictures: np.ndarray  # uint8 [n, H, W, C]
    brightness: np.ndarray  # of each, [n], before it was clipped to 8 bits, as are the next two
    overexposed: np.ndarray
    contrast: np.ndarray
    captions: list[str]


def write_samples(run: LatentRun, params: Params, folder: Path) -> Drawn | None:
    """Draw a run's prompts in turn into a folder: contact_sheet.png, guided.png and samples.npz.

    Returns: what was drawn, on the first host; all hosts draw together.
    """
    prompts = run.prompts()
    prompts = [prompts[i % len(prompts)] for i in range(run.num_samples)] if prompts else []
    ids, negatives = _tokens(run, prompts)
    parts = []
    for images in run.generator.batches(params, ids, True, negatives, run.drawing):
        if parallel.is_first_host():  # measured at once: 10,000 pictures in float32 take 30 GB
            measured = (f(images) for f in (brightness.mean_brightness, *_EXPOSURE))
            parts.append((to_uint8(images), *measured))
    if not parts:
        return None
    pictures, *measured = (np.concatenate(part) for part in zip(*parts))
    drawn = Drawn(pictures, *measured, captions=[prompt.text for prompt in prompts])
    folder.mkdir(exist_ok=True)
    plotting.save_image_grid(folder / "guided.png", drawn.pictures)
    if prompts:
        sheet = plotting.contact_sheet(drawn.pictures[:_SHEET], drawn.captions[:_SHEET])
        plotting.save_figure(folder / "contact_sheet.png", sheet)
    np.savez_compressed(folder / "samples.npz", images=drawn.pictures, prompts=drawn.captions)
    return drawn


def evaluate(
    run: LatentRun,
    params: Params,
    workdir: Path,
    *,
    step: int,
    command: str,
    train_seconds: float | None,
) -> dict[str, Any]:
    """Draw samples, measure them, and write results.json and report.html.

    Arguments and result as of `results.evaluate`.
    """
    judges = scores.load(run.settings["evaluation"])  # refused before anything is drawn
    start = time.perf_counter()
    drawn = write_samples(run, params, workdir / "samples")
    data = decode_data(run, min(_DATA_IMAGES, run.num_samples))
    if drawn is None:
        return {"metrics": {}}
    sample_seconds = time.perf_counter() - start
    plotting.save_image_grid(workdir / "samples" / "data.png", to_uint8(data))
    of_data, one_label = brightness.mean_brightness(data), lambda n: np.zeros(n, np.int32)
    metrics = dict(
        brightness.compare(
            drawn.brightness, one_label(len(drawn.pictures)), of_data, one_label(len(data)),
            ["image"], run.seed,
        )
    )  # fmt: skip
    of_exposure = drawn.overexposed, drawn.contrast, exposure.contrast(data)
    metrics |= dict(exposure.compare(*of_exposure, run.seed))
    metrics |= judges.measure(drawn.pictures, drawn.captions)
    found = {
        **results.told(run, params, step, command),
        "dataset": {"name": run.source.info.source, "num_examples": len(run.source)},
        "num_samples": len(drawn.pictures),
        "prompts": drawn.captions[:_SHEET],
        "seconds": {
            "train": train_seconds or results.train_seconds_before(workdir),
            "sample": sample_seconds,
        },
        "metrics": {name: value for name, value in metrics.items() if value["value"] is not None},
        "networks": judges.provenance,
        "pretrained": run.record["pretrained"],
        "histogram": results.histogram({"data": of_data, "samples": drawn.brightness}),
    }
    files.write_text(workdir / "results.json", json.dumps(found, indent=2) + "\n")
    report.write_report(workdir)
    warned = [value["warning"] for value in metrics.values() if "warning" in value]
    print(*warned, *judges.missing(drawn.captions), sep="\n")
    return found


def decode_data(run: LatentRun, count: int) -> np.ndarray:
    """Images of the data at even distances, from the moments' means: float32 [count, H, W, C]."""
    size = run.generator.batch_size
    rows = [i % count * len(run.source) // count for i in range(-(-count // size) * size)]
    means = np.stack([np.split(run.source[row]["moments"], 2, axis=-1)[0] for row in rows])
    scaled, place = means * np.float32(run.vae.scaling_factor), run.placement.draw(run.decode)
    vae = run.drawing["vae"]
    batches = [place(vae, scaled[i : i + size]) for i in range(0, len(scaled), size)]
    return np.concatenate(batches)[:count]


def _tokens(run: LatentRun, prompts: list[Prompt]) -> tuple[np.ndarray, np.ndarray | None]:
    """Token ids of prompts and of their negatives; without prompts, of captions of the data."""
    if not prompts:
        return run.conditions(run.num_samples), None
    texts, negatives = (run.tokenizer([prompt[i] for prompt in prompts]) for i in (0, 1))
    for which, tokens in (("prompt", texts), ("negative prompt", negatives)):
        for row in np.flatnonzero(tokens.cut)[:1]:
            warnings.warn(
                f"{which} {row + 1}, and {np.count_nonzero(tokens.cut) - 1} more, are longer than "
                f"{run.tokenizer.length} tokens: the last {tokens.cut[row]} of it are not seen.",
                stacklevel=2,
            )
    return texts.ids, negatives.ids
