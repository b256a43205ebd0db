"""Pages in a real browser: nothing is loaded or run, nothing sticks out, all of it can be read, by day and by night.

Skipped where no Chromium is found. A page is shown in frames of the widths of a phone and of a desk; a script of the
page around them measures.
"""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from sgtm.plot.compare import compare_page, read_compared
from sgtm.plot.report import write_report
from sgtm.plot.tests.report_records import HOSTILE, write_full_run, write_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: pages were not looked at in a browser")

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--allow-file-access-from-files",
)
WIDTHS = (390, 1100)
SCHEMES = {"light": ["--blink-settings=preferredColorScheme=1"], "dark": ["--blink-settings=preferredColorScheme=0"]}
GROUNDS = {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}
MEASURE = (Path(__file__).parent / "measure.js").read_text(encoding="utf-8")


def browse(folder: Path, url: Path, *arguments: str) -> str:
    """What Chromium prints."""
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments, url.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def measured(folder: Path, page: Path, scheme: str) -> dict[str, dict]:
    """What is measured of a page, by the width of its frame."""
    frames = "".join(f'<iframe src="{page.name}" width="{w}" height="900" style="border:0"></iframe>' for w in WIDTHS)
    around = page.with_name(f"around-{page.name}")
    around.write_text(f"<!DOCTYPE html><meta charset=utf-8><body>{frames}<pre></pre><script>{MEASURE}</script></body>")
    shown = browse(folder, around, "--window-size=1600,1000", *SCHEMES[scheme], "--dump-dom")
    return json.loads(unescape(re.search(r"<pre>(.*?)</pre>", shown, re.S)[1]))


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """A run's page, with hostile text; one of a run of which nothing else is known; a sweep's; a comparison."""
    root = tmp_path_factory.mktemp("pages")
    full = write_full_run(root / "full", f"{HOSTILE} {'long' * 40}")
    bare = write_run(root / "bare", steps=20)
    runs = [
        write_run(root / "sweep" / f"{m}-undiscovered{u}-seed{s}", s, s / 9, method=m, labels__undiscovered=u)
        for m in ("sgtm", "filter")
        for u in (0.0, 0.4)
        for s in (0, 1)
    ]
    (root / "compared.html").write_text(compare_page(read_compared(runs[:3])))
    return {
        "full": write_report(full, root / "full.html"),
        "bare": write_report(bare, root / "bare.html"),
        "sweep": write_report(root / "sweep", root / "sweep.html"),
        "compared": root / "compared.html",
    }


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["full", "bare", "sweep", "compared"])
def test_a_page_can_be_read(pages, tmp_path, name, scheme):
    found = measured(tmp_path, pages[name], scheme)
    assert set(found) == {str(width) for width in WIDTHS}
    for width, seen in found.items():
        assert seen["title"], "the page was not shown"
        assert seen["headings"] > 3
        assert seen["ground"] == GROUNDS[scheme]
        assert seen["width"] <= int(width), "the page scrolls sideways"
        assert seen["sticking_out"] == []
        assert seen["cut_off"] == [], "labels of figures beyond their pictures"
        assert seen["smallest"] >= 9.5, "letters are too small, in pixels"
        assert seen["faint_text"] == [], "text with a contrast below 4.5"
        assert seen["faint_marks"] == [], "marks with a contrast below 3"
        assert seen["unnamed"] == [], "pictures without title and description"
        assert seen["twice"] == [], "ids that are not unique"


@pytest.mark.parametrize("name", ["full", "sweep", "compared"])
def test_a_page_loads_and_runs_nothing(pages, tmp_path, name):
    for seen in measured(tmp_path, pages[name], "light").values():
        assert seen["loaded"] == []
        assert seen["scripts"] == 0
        assert "pwned" not in seen["title"].split("<")[0]
        assert seen["styled"], "the policy must let the page's own style sheet through"


def test_the_measurements_can_fail(tmp_path):
    """A page with every fault is found to have it."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<!DOCTYPE html><title>x</title><style>body{margin:0}</style><h2 id=a>1</h2><h2 id=a>2</h2>"
        "<div style='width:3000px;color:#ddd'>faint and wide</div><img src='none.png'><script>1</script>"
        "<svg class=plot viewBox='0 0 100 50' width=100><text x=90 y=20 font-size=8>beyond the picture</text>"
        "<circle class=mark cx=5 cy=5 r=3 fill='#eee'/></svg>"
    )
    seen = measured(tmp_path, page, "light")["390"]
    assert seen["width"] > 390
    for what in ("sticking_out", "cut_off", "faint_text", "faint_marks", "unnamed", "twice", "loaded"):
        assert seen[what], what
    assert seen["smallest"] < 9.5
    assert seen["scripts"] == 1
    assert not seen["styled"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_picture_of_a_page(pages, tmp_path, scheme):
    """What a reader sees is no blank sheet, and has the scheme's ground and the figures' colours."""
    image = pytest.importorskip("PIL.Image")
    picture = tmp_path / "page.png"
    browse(tmp_path, pages["full"], "--window-size=1100,1600", *SCHEMES[scheme], f"--screenshot={picture}")
    with image.open(picture) as opened:
        pixels = opened.convert("RGB")
    counts = {color: number for number, color in pixels.getcolors(2**24)}
    ground = tuple(map(int, re.findall(r"\d+", GROUNDS[scheme])))
    assert pixels.getpixel((2, 2)) == ground
    assert 0.5 < counts[ground] / (pixels.width * pixels.height) < 0.98
    coloured = sum(n for (r, g, b), n in counts.items() if max(r, g, b) - min(r, g, b) > 90)
    assert coloured > 2000
