"""Package metadata; build settings and tools are in pyproject.toml."""

import pathlib

import setuptools

# Text of any kind for launch.tokenize: Hugging Face sets, parquet, SentencePiece models.
HF = ['datasets>=5.2', 'pyarrow>=24', 'sentencepiece>=0.2.1']
REPORT = ['jinja2>=3.1', 'matplotlib>=3.10', 'pandas>=2.2', 'rich>=14']

setuptools.setup(
    name='stability',
    version='0.1.0',
    description='Find out on small Transformers what will make a large one unstable',
    long_description=pathlib.Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=setuptools.find_packages(include=['stability*', 'launch*', 'configs*']),
    entry_points={'console_scripts': ['stability = launch.__main__:main']},
    package_data={'stability.report': ['*.j2'], 'launch.backends': ['*.j2']},
    install_requires=[
        'absl-py>=2.1',
        'bm25s>=0.3.16',
        'crc32c>=2.7',  # tensorboardX's checksums in C, which are slow in Python
        'flax>=0.12.8,<0.13',
        'jax>=0.10,<0.13',
        'ml_collections>=1.1',
        'ml_dtypes>=0.5',  # bfloat16 in files; jax needs it too
        'numpy>=2.0',
        'optax>=0.2.8,<0.3',
        'orbax-checkpoint>=0.12,<0.13',
        'scipy>=1.14',  # as jax needs
        'tensorboardX>=2.6.4',
        'tokenizers>=0.21',
        *REPORT,
    ],
    extras_require={
        # For launch.sweep --analyze --target: compilers of devices that need not be here. jax's own
        # extras pin the version of a plugin to that of jaxlib. cuDNN is for fused attention.
        'aot-gpu': ['jax[cuda13-local]', 'nvidia-cudnn-cu13>=9.12'],
        'aot-tpu': ['jax[tpu]'],
        'cuda12': ['jax[cuda12]'],
        'cuda13': ['jax[cuda13]'],
        'tpu': ['jax[tpu]'],
        'hf': HF,
        'ray': ['ray>=2.50'],
        # For launch.export.
        'mlflow': ['mlflow-skinny>=3.17'],
        'wandb': ['wandb>=0.31'],
        'test': [
            *HF,
            'hypothesis>=6.100',
            'pytest>=8',
            'pytest-xdist>=3.6',
            'ruff>=0.9',
            'safetensors>=0.5',  # reads what we write
            'tensorboard>=2.20',
        ],
        # The reference that the numerics are checked against; its default wheels weigh gigabytes.
        'torch': ['torch>=2.6'],
    },
    classifiers=[
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Programming Language :: Python :: 3.14',
    ],
)
