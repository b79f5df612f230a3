"""The slots of a layout and the phase of their runs."""

from pathlib import Path

from helpers.stub_layout import StubLayout

from stability.control.run_control import NoControl
from stability.storage.metrics import NoWriter
from stability.trainer.run import Run
from stability.trainer.slots import Slots


def run(step):
  return Run(Path('run'), {}, NoWriter(), NoControl(), clock=lambda: 0.0, step=step)


def test_phase():
  slots = Slots(StubLayout(2), phase_steps=8)
  assert slots.is_in_phase(run(3))
  slots.add(run(8), {})
  assert [slots.is_in_phase(run(step)) for step in (0, 4, 8, 12, 16)] == [
      *(True, False, True, False, True)
  ]


def test_phase_without_probes():
  slots = Slots(StubLayout(2), phase_steps=0)
  slots.add(run(8), {})
  assert slots.is_in_phase(run(3))


def test_free_slots():
  slots = Slots(StubLayout(2), phase_steps=0)
  for name in ('first', 'second'):
    assert not slots.is_full
    slots.add(run(0), {'params': {'name': name}})
  assert slots.is_full
  del slots.runs[0]
  slots.add(run(0), {'params': {'name': 'third'}})
  assert [state['params']['name'] for state in slots.states()] == ['third', 'second']
