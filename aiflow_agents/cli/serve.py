"""`aiflow serve`: a team as an endpoint that any OpenAI client can call."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Literal

import typer

from aiflow_agents.cli.options import Fitted, HostGpus, parameters
from aiflow_agents.errors import UserError

REMEDY = "pip install 'aiflow-agents[serve]'"


def serve(
    team: Annotated[list[str] | None, typer.Argument(help="Teams by name or path.", show_default="specialists, or the run's")] = None,
    topology: Annotated[
        str | None, typer.Option(help="How a team talks when a client asks for it by its own name.", show_default="majority, or the run's best")
    ] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("-T", metavar="NAME=VALUE", help="A parameter of that topology; repeatable.", show_default=False)
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="Another topology that clients may choose; repeatable.", show_default="all that fit")
    ] = None,
    fitted: Fitted = None,
    network: Annotated[str | None, typer.Option(help="Another network than the teams' own.", show_default=False)] = None,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free.")] = 8000,
    runtime: Annotated[Literal["ray", "inline"], typer.Option(help="ray: Ray Serve, one host a core; inline: this process.")] = "ray",
    ray_address: Annotated[str | None, typer.Option(help="A running Ray cluster, or auto.", show_default=False)] = None,
    place: Annotated[
        Literal["any", "spread"], typer.Option(help="spread: each node's models on a Ray node of its tier (labels aiflow.tier, aiflow.node).")
    ] = "any",
    host_gpus: HostGpus = 0.0,
    key_variable: Annotated[
        str | None, typer.Option(help="The environment variable with the API keys, commas between.", show_default="no key is needed")
    ] = None,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="Larger requests are refused.")] = 1_000_000,
    max_seconds: Annotated[float, typer.Option(min=0.001, help="A request that takes longer is given up.")] = 120.0,
    max_rate: Annotated[float, typer.Option(min=0, help="Requests a second of one key or address; 0 is no limit.")] = 0.0,
    at_once: Annotated[int, typer.Option(min=1, help="More requests at the same time are refused.")] = 256,
    pace: Annotated[bool, typer.Option("--pace", help="Let messages take as long as on the simulated network.")] = False,
    seed: Annotated[int, typer.Option(help="Of what is not sampled by a request's own seed.")] = 0,
) -> int:
    """Serve teams, their topologies and their members under OpenAI's protocol, until SIGTERM or Ctrl-C."""
    if lacking := next((module for module in ("fastapi", "uvicorn") if find_spec(module) is None), None):
        raise UserError(f"serving needs {lacking}: {REMEDY}")
    from aiflow_agents.serve.app import app_of
    from aiflow_agents.serve.gate import Limits
    from aiflow_agents.serve.run import LOOPBACK, serve_inline, serve_ray
    from aiflow_agents.serve.settings import Settings, digests_from

    limits = Limits(body_bytes=max_body_bytes, answer_s=max_seconds, rate=max_rate, at_once=at_once)
    keys, names = digests_from(key_variable), team or ([] if fitted else ["specialists"])
    if place == "spread" and runtime == "inline":
        raise UserError("--place spread is for --runtime ray: one process is one place")
    settings = Settings(
        names, topology, parameters(parameter), allow or (), network, runtime, ray_address, place == "spread", host_gpus, keys, limits, seed, pace,
        str(fitted) if fitted else None,
    )  # fmt: skip
    models = settings.models()
    if host not in LOOPBACK and not keys:
        typer.echo(f"aiflow: warning: everybody who reaches {host}:{port} can use this: --key-variable asks for a key", err=True)

    def ready(at: int) -> None:
        typer.echo(f"{len(models.by_name)} models at http://{f'[{host}]' if ':' in host else host}:{at}/v1: {', '.join(models.by_name)}")

    on_serve = runtime == "ray" and all(find_spec(module) for module in ("grpc", "watchfiles"))
    if runtime == "ray" and not on_serve:
        typer.echo(f"aiflow: without Ray Serve, one process answers HTTP and Ray computes: {REMEDY}", err=True)
    if on_serve:
        if port == 0:
            raise UserError("--port 0 is for --runtime inline: Ray Serve needs to know its port")
        serve_ray(settings, host, port, ready)
    else:
        serve_inline(app_of(settings, models), host, port, ready)
    return 0
