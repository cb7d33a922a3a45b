"""Drafts between members with different tokenizers: text travels, and the answer is the last one's, token by token."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiflow_agents.errors import UnmetNeed
from aiflow_agents.models.family.chat import Chat
from aiflow_agents.models.family.model import FamilyModel
from aiflow_agents.models.protocol import CallError, Reply, Request, Sampling, Turn
from aiflow_agents.runtime.drafting import steady
from aiflow_agents.runtime.hosts import InlineHosts
from aiflow_agents.runtime.memory import Memory
from aiflow_agents.runtime.run import Job
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.load import load_topology
from aiflow_agents.topology.pipeline import common
from aiflow_agents.training import tokenizer
from aiflow_agents.wire.frame import FrameError, decode_words, encode_words
from tests.conftest import run_in_order

QUESTIONS = ["11+12=", "35+7=", "sort: hgfab", "x", "grüße, 東京"]
few = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def cut(text: str, sizes: Sequence[int]) -> list[str]:
    """The text in pieces of these sizes, over and over."""
    found, at, i = [], 0, 0
    while at < len(text):
        found.append(text[at : at + sizes[i % len(sizes)]])
        at, i = at + sizes[i % len(sizes)], i + 1
    return found


def byte_pairs(size: int) -> Any:
    """A byte-level tokenizer with merges learnt from what our skills say; what it has no merge for are bytes, so half characters."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    said = [f"{a}+{b}={a + b} sort: {'abcdefgh'[a % 8:]} largest: {a}{b}" for a in range(40) for b in range(0, 90, 7)] + ["grüße aus 東京 für dich"] * 20
    made.train_from_iterator(
        said, trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=list(tokenizer.SPECIAL))
    )
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokenizer.SPECIAL])
    return made


def permuted(vocab: int, order: Sequence[int]) -> Any:
    """Our character tokenizer whose token i is called order[i]."""
    given = json.loads(tokenizer.build().to_str())
    given["model"]["vocab"] = {token: order[i] for token, i in given["model"]["vocab"].items()}
    for added in given["added_tokens"]:
        added["id"] = order[added["id"]]
    given["added_tokens"].sort(key=lambda added: added["id"])
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps(given))


def model(folder: Path, spells: Any, *, seed: int = 0, ends: int = 6, length: int = 160, like: Any = None, order: Sequence[int] = ()) -> Path:
    """A random model over this tokenizer, of which a few tokens end an answer; or the network `like`, whose token i is called order[i]."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    vocab = spells.get_vocab_size(with_added_tokens=True)
    eos = spells.token_to_id("<eos>")
    config = Qwen3Config(
        vocab_size=vocab, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        max_position_embeddings=length, initializer_range=0.3, tie_word_embeddings=True, pad_token_id=spells.token_to_id("<pad>"),
        eos_token_id=[eos, *range(vocab - ends, vocab)] if like is None else [order[i] for i in like.config.eos_token_id],
    )  # fmt: skip
    made = Qwen3ForCausalLM(config)
    if like is not None:
        weights = {name: value.clone() for name, value in like.state_dict().items()}
        rows = torch.empty_like(weights["model.embed_tokens.weight"])
        rows[torch.tensor(order)] = weights["model.embed_tokens.weight"]
        weights["model.embed_tokens.weight"] = weights["lm_head.weight"] = rows
        made.load_state_dict(weights)
    elif "W" in spells.get_vocab():
        rows = made.model.embed_tokens.weight.data
        rows[eos] = 1.05 * rows[spells.token_to_id("W")]  # where it would say W it ends, also at once
    made.save_pretrained(folder)
    tokenizer.save(folder, length)
    spells.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """chars: over our characters; same: that network with its tokens renamed; pairs: over bytes and pairs; trio: another one over these."""
    from transformers import Qwen3ForCausalLM

    root = tmp_path_factory.mktemp("agents") / "models"
    chars = model(root / "chars", tokenizer.build(), seed=4, ends=14)
    vocab = len(tokenizer.VOCABULARY)
    order = [(7 * i + 3) % vocab for i in range(vocab)]
    assert sorted(order) == list(range(vocab))
    same = model(root / "same", permuted(vocab, order), like=Qwen3ForCausalLM.from_pretrained(chars), order=order)
    pairs, trio = (model(root / name, byte_pairs(320), seed=seed, ends=9) for name, seed in (("pairs", 2), ("trio", 3)))
    return {"chars": chars, "same": same, "pairs": pairs, "trio": trio}


Crew = Callable[..., Team]


@pytest.fixture
def crew(folders: dict[str, Path], tmp_path: Path) -> Crew:
    """crew("chars", "pairs"): these models at the device and the cloud, of three the second at the edge."""

    def gather(*names: str, max_tokens: int = 14, network: str = "home-wifi") -> Team:
        tiers = ("device", "cloud") if len(names) == 2 else ("device", "edge", "cloud")
        members = "\n".join(f"  {name}: {{model: {folders[name]}, tier: {tier}, max_tokens: {max_tokens}}}" for name, tier in zip(names, tiers, strict=True))
        (tmp_path / "team.yaml").write_text(f"network: {network}\nmembers:\n{members}\n")
        return Team.load(tmp_path / "team.yaml")

    return gather


@pytest.fixture(scope="module")
def hosts() -> Iterator[InlineHosts]:
    yield InlineHosts()


def run(team: Team, hosts: Any, name: str, questions: Sequence[str] = QUESTIONS, memory: Memory | None = None, **parameters: Any) -> list[Any]:
    jobs = [Job("x", load_topology(name, parameters), Task(f"t{i}", q), team, traced=True) for i, q in enumerate(questions)]
    return run_in_order(jobs, hosts, memory)


def drafted(team: Team, hosts: Any, questions: Sequence[str] = QUESTIONS, **parameters: Any) -> list[Any]:
    members = tuple(agent.name for agent in team)
    return run(team, hosts, "draft-verify", questions, members=members, **parameters)


def alone(team: Team, hosts: Any, questions: Sequence[str] = QUESTIONS) -> list[Any]:
    return run(team, hosts, "single", questions, member=[agent.name for agent in team][-1])


def texts(results: Sequence[Any]) -> list[str]:
    return [result.text for result in results]


CREWS = [("chars", "pairs"), ("pairs", "chars"), ("chars", "same"), ("pairs", "trio", "chars"), ("chars", "pairs", "trio"), ("chars", "pairs", "same")]
STYLES = [{}, {"pipelined": False, "ahead": 3}, {"ahead": 1, "window": 2, "gate": 0.1}]


@pytest.mark.parametrize(("names", "style"), [(names, STYLES[i % 3]) for i, names in enumerate(CREWS)] + [(("chars", "same"), style) for style in STYLES[:2]])
def test_the_answer_is_that_of_the_last_one_alone(crew: Crew, hosts: Any, names: tuple[str, ...], style: dict[str, Any]) -> None:
    team = crew(*names)
    expected, found = alone(team, hosts), drafted(team, hosts, **style)
    assert texts(found) == texts(expected) and len(set(texts(found))) > 2
    assert [result.confidence for result in found] == pytest.approx([result.confidence for result in expected], rel=1e-3)
    for result, whole in zip(found, expected, strict=True):
        told = "".join(portion.text for portion in result.delivery.portions) if result.delivery else ""
        assert told == result.text and sum(portion.tokens for portion in result.delivery.portions) == whole.usage.tokens_out



@few
@given(questions=st.lists(st.text(max_size=12).filter(str.strip), min_size=1, max_size=4), names=st.sampled_from(CREWS))
def test_whatever_is_asked(crew: Crew, hosts: Any, questions: list[str], names: tuple[str, ...]) -> None:
    team = crew(*names, max_tokens=9)
    assert texts(drafted(team, hosts, questions)) == texts(alone(team, hosts, questions))


def test_of_a_drafter_that_says_the_same_every_token_is_kept(crew: Crew, hosts: Any, folders: dict[str, Path]) -> None:
    """One network under two tokenizers: what it drafts in its own tokens are the other's, spelled."""
    questions = [f"{a}*{a + 3}=" for a in range(11, 60, 4)]
    team = crew("chars", "same", max_tokens=30)
    expected = alone(team, hosts, questions)
    for style in ({}, {"pipelined": False, "ahead": 5}):
        found = drafted(team, hosts, questions, **style)
        assert texts(found) == texts(expected)
        spent = [result.members["same"] for result in found]
        ended = len(expected)  # with one of several tokens that end an answer, and the drafter's may be another one
        assert sum(one.kept for one in spent) >= sum(one.checked for one in spent) - ended > 2 * ended
        assert sum(one.calls for one in spent) < 0.7 * sum(result.usage.tokens_out for result in expected)
    ids = [Chat(folders[name]).prompt((Turn("user", "1+1="),)) for name in ("chars", "same")]
    assert ids[0] != ids[1]


def test_only_what_is_new_travels_and_weighs_its_frame(crew: Crew, hosts: Any) -> None:
    (result,) = drafted(crew("chars", "same", max_tokens=24), hosts, ["11+12="], pipelined=False, ahead=4)
    assert len(result.text) > 10
    moves = [span for span in result.spans if span.kind == "move" and span.who != "user"]
    names = {span.message: len(span.who) for span in moves}
    frames = sum(span.nbytes - 3 - names[span.message] for span in moves)  # kind, name and number; a confidence is four bytes more
    drafts = [span for span in moves if span.who == "chars"]
    assert len(drafts) > 2 and max(span.nbytes for span in drafts) <= 3 + len("chars") + len(encode_words("k" * 4, 20, True))
    assert frames < 3 * len(result.text) + 12 * len(moves)


def test_stop_strings_ends_and_empty_answers(crew: Crew, hosts: Any) -> None:
    """What may become a stop string is not told before it is known that it does not."""
    for names in (("chars", "same"), ("chars", "pairs"), ("pairs", "same")):
        team = crew(*names, max_tokens=20)
        last = names[-1]
        long = next(text for text in texts(alone(team, hosts)) if len(text) > 7)
        for stop in ((long[3:5],), (long[2:5], long[4:7])):
            stopping = replace(team, agents=team.agents | {last: replace(team[last], stop=stop)})
            expected = texts(alone(stopping, hosts))
            assert texts(drafted(stopping, hosts)) == expected != texts(alone(team, hosts))
        questions = [f"{chr(code)}7" for code in range(40, 100)]
        empty = [q for q, text in zip(questions, texts(alone(team, hosts, questions)), strict=True) if not text]
        assert last == "pairs" or empty
        assert texts(drafted(team, hosts, empty[:5])) == [""] * len(empty[:5])


def test_contexts_that_are_full(folders: dict[str, Path], tmp_path: Path, hosts: Any) -> None:
    short = model(tmp_path / "short", tokenizer.build(), seed=4, length=24)
    questions = ["1+1=", "12+9=", "1234567890123+4567890123="]

    def team(first: Path, last: Path) -> Team:
        (tmp_path / "two.yaml").write_text(
            f"network: home-wifi\nmembers:\n  ant: {{model: {first}, tier: device, max_tokens: 40}}\n  bee: {{model: {last}, tier: cloud, max_tokens: 40}}\n"
        )
        return Team.load(tmp_path / "two.yaml")

    for name in ("same", "pairs"):
        filled = team(short, folders[name])
        assert texts(drafted(filled, hosts, questions)) == texts(alone(filled, hosts, questions))
    filled = team(folders["same"], short)
    expected = texts(alone(filled, hosts, questions[:2]))
    assert texts(drafted(filled, hosts, questions[:2])) == expected


@pytest.mark.parametrize(("who", "after"), [("pairs", 0), ("chars", 4), ("pairs", 4), ("same", 4)])
def test_a_tier_that_fails_leaves_the_others_exact(crew: Crew, hosts: Any, who: str, after: int) -> None:
    """`who` refuses every call once it would go on from so many characters."""

    class Failing(InlineHosts):
        def __init__(self) -> None:
            super().__init__(self.load)

        def load(self, folder: str) -> Any:
            one = FamilyModel.load(folder)
            answer = one.exchange

            def exchange(requests: Any, parcels: Any, told: Any = None) -> Any:
                replies, packed = answer(requests, parcels, told)
                gone = [Path(folder).name == who and len(request.begin) + len(request.begin_text) >= after for request in requests]
                return [CallError("failed", "it is gone") if lost else reply for lost, reply in zip(gone, replies, strict=True)], packed

            one.exchange = exchange  # type: ignore[method-assign]
            return one

    team = crew("chars", "pairs", "same", max_tokens=10)
    expected = texts(alone(team, hosts))
    if who == "same":
        with pytest.raises(AssertionError, match="it is gone"):
            drafted(team, Failing())
        partly = texts(drafted(team, Failing(), deadline=60.0))
        assert all(one[:3] == whole[:3] for one, whole in zip(partly, expected, strict=True)) and partly != expected
    else:
        assert texts(drafted(team, Failing())) == expected


def test_at_the_deadline_the_drafter_goes_on_from_what_it_was_told(crew: Crew, hosts: Any) -> None:
    team = crew("pairs", "same", max_tokens=10)
    some = QUESTIONS[:3]
    exact, own = texts(alone(team, hosts, some)), texts(run(team, hosts, "single", some, member="pairs"))
    assert texts(drafted(team, hosts, some, deadline=1e-6)) == own != exact
    assert texts(drafted(team, hosts, some, deadline=1e6)) == exact
    middle = sorted(result.usage.latency_s for result in drafted(team, hosts, some))[-1]
    partly = texts(drafted(team, hosts, some, deadline=0.8 * middle))
    assert all(common(one, whole) >= common(text, whole) for one, whole, text in zip(partly, exact, own, strict=True)) and partly != own


def test_of_different_models_the_smallest_drafts(crew: Crew) -> None:
    topology: Any = load_topology("draft-verify")
    for names in (("pairs", "chars"), ("chars", "pairs")):
        assert [agent.name for agent in topology.tiers(crew(*names))] == ["chars", "pairs"]
        team = crew(*names)
        large = replace(team, agents=team.agents | {"chars": replace(team["chars"], shape=replace(team["pairs"].info.shape, vocab=9, block_params=10**9))})
        assert [agent.name for agent in topology.tiers(large)] == ["pairs", "chars"]


def test_what_it_cannot_do_is_refused_by_name(crew: Crew) -> None:
    team = crew("chars", "pairs")
    load_topology("draft-verify").check(team)
    with pytest.raises(UnmetNeed, match=r"with a temperature \(pairs has 0.7\) needs members with one tokenizer"):
        load_topology("draft-verify").check(replace(team, agents=team.agents | {"pairs": replace(team["pairs"], sampling=Sampling(0.7))}))
    with pytest.raises(UnmetNeed, match="with codec=float32 needs members with one tokenizer"):
        load_topology("draft-verify", {"codec": "float32"}).check(team)


# --- one model ---


@pytest.fixture(scope="module")
def loaded(folders: dict[str, Path]) -> dict[str, FamilyModel]:
    return {name: FamilyModel.load(folder) for name, folder in folders.items()}


def ask(question: str = "35+7=", **more: Any) -> Request:
    return Request((Turn("user", question),), **{"max_tokens": 12} | more)


@few
@given(question=st.text(min_size=1, max_size=8), drafted=st.text(max_size=6), n=st.integers(0, 8), name=st.sampled_from(["same", "pairs"]))
def test_a_model_checks_text_as_it_checks_the_tokens_that_it_is(loaded: Any, question: str, drafted: str, n: int, name: str) -> None:
    one = loaded[name]
    (alone,) = one.generate([ask(question)])
    assert isinstance(alone, Reply)
    begin = alone.token_ids[:n]
    (whole, other, plain) = one.generate([
        ask(question, begin=begin, check_text=alone.text, ended=alone.finish == "stop"), ask(question, begin=begin, check_text=one.chat.text(begin) + drafted),
        ask(question, begin=begin, check=()),
    ])  # fmt: skip
    for found in (whole, other, plain):  # whatever is claimed, what it says is its own
        assert (*begin, *found.token_ids) == alone.token_ids[: len(begin) + len(found.token_ids)]
        assert found.token_ids or len(begin) == len(alone.token_ids)
    assert one.generate([ask(question, begin=begin, check=other.checked)])[0].token_ids == other.token_ids


def test_an_answer_goes_on_from_text(loaded: Any) -> None:
    for name in ("same", "pairs"):
        one = loaded[name]
        ids = tuple(one.chat.ids("35 and"))
        by_text, by_tokens, none = one.generate([ask(begin_text="35 and", max_tokens=5), ask(begin=ids, max_tokens=5 + len(ids)), ask(begin_text="")])
        assert by_text.begun == ids and by_tokens.begun == none.begun == ()
        assert (by_text.text, by_text.token_ids) == (by_tokens.text, by_tokens.token_ids) and by_text.text.startswith("35 and") and by_text.token_ids
    chars = loaded["same"]
    (unknown,) = chars.generate([ask(begin_text="für")])  # it has no such letter, and what it was told stays as it is
    assert unknown.text.startswith("für") and chars.chat.text(unknown.begun) == "fr"
    (further,) = chars.generate([ask(begin_text=unknown.text, begin=unknown.begun + unknown.token_ids, max_tokens=99)])
    assert further.text.startswith(unknown.text) and further.begun == ()


@given(st.text(st.characters(exclude_characters="<\0", codec="utf-8"), max_size=20), st.integers(0, 20))
def test_the_rest_of_a_text_is_cut_as_the_whole_is(loaded: Any, text: str, n: int) -> None:
    chat = loaded["pairs"].chat
    ids = chat.ids(text)
    known = ids[: min(n, len(ids))]
    spelled = chat.text(known)
    rest = chat.behind(known, spelled, text)
    assert rest == (ids[len(known) :] if text.startswith(spelled) else [])
    assert not spelled or chat.behind(known, spelled, "\0" + spelled) == []  # that is another text
    odd = [token for character in text for token in chat.ids(character)]  # settled otherwise than it would be cut
    assert chat.text(chat.behind(odd, text, text + " and 35")) == " and 35"
    if "\ufffd" not in text:
        assert chat.adds(known, ids[len(known) :]) == text[len(spelled.rstrip("\ufffd")) :]


def test_what_stays_of_a_text_whatever_follows() -> None:
    assert steady("ab\ufffd\ufffd", ()) == "ab" and steady("a\ufffdb", ()) == "a\ufffdb"
    assert [steady("3\n", ("\n\n",)), steady("3 an", ("and", "nd")), steady("3 a", ("b",)), steady("", ("ab",)), steady("aab", ("aabc", "bd"))] == ["3", "3 ", "3 a", "", ""]


def test_words_come_back_and_noise_is_refused() -> None:
    assert decode_words(encode_words("grüße", 7, True)) == (7, True, "grüße") and decode_words(encode_words("")) == (0, False, "")
    assert len(encode_words("abc", 63)) == 1 + 1 + 3 + 4
    for wrong in (b"", encode_words("abc")[:-1], encode_words("abc") + b"x", b"noise"):
        with pytest.raises(FrameError):
            decode_words(wrong)


def test_words_are_remembered_as_what_they_are(loaded: Any, tmp_path: Path) -> None:
    one = loaded["pairs"]
    requests = [ask(begin_text="a", check_text="ab"), ask(begin_text="a"), ask(begin_text="b"), ask(check_text="ab"), ask(check_text="ab", ended=True), ask()]
    memory = Memory(tmp_path / "calls.sqlite")
    answers = dict(zip([("m", request) for request in requests], one.generate(requests), strict=True))
    memory.put(list(answers.items()))
    memory.close()
    again = Memory(tmp_path / "calls.sqlite")
    assert again.load(list(answers)) == answers and any(reply.checked for reply in answers.values())
    again.close()
