"""The tables of the report, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from aiflow_agents.evals.report.arms import capacities, capture_text, chosen, cost, sorted_arms
from aiflow_agents.evals.verdict import p_text, percent, points, quantity, sentence


def terminal_table(summary: Mapping[str, Any]) -> Table:
    """The arms, by kind and then accuracy. Costs are means per question."""
    table = Table(title=f"{summary['suite']}, {summary['n_tasks']:,} questions", title_justify="left", box=None, pad_edge=False, header_style="bold")
    for header, justify in (("arm", "left"), ("kind", "left"), ("right", "right"), ("95 %", "left"), ("FLOPs", "right"), ("tokens", "right"),
                            ("bytes", "right"), ("p50", "right"), ("p95", "right"), ("energy", "right")):
        table.add_column(header, justify=justify, no_wrap=header != "arm", overflow="fold")  # type: ignore[arg-type]
    some_failed = any(arm.get("n_failed") for arm in summary["arms"].values())
    if some_failed:
        table.add_column("failed", justify="right", no_wrap=True)
    some_stream = any(arm.get("ms_per_token") is not None for arm in summary["arms"].values())
    for header in ("first token", "per token") if some_stream else ():
        table.add_column(header, justify="right", no_wrap=True)
    some_over = any(arm.get("n_over_budget") for arm in summary["arms"].values())
    if some_over:
        table.add_column("over budget", justify="right", no_wrap=True)
    marked = {chosen(summary, "best_member"), chosen(summary, "best_topology")}
    arms, latest = sorted_arms(summary), None
    for name, arm in arms:
        if latest not in (None, arm["kind"]):
            table.add_section()
        latest = arm["kind"]
        interval = f"{100 * arm['ci95'][0]:.1f}-{100 * arm['ci95'][1]:.1f}" if arm["ci95"] else "-"
        table.add_row(Text(name), arm["kind"], percent(arm["accuracy"]), interval, quantity(arm.get("flops")), quantity(cost(arm, "tokens")),
                      quantity(arm.get("wire_bytes"), "B"), quantity((arm.get("latency_s") or {}).get("p50"), "s"),
                      quantity((arm.get("latency_s") or {}).get("p95"), "s"), quantity(arm.get("energy_j"), "J"),
                      *([f"{arm['n_failed']:,}" if arm.get("n_failed") else ""] if some_failed else []),
                      *([quantity((arm.get("first_token_s") or {}).get("p50"), "s"), _each(arm)] if some_stream else []),
                      *([f"{arm['n_over_budget']:,}" if arm.get("n_over_budget") else ""] if some_over else []),
                      style="bold" if name in marked else None)
    return table


def _each(arm: Mapping[str, Any]) -> str:
    return quantity(arm["ms_per_token"] / 1000, "s") if arm.get("ms_per_token") is not None else "-"


def decoding_table(summary: Mapping[str, Any]) -> Table:
    """What decoding took, per token, of the arms that are ways of decoding one member's answer."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header, justify in (("arm", "left"), ("text", "left"), ("accepted", "right"), ("tokens a check", "right"), ("wasted", "right"),
                            ("bytes a token", "right"), ("J a token", "right"), ("cloud FLOPs a token", "right"), ("cloud busy a token", "right")):
        table.add_column(header, justify=justify, no_wrap=header != "arm", overflow="fold")  # type: ignore[arg-type]
    for name, arm in sorted_arms(summary)[0:]:
        if not arm.get("decoding"):
            continue
        d = arm["decoding"]
        drafts = d["acceptance_rate"] is not None
        table.add_row(Text(name), arm.get("fidelity") or "-", percent(d["acceptance_rate"]) if drafts else "-",
                      f"{d['tokens_a_check']:.2f}" if d["tokens_a_check"] else "-", f"{d['wasted_drafts']:.1f}" if drafts else "-",
                      quantity(d["bytes_per_token"], "B"), quantity(d["joules_per_token"], "J"), quantity(d["cloud_flops_per_token"]),
                      quantity(d["cloud_busy_ms_per_token"] / 1000, "s"))
    return table


def verdict_table(summary: Mapping[str, Any]) -> Table:
    """The verdict rows, in points; p as adjusted by Holm's method, which is what `says` follows."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header, justify in (("arm", "left"), ("", "left"), ("against", "left"), ("points", "right"), ("95 %", "left"), ("p (Holm)", "left"),
                            ("could show", "right"), ("won/lost/tied", "right"), ("capture", "left")):
        table.add_column(header, justify=justify, no_wrap=header != "arm", overflow="fold")  # type: ignore[arg-type]
    style = {"beats": "green", "loses": "red", "not shown": "dim"}
    for v in summary["verdicts"]:
        interval = f"{points(v['ci95'][0])} to {points(v['ci95'][1])}" if v["ci95"] else "-"
        table.add_row(Text(v["arm"]), Text(v["says"], style[v["says"]]), Text(v["against"]), points(v["delta"]), interval,
                      p_text(v["p_holm"])[2:].removeprefix("= "), points(v["mde"]) if v["mde"] is not None else "-",
                      f"{v['wins']:,}/{v['losses']:,}/{v['ties']:,}", capture_text(v["capture"]))
    return table


def show(summary: Mapping[str, Any], console: Console) -> None:
    """Print the arms, the verdicts and the sentence."""
    console.print(terminal_table(summary))
    if any(arm.get("decoding") for arm in summary["arms"].values()):
        console.print()
        console.print(decoding_table(summary))
    if summary["verdicts"]:
        console.print()
        console.print(verdict_table(summary))
    if found := capacities(summary):
        listed = ", ".join(f"{name} {row['value']:.3f}" for name, row in found)
        console.print(f"\nInformation Capacity (b = {found[0][1]['bias']:.4g}): {listed}", highlight=False, markup=False)
    console.print()
    console.print(sentence(summary), highlight=False, markup=False)
