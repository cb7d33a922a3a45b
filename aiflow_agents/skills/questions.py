"""The skills: each draws one question and its answer from a random generator.

A skill is a plain function `(random.Random) -> (question, answer)`. Nearly all have twenty or more possible answers, so that a right answer
is knowledge and not luck. `chain`, `nest`, `hops` and `bits` need several dependent steps, hence depth. `bigmul` is the negative control:
no model is ever trained on it.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

Draw = Callable[[Random], tuple[str, str]]

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
ROMAN = (
    (1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl"), (10, "x"), (9, "ix"),
    (5, "v"), (4, "iv"), (1, "i"),
)  # fmt: skip


def add(rng: Random) -> tuple[str, str]:
    """Sum or difference of two two-digit numbers: `38+57=` -> `95`."""
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    if rng.random() < 0.5:
        return f"{a}+{b}=", str(a + b)
    return f"{a}-{b}=", str(a - b)


def mul(rng: Random) -> tuple[str, str]:
    """Up to three digits times one digit: `37*8=` -> `296`."""
    a, b = rng.randint(2, 299), rng.randint(2, 9)
    return f"{a}*{b}=", str(a * b)


def mod(rng: Random) -> tuple[str, str]:
    """Remainder: `147%23=` -> `9`."""
    a, b = rng.randint(10, 199), rng.randint(5, 25)
    return f"{a}%{b}=", str(a % b)


def sort(rng: Random) -> tuple[str, str]:
    """Six letters in alphabetical order: `sort qkzbma>` -> `abkmqz`."""
    letters = rng.choices(LETTERS, k=6)
    return f"sort {''.join(letters)}>", "".join(sorted(letters))


def caesar(rng: Random) -> tuple[str, str]:
    """Every letter moved up the alphabet, round from z to a: `rot 7 hey>` -> `olf`."""
    shift = rng.randint(1, 9)
    word = "".join(rng.choices(LETTERS, k=3))
    return f"rot {shift} {word}>", "".join(LETTERS[(ord(c) - 97 + shift) % 26] for c in word)


def most(rng: Random) -> tuple[str, str]:
    """The most frequent letter and how often it occurs: `most kabakabaa>` -> `a5`."""
    while True:
        word = rng.choices(rng.sample(LETTERS, 3), k=9)
        counts = sorted(((word.count(c), c) for c in set(word)), reverse=True)
        if len(counts) == 1 or counts[0][0] > counts[1][0]:
            return f"most {''.join(word)}>", f"{counts[0][1]}{counts[0][0]}"


def rank(rng: Random) -> tuple[str, str]:
    """The k-th largest of four numbers: `top2 48 91 33 65>` -> `65`."""
    k = rng.randint(1, 4)
    numbers = rng.sample(range(10, 100), 4)
    return f"top{k} {' '.join(map(str, numbers))}>", str(sorted(numbers, reverse=True)[k - 1])


def date(rng: Random) -> tuple[str, str]:
    """A day of an ordinary year plus some days: `mar 17+25=` -> `apr 11`."""
    month, plus = rng.randrange(12), rng.randint(2, 31)
    day = rng.randint(1, MONTH_DAYS[month])
    question = f"{MONTHS[month]} {day}+{plus}="
    day += plus
    while day > MONTH_DAYS[month]:
        day -= MONTH_DAYS[month]
        month = (month + 1) % 12
    return question, f"{MONTHS[month]} {day}"


def clock(rng: Random) -> tuple[str, str]:
    """A time of day plus minutes: `09:47+35=` -> `10:22`."""
    start, plus = rng.randrange(1440), rng.randint(5, 59)
    end = (start + plus) % 1440
    return f"{start // 60:02}:{start % 60:02}+{plus}=", f"{end // 60:02}:{end % 60:02}"


def roman(rng: Random) -> tuple[str, str]:
    """A roman numeral in digits: `roman cdxlvii>` -> `447`."""
    number = rest = rng.randint(1, 3999)
    text = ""
    for value, letters in ROMAN:
        count, rest = divmod(rest, value)
        text += letters * count
    return f"roman {text}>", str(number)


def bits(rng: Random) -> tuple[str, str]:
    """Bitwise logic on five bits: `(10110&01101)^11100=` -> `11000`."""
    a, b, c = (rng.randrange(32) for _ in range(3))
    first, second = rng.choice("&|^"), rng.choice("&|^")
    return f"({a:05b}{first}{b:05b}){second}{c:05b}=", f"{_bit(second, _bit(first, a, b), c):05b}"


def _bit(op: str, a: int, b: int) -> int:
    return a & b if op == "&" else a | b if op == "|" else a ^ b


def hops(rng: Random) -> tuple[str, str]:
    """Follow arrows: `km ak mc:a2>` -> `m`; the pairs come in any order."""
    count = rng.randint(1, 3)
    path = rng.sample(LETTERS, 4)
    pairs = [a + b for a, b in zip(path, path[1:], strict=False)]
    rng.shuffle(pairs)
    start = rng.randrange(len(path) - count)
    return f"{' '.join(pairs)}:{path[start]}{count}>", path[start + count]


def chain(rng: Random) -> tuple[str, str]:
    """A register, step by step, modulo 100: `17 +5 *2>` -> `44`."""
    value = rng.randint(2, 30)
    text = [str(value)]
    for _ in range(2):
        op = rng.choice("+-*")
        n = 2 if op == "*" else rng.randint(1, 9)
        value = (value + n if op == "+" else value - n if op == "-" else value * n) % 100
        text.append(f"{op}{n}")
    return " ".join(text) + ">", str(value)


def nest(rng: Random) -> tuple[str, str]:
    """Nested brackets over single digits: `(7+(3*9))=` -> `34`."""
    value = rng.randint(2, 9)
    text = str(value)
    for _ in range(2):
        op, n = rng.choice("+-*"), rng.randint(2, 9)
        left = rng.random() < 0.5
        text = f"({n}{op}{text})" if left else f"({text}{op}{n})"
        a, b = (n, value) if left else (value, n)
        value = a + b if op == "+" else a - b if op == "-" else a * b
    return text + "=", str(value)


def bigmul(rng: Random) -> tuple[str, str]:
    """Four digits times four digits: beyond every model here, and in no training set."""
    a, b = rng.randint(1000, 9999), rng.randint(1000, 9999)
    return f"{a}*{b}=", str(a * b)


SKILLS: dict[str, Draw] = {
    f.__name__: f for f in (add, mul, mod, sort, caesar, most, rank, date, clock, roman, bits, hops, chain, nest, bigmul)
}
TRAINED = tuple(name for name in SKILLS if name != "bigmul")
