"""launch.worker with all its files and none of its arithmetic: layouts are stubs."""

from stub_layout import StubLayout

from launch import worker


def main() -> None:
  from stability import population

  def make(workdir, sweep, static, values, most=None, chosen=lambda members: None):
    return StubLayout()

  population.make_layout = make
  worker.main()


if __name__ == '__main__':
  main()
