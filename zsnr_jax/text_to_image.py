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


class Drawn(NamedTuple):
    """Guided samples: float32 [n, H, W, C], not clipped, and their prompts, where there are any."""

    images: np.ndarray
    prompts: list[Prompt]


def write_samples(run: LatentRun, params: Params, folder: Path) -> Drawn:
    """Draw a run's prompts in turn into a folder: contact_sheet.png, guided.png and samples.npz."""
    prompts = run.prompts()
    prompts = [prompts[i % len(prompts)] for i in range(run.num_samples)] if prompts else []
    drawn = Drawn(_draw(run, params, prompts), prompts)
    if parallel.is_first_host():
        pictures = to_uint8(drawn.images)
        folder.mkdir(exist_ok=True)
        plotting.save_image_grid(folder / "guided.png", pictures)
        if prompts:
            sheet = plotting.contact_sheet(pictures[:_SHEET], [p.text for p in prompts[:_SHEET]])
            plotting.save_figure(folder / "contact_sheet.png", sheet)
        np.savez_compressed(
            folder / "samples.npz", images=pictures, prompts=[p.text for p in prompts]
        )
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
    if not parallel.is_first_host():
        return {"metrics": {}}
    sample_seconds = time.perf_counter() - start
    plotting.save_image_grid(workdir / "samples" / "data.png", to_uint8(data))
    label = lambda images: np.zeros(len(images), np.int32)  # noqa: E731
    metrics = dict(
        brightness.evaluate(
            drawn.images, label(drawn.images), data, label(data), ["image"], run.seed
        )
    ) | dict(exposure.evaluate(drawn.images, data, run.seed))
    captions = [prompt.text for prompt in drawn.prompts]
    metrics |= judges.measure(to_uint8(drawn.images), captions)
    found = {
        **results.told(run, params, step, command),
        "dataset": {"name": run.source.info.source, "num_examples": len(run.source)},
        "num_samples": len(drawn.images),
        "prompts": captions[:_SHEET],
        "seconds": {
            "train": train_seconds or results.train_seconds_before(workdir),
            "sample": sample_seconds,
        },
        "metrics": {name: value for name, value in metrics.items() if value["value"] is not None},
        "networks": judges.provenance,
        "pretrained": run.record["pretrained"],
        "histogram": results.histogram({"data": data, "samples": drawn.images}),
    }
    files.write_text(workdir / "results.json", json.dumps(found, indent=2) + "\n")
    report.write_report(workdir)
    for sentence in judges.missing(captions):
        print(sentence)
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


def _draw(run: LatentRun, params: Params, prompts: list[Prompt]) -> np.ndarray:
    if not prompts:
        return run.generator(params, run.conditions(run.num_samples), True, frozen=run.drawing)
    texts, negatives = (run.tokenizer([prompt[i] for prompt in prompts]) for i in (0, 1))
    for which, tokens in (("prompt", texts), ("negative prompt", negatives)):
        for row in np.flatnonzero(tokens.cut)[:1]:
            warnings.warn(
                f"{which} {row + 1}, and {np.count_nonzero(tokens.cut) - 1} more, are longer than "
                f"{run.tokenizer.length} tokens: the last {tokens.cut[row]} of it are not seen.",
                stacklevel=2,
            )
    return run.generator(params, texts.ids, True, negatives.ids, run.drawing)
