"""What training on many chips sends and holds, and what loading takes as hosts are added.

  python -m experiments.benchmarks.scale [--devices=1,2,4,8,16,32] [--out=FILE.json]

Three tables, a JSON and a picture. Steps of a small network compiled for TPUs that are not there,
by each placement, beside the least they must send (`compiled_steps`); the full-size step on up to
4096 chips, computed from sizes (`computed_scale`); a host's part of each batch, timed (`loading`).
It needs libtpu, by the `tpu` extra.
"""

import json
import os
from pathlib import Path
from typing import Any

import jax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

from experiments.benchmarks import compiled_steps, computed_scale, loading, options
from experiments.benchmarks.turns import about
from zsnr_jax import files, parallel, plotting
from zsnr_jax.errors import UsageError

RESULT = Path(__file__).with_suffix(".json")
# Of libtpu: to be loaded beside another process, since nothing is run here.
_ENVIRONMENT = {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
_MIB = 2**20


def main() -> None:
    """Compile, compute and time; print, and write the JSON and the picture beside this file."""
    parser = options.parser(__doc__, RESULT)
    known = [str(count) for count in compiled_steps.SLICES]
    devices = options.some_of(known)
    parser.add_argument("--devices", type=devices, default=",".join(known), help="to compile for")
    chosen = parser.parse_args()
    os.environ.update(_ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")  # TPUs are described, and none is looked for
    command = "python -m experiments.benchmarks.scale"
    command += f" --devices={','.join(chosen.devices)}" if chosen.devices != known else ""
    try:
        steps = compile_steps([int(count) for count in chosen.devices])
    except UsageError as error:
        raise SystemExit(f"error: {error}") from None
    data, computed = loading.measure(), computed_scale.measure()
    found = {
        **about(command),
        "compiled": {"status": "compiled, not run", "rows": compiled_steps.ROWS, "steps": steps},
        "computed": computed,
        "loading": data,
    }
    files.write_text(chosen.out, json.dumps(found, indent=1) + "\n")
    plotting.save_figure(chosen.out.with_suffix(".png"), draw(found))
    print(told(found))


def compile_steps(counts: list[int]) -> list[dict[str, Any]]:
    """The small step by each placement for each number of devices."""
    cases = [(mode, count) for mode in parallel.MODES for count in counts]
    return [
        compiled_steps.examine(
            compiled_steps.plan_small(mode, count), compiled_steps.tpus(count)
        ).to_dict()
        for mode, count in tqdm(cases, desc="compiling", unit="program", leave=False)
    ]


def told(found: dict[str, Any]) -> str:
    """All tables, in Markdown."""
    return "\n\n".join(
        [
            "Compiled for TPU v5e, not run; MiB a device and step.",
            table(found["compiled"]["steps"]),
            f"Stable Diffusion 2.1 on {found['computed']['chip']['name']}, computed: not compiled, "
            "not run. Bytes of memory are the README's, of two digits; a step is told with all "
            "sending hidden behind computing, and with none.",
            computed_scale.table(found["computed"]),
            f"Loading, on {found['machine']}.",
            loading.table(found["loading"]),
        ]
    )


def table(steps: list[dict[str, Any]]) -> str:
    """What each compiled step sends and holds, in Markdown."""
    lines = [
        "| placement | devices | all-gathers (arrays) | sent by them | reduce-scatters | sent | "
        "all-reduces | sent | sent in all | least | of least | state a device | of the whole |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for step in steps:
        cells = [step["mode"], str(step["devices"])]
        for kind in ("all-gather", "reduce-scatter", "all-reduce"):
            of_kind = [one for one in step["collectives"] if one["kind"] == kind]
            arrays = sum(one["arrays"] for one in of_kind)
            cells.append(f"{len(of_kind)} ({arrays})" if of_kind else "-")
            cells.append(_mib(sum(one["sent"] for one in of_kind)))
        least, ratio = step["least"], step["sent_of_least"]
        cells += [_mib(sum(step["sent"].values())), _mib(sum(least.values()))]
        cells += ["-" if ratio is None else f"{ratio:.3f}", _mib(step["state_here"])]
        lines.append(f"| {' | '.join(cells)} | {step['state_of_whole']:.4f} |")
    return "\n".join(lines)


def draw(found: dict[str, Any]) -> Figure:
    """What is sent, what is held, what the full size would reach, and what loading takes."""
    figure = Figure(figsize=(11.0, 7.0), layout="constrained")
    (sent, held), (full, data) = figure.subplots(2, 2)
    _draw_compiled(sent, held, found["compiled"]["steps"])
    _draw_computed(full, found["computed"])
    theme = plotting.LIGHT
    for name, colour, label in (
        ("fixed_share", theme.samples, f"{found['loading']['rows_of_a_host']} rows a host"),
        ("fixed_batch", theme.ideal, f"{found['loading']['rows_of_all']} rows of all hosts"),
    ):
        rows = found["loading"][name]
        _line(data, [row["hosts"] for row in rows], [row["ratio"] for row in rows], colour, label)
    _finish(data, "Loading: does a row take longer with more hosts?", "hosts")
    data.set(ylim=(0, 1.6), ylabel="time of a row, of that with one host")
    return figure


def _draw_compiled(sent: Axes, held: Axes, steps: list[dict[str, Any]]) -> None:
    theme = plotting.LIGHT
    for mode, colour in (("pmap", theme.flawed), ("fsdp", theme.samples)):
        of_mode = [step for step in steps if step["mode"] == mode]
        counts = [step["devices"] for step in of_mode]
        least = [sum(step["least"].values()) / _MIB for step in of_mode]
        total = [sum(step["sent"].values()) / _MIB for step in of_mode]
        _line(sent, counts, total, colour, f"{mode}, compiled")
        sent.plot(counts, least, color=colour, linestyle=":", label=f"{mode}, the least")
        _line(held, counts, [step["state_of_whole"] for step in of_mode], colour, mode)
    counts = sorted({step["devices"] for step in steps})
    held.plot(counts, [1 / n for n in counts], color=theme.ink, linestyle=":", label="1 / devices")
    _finish(sent, "Sent: how near is a small step to the least?", "TPU v5e chips, compiled for")
    sent.set(ylabel="MiB a device and step", ylim=(0, None))
    _finish(held, "Held: what share of the state has a device?", "TPU v5e chips, compiled for")
    held.set_yscale("log", base=2)
    held.set_yticks([2.0**-k for k in range(6)], ["1", *(f"1/{2**k}" for k in range(1, 6))])


def _draw_computed(axes: Axes, computed: dict[str, Any]) -> None:
    theme = plotting.LIGHT
    for name, colour, label in (
        ("strong", theme.flawed, "the config's batch, shared"),
        ("weak", theme.samples, f"{computed['microbatch']} rows a chip"),
    ):
        counts = [size["chips"] for size in computed[name]]
        low, high = zip(*(size["efficiency"] for size in computed[name]), strict=True)
        axes.fill_between(counts, low, high, color=colour, alpha=0.25, linewidth=0)
        _line(axes, counts, low, colour, f"{label}: nothing overlaps")
        axes.plot(counts, high, color=colour, linestyle="--", label=f"{label}: all overlaps")
    _finish(axes, "Full size: what share of the ideal? (computed, not run)", "TPU v5p chips")
    axes.set(ylim=(0, 1.1), ylabel="efficiency")


def _line(axes: Axes, x: Any, y: Any, colour: str, label: str) -> None:
    axes.plot(x, y, color=colour, marker="o", markersize=4, label=label)


def _finish(axes: Axes, title: str, xlabel: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, weight="bold", color=plotting.LIGHT.ink)
    axes.set_xscale("log", base=2)
    ticks = sorted({float(x) for line in axes.get_lines() for x in line.get_xdata()})  # pyright: ignore
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.set_xlabel(xlabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def _mib(size: float) -> str:
    return f"{size / _MIB:.3f}" if size else "-"


if __name__ == "__main__":
    main()
