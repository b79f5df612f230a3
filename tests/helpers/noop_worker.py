"""launch.workers.worker on stub layouts: it writes all files and computes nothing."""

from helpers.stub_layout import StubLayout
from launch.workers import worker

if __name__ == '__main__':
  worker.main(lambda *arguments: StubLayout())
