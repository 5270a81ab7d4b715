"""Cuts the unit off a value, and writes it in one spelling."""

from __future__ import annotations

import re
import unicodedata

from primecli.verifiers.math.measures import measure, unit_name

_TEXT_GROUP = r"\\text\{(?:[^{}]|\{[^{}]*\})*\}"
# a value and a unit in \text{…}: 18\text{ cm}^2, 18 \frac{\text{m}}{\text{s}}
_UNIT_TEXT = re.compile(
    rf"(.*?[\d)}}%\]a-zA-Z])\s*((?:{_TEXT_GROUP}|\\frac\{{{_TEXT_GROUP}\}}\{{{_TEXT_GROUP}\}})"
    rf"(?:\s*(?:/|\\cdot|{_TEXT_GROUP}|\^\s*\{{?\s*-?\d\s*\}}?))*)",
    re.DOTALL,
)
# a value and a unit in plain words, with its exponent: 18 square feet, 40 ft^2
_UNIT_WORDS = re.compile(
    r"(.*(?:[\d)}%]|\\pi\s))(\s*)\(?([a-zA-Z]+(?:(?:[ .\-/]+|' ?)[a-zA-Z]+){0,8})\)?\.?\s*(\^\s*\{?\s*-?\d\s*\}?)?",
    re.DOTALL,
)
# a value and a word in another script: 18元, 18 см
_FOREIGN = re.compile(r"(.*[\d)}%])\s*([^\W\d_a-zA-Z]{1,12})", re.DOTALL)
# 4th, 4^{\text{th}}
_ORDINAL = re.compile(r"(\d{1,9})\s*(?:\^\s*\{?\s*)?(?:\\text\{)?\s*(st|nd|rd|th)\s*\}?\s*\}?")
# six-sided dice, but ten-dollar bills are an amount
_COUNTED_IN_NAME = re.compile(r"\b[a-z]+-(?:sided|digit|letter|element|person|year)\b|\bU\.? ?S\.?(?= )", re.IGNORECASE)
_IN_BRACKETS = re.compile(r"(?<=[a-z])\s*\(([a-zA-Z ]{3,30})\)$")  # 12 hours (total)
_HYPHENED = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)-([a-zA-Z]{3,12})")  # 40-inch
# things that are counted by pairs: "18 ordered pairs" are 18, but "18 pairs" of shoes may be 36
_PAIRS = re.compile(
    r"\b(?:ordered|unordered|integer|distinct|different|such|valid|possible) pairs?\b"
    r"|\bpairs of (?=(?:[a-z]+ )?(?:integers|numbers|values|points|lines|sides|angles)\b)",
    re.IGNORECASE,
)
_TEMPERATURE = re.compile(r"(?:degrees?|deg)\.? (celsius|fahrenheit|c|f)", re.IGNORECASE)
# 5 \\Omega, 5 k\\Omega
_OHMS = re.compile(r"(.*\d\}?)\s+([kMm]?\s?\\Omega)")
# letters that are units only after a space: \\text{ C}, but \\text{C} may be a name
_SPACED_LETTER = re.compile(r".*[\d}]\\text\{[AC]\}")
SINGLE_LETTER = re.compile(r"(.*\d\}?\)?)\s*([mgshLlJNVWK])(?:\^\s*\{?\s*[23]\s*\}?)?", re.DOTALL)
"""A value before a letter that may be a unit: 5 m may also be five times m."""

# how many each is, and words for these in other languages
_MAGNITUDES = {
    "dozen": 12, "hundred": 10**2, "thousand": 10**3, "lakh": 10**5, "million": 10**6, "crore": 10**7,
    "billion": 10**9, "trillion": 10**12,
}  # fmt: skip
_FOREIGN_MAGNITUDES = {
    "万": 10**4, "萬": 10**4, "만": 10**4, "亿": 10**8, "億": 10**8, "억": 10**8, "千": 10**3, "百": 10**2,
    "тыс": 10**3, "тысяч": 10**3, "тысячи": 10**3, "млн": 10**6, "миллион": 10**6, "миллиона": 10**6,
    "миллионов": 10**6, "млрд": 10**9, "миллиард": 10**9, "миллиарда": 10**9, "миллиардов": 10**9,
}  # fmt: skip
# words that change the value, so that the number before them is not the whole answer: numbers and parts
_AMOUNT = (
    r"zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|[a-z]+teen|twenty|thirty|forty|fifty|sixty"
    r"|seventy|eighty|ninety|half|halves|thirds?|quarters?|fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?"
    r"|elevenths?|twelfths?|[a-z]+teenths?|[a-z]+tieths?|[a-z]*(?:hundred|thousand|illion|illiard)(?:ths?|en|s)?"
    r"|dozens?|score|gross(?:es)?|myriads?|grand|pairs?|crores?|lakhs?|lacs?|mille|mil|millones|tausend|hundert|dutzend|docenas?"
    r"|douzaines?|prozent|pourcents?|twice|thrice|[a-z]*fold|doubled?|tripled?|quadrupled?|halved|squared|cubed|point"
    r"|bps|basis points?|couple|tens|googol|[a-z]*zillion|percents?|percentpoints?|per ?milles?|promille|imaginary"
)
# how the number is meant, and arithmetic
_QUALIFIER = (
    r"not|no|never|nor|neither|none|wrong|incorrect|incorrectly|false|is|are|was|were|isn|aren|be|has|have|if|when|unless"
    r"|except|excluding|without|but|or|and|than|least|most|plus|minus|over(?!$)|under|below"
    r"|above(?! (?:the|sea)\b)|negative|between|greater|up"
    r"|to|by|out|divided|multiplied|times|root|power|choose|factorial|mod|modulo|base|log|remainder|ratio|cis"
    r"|infinity|approximately|about|roughly|maybe|perhaps|possibly|guess|instead|versus|vs|rounded|depends|depending"
    r"|undefined|wait|actually|respectively|invalid|cannot|exceeds?|does|doesn|did|should|would|could|might|may|will"
    r"|almost|nearly|ish|around|circa|nothing|naught|nil|null|add|subtract|multiply|binary|hex|hexadecimal|octal|decimal"
)
# numbers and qualifiers of other languages, as far as they are written in ASCII
_FOREIGN_WORDS = (
    r"zwei|drei|vier|halb|halbe|anderthalb|doppelt|[a-z]+fach|mal|hoch|wurzel|quadrat|oder|und|nicht|kein|keine|etwa"
    r"|ungefahr|mindestens|weniger|mehr|deux|trois|quatre|cien|ciento|cientos|demi|demie|moitie|fois|racine|carre|moins"
    r"|plus|pas|environ|dos|tres|cuatro|media|medio|mitad|veces|raiz|cuadrado|menos|mas|por|non|aut"
)
_GREEK = (
    r"alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|omicron|pi|rho|sigma|tau|upsilon|phi|chi"
    r"|psi|omega"
)
_CHANGES = re.compile(
    rf"\b(?:{_AMOUNT}|{_QUALIFIER}|{_GREEK}|{_FOREIGN_WORDS}|(?:more|less|fewer|larger|smaller|higher|lower)(?= than|$)"
    r"|for (?:every|each)|every other)\b"
    # only after the number itself: "2 of 3", "3 in 10", "3 chances"; but "3/4 of the cake" and "5 in total" are values
    r"|^(?:above|below)\b"
    r"|^of\b(?! (?:the|a|an|his|her|their|its|my|our|all|them|these|those)\b)"
    r"|^(?:for|with|as)\b|^in\b(?! (?:total|all)\b)(?=.)"
    r"|^chances? in\b",
    re.IGNORECASE,
)
_FOREIGN_CHANGES = re.compile(
    r"[万萬만亿億억千百十拾兆倍半余餘几幾折成多非无無没]|不(?!同)|以上|以下|以内|左右|分之|至|到|或|以|배|절반|이상|이하"
    r"|тыс|млн|млрд|миллион|миллиард|тысяч|дюжин|пар|сот|процент|половин|трет|четверт|раз|или|не\b"
)
# units of two letters that may follow a digit without a space: 5cm
_UNSPACED = frozenset(("cm", "mm", "km", "kg", "mg", "ml", "mL", "ms", "ft", "yd", "mi", "lb", "oz", "hr", "in", "Hz"))
_TRIVIAL = {"of", "a", "an", "in", "on", "at", "so", "my", "us", "we", "he", "it", "as", "de", "la", "le", "el", "du"}
_TIMES = re.compile(r"times(?: (?:a|per|each|every|in) [a-z]+)?", re.IGNORECASE)
_UNIT_BEFORE_POWER = re.compile(r"\s+(?:squared|cubed)\b")  # 5 cm squared, but 5 squared is 25
_THINGS = {"dvd", "dvds", "cds", "tvs", "pcs", "baby", "cab"}  # though they look like variables
_VOWEL = re.compile("[aeiou]|(?<![xz])y(?![xz])")  # but xy and zy are variables
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"
_FUNCTION = re.compile(
    r"(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|cis|ln|log|exp|sqrt|pi|infinity|infty|theta|abs|mod|oo", re.IGNORECASE
)
_SYMBOL = re.compile(
    rf"{_FUNCTION.pattern}|frac|adj|det|ker|sgn|sup|inf|lim|lcm|erf|sech|csch|arg|{_GREEK}", re.IGNORECASE
)
_PERCENT = re.compile(r"(?:percent(?:age)?(?: points?)?|pct|per cent)\b\.?", re.IGNORECASE)


def is_function(word: str) -> bool:
    """Whether a word names a function or constant of mathematics."""
    return bool(_FUNCTION.fullmatch(word))


def canonical_unit(text: str) -> str:
    """A unit in one spelling: singular, without abbreviations, powers as `^2`, denominators after slashes.

    >>> canonical_unit("sq. inches"), canonical_unit("miles per hour"), canonical_unit("m s^-2")
    ('inch^2', 'mile/hour', 'meter/second^2')
    """
    if half := re.fullmatch(r"([ap])\.? ?m", text.strip(" .()"), re.IGNORECASE):
        return half.group(1).lower() + "m"
    if temperature := _TEMPERATURE.fullmatch(text.strip()):
        return "degree" + temperature.group(1)[0].upper()
    words = re.sub(r"\s*\^\s*\{?\s*(-?\d)\s*\}?", r"^\1 ", text.strip(" .()"))
    words = re.sub(r"\s*/\s*|\s+per\s+", " / ", re.sub(r"[.\-](?![\d\s])|\\cdot", " ", words))
    above: list[str] = []
    below: list[str] = []
    side, power = above, 0
    for word in words.split():
        if word == "/":
            side = below
            continue
        if word.lower().strip(".") in ("sq", "square", "cu", "cubic"):
            power = 2 if word.lower().startswith("s") else 3
            continue
        if word.lower() in ("squared", "cubed") and side:
            side[-1] = side[-1].partition("^")[0] + ("^2" if word.lower() == "squared" else "^3")
            continue
        bare, _, exponent = word.partition("^")
        exponent = str(power or exponent or 1)
        power = 0
        name = unit_name(bare.strip(".")) or _singular(bare.strip("."))
        if exponent.startswith("-"):
            below.append(name + ("" if exponent == "-1" else "^" + exponent[1:]))
        else:
            side.append(name + ("" if exponent == "1" else "^" + exponent))
    return "/".join([" ".join(above), *below]) if above or below else ""


def _singular(word: str) -> str:
    word = word.lower()
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def cut_unit(text: str) -> tuple[str, str, bool] | None:
    """The expression before a unit, the unit in one spelling, and whether it is "percent" in words.

    Known units and words that name what is counted are cut off. None where the words after the number may change its
    value or be variables, so that the text is not a value with a unit.

    >>> cut_unit(r"10\\text{ weeks}"), cut_unit("5 million dollars"), cut_unit("5 pairs")
    (('10', 'week', False), ('(5)\\\\cdot 1000000', 'dollar', False), None)
    """
    if not text.isascii():
        text = _without_accents(text)
    foreign = None if text.isascii() else _FOREIGN.fullmatch(text)
    if foreign is not None:
        return _foreign_unit(foreign.group(1).strip(), foreign.group(2))
    if (hyphened := _HYPHENED.fullmatch(text)) and (name := unit_name(hyphened.group(2))):
        return hyphened.group(1), name, False
    head, unit = _find_unit(_IN_BRACKETS.sub(r" \1", text))
    if not unit:
        return head.strip(), "", False
    if _SPACED_LETTER.fullmatch(text):
        return None
    unit = unit.strip(" ()")
    percent = _PERCENT.match(unit)
    if percent is not None:
        return (head.strip(), "", True) if not _CHANGES.search(unit[percent.end() :].strip()) else None
    head, unit = _magnitude(head.strip(), unit)
    canonical = canonical_unit(unit) if unit else ""
    known = bool(canonical) and (measure(canonical) is not None or canonical.startswith("degree"))
    if unit and not known and not _names_things(unit):
        return None
    return head, canonical, False


def _without_accents(text: str) -> str:
    """A text in Latin letters without their accents: pièces as pieces; other scripts as they are."""
    bare = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    return bare if bare.isascii() else text


def _find_unit(text: str) -> tuple[str, str]:
    """The expression before a unit, and the unit as written, with its exponent."""
    ordinal = _ORDINAL.fullmatch(text)
    if ordinal and _ordinal_suffix(int(ordinal.group(1))) == ordinal.group(2):
        return ordinal.group(1), ""
    match = _UNIT_TEXT.fullmatch(text)
    if match and re.search(r"\\text\{[^{}]*[a-zA-Z]", match.group(2)):
        return match.group(1), _text_unit(match.group(2))
    ohms = _OHMS.fullmatch(text) if "\\Omega" in text else None
    if ohms:
        return ohms.group(1), ohms.group(2).replace(" ", "").replace("\\Omega", "ohm")
    match = _UNIT_WORDS.fullmatch(text)
    if match and _plain_unit(match.group(3), spaced=bool(match.group(2)) or "\\pi" in match.group(1)[-5:]):
        return match.group(1), match.group(3) + (match.group(4) or "")
    return text, ""


def _foreign_unit(head: str, word: str) -> tuple[str, str, bool] | None:
    """Cuts off a word in another script; None where it changes the value."""
    known = unit_name(word)
    if known is not None:
        return head, known, False
    magnitude = next((each for each in sorted(_FOREIGN_MAGNITUDES, key=len)[::-1] if word.startswith(each)), "")
    rest = word[len(magnitude) :]
    if _FOREIGN_CHANGES.search(rest):
        return None
    return (f"({head})\\cdot {_FOREIGN_MAGNITUDES[magnitude]}" if magnitude else head), unit_name(rest) or "", False


def _ordinal_suffix(number: int) -> str:
    return "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


def _text_unit(latex: str) -> str:
    """`\\text{m}/\\text{s}^2` in words."""
    latex = re.sub(r"\\frac\{(.*)\}\{(.*)\}", r"\1 / \2", latex)
    latex = re.sub(r"\\text\{((?:[^{}]|\{[^{}]*\})*)\}", r"\1", latex)
    latex = re.sub(r"\\mu\s*", "u", re.sub(r"\\Omega\b", "ohm", latex))
    return re.sub(r"\\cdot|\s+", " ", latex).strip()


def _plain_unit(words: str, spaced: bool) -> bool:
    """Whether plain letters after a number are a unit rather than a product of variables.

    spaced: whether a space precedes them.
    """
    parts = re.split(r"[ .\-/']+", words)
    first = parts[0]
    if any(_SYMBOL.fullmatch(word) for word in parts) or re.match(r"sqrt|pi(?![a-z])", first):
        return False
    known = unit_name(first) is not None and (spaced or len(first) > 2 or first in _UNSPACED)
    known |= first.lower() in ("percent", "pct", "per", "sq", "square", "cubic", "p")
    if len(first) == 1 and not re.fullmatch(r"[ap][. ]*m", words, re.IGNORECASE):
        return False  # 5 m may be five times m
    return known or (spaced and len(first) >= 3) or len(first) >= 5 or (spaced and first.lower() in _TRIVIAL)


def _magnitude(head: str, unit: str) -> tuple[str, str]:
    """Moves a magnitude from the unit to the value: `5`, `million dollars` as `(5)\\cdot 1000000`, `dollars`."""
    first, _, rest = unit.strip().partition(" ")
    size = _MAGNITUDES.get(first.lower().rstrip("s"))
    return (f"({head})\\cdot {size}", rest) if size else (head, unit)


def _names_things(unit: str) -> bool:
    """Whether words after a number only say what is counted or measured: `red apples`, `dollars per day`.

    What things are called is an open list, so a word counts that cannot be anything else: it has three letters or more
    and a vowel, is no run of the alphabet (variables), and neither changes the value nor belongs to mathematics.
    """
    if _TIMES.fullmatch(unit.strip()):
        return True
    if re.search(r"\b(?:square|cube|cubic|sq|cu)$", unit, re.IGNORECASE):
        return False
    rest = re.sub(r"\s+and$", "", _PAIRS.sub("", _COUNTED_IN_NAME.sub("", unit)).strip(" .()"))
    if _UNIT_BEFORE_POWER.search(rest):  # after a unit these belong to it
        rest = re.sub(r"(?<=[a-z])\s+(?:squared|cubed)\b", "", rest)
    words = re.split(r"[\s.\-/'’(),]+", re.sub(r"\^\s*\{?\s*-?\d\s*\}?", "", rest))
    if re.search(r"[^a-zA-Z\s.\-/'’(),]", " ".join(words)) or _CHANGES.search(rest):
        return False
    return all(_names_a_thing(word) for word in words if word)


def _names_a_thing(word: str) -> bool:
    lower = word.lower()
    if unit_name(word) is not None or lower in _TRIVIAL or lower in ("per", "sq", "cu"):
        return True
    if lower in _THINGS:
        return True
    return (
        len(word) >= 3
        and bool(_VOWEL.search(lower))
        and not set(lower) <= set("abcxyz")
        and lower not in _ALPHABET
        and len(set(lower)) > 1
        and not _SYMBOL.fullmatch(word)
    )
