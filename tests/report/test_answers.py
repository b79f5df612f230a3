"""Answers in words and in tables, from answers made by hand."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from stability.analysis.prediction.answers import (
  Answer,
  Estimate,
  FailedTest,
  PredictedProbe,
  TrainNext,
)
from stability.analysis.prediction.helps import Help
from stability.analysis.prediction.targets import Target
from stability.analysis.results import Results
from stability.report import answers as answers_lib

RUNS = pd.DataFrame({
    'status': ['done', 'done', 'diverged'],
    'steps': [400, 400, 20],
    'tokens': [4e5, 2e6, 1e3],
})
RESULTS = Results(RUNS, ['model.qk_norm'], [])
CELLS = pd.DataFrame({
    'learning_rate': [1e-3, 10**-2.5],
    'probability': [0.02, 0.986],
    'read_at_step': 400.0,
    'attention_logit': [12.0, np.nan],
    'attention_logit_low': [6.0, np.nan],
    'attention_logit_high': [31.0, np.nan],
    **dict.fromkeys(('gradient_rms', 'gradient_rms_low', 'gradient_rms_high'), np.nan),
})
ANSWER = Answer(
    arm=('none',),
    target=Target(7e9),
    largest=2_359_296,
    best=Estimate(1.23e-3, 4e-4, 3e-3),
    safe=Estimate(2e-3, 1e-3, 4e-3),
    critical=Estimate(5e-3, 2e-3, 1e-2),
    insufficient=(),
    failed_test=None,
    train_next=None,
    attention_logit=PredictedProbe(Estimate(120.0, 30.0, 2e4), 1.23e-3, 1e4),
    gradient_rms=PredictedProbe(Estimate(1e-6, 5e-7, 2e-6), 1.23e-3, 1e-8),
    cells=CELLS,
)


def sentences(*answers, helps=()):
  return answers_lib.sentences(RESULTS, answers, helps)


def unusable(**change):
  train_next = TrainNext(589_824, (1e-3, 1e-1))
  return dataclasses.replace(ANSWER, **{'train_next': train_next} | change)


def test_usable_answer():
  assert sentences(ANSWER) == [
      '7B parameters with qk_norm=none: a learning rate of 1.2e-3, by extrapolation beyond the'
      ' tested range. Learning rates, with 90 % intervals: best 1.2e-3 (4e-4 to 3e-3);'
      ' at most 5 % risk of instability up to 2e-3 (1e-3 to 4e-3); critical 5e-3 (2e-3 to 1e-2).'
      ' At 1.2e-3, the highest attention logit is 120 (30 to 2e4), probably below 1e4, and the'
      ' gradient RMS at the end is 1e-6 (5e-7 to 2e-6), above eps (1e-8). This is 2,967 times the'
      ' largest trained size, 2.4M.',
      'All of this is for runs like the trained ones, of 400 steps and 400K to 2M tokens.',
      'More than 64 times the largest trained size is farther than the method was tested.',
  ]


def test_risk_is_not_rounded():
  text = sentences(dataclasses.replace(ANSWER, target=Target(7e9, 0.025)))[0]
  assert 'at most 2.5 % risk of instability' in text


def test_target_that_was_trained():
  text, _ = sentences(dataclasses.replace(ANSWER, target=Target(ANSWER.largest)))
  assert text.startswith('2.4M parameters') and text.endswith('This is the largest trained size.')


def test_safe_rate_is_recommended_where_the_best_is_not_safe():
  safe = Estimate(5e-4, 3e-4, 2e-3)
  text = sentences(dataclasses.replace(ANSWER, safe=safe, target=Target(3.7e7)))[0]
  assert 'train at a learning rate of 5e-4.' in text
  assert 'At 1.2e-3, the nearest trained learning rate, the highest attention logit' in text


@pytest.mark.parametrize(
    ('change', 'reason', 'kept'),
    [
        (
            {'best': Estimate(1e-3, 1e-5, 1e-2)},
            'The 90 % interval of the best learning rate spans 3.0 decades',
            ('at most 5 %', 'critical 5e-3'),
        ),
        (
            {'best': Estimate(1e-3, 1e-5, 1e-2), 'critical': Estimate(1e-2, 1e-4, 0.1)},
            'The 90 % intervals of the best and critical learning rate span 3.0 and 3.0 decades',
            ('at most 5 %',),
        ),
        (
            {'failed_test': FailedTest(2_359_296, 1e-3, 0, Estimate(1e-2, 5e-3, 2e-2))},
            'As a test, the critical learning rate of 2.4M was predicted from smaller sizes as'
            ' 1e-2 (5e-3 to 2e-2), but it is 1e-3',
            (),
        ),
        (
            {'failed_test': FailedTest(2_359_296, 1.0, 1, Estimate(1e-2, 5e-3, 2e-2))},
            'predicted from smaller sizes as 1e-2 (5e-3 to 2e-2), but it is above 1',
            (),
        ),
        (
            {'insufficient': ('3 sizes are needed, there are 2',)}
            | dict.fromkeys(('best', 'safe', 'critical')),
            '3 sizes are needed, there are 2',
            (),
        ),
    ],
)
def test_unusable_answer(change, reason, kept):
  answer = unusable(**change)
  text = sentences(answer)[0]
  assert text.startswith('7B parameters with qk_norm=none: no usable prediction. ')
  next_ = 'rain next: 590K parameters at learning rates from 1e-3 to 1e-1'
  assert f'{reason}. T{next_}. ' in text
  for words in ('best 1', 'at most 5 %', 'critical 5e-3', 'critical 1e-2 (1e-4'):
    assert (words in text) == (words in kept)
  assert ('attention logit' in text) == ('at most 5 %' in kept)
  (row,) = answers_lib.answers_csv(RESULTS, [answer]).to_dict('records')
  assert not row['usable'] and row['reason'].endswith(f'; t{next_}')
  assert reason[1:] in row['reason']


@pytest.mark.parametrize(
    ('train_next', 'text'),
    [
        (TrainNext(None, (3.0, 10.0)), 'Train next: every size at learning rates from 3 to 10.'),
        (TrainNext(None, None), 'Train next: every size with another seed.'),
    ],
)
def test_train_next(train_next, text):
  best = Estimate(1e-3, 1e-5, 1e-2)
  assert f' {text} ' in sentences(unusable(best=best, train_next=train_next))[0]


def test_help():
  other = dataclasses.replace(ANSWER, arm=('l2',), critical=Estimate(2e-2, 1e-2, 3e-2))
  measured = Help(('none',), ('l2',), 147_456.0, 6.31, at_least=False, of_headroom=False)
  near = [dataclasses.replace(answer, largest=1e9) for answer in (ANSWER, other)]
  assert sentences(*near, helps=[measured])[-2] == (
      'qk_norm=l2 helps: at 147K, its critical learning rate is 6.3 times that of qk_norm=none'
      ' (measured); at 7B, 4 times (predicted).'
  )
  bound = dataclasses.replace(measured, at_least=True, of_headroom=True)
  assert sentences(*near, helps=[bound])[-2] == (
      'qk_norm=l2 helps: at 147K, its headroom (critical over best learning rate) is more than 6.3'
      ' times that of qk_norm=none (measured).'
  )


def test_table_of_cells():
  text = answers_lib.table(RESULTS, [ANSWER])
  assert text.to_dict('list') == {
      'qk_norm': ['none', 'none'],
      'parameters': ['7B', '7B'],
      'learning rate': ['1e-3', '3.16e-3'],
      'unstable': ['2%', '99%'],
      'attention logit (90 % interval)': ['12 (6 to 31)', ''],
      'read at step': ['400', '400'],
  }
  nothing = CELLS.assign(probability=np.nan, attention_logit=np.nan)
  assert answers_lib.table(RESULTS, [dataclasses.replace(ANSWER, cells=nothing)]).empty
