"""The files of folders and patterns, with links of all kinds."""

import os
import pathlib

import pytest

from stability.data import listing


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
  """A folder with two files, and a file outside of it."""
  root = tmp_path / 'root'
  (root / 'a').mkdir(parents=True)
  (root / 'a' / 'x.txt').write_text('x')
  (root / 'y.txt').write_text('y')
  (tmp_path / 'outside').mkdir()
  (tmp_path / 'outside' / 'z.txt').write_text('z')
  return root


def test_links_out_of_the_folder_are_followed(folder):
  (folder / 'file').symlink_to('../outside/z.txt')
  (folder / 'more').symlink_to('../outside')
  found = listing.of_folder(folder)
  assert list(found.files) == ['a/x.txt', 'more/z.txt', 'y.txt']
  assert found.left_out == {'linked twice or in a circle': ['file']}


@pytest.mark.parametrize('target', ['.', '..', '/', 'a', 'b'])
def test_links_in_circles(folder, target):
  (folder / 'b').symlink_to(target)
  (folder / 'a' / 'c').symlink_to('..')
  (folder / 'a' / 'd').symlink_to('../a')
  found = listing.of_folder(folder)
  assert list(found.files) == ['a/x.txt', 'y.txt']
  reason = 'neither a file nor a folder' if target == 'b' else 'linked twice or in a circle'
  assert 'b' in found.left_out[reason]


def test_links_between_folders_in_circles(folder):
  (folder / 'out').symlink_to('../outside')
  (folder.parent / 'outside' / 'back').symlink_to('../root')
  found = listing.of_folder(folder)
  assert list(found.files) == ['a/x.txt', 'out/z.txt', 'y.txt']
  assert found.left_out == {'linked twice or in a circle': ['out/back']}


@pytest.mark.parametrize('pattern', ['{}/**/*.txt', '{}/**', '{}/*/../**/*.txt'])
def test_pattern_of_any_depth(folder, pattern):
  for name in ('l', 'm'):  # glob would follow them to a depth of 40, in all orders
    (folder / name).symlink_to('.')
  found = listing.matching(pattern.format(folder))
  assert {os.path.basename(name) for name in found.files} == (
      set() if '..' in pattern else {'x.txt', 'y.txt'}
  )


def test_pattern_of_fixed_depth(folder):
  (folder / 'twice.txt').symlink_to('y.txt')
  found = listing.matching(f'{folder}/*')
  assert list(found.files) == ['y.txt']
  assert found.left_out == {
      'folders': ['a'], 'linked twice or in a circle': ['twice.txt']
  }  # fmt: skip
  assert list(listing.matching(f'{folder}/?/*.txt').files) == ['a/x.txt']
  assert listing.matching(f'{folder}/none/**/*').files == {}


@pytest.mark.parametrize('name', ['out', 'link', '../root/a/../out'])
def test_the_output_is_left_out(folder, name):
  """It is left out as a folder, whatever it holds by now and whatever path leads to it."""

  def found():
    output = folder / name
    return [listing.of_folder(folder, output), listing.matching(f'{folder}/**', output)]

  (folder / 'out').mkdir()
  (folder / 'link').symlink_to('out')
  empty = found()
  for file in ('out/deep/z.txt', 'out/z.txt'):
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text('z')
  assert found() == empty and list(empty[0].files) == ['a/x.txt', 'y.txt']
  assert empty[0].left_out == {'output': ['out', 'link']}
  assert list(listing.matching(f'{folder}/*/*.txt', folder / name).files) == ['a/x.txt']


def test_what_a_folder_lists(folder):
  """As `of_folder` would list a file in it, by its own path or through a link."""
  (folder / 'link').symlink_to('../outside')
  (folder.parent / 'back').symlink_to('root')
  for name, is_listed in {
      '.': True, 'a': True, 'a/new/b': True, 'link/new': True, '../back/new': True,
      '.b': False, 'a/.b/c': False, '..': False, '../rooted': False, 'a/../../b': False,
  }.items():  # fmt: skip
    assert listing.lists(folder, folder / name) == is_listed, name


def test_text_is_short(folder):
  for number in range(9):
    (folder / f'.{number}').touch()
  text = '2 files; left out: 9 hidden (.0, .1, .2, ...)'
  assert str(listing.of_folder(folder)) == text
