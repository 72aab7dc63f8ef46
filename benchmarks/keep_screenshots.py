"""Retakes the screenshots of docs/reports.md: `keep_screenshots.py NAME REPORT_HTML ADDRESS`.

NAME is a finished study, REPORT_HTML its report's page, ADDRESS where `memarch ui` answers.
Needs Playwright (in an environment of its own: memarch does not need it), Pillow and Chromium.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parent.parent / "docs" / "images"


def keep(page: Page, name: str) -> None:
    """A screenshot with few colours: small, and the same to the eye."""
    raw = page.screenshot(timeout=120_000)  # a page of charts draws for a while
    picture = Image.open(io.BytesIO(raw)).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE)
    picture.save(IMAGES / f"{name}.png", optimize=True)


def report(page: Page, address: str) -> None:
    page.goto(address)
    page.locator("svg g[data-t]:has(.ring)").nth(4).hover(force=True)
    page.wait_for_timeout(300)
    keep(page, "report")
    page.mouse.move(5, 5)
    page.set_viewport_size({"width": 1240, "height": 1320})
    page.locator("#What_mattered").evaluate("section => section.scrollIntoView()")
    page.locator("#Parameters_crossed button").nth(1).click()
    page.locator("#What_mattered").evaluate("section => section.scrollIntoView()")
    page.wait_for_timeout(500)
    keep(page, "report_what_mattered")


def mlflow(page: Page, name: str, server: str) -> None:
    query = json.dumps({"max_results": 100}).encode()
    request = urllib.request.Request(
        f"{server}/api/2.0/mlflow/experiments/search",
        data=query,
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        experiment = next(e for e in json.load(answer)["experiments"] if e["name"] == name)
    key = next(
        tag["key"].rpartition(".")[2]
        for tag in experiment["tags"]
        if tag["key"].startswith("mlflow.sharedViewState.memarch-")
    )
    runs = f"{server}/#/experiments/{experiment['experiment_id']}/runs"
    view = f"{runs}?workflowType=machine_learning&viewStateShareKey={key}"
    page.goto(view)
    page.wait_for_timeout(8000)
    close_panels(page)
    keep(page, "mlflow_trials")
    page.goto(f"{view}&compareRunsMode=CHART")
    page.wait_for_timeout(40_000)
    close_panels(page)
    page.wait_for_timeout(10_000)
    keep(page, "mlflow_charts")
    found = urllib.request.Request(
        f"{server}/api/2.0/mlflow/runs/search",
        data=json.dumps(
            {
                "experiment_ids": [experiment["experiment_id"]],
                "filter": "tags.`memarch.kind` = 'study'",
            }
        ).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(found) as answer:
        parent = json.load(answer)["runs"][0]["info"]["run_id"]
    page.goto(f"{runs}/{parent}?workflowType=machine_learning")
    page.wait_for_timeout(8000)
    more = page.get_by_text("Show more")
    if more.count():
        more.first.click()
    page.wait_for_timeout(1000)
    for tag in page.get_by_text("memarch.path").all():
        tag.evaluate("tag => tag.parentElement.style.visibility = 'hidden'")
    keep(page, "mlflow_study")


def close_panels(page: Page) -> None:
    """MLflow's assistant, and its word about shared views."""
    for close in page.locator("[data-component-id*='assistant.chat_panel.close']").all():
        close.evaluate("button => button.click()")
    page.wait_for_timeout(1500)


def main() -> None:
    name, path, server = sys.argv[1:]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--enable-unsafe-swiftshader"],
        )
        page = browser.new_page(viewport={"width": 1240, "height": 1210})
        report(page, Path(path).absolute().as_uri())
        page = browser.new_page(viewport={"width": 1500, "height": 950})
        mlflow(page, name, server)
        browser.close()


if __name__ == "__main__":
    main()
