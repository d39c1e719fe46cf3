import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

#: Files of the project's root that an installation has in lesion_d2/project; see lesion_d2_cli.py.
PROJECT = ("configs", "datasets/*.py", "requirements-detectron2.txt", "train_net.py")


class BuildWithProject(build_py):
    """Builds the package with the configs and programs of the project's root."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        project = Path(self.build_lib, "lesion_d2", "project")
        shutil.rmtree(project, ignore_errors=True)
        for pattern in PROJECT:
            files = list(Path().glob(pattern))
            if not files:
                raise FileNotFoundError(f"{pattern}: not found, expected next to setup.py")
            for file in files:
                if file.is_dir():
                    shutil.copytree(file, project / file)
                else:
                    (project / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, project / file)


setup(
    name="lesion_d2",
    version="0.1.0",
    description="Universal lesion detection in CT as a Detectron2 project",
    license="Apache-2.0",
    packages=find_packages(include=["lesion_d2", "lesion_d2.*"]),
    py_modules=["lesion_d2_cli"],
    entry_points={"console_scripts": ["lesion-d2=lesion_d2_cli:main"]},
    cmdclass={"build_py": BuildWithProject},
    package_data={
        "lesion_d2.data_checks": ["page.html"],
        "lesion_d2.findings": ["findings.schema.json"],
        "lesion_d2.findings.report": ["page/*"],
        "lesion_d2.modeling.volumetric": ["README.md"],
    },
    python_requires=">=3.11",
    # Detectron2 itself was never published on the Python package index: see README, "Install".
    install_requires=[
        "blosc2>=4.14",
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
        "safetensors>=0.4.3",
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
        "docs": [
            "ipykernel>=6.29",
            "mkdocs>=1.6,<2",
            "mkdocs-jupyter>=0.25",
            "mkdocs-material>=9.6,<10",
            "mkdocstrings[python]>=1.0",
            "nbconvert>=7.16",
        ],
        # Scans in (DICOM with its compressions, MetaImage, NRRD, DICOMweb) and findings out.
        "scans": [
            "dicomweb-client>=0.59",
            "highdicom>=0.25",
            "jsonschema>=4.18",
            "pydicom>=3.0",
            "pyjpegls>=1.4",
            "pylibjpeg>=2.0",
            "pylibjpeg-libjpeg>=2.0",
            "pylibjpeg-openjpeg>=2.0",
            "pylibjpeg-rle>=2.0",
            "SimpleITK>=2.3",
        ],
        "test": [
            "hypothesis>=6.100",
            "monai>=1.5",
            "pydicom-data>=1.0",
            "pytest>=7.4",
            "pytest-xdist>=3.5",
            "ruff~=0.17.5",
            "scikit-image>=0.21",
            "selenium>=4.20",
        ],
    },
)
