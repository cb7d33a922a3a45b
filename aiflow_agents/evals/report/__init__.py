"""The outcome of a run, drawn: one self-contained HTML page, and the same tables for a terminal.

`page.py` puts the page together from `summary.json`; `samples.py` and `conversations.py` gather, as columns, what `samples.jsonl` and `trace.jsonl`
hold; `scatter.py` is the geometry of accuracy against cost, `curves.py` that of accuracy against budget; `terminal.py` prints. The page's own
parts lie beside them: `page.html.j2`, `page.css`, and scripts that are put into the page one after the other.
"""

from aiflow_agents.evals.report.page import is_current, write_report
from aiflow_agents.evals.report.terminal import show, terminal_table, verdict_table

__all__ = ["is_current", "show", "terminal_table", "verdict_table", "write_report"]
