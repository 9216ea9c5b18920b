"""RLMT's format (arXiv 2509.20357, princeton-pli/RLMT); its line breaks are this project's choice."""

from cot_formats.tagged import tagged

FORMAT = tagged("<think>\n{thoughts}\n</think>\n\n<response>\n{solution}\n</response>")
parse, render = FORMAT.parse, FORMAT.render
