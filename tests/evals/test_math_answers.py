r"""The kinds of answers that a grader of mathematics gets wrong, each with right and wrong answers of our own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.graders import math500
from infra.processes.limited import Limited

CASES = Path(__file__).parents[2].parent / "shared" / "cases" / "math_answers.jsonl"

# Solution, reference, whether it is right.
STATED = [
    ("The final answer is 18. This took 3 steps.", "18", True),
    ("**Final Answer:** $x = 7$\n\nLet me verify: $7 + 5 = 12$.", "7", True),
    ("**Final Answer:** $x = 7$\n\nLet me verify: $7 + 5 = 12$.", "12", False),
    ("Answer: 42 (see equation 2)", "42", True),
    ("The answer is 5, not 6.", "5", True),
    ("The answer is 5, not 6.", "6", False),
    ("answer: \\(12\\) because $3 \\cdot 4 = 12$ and $12 < 13$", "12", True),
    ("Hence the answer is 12 — see step 3.", "12", True),
    ("The answer is yes, since 3 divides 12.", "\\text{yes}", True),
    ("The answer is yes, since 3 divides 12.", "12", False),
    ("The answer is Monday, which is 3 days later.", "\\text{Monday}", True),
    ("### Final Answer\n\n\\[ \\frac{7}{2} \\]\n\nThis was problem 4.", "\\frac{7}{2}", True),
    ("The answer is not 7. The answer is 12. I tried 3 ways.", "12", True),
    ("The answer is 5. Wait, I forgot a term: the answer is 6. (2 errors found.)", "6", True),
    ("#### 72\n\nThat is 3 times 24.", "72", True),
    ("#### 18\n\nNote 3.", "18", True),
    ("So the answer would be 12. In 1999 it was 13.", "12", True),
    ("The answer to the question is $2\\sqrt{3}$, about 3.46.", "2\\sqrt{3}", True),
    ("The answer is approximately 3.46. See section 2.", "3.46", True),
    ("Therefore $x = 12$.\n\nCheck: $12 + 3 = 15$.", "12", True),
    ("So she pays $45. (This is 3 times $15.)", "45", True),
    ("So she pays $45. (This is 3 times $15.)", "15", False),
    ("Thus there are 12 ways to choose 3 books.", "12", True),
    ("The answer is 1,234 dollars.\nPage 2 of 3", "1234", True),
    ("The answer is: \n\n$$x^2 + 1$$\n\nwhere $x > 3$.", "x^2+1", True),
    ("**Answer:** 3/8\n\n**Confidence:** 90%", "\\frac{3}{8}", True),
    ("Answer: C\n\nOption 3 was close.", "\\text{(C)}", True),
    ("The answer is (B) 12, as 3 + 9 = 12.", "\\text{(B)}", True),
    ("The answer is (B) 12, as 3 + 9 = 12.", "12", True),
    ("The answer is -4. There were 2 roots.", "-4", True),
    ("The answer is -4. There were 2 roots.", "4", False),
    ("My answer: 0.75\nTime: 12 s", "\\frac34", True),
    ("\\boxed{9} is the answer, found in 4 steps.", "9", True),
    ("The answer is 12 km, which takes 3 hours.", "12\\text{ km}", True),
]
LISTS = [
    ("The points are (1, 2) and (3, 4).", "(1,2),(3,4)", True),
    ("The points are (3, 4) and (1, 2).", "(1,2),(3,4)", True),
    ("The points are (2, 1) and (3, 4).", "(1,2),(3,4)", False),
    ("The center of the circle is (3, -2).", "(3,-2)", True),
    ("The center of the circle is (3, -2).", "-2", False),
    ("The set is {1, 2, 5}.", "\\{5,1,2\\}", True),
    ("The set is {1, 2, 5}.", "\\{1,2\\}", False),
    ("The solutions are x = 1, x = 2, and x = 3.", "1,2,3", True),
    ("The solutions are x = 1, x = 2, and x = 3.", "3", False),
    ("The roots are 2 and -7.", "-7, 2", True),
    ("The roots are 2 and -7.", "-7", False),
    ("The answer is (2, 3, 5).", "(2,3,5)", True),
    ("The answer is (2, 3, 5).", "(5,3,2)", False),
    ("x = 4 or x = -4", "4,-4", True),
    ("x = 4 or x = -4", "-4", False),
    ("x = ±4", "4,-4", True),
    ("The answer is $3$, $4$, and $9$.", "3,4,9", True),
    ("The answer is 3, 4, 9.", "9,4,3", True),
    ("The answer is 3, 4, 9.", "3,4", False),
    ("The domain is [2, 5).", "[2,5)", True),
    ("The domain is [2, 5).", "(2,5)", False),
    ("So the ordered pair is $(a, b) = (2, 3)$.", "(2,3)", True),
    ("\\boxed{x = 2, y = 3}", "(2,3)", True),
    ("\\boxed{\\left(\\frac12, 3\\right)}", "(0.5,3)", True),
    ("\\boxed{1, 2}", "2", False),
    ("\\boxed{2}", "1,2", False),
    ("\\boxed{\\langle 1, 2 \\rangle}", "(1,2)", True),
    ("\\boxed{1 \\text{ and } 2}", "1,2", True),
    ("The vertices are at (0, 0), (4, 0) and (0, 3).", "(0,0),(4,0),(0,3)", True),
    ("Therefore, x = 5 and y = 2.", "(5,2)", True),
]
NO_ANSWER = [
    ("I don't know how to go on. Step 1 gives 4.", "4", False),
    ("Let me compute this. 3 * 4 = 12. Now I need to", "12", False),
    ("First, we note that there are 12 months", "12", False),
    ("Hmm, let's see. There are 12 months. So for each of the 12", "12", False),
    ("We start with $x = 4$ and then", "4", False),
    ("Let me think about it. We have 30 days.", "30", False),
    ("The problem has 15 apples, but I cannot solve it.", "15", False),
    ("I am not sure if the answer is 12.", "12", False),
    ("Suppose the answer is 5. Then", "5", False),
    ("What is the answer? Maybe 7?", "7", False),
    ("Is it 12?", "12", False),
    ("The answer is not 7.", "7", False),
    ("The answer is unknown. I tried 3 ways.", "3", False),
    ("So the sum is 12 and the product of the", "12", False),
    ("I need 4 more steps to finish.", "4", False),
    ("So \\boxed{12", "12", False),
    ("Put your final answer in \\boxed{}. There are 5 cases", "5", False),
    ("```python\nprint(50)\n```\n```output\n50\n```", "50", False),
    ("Answer: I don't know, perhaps 5.", "5", False),
    ("", "0", False),
    ("Wait, 7 divides 21, let me try 7", "7", False),
    ("Hillary has 7 nickels.", "7", True),
    ("In total there are 9 of them.", "9", True),
    ("Multiplying, $3 \\cdot 4 = 12$. So there are 12 eggs.", "12", True),
    ("The total comes from both. The total is 12.", "12", True),
    ("7", "7", True),
    ("$x = 7$", "7", True),
    ("Let me try. $2x = 14$, so $x = 7$.", "7", True),
    ("I was not sure at first. Therefore the sum is 12.", "12", True),
]
BASES = [
    ("\\boxed{1011_{2}}", "1011_2", True),
    ("\\boxed{1011_{\\text{two}}}", "1011_2", True),
    ("\\boxed{(1011)_2}", "1011_2", True),
    ("\\boxed{1011_{(2)}}", "1011_2", True),
    ("\\boxed{1011 \\text{ (base 2)}}", "1011_2", True),
    ("\\boxed{1011₂}", "1011_2", True),
    ("The answer is 1011 in base 2.", "1011_2", True),
    ("The answer is $1011_2$, which has 4 digits.", "1011_2", True),
    ("\\boxed{1011}", "1011_{2}", True),
    ("\\boxed{1\\,011_2}", "1011_2", True),
    ("\\boxed{1011_3}", "1011_2", False),
    ("\\boxed{1101_2}", "1011_2", False),
    ("\\boxed{11_{10}}", "1011_2", False),
    ("\\boxed{11}", "1011_2", False),
    ("\\boxed{1011_2}", "11", False),
    ("\\boxed{13_{10}}", "13", True),
    ("\\boxed{1{,}018_{10}}", "1018", True),
    ("\\boxed{A3_{16}}", "A3_{16}", True),
    ("\\boxed{\\text{A3}_{16}}", "A3_{16}", True),
    ("\\boxed{3A_{16}}", "A3_{16}", False),
    ("\\boxed{4210_5 + 1}", "4210_5", False),
    ("\\boxed{4210_{6}}", "4210_{5}", False),
]
VARIABLES = [
    ("\\boxed{3n}", "3n", True),
    ("\\boxed{3 n}", "3n", True),
    ("\\boxed{3\\,n}", "3n", True),
    ("\\boxed{3 \\cdot n}", "3n", True),
    ("\\boxed{n \\cdot 3}", "3n", True),
    ("\\boxed{3n}", "3", False),
    ("\\boxed{3}", "3n", False),
    ("\\boxed{3s}", "3", False),
    ("\\boxed{12c}", "12", False),
    ("\\boxed{12d}", "12", False),
    ("\\boxed{3h}", "3k", False),
    ("\\boxed{3 + 5t}", "3 + 5", False),
    ("\\boxed{3 + 5t}", "3+5t", True),
    ("\\boxed{4ab}", "4", False),
    ("\\boxed{4ab}", "4ba", True),
    ("\\boxed{4bc}", "4", False),
    ("\\boxed{4st}", "3", False),
    ("\\boxed{\\frac{1}{2}t}", "\\frac{t}{2}", True),
    ("\\boxed{\\frac{1}{2}t}", "\\frac{1}{2}", False),
    ("\\boxed{2\\pi r}", "2\\pi", False),
    ("\\boxed{-g}", "-1", False),
    ("\\boxed{x+t}", "x", False),
    ("The answer is $5t$.", "5t", True),
    ("The answer is 5t.", "5t", True),
    ("The answer is 5t.", "5", False),
    ("\\boxed{5 m}", "5", True),  # after a space, the letter of a unit is one
    ("\\boxed{5m}", "5m", True),
]
TEXTS = [
    ("\\boxed{\\textbf{Evelyn}}", "\\text{Evelyn}", True),
    ("\\boxed{\\mathrm{Evelyn}}", "\\text{Evelyn}", True),
    ("\\boxed{Evelyn}", "\\text{Evelyn}", True),
    ("\\boxed{\\text{ Evelyn }}", "\\text{Evelyn}", True),
    ("\\boxed{\\text{Evelyn}.}", "\\text{Evelyn}", True),
    ("\\boxed{\\text{Levyne}}", "\\text{Evelyn}", False),
    ("\\boxed{\\text{Eve}}", "\\text{Evelyn}", False),
    ("\\boxed{\\text{Evelyn and Bob}}", "\\text{Evelyn}", False),
    ("\\boxed{\\text{not even}}", "\\text{even}", False),
    ("\\boxed{\\text{odd}}", "\\text{even}", False),
    ("\\boxed{\\text{C}}", "\\text{(C)}", True),
    ("\\boxed{\\text{Option C}}", "\\text{(C)}", True),
    ("\\boxed{(C)\\ 12}", "\\text{(C)}", True),
    ("\\boxed{\\textbf{(C) }12}", "\\text{(C)}", True),
    ("\\boxed{\\textbf{(C)}\\ 12}", "12", True),
    ("\\boxed{\\textbf{(C)}\\ 12}", "\\text{(B)}", False),
    ("\\boxed{12}", "\\text{(C)}", False),
    ("\\boxed{\\text{(A) or (C)}}", "\\text{(C)}", False),
    ("\\boxed{\\textbf{(C)}}", "C", True),
    ("\\boxed{\\text{B}}", "C", False),
    ("\\boxed{\\text{Sunday}}", "\\text{Monday}", False),
    ("\\boxed{\\text{june 20}}", "\\text{June 20}", True),
    ("\\boxed{\\text{June 2}}", "\\text{June 20}", False),
    ("\\boxed{\\text{True}}", "\\text{False}", False),
    ("\\boxed{\\text{add}}", "\\text{dad}", False),
    ("\\boxed{\\text{Yes}}", "\\text{yes}", True),
    ("\\boxed{\\text{an ellipse}}", "\\text{ellipse}", True),
    ("\\boxed{a b}", "b", False),
]
REPEATING = [
    ("\\boxed{0.\\overline{142857}}", "\\frac{1}{7}", True),
    ("\\boxed{0.1\\overline{6}}", "\\frac{1}{6}", True),
    ("\\boxed{1.\\overline{3}}", "\\frac{4}{3}", True),
    ("\\boxed{-0.\\overline{3}}", "-\\frac{1}{3}", True),
    ("\\boxed{0.\\bar{3}}", "\\frac13", True),
    ("\\boxed{0.\\overline 3}", "\\frac13", True),
    ("\\boxed{0.\\dot{3}}", "\\frac13", True),
    ("\\boxed{0.\\dot{1}4285\\dot{7}}", "\\frac17", True),
    ("\\boxed{0.(3)}", "\\frac13", True),
    ("\\boxed{0.333...}", "\\frac13", True),
    ("\\boxed{0.1666\\ldots}", "\\frac16", True),
    ("\\boxed{0.3̅}", "\\frac13", True),
    ("\\boxed{\\frac{4}{11}}", "0.\\overline{36}", True),
    ("\\boxed{0.\\overline{9}}", "1", True),
    ("\\boxed{33.\\overline{3}\\%}", "33\\frac13\\%", True),
    ("\\boxed{0.3\\overline{6}}", "\\frac{4}{11}", False),
    ("\\boxed{0.\\overline{3}}", "0.3", False),
    ("\\boxed{0.\\overline{3}}", "0.33", False),
    ("\\boxed{0.33}", "\\frac{1}{3}", False),
    ("\\boxed{0.\\overline{63}}", "0.\\overline{36}", False),
    ("\\boxed{3.14}", "\\pi", False),
    ("\\boxed{0.125}", "\\frac18", True),
    ("\\boxed{2.50}", "\\frac52", True),
    ("The answer is 0.333..., so we are done in 2 steps.", "\\frac13", True),
]
UNITS = [
    ("\\boxed{5\\text{ kg}}", "5\\text{ g}", False),
    ("\\boxed{30\\text{ minutes}}", "30\\text{ hours}", False),
    ("\\boxed{12\\text{ cm}}", "12\\text{ cm}^2", False),
    ("\\boxed{12\\text{ cm}^3}", "12\\text{ cm}^2", False),
    ("\\boxed{60\\text{ mph}}", "60\\text{ km/h}", False),
    ("\\boxed{90\\text{ radians}}", "90^\\circ", False),
    ("\\boxed{5\\text{ cents}}", "\\$5", False),
    ("\\boxed{20^\\circ\\text{C}}", "20^\\circ\\text{F}", False),
    ("\\boxed{7\\text{ feet}}", "7\\text{ inches}", False),
    ("\\boxed{12 km}", "12 m", False),
    ("\\boxed{7:00 \\text{ a.m.}}", "7:00 \\text{ p.m.}", False),
    ("\\boxed{\\sqrt{3}\\text{ cm}}", "\\sqrt{3}\\text{ m}", False),
    ("\\boxed{13\\text{ cm}}", "12\\text{ cm}", False),
    ("The answer is 12 km.", "12\\text{ m}", False),
    ("\\boxed{12\\text{ centimeters}}", "12\\text{ cm}", True),
    ("\\boxed{12\\text{ square centimeters}}", "12\\text{ cm}^2", True),
    ("\\boxed{60\\text{ minutes}}", "1\\text{ hour}", True),
    ("\\boxed{1.2\\text{ m}}", "120\\text{ cm}", True),
    ("\\boxed{50\\text{ cents}}", "\\$0.50", True),
    ("\\boxed{12\\text{ miles per hour}}", "12\\text{ mph}", True),
    ("\\boxed{12\\,\\mathrm{m/s}}", "12\\text{ meters per second}", True),
    ("\\boxed{12\\text{ km}}", "12", True),
    ("\\boxed{12}", "12\\text{ km}", True),
    ("\\boxed{7 nickels}", "7", True),
    ("\\boxed{90\\text{ degrees}}", "90^\\circ", True),
    ("\\boxed{90°}", "90", True),
    ("\\boxed{\\$18.9}", "18.90", True),
    ("\\boxed{0.35}", "35\\%", True),
    ("\\boxed{12\\text{ square units}}", "12", True),
    ("\\boxed{3\\text{ million}}", "3,000,000", True),
    ("\\boxed{2\\text{ dozen}}", "24", True),
    ("\\boxed{864\\text{ in}^2}", "864 \\mbox{ inches}^2", True),
]
CASES_OF_LETTERS = [
    ("\\boxed{2X}", "2x", False),
    ("\\boxed{a}", "A", False),
    ("\\boxed{p}", "P", False),
    ("\\boxed{X+1}", "x+1", False),
    ("\\boxed{\\frac{X}{2}}", "\\frac{x}{2}", False),
    ("\\boxed{2πR}", "2πr", False),
    ("\\boxed{2xY}", "2xy", False),
    ("\\boxed{X+1}", "1+X", True),
    ("\\boxed{N = 5}", "n = 5", True),
    ("\\boxed{c}", "\\text{(C)}", True),
    ("\\boxed{(c)}", "C", True),
    ("\\boxed{Option A}", "A", True),
    ("\\boxed{RIGHT-ANGLED}", "\\text{right-angled}", True),
    ("\\boxed{Да}", "да", True),
    ("\\boxed{12 KM}", "12\\text{ km}", True),
]
TIMES = [
    ("\\boxed{2:05}", "4:10", False),
    ("\\boxed{10:20}", "1:2", False),
    ("\\boxed{1:05}", "2:10\\text{ p.m.}", False),
    ("\\boxed{\\text{2:05 p.m.}}", "4:10\\text{ p.m.}", False),
    ("\\boxed{02:05}", "2:05", True),
    ("\\boxed{12:30 PM}", "12:30\\text{ p.m.}", True),
    ("\\boxed{3:4}", "\\frac34", True),
]
WRITTEN = [
    ("\\boxed{2⁴}", "16", True),
    ("\\boxed{x⁵+1}", "x^5+1", True),
    ("\\boxed{10⁻³}", "0.001", True),
    ("\\boxed{5 m²}", "5\\text{ m}^2", True),
    ("\\boxed{½}", "0.5", True),
    ("\\boxed{2½}", "2.5", True),
    ("\\boxed{33⅓%}", "33\\frac13\\%", True),
    ("\\boxed{1.5e3}", "1500", True),
    ("\\boxed{1e6}", "10^6", True),
    ("\\boxed{1.5e3}", "1.5", False),
    ("\\boxed{≈ 7.2}", "7.2", True),
    ("\\boxed{\\approx 7.2\\text{ cm}}", "7.2", True),
    ("\\boxed{=7}", "7", True),
    ("\\boxed{7\\ }", "7", True),
    ("\\boxed{5\\text{ cm}\\ }", "5\\text{ cm}", True),
    ("\\boxed{30°C}", "30^\\circ\\text{C}", True),
    ("\\boxed{30^\\circ C}", "30^\\circ\\text{F}", False),
    ("\\boxed{30º}", "30^\\circ", True),
    ("\\boxed{30˚}", "30", True),
    ("\\boxed{1’234’567}", "1234567", True),
    ("\\boxed{12,34,567}", "1234567", True),
    ("\\boxed{1.234.567}", "1234567", True),
    ("\\boxed{196, 25, 16}", "16,25,196", True),
    ("\\boxed{₹500}", "500", True),
    ("\\boxed{Rs. 500}", "₹500", True),
    ("\\boxed{USD 12.50}", "\\$12.5", True),
    ("\\boxed{USD 5}", "€5", False),
    ("The answer is three.", "3", True),
    ("The answer is one half.", "\\frac12", True),
    ("\\boxed{\\text{Twelve}}", "12", True),
    ("The answer is three.", "2", False),
]
KINDS = {
    "stated": STATED,
    "list": LISTS,
    "none": NO_ANSWER,
    "base": BASES,
    "variable": VARIABLES,
    "text": TEXTS,
    "repeating": REPEATING,
    "unit": UNITS,
    "case": CASES_OF_LETTERS,
    "time": TIMES,
    "written": WRITTEN,
}


@pytest.fixture(scope="module")
def limited():
    """The grader that benchmarks and the verified reward use, in a process with limits as there."""
    with Limited("evals.graders:math500", timeout_s=120, memory_bytes=2 << 30) as grader:
        yield grader


def check(kind: str) -> None:
    wrong = []
    for solution, reference, right in KINDS[kind]:
        grade = math500(solution, reference)
        if grade["correct"] != right:
            wrong.append((solution, reference, right, grade["prediction"]))
    assert not wrong


def test_the_stated_answer_beats_a_later_number():
    check("stated")


def test_pairs_lists_points_and_sets_in_plain_text():
    check("list")


def test_no_answer_said_means_no_answer():
    check("none")


def test_number_bases():
    check("base")


def test_a_variable_after_a_number():
    check("variable")


def test_text_in_boxes():
    check("text")


def test_repeating_decimals():
    check("repeating")


def test_units_that_differ():
    check("unit")


def test_the_case_of_variables_counts_and_of_words_does_not():
    check("case")


def test_times_are_no_ratios():
    check("time")


def test_ways_to_write_a_number():
    check("written")


@pytest.mark.skipif(not CASES.is_file(), reason="the cases are missing (../shared/cases/math_answers.jsonl)")
def test_each_shared_case(limited):
    cases = [json.loads(line) for line in CASES.read_text().splitlines()]
    assert len(cases) == 33
    graded = {case["case"]: limited(case["solution"], case["reference"])["correct"] for case in cases}
    assert graded == {case["case"]: case["right"] for case in cases}
