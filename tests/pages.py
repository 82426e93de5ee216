"""What the tests of pages share: unlike runs, and a page taken apart."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from kdtune.experiment import dump, parse
from kdtune.experiment.values import plain
from kdtune.records import append_line, write_text
from tests.example_run import experiment_of, write_run

NASTY = '<b>&amp;"x"</b></script><script>alert(1)</script>'
UNICODE = "naïve 猫 ✓"


class Page(HTMLParser):
    """Tables as rows of words, headings by their level, figures by name, and whether scripts are those of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.headings: list[tuple[str, str]] = []
        self.figures: dict[str, Any] = {}
        self.scripts = 0
        self.sections: list[str] = []
        self._inside: list[str] = []
        self._figure = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._inside.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag in ("h1", "h2", "h3"):
            self.headings.append((tag, ""))
        elif tag == "script":
            self.scripts += 1
        elif tag == "section":
            self.sections.append(given.get("id") or "")
        if "data-figure" in given:
            self._figure = given["data-figure"] or ""

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "script" in self._inside:
            if self._figure and data.startswith("{"):
                self.figures[self._figure], self._figure = json.loads(data), ""
        elif "td" in self._inside or "th" in self._inside:
            row = self.tables[-1][-1]
            row[-1] = " ".join(f"{row[-1]} {data}".split())
        elif self.headings and self._inside and self._inside[-1] == self.headings[-1][0]:
            self.headings[-1] = (self.headings[-1][0], self.headings[-1][1] + data)


def nasty_run(parent: Path) -> Path:
    """The example with markup and letters of everywhere where people may put them: rows, classes, reasons, values."""
    folder = write_run(parent)
    summary = json.loads((folder / "summary.json").read_text())
    summary["classes"][:2] = [NASTY, UNICODE]
    summary["results"].append({**summary["results"][2], "name": NASTY.replace("/", "|"), "note": NASTY, "model": NASTY})
    summary["calibration"][NASTY] = summary["calibration"]["best"]
    summary["search"]["retried"][0]["error"] = NASTY
    summary["verdict"] = NASTY
    write_text(folder / "summary.json", json.dumps(summary))
    lines = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    (folder / "trials.jsonl").unlink()
    for line in lines:
        name = NASTY if line["trial"] == "0003" else UNICODE
        append_line(folder / "trials.jsonl", {**line, "config": {**line["config"], "student.model": name}})
    return folder


def run_without_search(parent: Path) -> Path:
    """Of a file with `search.trials: 0`: the final stage is all there is."""
    folder = write_run(parent)
    (folder / "trials.jsonl").unlink()
    (folder / "final" / "winner.json").unlink()
    raw = plain(experiment_of(parent)) | {"search": {"trials": 0}}
    write_text(folder / "experiment.yaml", dump(parse(raw)))
    summary = json.loads((folder / "summary.json").read_text())
    summary["search"] |= {
        "trials": 0,
        "epochs_run": 0,
        "epochs_full": 0,
        "seconds": 0.0,
        "stopped_early": 0,
        "rungs": [],
    }
    summary["best"] = {"config": {}, "val_accuracy": None}
    for one in (summary["calibration"], summary["confusion"]):
        one["distilled"] = one.pop("best")
    for row in summary["results"]:
        row["name"] = row["name"].replace("best", "distilled")
    write_text(folder / "summary.json", json.dumps(summary))
    text = (folder / "final.jsonl").read_text().replace('"name": "best"', '"name": "distilled"')
    write_text(folder / "final.jsonl", text)
    return folder


def single_run(parent: Path, epochs: int = 6) -> Path:
    """Of `kdtune train`: one student, with the file's own configuration, so far."""
    told = (write_run(parent / "of") / "trials.jsonl").read_text().splitlines()[:epochs]
    folder = parent / "example-train"
    folder.mkdir()
    write_text(folder / "experiment.yaml", dump(experiment_of(parent)))
    for line in map(json.loads, told):
        append_line(folder / "trials.jsonl", {**line, "config": {}})
    return folder


def run_of_an_earlier_version(parent: Path) -> Path:
    """Its summary has none of the keys that came later."""
    folder = write_run(parent)
    summary = json.loads((folder / "summary.json").read_text())
    for name in ("verdict", "calibration", "time", "pareto", "latency_on"):
        del summary[name]
    for name in ("rungs", "asked", "retried"):
        del summary["search"][name]
    for row in summary["results"]:
        for name in ("flops", "latency_range_ms", "paired", "agreement", "size_mb"):
            row.pop(name, None)
    write_text(folder / "summary.json", json.dumps(summary))
    (folder / "final" / "winner.json").unlink()
    return folder


def long_run(parent: Path, trials: int, classes: int = 200) -> Path:
    """So many trials of six epochs, under way: accuracy has to do with the temperature only. And many classes."""
    folder = parent / "long"
    folder.mkdir(parents=True)
    raw = plain(experiment_of(parent))
    raw["search"] |= {"trials": trials, "stopper": {"kind": "none"}, "second_objective": "parameters"}
    raw["search"]["space"]["student.model"] = {"choice": ["cnn-8", "cnn-16"]}
    write_text(folder / "experiment.yaml", dump(parse(raw)))
    lines = []
    for number in range(trials):
        temperature, alpha = 1 + number * 7 % 19, 0.2 + number * 31 % 79 / 100
        config = {
            "distill.temperature.kind": "fixed", "distill.temperature.start": float(temperature),
            "distill.alpha.kind": "fixed", "distill.alpha.start": alpha,
            "student.model": ("cnn-8", "cnn-16")[number % 2],
        }  # fmt: skip
        for epoch in range(1, 7):
            line = {
                "trial": f"{number:04d}", "config": config, "at": float(number), "epoch": epoch, "epochs": 6,
                "loss": 1.0,
                "terms": {"cross_entropy": 1 - alpha, "distillation": alpha}, "val_loss": 1.0, "learning_rate": 0.1,
                "val_accuracy": 0.9 - 0.02 * abs(temperature - 8) - 0.3 / epoch, "seconds": 0.1, "waited": 0.0,
                "temperature": float(temperature), "alpha": alpha, "feature_weight": 0.0, "cost": 100.0 + number % 2,
            }  # fmt: skip
            lines.append(json.dumps(line))
    write_text(folder / "trials.jsonl", "\n".join(lines) + "\n")
    summary = json.loads((write_run(parent / "of") / "summary.json").read_text())
    summary |= {"classes": [f"class {k}" for k in range(classes)], "confusion": {}}
    write_text(folder / "summary.json", json.dumps(summary))
    return folder
