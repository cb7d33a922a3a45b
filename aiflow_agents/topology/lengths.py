"""How many tokens to draft at a time: as many as what was kept so far, and the way there and back, advise."""

from __future__ import annotations

from dataclasses import dataclass

FIRST, MOST = 4, 16
MEMORY = 0.98  # of what was kept, each further token makes the earlier ones count so much less


def best_length(acceptance: float, draft_s: float, check_s: float, way_s: float, *, pipelined: bool, most: int = MOST) -> int:
    """The length of a draft with which the most tokens are settled in a second.

    acceptance: of a drafted token, where those before it were kept; draft_s: to draft one; check_s: to check a draft of any length; way_s: there and
    back. Of n drafted tokens (1 - a^(n+1)) / (1 - a) are settled, with the checker's own (Leviathan et al., arXiv:2211.17192). Without
    pipelining each draft waits for its check. With it the slower of both sets the pace, and only a draft that was not kept whole costs the way,
    and what was begun.
    """

    def rate(n: int) -> float:
        settled = n + 1.0 if acceptance >= 1 else (1 - acceptance ** (n + 1)) / (1 - acceptance)
        once = n * draft_s + check_s + way_s
        return settled / ((max(n * draft_s, check_s) + (1 - acceptance**n) * once) if pipelined else once)

    return max(range(1, most + 1), key=rate)


@dataclass
class Pace:
    """What a drafter has seen so far. `fixed`: it always drafts so many."""

    fixed: int | None
    pipelined: bool
    draft_s: float = 0.0
    check_s: float = 0.0
    way_s: float = 0.0
    tried: float = 4.0  # as if of four tokens three had been kept
    stood: float = 3.0

    @property
    def acceptance(self) -> float:
        return self.stood / self.tried

    def ahead(self) -> int:
        """How many tokens to draft now."""
        if self.fixed is not None:
            return self.fixed
        if not self.check_s:  # nothing has come back
            return FIRST
        return best_length(self.acceptance, self.draft_s, self.check_s, self.way_s, pipelined=self.pipelined)

    def drafted(self, seconds: float, tokens: int) -> None:
        """A draft took so long."""
        self.draft_s = seconds / tokens if not self.draft_s else 0.5 * (self.draft_s + seconds / tokens)

    def answered(self, seconds: float, check_s: float) -> None:
        """From a draft's setting out to its answer it took so long, `check_s` of it to check."""
        self.check_s, self.way_s = check_s, max(seconds - check_s, 0.0)

    def kept(self, kept: int, claimed: int) -> None:
        """Of so many claimed tokens so many were kept; those behind the first wrong one tell nothing."""
        tried = kept + (kept < claimed)
        for token in range(max(tried, 0)):
            self.tried, self.stood = MEMORY * self.tried + 1, MEMORY * self.stood + (token < kept)
