"""Can a problem be believed? The doctor, and measured constants."""

from bilevax.audit.constants import estimate_constants as estimate_constants
from bilevax.audit.doctor import check as check
from bilevax.audit.findings import Finding as Finding
from bilevax.audit.findings import Findings as Findings
