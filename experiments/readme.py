"""The README's table of claims, written from the results on record.

  python -m experiments.readme

puts it between the two marks in README.md. A test holds the README to it.
"""

import json
from pathlib import Path

from experiments.record import RESULTS

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- by python -m experiments.readme -->\n", "<!-- the end of that -->\n"
NAMES = (  # in the order of the paper
    "table1_terminal_snr",
    "ideal_brightness",
    "resolution_law",
    "resolution_law_trained",
    "brightness_recipes",
    "ablation_fixes",
    "figure_schedules",
    "loss_weights_at_T",
    "table2_sample_steps",
    "figure4_sample_steps",
    "figure4_trained",
    "figure5_terminal_step",
    "figure5_trained",
    "figure6_guidance_rescale",
    "figure6_trained",
    "offset_noise",
    "solvers_at_zero",
)
WAITS = (
    "Table 3: FID and IS on COCO, 22.96 and 34.11 without the fixes",
    "waits for a Stable-Diffusion-sized model",
    "21.66 and 36.16",
    "-",
)


def table() -> str:
    """The table, in Markdown: a line for each experiment on record."""
    lines = [("claim", "experiment", "paper", "ours"), ("---",) * 4]
    for name in NAMES:
        record = json.loads((RESULTS / f"{name}.json").read_text())
        claim = f"{record['place']}: {record['claim']}"
        held = record["summary"] + ("" if record["holds"] else " (it does not hold as asserted)")
        lines.append((claim, f"[{name}](experiments/{name}.py)", record["paper"], held))
    return "".join(f"| {' | '.join(line)} |\n" for line in [*lines, WAITS])


def main() -> None:
    """Put the table into the README."""
    before, rest = README.read_text().split(BEGIN)
    _, after = rest.split(END)
    README.write_text(before + BEGIN + table() + END + after)


if __name__ == "__main__":
    main()
