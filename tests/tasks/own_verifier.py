"""Verifiers of a user, for tests: they get a solution and a reference answer."""


def same(solution: str, reference: str) -> bool:
    return solution == reference


def sometimes(solution: str, reference: str) -> bool:
    if solution != reference:
        raise ValueError("odd")
    return True


def never(solution: str, reference: str) -> bool:
    raise ValueError("no such luck")
