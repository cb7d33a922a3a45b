"""Answers are remembered: a model's answer depends on its input, not on the time, the network or the topology that asked.

In memory by the request itself; on disk (`calls.sqlite`) by a digest of everything that decides the answer, so that a killed run goes on and another
run can reuse it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

from aiflow_agents.errors import UserError
from aiflow_agents.models.protocol import ModelInfo, Parcel, Pass, Reply, Request, Want
from aiflow_agents.wire.frame import VERSION

Key = tuple[str, Request]  # a model's fingerprint, and what it was asked


def fingerprint(info: ModelInfo) -> str:
    """What decides a model's answers: weights, tokenizer with its template, engine and dtype, and what codecs leave of hidden states."""
    return "/".join((info.weights_hash, info.tokenizer_hash, info.engine, info.dtype, *(codec.fingerprint for codec in info.codecs)))


def digest(key: Key) -> bytes:
    """The name under which an answer is kept on disk."""
    model, request = key
    said: list[object] = [model, request.messages, request.max_tokens, request.sampling, request.stop, request.seed]
    if request.exit is not None or request.want or request.parcel:
        want = None if request.want is None else request.want[: 6 if request.want.since is not None else 5 if request.want.steps else 4]
        said += [request.exit, want, request.parcel and [request.parcel.digest, request.parcel.draft]]
        if request.parcel and request.parcel.before:
            said.append([parcel.digest for parcel in request.parcel.chain])
    if request.begin or request.top:
        said.append({"begin": request.begin, "top": request.top})
    if request.want or request.top:
        said.append({"frames": VERSION})  # what is remembered holds a frame, or its length
    if request.picture or request.features:
        said.append({"picture": request.picture and request.picture.digest, "features": [parcel.digest for parcel in request.features]})
    if request.score:
        said.append({"score": request.score} | ({"ended": True} if request.ended else {}))
    if request.check is not None or request.odds:
        said.append({"check": request.check, "odds": request.odds, "told": request.odds_told.hex()})
    if request.begin_text or request.check_text is not None:
        said.append({"begin_text": request.begin_text, "check_text": request.check_text, "ended": request.ended})
    return hashlib.blake2b(json.dumps(said).encode(), digest_size=20).digest()


class Memory:
    """Remembered answers. Without a path they are kept for the life of this object alone; `reuse` are read-only memories of other runs."""

    def __init__(self, path: Path | None = None, *, reuse: Iterable[Path] = ()):
        self._answers: dict[Key, Reply] = {}
        self._own = None if path is None else _open(path)
        self._stores = [] if self._own is None else [self._own]
        for other in reuse:
            if not other.is_file():
                raise UserError(f"no remembered answers at {other}")
            self._stores.append(_open(other, read_only=True))
        self._read = [store for store in self._stores if store.execute("select 1 from calls limit 1").fetchone()]  # what comes later is known
        self.executed = 0  # calls that a model really answered for this object

    def get(self, key: Key) -> Reply | None:
        """The answer, if it is known in memory."""
        return self._answers.get(key)

    def load(self, keys: Sequence[Key]) -> dict[Key, Reply]:
        """Those of these answers that are on disk. They are known from then on, and kept with this run's own."""
        found: dict[Key, Reply] = {}
        if self._read and keys:
            wanted = {digest(key): key for key in keys}
            for store in self._read:
                names = [name for name, key in wanted.items() if key not in found]
                for start in range(0, len(names), 500):
                    part = names[start : start + 500]
                    rows = store.execute(f"select digest, reply from calls where digest in ({','.join('?' * len(part))})", part).fetchall()
                    found.update((wanted[name], _reply(reply)) for name, reply in rows)
                    if store is not self._own:
                        self._keep(rows)
            self._answers.update(found)
        return found

    def put(self, answers: Sequence[tuple[Key, Reply]]) -> None:
        """Remember, in one transaction: a kill leaves all of them on disk or none."""
        self._answers.update(answers)
        self.executed += len(answers)
        if self._own is not None:
            self._keep([(digest(key), _row(reply)) for key, reply in answers])

    def _keep(self, rows: Sequence[tuple[bytes, str]]) -> None:
        if self._own is not None and rows:
            with self._own as store:
                store.executemany("insert or replace into calls values (?, ?)", rows)

    def close(self) -> None:
        for store in self._stores:
            store.close()


def _open(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Raises UserError when this is no memory of answers. In a notebook the virtual clock, which writes, runs in a thread of its own."""
    where = path.absolute().as_uri() + ("?mode=ro" if read_only else "")
    store = sqlite3.connect(where, uri=True, check_same_thread=False)
    try:
        if not read_only:
            store.execute("pragma synchronous = off")  # a kill loses nothing; a power failure may, as in all files of a run
            store.execute("create table if not exists calls (digest blob primary key, reply text not null) without rowid")
        store.execute("select digest, reply from calls limit 1")
    except sqlite3.DatabaseError as error:
        store.close()
        if "full" in str(error) or "locked" in str(error):
            raise
        remedy = "" if read_only else "; delete it, and what it held is asked again"
        raise UserError(f"{path} holds no remembered answers: {error}{remedy}") from None
    return store


def _row(reply: Reply) -> str:
    row: list[object] = [reply.text, reply.token_ids, reply.logprobs, reply.tokens_in, reply.tokens_out, reply.finish]
    cut = reply.begun or reply.checked
    if reply.work is not None or reply.parcel or reply.next is not None or reply.kept or cut:
        row += [reply.work, reply.parcel]
    if reply.next is not None or reply.kept or cut:
        row.append(None if reply.next is None else reply.next.hex())
    if reply.kept or cut:
        row.append(reply.kept)
    return json.dumps([*row, reply.begun, reply.checked] if cut else row)


def _reply(row: str) -> Reply:
    text, token_ids, logprobs, tokens_in, tokens_out, finish, *more = json.loads(row)
    work, parcel, coded, kept, begun, checked = (*more, *[None] * 6)[:6]
    if work is not None:
        work = tuple(Pass(*run) for run in work)
    if parcel is not None:
        digest, nbytes, weights_hash, want, prompt, draft, *_ = parcel
        parcel = Parcel(digest, nbytes, weights_hash, Want(*want), prompt, tuple(draft))
    logprobs = None if logprobs is None else tuple(logprobs)
    told, cut = coded and bytes.fromhex(coded), (tuple(begun or ()), tuple(checked or ()))
    return Reply(text, tuple(token_ids), logprobs, tokens_in, tokens_out, finish, work, parcel, told, kept or 0, *cut)
