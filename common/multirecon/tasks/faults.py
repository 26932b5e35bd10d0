"""What a JSON schema found wrong, as one line of the project's form."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

from jsonschema.exceptions import ValidationError

__all__ = ["explain_fault"]

_LONGEST = 80
_RULES: dict[str, Callable[[Any], str]] = {
    "type": lambda rule: f"a value of type {rule}",
    "enum": lambda rule: f"one of {rule}",
    "const": lambda rule: repr(rule),
    "pattern": lambda rule: f"text that matches {rule}",
    "minLength": lambda rule: f"text of at least {rule} characters",
    "minItems": lambda rule: f"a list of at least {rule} items",
    "maxItems": lambda rule: f"a list of at most {rule} items",
    "minProperties": lambda rule: f"at least {rule} keys",
    "uniqueItems": lambda rule: "different items",
    "minimum": lambda rule: f"a number >= {rule}",
    "maximum": lambda rule: f"a number <= {rule}",
    "exclusiveMinimum": lambda rule: f"a number > {rule}",
    "required": lambda rule: f"the keys {rule}",
}


def explain_fault(fault: ValidationError, *, whole: str) -> str:
    """Return ``key: expected ..., got ...``.

    Args:
        fault: what the validator found first.
        whole: name of the whole document, for faults that belong to no key of it.
    """
    key = ".".join(map(str, fault.absolute_path)) or whole
    rule, value, schema, instance = (
        str(fault.validator),
        fault.validator_value,
        cast(Any, fault.schema),
        cast(Any, fault.instance),
    )
    if rule == "additionalProperties" and value is False:
        known = sorted(schema.get("properties", {}))
        expected = f"some of the keys {known}"
        got: Any = sorted(set(instance) - set(known))
    elif rule in _RULES:
        expected = _RULES[rule](value)
        got = sorted(instance) if rule in ("required", "minProperties") else instance
    else:
        return f"{key}: {' '.join(fault.message.split())}"
    text = json.dumps(got, default=str)
    return f"{key}: expected {expected}, got {text if len(text) <= _LONGEST else text[:_LONGEST] + ' ...'}"
