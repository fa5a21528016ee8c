"""Table 2: which levels ten steps visit, and that every number of steps gives as many levels.

Claim (Section 3.3, Table 2): leading steps never reach T, linspace and trailing steps do, and
linspace wastes its last one on t = 1. The paper prints the levels for T = 1000 and S = 10, and the
rules `arange(1, T+1, floor(T/S))`, `round(linspace(1, T, S))` and `round(flip(arange(T, 0,
-T/S)))`. Taken literally, in float64, they also give another number of levels than S for many S:
the "paper" column of those rows is the rule as printed, run for every S from 1 to 1000.

  python -m experiments.table2_sample_steps

Seconds on a CPU.
"""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.record import Experiment, measured, row, run
from zsnr_jax import plotting, timesteps

PAPER = {  # the levels as printed, in the paper's order
    "leading": [1, 101, 201, 301, 401, 501, 601, 701, 801, 901],
    "linspace": [1, 112, 223, 334, 445, 556, 667, 778, 889, 1000],
    "trailing": [100, 200, 300, 400, 500, 600, 700, 800, 900, 1000],
}


def as_printed(spacing: str, S: int, T: int = 1000) -> np.ndarray:
    """The paper's rule, word for word, in floating point where it is."""
    if spacing == "leading":
        return np.arange(1, T + 1, T // S)
    if spacing == "linspace":
        return np.round(np.linspace(1, T, S))
    return np.round(np.flip(np.arange(T, 0, -T / S)))


def measure(smoke: bool) -> dict[str, Any]:
    """The rows of Table 2, and for which S the count is not S."""
    rows, levels = [], {}
    for spacing, printed in PAPER.items():
        levels[spacing] = timesteps.make_timesteps(spacing, 1000, 10)[::-1].tolist()
        rows.append(row(f"{spacing}, T = 1000, S = 10", paper=printed, ours=levels[spacing]))
    every = range(1, 101 if smoke else 1001)
    for spacing in PAPER:
        literal = [S for S in every if len(as_printed(spacing, S)) != S]
        ours = [S for S in every if len(timesteps.make_timesteps(spacing, 1000, S)) != S]
        what = f"{spacing}: how many S of 1..{every[-1]} give another number of levels"
        rows.append(row(what, paper=len(literal), predicted=0, ours=len(ours)))
        if spacing == "trailing":
            rows.append(row("trailing: the first such S", paper=literal[:5], ours=ours[:5]))
    return {"rows": rows, "levels": levels}


def draw(results: dict[str, Any]) -> Figure:
    """A dot for each level visited."""
    theme = plotting.LIGHT
    notes = {
        "leading": "starts at 901, not at T",
        "linspace": "starts at T, last step at 1",
        "trailing": "starts at T, wastes no step",
    }
    figure = Figure(figsize=(8, 2.9), layout="constrained")
    axes = figure.subplots()
    for place, (spacing, levels) in enumerate(results["levels"].items()):
        colour = theme.samples if max(levels) == 1000 else theme.flawed
        axes.plot([0, 1000], [-place, -place], color=theme.data, lw=1, zorder=0)
        axes.plot(levels, [-place] * len(levels), color=colour, marker="o", ms=8, ls="")
        axes.text(-35, -place, notes[spacing], va="center", color=colour)
    axes.axvline(1000, color=theme.faint, lw=1, ls=":", zorder=0)
    axes.set_yticks([0, -1, -2], list(results["levels"]))
    axes.set(xlim=(1030, -400), ylim=(-2.5, 0.5))
    axes.set_xticks([1000, 800, 600, 400, 200, 0], ["T = 1000", "800", "600", "400", "200", "0"])
    axes.set_xlabel("level t that the network is asked at, from pure noise to clean data")
    axes.set_title("Which levels do ten steps visit?", loc="left", weight="bold")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def check(results: dict[str, Any]) -> None:
    """Table 2 as printed; S levels for every S, where the printed rules have others."""
    for line in results["rows"][:3]:
        assert line["ours"] == line["paper"], line
    counts = [line for line in results["rows"] if "how many S" in line["what"]]
    assert [line["ours"] for line in counts] == [0, 0, 0]
    assert [line["paper"] for line in counts] == [984, 0, 62]
    assert 1000 not in results["levels"]["leading"] and 1 in results["levels"]["linspace"]


def summary(results: dict[str, Any]) -> str:
    """Whether the levels are the paper's, and how many S have as many levels."""
    same = all(line["ours"] == line["paper"] for line in results["rows"][:3])
    wrong = sum(
        measured(results)[f"{spacing}: how many S of 1..1000 give another number of levels"]
        for spacing in PAPER
    )
    levels = "the same" if same else "others"
    return f"{levels}; {wrong} of the S in 1..1000 give another number of levels"


EXPERIMENT = Experiment(
    "table2_sample_steps",
    "Section 3.3, Table 2",
    "Leading steps never reach T, linspace wastes a step on t = 1, trailing does neither; every "
    "number of steps gives as many levels.",
    measure,
    draw,
    check,
    "the levels of S = 10",
    summary,
)


if __name__ == "__main__":
    run(EXPERIMENT)
