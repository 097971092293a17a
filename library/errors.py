"""The errors that Striate raises, with the command line's exit code for each."""


class StriateError(Exception):
    """An error that the user can act on: the message says what is wrong, where, and what would work."""

    exit_code = 1


class UsageError(StriateError):
    """The request itself is wrong (a mistyped step, a destination in use); nothing has been done."""

    exit_code = 2


class StorageError(StriateError):
    """A file or store failed for a reason that may pass, as a server that restarts; not a missing file or a refusal."""


class GrammarError(UsageError):
    """A mistake in a pipeline's text; the message shows its place with a caret.

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
    """A picture that cannot be used; it is counted and stored as a reject, and the job continues.

    Args:
        reason: a slug from a small, fixed set, used for counting: `truncated`, `too_large`, ...
        detail: one sentence for a person.
    """

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.reason, self.detail)


class Dropped(BadPicture):
    """A picture that a filter drops because of its parameters; it is counted like one that a selector drops.

    Where nothing can be dropped, it is handled as a BadPicture.

    Args:
        reason: a slug for counting: `no_subject`.
        detail: one sentence for a person.
    """


#: The reason to reject a picture after prediction: a float picture may contain NaN, which makes every ranking wrong.
NOT_FINITE = "not_finite"
NOT_FINITE_WHY = "the classifier's answer is not a number (NaN); the picture may contain NaN"


class StepError(StriateError):
    """A step's own code failed on a usable picture: a bug, so the job stops."""


#: Terminals wrap longer lines, which would misplace the caret.
_MAX_LINE_CHARS = 160


def _with_caret(text: str, offset: int, length: int) -> str:
    start = text.rfind("\n", 0, offset) + 1
    end = text.find("\n", offset)
    line = text[start:] if end < 0 else text[start:end]
    column = offset - start
    if len(line) > _MAX_LINE_CHARS:
        first = max(0, column - _MAX_LINE_CHARS // 2)
        line, column = line[first : first + _MAX_LINE_CHARS], column - first
    # Characters that are not one column wide would misplace the caret.
    line = "".join(char if char.isprintable() else " " for char in line)
    marks = "^" + "~" * (max(1, min(length, len(line) - column)) - 1)
    return f"  {line}\n  {' ' * column}{marks}"
