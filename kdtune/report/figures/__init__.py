"""Figures of the report, one topic a file: a run in, a plotly figure out."""
