"""OpenTelemetry spans of what a run does, by the semantic conventions for generative AI (their names as of release 1.41, status: development;
https://github.com/open-telemetry/semantic-conventions-genai).

    invoke_workflow debate      one task, answered one way; a trace of its own unless the caller has a span
      invoke_agent ann          a member that is asked
        chat tally              its model; the only one with token counts, so that sums over spans are right
      move                      a message on its way between two nodes (ours: no convention speaks of that)

Times: a span begins at the real moment at which its task began, plus simulated seconds, and lasts simulated seconds, as in the report. How long a
call really took would say nothing, as thousands of tasks share one batch and answers are remembered. `aiflow.start_s` and `aiflow.end_s` say the same
as numbers, from the task's beginning on.
"""

from __future__ import annotations

import json
from typing import Any

from aiflow_agents.errors import UserError
from aiflow_agents.models.protocol import Reply, Request, Turn
from aiflow_agents.runtime.hooks import Asked, Called, Hook, Run
from aiflow_agents.runtime.run import Result
from aiflow_agents.runtime.trace import Span


class OpenTelemetry(Hook):
    """A hook: `evaluate(..., hooks=[OpenTelemetry()])`. Spans go to `provider`, or to the one that the program has set up for all.

    `content`: put questions and answers into the spans, too. Raises UserError where there is no opentelemetry.
    """

    def __init__(self, provider: Any = None, *, content: bool = False, moves: bool = True):
        try:
            from opentelemetry import trace
        except ImportError:
            raise UserError("spans take OpenTelemetry, which is not installed: pip install 'aiflow-agents[otel]'") from None
        self._trace, self._content, self._moves = trace, content, moves
        self._tracer = trace.get_tracer("aiflow_agents", tracer_provider=provider)
        self._open: dict[Asked, Any] = {}

    def on_task_start(self, task: Asked) -> None:
        job, run = task.job, task.run
        name = getattr(job.topology, "name", lambda: type(job.topology).__name__)()
        about = {"gen_ai.operation.name": "invoke_workflow", "gen_ai.workflow.name": name}
        about |= {"aiflow.arm": job.arm, "aiflow.team": job.team.name, "aiflow.network": job.team.network.name, "aiflow.task.id": job.task.id}
        about |= {"aiflow.stage": task.stage, "aiflow.suite": run.name, "aiflow.run": run.folder.name if run.folder else ""}
        about = {key: value for key, value in about.items() if value} | {"aiflow.repeat": job.repeat}
        if self._content:
            about["gen_ai.input.messages"] = _said([Turn("user", job.task.question)])
        self._open[task] = self._tracer.start_span(f"invoke_workflow {name}", start_time=task.began_ns, attributes=about)

    def on_call(self, task: Asked, call: Called) -> None:
        agent, info = call.agent, call.agent.info
        where = {"aiflow.node": agent.node, "aiflow.role": agent.role}
        asked = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": agent.name, "gen_ai.request.model": info.name}
        outer = self._begin(task, self._open[task], f"invoke_agent {agent.name}", call.start_s, call.end_s, asked | where)
        about: dict[str, Any] = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": info.engine, "gen_ai.agent.name": agent.name}
        about |= _request(info.name, call.request) | _reply(call)
        if self._content:
            about |= _content(call)
        inner = self._begin(task, outer, f"chat {info.name}", call.start_s, call.end_s, about | where, kind=self._trace.SpanKind.CLIENT)
        for span in (inner, outer):
            if not isinstance(call.reply, Reply):
                self._failed(span, call.reply.kind, call.reply.message)
            span.end(_at(task, call.end_s))

    def on_move(self, task: Asked, move: Span) -> None:
        if self._moves:
            about = {"aiflow.message": move.message, "aiflow.from": move.node, "aiflow.to": move.to, "aiflow.bytes": move.nbytes}
            about |= {"gen_ai.agent.name": move.who} if move.who else {}
            self._begin(task, self._open[task], "move", move.start_s, move.end_s, about).end(_at(task, move.end_s))

    def on_task_end(self, task: Asked, result: Result) -> None:
        span, used = self._open.pop(task), result.usage
        span.set_attributes({f"aiflow.usage.{name}": getattr(used, name) for name in used.__dataclass_fields__})
        if result.over:
            span.set_attribute("aiflow.over_budget", result.over)
        if result.error:
            self._failed(span, result.error.partition(":")[0], result.error)
        if self._content and result.text is not None:
            span.set_attribute("gen_ai.output.messages", _said([Turn("assistant", result.text)]))
        span.end(_at(task, used.latency_s))

    def on_run_end(self, run: Run, outcome: Any) -> None:
        """What a stopped run has left open ends now."""
        for task in [task for task in self._open if task.run is run]:
            self._open.pop(task).end()

    def _begin(self, task: Asked, parent: Any, name: str, start_s: float, end_s: float, about: dict[str, Any], kind: Any = None) -> Any:
        context, kind = self._trace.set_span_in_context(parent), kind or self._trace.SpanKind.INTERNAL
        about = about | {"aiflow.start_s": start_s, "aiflow.end_s": end_s}
        return self._tracer.start_span(name, context, kind, attributes=about, start_time=_at(task, start_s))

    def _failed(self, span: Any, kind: str, why: str) -> None:
        span.set_attribute("error.type", kind)
        span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, why))


def _at(task: Asked, seconds: float) -> int:
    return task.began_ns + round(seconds * 1e9)


def _request(model: str, request: Request) -> dict[str, Any]:
    sampling = request.sampling
    about: dict[str, Any] = {"gen_ai.request.model": model, "gen_ai.request.max_tokens": request.max_tokens}
    about["gen_ai.request.temperature"] = float(sampling.temperature)
    if sampling.temperature > 0:
        about |= {"gen_ai.request.top_p": float(sampling.top_p), "gen_ai.request.seed": request.seed}
    if request.stop:
        about["gen_ai.request.stop_sequences"] = request.stop
    return about | ({} if request.exit is None else {"aiflow.exit": request.exit}) | ({} if request.keep is None else {"aiflow.keep": request.keep})


def _reply(call: Called) -> dict[str, Any]:
    """Tokens as the conventions count them: a prompt's are all of it, and what this member had read before is among them."""
    if not isinstance(call.reply, Reply) or call.usage is None:
        return {}
    reply, used = call.reply, call.usage
    about: dict[str, Any] = {"gen_ai.response.finish_reasons": (reply.finish,)}
    about |= {"gen_ai.usage.input_tokens": reply.tokens_in, "gen_ai.usage.output_tokens": used.tokens_out}
    if used.tokens_in < reply.tokens_in:
        about["gen_ai.usage.cache_read.input_tokens"] = reply.tokens_in - used.tokens_in
    return about | {"aiflow.flops": used.flops, "aiflow.energy_j": used.energy_j}


def _content(call: Called) -> dict[str, str]:
    turns = call.request.messages
    about = {"gen_ai.input.messages": _said([turn for turn in turns if turn.role != "system"])}
    if told := [{"type": "text", "content": turn.content} for turn in turns if turn.role == "system"]:
        about["gen_ai.system_instructions"] = json.dumps(told, ensure_ascii=False)
    if isinstance(call.reply, Reply):
        about["gen_ai.output.messages"] = _said([Turn("assistant", call.reply.text)], finish_reason=call.reply.finish)
    return about


def _said(turns: list[Turn], **more: str) -> str:
    """Messages in the JSON of the conventions."""
    told = [{"role": t.role, "parts": [{"type": "text", "content": t.content}], **({"name": t.name} if t.name else {}), **more} for t in turns]
    return json.dumps(told, ensure_ascii=False)
