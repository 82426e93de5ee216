"""Records: JSON lines that survive a crash, trials that go back, files that are whole or absent."""

import errno
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtune.errors import RunError
from kdtune.records import EpochRecord, append_line, mend, read_lines, read_trials, write_bytes, write_text

RECORD = EpochRecord(
    epoch=1,
    epochs=3,
    loss=0.75,
    terms={"cross_entropy": 0.25, "kl": 0.5},
    val_accuracy=0.9,
    val_loss=0.4,
    learning_rate=0.05,
    seconds=1.5,
    waited=0.25,
    temperature=4.0,
    alpha=0.9,
    feature_weight=0.0,
    computed=0.125,
)


def say(path: Path, trial: str, record: EpochRecord) -> None:
    """One epoch of a trial, as a search writes it down."""
    append_line(path, {"trial": trial, "config": {"distill.alpha.start": 0.5}, **record.to_json()})


def test_shares_of_the_terms_are_written_with_every_epoch() -> None:
    assert RECORD.to_json()["shares"] == {"cross_entropy": pytest.approx(1 / 3), "kl": pytest.approx(2 / 3)}
    assert replace(RECORD, loss=0.0, terms={"kl": 0.0}).shares == {"kl": 0.0}
    assert replace(RECORD, loss=math.nan).to_json()["shares"] == {"cross_entropy": None, "kl": None}


def disk_full(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    said = [replace(RECORD, epoch=epoch, loss=1 / epoch) for epoch in (1, 2, 3)]
    for record in said:
        say(path, "0000", record)
    (trial,) = read_trials(path)
    assert (trial.trial, trial.config, trial.epochs) == ("0000", {"distill.alpha.start": 0.5}, tuple(said))
    assert trial.complete
    assert trial.val_accuracy == 0.9


def test_lines_of_an_earlier_version_say_nothing_of_waiting_nor_of_what_was_computed_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    line = {"trial": "0000", "config": {}, **replace(RECORD, waited=2.5).to_json()}
    assert (line.pop("waited"), line.pop("computed")) == (2.5, 0.125)
    append_line(path, line)
    ((record,),) = (trial.epochs for trial in read_trials(path))
    assert record == replace(RECORD, waited=0.0, computed=None)


def test_what_was_not_measured_comes_back_as_none(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    alone = replace(RECORD, val_accuracy=None, val_loss=None, temperature=None, alpha=None, feature_weight=None)
    say(path, "0000", alone)
    assert read_trials(path)[0].epochs == (alone,)


@given(
    st.builds(
        EpochRecord,
        epoch=st.integers(1, 100),
        epochs=st.integers(1, 100),
        loss=st.floats(allow_nan=False, allow_infinity=False),
        terms=st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)),
        val_accuracy=st.none() | st.floats(0, 1),
        val_loss=st.none() | st.floats(0, 1e300),
        learning_rate=st.floats(0, 1),
        seconds=st.floats(0, 1e6),
    )
)
def test_any_finite_record_survives_json_bit_for_bit(record: EpochRecord) -> None:
    assert EpochRecord.from_json(json.loads(json.dumps(record.to_json(), allow_nan=False))) == record


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_diverged_epoch_is_still_diverged_when_read_back(tmp_path: Path, loss: float) -> None:
    path = tmp_path / "trials.jsonl"
    say(path, "0000", replace(RECORD, epoch=2, loss=loss, terms={"cross_entropy": 1.0, "kl": loss}, val_loss=loss))
    text = path.read_text()
    assert "NaN" not in text  # not JSON: other programs could not read the line
    assert "Infinity" not in text
    (trial,) = read_trials(path)
    assert trial.epochs[-1].diverged
    assert trial.complete
    assert trial.val_accuracy == 0.0


def test_the_terms_of_a_diverged_epoch_are_still_numbers_when_read_back(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    say(path, "0000", replace(RECORD, loss=math.nan, terms={"cross_entropy": 1.0, "kl": math.nan}))
    terms = read_trials(path)[0].epochs[-1].terms
    assert terms["cross_entropy"] == 1.0
    assert isinstance(terms["kl"], float)
    assert math.isnan(terms["kl"])


def test_a_trial_is_complete_in_its_last_epoch_or_when_it_has_diverged() -> None:
    assert not replace(RECORD, epoch=2).last
    assert replace(RECORD, epoch=3).last
    assert replace(RECORD, epoch=2, loss=math.nan).last


def test_a_last_line_cut_by_a_crash_is_left_out_and_mended(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    for epoch in (1, 2):
        say(path, "0000", replace(RECORD, epoch=epoch))
    whole = path.read_bytes()
    cuts = range(whole.index(b"\n") + 1, len(whole))  # anywhere in the second line, its newline missing at the least
    for cut in cuts:
        path.write_bytes(whole[:cut])
        assert [record.epoch for record in read_trials(path)[0].epochs] == [1]
        mend(path)
        say(path, "0000", replace(RECORD, epoch=2))
        assert path.read_bytes() == whole


def test_mending_leaves_whole_empty_and_missing_files_alone(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    mend(path)
    assert not path.exists()
    path.write_bytes(b"")
    mend(path)
    assert path.read_bytes() == b""
    say(path, "0000", RECORD)
    whole = path.read_bytes()
    mend(path)
    assert path.read_bytes() == whole


def test_a_file_that_is_one_cut_line_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    path.write_bytes(b'{"trial": "00')
    assert read_trials(path) == []
    mend(path)
    assert path.read_bytes() == b""


def test_a_missing_file_has_no_lines(tmp_path: Path) -> None:
    assert list(read_lines(tmp_path / "trials.jsonl")) == []


def test_a_trial_that_goes_back_takes_back_what_it_said_of_later_epochs(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    for epoch, loss in ((1, 0.9), (2, 0.8), (3, 0.7), (2, 0.6)):  # resumed from the checkpoint of epoch 1
        say(path, "0000", replace(RECORD, epoch=epoch, loss=loss))
    (trial,) = read_trials(path)
    assert [(record.epoch, record.loss) for record in trial.epochs] == [(1, 0.9), (2, 0.6)]
    assert not trial.complete


def test_trials_that_take_turns_are_told_apart_and_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    for trial, epoch in (("0001", 1), ("0000", 1), ("0001", 2), ("0000", 2), ("0000", 1)):
        say(path, trial, replace(RECORD, epoch=epoch))
    assert [(t.trial, [r.epoch for r in t.epochs]) for t in read_trials(path)] == [("0001", [1, 2]), ("0000", [1])]


@pytest.mark.parametrize("damage", [b"###", b'{"trial": "0000", "epo', b"\xff\xfe", b""])
def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "trials.jsonl"
    say(path, "0000", RECORD)
    path.write_bytes(path.read_bytes() + damage + b"\n" + path.read_bytes())
    with pytest.raises(RunError, match=r"trials\.jsonl, line 2 "):
        read_trials(path)


@pytest.mark.parametrize("line", [b"5", b"null", b'{"trial": "0000", "config": {}}'])
def test_a_line_that_is_json_but_no_record_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "trials.jsonl"
    say(path, "0000", RECORD)
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(RunError, match=r"trials\.jsonl, line 2 "):
        read_trials(path)


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_text(path, "ä\n")
    write_text(path, "ö\n")  # over the old one
    assert path.read_bytes() == "ö\n".encode()
    assert os.listdir(tmp_path) == ["summary.json"]


@pytest.mark.parametrize("fails", ["os.fsync", "pathlib.Path.replace"])
def test_a_write_that_fails_leaves_nothing_where_nothing_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    monkeypatch.setattr(fails, disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "summary.json", "new")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("fails", ["os.fsync", "pathlib.Path.replace"])
def test_a_write_that_fails_leaves_the_old_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    (tmp_path / "summary.json").write_text("old")
    monkeypatch.setattr(fails, disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(tmp_path / "summary.json", b"new")
    assert os.listdir(tmp_path) == ["summary.json"]
    assert (tmp_path / "summary.json").read_text() == "old"


def test_content_reaches_the_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    seen: list[tuple[bytes, bool]] = []

    def fsync(descriptor: int) -> None:
        (beside,) = tmp_path.iterdir()
        seen.append((beside.read_bytes(), path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(path, "whole")
    assert seen == [(b"whole", False)]
