"""`aiflow bench serve`: what it measures is what it says, and what is malformed is."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from aiflow_agents.bench import serve as bench
from aiflow_agents.bench.serve import MOST_BODY, Round, ServedBeside, rude
from aiflow_agents.cli.main import main


def test_a_served_member_beside_itself(capsys: pytest.CaptureFixture[str]) -> None:
    load = ["--clients", "3", "--seconds", "1", "--rounds", "1", "--singles", "2", "--malformed", "40"]
    code = main(["bench", "serve", "willow/leaf", "--runtime", "inline", *load, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 0 and found["errors"] == 0 and set(found["statuses"]) == {"200"} and found["statuses"]["200"] >= 2 + 5 + 3
    assert 0 < found["alone_s"] < found["served_s"] and found["memory_mb"] > 50
    assert min(found["rounds"][0][f"{side}_cpu_ms"] for side in ("alone", "served", "clients")) > 0
    assert found["share"] == pytest.approx(found["rounds"][0]["served_per_s"] / found["rounds"][0]["alone_per_s"]) and found["share"] > 0
    rude = found["malformed"]
    assert rude["requests"] == 40 == sum(sum(row.values()) for row in rude["statuses"].values()) and rude["answers_after"]
    assert rude["server_errors"] == rude["tracebacks"] == rude["keys"] == 0


def test_an_error_is_exit_code_1_and_no_member_is_a_mistake(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    malformed = {"requests": 2, "statuses": {}, "server_errors": 0, "tracebacks": 0, "keys": 0, "answers_after": True}
    for statuses, change, code in (({200: 9}, {}, 0), ({200: 9, 503: 1}, {}, 1), ({200: 9}, {"server_errors": 1}, 1), ({200: 9}, {"keys": 1}, 1)):
        found = ServedBeside(0.01, 0.015, 0.005, 4, [Round(100.0, 80.0, 210.0), Round(100.0, 90.0, 204.0)], 200.0, statuses, malformed | change)
        monkeypatch.setattr(bench, "bench_serve", lambda *args, found=found, **options: found)
        assert main(["bench", "serve"]) == code
        out = capsys.readouterr().out
        assert "+5.0 ms at the median" in out and "served 85/s: 85%" in out and "204 MB at the end: +2.0%" in out
    assert main(["bench", "serve", "oak"]) == 2 and "oak is no member: expected TEAM/MEMBER" in capsys.readouterr().err


def test_malformed_requests_are_of_all_kinds_and_the_same_for_one_seed() -> None:
    body = json.dumps({"model": "a/b", "messages": [{"role": "user", "content": "1+1="}]}).encode()
    drawn = [[rude(body, luck) for _ in range(300)] for luck in (random.Random(1), random.Random(1), random.Random(2))]
    assert drawn[0] == drawn[1] != drawn[2]
    kinds = Counter(kind for kind, _, _ in drawn[0])
    assert set(kinds) == {"truncated", "mistyped", "oversized", "half-closed", "garbage", "headers", "nested", "elsewhere"} and min(kinds.values()) > 10
    for kind, sent, closes in drawn[0]:
        head, _, rest = sent.partition(b"\r\n\r\n")
        if kind == "oversized":
            assert int(head.rsplit(b"content-length: ", 1)[1]) > MOST_BODY
        if kind == "half-closed":
            assert closes and len(rest) < len(body)
        if kind == "truncated":
            with pytest.raises(ValueError):
                json.loads(rest)
