"""launch.workers.worker with all its files and none of its arithmetic: layouts are stubs."""

from helpers.stub_layout import StubLayout
from launch.workers import worker


def main() -> None:
  from stability.trainer import trainer

  def make(workdir, sweep, static, values, most=None, chosen=lambda members: None):
    return StubLayout()

  trainer.make_layout = make
  worker.main()


if __name__ == '__main__':
  main()
