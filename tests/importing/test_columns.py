import pytest

from stability.errors import BadInput
from stability.importing import columns


@pytest.mark.parametrize(
    ('column', 'name'),
    [
        ('train/loss', 'loss'),
        ('train_loss', 'loss'),
        ('grad_norm', 'gradient_norm'),
        ('optim/total_grad_norm', 'gradient_norm'),
        ('max_attn_logit', 'block_0/attention_logit_max'),
        ('attn_logits_max', 'block_0/attention_logit_max'),
        ('debug/layers.3.attention_logit_max', 'block_3/attention_logit_max'),
        ('layer_11/max_attention_logits', 'block_11/attention_logit_max'),
        ('block_2/attention_logit_max', 'block_2/attention_logit_max'),
        ('blocks/1/attn_entropy', 'block_1/attention_entropy'),
        ('logZ', 'log_z'),
        ('log_z', 'log_z'),
        ('trainer/global_step', 'step'),
        ('z_loss', 'z_loss'),
        ('max_logit', 'max_logit'),  # of attention or of the output
        ('val/loss', 'val/loss'),
    ],
)
def test_names_of_metrics(column, name):
  assert columns.curve_name(column) == name


def test_learning_rate_of_a_run_is_no_measurement():
  # The last value of the schedule is not the peak.
  assert columns.candidates('learning_rate', ['summary.lr', 'metrics.lr']) == []
  assert columns.candidates('learning_rate', ['summary.lr', 'config.lr']) == ['config.lr']
  assert columns.candidates('final_loss', ['config.loss', 'summary.val/loss', 'metrics.loss']) == [
      'summary.val/loss',
      'metrics.loss',
  ]


@pytest.mark.parametrize(
    ('column', 'is_unclear'),
    [('val_bpb', True), ('eval/bits_per_byte', True), ('ppl', True), ('val_loss', False)],
)
def test_bits(column, is_unclear):
  assert columns.mentions_bits(column) == is_unclear


def test_map():
  assert columns.parse_map(['a=b=c']) == {'a': 'b=c'}
  assert columns.parse_map(['a=']) == {'a': ''}
  for wrong in (['a'], ['=b'], ['a=b', 'a=c']):
    with pytest.raises(BadInput, match='--map='):
      columns.parse_map(wrong)
  with pytest.raises(BadInput, match='nearest first, are peak_lr, loss'):
    columns.check_map({'learning_rate': 'peak_l'}, ['loss', 'peak_lr'])


@pytest.mark.parametrize('column', ['learning_rate', 'config.lr'])
def test_map_takes_no_column_away(column):
  """Such as one in the order of pandas: column -> name."""
  with pytest.raises(BadInput, match=f'--map=rate={column}: .* did you mean learning_rate[?]$'):
    columns.check_map({'rate': column}, [column, 'loss'])
  columns.check_map({'rate': column, 'learning_rate': 'peak'}, [column, 'peak'])
  columns.check_map({'rate': 'other'}, [column, 'other'])


def test_parameters_may_be_counted():
  """Many trainers count them once the model is there; a learning rate is a setting."""
  found = ['config.lr', 'summary.num_params', 'summary.lr', 'metrics.parameters']
  assert columns.candidates('parameters', found) == ['metrics.parameters', 'summary.num_params']
  assert columns.candidates('learning_rate', found) == ['config.lr']
