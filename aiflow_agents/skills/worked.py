"""Skills whose answers are long, as the work is shown: what there is to draft, to check and to stream.

A worked answer is easy in places (what is copied, counted on or spelled) and hard in others (a product, a carry), so that a small model is right
about most of its tokens and seldom about all.
"""

from __future__ import annotations

from random import Random

from aiflow_agents.skills.questions import LETTERS, MONTH_DAYS, MONTHS, ROMAN, Draw

UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen",
    "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def ledger(rng: Random) -> tuple[str, str]:
    """Four entries, each balance written out: `17 +5 *2 -3 +9>` -> `17+5=22 22*2=44 44-3=41 41+9=50`."""
    value = rng.randint(2, 60)
    asked, steps = [str(value)], []
    for _ in range(4):
        op = rng.choice("++--*")
        n = 2 if op == "*" else rng.randint(2, 39)
        after = value + n if op == "+" else value - n if op == "-" else value * n
        asked.append(f"{op}{n}")
        steps.append(f"{value}{op}{n}={after}")
        value = after
    return " ".join(asked) + ">", " ".join(steps)


def column(rng: Random) -> tuple[str, str]:
    """A sum, column by column from the right: `4827+3958=` -> `7+8=15 2+5+1=8 8+9=17 4+3+1=8 8785`."""
    a, b = rng.randint(1000, 9999), rng.randint(1000, 9999)
    steps, carry = [], 0
    for x, y in zip(reversed(str(a)), reversed(str(b)), strict=True):
        total = int(x) + int(y) + carry
        steps.append(f"{x}+{y}{'+1' if carry else ''}={total}")
        carry = total // 10
    return f"{a}+{b}=", " ".join((*steps, str(a + b)))


def product(rng: Random) -> tuple[str, str]:
    """A product of two two-digit numbers, in parts: `47*68=` -> `47*8=376 47*60=2820 376+2820=3196`."""
    a, b = rng.randint(11, 99), rng.randint(11, 99)
    ones, tens = a * (b % 10), a * (b - b % 10)
    return f"{a}*{b}=", f"{a}*{b % 10}={ones} {a}*{b - b % 10}={tens} {ones}+{tens}={a * b}"


def order(rng: Random) -> tuple[str, str]:
    """Eight numbers in order: `order 48 91 33 65 12 77 50 21>` -> `12 21 33 48 50 65 77 91`."""
    numbers = rng.sample(range(10, 100), 8)
    return f"order {' '.join(map(str, numbers))}>", " ".join(map(str, sorted(numbers)))


def timetable(rng: Random) -> tuple[str, str]:
    """Six departures: `09:47 every 35>` -> `10:22 10:57 11:32 12:07 12:42 13:17`."""
    start, every = rng.randrange(1440), rng.randint(5, 95)
    times = [(start + every * i) % 1440 for i in range(1, 7)]
    return f"{start // 60:02}:{start % 60:02} every {every}>", " ".join(f"{t // 60:02}:{t % 60:02}" for t in times)


def cipher(rng: Random) -> tuple[str, str]:
    """Four words moved up the alphabet: `cipher 3 hey abc xyz dog>` -> `khb def abc grj`."""
    shift = rng.randint(1, 9)
    words = ["".join(rng.choices(LETTERS, k=3)) for _ in range(4)]
    moved = (" " if c == " " else LETTERS[(ord(c) - 97 + shift) % 26] for c in " ".join(words))
    return f"cipher {shift} {' '.join(words)}>", "".join(moved)


def words(rng: Random) -> tuple[str, str]:
    """A number in words: `words 4827>` -> `four thousand eight hundred twenty seven`."""
    number = rng.randint(1001, 9999)
    thousands, hundreds, rest = number // 1000, number // 100 % 10, number % 100
    parts = [UNITS[thousands], "thousand"] + ([UNITS[hundreds], "hundred"] if hundreds else [])
    if rest >= 20:
        parts.append(TENS[rest // 10 - 2])
        rest %= 10
    parts += [UNITS[rest]] if rest else []
    return f"words {number}>", " ".join(parts)


def diary(rng: Random) -> tuple[str, str]:
    """Five dates of an ordinary year: `mar 17 every 9>` -> `mar 26, apr 4, apr 13, apr 22, may 1`."""
    month, every = rng.randrange(12), rng.randint(2, 31)
    day = rng.randint(1, MONTH_DAYS[month])
    question, dates = f"{MONTHS[month]} {day} every {every}>", []
    for _ in range(5):
        day += every
        while day > MONTH_DAYS[month]:
            day -= MONTH_DAYS[month]
            month = (month + 1) % 12
        dates.append(f"{MONTHS[month]} {day}")
    return question, ", ".join(dates)


def romans(rng: Random) -> tuple[str, str]:
    """Four numerals: `romans 347>` -> `cccxlvii cccxlviii cccxlix cccl`."""
    number = rng.randint(1, 1996)
    return f"romans {number}>", " ".join(_roman(number + i) for i in range(4))


def _roman(number: int) -> str:
    text = ""
    for value, letters in ROMAN:
        count, number = divmod(number, value)
        text += letters * count
    return text


WORKED: dict[str, Draw] = {f.__name__: f for f in (ledger, column, product, order, timetable, cipher, words, diary, romans)}
