"""Spans as an OpenTelemetry backend gets them: the SDK's own exporter, and its own list of attributes, are the oracle."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as known
from opentelemetry.semconv.attributes import error_attributes
from opentelemetry.trace import SpanKind, StatusCode

from aiflow_agents.errors import UserError
from aiflow_agents.models.protocol import CallError, Sampling
from aiflow_agents.runtime.otel import OpenTelemetry
from aiflow_agents.runtime.run import ask
from aiflow_agents.topology.load import load_topology

NAMES = {value for key, value in vars(known).items() if key.startswith("GEN_AI_") and isinstance(value, str)} | {error_attributes.ERROR_TYPE}
OLD = {known.GEN_AI_SYSTEM, known.GEN_AI_USAGE_PROMPT_TOKENS, known.GEN_AI_USAGE_COMPLETION_TOKENS, known.GEN_AI_PROMPT, known.GEN_AI_COMPLETION}


class Backend:
    def __init__(self) -> None:
        self.exporter, self.provider = InMemorySpanExporter(), TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    @property
    def spans(self) -> list[Any]:
        return list(self.exporter.get_finished_spans())

    def named(self, start: str) -> list[Any]:
        return [span for span in self.spans if span.name.startswith(start)]


def test_a_debate_is_a_workflow_of_agents_with_their_models(stage: Any) -> None:
    backend, team = Backend(), stage.team(ann="phone", tim="tower")
    result = ask(team, load_topology("debate", {"rounds": 1}), "why?", hosts=stage.hosts(), hooks=[OpenTelemetry(backend.provider)])
    [workflow], agents, chats, moves = (backend.named(name) for name in ("invoke_workflow debate", "invoke_agent ", "chat ", "move"))
    assert len(backend.spans) == 1 + 4 + 4 + len(moves) and len(agents) == len(chats) == 4
    assert {span.context.trace_id for span in backend.spans} == {workflow.context.trace_id} and workflow.parent is None
    assert {span.parent.span_id for span in [*agents, *moves]} == {workflow.context.span_id}
    assert [span.parent.span_id for span in chats] == [span.context.span_id for span in agents]
    assert {span.kind for span in chats} == {SpanKind.CLIENT} and {span.kind for span in [workflow, *agents, *moves]} == {SpanKind.INTERNAL}
    for span in backend.spans:
        assert {key for key in span.attributes if not key.startswith("aiflow.")} <= NAMES - OLD
    operations = {known.GenAiOperationNameValues.INVOKE_WORKFLOW.value: workflow, known.GenAiOperationNameValues.INVOKE_AGENT.value: agents[0], known.GenAiOperationNameValues.CHAT.value: chats[0]}
    assert all(span.attributes["gen_ai.operation.name"] == name and span.name.startswith(name) for name, span in operations.items())
    assert sum(span.attributes["gen_ai.usage.output_tokens"] for span in chats) == result.usage.tokens_out
    read = [span.attributes["gen_ai.usage.input_tokens"] - span.attributes.get("gen_ai.usage.cache_read.input_tokens", 0) for span in chats]
    assert sum(read) == result.usage.tokens_in and workflow.attributes["aiflow.usage.wire_bytes"] == result.usage.wire_bytes
    assert {(span.attributes["gen_ai.agent.name"], span.attributes["gen_ai.request.model"], span.attributes["aiflow.node"]) for span in chats} == {("ann", "ann", "phone"), ("tim", "tim", "tower")}
    assert not any("messages" in key or "instructions" in key for span in backend.spans for key in span.attributes)  # nobody's words unless asked for


def test_spans_last_as_long_as_is_simulated_from_the_real_beginning_on(stage: Any) -> None:
    import time

    backend, before = Backend(), time.time_ns()
    result = ask(stage.team(ann="phone", tim="tower"), load_topology("majority"), "why?", hosts=stage.hosts(), hooks=[OpenTelemetry(backend.provider)])
    [workflow] = backend.named("invoke_workflow")
    assert before <= workflow.start_time <= time.time_ns() and workflow.end_time - workflow.start_time == round(result.usage.latency_s * 1e9)
    for span in backend.named("chat") + backend.named("move"):
        times = [round((t - workflow.start_time) / 1e9, 6) for t in (span.start_time, span.end_time)]
        assert times == [round(span.attributes[f"aiflow.{end}_s"], 6) for end in ("start", "end")] and times[0] < times[1]
    assert {(s.attributes["aiflow.start_s"], s.attributes["aiflow.end_s"]) for s in backend.named("chat")} == {(s.start_s, s.end_s) for s in result.spans if s.kind == "call"}


def test_words_where_they_are_wanted(stage: Any) -> None:
    from dataclasses import replace

    backend, team = Backend(), stage.team(ann="phone")
    team = replace(team, agents={"ann": replace(team["ann"], prompt="Be brief.", sampling=Sampling(0.5, 0.9))})
    ask(team, load_topology("single"), "why?", hosts=stage.hosts(), hooks=[OpenTelemetry(backend.provider, content=True, moves=False)])
    [chat], [workflow] = backend.named("chat"), backend.named("invoke_workflow")
    assert json.loads(chat.attributes["gen_ai.input.messages"]) == [{"role": "user", "parts": [{"type": "text", "content": "why?"}]}]
    assert json.loads(chat.attributes["gen_ai.system_instructions"]) == [{"type": "text", "content": "Be brief."}]
    assert json.loads(chat.attributes["gen_ai.output.messages"])[0]["finish_reason"] == "stop"
    assert json.loads(workflow.attributes["gen_ai.output.messages"])[0]["parts"] == json.loads(chat.attributes["gen_ai.output.messages"])[0]["parts"]
    assert (chat.attributes["gen_ai.request.temperature"], chat.attributes["gen_ai.request.top_p"]) == (0.5, 0.9) and chat.attributes["gen_ai.request.seed"] > 0


def test_what_failed_is_an_error(stage: Any) -> None:
    backend = Backend()
    team = stage.team(ann=("phone", lambda request: CallError("refused", "not today")))
    ask(team, load_topology("single"), "why?", hosts=stage.hosts(), hooks=[OpenTelemetry(backend.provider)])
    [chat], [agent], [workflow] = (backend.named(name) for name in ("chat", "invoke_agent", "invoke_workflow"))
    assert {span.status.status_code for span in (chat, agent, workflow)} == {StatusCode.ERROR}
    assert (chat.attributes["error.type"], chat.status.description, workflow.attributes["error.type"]) == ("refused", "not today", "MemberFailed")


def test_the_callers_span_is_the_parent(stage: Any) -> None:
    backend = Backend()
    with trace.use_span(backend.provider.get_tracer("mine").start_span("mine")) as mine:
        ask(stage.team(ann="phone"), load_topology("single"), "why?", hosts=stage.hosts(), hooks=[OpenTelemetry(backend.provider)])
    assert backend.named("invoke_workflow")[0].parent.span_id == mine.get_span_context().span_id


def test_an_evaluation_is_a_trace_for_each_task_and_arm(room: Any) -> None:
    backend, hook = Backend(), None
    hook = OpenTelemetry(backend.provider, moves=False)
    report = room.evaluate(limit=3, topologies=["majority"], hooks=[hook])
    workflows = backend.named("invoke_workflow")
    assert len({span.context.trace_id for span in workflows}) == len(workflows) and not hook._open
    assert {span.attributes["aiflow.stage"] for span in workflows} == {"dev", "test"} and {span.attributes["aiflow.run"] for span in workflows} == {report.folder.name}
    on_test = [span for span in workflows if span.attributes["aiflow.stage"] == "test" and span.attributes["aiflow.arm"] == "ann"]
    assert len(on_test) == 3 and {span.attributes["gen_ai.workflow.name"] for span in on_test} == {"single"}


def test_without_opentelemetry_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(UserError, match=r"pip install 'aiflow-agents\[otel\]'"):
        OpenTelemetry()
