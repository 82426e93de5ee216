"""The student as files that anybody can use, and what can be done with them.

student.py     the student with its preprocessing; `load_student`
formats.py     pt2, ONNX, TorchScript: written and opened
writing.py     the export folder, whole or not at all; trying.py: each file against the student
card.py        README.md with the Hub's header
opening.py     any file or folder of a student; predicting.py, measuring.py: image files and data sets through it
"""

from kdtune.export.card import Files, card, cost_in_words, images_in_words, run_card
from kdtune.export.formats import FORMATS
from kdtune.export.measuring import Labelled, Measured, measure, of_dataset, of_folder
from kdtune.export.opening import Opened, open_student
from kdtune.export.predicting import Prediction, predict
from kdtune.export.student import ExportedStudent, load_student
from kdtune.export.writing import Wanted, check_place, export_run, export_student

__all__ = [
    "FORMATS",
    "ExportedStudent",
    "Files",
    "Labelled",
    "Measured",
    "Opened",
    "Prediction",
    "Wanted",
    "card",
    "check_place",
    "cost_in_words",
    "export_run",
    "export_student",
    "images_in_words",
    "load_student",
    "measure",
    "of_dataset",
    "of_folder",
    "open_student",
    "predict",
    "run_card",
]
