"""Tuning: who proposes configurations, who is stopped early, and what a search knows. No ray here.

    study.py       Study: what to run next, whether it goes on; rebuilt from the records of a run
    making.py      the study that an experiment asks for
    samplers.py    who proposes (tpe.py, gaussian.py: those that learn, from curves.py and merit.py)
    stoppers.py    who is stopped (rungs.py, brackets.py: at which epochs)
    population.py  whose place a fork takes: schedules that are found in mid-training
    fidelity.py    whether stopping early was safe
    pareto.py      accuracy against a cost
    warm.py        trials of former searches

A search asks its study and tells it of every epoch, in the order of the records. All that the study answers follows
from the experiment and that order, so a search that was killed goes on as if it never had been.
"""
