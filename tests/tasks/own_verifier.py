"""Verifiers of a user, for tests: they get a solution and a reference answer."""


def same(solution: str, reference: str) -> bool:
    return solution == reference


def sometimes(solution: str, reference: str) -> bool:
    if solution != reference:
        raise ValueError("odd")
    return True


def never(solution: str, reference: str) -> bool:
    raise ValueError("no such luck")


def as_number(solution: str, reference: str) -> float:
    return float(solution == reference)


def as_object(solution: str, reference: str) -> dict[str, object]:
    return {"answer": solution, "correct": solution == reference}


def as_tuple(solution: str, reference: str) -> tuple[bool, str]:
    return solution == reference, solution
