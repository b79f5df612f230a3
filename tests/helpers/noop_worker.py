"""launch.workers.worker on stub layouts: all of its files and none of its arithmetic."""

from helpers.stub_layout import StubLayout
from launch.workers import worker

if __name__ == '__main__':
  worker.main(lambda *arguments: StubLayout())
