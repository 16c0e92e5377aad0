"""The config that MMEngine's Runner keeps in a checkpoint, read as plain values: nothing in it is run."""

import ast
import re
from collections.abc import Mapping
from pathlib import Path

from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

from mmsgformer.checkpoint.files import CheckpointError

_FRAMEWORKS = '(mmcv|mmdet|mmengine|mmpretrain|mmseg|mmsgformer)'
# MMEngine imports a type that it does not know by its dotted name, whatever that is.
_TYPE = re.compile(rf'({_FRAMEWORKS}\.)?[A-Z]\w*|[\w/]+')


def stored_config(checkpoint: Mapping, path: str | Path) -> Config:
    """The config in a checkpoint's meta.

    Args:
        checkpoint: A file's content.
        path: The file, for messages.

    Raises:
        CheckpointError: There is none, or it is more than assignments of plain values and `dict(...)`, or a
            `type` in it is not one of the frameworks'.
    """
    text = (checkpoint.get('meta') or {}).get('cfg')
    if not isinstance(text, str):
        raise CheckpointError(f'{path} has no config in it, as those of a Runner have; give the config file')
    try:
        cfg = {}
        for statement in ast.parse(text).body:
            if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
                raise ValueError(ast.unparse(statement))
            cfg[statement.targets[0].id] = _value(statement.value)
        _check_types(cfg)
    except (SyntaxError, ValueError) as error:
        reason = str(error).partition('\n')[0][:80]
        raise CheckpointError(
            f'the config in {path} is not used, it is not of plain values: {reason}; give the config file'
        ) from error
    imports = (cfg.pop('custom_imports', None) or {}).get('imports', [])
    # Others' modules are for the user's own config to import.
    import_modules_from_strings([name for name in imports if re.fullmatch(rf'{_FRAMEWORKS}[.\w]*', name)])
    return Config(cfg)


def _value(node: ast.expr) -> object:
    """What an expression of plain values is, `dict(...)` among them."""
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.func.id != 'dict' or len(node.args) > 1:
            raise ValueError(ast.unparse(node))
        mappings = [_value(argument) for argument in node.args]
        for keyword in node.keywords:
            mappings.append({keyword.arg: _value(keyword.value)} if keyword.arg else _value(keyword.value))
        return {key: value for mapping in mappings for key, value in mapping.items()}
    if isinstance(node, ast.Dict):
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values, strict=True)}
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        kind = {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(node)]
        return kind(_value(element) for element in node.elts)
    return ast.literal_eval(node)


def _check_types(node: object) -> None:
    """Raise a ValueError for a `type` that is neither a registered name nor one of the frameworks'."""
    if isinstance(node, dict):
        kind = node.get('type')
        if isinstance(kind, str) and not _TYPE.fullmatch(kind):
            raise ValueError(f'type {kind!r}')
        for value in node.values():
            _check_types(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            _check_types(value)
