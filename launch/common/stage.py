"""launch.sweep as a stage of launch.reproduce: it ends with whoever holds its standard input.

Its workers end with it in turn, so that whatever kills launch.reproduce leaves nothing behind.
"""

from launch import sweep
from launch.common import app, preemption

if __name__ == '__main__':
  preemption.end_with_input()
  preemption.install()
  app.run(sweep.main, sweep.FLAGS)
