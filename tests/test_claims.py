"""The page of all claims, from the files that experiments leave."""

import json

import pytest
from PIL import Image

from zsnr_jax import claims, report
from zsnr_jax.errors import UsageError

RECORD = {
    "name": "a_claim",
    "place": "Section 9, Figure 9",
    "claim": "Less is <more>.",
    "command": "python -m experiments.a_claim",
    "hardware": "2 cores",
    "seconds": 61.2,
    "holds": True,
    "paper": "0.95",
    "summary": "it is 0.96",
    "rows": [
        {"what": "ratio", "paper": None, "predicted": 0.5, "ours": 0.49000001},
        {"what": "levels", "paper": [3, 2], "predicted": None, "ours": [3, 2]},
    ],
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a_claim.json").write_text(json.dumps(RECORD))
    (tmp_path / "of_another_kind.json").write_text("[1, 2]")
    Image.new("RGB", (4, 4)).save(tmp_path / "a_claim.png")
    return tmp_path


def change(folder, **changes):
    (folder / "a_claim.json").write_text(json.dumps(RECORD | changes))


def test_the_page_has_every_number_the_picture_and_the_command(folder, capsys):
    report.main([str(folder)])
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    page = (folder / "report.html").read_text()
    numbers = ("Section 9, Figure 9", "Less is &lt;more&gt;.", "0.49<", "3, 2", "1 min 1 s")
    for words in (*numbers, RECORD["command"], "1 of 1 claims hold", "data:image/png"):
        assert words in page, words
    assert "<more>" not in page and "http" not in page.replace("https://arxiv.org", "")


@pytest.mark.parametrize("holds, verdict", [(False, "does not hold"), (None, "in small only")])
def test_a_claim_that_does_not_hold_is_told(folder, holds, verdict):
    change(folder, holds=holds)
    page = claims.write(folder, folder / "page.html").read_text()
    assert verdict in page and "0 of 1 claims hold" in page


def test_what_is_missing_or_broken_is_named_with_a_remedy(folder):
    (folder / "a_claim.png").rename(folder / "b.png")
    with pytest.raises(UsageError, match="no .*a_claim.png: run python -m experiments.a_claim"):
        claims.load(folder)
    broken = {key: value for key, value in RECORD.items() if key != "rows"}
    (folder / "a_claim.json").write_text(json.dumps(broken))
    with pytest.raises(UsageError, match="lacks rows: run python -m experiments.a_claim again"):
        claims.load(folder)
    (folder / "a_claim.json").write_text("{")
    with pytest.raises(UsageError, match="a_claim.json cannot be read .*: run its experiment"):
        claims.load(folder)
