"""Working folders for reports, made from that of a real run without its weights and images."""

import itertools
import json
import pathlib
import shutil

BCCD = pathlib.Path(__file__).parent / "analysis" / "bccd_run"
# What people could try: markup, scripts, quotes, reading directions, length.
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>document.title='owned'</script>",
    "\"'><b class=evil>b</b>",
    "\u202eright to left\u2066\ud800\x00\x1b[31m",
    "long" * 2500,
    "${alert(1)} {{7*7}} &lt;i&gt; --> ]]>",
)


def copy(path: pathlib.Path) -> pathlib.Path:
    """Copy the whole run, in which the baseline is returned."""
    return pathlib.Path(shutil.copytree(BCCD, path))


def change(path: pathlib.Path, name: str, function):
    """Change the content of a JSON file in a folder."""
    file = path / name
    content = json.loads(file.read_text())
    file.write_text(json.dumps(function(content) or content))


def in_third_step(path: pathlib.Path) -> pathlib.Path:
    """Make a folder in which finalists are trained, and the second of them is not finished."""
    copy(path)
    for name in ("operation_supernet", "operation_search", "baseline", "stage_only", "searched"):
        shutil.rmtree(path / name, ignore_errors=True)
    (path / "result.json").unlink()
    finalists = sorted((path / "finalists").iterdir())
    for folder in finalists[2:]:
        shutil.rmtree(folder)
    shutil.rmtree(finalists[1] / "val")
    (finalists[1] / "result.json").unlink()
    _keep_scores(path, ("stage",))
    name = finalists[1].relative_to(path).as_posix()
    progress = {"name": name, "unit": "step", "done": 77, "total": 154, "seconds_left": 90.0}
    progress["time"] = "2999-01-01T00:00:00+00:00"
    (path / "progress.json").write_text(json.dumps(progress))
    return path


def search_alone(path: pathlib.Path) -> pathlib.Path:
    """Make a folder in which the stage search is all that was asked for."""
    in_third_step(path)
    shutil.rmtree(path / "finalists")
    (path / "progress.json").unlink()
    return path


def returned_found(path: pathlib.Path) -> pathlib.Path:
    """Make a folder in which the found network is returned."""
    copy(path)

    def decide(result):
        evidence = {"network": "searched", "challenger": "searched", "probability": 0.97}
        evidence |= {"difference": 0.021, "ci95": [0.004, 0.038], "reason": "it is better"}
        result["decision"] |= evidence
        result["returned"] = "searched"

    change(path, "result.json", decide)
    return path


def with_hostile_names(path: pathlib.Path) -> pathlib.Path:
    """Make a folder whose classes, files and config have names that no page should trust."""
    copy(path)

    def rename(content):
        named = dict(zip(content["class_names"], HOSTILE, strict=False))
        content["class_names"] = list(named.values())
        content["notes"] = list(HOSTILE)
        for split in content["splits"].values():
            split["notes"] = list(HOSTILE)

    def rename_metrics(result):
        for row in result.values():
            if isinstance(row, dict) and "per_class" in row:
                for values in (row["per_class"], row["ci95"]["per_class"]):
                    renamed = dict(zip(HOSTILE, list(values.values()), strict=False))
                    values.clear()
                    values |= renamed
        result["decision"]["reason"] = HOSTILE[0]

    def rename_config(content):
        data = content["config"]["data"]
        data["folder"], data["images"] = HOSTILE[1], HOSTILE[0]
        content["config"]["baseline"] = "resnet18"

    change(path, "data.json", rename)
    change(path, "result.json", rename_metrics)
    change(path, "config.json", rename_config)
    line = {"command": ["crnas-jax", "run", *HOSTILE], "started": HOSTILE[1], "devices": HOSTILE[0]}
    line["versions"] = {HOSTILE[2]: HOSTILE[0]}
    with (path / "invocations.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    return path


def with_many_codes(path: pathlib.Path, count: int) -> pathlib.Path:
    """Make a folder with many scored allocations."""
    copy(path)
    codes = itertools.islice(itertools.product(range(1, 13), repeat=4), count)
    rows = [
        {
            "format": 2,
            "search": "stage",
            "config": "f" * 16,
            "code": code,
            "score": (hash(code) % 10**6) / 10**6,
            "ci95": [0.1, 0.9],
            "images": 87,
            "batches": 11,
        }
        for code in codes
    ]
    with (path / "journal.jsonl").open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _keep_scores(path, searches):
    file = path / "journal.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if json.loads(line)["search"] in searches))
