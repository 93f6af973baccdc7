"""What is wrong with text that is not YAML, in words for somebody who did not write a YAML parser."""

from __future__ import annotations

import yaml

_NEEDS_QUOTES = "@`%|>*&!"
_LOOK = "Look at the indentation, colons, brackets and quotes of this line and the one before."


def explain(error: yaml.MarkedYAMLError, text: str) -> tuple[int, str, str]:
    """(line from 1, what is wrong, what to do) for an error of PyYAML's parser on `text`."""
    mark = error.problem_mark or error.context_mark
    assert mark is not None, "PyYAML marks every error of its parser"
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    content = lines[min(mark.line, len(lines) - 1)]
    opened = error.context_mark.line + 1 if error.context_mark else mark.line + 1
    if found := _explain_unclosed(error, opened):
        return opened, *found
    what, fix = _explain_sign(content, mark.column, error.context or "") or _explain_problem(error, opened)
    return mark.line + 1, what, fix


def _explain_unclosed(error: yaml.MarkedYAMLError, opened: int) -> tuple[str, str] | None:
    context, problem = error.context or "", error.problem or ""
    if "quoted scalar" in context and "end of stream" in problem:
        return "a quote that opens here and never closes.", "Close it on the same line."
    if "flow" in context and "stream end" in problem:
        return "a bracket that opens here and never closes.", "Close it with ] or }."
    return None


def _explain_sign(content: str, column: int, context: str) -> tuple[str, str] | None:
    if "\t" in content[: len(content) - len(content.lstrip())]:
        return "a tab in the indentation; YAML takes only spaces there.", "Replace the tab by spaces."
    sign = content[column : column + 1]
    if sign and sign in "]}" and "flow" not in context:
        return f"a `{sign}` that closes nothing.", "Delete it, or quote the text it belongs to."
    if sign and sign in _NEEDS_QUOTES:
        return f"a value cannot begin with `{sign}` in YAML.", f"Quote it: '{sign}...'."
    return None


def _explain_problem(error: yaml.MarkedYAMLError, opened: int) -> tuple[str, str]:
    context, problem = error.context or "", error.problem or ""
    if "escape" in problem:
        fix = "Put the text in single quotes, where a backslash is only a backslash."
        return "a backslash in double quotes that begins no escape YAML knows.", fix
    if "mapping values are not allowed" in problem:
        fix = "Line the key up with its neighbours, or quote text that holds a colon and a space."
        return "a colon where no key can stand.", fix
    if "flow" in context:
        fix = "Put a comma between entries, and close every [ and { in turn."
        return f"the bracket that opens on line {opened} goes wrong here.", fix
    return "this is not YAML.", _LOOK
