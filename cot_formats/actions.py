"""Finds the paper's four reasoning actions in thoughts: problem analysis, planning, branching, reflection.

A heuristic on English phrases that QwQ, R1, Qwen3 and prompted instruct models use, and on the nano world's plain words
("goal :", "plan :", "try 8", "check ..."). It finds phrases that announce an action, whether or not an action follows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase

I_WE = r"(?:i|we|you)"
WORK_OUT = r"(?:find|figure out|determine|understand|calculate|compute|prove|show|solve|know|measure)"
LET = r"(?:let me|let's|let us|i'll|i will|we'll|we can|i can|i should|we should|i could|we could)"

CUES = {
    "analysis": (
        r"goal ?:",
        rf"{I_WE} (?:need|have|want) to {WORK_OUT}",
        rf"{I_WE}(?:'m| am|'re| are) (?:given|asked|told|looking for|trying to)",
        r"(?:problem|question|puzzle|riddle|user|task|prompt) (?:says|asks|states|wants|gives|is asking|is about)",
        rf"{LET} (?:first )?(?:try to )?(?:understand|analy[sz]e|figure out|restate|break (?:it|this|the \w+) down)",
        r"to (?:understand|analy[sz]e) (?:the|this|what)",
        r"(?:key|important) (?:constraint|requirement|detail|information|point|fact)s?",
    ),
    "planning": (
        r"plan ?:",
        r"(?:my|the|a|our) (?:plan|strategy|approach) (?:is|would be|will be|here)",
        r"here's (?:the|my|a) plan",
        r"(?:one )?step (?:by|at a) (?:step|time)",
        r"first(?:ly)?,? (?:i|we|let's|let me|i'll|i'd)",
        rf"{LET} (?:start|begin|proceed|plan|outline|organi[sz]e|structure|list)",
        r"(?:the )?(?:first|next) step is",
        r"next, (?:i|we|let's|let me|i'll)",
    ),
    "branching": (
        r"alternatively",
        r"(?:another|a different|other|an alternative) (?:way|approach|method|possibility|option|idea|interpretation)",
        r"(?:maybe|perhaps) (?:i|we|there's|there is) (?:can|could|should|need|another|a)",
        r"or (?:maybe|perhaps)",
        r"what if",
        r"on the other hand",
        r"(?:in )?case (?:\d|i|ii|iii|a|b|c)(?=[ :.,)])",
        r"instead,? (?:i|we|let's|let me|try)",
        r"try(?:ing)?(?= (?!to )\S)",
    ),
    "reflection": (
        r"wait",
        r"(?:double[- ])?check(?:ing)?",
        r"(?:let me|to) (?:verify|confirm|recheck|re-examine|re-read|reread|rethink|reconsider)",
        r"verify(?:ing)?",
        r"hold on",
        r"hmm+",
        r"on second thou?ght",
        r"(?:i|we) (?:made|might have made|may have made|think i made) (?:a|an) (?:mistake|error)",
        r"(?:i|we) (?:missed|overlooked|forgot|misread|miscalculated)",
        r"(?:that|this)(?:'s| is| can't be| doesn't seem| isn't| seems) (?:not )?(?:right|wrong|(?:in)?correct|off)",
        r"(?:does|is) (?:that|this|it) (?:make sense|right|correct)",
        r"actually,",
        r"was missed",
    ),
}
ACTIONS = tuple(CUES)
_GROUPS = "|".join(f"(?P<{name}>{'|'.join(cues)})" for name, cues in CUES.items())
_PATTERN = re.compile(rf"\b(?:{_GROUPS})(?:(?!\w)|(?<!\w))".replace("'", "['\u2019]"))  # whole words
_LOWER = str.maketrans(ascii_uppercase, ascii_lowercase)  # unlike str.lower, always keeps offsets


@dataclass(frozen=True, slots=True)
class Action:
    """A cue phrase at `text[start:end]` for the action `name`, one of `ACTIONS`."""

    name: str
    start: int
    end: int


def find_actions(thoughts: str) -> tuple[Action, ...]:
    """All cue phrases in the thoughts, in order, without overlaps. Raises nothing; takes time linear in the length."""
    return tuple(
        Action(match.lastgroup, match.start(), match.end())
        for match in _PATTERN.finditer(thoughts.translate(_LOWER))
        if match.lastgroup
    )
