"""CPU quotas of control groups of both versions, from files as containers have them."""

import pathlib

import pytest

from launch.common import cgroups


@pytest.fixture
def system(tmp_path, monkeypatch):
  """A function that writes a system's files and returns the quotas."""

  def quotas(membership, **files):
    for name, content in files.items():
      path = tmp_path / name.replace('__', '/').replace('cpu_', 'cpu.')
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(content)
    (tmp_path / 'membership').write_text(membership)
    monkeypatch.setattr(cgroups, '_CGROUPS', tmp_path)
    monkeypatch.setattr(cgroups, '_MEMBERSHIP', tmp_path / 'membership')
    return sorted(cgroups.cpu_quotas())

  return quotas


def test_version_2_in_a_container(system):
  assert system('0::/\n', cpu_max='150000 100000\n') == [1.5]


def test_version_2_above_the_group(system):
  found = system('0::/a/b\n', a__b__cpu_max='max 100000\n', a__cpu_max='200000 50000\n')
  assert found == [4.0]


def test_version_1(system):
  """In a container, the path of the group is the host's, and the root is the container's."""
  files = {'cpu__cpu_cfs_quota_us': '50000\n', 'cpu__cpu_cfs_period_us': '100000\n'}
  assert system('5:memory:/x\n4:cpu,cpuacct:/docker/0f3\n', **files) == [0.5]


def test_version_1_without_quota(system):
  files = {'cpu__cpu_cfs_quota_us': '-1\n', 'cpu__cpu_cfs_period_us': '100000\n'}
  assert system('4:cpu,cpuacct:/\n', **files) == []


@pytest.mark.parametrize('content', ['', 'max', '100000', 'x y', '1 0', 'max 100000'])
def test_no_quota(system, content):
  assert system('0::/\n', cpu_max=content) == []


@pytest.mark.parametrize('membership', ['', 'damaged', '0::/../../../etc\n'])
def test_damaged_membership(system, membership):
  assert system(membership, cpu_max='300000 100000\n') in ([3.0], [])


def test_no_proc(monkeypatch):
  monkeypatch.setattr(cgroups, '_MEMBERSHIP', pathlib.Path('/nonexistent/cgroup'))
  list(cgroups.cpu_quotas())
