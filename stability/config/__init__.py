"""What a config may say: options, named sizes, and the split into static and traced values.

Imports no jax. configs/base.py holds the defaults.
"""

from stability.config.resolution import (
    NEVER_SWEPT,
    RULES,
    Config,
    convert,
    flatten,
    resolve,
    shown,
    split,
    static_fields,
    unflatten,
    unknown_field,
)
from stability.config.sizes import SIZES, for_scale, parameters, size

__all__ = [
    'NEVER_SWEPT',
    'RULES',
    'SIZES',
    'Config',
    'convert',
    'flatten',
    'for_scale',
    'parameters',
    'resolve',
    'shown',
    'size',
    'split',
    'static_fields',
    'unflatten',
    'unknown_field',
]
