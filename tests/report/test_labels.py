"""How numbers, sizes and interventions are written."""

import pandas as pd
import pytest

from stability import config
from stability.errors import BadInput
from stability.report import labels


@pytest.mark.parametrize('name', config.SIZES)
def test_named_sizes(name):
  size = config.SIZES[name]
  assert labels.parameters(12 * size['model.depth'] * size['model.width'] ** 2) == name


@pytest.mark.parametrize(
    ('count', 'text'),
    [
        (0, '0'),
        (768, '768'),
        (999.6, '1K'),
        (9_949, '9.9K'),
        (9_950, '10K'),
        (999_600, '1M'),
        (1_000_000, '1M'),
        (7e12, '7T'),
        (2e15, '2.0e+15'),
        (pd.NA, '?'),
    ],
)
def test_parameters(count, text):
  assert labels.parameters(count) == text


@pytest.mark.parametrize(
    ('value', 'text'),
    [
        (3e-4, '3e-4'),
        (0.1, '1e-1'),
        (0.12345678, '1.2345678e-1'),
        (1e-15, '1e-15'),
        (1.0, '1'),
        (12.5, '12.5'),
        (999.9999999, '999.9999999'),
        (1e3, '1e3'),
        (0.0, '0'),
        (float('nan'), 'nan'),
    ],
)
def test_number(value, text):
  assert labels.number(value) == text


def test_decimals_without_values():
  assert [labels.decimals(value) for value in (2.28551, float('nan'), None)] == ['2.286', '', '']


@pytest.mark.parametrize(
    ('text', 'lines'),
    [
        ('qk_norm=none, eps=1e-8', ['qk_norm=none,', 'eps=1e-8']),
        ('exponents=full_alignment', ['exponents=', 'full_alignment']),
        ('name=ntk, exponents=none', ['name=ntk,', 'exponents=none']),
        ('a=b, exponents=of_full_alignments', ['a=b, exponents=', 'of_full_', 'alignments']),
        ('x' * 20, ['x' * 17, 'xxx']),
    ],
)
def test_line_breaks_in_long_names(text, lines):
  assert labels.wrapped(text, 17) == '\n'.join(lines)


def test_name_fields_are_labelled_by_their_section():
  names = ['optimizer.name', 'parameterization.name', 'parameterization.exponents']
  assert list(labels.fields(names).values()) == ['optimizer', 'parameterization', 'exponents']
  assert list(labels.fields(['a.name', 'b.a']).values()) == ['a.name', 'b.a']


def test_value():
  assert [labels.value(entry) for entry in (1e-4, 5, 'none', True, None)] == [
      '1e-4', '5', 'none', 'True', 'unset'
  ]  # fmt: skip


def test_fields_are_shortened_where_unambiguous():
  names = ['model.qk_norm', 'a.eps', 'b.eps', 'data.seed', 'method']
  assert list(labels.fields(names).values()) == ['qk_norm', 'a.eps', 'b.eps', 'data.seed', 'method']


def test_pairs():
  names = ['model.qk_norm', 'optimizer.eps']
  assert labels.pairs(names, ['none', 1e-8]) == 'qk_norm=none, eps=1e-8'
  assert labels.pairs([], []) == ''
  assert labels.pairs(['arm', 'optimizer.eps'], ['muon', 1e-8]) == 'muon, eps=1e-8'


def test_shape_is_named_only_for_equal_parameters():
  rows = pd.DataFrame(
      [(9216, 16, 3), (18_874_368, 512, 6), (18_874_368, 256, 24)],
      columns=['parameters', 'model.width', 'model.depth'],
  )
  assert list(labels.sizes(rows, ['model.width', 'model.depth'])) == [
      '9.2K',
      '19M, width 512, depth 6',
      '19M, width 256, depth 24',
  ]


def test_labels_of_sizes_are_distinct():
  rows = pd.DataFrame({'parameters': pd.array([9216, 9248, 9216, 70_000, pd.NA], 'Int64')})
  assert list(labels.sizes(rows, [])) == ['9,216', '9,248', '9,216', '70K', '?']


GIVEN = {
    'model.qk_norm': 'QK norm',
    'eps': 'epsilon',
    'none': 'off',
    'qk_norm=l2': 'unit queries',
    'qk_norm=layernorm, eps=1e-8': 'The baseline',
}


def test_labels_of_a_person():
  """Of fields, values, fields with their value, and arms; the rest stays as it is."""
  names = ['model.qk_norm', 'optimizer.eps']
  with labels.replaced(GIVEN):
    assert list(labels.fields(names).values()) == ['QK norm', 'epsilon']
    assert labels.pairs(names, ['none', 1e-6]) == 'QK norm=off, epsilon=1e-6'
    assert labels.pairs(names, ['l2', 1e-6]) == 'unit queries, epsilon=1e-6'
    assert labels.pairs(names, ['layernorm', 1e-8]) == 'The baseline'
    cells = [labels.cell('model.qk_norm', entry) for entry in ('l2', 'none', 'layernorm')]
    assert cells == ['unit queries', 'off', 'layernorm']
    assert labels.text('parameters') == 'parameters'
    assert labels.text('of two\nlines') == 'of two\nlines'
    assert list(labels.short_names(names).values()) == ['qk_norm', 'eps']
  assert labels.pairs(names, ['none', 1e-8]) == 'qk_norm=none, eps=1e-8'


@pytest.mark.parametrize('given', [{'a': 'b'}, {'a': 'seeds'}, {'x': 'y', 'a': 'z', 'b': 'z'}])
def test_equal_labels_of_columns(given):
  with labels.replaced(given), pytest.raises(BadInput, match='stands for several columns'):
    labels.fields(['a', 'b'])


def test_rounded():
  """A best learning rate of a geometric grid has no use for 15 digits."""
  found = [labels.rounded(value) for value in (2.15443469003188e-3, 0.01, float('nan'))]
  assert found == ['2.15e-3', '1e-2', '']
