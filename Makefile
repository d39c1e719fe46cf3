PYTHON ?= python3
BIN := .venv/bin
CONFIG := configs/quickstart/retina_unet_clinical.yaml
OUTPUT := output/quickstart
RESULTS := $(OUTPUT)/inference/phantom_clinical_test
# TorchScript would compile Detectron2's focal loss for ten seconds, to run it a few minutes.
export PYTORCH_JIT ?= 0
# Threads that wait by spinning slow each other a hundredfold where other work runs beside them.
export OMP_WAIT_POLICY ?= PASSIVE
export DETECTRON2_DATASETS ?= $(CURDIR)/datasets
PHANTOM := $(DETECTRON2_DATASETS)/phantom_clinical
PREDICTED := output/predict
SCANS := $(PREDICTED)/scans

# For a machine with a GPU: its Python's version, what it has, and wheels of the rest.
GPU_PYTHON ?= 3.12
GPU_HAS ?= torch torchvision
WHEELS ?= wheels
FOUND_WHEELS = $(wildcard $(WHEELS)/*.whl)

.PHONY: demo predict install test faults lint docs tutorial overview benchmark gpu-check gpu-wheels
.DELETE_ON_ERROR:

# Train a lesion detector on the phantoms, evaluate it on other patients, and show what it found.
demo: $(RESULTS)/pictures/contact_sheet.png
	$(BIN)/python -m lesion_d2.tools.show_results $(OUTPUT) --dataset phantom_clinical_test

# Find lesions in the scan of another phantom patient, as DICOM and as NIfTI, with the demo's model.
predict: $(RESULTS)/froc.json $(SCANS)/phantom.nii.gz
	$(BIN)/python -m lesion_d2.tools.predict --config-file $(CONFIG) \
		--input $(SCANS)/dicom $(SCANS)/phantom.nii.gz --output $(PREDICTED)/findings \
		--operating-points $(RESULTS)/froc.json --fps-per-image 0.5 \
		MODEL.WEIGHTS $(OUTPUT)/model_best.pth

install: .venv/installed

# A process a core; each takes tests from the one that has most left. What they import is kept
# compiled, also where Python was told not to: it takes seconds of each process.
test: export PYTHONDONTWRITEBYTECODE =
test: lint
	$(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal --durations 10

# 5,000 malformed files, and 500 runs that are killed; FAULTS="--kills 50 --seed 1" for others.
faults: install
	$(BIN)/python -m tests.faults $(FAULTS)

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# The documentation as a site: links are checked, and a warning ends the build.
docs: export NO_MKDOCS_2_WARNING := 1
docs: .venv/docs
	$(BIN)/mkdocs build --strict --quiet
	@echo output/site/index.html

# The notebook with what its cells print and draw, in output/tutorial.ipynb.
tutorial: .venv/docs
	$(BIN)/jupyter nbconvert --to notebook --execute docs/tutorial.ipynb --output-dir output

# The picture of the README, from the demo's evaluation.
overview: $(RESULTS)/pictures/contact_sheet.png
	$(BIN)/python docs/site/overview_picture.py $(RESULTS) --output docs/overview.png

benchmark: install
	$(BIN)/python -m lesion_d2.experiments.benchmark

# On a machine with a GPU, docs/gpu.md; GPU_CHECK="--device cpu --tiny" tests the check elsewhere.
gpu-check: $(if $(FOUND_WHEELS),.gpu/installed,install)
	$(if $(FOUND_WHEELS),PYTHONPATH=$(CURDIR)/.gpu:$(CURDIR) $(PYTHON),$(BIN)/python) \
		-m lesion_d2.experiments.gpu_check $(GPU_CHECK)

gpu-wheels: install
	$(BIN)/python -m lesion_d2.experiments.gpu_check.wheels --output $(WHEELS) --python $(GPU_PYTHON) \
		--has $(GPU_HAS)

# Beside the packages of a Python that has torch, which stay as they are.
.gpu/installed: $(FOUND_WHEELS)
	rm -rf .gpu
	$(PYTHON) -m pip install -q --no-index --no-deps --no-compile --target .gpu $^
	touch $@

# A mere folder detectron2, such as a clone of its repository here, can be imported too.
.venv/installed: setup.py requirements-detectron2.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -e ".[scans,test]"
	$(BIN)/python -c "import detectron2; detectron2.__version__" 2>/dev/null || \
		$(BIN)/python -m pip install -q --no-deps --require-hashes -r requirements-detectron2.txt
	touch $@

.venv/docs: .venv/installed
	$(BIN)/python -m pip install -q -e ".[docs]"
	touch $@

$(PHANTOM)/phantom.json: | install
	$(BIN)/python datasets/prepare_phantom.py --root $(PHANTOM) --preset clinical

# Goes on with an interrupted training, or starts anew where its inputs are others by now.
$(OUTPUT)/trained: $(CONFIG) configs/quickstart/retina_unet_phantom.yaml \
		configs/Base-RetinaUNet.yaml $(PHANTOM)/phantom.json | install
	if [ -f $(OUTPUT)/inputs.sha256 ] && ! sha256sum $^ | cmp -s - $(OUTPUT)/inputs.sha256; \
		then rm -r $(OUTPUT); fi
	mkdir -p $(OUTPUT)
	sha256sum $^ > $(OUTPUT)/inputs.sha256
	$(BIN)/python train_net.py --config-file $(CONFIG) --resume OUTPUT_DIR $(OUTPUT)
	touch $@

$(RESULTS)/froc.json: $(OUTPUT)/trained
	$(BIN)/python train_net.py --config-file $(CONFIG) --eval-only OUTPUT_DIR $(OUTPUT) \
		MODEL.WEIGHTS $(OUTPUT)/model_best.pth DATASETS.TEST "('phantom_clinical_test',)"

$(RESULTS)/pictures/contact_sheet.png: $(RESULTS)/froc.json
	$(BIN)/python -m lesion_d2.tools.visualize predictions --dataset phantom_clinical_test \
		--results $(RESULTS)/coco_instances_results.json

# The NIfTI file is written last.
$(SCANS)/phantom.nii.gz: datasets/prepare_phantom_scan.py | install
	rm -rf $(SCANS)
	$(BIN)/python datasets/prepare_phantom_scan.py --output $(SCANS)
