"""Actions: their JSON and which are allowed on a run."""

import pytest

from configs import base
from stability import config as config_lib
from stability.config import MAX_EXAMPLES
from stability.control import actions, requests
from stability.control.actions import Action
from stability.errors import BadInput

RATE = 'optimizer.learning_rate'
CONFIG = config_lib.unflatten(config_lib.resolve(config_lib.flatten(base.get_config().to_dict())))
STEP = 100

REFUSED = {
    'unknown kind': ({'action': 'exec'}, 'must be one of pause'),
    'no kind': ({}, 'action None'),
    'kind is a list': ({'action': ['set']}, 'must be one of pause'),
    'name of a fork': ({'action': 'fork', 'name': '../x'}, "fork: takes no 'name'"),
    'unknown argument': ({'action': 'stop', 'to': 3}, "stop: takes no 'to'"),
    'bool as a number': ({'action': 'skip', 'steps': True}, 'steps True: must be a whole number'),
    'float': ({'action': 'skip', 'steps': 1.0}, 'steps 1.0: must be a whole number'),
    'negative': ({'action': 'skip', 'steps': -1}, 'steps -1: must be a whole number'),
    'not 32 bits': ({'action': 'rewind', 'to': 0, 'skip': 2**31}, 'skip 2147483648: must be'),
    'missing': ({'action': 'skip'}, 'steps None: must be a whole number'),
    'rewind ahead': ({'action': 'rewind', 'to': STEP + 1}, 'must not be above the current step'),
    'all data': ({'action': 'skip', 'steps': MAX_EXAMPLES // 16}, 'no data would be left'),
    'no changes': ({'action': 'set', 'changes': {}}, 'names no field'),
    'changes is a list': ({'action': 'fork', 'changes': [1]}, 'must be fields with their values'),
    'seed': ({'action': 'set', 'changes': {'seed': 1}}, 'config.seed: cannot be set'),
    'steps': ({'action': 'set', 'changes': {'schedule.steps': 9}}, 'cannot be set'),
    'turned on': ({'action': 'set', 'changes': {'objective.mu_loss': 0.1}}, 'without this term'),
    'infinite': ({'action': 'set', 'changes': {RATE: float('inf')}}, RATE),
    'huge': ({'action': 'set', 'changes': {RATE: 10**400}}, RATE),
    'null': ({'action': 'set', 'changes': {RATE: None}}, f'{RATE}=None: must be a number'),
    'text': ({'action': 'set', 'changes': {RATE: '1'}}, f"{RATE}='1': must be a number"),
}


def check(asked, skipped=0):
  return actions.check(requests.parse_request(asked), CONFIG, STEP, skipped)


@pytest.mark.parametrize('case', REFUSED)
def test_refused(case):
  asked, message = REFUSED[case]
  with pytest.raises(BadInput) as error:
    check(asked)
  assert message in str(error.value)


def test_term_cannot_be_turned_off():
  capped = actions.with_changes(CONFIG, {'model.attention_soft_cap': 30.0})
  action = Action('set', changes={'model.attention_soft_cap': 0.0})
  with pytest.raises(BadInput, match='built with this term'):
    actions.check(action, capped, STEP, 0)


def test_allowed():
  assert check({'action': 'rewind', 'to': STEP, 'by': 'ann'}) == Action('rewind', to=STEP)
  assert check({'action': 'skip', 'steps': 0}) == Action('skip', steps=0)
  assert check({'action': 'fork'}) == Action('fork')


def test_changes_get_the_types_of_their_fields():
  changes = check({'action': 'set', 'changes': {RATE: 1}}).changes
  assert changes == {RATE: 1.0} and isinstance(changes[RATE], float)


def test_skipped_data_adds_up():
  asked = {'action': 'rewind', 'to': 0, 'skip': MAX_EXAMPLES // 32}
  assert check(asked).skip == MAX_EXAMPLES // 32
  with pytest.raises(BadInput, match='no data would be left'):
    check(asked, skipped=MAX_EXAMPLES // 32)


JSON = [
    {'action': 'pause'},
    {'action': 'skip', 'steps': 0},
    {'action': 'set', 'changes': {RATE: 1e-3}},
    {'action': 'rewind', 'to': 0, 'changes': {}},
    {'action': 'rewind', 'to': 20, 'skip': 3, 'changes': {RATE: 1e-3}},
    {'action': 'fork', 'changes': {}, 'name': 'run+fork1'},
]


@pytest.mark.parametrize('found', JSON, ids=lambda found: found['action'])
def test_json(found):
  assert Action.from_json(found | {'why': 'other keys are ignored'}).to_json() == found


REWIND = f'rewind 20 skip=3 {RATE}'


@pytest.mark.parametrize(
    ('action', 'words'),
    [
        (Action('stop'), 'stop'),
        (Action('skip', steps=5), 'skip 5'),
        (Action('rewind', to=0), 'rewind 0'),
        (Action('rewind', to=20, skip=3, changes={RATE: 1 / 3}), f'{REWIND}={1 / 3:.6g}'),
        (Action('fork', changes={RATE: 1e-3}, name='x'), f'fork {RATE}=0.001'),
    ],
)
def test_words(action, words):
  assert str(action) == words
