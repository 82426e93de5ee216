"""What a run has found, from its folder: the numbers, and the page that shows them.

summary.py        summary.json, made from what a run has recorded
answers.py        answers to the test set as text, and how far two networks agree
calibration.py    confidence against accuracy, in bins
verdict.py        the paired test, and the sentence that rests on it
times.py          where the time went
run.py            a run folder as pandas frames; reading.py reads its JSON lines
page.py           report.html: sections/ say what, figures/ draw it, templates/ are what it looks like
importance.py     which hyperparameters matter
compare.py        several runs side by side
live.py           the page, served while a search runs; pictures.py: the figures as PNG files

Frames and pages take pandas and plotly, which only those import who want them: not this front door.
"""

from kdtune.report.answers import agreement, packed, unpacked
from kdtune.report.calibration import calibration, in_bins
from kdtune.report.summary import read_summary, summarise, write_summary
from kdtune.report.verdict import paired, verdict

__all__ = [
    "agreement",
    "calibration",
    "in_bins",
    "packed",
    "paired",
    "read_summary",
    "summarise",
    "unpacked",
    "verdict",
    "write_summary",
]
