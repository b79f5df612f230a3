"""Tables in LaTeX."""

import shutil
import subprocess

import pandas as pd
import pytest

from stability.report import latex

TABLE = pd.DataFrame({
    'parameters': ['9.2K', '9.2K', '37K', '37K'],
    'qk_norm': ['50 % & more', 'a{b}~^\\', '$x$ #1', '<|>'],
    'ratio': ['baseline', '1.05 (0.90-1.20)', '', '-0.123'],
    '90 % interval': ['0.856-0.952', '', 'v1-2', '1e-3'],
})
EXPECTED = r"""% needs \usepackage{booktabs}
\begin{tabular}{llrr}
\toprule
parameters & qk\_norm & ratio & 90 \% interval \\
\midrule
9.2K & 50 \% \& more & baseline & 0.856--0.952 \\
9.2K & a\{b\}\textasciitilde{}\textasciicircum{}\textbackslash{} & 1.05 (0.90--1.20) &  \\
\addlinespace
37K & \$x\$ \#1 &  & v1-2 \\
37K & \textless{}\textbar{}\textgreater{} & -0.123 & 1e-3 \\
\bottomrule
\end{tabular}
"""


def test_tabular():
  assert latex.tabular(TABLE, ['parameters', 'qk_norm']) == EXPECTED


@pytest.mark.skipif(shutil.which('pdflatex') is None, reason='pdflatex is not installed')
def test_compiles(tmp_path):
  (tmp_path / 'table.tex').write_text(EXPECTED)
  text = r'\documentclass{article}\usepackage{booktabs}\begin{document}\input{table}\end{document}'
  (tmp_path / 'main.tex').write_text(text)
  command = ['pdflatex', '-halt-on-error', '-interaction=batchmode', 'main']
  assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 0
