"""Marco-o1's format (AIDC-AI/Marco-o1), with line breaks as in its CoT_demo.json."""

from cot_formats.tagged import tagged

FORMAT = tagged("<Thought>\n{thoughts}\n</Thought>\n<Output>\n{solution}\n</Output>")
parse, render = FORMAT.parse, FORMAT.render
