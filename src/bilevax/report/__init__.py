"""The report: one self-contained HTML page made from the plain files of a run directory."""

from bilevax.report.page import write_report

__all__ = ["write_report"]
