"""How long the report of a run with many scored codes takes to write, and until it answers.

python benchmarks/report.py --codes=20000

Needs Chromium and its driver. The run is the one that the tests bring, with codes added.
"""

import argparse
import pathlib
import shutil
import statistics
import sys
import tempfile
import time

import common
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains

from crnas_jax.analysis.html import page
from crnas_jax.analysis.record import Record

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests"))

import run_folders


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--codes", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = run_folders.with_many_codes(pathlib.Path(folder) / "run", arguments.codes)
        writing = []
        for _ in range(arguments.repeats):
            start = time.perf_counter()
            file = page.write(Record.open(path))
            writing.append(time.perf_counter() - start)
        size, answering = file.stat().st_size, _answering(file, arguments.repeats)
    common.report(
        "report",
        {
            "ratios": {
                "write over 10 s": statistics.median(writing) / 10,
                "answer over 2 s": statistics.median(answering) / 2,
                "size over 5 MB": size / 5e6,
            },
            "codes": arguments.codes,
            "write_seconds": writing,
            "answer_seconds": answering,
            "bytes": size,
        },
    )


def _answering(file, repeats):
    """Return the seconds from opening the page to the text of the first hover."""
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(flag)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver, seconds = webdriver.Chrome(options=options, service=service), []
    try:
        for _ in range(repeats):
            driver.get("about:blank")
            start = time.perf_counter()
            driver.get(file.as_uri())
            plot = driver.find_element("css selector", "#allocations [data-points]")
            driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
            ActionChains(driver).move_to_element(plot).perform()
            assert driver.find_element("id", "tip").is_displayed()
            seconds.append(time.perf_counter() - start)
    finally:
        driver.quit()
    return seconds


if __name__ == "__main__":
    main()
