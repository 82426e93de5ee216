"""Speed and memory, measured on demand: `python -m tests.benchmarks NAME [--json FILE]`, `--list` names them.

A benchmark is a function that returns rows (what was measured) and ratios (what people rely on). Machines are noisy
and shared, so what is compared is measured interleaved within one run, and medians count.
"""
