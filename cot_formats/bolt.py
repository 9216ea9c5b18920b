"""This project's own format for BOLT's internal thoughts and external solution (the paper states no format)."""

from cot_formats.tagged import tagged

FORMAT = tagged(
    "<internal_thoughts>\n{thoughts}\n</internal_thoughts>\n\n<external_solution>\n{solution}\n</external_solution>"
)
parse, render = FORMAT.parse, FORMAT.render
