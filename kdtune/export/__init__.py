"""The student as files that anybody can use.

student.py    the export folder: weights, config, model card; `load_student`
"""

from kdtune.export.student import ExportedStudent, card, export_run, export_student, load_student, run_card

__all__ = ["ExportedStudent", "card", "export_run", "export_student", "load_student", "run_card"]
