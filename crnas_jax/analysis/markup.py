"""HTML and SVG as trees of elements; all text and all attributes are escaped here."""

import re

from markupsafe import Markup, escape

# Characters that a page must not have, line breaks and tabs apart.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_LONGEST = 80


def element(tag: str, *children, **attributes) -> Markup:
    """Return an element.

    Args:
      tag: name of the element.
      *children: `Markup`, or anything else as text; None is left out.
      **attributes: values by name, with `_` for `-` and `class_` for `class`; None and False leave
        an attribute out, True gives it without a value.
    """
    parts = [f"<{tag}"]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        parts.append(f" {name}" if value is True else f' {name}="{text(value)}"')
    content = join(children)
    return Markup("".join([*parts, ">", content, f"</{tag}>"]))


def join(children) -> Markup:
    """Return elements and texts one after the other."""
    return Markup("").join(text(child) for child in children if child is not None)


def text(value) -> Markup:
    """Return a value as escaped text, `Markup` as it is."""
    if isinstance(value, Markup):
        return value
    return escape(_CONTROL.sub("\ufffd", f"{value}"))


def name(value, longest: int = _LONGEST) -> Markup:
    """Return a name from data or config, which may read in either direction, shortened."""
    return element("bdi", shorten(value, longest))


def shorten(value, longest: int = _LONGEST) -> str:
    """Return a value as text of at most some characters."""
    value = f"{value}"
    return value if len(value) <= longest else f"{value[: longest - 1]}\u2026"
