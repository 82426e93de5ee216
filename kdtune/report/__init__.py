"""What a run has found, from its folder: the numbers, and the page that shows them.

summary.py    summary.json, made from what a run has recorded
"""

from kdtune.report.summary import read_summary, summarise, write_summary

__all__ = ["read_summary", "summarise", "write_summary"]
