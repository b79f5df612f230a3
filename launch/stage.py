"""launch.sweep as a stage of launch.reproduce: it ends with whoever holds its standard input.

Its workers end with it in turn, so that whatever kills launch.reproduce leaves nothing behind.
"""

import os
import sys
import threading

from launch import app, preemption, sweep


def _end_with_input() -> None:
  while os.read(sys.stdin.fileno(), 1024):
    pass
  os._exit(1)


if __name__ == '__main__':
  threading.Thread(target=_end_with_input, daemon=True).start()
  preemption.install()
  app.run(sweep.main, sweep.FLAGS)
