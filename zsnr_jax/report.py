"""The page that tells what a run did: one self-contained HTML file.

    python -m zsnr_jax.report WORKDIR                              writes WORKDIR/report.html
    python -m zsnr_jax.report WORKDIR_A WORKDIR_B --out=page.html  runs beside each other
    python -m zsnr_jax.report experiments/results                  the page of all claims

It reads results.json, metrics.jsonl and samples/*.png only, so that a page can be drawn again
without a model. Nothing on it is loaded from anywhere: pictures and styles are inside.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from zsnr_jax import claims, files, page, plotting
from zsnr_jax.errors import UsageError

_REQUIRED = ("config_name", "command", "config", "process", "sampler", "dataset", "metrics", "step")
_FEW = 3  # runs that a page has room for beside each other
# What a metric is called, and the value it should have.
_METRICS = {
    "brightness/std_ratio": ("Standard deviation, samples / data", "1"),
    "brightness/wasserstein1": ("Distance of the distributions (W1)", "0"),
    "brightness/mean_recovery": ("Label means, samples / data", "1"),
    "guided/overexposed": ("Guided samples: share of values beyond [-1, 1]", "0"),
    "guided/contrast": ("Guided samples: contrast / data", "1"),
}


class Run(NamedTuple):
    """The result files of a workdir, read."""

    workdir: pathlib.Path
    results: dict[str, Any]
    rows: list[dict[str, Any]]  # of metrics.jsonl, one per step, ascending

    @property
    def name(self) -> str:
        """The workdir's own name."""
        return self.workdir.resolve().name


def load_run(workdir: str | os.PathLike[str]) -> Run:
    """Read a workdir's result files.

    Raises: UsageError where results.json is missing or broken, or metrics.jsonl is broken. A
      metrics.jsonl that is missing, or was cut off in its last line, is no error.
    """
    folder = pathlib.Path(workdir)
    path = folder / "results.json"
    remedy = "run python -m zsnr_jax.main with its --config and --workdir to write it"
    try:
        results = files.read_json(path, f"{remedy} again", finite=False)
    except FileNotFoundError:
        raise UsageError(f"there is no {path}: {remedy}.") from None
    missing = [key for key in _REQUIRED if not isinstance(results, dict) or key not in results]
    if missing:
        raise UsageError(f"{path} lacks {', '.join(missing)}: {remedy} again.")
    return Run(folder, results, files.read_rows(folder / "metrics.jsonl"))


def write_report(
    workdir: str | os.PathLike[str], out: str | os.PathLike[str] | None = None
) -> pathlib.Path:
    """Write a run's page, and return its path.

    Args: workdir: holds results.json; metrics.jsonl and samples/*.png are shown where they exist.
      out: default: report.html in the workdir.
    Raises: UsageError for a missing or broken file.
    """
    run = load_run(workdir)
    path = pathlib.Path(out) if out else run.workdir / "report.html"
    with _drawn(run):
        title = f"{_dataset(run)}: {run.results['config_name']}"
        body = [_header(run), _pictures(run), _numbers(run), _curves(run), _provenance(run)]
    return page.write(path, title, "\n".join(body))


def write_comparison(
    workdirs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]
) -> pathlib.Path:
    """Write one page that shows runs beside each other, and return its path.

    Args: workdirs: two or more; what differs in their configs is listed.  out: the HTML file.
    Raises: UsageError for a missing or broken file.
    """
    runs = [load_run(workdir) for workdir in workdirs]
    few = len(runs) <= _FEW
    title = " beside ".join(run.name for run in runs) if few else f"{len(runs)} runs"
    body = [f"<header><h1>{page.text(title)}</h1></header>"]
    with _drawn(*runs):
        if few:
            body += [_pictures_of_all(runs), _numbers_of_all(runs), _differences(runs)]
        else:
            body += [_table_of_many(runs), _pictures_of_all(runs)]
        body.append(_commands(runs))
    return page.write(pathlib.Path(out), title, "\n".join(body))


def verdict(run: Run) -> str:
    """One or two sentences of HTML with the numbers that matter most."""
    spread = _estimate(run, "brightness/std_ratio")
    if spread["value"] is None:
        return f"{_count(run, 'num_samples')} samples after {_count(run, 'step')} training steps."
    sentence = (
        "The standard deviation of brightness reaches "
        f"<strong>{spread['value']:.2f}</strong> of the data&rsquo;s"
    )
    if spread["low"] is not None and spread["high"] is not None:
        sentence += f" (95&nbsp;% interval {spread['low']:.2f} to {spread['high']:.2f})"
    this, flawed = (_ideal(run, which, "brightness/std_ratio") for which in ("this", "flawed"))
    if this is None or flawed is None:
        return sentence + "."
    sentence += f". A perfect network would reach <strong>{this:.2f}</strong> with this recipe"
    if this - flawed < 0.005:  # this recipe is the flawed one
        return sentence + "."
    return f"{sentence}, and only <strong>{flawed:.2f}</strong> with the flawed one."


def recipe(run: Run) -> str:
    """The diffusion process and the sampler in a line of plain text."""
    process, sampler = run.results["process"], run.results["sampler"]
    end = "zero terminal SNR" if process.get("zero_terminal_snr") else "terminal SNR above zero"
    return (
        f"Recipe: {process.get('schedule')} schedule, {end}, "
        f"{process.get('prediction')}-prediction; "
        f"{sampler.get('name')}, {sampler.get('num_steps')} {sampler.get('spacing')} steps"
    )


def _drawn(*runs: Run) -> contextlib.AbstractContextManager[None]:
    """Tell in a sentence of result files whose values are not those that a run writes."""
    names = " or ".join(str(run.workdir / "results.json") for run in runs)
    return files.readable(names, "write it again by python -m zsnr_jax.main --mode=eval")


# Parts of the page of one run.


def _header(run: Run) -> str:
    return (
        f"<header><p class=eyebrow>{page.text(run.results['config_name'])}</p>"
        f"<h1>{page.text(_dataset(run))}</h1><p class=verdict>{verdict(run)}</p>"
        f"<p class=quiet>{page.text(recipe(run))}.</p></header>"
    )


def _pictures(run: Run) -> str:
    rows = [
        ("data", "The data", "What the samples should look like, as a set."),
        ("samples", "This run", _sentence(_sampled(run))),
        (
            "ideal_flawed",
            "The flawed recipe at its best",
            "A perfect network on the original schedule, sampled with leading timesteps.",
        ),
        ("guided", "This run, guided", _sentence(_guided(run))),
    ]
    shown = [_strip(run, *row) for row in rows if _has_picture(run, row[0])]
    note = "Each strip runs from dark to bright, at even quantiles of its set."
    strips = f"<section><h2>Pictures</h2><p class=quiet>{note}</p>{''.join(shown)}</section>"
    return _sheet(run) + (strips if shown else "")


def _sheet(run: Run) -> str:
    """Pictures of prompts, of a run that draws from text."""
    if not _has_picture(run, "contact_sheet"):
        return ""
    asked = "; ".join(run.results.get("prompts", []))
    return f"<section>{_strip(run, 'contact_sheet', 'Prompts', alt=asked)}</section>"


def _numbers(run: Run) -> str:
    figure = ""
    if "histogram" in run.results:
        figure = _figure(
            lambda dark: plotting.brightness_histogram(run.results, dark),
            "Histogram of mean brightness: the data, the samples and the ideal denoisers",
        )
    ideal = bool(run.results.get("ideal"))
    head = ["", "this run", "95&nbsp;% interval"]
    head += ["this recipe, ideal", "flawed recipe, ideal"] if ideal else []
    lines = []
    for name in run.results["metrics"]:
        estimate = _estimate(run, name)
        cells = [f"<b>{_number(estimate['value'])}</b>", _interval(estimate)]
        if ideal:
            best = [_ideal(run, which, name) for which in ("this", "flawed")]
            cells += ["" if value is None else _number(value) for value in best]
        lines.append((_metric_name(name), cells))
    if not lines:
        return f"<section>{figure}</section>" if figure else ""
    table = page.table(head, lines)
    return f"<section><h2>Numbers</h2><div class=two>{figure}<div>{table}</div></div></section>"


def _curves(run: Run) -> str:
    if not run.rows:
        return ""
    figures = [_figure(lambda dark: plotting.loss_curve(run.rows, dark), "Loss over the steps")]
    if plotting.mean_by_level(run.rows):
        steps = run.results["process"].get("num_steps")
        figures.append(
            _figure(
                lambda dark: plotting.loss_by_level(run.rows, steps, dark=dark),
                "Loss in each tenth of the noise levels",
            )
        )
    return f"<section><h2>Training</h2><div class=two>{''.join(figures)}</div></section>"


def _provenance(run: Run) -> str:
    results = run.results
    seconds = results.get("seconds", {})
    facts = {
        "Hardware": results.get("hardware"),
        "Training": page.duration(seconds.get("train"), f"{_count(run, 'step')} steps"),
        "Sampling": page.duration(seconds.get("sample"), f"{_count(run, 'num_samples')} samples"),
        "Parameters": _count(run, "num_parameters"),
        "Data": f"{_dataset(run)}, {results['dataset'].get('num_examples', 0):,} images",
        "Versions": ", ".join(f"{k} {v}" for k, v in results.get("versions", {}).items()),
    }
    listed = "".join(f"<dt>{k}</dt><dd>{page.text(v)}</dd>" for k, v in facts.items() if v)
    redraw = f"python -m zsnr_jax.report {shlex.quote(str(run.workdir))}"
    config = page.text(json.dumps(results["config"], indent=2, sort_keys=True))
    return (
        f"<section><h2>Repeat it</h2><pre>{page.text(results['command'])}</pre>"
        f"<p class=quiet>This page alone, from the result files:</p><pre>{page.text(redraw)}</pre>"
        f"<dl>{listed}</dl>"
        f"<details><summary>Resolved config</summary><pre>{config}</pre></details></section>"
    )


# Parts of the page of several runs.


def _pictures_of_all(runs: Sequence[Run]) -> str:
    shown = []
    if _has_picture(runs[0], "data"):
        shown.append(
            _strip(runs[0], "data", "The data", "From dark to bright, as every strip here.")
        )
    for run in runs:
        told = f"<p class=verdict>{verdict(run)}</p><p class=quiet>{page.text(recipe(run))}.</p>"
        shown.append(f"<h2>{page.text(run.name)}</h2>{told}")
        if _has_picture(run, "samples"):
            shown.append(_strip(run, "samples"))
    return f"<section>{''.join(shown)}</section>"


def _numbers_of_all(runs: Sequence[Run]) -> str:
    names = list(dict.fromkeys(name for run in runs for name in run.results["metrics"]))
    lines = []
    for name in names:
        estimates = [_estimate(run, name) for run in runs]
        lines.append(
            (
                _metric_name(name),
                [f"<b>{_number(e['value'])}</b> {_interval(e)}" for e in estimates],
            )
        )
    figures = [
        f"<div><h3>{page.text(run.name)}</h3>"
        + _figure(
            lambda dark, run=run: plotting.brightness_histogram(run.results, dark),
            f"Histogram of mean brightness of {run.name}",
        )
        + "</div>"
        for run in runs
        if "histogram" in run.results
    ]
    table = page.table(["", *(page.text(run.name) for run in runs)], lines) if lines else ""
    return (
        f"<section><h2>Numbers, with 95&nbsp;% intervals</h2>{table}"
        f"<div class=two>{''.join(figures)}</div></section>"
    )


def _table_of_many(runs: Sequence[Run]) -> str:
    """A line for each run, which a table with a column for each has no room for."""
    names = [name for name in _METRICS if any(name in run.results["metrics"] for run in runs)]
    lines = []
    for run in runs:
        values = (_number(_estimate(run, name)["value"]) for name in names)
        lines.append(
            (page.text(run.name.replace(",", ", ")), [f"<b>{value}</b>" for value in values])
        )
    table = page.table(["", *map(_metric_name, names)], lines)
    return f"<section><h2>Numbers</h2>{table}</section>"


def _differences(runs: Sequence[Run]) -> str:
    configs = [files.flatten(run.results["config"]) for run in runs]
    keys = sorted({key for config in configs for key in config})
    lines = []
    for key in keys:
        values = [config.get(key, "–") for config in configs]
        if any(value != values[0] for value in values):
            lines.append((page.text(key), [page.text(value) for value in values]))
    table = page.table(["", *(page.text(run.name) for run in runs)], lines)
    table = table if lines else "<p>Nothing: the configs are equal.</p>"
    return f"<section><h2>What differs</h2>{table}</section>"


def _commands(runs: Sequence[Run]) -> str:
    commands = "".join(f"<pre>{page.text(run.results['command'])}</pre>" for run in runs)
    return f"<section><h2>Repeat it</h2>{commands}</section>"


# Pieces.


def _strip(run: Run, name: str, title: str = "", caption: str = "", alt: str = "") -> str:
    path = run.workdir / "samples" / f"{name}.png"
    remedy = "delete it, or sample again, and draw the page once more"
    source, (width, height) = page.picture(path, remedy)
    heading = (
        f"<b>{page.text(title)}</b> <span class=quiet>{page.text(caption)}</span>" if title else ""
    )
    alt = page.text(alt or f"{title or run.name}, from dark to bright")
    return (
        f"<figure><figcaption>{heading}</figcaption>"
        f'<img src="{source}" width={width} height={height} alt="{alt}"></figure>'
    )


def _figure(draw: Callable[[bool], Figure], alt: str) -> str:
    """A figure in two versions, of which the browser shows the one that suits the page."""
    light, dark = (
        page.data_uri(plotting.to_svg(draw(is_dark)), "image/svg+xml") for is_dark in (False, True)
    )
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{page.text(alt)}"></picture>'
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _metric_name(name: str) -> str:
    """HTML for a metric: said in words where it is known, indented where it is for one label."""
    if name in _METRICS:
        words, right = _METRICS[name]
        return f"{words} <span class=aside>{right} is right</span>"
    parent, _, label = name.rpartition("/")
    return f"<span class=sub>{page.text(label)}</span>" if parent in _METRICS else page.text(name)


def _estimate(run: Run, name: str) -> dict[str, float | None]:
    """A metric as value, low and high, each None where there is none."""
    found = run.results["metrics"].get(name)
    found = found if isinstance(found, Mapping) else {"value": found}
    return {key: found.get(key) for key in ("value", "low", "high")}


def _ideal(run: Run, which: str, metric: str) -> float | None:
    """The ideal denoiser's value of a brightness metric; `which` is this or flawed."""
    return run.results.get("ideal", {}).get(which, {}).get(metric.removeprefix("brightness/"))


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if abs(value) < 10:
        return f"{value:.3f}".replace("-", "−")
    return f"{value:,.1f}".replace("-", "−")


def _interval(estimate: Mapping[str, float | None]) -> str:
    if estimate["low"] is None or estimate["high"] is None:
        return ""
    low, high = _number(estimate["low"]), _number(estimate["high"])
    return f"<span class=interval>{low} to {high}</span>"


def _sampled(run: Run) -> str:
    sampler = run.results["sampler"]
    steps = f"{sampler.get('num_steps')} {sampler.get('spacing')} steps"
    start = "a signal leak" if sampler.get("start") == "signal_leak" else "pure noise"
    return f"{steps} from {start}, without guidance, as in all numbers below"


def _guided(run: Run) -> str:
    sampler = run.results["sampler"]
    scale, rescale = (sampler.get(f"guidance_{which}") for which in ("scale", "rescale"))
    within = sampler.get("guidance_interval")
    levels = f", at levels {within[0]} to {within[1]}" if within else ""
    if sampler.get("guidance") == "projected":
        return f"adaptive projected guidance of scale {scale}{levels}"
    return f"classifier-free guidance of scale {scale}, rescale {rescale}{levels}"


def _dataset(run: Run) -> str:
    return str(run.results["dataset"].get("name", "dataset"))


def _count(run: Run, key: str) -> str:
    value = run.results.get(key)
    return f"{value:,}" if isinstance(value, int) else "some"


def _has_picture(run: Run, name: str) -> bool:
    return (run.workdir / "samples" / f"{name}.png").exists()


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page of one run, or of several beside each other."""
    parser = argparse.ArgumentParser("zsnr_jax.report", description="Draw the page of a run again.")
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="holds results.json")
    parser.add_argument("--out", help="the HTML file; for one run by default WORKDIR/report.html")
    arguments = parser.parse_args(argv)
    try:
        folder = pathlib.Path(arguments.workdirs[0])
        is_run = len(arguments.workdirs) > 1 or (folder / "results.json").exists()
        if not is_run and claims.load(folder):
            path = claims.write(folder, pathlib.Path(arguments.out or folder / "report.html"))
        elif len(arguments.workdirs) == 1:
            path = write_report(arguments.workdirs[0], arguments.out)
        elif arguments.out:
            path = write_comparison(arguments.workdirs, arguments.out)
        else:
            raise UsageError("a page of several runs needs a place: pass --out=page.html.")
    except (UsageError, OSError) as error:
        sys.exit(f"zsnr_jax.report: {error}")
    print(path)


if __name__ == "__main__":
    main()
