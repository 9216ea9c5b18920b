r"""The answer that a solution in prose states: read where it is said, and not guessed from the last number.

An answer is what follows "the answer is", "Answer:" or the like. The last statement counts, and what comes after it
does not. Without one, the last sentence counts, if it is whole and concludes ("So the total is 12."); remarks such as
"(I checked this in 2 ways.)" are passed over. A text that is cut off, gives up or only begins has no answer. Only the
end of a text is read, so time does not grow with its length.
"""

from __future__ import annotations

import re

from evals.prose import CUT, FORMULA, bounds, hidden, is_math, run, shown

TAIL = 4_000
"""How many characters at the end of a text are searched."""
_READ = 500  # characters of a statement or a sentence
_SENTENCES = 8  # at the end, of which all but one may be remarks
_WORDS, _LENGTH = 5, 60  # of an answer in words


def _one_of(phrases: str) -> str:
    """A pattern of whole words, given as regular expressions with commas between them."""
    return rf"\b(?:{'|'.join(' '.join(phrase.split()) for phrase in phrases.split(','))})\b"


def _pattern(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE | re.MULTILINE)


_NO_IDEA = (
    "not (?:able|sure|certain), unable, can ?not, can't, don't, do not know, no idea, give up, gave up, wait, hmm"
)

_STATEMENT = _pattern(
    r"\banswers?\b(?!\s+(?:choice|option|format|key|sheet|from)s?\b)[^.!?\n=:\d()\ue000-\uf8ff]{0,60}?"
    r"(?:(?<=\s)(?:is|are|was|equals|(?:should|must|will|would|has to) be|comes? (?:out )?(?:to|as))\b\s*:?|\s*[:=])",
    r"\banswers?\s*,[^.!?\n=:]{0,60}?,\s*(?:is|are)\b",
    r"(?P<before>\b(?:is|are|as)\s+(?:the|our|my)\s+(?:final\s+|correct\s+)?answers?\b)",
    r"\bfinal\s+answers?\b\s*(?:\n|(?=[\ue000-\uf8ff\d]))",
    r"\banswers?\b\s*(?=[\ue000-\uf8ff])",
    r"\b(?:correct|right)\s+(?:option|choice)\s+(?:is|would be)\b\s*:?",
    r"<answer>\s*(?=[^\n]{1,60}$)",
    # a heading over a line that is a number or formula and three words at most
    r"^[ \t]*answers?[ \t]*\n\s*(?=[^\w\n]*(?:[a-z] *= *)?[\ue000-\uf8ff\d]\S*(?: \S+){0,3}[ \t]*$)",
    r"^\s*####\s",
)
_UNSAID = _pattern(
    _one_of("if, suppose, supposing, assume, assuming, whether, unless, guess, maybe, perhaps, might, what")
)
_NO_VALUE = re.compile(
    _one_of(
        "not, never, no longer, correct, right, wrong, incorrect, given, found, obtained, shown, checked, verified,"
        "confirmed, unclear, unknown, un\\w+ed, as follows, what, whatever, where, how, being, in the, in simplest,"
        "the same, that of, still, yet to, i, we, let, cannot"
    ),
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"\A"
    + _one_of("therefore, thus, hence, simply, just, clearly, then, now, equal to, approximately, about")
    + r"[\s,:]*",
    re.IGNORECASE,
)
_OPTION = re.compile(r"\(?[A-Z]\)?(?=[\s.,;:]|\Z)(?!\s*[=+\-*/^<>])|\([a-z]\)")
_CLAUSE = _pattern(
    r"[,;:]\s",
    r"\s\((?=[A-Za-z]{2})",
    r"\s"
    + _one_of("because, since, as, which, who, where, when, if, so that, for, but, and not, by, after, from, rather"),
)

_BULLET = re.compile(r"\A(?:[-*•]|\d{1,3}[.)])\s+")
_LISTED = re.compile(r"\A[\s:*_]*\n\s*[-*•]\s+")
_END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"')\]]))(?=\s|\Z)|\n")
_REMARK = re.compile(
    r"\W*(?:note|check|verif|confidence|hope|indeed|remember|q\.?e\.?d|as (?:step|shown|in)"
    r"|(?:i|we) (?:have |also )*(?:hope|check|verif|confirm|tested|used)"
    r"|(?:this|these|it|that|which) (?:\w+ )?(?:problem|demonstrate|show|confirm|agree|match|took|check|step|method)"
    r"|(?:step|part|section|equation|case|page|it|they|that|this|these|those|both)\s+"
    r"(?!\w+:|(?:is|are|was|were|gives?|means?|leaves?|yields?|makes?|equals?|comes?)\b)"
    r"|\(.*\)\W*\Z)",
    re.IGNORECASE | re.DOTALL,
)
_CONCLUDES = _pattern(
    _one_of(
        "so, thus, therefore, hence, consequently, accordingly, finally, altogether, overall, in total, in all, giving,"
        "conclu\\w+, in summary, result, solutions?, we (?:get|find|obtain), leaving,"
        "(?:which|this) (?:gives|means|yields|leaves|makes)"
    ),
    "∴",
)
_HEDGES = _pattern(
    _one_of(
        f"{_NO_IDEA}, not enough, couldn't, maybe, perhaps, might, may be, could, need(?:s)? to, (?:no|out of) time,"
        "(?:i|we) (?:need|want|would|will|should|must|try|use|consider|start|begin), (?:i|we)'(?:ll|d), but (?:i|we),"
        "let'?s, let (?:me|us), try, suppose, assume, guess, time is (?:over|up), remains, next step, to be continued,"
        "step \\d+, (?:is|are|was) (?:wrong|incorrect|not (?:correct|right|possible|true))"
    ),
    r"\?\W*\Z",
    r"\A\W*"
    + _one_of(
        "first, next, now, then, given, start, begin, consider, recall, if, in how, how, what, which, find, compute,"
        "determine, calculate, evaluate, simplify, solve, prove, express, convert, let"
    ),
)
_UNFINISHED = _pattern(_one_of(f"{_NO_IDEA}, (?:i|we) (?:need|would|will), let me, i'll"), r"\?\W*\Z")
_COPULA = _pattern(_one_of("is, are, was, were, be, equals?, it's, that's, becomes?"))
_VERB = _pattern(
    _one_of(
        "ha[sd], have, gets?, got, gives?, yields?, obtain, find, takes?, took, costs?, needs?, makes?, made, leaves?,"
        "left, at, total(?:s|ing)?"
    )
)
_NEGATED = _pattern(r"\bnot\s+\S+")
_AFTER = _pattern(r",?\s" + _one_of("because, since, as, where, when, if, so that, for which, provided") + r"\s")
_OPERATOR_END = re.compile(r"[=+*/^<>×÷·−-]\Z")
_OPEN_BEFORE = _pattern(r"\A(?:the|each|every|per|these|those|all)\Z")  # "so for each of the 12", cut off
_OPEN_END = _pattern(
    _one_of(
        "to, the, and, or, but, of, is, are, be, an?, we, so, for, by, with, that, which, has, have, in, at, on, from,"
        "as, then, because, since, each, per, than, if, when"
    )
    + r",?\Z"
)


def stated(text: str, *, final: bool = False) -> str | None:
    """The answer that the end of a text states: LaTeX or plain text; None if it states none. Raises nothing.

    `final`: only what is called the final answer counts.
    """
    tail, formulas = hidden(text[-TAIL:])
    for found in reversed(list(_STATEMENT.finditer(tail))):
        before = _END.split(tail[max(0, found.start() - 200) : found.start()])[-1]
        if _UNSAID.search(before) or (final and "final" not in (before[-10:] + found[0]).lower()):
            continue
        answer = _concluded(before) if found["before"] else _statement(tail[found.end() : found.end() + _READ])
        if answer is not None:
            return shown(answer, formulas) or None
    answer = None if final else _conclusion(tail)
    return None if answer is None else shown(answer, formulas) or None


def _statement(rest: str) -> str | None:
    """The answer at the beginning of what follows "the answer is"."""
    rest = _LISTED.sub("", rest)
    region = _LEAD.sub("", _END.split(rest.lstrip(" \t\n*_:—–>"), maxsplit=1)[0].strip())
    if not region or _NO_VALUE.match(region) or region.endswith("?"):
        return None
    if option := _OPTION.match(region):
        return f"{option[0]} {run(region[option.end() :].split(), start=True) or ''}"
    clause, whole = _clause(region), run(region.split())
    if found := run(clause.split()) or run(region.split(), start=True):
        return whole if whole and whole.startswith(found.rstrip(" ,")) else found  # a list goes on after the comma
    words = clause.strip(" .!*\"'")
    is_answer = 0 < len(words) <= _LENGTH and len(words.split()) <= _WORDS and not _HEDGES.search(words)
    return words if is_answer else None


def _clause(region: str) -> str:
    """What is before the first comma, connective or remark in parentheses that is not in brackets itself."""
    for found in _CLAUSE.finditer(region):
        before = region[: found.start()]
        if sum(map(before.count, "([{")) <= sum(map(before.count, ")]}")):
            return before
    return region


def _conclusion(text: str) -> str | None:
    """The answer in the last sentence that is no remark, if that sentence is whole and concludes."""
    lines = (_BULLET.sub("", sentence.strip()) for sentence in _END.split(text))
    sentences = [line[-_READ:].strip() for line in lines if line]
    if not sentences or CUT in sentences[-1]:
        return None
    for place in range(len(sentences) - 1, max(-1, len(sentences) - 1 - _SENTENCES), -1):
        sentence, tokens = sentences[place], sentences[place].split()
        concludes = bool(_CONCLUDES.search(sentence))
        whole = place < len(sentences) - 1 or _is_whole(sentence, tokens)
        if not whole and (not concludes or _is_cut_off(tokens)):
            return None
        if _REMARK.match(sentence) and not concludes:
            continue
        if _HEDGES.search(sentence):
            return None
        if not run(tokens) or _STATEMENT.search(sentence):
            continue
        if not concludes and place:
            says = _COPULA.search(sentence) or "=" in sentence or FORMULA.search(tokens[-1])
            if not says or _UNFINISHED.search(sentences[place - 1]):
                return None
        return _concluded(_AFTER.split(sentence, maxsplit=1)[0]) or _concluded(sentence)
    return None


def _is_whole(sentence: str, tokens: list[str]) -> bool:
    """Whether a sentence ends in a full stop, a formula, "= 5" or "is 5"."""
    if _OPERATOR_END.search(sentence):
        return False
    if sentence[-1] in ".!?)\"'" or FORMULA.search(tokens[-1]):
        return True
    first, end = len(tokens) - 1, len(tokens)
    while first >= 0 and bounds(tokens[first:]) == (0, end - first):
        first -= 1
    if first == end - 1:
        return False
    return "=" in " ".join(tokens[first + 1 :]) or (first >= 0 and bool(_COPULA.fullmatch(tokens[first].strip(":"))))


def _is_cut_off(tokens: list[str]) -> bool:
    """Whether a sentence without a full stop ends in the middle, or goes on for long after its last number."""
    last = max((place for place in range(len(tokens)) if is_math(tokens, place)), default=-1)
    if 0 < last == len(tokens) - 1 and _OPEN_BEFORE.match(tokens[last - 1]):
        return True
    return len(tokens) - 1 - last > 6 or bool(_OPEN_END.match(tokens[-1]) or _OPERATOR_END.search(tokens[-1]))


def _concluded(sentence: str) -> str | None:
    """What a sentence says that something is, has, costs, ...; or else its last number or formula."""
    sentence = _NEGATED.sub(" ", sentence)
    tokens, listed = sentence.split(), sentence.rpartition(": ")[2].split()
    if len(listed) < len(tokens) and bounds(listed) == (0, len(listed)):
        return run(listed)
    for verb in (_COPULA, _VERB):
        for found in reversed(list(verb.finditer(sentence))):
            if answer := run(sentence[found.end() :].split()):
                return answer
    answer = None
    while last := run(tokens):
        answer, tokens = last, tokens[bounds(tokens)[1] :]
    return answer
