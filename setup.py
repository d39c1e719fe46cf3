from setuptools import find_packages, setup

setup(
    name="lesion_d2",
    version="0.1.0",
    description="Universal lesion detection in CT as a Detectron2 project",
    license="Apache-2.0",
    packages=find_packages(include=["lesion_d2", "lesion_d2.*"]),
    python_requires=">=3.10",
    # Detectron2 itself was never published on the Python package index: see README, "Install".
    install_requires=[
        "cloudpickle>=2.0",
        "fvcore>=0.1.5",
        "hydra-core>=1.1",
        "iopath>=0.1.9",
        "matplotlib>=3.7",
        "nibabel>=5.2",
        "numpy>=1.24",
        "omegaconf>=2.1",
        "opencv-python-headless>=4.7",
        "packaging>=21",
        "pandas>=2.0",
        "Pillow>=9.4",
        "pycocotools>=2.0.7",
        "PyYAML>=6.0",
        "scipy>=1.10",
        "tabulate>=0.9",
        "tensorboard>=2.12",
        "termcolor>=1.1",
        "torch>=2.11",
        "torchvision>=0.26",
        "tqdm>=4.64",
        "yacs>=0.1.8",
    ],
    extras_require={
        "test": ["pytest>=7.4", "pytest-xdist>=3.5", "ruff~=0.17.5", "scikit-image>=0.21"],
    },
)
