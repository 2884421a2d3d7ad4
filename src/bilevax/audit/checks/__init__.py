"""The groups of checks: each a function of the subject that yields findings and figures."""
