"""The format of DeepSeek-R1, QwQ-32B, Qwen3 and OpenThoughts: the solution is all text after `</think>`.

Nothing closes a solution. Its text alone shows a cut only by a box, maths or code that is never closed; a cut in plain
words leaves no sign: whoever knows how the text ended says so (`ended`).
"""

from cot_formats.tagged import tagged

FORMAT = tagged("<think>\n{thoughts}\n</think>\n\n{solution}")
parse, render = FORMAT.parse, FORMAT.render
