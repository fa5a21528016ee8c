import ast
import html.parser
import json
import pathlib
import re

import numpy as np
import pytest

from zsnr_jax import plotting, report
from zsnr_jax.errors import UsageError

VOID = {"meta", "img", "source", "br", "link", "input"}
NASTY = "<script>alert('&')</script>"


def _estimate(value):
    return {"value": value, "low": value - 0.031, "high": value + 0.042}


def _results(**changes):
    sampler = {"name": "ddim", "eta": 0.0, "spacing": "trailing", "num_steps": 50}
    sampler |= {"guidance_scale": 3.0, "guidance_rescale": 0.7}
    process = {"schedule": "scaled_linear", "num_steps": 1000, "zero_terminal_snr": True}
    densities = ("data", "samples", "ideal_this", "ideal_flawed")
    return {
        "config_name": "configs/brightness.py",
        "command": "python -m zsnr_jax.main --config=configs/brightness.py --workdir=/tmp/run",
        "config": {"seed": 0, "sampler": sampler, "dataset": {"name": "brightness/32"}},
        "process": process | {"prediction": "v", "beta_start": None, "beta_end": None},
        "sampler": sampler,
        "dataset": {"name": "brightness/32", "num_examples": 4096},
        "num_parameters": 1234567,
        "step": 3000,
        "num_samples": 512,
        "hardware": "2 cores of a small machine",
        "versions": {"jax": "0.10.2"},
        "seconds": {"train": 245.0, "sample": 31.0},
        "metrics": {
            "brightness/std_ratio": _estimate(0.931),
            "brightness/wasserstein1": _estimate(0.047),
            "brightness/mean_recovery": _estimate(1.012),
            "brightness/mean_recovery/disc dark": {"value": None, "low": None, "high": None},
        },
        "ideal": {
            "this": {"std_ratio": 0.952, "wasserstein1": 0.021, "mean_recovery": 1.003},
            "flawed": {"std_ratio": 0.413, "wasserstein1": 0.301, "mean_recovery": 0.224},
        },
        "histogram": {"edges": np.linspace(-1, 1, 21).tolist()}
        | {name: [0.5] * 20 for name in densities},
    } | changes


def _row(step, loss=0.2):
    return json.dumps(
        {"step": step, "loss": loss, "loss_at_T": 0.4, "loss_by_level": [0.1] * 10}
        | {"grad_norm": 1.0, "learning_rate": 1e-3, "steps_per_second": 12.0}
    )


@pytest.fixture
def workdir(tmp_path):
    return _write(tmp_path / "run", _results())


def _write(folder, results, pictures=("data", "samples", "guided", "ideal_flawed")):
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "metrics.jsonl").write_text("".join(_row(step) + "\n" for step in (100, 200, 300)))
    for name in pictures:
        images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
        plotting.save_image_grid(folder / "samples" / f"{name}.png", images)
    return folder


class Page(html.parser.HTMLParser):
    """Balanced tags, the text, and every address that a browser would load."""

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.loaded, self.text = [], [], [], ""
        self.source = pathlib.Path(path).read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        self.text = re.sub(r"\s+", " ", self.text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "srcset", "data")]
        if tag == "link":
            self.loaded.append(dict(attrs)["href"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data


def _assert_self_contained(page):
    assert all(address.startswith("data:image/") for address in page.loaded)
    assert "script" not in page.tags and "url(" not in page.source and "@import" not in page.source


def test_the_page_is_whole_and_self_contained(workdir):
    path = report.write_report(workdir)
    assert path == workdir / "report.html"
    page = Page(path)
    _assert_self_contained(page)
    assert page.tags.count("img") == 4 + 3 and page.tags.count("source") == 3
    assert not list(workdir.glob("*.part"))


def test_the_page_says_the_numbers(workdir):
    text = Page(report.write_report(workdir)).text
    assert "reaches 0.93 of the data’s (95\xa0% interval 0.90 to 0.97)".replace("\xa0", " ") in text
    assert "would reach 0.95 with this recipe, and only 0.41 with the flawed one" in text
    for said in ("0.047", "0.016 to 0.089", "0.301", "disc dark", "4 min 5 s", "1,234,567"):
        assert said in text
    for said in ("jax 0.10.2", "50 trailing steps", "zero terminal SNR", "scale 3.0, rescale 0.7"):
        assert said in text
    assert "nan" not in text.lower() and "None" not in text


def test_all_text_is_escaped(tmp_path):
    results = _results(config_name=NASTY, command=NASTY, hardware=NASTY, versions={NASTY: NASTY})
    results["dataset"]["name"] = results["config"][NASTY] = NASTY
    results["metrics"][f"brightness/mean_recovery/{NASTY}"] = _estimate(0.5)
    results["metrics"][NASTY] = 3.0
    results["sampler"]["spacing"] = results["process"]["schedule"] = NASTY
    run = _write(tmp_path / "a<b>&", results)
    other = _write(tmp_path / "other", _results())
    for path in (report.write_report(run), report.write_comparison([run, other], tmp_path / "c")):
        page = Page(path)
        _assert_self_contained(page)
        assert page.text.count(NASTY) >= 5


def test_a_set_without_brightness_has_a_page_without_those_parts(tmp_path):
    results = _results(metrics={"fid": 23.76})
    del results["ideal"], results["histogram"]
    run = _write(tmp_path / "run", results, pictures=("samples",))
    page = Page(report.write_report(run))
    assert "512 samples after 3,000 training steps" in page.text
    assert "23.8" in page.text and "ideal" not in page.text and "flawed recipe" not in page.text
    assert page.tags.count("img") == 1 + 2


def test_data_without_spread_or_pictures_or_curves_still_have_a_page(tmp_path):
    nothing = {"value": None, "low": None, "high": None}
    run = _write(tmp_path / "run", _results(metrics={"brightness/std_ratio": nothing}), ())
    (run / "metrics.jsonl").unlink()
    page = Page(report.write_report(run))
    assert "512 samples" in page.text and page.tags.count("img") == 1


def test_the_flawed_recipe_is_not_held_against_itself(tmp_path):
    results = _results()
    results["ideal"]["this"] = results["ideal"]["flawed"]
    page = Page(report.write_report(_write(tmp_path / "run", results)))
    assert "A perfect network would reach 0.41 with this recipe." in page.text


def test_rows_of_a_killed_and_resumed_run(workdir):
    lines = [_row(100), _row(200, loss=9.0), _row(200, loss=0.3), _row(150), '{"step": 250, "lo']
    (workdir / "metrics.jsonl").write_text("\n".join(lines))
    rows = report.load_run(workdir).rows
    assert [row["step"] for row in rows] == [100, 150, 200] and rows[-1]["loss"] == 0.3
    (workdir / "metrics.jsonl").write_text("\n".join(lines[::-1]))
    with pytest.raises(UsageError, match="line 1 of .*metrics.jsonl"):
        report.load_run(workdir)


def test_missing_and_broken_files_are_named_with_a_remedy(workdir, tmp_path):
    with pytest.raises(UsageError, match=r"there is no .*results.json: run python -m"):
        report.write_report(tmp_path / "nowhere")
    (workdir / "samples" / "data.png").write_bytes(b"not a picture")
    with pytest.raises(UsageError, match=r"data.png is no readable PNG .* delete it"):
        report.write_report(workdir)
    results = _results()
    del results["process"]
    for content, message in ((json.dumps(results), "lacks process"), ('{"a": ', "cannot be read")):
        (workdir / "results.json").write_text(content)
        with pytest.raises(UsageError, match=message):
            report.write_report(workdir)
    for content in ("[]", "3"):
        (workdir / "results.json").write_text(content)
        with pytest.raises(UsageError, match="lacks config_name"):
            report.write_report(workdir)


def test_runs_beside_each_other(workdir, tmp_path):
    changed = _results(metrics={"brightness/std_ratio": _estimate(0.411)})
    changed["sampler"]["spacing"] = "leading"  # the config holds the same object
    other = _write(tmp_path / "flawed", changed)
    page = Page(report.write_comparison([workdir, other], tmp_path / "page.html"))
    _assert_self_contained(page)
    assert "run beside flawed" in page.text
    assert "reaches 0.93" in page.text and "reaches 0.41" in page.text
    assert "sampler.spacingtrailingleading" in page.text and "seed" not in page.text
    assert page.tags.count("img") == 1 + 2 + 2
    same = Page(report.write_comparison([workdir, workdir], tmp_path / "same.html"))
    assert "the configs are equal" in same.text


def test_many_runs_have_a_line_each(workdir, tmp_path):
    others = []
    for i in range(4):
        results = _results(metrics={"brightness/std_ratio": _estimate(0.5 + i / 10)})
        others.append(_write(tmp_path / f"spacing=trailing,seed={i}", results))
    page = Page(report.write_comparison([workdir, *others], tmp_path / "page.html"))
    _assert_self_contained(page)
    assert "5 runs" in page.text and "beside" not in page.text
    for i in range(4):
        assert f"spacing=trailing, seed={i}0.{5 + i}" in page.text
    assert page.tags.count("table") == 1


def test_the_command_line(workdir, tmp_path, capsys):
    report.main([str(workdir)])
    assert capsys.readouterr().out.strip() == str(workdir / "report.html")
    first = (workdir / "report.html").read_bytes()
    report.main([str(workdir), f"--out={tmp_path}/new/again.html"])
    assert (tmp_path / "new" / "again.html").read_bytes() == first  # redrawn, the same to the byte
    report.main([str(workdir), str(workdir), f"--out={tmp_path}/both.html"])
    assert (tmp_path / "both.html").exists()
    for arguments, message in (([str(tmp_path)], "there is no"), ([str(workdir)] * 2, "--out")):
        with pytest.raises(SystemExit, match=f"^zsnr_jax.report: .*{message}"):
            report.main(arguments)


@pytest.mark.parametrize("module", [report, plotting])
def test_pages_and_figures_need_result_files_only(module):
    tree = ast.parse(pathlib.Path(module.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    roots = {getattr(node, "module", None) or node.names[0].name for node in imports}
    assert not {"jax", "flax"} & {root.split(".")[0] for root in roots}
    ours = {root for root in roots if root.startswith("zsnr_jax")}
    assert ours <= {"zsnr_jax", "zsnr_jax.errors"}
