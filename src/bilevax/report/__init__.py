"""The report, made from plain records: HTML pages of a run's files or of an audit; the picture of a comparison."""

from bilevax.report.courses import write_courses as write_courses
from bilevax.report.findings import write_findings
from bilevax.report.page import render_report as render_report
from bilevax.report.page import write_report

__all__ = ["write_courses", "write_findings", "write_report"]
