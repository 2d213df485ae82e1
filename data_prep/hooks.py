"""Functions of the user's own, named on the command line."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from bert_jax.errors import UserError


def function_named(name: str) -> Callable[..., Any]:
    """Imports "module:function".

    Raises:
        UserError: this names no function, or the module cannot be imported.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise UserError("this names no function", name, "write module:function")
    try:
        found = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        raise UserError(f"there is no module {error.name}", name, "put its directory on PYTHONPATH") from None
    except AttributeError:
        raise UserError(f"the module has no function {function}", name, "write module:function") from None
    except Exception as error:
        raise UserError(f"the module cannot be imported ({brief(error)})", name, "mend it") from error
    if not callable(found):
        raise UserError(f"{function} is no function", name, "write module:function")
    return found


def brief(error: Exception) -> str:
    """An error of somebody's function in a few words: it may quote the whole document."""
    told = f"{type(error).__name__}: {error}".split("\n")[0]
    return told if len(told) <= 100 else told[:99] + "…"
