"""Several runs side by side: results, best configurations, accuracy against epochs spent, and whether that is fair.

compared = Compared.of([load_run(a), load_run(b)])
compared.warnings          # why numbers of two runs do not compare
write_comparison(compared, Path("compare.html"))
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdtune.errors import RunError
from kdtune.records import ALONE, read_object, write_text
from kdtune.report.run import Run


@dataclass(frozen=True)
class Compared:
    """`runs` by the names that tell them apart: the last parts of their folders."""

    runs: Mapping[str, Run]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> "Compared":
        """Raises RunError for fewer than two."""
        folders = [run.folder.resolve() for run in runs]
        if len(set(folders)) < 2 or len(set(folders)) < len(folders):
            raise RunError("give two runs or more to compare, each once: kdtune compare runs/one runs/two")
        length = next(k for k in range(1, 100) if len({folder.parts[-k:] for folder in folders}) == len(folders))
        return cls({"/".join(folder.parts[-length:]): run for folder, run in zip(folders, runs, strict=True)})

    @property
    def warnings(self) -> list[str]:
        """Why accuracies of these runs do not compare, one sentence each."""
        return [sentence for sentence, differs in self._doubts() if differs]

    def _doubts(self) -> Iterator[tuple[str, bool]]:
        told = {name: _made_of(run) for name, run in self.runs.items()}
        data = {name: one.get("dataset") for name, one in told.items()}
        named = {name: run.experiment.data.dataset for name, run in self.runs.items()}
        yield (
            f"The data sets differ ({_each(named)}): accuracies on one test set say nothing about another.",
            len(set(named.values())) > 1,
        )
        yield (
            "The data sets have the same name but not the same images or labels: the fingerprints in materials.json "
            "differ.",
            len(set(named.values())) == 1 and len({one for one in data.values() if one}) > 1,
        )
        unknown = [name for name, one in data.items() if one is None]
        yield f"Whether all runs have the same data is not known of {', '.join(unknown)}.", bool(unknown)
        split = {
            name: (run.experiment.data.validation, run.experiment.data.split_seed) for name, run in self.runs.items()
        }
        yield (
            "The validation splits differ, so validation accuracies compare less well than test accuracies.",
            len(set(split.values())) > 1,
        )
        single = [name for name, run in self.runs.items() if run.summary is None and run.single]
        yield f"Of kdtune train, which reads no test images: {', '.join(single)}.", bool(single)
        open_ = [name for name, run in self.runs.items() if run.summary is None and not run.single]
        yield f"Not finished, so without test accuracies: {', '.join(open_)}.", bool(open_)

    def results(self) -> list[dict[str, Any]]:
        """One row for each row of each run's results table, runs in their order. `config` is that of the best."""
        rows = []
        for name, run in self.runs.items():
            for row in (run.summary or {}).get("results", []):
                rows.append({"run": name, "winner": row["name"] == run.winner_name, **row})
        return rows

    def overview(self) -> list[dict[str, Any]]:
        """One row a run: what it is about, what it took, and what it found."""
        return [_overview(name, run) for name, run in self.runs.items()]


def _overview(name: str, run: Run) -> dict[str, Any]:
    about = run.experiment
    rows = {row["name"]: row for row in (run.summary or {}).get("results", [])}
    best, alone = rows.get(run.winner_name), rows.get(ALONE)
    config = run.summary["best"]["config"] if run.summary else run.configs.get(run.best or "", {})
    return {
        "run": name,
        "data": about.data.dataset,
        "teacher": about.own_teacher.model or about.teacher_name,
        "student": best["model"] if best else about.student.model,
        "best": best["mean"] if best else None,
        "std": best["std"] if best else None,
        "gain": best["mean"] - alone["mean"] if best and alone else None,
        "trials": len(run.trials),
        "epochs": len(run.epochs),
        "seconds": run.summary["search"]["seconds"] if run.summary else None,
        "config": dict(config),
    }


def _made_of(run: Run) -> Mapping[str, Any]:
    path = run.folder / "materials.json"
    return read_object(path) if path.is_file() else {}


def _each(given: Mapping[str, object]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in given.items())


def write_comparison(compared: Compared, path: Path) -> Path:
    """One self-contained page, as a run's report is."""
    from kdtune.report.figures.compare import accuracy_by_epochs, results_of_all
    from kdtune.report.page import assemble
    from kdtune.report.sections import Section

    later = dict.fromkeys(("paired", "agreement", "flops", "size_mb", "latency_range_ms"))
    rows = [later | row for row in compared.results()]
    drawn = {"compared": results_of_all(rows)} if rows else {}
    overview = compared.overview()
    paths = list(dict.fromkeys(path for one in overview for path in one["config"]))
    searched = {name: run for name, run in compared.runs.items() if not run.trials.empty}
    sections = [
        Section("compared", None, {"warnings": compared.warnings, "overview": overview}),
        Section("compared-results", "Results", {"rows": rows}, drawn),
        Section("compared-best", "The best configurations", {"overview": overview, "paths": paths}),
    ]
    if searched:
        spent = {"spent": accuracy_by_epochs(searched)}
        sections.append(Section("compared-spent", "Accuracy against epochs spent", {}, spent))
    names = ", ".join(compared.runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, assemble(sections, title=f"{names} · kdtune", heading="Runs compared", subtitle=names))
    return path
