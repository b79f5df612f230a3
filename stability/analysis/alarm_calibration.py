"""Limits of the alarm rules and the odds of their alarms, chosen on the runs of a sweep."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from stability.analysis import alarm_scores
from stability.control.alarms import Alarm
from stability.control.limits import Limits
from stability.control.rules import RULES, History, Rule
from stability.errors import BadInput
from stability.storage import run_files, sweeps

FALSE_ALARMS = 0.05  # the share of stable runs in which rules may fire together
MIN_STABLE, MIN_UNSTABLE = 20, 5  # of fewer runs, no such share can be known
MAX_FACTOR = 1.5  # a limit is at most this many times the largest value of a stable run

Course = Mapping[str, Sequence[tuple[int, float]]]  # rule -> (step, value), values ascending


def calibrate(workdir: Path) -> Limits:
  """Limits for the regime of a sweep, with what they were made from.

  Raises:
    BadInput: the sweep has too few stable or unstable runs with logged rows.
  """
  outcomes = alarm_scores.outcomes(workdir)
  # A run without rows raises no alarm, whatever the limits.
  outcomes = outcomes[[run_files.has_metrics(workdir, name) for name in outcomes.index]]
  unstable = int(outcomes['unstable'].sum())
  stable = len(outcomes) - unstable
  if stable < MIN_STABLE or unstable < MIN_UNSTABLE:
    raise BadInput(
        f'--calibrate: {workdir} has {stable} stable and {unstable} unstable runs with logged rows;'
        f' limits need at least {MIN_STABLE} and {MIN_UNSTABLE}'
    )
  courses = {name: course(workdir, name, RULES) for name in outcomes.index}
  limited = choose(courses, outcomes['unstable'].to_dict(), RULES)
  chosen = with_odds(courses, outcomes, limited)
  alarms = {name: list(alarms_of(courses[name], chosen)) for name in courses}
  score = alarm_scores.score(alarm_scores.join(outcomes, alarms, chosen)).iloc[-1]
  digests = run_digests(workdir)
  return Limits(
      {rule.name: {'limit': rule.limit, 'odds': rule.odds} for rule in chosen},
      {
          'workdir': str(workdir.resolve()),
          'config_file': sweeps.read_sweep(workdir).config_file,
          'runs': len(outcomes),
          'unstable': unstable,
          'steps': sorted({int(n) for n in outcomes['steps'].dropna()}),
          'recall': score['recall'],
          'false_alarm_rate': score['false_alarm_rate'],
          'lead': score['lead'],
          'digests': sorted(digests[name] for name in outcomes.index),
      },
  )


def run_digests(workdir: Path) -> dict[str, str]:
  """Name of a run -> a digest that is the same in every workdir that holds the run.

  It is a hash of the config and of the text's SHA-256. The config of an imported run is incomplete,
  so its losses are included.
  """
  sweep = sweeps.read_sweep(workdir)
  digests = {}
  for name, config in sweep.runs.items():
    known = [config, sweep.data.get('sha256')]
    if sweep.is_imported:
      result = run_files.read_result(run_files.run_dir(workdir, name))
      known.append(result and [result.initial_loss, result.final_loss])
    digests[name] = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]
  return digests


def check_not_made_on(limits: Limits, workdir: Path, flag: str) -> None:
  """Raises BadInput if limits were chosen on any run of a sweep, which they cannot score."""
  own = set(run_digests(workdir).values()) & set(limits.made_from.get('digests', ()))
  if own:
    raise BadInput(
        f'{flag}: was made from {len(own)} runs of {workdir}; limits are not scored on the runs on'
        ' which they were chosen'
    )


def course(workdir: Path, name: str, rules: Sequence[Rule]) -> Course:
  """The values of each rule in a run that are above all earlier ones."""
  history = History()
  highest: dict[str, list[tuple[int, float]]] = {rule.name: [] for rule in rules}
  for row in run_files.read_metrics(run_files.run_dir(workdir, name)):
    history.add(row)
    for rule in rules:
      found, value = highest[rule.name], rule.measure(history)
      if value > (found[-1][1] if found else -math.inf):
        found.append((row['step'], value))
  return highest


def alarms_of(course: Course, rules: Sequence[Rule]) -> Iterator[Alarm]:
  """The first alarm of each rule in a run."""
  for rule in rules:
    for step, value in course[rule.name]:
      if value > rule.limit:
        yield Alarm.raised(rule, step, value)
        break


def choose(
    courses: Mapping[str, Course], unstable: Mapping[str, bool], rules: Sequence[Rule]
) -> tuple[Rule, ...]:
  """The rules with limits for these runs.

  A limit is halfway, on a logarithmic scale, between the largest value in any stable run and the
  next larger one in an unstable run. Up to FALSE_ALARMS of the stable runs are left aside, those
  whose absence gives the highest recall. Limits of 0 stay, and none is below its rule's lowest.

  Args:
    courses: run -> its course.
    unstable: run -> whether it is unstable.
    rules: the rules; of each, the limit is kept if no stable run has a value above 0.
  """
  stable = [name for name in courses if not unstable[name]]
  aside: set[str] = set()
  chosen, caught = _limited(courses, unstable, rules, aside)
  while len(aside) + 1 <= FALSE_ALARMS * len(stable):
    tried = {
        name: _limited(courses, unstable, rules, aside | {name})
        for name in stable
        if name not in aside
    }
    best = max(tried, key=lambda name: tried[name][1])
    if tried[best][1] <= caught:
      break
    aside.add(best)
    chosen, caught = tried[best]
  return tuple(chosen)


def _limited(
    courses: Mapping[str, Course],
    unstable: Mapping[str, bool],
    rules: Sequence[Rule],
    aside: set[str],
) -> tuple[list[Rule], int]:
  """The rules with limits, and the number of unstable runs in which any fires."""
  chosen = []
  for rule in rules:
    largest = {
        name: course[rule.name][-1][1] for name, course in courses.items() if course[rule.name]
    }
    of_stable = [v for name, v in largest.items() if not unstable[name] and name not in aside]
    top = max(of_stable, default=0)
    limit = rule.limit
    if limit > 0 and top > 0:
      above = [v for name, v in largest.items() if unstable[name] and v > top]
      limit = min(math.sqrt(top) * math.sqrt(min(above, default=math.inf)), MAX_FACTOR * top)
      limit = max(limit, rule.lowest)
    chosen.append(dataclasses.replace(rule, limit=_rounded(limit, top)))
  caught = sum(
      next(alarms_of(course, chosen), None) is not None
      for name, course in courses.items()
      if unstable[name]
  )
  return chosen, caught


def _rounded(limit: float, top: float) -> float:
  """A limit with three digits, rounded up where stable runs, of up to `top`, would raise alarms."""
  rounded = float(f'{limit:.3g}')
  if rounded >= top or limit < top:
    return rounded
  half = 0.5 * 10.0 ** (math.floor(math.log10(limit)) - 2)
  return float(f'{limit + half:.3g}')


def with_odds(
    courses: Mapping[str, Course], outcomes: pd.DataFrame, rules: Sequence[Rule]
) -> tuple[Rule, ...]:
  """The rules with odds such that the mean probability of alarms is (u + 1) / (n + 2).

  n is the number of runs in which a rule fires, and u how many of them are unstable; this is the
  posterior mean of the share of unstable runs under a uniform prior (rule of succession). As in
  alarm_scores.reliability, an alarm after the onset does not count. A rule without alarms that
  count keeps its odds.

  Args:
    courses: run -> its course.
    outcomes: see alarm_scores.outcomes.
    rules: the rules with their limits.
  """
  found = []
  for rule in rules:
    fired = [
        (run.unstable, alarm.value)
        for run in outcomes.itertuples()
        for alarm in alarms_of(courses[run.Index], [rule])
        if not (run.unstable and alarm.step > run.onset)
    ]
    wanted = (sum(is_unstable for is_unstable, _ in fired) + 1) / (len(fired) + 2)
    found.append(_with_mean(rule, [value for _, value in fired], wanted) if fired else rule)
  return tuple(found)


def _with_mean(rule: Rule, values: Sequence[float], wanted: float) -> Rule:
  """The rule with odds that give alarms of these values the wanted mean probability."""
  low, high = 1e-9, 1e9
  for _ in range(100):  # bisection on a logarithmic scale
    middle = math.sqrt(low * high)
    rule = dataclasses.replace(rule, odds=middle)
    mean = sum(map(rule.probability, values)) / len(values)
    low, high = (middle, high) if mean < wanted else (low, middle)
  return dataclasses.replace(rule, odds=float(f'{rule.odds:.2g}'))
