"""One spelling for a mathematical answer, so that equal answers are equal texts: for votes among members, and for the scorer.

Follows the rules by which MATH is marked (Hendrycks et al. 2021; those for units and text are from appendix D of Lewkowycz et al. 2022), and gives
numbers by their value: `0.5`, `1/2` and `\\dfrac12` are one answer. Nothing is computed: `\\sqrt{12}` and `2\\sqrt{3}` stay two.
"""

from __future__ import annotations

import re
from fractions import Fraction

_NOTHING = re.compile(r"\\!|\\,|\\;|\\:|\\ |~|\\left(?![a-z])|\\right(?![a-z])|\^\{?\\circ\}?|\\\$|\$|\\?%|\{,\}|\n")
_UNIT = re.compile(r"\\(?:text|mbox|mathrm)\{ .*$")  # a text that begins with a space says in what the number is counted
_TEXT = re.compile(r"\\(?:text|textbf|textit|mbox|mathrm|mathbf|overline|boxed)\{([^{}]*)\}")
_WORDS = (
    "square|ways|integers|dollars|mph|inches|ft|hours|km|units|points|feet|minutes|digits|cents|degrees|cm|gm|pounds|meters|meals|edges|students|multiples"
)
_COUNTED = re.compile(rf"(?<=[\d}}])(?:{_WORDS})+(?:\^\{{?[23]\}}?)?$")
_SHORT_FRACTION = re.compile(r"\\frac(?:\{([^{}]*)\}|(\d|[a-z]))(?:\{([^{}]*)\}|(\d|[a-z]))")
_GROUPED = re.compile(r"-?\d{1,3}(,\d{3})+(\.\d+)?")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?|-?\.\d+")
_RATIO = re.compile(r"(-?)(?:(-?\d+)/(\d+)|\\frac\{(-?\d+)\}\{(\d+)\})")


def plain(text: str) -> str:
    """The answer in its one spelling."""
    text = _NOTHING.sub("", text.strip().replace("\\\\", "\\"))
    text = text.replace("tfrac", "frac").replace("dfrac", "frac").replace("cfrac", "frac")
    text = _UNIT.sub("", text) or text
    while (flat := _TEXT.sub(r"\1", text)) != text:
        text = flat
    before, equals, after = text.partition("=")
    if equals and "=" not in after and len(before.strip()) <= 2:  # x = 5
        text = after
    text = re.sub(r"\\sqrt\s*([^\s{\[])", r"\\sqrt{\1}", text)
    text = re.sub(r"\s+", "", text).removesuffix(".")
    text = re.sub(r"(^|[^\d}])\.(?=\d)", r"\g<1>0.", text)  # .5 is 0.5
    text = _COUNTED.sub("", text)
    text = _SHORT_FRACTION.sub(lambda m: f"\\frac{{{m[1] or m[2]}}}{{{m[3] or m[4]}}}", text)
    if _GROUPED.fullmatch(text):
        text = text.replace(",", "")
    value = _value(text)
    if value is None or value.denominator == 1:
        return text if value is None else str(value)
    return f"{'-' if value < 0 else ''}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def _value(text: str) -> Fraction | None:
    """The number that a text is, if it is a decimal or one integer over another; None for all else, and for what is too long to be meant so."""
    if len(text) > 60:
        return None
    if _NUMBER.fullmatch(text):
        return Fraction(text)
    ratio = _RATIO.fullmatch(text)
    if ratio is None:
        return None
    over, under = int(ratio[2] or ratio[4]), int(ratio[3] or ratio[5])
    return None if not under else Fraction(-over if ratio[1] else over, under)


def boxed(text: str) -> str | None:
    """What the last `\\boxed{...}` or `\\fbox{...}` holds, with its braces matched; None where there is none, or it was never closed."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = text[start:].partition("box" if text.startswith("\\fbox", start) else "boxed")[2]
    if not rest.startswith("{"):
        return rest.split("$")[0].strip() or None
    depth = 0
    for place, letter in enumerate(rest):
        depth += (letter == "{") - (letter == "}")
        if not depth:
            return rest[1:place]
    return None
