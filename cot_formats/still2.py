"""The format of STILL-2 (arXiv 2412.09413), Sky-T1 and OpenThoughts-114k, with blank lines as in Sky-T1."""

from cot_formats.tagged import tagged

FORMAT = tagged(
    "<|begin_of_thought|>\n\n{thoughts}\n\n"
    "<|end_of_thought|>\n\n<|begin_of_solution|>\n\n{solution}\n\n<|end_of_solution|>"
)
parse, render = FORMAT.parse, FORMAT.render
