"""launch.workers.worker on stub layouts: it writes all files and computes nothing."""

from helpers.stub_layout import StubLayout
from launch.workers import worker


def make_layout(workdir, sweep, static, hparams, runs, max_members, on_members):
  on_members(1)
  return StubLayout()


if __name__ == '__main__':
  worker.main(make_layout)
