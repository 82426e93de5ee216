"""What a run has found, from its folder: the numbers, and the page that shows them.

summary.py      summary.json, made from what a run has recorded
run.py          a run folder as pandas frames; reading.py reads its JSON lines
page.py         report.html: sections/ say what, figures/ draw it, templates/ are what it looks like
importance.py   which hyperparameters matter
live.py         the page, served while a search runs; pictures.py: the figures as PNG files

Pages and frames take plotly and pandas, which whoever wants them imports: nothing here does so for the others.
"""

from kdtune.report.summary import read_summary, summarise, write_summary

__all__ = ["read_summary", "summarise", "write_summary"]
