"""Configs: the options of a run, named sizes, and the split into static and traced values.

Importing this package does not import jax. configs/base.py is the config file with the default of
every option.
"""

from stability.config.checks import MAX_EXAMPLES
from stability.config.field import Field, safe_repr
from stability.config.fields import FIELDS
from stability.config.resolution import (
    Config,
    complete,
    convert,
    flatten,
    resolve,
    split,
    static_fields,
    unflatten,
    unknown_field,
)
from stability.config.sizes import SIZE_FIELDS, SIZES, for_scale, parameters, size

__all__ = [
    'FIELDS',
    'MAX_EXAMPLES',
    'SIZES',
    'SIZE_FIELDS',
    'Config',
    'Field',
    'complete',
    'convert',
    'flatten',
    'for_scale',
    'parameters',
    'resolve',
    'safe_repr',
    'size',
    'split',
    'static_fields',
    'unflatten',
    'unknown_field',
]
