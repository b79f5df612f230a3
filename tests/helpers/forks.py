"""Runs launch.tokenize in forks of one process, and kills them at chosen moments.

Reads requests from stdin as JSON lines {arguments, seconds?, event?, bytes?} and answers with
{code, error}: the exit code (-9 after a kill) and the output.

  seconds  kill the fork after this time
  event    kill the fork at its n-th operation on a file in --output
  bytes    limit the size of files
"""

import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback

os.environ['USE_TORCH'] = '0'  # as in stability/data/tokenize/hub.py

import datasets  # noqa: F401  imported once instead of in each fork

from launch import tokenize
from launch.common import app
from stability.data.tokenize import packing

FILE_EVENTS = {'open', 'os.mkdir', 'os.remove', 'os.rename', 'os.rmdir', 'os.truncate'}


def child(request, output):
  os.dup2(output.fileno(), 1)
  os.dup2(output.fileno(), 2)
  packing.COMMIT_SECONDS, packing.BATCH_BYTES = 0, 1_000
  if 'bytes' in request:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (request['bytes'],) * 2)
  if 'event' in request:
    left = [request['event']]
    output_folder = next(a[9:] for a in request['arguments'] if a.startswith('--output='))

    def audit(event, arguments):
      if event in FILE_EVENTS and str(arguments[0]).startswith(output_folder):
        left[0] -= 1
        if left[0] < 0:
          os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
  code = app.execute(tokenize.main, tokenize.FLAGS, ['tokenize', *request['arguments']])
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def main():
  for line in sys.stdin:
    request = json.loads(line)
    with tempfile.TemporaryFile() as output:
      pid = os.fork()
      if pid == 0:
        try:
          child(request, output)
        except BaseException:
          traceback.print_exc()
          os._exit(70)
      if 'seconds' in request:
        time.sleep(request['seconds'])
        os.kill(pid, signal.SIGKILL)
      code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
      output.seek(0)
      error = output.read().decode(errors='replace')
    print(json.dumps({'code': code, 'error': error}), flush=True)


main()
