"""The page of an experiment: escaped, self-contained, usable in a browser by keyboard, on a phone, in the dark."""

from __future__ import annotations

import html
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_runs import DEMO, config, frame, summary, timing, write_run

from gruclip.cli import main
from gruclip.report import curves
from gruclip.report.differences import table_differences
from gruclip.report.findings import findings
from gruclip.report.multiples import multiples
from gruclip.report.page import page
from gruclip.report.reading import read_runs

CHROMIUM = shutil.which("chromium")
PAPER = Path(__file__).parents[2] / "outputs" / "paper"


def made(tmp_path: Path) -> Path:
    """Eight runs with epochs, one failed and one exploded, at two rates; the page of them."""
    for seed, lr in ((seed, lr) for seed in range(4) for lr in (0.5, 1.0)):
        status = "failed" if seed == 3 and lr == 1.0 else "success"
        result = summary(status, valid=4.6 + seed / 100, exploded=seed == 2)
        folder = write_run(tmp_path / "o", config(DEMO, "sgd", seed=seed, optimizer__lr=lr), result, None, timing(2))
        (Path(folder) / "epochs.csv").write_text(
            "epoch,lr,train_loss,valid_loss,grad_norm_mean,grad_norm_max,values_clipped\n"
            f"0,,,9.0,,,\n1,{lr},6.0,5.5,1.0,2.0,0\n2,{lr},5.0,{4.6 + seed / 100},1.0,inf,0\n"
        )
    out = tmp_path / "demo.html"
    assert main(["report", "--experiment", "demo", "--runs", str(tmp_path / "o"), "--out", str(out)]) == 0
    return out


def test_what_came_from_files_is_escaped() -> None:
    hostile = '<script>alert("x")</script>'
    runs = frame([(config(DEMO, "sgd", seed=seed), summary()) for seed in range(2)])
    for column in ("machine", "revision", "folder", "kernels"):
        runs[column] = [f"/o/demo/{hostile}", "plain"]
    text = page("demo", runs, [Path(f"/o/{hostile}")])
    assert hostile not in text
    assert html.escape(hostile, quote=False) in text.replace("&#34;", '"')
    assert text.count("<script>") == 1


def test_the_page_asks_for_nothing_outside_itself(tmp_path: Path) -> None:
    text = made(tmp_path).read_text()
    assert "default-src 'none'" in text
    assert not re.search(r'(?:src|href|action)="(?!data:)', text)
    assert "url(" not in text
    assert "@import" not in text


def test_the_page_has_every_run_the_tables_and_the_command_of_each(tmp_path: Path) -> None:
    text = made(tmp_path).read_text()
    for seed in range(4):
        assert f"sgd,lr=0.5,seed={seed}" in text
    assert "8 runs: 7 success, 1 failed; in 2 of them the gradient exploded." in text
    for command in ("table 1", "table lr", "figure lr", "report"):
        assert f"gruclip {command} --experiment demo --runs {tmp_path / 'o'}" in text
    assert text.count("<polyline") == 16


def test_the_page_says_what_was_asked_and_what_the_runs_say() -> None:
    runs = [(config(DEMO, "gradient_clipping", 5, seed=seed), summary(test=4.5 + seed / 1000)) for seed in range(5)]
    runs += [(config(DEMO, "spectral_clipping", 0.2, seed=seed), summary(test=4.4 + seed / 900)) for seed in range(5)]
    runs += [
        (config(DEMO, "spectral_clipping", 0.8, seed=seed, optimizer__lr=2), summary("failed" if seed else "success"))
        for seed in range(3)
    ]
    asked = dict(findings(frame(runs), {"differences": table_differences(frame(runs))}))
    assert asked["Does spectral clipping train where gradient clipping fails?"] == [
        "Every seed succeeds at the protocol's rate, 1: gradient clipping in 1 of 1 settings (5 of 5 runs), "
        "spectral clipping in 1 of 1 settings (5 of 5 runs).",
        "Every seed succeeds at other rates: spectral clipping in 0 of 1 settings (1 of 3 runs).",
    ]
    (lower,) = asked["Does it reach a lower loss?"]
    assert "against gradient clipping, threshold 5, at 1. Lower loss: delta 0.2 -8.5" in lower
    assert asked["Does it cost little?"] == []  # no times
    text = page("demo", frame(runs), [Path("/o")])
    assert html.escape(lower, quote=False) in text.replace("&#39;", "'")
    assert "Of that these runs say nothing." in text


def test_the_axes_of_all_curves_span_what_successful_runs_do_after_the_first_quarter(tmp_path: Path) -> None:
    """And a curve that leaves them goes along their edge: infinity along the upper one."""
    outcomes = {"success": [100, 50, 6, 5, 4, 4, 4, 4], "failed": [100, 50, 900, 900, 900, 900, math.inf, 2]}
    for seed, (status, losses) in enumerate(outcomes.items()):
        folder = write_run(tmp_path, config(DEMO, "sgd", seed=seed), summary(status), None, timing(2))
        rows = [f"{epoch},1,5,{loss},1,{loss},0" for epoch, loss in enumerate(losses)]
        (folder / "epochs.csv").write_text("\n".join([",".join(curves.EPOCHS), *rows]) + "\n")
    runs = read_runs(tmp_path, "demo")
    (panel,), loss_range, norm_range = multiples(runs, pd.Series(0, runs.index), [])
    assert loss_range == "4 to 5.95 nats"  # all but the largest hundredth
    assert norm_range == "4 to 5.95"
    upper, lower = "1.0", "39.0"
    heights = [[point.split(",")[1] for point in line.split()] for line in panel.losses]
    assert heights[0][:3] == [upper] * 3
    assert heights[0][4:] == [lower] * 4
    assert heights[1] == [upper] * 7 + [lower]


def test_every_setting_of_the_protocol_has_its_source_and_every_run_its_seconds(tmp_path: Path) -> None:
    assert ">0.5, 2, 10<" in page(
        "demo", frame([(config(DEMO, "sgd", optimizer__lr=lr), summary()) for lr in (10, 2, 0.5)]), [tmp_path]
    )
    corpus = {"dataset": {"name": "nottingham"}, "model": {"hidden_size": 200, "num_layers": 2}}
    text = page("nottingham", frame([(config(corpus, "sgd"), summary(unit="nats per time step"))]), [tmp_path])
    assert "<td>200</td><td>200</td><td>C</td>" in text
    assert "<td>0</td><td>0, 1, 2, 3, 4, 5, 6, 7, 8, 9</td><td>D</td>" in text
    assert "<td>402.2</td>" in made(tmp_path).read_text()  # two epochs of made_runs.timing


def test_what_cannot_be_shown_is_told_with_its_reason(tmp_path: Path) -> None:
    path = made(tmp_path)
    folder = next(path for path in (tmp_path / "o" / "demo").iterdir() if "seed=1" in path.name)
    (folder / "epochs.csv").write_text("nothing\n")
    assert main(["report", "--experiment", "demo", "--runs", str(tmp_path / "o"), "--out", str(path)]) == 0
    text = path.read_text()
    assert "What is not on this page, and why" in text
    assert html.escape(f"curves: {folder}/epochs.csv") in text
    assert "<li>table 2: is of music" in text


def test_a_page_that_cannot_be_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path)
    runs = ["--experiment", "demo", "--runs", str(tmp_path / "o")]
    assert main(["report", *runs, "--out", str(tmp_path / "none" / "a.html")]) == 2
    assert main(["report", "--experiment", "nope", "--runs", str(tmp_path)]) == 2
    assert "there is no such experiment" in capsys.readouterr().err


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("needs Debian's chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield opened
        opened.close()


def open_page(browser: Any, path: Path, **options: Any) -> tuple[Any, list[str]]:
    """The page in a new window, and what went wrong or left it."""
    window = browser.new_page(**options)
    faults: list[str] = []
    window.on(
        "request",
        lambda request: faults.append(request.url) if not request.url.startswith(("file:", "data:")) else None,
    )
    window.on("pageerror", lambda error: faults.append(str(error)))
    window.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    window.goto(path.as_uri())
    return window, faults


def test_sorting_and_filtering_by_keyboard(browser: Any, tmp_path: Path) -> None:
    window, faults = open_page(browser, made(tmp_path))
    assert window.locator("#shown").inner_text() == "8 of 8 runs"
    window.locator("#filter").focus()
    window.keyboard.type("failed lr=1")
    assert window.locator("#shown").inner_text() == "1 of 8 runs"
    assert window.locator("#runs tbody tr:visible").count() == 1
    assert window.locator(".multiples li:visible").count() == 1  # the panel of that run's setting
    window.locator("#filter").fill("")
    head = window.locator("#runs th", has_text="validation loss")
    head.locator("button").focus()
    for order in ("ascending", "descending"):
        window.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == order
        losses = [float(text) for text in window.locator("#runs tbody tr td:nth-child(4)").all_inner_texts()]
        assert losses == sorted(losses, reverse=order == "descending")
    assert not faults


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_nothing_serious_for_axe_and_no_page_wider_than_the_window(
    width: int, scheme: Any, browser: Any, tmp_path: Path
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    window, faults = open_page(
        browser, made(tmp_path), viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True
    )
    found = Axe().run(window).response["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
    assert window.evaluate("document.documentElement.scrollWidth") <= width
    assert not faults


@pytest.mark.parametrize("path", sorted(PAPER.glob("*.html")), ids=lambda path: path.stem)
def test_no_kept_page_is_wider_than_a_phone(path: Path, browser: Any) -> None:
    window, faults = open_page(browser, path, viewport={"width": 360, "height": 800})
    assert window.evaluate("document.documentElement.scrollWidth") <= 360
    assert not faults


def test_figure_2_on_the_page_is_of_the_runs_that_were_timed_alone(tmp_path: Path) -> None:
    runs = tmp_path / "my runs"
    for delta in (0.2, 0.5):
        write_run(runs, config(DEMO, "spectral_clipping", delta), summary(), timing=timing(2))
    write_run(runs / "figure2", config(DEMO, "spectral_clipping", 0.2), summary(), timing=timing(2))
    path = tmp_path / "page.html"
    assert main(["report", "--experiment", "demo", "--runs", str(runs), "--out", str(path)]) == 0
    assert f"gruclip figure 2 --experiment demo --runs '{runs}/figure2'" in html.unescape(path.read_text())
    shutil.rmtree(runs / "figure2")
    assert main(["report", "--experiment", "demo", "--runs", str(runs), "--out", str(path)]) == 0
    assert "gruclip figure 2" not in path.read_text()
    assert "for Figure 2 runs are timed alone, with: gruclip reproduce figure2" in path.read_text()


def test_the_kept_runs_have_a_page(tmp_path: Path) -> None:
    for path in PAPER.glob("*.csv"):
        out = tmp_path / f"{path.stem}.html"
        assert main(["report", "--experiment", path.stem, "--runs", str(PAPER), "--out", str(out)]) == 0
        text = out.read_text()
        assert text.rstrip().endswith("</html>")
        headings = re.findall("<h2>(.*?)</h2>", text)
        assert len(set(headings)) == len(headings) > 5, "two parts of the page with one name"


def test_a_sweep_of_which_nothing_has_finished_has_a_page() -> None:
    text = page("demo", frame([(config(DEMO, "sgd"), summary("unfinished"))]), [Path("/o")])
    assert "1 run: 1 unfinished" in text
