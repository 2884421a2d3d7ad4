"""Questions about bilevax that are answered by measuring: ``python -m benchmarks NAME [--quick] [options]``.

Without a name, the questions are listed. A question is a module of this package that QUESTIONS names. Its docstring
begins with the question, in one line, and says what is measured, on what, and how. It has

- ``main(options)``, which measures, prints (``tables.Table``) and keeps what it found (``store.keep(options, ...)``);
- ``arguments(parser)``, if it has options beside the two that every question has: ``--quick`` tries the code on very
  little, so that nothing is measured, no goal applies and nothing is kept; ``--out FILE.json`` is where the record is
  kept, else benchmarks/results/NAME.json.

What questions share: ``cases`` (what they are asked on: one record, drawn and real problems), ``datasets`` (real data),
``families`` (of problems to choose and to judge on), ``exact`` (hypergradients at any lam), ``machine`` (one pinned
thread, times in turn, ceilings, processes of their own), ``tables`` (the printer) and ``store`` (the JSON files).
"""

QUESTIONS = (
    "core", "first_calls", "memory", "outer_loop", "online", "checkpoints", "streams", "many_rows", "two_commits",
    "distributed", "scaling",
    "structure", "verdicts", "coverage", "deterministic", "contraction",
    "planner", "targets", "joint_sid", "paper",
    "nsid", "mixed_fp", "newsgroups", "against_grid", "elastic_net", "additive", "labels", "networks", "text", "wide",
    "compare", "default_steps", "step_rules",
)  # fmt: skip
