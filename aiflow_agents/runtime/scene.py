"""The scene of one task: its world as agents use it. Messages move here, calls are priced here, costs are booked here.

Time is that of the world's loop. What is otherwise under a real clock (`now`, `_answer`, `_spend`) is overridden in `runtime.live`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from functools import partial
from typing import NamedTuple

from aiflow_agents.errors import MemberFailed, Unreachable
from aiflow_agents.models.protocol import CallError, Reply, Request, Shape, Turn
from aiflow_agents.net.clock import settle
from aiflow_agents.net.cost import price_call
from aiflow_agents.net.fabric import Clock, Fabric
from aiflow_agents.net.network import Network
from aiflow_agents.runtime.budget import Budget, Meter
from aiflow_agents.runtime.delivery import Stream, Told, pieces
from aiflow_agents.runtime.handover import Call
from aiflow_agents.runtime.hooks import Called
from aiflow_agents.runtime.ledger import Ledger
from aiflow_agents.runtime.moves import HERE_ALL_THE_WHILE, Move, arrival
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.trace import Listener, Span
from aiflow_agents.runtime.work import Work, drafts, fed, needed
from aiflow_agents.wire.message import Draft, Message, Usage

SCENE: ContextVar[Scene] = ContextVar("aiflow_scene")
Speaker = tuple[str, bytes]  # a node, and the hello of who speaks there
Pair = tuple[str, str]  # the names of two speakers, see `_name`
Session = dict[Pair, "Greeting | None"]  # who has met whom: of all tasks that are run one way by one team; None where that was long ago


class Scene:
    """Everything that belongs to one task while it runs: fabric, ledger, what has arrived where, what was prefilled where."""

    __slots__ = (
        "task", "repeat", "seed", "network", "fabric", "ledger", "meter", "listener", "told", "called", "hellos", "met", "states",
        "_answers", "_at_home", "_moves", "_questions", "_prefilled", "_drafts", "_made", "_working", "_over", "_session",
    )  # fmt: skip

    def __init__(
        self, task: Task, network: Network, *, seed: int = 0, repeat: int = 0, listener: Listener | None = None, session: Session | None = None,
        budget: Budget | None = None, clock: Clock | None = None,
    ):  # fmt: skip
        self.task, self.network, self.seed, self.repeat, self.listener = task, network, seed, repeat, listener
        self.fabric = Fabric(network, seed=stable_hash(seed, task.id, repeat) if network.noisy else 0, clock=clock)
        self.ledger = Ledger()
        self.meter = Meter(budget) if budget else None
        self._answers: set[str] = set()  # ids of messages that answer the task's question; these two are kept where there is a budget
        self._at_home: list[tuple[float, Message]] = []  # what is at home, and since when
        self.told = Told()
        self.called: Callable[[Called], None] | None = None  # told of every call that a member has answered, or could not
        self.hellos: dict[str, bytes] = {}  # of the authors of messages with hidden states, by the message's id
        self.states: dict[str, set[str]] = {}  # by node, digests of the hidden states of drafts that have come there
        self.met: list[Pair] = []  # whose meeting this task pays for
        self._session: Session = {} if session is None else session
        self._moves: dict[tuple[str, str, str], Move] = {}  # by message, node, and what of it travels
        self._questions: dict[str, Message] = {}
        self._prefilled: set[tuple[object, ...]] = set()
        self._drafts: dict[tuple[object, ...], list[tuple[int, ...]]] = {}  # by prompt, the answers whose keys and values a member still has
        self._made = 0
        self._working = 0
        self._over: asyncio.Future[None] | None = None

    def now(self) -> float:
        """Seconds since the question arose."""
        return asyncio.get_running_loop().time()

    # -- the end ------------------------------------------------------------------------------------------------------

    def __enter__(self) -> None:
        """`with scene:` around work that costs something: the bill waits for it."""
        self._working += 1

    def __exit__(self, *_: object) -> None:
        self._working -= 1
        if self._over is not None and not self._working and not self._over.done():
            self._over.set_result(None)

    async def over(self) -> None:
        """Return when nothing that costs goes on any more. What the topology has cancelled is cut off here; what it has forgotten runs to its end."""
        if self._working:
            await settle()
        while self._working:
            self._over = asyncio.get_running_loop().create_future()
            await self._over

    # -- messages ----------------------------------------------------------------------------------------------------

    def next_id(self, author: str) -> str:
        """A name for the next message: short, as it travels, and the same in every run."""
        self._made += 1
        return f"{author}.{self._made}"

    def made(self, id: str, reply: Reply) -> None:
        """Told what a model replied to become this message."""

    def question(self, text: str, home: str) -> Message:
        """A question is a message too: it arises at home and is paid for once at every node it reaches."""
        message = self._questions.get(text)
        if message is None:
            message = self._questions[text] = Message(f"q{len(self._questions)}", "user", home, _text=text, _answer=text)
        return message

    def before(self, asked: Message) -> tuple[Turn, ...]:
        """The conversation that led to this question, where it is the task's own."""
        return self.task.before if asked._text == self.task.question else ()

    def transcript(self) -> Message:
        """What led to the question, as it travels: it goes along with it."""
        return Message("before", "user", self.network.home, _text="\n".join(f"{turn.role}: {turn.content}" for turn in self.task.before))

    async def bring(self, messages: Iterable[Message], node: str, member: str = "") -> None:
        """Wait until all of these are at `node`; each travels once, whoever asks for it. Who stops waiting does not stop a transfer.

        Raises PrivacyError, before anything sets out, for what stays where it is; MemberFailed for what can never come, as a node or a link on its
        way is gone for good: its author has failed where its own node died, else `member`, who waits for it.
        """
        there = list(messages)
        messages = [message for message in there if message.node != node]
        for message in messages:
            message.check_leaves()
        moves: list[Move] = []
        for message in messages:
            try:
                moves.append(self._move(message, node))
            except Unreachable as gone:
                raise _failed(gone, message, node, member) from None
        await arrival(moves)
        for message, move in zip(messages, moves, strict=True):
            if move.lost is not None:
                raise _failed(move.lost, message, node, member)
        for message in there:
            if message.form == "states" and isinstance(message._cargo, Draft) and message._cargo.states is not None:
                self.states.setdefault(node, set()).add(message._cargo.states.digest)

    def answered(self, message: Message, question: str | Message) -> None:
        """Told of every answer where there is a budget, so that the best one so far is known when it is spent."""
        if question == self.task.question and message._text:
            self._answers.add(message.id)
            if message.node == self.network.home:
                self._came_home(message)

    def inquired(self, message: Message) -> None:
        """What one agent asks another is no answer to the task's question."""
        self._answers.discard(message.id)

    def _came_home(self, message: Message) -> None:
        self._at_home.append((self.now(), message))

    def best(self) -> tuple[float, Message] | None:
        """The last answer to the task's question that was at home in time, and since when; None where none was."""
        return next(((at_s, m) for at_s, m in reversed(self._at_home) if m.id in self._answers and self.meter and self.meter.in_time(at_s)), None)

    async def greet(self, one: Speaker, other: Speaker, author: str = "", member: str = "") -> None:
        """Let two say who they are, before more than text goes between them. In one session they do so once; the first task that needs it pays.

        Raises MemberFailed where `member`, who is the other one, can never hear from `author`, who is the one.
        """
        pair = min(_name(one), _name(other)), max(_name(one), _name(other))
        if one[0] != other[0] and pair not in self._session:
            ways = Move(), Move()
            for (node, hello), (there, _), move in zip((one, other), (other, one), ways, strict=True):
                try:
                    self._send(move, node, there, len(hello), "", "hello", "")
                except Unreachable as gone:
                    raise _parted(gone, one[0], author, member) from None
            self.met.append(pair)
            self._session[pair] = Greeting(self, ways)  # only now: where the budget does not reach, they have not met
        met = self._session.get(pair)
        if met is not None and met.scene is self:
            await arrival(met.ways)
            if lost := met.ways[0].lost or met.ways[1].lost:
                raise _parted(lost, one[0], author, member)

    def _move(self, message: Message, node: str) -> Move:
        """The transfer, perhaps long done, that brings this message to `node`. Where all of its text has come, its answer has come too."""
        moves, freight = self._moves, message._freight
        move = None if message._loaded else moves.get((message.id, node, message._text))
        move = move or moves.get((message.id, node, freight))
        if move is None:
            moves.setdefault((message.id, message.node, freight), HERE_ALL_THE_WHILE)
            move = Move()
            self._set_out(message, node, move)
            moves[message.id, node, freight] = move
            if message.form == "hidden":  # its text has then come too
                moves.setdefault((message.id, node, message._text), move)
        return move

    def _set_out(self, message: Message, node: str, move: Move) -> None:
        """Send a message to another node. Raises NoRoute, OverBudget, and Unreachable."""
        self._send(move, message.node, node, message.size, message.author, message.id, message._said)
        if self.meter is not None and node == self.network.home and message.form in ("text", "answer", "hidden"):
            move.then = partial(self._came_home, message)

    def _send(self, move: Move, src: str, dst: str, nbytes: int, author: str, id: str, said: str) -> None:
        start_s = self.now()
        if self.meter is not None:
            self.meter.move(lambda: self.fabric.weighs(src, dst, nbytes), f"{id} from {src} to {dst}")

        def arrived() -> None:
            self.__exit__()
            move.arrive()
            if self.listener:
                self.listener(Span("move", author, src, start_s, self.now(), id, said, to=dst, nbytes=nbytes))

        def lost(gone: Unreachable) -> None:
            self.__exit__()
            move.lose(gone)

        self.fabric.send(src, dst, nbytes, arrived, book=self.ledger.book_hop, lost=lost)
        self.__enter__()  # until it has arrived, or never will

    # -- what goes home before the topology is done ------------------------------------------------------------------

    def carry(
        self, node: str, nbytes: int, what: str, arrived: Callable[[], None], lost: Callable[[Unreachable], None] = lambda gone: None
    ) -> None:
        """Send so many bytes home, outside of any message. Raises OverBudget, and Unreachable."""
        if self.meter is not None:
            self.meter.move(lambda: self.fabric.weighs(node, self.network.home, nbytes), f"{what} from {node} to {self.network.home}")

        def there() -> None:
            arrived()
            self.__exit__()

        def gone(why: Unreachable) -> None:
            lost(why)
            self.__exit__()

        self.__enter__()  # until it has arrived, or never will: at home itself it is there before `send` returns
        try:
            self.fabric.send(node, self.network.home, nbytes, there, book=self.ledger.book_hop, lost=gone)
        except Unreachable:
            self.__exit__()
            raise

    def expect(self, message: Message) -> tuple[Callable[[], None], Callable[[Unreachable], None]]:
        """This message is on its way home by other means, all of its text. To be told when it is there, or never will be."""
        move = Move()
        for freight in (message._freight, message._text):
            self._moves.setdefault((message.id, self.network.home, freight), move)

        def arrived() -> None:
            move.arrive()
            if self.meter is not None:
                self._came_home(message)

        return arrived, move.lose

    def unexpect(self, message: Message) -> None:
        """It is not on its way after all."""
        for freight in (message._freight, message._text):
            self._moves.pop((message.id, self.network.home, freight), None)

    def tell(self, message: Message) -> None:
        """Let the user have what this message at home says beyond what was told. Raises UserError where it does not go on from that."""
        self.told.tell(message, self.now())

    # -- calls -------------------------------------------------------------------------------------------------------

    async def call(
        self, member: str, node: str, shape: Shape, call: Call, stream: Stream | None = None
    ) -> tuple[Reply, Usage] | tuple[CallError, None]:
        """Put a call to the outside, and let `member`'s node spend what the reply takes. Gives the reply, and its usage; a refusal has none.

        `stream` takes the tokens home while they are made. A node that is dead, or dies over it, refuses it, with the kind "died"; it is billed until
        then. Raises OverBudget, see `compute`.
        """
        if self.meter is not None:
            self.meter.may_call()
        try:
            self.fabric.alive(node, self.now())
            reply = await self._answer(member, node, shape, call, stream)
            if isinstance(reply, CallError):
                if stream is not None:
                    stream.stop()
                return reply, None
            return reply, await self.compute(member, node, shape, call.request, reply, stream)
        except Unreachable as gone:
            if stream is not None:
                stream.stop()
            return CallError("died", str(gone)), None
        except BaseException:
            if stream is not None:
                stream.stop()
            raise

    def _answer(self, member: str, node: str, shape: Shape, call: Call, stream: Stream | None) -> Awaitable[Reply | CallError]:
        """What the outside says. This world stands still until then."""
        return asyncio.get_running_loop().external(call)  # type: ignore[attr-defined]

    def _spend(self, node: str, seconds: float, book: Callable[[float], None], begun: Callable[[], None] | None) -> Awaitable[object]:
        """Let a node work for so long; `book` is told how long it did, `begun` when it begins."""
        return self.fabric.occupy(node, seconds, book=book, begun=begun)

    async def compute(self, member: str, node: str, shape: Shape, request: Request, reply: Reply, stream: Stream | None = None) -> Usage:
        """Let the simulated node spend what this reply takes: wait for a slot, hold it, book it. Gives the call's own usage.

        A prompt that this member has already read for this task is not read again: further samples share its cache. So do the tokens that an answer
        begins with. What is cancelled is billed by the share of its time that it ran; what never began is not billed at all.

        Raises OverBudget where the budget does not reach: before the call, or where the answer was cut, when the node has worked so far; Unreachable
        where the node dies.
        """
        if reply.work == ():  # the answer had ended already
            return Usage()
        read = self._prompt(member, node, request)
        fresh = read not in self._prefilled
        self._prefilled.add(read)
        whole = needed(shape, request, reply, None if fresh else self._drafts.get(read, ()))
        work, tokens_out = self._afforded(member, whole, reply.tokens_out)
        tokens_in, prefill_flops, decode_flops = work.tokens_in, work.prefill_flops, work.decode_flops
        cost = price_call(
            self.network.node(node),
            prefill_flops=prefill_flops,
            decode_flops=decode_flops,
            weight_bytes=shape.weight_bytes,
            steps=work.steps,
            prefill_bytes=work.prefill_bytes,
        )
        flops, seconds = prefill_flops + decode_flops, cost.seconds
        start_s = self.now()

        def book(used_s: float) -> None:
            share = used_s / seconds if seconds else 1.0
            if fresh and used_s < cost.prefill_s:
                self._prefilled.discard(read)
            made = round(tokens_out * share)
            if share:
                self.ledger.book_call(member, flops * share, tokens_in, made, cost.energy_j * share, used_s)
            if self.meter is not None and share < 1.0:
                self.meter.give_back(tokens_out - made + (0 if share else tokens_in), flops * (1.0 - share))
            if stream is not None and share < 1.0:
                stream.stop(used_s)

        def begun() -> None:
            if stream is not None:
                step_s = cost.decode_s / work.steps if work.steps else 0.0
                stream.begin(pieces(request, reply)[:tokens_out], cost.prefill_s, step_s, tokens_out - min(work.steps, tokens_out))

        await self._spend(node, seconds, book, begun if stream is not None else None)
        if work.steps < whole.steps and self.meter is not None:
            self.meter.may_call()  # raises OverBudget
        if drafts(request):
            self._drafts.setdefault(read, []).append(fed(request, reply))
        return Usage(flops, tokens_in, tokens_out, 1, 0, self.now() - start_s, cost.energy_j)

    def _prompt(self, member: str, node: str, request: Request) -> tuple[object, ...]:
        """What tells one thing that a member has read from another; a node that has died since has forgotten it."""
        source: object = request.parcel
        if request.parcel is not None and request.checks:  # a sequence that grows
            source = request.parcel.want.layer
        return member, self.fabric.deaths(node, self.now()), request.messages, source, request.picture, request.features

    def _afforded(self, member: str, work: Work, tokens_out: int) -> tuple[Work, int]:
        """So much of this work as the budget reaches for, and the tokens that it makes. Raises OverBudget where that is nothing."""
        if self.meter is None:
            return work, tokens_out
        more, each = min(work.steps, tokens_out), work.decode_flops / work.steps if work.steps else 0.0
        first = tokens_out - more  # what the first pass makes itself
        steps = self.meter.call(member, work.tokens_in + first, work.prefill_flops, work.steps, each, more)
        if steps == work.steps:
            return work, tokens_out
        return work._replace(steps=steps, decode_flops=each * steps), first + min(steps, more)


class Greeting(NamedTuple):
    """Two hellos on their way, and the task that pays for them."""

    scene: Scene
    ways: tuple[Move, Move]


def _name(speaker: Speaker) -> str:
    """What tells one speaker from another, short enough to be written down."""
    node, hello = speaker
    return f"{node}/{hashlib.blake2b(hello, digest_size=8).hexdigest()}"


def _failed(gone: Unreachable, message: Message, node: str, member: str) -> MemberFailed:
    """What a message that can never come means to who waits for it."""
    who = message.author if gone.node == message.node or not member else member
    return MemberFailed(who, f"message {message.id} cannot get from {message.node} to {node}: {gone}", "died" if gone.node else "cut off")


def _parted(gone: Unreachable, node: str, author: str, member: str) -> MemberFailed:
    """The same of two who can never meet; `node` is the author's."""
    return MemberFailed(author if gone.node == node else member, f"{author} and {member} cannot meet: {gone}", "died" if gone.node else "cut off")


def stable_hash(*parts: object) -> int:
    """63 bits that depend on the parts alone, the same in every process."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1
