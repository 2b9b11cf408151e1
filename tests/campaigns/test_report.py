"""The report of a run in a browser: it works, loads nothing, and is readable in any light."""

import dataclasses
import json
import os
import shutil

import pytest
import run_folders
import tiny_run

from crnas_jax.analysis.html import page
from crnas_jax.analysis.record import Record

pytestmark = [pytest.mark.campaign, pytest.mark.programs]
CHROMIUM, DRIVER = "chromium", "chromedriver"
WIDTHS, SCHEMES = (390, 1440), ("light", "dark")
# Text below the contrast that WCAG asks for, with its colours: over what is behind it.
CONTRAST = """
const parse = (text) => {
  const numbers = text.match(/[\\d.]+/g).map(Number);
  const unit = text.startsWith("color(") ? 255 : 1;
  return [...numbers.slice(0, 3).map((part) => part * unit), numbers[3] ?? 1];
};
const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
const light = (rgb) => {
  const [r, g, b] = rgb.map((part) => {
    const share = part / 255;
    return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (element) => {
  const layers = [];
  for (let at = element; at; at = at.parentElement) {
    layers.push(parse(getComputedStyle(at).backgroundColor));
  }
  return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
};
const bad = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim() || !element.checkVisibility()) continue;
  if (["SCRIPT", "STYLE", "title"].includes(element.tagName)) continue;
  const style = getComputedStyle(element);
  const isDrawn = element instanceof SVGElement;
  let behind = ground(element);
  const box = isDrawn && element.closest(".box");
  if (box) behind = over(parse(getComputedStyle(box.querySelector("rect")).fill), behind);
  const front = over(parse(isDrawn ? style.fill : style.color), behind);
  const [high, low] = [light(front), light(behind)].sort((a, b) => b - a);
  const ratio = (high + 0.05) / (low + 0.05);
  if (ratio < 4.5) bad.push([walker.currentNode.textContent.slice(0, 40), ratio]);
}
return bad;
"""


@dataclasses.dataclass
class Browser:
    """Headless Chromium.

    Attributes:
      driver: Selenium's driver.
    """

    driver: object

    def open(self, path, width=1440, scheme="light"):
        """Load a page from disk at a width, in light or dark."""
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get_log("browser")
        self.driver.get(path.absolute().as_uri())

    def run(self, script, *arguments):
        """Run JavaScript; return its value."""
        return self.driver.execute_script(script, *arguments)

    def all(self, selector):
        """Return the elements of a CSS selector."""
        return self.driver.find_elements("css selector", selector)

    def check(self):
        """Check what holds of every page: it is quiet, alone, as wide as the screen, readable."""
        assert self.driver.get_log("browser") == []
        assert self.run("return document.documentElement.dataset.ready") == "yes"
        resources = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
        assert [name for name in self.run(resources) if not name.startswith("data:")] == []
        width, room = self.run("return [document.documentElement.scrollWidth, innerWidth]")
        assert width <= room
        assert self.run(CONTRAST) == []


@pytest.fixture(scope="module")
def browser():
    missing = [name for name in (CHROMIUM, DRIVER) if shutil.which(name) is None]
    if missing:
        reason = f"no {' and no '.join(missing)}: install Debian's chromium and chromium-driver"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    options.binary_location = shutil.which(CHROMIUM)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which(DRIVER))
    driver = webdriver.Chrome(options=options, service=service)
    yield Browser(driver)
    driver.quit()


def _written(path):
    return page.write(Record.open(path))


FOLDERS = {
    "baseline returned": run_folders.copy,
    "found returned": run_folders.returned_found,
    "third step": run_folders.in_third_step,
    "search alone": run_folders.search_alone,
    "hostile names": run_folders.with_hostile_names,
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_every_kind_of_run_is_readable(browser, tmp_path, kind):
    file = _written(FOLDERS[kind](tmp_path / "run"))
    for width in WIDTHS:
        for scheme in SCHEMES:
            browser.open(file, width, scheme)
            browser.check()
            for details in browser.all("details"):
                browser.run("arguments[0].open = true", details)
            browser.check()


def test_the_procedure_ends_with_a_report(browser, tmp_path):
    workdir = tmp_path / "run"
    flags = [*tiny_run.TINY, tiny_run.baseline(workdir, (1, 2, 1, 2)), f"--workdir={workdir}"]
    script = tiny_run.start("run_crnas", *flags, "--config.erf_images=2", num_devices=1)
    _, errors = script.communicate(timeout=600)
    assert script.returncode == 0, errors
    browser.open(workdir / "report.html", 390, "dark")
    browser.check()
    shown = [section.get_attribute("id") for section in browser.all("main > section")]
    assert {"result", "networks", "allocations", "dilations", "trainings"} <= set(shown)
    assert {"errors", "fields", "photographs", "data", "time", "origin"} <= set(shown)
    assert len(browser.all("#photographs img")) == 8 * 3
    assert all(browser.run("return arguments[0].complete", img) for img in browser.all("img"))


def test_numbers_are_those_of_the_result(browser, tmp_path):
    file = _written(run_folders.copy(tmp_path / "run"))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    browser.open(file)
    for row, network in zip(
        browser.all("#networks .numbers tbody tr"),
        ("baseline", "stage_only", "searched"),
        strict=True,
    ):
        cells = row.find_elements("css selector", "td[data-value]")
        values = [float(cell.get_attribute("data-value")) for cell in cells]
        metrics = ("AP", "AP50", "AP75", "APs", "APm", "APl")
        expected = [result[network][metric] for metric in metrics]
        assert values == [value for value in expected if value is not None]
        for cell, value in zip(cells, values, strict=True):
            assert cell.text.split()[0] == f"{100 * value:.1f}"
        low, high = result[network]["ci95"]["AP"]
        assert cells[0].text.split("\n")[1] == f"[{100 * low:.1f}, {100 * high:.1f}]"
        assert f"{result[network]['flops'] / 1e9:.3f}" in row.text
    assert result["decision"]["reason"] in browser.all(".verdict")[0].text


def test_hover_click_and_keyboard_follow_a_network(browser, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser.open(_written(run_folders.copy(tmp_path / "run")))
    plot = browser.all("#allocations [data-points]")[1]
    tip, bar = browser.all("#tip")[0], browser.all("#followed")[0]
    assert not tip.is_displayed()
    browser.run("arguments[0].scrollIntoView({block: 'center'})", plot)
    number, x, y = map(float, plot.get_attribute("data-points").split(" ")[3].split(","))
    key = browser.run(
        "return JSON.parse(document.getElementById('networks-data').textContent)[arguments[0]][0]",
        int(number),
    )
    scale, width, height = browser.run(
        "const svg = arguments[0].querySelector('svg'), box = svg.getBoundingClientRect();"
        "return [box.width / svg.viewBox.baseVal.width, box.width, box.height]",
        plot,
    )
    svg = plot.find_element("css selector", "svg")
    offset = round(x * scale - width / 2), round(y * scale - height / 2)
    ActionChains(browser.driver).move_to_element_with_offset(svg, *offset).perform()
    assert tip.is_displayed()
    assert tip.text.startswith(f"{key}: AP ")
    ActionChains(browser.driver).click().perform()
    assert key in bar.text
    # The network has a ring in the other charts of the search too.
    assert len(browser.all("#allocations .followed-ring")) >= 2
    bar.find_element("css selector", "button").click()
    assert not bar.is_displayed()
    assert browser.all(".followed-ring") == []

    browser.run("arguments[0].focus()", plot)
    keys = ActionChains(browser.driver)
    keys.send_keys(Keys.HOME).perform()
    best = tip.text
    assert best
    keys.send_keys(Keys.ARROW_RIGHT).perform()
    assert tip.text not in ("", best)
    keys.send_keys(Keys.ENTER).perform()
    assert tip.text.split(":")[0] in bar.text
    keys.send_keys(Keys.ESCAPE).perform()
    assert not tip.is_displayed()
    assert not bar.is_displayed()

    button = browser.all("button.follow")[0]
    browser.run("arguments[0].focus()", button)
    ActionChains(browser.driver).send_keys(Keys.ENTER).perform()
    assert bar.is_displayed()
    assert button.get_attribute("aria-pressed") == "true"


def test_names_make_no_elements_and_no_scripts(browser, tmp_path):
    file = _written(run_folders.with_hostile_names(tmp_path / "run"))
    browser.open(file)
    browser.check()
    assert browser.run("return document.scripts.length") == 2
    for selector in ("img[src=x]", ".evil", "b", "i", "body script ~ script ~ script"):
        assert browser.all(selector) == []
    assert browser.driver.title == "Run run"
    assert "<img src=x onerror=alert(1)>" in browser.all("#data")[0].text
    # Commands are shown whole, names and notes are not.
    assert browser.all("#data")[0].text.count("longlong") < 500


def test_twenty_thousand_codes_fit(browser, tmp_path):
    file = _written(run_folders.with_many_codes(tmp_path / "run", 20_000))
    assert file.stat().st_size <= 5_000_000
    browser.open(file)
    browser.check()
    points = browser.all("#allocations [data-points]")[0].get_attribute("data-points")
    assert len(points.split(" ")) >= 20_000
