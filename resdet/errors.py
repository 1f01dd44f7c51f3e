"""The error for users' mistakes: its message names the file or key, the value and the fix; commands exit with 2."""


class UserError(ValueError):
    """A mistake in a config, a file, a dataset or an argument. Shown without a traceback."""


def first_line(error: BaseException, limit: int = 200) -> str:
    """The first line of an error's text, at most `limit` characters of it; its class where it has no text."""
    return (str(error).splitlines() or [""])[0][:limit] or type(error).__name__


def listed(title: str, problems: list[str], limit: int = 20) -> UserError:
    """One error for all `problems`; the first `limit` are listed, the rest counted."""
    lines = [f"  - {problem}" for problem in problems[:limit]]
    if len(problems) > limit:
        lines.append(f"  … and {len(problems) - limit} more")
    return UserError("\n".join([title, *lines]))
