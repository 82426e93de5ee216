"""JSON lines of a run as pandas frames: 300,000 epochs in a few seconds.

    told = read_told(folder / "trials.jsonl")
    told.epochs        # frame, one row an epoch of a trial
    told.configs       # {trial: {path: value}}

Arrow reads the numbers. What a trial tries is the same in each of its lines, and may be of any type: it is read from
its first one only.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.json

from kdtune.errors import RunError
from kdtune.records import read_lines

WHOLE = ("epoch", "epochs")
NUMBERS = (
    "at", "cost", "loss", "val_accuracy", "val_loss", "learning_rate", "seconds", "waited", "computed", "temperature",
    "alpha", "feature_weight",
)  # fmt: skip
TERM = "term."  # begins the column of a term of the loss
DAMAGED = "the file was edited or damaged"
LONGEST_LINE = 1 << 24  # bytes


@dataclass(frozen=True)
class Told:
    """What trials.jsonl says, in the order in which trials first appeared."""

    epochs: pd.DataFrame  # trial, epoch, epochs, NUMBERS, and `term.<name>` for each term of the loss
    configs: Mapping[str, Mapping[str, Any]]
    parents: Mapping[str, tuple[str, int]]  # of forks: whose state they go on from, and its epoch


def read_told(path: Path) -> Told:
    """Raises RunError where a line is no epoch of a trial. A last line that a crash has cut is left out."""
    content = path.read_bytes() if path.exists() else b""
    content = content[: content.rfind(b"\n") + 1]
    first = _first_lines(path, content)
    terms = sorted({name for line in first.values() for name in line.get("terms", {})})
    frame = _numbers(path, content, terms) if content else _nothing(terms)
    order = list(first)
    frame = _in_order(frame, order)
    parents = {
        trial: (str(line["parent"]["trial"]), int(line["parent"]["epoch"]))
        for trial, line in first.items()
        if "parent" in line
    }
    return Told(frame, {trial: first[trial]["config"] for trial in order}, parents)


def _first_lines(path: Path, content: bytes) -> dict[str, dict[str, Any]]:
    """Each trial's first line; `trial` is what a line begins with, so that only lines that begin anew are read."""
    seen: set[bytes] = set()
    first: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        begins = line[: line.find(b",")]
        if begins in seen:
            continue
        seen.add(begins)
        try:
            read = json.loads(line)
            first.setdefault(read["trial"], {"config": dict(read["config"]), **read})
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path}, line {number} is no epoch of a trial: {DAMAGED}") from error
    return first


def _numbers(path: Path, content: bytes, terms: Sequence[str]) -> pd.DataFrame:
    fields = [("trial", pa.string())]
    fields += [(name, pa.int64()) for name in WHOLE] + [(name, pa.float64()) for name in NUMBERS]
    fields += [("terms", pa.struct([(name, pa.float64()) for name in terms]))]
    options = pa.json.ParseOptions(explicit_schema=pa.schema(fields), unexpected_field_behavior="ignore")
    block = pa.json.ReadOptions(block_size=LONGEST_LINE)
    try:
        table = pa.json.read_json(pa.BufferReader(content), read_options=block, parse_options=options)
    except pa.ArrowInvalid as error:
        raise RunError(f"{path} cannot be read, {error}: {DAMAGED}") from error
    if any(table[name].null_count for name in ("trial", *WHOLE)):
        raise RunError(f"{path} has lines without trial, epoch or epochs: {DAMAGED}")
    columns = {name: table[name].to_numpy() for name in (*WHOLE, *NUMBERS)}
    broken = table["terms"].combine_chunks()
    columns |= {f"{TERM}{name}": broken.field(name).to_numpy(zero_copy_only=False) for name in terms}
    frame = pd.DataFrame({"trial": table["trial"].to_pylist(), **columns})
    frame["waited"] = frame["waited"].fillna(0.0)  # earlier versions did not say
    return frame


def _nothing(terms: Sequence[str]) -> pd.DataFrame:
    names = [*WHOLE, *NUMBERS, *(f"{TERM}{name}" for name in terms)]
    return pd.DataFrame({"trial": pd.Series(dtype=str), **{name: pd.Series(dtype=float) for name in names}})


def _in_order(frame: pd.DataFrame, order: Sequence[str]) -> pd.DataFrame:
    """Trial by trial, epochs ascending. Where a trial went back, what it had told beyond that does not count."""
    frame["trial"] = pd.Categorical(frame["trial"], categories=list(order))
    backwards = frame.sort_values("trial", kind="stable")[::-1]
    lowest = backwards.groupby("trial", observed=True)["epoch"].cummin()
    later = lowest.groupby(backwards["trial"], observed=True).shift(1)
    frame = backwards[~(later <= backwards["epoch"])][::-1].reset_index(drop=True)
    frame["trial"] = frame["trial"].astype(str)
    return frame


def final_lines(path: Path) -> list[dict[str, Any]]:
    """Of final.jsonl, each a run. Raises RunError where one is none."""
    lines = list(read_lines(path))
    for number, line in enumerate(lines, start=1):
        known = isinstance(line, dict) and isinstance(line.get("epochs"), list)
        if not known or not isinstance(line.get("name"), str) or not isinstance(line.get("seed"), int):
            raise RunError(f"{path}, line {number} is no run of the final stage: {DAMAGED}")
    return lines


def final_runs(lines: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a run: name, seed, test_accuracy, confusion, ..."""
    if not lines:
        return pd.DataFrame(columns=["name", "seed", "test_accuracy", "diverged"])
    return pd.DataFrame([{name: value for name, value in line.items() if name != "epochs"} for line in lines])


def final_epochs(lines: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row an epoch of each run."""
    told = [{"name": line["name"], "seed": line["seed"]} | _flat(epoch) for line in lines for epoch in line["epochs"]]
    return pd.DataFrame(told) if told else pd.DataFrame(columns=["name", "seed", "epoch", "epochs"])


def _flat(epoch: Mapping[str, Any]) -> dict[str, Any]:
    flat = {name: value for name, value in epoch.items() if name not in ("terms", "shares")}
    flat = {"waited": 0.0} | flat  # earlier versions did not say
    return flat | {f"{TERM}{name}": value for name, value in epoch["terms"].items()}
