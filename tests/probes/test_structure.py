"""Blocks of models, from the paths of their modules."""

import pytest

from stability.probes import structure
from stability.probes.structure import Logits, Output


def logit_names(*paths):
  """The numbers of the blocks of some modules of attention."""
  found = structure.row([Logits(tuple(p.split('/')), 1.0, 1.0, 1.0) for p in paths], [])
  return [name.partition('/')[0] for name in found if name.endswith('max')]


@pytest.mark.parametrize(
    ('paths', 'blocks'),
    [
        (['transformer/h/0/attn', 'transformer/h/1/attn'], [0, 1]),  # GPT-2
        (['encoder/layer/0/attention/self', 'encoder/layer/10/attention/self'], [0, 10]),  # BERT
        (['Encoder_0/Block_2/Attention_0', 'Encoder_0/Block_10/Attention_0'], [2, 10]),
        (['h/1/attn', 'h/3/attn'], [1, 3]),  # other layers have no attention
        (['h/0/self_attn', 'h/0/cross_attn', 'h/1/self_attn'], [0, 1]),
        (['encoder/0/attn', 'decoder/0/attn'], [0, 1]),
        (['attention'], [0]),
        (['h/3/attn'], [3]),
    ],
)
def test_blocks(paths, blocks):
  assert logit_names(*paths) == [f'block_{n}' for n in blocks]


def test_attention_in_the_model_itself():
  found = structure.row([Logits((), 2.0, 3.0, 4.0)], [Output((), 1.0, 1), Output(('mlp',), 4.0, 1)])
  assert found == {
      'block_0/attention_logit_max': 2.0,
      'block_0/attention_logit_mean': 0.75,
      'activation_rms/block_0/mlp': 2.0,
  }


@pytest.mark.parametrize(
    ('name', 'is_attention', 'measured'),
    [('0', False, 'block_0/output_rms'), ('0', True, 'activation_rms/block_0/0'),
     ('model', False, 'activation_rms/block_0/model')],
)
def test_output_of_a_module_with_attention_in_its_own_code(name, is_attention, measured):
  """Numbered parts are blocks, unless they are the attention alone, as in a list of it."""
  path = ('h', name)
  found = structure.row([Logits(path, 1.0, 1.0, 1.0)], [Output(path, 4.0, 1, is_attention)])
  assert [key for key in found if 'rms' in key] == [measured]


def test_calls_of_a_module_are_joined():
  """Maxima by their maximum, means and mean squares by what they are over."""
  path = ('h', '0')
  found = structure.row(
      [Logits((*path, 'attn'), 1.0, 10.0, 2.0), Logits((*path, 'attn'), 3.0, 2.0, 4.0)],
      [Output(path, 1.0, 1), Output(path, 5.0, 3)],
  )
  assert found == {
      'block_0/attention_logit_max': 3.0,
      'block_0/attention_logit_mean': 2.0,
      'block_0/output_rms': 2.0,
  }


@pytest.mark.parametrize(
    'name',
    [
        *('key/bias', 'params/Attention_0/key/bias', 'h/0/k_proj/bias', 'attn/to_k/bias'),
        'blocks/0/attn/key/bias/value',  # of Flax NNX
    ],
)
def test_bias_of_keys_has_no_gradient(name):
  gradients = dict.fromkeys([name, 'mlp/bias', 'sky/bias', 'key/kernel', 'unknown'], 1e-6)
  eps = dict.fromkeys([name, 'mlp/bias', 'sky/bias', 'key/kernel'], 1e-8)
  assert structure.over_eps(gradients, eps) == {
      f'gradient_over_eps/{other}': pytest.approx(100)
      for other in ('mlp/bias', 'sky/bias', 'key/kernel')
  }
