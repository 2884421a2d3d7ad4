"""The report: self-contained HTML pages made from plain records, a run's files or the findings of an audit."""

from bilevax.report.findings import write_findings
from bilevax.report.page import write_report

__all__ = ["write_findings", "write_report"]
