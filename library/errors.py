"""The errors Striate raises, and how the command line should end for each."""


class StriateError(Exception):
    """Something the user can act on: the message says what, where, and what would work."""

    exit_code = 1


class UsageError(StriateError):
    """The request itself is wrong (a mistyped step, a destination in use); nothing was done."""

    exit_code = 2


class GrammarError(UsageError):
    """A pipeline's text is wrong at one place, shown by a caret.

    Args:
        message: what is wrong, and what would work.
        text: the whole pipeline text.
        offset: where the wrong part starts, in characters from the start of `text`.
        length: how many characters of it are wrong.
    """

    def __init__(self, message: str, text: str, offset: int, length: int = 1) -> None:
        self.message, self.text, self.offset, self.length = message, text, offset, length
        super().__init__(f"{message}\n{_with_caret(text, offset, length)}")

    def __reduce__(self) -> tuple[type, tuple[str, str, int, int]]:
        return type(self), (self.message, self.text, self.offset, self.length)


class BadPicture(StriateError):
    """A picture that cannot be used: it is counted and kept aside, and the job goes on.

    Args:
        reason: a slug from a small, fixed set, for counting: `truncated`, `too_large`, ...
        detail: one sentence for a person.
    """

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.reason, self.detail)


class Dropped(BadPicture):
    """A picture that a filter leaves out because its parameters say so: counted as what a selector drops. Where nothing
    can be dropped it is a picture that cannot be used.

    Args:
        reason: a slug, for counting: `no_subject`.
        detail: one sentence for a person.
    """


#: Why a picture is rejected after it was judged: a float picture may hold NaN, and no ranking is right then.
NOT_FINITE = "not_finite"
NOT_FINITE_WHY = "the classifier's answer is not-a-number; the picture may hold some"


class StepError(StriateError):
    """A step's own code failed on a picture that was fine: a defect, so the job stops."""


#: A longer line would be broken by the terminal, and the caret would point at nothing.
_LONGEST_LINE = 160


def _with_caret(text: str, offset: int, length: int) -> str:
    start = text.rfind("\n", 0, offset) + 1
    end = text.find("\n", offset)
    line = text[start:] if end < 0 else text[start:end]
    column = offset - start
    if len(line) > _LONGEST_LINE:
        first = max(0, column - _LONGEST_LINE // 2)
        line, column = line[first : first + _LONGEST_LINE], column - first
    # Characters that take more or less than one place would move the caret.
    line = "".join(char if char.isprintable() else " " for char in line)
    marks = "^" + "~" * (max(1, min(length, len(line) - column)) - 1)
    return f"  {line}\n  {' ' * column}{marks}"
