"""`aiflow bench`: what measures this installation, a command a file."""

from __future__ import annotations

import typer

from aiflow_agents.cli.bench_backends import backends
from aiflow_agents.cli.bench_controls import controls
from aiflow_agents.cli.bench_decoding import decoding
from aiflow_agents.cli.bench_drafting import drafting
from aiflow_agents.cli.bench_engine import engine
from aiflow_agents.cli.bench_family import family
from aiflow_agents.cli.bench_fetch import fetch
from aiflow_agents.cli.bench_judge import judge
from aiflow_agents.cli.bench_kills import kills
from aiflow_agents.cli.bench_monolith import monolith
from aiflow_agents.cli.bench_overhead import overhead
from aiflow_agents.cli.bench_plan import plan
from aiflow_agents.cli.bench_rank import rank
from aiflow_agents.cli.bench_report import report
from aiflow_agents.cli.bench_resume import resume
from aiflow_agents.cli.bench_serve import serve
from aiflow_agents.cli.bench_views import views
from aiflow_agents.cli.bench_wire import wire

bench = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Measure this installation. Medians over rounds in which both sides run by turns."
)
bench.command("backends", short_help="One model behind every backend: the same text, and how fast.")(backends)
bench.command("controls", short_help="Does the judge say `beats` where it must not?")(controls)
bench.command("decoding", short_help="Several tiers decode together: is it exact?")(decoding)
bench.command("drafting", short_help="Tokens per second of a family that drafts for itself.")(drafting)
bench.command("family")(family)
bench.command("judge", short_help="Is the judge ever fooled? Worlds of known truth.")(judge)
bench.command("kills", short_help="Hosts and raylets die in mid-run: is nothing lost?")(kills)
bench.command("monolith", short_help="A team beside one model of its size and tokens.")(monolith)
bench.command("plan", short_help="Do forecasts of `aiflow plan` come true on real sockets?")(plan)
bench.command("rank", short_help="Accuracy over sizes, for each way to decompose.")(rank)
bench.command("report", short_help="Seconds that a large run's page takes to open.")(report)
bench.command("resume", short_help="Killed and resumed again and again: is nothing lost?")(resume)
bench.command("serve", short_help="What serving adds to a model, under load and abuse.")(serve)
bench.command("views", short_help="Accuracy by bytes of each camera: features, JPEG, text.")(views)
bench.command("wire", short_help="Codecs on hidden states: bits, answers lost, time.")(wire)
bench.command("engine", short_help="Tokens per second and memory, beside transformers.")(engine)
bench.command("overhead", short_help="What an evaluation adds to its models.")(overhead)
bench.command("fetch", short_help="What a payload costs from host to host under Ray.")(fetch)
