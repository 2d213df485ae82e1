"""The one exception meant for a person, and how its sentences count."""

from __future__ import annotations


class UserError(Exception):
    """Something a person must mend, told in one sentence: where, what, remedy.

    Raised wherever input, settings or the machine are at fault; the command lines print it as one line
    and exit with status 1. A bug in our own code raises something else and keeps its traceback.

    Example:
        >>> print(UserError("the file is empty", where="corpus.txt", remedy="give one with text"))
        corpus.txt: the file is empty; give one with text
    """

    def __init__(self, what: str, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__((f"{where}: " if where else "") + what + (f"; {remedy}" if remedy else ""))


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "device"), counted(2000, "step")
        ('1 device', '2,000 steps')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
